"""The handle of one provider: it exists whether or not the process runs, and takes the calls when it does.

What the provider says arrives here, from its peer; when it runs is the supervisor's business.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gleitzeit_host import handshake, wire
from gleitzeit_host.calls import Call, Caller, Meta
from gleitzeit_host.config import ProviderConfig, provider_limits
from gleitzeit_host.errors import (
    AccessDenied,
    Cancelled,
    MessageTooLarge,
    ProviderGone,
    ProviderProtocol,
    RpcError,
)
from gleitzeit_host.logs import ProviderLog, log
from gleitzeit_host.manifest import Manifest
from gleitzeit_host.peer import Peer, Request
from gleitzeit_host.router import Route, Router
from gleitzeit_host.state import MAX_STATE

STUCK_AFTER = 5.0  # seconds for which cancelled calls may hold all slots
_LATENCIES = 512  # answers that the quantiles are taken over
_REPORTED = 5  # problems per life that the host's log shows; the provider's own log has them all
_LEVELS = {
    "debug": 10,
    "info": 20,
    "notice": 20,
    "warning": 30,
    "error": 40,
    "critical": 40,
    "alert": 40,
    "emergency": 40,
}

_CAN_SERVE = frozenset({"idle", "starting", "ready", "backoff"})
_STARTING = frozenset({"starting", "backoff"})


class Provider:
    """One provider: its state, its slots, and the calls in flight.

    `state` is one of idle (starts with its first call), starting, ready, stopping, backoff, failed, unavailable and
    disabled; `reason` says why it is not serving.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: ProviderConfig,
        router: Router,
        provider_log: ProviderLog,
        start: Callable[["Provider"], None],
    ) -> None:
        self.name = manifest.name
        self.manifest = manifest
        self.config = config
        self.log = provider_log
        self.router = router
        self.routes: list[Route] = []
        self.promised = frozenset(manifest.methods or ())
        self.state = "idle"
        self.reason = ""
        self.slots = 0  # calls it can take now
        self.in_flight = 0
        self.served = 0
        self.concurrency = 0
        self.hello: handshake.Hello | None = None
        self.health: dict[str, Any] | None = None  # the last answer to ping
        self.pid: int | None = None
        self.restarts = 0
        self.problems = 0
        self.last_problem: str | None = None
        self.last_error: str | None = None
        self.peer: Peer | None = None
        self.saved_state: Raw | None = None
        self.on_state: Callable[[Provider, bytes], None] = lambda _provider, _state: None
        self.on_broken: Callable[[str, type[RpcError]], None] = lambda *_: None  # ends this life of the process
        self._start = start
        self._abandoned = 0
        self._pressed = False
        self._stuck: asyncio.TimerHandle | None = None
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._call_backs = CallBacks(self)
        self._notifications = {
            "notifications/progress": self._progress,
            "notifications/message": self._message,
            "notifications/changed": self._changed,
            "notifications/state": self._state,
            "notifications/cancelled": self._call_backs.cancel,
        }

    # ---- what the router asks

    @property
    def can_serve(self) -> bool:
        """Whether a call may wait for it."""
        return self.state in _CAN_SERVE

    @property
    def is_starting(self) -> bool:
        """Whether it will be ready without being asked."""
        return self.state in _STARTING

    @property
    def may_surprise(self) -> bool:
        """Whether its first handshake, which alone can tell what it serves, is still to come."""
        return self.manifest.methods is None and self.state == "starting" and not self.restarts

    def start(self) -> bool:
        """Start the process if it waits for its first call; return whether it did."""
        if self.state != "idle":
            return False
        self.state = "starting"
        self._start(self)
        return True

    def send(self, call: Call, now: float) -> None:
        """Write a call to the provider."""
        peer = self.peer
        assert peer is not None
        call.provider = self
        call.id = peer.reserve(call)
        call.sent_at = now
        line = call.line(now)
        if len(line) > self.router.limits.message_bytes:
            del peer.open[call.id]
            call.fail(MessageTooLarge("With what the host adds, the message is over limits.message_bytes"))
            return
        self.slots -= 1
        self.in_flight += 1
        peer.send(line)

    def release(self, call: Call, *, failed: bool = False) -> None:
        """Take note that the provider has answered a call, or died with it, and that its slot is free."""
        self.in_flight -= 1
        if call.done:
            self._abandoned -= 1
        elif not failed:
            self.served += 1
            self._latencies.append(self.router.turn.now() - call.sent_at)
        if self.state == "ready" and not self._pressed:
            self.slots += 1
            if self.router.waiting:
                self.router.pump(self)

    def abandon(self, call: Call, reason: str) -> None:
        """Tell the provider to stop working on a call. Its answer, when it comes, frees the slot."""
        assert self.peer is not None
        self.peer.notify("notifications/cancelled", {"requestId": call.id, "reason": reason})
        self._abandoned += 1
        if self._abandoned >= self.concurrency and self._stuck is None:
            self._stuck = asyncio.get_running_loop().call_later(STUCK_AFTER, self._check_stuck)

    def _check_stuck(self) -> None:
        self._stuck = None
        if self._abandoned >= self.concurrency:
            self.on_broken(
                f"cancelled calls have held all its {self.concurrency} slots for {STUCK_AFTER:g} s", ProviderGone
            )

    # ---- what the supervisor tells

    def connected(self, peer: Peer) -> None:
        """A process was started; nothing may be sent to it but the handshake."""
        self.peer = peer
        self.state = "starting"
        self.problems = 0
        self._pressed = False

    def ready(self, hello: handshake.Hello, methods: list[str]) -> None:
        """The handshake is done: serve."""
        self.hello = hello
        allowed = provider_limits(self.manifest, self.config).concurrency or handshake.PIPELINED
        self.concurrency = min(hello.concurrency or handshake.PIPELINED, allowed)
        self.state = "ready"
        self.reason = ""
        self.slots = self.concurrency - self.in_flight
        self._serve(methods)
        for route in self.routes:
            route.measure()
        self.router.pump(self)
        self.router.changed()

    def _serve(self, methods: list[str]) -> None:
        for name in self.router.serve(self, methods):
            self.complain(f"No loaded protocol defines {name[:200]!r}: refused")

    def not_ready(self, state: str, reason: str) -> None:
        """The process serves no longer: it stops, died, or will never be usable."""
        self.state = state
        self.reason = reason
        self.slots = 0

    def lost(self, make_error: Callable[[], RpcError]) -> None:
        """The process is gone: end the calls that were in flight at it, and those that it made."""
        peer, self.peer = self.peer, None
        self.pid = None
        self.slots = self.concurrency = 0
        self.health = None
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        if peer is not None:
            peer.fail_open(make_error)
        self._call_backs.cancel_all("the provider that made the call is gone")

    def under_pressure(self, pressed: bool) -> None:
        """The provider does not read as fast as it is written to, or does again."""
        self._pressed = pressed
        self.slots = 0 if pressed or self.state != "ready" else self.concurrency - self.in_flight
        self.router.pump(self)

    # ---- what the provider says (Owner of its peer)

    def on_request(self, request: Request) -> None:
        """Take a call-back, or a notification that nobody defines."""
        if request.id is None:
            return  # an unknown notification is ignored
        if request.id == wire.NULL:
            self.complain("A request with id null: dropped")
        elif self._may_call(request.method):
            self.router.submit(request, self._call_backs)
        else:
            allowed = ", ".join(self.manifest.calls) or "nothing"
            request.fail(
                AccessDenied(
                    f"Provider {self.name} may not call {request.method[:200]!r}: its manifest and the configuration "
                    f"allow {allowed} (calls = [...])",
                    provider=self.name,
                    method=request.method[:200],
                )
            )

    def _may_call(self, method: str) -> bool:
        if method.startswith(("host/", "rpc.")):
            return False
        limits = [self.manifest.calls] if self.config.calls is None else [self.manifest.calls, self.config.calls]
        return all(any(fnmatchcase(method, pattern) for pattern in patterns) for patterns in limits)

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        """Take a notification; unknown ones are ignored."""
        take = self._notifications.get(method)
        if take is not None:
            try:
                take(params if params is not UNSET else wire.EMPTY)
            except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, ValueError, RecursionError) as error:
                self.complain(f"{method} with params that cannot be used: {error!s:.200}")

    def _progress(self, params: Raw) -> None:
        members = wire.split_members(params)
        call = self.peer.open.get(int(members["progressToken"])) if self.peer else None
        if not isinstance(call, Call) or call.stream_token is None:
            raise ValueError("the token is not the id of a call that wants progress")
        if bytes(members["progress"])[0] not in b"-0123456789":
            raise ValueError("`progress` is not a number")
        call.progress(members)

    def _message(self, params: Raw) -> None:
        record = msgspec.json.decode(params, type=_LogRecord)
        text = record.data if isinstance(record.data, str) else wire.encode(record.data).decode()
        self.log.write(f"[{record.level}] {text}")
        log.log(_LEVELS[record.level], "%s: %s", self.name, text[:2000])

    def _changed(self, params: Raw) -> None:
        changed = msgspec.json.decode(params, type=handshake.Changed)
        if self.hello is None or self.state != "ready":
            raise ValueError("it came before the handshake was done")
        if changed.capabilities is not None:
            self.hello.capabilities = changed.capabilities
        if changed.methods is not None:
            self.hello.methods = changed.methods
            methods, complaints = handshake.offered(self.manifest, changed.methods)
            for complaint in complaints:
                self.complain(complaint)
            self._serve(methods)
        self.router.changed()

    def _state(self, params: Raw) -> None:
        state = bytes(wire.split_members(params)["state"])
        if len(state) > MAX_STATE:
            raise ValueError(f"the state has {len(state)} bytes, {MAX_STATE} are allowed")
        self.saved_state = Raw(state)
        self.on_state(self, state)

    def on_problem(self, line: bytes, error: RpcError) -> None:
        """Take a line that breaks the protocol: it is logged and flagged, and never reaches a client."""
        if isinstance(line, wire.OversizedLine):
            self._oversized(line)
            return
        self.log.write(f"[not a message: {error.message}] {line[:500].decode('utf-8', 'replace')}")
        self.complain(f"{error.message}: {line[:80].decode('utf-8', 'replace')!r}")
        kind = MessageTooLarge if isinstance(error, MessageTooLarge) else ProviderProtocol
        self._fail_answer(wire.answered_id(line), kind(f"Provider {self.name} broke the protocol: {error.message}"))

    def _oversized(self, line: wire.OversizedLine) -> None:
        id = wire.leading_id(line)
        problem = f"Provider {self.name} sent a line over limits.message_bytes = {self.router.limits.message_bytes}"
        self.complain(problem)
        if not self._fail_answer(id, MessageTooLarge(problem)):
            self.on_broken("sent a line that is too long and does not begin with an id", ProviderProtocol)

    def _fail_answer(self, id: int | None, error: RpcError) -> bool:
        pending = self.peer.open.pop(id, None) if self.peer is not None and id is not None else None
        if pending is None:
            return False
        pending.failed(error)
        return True

    def complain(self, problem: str) -> None:
        """Flag a breach of the protocol."""
        self.problems += 1
        self.last_problem = problem
        if self.problems <= _REPORTED:
            more = " (further ones only in its log)" if self.problems == _REPORTED else ""
            log.warning("%s: %s%s", self.name, problem, more)

    # ---- what host/providers shows

    def describe(self) -> dict[str, Any]:
        """Return this provider's row of `host/providers`."""
        return {
            "name": self.name,
            "description": self.manifest.description,
            "state": self.state,
            "reason": self.reason or None,
            "pid": self.pid,
            "version": self.hello.provider.version if self.hello else None,
            "methods": [route.name for route in self.routes] or sorted(self.promised),
            "capabilities": self.hello.capabilities if self.hello else {},
            "inFlight": self.in_flight,
            "concurrency": self.concurrency or None,
            "served": self.served,
            "restarts": self.restarts,
            "problems": self.problems,
            "lastProblem": self.last_problem,
            "lastError": self.last_error,
            "latencyMs": self._quantiles(),
            "health": self.health,
        }

    def _quantiles(self) -> dict[str, float] | None:
        if not self._latencies:
            return None
        ordered = sorted(self._latencies)
        return {
            f"p{percent}": round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1000, 3)
            for percent in (50, 90, 99)
        }


class _LogRecord(msgspec.Struct):
    level: str
    data: Any
    logger: str | None = None

    def __post_init__(self) -> None:
        if self.level not in _LEVELS:
            raise ValueError(f"level is not one of {', '.join(_LEVELS)}")


class CallBacks(Caller):
    """The calls that a provider makes through the host."""

    calls_back = True

    def __init__(self, provider: Provider) -> None:
        super().__init__()
        self._provider = provider

    def parent_of(self, meta: Meta) -> Call | None:
        """Return the call that the call-back serves: the one it names, else the newest in flight at the provider."""
        peer = self._provider.peer
        open_calls = peer.open if peer is not None else {}
        if meta.parent is not None:
            parent = open_calls.get(meta.parent)
            if isinstance(parent, Call) and not parent.done:
                return parent
            raise Cancelled(f"The call that _meta.parent = {meta.parent} names has ended")
        for pending in reversed(list(open_calls.values())):
            if isinstance(pending, Call) and not pending.done:
                return pending
        return None
