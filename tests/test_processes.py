"""The guard: starts processes, tells of their end, and lets none outlive the host."""

import asyncio
import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from support.host import TIMEOUT, children, wait_for_end

from gleitzeit_host.processes import Process, Processes

Body = Callable[[Processes], Awaitable[None]]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    """Run a body with a Processes, on either event loop."""

    def runner(body: Body) -> None:
        async def main() -> None:
            processes = Processes()
            try:
                async with asyncio.timeout(TIMEOUT):
                    await body(processes)
            finally:
                await processes.aclose()

        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(main())

    return runner


class Started:
    """A process and its end as a future: an exit status, or an error text."""

    def __init__(self, processes: Processes, *argv: str, env: dict[str, str] | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.pid: asyncio.Future[int] = loop.create_future()
        self.end: asyncio.Future[int | str] = loop.create_future()
        self.process: Process = processes.spawn(
            list(argv),
            {"PATH": os.environ["PATH"]} if env is None else env,
            on_started=self.pid.set_result,
            on_exit=self.end.set_result,
            on_error=self.end.set_result,
        )

    async def output(self) -> bytes:
        """Read its stdout to the end."""
        return await asyncio.to_thread(read_all, self.process.stdout)

    def close(self) -> None:
        """Close the host's ends."""
        for fd in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                os.close(fd)


def read_all(fd: int) -> bytes:
    data = b""
    while True:
        assert select.select([fd], [], [], TIMEOUT)[0], "no end of the output"
        chunk = os.read(fd, 65_536)
        if not chunk:
            return data
        data += chunk


def python(program: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", textwrap.dedent(program)]


def test_what_goes_in_comes_out_and_the_exit_is_told(run: Callable[[Body], None]) -> None:
    async def body(processes: Processes) -> None:
        started = Started(processes, "cat")
        os.write(started.process.stdin, b"hello")  # before it has even started
        os.close(started.process.stdin)
        assert await started.output() == b"hello"
        assert await started.end == 0
        assert await started.pid == started.process.pid
        started.close()

    run(body)


@pytest.mark.parametrize(
    ("program", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_exit_codes_and_signals_are_told(run: Callable[[Body], None], program: str, status: int) -> None:
    async def body(processes: Processes) -> None:
        started = Started(processes, *python(program))
        assert await started.end == status
        started.close()

    run(body)


def test_a_command_that_is_not_there_or_cannot_be_run_is_an_error(run: Callable[[Body], None], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")

    async def body(processes: Processes) -> None:
        for command in ("no-such-program", "/no/such/program", str(tmp_path / "text"), str(tmp_path)):
            started = Started(processes, command)
            end = await started.end
            assert isinstance(end, str)
            assert command in end
            started.close()

    run(body)


def test_a_process_has_three_blocking_descriptors_and_exactly_its_environment(run: Callable[[Body], None]) -> None:
    program = """
    import json, os
    print(json.dumps({
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "blocking": [os.get_blocking(fd) for fd in (0, 1, 2)],
        "env": {key.decode("latin-1"): value.decode("latin-1") for key, value in os.environb.items()},
        "leader": os.getsid(0) == os.getpid(),
    }))
    """

    async def body(processes: Processes) -> None:
        odd = os.fsdecode(b"caf\xe9 \xff")
        for _ in range(3):  # each later one might inherit from those before
            started = Started(processes, *python(program), env={"A": odd, "LC_ALL": "C.UTF-8", "N\u00e4me": "1"})
            seen = json.loads(await started.output())
            assert seen["fds"] == [0, 1, 2]
            assert seen["blocking"] == [True, True, True]
            assert seen["env"]["A"] == "caf\xe9 \xff"
            assert seen["env"].keys() == {"A", "LC_ALL", "N\u00e4me".encode().decode("latin-1")}
            assert seen["leader"]
            await started.end
            started.close()

    run(body)


def test_a_process_has_every_signal_as_the_system_has_it(run: Callable[[Body], None]) -> None:
    async def body(processes: Processes) -> None:
        started = Started(processes, "cat", "/proc/self/status")
        masks = dict(line.split(b":", 1) for line in (await started.output()).splitlines())
        ours = sum(1 << (number - 1) for number in signal.valid_signals())  # 32 and 33 are the C library's own
        assert int(masks[b"SigBlk"], 16) & ours == 0
        assert int(masks[b"SigIgn"], 16) & ours == 0
        await started.end
        started.close()

    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)  # as a shell does to what it starts with &
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGUSR2])
    try:
        run(body)
    finally:
        signal.signal(signal.SIGQUIT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.mark.parametrize(("order", "status"), [("terminate", -signal.SIGTERM), ("kill", -signal.SIGKILL)])
def test_a_signal_ordered_right_after_the_start_is_not_lost(
    run: Callable[[Body], None], order: str, status: int
) -> None:
    async def body(processes: Processes) -> None:
        for _ in range(20):
            started = Started(processes, "sleep", "1000")
            getattr(started.process, order)()
            assert await started.end == status
            started.close()

    run(body)


def test_no_descriptor_is_lost_when_there_are_none_left(run: Callable[[Body], None]) -> None:
    async def body(processes: Processes) -> None:
        processes.start()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        await asyncio.to_thread(int)  # what asyncio opens, it has opened now
        before = open_descriptors()
        for room in range(6):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 1 + room, hard))
            try:
                with contextlib.ExitStack() as gaps:
                    for _ in range(max(before) + 1 - len(before)):  # descriptors are taken from below
                        gaps.callback(os.close, os.dup(0))
                    with pytest.raises(OSError, match="Too many open files"):
                        Started(processes, "cat")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert open_descriptors() == before
        started = Started(processes, "true")
        assert await started.end == 0
        started.close()

    run(body)


def open_descriptors() -> set[int]:
    return {int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}  # noqa: PTH110, PTH208


def test_terminate_reaches_the_group_and_kill_everything_below(run: Callable[[Body], None]) -> None:
    program = """
    import os, signal, sys, time
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            print(os.getpid(), flush=True)
        time.sleep(1000)
    time.sleep(1000)
    """

    async def body(processes: Processes) -> None:
        for order in ("terminate", "kill"):
            one, other = (Started(processes, *python(program)) for _ in range(2))
            pids = [await asyncio.to_thread(read_number, started.process.stdout) for started in (one, other)]
            getattr(one.process, order)()
            assert await one.end == (-signal.SIGTERM if order == "terminate" else -signal.SIGKILL)
            assert wait_for_end(pids[0], TIMEOUT)
            assert exists(pids[1])
            other.process.kill()
            await other.end
            assert wait_for_end(pids[1], TIMEOUT)
            one.close()
            other.close()

    run(body)


def read_number(fd: int) -> int:
    assert select.select([fd], [], [], TIMEOUT)[0]
    return int(os.read(fd, 100))


def test_fifty_start_at_once(run: Callable[[Body], None]) -> None:
    async def body(processes: Processes) -> None:
        many = [Started(processes, *python("import sys; sys.stdin.read()")) for _ in range(50)]
        assert len({await started.pid for started in many}) == 50
        for started in many:
            os.close(started.process.stdin)
        assert [await started.end for started in many] == [0] * 50
        for started in many:
            started.close()

    run(body)


@pytest.mark.parametrize("victim", ["guard", "keeper"])
def test_a_guard_or_keeper_that_is_killed_takes_its_processes_with_it(run: Callable[[Body], None], victim: str) -> None:
    async def body(processes: Processes) -> None:
        for _ in range(5):
            one, other = [await start_surely(processes) for _ in range(2)]
            keeper = parent(await one.pid)
            os.kill(keeper if victim == "keeper" else parent(keeper), signal.SIGKILL)
            assert await one.end == -signal.SIGKILL
            assert wait_for_end(await one.pid, TIMEOUT)
            if victim == "keeper":
                assert exists(await other.pid)
                other.process.kill()
            assert await other.end == -signal.SIGKILL
            assert wait_for_end(await other.pid, TIMEOUT)
            one.close()
            other.close()

    run(body)


async def start_surely(processes: Processes) -> Started:
    """Start a sleeper; one that was sent to a guard that had just died is told to have been killed."""
    while True:
        started = Started(processes, *python("import time; print(1, flush=True); time.sleep(1000)"))
        either: list[asyncio.Future[Any]] = [started.pid, started.end]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if started.pid.done():
            await asyncio.to_thread(read_number, started.process.stdout)
            return started
        assert started.end.result() == -signal.SIGKILL
        started.close()


def exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_stopped_guard_and_keeper_are_woken_at_the_end(run: Callable[[Body], None]) -> None:
    async def body(processes: Processes) -> None:
        started = await start_surely(processes)
        stop_both(await started.pid)
        await processes.aclose()
        assert wait_for_end(await started.pid, TIMEOUT)
        assert await started.end == -signal.SIGKILL
        started.close()

    run(body)


def test_a_stopped_guard_is_woken_when_it_does_not_obey(
    run: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gleitzeit_host.processes._PATIENCE", 0.2)

    async def body(processes: Processes) -> None:
        started = await start_surely(processes)
        stop_both(await started.pid)
        other = await start_surely(processes)
        for one in (started, other):
            one.process.kill()
            assert await one.end == -signal.SIGKILL
            assert wait_for_end(await one.pid, TIMEOUT)
            one.close()

    run(body)


def test_a_guard_that_is_stopped_again_and_again_is_replaced(
    run: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gleitzeit_host.processes._PATIENCE", 0.1)
    monkeypatch.setattr("gleitzeit_host.processes._WAKE_UPS", 0)

    async def body(processes: Processes) -> None:
        started = await start_surely(processes)
        stop_both(await started.pid)
        other = await start_surely(processes)
        assert await started.end == -signal.SIGKILL
        assert wait_for_end(await started.pid, TIMEOUT)
        other.process.kill()
        assert await other.end == -signal.SIGKILL
        for one in (started, other):
            one.close()

    run(body)


def stop_both(pid: int) -> None:
    keeper = parent(pid)
    for above in (keeper, parent(keeper)):
        os.kill(above, signal.SIGSTOP)


def test_after_an_end_it_can_start_again(run: Callable[[Body], None]) -> None:
    async def body(processes: Processes) -> None:
        for _ in range(3):
            started = await start_surely(processes)
            await processes.aclose()
            assert await started.end == -signal.SIGKILL
            started.close()

    run(body)


def test_processes_that_fork_on_and_on_are_caught(run: Callable[[Body], None]) -> None:
    storm = """
    import os, time
    print(1, flush=True)
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            for _ in range(200):
                if os.fork() == 0:
                    os.setsid()
                    time.sleep(1000)
            time.sleep(1000)
    time.sleep(1000)
    """
    rolling = """
    import os, time
    print(1, flush=True)
    if os.fork() == 0:
        end = time.monotonic() + 60
        while time.monotonic() < end:  # each lives for one fork, in a session of its own
            os.setsid()
            if os.fork():
                os._exit(0)
    time.sleep(1000)
    """

    async def body(processes: Processes) -> None:
        before = session_leaders()
        for program in (storm, rolling, storm, rolling):
            started = Started(processes, *python(program), "forks on and on")
            await asyncio.to_thread(read_number, started.process.stdout)
            started.process.kill()
            assert await started.end == -signal.SIGKILL
            started.close()
        assert session_leaders() <= before

    run(body)


def session_leaders() -> set[str]:
    """Return the command lines of what "forks on and on" left."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"forks on and on" in (folder / "cmdline").read_bytes():
                found.add(folder.name)
    return found


def guard_alone(program: str) -> str:
    """Run a program that takes the guard apart, in a process that is nobody else's; return what it prints."""
    start = "import json, os, signal, socket, sys, time\nfrom gleitzeit_host import guard\n"
    start += "guard._prctl(guard.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)\n"
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    return done.stdout.strip()


def test_what_is_forked_while_the_rest_is_killed_is_killed_as_well() -> None:
    program = """
    def sleeper():
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
        return pid
    late, kill = [sleeper()], guard.kill
    def kill_and_fork(pids):
        foreign = kill(pids)
        if len(late) < 4:
            late.append(sleeper())
        return foreign
    guard.kill = kill_and_fork
    guard.kill_everything_below()
    print(len(late), guard.has_children())
    """
    assert guard_alone(program) == "4 False"


def test_what_runs_as_another_user_is_left_alone_and_not_waited_for() -> None:
    program = """
    def sleeper():
        pid = os.fork()
        if pid == 0:
            time.sleep(1000)
        return pid
    pids, kill = [sleeper(), sleeper()], os.kill
    def refuse(pid, number):
        if pid == pids[0]:
            raise PermissionError
        kill(pid, number)
    os.kill = refuse
    guard.kill_everything_below()
    print([os.path.exists(f"/proc/{pid}") for pid in pids])
    kill(pids[0], signal.SIGKILL)
    """
    assert guard_alone(program) == "[True, False]"


def test_a_keeper_whose_guard_is_gone_already_starts_nothing() -> None:
    program = """
    ours, theirs = socket.socketpair()
    keeper = os.fork()
    if keeper == 0:
        guard.keep(theirs, 1, 7, [b"/bin/true"], {}, [0, 1, 2])  # adopted by this process, and not by process 1
    print(os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1]))
    theirs.close()
    print(ours.recv(1000))
    """
    assert guard_alone(program).split("\n") == ["1", "b''"]


def test_a_guard_that_cannot_fork_says_so_and_lives_on() -> None:
    program = """
    def fork():
        raise BlockingIOError(11, "Resource temporarily unavailable")
    os.fork = fork
    ours, theirs = socket.socketpair()
    guard.Guard(theirs).obey({"spawn": 7, "argv": ["x"], "env": {}})
    print(ours.recv(1000).decode(), end="")
    """
    assert json.loads(guard_alone(program)) == {
        "id": 7,
        "error": "no process can be forked: Resource temporarily unavailable",
    }


STUBBORN = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
def announce():
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()}\\n")
announce()
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            announce()
            os.execve(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"], {})
        os._exit(0)
print("ready", flush=True)
while True:
    time.sleep(1000)
"""

HOST = """
import asyncio, os, sys
from gleitzeit_host.processes import Processes
program, record, count = sys.argv[1:]

async def main():
    processes = Processes()
    for _ in range(int(count)):
        argv = [sys.executable, "-I", "-S", "-c", program, record]
        process = processes.spawn(argv, {}, on_started=print, on_exit=print, on_error=print)
        ready = asyncio.Event()
        asyncio.get_running_loop().add_reader(process.stdout, ready.set)
        await ready.wait()
        asyncio.get_running_loop().remove_reader(process.stdout)
    os.write(1, b"READY")
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def trials() -> range:
    return range(int(os.environ.get("GLEITZEIT_TRIALS", "5")))


def test_nothing_outlives_a_host_that_is_killed(tmp_path: Path, trials: range) -> None:
    for trial in trials:
        record = tmp_path / f"pids{trial}"
        host = subprocess.Popen(
            [sys.executable, "-c", HOST, STUBBORN, str(record), "3"], stdout=subprocess.PIPE, start_new_session=True
        )
        with host:
            assert host.stdout is not None
            seen: Any = b""
            while b"READY" not in seen:
                assert select.select([host.stdout], [], [], TIMEOUT)[0]
                seen += os.read(host.stdout.fileno(), 1000)
            wait_for_lines(record, 12)
            if trial % 2:  # even then
                (guard,) = children(host.pid)
                for pid in (guard, *children(guard)):
                    os.kill(pid, signal.SIGSTOP)
            host.kill()
        pids = [int(line) for line in record.read_text().splitlines()]
        assert len(pids) == 12
        assert all(wait_for_end(pid, TIMEOUT) for pid in pids)


def wait_for_lines(path: Path, count: int) -> None:
    for _ in range(2000):
        if len(path.read_text().splitlines()) >= count:
            return
        select.select([], [], [], 0.01)
    raise AssertionError(f"{path.read_text()!r} has not {count} lines")
