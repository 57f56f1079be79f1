"""The host: builds the parts, serves the client's pipe, and takes everything down again."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Raw

from gleitzeit_host import config as configuration
from gleitzeit_host import wire
from gleitzeit_host.calls import Caller
from gleitzeit_host.config import Config
from gleitzeit_host.edge import Edge
from gleitzeit_host.errors import ConfigurationError, RpcError
from gleitzeit_host.logs import ProviderLog, ProviderLogs, log
from gleitzeit_host.manifest import Broken, load_manifests
from gleitzeit_host.peer import Answer, Request, deliver
from gleitzeit_host.processes import Processes
from gleitzeit_host.protocol import HOST_METHODS, Protocol, load_protocols
from gleitzeit_host.provider import Provider
from gleitzeit_host.router import Router
from gleitzeit_host.state import StateFiles
from gleitzeit_host.supervisor import Supervisor

if TYPE_CHECKING:
    from gleitzeit_host.mcp.face import Face

EXIT_OUTPUT_LOST = 1  # nobody read what was still to be answered
LAST_ANSWERS = 0.5  # seconds for a client to read them, once a signal has come
# MCP clients end a server by closing its input, and kill it where it is not gone soon:
MCP_GRACE = 0.3  # seconds for each rung of the stop ladder, and for the client to read the last answers


class Host:
    """One configuration, its protocols and its providers.

    Use `running` around everything else; `serve` answers one client's pipe until it ends.
    """

    def __init__(self, config: Config, search_path: list[Path], processes: Processes) -> None:
        self.config = config
        self.processes = processes
        self.warnings = list(config.warnings)
        self._search_path = search_path
        self._state_folder = configuration.state_folder()
        self._started_at = time.monotonic()
        self._grace: float | None = None  # seconds for each rung of the stop ladder; None: the provider's own

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Load what there is, start the eager providers, and stop them all in the end."""
        async with asyncio.TaskGroup() as tasks:
            self._build(tasks)
            self._start_eager()
            try:
                yield
            finally:
                self.check_protocols()
                await self.supervisor.stop(self._grace)
                self.router.deadlines.close()
                await self.processes.aclose()

    def _build(self, tasks: asyncio.TaskGroup) -> None:
        self.protocols, self.protocol_problems = load_protocols(self._search_path, self.config.protocols)
        manifests, self.broken = load_manifests(self._search_path)
        self.router = Router(self.protocols.values(), self.config.limits)
        self.router.on_broken = self._protocol_is_broken
        self._unchecked = list(self.protocols.values())
        self.supervisor = Supervisor(
            tasks,
            self.processes,
            StateFiles(self._state_folder / "providers" / self.config.key),
            self.protocols,
            self.config,
            os.environ,
            sys.executable,
        )
        self._tasks = tasks
        logs = ProviderLogs(self._state_folder)
        for name, manifest in manifests.items():
            settings = configuration.provider_config(self.config, name)
            provider = Provider(manifest, settings, self.router, ProviderLog(name, logs), self._start)
            self.router.providers[name] = provider
            if not settings.enabled:
                provider.not_ready("disabled", "the configuration says enabled = false")
        self.warnings += configuration.unknown_providers(self.config, [*manifests, *self.broken])
        for warning in [*self.warnings, *self.protocol_problems]:
            log.warning("%s", warning)
        for broken in self.broken.values():
            log.error("provider %s cannot be used: %s", broken.name, broken.reason)

    def _start_eager(self) -> None:
        for provider in self.router.providers.values():
            if provider.state == "idle":
                for name in self.router.serve(provider, sorted(provider.promised)):
                    provider.complain(f"No loaded protocol defines {name!r}, which its manifest lists")
                if configuration.is_eager(provider.manifest, provider.config):
                    provider.start()

    def _start(self, provider: Provider) -> None:
        self.supervisor.start(provider)
        if self._unchecked:  # while its process starts there is nothing to do
            asyncio.get_running_loop().call_soon(self.check_protocols)

    def check_protocols(self) -> None:
        """Check the documents' schemas, and withdraw those that are broken; done once, when there is time for it."""
        unchecked, self._unchecked = self._unchecked, []
        for protocol in unchecked:
            if protocol.name in self.protocols:
                try:
                    protocol.check()
                except ConfigurationError as error:
                    self.router.undefine(protocol, str(error))

    def _protocol_is_broken(self, protocol: Protocol, problem: str) -> None:
        del self.protocols[protocol.name]
        self.protocol_problems.append(problem)
        log.warning("%s", problem)

    # ---- serving

    async def serve(self, input_fd: int, output_fd: int) -> int:
        """Serve one client's pipe until it ends or a signal comes; return the process's exit status."""
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def over(status: int) -> None:
            if not ended.done():
                ended.set_result(status)

        self.edge = edge = Edge(
            self.router,
            self.config.limits,
            self._serve_own,
            self._mcp_face,
            lambda answered: over(0 if answered else EXIT_OUTPUT_LOST),
            self.supervisor.pause_reading,
        )
        edge.open(input_fd, output_fd)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, over, 128 + number)
        status = await ended
        if status:
            edge.cancel_all("the host is shutting down")
            edge.finish()
        if edge.only_mcp:
            self._grace = MCP_GRACE
        patience = self._grace or (LAST_ANSWERS if status else None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await edge.flush()
        return status or (EXIT_OUTPUT_LOST if edge.output_lost else 0)

    def _serve_own(self, request: Request) -> bool:
        if request.method not in HOST_METHODS:
            return False
        self.edge.hold()
        self._tasks.create_task(self._answer_own(request, self.edge))
        return True

    def _mcp_face(self, edge: Edge) -> "Face":
        from gleitzeit_host.mcp.face import Face  # noqa: PLC0415 - a client that speaks no MCP does not wait for it

        return Face(self, edge)

    async def _answer_own(self, request: Request, caller: Caller) -> None:
        try:
            request.respond(wire.encode(await self.ask(request.method, wire.read_params(request.params))))
        except RpcError as error:
            request.fail(error)
        finally:
            caller.unhold()

    async def call(self, method: str, params: dict[str, Any]) -> Raw:
        """Call a provider's method from within this process; raises RpcError."""
        answer = Answer()
        self.router.submit(Request(Inside(answer), method, b"1", Raw(wire.encode(params)), 0), Caller())
        return await answer.future

    async def settled(self) -> None:
        """Wait until no provider is starting, and every protocol is checked."""
        self.check_protocols()
        while any(provider.state == "starting" for provider in self.router.providers.values()):
            await self.router.next_change()

    async def ask(self, method: str, params: Any) -> Any:
        """Serve one of the host's own methods; raises RpcError."""
        methods = await asyncio.to_thread(import_module, "gleitzeit_host.host_methods")
        if isinstance(params, dict):
            params.pop("_meta", None)
        self.check_protocols()
        return methods.serve(self, method, params)

    # ---- facts for the host's own methods

    def uptime(self) -> float:
        """Seconds since this host was built."""
        return time.monotonic() - self._started_at

    def describe_providers(self) -> list[dict[str, Any]]:
        """Return a row per provider, broken manifests included."""
        rows = [provider.describe() for provider in self.router.providers.values()]
        rows += [_describe_broken(broken) for broken in self.broken.values()]
        return sorted(rows, key=lambda row: str(row["name"]))


class Inside:
    """Where the answer to a call from within this process goes."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def send(self, line: bytes) -> None:
        """Take the answer."""
        deliver(line, self._answer)

    def notify(self, method: str, params: Any) -> None:
        """Progress is not asked for."""


def _describe_broken(broken: Broken) -> dict[str, Any]:
    empty = dict.fromkeys(("pid", "version", "concurrency", "lastProblem", "lastError", "latencyMs", "health"))
    counts = dict.fromkeys(("inFlight", "served", "restarts", "problems"), 0)
    row = {"name": broken.name, "description": "", "state": "unavailable", "reason": broken.reason}
    return {**row, "methods": [], "capabilities": {}, **counts, **empty}
