"""python/v1 through the host's pipe: what code gives back, and how each way to fail is told apart."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.host import HostError, HostProcess, StartHost, descendants, wait_for_end

SETTINGS = """
[providers.python.settings]
timeout = 15
max_timeout = 60
memory_mb = 300
output_kb = 4
output_limit_mb = 8
result_mb = 1
concurrency = 4
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[HostProcess]:
    """One host for most of the tests: no run can hurt the next."""
    with HostProcess(tmp_path_factory.mktemp("home"), config=f"roots = [{json.dumps(str(root))}]\n{SETTINGS}") as host:
        yield host


def execute(host: HostProcess, code: str, **params: Any) -> dict[str, Any]:
    answer: dict[str, Any] = host.call("python/execute", {"code": code, **params})
    assert answer["success"] is (answer["error"] is None)
    assert answer["sandbox"] == "process"
    return answer


def error_of(host: HostProcess, code: str, **params: Any) -> dict[str, str]:
    answer = execute(host, code, **params)
    assert answer["result"] is None
    error: dict[str, str] = answer["error"]
    return error


# ---- results


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -7,
        2**53 + 1,
        2**64,
        10**4000,
        1.5,
        -0.0,
        1e300,
        5e-324,
        "",
        "text",
        'ü€𝄞 \u2028 \0 \x1f "\\',
        [],
        [1, [2, [3.0, None]]],
        {},
        {"a": {"b": [True, "c"]}, "": 0},
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_json_value_keeps_its_type(python: HostProcess, value: Any) -> None:
    answer = execute(python, f"result = {value!r}")
    assert answer["success"]
    assert (type(answer["result"]), repr(answer["result"])) == (type(value), repr(value))
    assert "result_is_repr" not in answer


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("(1, 2)", "(1, 2)"),
        ("[1, (2,)]", "[1, (2,)]"),
        ("{3}", "{3}"),
        ("{1: 2}", "{1: 2}"),
        ("float('nan')", "nan"),
        ("[float('-inf')]", "[-inf]"),
        ("'a\\ud800'", "'a\\ud800'"),
        ("b'x'", "b'x'"),
        ("1j", "1j"),
        ("...", "Ellipsis"),
    ],
)
def test_a_value_that_is_not_json_comes_as_its_repr(python: HostProcess, expression: str, shown: str) -> None:
    answer = execute(python, f"result = {expression}")
    assert (answer["result"], answer["result_is_repr"]) == (shown, True)


def test_reprs_that_fail_or_are_long_are_still_answers(python: HostProcess) -> None:
    failing = "class Bad:\n    def __repr__(self): raise RuntimeError\nresult = Bad()"
    assert execute(python, failing)["result"] == "<Bad whose repr raised RuntimeError>"
    assert execute(python, "result = 10**10000")["result"] == "<int whose repr raised ValueError>"
    assert "100000 characters" not in execute(python, "result = {'x' * 100_000}")["result"][:-1000]
    assert len(execute(python, "result = {'x' * 1_000_000}")["result"]) < 70_000


def test_values_that_contain_themselves_come_as_their_repr(python: HostProcess) -> None:
    assert execute(python, "result = []; result.append(result)")["result"] == "[[...]]"
    deep = execute(python, "result = []\nfor _ in range(150): result = [result]")
    assert deep["result_is_repr"]


def test_the_last_expression_is_the_result_unless_result_was_assigned(python: HostProcess) -> None:
    assert execute(python, "x = 20\nx + 1\n")["result"] == 21
    assert execute(python, "result = 'assigned'\n2")["result"] == "assigned"
    assert execute(python, "x = 1")["result"] is None
    assert execute(python, "")["result"] is None
    assert execute(python, "# nothing")["result"] is None


def test_code_is_a_main_program_of_its_own(python: HostProcess) -> None:
    code = """
from __future__ import annotations
import dataclasses, pickle, sys

@dataclasses.dataclass
class Point:
    x: int

assert pickle.loads(pickle.dumps(Point(1))) == Point(1)
assert sys.modules["__main__"].Point is Point
result = [__name__, sys.argv, sorted(name for name in globals() if not name.startswith("_"))]
"""
    names = ["Point", "annotations", "context", "dataclasses", "pickle", "sys"]
    assert execute(python, code)["result"] == ["__main__", ["<code>"], names]


def test_standard_output_and_error_come_as_text(python: HostProcess) -> None:
    code = """
import os, subprocess, sys
print("ü", end="|")
print("to stderr", file=sys.stderr)
sys.stdout.buffer.write(b"\\xff|")
os.write(1, b"os|")
subprocess.run(["echo", "child"])
print(sys.stdin.read(), end="")
"""
    answer = execute(python, code)
    assert answer["error"] is None
    assert (answer["stdout"], answer["stderr"]) == ("ü|\ufffd|os|child\n", "to stderr\n")


# ---- what goes in


def test_context_and_args_reach_the_code(python: HostProcess) -> None:
    context = {"nested": {"list": [1, None, "ü"]}, "big": 2**60}
    answer = execute(python, "result = [context, a, _b, ü]", context=context, args={"a": 1.5, "_b": [], "ü": "x"})
    assert answer["result"] == [context, 1.5, [], "x"]
    assert execute(python, "result = context")["result"] == {}


def test_args_that_cannot_be_variables_are_refused_by_name(python: HostProcess) -> None:
    args = {"good": 1, "not good": 1, "class": 1, "": 1, "context": 1, "result": 1, "__name__": 1}
    refusal = python.refusal("python/execute", {"code": "1", "args": args})
    assert refusal.code == -32602
    for name in args.keys() - {"good"}:
        assert repr(name) in refusal.message
    assert len(refusal.data["errors"]) == 6


@pytest.mark.parametrize("params", [{}, {"code": "1", "file": "x.py"}])
def test_exactly_one_of_code_and_file_is_needed(python: HostProcess, params: dict[str, str]) -> None:
    refusal = python.refusal("python/execute", params)
    assert refusal.code == -32602
    assert "`code`" in refusal.message
    assert "`file`" in refusal.message


def test_twenty_megabytes_of_context_pass(python: HostProcess) -> None:
    answer = execute(python, "result = len(context['text'])", context={"text": "x" * (20 << 20)})
    assert answer["result"] == 20 << 20


def test_a_file_inside_the_roots_is_run_under_its_name(python: HostProcess, root: Path) -> None:
    (root / "script.py").write_text("# -*- coding: latin-1 -*-\nword = 'grün'\nraise ValueError(word)\n", "latin-1")
    answer = python.call("python/execute", {"file": str(root / "script.py")})
    assert answer["error"]["message"] == "grün"
    assert 'File "script.py", line 3, in <module>\n    raise ValueError(word)' in answer["error"]["traceback"]


def test_files_outside_the_roots_and_links_that_lead_there_are_denied(
    python: HostProcess, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("result = 1")
    (root / "link.py").symlink_to(outside)
    for path in (outside, root / "link.py", root / ".." / "x.py"):
        assert python.refusal("python/execute", {"file": str(path)}).code == -31008


def test_files_that_cannot_be_read_as_source_are_refused(python: HostProcess, root: Path) -> None:
    (root / "binary.py").write_bytes(b"x = '\xff'")
    (root / "cookie.py").write_bytes(b"# coding: klingon\n")
    os.mkfifo(root / "fifo.py")
    for name in ("binary.py", "cookie.py", "fifo.py", "missing.py", "."):
        refusal = python.refusal("python/execute", {"file": str(root / name)})
        assert refusal.code == -32602, name


def test_execution_modes_that_are_not_there_are_refused_with_those_that_are(python: HostProcess) -> None:
    for mode in ("sandboxed", "local", "process"):
        answer = execute(python, "1", execution_mode=mode)
        assert (answer["execution_mode"], answer["sandbox"]) == (mode, "process")
    refusal = python.refusal("python/execute", {"code": "1", "execution_mode": "docker"})
    assert refusal.code == -32602
    assert "local, process, sandboxed" in refusal.message
    assert "session" in python.refusal("python/execute", {"code": "1", "session": "s"}).message


def test_a_timeout_beyond_the_most_allowed_is_refused(python: HostProcess) -> None:
    assert "max_timeout = 60" in python.refusal("python/execute", {"code": "1", "timeout": 61}).message
    assert python.refusal("python/execute", {"code": "1", "timeout": 0}).code == -32602


# ---- how it fails


def test_an_exception_is_an_answer_with_the_frames_of_the_code(python: HostProcess) -> None:
    code = "import json\ndef parse(text):\n    return json.loads(text)\nprint('before')\nparse('{')\n"
    answer = execute(python, code)
    error = answer["error"]
    assert (error["type"], answer["stdout"]) == ("JSONDecodeError", "before\n")
    assert error["traceback"].startswith('Traceback (most recent call last):\n  File "<code>", line 5, in <module>\n')
    assert "line 3, in parse\n    return json.loads(text)" in error["traceback"]
    assert "decoder.py" not in error["traceback"]
    assert error["traceback"].endswith(f"JSONDecodeError: {error['message']}\n")


def test_chained_exceptions_show_both(python: HostProcess) -> None:
    text = error_of(python, "try:\n    {}['x']\nexcept KeyError as e:\n    raise TypeError('y') from e")["traceback"]
    assert "KeyError: 'x'" in text
    assert "direct cause" in text
    assert "runner" not in text
    assert "execution" not in text


def test_a_syntax_error_is_an_answer(python: HostProcess) -> None:
    error = error_of(python, "x = 1\nif x\n    pass")
    assert error["type"] == "SyntaxError"
    assert 'File "<code>", line 2' in error["traceback"]
    assert error_of(python, "a\0b")["type"] in {"SyntaxError", "ValueError"}


@pytest.mark.parametrize(
    "code", ["raise SystemExit", "import sys; sys.exit(0)", "exit_code = 0; raise SystemExit(None)"]
)
def test_a_clean_exit_is_a_success(python: HostProcess, code: str) -> None:
    answer = execute(python, f"result = 'kept'\n{code}")
    assert (answer["success"], answer["result"]) == (True, "kept")


def test_an_exit_with_a_status_or_a_text_is_a_failure(python: HostProcess) -> None:
    assert execute(python, "import sys; sys.exit(3)")["error"]["type"] == "SystemExit"
    answer = execute(python, "import sys; sys.exit('no disk')")
    assert (answer["error"]["message"], answer["stderr"]) == ("no disk", "no disk\n")


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("while True: pass", "Timeout", "0.3 s"),
        ("import os; os._exit(3)", "Exited", "status 3"),
        ("import os; os._exit(0)", "Exited", "status 0"),
        ("import os; os.abort()", "Signal", "SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "Signal", "SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "Signal", "SIGTERM"),
        ("x = bytearray(1 << 40)", "MemoryError", "300 MiB"),
        ("while True: print('x' * 10_000)", "OutputLimit", "8 MiB"),
        ("result = 'x' * (2 << 20)", "ResultTooLarge", "1048576"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("def f(): f()\nf()", "RecursionError", "recursion"),
    ],
    ids=lambda value: value[:12],
)
def test_every_way_to_fail_is_told_apart(python: HostProcess, code: str, kind: str, message: str) -> None:
    timeout = {"timeout": 0.3} if kind == "Timeout" else {}
    answer = execute(python, f"print('before')\n{code}", **timeout)
    assert answer["error"]["type"] == kind
    assert message in answer["error"]["message"]
    assert answer["stdout"].startswith("before\n")
    assert execute(python, "1")["result"] == 1


def test_output_beyond_the_limit_is_marked(python: HostProcess) -> None:
    answer = execute(python, "import sys\nprint('x' * 5000)\nprint('y', file=sys.stderr)")
    assert (answer["stdout"], answer["stdout_truncated"]) == ("x" * 4096, True)
    assert "stderr_truncated" not in answer


def test_a_forged_report_is_an_error_of_its_own_run_only(python: HostProcess) -> None:
    forged = """
import os, sys
frame = sys._getframe()
while not hasattr(frame.f_locals.get("self"), "_report"):
    frame = frame.f_back
report = frame.f_locals["self"]._report
data = {data!r}
report[9:9 + len(data)] = data
report[:8] = len(data).to_bytes(8)
os._exit(0)
"""
    for data in (
        b"",
        b"\n",
        b'{"error":null,"is_repr":false}\n1\n2',
        b'{"error":null,"is_repr":false}\n[\n1]',
        b"\xff" * 100,
    ):
        assert error_of(python, forged.format(data=data))["type"] == "Exited"
    nested = b'{"error":null,"is_repr":false}\n' + b"[" * 100_000 + b"]" * 100_000
    assert error_of(python, forged.format(data=nested))["type"] == "Exited"
    answer = execute(python, forged.format(data=b'{"error":null,"is_repr":false}\n"forged"'))
    assert (answer["result"], answer["sandbox"]) == ("forged", "process")


# ---- validate and info


@pytest.mark.parametrize("code", ["", "x = 1", "def f():\n    return await_ if 0 else 1", "1 is 1"])
def test_valid_code_is_valid_and_is_not_run(python: HostProcess, code: str) -> None:
    assert python.call("python/validate", {"code": code}) == {"valid": True, "errors": []}


@pytest.mark.parametrize(
    ("code", "line", "column"),
    [
        ("x = 1\nif x\n    pass", 2, 5),
        ("def f():\nreturn", 2, 1),
        ("return 1", 1, 1),
        ("x = 'ü' +", 1, 10),
        ("a = 1\nb\0 = 2", 2, 2),
        ("'''open", 1, 1),
    ],
)
def test_invalid_code_is_told_with_line_and_column(python: HostProcess, code: str, line: int, column: int) -> None:
    answer = python.call("python/validate", {"code": code})
    assert not answer["valid"]
    (error,) = answer["errors"]
    assert (error["line"], error["column"]) == (line, column)
    assert error["message"]


@pytest.mark.parametrize(
    "code",
    [
        "(" * 300,
        "-" * 200_000 + "1",
        "1" + "+1" * 200_000,
        "x" + ".x" * 200_000,
        "9" * 5000,
        "if 1:\n" + "".join(f"{' ' * n}if 1:\n" for n in range(1, 150)),
    ],
    ids=["parentheses", "signs", "sums", "attributes", "digits", "blocks"],
)
def test_source_that_is_too_much_for_the_compiler_is_an_answer(python: HostProcess, code: str) -> None:
    answer = python.call("python/validate", {"code": code})
    assert answer["valid"] is (not answer["errors"])
    assert python.call("python/validate", {"code": "1"})["valid"]


def test_info_describes_the_interpreter_the_sandboxes_and_the_limits(python: HostProcess) -> None:
    info = python.call("python/info")
    assert info["version"] == ".".join(map(str, sys.version_info[:3]))
    assert info["implementation"] == sys.implementation.name.replace("cpython", "CPython")
    assert info["sandboxes"] == [{"level": "process", "available": True}]
    assert info["default"] == "process"
    assert info["limits"]["memory_mb"] == 300
    assert "msgspec" in info["packages"]


# ---- together


def test_a_cancelled_run_is_gone_when_its_call_is_answered(python: HostProcess) -> None:
    id = python.request("python/execute", {"code": "import time\nprint('x')\ntime.sleep(1000)", "timeout": 60})
    assert execute(python, "1")["result"] == 1  # by now the first is under way
    python.cancel(id)
    assert python.error(id).code == -31005
    assert execute(python, "1")["result"] == 1


def test_the_deadline_of_a_call_ends_its_run(python: HostProcess) -> None:
    params = {"code": "import time; time.sleep(1000)", "_meta": {"timeoutMs": 300}}
    assert python.refusal("python/execute", params).code == -31002
    assert execute(python, "1")["result"] == 1


def test_runs_go_side_by_side(python: HostProcess) -> None:
    code = """
import socket, sys
name = "\\0" + context["name"]
if context["first"]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        print("listening")
        connection, _ = server.accept()
        result = connection.recv(100).decode()
else:
    import time
    client = socket.socket(socket.AF_UNIX)
    while client.connect_ex(name): time.sleep(0.01)
    client.send(b"met")
"""
    name = f"gleitzeit-test-{os.getpid()}"
    first = python.request("python/execute", {"code": code, "context": {"name": name, "first": True}})
    second = python.request("python/execute", {"code": code, "context": {"name": name, "first": False}})
    assert python.result(first)["result"] == "met"
    assert python.result(second)["success"]


def test_two_hundred_runs_of_every_kind_are_each_answered_once(python: HostProcess) -> None:
    codes = ["result = {n}", "import os; os._exit(1)", "1/0", "print('x' * 100_000)\n{n}"]
    ids = [python.request("python/execute", {"code": codes[n % 4].format(n=n)}) for n in range(200)]
    for n, id in enumerate(ids):
        answer = python.result(id)
        assert answer["success"] is (n % 4 in {0, 3})
        if answer["success"]:
            assert answer["result"] == n
    assert all(python.answers_to(id) == 1 for id in ids)


def test_a_provider_killed_with_runs_in_flight_leaves_nothing_and_comes_back(start_host: StartHost) -> None:
    host = start_host(config=SETTINGS)
    host.call("python/info")
    id = host.request("python/execute", {"code": "import os, time\nif os.fork() == 0: os.setsid()\ntime.sleep(1000)"})
    host.call("python/info")
    provider = host.provider("python")["pid"]
    below = list(descendants(provider))
    assert len(below) > 3
    os.kill(provider, signal.SIGKILL)
    assert host.error(id).code == -31004
    for pid in below:
        assert wait_for_end(pid, 20)
    assert host.call("python/execute", {"code": "1"})["result"] == 1


def test_the_provider_works_after_its_warm_interpreter_was_killed(start_host: StartHost) -> None:
    host = start_host(config=SETTINGS)
    host.call("python/info")
    (zygote,) = [pid for pid in descendants(host.provider("python")["pid"]) if is_zygote(pid)]
    os.kill(zygote, signal.SIGKILL)
    assert wait_for_end(zygote, 20)
    for n in range(6):
        assert host.call("python/execute", {"code": f"{n}"})["result"] == n


def is_zygote(pid: int) -> bool:
    """Whether a process is the parent of all the others that run the runner's program."""
    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    return b"runner.py" not in Path(f"/proc/{parent}/cmdline").read_bytes()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("colour = 'red'", "colour"),
        ("memory_mb = 'lots'", "memory_mb"),
        ("timeout = 50\nmax_timeout = 20", "max_timeout"),
        ("python = '/bin/false'", "/bin/false does not run"),
    ],
)
def test_settings_that_cannot_be_used_make_the_provider_unavailable(
    start_host: StartHost, settings: str, problem: str
) -> None:
    host = start_host(config=f"[providers.python.settings]\n{settings}")
    with pytest.raises(HostError) as caught:
        host.call("python/execute", {"code": "1"})
    assert caught.value.code == -31001
    assert problem in caught.value.message
