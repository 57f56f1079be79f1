"""MCP without a handshake: revision 2026-07-28. Each request says in its `_meta` what it speaks; nothing is kept."""

from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw

from gleitzeit_host import wire
from gleitzeit_host.errors import InvalidRequest, Overloaded, RpcError
from gleitzeit_host.mcp import legacy
from gleitzeit_host.mcp.changes import SUBSCRIPTION, Subscriber
from gleitzeit_host.mcp.era import CAPABILITIES, INSTRUCTIONS, SERVER, Era, Params, invalid, read_member
from gleitzeit_host.mcp.tools import Shape
from gleitzeit_host.peer import Request

if TYPE_CHECKING:
    from gleitzeit_host.mcp.face import Face

VERSION = "2026-07-28"
VERSIONS = [VERSION, *legacy.VERSIONS]
_VERSION = wire.encode(VERSION)
_META = {"io.modelcontextprotocol/serverInfo": {"name": SERVER["name"], "version": SERVER["version"]}}
_DISCOVER_TTL = 3_600_000  # ms
_MAX_LISTENING = 100  # subscriptions at once


class UnsupportedProtocolVersion(RpcError):
    """The request is of a revision that is not served like this."""

    code = -32022
    name = "unsupported_protocol_version"


class _Filter(msgspec.Struct, rename="camel"):
    tools_list_changed: bool = False
    resources_list_changed: bool = False
    resource_subscriptions: list[str] = []


class Modern(Era):
    """Answers each request by itself."""

    version = VERSION
    shape = Shape(
        any_value=True,
        head=b'{"resultType":"complete","content":[',
        tail=b',"_meta":' + wire.encode(_META) + b"}",
    )

    def __init__(self, face: "Face") -> None:
        super().__init__(face)
        self.methods |= {"server/discover": self.discover, "subscriptions/listen": self.listen}
        self._listening: dict[bytes, tuple[Request, Subscriber]] = {}

    def take(self, request: Request, params: Params) -> None:
        """Answer a request, once its `_meta` has what it must."""
        meta = params.meta
        assert meta is not UNSET
        if meta.protocol_version != _VERSION:
            self._check_version(
                read_member(meta.protocol_version, str, "_meta.io.modelcontextprotocol/protocolVersion")
            )
        capabilities = meta.client_capabilities
        if capabilities is UNSET or memoryview(capabilities)[0] != ord("{"):
            raise invalid("params._meta has no object io.modelcontextprotocol/clientCapabilities")
        super().take(request, params)

    @staticmethod
    def _check_version(version: str) -> None:
        if version != VERSION:
            how = "begins with initialize instead of _meta" if version in VERSIONS else "is not supported"
            raise UnsupportedProtocolVersion(
                f"MCP {version[:64]} {how}; in _meta only {VERSION} is", supported=VERSIONS, requested=version
            )

    def reply(self, request: Request, body: dict[str, Any], ttl: int | None = None) -> None:
        """Answer with a complete result."""
        caching = {} if ttl is None else {"ttlMs": ttl, "cacheScope": "private"}
        request.respond(wire.encode({"resultType": "complete", **body, **caching, "_meta": _META}))

    def no_resource(self, uri: str) -> RpcError:
        """Return the error for a resource that is not there."""
        return invalid(f"Resource not found: {uri[:200]}", uri=uri)

    def discover(self, request: Request, params: Params) -> None:  # noqa: ARG002
        """`server/discover`."""
        body = {"supportedVersions": VERSIONS, "capabilities": CAPABILITIES, "instructions": INSTRUCTIONS}
        self.reply(request, body, _DISCOVER_TTL)

    # ---- subscriptions

    def listen(self, request: Request, params: Params) -> None:
        """`subscriptions/listen`: acknowledged at once, answered at the end."""
        wanted = read_member(params.notifications, _Filter, "notifications")
        assert request.id is not None
        if request.id in self._listening:
            raise InvalidRequest(f"A subscription with id {request.id.decode()[:64]} is open already")
        if len(self._listening) >= _MAX_LISTENING:
            raise Overloaded(f"{_MAX_LISTENING} subscriptions are open; cancel one")
        subscriber = Subscriber(
            request.outlet, Raw(request.id), tools=wanted.tools_list_changed, resources=wanted.resources_list_changed
        )
        self._listening[request.id] = request, subscriber
        honoured: dict[str, Any] = {}
        if subscriber.tools:
            honoured["toolsListChanged"] = True
        if subscriber.resources:
            honoured["resourcesListChanged"] = True
        uris = self.face.changes.subscribe(subscriber, wanted.resource_subscriptions)
        if uris:
            honoured["resourceSubscriptions"] = uris
        subscriber.tell("notifications/subscriptions/acknowledged", {"notifications": honoured})

    def cancel(self, id: bytes) -> None:
        """The client ends a subscription: nothing more is said about it."""
        _, subscriber = self._listening.pop(id, (None, None))
        if subscriber is not None:
            self.face.changes.subscribers.remove(subscriber)

    def close(self) -> None:
        """The host ends every subscription: a result says that it ended well, and a cancellation that it ended."""
        for id, (request, _) in list(self._listening.items()):
            self.cancel(id)
            result = {"resultType": "complete", "_meta": {SUBSCRIPTION: Raw(id), **_META}}
            request.respond(wire.encode(result))
            request.notify("notifications/cancelled", {"requestId": Raw(id), "reason": "the host is shutting down"})
