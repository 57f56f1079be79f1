"""The warm interpreter of the process sandbox, and what runs the code. Standard library only, Python 3.11 or newer.

    provider        talks to the zygote over descriptor 0, and to each watcher over a socket of its own
    └── zygote      this program: single-threaded, everything imported; only forks, never runs foreign code
        └── watcher one per run: keeps the time, takes the output, kills and reaps whatever the run leaves behind
            └── run the code, in its own session, user (as root), folder and limits, and all that it starts

A watcher and its run are made ahead and wait for a request; each serves one. What the zygote is told, a byte each:

    b"w" with a socket attached: make a watcher that speaks over this socket
    b"s": settle what dead watchers have left behind, then answer b"s"
    end of input: the provider is gone; let the watchers finish, and exit

What a watcher says and hears, in this order. The end of its input at any time means: kill the run.

    → its pid (4 bytes, big-endian), once it is ready
    ← {"size": of the next part, "timeout": seconds} and a newline; then the task (`Run._perform`), `size` bytes of JSON
    → b"b": the run has begun
    → length of the next part (4 bytes); {"end", "exit_code", "cpu_seconds", "duration_ms", "stdout", "stderr",
      "report"}, the last three as [bytes that follow, bytes there were]; then these three

`end` is "exit", "timeout", "output" (more than `output_limit` bytes) or "cancelled". By then everything is cleaned up.
"""

import ast
import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import json
import linecache
import math
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Collection
from typing import Any, NoReturn

PRELOADED = (
    "argparse abc atexit base64 bisect calendar collections collections.abc copy csv dataclasses datetime decimal "
    "difflib enum fractions functools glob hashlib heapq html inspect itertools logging math numbers operator pathlib "
    "pprint queue random re shutil statistics string subprocess textwrap timeit typing unicodedata urllib.parse uuid zlib"
).split()
PREFIX = "gleitzeit-python-"  # of the folder that holds a zygote's working folders
FIRST_UID = 0x70000000  # a watcher's pid is added; no distribution hands out user ids from here on
RESERVE = 64 << 20  # bytes beyond the memory limit, for telling that it was reached
TEXT = 64 << 10  # characters of a message, traceback or repr that are kept
DEPTH = 100  # containers in containers that a result may have
LARGEST = 10**4300  # of ints: what decoders take, CPython's among them
VALUE = " value"  # no name that code can have
REPORT_HEAD = 1 << 20  # bytes of a report beside the result
PIPE_READS = 32  # of 64 KiB, more than a pipe can hold

Limits = dict[
    str, int
]  # memory, files, file_size, processes, cpu, output_kept, output, result: bytes, seconds or numbers

LIBC = ctypes.CDLL(None, use_errno=True)
# prctl(2)
SET_KEEPCAPS, SET_DUMPABLE, SET_CHILD_SUBREAPER, SET_NO_NEW_PRIVS, CAP_AMBIENT = 8, 4, 36, 38, 47
CAP_DAC_READ_SEARCH = 2


# ---- processes


def prctl(*arguments: int) -> None:
    """Call prctl(2); does nothing where there is none."""
    if sys.platform == "linux" and LIBC.prctl(*arguments, *(0,) * (5 - len(arguments))):
        raise OSError(ctypes.get_errno(), f"prctl{arguments}")


def hide_from_other_runs() -> None:
    """Keep processes of the same user from tracing this one, and from opening its descriptors through /proc."""
    prctl(SET_DUMPABLE, 0)


def children() -> list[int]:
    """Return the pids of this process's children, zombies included. Without /proc: none."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children") as file:
                found += map(int, file.read().split())
    return found


def kill_children(keep: Collection[int] = ()) -> None:
    """Kill and reap every child but those in `keep`, and, in a subreaper, everything below them."""
    while victims := [pid for pid in children() if pid not in keep]:
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in victims:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def open_wakeup() -> int:
    """Return a descriptor that becomes readable when a child ends."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def drain(descriptor: int) -> None:
    """Empty a wakeup descriptor."""
    with contextlib.suppress(BlockingIOError):
        while len(os.read(descriptor, 4096)) == 4096:
            pass


# ---- folders


def remove_folder(path: str) -> None:
    """Remove a folder and all in it, however deep, long or unreadable. Follows no link. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.chmod(path, 0o700)
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            while names := os.listdir(top):
                for name in names:
                    if not _unlink(name, top):
                        _hollow(name, top)
        finally:
            os.close(top)
        os.rmdir(path)


def _unlink(name: str, folder: int) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except (IsADirectoryError, PermissionError):  # Linux and macOS say it differently
        return False
    return True


def _hollow(name: str, top: int) -> None:
    """Remove a folder whose own folders are moved up: the path never grows, and nothing recurses."""
    os.chmod(name, 0o700, dir_fd=top)
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        for child in os.listdir(folder):
            if not _unlink(child, folder):
                os.chmod(child, 0o700, dir_fd=folder)
                os.rename(child, os.urandom(16).hex(), src_dir_fd=folder, dst_dir_fd=top)
    finally:
        os.close(folder)
    os.rmdir(name, dir_fd=top)


def make_base() -> str:
    """Make the folder of this zygote's working folders, and remove those whose owners are gone.

    It is locked for as long as the zygote or a watcher lives: a folder that can be locked is nobody's.
    """
    parent = tempfile.gettempdir()
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if name.startswith(PREFIX) and (descriptor := _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
            with contextlib.suppress(OSError):
                remove_folder(path)
            os.close(descriptor)
    while True:
        base = tempfile.mkdtemp(prefix=PREFIX)
        os.chmod(base, 0o711)  # a run has a user of its own, and must reach its folder
        if _lock(base, fcntl.LOCK_EX) is not None:
            return base


def _lock(path: str, how: int) -> int | None:
    """Lock a folder of ours; None if it is locked, gone, or not ours."""
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if os.fstat(descriptor).st_uid == os.geteuid():
            fcntl.flock(descriptor, how)
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return descriptor
    if descriptor is not None:
        os.close(descriptor)
    return None


# ---- users


class User:
    """Whom a run works as. Started by root, a run gets a user id of its own, so that it can signal nobody else."""

    def __init__(self, own: bool, reads: bool = False) -> None:
        self.own = own
        self.reads = reads  # keep the right to read every file: the interpreter is not readable otherwise

    def assume(self, uid: int) -> None:
        """Become this user for good; raises OSError."""
        if not self.own:
            return
        if self.reads:
            prctl(SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        if self.reads:
            bit = 1 << CAP_DAC_READ_SEARCH
            version_and_pid, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
            if LIBC.capset(version_and_pid, data):
                raise OSError(ctypes.get_errno(), "capset")
            prctl(CAP_AMBIENT, 2, CAP_DAC_READ_SEARCH)

    def can_work(self, base: str) -> bool:
        """Try in a process whether such a user reaches the interpreter's files and the working folder."""
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError):
                self.assume(FIRST_UID)
                os.stat(os.path.join(base, "."))
                for path in filter(None, sys.path):
                    if not path.endswith(".zip"):
                        os.listdir(path)
                os._exit(0)
            os._exit(1)
        return os.waitpid(pid, 0)[1] == 0


def choose_user(base: str) -> User:
    """Return the least powerful user that works."""
    if os.getuid() != 0:
        return User(own=False)
    for user in (User(own=True), User(own=True, reads=True)):
        if user.can_work(base):
            return user
    print("runs cannot be given a user id of their own here: they share the provider's", file=sys.stderr)
    return User(own=False)


def tasks_of_user() -> int:
    """Return how many processes and threads of this user there are: the limit on processes counts them all."""
    count, uid = 0, os.getuid()
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdecimal():
            with contextlib.suppress(OSError):
                status = os.stat(f"/proc/{name}/task")
                count += status.st_nlink - 2 if status.st_uid == uid else 0
    return count


# ---- the zygote


class Zygote:
    """Forks watchers, and cleans up after those that were killed."""

    def __init__(self, control: socket.socket, limits: Limits) -> None:
        self._control = control
        self._limits = limits
        self._base = make_base()
        self._user = choose_user(self._base)
        self._watchers: set[int] = set()

    def serve(self) -> None:
        """Do what the provider says until it is gone."""
        wakeup = open_wakeup()
        poll = select.poll()
        poll.register(wakeup, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        serving = True
        while serving or self._watchers:  # without a provider the watchers finish by themselves
            for descriptor, _ in poll.poll():
                if descriptor == wakeup:
                    drain(wakeup)
                    self._settle()
                elif not self._obey():
                    serving = False
                    poll.unregister(self._control)
        remove_folder(self._base)

    def _obey(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        except ConnectionError:
            return False
        if data == b"w":
            self._make_watcher(descriptors[0])
        elif data == b"s":
            self._settle()
            self._control.sendall(b"s")
        return bool(data)

    def _make_watcher(self, descriptor: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # the provider sees its socket close
            print(f"no watcher: {error}", file=sys.stderr)
        else:
            if pid == 0:
                self._control.close()
                Watcher(socket.socket(fileno=descriptor), self._base, self._user, self._limits).main()
            self._watchers.add(pid)
        os.close(descriptor)

    def _settle(self) -> None:
        """Reap watchers; of one that was killed, kill the run, which became a child of this process, too."""
        killed = []
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if pid in self._watchers:
                    self._watchers.remove(pid)
                    if status != 0:
                        killed.append(pid)
        if killed:
            kill_children(self._watchers)
        for pid in killed:
            discard(os.path.join(self._base, str(pid)))


def discard(folder: str) -> None:
    try:
        remove_folder(folder)
    except OSError as error:  # what is left goes with the base, or at the next start
        print(f"{folder} is not removed: {error}", file=sys.stderr)


# ---- a watcher


class Output:
    """What one descriptor of a run yields: the first bytes of it, and how many there were."""

    def __init__(self) -> None:
        self.kept = bytearray()
        self.total = 0
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def take(self, keep: int) -> bool:
        """Read what is there, up to 64 KiB; return whether there was anything."""
        try:
            data = os.read(self.reader, 1 << 16)
        except BlockingIOError:
            return False
        self.total += len(data)
        self.kept += data[: max(0, keep - len(self.kept))]
        return bool(data)


class Watcher:
    """Watches over one run."""

    def __init__(self, connection: socket.socket, base: str, user: User, limits: Limits) -> None:
        self._connection = connection
        self._folder = os.path.join(base, str(os.getpid()))
        self._user = user
        self._limits = limits
        self._ended: tuple[int, float] | None = None  # exit code and CPU seconds of the code's own process

    def main(self) -> NoReturn:
        """Serve one request and exit; with a status other than 0, the zygote cleans up."""
        status = 1
        try:
            self._prepare()
            self._serve()
            status = 0
        except BrokenPipeError:
            self._clean_up()  # the provider is gone
        except BaseException:  # noqa: BLE001 - nothing may return into the zygote's code
            traceback.print_exc()
        finally:
            os._exit(status)

    def _prepare(self) -> None:
        """Make the run, which waits for its task, and say so."""
        prctl(SET_CHILD_SUBREAPER, 1)
        hide_from_other_runs()
        self._wakeup = open_wakeup()
        os.mkdir(self._folder, 0o700)
        self._outputs = Output(), Output()
        self._report = mmap.mmap(-1, self._limits["result"] + REPORT_HEAD)
        task, self._task = os.pipe()
        uid = FIRST_UID + os.getpid()
        if self._user.own:
            os.chown(self._folder, uid, uid)
            for output in self._outputs:
                os.fchown(output.writer, uid, uid)  # so that it can be opened as /dev/stdout
        self._run = os.fork()
        if self._run == 0:
            outputs = self._outputs[0].writer, self._outputs[1].writer
            Run(task, outputs, self._report, self._folder, self._limits).main(self._user, uid)
        for descriptor in (task, *(output.writer for output in self._outputs)):
            os.close(descriptor)
        self._connection.sendall(struct.pack(">I", os.getpid()))

    def _serve(self) -> None:
        with self._connection.makefile("rb") as stream:
            request = stream.readline()
            size = json.loads(request)["size"] if request.endswith(b"\n") else 0
            task = stream.read(size)
        if len(task) < size or not request or self._reap():
            self._clean_up()
            os._exit(0 if self._ended is None else 1)
        self._connection.sendall(b"b")
        begun = time.monotonic()
        self._hand_over(request + task)
        end = self._follow(begun + json.loads(request)["timeout"])
        duration = time.monotonic() - begun
        self._clean_up()
        self._tell(end, duration)

    def _hand_over(self, task: bytes) -> None:
        view = memoryview(task)
        with contextlib.suppress(BrokenPipeError):  # a run that cannot hold it ends, which `_follow` sees
            while view:
                view = view[os.write(self._task, view) :]
        os.close(self._task)

    def _follow(self, deadline: float) -> str:
        """Take the output until the code's own process ends, or has to; return which."""
        poll = select.poll()
        outputs = {output.reader: output for output in self._outputs}
        for descriptor in (self._wakeup, self._connection.fileno(), *outputs):
            poll.register(descriptor, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1000):
                if descriptor == self._wakeup:
                    drain(descriptor)
                    if self._reap():
                        return "exit"
                elif descriptor not in outputs:
                    return "cancelled"
                elif not outputs[descriptor].take(self._limits["output_kept"]):
                    poll.unregister(descriptor)
            if sum(output.total for output in self._outputs) > self._limits["output"]:
                return "output"
        return "timeout"

    def _reap(self) -> bool:
        """Reap what has ended, orphans included; return whether the code's own process is among it."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.wait4(-1, os.WNOHANG))[0]:
                pid, status, used = ended
                if pid == self._run:
                    self._ended = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        return self._ended is not None

    def _clean_up(self) -> None:
        """Kill and reap all that the run started, take the rest of its output, and remove its folder."""
        with contextlib.suppress(OSError):
            os.killpg(self._run, signal.SIGKILL)
        kill_children()
        if self._ended is None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._run, 0)
        for output in self._outputs:
            for _ in range(PIPE_READS):
                if not output.take(self._limits["output_kept"]):
                    break
        discard(self._folder)

    def _tell(self, end: str, duration: float) -> None:
        (size,) = struct.unpack(">Q", self._report[:8])
        report = self._report[8 : 8 + min(size, len(self._report))]
        exit_code, cpu_seconds = self._ended or (None, None)
        told = {"end": end, "exit_code": exit_code, "cpu_seconds": cpu_seconds, "duration_ms": duration * 1000}
        for name, output in zip(("stdout", "stderr"), self._outputs, strict=True):
            told[name] = [len(output.kept), output.total]
        told["report"] = [len(report), size]
        head = json.dumps(told).encode()
        self._connection.sendall(struct.pack(">I", len(head)) + head)
        for part in (*(output.kept for output in self._outputs), report):
            self._connection.sendall(part)


# ---- a run


class Run:
    """The process that the code runs in. Nothing in it is to be trusted once the code has begun."""

    def __init__(self, task: int, outputs: tuple[int, int], report: mmap.mmap, folder: str, limits: Limits) -> None:
        self._task = task
        self._outputs = outputs
        self._report = report
        self._folder = folder
        self._limits = limits
        self._own = False
        self._pid = os.getpid()

    def main(self, user: User, uid: int) -> NoReturn:
        """Wait for the task, perform it and report."""
        try:
            self._settle_in(user, uid)
            with open(self._task, "rb") as file:
                request = file.readline()
                task = file.read()
            if request:
                self._limit_time(json.loads(request)["timeout"])
                self._perform(json.loads(task))
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing may return into the watcher's code
            traceback.print_exc()
        finally:
            os._exit(1)

    # ---- what the code finds

    def _settle_in(self, user: User, uid: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.umask(0o077)
        os.chdir(self._folder)
        null = os.open(os.devnull, os.O_RDWR)
        for number, descriptor in enumerate((null, *self._outputs)):
            os.dup2(descriptor, number)
        for name in os.listdir("/dev/fd"):
            if int(name) > 2 and int(name) != self._task:
                with contextlib.suppress(OSError):  # the listing's own
                    os.close(int(name))
        prctl(SET_NO_NEW_PRIVS, 1)
        limits = self._limits
        limit(resource.RLIMIT_CORE, 0)
        limit(resource.RLIMIT_NOFILE, limits["files"])
        limit(resource.RLIMIT_FSIZE, limits["file_size"])
        limit(resource.RLIMIT_AS, limits["memory"], limits["memory"] + RESERVE)
        self._own = user.own
        if user.own:
            limit(resource.RLIMIT_NPROC, limits["processes"])
        user.assume(uid)
        hide_from_other_runs()
        self._furnish()

    def _furnish(self) -> None:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        os.environ.clear()
        os.environ.update(kept, HOME=self._folder, TMPDIR=self._folder)
        tempfile.tempdir = None  # it was found in the zygote's environment
        sys.stdin = sys.__stdin__ = open(0, closefd=False)
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            stream = io.TextIOWrapper(
                Unbuffered(descriptor, "w", closefd=False), "utf-8", "backslashreplace", write_through=True
            )
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)

    def _limit_time(self, timeout: float) -> None:
        seconds = self._limits["cpu"] or int(timeout) * (os.cpu_count() or 1) + 2
        limit(resource.RLIMIT_CPU, seconds, seconds + 1)
        if not self._own:
            limit(resource.RLIMIT_NPROC, tasks_of_user() + self._limits["processes"])

    # ---- what becomes of it

    def _perform(self, task: dict[str, Any]) -> None:
        """Do a task: {"mode": "execute", code, filename, context, args} or {"mode": "check", code}."""
        error, is_repr = None, False
        if task["mode"] == "check":
            result = json.dumps(check(task["code"]))
        else:
            value, error = self._execute(task)
            try:
                result, is_repr = encode(value)
            except MemoryError as raised:
                result, error = "null", error or describe(raised, task["filename"], self._limits)
        data = result.encode()
        if len(data) > self._limits["result"]:
            excess = f"The result has {len(data)} bytes as JSON, {self._limits['result']} are allowed (result_mb)"
            data, error = b"null", error or {"type": "ResultTooLarge", "message": excess, "traceback": ""}
        self._send(json.dumps({"error": error, "is_repr": is_repr}, ensure_ascii=False).encode() + b"\n" + data)

    def _send(self, data: bytes) -> None:
        self._report[8 : 8 + len(data)] = data
        self._report[:8] = struct.pack(">Q", len(data))

    def _execute(self, task: dict[str, Any]) -> tuple[Any, dict[str, str] | None]:
        """Run the code; return the value of `result`, or else of the last expression, and the error."""
        code, filename = task["code"], task["filename"]
        linecache.cache[filename] = len(code), None, code.splitlines(keepends=True), filename
        sys.argv = [filename]
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        names = module.__dict__
        names |= {**task["args"], "context": task["context"]}
        error = None
        try:
            exec(compile_with_value(code, filename), names)  # noqa: S102 - what this program is for
        except BaseException as raised:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are outcomes, too
            error = raised
        if os.getpid() != self._pid:
            end_fork(error)
        if error is None or isinstance(error, SystemExit):
            finish_threads()
        value = names.pop(VALUE, None)
        return names.get("result", value), describe(error, filename, self._limits)


class Unbuffered(io.FileIO):
    """A pipe that takes everything at once: what was printed is out, whatever becomes of the process."""

    def write(self, data: Any, /) -> int:
        """Write all of it, interrupted by signal handlers or not."""
        view = memoryview(data).cast("B")
        left = view
        while left:
            left = left[super().write(left) or 0 :]
        return len(view)


def limit(which: int, soft: int, hard: int | None = None) -> None:
    """Lower a resource limit, and what it may be raised to again."""
    highest = resource.getrlimit(which)[1]
    wanted = soft, soft if hard is None else hard
    if highest != resource.RLIM_INFINITY:
        wanted = min(wanted[0], highest), min(wanted[1], highest)
    if sys.platform != "darwin" or which != resource.RLIMIT_AS:  # which macOS does not have
        resource.setrlimit(which, wanted)


def compile_with_value(code: str, filename: str) -> types.CodeType:
    """Compile a program whose last statement, where it is an expression, leaves its value in `VALUE`."""
    tree = ast.parse(code, filename)
    if tree.body and isinstance(last := tree.body[-1], ast.Expr):
        target = ast.copy_location(ast.Name(VALUE, ast.Store()), last)
        tree.body[-1] = ast.copy_location(ast.Assign([target], last.value), last)
    return compile(tree, filename, "exec", dont_inherit=True)


def finish_threads() -> None:
    """Do what an interpreter does at its end: wait for threads, and call what asked for it."""
    try:
        threading._shutdown()  # noqa: SLF001 - thread pools wait for this very call
        atexit._run_exitfuncs()  # noqa: SLF001 - the only way without ending the interpreter
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()


def end_fork(error: BaseException | None) -> NoReturn:
    """End a process that the code has forked and that has come to the code's end, as an interpreter would."""
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
        status = 1
    os._exit(status & 0xFF)


def describe(error: BaseException | None, filename: str, limits: Limits) -> dict[str, str] | None:
    """Return {type, message, traceback} of what the code raised; None for a clean exit."""
    if error is None:
        return None
    if isinstance(error, SystemExit):
        if error.code is None or error.code == 0:
            return None
        if not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    if isinstance(error, MemoryError) and sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)
    message = text_of(str, error)
    if isinstance(error, MemoryError) and not message:
        message = f"The code needed more memory than the {limits['memory'] >> 20} MiB allowed (memory_mb)"
    shown = traceback.TracebackException.from_exception(error, compact=True)
    keep_frames(shown, filename)
    return {"type": type(error).__name__, "message": message, "traceback": cut("".join(shown.format()))}


def keep_frames(shown: traceback.TracebackException, filename: str) -> None:
    """Leave only the frames of the code's own file, in chained and grouped exceptions, too."""
    pending: list[traceback.TracebackException | None] = [shown]
    while pending:
        if (one := pending.pop()) is not None:
            one.stack[:] = [frame for frame in one.stack if frame.filename == filename]
            pending += [one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ())]


def encode(value: Any) -> tuple[str, bool]:
    """Return a value as JSON, or its repr as a JSON string and True."""
    if is_json(value):
        with contextlib.suppress(ValueError):  # unpaired surrogates
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            text.encode()
            return text, False
    return json.dumps(text_of(repr, value), ensure_ascii=False), True


def is_json(value: Any, depth: int = DEPTH) -> bool:
    """Whether JSON can hold a value and give it back as what it is."""
    if value is None or isinstance(value, (bool, str)):
        return True
    if isinstance(value, int):
        return -LARGEST < value < LARGEST
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(key, str) and is_json(item, depth - 1) for key, item in value.items())
    return isinstance(value, list) and depth > 0 and all(is_json(item, depth - 1) for item in value)


def text_of(how: Callable[[Any], str], value: Any) -> str:
    """Return str or repr of anything, or what came of trying."""
    try:
        return cut(how(value))
    except BaseException as error:  # noqa: BLE001 - it is the code's own
        return f"<{type(value).__name__} whose {how.__name__} raised {type(error).__name__}>"


def cut(text: str) -> str:
    """Shorten a text in the middle, and replace what UTF-8 cannot hold."""
    if len(text) > TEXT:
        text = f"{text[: TEXT // 2]}\n… {len(text) - TEXT} characters …\n{text[-TEXT // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode()


def check(code: str) -> list[dict[str, Any]]:
    """Compile without running; return the errors as {line, column, message}, counted from 1."""
    warnings.simplefilter("ignore")
    if (position := code.find("\0")) >= 0:
        line, column = code.count("\n", 0, position) + 1, position - code.rfind("\n", 0, position)
        return [{"line": line, "column": column, "message": "source code cannot contain null characters"}]
    try:
        compile(code, "<code>", "exec", dont_inherit=True)
    except SyntaxError as error:
        line, column = max(error.lineno or 1, 1), max(error.offset or 1, 1)
        return [{"line": line, "column": column, "message": cut(error.msg)}]
    except (RecursionError, MemoryError, OverflowError, ValueError) as error:
        return [
            {"line": 1, "column": 1, "message": f"it cannot be compiled: {text_of(str, error) or type(error).__name__}"}
        ]
    return []


def main() -> None:
    """Serve the provider at descriptor 0; the argument is the limits as JSON."""
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    prctl(SET_CHILD_SUBREAPER, 1)
    hide_from_other_runs()
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the collector writes into what it looks at, and what is written is no longer shared
    Zygote(control, json.loads(sys.argv[1])).serve()


if __name__ == "__main__":
    main()
