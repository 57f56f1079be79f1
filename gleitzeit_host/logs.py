"""Logs: the host's own on stderr, each provider's stderr in a file. stdout belongs to the protocol."""

import collections
import contextlib
import fcntl
import logging
import os
import threading
import time
from pathlib import Path

from gleitzeit_host.terminal import visible

log = logging.getLogger("gleitzeit_host")

_FRAME = b" \t\r|+-"  # around the lines of an ExceptionGroup's traceback
_FILE_SIZE = 5 * 1024 * 1024  # bytes, after which a provider's log is rotated; one old file is kept
_PIECE = 64 * 1024  # bytes of an unfinished line that are held back
_BACKLOG = 1000  # records waiting for a stderr that nobody reads; the oldest go first


class StderrHandler(logging.Handler):
    """Writes to stderr from a thread: a launcher that never reads its child's stderr must not stop the host."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: collections.deque[str] = collections.deque(maxlen=_BACKLOG)
        self._wake = threading.Event()
        self._idle = threading.Event()
        self._thread: threading.Thread | None = None
        self._idle.set()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record; what providers say may not move the terminal's cursor or begin a line of its own."""
        text = self.format(record)
        lines = [text] if record.exc_info is None else text.split("\n")  # a traceback keeps its lines
        self._lines.append("".join(visible(line) + "\n" for line in lines))
        self._idle.clear()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="stderr", daemon=True)
            self._thread.start()
        self._wake.set()

    def drain(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until everything is written."""
        self._idle.wait(timeout)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._lines:
                data = memoryview(self._lines.popleft().encode("utf-8", "backslashreplace"))
                with contextlib.suppress(OSError):  # nobody reads it
                    while data:
                        data = data[os.write(2, data) :]
            self._idle.set()


def configure(level: str) -> StderrHandler:
    """Send the host's log to stderr from `level` up: debug, info, warning or error."""
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("gleitzeit-host: %(levelname)s: %(message)s"))
    logging.addLevelName(logging.WARNING, "warning")
    logging.addLevelName(logging.ERROR, "error")
    logging.addLevelName(logging.INFO, "info")
    logging.addLevelName(logging.DEBUG, "debug")
    log.handlers = [handler]
    log.setLevel(level.upper())
    log.propagate = False
    logging.raiseExceptions = False
    return handler


class ProviderLogs:
    """The folder of this host's provider logs: `logs/N` for the lowest N that no other running host holds."""

    def __init__(self, state_folder: Path) -> None:
        self._root = state_folder / "logs"
        self._lock: int | None = None
        self._folder: Path | None = None

    def path(self, provider: str) -> Path:
        """Return the provider's log file; its folder is made, and locked, with the first call."""
        if self._folder is None:
            self._folder = self._claim()
        return self._folder / f"{provider}.log"

    def _claim(self) -> Path:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        number = 0
        while True:
            lock = os.open(self._root / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                number += 1
                continue
            self._lock = lock  # held until the process ends
            folder = self._root / str(number)
            folder.mkdir(exist_ok=True, mode=0o700)
            return folder


class ProviderLog:
    """One provider's stderr: into its file and, at level debug, to the host's stderr with the name before it."""

    def __init__(self, name: str, logs: ProviderLogs) -> None:
        self.name = name
        self.last_line = ""
        self.secrets: list[bytes] = []  # values that are never written
        self._logs = logs
        self._rest = b""
        self._file: int | None = None
        self._size = 0
        self._usable = True

    def where(self) -> str:
        """Return the path of the file, for messages."""
        return "it wrote nothing to stderr" if self._file is None else str(self._logs.path(self.name))

    def feed(self, data: bytes) -> None:
        """Take a chunk of stderr; whole lines are written, a very long one in pieces."""
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > _PIECE:
            lines.append(rest)
            rest = b""
        self._rest = rest
        if lines:
            lines = self._write(lines)
            said = next((line for line in reversed(lines) if line.strip(_FRAME)), b"")
            if said:
                self.last_line = said.strip(_FRAME).decode("utf-8", "replace")

    def feed_end(self) -> None:
        """Write what came without a newline."""
        if self._rest:
            self.feed(b"\n")

    def write(self, line: str) -> None:
        """Write one line of the host's own about the provider."""
        self._write([line.encode("utf-8", "backslashreplace")])

    def _write(self, lines: list[bytes]) -> list[bytes]:
        for secret in self.secrets:
            lines = [line.replace(secret, b"***") for line in lines]
        if log.isEnabledFor(logging.DEBUG):
            for line in lines:
                log.debug("%s: %s", self.name, line.decode("utf-8", "replace"))
        stamp = time.strftime("%Y-%m-%d %H:%M:%S ").encode()
        data = b"".join([stamp + line + b"\n" for line in lines])
        try:
            if self._file is None or self._size + len(data) > _FILE_SIZE:
                self._open()
            if self._file is not None:
                self._size += os.write(self._file, data)
        except OSError as error:  # reported once, and it never stops a provider
            if self._usable:
                log.warning("%s: its log cannot be written: %s", self.name, error)
            self._usable = False
        return lines

    def _open(self) -> None:
        """Open the file, or go on with a new one and keep the full one beside it."""
        path = self._logs.path(self.name)
        if self._file is not None or (path.exists() and path.stat().st_size > _FILE_SIZE // 2):
            path.replace(path.with_suffix(".log.1"))
        self.close()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
