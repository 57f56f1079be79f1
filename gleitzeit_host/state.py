"""What providers hand over by `notifications/state`: one file per configuration and provider, the last write wins."""

import os
from pathlib import Path

import msgspec
from msgspec import Raw

MAX_STATE = 1024 * 1024  # bytes


class StateFiles:
    """Reads and replaces state files. Every host with the same configuration shares them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, provider: str) -> Raw | None:
        """Return the provider's state, or None where there is none that can be read."""
        try:
            data = (self._folder / f"{provider}.json").read_bytes()
            return Raw(msgspec.json.encode(msgspec.json.decode(data)))
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def save(self, provider: str, state: bytes) -> None:
        """Replace the provider's state atomically and durably; blocks. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._folder / f".{provider}.{os.getpid()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(state)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._folder / f"{provider}.json")
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
