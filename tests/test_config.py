"""Configuration: layers, trust, roots, and errors that say where."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.host import StartHost

from gleitzeit_host import config
from gleitzeit_host.errors import ConfigurationError
from gleitzeit_host.manifest import Manifest, ProviderLimits


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's own folders out of it; return the user's configuration file."""
    for kind in ("CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / "home" / kind.lower()))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GLEITZEIT_PATH", raising=False)
    (tmp_path / "home" / "config" / "gleitzeit").mkdir(parents=True)
    (tmp_path / "work" / "below").mkdir(parents=True)
    return tmp_path / "home" / "config" / "gleitzeit" / "gleitzeit.toml"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "work"


def test_without_any_file_the_working_folder_is_the_root(work: Path) -> None:
    loaded = config.load(None, work)
    assert loaded.roots == [work]
    assert loaded.limits == config.Limits()
    assert (loaded.files, loaded.warnings) == ([], [])


def test_the_home_folder_and_the_root_of_the_disk_are_no_roots(tmp_path: Path) -> None:
    assert config.load(None, tmp_path / "home").roots == []
    assert config.load(None, Path("/")).roots == []


def test_a_named_file_is_laid_over_the_users_own(folders: Path, work: Path) -> None:
    folders.write_text("[limits]\nqueue = 5\ndepth = 50\n[providers.python.settings]\nmemory_mb = 1\nwarm = 1\n")
    named = work / "named.toml"
    named.write_text("[limits]\nqueue = 9000\n[providers.python.settings]\nwarm = 7\n")
    loaded = config.load(named, work)
    assert (loaded.limits.queue, loaded.limits.depth) == (9000, 50)
    assert loaded.providers["python"].settings == {"memory_mb": 1, "warm": 7}
    assert loaded.files == [folders, named]


def test_roots_are_relative_to_the_file_that_names_them_and_links_are_resolved(work: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (work / "link").symlink_to(tmp_path / "elsewhere")
    named = work / "named.toml"
    named.write_text('roots = [".", "below", "link", "~", "missing"]\n')
    loaded = config.load(named, tmp_path)
    assert loaded.roots == [work, work / "below", tmp_path / "elsewhere", tmp_path / "home", work / "missing"]
    assert loaded.warnings == [f"The root {work / 'missing'} does not exist"]


UNTRUSTED = """
roots = ["below", "..", "escape"]
[limits]
queue = 10
message_bytes = 999999999999
[expose]
tools = ["echo_*"]
[protocols]
llm = "v1"
[providers.python]
enabled = true
timeout = 5
env = ["AWS_SECRET_ACCESS_KEY"]
calls = ["*"]
start = "eager"
[providers.python.settings]
timeout = 3
python = "/tmp/evil"
[providers.echo]
enabled = false
"""


@pytest.fixture
def found(work: Path, tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (work / "escape").symlink_to(tmp_path / "outside")
    (work / "gleitzeit.toml").write_text(UNTRUSTED)
    return work / "gleitzeit.toml"


def test_a_found_file_may_only_choose_and_narrow(found: Path, work: Path, folders: Path) -> None:
    folders.write_text('[expose]\ntools = ["*"]\n[providers.python]\nenabled = false\n')
    loaded = config.load(None, work / "below")
    assert loaded.roots == [work / "below"]
    assert (loaded.limits.queue, loaded.limits.message_bytes) == (10, config.Limits().message_bytes)
    assert loaded.expose == [["*"], ["echo_*"]]
    assert loaded.protocols == {"llm": "v1"}
    python = loaded.providers["python"]
    assert (python.enabled, python.timeout, python.env, python.calls, python.start) == (False, 5, [], None, None)
    assert loaded.providers["echo"].enabled is False
    manifest = Manifest(name="python", command=["x"], settings={"timeout": 30}, safe_settings=["timeout"])
    given_settings, ignored = config.settings(loaded, manifest)
    assert given_settings == {"timeout": 3}
    complaints = "\n".join([*loaded.warnings, *ignored])
    for key in (
        "roots: ",
        "limits.message_bytes",
        "python.env",
        "python.calls",
        "python.start",
        "python.enabled",
        "settings.python",
    ):
        assert key in complaints
    assert f"gleitzeit-host trust {found}" in complaints
    assert "limits.queue" not in complaints


def test_a_trusted_file_counts_until_it_changes(found: Path, work: Path) -> None:
    config.trust(found)
    assert config.load(None, work).providers["python"].env == ["AWS_SECRET_ACCESS_KEY"]
    assert list(config.trusted()) == [found]
    assert (config.state_folder() / "trusted.json").stat().st_mode & 0o777 == 0o600
    found.write_text(UNTRUSTED + "\n# changed")
    assert config.load(None, work).providers["python"].env == []
    config.trust(found)
    config.revoke(found)
    assert config.load(None, work).providers["python"].env == []
    assert config.trusted() == {}


def test_a_trust_store_that_cannot_be_read_trusts_nothing(found: Path, work: Path) -> None:
    config.trust(found)
    (config.state_folder() / "trusted.json").write_text("[broken")
    assert config.load(None, work).providers["python"].env == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[limits]\nqeue = 3\n", "limits.qeue: unknown key; did you mean `queue`?"),
        ("[limits]\nqueue = 0\n", "limits.queue: Expected `int` >= 1"),
        ('[limits]\nqueue = "many"\n', "limits.queue: Expected `int`, got `str`"),
        ("[providers.UPPER]\n", "providers: one of its keys: Expected `str` matching regex"),
        (
            "[providers.x.limits]\nmax_restart = 1\n",
            "providers.x.limits.max_restart: unknown key; did you mean `max_restarts`?",
        ),
        ('[protocols]\nllm = "1"\n', "protocols.llm: Expected `str` matching regex"),
        ("[limits]\ndefault_timeout = nan\n", "limits.default_timeout: Expected `float` > 0.0"),
        ("[limits]\ndepth = 1e300\n", "limits.depth"),
        ("[protocols]\nllm = 1\n", "protocols.llm: Expected `str`, got `int`"),
        (
            "[limits]\ndefault_timeout = 9\nmax_timeout = 8.5\n",
            "limits.default_timeout: 9 is more than limits.max_timeout, 8.5",
        ),
        ("[providers.x]\nreplicas = {min = 2}\n", "providers.x.replicas.min: 2 is more than replicas.max, 1"),
        ("[providers.x]\nreplicas = {min = 3, max = 2}\n", "providers.x.replicas.min: 3 is more than replicas.max, 2"),
        ('[providers.x]\nenv = "A"\n', '; write env = ["A"]'),
        ("roots = [3]\n", "roots[0]: Expected `str`"),
        ('roots = ["~no such user/x"]\n', "roots: '~no such user/x'"),
        ('roots = ["a\\u0000b"]\n', "roots: 'a\\x00b'"),
        ('[providers.echo]\nenv = ["A=B"]\n', "providers.echo.env[0]"),
        ("[limits\n", "not TOML"),
        ('roots = "."\n', 'roots: Expected `array | null`, got `str`; write roots = ["."]'),
    ],
)
def test_an_error_names_the_file_and_the_key(work: Path, text: str, complaint: str) -> None:
    named = work / "named.toml"
    named.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        config.load(named, work)
    assert str(named) in str(caught.value)
    assert complaint in str(caught.value)


def test_roots_that_are_links_in_a_circle_or_too_long_are_no_traceback(work: Path) -> None:
    (work / "circle").symlink_to("circle")
    named = work / "named.toml"
    named.write_text(f'roots = ["circle", "{"x" * 5000}"]\n')
    try:  # what a circle is depends on the Python version: an error, or a root that does not exist
        assert len(config.load(named, work).warnings) == 2
    except ConfigurationError as error:
        assert "circle" in str(error)  # noqa: PT017


def test_a_file_that_is_not_utf_8_or_not_readable_is_an_error(work: Path) -> None:
    (work / "named.toml").write_bytes(b"roots = ['\xff']\n")
    with pytest.raises(ConfigurationError, match="not TOML"):
        config.load(work / "named.toml", work)
    with pytest.raises(ConfigurationError, match="Is a directory"):
        config.load(work / "below", work)


def test_an_untrusted_limit_may_be_lower_than_the_users_own_only(folders: Path, work: Path) -> None:
    folders.write_text("[limits]\nqueue = 50\nmax_timeout = 20\n")
    (work / "gleitzeit.toml").write_text("[limits]\nqueue = 51\nmax_timeout = 20\nbatch = 1000\ndepth = 127\n")
    loaded = config.load(None, work)
    expected = config.Limits(queue=50, default_timeout=20.0, max_timeout=20.0, batch=1000, depth=127)
    assert loaded.limits == expected
    assert len(loaded.warnings) == 1
    assert "limits.queue is ignored" in loaded.warnings[0]


KEYS = {
    "env": '["A"]',
    "calls": '["*"]',
    "start": '"eager"',
    "enabled": "true",
    "replicas": "{max = 9}",
    "limits": "{concurrency = 900}",
}


@pytest.mark.parametrize("key", KEYS)
def test_a_found_file_may_not_set_what_widens_a_provider(work: Path, key: str) -> None:
    (work / "gleitzeit.toml").write_text(f"[providers.echo]\n{key} = {KEYS[key]}\n")
    loaded = config.load(None, work)
    assert loaded.providers["echo"] == config.ProviderConfig()
    assert [f"providers.echo.{key} is ignored" in warning for warning in loaded.warnings] == [True]
    named = config.load(work / "gleitzeit.toml", work)
    assert named.warnings == []


def test_every_key_of_a_provider_is_either_harmless_or_refused_to_a_found_file() -> None:
    known = set(config.ProviderConfig.__struct_fields__)
    assert known == {*KEYS, "settings", "timeout", "priority", "weight"}  # a new key: decide, and test it above


def test_a_trusted_file_that_is_moved_is_trusted_no_longer(found: Path, work: Path) -> None:
    config.trust(found)
    found.rename(work / "below" / "gleitzeit.toml")
    assert config.load(None, work / "below").providers["python"].env == []


def test_the_limits_of_a_provider_are_the_manifests_where_the_configuration_is_silent(work: Path) -> None:
    (work / "named.toml").write_text("[providers.echo.limits]\nmax_restarts = 0\nstop_timeout = 9\n")
    echo = config.provider_config(config.load(work / "named.toml", work), "echo")
    manifest = Manifest(name="echo", command=["x"], limits=ProviderLimits(start_timeout=3, max_restarts=7))
    limits = config.provider_limits(manifest, echo)
    assert limits == ProviderLimits(start_timeout=3, max_restarts=0, stop_timeout=9)


def test_a_state_folder_that_cannot_be_made_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="XDG_STATE_HOME"):
        config.state_folder()
    assert config.trusted() == {}


def test_a_relative_xdg_folder_is_ignored_as_its_specification_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert config.state_folder().is_relative_to(tmp_path / "home")


def test_a_named_file_that_is_missing_is_an_error(work: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        config.load(work / "missing.toml", work)


toml_values: Any = st.recursive(
    st.booleans() | st.integers(-(2**70), 2**70) | st.text("abc./~*", max_size=6) | st.just("a\\u0000b"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
keys = [
    "roots",
    "limits",
    "default_timeout",
    "expose",
    "protocols",
    "providers",
    "queue",
    "tools",
    "python",
    "settings",
    "env",
    "enabled",
    "x",
]


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {as_toml(item)}' for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(keys), toml_values | st.dictionaries(st.sampled_from(keys), toml_values), max_size=5
    )
)
def test_no_table_raises_anything_but_a_configuration_error(work: Path, table: dict[str, Any]) -> None:
    (work / "gleitzeit.toml").write_text("".join(f"{key} = {as_toml(value)}\n" for key, value in table.items()))
    for explicit in (None, work / "gleitzeit.toml"):
        try:
            config.load(explicit, work)
        except ConfigurationError as error:
            assert str(work) in str(error)  # noqa: PT017


def test_the_search_path_is_in_order_and_a_missing_folder_is_an_error(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "data" / "gleitzeit").mkdir(parents=True)
    monkeypatch.setenv("GLEITZEIT_PATH", f"{work / 'below'}:{tmp_path / 'nothing'}")
    assert config.search_path([work])[:3] == [work, work / "below", tmp_path / "home" / "data" / "gleitzeit"]
    with pytest.raises(ConfigurationError, match="no such folder"):
        config.search_path([tmp_path / "nothing"])


def test_the_reference_has_every_key() -> None:
    text = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text("utf-8")
    own, manifests = text.split("## provider.toml")
    prefixes: dict[str, Any] = {
        "limits.": config.Limits,
        "expose.": config.Expose,
        "providers.NAME.": config.ProviderConfig,
    }
    missing = [
        prefix + key
        for prefix, kind in prefixes.items()
        for key in kind.__struct_fields__
        if f"| `{prefix}{key}` |" not in own
    ]
    keys = {*Manifest.__struct_fields__, *(f"limits.{key}" for key in ProviderLimits.__struct_fields__)}
    missing += [key for key in sorted(keys - {"limits", "folder"}) if f"| `{key}` |" not in manifests]
    assert missing == []


def test_the_host_warns_of_a_provider_that_is_configured_and_not_there(start_host: StartHost) -> None:
    host = start_host(config="[providers.pyhton]\ntimeout = 3\n[providers.echo]\nenabled = false\n")
    warnings = host.call("host/info")["warnings"]
    assert any("pyhton" in warning and "python" in warning for warning in warnings)
    error = host.refusal("echo/say", ["x"])
    assert error.code == -31001
    assert "enabled = false" in error.message
    assert host.provider("echo")["state"] == "disabled"
