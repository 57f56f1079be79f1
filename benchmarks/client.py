"""The measuring client: raw pipes and JSON lines, with as little work of its own as there can be."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ECHO = [sys.executable, "-I", "-S", str(HERE.parent / "providers" / "echo" / "provider.py")]
HAS_FASTMCP = importlib.util.find_spec("fastmcp") is not None


@dataclass
class Target:
    """Something that answers `echo`: how to start it, what to say first, and how to ask."""

    name: str
    command: list[str]
    greeting: list[dict[str, Any]] = field(default_factory=list)  # each with an id is answered before the next
    method: str = "echo/say"
    envelope: bytes = b'{"jsonrpc":"2.0","id":%d,"method":"echo/say","params":{"message":"%b"}}\n'

    def request(self, id: int, message: bytes = b"hello") -> bytes:
        """Return one request as a line."""
        return self.envelope % (id, message)


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
_MCP_TOOL = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"say","arguments":{"message":"%b"}}}\n'

PROVIDER = Target("provider, directly", ECHO, [_INITIALIZE])
RELAY = Target("bare relay", [sys.executable, str(HERE / "peers" / "relay.py"), *ECHO], [_INITIALIZE])
HOST = Target("gleitzeit-host", [str(Path(sys.executable).with_name("gleitzeit-host")), "serve"])
FASTMCP = Target(
    "FastMCP proxy",
    [sys.executable, str(HERE / "peers" / "fastmcp_proxy.py")],
    [_MCP_INITIALIZE, {"jsonrpc": "2.0", "method": "notifications/initialized"}],
    envelope=_MCP_TOOL,
)


def targets() -> list[Target]:
    """Return what there is to measure; FastMCP only where it is installed."""
    if not HAS_FASTMCP:
        print("FastMCP is not installed, so its rows are missing: pip install fastmcp", file=sys.stderr)
    return [PROVIDER, RELAY, HOST, *([FASTMCP] if HAS_FASTMCP else [])]


class Connection:
    """A started target."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self.process = subprocess.Popen(
            target.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "HOME": str(folder), "XDG_STATE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
            cwd=folder,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._write_to = self.process.stdin.fileno()
        self._read_from = self.process.stdout.fileno()
        self._buffer = b""

    def greet(self) -> None:
        """Say what the target wants to hear first."""
        for message in self.target.greeting:
            self.write(json.dumps(message).encode() + b"\n")
            if "id" in message:
                self.read_line()

    def write(self, data: bytes) -> None:
        """Write all of it."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._write_to, view) :]

    def read_line(self) -> bytes:
        """Read one line."""
        parts = [self._buffer]
        while b"\n" not in parts[-1]:
            chunk = os.read(self._read_from, 1 << 20)
            if not chunk:
                raise EOFError(f"{self.target.name} ended")
            parts.append(chunk)
        line, _, self._buffer = b"".join(parts).partition(b"\n")
        return line

    def call(self, id: int, message: bytes = b"hello") -> float:
        """Call once and return the seconds it took."""
        request = self.target.request(id, message)
        start = time.perf_counter()
        self.write(request)
        line = self.read_line()
        took = time.perf_counter() - start
        if b'"error"' in line[:200]:
            raise RuntimeError(f"{self.target.name} answered {line[:300]!r}")
        return took

    def throughput(self, seconds: float, in_flight: int) -> float:
        """Keep calls in flight for a while and return how many were answered a second."""
        sent = answered = 0
        start = now = time.perf_counter()
        while now - start < seconds or answered < sent:
            free = in_flight - (sent - answered) if now - start < seconds else 0
            if free:
                self.write(b"".join(self.target.request(sent + number) for number in range(free)))
                sent += free
            answered += os.read(self._read_from, 1 << 16).count(b"\n")
            now = time.perf_counter()
        return answered / (now - start)

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


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
    """Return rows as a table of text."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(row: list[str]) -> str:
        first, *rest = (
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *(line(row) for row in rows)])
