"""The floor: a process that passes lines between its own pipes and a child's, and looks at nothing.

asyncio with uvloop, loop protocols, bytes spliced as they come: the least that a host written in Python can do.
"""

import asyncio
import os
import sys
from typing import cast

import uvloop


class Child(asyncio.SubprocessProtocol):
    """Passes the child's output on."""

    def __init__(self, ended: asyncio.Future[None]) -> None:
        self.ended = ended
        self.output: asyncio.WriteTransport | None = None

    def pipe_data_received(self, fd: int, data: bytes) -> None:  # noqa: ARG002 - asyncio calls it
        """Write what the child wrote."""
        assert self.output is not None
        self.output.write(data)

    def process_exited(self) -> None:
        """End with the child."""
        self.ended.set_result(None)


class Input(asyncio.Protocol):
    """Passes our input on."""

    def __init__(self, child: asyncio.WriteTransport) -> None:
        self.child = child

    def data_received(self, data: bytes) -> None:
        """Write what came."""
        self.child.write(data)

    def eof_received(self) -> None:
        """End the child's input."""
        self.child.close()


async def main() -> None:
    """Relay until the child ends."""
    loop = asyncio.get_running_loop()
    child = Child(loop.create_future())
    transport, _ = await loop.subprocess_exec(lambda: child, *sys.argv[1:], stderr=None)
    output, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(1, "wb"))
    child.output = output
    child_input = cast(asyncio.WriteTransport, transport.get_pipe_transport(0))
    await loop.connect_read_pipe(lambda: Input(child_input), os.fdopen(0, "rb"))
    await child.ended


uvloop.run(main())
