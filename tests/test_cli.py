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
from support.host import TIMEOUT, descendants, isolated_environment, wait_for_end
from support.misbehave import add_misbehave


class Shell:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "home").mkdir()
        self.environment = isolated_environment(folder / "home")

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, **options}
        return subprocess.run(
            [sys.executable, "-m", "gleitzeit_host", *arguments],
            cwd=self.folder,
            env=self.environment,
            text=True,
            timeout=TIMEOUT * 2,
            check=False,
            **options,
        )


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
