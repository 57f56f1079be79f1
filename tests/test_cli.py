"""The command line: results on stdout, everything else on stderr, the exit status tells."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.host import TIMEOUT, descendants, wait_for_end
from support.misbehave import add_misbehave
from support.shell import Shell


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["echo/say", "message=hi there"], {"response": "hi there"}),
        (["echo/say", "message=5"], {"response": "5"}),
        (["echo/say", 'message:="quoted"'], {"response": "quoted"}),
        (["echo/say", '{"message": "an object"}'], {"response": "an object"}),
        (["echo/say", "message=a=b"], {"response": "a=b"}),
    ],
)
def test_call_prints_the_result(shell: Shell, words: list[str], expected: Any) -> None:
    done = shell("call", *words)
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (0, expected, "")


@pytest.mark.parametrize(
    "words",
    [
        ["echo/say", "--json", "message=x"],
        ["--json", "echo/say", "message=x"],
        ["echo/say", "message=x", "--json"],
        ["echo/say", "--timeout", "9", "message=x", "--json"],
        ["echo/say", "--json", '{"message": "x"}'],
    ],
)
def test_options_may_stand_anywhere(shell: Shell, words: list[str]) -> None:
    done = shell("call", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"response":"x"}\n', "")


def test_a_failed_program_is_a_result_and_the_help_says_so(shell: Shell) -> None:
    done = shell("call", "python/execute", "code=1/0")
    assert (done.returncode, json.loads(done.stdout)["success"]) == (0, False)
    assert "`success` is false" in shell("call", "--help").stdout


def test_values_are_typed_by_the_schema(shell: Shell) -> None:
    done = shell(
        "call", "python/execute", "code=result = [x, timeout_is]", 'args={"x": 1, "timeout_is": null}', "timeout=5"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["result"] == [1, None]


def test_json_is_one_line(shell: Shell) -> None:
    done = shell("call", "--json", "echo/say", "message=ü")
    assert done.stdout == '{"response":"ü"}\n'
    done = shell("call", "echo/say", "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"]["code"] == -32602


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["echo/say"], "invalid_params (-32602): Invalid params for echo/say"),
        (["echo/shout"], "method_not_found (-32601)"),
        (["llm/chat", "prompt=hi"], "provider_unavailable (-31001)"),
        (["echo/say", "message"], "neither key=value nor key:=JSON"),
        (["python/execute", "timeout=soon"], "timeout (number): 'soon' is not JSON"),
        (["echo/say", "{broken"], "is not JSON"),
        (["echo/say", "message=x", "--provider", "nobody"], "There is no provider 'nobody'"),
        (["python/execute", "code=while True: pass", "--timeout", "1"], "timeout (-31002)"),
    ],
)
def test_a_call_that_fails_says_why_and_exits_with_1(shell: Shell, words: list[str], complaint: str) -> None:
    done = shell("call", *words)
    assert (done.returncode, done.stdout) == (1, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_the_hosts_own_methods_can_be_called(shell: Shell) -> None:
    assert json.loads(shell("call", "host/info").stdout)["name"] == "gleitzeit-host"
    assert json.loads(shell("call", "rpc.discover").stdout)["openrpc"] == "1.3.2"


def test_providers_and_protocols_are_listed(shell: Shell, tmp_path: Path) -> None:
    add_misbehave(tmp_path / "path", "eager", methods=None)
    add_misbehave(tmp_path / "path", "broken", methods=None, switches={"hello": "error"})
    done = shell("providers", "--path", "path")
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "ready" in rows["eager"]
    assert "misbehave/echo" in rows["eager"]
    assert "unavailable" in rows["broken"]
    assert "idle" in rows["echo"]
    listed = json.loads(shell("providers", "--json").stdout)["providers"]
    assert {"name", "state", "methods", "restarts", "latencyMs"} <= listed[0].keys()
    done = shell("protocols")
    assert "echo/v1  Echo" in done.stdout
    assert "no provider" in next(line for line in done.stdout.splitlines() if "llm/chat" in line)
    assert {row["name"] for row in json.loads(shell("protocols", "--json").stdout)["protocols"]} >= {
        "echo",
        "llm",
        "python",
    }


def test_a_broken_protocol_file_is_named_with_the_place_and_the_others_load(shell: Shell, tmp_path: Path) -> None:
    document = json.loads((Path(__file__).parent.parent / "protocols/echo/v1.json").read_text())
    changes: dict[str, Callable[[Any], object]] = {
        "type": lambda d: d["methods"][0]["params"][0].update(schema={"type": "strange"}),
        "fetch": lambda d: d["methods"][0]["params"][0].update(schema={"$ref": "https://example.com/x.json"}),
        "name": lambda d: d["methods"][0].update(name="other/say"),
        "server": lambda _d: None,
        "lacks": lambda d: d["methods"][0].pop("params"),
    }
    for name, change in changes.items():
        changed = json.loads(json.dumps(document).replace("echo/say", f"{name}/say"))
        change(changed)
        (tmp_path / "path" / "protocols" / name).mkdir(parents=True)
        (tmp_path / "path" / "protocols" / name / "v1.json").write_text(json.dumps(changed))
    (tmp_path / "path" / "protocols" / "syntax").mkdir()
    (tmp_path / "path" / "protocols" / "syntax" / "v1.json").write_text('{"openrpc": ')
    done = shell("call", "--path", "path", "echo/say", "message=x")
    assert json.loads(done.stdout) == {"response": "x"}
    for name, place in {
        "type": "/methods/0/params/0/schema: Not a valid JSON Schema",
        "fetch": "/methods/0/params/0/schema/$ref: 'https://example.com/x.json' is outside",
        "name": "/methods/0/name: 'other/say' does not belong to protocol 'name'",
        "server": "'server' is reserved",
        "lacks": "/methods/0: Object missing required field `params`",
        "syntax": "syntax/v1.json: Input data was truncated",
    }.items():
        assert f"{name}/v1.json" in done.stderr
        assert place in done.stderr


def test_trust_is_given_listed_and_taken_back(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "gleitzeit.toml").write_text('[providers.echo]\nenv = ["SECRET"]\n')
    assert "trust" in shell("call", "echo/say", "message=x").stderr
    assert shell("trust", "gleitzeit.toml").returncode == 0
    assert shell("call", "echo/say", "message=x").stderr == ""
    assert str(tmp_path / "gleitzeit.toml") in shell("trust").stdout
    assert shell("trust", "--revoke", "gleitzeit.toml").returncode == 0
    assert "trust" in shell("call", "echo/say", "message=x").stderr


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--no-such-option"], "unrecognized arguments"),
        (["fly"], "invalid choice"),
        (["--path", "missing", "call", "echo/say"], "there is no such folder"),
        (["--config", "missing.toml", "providers"], "missing.toml: No such file"),
        (["--config", "broken.toml", "serve"], "limits.qeue: unknown key; did you mean `queue`?"),
        (["trust", "missing.toml"], "No such file"),
        (["call"], "the following arguments are required: METHOD\n"),
        (["call", "echo/say", "--timeout", "0"], "argument --timeout: '0' is not a number of seconds above 0"),
        (["call", "echo/say", "--timeout", "soon"], "argument --timeout: 'soon' is not a number of seconds above 0"),
        (["call", "echo/say", "--fast", "message=x"], "unrecognized arguments: --fast"),
        (["providers", "more"], "unrecognized arguments: more"),
    ],
)
def test_what_cannot_be_understood_exits_with_2_and_says_why(shell: Shell, words: list[str], complaint: str) -> None:
    (shell.folder / "broken.toml").write_text("[limits]\nqeue = 1\n")
    done = shell(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_and_the_help_are_results(shell: Shell) -> None:
    assert shell("--version").stdout.startswith("gleitzeit-host 0.")
    assert "COMMAND" in shell("--help").stdout


def test_a_reader_that_is_gone_makes_no_traceback(shell: Shell) -> None:
    read, write = os.pipe()
    os.close(read)
    done = shell("call", "host/info", capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize("command", [["providers"], ["protocols"], ["--help"], ["--version"], ["trust"]])
def test_a_list_that_nobody_reads_makes_no_traceback(shell: Shell, command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = shell(*command, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.stderr == ""


COMMANDS = [["call", "echo/say", "message=x"], ["providers"], ["protocols"], ["trust"], ["--help"], ["--version"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_is_lost_is_said_in_one_line(shell: Shell, command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = shell(*command, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (
        1,
        "gleitzeit-host: the output is lost: stdout: No space left on device\n",
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_stdout_is_output_that_is_lost(shell: Shell, command: list[str]) -> None:
    done = shell(*command, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (1, "gleitzeit-host: the output is lost: stdout: Bad file descriptor\n")


@pytest.mark.parametrize("closed", [[0], [2], [0, 1, 2]])
def test_closed_standard_streams_are_not_taken_for_others(shell: Shell, closed: list[int]) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    done = shell("call", "echo/say", "message=x", preexec_fn=close)
    assert done.stderr == ""
    assert (done.returncode, done.stdout) == ((1, "") if 1 in closed else (0, '{\n  "response": "x"\n}\n'))
    failed = shell("call", "no/method", preexec_fn=close)
    assert (failed.returncode, failed.stdout) == (1, "")


@pytest.mark.parametrize(
    "words",
    [
        ["call", b"echo/\xff"],
        ["call", "echo/say", b"message=\xff"],
        ["providers", "--path", b"\xff"],
        ["trust", b"\xff"],
    ],
)
def test_arguments_that_are_not_utf_8_are_refused(shell: Shell, words: list[Any]) -> None:
    done = shell(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "\\udcff' is not UTF-8" in done.stderr


@pytest.mark.parametrize("command", [["call", "echo/say", "message=x"], ["serve"], ["providers"], ["trust", "x"]])
def test_a_working_folder_that_is_gone_is_said_in_one_line(shell: Shell, command: list[str]) -> None:
    (shell.folder / "gone").mkdir()
    for leave in ("rmdir ../gone", "mkdir -p $'../\\xff'; cd $'../\\xff'"):
        launcher = ["bash", "-c", f'cd gone; {leave}; exec "$@"', "-"]
        done = shell(*command, launcher=launcher, timeout=TIMEOUT)
        (shell.folder / "gone").mkdir(exist_ok=True)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("gleitzeit-host: the working folder ")


HOSTILE = "\x1b[2J\x07\x7f\x9b31m\u202e\u2066\r\n"
SHOWN = r"\x1b[2J\x07\x7f\x9b31m\u202e\u2066\r\n"


def test_control_characters_are_shown_and_not_obeyed(shell: Shell, tmp_path: Path) -> None:
    refusal = '{"jsonrpc":"2.0","id":$ID,"error":' + json.dumps({"code": 1, "message": HOSTILE}) + "}"
    add_misbehave(tmp_path / "path", methods=None, switches={"hello": "raw", "hello_raw": refusal})
    (tmp_path / "path" / "protocols" / "odd").mkdir()
    odd: dict[str, Any] = {"openrpc": "1.3.2", "info": {"title": HOSTILE, "version": "1"}, "methods": []}
    (tmp_path / "path" / "protocols" / "odd" / "v1.json").write_text(json.dumps(odd))
    odd["methods"] = [{"name": HOSTILE, "params": [], "result": {"name": "r", "schema": {}}}]
    (tmp_path / "path" / "protocols" / "broken").mkdir()
    (tmp_path / "path" / "protocols" / "broken" / "v1.json").write_text(json.dumps(odd))
    (tmp_path / "bad.toml").write_text(f"{json.dumps(HOSTILE[:-2])} = 1\n")
    said = [
        shell("call", "--path", "path", "misbehave/echo"),
        shell("providers", "--path", "path"),
        shell("protocols", "--path", "path"),
        shell("protocols", "--path", "path", "--json"),
        shell("call", HOSTILE),
        shell("call", HOSTILE, "--json"),
        shell("call", "echo/say", f"message={HOSTILE}"),
        shell("providers", "--config", "bad.toml"),
        shell("providers", "--no" + HOSTILE),
        shell(HOSTILE),
    ]
    for done in said:
        for text in (done.stdout, done.stderr):
            assert not any(c in text.replace("\n", "") for c in HOSTILE[:-1] if not c.isprintable()), done
            assert "Traceback" not in text
    assert SHOWN in said[0].stderr
    assert SHOWN in said[1].stdout
    assert SHOWN in said[2].stdout
    assert SHOWN in said[2].stderr
    assert HOSTILE in [row["title"] for row in json.loads(said[3].stdout)["protocols"]]
    assert SHOWN in said[4].stderr
    assert json.loads(said[5].stderr)["error"]["code"] == -32601
    assert json.loads(said[6].stdout) == {"response": HOSTILE}
    assert SHOWN[:-4] in said[7].stderr
    assert SHOWN in said[8].stderr


def test_modules_of_the_working_folder_are_not_imported(shell: Shell) -> None:
    for name in ("msgspec", "argparse", "uvloop", "platform"):
        (shell.folder / f"{name}.py").write_text("raise SystemExit('imported from the working folder')\n")
    done = shell("call", "echo/say", "message=x")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_launcher_that_ignores_the_end_of_its_children_makes_no_difference(shell: Shell) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # inherited by the host; subprocess copes with it
    try:
        done = shell("call", "echo/say", "message=x")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (json.loads(done.stdout), done.stderr) == ({"response": "x"}, "")


def test_an_interrupt_ends_a_call_and_all_that_it_started(shell: Shell, tmp_path: Path) -> None:
    add_misbehave(tmp_path / "path")
    with subprocess.Popen(
        [sys.executable, "-m", "gleitzeit_host", "call", "--path", "path", "--log-level", "debug", "misbehave/hold"],
        cwd=shell.folder,
        env=shell.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "misbehave: started" in (line := process.stderr.readline()), line
        below = list(descendants(process.pid))
        assert len(below) >= 3  # guard, keeper, provider
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 130
        assert "Traceback" not in process.stderr.read()
        assert all(wait_for_end(pid, TIMEOUT) for pid in below)
