"""Starts a server between a client and itself, and records what both say: `tee.py FOLDER COMMAND…`.

The records are `FOLDER/PID/stdin` and `stdout`: a client may launch its server more than once.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO


def copy(source: int, target: BinaryIO, record: Path) -> None:
    with record.open("wb", buffering=0) as kept:
        while chunk := os.read(source, 65_536):
            kept.write(chunk)
            try:
                target.write(chunk)
                target.flush()
            except BrokenPipeError:
                break
    target.close()


def main(folder: Path, command: list[str]) -> int:
    folder = folder / str(os.getpid())
    folder.mkdir(parents=True)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        threading.Thread(target=copy, args=(0, server.stdin, folder / "stdin"), daemon=True).start()
        copy(server.stdout.fileno(), sys.stdout.buffer, folder / "stdout")
        return server.wait()


if __name__ == "__main__":
    os._exit(main(Path(sys.argv[1]), sys.argv[2:]))
