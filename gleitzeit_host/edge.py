"""The client's pipe: JSON-RPC 2.0 in and out, plain or MCP, with backpressure in both directions."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import UNSET, Raw, UnsetType

from gleitzeit_host import wire
from gleitzeit_host.calls import Call
from gleitzeit_host.config import Limits
from gleitzeit_host.errors import ParseError, ProviderProtocol, RpcError
from gleitzeit_host.logs import log
from gleitzeit_host.peer import Peer, Request
from gleitzeit_host.protocol import MCP
from gleitzeit_host.router import RECHECK, Client, Route, Router
from gleitzeit_host.stdio import open_reader, open_writer

if TYPE_CHECKING:
    from gleitzeit_host.mcp.face import Face

MODERN = b'"io.modelcontextprotocol/protocolVersion"'  # in `_meta`: an MCP request, whatever its method


class Edge(Client):
    """Owns the client's peer. Reading stops while the client does not read, or has too much under way.

    `ended` is called once: with True when the input has ended and every answer was written, with False when nobody
    reads the output any more.
    """

    def __init__(
        self,
        router: Router,
        limits: Limits,
        serve_host_method: Callable[[Request], bool],
        mcp_face: Callable[["Edge"], "Face"],
        ended: Callable[[bool], None],
        on_pressure: Callable[[bool], None],
    ) -> None:
        super().__init__()
        self._router = router
        self._limits = limits
        self._max_held = limits.held_bytes
        self._max_open = limits.requests
        self._serve_host_method = serve_host_method
        self._mcp_face = mcp_face
        self._mcp: Face | None = None  # made with the first MCP message
        self._plain = False  # a request of plain JSON-RPC has come
        self._ended = ended
        self._pressure_elsewhere = on_pressure
        self._unrouted = 0
        self._held = 0  # bytes of the requests under way
        self._reasons: set[object] = set()  # for not reading
        self._input_over = False
        self.output_lost = False
        self._over = False

    def open(self, input_fd: int, output_fd: int) -> None:
        """Begin to read and write. Takes the descriptors over."""
        self._writer = open_writer(output_fd, self._lost, self._pressed)
        self.peer = Peer(
            self,
            self._writer.write,
            turn=self._router.turn,
            max_bytes=self._limits.message_bytes,
            max_values=self._limits.values,
            max_depth=self._limits.depth,
            max_batch=self._limits.batch,
        )
        self._reader = open_reader(input_fd, self.peer.feed, self._input_ended)

    # ---- Owner of the peer

    def on_request(self, request: Request) -> None:
        """Route a request; what no protocol defines may be the host's own, or MCP's."""
        if request.method in self._router.routes:
            self._plain = True
            self._router.submit(request, self)
        elif _is_mcp(request):
            if self._mcp is None:
                self._mcp = self._mcp_face(self)
            self._mcp.take(request)
        else:
            self._plain = True
            if not self._serve_host_method(request):
                self._router.submit(request, self)

    @property
    def only_mcp(self) -> bool:
        """Whether MCP was spoken on this pipe, and nothing else."""
        return self._mcp is not None and not self._plain

    def hold(self) -> None:
        """A request is on its way without being a call yet."""
        self._unrouted += 1

    def unhold(self) -> None:
        """It was answered, or became a call."""
        self._unrouted -= 1
        self._finish_if_idle()

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        """Cancel a call; other notifications are not for this host."""
        if method == "notifications/cancelled":
            id = self.cancel(params)
            if self._mcp is not None and id is not None:
                self._mcp.cancel(id)

    def on_problem(self, line: bytes, error: RpcError) -> None:
        """Answer what is not a message; an answer that nobody asked for gets none, lest two hosts chat for ever."""
        if isinstance(error, ProviderProtocol):
            log.warning("The client sent %s", error.message)
        else:
            id = wire.NULL if isinstance(error, ParseError) else wire.detectable_id(line)
            self.peer.send(wire.error_line(id, error))

    # ---- calls under way

    def adopt(self, call: Call) -> None:
        """Keep a call, and read no further while there are too many or too large ones."""
        request = call.request
        key: object = request.id
        if key is None or key in self.open_calls:
            super().adopt(call)
        else:
            call.key = key
            self.open_calls[key] = call
        self._held += request.size
        if self._held > self._max_held or len(self.open_calls) >= self._max_open:
            self._pause("busy")

    def forget(self, call: Call) -> None:
        """Drop a call that is done."""
        self.open_calls.pop(call.key, None)
        self._held -= call.request.size
        if self._reasons and self._has_room():
            self._resume("busy")
        if self._input_over:
            self._finish_if_idle()

    def _has_room(self) -> bool:
        return self._held <= self._limits.held_bytes // 2 and len(self.open_calls) <= self._limits.requests // 2

    # ---- flow

    def slow_down(self, route: Route) -> None:
        """Read no further until the route's queue has room, but no longer than RECHECK: other methods wait too."""
        if route not in self._reasons:
            self._pause(route)
            asyncio.get_running_loop().call_later(RECHECK, self._resume, route)

    def speed_up(self, route: Route) -> None:
        """The route's queue has room again."""
        self._resume(route)

    def _pressed(self, pressed: bool) -> None:
        self._pressure_elsewhere(pressed)
        if pressed:
            self._pause("output")
        else:
            self._resume("output")

    def _pause(self, reason: object) -> None:
        self._reasons.add(reason)
        self.peer.pause()
        self._reader.pause()

    def _resume(self, reason: object) -> None:
        if reason in self._reasons:
            self._reasons.discard(reason)
            if not self._reasons and not self._over:
                asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._reasons and not self._over and self.peer.resume():
            self._reader.resume()
            self._finish_if_idle()

    # ---- the end

    def _input_ended(self) -> None:
        self.peer.feed_end()
        if self._mcp is not None:
            self._mcp.end()
        self._input_over = True
        self._finish_if_idle()

    def _finish_if_idle(self) -> None:
        if self._input_over and not (self.open_calls or self._unrouted or self.peer.has_kept):
            self.finish()

    def _lost(self) -> None:
        self.output_lost = True
        self.finish()

    def finish(self) -> None:
        """Say once that this pipe is over: read nothing more."""
        if not self._over:
            self._over = True
            if self._mcp is not None:
                self._mcp.end()
            self._reader.close()
            self._ended(not self.output_lost)

    async def flush(self) -> None:
        """Wait until the client has taken every answer, or is gone."""
        self.peer.flush()
        await self._writer.flush()


def _is_mcp(request: Request) -> bool:
    if request.method.split("/", 1)[0] in MCP:
        return True
    return request.params is not UNSET and MODERN in bytes(request.params)
