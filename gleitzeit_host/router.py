"""Routing: method → the providers that declared it → the one that takes the call, or the queue in front of them."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from gleitzeit_host import wire
from gleitzeit_host.calls import MAX_DEPTH, NO_META, Call, Caller, Deadlines, Meta, read_meta
from gleitzeit_host.config import Limits
from gleitzeit_host.errors import ConfigurationError, MethodNotFound, Overloaded, ProviderUnavailable, RpcError, TooDeep
from gleitzeit_host.peer import Request, Turn
from gleitzeit_host.protocol import HOST_METHODS, Method, Protocol

if TYPE_CHECKING:
    from gleitzeit_host.provider import Provider

# A full queue slows the client instead of refusing its calls where it would be empty within PATIENCE, going by its pace
# so far, or has waited no longer than that for its first answer. The client is looked at again every RECHECK seconds.
PATIENCE = 2.0
RECHECK = 0.1


class Route:
    """A method, the providers that serve it (or could, once started), and the calls that wait for one of them."""

    def __init__(self, method: Method, default_timeout: float) -> None:
        declared = method.extension.timeout_ms
        self.default_timeout = default_timeout if declared is None else declared / 1000
        self.method = method
        self.name = method.name
        self.head = b',"method":%b,"params":' % wire.encode(method.name)
        self.set_providers([])
        self.waiting: deque[Call] = deque()
        self.slowed: set[Client] = set()
        self._since = 0.0  # when the queue began to form
        self._taken = 0  # calls that left it for a provider since then

    def set_providers(self, providers: "list[Provider]") -> None:
        """Take who serves the method; a time-out configured for one of them rules."""
        self.providers = providers
        configured = [p.config.timeout for p in providers if p.config.timeout is not None]
        self.timeout = max(configured, default=self.default_timeout)  # seconds, of a call that asks for none
        self.tail = b'"_meta":{"timeoutMs":%d}}}' % max(1, self.timeout * 1000)  # of the line of such a call

    def measure(self) -> None:
        """Begin to measure the queue's pace."""
        self._since = time.monotonic()
        self._taken = 0

    def enqueue(self, call: Call, *, first: bool) -> None:
        """Let the call wait, before or behind the others."""
        if not self.waiting:
            self.measure()
        if first:
            self.waiting.appendleft(call)
        else:
            self.waiting.append(call)

    def take(self, provider: "Provider") -> Call | None:
        """Return the first waiting call that the provider may serve."""
        for call in self.waiting:
            if call.meta.provider is None or call.meta.provider == provider.name:
                self.waiting.remove(call)
                self._taken += 1
                return call
        return None

    def expected_wait(self) -> float:
        """Seconds until the queue is empty, going by its pace so far."""
        elapsed = time.monotonic() - self._since
        if not self._taken:
            return 0.0 if elapsed < PATIENCE else elapsed
        return len(self.waiting) * elapsed / self._taken


class Client(Caller):
    """A caller that can be asked to slow down: the client's pipe."""

    def slow_down(self, route: Route) -> None:
        """Read no further requests until `speed_up` for this route, or for RECHECK seconds."""

    def speed_up(self, route: Route) -> None:
        """The route's queue has room again."""


class Router:
    """The table of routes. Everything here runs in loop callbacks and takes microseconds."""

    def __init__(self, protocols: Iterable[Protocol], limits: Limits) -> None:
        self.deadlines = Deadlines()
        self.on_broken: Callable[[Protocol, str], None] = lambda _protocol, _problem: None
        self.on_change: Callable[[], None] = lambda: None  # what is served, or who serves it, may be different now
        self.revision = 0  # of the table of routes
        self.turn = Turn()  # shared by every peer of the host
        self.routes: dict[str, Route] = {}
        self.providers: dict[str, Provider] = {}
        self.limits = limits
        self._change = asyncio.Event()
        self.waiting = 0  # calls in all queues
        self._undecided: list[tuple[Request, Caller]] = []  # their method may come with a provider that is starting
        for protocol in protocols:
            self.define(protocol)

    def define(self, protocol: Protocol) -> None:
        """Add a route per method."""
        self.revision += 1
        for name, method in protocol.methods.items():
            self.routes[name] = Route(method, self.limits.default_timeout)

    def undefine(self, protocol: Protocol, problem: str) -> None:
        """Take away the routes of a protocol whose document is broken."""
        for name in protocol.methods:
            route = self.routes.pop(name)
            for provider in route.providers:
                provider.routes.remove(route)
            for call in list(route.waiting):
                self.unqueue(call)
                call.fail(self._not_found(name))
        self.revision += 1
        self.on_broken(protocol, problem)
        self.on_change()

    # ---- in

    def submit(self, request: Request, caller: Caller) -> None:
        """Route a request, or answer it with what is wrong with it."""
        route = self.routes.get(request.method)
        try:
            if route is None:
                if self._somebody_might_bring(request.method):
                    self._undecided.append((request, caller))
                    caller.hold()
                    return
                raise self._not_found(request.method)
            call = self._admit(route, request, caller)
        except RpcError as error:
            request.fail(error)
            return
        self.place(call)

    def _admit(self, route: Route, request: Request, caller: Caller) -> Call:
        """Check the params and make the call."""
        raw: Any = request.params
        params = wire.read_params(raw)
        meta = NO_META
        if type(params) is list:
            raw = wire.encode(route.method.by_name(wire.split_items(raw)))
            params = wire.decode(raw)
        elif "_meta" in params:
            members = wire.split_members(raw)
            given = members.pop("_meta")
            meta = read_meta(given) if request.meta is None else NO_META
            raw = wire.encode(members)
            del params["_meta"]
        if request.meta is not None:
            meta = request.meta
        if len(route.providers) == 1 and not route.providers[0].slots:
            route.providers[0].start()  # if it is idle: it starts while the params are validated for the first time
        try:
            route.method.validate(params)
        except ConfigurationError as error:
            self.undefine(route.method.protocol, str(error))
            raise MethodNotFound(f"The protocol's document is broken: {error}", method=route.name) from None
        call = Call(self, route, request, caller, raw if params else None, meta)
        if meta.progress_token is not UNSET:
            call.stream_token = bytes(meta.progress_token)
        elif route.method.streams and params.get("stream") is True and request.id is not None:
            call.stream_token = request.id
        self._bound(call, caller.parent_of(meta) if caller.calls_back else None)
        caller.adopt(call)
        return call

    def _bound(self, call: Call, parent: Call | None) -> None:
        """Give the call its deadline; a call-back inherits its parent's time, trace and depth."""
        now = call.created = self.turn.now()
        asked = call.meta.timeout_ms
        timeout = call.route.timeout if asked is None else min(asked / 1000, self.limits.max_timeout)
        if parent is not None:
            call.depth = parent.depth + 1
            if call.depth > MAX_DEPTH:
                raise TooDeep(f"Call-backs are nested more than {MAX_DEPTH} deep", method=call.route.name)
            timeout = max(0.001, min(timeout, parent.deadline - now))
            call.parent = parent
            if parent.children is None:
                parent.children = set()
            parent.children.add(call)
            if call.meta.traceparent is None and parent.meta.traceparent is not None:
                call.meta = Meta(provider=call.meta.provider, traceparent=parent.meta.traceparent)
        self.deadlines.add(call, timeout, now)

    # ---- placing

    def place(self, call: Call, *, first: bool = False) -> None:
        """Give the call to a provider, or let it wait for one; it fails if there is none to wait for."""
        route = call.route
        if not route.waiting:
            provider = self._choose(route, call)
            if provider is not None:
                provider.send(call, self.turn.now() if call.retried else call.created)
                return
        error = self._wake(route, call) or (None if first else self._full(route, call))
        if error is not None:
            call.fail(error)
            return
        route.enqueue(call, first=first)
        self.waiting += 1
        if len(route.waiting) > 1:
            self._pump_route(route)

    @staticmethod
    def _choose(route: Route, call: Call) -> "Provider | None":
        providers = route.providers
        if len(providers) == 1 and call.meta.provider is None:
            return providers[0] if providers[0].slots > 0 else None
        free = [
            provider for provider in providers if provider.slots > 0 and call.meta.provider in (None, provider.name)
        ]
        return min(free, key=_least_loaded) if free else None

    def _wake(self, route: Route, call: Call) -> RpcError | None:
        """Start a provider for the call if none is up; return the error if none can ever serve it."""
        wanted = call.meta.provider
        candidates = [p for p in route.providers if p.can_serve and wanted in (None, p.name)]
        if not candidates:
            return None if self._somebody_might_serve(wanted) else self._unavailable(route, wanted)
        if not any(provider.slots > 0 or provider.is_starting for provider in candidates):
            for provider in candidates:
                if provider.start() and provider.can_serve:
                    return None
            if not any(provider.can_serve for provider in candidates):
                return self._unavailable(route, wanted)
        return None

    def _full(self, route: Route, call: Call) -> RpcError | None:
        if len(route.waiting) < self.limits.queue:
            return None
        wait = route.expected_wait()
        if wait <= PATIENCE and isinstance(call.caller, Client):
            route.slowed.add(call.caller)
            call.caller.slow_down(route)
            return None
        return Overloaded(
            f"{len(route.waiting)} calls of {route.name} wait already",
            method=route.name,
            retryAfterMs=min(60_000, max(1, round(wait * 1000))),
        )

    def unqueue(self, call: Call) -> None:
        """Take a call that has ended out of its queue."""
        call.route.waiting.remove(call)
        self.waiting -= 1

    def pump(self, provider: "Provider") -> None:
        """The provider has a free slot: give it what waits, a call per method in turn."""
        while self.waiting and provider.slots > 0:
            given = False
            for route in provider.routes:
                if route.waiting and provider.slots > 0:
                    given |= self._give(route, provider)
            if not given:
                return

    def _pump_route(self, route: Route) -> None:
        for provider in route.providers:
            while route.waiting and provider.slots > 0 and self._give(route, provider):
                pass

    def _give(self, route: Route, provider: "Provider") -> bool:
        call = route.take(provider)
        if call is None:
            return False
        self.waiting -= 1
        provider.send(call, self.turn.now())
        if route.slowed and len(route.waiting) <= self.limits.queue // 2:
            slowed, route.slowed = route.slowed, set()
            for client in slowed:
                client.speed_up(route)
        return True

    # ---- what providers tell

    def serve(self, provider: "Provider", methods: Iterable[str]) -> list[str]:
        """Let the provider serve exactly these methods; return those that no protocol defines."""
        self.withdraw(provider)
        unknown = []
        for name in methods:
            route = self.routes.get(name)
            if route is None:
                unknown.append(name)
            else:
                route.set_providers([*route.providers, provider])
                provider.routes.append(route)
        return unknown

    def withdraw(self, provider: "Provider") -> None:
        """Let the provider serve nothing."""
        for route in provider.routes:
            route.set_providers([other for other in route.providers if other is not provider])
        provider.routes = []

    def changed(self) -> None:
        """A provider came, went or changed its mind: look again at everything that waits."""
        self._change.set()
        self._change = asyncio.Event()
        undecided, self._undecided = self._undecided, []
        for request, caller in undecided:
            self.submit(request, caller)
            caller.unhold()
        if self.waiting:
            for route in list(self.routes.values()):
                if route.waiting:
                    self.reconsider(route)
        self.on_change()

    async def next_change(self) -> None:
        """Wait for the next `changed`."""
        await self._change.wait()

    def reconsider(self, route: Route) -> None:
        """Fail the waiting calls that nobody can serve any more, and give the others to who is free."""
        for call in list(route.waiting):
            error = self._wake(route, call)
            if error is not None and not call.done:
                self.unqueue(call)
                call.fail(error)
        self._pump_route(route)

    # ---- errors

    def _somebody_might_bring(self, method: str) -> bool:
        return "/" in method and any(p.may_surprise for p in self.providers.values())

    def _somebody_might_serve(self, wanted: str | None) -> bool:
        return any(p.may_surprise and wanted in (None, p.name) for p in self.providers.values())

    def _not_found(self, method: str) -> RpcError:
        protocol = method.split("/", maxsplit=1)[0]
        names = [name for name in self.routes if name.startswith(f"{protocol}/")]
        hint = f"protocol {protocol} has {', '.join(sorted(names))}"
        if protocol in ("host", "notifications") or method.startswith("rpc."):
            hint = f"the host's own methods are {', '.join(HOST_METHODS[:-1])} and {HOST_METHODS[-1]}"
        elif not names:
            hint = f"a file protocols/{protocol[:64]}/v1.json on the search path would"
        return MethodNotFound(f"No protocol defines {method[:200]!r}; {hint}", method=method[:200])

    def _unavailable(self, route: Route, wanted: str | None) -> RpcError:
        if wanted is not None and wanted not in self.providers:
            known = ", ".join(sorted(self.providers)) or "none"
            return ProviderUnavailable(f"There is no provider {wanted[:64]!r}; known: {known}", method=route.name)
        if wanted is not None:
            provider = self.providers[wanted]
            serves = "" if provider in route.providers else f"it does not serve {route.name}"
            return ProviderUnavailable(f"Provider {wanted}: {serves or provider.reason}", method=route.name)
        troubled = [p for p in self.providers.values() if p not in route.providers and p.reason]
        might_serve = [p for p in troubled if route.name in p.promised or p.manifest.methods is None]
        reasons = [f"{p.name} is {p.state}: {p.reason}" for p in [*route.providers, *might_serve]]
        if reasons:
            return ProviderUnavailable(
                f"No provider can serve {route.name} now: {'; '.join(reasons)}", method=route.name
            )
        mend = (
            f"Nobody serves {route.name}: install a provider for protocol {route.method.protocol.name} "
            "(a folder providers/NAME with a provider.toml on the search path; see `gleitzeit-host providers`)"
        )
        return ProviderUnavailable(mend, method=route.name)


def _least_loaded(provider: "Provider") -> tuple[float, float, int]:
    return (-provider.config.priority, provider.in_flight / provider.config.weight, provider.served)
