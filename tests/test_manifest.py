"""Manifests: what they need, and what becomes of those that cannot be used."""

from pathlib import Path

import pytest
from support.host import StartHost

from gleitzeit_host.errors import ConfigurationError
from gleitzeit_host.manifest import Manifest, environment, load_manifest, load_manifests


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / "providers" / name / "provider.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_name_and_command_are_enough(tmp_path: Path) -> None:
    manifest = load_manifest(
        write(tmp_path, "tiny", 'name = "tiny"\ncommand = ["{python}", "--dir={dir}/x", "{other}"]\n')
    )
    folder = tmp_path / "providers" / "tiny"
    assert manifest.argv("/usr/bin/python3") == ["/usr/bin/python3", f"--dir={folder}/x", "{other}"]
    assert (manifest.methods, manifest.env, manifest.calls, manifest.settings) == (None, [], [], {})


def test_a_program_with_a_slash_is_the_folders_and_one_without_is_the_paths(tmp_path: Path) -> None:
    assert Manifest(name="a", command=["./run", "x"], folder=tmp_path).argv("p") == [str(tmp_path / "run"), "x"]
    assert Manifest(name="a", command=["/bin/run"], folder=tmp_path).argv("p") == ["/bin/run"]
    assert Manifest(name="a", command=["node"], folder=tmp_path).argv("p") == ["node"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('name = "other"\ncommand = ["x"]\n', "not the name of its folder"),
        ('name = "it"\n', "missing required field `command`"),
        ('name = "it"\ncommand = []\n', "command"),
        ('name = "it"\ncommand = "x"\n', 'command: Expected `array`, got `str`; write command = ["x"]'),
        ('name = "it"\ncommand = "node \\"a\\""\n', 'write command = ["node", '),
        ('name = "it"\ncommand = ["{pyhton}", "x"]\n', "command: there is no {pyhton}; there are {python} and {dir}"),
        ('name = "it"\ncommand = ["x", "{folder}/x"]\n', "command: there is no {folder}; there are"),
        ('name = "it"\ncommand = ["x", "--at={here}/x"]\n', "command: there is no {here}; there are"),
        ('name = "it"\ncommand = ["x"]\nstart = "on_demand"\n', "needs `methods`"),
        ('name = "it"\ncommand = ["x"]\nmethod = ["a/b"]\n', "unknown key; did you mean `methods`?"),
        ('name = "it"\ncommand = ["x"]\nfolder = "/"\n', "unknown key"),
        ('name = "it"\ncommand = ["x"]\nenv = ["A B"]\n', "env[0]"),
        ('name = "it"\ncommand = ["x"]\n[limits]\nstart_timeout = -1\n', "limits.start_timeout"),
        ("name = ", "not TOML"),
        ('name = "it"\ncommand = ["x", "a\\u0000b"]\n', "command[1]"),
        (
            'name = "it"\ncommand = ["x"]\n[limits]\nconcurency = 1\n',
            "limits.concurency: unknown key; did you mean `concurrency`?",
        ),
        ('name = "it"\ncommand = ["x"]\n[limits]\nstop_timeout = 1e9\n', "limits.stop_timeout"),
        ('name = "it"\ncommand = ["x"]\nstart = "lazy"\n', "start: Invalid enum value 'lazy'"),
    ],
)
def test_an_error_names_the_file_and_the_key(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, "it", text)
    with pytest.raises(ConfigurationError) as caught:
        load_manifest(path)
    assert str(path) in str(caught.value)
    assert complaint in str(caught.value)


def test_braces_that_are_no_placeholder_are_text(tmp_path: Path) -> None:
    words = ["awk", "{print}", "${HOME}/x", "{a: 1}", "x{y}z"]
    manifest = load_manifest(write(tmp_path, "it", f'name = "it"\ncommand = {words}\n'))
    assert manifest.argv("p") == words


def test_a_program_that_is_not_executable_says_what_to_do(tmp_path: Path, start_host: StartHost) -> None:
    path = write(tmp_path, "it", 'name = "it"\ncommand = ["./run.py"]\nstart = "eager"\n[limits]\nmax_restarts = 0\n')
    program = path.parent / "run.py"
    program.write_text("")
    program.chmod(0o644)
    host = start_host(search_path=[tmp_path])
    host.wait_for_stderr("chmod")
    reason = host.provider("it")["reason"]
    assert f'{program} is not executable: chmod +x it, or name its interpreter first, as in command = ["' in reason


def test_the_first_definition_of_a_name_wins_even_if_it_is_broken(tmp_path: Path) -> None:
    write(tmp_path / "one", "a", 'name = "a"\ncommand = ["first"]\n')
    write(tmp_path / "two", "a", 'name = "a"\ncommand = ["second"]\n')
    write(tmp_path / "one", "b", "broken")
    write(tmp_path / "two", "b", 'name = "b"\ncommand = ["second"]\n')
    manifests, broken = load_manifests([tmp_path / "one", tmp_path / "two"])
    assert manifests["a"].command == ["first"]
    assert "b" not in manifests
    assert "not TOML" in broken["b"].reason


def test_a_broken_manifest_is_listed_with_its_reason_and_the_others_serve(
    tmp_path: Path, start_host: StartHost
) -> None:
    path = write(tmp_path / "path", "bad", 'name = "bad"\ncomand = ["x"]\n')
    host = start_host(search_path=[tmp_path / "path"])
    row = host.provider("bad")
    assert row["state"] == "unavailable"
    assert str(path) in row["reason"]
    assert host.call("echo/say", ["x"]) == {"response": "x"}
    assert host.call("host/health")["status"] == "degraded"
    host.wait_for_stderr("bad")


def test_the_values_of_named_variables_stay_out_of_logs_and_errors(tmp_path: Path, start_host: StartHost) -> None:
    program = 'import os, sys; sys.exit("the key is " + os.environ["API_KEY"] + "\\x1b[2J")'
    write(
        tmp_path / "path",
        "leaky",
        f'name = "leaky"\ncommand = ["{{python}}", "-c", \'{program}\']\nenv = ["API_KEY"]\n'
        "[limits]\nmax_restarts = 0\n",
    )
    host = start_host("--log-level", "debug", search_path=[tmp_path / "path"], environ={"API_KEY": "s3cr3t-s3cr3t"})
    host.wait_for_stderr("leaky has failed")
    said = host.provider("leaky")["reason"] + host.stderr + next(host.home.rglob("leaky.log")).read_text()
    assert "the key is ***" in said
    assert "s3cr3t" not in said
    assert "\x1b" not in host.stderr


def test_only_the_basics_and_what_is_named_is_passed_on() -> None:
    given = dict.fromkeys(
        (
            "PATH",
            "LC_TIME",
            "https_proxy",
            "HTTPS_PROXY",
            "SSL_CERT_FILE",
            "MINE",
            "AWS_SECRET",
            "PYTHONPATH",
            "LD_PRELOAD",
        ),
        "v",
    )
    assert environment(given, ["MINE", "MISSING"]).keys() == {
        "PATH",
        "LC_TIME",
        "https_proxy",
        "HTTPS_PROXY",
        "SSL_CERT_FILE",
        "MINE",
    }
