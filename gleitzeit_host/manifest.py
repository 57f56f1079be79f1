"""Manifests: the `provider.toml` of a provider's folder."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from gleitzeit_host.errors import ConfigurationError

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Word = Annotated[str, msgspec.Meta(pattern=r"^[^\x00]*$")]  # a zero byte would end it
Variable = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

_BASICS = frozenset({"PATH", "HOME", "USER", "SHELL", "LANG", "TZ", "TMPDIR"})
_CERTIFICATES = frozenset(
    {"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"}
)
_PROXIES = frozenset({"http_proxy", "https_proxy", "no_proxy", "all_proxy"})


class ProviderLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a provider may take. Times are seconds."""

    start_timeout: Seconds = 10.0  # from start to the answer to the handshake
    stop_timeout: Seconds = 2.0  # for each rung of the stop ladder
    concurrency: Count | None = None  # calls in flight, however many it declares
    max_restarts: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 5  # within restart_window; then it has failed
    restart_window: Seconds = 60.0


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A provider as its folder describes it; docs/configuration.md has the keys."""

    name: Name
    command: Annotated[list[Word], msgspec.Meta(min_length=1)]
    description: str = ""
    methods: list[str] | None = None
    env: list[Variable] = []
    calls: list[str] = []
    start: Literal["on_demand", "eager"] | None = None
    settings: dict[str, Any] = {}
    safe_settings: list[str] = []
    limits: ProviderLimits = ProviderLimits()
    folder: Path = Path()

    def argv(self, python: str) -> list[str]:
        """Return the command with `{python}` and `{dir}` filled in.

        A program named with a slash is looked for in the provider's folder, one without on the PATH.

        Raises:
            PermissionError: the program is there, and not executable; says what to do.
        """
        words = [word.replace("{python}", python).replace("{dir}", str(self.folder)) for word in self.command]
        if "/" in words[0]:
            program = self.folder / words[0]
            if program.is_file() and not os.access(program, os.X_OK):
                raise PermissionError(
                    f"{program} is not executable: chmod +x it, or name its interpreter first, as in "
                    f'command = ["{{python}}", "{self.command[0]}"]'
                )
            words[0] = str(program)
        return words

    def unknown_placeholder(self) -> str | None:
        """Return what looks like `{dir}` and is not: in the program, or where a path begins; others are text."""
        for word in self.command:
            for name in re.findall(r"\{\w+\}" if word is self.command[0] else r"(?:^|=)(\{\w+\})/", word):
                if name not in {"{python}", "{dir}"}:
                    return str(name)
        return None


class Broken(msgspec.Struct, frozen=True):
    """A manifest that cannot be used; it stays listed as unavailable."""

    name: str
    path: Path
    reason: str


def load_manifests(search_path: list[Path]) -> tuple[dict[str, Manifest], dict[str, Broken]]:
    """Read every `providers/NAME/provider.toml`; the first definition of a name wins."""
    manifests: dict[str, Manifest] = {}
    broken: dict[str, Broken] = {}
    for folder in search_path:
        for path in sorted(folder.glob("providers/*/provider.toml")):
            name = path.parent.name
            if name in manifests or name in broken:
                continue
            try:
                manifests[name] = load_manifest(path)
            except ConfigurationError as error:
                broken[name] = Broken(name, path, str(error))
    return manifests, broken


def load_manifest(path: Path) -> Manifest:
    """Read one manifest; raises ConfigurationError that names file and key."""
    table, _ = read_toml(path)
    if "folder" in table:
        raise ConfigurationError(f"{path}: unknown key `folder`")
    parsed: Manifest = convert(table, Manifest, path)
    manifest = msgspec.structs.replace(parsed, folder=path.parent.resolve())
    if manifest.name != path.parent.name:
        raise ConfigurationError(f"{path}: name: {manifest.name!r} is not the name of its folder, {path.parent.name!r}")
    unknown = manifest.unknown_placeholder()
    if unknown is not None:
        raise ConfigurationError(f"{path}: command: there is no {unknown}; there are {{python}} and {{dir}}")
    if manifest.start == "on_demand" and manifest.methods is None:
        raise ConfigurationError(
            f'{path}: start: "on_demand" needs `methods`, or nothing would ever start the provider'
        )
    return manifest


def read_toml(path: Path) -> tuple[dict[str, Any], bytes]:
    """Parse a TOML file; return the table and the content. Raises ConfigurationError that says where it is broken."""
    try:
        content = path.read_bytes()
        return tomllib.loads(content.decode("utf-8").replace("\r\n", "\n")), content
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from None


def convert(table: Any, kind: Any, path: Path, where: str = "") -> Any:
    """Turn a table, or a value, into what it should be; raises ConfigurationError that names file and key."""
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: {_explain(str(error), table, kind, where)}") from None


def _explain(message: str, table: Any, kind: Any, where: str) -> str:
    problem, _, place = message.partition(" - at `$")
    if problem == message and " - at `key` in `$" in message:
        problem, _, place = message.partition(" - at `key` in `$")
        problem = f"one of its keys: {problem}"
    place = place.rstrip("`")
    if problem.startswith("Expected `array") and problem.endswith("got `str`"):
        problem += _list_hint(table, place.lstrip("."))
    place = (where + place).lstrip(".")
    if "unknown field" in problem:
        field = problem.rsplit("`", 2)[1]
        place = f"{place}.{field}".lstrip(".")
        import difflib  # noqa: PLC0415 - only for a message

        near = difflib.get_close_matches(field, _keys(kind), 1)
        problem = "unknown key" + (f"; did you mean `{near[0]}`?" if near else "")
    return f"{place or 'the file'}: {problem}"


def _list_hint(table: Any, key: str) -> str:
    """Show how the text at this key is written as a list."""
    value = table.get(key) if isinstance(table, dict) else None
    if not isinstance(value, str):
        return ""
    import json  # noqa: PLC0415 - only for a message

    return f"; write {key} = {json.dumps(value.split() if key == 'command' else [value], ensure_ascii=False)}"


def _keys(kind: Any) -> list[str]:
    """Return every key that a struct, or one inside it, knows."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = msgspec.structs.fields(kind)
        return [name for field in fields for name in (field.name, *_keys(field.type))]
    return [name for part in get_args(kind) for name in _keys(part)]


def environment(environ: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return what a provider may see of the environment: the basics, and the variables named."""
    wanted = _BASICS | _CERTIFICATES | frozenset(names)
    return {
        key: value
        for key, value in environ.items()
        if key in wanted or key.startswith("LC_") or key.lower() in _PROXIES
    }
