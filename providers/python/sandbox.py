"""Where code runs: what a sandbox is, and its first level, `process`.

A sandbox takes a task and gives an outcome, whatever the code does. Stronger levels implement `Sandbox`, too, and join
`LEVELS`, the strongest first.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any, Literal, Protocol

import anyio
import anyio.to_thread
import msgspec
import runner

RUNNER = Path(__file__).with_name("runner.py")
START_TIMEOUT = 30.0  # seconds in which a warm interpreter has to be there
GRACE = 5.0  # seconds beyond which a watcher or zygote that does not do its work is killed
ATTEMPTS = 3  # with watchers that were killed before they began


class Limits(msgspec.Struct, kw_only=True):
    """What one run may use: bytes, seconds and numbers."""

    memory: int  # address space of a process
    cpu: int  # seconds of a process; 0: as many as the time-out leaves room for
    files: int  # open at a time, of a process
    file_size: int
    processes: int
    output_kept: int  # of stdout and of stderr; what comes after it is counted and dropped
    output: int  # of both together; more ends the run
    result: int  # as JSON


class Task(msgspec.Struct, kw_only=True):
    """What to do: run code, or check whether it compiles."""

    mode: Literal["execute", "check"] = "execute"
    code: str
    filename: str = "<code>"
    context: dict[str, Any] = {}
    args: dict[str, Any] = {}


class Outcome(msgspec.Struct, kw_only=True):
    """What became of a run. All but the report, and what was printed, comes from outside of it."""

    end: Literal["exit", "timeout", "output", "cancelled", "lost"]
    exit_code: int | None = None  # of the code's own process, negative for a signal
    cpu_seconds: float | None = None
    duration_ms: float = 0.0
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_bytes: int = 0  # that there were
    stderr_bytes: int = 0
    report: bytes = b""  # a line {"error", "is_repr"}, then the result as JSON; forged, if the code cared to


class Sandbox(Protocol):
    """One level of isolation."""

    level: str

    async def start(self) -> None:
        """Make it ready; raises what makes this level unavailable."""

    async def run(self, task: Task, timeout: float) -> Outcome:  # noqa: ASYNC109 - part of the outcome, not of the call
        """Do one task within `timeout` seconds. When it returns, raises or is cancelled, nothing of the run is left."""
        ...

    async def stop(self) -> None:
        """End every run and leave nothing behind."""


class Lost(Exception):
    """A watcher is gone without having told the outcome."""


class Watcher:
    """The connection to one watcher; `runner` says what travels on it."""

    def __init__(self, zygote: "Zygote") -> None:
        self.zygote = zygote
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)  # noqa: FBT003 - the name says it
        self._read = bytearray()  # all that came
        try:
            zygote.send(theirs)
        finally:
            theirs.close()

    @property
    def pid(self) -> int:
        """Of the watcher's process; 0 until it is ready."""
        return int.from_bytes(self._read[:4]) if len(self._read) >= 4 else 0

    @property
    def has_begun(self) -> bool:
        """Whether the run may have done something."""
        return len(self._read) > 4

    async def ready(self) -> None:
        """Wait until it waits for a task."""
        await self._receive(4)

    async def send(self, request: bytes) -> None:
        """Hand a task over."""
        view = memoryview(request)
        while view:
            try:
                view = view[self._socket.send(view) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            except OSError as error:
                raise Lost from error

    async def outcome(self) -> Outcome:
        """Wait for the outcome; may be cancelled and called again."""
        await self._receive(9)
        body = 9 + int.from_bytes(self._read[5:9])
        await self._receive(body)
        told: dict[str, Any] = msgspec.json.decode(self._read[9:body])
        counts = {name: told.pop(name) for name in ("stdout", "stderr", "report")}
        parts, offset = {}, body
        for name, (size, _) in counts.items():
            await self._receive(offset + size)
            parts[name] = bytes(self._read[offset : offset + size])
            offset += size
        return Outcome(**told, **parts, stdout_bytes=counts["stdout"][1], stderr_bytes=counts["stderr"][1])

    async def gone(self) -> None:
        """Wait until the process has ended."""
        try:
            while True:
                await self._receive(len(self._read) + 1)
        except Lost:
            pass

    def cancel(self) -> None:
        """Have it kill the run."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        """Drop the connection; a run that is still there is killed."""
        self._socket.close()

    async def _receive(self, size: int) -> None:
        while len(self._read) < size:
            try:
                data = self._socket.recv(max(size - len(self._read), 1 << 16))
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            except OSError as error:
                raise Lost from error
            if not data:
                raise Lost
            self._read += data


class Zygote:
    """The process that makes watchers."""

    def __init__(self, python: str, limits: Limits) -> None:
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)  # noqa: FBT003 - the name says it
        self._lock = anyio.Lock()
        environ = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - ours
                [python, "-I", "-X", "utf8", str(RUNNER), json.dumps(msgspec.to_builtins(limits))],
                stdin=theirs,
                env=environ,
                cwd="/",
                start_new_session=True,
            )

    def send(self, connection: socket.socket) -> None:
        """Order a watcher; raises OSError if the zygote is gone or takes no orders."""
        socket.send_fds(self._control, [b"w"], [connection.fileno()])

    async def settle(self, patience: float) -> bool:
        """Have what dead watchers left behind cleaned up; return whether it was within `patience` seconds."""
        with anyio.move_on_after(patience):
            async with self._lock:
                try:
                    self._control.send(b"s")
                    await anyio.wait_readable(self._control)
                    return self._control.recv(1) == b"s"
                except OSError:
                    pass
        return False

    async def end(self) -> None:
        """Let it finish and wait for it."""
        self._control.close()
        await anyio.to_thread.run_sync(self._wait, GRACE)

    def _wait(self, patience: float) -> None:
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once; its watchers are orphaned to this process and live on."""
        self._control.close()
        self.process.kill()
        self.process.wait()


class ProcessSandbox:
    """A process for each run, with limits: it guards against accidents; it is no wall against an attacker.

    Args:
        python: The interpreter.
        limits: Of each run.
        spares: Runs that are made ahead.
    """

    level = "process"

    def __init__(self, python: str, limits: Limits, spares: int) -> None:
        self._python = python
        self._limits = limits
        self._spares = spares
        self._zygote: Zygote | None = None
        self._idle: deque[Watcher] = deque()
        self._watchers: set[Watcher] = set()

    async def start(self) -> None:
        """Start the warm interpreter; raises RuntimeError if it does not come up."""
        runner.prctl(runner.SET_CHILD_SUBREAPER, 1)  # of what a killed zygote leaves behind
        runner.hide_from_other_runs()
        self._zygote = Zygote(self._python, self._limits)
        if not await self._zygote.settle(START_TIMEOUT):
            raise RuntimeError(f"the interpreter {self._python} did not start; the provider's log says why")
        self._refill()

    async def run(self, task: Task, timeout: float) -> Outcome:  # noqa: ASYNC109 - see Sandbox
        """Do one task; raises RuntimeError if no process can be had."""
        body = msgspec.json.encode(task)
        request = b'{"size":%d,"timeout":%r}\n%b' % (len(body), float(timeout), body)
        for _ in range(ATTEMPTS):
            watcher = self._idle.popleft() if self._idle else self._order()
            try:
                return await self._serve(watcher, request, timeout)
            except Lost:
                continue
            finally:
                self._refill()
        raise RuntimeError("no process to run the code in could be had; the provider's log says why")

    async def stop(self) -> None:
        """End every run and the warm interpreter."""
        for watcher in self._watchers:
            watcher.close()
        self._watchers.clear()
        self._idle.clear()
        if self._zygote is not None:
            await self._zygote.end()
            self._zygote = None
        self._sweep()

    async def _serve(self, watcher: Watcher, request: bytes, timeout: float) -> Outcome:
        outcome = None
        try:
            with anyio.move_on_after(GRACE + timeout):
                await watcher.ready()
                await watcher.send(request)
                outcome = await watcher.outcome()
        except Lost:
            if not watcher.has_begun:
                raise
        finally:
            if outcome is None:
                with anyio.CancelScope(shield=True):
                    await self._put_down(watcher)
            self._drop(watcher)
        return outcome or Outcome(end="lost")

    async def _put_down(self, watcher: Watcher) -> None:
        """End a run that is cancelled, or whose watcher is dead or does not work."""
        watcher.cancel()
        try:
            with anyio.move_on_after(GRACE):
                await watcher.outcome()
                return  # it has cleaned up
            if watcher.pid:
                os.kill(watcher.pid, signal.SIGKILL)
            with anyio.move_on_after(GRACE):
                await watcher.gone()
        except Lost:
            pass
        if watcher.zygote is self._zygote and not await self._zygote.settle(GRACE):
            self._replace_zygote()

    def _drop(self, watcher: Watcher) -> None:
        watcher.close()
        self._watchers.discard(watcher)
        if watcher.zygote is not self._zygote:
            self._sweep()

    def _order(self) -> Watcher:
        assert self._zygote is not None
        try:
            watcher = Watcher(self._zygote)
        except OSError:
            watcher = Watcher(self._replace_zygote())
        self._watchers.add(watcher)
        return watcher

    def _refill(self) -> None:
        while len(self._idle) < self._spares:
            self._idle.append(self._order())

    def _replace_zygote(self) -> Zygote:
        """Start a new one for one that was killed or stopped; runs that go on under the old one's watchers do so."""
        print("the warm interpreter is gone or stuck; a new one is started", file=sys.stderr)  # noqa: T201
        assert self._zygote is not None
        self._zygote.kill()
        self._sweep()
        self._zygote = Zygote(self._python, self._limits)
        return self._zygote

    def _sweep(self) -> None:
        """Kill and reap what dead zygotes have left to this process; not the watchers that still work."""
        keep = {watcher.pid for watcher in self._watchers}
        if self._zygote is not None and self._zygote.process.returncode is None:
            keep.add(self._zygote.process.pid)
        runner.kill_children(keep)
