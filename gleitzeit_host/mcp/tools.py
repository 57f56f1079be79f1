"""Tools: a provider's method as MCP shows it, and a tool call as the router takes it.

A tool call is forwarded like a plain call: the arguments' bytes become the params, the result's bytes come back.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gleitzeit_host import wire
from gleitzeit_host.calls import Meta
from gleitzeit_host.errors import Cancelled, RpcError
from gleitzeit_host.mcp.schemas import as_object, inline
from gleitzeit_host.peer import Outlet, Place, Request
from gleitzeit_host.router import Route, Router

_MAX_NAME = 48  # characters; what the strictest clients take, their own prefix aside
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")
_DETAILS = 2000  # characters of an error's data that are shown


class Shape(msgspec.Struct, frozen=True):
    """How a revision of MCP shows tools and their results."""

    annotations: bool = True  # since 2025-03-26
    structured: bool = True  # titles, output schemas and structured content: since 2025-06-18
    any_value: bool = False  # structured content need not be an object: since 2026-07-28
    head: bytes = b'{"content":['
    tail: bytes = b"}"

    def result(self, tool: "Tool", result: Raw) -> tuple[bytes | Raw, ...]:
        """Return the `CallToolResult` for a provider's result, in pieces."""
        text = str(result, "utf-8")
        content = tool.content(result, text)
        if not self.structured:
            return self.head, content, b"]", self.tail
        if self.any_value or (text[0] == "{" and not tool.wraps):
            return self.head, content, b'],"structuredContent":', result, self.tail
        return self.head, content, b'],"structuredContent":{"result":', result, b"}", self.tail

    def error(self, error: RpcError) -> tuple[bytes, ...]:
        """Return the `CallToolResult` for a call that failed, in pieces."""
        return self.head, _text(wire.encode(explain(error))), b'],"isError":true', self.tail


class Tool:
    """A method as a tool."""

    def __init__(self, name: str, route: Route) -> None:
        self.name = name
        self.route = route
        self.method = route.method
        self._speaks = route.method.protocol.name == "llm"
        self._shown: dict[Shape, Raw] = {}

    @property
    def is_available(self) -> bool:
        """Whether somebody serves it."""
        return any(provider.can_serve for provider in self.route.providers)

    @cached_property
    def _result_schema(self) -> dict[str, Any]:
        declared = self.method.source.get("result")
        return inline(declared["schema"], self.method.protocol.components) if declared else {}

    @cached_property
    def wraps(self) -> bool:
        """Whether its result may be something other than an object, going by its schema."""
        return bool(self._result_schema) and as_object(self._result_schema) is None

    # ---- in the list

    def show(self, shape: Shape) -> Raw:
        """Return the `Tool` object of a revision."""
        shown = self._shown.get(shape)
        if shown is None:
            shown = self._shown[shape] = Raw(wire.encode(self._describe(shape)))
        return shown

    def _describe(self, shape: Shape) -> dict[str, Any]:
        source = self.method.source
        hints = msgspec.to_builtins(self.method.extension.tool)
        annotations = {key: value for key, value in hints.items() if value is not None}
        shown: dict[str, Any] = {"name": self.name}
        title = annotations.get("title") or source.get("summary")
        if shape.structured and title:
            shown["title"] = title
        description = source.get("description") or source.get("summary") or ""
        if source.get("deprecated"):
            description = f"Deprecated. {description}"
        if description:
            shown["description"] = description
        shown["inputSchema"] = self._input_schema()
        if shape.structured and self._result_schema:
            shown["outputSchema"] = self._output_schema(shape)
        if shape.annotations and annotations:
            shown["annotations"] = annotations
        return shown

    def _input_schema(self) -> dict[str, Any]:
        schema = self.method.params_schema()
        components = schema.pop("components")
        described = {param["name"]: param.get("description") for param in self.method.source["params"]}
        properties = {}
        for name, declared in schema["properties"].items():
            properties[name] = inline(declared, components)
            if described[name]:
                properties[name].setdefault("description", described[name])
        schema["properties"] = properties
        if not schema["required"]:
            del schema["required"]
        return schema

    def _output_schema(self, shape: Shape) -> dict[str, Any]:
        if not self.wraps:
            return as_object(self._result_schema) or {}
        if shape.any_value:
            return self._result_schema
        return {"type": "object", "properties": {"result": self._result_schema}, "required": ["result"]}

    # ---- results

    def content(self, result: Raw, text: str) -> bytes:
        """Return the content blocks, without brackets, for a result that reads `text`."""
        block = (self._speaks and self._spoken(result)) or _text(wire.encode(text))
        if '"images"' not in text:
            return block
        return b",".join((block, *(wire.encode(image) for image in _images(result))))

    @staticmethod
    def _spoken(result: Raw) -> bytes | None:
        try:
            response = _decode_answer(result).response
        except msgspec.MsgspecError:
            return None
        return None if response is UNSET else _text(wire.encode(response))


class _Answer(msgspec.Struct):
    response: str | UnsetType = UNSET


_decode_answer = msgspec.json.Decoder(_Answer).decode


def _text(text: bytes) -> bytes:
    return b'{"type":"text","text":%b}' % text


# ---- images

_BASE64_STARTS = {"iVBOR": "image/png", "/9j/": "image/jpeg", "R0lGOD": "image/gif", "UklGR": "image/webp"}
_DATA_URL = re.compile(r"data:(image/[a-zA-Z0-9.+-]+);base64,(.*)", re.DOTALL)


def _images(result: Raw) -> list[dict[str, str]]:
    """Return image content for the result's `images`: data URLs, base64, or objects with `data` and `mimeType`."""
    value = wire.decode(result)
    images = value.get("images") if isinstance(value, dict) else None
    return [block for image in images if (block := _image(image))] if isinstance(images, list) else []


def _image(image: Any) -> dict[str, str] | None:
    if isinstance(image, dict):
        data, kind = image.get("data"), image.get("mimeType")
        if isinstance(data, str) and isinstance(kind, str) and kind.startswith("image/"):
            return {"type": "image", "data": data, "mimeType": kind}
        return None
    if not isinstance(image, str):
        return None
    match = _DATA_URL.fullmatch(image)
    if match:
        return {"type": "image", "data": match[2], "mimeType": match[1]}
    kind = next((kind for start, kind in _BASE64_STARTS.items() if image.startswith(start)), None)
    return {"type": "image", "data": image, "mimeType": kind} if kind else None


# ---- errors

_SHOWN_ALREADY = frozenset({"name", "source", "retryable", "provider", "method", "errors", "retryAfterMs"})


def explain(error: RpcError) -> str:
    """Return an error as a model can use it: what is wrong, every violation, and whether to try again."""
    data = error.data
    lines = [f"{data.get('name', 'error')} ({error.code}): {error.message}"]
    errors = data.get("errors")
    if isinstance(errors, list) and len(errors) > 1:
        lines += [f"- {e.get('path') or 'arguments'}: {e.get('message')}" for e in errors if isinstance(e, dict)]
    details = {key: value for key, value in data.items() if key not in _SHOWN_ALREADY}
    if details:
        lines.append(wire.encode(details).decode()[:_DETAILS])
    if data.get("retryAfterMs") is not None:
        lines.append(f"Try again in {data['retryAfterMs']} ms.")
    elif data.get("retryable"):
        lines.append("The same call may succeed later.")
    return "\n".join(lines)


# ---- calls


class ToolCall(Request):
    """A tool call on its way to a provider; how it is answered is its revision's. Cancelled, it is not answered."""

    __slots__ = ("_reached", "_shape", "_tool")

    def __init__(self, request: Request, tool: Tool, shape: Shape, arguments: Raw | UnsetType, meta: Meta) -> None:
        """Take the place of a `tools/call` request; `meta` is what the router is to know of its `_meta`."""
        super().__init__(request.outlet, tool.method.name, request.id, arguments, request.size)
        self.meta = meta
        self._tool = tool
        self._shape = shape
        self._reached = -math.inf  # progress so far

    def respond(self, result: Any) -> None:
        """Answer with the tool's result."""
        if self.id is not None:
            self.outlet.send(wire.result_line(self.id, *self._shape.result(self._tool, result)))

    def fail(self, error: RpcError) -> None:
        """Answer with a tool error, which a model can read."""
        if isinstance(error, Cancelled):
            withdraw(self.outlet)
        elif self.id is not None:
            self.outlet.send(wire.result_line(self.id, *self._shape.error(error)))

    def notify(self, method: str, params: Any) -> None:
        """Send progress if it was asked for; streamed text is its message."""
        if self.meta.progress_token is UNSET:
            return
        try:
            shown = self._progress(params)
        except msgspec.MsgspecError:  # a number that no double can hold
            return
        if shown is not None:
            super().notify(method, shown)

    def _progress(self, params: dict[str, Raw]) -> dict[str, Any] | None:
        message = _message(params)
        reached = wire.decode(params["progress"])
        if reached <= self._reached:  # MCP's progress always increases
            if message is None:
                return None
            reached = math.nextafter(self._reached, math.inf)
        self._reached = reached
        shown: dict[str, Any] = {"progressToken": params["progressToken"], "progress": reached}
        total = wire.decode(params["total"]) if "total" in params else None
        if isinstance(total, int | float) and not isinstance(total, bool):
            shown["total"] = total
        if message is not None:
            shown["message"] = message
        return shown


def _message(params: dict[str, Raw]) -> str | None:
    if "delta" in params:
        delta = wire.decode(params["delta"])
        return delta if isinstance(delta, str) else wire.encode(delta).decode()
    message = wire.decode(params["message"]) if "message" in params else None
    return message if isinstance(message, str) else None


def withdraw(outlet: Outlet) -> None:
    """Give no answer."""
    if isinstance(outlet, Place):
        outlet.leave()


# ---- all of them


class Toolbox:
    """The tools there are, and which of them a client may see and call.

    Args:
        router: Whose routes are the tools.
        expose: Lists of patterns; a tool has to pass each list. It passes one if it matches a pattern, or there are
            only exclusions, and matches no pattern behind a `!`.
    """

    def __init__(self, router: Router, expose: list[list[str]]) -> None:
        self._router = router
        self._expose = expose
        self._revision = -1
        self._tools: dict[str, Tool] = {}

    @property
    def tools(self) -> dict[str, Tool]:
        """Every exposed tool under its name, in the order of the names."""
        if self._revision != self._router.revision:
            self._revision = self._router.revision
            names = tool_names(self._router.routes)
            old = self._tools
            self._tools = {}
            for name, method in sorted((name, method) for method, name in names.items() if self._is_exposed(name)):
                route = self._router.routes[method]
                known = old.get(name)
                self._tools[name] = known if known and known.route is route else Tool(name, route)
        return self._tools

    def available(self) -> list[Tool]:
        """Return the tools that somebody serves."""
        return [tool for tool in self.tools.values() if tool.is_available]

    def _is_exposed(self, name: str) -> bool:
        return all(_passes(name, patterns) for patterns in self._expose)


def _passes(name: str, patterns: list[str]) -> bool:
    excluded = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    included = [pattern for pattern in patterns if not pattern.startswith("!")]
    if any(fnmatchcase(name, pattern) for pattern in excluded):
        return False
    return any(fnmatchcase(name, pattern) for pattern in included) or not (included or not excluded)


def tool_names(methods: Iterable[str]) -> dict[str, str]:
    """Return method → tool name: `llm/chat` → `llm_chat`.

    A name that would be too long is cut and gets a hash of the method's; so do those that would be the same.
    """
    plain = {method: _NOT_IN_NAMES.sub("_", method) for method in methods}
    uses = Counter(plain.values())
    return {
        method: name if len(name) <= _MAX_NAME and uses[name] == 1 else _hashed(name, method)
        for method, name in plain.items()
    }


def _hashed(name: str, method: str) -> str:
    digest = hashlib.sha256(method.encode()).hexdigest()[:8]
    return f"{name[: _MAX_NAME - 9]}_{digest}"
