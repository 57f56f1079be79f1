"""What both eras of MCP share: the methods on tools and resources, and how their params are read."""

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gleitzeit_host import __version__, wire
from gleitzeit_host.calls import NO_META, Meta, read_meta
from gleitzeit_host.errors import InvalidParams, MethodNotFound, RpcError
from gleitzeit_host.mcp.resources import MAX_COMPLETIONS, TEMPLATES, Resources
from gleitzeit_host.mcp.tools import Shape, Tool, ToolCall
from gleitzeit_host.peer import Request

if TYPE_CHECKING:
    from gleitzeit_host.mcp.face import Face

SERVER = {"name": "gleitzeit-host", "title": "Gleitzeit Host", "version": __version__}
INSTRUCTIONS = (
    "Each tool is a method of a provider, a process that this host runs: llm_chat is method llm/chat of protocol llm. "
    "The resource gleitzeit://protocols/{name}/{version} documents a protocol with examples; "
    "gleitzeit://providers/{name} says what a provider serves, or why it does not."
)
CAPABILITIES = {
    "tools": {"listChanged": True},
    "resources": {"listChanged": True, "subscribe": True},
    "completions": {},
}
PAGE = 200  # entries of one list result
_LIST_TTL = 5_000  # ms; a subscription tells sooner
_STATIC_TTL = 3_600_000  # ms; of what stays as it is while the host runs
_OBJECT = ord("{")
_T = TypeVar("_T")


class RequestMeta(msgspec.Struct, gc=False):
    """The members of a request's `_meta` that this host reads."""

    protocol_version: Raw | UnsetType = msgspec.field(default=UNSET, name="io.modelcontextprotocol/protocolVersion")
    client_capabilities: Raw | UnsetType = msgspec.field(
        default=UNSET, name="io.modelcontextprotocol/clientCapabilities"
    )
    progress_token: Raw | UnsetType = msgspec.field(default=UNSET, name="progressToken")
    timeout_ms: Raw | UnsetType = msgspec.field(default=UNSET, name="timeoutMs")
    traceparent: Raw | UnsetType = UNSET


class Params(msgspec.Struct, gc=False):
    """The params of any request, each member to be read where it is needed."""

    meta: RequestMeta | UnsetType = msgspec.field(default=UNSET, name="_meta")
    name: str | UnsetType = UNSET
    arguments: Raw | UnsetType = UNSET
    cursor: Raw | UnsetType = UNSET
    uri: Raw | UnsetType = UNSET
    ref: Raw | UnsetType = UNSET
    argument: Raw | UnsetType = UNSET
    context: Raw | UnsetType = UNSET
    notifications: Raw | UnsetType = UNSET
    protocol_version: Raw | UnsetType = msgspec.field(default=UNSET, name="protocolVersion")


_decode_params = msgspec.json.Decoder(Params).decode


def read_params(raw: Raw | UnsetType) -> Params:
    """Split a request's params; raises InvalidParams unless they are an object, and `_meta` is one."""
    if raw is UNSET:
        return Params()
    try:
        return _decode_params(raw)
    except msgspec.MsgspecError as error:
        raise invalid(f"The params cannot be used: {error}") from None


def read_member(raw: Raw | UnsetType, kind: type[_T], name: str) -> _T:
    """Decode one member of the params; raises InvalidParams if it is missing or of another type."""
    if raw is UNSET:
        raise invalid(f"params.{name} is missing")
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise invalid(f"params.{name}: {error}") from None


def invalid(message: str, **data: Any) -> InvalidParams:
    """Return the error for params that break a rule of MCP's own."""
    return InvalidParams(message, errors=[{"path": "", "message": message}], **data)


def router_meta(meta: RequestMeta | UnsetType) -> Meta:
    """Return what the router is to know of a request's `_meta`: progress wanted, time-out, trace."""
    if meta is UNSET:
        return NO_META
    token, timeout, trace = meta.progress_token, meta.timeout_ms, meta.traceparent
    if token is UNSET and timeout is UNSET and trace is UNSET:
        return NO_META
    if token is not UNSET and not is_id(bytes(token)):
        raise invalid("params._meta.progressToken is neither a string nor an integer")
    members = {"progressToken": token, "timeoutMs": timeout, "traceparent": trace}
    return read_meta(Raw(wire.encode({name: raw for name, raw in members.items() if raw is not UNSET})))


def is_id(raw: bytes) -> bool:
    """Tell whether JSON text is a string or an integer, as ids and progress tokens of MCP are."""
    return raw.isdigit() or raw[:1] == b'"' or (raw[:1] == b"-" and raw[1:].isdigit())


class _Reference(msgspec.Struct):
    type: str
    uri: str = ""
    name: str = ""


class _Argument(msgspec.Struct):
    name: str
    value: str


class _Context(msgspec.Struct):
    arguments: dict[str, str] = {}


class Era(ABC):
    """Answers the requests of one era. What a request is answered with that is no result is raised as RpcError."""

    shape: Shape
    version: str
    batches = False  # whether requests may come in arrays

    def __init__(self, face: "Face") -> None:
        self.face = face
        self.methods: dict[str, Callable[[Request, Params], None]] = {
            "tools/call": self.call_tool,
            "tools/list": self.list_tools,
            "resources/list": self.list_resources,
            "resources/templates/list": self.list_templates,
            "resources/read": self.read_resource,
            "completion/complete": self.complete,
        }

    def take(self, request: Request, params: Params) -> None:
        """Answer a request, now or later."""
        serve = self.methods.get(request.method)
        if serve is None:
            raise MethodNotFound(
                f"This server has no {request.method[:200]!r} in MCP {self.version}", method=request.method[:200]
            )
        serve(request, params)

    @abstractmethod
    def reply(self, request: Request, body: dict[str, Any], ttl: int | None = None) -> None:
        """Answer with a result; `ttl` says for how many ms it may be cached, None that it may not."""

    @abstractmethod
    def no_resource(self, uri: str) -> RpcError:
        """Return the error for a resource that is not there."""

    # ---- tools

    def list_tools(self, request: Request, params: Params) -> None:
        """`tools/list`: waits for the providers that start with the host."""
        self.face.when_settled(request, lambda: self._list_tools(request, params))

    def _list_tools(self, request: Request, params: Params) -> None:
        self.face.host.check_protocols()
        page, following = self._page(self.face.toolbox.available(), lambda tool: tool.name, params.cursor)
        self.face.changes.tools_seen()
        self.reply(request, {"tools": [tool.show(self.shape) for tool in page], **following}, _LIST_TTL)

    def call_tool(self, request: Request, params: Params) -> None:
        """`tools/call`: goes to the router, and its answer comes from the provider."""
        name, arguments = params.name, params.arguments
        if name is UNSET:
            raise invalid("params.name is missing")
        if arguments is not UNSET and memoryview(arguments)[0] != _OBJECT:
            raise invalid("params.arguments is not an object")
        meta = router_meta(params.meta)
        tool = self.face.toolbox.tools.get(name)
        if tool is None:
            self.face.when_settled(request, lambda: self._call_late(request, name, arguments, meta))
        else:
            self._call(request, tool, arguments, meta)

    def _call_late(self, request: Request, name: str, arguments: Raw | UnsetType, meta: Meta) -> None:
        tools = self.face.toolbox.tools
        if name not in tools:
            known = ", ".join([tool.name for tool in self.face.toolbox.available()][:20]) or "none"
            raise invalid(f"Unknown tool: {name[:200]!r}; tools/list has {known}")
        self._call(request, tools[name], arguments, meta)

    def _call(self, request: Request, tool: Tool, arguments: Raw | UnsetType, meta: Meta) -> None:
        self.face.submit(ToolCall(request, tool, self.shape, arguments, meta))

    # ---- resources

    def list_resources(self, request: Request, params: Params) -> None:
        """`resources/list`."""
        page, following = self._page(self.face.resources.listed(), lambda resource: resource["uri"], params.cursor)
        self.face.changes.resources_seen()
        self.reply(request, {"resources": page, **following}, _LIST_TTL)

    def list_templates(self, request: Request, params: Params) -> None:
        """`resources/templates/list`."""
        page, following = self._page(TEMPLATES, lambda template: template["uriTemplate"], params.cursor)
        self.reply(request, {"resourceTemplates": page, **following}, _STATIC_TTL)

    def read_resource(self, request: Request, params: Params) -> None:
        """`resources/read`."""
        uri = read_member(params.uri, str, "uri")
        contents = self.face.resources.read(uri)
        if contents is None:
            raise self.no_resource(uri)
        self.reply(request, {"contents": [contents]}, _STATIC_TTL if Resources.is_static(uri) else 0)

    def complete(self, request: Request, params: Params) -> None:
        """`completion/complete`: of the variables of resource templates."""
        reference = read_member(params.ref, _Reference, "ref")
        argument = read_member(params.argument, _Argument, "argument")
        context = _Context() if params.context is UNSET else read_member(params.context, _Context, "context")
        if reference.type != "ref/resource":
            raise invalid("params.ref: only resource templates can be completed; there are no prompts")
        values = self.face.resources.complete(reference.uri, argument.name, context.arguments)
        if values is None:
            raise invalid(f"params.ref: no template {reference.uri[:200]!r} has a variable {argument.name[:64]!r}")
        given = argument.value.lower()
        found = [value for value in values if given in value.lower()]
        found.sort(key=lambda value: not value.lower().startswith(given))
        shown = found[:MAX_COMPLETIONS]
        self.reply(request, {"completion": {"values": shown, "total": len(found), "hasMore": len(shown) < len(found)}})

    # ---- pages

    @staticmethod
    def _page(items: list[_T], key: Callable[[_T], str], cursor: Raw | UnsetType) -> tuple[list[_T], dict[str, str]]:
        """Return the items behind the cursor, at most a page of them, and `nextCursor` if there are more.

        A cursor is the key of the last item that was seen, so it stays valid while the list changes.
        """
        if cursor is not UNSET:
            seen = _read_cursor(read_member(cursor, str, "cursor"))
            items = [item for item in items if key(item) > seen]
        if len(items) <= PAGE:
            return items, {}
        page = items[:PAGE]
        return page, {"nextCursor": _MARK + base64.urlsafe_b64encode(key(page[-1]).encode()).decode()}


_MARK = "after:"


def _read_cursor(cursor: str) -> str:
    mark, key = cursor[: len(_MARK)], cursor[len(_MARK) :]
    try:
        if mark == _MARK:
            return base64.b64decode(key, altchars=b"-_", validate=True).decode()
    except ValueError:
        pass
    raise invalid("params.cursor is none that this server gave out; begin anew without one")
