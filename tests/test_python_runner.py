"""The process sandbox: whatever a run does, it hurts neither the provider nor another run, and leaves nothing."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.host import children, descendants, wait_for_end

sys.path.insert(0, str(Path(__file__).parent.parent / "providers" / "python"))
import runner
import sandbox
from sandbox import Limits, Outcome, ProcessSandbox, Task

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and subreapers"),
]
FOLDER = Path(runner.__file__).parent
AS_ROOT = os.getuid() == 0
TIMEOUT = 20.0  # seconds; what a slow, busy machine may need
LIMITS = Limits(
    memory=256 << 20,
    cpu=0,
    files=64,
    file_size=1 << 20,
    processes=40,
    output_kept=1000,
    output=8 << 20,
    result=1 << 20,
)


class Box(ProcessSandbox):
    """The sandbox, with what the tests ask of it."""

    async def answer(self, code: str, seconds: float = TIMEOUT) -> Any:
        """Run code that must succeed; return its result."""
        outcome = await self.run(Task(code=code), seconds)
        error, result = report_of(outcome)
        assert error is None, f"{error}\n{outcome.stderr.decode()}"
        return result

    async def is_clean(self) -> bool:
        """Whether a run finds the world as it should be."""
        answer: list[Any] = await self.answer("import os\n[os.listdir(), 6 * 7]")
        return answer == [[], 42]

    @property
    def zygote_pid(self) -> int:
        assert self._zygote is not None
        return self._zygote.process.pid

    def watcher_pids(self) -> set[int]:
        return {watcher.pid for watcher in self._watchers}


def report_of(outcome: Outcome) -> tuple[dict[str, str] | None, Any]:
    assert outcome.end == "exit", outcome
    assert outcome.exit_code == 0, outcome
    head, result = outcome.report.split(b"\n")
    return json.loads(head)["error"], json.loads(result)


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def files_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@contextlib.asynccontextmanager
async def opened(limits: Limits = LIMITS, warm: int = 1) -> AsyncIterator[Box]:
    strangers, folders = set(children(os.getpid())), bases()
    box = Box(sys.executable, limits, warm)
    await box.start()
    try:
        yield box
    finally:
        with anyio.CancelScope(shield=True):
            await box.stop()
    assert set(children(os.getpid())) <= strangers
    assert bases() <= folders


def bases() -> set[Path]:
    """Return the folders that zygotes have made."""
    return set(Path(tempfile.gettempdir()).glob(f"{runner.PREFIX}*"))


@pytest.fixture(scope="module", autouse=True)
def temporary_folder() -> Iterator[None]:
    """A folder for temporary files of this module's own, that runs with users of their own can reach."""
    folder = Path(tempfile.mkdtemp(prefix="runner-"))
    folder.chmod(0o711)
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    environ = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    yield
    tempfile.tempdir = before
    os.environ.pop("TMPDIR")
    if environ is not None:
        os.environ["TMPDIR"] = environ
    folder.rmdir()  # which fails if anything was left


@pytest.fixture(scope="module")
async def box() -> AsyncIterator[Box]:
    async with opened() as box:
        yield box


async def read_line(path: Path) -> str:
    """Wait for the first line of a FIFO."""
    return (await anyio.to_thread.run_sync(path.read_text, abandon_on_cancel=True)).strip()


# ---- what a run does to itself


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("import os; os._exit(3)", 3),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import os; os.execv('/bin/false', ['false'])", 1),
        ("import os; os.execv('/bin/sh', ['sh', '-c', 'exit 7'])", 7),
    ],
)
async def test_a_run_that_ends_its_process_is_told_by_its_exit_code(box: Box, code: str, exit_code: int) -> None:
    outcome = await box.run(Task(code=f"print('before', end='')\n{code}"), TIMEOUT)
    assert (outcome.end, outcome.exit_code, outcome.stdout) == ("exit", exit_code, b"before")
    assert await box.is_clean()


@pytest.mark.parametrize("call", ["f()", "sorted('a', key=lambda _: f())"], ids=["python", "c"])
async def test_endless_recursion_without_a_limit_ends_only_its_own_run(box: Box, call: str) -> None:
    code = f"import sys\nsys.setrecursionlimit(10**9)\ndef f(): return {call}\nf()"
    outcome = await box.run(Task(code=code), TIMEOUT)
    assert outcome.end == "exit"
    assert outcome.exit_code in {0, -signal.SIGSEGV}
    assert await box.is_clean()


async def test_a_run_that_closes_every_descriptor_still_reports(box: Box) -> None:
    assert await box.answer("import os\nos.closerange(0, 1000)\nresult = 'here'") == "here"


async def test_a_run_that_stops_itself_is_ended_by_the_timeout(box: Box) -> None:
    outcome = await box.run(Task(code="import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"), 0.2)
    assert outcome.end == "timeout"
    assert await box.is_clean()


async def test_a_run_that_ignores_every_signal_is_ended_by_the_timeout(box: Box) -> None:
    code = """
import signal, time
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
print("deaf")
while True: time.sleep(100)
"""
    outcome = await box.run(Task(code=code), 0.5)
    assert (outcome.end, outcome.stdout) == ("timeout", b"deaf\n")
    assert await box.is_clean()


async def test_output_beyond_the_limit_is_counted_and_dropped(box: Box) -> None:
    outcome = await box.run(Task(code="import sys\nprint('x' * 5000)\nprint('y', file=sys.stderr)"), TIMEOUT)
    assert (outcome.stdout, outcome.stdout_bytes) == (b"x" * 1000, 5001)
    assert (outcome.stderr, outcome.stderr_bytes) == (b"y\n", 2)


async def test_two_gigabytes_of_output_end_the_run_and_fill_no_memory(box: Box) -> None:
    outcome = await box.run(Task(code="block = 'x' * (1 << 20)\nfor _ in range(2048): print(block)"), TIMEOUT)
    assert outcome.end == "output"
    assert len(outcome.stdout) == 1000
    assert LIMITS.output < outcome.stdout_bytes < LIMITS.output + (4 << 20)
    assert await box.is_clean()


async def test_memory_is_limited_and_its_lack_is_an_error_that_says_so(box: Box) -> None:
    error, _ = report_of(await box.run(Task(code="kept = [bytearray(1 << 20) for _ in range(4096)]"), TIMEOUT))
    assert error is not None
    assert error["type"] == "MemoryError"
    assert "256 MiB" in error["message"]


async def test_processor_time_is_limited() -> None:
    limits = Limits(**{**{f: getattr(LIMITS, f) for f in LIMITS.__struct_fields__}, "cpu": 1})
    async with opened(limits) as box:
        outcome = await box.run(Task(code="while True: pass"), TIMEOUT)
        assert (outcome.end, outcome.exit_code) == ("exit", -signal.SIGXCPU)
        stubborn = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
        outcome = await box.run(Task(code=stubborn), TIMEOUT)
        assert (outcome.end, outcome.exit_code) == ("exit", -signal.SIGKILL)
        assert outcome.cpu_seconds is not None
        assert outcome.cpu_seconds >= 1


@pytest.mark.parametrize(
    "code",
    [
        "open('big', 'wb').write(bytes(2 << 20))",
        "files = [open('/dev/null') for _ in range(100)]",
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    ],
)
async def test_a_limit_that_is_reached_is_an_exception_in_the_code(box: Box, code: str) -> None:
    error, _ = report_of(await box.run(Task(code=code), TIMEOUT))
    assert error is not None
    assert error["type"] in {"OSError", "ValueError"}


async def test_a_fork_bomb_stops_at_the_limit_and_is_removed(box: Box) -> None:
    code = """
import os, time
print("lit", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""
    outcome = await box.run(Task(code=code), 1.0)
    assert (outcome.end, outcome.stdout) == ("timeout", b"lit\n")
    assert await box.is_clean()
    assert len(list(descendants(box.zygote_pid))) <= 2 * len(box.watcher_pids())


# ---- what it leaves behind


async def test_daemons_of_a_run_end_with_it(box: Box) -> None:
    code = """
import os, signal, time
reader, writer = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if os.fork() == 0:
            os.write(writer, b"%d\\n" % os.getpid())
            while True: time.sleep(100)
        os._exit(0)
daemons = []
while len(daemons) < 3:
    daemons += os.read(reader, 1000).split()
result = [int(pid) for pid in daemons]
"""
    daemons = await box.answer(code)
    assert len(daemons) == 3
    assert not any(map(exists, daemons))


async def test_a_run_is_not_over_before_its_threads_and_exit_functions(box: Box) -> None:
    code = """
import atexit, threading, time
atexit.register(print, "exit function")
threading.Thread(target=lambda: (time.sleep(0.05), globals().update(result="from the thread"))).start()
"""
    outcome = await box.run(Task(code=code), TIMEOUT)
    assert report_of(outcome) == (None, "from the thread")
    assert outcome.stdout == b"exit function\n"


async def test_a_fork_of_the_code_reports_nothing(box: Box) -> None:
    code = """
import os
child = os.fork()
if child == 0:
    result = "the child's"
else:
    os.waitpid(child, 0)
    result = "the parent's"
"""
    assert await box.answer(code) == "the parent's"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')",
        "import os\nos.makedirs('a/b'); open('a/b/f', 'w').close()\nfor p in ('a/b', 'a', '.'): os.chmod(p, 0)",
        "import os\nos.symlink('/etc', 'link'); os.symlink('loop', 'loop'); os.mkfifo('fifo')",
        "for number in range(2000): open(str(number), 'w').close()",
    ],
    ids=["deep", "unreadable", "links", "many"],
)
async def test_the_folder_of_a_run_is_removed_whatever_is_in_it(box: Box, code: str) -> None:
    folder = Path(await box.answer(f"import os\nresult = os.getcwd()\n{code}"))
    assert folder.parent.parent.name.startswith(runner.PREFIX)
    assert await box.is_clean()
    assert not list(folder.glob("*"))  # noqa: ASYNC240 - quick


async def test_nothing_of_one_run_is_seen_by_the_next(box: Box) -> None:
    await box.answer("import builtins, json, sys\nbuiltins.leak = json.leak = sys.leak = 1\nprint = None\nleak = 1")
    code = "import builtins, json, sys\n['leak' in vars(m) for m in (builtins, json, sys, sys.modules['__main__'])]"
    assert await box.answer(code) == [False] * 4


async def test_every_run_has_other_random_numbers(box: Box) -> None:
    code = "import random, uuid\nresult = [random.random(), str(uuid.uuid4())]"
    drawn = [await box.answer(code) for _ in range(8)]
    assert len({number for number, _ in drawn}) == len({text for _, text in drawn}) == 8


async def test_a_run_finds_an_empty_environment_and_a_private_folder(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    code = """
import os, tempfile
os.umask(mask := os.umask(0))
result = [sorted(set(os.environ) - {"LANG"}), os.getcwd(), os.environ["HOME"], tempfile.gettempdir(), mask,
          os.stat(".").st_mode & 0o777, [int(fd) for fd in os.listdir("/proc/self/fd")]]
"""
    names, folder, home, temporary, mask, mode, descriptors = await box.answer(code)
    assert names == ["HOME", "PATH", "TMPDIR"]
    assert folder == home == temporary
    assert (mask, mode) == (0o077, 0o700)
    assert len(descriptors) <= 6  # the standard ones, the report's, and the listing's own


# ---- what it does to others


async def test_a_forged_report_harms_only_its_own_run(box: Box) -> None:
    code = """
import os, sys
frame = sys._getframe()
while not hasattr(frame.f_locals.get("self"), "_report"):
    frame = frame.f_back
frame.f_locals["self"]._report[:8] = b"\\xff" * 8
for descriptor in range(3, 100):
    try: os.write(descriptor, b'{"jsonrpc":"2.0","id":1,"result":"forged"}\\n')
    except OSError: pass
os._exit(0)
"""
    outcome = await box.run(Task(code=code), TIMEOUT)
    assert (outcome.end, outcome.exit_code) == ("exit", 0)
    assert len(outcome.report) <= LIMITS.result + runner.REPORT_HEAD
    assert await box.is_clean()


async def test_a_run_that_says_it_is_done_and_goes_on_is_killed(box: Box) -> None:
    code = """
import os, time
for descriptor in range(3, 100):
    try: os.write(descriptor, b"d")
    except OSError: pass
time.sleep(1000)
"""
    with anyio.fail_after(TIMEOUT):
        outcome = await box.run(Task(code=code), 1000)
    assert outcome.end == "exit"
    assert await box.is_clean()


@pytest.mark.skipif(not AS_ROOT, reason="only root can give runs users of their own")
async def test_a_run_started_by_root_can_signal_and_trace_nobody(box: Box) -> None:
    code = f"""
import ctypes, os, signal
result = []
for pid in (os.getppid(), {os.getpid()}, {box.zygote_pid}):
    try:
        os.kill(pid, signal.SIGKILL)
        result.append(pid)
    except PermissionError:
        pass
    if ctypes.CDLL(None).ptrace(16, pid, 0, 0) == 0:  # PTRACE_ATTACH
        result.append(pid)
try:
    os.kill(-1, signal.SIGKILL)
except PermissionError:
    pass
"""
    assert await box.answer(code) == []


async def test_a_run_cannot_open_the_descriptors_of_others(box: Box) -> None:
    code = f"""
import os
result = []
for pid in (os.getppid(), {os.getpid()}, {box.zygote_pid}):
    for descriptor in range(20):
        try:
            result.append(os.open(f"/proc/{{pid}}/fd/{{descriptor}}", os.O_WRONLY))
        except (PermissionError, FileNotFoundError):
            pass
"""
    assert await box.answer(code) == []


async def test_a_run_cannot_write_outside_its_folder(box: Box) -> None:
    code = """
import os
result = []
for path in ("..", "../..", "/etc", os.path.dirname(os.__file__)):
    try:
        open(os.path.join(path, "written"), "w").close()
        result.append(path)
    except PermissionError:
        pass
"""
    assert await box.answer(code) == [] or not AS_ROOT


async def test_setuid_programs_give_a_run_nothing(box: Box) -> None:
    code = "result = [line.split()[1] for line in open('/proc/self/status') if line.startswith('NoNewPrivs')]"
    assert await box.answer(code) == ["1"]


# ---- cancelling and dying


class Ear:
    """Where runs tell their pids; an abstract socket, which a run with a user of its own reaches, too."""

    def __init__(self) -> None:
        self._name = f"gleitzeit-test-{os.getpid()}-{id(self)}"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind("\0" + self._name)
        self._socket.listen()
        self._socket.setblocking(False)

    @property
    def sleeper(self) -> str:
        """Code that tells the pids of a daemon, of itself and of its watcher, and goes on for ever."""
        return f"""
import os, socket, time
if os.fork() == 0:
    os.setsid()
    with socket.socket(socket.AF_UNIX) as ear:
        ear.connect("\\0{self._name}")
        ear.sendall(b"%d" % os.getpid())
    while True: time.sleep(100)
with socket.socket(socket.AF_UNIX) as ear:
    ear.connect("\\0{self._name}")
    ear.sendall(b"%d %d" % (os.getpid(), os.getppid()))
time.sleep(1000)
"""

    async def hear(self) -> list[int]:
        """Return the pids that one process tells."""
        with anyio.fail_after(TIMEOUT):
            await anyio.wait_readable(self._socket)
            connection, _ = self._socket.accept()
            with connection:
                connection.setblocking(False)
                await anyio.wait_readable(connection)
                return [int(pid) for pid in connection.recv(100).split()]

    async def sleeping(self) -> tuple[list[int], int]:
        """Return the pids of a sleeper and its daemon, and of its watcher."""
        told = sorted([await self.hear(), await self.hear()], key=len)
        (daemon,), (run, watcher) = told
        return [daemon, run], watcher

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def ear() -> Iterator[Ear]:
    ear = Ear()
    yield ear
    ear.close()


async def test_cancellation_returns_when_everything_below_the_run_is_gone(box: Box, ear: Ear) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(box.run, Task(code=ear.sleeper), 1000)
        pids, _ = await ear.sleeping()
        tasks.cancel_scope.cancel()
    assert not any(map(exists, pids))
    assert await box.is_clean()


async def test_a_run_can_be_cancelled_while_its_task_is_handed_over(box: Box) -> None:
    with anyio.move_on_after(0):
        await box.run(Task(code="", context={"large": "x" * (8 << 20)}), TIMEOUT)
    assert await box.is_clean()


async def test_the_end_of_the_sandbox_leaves_nothing_of_cancelled_runs(ear: Ear) -> None:
    async with opened() as box, anyio.create_task_group() as tasks:
        tasks.start_soon(box.run, Task(code=ear.sleeper), 1000)
        pids, watcher = await ear.sleeping()
        tasks.cancel_scope.cancel()
    assert not any(map(exists, [*pids, watcher]))


class Sleeping:
    """A run that sleeps, in a task of its own."""

    async def start(self, box: Box, tasks: anyio.abc.TaskGroup, ear: Ear, seconds: float = 1000) -> "Sleeping":
        self._over = anyio.Event()
        tasks.start_soon(self._run, box, ear, seconds)
        self.pids, self.watcher = await ear.sleeping()
        return self

    async def _run(self, box: Box, ear: Ear, seconds: float) -> None:
        self._outcome = await box.run(Task(code=ear.sleeper), seconds)
        self._over.set()

    async def end(self) -> str:
        """Wait for its outcome; return what ended it."""
        with anyio.fail_after(TIMEOUT):
            await self._over.wait()
        return self._outcome.end


async def test_a_killed_watcher_loses_its_run_and_nothing_else(ear: Ear) -> None:
    async with opened() as box, anyio.create_task_group() as tasks:
        other = await Sleeping().start(box, tasks, ear)
        run = await Sleeping().start(box, tasks, ear)
        os.kill(run.watcher, signal.SIGKILL)
        assert await run.end() == "lost"
        assert not any(map(exists, [*run.pids, run.watcher]))
        assert all(map(exists, other.pids))
        assert await box.is_clean()
        tasks.cancel_scope.cancel()


async def test_idle_watchers_that_were_killed_are_replaced() -> None:
    async with opened(warm=5) as box:
        assert await box.is_clean()
        for pid in children(box.zygote_pid):
            os.kill(pid, signal.SIGKILL)
            assert wait_for_end(pid, TIMEOUT)
        assert await box.is_clean()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_idle_runs_that_were_killed_or_stopped_do_no_harm(how: signal.Signals) -> None:
    async with opened(warm=2) as box:
        assert await box.is_clean()
        for watcher in children(box.zygote_pid):
            for pid in children(watcher):
                os.kill(pid, how)
        assert await box.is_clean()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_dead_or_stopped_zygote_is_replaced_and_its_runs_go_on(
    ear: Ear, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    async with opened(warm=0) as box, anyio.create_task_group() as tasks:
        run = await Sleeping().start(box, tasks, ear)
        old = box.zygote_pid
        os.kill(old, how)
        with monkeypatch.context() as patience:
            patience.setattr(sandbox, "GRACE", 1.0)
            assert await box.answer("1", 1.0) == 1
        assert box.zygote_pid != old
        assert all(map(exists, run.pids))
        os.kill(run.watcher, signal.SIGKILL)
        assert await run.end() == "lost"
        assert not any(map(exists, [*run.pids, run.watcher, old]))
        assert await box.is_clean()


async def test_a_stopped_watcher_is_killed_when_its_time_is_over(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "GRACE", 0.5)
    async with opened() as box, anyio.create_task_group() as tasks:
        run = await Sleeping().start(box, tasks, ear, seconds=1.0)
        os.kill(run.watcher, signal.SIGSTOP)
        assert await run.end() == "timeout"
        assert not any(map(exists, [*run.pids, run.watcher]))


async def test_nothing_outlives_a_provider_that_is_killed(ear: Ear) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import anyio, sandbox
limits = sandbox.Limits(**{ {f: getattr(LIMITS, f) for f in LIMITS.__struct_fields__}!r})
async def main():
    box = sandbox.ProcessSandbox(sys.executable, limits, 1)
    await box.start()
    await box.run(sandbox.Task(code=sys.argv[1]), 1000)
anyio.run(main)
"""
    with start([sys.executable, "-c", program, ear.sleeper]) as provider:
        pids, _ = await ear.sleeping()
        everything = [*pids, *descendants(provider.pid)]
        provider.kill()
    for pid in everything:
        assert wait_for_end(pid, TIMEOUT)


async def test_folders_that_a_killed_zygote_left_are_removed_by_the_next() -> None:
    left = Path(tempfile.mkdtemp(prefix=runner.PREFIX))
    (left / "1" / "2").mkdir(parents=True)
    async with opened():
        assert left not in bases()


async def test_an_interpreter_that_does_not_run_is_an_error_at_the_start() -> None:
    box = ProcessSandbox("/bin/false", LIMITS, 1)
    with pytest.raises(RuntimeError, match="/bin/false does not run"):
        await box.start()
    await box.stop()


# ---- many


async def test_runs_work_side_by_side(box: Box) -> None:
    results = []

    async def run(number: int) -> None:
        results.append(await box.answer(f"import time\ntime.sleep(0.05)\nresult = {number}"))

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(run, number)
    assert sorted(results) == list(range(12))


async def test_five_hundred_runs_leave_no_process_descriptor_or_folder() -> None:
    before = bases()
    async with opened(warm=2) as box:
        await box.answer("0")
        descriptors = len(files_in(Path("/proc/self/fd")))
        for number in range(500):
            assert await box.answer(f"open('f', 'w').close()\n{number}") == number
        assert len(files_in(Path("/proc/self/fd"))) == descriptors
        (base,) = bases() - before
        assert len(list(base.glob("*"))) <= 2  # of the watchers
        assert len(list(base.glob("*/*"))) <= 2  # of the runs that wait
        for watcher in children(box.zygote_pid) if AS_ROOT else []:  # they hide their descriptors from others
            assert len(files_in(Path(f"/proc/{watcher}/fd"))) < 20


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")
def test_a_fenced_process_signals_what_it_started_and_nothing_else() -> None:
    attributes = (ctypes.c_uint64 * 3)(0, 0, runner.LANDLOCK_SCOPE_SIGNAL)
    ruleset = runner.LIBC.syscall(runner.LANDLOCK_CREATE_RULESET, attributes, 24, 0)
    if ruleset < 0:
        pytest.skip("this kernel's Landlock does not know signals: it takes Linux 6.12")
    os.close(ruleset)
    program = """
import os, runner, signal
runner.prctl(runner.SET_NO_NEW_PRIVS, 1)
runner.fence()
child = os.fork()
if child == 0:
    signal.pause()
os.kill(child, signal.SIGKILL)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    os.kill(os.getppid(), 0)
except PermissionError:
    print("refused")
"""
    folder = str(Path(runner.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": folder}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["-9", "refused"]
