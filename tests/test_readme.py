"""What the README says works as it says."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.host import TIMEOUT, StartHost, isolated_environment

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def subset(expected: object, found: object) -> bool:
    if isinstance(expected, dict) and isinstance(found, dict):
        return all(key in found and subset(value, found[key]) for key, value in expected.items())
    return expected == found


def test_the_first_command_prints_what_the_readme_shows(tmp_path: Path) -> None:
    command = blocks("sh")[0].split("&&")[-1].strip()
    assert command.endswith("| .venv/bin/gleitzeit-host"), command
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "gleitzeit-host").symlink_to(Path(sys.executable).with_name("gleitzeit-host"))
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env=isolated_environment(tmp_path / "home"),
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    )
    shown, found = json.loads(blocks("json")[0]), json.loads(done.stdout)
    del shown["result"]["duration_ms"]
    assert subset(shown, found)
    assert found["result"].keys() == json.loads(blocks("json")[0])["result"].keys()
    assert done.stderr == b""


@pytest.mark.parametrize("language", ["bash", "python"])
def test_the_provider_of_the_readme_serves(tmp_path: Path, start_host: StartHost, language: str) -> None:
    if language == "bash" and not (shutil.which("bash") and shutil.which("jq")):
        pytest.skip("needs bash and jq")
    folder = tmp_path / "folder"
    (folder / "providers" / "shout").mkdir(parents=True)
    (folder / "protocols" / "shout").mkdir(parents=True)
    manifest = blocks("toml")[0]
    if language == "bash":
        manifest = manifest.replace('"{python}", "{dir}/provider.py"', '"bash", "{dir}/provider.py"')
    assert tomllib.loads(manifest)["name"] == "shout"
    (folder / "providers" / "shout" / "provider.toml").write_text(manifest)
    (folder / "providers" / "shout" / "provider.py").write_text(blocks(language)[0])
    (folder / "protocols" / "shout" / "v1.json").write_text(blocks("json")[1])
    host = start_host(search_path=[folder])
    assert host.call("shout/say", {"message": "hello"}) == {"response": "HELLO"}
    assert host.refusal("shout/say").code == -32602
    assert host.provider("shout")["problems"] == 0


def test_client_config_prints_what_the_readme_shows(tmp_path: Path) -> None:
    command = next(line for block in blocks("sh") for line in block.splitlines() if "client-config" in line)
    words = command.split("#")[0].split()
    (tmp_path / "home").mkdir()
    done = subprocess.run(
        [Path(sys.executable).with_name(words[0]), *words[1:]],
        cwd=tmp_path,
        env=isolated_environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    shown = blocks("json")[2].replace("/home/me/.venv/bin", str(Path(sys.executable).parent))
    assert done.stdout == shown


def test_links_lead_somewhere() -> None:
    root = Path(__file__).parent.parent
    for document in [root / "README.md", *root.glob("docs/*.md"), *root.glob("benchmarks/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
