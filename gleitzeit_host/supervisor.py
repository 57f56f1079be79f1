"""Supervision: when a provider's process runs, how it starts and stops, and what follows its death."""

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial

import msgspec
from msgspec import Raw

from gleitzeit_host import config as configuration
from gleitzeit_host import handshake
from gleitzeit_host.config import Config
from gleitzeit_host.errors import ProviderGone, RpcError
from gleitzeit_host.logs import log
from gleitzeit_host.manifest import ProviderLimits, environment
from gleitzeit_host.peer import Peer
from gleitzeit_host.processes import Process, Processes
from gleitzeit_host.protocol import Protocol
from gleitzeit_host.provider import Provider
from gleitzeit_host.state import StateFiles
from gleitzeit_host.stdio import PollReader, PollWriter

PING_INTERVAL = 10.0  # seconds between pings, and for an answer to one
PINGS_MISSED = 3  # in a row, after which a provider is restarted
SECRET_SIZE = 8  # bytes from which on a variable that the manifest names is kept out of the logs
DRAIN = 1.0  # seconds for which the output of a provider that has exited is awaited
BACK_OFF = 0.1  # seconds before the first restart; doubled with each further one
BACK_OFF_MAX = 30.0


class Restarts:
    """The crash budget of one provider: a pure function of crashes and a clock."""

    def __init__(self, max_restarts: int, window: float) -> None:
        self._max = max_restarts
        self._window = window
        self._crashes: deque[float] = deque()

    def after_crash(self, now: float, jitter: float) -> float | None:
        """Return the seconds to wait before the next start, or None if the budget is spent.

        Args:
            now: Of the crash, on a monotonic clock, seconds.
            jitter: In [0, 1): spreads the restarts of providers that died together.
        """
        while self._crashes and self._crashes[0] <= now - self._window:
            self._crashes.popleft()
        self._crashes.append(now)
        if len(self._crashes) > self._max:
            return None
        delay: float = BACK_OFF * 2 ** min(len(self._crashes) - 1, 16)
        return min(delay, BACK_OFF_MAX) * (0.5 + jitter / 2)


class Supervisor:
    """Starts providers, restarts them when they die, and stops them all in the end."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        processes: Processes,
        states: StateFiles,
        protocols: dict[str, Protocol],
        config: Config,
        environ: Mapping[str, str],
        python: str,
    ) -> None:
        self.processes = processes
        self.states = states
        self.protocols = protocols
        self.config = config
        self.roots = [str(root) for root in config.roots]
        self.environ = environ
        self.python = python
        self._tasks = tasks
        self._lives: set[Life] = set()
        self._end = asyncio.Event()
        self.paused = False
        self._unsaved: dict[str, bytes] = {}
        self._saving: set[str] = set()
        self._saved = asyncio.Event()

    def start(self, provider: Provider) -> None:
        """Keep the provider running from now on; its process is on its way when this returns."""
        provider.state = "starting"
        provider.on_state = self._save_state
        limits = configuration.provider_limits(provider.manifest, provider.config)
        restarts = Restarts(limits.max_restarts, limits.restart_window)
        self._tasks.create_task(self._supervise(Life(self, provider, limits, restarts)))

    async def _supervise(self, life: "Life") -> None:
        while True:
            self._lives.add(life)
            try:
                await life.run()
            except Exception as error:  # noqa: BLE001 - a defect here must not end the other providers
                log.exception("%s: its supervision failed", life.provider.name)
                await life.give_up(f"the host made a mistake: {error!r}")
            finally:
                self._lives.discard(life)
            if life.delay is None or await _within(life.delay, self._end):
                return
            life.provider.restarts += 1
            life = life.successor()

    @property
    def stopping(self) -> bool:
        """Whether the host is on its way out: nothing is restarted."""
        return self._end.is_set()

    async def stop(self, grace: float | None = None) -> None:
        """Stop every provider, side by side, and save what they handed over.

        Args:
            grace: Seconds for each rung of the stop ladder instead of each provider's own `stop_timeout`.
        """
        self._end.set()
        await asyncio.gather(*(life.stop(grace) for life in self._lives))
        while self._saving:
            await self._saved.wait()

    def pause_reading(self, pause: bool) -> None:
        """Read no provider's output while the client does not take what was read."""
        self.paused = pause
        for life in self._lives:
            life.pause_reading(pause)

    # ---- state

    def _save_state(self, provider: Provider, state: bytes) -> None:
        self._unsaved[provider.name] = state
        if provider.name not in self._saving:
            self._saving.add(provider.name)
            self._tasks.create_task(self._write_state(provider))

    async def _write_state(self, provider: Provider) -> None:
        while (state := self._unsaved.pop(provider.name, None)) is not None:
            try:
                await asyncio.to_thread(self.states.save, provider.name, state)
            except OSError as error:
                provider.complain(f"Its state cannot be saved: {error}")
        self._saving.discard(provider.name)
        self._saved.set()
        self._saved = asyncio.Event()


class Life:
    """One run of a provider's process, from spawn to exit."""

    def __init__(self, supervisor: Supervisor, provider: Provider, limits: ProviderLimits, restarts: Restarts) -> None:
        self.delay: float | None = None  # seconds to the next start; None: there is none
        self._supervisor = supervisor
        self.provider = provider
        self._limits = limits
        self._restarts = restarts
        self._greeted = asyncio.Event()
        self._gone = asyncio.Event()
        self._why = ""  # the host ended it; empty: it ended by itself
        self._error: type[RpcError] = ProviderGone  # of the calls in flight at its end
        self._refused = False
        self._exit: int | None = None
        self._drained = False
        self._process: Process | None = None
        self._reader: PollReader | None = None
        self._errors: PollReader | None = None
        self._writer: PollWriter | None = None
        self._drain_timer: asyncio.TimerHandle | None = None
        try:
            self._spawn()
        except OSError as error:  # no descriptors, no memory
            self._not_started(str(error))
        else:
            self._greet()

    def successor(self) -> "Life":
        """Start the process anew."""
        return Life(self._supervisor, self.provider, self._limits, self._restarts)

    async def run(self) -> None:
        """Shake hands, and wait until the process is gone."""
        if not await _within(self._limits.start_timeout, self._greeted):
            self._break(
                f"did not answer initialize within {self._limits.start_timeout:g} s (does it flush its stdout?)"
            )
        if self._refused:
            await self.give_up(self._why)
        hello = self.provider.hello
        pings = asyncio.create_task(self._ping()) if hello is not None and hello.ping else None
        await self._gone.wait()
        if pings is not None:
            pings.cancel()

    # ---- start

    def _spawn(self) -> None:
        provider = self.provider
        named = [*provider.manifest.env, *provider.config.env]
        visible = environment(self._supervisor.environ, named)
        values = [os.fsencode(visible[name]) for name in named if name in visible]
        provider.log.secrets = [value for value in values if len(value) >= SECRET_SIZE]
        process = self._supervisor.processes.spawn(
            provider.manifest.argv(self._supervisor.python),
            {**visible, "GLEITZEIT_PROVIDER": provider.name},
            on_started=self._started,
            on_exit=self._exited,
            on_error=self._not_started,
        )
        self._process = process
        writer = PollWriter(process.stdin, self._input_closed, provider.under_pressure)
        allowed = provider.router.limits
        peer = Peer(
            provider,
            writer.write,
            turn=provider.router.turn,
            max_bytes=allowed.message_bytes,
            max_values=allowed.values,
        )
        self._writer = writer
        self._reader = PollReader(process.stdout, peer.feed, partial(self._output_ended, peer))
        self._errors = PollReader(process.stderr, provider.log.feed, provider.log.feed_end)
        provider.connected(peer)
        provider.on_broken = self._break

    def _greet(self) -> None:
        provider = self.provider
        peer = provider.peer
        assert peer is not None
        settings, ignored = configuration.settings(self._supervisor.config, provider.manifest)
        for complaint in ignored:
            log.warning("%s: %s", provider.name, complaint)
        if provider.saved_state is None:
            provider.saved_state = self._supervisor.states.load(provider.name)
        greeting = handshake.greeting(
            provider.name,
            settings,
            self._supervisor.roots,
            provider.router.limits.message_bytes,
            provider.saved_state,
        )
        peer.request(self, "initialize", greeting)

    def answered(self, result: Raw) -> None:
        """Judge the provider's answer to `initialize`; what it says next finds it ready, or refused."""
        try:
            hello, methods = self._accept(result)
        except handshake.Refused as refused:
            self._refuse(str(refused))
        else:
            self._greeted.set()
            if not self._supervisor.stopping:
                self.provider.ready(hello, methods)

    def failed(self, error: RpcError) -> None:
        """Take an error to `initialize` as the provider's own reason for being unavailable."""
        if not isinstance(error, ProviderGone):
            self._refuse(error.message)

    def _refuse(self, why: str) -> None:
        self._refused = True
        self._why = why
        self._greeted.set()

    def _accept(self, result: Raw) -> tuple[handshake.Hello, list[str]]:
        provider = self.provider
        hello = handshake.read(result)
        methods, complaints = handshake.offered(provider.manifest, hello.methods)
        protocols, more = handshake.brought(hello, provider.name, self._supervisor.protocols)
        for protocol in protocols:
            if protocol.name not in self._supervisor.protocols:
                self._supervisor.protocols[protocol.name] = protocol
                provider.router.define(protocol)
        foreign = [name for name in methods if self._is_brought_by_another(name)]
        more += [f"It declares {name}, of a protocol that another provider brought: refused" for name in foreign]
        for complaint in complaints + more:
            provider.complain(complaint)
        return hello, [name for name in methods if name not in foreign]

    def _is_brought_by_another(self, method: str) -> bool:
        owner = self._supervisor.protocols.get(method.split("/", maxsplit=1)[0])
        return (
            owner is not None
            and owner.origin.startswith("provider ")
            and owner.origin != f"provider {self.provider.name}"
        )

    async def _ping(self) -> None:
        provider = self.provider
        missed = 0
        while True:
            await asyncio.sleep(PING_INTERVAL)
            if provider.peer is None:
                return
            try:
                async with asyncio.timeout(PING_INTERVAL):
                    result = await provider.peer.call("ping", {})
                provider.health = handshake.read_health(result)
                missed = 0
            except TimeoutError:
                missed += 1
                provider.health = {"health": "failing", "detail": f"{missed} pings unanswered"}
                if missed >= PINGS_MISSED:
                    self._break(f"did not answer {missed} pings in a row")
            except (RpcError, msgspec.MsgspecError) as error:
                provider.complain(f"Its answer to ping cannot be used: {error}")

    # ---- stop

    async def stop(self, grace: float | None) -> None:
        """Climb the stop ladder: end of input, SIGTERM to the group, SIGKILL to everything below; each with a wait."""
        process = self._process
        if process is None or self._gone.is_set():
            return
        if not self._refused:
            self._why = self._why or "was stopped"
            self.provider.not_ready("stopping", "the host is stopping it")
        wait = self._limits.stop_timeout if grace is None else min(grace, self._limits.stop_timeout)
        assert self._writer is not None
        self._writer.close()
        rungs: tuple[Callable[[], None], ...] = (lambda: None, process.terminate, process.kill)
        for climb in rungs:
            climb()
            if await _within(wait, self._gone):
                return
        log.error("%s: its process %s does not go away", self.provider.name, process.pid)
        self._over("did not go away")

    def _break(self, why: str, error: type[RpcError] = ProviderGone) -> None:
        """End this life now because of what the provider did, or did not; `error` is what its calls get."""
        if not self._why and not self._gone.is_set():
            self._why = why
            self._error = error
            self.provider.last_error = why
            if self._process is not None:
                self._process.kill()

    async def give_up(self, why: str) -> None:
        """Stop the process for good."""
        self._refuse(why)
        await self.stop(None)
        self._over(why)

    def pause_reading(self, pause: bool) -> None:
        """Stop reading the provider's output, or go on."""
        if self._reader is not None:
            if pause:
                self._reader.pause()
            else:
                self._reader.resume()

    # ---- what the guard and the pipes tell

    def _started(self, pid: int) -> None:
        self.provider.pid = pid
        log.info("%s: started as process %d", self.provider.name, pid)

    def _not_started(self, error: str) -> None:
        self._refused = True
        self._why = f"Its command cannot be run: {error}"
        self._over(self._why)

    def _exited(self, status: int) -> None:
        self._exit = status
        if self._drained:
            self._end()
        else:
            self._drain_timer = _later(DRAIN, self._drain_late)

    def _output_ended(self, peer: Peer) -> None:
        peer.feed_end()
        self._drained = True
        if self._exit is not None:
            self._end()
        else:  # it lives, but can answer nothing any more
            _later(self._limits.stop_timeout, partial(self._break, "closed its stdout"))

    def _input_closed(self) -> None:
        """The provider reads no longer: it gets a while to say its last words and exit."""
        _later(self._limits.stop_timeout, partial(self._break, "closed its stdin"))

    def _drain_late(self) -> None:
        if self._supervisor.paused:  # its last words wait for the client
            self._drain_timer = _later(DRAIN, self._drain_late)
        else:
            self._end()

    def _end(self) -> None:
        if not self._gone.is_set():
            early = "" if self._greeted.is_set() else " before it answered initialize"
            self._over(self._why or _describe_exit(self._exit, early, self.provider.log.last_line))

    def _over(self, why: str) -> None:
        """The process is gone: decide what follows, and only then end the calls that were in flight."""
        if self._gone.is_set():
            return
        provider = self.provider
        if self._drain_timer is not None:
            self._drain_timer.cancel()
        for stream in (self._reader, self._errors):
            if stream is not None:
                stream.close()
        if self._writer is not None:
            self._writer.abort()
        self._decide(why)
        self._gone.set()
        self._greeted.set()
        provider.lost(lambda: self._error(f"Provider {provider.name} {why} with the call in flight"))
        provider.router.changed()

    def _decide(self, why: str) -> None:
        provider = self.provider
        if self._supervisor.stopping:
            provider.not_ready("stopping", "the host is stopping it")
            return
        provider.last_error = why
        if self._refused:
            provider.not_ready("unavailable", why)
            log.error("%s is unavailable: %s", provider.name, why)
            return
        self.delay = self._restarts.after_crash(time.monotonic(), os.urandom(1)[0] / 256)
        if self.delay is None:
            reason = (
                f"it {why}, and that was crash number {self._limits.max_restarts + 1} within "
                f"{self._limits.restart_window:g} s; mend it and start the host anew (its log: {provider.log.where()})"
            )
            provider.not_ready("failed", reason)
            log.error("%s has failed: %s", provider.name, reason)
        else:
            provider.not_ready("backoff", f"it {why}; it is started again")
            log.warning("%s %s; it is started again in %.1f s", provider.name, why, self.delay)


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for an event, but no longer; return whether it came."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _later(seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    return asyncio.get_running_loop().call_later(seconds, callback)


def _describe_exit(status: int | None, when: str, last_line: str) -> str:
    if status is None:
        text = "vanished"
    elif status < 0:
        try:
            text = f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            text = f"was killed by signal {-status}"
    else:
        text = f"exited with status {status}{when}"
        if when and status == 0:
            text += " (a provider reads until the end of its input; one that uses the SDK ends with run())"
    return f"{text} (its stderr ends: {last_line[:300]!r})" if last_line else text
