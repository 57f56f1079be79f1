"""The base class of providers, and the decorator that names the method a function serves."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

import anyio.to_thread

from gleitzeit_host.errors import AccessDenied, InternalError, InvalidParams, MethodNotFound
from gleitzeit_host.sdk.link import HostLink, host

Function = TypeVar("Function", bound=Callable[..., Any])
Settings = TypeVar("Settings")
_MARK = "__gleitzeit_method__"

functions: dict[str, Callable[..., Any]] = {}  # of the small form: method name → module-level function


def method(name: str) -> Callable[[Function], Function]:
    """Serve a protocol's method, such as "shout/say", with this function, whose parameters are the method's params.

    Plain functions run in worker threads, async ones on the event loop. What they return is the result: any JSON
    value, a dataclass, a pydantic or msgspec model; NaN, Infinity, bytes and sets are no JSON, and an error that says
    where they are. An `RpcError` that they raise is the answer; any other exception
    becomes -32603 with its text, and its traceback goes to the log.
    """

    def mark(function: Function) -> Function:
        outer = function.__qualname__.rpartition(".")[0]
        setattr(function, _MARK, name)
        if not outer or outer.endswith("<locals>"):  # otherwise it is in a class, which finds it by the mark
            functions[name] = function
        return function

    return mark


class Handler:
    """A function and the params that it takes."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = name
        self._function = function
        self._is_async = inspect.iscoroutinefunction(function)
        parameters = inspect.signature(function).parameters.values()
        self._takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._known = frozenset(p.name for p in named)
        self._required = frozenset(p.name for p in named if p.default is p.empty)
        for parameter in parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
                raise TypeError(f"{name}: the parameter {parameter.name!r} of its handler can only be given by place")

    async def __call__(self, params: Mapping[str, Any]) -> Any:
        """Call the function by name; raises InternalError if it does not take what the protocol allows."""
        missing = self._required - params.keys()
        unknown = frozenset() if self._takes_any else params.keys() - self._known
        if missing or unknown:  # not the caller's mistake: the host has checked the params against the protocol
            lacks = [f"has no parameter {name!r}, which the protocol allows" for name in sorted(unknown)]
            lacks += [f"requires {name!r}, which the protocol does not" for name in sorted(missing)]
            function = getattr(self._function, "__qualname__", repr(self._function))
            raise InternalError(f"{self.name}: its handler {function} {', and '.join(lacks)}")
        if self._is_async:
            return await self._function(**params)
        return await anyio.to_thread.run_sync(lambda: self._function(**params))


class ProtocolProvider(Generic[Settings]):
    """A provider: methods marked with `@method`, settings, and a beginning and an end.

    `ProtocolProvider[Model]` takes a pydantic model for its settings: the host hands the settings over at the
    handshake, and those that the model does not know make the provider unavailable with an error that names them.

    Attributes:
        version: Of the provider.
        concurrency: Calls that it takes at a time; None: as many as the host sends. May be set in `start`.
        capabilities: Declared at the handshake, such as {"models": […], "tags": […]}. May be set in `start`.
        settings: The model, or the dict as it came if the class names none.
        roots: Folders that paths may point into, absolute.
        state: What `host.save_state` kept in an earlier run, or None.
    """

    version: ClassVar[str] = "0"
    concurrency: int | None = None

    def __init__(self) -> None:
        self.settings: Settings
        self.capabilities: dict[str, Any] = {}
        self.roots: list[Path] = []
        self.state: Any = None

    @property
    def host(self) -> HostLink:
        """The host."""
        return host

    async def start(self) -> None:
        """Called once the settings are there; what it raises makes the provider unavailable, with that message."""

    async def stop(self) -> None:
        """Called in the end, even after a failed start."""

    async def health(self) -> dict[str, Any]:
        """Answer the host's ping: `{health: "ok" | "degraded" | "failing", detail?, …}`; override it to be asked."""
        return {}

    def handlers(self) -> dict[str, Handler]:
        """Return who serves which method: the marked methods of this class."""
        found = inspect.getmembers(self, lambda member: hasattr(member, _MARK))
        return {getattr(member, _MARK): Handler(getattr(member, _MARK), member) for _, member in found}

    def get_supported_methods(self) -> list[str]:
        """Return the methods that the handshake declares."""
        return list(self.handlers())

    async def handle_request(self, method: str, params: dict[str, Any]) -> Any:
        """Serve one call; override to serve methods that are not known in advance."""
        handler = self._handlers.get(method)
        if handler is None:
            raise MethodNotFound(f"This provider does not serve {method!r}")
        return await handler(params)

    def resolve_path(self, path: str) -> Path:
        """Return the absolute path, links resolved, of a file or folder inside the allowed roots.

        Raises:
            AccessDenied: it is outside of them.
            InvalidParams: there is nothing of that name.
        """
        try:
            resolved = Path(path).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidParams(f"{path!r} is not a usable path: {error}") from None
        if not any(resolved.is_relative_to(root) for root in self.roots):
            allowed = ", ".join(str(root) for root in self.roots) or "none: add roots = [...] to the configuration"
            raise AccessDenied(f"{path!r} is outside the allowed roots ({allowed})", path=path)
        if not resolved.exists():
            raise InvalidParams(f"There is no file {path!r}", path=path)
        return resolved

    # ---- called by `run`

    def configure(self, settings: dict[str, Any], roots: list[str], state: Any) -> None:
        """Take what the handshake brought; raises ValueError for settings that cannot be used."""
        self.settings = _read_settings(self._settings_model(), settings)
        self.roots = [Path(root) for root in roots]
        self.state = state
        self._handlers = self.handlers()

    @classmethod
    def _settings_model(cls) -> type | None:
        for base in cls.__mro__:
            for generic in getattr(base, "__orig_bases__", ()):
                origin = get_origin(generic)
                if isinstance(origin, type) and issubclass(origin, ProtocolProvider):
                    (argument,) = get_args(generic)
                    return argument if hasattr(argument, "model_fields") else None
        return None


def _read_settings(model: Any, settings: dict[str, Any]) -> Any:
    if model is None:
        return settings
    known = set(model.model_fields) | {field.alias for field in model.model_fields.values() if field.alias}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ValueError(f"unknown settings: {', '.join(unknown)}; there are: {', '.join(sorted(known)) or 'none'}")
    from pydantic import ValidationError  # noqa: PLC0415 - only providers with a model pay for it

    try:
        return model.model_validate(settings)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)]
        raise ValueError(f"invalid settings: {'; '.join(lines)}") from None


class FunctionProvider(ProtocolProvider[Any]):
    """The small form: serves the module's decorated functions."""

    def handlers(self) -> dict[str, Handler]:
        """Return who serves which method: every function that `@method` marked."""
        return {name: Handler(name, function) for name, function in functions.items()}
