"""The client of the tests: a real host in a process of its own, spoken to through real pipes.

    with HostProcess(tmp_path / "home", search_path=[folder]) as host:
        assert host.call("echo/say", {"message": "hi"}) == {"response": "hi"}

Everything that waits is bounded. Nothing of the user's machine is touched: home and XDG folders lie below
`home`. Leaving the context ends the host, and fails if it wrote anything but JSON-RPC to stdout or left a
process behind.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import gleitzeit_host

TIMEOUT = 20.0  # seconds; what a slow, busy machine may need
GONE_WITHIN = 5.0  # seconds; after the host's end, for everything below it
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "COVERAGE_PROCESS_START", "MallocNanoZone")


class HostError(Exception):
    """The error object that a call was answered with."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.data: dict[str, Any] = error.get("data", {})


class HostProcess:
    """A running host. `launcher` precedes its command; `environ` is laid over the isolated environment."""

    def __init__(
        self,
        home: Path,
        *arguments: str,
        search_path: Sequence[Path] = (),
        config: str | None = None,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        launcher: Sequence[str] = (),
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        command = [*launcher, sys.executable, "-m", "gleitzeit_host", "serve"]
        for folder in search_path:
            command += ["--path", str(folder)]
        if config is not None:
            (home / "test.toml").write_text(config)
            command += ["--config", str(home / "test.toml")]
        self.home = home
        self.notifications: list[dict[str, Any]] = []
        self.batches: list[list[Any]] = []
        self.garbage: list[bytes] = []  # what was on stdout and should not have been
        self._unseen: deque[dict[str, Any]] = deque()
        self._answers: defaultdict[str, deque[tuple[dict[str, Any], bytes]]] = defaultdict(deque)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._stderr = bytearray()
        self._ended = False
        self._hopeless = False  # something was waited for in vain: do not wait for the end as well
        self._news = threading.Condition()
        self._may_read = threading.Event()
        self._may_read.set()
        self._next_id = 1
        self._strangers = set(children(os.getpid()))
        adopt_orphans()
        self.process = subprocess.Popen(
            [*command, *arguments],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd or home,
            env={**isolated_environment(home), **(environ or {})},
        )
        _started.add(self.process.pid)
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        self._threads = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # ---- out

    def send(self, message: Any, timeout: float = TIMEOUT) -> None:
        """Write a message and a newline, or bytes exactly as they are."""
        data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
        assert self.process.stdin is not None
        pipe = self.process.stdin.fileno()
        deadline = time.monotonic() + timeout
        while data:
            if not select.select([], [pipe], [], max(0.0, deadline - time.monotonic()))[1]:
                self._give_up(f"the host read no more; {len(data)} bytes are left")
            with contextlib.suppress(BlockingIOError):
                data = data[os.write(pipe, data[:65_536]) :]

    def request(self, method: str, params: Any = None, *, id: Any = None) -> Any:
        """Send a request and return its id."""
        if id is None:
            id, self._next_id = self._next_id, self._next_id + 1
        self.send({"jsonrpc": "2.0", "id": id, "method": method, "params": {} if params is None else params})
        return id

    def notify(self, method: str, params: Any = None) -> None:
        """Send a notification."""
        self.send({"jsonrpc": "2.0", "method": method, "params": {} if params is None else params})

    def cancel(self, id: Any, reason: str = "a test") -> None:
        """Cancel a request."""
        self.notify("notifications/cancelled", {"requestId": id, "reason": reason})

    def close_stdin(self) -> None:
        """End the host's input."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    # ---- in

    def answer(self, id: Any, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Wait for the answer to a request; other messages are kept."""
        return self._answer(id, timeout)[0]

    def raw_answer(self, id: Any, timeout: float = TIMEOUT) -> bytes:
        """Wait for the answer to a request and return the line as it came."""
        return self._answer(id, timeout)[1]

    def _answer(self, id: Any, timeout: float) -> tuple[dict[str, Any], bytes]:
        waiting = self._answers[json.dumps(id)]
        self._wait_until(lambda: bool(waiting), timeout, f"no answer with id {id!r}")
        return waiting.popleft()

    def result(self, id: Any, timeout: float = TIMEOUT) -> Any:
        """Wait for the answer to a request and return its result; raises HostError."""
        answer = self.answer(id, timeout)
        if "error" in answer:
            raise HostError(answer["error"])
        return answer["result"]

    def error(self, id: Any, timeout: float = TIMEOUT) -> HostError:
        """Wait for the answer to a request, which must be an error."""
        answer = self.answer(id, timeout)
        assert "error" in answer, f"expected an error: {answer}"
        return HostError(answer["error"])

    def call(self, method: str, params: Any = None, timeout: float = TIMEOUT) -> Any:
        """Call a method and return its result; raises HostError."""
        return self.result(self.request(method, params), timeout)

    def refusal(self, method: str, params: Any = None, timeout: float = TIMEOUT) -> HostError:
        """Call a method whose answer must be an error."""
        return self.error(self.request(method, params), timeout)

    def answers_to(self, id: Any) -> int:
        """Return how many answers with this id have come so far."""
        with self._news:
            return self._counts[json.dumps(id)]

    def notification(
        self,
        method: str,
        where: Callable[[Any], bool] = lambda _params: True,
        timeout: float = TIMEOUT,
    ) -> Any:
        """Wait for a notification whose params satisfy `where`, return the params, and never those again."""

        def first() -> dict[str, Any] | None:
            matching = (n for n in self._unseen if n["method"] == method and where(n.get("params")))
            return next(matching, None)

        self._wait_until(lambda: first() is not None, timeout, f"no notification {method}")
        found = first()
        assert found is not None
        self._unseen.remove(found)
        return found.get("params")

    def batch(self, timeout: float = TIMEOUT) -> list[Any]:
        """Wait for the answer to a batch, the first not returned before."""
        self._wait_until(lambda: bool(self.batches), timeout, "no answer to a batch")
        return self.batches.pop(0)

    def pause_reading(self) -> None:
        """Read nothing from the host's stdout after the chunk being read, until `resume_reading`."""
        self._may_read.clear()

    def resume_reading(self) -> None:
        """Read on."""
        self._may_read.set()

    @property
    def stderr(self) -> str:
        """What the host has written to stderr so far."""
        with self._news:
            return self._stderr.decode(errors="replace")

    def wait_for_stderr(self, text: str, timeout: float = TIMEOUT) -> None:
        """Wait until the host's stderr has the text."""
        self._wait_until(lambda: text.encode() in self._stderr, timeout, f"no {text!r} on stderr", needs_host=False)

    def provider(self, name: str) -> dict[str, Any]:
        """Return what `host/providers` says about one provider."""
        listed = self.call("host/providers")["providers"]
        found = [provider for provider in listed if provider["name"] == name]
        assert len(found) == 1, f"{len(found)} providers named {name}: {listed}"
        entry: dict[str, Any] = found[0]
        return entry

    # ---- the process

    @property
    def pid(self) -> int:
        return self.process.pid

    def descendants(self) -> list[int]:
        """Return the processes below the host, daemonised ones excepted unless the host adopted them."""
        return list(descendants(self.process.pid))

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the host's end and for all it wrote; return the exit status, negative for a signal."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._give_up(f"the host still runs after {timeout} s")
        for thread in self._threads:
            thread.join(GONE_WITHIN)
        return status

    def finish(self, timeout: float = TIMEOUT) -> int:
        """End the host's input and wait for its end."""
        self.close_stdin()
        return self.wait(timeout)

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Send the host a signal."""
        self.process.send_signal(signal_number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        below = self.descendants()
        self.resume_reading()
        try:
            if self.process.poll() is None and not self._hopeless:
                self.finish()
        except AssertionError:
            if kind is None:
                raise
        finally:
            self.process.kill()
            self.process.wait()
            left = self._left_over(below)
            self._close()
        if kind is None:
            assert not left, f"processes outlived the host: {left}\n{self.stderr}"
            assert not self.garbage, f"not JSON-RPC on stdout: {self.garbage[:5]}"

    def _left_over(self, below: list[int]) -> list[str]:
        deadline = time.monotonic() + GONE_WITHIN
        orphans = set(children(os.getpid())) - self._strangers - _started
        left = []
        for pid in {*below, *orphans}:
            if not wait_for_end(pid, max(0.0, deadline - time.monotonic())):
                left.append(f"{pid} {command_line(pid)}")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                wait_for_end(pid, GONE_WITHIN)
        return left

    def _close(self) -> None:
        for thread in self._threads:
            thread.join(GONE_WITHIN)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    # ---- threads

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        rest = bytearray()
        while self._may_read.wait() and (chunk := os.read(self.process.stdout.fileno(), 1 << 20)):
            *lines, last = chunk.split(b"\n")
            if lines:
                lines[0] = bytes(rest + lines[0])
                rest.clear()
            rest += last
            with self._news:
                for line in lines:
                    self._take(line)
                self._news.notify_all()
        with self._news:
            if rest:
                self.garbage.append(bytes(rest))
            self._ended = True
            self._news.notify_all()

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line.decode(), parse_constant=_refuse_constant)
        except ValueError:
            self.garbage.append(line)
            return
        if isinstance(message, list):
            self.batches.append(message)
        elif not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            self.garbage.append(line)
        elif "method" in message:
            self.notifications.append(message)
            self._unseen.append(message)
        else:
            key = json.dumps(message.get("id"))
            self._answers[key].append((message, line))
            self._counts[key] += 1

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        while chunk := os.read(self.process.stderr.fileno(), 65_536):
            with self._news:
                self._stderr += chunk
                self._news.notify_all()

    def _wait_until(
        self, condition: Callable[[], bool], timeout: float, problem: str, *, needs_host: bool = True
    ) -> None:
        with self._news:
            self._news.wait_for(lambda: condition() or (needs_host and self._ended), timeout)
            if condition():
                return
            ended = self._ended
        self._give_up(f"{problem}: the host's output ended" if ended else f"{problem} within {timeout} s")

    def _give_up(self, problem: str) -> NoReturn:
        self._hopeless = True
        raise AssertionError(f"{problem}\n--- the host's stderr:\n{self.stderr[-4_000:]}")


StartHost = Callable[..., HostProcess]

_started: set[int] = set()


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def isolated_environment(home: Path) -> dict[str, str]:
    """Return an environment in which nothing of the user's own configuration can be found."""
    environ = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        environ[f"XDG_{kind}_HOME"] = str(home / kind.lower())
    runtime = home / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    environ["XDG_RUNTIME_DIR"] = str(runtime)
    environ["HOME"] = str(home)
    # The package that the tests import is the one they test, installed or not.
    environ["PYTHONPATH"] = str(Path(gleitzeit_host.__file__).parent.parent)
    return environ


# ---- processes; on systems without /proc nothing is found, and nothing is checked


def adopt_orphans() -> None:
    """Have orphaned descendants become our children, so that none escapes notice (Linux)."""
    if sys.platform == "linux":
        set_child_subreaper = 36
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)


def children(pid: int) -> list[int]:
    """Return the pids of the children of a process, zombies excepted."""
    return [child for child, parent in _parents() if parent == pid]


def descendants(pid: int) -> Iterator[int]:
    """Yield the pids of the children of a process, of theirs, and so on."""
    below: defaultdict[int, list[int]] = defaultdict(list)
    for child, parent in _parents():
        below[parent].append(child)
    found = [pid]
    while found:
        for child in below[found.pop()]:
            yield child
            found.append(child)


def _parents() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                yield int(folder.name), int(parent)


def wait_for_end(pid: int, timeout: float) -> bool:
    """Wait until a process has ended, and reap it if it became our child; tell whether it has."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ended = bool(select.select([handle], [], [], timeout)[0])
    finally:
        os.close(handle)
    if ended:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return ended


def command_line(pid: int) -> str:
    """Return a process's arguments, for messages."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return "?"
