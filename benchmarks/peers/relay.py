"""The floor: a process that passes bytes between its own pipes and a child's, and looks at nothing.

asyncio with uvloop, loop protocols, every chunk written on as it came: the least that a host written in Python can do.
The child's pipes are pipes, not the slower socket pairs that uvloop's own subprocesses get, and all four
hold 1 MiB, so that a large message takes few turns. There is no flow control: one message at a time fits in memory.
"""

import asyncio
import fcntl
import os
import subprocess
import sys
from typing import IO

import uvloop

PIPE_SIZE = 1024 * 1024  # bytes


class Splice(asyncio.Protocol):
    """Writes to one pipe what comes from another; `ended` when nothing more will come."""

    def __init__(self, output: asyncio.WriteTransport) -> None:
        self.output = output
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """Pass the chunk on."""
        self.output.write(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - nobody is left to be told
        """Pass the end on."""
        self.output.close()
        self.ended.set_result(None)


async def splice(source: IO[bytes], sink: IO[bytes]) -> Splice:
    """Start to pass on what comes from `source` to `sink`."""
    loop = asyncio.get_running_loop()
    output, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sink)
    _, protocol = await loop.connect_read_pipe(lambda: Splice(output), source)
    return protocol


async def main() -> None:
    """Relay until the child has closed its output."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)  # noqa: ASYNC220
    assert child.stdin is not None
    assert child.stdout is not None
    source, sink = os.fdopen(0, "rb", 0), os.fdopen(1, "wb", 0)
    for pipe in (source, child.stdin, child.stdout, sink):
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    await splice(source, child.stdin)
    up = await splice(child.stdout, sink)
    await up.ended
    child.wait()


uvloop.run(main())
