"""Descriptors as byte streams on the event loop, whatever they are: pipe, socket, terminal, file or /dev/null.

O_NONBLOCK belongs to the open file description, which a launcher shares with other programs: setting it on an
inherited descriptor breaks them. So pipes and terminals are opened anew, sockets are used with MSG_DONTWAIT, and what
can be neither (files, /dev/null, foreign pipes) is read and written by a thread.
"""

import asyncio
import contextlib
import errno
import fcntl
import functools
import os
import queue
import select
import socket
import stat
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

READ_SIZE = 64 * 1024  # malloc serves this without a system call
READ_SIZE_MAX = 1024 * 1024
PIPE_SIZE = 1024 * 1024  # bytes
HIGH_WATER = 1024 * 1024  # bytes waiting to be written at which a writer asks its source to pause
LOW_WATER = 256 * 1024


class Reader(Protocol):
    """Delivers what arrives; both pausing calls may be repeated."""

    def pause(self) -> None:
        """Deliver nothing for a while."""

    def resume(self) -> None:
        """Deliver again."""

    def close(self) -> None:
        """Deliver nothing any more."""


class Writer(Protocol):
    """Takes bytes and never blocks; `pending` is how many are not written yet."""

    pending: int

    def write(self, data: bytes) -> None:
        """Write, now or later."""

    async def flush(self) -> None:
        """Wait until everything is written, or nobody will read it."""

    def close(self) -> None:
        """Close the descriptor once everything is written."""


def open_reader(fd: int, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> Reader:
    """Read `fd`, which is closed at the end, with callbacks on the running loop; `on_end` comes once."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return SocketReader(fd, on_data, on_end)
    reopened = _reopen(fd, mode, os.O_RDONLY)
    return ThreadReader(fd, on_data, on_end) if reopened is None else PollReader(reopened, on_data, on_end)


def open_writer(fd: int, on_lost: Callable[[], None], on_pressure: Callable[[bool], None]) -> Writer:
    """Write to `fd`; `on_lost` tells once that nobody reads, `on_pressure` that the backlog is high, or low again."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        return SocketWriter(fd, on_lost, on_pressure)
    try:
        reopened = _reopen(fd, mode, os.O_WRONLY)
    except BrokenPipeError:
        asyncio.get_running_loop().call_soon(on_lost)
        reopened = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.close(fd)
        return ThreadWriter(reopened, on_lost, on_pressure)
    if reopened is None:
        return ThreadWriter(fd, on_lost, on_pressure)
    return PollWriter(reopened, on_lost, on_pressure)


def _reopen(fd: int, mode: int, flags: int) -> int | None:
    """Open the pipe or terminal behind `fd` as a non-blocking description of our own and close `fd`."""
    if not (stat.S_ISFIFO(mode) or os.isatty(fd)):
        return None
    try:
        own = os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO and flags == os.O_WRONLY:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from None
        return None  # another user's pipe, or no /proc
    os.close(fd)
    return own


def _enlarge(fd: int) -> None:
    """Let a pipe that was found full hold more: a large message then takes fewer turns of both its ends.

    Not from the start: Linux allows an unprivileged user 64 MiB of pipes in all, and many hosts run side by side.
    """
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # no pipe, or the user's share is used up: 64 KiB will do
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)


@functools.cache
def _keep_memory() -> None:
    """Have malloc keep what messages of some megabytes need.

    By default glibc gives such blocks back to the system at once; faulting them in again for the next message costs
    more than all else that is done with it. Larger blocks are still given back.
    """
    import ctypes  # noqa: PLC0415 - 4 ms, only with the first large message

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(trim_threshold, 32 * 1024 * 1024)
        mallopt(mmap_threshold, 4 * 1024 * 1024)


class _Pending:
    """Counts what a writer has not written yet, for those who wait for it or should write less."""

    def __init__(self, on_pressure: Callable[[bool], None]) -> None:
        self.pending = 0  # bytes
        self._on_pressure = on_pressure
        self._pressed = False
        self._waiting: list[asyncio.Future[None]] = []

    async def flush(self) -> None:
        """Wait until everything is written, or nobody will read it."""
        if self.pending:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future

    def _grew(self, size: int) -> None:
        self.pending += size
        if not self._pressed and self.pending > HIGH_WATER:
            self._pressed = True
            self._on_pressure(True)

    def _shrank(self, size: int) -> None:
        self.pending -= size
        if not self.pending:
            self._flushed()
        if self._pressed and self.pending < LOW_WATER:
            self._pressed = False
            self._on_pressure(False)

    def _flushed(self) -> None:
        """Nothing is pending, or it never will be written."""
        self.pending = 0
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class PollReader:
    """Reads a non-blocking descriptor when the loop says that it is readable."""

    def __init__(self, fd: int, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._fd = fd
        self._on_data = on_data
        self._on_end = on_end
        self._size = READ_SIZE
        self._enlarged = False
        self._paused = True
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self.resume()

    def pause(self) -> None:
        """Stop reading; what the other end writes stays in the pipe."""
        if not self._paused and not self._closed:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """Go on reading."""
        if self._paused and not self._closed:
            self._paused = False
            self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """Stop for good; `on_end` is not called."""
        if not self._closed:
            self.pause()
            self._closed = True
            self._release()

    def _release(self) -> None:
        os.close(self._fd)

    def _read(self, size: int) -> bytes:
        return os.read(self._fd, size)

    def _readable(self) -> None:
        try:
            data = self._read(self._size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # a terminal that hung up (EIO), a connection reset: the end, all the same
            data = b""
        if data:
            if len(data) == self._size:  # bulk: read more at a time, until a read is not full
                if not self._enlarged:
                    self._enlarged = True
                    _enlarge(self._fd)
                    _keep_memory()
                self._size = READ_SIZE_MAX
            else:
                self._size = READ_SIZE
            self._on_data(data)
        else:
            self.close()
            self._on_end()


class SocketReader(PollReader):
    """Reads an inherited socket without touching its description's flags."""

    def __init__(self, fd: int, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._socket = socket.socket(fileno=os.dup(fd))
        os.close(fd)
        super().__init__(self._socket.fileno(), on_data, on_end)

    def _release(self) -> None:
        self._socket.close()

    def _read(self, size: int) -> bytes:
        return self._socket.recv(size, socket.MSG_DONTWAIT)


class ThreadReader:
    """Reads in a thread what no loop can wait for. One chunk is under way at a time."""

    def __init__(self, fd: int, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._fd = fd
        self._on_data = on_data
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._may_read = threading.Event()
        self._held: bytes | None = None
        self._paused = False
        self._closed = False
        self._may_read.set()
        threading.Thread(target=self._run, name="stdin", daemon=True).start()

    def pause(self) -> None:
        """Deliver nothing until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Deliver what came in meanwhile and go on."""
        self._paused = False
        held, self._held = self._held, None
        if held is not None:
            self._loop.call_soon(self._deliver, held)

    def close(self) -> None:
        """Deliver nothing any more. The thread ends with its read, or with the process."""
        self._closed = True
        self._may_read.set()

    def _run(self) -> None:
        data = b"?"
        while data and not self._closed:
            self._may_read.wait()
            self._may_read.clear()
            try:
                data = os.read(self._fd, READ_SIZE)
            except OSError:
                data = b""
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody wants it
                self._loop.call_soon_threadsafe(self._deliver, data)

    def _deliver(self, data: bytes) -> None:
        if self._closed:
            return
        if self._paused:
            self._held = data
        elif data:
            self._on_data(data)
            self._may_read.set()
        else:
            self.close()
            self._on_end()


class PollWriter(_Pending):
    """Writes to a non-blocking descriptor; what it does not take waits for the loop to say that it is writable."""

    def __init__(self, fd: int, on_lost: Callable[[], None], on_pressure: Callable[[bool], None]) -> None:
        super().__init__(on_pressure)
        self._fd = fd
        self._on_lost = on_lost
        self._backlog: deque[bytes | memoryview] = deque()
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._closed = False
        self._enlarged = False
        self._watch = _watch_for_hang_up(fd, self._hung_up)

    def write(self, data: bytes) -> None:
        """Write now what the descriptor takes, the rest later."""
        if self._closed or self._closing:
            return
        if self._backlog:
            self._backlog.append(data)
            self._grew(len(data))
            return
        try:
            written = self._send(data)
        except OSError:
            written = self._try(data)  # which knows what to do about it
        if written < len(data) and not (self._closed or self._enlarged):
            self._enlarged = True
            _enlarge(self._fd)
            written += self._try(memoryview(data)[written:])
        if written < len(data) and not self._closed:
            self._backlog.append(memoryview(data)[written:])
            self._loop.add_writer(self._fd, self._writable)
            self._grew(len(data) - written)

    def close(self) -> None:
        """Close the descriptor once everything is written."""
        self._closing = True
        if not self._backlog:
            self._close()

    def abort(self) -> None:
        """Close the descriptor now."""
        self._close()

    def _send(self, data: bytes | memoryview) -> int:
        return os.write(self._fd, data)

    def _try(self, data: bytes | memoryview) -> int:
        try:
            return self._send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:  # the reader is gone, the device is full: nobody will get it
            self._lose()
            return 0

    def _writable(self) -> None:
        while self._backlog:
            data = self._backlog[0]
            written = self._try(data)
            if self._closed:
                return
            if written < len(data):
                self._backlog[0] = memoryview(data)[written:]
                self._shrank(written)
                return
            self._backlog.popleft()
            self._shrank(written)
        self._loop.remove_writer(self._fd)
        if self._closing:
            self._close()

    def _hung_up(self) -> None:
        if not self._closed:
            self._lose()

    def _lose(self) -> None:
        self._close()
        self._on_lost()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._backlog:
            self._loop.remove_writer(self._fd)
            self._backlog.clear()
        self._flushed()
        if self._watch is not None:
            self._loop.remove_reader(self._watch.fileno())
            self._watch.close()
        self._release()

    def _release(self) -> None:
        os.close(self._fd)


class SocketWriter(PollWriter):
    """Writes to an inherited socket without touching its description's flags."""

    def __init__(self, fd: int, on_lost: Callable[[], None], on_pressure: Callable[[bool], None]) -> None:
        self._socket = socket.socket(fileno=os.dup(fd))
        os.close(fd)
        super().__init__(self._socket.fileno(), on_lost, on_pressure)

    def _send(self, data: bytes | memoryview) -> int:
        return self._socket.send(data, socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0))

    def _release(self) -> None:
        self._socket.close()


def _watch_for_hang_up(fd: int, on_hang_up: Callable[[], None]) -> "select.epoll | None":
    """Have `on_hang_up` called when the reader goes away, even while nothing is being written.

    The loop can only wait for writability, which a healthy pipe has all the time; an epoll with no events of interest
    still reports errors and hang-ups, and is itself a descriptor that becomes readable.
    """
    if not hasattr(select, "epoll"):
        return None
    watch = select.epoll()
    try:
        watch.register(fd, 0)
    except OSError:
        watch.close()
        return None
    asyncio.get_running_loop().add_reader(watch.fileno(), on_hang_up)
    return watch


class ThreadWriter(_Pending):
    """Writes in a thread what no loop can wait for."""

    def __init__(self, fd: int, on_lost: Callable[[], None], on_pressure: Callable[[bool], None]) -> None:
        super().__init__(on_pressure)
        self._fd = fd
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lost = False
        threading.Thread(target=self._run, name="stdout", daemon=True).start()

    def write(self, data: bytes) -> None:
        """Queue the bytes for the thread."""
        if not self._lost:
            self._queue.put(data)
            self._grew(len(data))

    def close(self) -> None:
        """Close the descriptor once everything is written."""
        self._queue.put(None)

    def abort(self) -> None:
        """Write nothing more. The thread ends with its write, or with the process."""
        self._lost = True
        self._queue.put(None)

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._fd, view) :]
            except OSError:  # the reader is gone, the disk is full
                self._tell(self._lose)
                return
            self._tell(self._shrank, len(data))
        os.close(self._fd)

    def _tell(self, callback: Callable[..., None], *args: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self._loop.call_soon_threadsafe(callback, *args)

    def _lose(self) -> None:
        self._lost = True
        self._flushed()
        self._on_lost()
