"""Where code runs: what a sandbox is, and its first level, `process`.

A sandbox takes a task and gives an outcome, whatever the code does. Stronger levels implement `Sandbox`, too.
"""

import contextlib
import json
import os
import signal
import socket
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
START_TIMEOUT = 20.0  # seconds in which a warm interpreter has to be there
GRACE = 10.0  # seconds beyond which a watcher or zygote that does not do its work is killed
LATE = 2.0  # seconds after its time-out in which a run's watcher has to tell the outcome
ATTEMPTS = 3  # with new watchers, when they are killed before they begin


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
        self.pid = 0  # known once it is ready
        self.is_gone = False
        self._socket = zygote.order(b"w")
        self._received = bytearray()

    async def ready(self) -> None:
        """Wait until it can take a task."""
        if not self.pid:
            await self._receive(4)
            self.pid = int.from_bytes(self._received)
            self._received.clear()

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
        await self._receive(4)
        body = 4 + int.from_bytes(self._received[:4])
        await self._receive(body)
        told: dict[str, Any] = msgspec.json.decode(self._received[4:body])
        counts: dict[str, list[int]] = {name: told.pop(name) for name in ("stdout", "stderr", "report")}
        parts: dict[str, Any] = {}
        offset = body
        for name, (size, _) in counts.items():
            await self._receive(offset + size)
            parts[name] = bytes(self._received[offset : offset + size])
            offset += size
        self._received.clear()
        return Outcome(**told, **parts, stdout_bytes=counts["stdout"][1], stderr_bytes=counts["stderr"][1])

    async def gone(self) -> None:
        """Wait until its process has ended."""
        with contextlib.suppress(Lost):
            while True:
                await self._receive(len(self._received) + 1)

    def cancel(self) -> None:
        """Have it kill the run, tell the outcome and exit."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Drop the connection; a run that is still there is killed."""
        self._socket.close()

    async def _receive(self, size: int) -> None:
        """Wait until `size` bytes are there. Nothing comes unasked, so there are never more."""
        while len(self._received) < size:
            try:
                data = self._socket.recv(1 << 18)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            except ConnectionError:
                data = b""
            if not data:
                self.is_gone = True
                raise Lost
            self._received += data


class Zygote:
    """The process that makes watchers."""

    def __init__(self, python: str, limits: Limits) -> None:
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 - ours
                [python, "-I", "-X", "utf8", str(RUNNER), json.dumps(msgspec.to_builtins(limits))],
                stdin=theirs.fileno(),
                env={name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ},
                cwd="/",
                start_new_session=True,
            )

    def order(self, what: bytes) -> socket.socket:
        """Order a watcher (b"w") or a settlement (b"s"); return where it will be heard of. Raises OSError."""
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            try:
                socket.send_fds(self._control, [what], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    async def settle(self, patience: float) -> bool:
        """Have what dead watchers left behind cleaned up; return whether it was within `patience` seconds."""
        with anyio.move_on_after(patience), contextlib.suppress(OSError), self.order(b"s") as answer:
            await anyio.wait_readable(answer)
            return answer.recv(1) == b"s"
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
    """A process for each run, with limits. It guards against accidents; it is no wall against an attacker.

    Args:
        python: The interpreter.
        limits: Of each run.
        warm: Watchers that are made at the start, each with a run that waits for its task.
    """

    level = "process"

    def __init__(self, python: str, limits: Limits, warm: int) -> None:
        self._python = python
        self._limits = limits
        self._warm = warm
        self._zygote: Zygote | None = None
        self._idle: deque[Watcher] = deque()
        self._watchers: set[Watcher] = set()

    async def start(self) -> None:
        """Start the warm interpreter; raises RuntimeError if it does not come up."""
        runner.adopt_orphans()  # what a killed zygote leaves behind
        runner.hide()
        self._zygote = Zygote(self._python, self._limits)
        if not await self._zygote.settle(START_TIMEOUT):
            raise RuntimeError(f"{self._python} does not run {RUNNER.name}; the provider's log says why")
        self._refill()

    async def run(self, task: Task, timeout: float) -> Outcome:  # noqa: ASYNC109 - see Sandbox
        """Do one task; raises RuntimeError if no process can be had."""
        body = msgspec.json.encode(task)
        request = b'{"size":%d,"timeout":%r}\n%b' % (len(body), float(timeout), body)
        made = 0
        while made < ATTEMPTS:
            if self._idle:
                watcher = self._idle.popleft()
            else:
                watcher = self._order()
                made += 1
            with contextlib.suppress(Lost):
                return await self._serve(watcher, request, timeout)
        raise RuntimeError("no process can be had to run the code in; the provider's log says why")

    async def stop(self) -> None:
        """End every run and the warm interpreter."""
        for watcher in self._watchers:
            watcher.close()
        self._watchers.clear()
        self._idle.clear()
        if self._zygote is not None:
            await self._zygote.end()
        self._sweep()
        runner.remove_abandoned()

    async def _serve(self, watcher: Watcher, request: bytes, timeout: float) -> Outcome:  # noqa: ASYNC109 - as `run`
        outcome, has_begun, late = None, False, False
        try:
            with anyio.move_on_after(GRACE):
                await watcher.ready()
                await watcher.send(request)
                has_begun = True
            if has_begun:
                with anyio.move_on_after(timeout + LATE) as bound:
                    outcome = await watcher.outcome()
                late = bound.cancelled_caught
        except Lost:
            pass
        finally:
            if outcome is not None and watcher.zygote is self._zygote:
                self._idle.append(watcher)
            else:
                with anyio.CancelScope(shield=True):
                    await self._dismiss(watcher, 0.0 if late else GRACE)
        if not has_begun:
            raise Lost
        return outcome or Outcome(end="timeout" if late else "lost", duration_ms=timeout * 1000 if late else 0.0)

    async def _dismiss(self, watcher: Watcher, patience: float) -> None:
        """Part with a watcher: its run is cancelled, it is dead or does not work, or its zygote is gone."""
        watcher.cancel()
        clean = False
        with contextlib.suppress(Lost), anyio.move_on_after(patience):
            await watcher.ready()
            await watcher.outcome()
            clean = True
        if not clean and watcher.pid and not watcher.is_gone:
            os.kill(watcher.pid, signal.SIGKILL)
            with anyio.move_on_after(GRACE):
                await watcher.gone()
        watcher.close()
        self._watchers.discard(watcher)
        zygote = watcher.zygote
        if not clean and zygote is self._zygote and not await zygote.settle(GRACE) and zygote is self._zygote:
            self._replace_zygote()
        if zygote is not self._zygote:
            self._sweep()
        with contextlib.suppress(OSError):  # the next run tries again, and tells
            self._refill()

    def _refill(self) -> None:
        while len(self._watchers) < self._warm:
            self._idle.append(self._order())

    def _order(self) -> Watcher:
        assert self._zygote is not None
        try:
            watcher = Watcher(self._zygote)
        except OSError:
            watcher = Watcher(self._replace_zygote())
        self._watchers.add(watcher)
        return watcher

    def _replace_zygote(self) -> Zygote:
        """Start a new one for one that is gone or stuck; the watchers of the old one go on with their runs."""
        print("the warm interpreter is gone or stuck; a new one is started", file=sys.stderr)  # noqa: T201 - the log
        assert self._zygote is not None
        self._zygote.kill()
        self._sweep()
        self._zygote = Zygote(self._python, self._limits)
        return self._zygote

    def _sweep(self) -> None:
        """Kill and reap what dead zygotes and watchers have left to this process, which has no other children."""
        keep = {watcher.pid for watcher in self._watchers}
        if self._zygote is not None and self._zygote.process.returncode is None:
            keep.add(self._zygote.process.pid)
        runner.kill_children(keep)
