"""The host's end of the guard: starts processes that cannot outlive the host."""

import array
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

_GUARD_EXIT = 5.0  # seconds for the guard to kill what is left and go
_PR_SET_DUMPABLE = 4
_PATIENCE = 3.0  # seconds for the guard to obey, after which it is woken, as somebody may have stopped it
_WAKE_UPS = 5  # in a row, after which it is killed, and everything with it


class Process:
    """One started program: the host's ends of its three pipes, non-blocking, which the owner closes."""

    def __init__(
        self,
        processes: "Processes",
        id: int,
        on_started: Callable[[int], None],
        on_exit: Callable[[int], None],
        on_error: Callable[[str], None],
    ) -> None:
        self.id = id
        self.pid: int | None = None
        self.stdin = self.stdout = self.stderr = -1
        self.on_started = on_started
        self.on_exit = on_exit
        self.on_error = on_error
        self._processes = processes

    def terminate(self) -> None:
        """Send SIGTERM to the program's process group."""
        self._processes.order({"terminate": self.id})

    def kill(self) -> None:
        """Send SIGKILL to the program and everything below it."""
        self._processes.order({"kill": self.id})


class Processes:
    """Starts and signals processes through the guard, which is started with the first one, or by `start`."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._guard = 0
        self._watched = False
        self._running: dict[int, Process] = {}
        self._next_id = 1
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._rest = b""
        self._closed: asyncio.Future[None] | None = None
        self._orders = 0  # that this guard was given
        self._alarm: asyncio.TimerHandle | None = None  # set while an order is not obeyed
        self._wake_ups = 0

    def start(self) -> None:
        """Start the guard. Needs no event loop, and returns before the guard is up: orders wait in its socket."""
        if self._socket is not None:
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        guard = str(Path(__file__).with_name("guard.py"))
        theirs.set_inheritable(True)  # nothing else of the host's is
        argv = [sys.executable, "-I", "-S", guard, str(theirs.fileno())]
        env = {name: value for name, value in os.environ.items() if name.startswith(("LD_", "DYLD_", "LC_"))}
        actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
        try:
            self._guard = os.posix_spawn(sys.executable, argv, env, file_actions=actions)
        except OSError:
            ours.close()
            raise
        finally:
            os.close(null)
            theirs.close()
        self._socket = ours
        _hide()

    def spawn(
        self,
        argv: list[str],
        env: Mapping[str, str],
        *,
        on_started: Callable[[int], None],
        on_exit: Callable[[int], None],
        on_error: Callable[[str], None],
    ) -> Process:
        """Start a program in a session of its own, in the host's working folder.

        The callbacks run on the loop: `on_started` with the pid and then `on_exit` with the exit status (negative: the
        signal that ended it) once nothing of it is left, or `on_error` with why it could not be started.

        Raises:
            OSError: there are no descriptors left.
        """
        self.start()
        self._watch()
        process = Process(self, self._next_id, on_started, on_exit, on_error)
        self._next_id += 1
        (stdin, process.stdin), (process.stdout, stdout), (process.stderr, stderr) = _pipes(3)
        for fd in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(fd, False)
        self._running[process.id] = process
        words = [_find(argv[0], env.get("PATH", os.defpath)), *argv[1:]]
        environment = {_text(name): _text(value) for name, value in env.items()}
        self.order(
            {"spawn": process.id, "argv": [_text(word) for word in words], "env": environment}, [stdin, stdout, stderr]
        )
        return process

    def order(self, order: dict[str, object], descriptors: list[int] | None = None) -> None:
        """Send an order to the guard, now or as soon as its socket takes it; `descriptors` are closed then."""
        if self._socket is None:
            return
        self._unsent.append((_msgspec().encode(order) + b"\n", descriptors or []))
        self._orders += 1
        if self._alarm is None:
            self._alarm = _loop().call_later(_PATIENCE, self._wake)
        if len(self._unsent) == 1:
            self._send()

    async def aclose(self) -> None:
        """End the guard, which kills whatever still runs, and wait for it."""
        if self._socket is None:
            return
        self._watch()
        loop = _loop()
        self._closed = loop.create_future()
        timer = loop.call_later(_GUARD_EXIT, self._abandon)
        self._socket.shutdown(socket.SHUT_WR)
        self._signal_guard(signal.SIGCONT)  # it may have been stopped
        await self._closed
        timer.cancel()

    def _wake(self) -> None:
        """Continue a guard that does not obey, and in the end do without it: the next spawn starts a new one."""
        self._wake_ups += 1
        from gleitzeit_host.logs import log  # noqa: PLC0415 - hardly ever

        log.warning("the guard, process %d, does not obey; it is woken or, in the end, replaced", self._guard)
        if self._wake_ups > _WAKE_UPS:
            self._abandon()
        else:
            self._signal_guard(signal.SIGCONT)
            self._alarm = _loop().call_later(_PATIENCE, self._wake)

    def _has_obeyed(self, orders: int) -> None:
        self._wake_ups = 0
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = _loop().call_later(_PATIENCE, self._wake) if orders < self._orders else None

    def _abandon(self) -> None:
        """Kill a guard that does not come to an end: something below it cannot be killed, not even by its keeper."""
        self._signal_guard(signal.SIGKILL)
        self._guard_lost()

    def _signal_guard(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # the host's launcher had SIGCHLD ignored
            os.kill(self._guard, number)

    # ---- the socket

    def _send(self) -> None:
        assert self._socket is not None
        loop = _loop()
        while self._unsent:
            data, descriptors = self._unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                sent = self._socket.sendmsg([data], rights)
            except (BlockingIOError, InterruptedError):
                loop.add_writer(self._socket.fileno(), self._send)
                return
            except OSError:  # the guard is gone; the reader finds out
                sent = len(data)
            for fd in descriptors:
                os.close(fd)
            if sent == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = (data[sent:], [])
        loop.remove_writer(self._socket.fileno())

    def _watch(self) -> None:
        if not self._watched:
            assert self._socket is not None
            self._watched = True
            _loop().add_reader(self._socket.fileno(), self._readable)

    def _unwatch(self) -> None:
        assert self._socket is not None
        if self._watched:
            self._watched = False
            loop = _loop()
            loop.remove_reader(self._socket.fileno())
            loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._guard_lost()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._told(_msgspec().decode(line))

    def _told(self, news: dict[str, object]) -> None:
        if "obeyed" in news:
            self._has_obeyed(news["obeyed"])  # type: ignore[arg-type]
            return
        id = news["id"]
        assert isinstance(id, int)
        process = self._running.get(id)
        if process is None:
            return
        if isinstance(news.get("pid"), int):
            process.pid = news["pid"]  # type: ignore[assignment]
            process.on_started(process.pid)  # type: ignore[arg-type]
        elif isinstance(news.get("exit"), int):
            del self._running[id]
            process.on_exit(news["exit"])  # type: ignore[arg-type]
        else:
            del self._running[id]
            process.on_error(str(news["error"]))

    def _guard_lost(self) -> None:
        """The guard and its keepers are gone, and with them every process; the next spawn starts a new guard."""
        self._unwatch()
        assert self._socket is not None
        self._socket.close()
        self._socket = None
        self._rest = b""
        self._has_obeyed(self._orders)
        self._orders = 0
        for _, descriptors in self._unsent:
            for fd in descriptors:
                os.close(fd)
        self._unsent.clear()
        with contextlib.suppress(ChildProcessError):  # the host's launcher had SIGCHLD ignored
            os.waitpid(self._guard, 0)
        running, self._running = self._running, {}
        for process in running.values():
            process.on_exit(-signal.SIGKILL)
        if self._closed is not None and not self._closed.done():
            self._closed.set_result(None)


def _hide() -> None:
    """Keep processes of the same user from reading the host's environment and memory through /proc.

    Root's own processes may do so anyway, and are not worth the 5 ms.
    """
    if sys.platform == "linux" and os.geteuid() != 0:
        import ctypes  # noqa: PLC0415 - as above: while the guard starts

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _loop() -> "asyncio.AbstractEventLoop":
    import asyncio  # noqa: PLC0415 - 70 ms, during which the guard starts already

    return asyncio.get_running_loop()


def _msgspec() -> Any:
    import msgspec.json  # noqa: PLC0415 - as above

    return msgspec.json


def _pipes(count: int) -> list[tuple[int, int]]:
    """Make several pipes (read end, write end), or none; raises OSError."""
    made: list[tuple[int, int]] = []
    try:
        for _ in range(count):
            made.append(os.pipe())  # noqa: PERF401 - a comprehension would lose those made before an error
    except OSError:
        for fd in (fd for pipe in made for fd in pipe):
            os.close(fd)
        raise
    return made


def _text(value: str) -> str:
    """Return a text that stands for the bytes of a command or variable, which need not be UTF-8."""
    return os.fsencode(value).decode("latin-1")


def _find(program: str, path: str) -> str:
    """Return the program's place on the PATH; the bare name, which cannot be started, where it has none."""
    if "/" in program:
        return program
    for folder in path.split(os.pathsep):
        candidate = os.path.join(folder or ".", program)  # noqa: PTH118 - pathlib would drop a leading "./"
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):  # noqa: PTH112
            return candidate
    return program
