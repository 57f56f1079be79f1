"""stdin and stdout may be anything that a shell, an editor or a service manager hands over."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.host import TIMEOUT, StartHost, isolated_environment

HOST = [sys.executable, "-m", "gleitzeit_host", "serve"]
LINE = b'{"jsonrpc":"2.0","id":1,"method":"echo/say","params":["hi"]}\n'
ANSWER = {"jsonrpc": "2.0", "id": 1, "result": {"response": "hi"}}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    return isolated_environment(tmp_path / "home")


@contextlib.contextmanager
def running(environment: dict[str, str], **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    streams.setdefault("stderr", subprocess.DEVNULL)
    with subprocess.Popen(HOST, env=environment, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(fd: int) -> Any:
    data = b""
    while not data.endswith(b"\n"):
        assert select.select([fd], [], [], TIMEOUT)[0], f"nothing more came after {data!r}"
        chunk = os.read(fd, 65_536)
        assert chunk, f"the end came after {data!r}"
        data += chunk
    return json.loads(data)


def test_a_file_is_answered_into_a_file(tmp_path: Path, environment: dict[str, str]) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(LINE * 3000)
    with source.open("rb") as stdin, target.open("wb") as stdout:
        assert (
            subprocess.run(HOST, env=environment, stdin=stdin, stdout=stdout, timeout=TIMEOUT, check=False).returncode
            == 0
        )
    assert [json.loads(line) for line in target.read_bytes().splitlines()] == [ANSWER] * 3000


def test_a_last_line_without_newline_is_served(environment: dict[str, str]) -> None:
    done = subprocess.run(HOST, env=environment, input=LINE.rstrip(), capture_output=True, timeout=TIMEOUT, check=False)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, ANSWER, b"")


def test_dev_null_as_input_ends_at_once_and_as_output_swallows(environment: dict[str, str]) -> None:
    done = subprocess.run(
        HOST, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = subprocess.run(
        HOST,
        env=environment,
        input=LINE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_device_as_output_is_an_error_and_no_traceback(environment: dict[str, str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            HOST, env=environment, input=LINE, stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT, check=False
        )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_closed_descriptors_are_an_end_of_input(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -m gleitzeit_host serve <&- >&- 2>&-'],
        env=environment,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0


def test_a_socket_pair_serves_both_ways(environment: dict[str, str]) -> None:
    ours, theirs = socket.socketpair()
    with ours, running(environment, stdin=theirs, stdout=theirs) as process:
        theirs.close()
        ours.sendall(LINE)
        assert read_line(ours.fileno()) == ANSWER
        big = "x" * 3_000_000
        ours.sendall(
            json.dumps({**ANSWER, "method": "echo/say", "params": [big]}).replace('"result"', '"r"').encode() + b"\n"
        )
        assert read_line(ours.fileno())["result"] == {"response": big}
        ours.shutdown(socket.SHUT_WR)
        assert process.wait(TIMEOUT) == 0


def test_a_terminal_serves_both_ways(environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    modes = termios.tcgetattr(theirs)
    modes[1] &= ~termios.OPOST
    modes[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    with running(environment, stdin=theirs, stdout=theirs) as process:
        os.write(ours, LINE)
        assert read_line(ours) == ANSWER
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 130
    os.close(ours)
    os.close(theirs)


def test_a_terminal_and_no_command_is_told_what_to_type(environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(HOST[:-1], env=environment, stdin=theirs, capture_output=True, timeout=TIMEOUT, check=False)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3
    assert b"gleitzeit-host call" in done.stdout


@pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
def test_inherited_descriptions_stay_blocking(environment: dict[str, str], kind: str) -> None:
    ours, theirs = {
        "pipe": os.pipe,
        "socket": lambda: tuple(s.detach() for s in socket.socketpair()),
        "terminal": pty.openpty,
    }[kind]()
    source, target = os.pipe()
    output = theirs
    with running(environment, stdin=source, stdout=output, stderr=output):
        os.write(target, LINE)
        assert select.select([ours], [], [], TIMEOUT)[0]
        assert not fcntl.fcntl(output, fcntl.F_GETFL) & os.O_NONBLOCK
        assert not fcntl.fcntl(source, fcntl.F_GETFL) & os.O_NONBLOCK
    for fd in (ours, theirs, source, target):
        os.close(fd)


def test_a_program_after_the_host_still_reads_and_writes(environment: dict[str, str]) -> None:
    serve = f'"{sys.executable}" -m gleitzeit_host serve'
    script = f"{serve} </dev/null; {serve}; echo after; cat"
    done = subprocess.run(
        ["sh", "-c", f"( {script} ) 2>&1"],
        env=environment,
        input=LINE,
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    first, after = done.stdout.splitlines()
    assert (json.loads(first), after) == (ANSWER, b"after")


def test_a_reader_that_vanishes_ends_the_host_even_when_it_writes_nothing(environment: dict[str, str]) -> None:
    with running(environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None  # noqa: PT018
        process.stdin.write(LINE)
        process.stdin.flush()
        assert read_line(process.stdout.fileno()) == ANSWER
        process.stdout.close()
        assert process.wait(TIMEOUT) == 1
        assert process.stderr.read() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_answers_what_is_under_way_and_ends_with_its_own_status(
    start_misbehave: StartHost, number: signal.Signals
) -> None:
    host = start_misbehave()
    id = host.request("misbehave/hold")
    host.call("misbehave/echo", {"value": "it has begun"})
    host.kill(number)
    assert host.error(id).code == -31005
    assert host.wait() == 128 + number
    assert "Traceback" not in host.stderr


def test_end_of_input_waits_for_the_calls_under_way_within_their_deadlines(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    id = host.request("misbehave/hold", {"_meta": {"timeoutMs": 300}})
    assert host.finish() == 0
    assert host.error(id).code == -31002


def test_a_client_that_does_not_read_stops_the_host_reading_and_memory_stays_flat(environment: dict[str, str]) -> None:
    with running(environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        pipe = process.stdin.fileno()
        process.stdin.write(LINE)
        process.stdin.flush()
        read_line(process.stdout.fileno())
        before = resident(process.pid)
        os.set_blocking(pipe, False)
        block = json.dumps({**json.loads(LINE), "params": ["x" * 50_000]}).encode() + b"\n"
        sent = 0
        while select.select([], [pipe], [], 1.0)[1]:
            with contextlib.suppress(BlockingIOError):
                sent += os.write(pipe, block * 4)
            assert sent < 400_000_000, "the host never stopped reading"
        assert resident(process.pid) - before < 100 * 1024 * 1024


def test_a_line_of_very_many_values_takes_little_more_memory_than_its_text(environment: dict[str, str]) -> None:
    many = 8_000_000
    lines = (
        (b"[" + b"1," * many + b"1]", None),
        (b'{"id":4,"x":[' + b"{}," * many + b"1]}", 4),
        (b'{"jsonrpc":"2.0","id":5,"method":"echo/say","params":{"message":[' + b"1," * many + b"1]}}", 5),
        (b'{"jsonrpc":"2.0","id":6,"method":"echo/say","params":{"message":"' + b"[," * many + b'"}}', 6),
    )
    with running(environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018
        for line, id in lines:
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            answer = read_line(process.stdout.fileno())
            assert answer["id"] == id
            assert "result" in answer if id == 6 else answer["error"]["code"] in (-31009, -32600)
        status = Path(f"/proc/{process.pid}/status").read_text()
    assert int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) < 220 * 1024


def resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
