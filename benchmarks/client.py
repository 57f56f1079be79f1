"""The measuring client: raw pipes and JSON lines, with as little work of its own as there can be.

What a target answers is checked, but outside of the timed part: a fast wrong answer counts for nothing.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).parent
ECHO = [sys.executable, "-I", "-S", str(HERE.parent / "providers" / "echo" / "provider.py")]
PATIENCE = 120  # seconds after which one measurement is given up
READ_SIZE = 1 << 20  # bytes


@dataclass(frozen=True)
class Target:
    """Something that says back what it is told: how to start it, what it wants to hear first, and how to ask."""

    name: str
    command: list[str]
    greeting: tuple[dict[str, Any], ...] = ()  # each with an id is answered before the next is sent
    request: bytes = b'{"jsonrpc":"2.0","id":%d,"method":"echo/say","params":{"message":"%b"}}\n'  # id, message


_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": 1, "provider": "echo", "host": {"name": "benchmark", "version": "0"}},
}
_MCP_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "benchmark", "version": "0"},
    },
}
_MCP_GREETING = (_MCP_INITIALIZE, {"jsonrpc": "2.0", "method": "notifications/initialized"})
_MCP_META = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},'
    b'"io.modelcontextprotocol/clientInfo":{"name":"benchmark","version":"0"}},'
)
_MCP_CALL = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"say","arguments":{"message":"%b"}}}\n'

PROVIDER = Target("provider, directly", ECHO, (_INITIALIZE,))
RELAY = Target("bare relay", [sys.executable, str(HERE / "peers" / "relay.py"), *ECHO], (_INITIALIZE,))
HOST = Target("gleitzeit-host", [sys.executable, "-m", "gleitzeit_host", "serve"])
_ECHO_SAY = _MCP_CALL.replace(b'"say"', b'"echo_say"')
LEGACY = Target("the same, MCP 2025-06-18", HOST.command, _MCP_GREETING, _ECHO_SAY)
MODERN = Target(
    "the same, MCP 2026-07-28", HOST.command, request=_ECHO_SAY.replace(b'"params":{', b'"params":{' + _MCP_META)
)
FASTMCP = Target(
    "FastMCP proxy",
    [sys.executable, str(HERE / "peers" / "fastmcp_proxy.py")],
    _MCP_GREETING,
    _MCP_CALL,
)
FASTMCP_MISSING = "not installed: pip install 'fastmcp>=3'"


def targets() -> list[Target]:
    """Return what there is to measure, FastMCP only where it is installed; end the program where the host is not."""
    if importlib.util.find_spec("gleitzeit_host") is None:
        sys.exit(f"gleitzeit_host is not installed for {sys.executable}: pip install {HERE.parent}")
    fastmcp = [FASTMCP] if importlib.util.find_spec("fastmcp") else []
    return [PROVIDER, RELAY, HOST, LEGACY, MODERN, *fastmcp]


class Connection:
    """A started target. Every call raises RuntimeError, with the end of its log, when it ends or answers wrongly."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                target.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env=_environment(folder),
                cwd=folder,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._write_to = self.process.stdin.fileno()
        self._read_from = self.process.stdout.fileno()
        self._rest = b""

    def greet(self) -> None:
        """Say what the target wants to hear first."""
        for message in self.target.greeting:
            self._write(json.dumps(message).encode() + b"\n")
            if "id" in message:
                self._read_line()

    def ask(self, request: bytes) -> bytes:
        """Send a line and return the one that comes back."""
        self._write(request)
        return self._read_line()

    def sequential(self, seconds: float, message: bytes, *, at_least: int) -> list[float]:
        """Call again and again, one at a time; return how many milliseconds each call took, sorted."""
        times: list[float] = []
        answers: list[bytes] = []
        clock = time.perf_counter
        with self._patience():
            end = clock() + seconds
            while len(times) < at_least or clock() < end:
                request = self.target.request % (len(times), message)
                start = clock()
                answer = self.ask(request)
                times.append((clock() - start) * 1000)
                answers.append(answer)
        self._check(answers, len(times), message)
        return sorted(times)

    def throughput(self, seconds: float, in_flight: int) -> float:
        """Keep as many calls in flight, each answer making room for the next call; return the answers a second."""
        message = b"hello"
        template = self.target.request.replace(b"%b", message)
        sent = answered = 0
        answers: list[bytes] = []
        with self._patience():
            start = now = time.perf_counter()
            end = start + seconds
            while now < end or answered < sent:
                if now < end:
                    free = in_flight - (sent - answered)
                    self._write(b"".join([template % number for number in range(sent, sent + free)]))
                    sent += free
                answers.append(self._read())
                answered += answers[-1].count(b"\n")
                now = time.perf_counter()
        self._check(b"".join(answers).splitlines(), sent, message)
        return answered / (now - start)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def _write(self, data: bytes) -> None:
        written = os.write(self._write_to, data)
        while written < len(data):  # a signal came
            written += os.write(self._write_to, memoryview(data)[written:])

    def _read(self) -> bytes:
        data = os.read(self._read_from, READ_SIZE)
        if not data:
            raise self._error("ended")
        return data

    def _read_line(self) -> bytes:
        chunks = [self._rest]
        while b"\n" not in chunks[-1]:
            chunks.append(self._read())
        line, _, self._rest = b"".join(chunks).partition(b"\n")
        return line

    def _check(self, lines: list[bytes], count: int, message: bytes) -> None:
        """Raise unless each request, from id 0 on, has one answer, and it is what the request said."""
        expected = message.decode()
        ids = []
        for line in lines:
            answer = json.loads(line)
            result = answer.get("result", {})
            if result.get("structuredContent", result).get("response") != expected:
                raise self._error(f"answered {line[:300].decode()}")
            ids.append(answer["id"])
        if sorted(ids) != list(range(count)):
            raise self._error(f"answered {len(ids)} of {count} requests, or one of them twice")

    def _error(self, what: str) -> RuntimeError:
        log = self._log.read_text(errors="replace").strip()
        ending = f"ends:\n{log[-2000:]}" if log else "is empty"
        return RuntimeError(f"{self.target.name} {what}; its log {ending}")

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """Bound what is inside, without a look at the clock before each read."""

        def give_up(_signal: int, _frame: FrameType | None) -> None:
            raise self._error(f"did not answer within {PATIENCE} s")

        signal.signal(signal.SIGALRM, give_up)
        signal.alarm(PATIENCE)
        try:
            yield
        finally:
            signal.alarm(0)


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment in which no configuration, state or provider of this machine's user is found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GLEITZEIT_", "XDG_"))}
    return {**kept, "HOME": str(folder)}


@contextlib.contextmanager
def connect(target: Target) -> Iterator[Connection]:
    """Start a target in an empty home folder, and end it."""
    with tempfile.TemporaryDirectory() as folder:
        connection = Connection(target, Path(folder))
        try:
            yield connection
        finally:
            connection.close()


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return rows as a table of text; a row may be shorter than the header."""
    filled = [row + [""] * (len(header) - len(row)) for row in rows]
    widths = [max(len(row[column]) for row in [header, *filled]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([f"{cells[0]:<{widths[0]}}", *padded]).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, filled)])
