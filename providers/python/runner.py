# ruff: noqa: PTH101, PTH102, PTH106, PTH116, PTH118, PTH120, PTH123, PTH208 - by descriptor, and without imports
"""The warm interpreter of the process sandbox. Standard library only, Python 3.11 or newer.

    provider        talks to the zygote over descriptor 0, and to each watcher over a socket of its own
    └── zygote      this program: single-threaded, everything imported; it only forks, and runs no foreign code
        └── watcher one for each run at a time: keeps the time, takes the output, kills and reaps what a run leaves
            └── run a fresh fork for each: the code, in its own session, user (as root), folder and limits

A watcher makes the next run ahead, so that it only waits for its task. What the zygote is told, a byte each:

    b"w", with a socket: make a watcher that speaks over this socket
    b"s", with a socket: settle what dead watchers have left behind, then say b"s" there
    end of input: the provider is gone; wait for the watchers, which notice it themselves, and exit

A watcher first says its pid (4 bytes, big-endian). Then, for each run:

    ← {"size": of the task, "timeout": seconds} and a newline, and the task (see `execution`), `size` bytes of JSON
    → length of the next part (4 bytes); {"end", "exit_code", "cpu_seconds", "duration_ms", "stdout", "stderr",
      "report"}, the last three as [bytes that follow, bytes there were]; then these three. All is cleaned up by now.
    end of input, at any time: the run is killed, and the watcher exits

`end` is "exit", "timeout", "output" (there was more than allowed) or "cancelled".
"""

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Collection
from typing import BinaryIO, NoReturn

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))  # which an isolated interpreter leaves out
import execution

PRELOADED = """
    base64 collections.abc copy dataclasses datetime decimal functools itertools math random re statistics string
    textwrap typing
"""
PREFIX = "gleitzeit-python-"  # of the folder that holds a zygote's working folders
FIRST_UID = 0x70000000  # a run's pid is added; nobody hands out user ids from here on
RESERVE = 64 << 20  # bytes beyond the memory limit, for telling that it was reached
REPORT_HEAD = 1 << 20  # bytes of a report beside the result
PIPE_READS = 32  # of 64 KiB: more than a pipe can hold
FILES = 64  # descriptors that a watcher may have open
NICE = 5  # of runs: what watches over them goes before
ATTEMPTS = 3  # at a task, when the process that waited for it was killed
COUNT_AGE = 30.0  # seconds for which a count of the user's processes is good

PROCESSORS = os.cpu_count() or 1
LIBC = ctypes.CDLL(None, use_errno=True)
SET_DUMPABLE, SET_KEEPCAPS, SET_CHILD_SUBREAPER, SET_NO_NEW_PRIVS, CAP_AMBIENT = 4, 8, 36, 38, 47  # of prctl(2)
CAP_DAC_READ_SEARCH = 2
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446  # system calls, the same on every architecture
LANDLOCK_SCOPE_SIGNAL = 1 << 1

Limits = dict[str, int]  # as `sandbox.Limits` has them


# ---- processes


def prctl(*arguments: int) -> None:
    """Call prctl where there is one."""
    if sys.platform == "linux" and LIBC.prctl(*arguments, *(0,) * (5 - len(arguments))):
        raise OSError(ctypes.get_errno(), f"prctl{arguments}")


def adopt_orphans() -> None:
    """Become the parent of everything below that is orphaned."""
    prctl(SET_CHILD_SUBREAPER, 1)


def hide() -> None:
    """Keep processes of the same user from tracing this one, and from opening its descriptors through /proc."""
    prctl(SET_DUMPABLE, 0)


def fence() -> None:
    """Let this process, and what it starts, signal and trace nothing else; without Linux 6.12 it does nothing."""
    if sys.platform == "linux":
        attributes = (ctypes.c_uint64 * 3)(0, 0, LANDLOCK_SCOPE_SIGNAL)  # struct landlock_ruleset_attr
        ruleset = LIBC.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.sizeof(attributes), 0)
        if ruleset >= 0:
            LIBC.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
            os.close(ruleset)


def children(pid: int | str = "self") -> list[int]:
    """Return the pids of a process's children, zombies included; none where there is no /proc."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def kill_children(keep: Collection[int] = ()) -> None:
    """Kill and reap every child but those in `keep`, and, having adopted the orphans, everything below them."""
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


def drain(wakeup: int) -> None:
    """Make a wakeup descriptor unreadable."""
    with contextlib.suppress(BlockingIOError):
        while len(os.read(wakeup, 4096)) == 4096:
            pass


def limit(which: int, soft: int, hard: int | None = None) -> None:
    """Lower a resource limit, and what it may be raised to again."""
    wanted = [soft, soft if hard is None else hard]
    highest = resource.getrlimit(which)[1]
    if highest != resource.RLIM_INFINITY:
        wanted = [min(value, highest) for value in wanted]
    if sys.platform != "darwin" or which != resource.RLIMIT_AS:  # which macOS refuses
        resource.setrlimit(which, (wanted[0], wanted[1]))


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
    """Remove a folder after moving the folders in it up: no path grows, and nothing recurses."""
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


def discard(folder: str) -> None:
    """Remove a folder, or say why not: the next zygote tries again."""
    try:
        remove_folder(folder)
    except OSError as error:
        print(f"{folder} is not removed: {error}", file=sys.stderr)  # noqa: T201 - the provider's log


def remove_abandoned() -> None:
    """Remove the folders of zygotes that are gone with all their watchers."""
    parent = tempfile.gettempdir()
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if name.startswith(PREFIX) and (descriptor := _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
            discard(path)
            os.close(descriptor)


def make_base() -> str:
    """Make the folder of this zygote's working folders; it is locked for as long as the zygote or a watcher lives."""
    remove_abandoned()
    while True:
        base = tempfile.mkdtemp(prefix=PREFIX)
        os.chmod(base, 0o711)  # noqa: S103 - a run with a user of its own must get through to its folder
        if _lock(base, fcntl.LOCK_EX) is not None:
            return base


def _lock(path: str, how: int) -> int | None:
    """Lock a folder of this user; None if it is locked, gone or somebody else's."""
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
    """Whom runs work as: started by root, each run has a user id of its own, and can signal nobody else."""

    def __init__(self, *, own: bool, reads: bool = False) -> None:
        self.own = own
        self._reads = reads  # keeps root's right to read every file: it does not reach the interpreter otherwise
        bit = 1 << CAP_DAC_READ_SEARCH
        self._header, self._sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(bit, bit, bit)

    def assume(self, uid: int) -> None:
        """Become such a user for good; raises OSError."""
        if self._reads:
            prctl(SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        if self._reads:
            if LIBC.capset(self._header, self._sets):
                raise OSError(ctypes.get_errno(), "capset")
            prctl(CAP_AMBIENT, 2, CAP_DAC_READ_SEARCH)

    def can_work(self, base: str) -> bool:
        """Try in a process whether such a user reaches the interpreter's files and the working folders."""
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self.assume(FIRST_UID)
                os.stat(os.path.join(base, "."))
                for path in sys.path:
                    if not path.endswith(".zip"):
                        os.listdir(path)
                status = 0
            finally:  # whatever is missing here
                os._exit(status)
        return os.waitpid(pid, 0)[1] == 0


def choose_user(base: str) -> User:
    """Return the least powerful user that works."""
    if os.getuid() == 0:
        for user in (User(own=True), User(own=True, reads=True)):
            if user.can_work(base):
                return user
        print("runs cannot have a user of their own here: they are root, too", file=sys.stderr)  # noqa: T201
    return User(own=False)


def count_tasks() -> int:
    """Return how many processes and threads this user has: the limit on processes counts them all. Raises OSError."""
    count, uid = 0, os.getuid()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended
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
        while serving or self._watchers:
            for descriptor, _ in poll.poll():
                if descriptor == wakeup:
                    drain(wakeup)
                    self._settle()
                elif not self._obey():
                    serving = False
                    poll.unregister(self._control)
        discard(self._base)

    def _obey(self) -> bool:
        try:
            order, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        except ConnectionError:
            return False
        if order == b"w":
            self._make_watcher(descriptors[0])
        elif order == b"s":
            self._settle()
            with socket.socket(fileno=descriptors[0]) as asker, contextlib.suppress(ConnectionError):
                asker.sendall(b"s")
        return bool(order)

    def _make_watcher(self, descriptor: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # the provider sees its socket close
            print(f"no watcher: {error}", file=sys.stderr)  # noqa: T201 - the provider's log
        else:
            if pid == 0:
                self._control.close()
                Watcher(socket.socket(fileno=descriptor), self._base, self._user, self._limits).main()
            self._watchers.add(pid)
        os.close(descriptor)

    def _settle(self) -> None:
        """Reap watchers. The run of one that was killed is a child of this process by now: end it."""
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


# ---- watchers


class Watcher:
    """Makes runs, one after the other, and watches over each."""

    def __init__(self, connection: socket.socket, base: str, user: User, limits: Limits) -> None:
        self._connection = connection
        self._base = os.path.join(base, str(os.getpid()))
        self._folder = os.path.join(self._base, "run")
        self._user = user
        self._limits = limits

    def main(self) -> NoReturn:
        """Serve until the provider closes the connection."""
        status = 1  # the zygote cleans up
        try:
            self._serve()
            discard(self._base)
            status = 0
        except BaseException:  # noqa: BLE001 - nothing may return into the zygote's code
            traceback.print_exc()
        finally:
            os._exit(status)

    def _serve(self) -> None:
        adopt_orphans()
        hide()
        self._wakeup = open_wakeup()
        os.mkdir(self._base)
        os.chmod(self._base, 0o711)  # noqa: S103 - as the zygote's
        os.environ.update(HOME=self._folder, TMPDIR=self._folder)
        stream = self._connection.makefile("rb")
        self._run = Run(self._folder, self._user, self._limits)
        self._say(struct.pack(">I", os.getpid()))
        while (request := self._read(stream)) is not None:
            self._watch(*request)
        self._run.clean_up()

    def _say(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # the end of input follows
            self._connection.sendall(data)

    def _read(self, stream: BinaryIO) -> tuple[bytes, float] | None:
        """Wait for a request; return it with its timeout, or None at the end of input."""
        self._reap_while_idle()
        with contextlib.suppress(ConnectionError):
            if (head := stream.readline()).endswith(b"\n"):
                wanted = json.loads(head)
                task = stream.read(wanted["size"])
                return (head + task, wanted["timeout"]) if len(task) == wanted["size"] else None
        return None

    def _reap_while_idle(self) -> None:
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        poll.register(self._connection, select.POLLIN)
        while [descriptor for descriptor, _ in poll.poll()] == [self._wakeup]:
            drain(self._wakeup)
            self._run.reap()

    def _watch(self, task: bytes, timeout: float) -> None:
        for _ in range(ATTEMPTS):
            run = self._run
            begun = time.monotonic()
            run.feed(task)
            end = self._follow(run, begun + timeout)
            duration = time.monotonic() - begun
            run.clean_up()
            if end != "exit" or run.has_begun:
                break
            self._run = Run(self._folder, self._user, self._limits)  # somebody killed the one that was waiting
        told = {"end": end, "exit_code": run.exit_code, "cpu_seconds": run.cpu, "duration_ms": duration * 1000}
        report, size = run.report()
        head = json.dumps(
            told
            | {
                "stdout": [len(run.stdout.kept), run.stdout.total],
                "stderr": [len(run.stderr.kept), run.stderr.total],
                "report": [len(report), size],
            }
        ).encode()
        parts = struct.pack(">I", len(head)), head, run.stdout.kept, run.stderr.kept, report
        self._say(b"".join(parts))
        self._run = Run(self._folder, self._user, self._limits)

    def _follow(self, run: "Run", deadline: float) -> str:
        """Take the output until the run is done, its own process ends, or it has to; return which."""
        poll = select.poll()
        for descriptor in (self._wakeup, self._connection.fileno(), run.done, run.stdout.reader, run.stderr.reader):
            poll.register(descriptor, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(left * 1000):
                if descriptor == self._connection.fileno():
                    return "cancelled"
                if descriptor == self._wakeup:
                    drain(descriptor)
                    run.reap()
                elif not run.take(descriptor):
                    poll.unregister(descriptor)
            if run.exit_code is not None:
                return "exit"
            if run.stdout.total + run.stderr.total > self._limits["output"]:
                return "output"
        return "timeout"


class Output:
    """What one descriptor of a run yields: the first bytes, and how many there were."""

    def __init__(self, keep: int) -> None:
        self.kept = bytearray()
        self.total = 0
        self._keep = keep
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def take(self) -> bool:
        """Read what is there, up to 64 KiB; return whether there was anything."""
        try:
            data = os.read(self.reader, 1 << 16)
        except BlockingIOError:
            return False
        self.total += len(data)
        self.kept += data[: max(0, self._keep - len(self.kept))]
        return bool(data)


class Run:
    """A run as its watcher sees it: a process that waits for its task from the beginning."""

    def __init__(self, folder: str, user: User, limits: Limits) -> None:
        self._folder = folder
        os.mkdir(folder, 0o700)
        self.stdout, self.stderr = Output(limits["output_kept"]), Output(limits["output_kept"])
        self.exit_code: int | None = None  # of the run's own process
        self.cpu: float | None = None  # seconds
        self._report = mmap.mmap(-1, limits["result"] + REPORT_HEAD)
        task, self._task = os.pipe()
        self.done, done = os.pipe()  # readable when the report is there, or the run's own process is not
        self._reaped = False
        self._pid = os.fork()
        if self._pid == 0:
            outputs = self.stdout.writer, self.stderr.writer
            Inside(task, done, self._report, limits).main(folder, outputs, user)
        for descriptor in (task, done, self.stdout.writer, self.stderr.writer):
            os.close(descriptor)

    def feed(self, task: bytes) -> None:
        """Let it begin."""
        if not self._reaped:
            os.kill(self._pid, signal.SIGCONT)  # somebody may have stopped it while it waited
        view = memoryview(task)
        with contextlib.suppress(BrokenPipeError):  # it could not hold the task and ended, as the watcher will see
            while view:
                view = view[os.write(self._task, view) :]
        os.close(self._task)
        self._task = -1

    def reap(self) -> None:
        """Reap all that have ended, orphans included."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.wait4(-1, os.WNOHANG))[0]:
                pid, status, used = ended
                if pid == self._pid:
                    self._reaped = True
                    self.exit_code = os.waitstatus_to_exitcode(status)
                    self.cpu = used.ru_utime + used.ru_stime

    def take(self, descriptor: int) -> bool:
        """Take what a descriptor has; return whether it may have more."""
        if descriptor == self.done:
            if os.read(descriptor, 1):
                self.exit_code = 0
            return False
        return (self.stdout if descriptor == self.stdout.reader else self.stderr).take()

    def _is_alone(self) -> bool:
        with contextlib.suppress(OSError):
            threads = os.listdir(f"/proc/{self._pid}/task")
            return len(threads) == 1 and not children(self._pid) and children() == [self._pid]
        return False

    def clean_up(self) -> None:
        """Kill all that the run started, take the rest of its output, and remove its folder.

        Everything is reaped, too; but where only the run's own process is left, it is not waited for: its end takes the
        kernel longer than all the rest of a short run.
        """
        if not self._reaped:
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.killpg(self._pid, signal.SIGKILL)
        if not self._is_alone():
            if not self._reaped:
                os.waitpid(self._pid, 0)
            kill_children()
        for output in (self.stdout, self.stderr):
            for _ in range(PIPE_READS):
                if not output.take():
                    break
            os.close(output.reader)
        os.close(self.done)
        if self._task >= 0:
            os.close(self._task)
        discard(self._folder)

    @property
    def has_begun(self) -> bool:
        """Whether it has seen its task."""
        return self._report[8] != 0

    def report(self) -> tuple[bytes, int]:
        """Return the run's own report, and how many bytes it says it has."""
        (size,) = struct.unpack(">Q", self._report[:8])
        report = self._report[9 : 9 + min(size, len(self._report))]
        self._report.close()
        return report, size


# ---- runs


class Inside:
    """The run from inside. Once the code has begun, nothing in this process is to be trusted."""

    def __init__(self, task: int, done: int, report: mmap.mmap, limits: Limits) -> None:
        self._task = task
        self._done = done
        self._report = report
        self._limits = limits
        self._tasks: int | None = None  # of the user, where they count
        self._counted_at = 0.0

    def main(self, folder: str, outputs: tuple[int, int], user: User) -> NoReturn:
        """Wait for the task, perform it, report and end."""
        try:
            self._settle_in(folder, outputs, user)
            execution.warm_up()
            task = open(self._task, "rb")  # noqa: SIM115 - `perform` closes it
            if request := task.readline():
                self._report[8] = 1
                self._limit_rest(json.loads(request)["timeout"])
                self._tell(execution.perform(task, self._limits["memory"], self._limits["result"]))
            os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing may return into the watcher's code
            traceback.print_exc()
        finally:
            os._exit(1)

    def _tell(self, report: bytes) -> None:
        self._report[9 : 9 + len(report)] = report
        self._report[:8] = struct.pack(">Q", len(report))
        with contextlib.suppress(OSError):  # the code closed it: the end of the process will do
            os.write(self._done, b"d")
            time.sleep(1)  # until it is killed: dying by itself, it would keep a processor from the watcher

    def _settle_in(self, folder: str, outputs: tuple[int, int], user: User) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.nice(NICE)
        os.chdir(folder)
        for number, descriptor in enumerate(outputs, 1):
            os.dup2(descriptor, number)
        low, high = sorted((self._task, self._done))
        for first, beyond in ((3, low), (low + 1, high), (high + 1, FILES)):
            os.closerange(first, beyond)
        limit(resource.RLIMIT_AS, self._limits["memory"], self._limits["memory"] + RESERVE)
        if user.own:
            limit(resource.RLIMIT_NPROC, self._limits["processes"])
            uid = FIRST_UID + os.getpid()
            for path in (folder, 1, 2):  # outputs, too: they can be opened as /dev/stdout
                os.chown(path, uid, uid)
            user.assume(uid)
            hide()
        else:
            self._count()
        fence()

    def _count(self) -> None:
        with contextlib.suppress(OSError):  # without /proc they are not limited
            self._tasks = count_tasks()
            self._counted_at = time.monotonic()

    def _limit_rest(self, timeout: float) -> None:
        if self._tasks is not None:
            if time.monotonic() - self._counted_at > COUNT_AGE:
                self._count()
            limit(resource.RLIMIT_NPROC, self._tasks + self._limits["processes"])
        seconds = self._limits["cpu"] or int(timeout) * PROCESSORS + 2
        limit(resource.RLIMIT_CPU, seconds, seconds + 1)


def main() -> None:
    """Serve the provider at descriptor 0; the argument is the limits as JSON."""
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    del sys.path[0]
    adopt_orphans()
    hide()
    limits: Limits = json.loads(sys.argv[1])
    zygote = Zygote(control, limits)
    furnish(limits)
    gc.collect()
    gc.freeze()  # the collector writes into what it looks at, and what is written to is no longer shared
    zygote.serve()


def furnish(limits: Limits) -> None:
    """Make what runs inherit: modules, streams, the environment, and the limits that watchers can live with."""
    for name in PRELOADED.split():
        importlib.import_module(name)
    execution.open_streams()
    tempfile.tempdir = None
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    os.environ.clear()
    os.environ.update(kept)
    os.umask(0o077)
    prctl(SET_NO_NEW_PRIVS, 1)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, limits["files"])
    limit(resource.RLIMIT_FSIZE, limits["file_size"])


if __name__ == "__main__":
    main()
