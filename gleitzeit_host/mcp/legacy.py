"""MCP with a handshake: revisions 2024-11-05 to 2025-11-25. `initialize` fixes the revision for the whole pipe."""

from typing import TYPE_CHECKING, Any

from gleitzeit_host import wire
from gleitzeit_host.errors import RpcError
from gleitzeit_host.mcp.changes import Subscriber
from gleitzeit_host.mcp.era import CAPABILITIES, INSTRUCTIONS, SERVER, Era, Params, read_member
from gleitzeit_host.mcp.tools import Shape
from gleitzeit_host.peer import Outlet, Request

if TYPE_CHECKING:
    from gleitzeit_host.mcp.face import Face

_SHAPES = {  # the newest first
    "2025-11-25": Shape(),
    "2025-06-18": Shape(),
    "2025-03-26": Shape(structured=False),
    "2024-11-05": Shape(structured=False, annotations=False),
}
VERSIONS = list(_SHAPES)
_WITH_BATCHES = "2025-03-26"
_WITHOUT_COMPLETIONS = "2024-11-05"  # as a capability; the method is there


class NoResource(RpcError):
    """There is no such resource (revisions up to 2025-11-25)."""

    code = -32002
    name = "resource_not_found"


def negotiated(wanted: str) -> str:
    """Return the revision to speak with a client that wants this one: the same, else the newest."""
    return wanted if wanted in _SHAPES else VERSIONS[0]


class Legacy(Era):
    """The session that an `initialize` began."""

    def __init__(self, face: "Face", version: str, outlet: Outlet) -> None:
        super().__init__(face)
        self.version = version
        self.shape = _SHAPES[version]
        self.batches = version == _WITH_BATCHES
        self._subscriber = Subscriber(outlet)
        self.methods |= {
            "ping": self.ping,
            "resources/subscribe": self.subscribe,
            "resources/unsubscribe": self.unsubscribe,
        }
        face.changes.subscribers.append(self._subscriber)

    def close(self) -> None:
        """Another session begins."""
        self.face.changes.subscribers.remove(self._subscriber)

    def greet(self, request: Request) -> None:
        """Answer `initialize`."""
        shown = CAPABILITIES if self.version != _WITHOUT_COMPLETIONS else _but(CAPABILITIES, "completions")
        body = {
            "protocolVersion": self.version,
            "capabilities": shown,
            "serverInfo": SERVER if self.shape.structured else _but(SERVER, "title"),
            "instructions": INSTRUCTIONS,
        }
        self.reply(request, body)

    def reply(self, request: Request, body: dict[str, Any], ttl: int | None = None) -> None:  # noqa: ARG002
        """Answer with a result. Nothing is said about caching."""
        request.respond(wire.encode(body))

    def no_resource(self, uri: str) -> RpcError:
        """Return the error for a resource that is not there."""
        return NoResource(f"Resource not found: {uri[:200]}", uri=uri)

    def ping(self, request: Request, params: Params) -> None:  # noqa: ARG002
        """`ping`."""
        self.reply(request, {})

    def subscribe(self, request: Request, params: Params) -> None:
        """`resources/subscribe`."""
        uri = read_member(params.uri, str, "uri")
        if not self.face.changes.watch(self._subscriber, uri):
            raise self.no_resource(uri)
        self.reply(request, {})

    def unsubscribe(self, request: Request, params: Params) -> None:
        """`resources/unsubscribe`."""
        self._subscriber.uris.pop(read_member(params.uri, str, "uri"), None)
        self.reply(request, {})


def _but(members: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in members.items() if key != name}
