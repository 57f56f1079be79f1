"""The entry for an MCP client's configuration, and the client's own file, of which nothing else may change."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.host import TIMEOUT
from support.shell import Shell

NAMES = ["claude-desktop", "claude-code", "vscode", "cursor", "zed", "json"]
DESKTOP = "home/Library/Application Support" if sys.platform == "darwin" else "home/config"
ZED = "home/.config" if sys.platform == "darwin" else "home/config"
FILES = {
    "claude-desktop": (f"{DESKTOP}/Claude/claude_desktop_config.json", "mcpServers"),
    "claude-code": (".mcp.json", "mcpServers"),
    "vscode": (".vscode/mcp.json", "servers"),
    "cursor": ("home/.cursor/mcp.json", "mcpServers"),
    "zed": (f"{ZED}/zed/settings.json", "context_servers"),
}


class ClientConfig(Shell):
    """Runs `client-config`."""

    def __call__(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return super().__call__("client-config", *arguments, **{"timeout": TIMEOUT, **options})

    def write(self, name: str, *arguments: str) -> str:
        done = self(name, "--write", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture
def shell(tmp_path: Path) -> ClientConfig:
    return ClientConfig(tmp_path)


def printed(done: subprocess.CompletedProcess[str]) -> Any:
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- what is printed


@pytest.mark.parametrize("name", NAMES)
def test_each_client_gets_the_format_that_it_reads(shell: ClientConfig, name: str) -> None:
    shown = printed(shell(name))
    ((key, servers),) = shown.items()
    assert key == FILES.get(name, ("", "mcpServers"))[1]
    entry = servers["gleitzeit"]
    assert entry.get("type") == ("stdio" if name in ("claude-code", "vscode") else None)
    assert Path(entry["command"]).is_absolute()
    assert entry["args"][-1] == "serve"
    assert name in shell("--help").stdout


def test_relative_paths_become_absolute_and_are_passed_on(shell: ClientConfig, tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "my.toml").write_text("")
    shown = printed(
        shell("json", "--path", "a b", "--path", str(tmp_path), "--config", "my.toml", "--log-level", "info")
    )
    folder, file = str(tmp_path / "a b"), str(tmp_path / "my.toml")
    expected = ["serve", "--path", folder, "--path", str(tmp_path), "--config", file, "--log-level", "info"]
    assert shown["mcpServers"]["gleitzeit"]["args"][-len(expected) :] == expected


@pytest.mark.parametrize("has_script", [True, False])
def test_the_command_is_the_script_beside_the_interpreter_or_else_the_module(
    shell: ClientConfig, tmp_path: Path, has_script: bool
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    script = python.with_name("gleitzeit-host")
    if has_script:
        script.write_text("")
        script.chmod(0o755)
    shell.environment["PYTHONPATH"] = os.pathsep.join([shell.environment["PYTHONPATH"], *filter(None, sys.path)])
    entry = printed(shell("json", python=str(python)))["mcpServers"]["gleitzeit"]
    expected = [str(script)] if has_script else [str(python), "-P", "-m", "gleitzeit_host"]
    assert [entry["command"], *entry["args"]] == [*expected, "serve"]


def test_what_is_printed_launches_a_host_from_any_folder(shell: ClientConfig) -> None:
    entry = printed(shell("json"))["mcpServers"]["gleitzeit"]
    call = {"jsonrpc": "2.0", "id": 1, "method": "echo/say", "params": {"message": "hi"}}
    done = subprocess.run(
        [entry["command"], *entry["args"]],
        cwd="/",
        env=shell.environment,
        input=json.dumps(call) + "\n",
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert json.loads(done.stdout)["result"] == {"response": "hi"}


def test_an_unknown_client_is_answered_with_those_there_are(shell: ClientConfig) -> None:
    done = shell("emacs")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no client 'emacs'" in done.stderr
    assert all(name in done.stderr for name in NAMES)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["json", "--path", "missing"], "there is no such folder"),
        (["json", "--config", "missing.toml"], "missing.toml: No such file"),
        (["json", "--config", "broken.toml"], "limits.qeue: unknown key"),
        (["json", "--write"], "paste what is printed"),
        ([], "required: NAME"),
    ],
)
def test_what_the_host_would_refuse_is_refused(shell: ClientConfig, arguments: list[str], complaint: str) -> None:
    (shell.folder / "broken.toml").write_text("[limits]\nqeue = 1\n")
    done = shell(*arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_a_path_that_json_cannot_hold_is_refused(shell: ClientConfig, tmp_path: Path) -> None:
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    Path(folder).mkdir()
    done = shell("json", "--path", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


# ---- what is written


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_there_is_made_with_its_folders(shell: ClientConfig, tmp_path: Path, name: str) -> None:
    told = shell.write(name)
    file = tmp_path / FILES[name][0]
    assert json.loads(file.read_text()) == printed(shell(name))
    assert f"{file} is written." in told
    assert "+++" in told
    assert '+    "gleitzeit": {' in told
    assert set(names_in(file.parent)) - {"home"} == {file.name}


OTHERS = """{
\t"theme" : "dark",  "big": 12345678901234567890.10, "e": 1E400,
\t"%s": {
\t\t"other": {"command": "x", "env": {"a": "\\u00fc\\ud800"}}
\t},
\t"last": [1,2 , 3]
}"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("name", FILES)
def test_every_other_byte_of_the_file_stays(shell: ClientConfig, tmp_path: Path, name: str, newline: str) -> None:
    path, key = FILES[name]
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    before = (OTHERS % key).replace("\n", newline)
    file.write_bytes(before.encode())
    told = shell.write(name)
    after = file.read_bytes().decode()
    head, tail = before.split(newline + "\t},")
    assert after.startswith(head + "," + newline + '\t\t"gleitzeit": {')
    assert after.endswith(newline + "\t}," + tail)
    assert json.loads(after)[key]["gleitzeit"] == printed(shell(name))[key]["gleitzeit"]
    assert list(json.loads(after)) == list(json.loads(before))
    assert after.count("\n") == after.count(newline)
    backup = file.with_name(file.name + ".bak")
    assert backup.read_bytes() == before.encode()
    assert str(backup) in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "before",
    ["", " \n", "{}", "{ }\n", '{"mcpServers": {}}', '{"a": {"b": 1}, "mcpServers": {"x": {}}}', '{"a": "}"}'],
)
def test_any_object_can_be_added_to(shell: ClientConfig, tmp_path: Path, before: str) -> None:
    (tmp_path / ".mcp.json").write_text(before)
    shell.write("claude-code")
    wanted = printed(shell("claude-code"))
    found = json.loads((tmp_path / ".mcp.json").read_text())
    assert found["mcpServers"].pop("gleitzeit") == wanted["mcpServers"]["gleitzeit"]
    expected = json.loads(before) if before.strip() else {}
    assert found == {**expected, "mcpServers": expected.get("mcpServers", {})}


def test_an_older_entry_is_brought_up_to_date_and_keeps_what_else_it_has(shell: ClientConfig, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shell.write("cursor", "--path", "one")
    file = tmp_path / "home/.cursor/mcp.json"
    before = json.loads(file.read_text())
    before["mcpServers"]["gleitzeit"]["env"] = {"KEY": "secret"}
    file.write_text(json.dumps(before))
    shell.write("cursor")
    entry = json.loads(file.read_text())["mcpServers"]["gleitzeit"]
    assert entry == {**printed(shell("cursor"))["mcpServers"]["gleitzeit"], "env": {"KEY": "secret"}}


def test_writing_what_is_there_writes_nothing(shell: ClientConfig, tmp_path: Path) -> None:
    shell.write("vscode")
    file = tmp_path / ".vscode/mcp.json"
    before = file.stat()
    assert "has it already; nothing was written" in shell.write("vscode")
    assert json.loads(shell.write("vscode", "--json")) == {"file": str(file), "changed": False, "backup": None}
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert names_in(file.parent) == ["mcp.json"]


def test_no_backup_is_ever_overwritten(shell: ClientConfig, tmp_path: Path) -> None:
    file = tmp_path / ".mcp.json"
    for count in range(3):
        file.write_text(f'{{"count": {count}}}')
        shell.write("claude-code")
    kept = [file.with_name(f".mcp.json.bak{suffix}").read_text() for suffix in ("", 1, 2)]
    assert kept == ['{"count": 0}', '{"count": 1}', '{"count": 2}']


def test_the_mode_is_kept_and_a_link_is_followed(shell: ClientConfig, tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "mine.json"
    real.parent.mkdir()
    real.write_text("{}")
    real.chmod(0o600)
    (tmp_path / ".mcp.json").symlink_to("dotfiles/mine.json")
    told = json.loads(shell.write("claude-code", "--json"))
    assert told == {"file": str(real), "changed": True, "backup": f"{real}.bak"}
    assert (tmp_path / ".mcp.json").is_symlink()
    assert "gleitzeit" in json.loads(real.read_text())["mcpServers"]
    assert names_in(real.parent) == ["mine.json", "mine.json.bak"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in real.parent.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('// mine\n{"theme": "dark"}', "not plain JSON"),
        ('{"theme": "dark",}', "not plain JSON"),
        ('{"theme": NaN}', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "the same key twice"),
        ("[1]", "not a JSON object"),
        ('{"context_servers": null}', "'context_servers' is not an object"),
        ("[" * 100_000, "nested too deep"),
        (b"\xff\xfe{}", "not UTF-8"),
        ("\ufeff{}", "not plain JSON"),
    ],
)
def test_a_file_that_cannot_be_added_to_is_left_alone(
    shell: ClientConfig, tmp_path: Path, content: str | bytes, complaint: str
) -> None:
    file = tmp_path / FILES["zed"][0]
    file.parent.mkdir(parents=True)
    data = content if isinstance(content, bytes) else content.encode()
    file.write_bytes(data)
    done = shell("zed", "--write")
    assert done.returncode == 2
    assert f"{file}: " in done.stderr
    assert complaint in done.stderr
    assert "paste what is printed" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout) == printed(shell("zed"))
    assert file.read_bytes() == data
    assert names_in(file.parent) == [file.name]


@pytest.mark.parametrize("obstacle", ["a folder", "a pipe", "a circle", "a file for a folder"])
def test_what_is_no_file_is_refused(shell: ClientConfig, tmp_path: Path, obstacle: str) -> None:
    file = tmp_path / ".vscode" / "mcp.json"
    if obstacle == "a file for a folder":
        file.parent.write_text("")
    else:
        file.parent.mkdir()
    if obstacle == "a folder":
        file.mkdir()
    elif obstacle == "a pipe":
        os.mkfifo(file)
    elif obstacle == "a circle":
        file.symlink_to(file)
    done = shell("vscode", "--write")
    assert done.returncode == 2
    assert str(file) in done.stderr
    assert "nothing was written" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_difference_shows_control_characters_and_keeps_tabs(shell: ClientConfig, tmp_path: Path) -> None:
    (tmp_path / ".mcp.json").write_text('{\n\t"odd": "\x9b31m"\n}\n')
    told = shell.write("claude-code")
    assert '+\t"odd": "\\x9b31m",\n' in told
    assert "\x9b" not in told


def test_a_difference_that_nobody_takes_is_said_in_one_line(shell: ClientConfig) -> None:
    with Path("/dev/full").open("w") as full:
        done = shell("claude-code", "--write", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("gleitzeit-host: the output is lost")
