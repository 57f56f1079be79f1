"""Protocols: an OpenRPC document becomes methods that validate their params.

Documents are OpenRPC 1.3.2 (https://spec.open-rpc.org) with JSON Schema 2020-12 in the schema slots and one extension
object per method, `x-gleitzeit`. References outside the document are refused, never fetched.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Raw

from gleitzeit_host import wire
from gleitzeit_host.errors import ConfigurationError, InvalidParams

if TYPE_CHECKING:
    import jsonschema_rs

MCP = frozenset(  # first segments of the Model Context Protocol's methods, of all its revisions
    [
        "initialize",
        "ping",
        "server",
        "tools",
        "resources",
        "prompts",
        "completion",
        "logging",
        "subscriptions",
        "sampling",
        "elicitation",
        "roots",
        "tasks",
    ]
)
RESERVED = MCP | {"notifications", "rpc", "host", "mcp"}
HOST_METHODS = ("host/info", "host/providers", "host/protocols", "host/health", "rpc.discover")
_METHOD_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}/[A-Za-z0-9][A-Za-z0-9_./-]{0,127}")
_DOCUMENT_FILE = re.compile(r"v[1-9][0-9]{0,5}")
_MAX_ERRORS = 20  # violations listed in one answer


class Tool(msgspec.Struct, frozen=True, rename="camel"):
    """How a method is shown to MCP clients: `ToolAnnotations` of the MCP schema."""

    title: str | None = None
    read_only_hint: bool | None = None
    destructive_hint: bool | None = None
    idempotent_hint: bool | None = None
    open_world_hint: bool | None = None


class Extension(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """The `x-gleitzeit` object of a method."""

    timeout_ms: int | None = None
    idempotent: bool = False
    streams: bool = False
    route_by: Literal["model"] | None = None
    additional_params: bool = False
    tool: Tool = Tool()
    available: bool | None = None  # written by rpc.discover, so that its answer can be loaded again


class _Param(msgspec.Struct):
    name: str
    schema: dict[str, Any] | bool
    required: bool = False


class _Result(msgspec.Struct):
    name: str
    schema: dict[str, Any] | bool


class _Method(msgspec.Struct):
    name: str
    params: list[_Param]
    param_structure: Literal["by-name", "by-position", "either"] = msgspec.field(
        default="either", name="paramStructure"
    )
    result: _Result | None = None
    extension: Extension = msgspec.field(default=Extension(), name="x-gleitzeit")


class _Info(msgspec.Struct):
    title: str
    version: str


class _Document(msgspec.Struct):
    openrpc: str
    info: _Info
    methods: list[_Method]
    components: dict[str, Any] = {}


class Method:
    """One method of a protocol. Its schema is compiled when the first call needs it."""

    def __init__(self, protocol: "Protocol", spec: _Method, source: dict[str, Any]) -> None:
        self.protocol = protocol
        self.name = spec.name
        self.source = source  # the method object of the document
        self.params = [param.name for param in spec.params]
        self.extension = spec.extension
        self.idempotent = spec.extension.idempotent
        self.streams = spec.extension.streams
        self._spec = spec
        self._validator: jsonschema_rs.Draft202012Validator | None = None

    def params_schema(self) -> dict[str, Any]:
        """Return the schema that `params` must satisfy: an object with the document's components beside it."""
        return {
            "type": "object",
            "properties": {param.name: param.schema for param in self._spec.params},
            "required": [param.name for param in self._spec.params if param.required],
            "additionalProperties": self.extension.additional_params,
            "components": self.protocol.components,
        }

    def result_schema(self) -> dict[str, Any]:
        """Return the schema of the result; the empty schema where the document has none."""
        schema = self._spec.result.schema if self._spec.result else {}
        return {"allOf": [schema], "components": self.protocol.components}

    def validate(self, params: dict[str, Any]) -> None:
        """Check params against the schema.

        Raises:
            InvalidParams: they do not satisfy it; every violation is listed.
            ConfigurationError: the document turns out to be broken.
        """
        validator = self._validator
        if validator is None:
            self.protocol.check()
            validator = self._validator = compile_schema(self.params_schema())
        if not validator.is_valid(params):
            self._refuse(validator, params)

    def _refuse(self, validator: "jsonschema_rs.Draft202012Validator", params: dict[str, Any]) -> None:
        errors = [
            {"path": pointer(error.instance_path), "message": _shorten(error.message)}
            for error, _ in zip(validator.iter_errors(params), range(_MAX_ERRORS), strict=False)
        ]
        first = f"{errors[0]['path'] or 'params'}: {errors[0]['message']}"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise InvalidParams(f"Invalid params for {self.name}: {first}{more}", method=self.name, errors=errors)

    def by_name(self, positional: list[Raw]) -> dict[str, Raw]:
        """Map positional params by the document's order; raises InvalidParams if there are too many."""
        if len(positional) > len(self.params):
            problem = f"{len(positional)} positional params, but {self.name} has {len(self.params)}"
            raise InvalidParams(
                problem, method=self.name, errors=[{"path": f"/{len(self.params)}", "message": problem}]
            )
        return dict(zip(self.params, positional, strict=False))


class Protocol:
    """One version of a protocol: its name, its methods, and the document that it was read from.

    What the methods are is known at once; the schemas are checked by `check`, which a start need not wait for.
    """

    def __init__(self, name: str, version: str, document: dict[str, Any], origin: str) -> None:
        """Check the document and build the methods.

        Raises:
            ConfigurationError: it is not an OpenRPC document that can be served; says where, as a JSON pointer.
        """
        self.name = name
        self.version = version
        self.document = document
        self.origin = origin  # the file, or the provider that brought it
        self.components: dict[str, Any] = {}
        self.methods: dict[str, Method] = {}
        try:
            parsed = msgspec.convert(document, _Document)
        except msgspec.ValidationError as error:
            raise self._broken(*_split_path(str(error))) from None
        if not parsed.openrpc.startswith("1."):
            raise self._broken("/openrpc", f"OpenRPC {parsed.openrpc} is not supported; write 1.3.2")
        self.components = parsed.components
        self._parsed = parsed
        self._is_checked = False
        for index, spec in enumerate(parsed.methods):
            self._add(index, spec)

    def _add(self, index: int, spec: _Method) -> None:
        where = f"/methods/{index}"
        if not _METHOD_NAME.fullmatch(spec.name):
            raise self._broken(f"{where}/name", f"{spec.name!r} is not PROTOCOL/METHOD")
        if spec.name.split("/")[0] != self.name:
            raise self._broken(f"{where}/name", f"{spec.name!r} does not belong to protocol {self.name!r}")
        if spec.name in self.methods:
            raise self._broken(f"{where}/name", f"{spec.name!r} is defined twice")
        names = [param.name for param in spec.params]
        if "_meta" in names or len(set(names)) < len(names):
            raise self._broken(f"{where}/params", "A param is named _meta, or two have the same name")
        self.methods[spec.name] = Method(self, spec, self.document["methods"][index])

    def check(self) -> None:
        """Check every reference and schema, once; raises ConfigurationError that says where, as a JSON pointer."""
        if self._is_checked:
            return
        self._refuse_outside_references()
        for index, spec in enumerate(self._parsed.methods):
            for number, param in enumerate(spec.params):
                self._check_schema(f"/methods/{index}/params/{number}/schema", param.schema)
            if spec.result:
                self._check_schema(f"/methods/{index}/result/schema", spec.result.schema)
        self._is_checked = True

    def _check_schema(self, where: str, schema: dict[str, Any] | bool) -> None:
        try:
            compile_schema({"allOf": [schema], "components": self.components})
        except ConfigurationError as error:
            raise self._broken(where, str(error)) from None

    def _refuse_outside_references(self) -> None:
        for where, reference in _references(self.document, ""):
            if not (isinstance(reference, str) and reference.startswith("#/components/")):
                raise self._broken(where, f"{reference!r} is outside #/components/; such references are never fetched")

    def _broken(self, where: str, problem: str) -> ConfigurationError:
        return ConfigurationError(f"{self.origin}: {where or '/'}: {problem}")


def compile_schema(schema: dict[str, Any]) -> "jsonschema_rs.Draft202012Validator":
    """Compile a JSON Schema 2020-12; raises ConfigurationError. Nothing is ever fetched for it.

    Patterns take linear time and bounded memory, whatever a document brings.
    """
    import jsonschema_rs  # noqa: PLC0415 - 10 ms, for which the first provider's start need not wait

    patterns = jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 21)
    try:
        return jsonschema_rs.Draft202012Validator(schema, offline=True, pattern_options=patterns)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise ConfigurationError(f"Not a valid JSON Schema 2020-12: {_shorten(str(error))}") from None


def load_protocols(search_path: list[Path], chosen: dict[str, str]) -> tuple[dict[str, Protocol], list[str]]:
    """Load the active version of every protocol on the search path, and say what is wrong with the others.

    Args:
        search_path: Folders that may hold `protocols/NAME/vN.json`; the first definition of a version wins.
        chosen: Protocol name → version such as "v1"; where silent, the highest version is active.

    Returns:
        Protocol name → protocol, and a message per file that cannot be used.
    """
    files: dict[str, dict[str, Path]] = {}
    for folder in search_path:
        for path in sorted(folder.glob("protocols/*/v*.json")):
            if _DOCUMENT_FILE.fullmatch(path.stem):
                files.setdefault(path.parent.name, {}).setdefault(path.stem, path)
    protocols: dict[str, Protocol] = {}
    problems: list[str] = []
    for name, versions in sorted(files.items()):
        wanted = chosen.get(name) or max(versions, key=lambda version: int(version[1:]))
        try:
            protocols[name] = _load(name, wanted, versions)
        except ConfigurationError as error:
            problems.append(str(error))
    problems += [
        f"The configuration chooses {name}/{version}, but no protocol {name} is on the search path"
        for name, version in chosen.items()
        if name not in files
    ]
    return protocols, problems


def _load(name: str, version: str, versions: dict[str, Path]) -> Protocol:
    path = versions.get(version)
    if path is None:
        raise ConfigurationError(f"No {name}/{version}: the search path has {', '.join(sorted(versions))}")
    try:
        document = wire.decode(path.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    return define(name, version, document, str(path))


def define(name: str, version: str, document: Any, origin: str) -> Protocol:
    """Build a protocol; raises ConfigurationError for a reserved name or a document that cannot be used."""
    if name in RESERVED or name.startswith("rpc."):
        raise ConfigurationError(f"{origin}: {name!r} is reserved and cannot be a protocol's name")
    if not isinstance(document, dict):
        raise ConfigurationError(f"{origin}: /: The document is not an object")
    return Protocol(name, version, document, origin)


def pointer(path: list[str | int] | Any) -> str:
    """Return a JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def resolve(reference: str, root: Any) -> Any:
    """Return what a reference within a document (`#/components/…`) points to, or None if there is nothing."""
    target = root
    for part in reference.removeprefix("#/").split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        target = target.get(name) if isinstance(target, dict) else None
    return target


def _references(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            if key in ("$ref", "$dynamicRef"):
                yield f"{where}/{key}", child
            elif key not in ("examples", "example", "default", "const", "enum"):
                yield from _references(child, where + pointer([key]))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _references(child, f"{where}/{index}")


_PATH = r"(?s)(?P<problem>.*?)(?: - at `\$(?P<path>.*)`)?"


def _split_path(message: str) -> tuple[str, str]:
    """Split msgspec's "Expected `str`, got `int` - at `$.methods[0].name`" into a JSON pointer and the problem."""
    match = re.fullmatch(_PATH, message)
    assert match is not None
    path = re.sub(r"\[(\d+)\]", r"/\1", match["path"] or "").replace(".", "/")
    return path, match["problem"]


def _shorten(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:200]} … {text[-80:]}"
