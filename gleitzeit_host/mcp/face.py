"""MCP on the client's pipe: decides for each message which era it belongs to, and ends it all with the input.

A request whose `_meta` holds `io.modelcontextprotocol/protocolVersion` is modern. `initialize` makes the pipe speak a
legacy revision as well. Both are served side by side, and plain JSON-RPC beside them.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import UNSET

from gleitzeit_host import wire
from gleitzeit_host.errors import InvalidRequest, Overloaded, RpcError
from gleitzeit_host.mcp import legacy
from gleitzeit_host.mcp.changes import Changes
from gleitzeit_host.mcp.era import Era, Params, invalid, is_id, read_member, read_params
from gleitzeit_host.mcp.legacy import Legacy
from gleitzeit_host.mcp.modern import VERSION, Modern
from gleitzeit_host.mcp.resources import Resources
from gleitzeit_host.mcp.tools import Toolbox, ToolCall, withdraw
from gleitzeit_host.peer import Place, Request

if TYPE_CHECKING:
    from gleitzeit_host.edge import Edge
    from gleitzeit_host.host import Host

SETTLED_AFTER = 2.0  # seconds after the host's start; tools that come later are announced


class Face:
    """Answers the MCP requests of one pipe; the edge keeps account of its calls as of any others."""

    def __init__(self, host: "Host", edge: "Edge") -> None:
        self.host = host
        self.toolbox = Toolbox(host.router, host.config.expose)
        self.resources = Resources(host)
        self.changes = Changes(self.toolbox, self.resources)
        self._edge = edge
        self._modern = Modern(self)
        self._legacy: Legacy | None = None
        self._waiting: dict[Request, Callable[[], None]] = {}  # until the host has settled
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        host.router.on_change = self._look

    # ---- in

    def take(self, request: Request) -> None:
        """Answer an MCP request, now or later; raises the RpcError that it is to be answered with."""
        if request.id is None:
            return  # a request that wants no answer asks for nothing
        if not is_id(request.id):
            error = InvalidRequest("The id is neither a string nor an integer")
            request.outlet.send(b'{"jsonrpc":"2.0","error":%b}' % wire.encode(error.to_dict()))
            return
        params = read_params(request.params)
        if params.meta is not UNSET and params.meta.protocol_version is not UNSET:
            self._serve(self._modern, request, params)
        elif request.method == "initialize":
            self._initialize(request, params)
        elif self._legacy is not None:
            self._serve(self._legacy, request, params)
        else:
            raise invalid(
                f"{request.method[:200]} is a method of MCP: either give params._meta with "
                f"io.modelcontextprotocol/protocolVersion ({VERSION}) and io.modelcontextprotocol/clientCapabilities, "
                f"or call initialize first ({', '.join(legacy.VERSIONS)})"
            )

    @staticmethod
    def _serve(era: Era, request: Request, params: Params) -> None:
        if isinstance(request.outlet, Place) and not era.batches:
            raise InvalidRequest(f"MCP {era.version} has no batches")
        era.take(request, params)

    def _initialize(self, request: Request, params: Params) -> None:
        if isinstance(request.outlet, Place):
            raise InvalidRequest("initialize cannot come in a batch")
        version = legacy.negotiated(read_member(params.protocol_version, str, "protocolVersion"))
        if self._legacy is not None:
            self._legacy.close()
        self._legacy = Legacy(self, version, request.outlet)
        self._legacy.greet(request)

    def submit(self, call: ToolCall) -> None:
        """Hand a tool call to the router."""
        if self._ended:
            withdraw(call.outlet)
        else:
            self.host.router.submit(call, self._edge)

    # ---- until the providers that start with the host are there

    def when_settled(self, request: Request, action: Callable[[], None]) -> None:
        """Do it once no provider is starting, or the host has run for SETTLED_AFTER seconds."""
        if self._is_settled():
            action()
            return
        if len(self._waiting) >= self.host.config.limits.requests:
            raise Overloaded("The host is starting; try again", retryAfterMs=round(SETTLED_AFTER * 1000))
        self._waiting[request] = action
        self._edge.hold()
        if self._timer is None:
            left = SETTLED_AFTER - self.host.uptime()
            self._timer = asyncio.get_running_loop().call_later(left, self._settle)

    def _is_settled(self) -> bool:
        if self._ended or self.host.uptime() >= SETTLED_AFTER:
            return True
        return not any(provider.state == "starting" for provider in self.host.router.providers.values())

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for request, action in waiting.items():
            try:
                action()
            except RpcError as error:
                request.fail(error)
            self._edge.unhold()

    def _look(self) -> None:
        if self._waiting and self._is_settled():
            self._settle()
        self.changes.look()

    # ---- out

    def cancel(self, id: bytes) -> None:
        """End the subscription, or the request that waits, which the client cancels; calls are the edge's."""
        self._modern.cancel(id)
        request = next((request for request in self._waiting if request.id == id), None)
        if request is not None:
            del self._waiting[request]
            withdraw(request.outlet)
            self._edge.unhold()

    def end(self) -> None:
        """The pipe is at its end: cancel the tool calls, answer what waits, end the subscriptions."""
        if self._ended:
            return
        self._ended = True
        self.host.router.on_change = lambda: None
        if self._timer is not None:
            self._timer.cancel()
        self._settle()
        for call in list(self._edge.open_calls.values()):
            if isinstance(call.request, ToolCall):
                call.cancel("the client has ended its input")
        self._modern.close()
