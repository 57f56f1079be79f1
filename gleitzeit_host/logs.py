"""Logs: the host's own on stderr, each provider's stderr in a file. stdout belongs to the protocol."""

import collections
import contextlib
import fcntl
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logging.handlers import RotatingFileHandler

log = logging.getLogger("gleitzeit_host")

_FILE_SIZE = 5 * 1024 * 1024  # bytes, after which a provider's log is rotated; one old file is kept
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
        """Queue the record."""
        self._lines.append(self.format(record) + "\n")
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
        self._logs = logs
        self.last_line = ""
        self._rest = b""
        self._file: RotatingFileHandler | None = None
        self._usable = True

    def where(self) -> str:
        """Return the path of the file, for messages."""
        return self._file.baseFilename if self._file is not None else "it wrote nothing to stderr"

    def feed(self, data: bytes) -> None:
        """Take a chunk of stderr; whole lines are written, a very long one in pieces."""
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > 64 * 1024:
            lines.append(rest)
            rest = b""
        self._rest = rest
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip("\r")
            self.last_line = text or self.last_line
            self.write(text)

    def feed_end(self) -> None:
        """Write what came without a newline."""
        if self._rest:
            self.feed(b"\n")

    def write(self, line: str) -> None:
        """Write one line. A log that cannot be written is reported once and never stops a provider."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: %s", self.name, line)
        if self._file is None and self._usable:
            self._open()
        if self._file is not None:
            record = logging.LogRecord(self.name, logging.INFO, "", 0, line, None, None)
            self._file.handle(record)

    def _open(self) -> None:
        from logging.handlers import RotatingFileHandler  # noqa: PLC0415 - 20 ms that most runs never need

        class PrivateFile(RotatingFileHandler):
            def _open(self) -> Any:
                return open(
                    self.baseFilename,
                    self.mode,
                    encoding=self.encoding,
                    opener=lambda p, f: os.open(p, f, 0o600),
                )

        try:
            self._file = PrivateFile(
                self._logs.path(self.name),
                maxBytes=_FILE_SIZE,
                backupCount=1,
                encoding="utf-8",
                errors="replace",
            )
            self._file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        except OSError as error:
            self._usable = False
            log.warning("%s: its log cannot be written: %s", self.name, error)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
