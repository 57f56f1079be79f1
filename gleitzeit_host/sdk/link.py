"""What a handler can reach: the call that it serves, and the host behind it."""

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
from msgspec import UNSET, Raw, UnsetType

from gleitzeit_host import wire
from gleitzeit_host.errors import ProviderUnavailable
from gleitzeit_host.peer import Peer
from gleitzeit_host.sdk.encoding import encode

Progress = Callable[[dict[str, Any]], None]

_current: ContextVar["Call"] = ContextVar("gleitzeit_call")


class Call:
    """The call that a handler serves.

    Attributes:
        id: The host's id of the call.
        method: Such as "llm/chat".
        wants_progress: Whether the caller asked for progress; `progress` does nothing otherwise.
        cancelled: Whether the caller has cancelled; plain functions look at it, async ones are cancelled by anyio.
    """

    def __init__(self, link: "HostLink", id: int, method: str, meta: dict[str, Any]) -> None:
        self.id = id
        self.method = method
        self.wants_progress = "progressToken" in meta
        self.cancelled = False
        self.scope = anyio.CancelScope()
        self._link = link
        self._token = meta.get("progressToken")
        left = meta.get("timeoutMs")
        self._deadline = None if left is None else time.monotonic() + left / 1000
        self._steps = 0

    @property
    def timeout(self) -> float | None:
        """Seconds left until the host gives the call up; None: it did not say."""
        return None if self._deadline is None else self._deadline - time.monotonic()

    async def progress(
        self,
        progress: float | None = None,
        *,
        total: float | None = None,
        message: str | None = None,
        delta: Any = None,
    ) -> None:
        """Tell the caller how far the work is; waits while the host does not take it.

        Plain functions use `anyio.from_thread.run(call.progress, …)`.

        Args:
            progress: Grows with every call; by default the number of calls so far.
            total: What `progress` will be in the end, where known.
            message: For people.
            delta: The next piece of a streamed result.
        """
        if not self.wants_progress:
            return
        self._steps += 1
        given = {"total": total, "message": message, "delta": delta}
        params = {"progressToken": self._token, "progress": self._steps if progress is None else progress}
        params |= {key: value for key, value in given.items() if value is not None}
        await self._link.notify("notifications/progress", params, f"the progress of {self.method} holds")


def current_call() -> Call:
    """Return the call that this code serves; raises LookupError outside of one."""
    return _current.get()


def enter(call: Call) -> None:
    """Make a call the current one of this task."""
    _current.set(call)


class HostLink:
    """The host as a provider sees it. Everything here needs `run` to be serving."""

    def __init__(self) -> None:
        self._peer: Peer | None = None
        self._flush: Callable[[], Any] | None = None
        self._listeners: dict[str, Progress] = {}

    def connect(self, peer: Peer, flush: Callable[[], Any]) -> None:
        """Use this connection from now on; `flush` waits while the host does not read."""
        self._peer = peer
        self._flush = flush

    @property
    def peer(self) -> Peer:
        """The connection; raises ProviderUnavailable before `run`."""
        if self._peer is None:
            raise ProviderUnavailable("There is no host: the provider is not being served by run()")
        return self._peer

    async def call(
        self,
        method: str,
        params: dict[str, Any] | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - it travels to the host, which keeps it
        provider: str | None = None,
        on_progress: Progress | None = None,
    ) -> Any:
        """Call a method of another provider through the host; the manifest's `calls` must allow it.

        Args:
            method: Such as "llm/chat".
            params: By name.
            timeout: Seconds; the call never outlives the one that it serves.
            provider: The provider to ask, where several serve the method.
            on_progress: Called with the params of every `notifications/progress`.

        Raises:
            RpcError: What the host or the other provider answered; `code` and `data` say what.
        """
        meta: dict[str, Any] = {}
        serving = _current.get(None)
        if serving is not None:
            meta["parent"] = serving.id
        if timeout is not None:
            meta["timeoutMs"] = timeout * 1000
        if provider is not None:
            meta["provider"] = provider
        token = f"p{id(meta)}"
        if on_progress is not None:
            meta["progressToken"] = token
            self._listeners[token] = on_progress
        try:
            given = encode({**(params or {}), "_meta": meta}, f"the params for {method} hold")
            return wire.decode(await self.peer.call(method, given))
        finally:
            self._listeners.pop(token, None)

    def hear(self, params: Raw | UnsetType) -> None:
        """Hand a progress notification to whoever asked for it."""
        if params is not UNSET:
            given = wire.decode(params)
            listener = self._listeners.get(given.pop("progressToken", None))
            if listener is not None:
                listener(given)

    async def notify(self, method: str, params: dict[str, Any], said: str = "") -> None:
        """Send a notification; waits while the host does not read. `said`: whose params, for an error about them."""
        self.peer.notify(method, encode(params, said or f"the params of {method} hold"))
        assert self._flush is not None
        await self._flush()

    async def log(self, level: str, data: Any) -> None:
        """Write to the host's log. `level`: debug, info, notice, warning, error, critical, alert or emergency."""
        await self.notify("notifications/message", {"level": level, "data": data})

    async def save_state(self, state: Any) -> None:
        """Have the host keep a JSON value of at most 1 MiB; the next start finds it in `provider.state`."""
        await self.notify("notifications/state", {"state": encode(state, "the state holds")})

    async def changed(self, *, methods: list[str] | None = None, capabilities: dict[str, Any] | None = None) -> None:
        """Replace what the handshake declared; None leaves it as it is."""
        given = {"methods": methods, "capabilities": capabilities}
        await self.notify("notifications/changed", {k: v for k, v in given.items() if v is not None})


host = HostLink()
