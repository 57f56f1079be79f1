"""Configuration: `gleitzeit.toml`, the search path, and what a file that nobody trusted may say.

The user's own file is the base. A file found upwards from the working folder is laid over it, restricted until it is
trusted; `--config FILE` takes its place and is trusted. docs/configuration.md has every key.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from gleitzeit_host.errors import ConfigurationError
from gleitzeit_host.manifest import Count, Manifest, Name, ProviderLimits, Seconds, Variable, convert, read_toml

FILE_NAME = "gleitzeit.toml"

_Bytes = Annotated[int, msgspec.Meta(ge=1024, le=1 << 40)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the client may send and have under way. Times are seconds."""

    message_bytes: _Bytes = 64 * 1024 * 1024
    depth: Annotated[int, msgspec.Meta(ge=2, le=200)] = 128  # containers in containers, of one message
    values: Annotated[int, msgspec.Meta(ge=1000, le=1 << 30)] = 1_000_000  # of one request: its members and items
    batch: Count = 1000  # entries of one batch
    requests: Count = 10_000  # under way; at more the host stops reading
    held_bytes: _Bytes = 256 * 1024 * 1024  # of the requests under way; at more the host stops reading
    queue: Count = 8192  # calls of one method that wait for a provider
    default_timeout: Seconds = 60.0  # of a call, where neither it nor its method has one
    max_timeout: Seconds = 3600.0  # that a call may ask for


class OwnLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[providers.NAME.limits]`: what is absent is the manifest's."""

    start_timeout: Seconds | None = None
    stop_timeout: Seconds | None = None
    concurrency: Count | None = None
    max_restarts: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] | None = None
    restart_window: Seconds | None = None


class Replicas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many processes of one provider run."""

    min: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 1
    max: Count = 1


class ProviderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[providers.NAME]`."""

    enabled: bool = True
    env: list[Variable] = []
    calls: list[str] | None = None
    timeout: Seconds | None = None
    priority: int = 0
    weight: Annotated[float, msgspec.Meta(gt=0, le=1e6)] = 1.0
    start: Literal["on_demand", "eager"] | None = None
    replicas: Replicas = Replicas()
    settings: dict[str, Any] = {}
    limits: OwnLimits = OwnLimits()


class Expose(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[expose]`: what MCP clients see and may call."""

    tools: list[str] | None = None


_Version = Annotated[str, msgspec.Meta(pattern="^v[1-9][0-9]*$")]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    roots: list[str] | None = None
    limits: Limits = Limits()
    expose: Expose = Expose()
    protocols: dict[Name, _Version] = {}
    providers: dict[Name, ProviderConfig] = {}


class Config(msgspec.Struct, frozen=True):
    """The configuration in force."""

    roots: list[Path]
    limits: Limits
    expose: list[list[str]]  # patterns of tools; each list narrows the one before
    protocols: dict[str, str]
    providers: dict[str, ProviderConfig]
    untrusted_settings: dict[str, dict[str, Any]]  # provider → settings of a file that nobody trusted
    untrusted_file: Path | None
    files: list[Path]
    warnings: list[str]
    key: str  # names the configuration in the state folder


# ---- folders


def search_path(extra: Iterable[Path]) -> list[Path]:
    """Return the folders that may hold `providers` and `protocols`, the most important first.

    Raises:
        ConfigurationError: one of `extra` is not a folder.
    """
    given = [path.resolve() for path in extra]
    for path in given:
        if not os.path.isdir(path):  # noqa: PTH112 - is_dir() raises for a name that is too long
            raise ConfigurationError(f"--path {path}: there is no such folder")
    from_environment = [Path(part).resolve() for part in os.environ.get("GLEITZEIT_PATH", "").split(os.pathsep) if part]
    package = Path(__file__).resolve().parent
    checkout = [package.parent] if (package.parent / "pyproject.toml").is_file() else []
    shared = [Path(sys.prefix) / "share" / "gleitzeit"]
    found = [*given, *from_environment, _folder("data"), *checkout, *shared]
    return [path for path in dict.fromkeys(found) if os.path.isdir(path)]  # noqa: PTH112 - as above


def working_folder() -> Path:
    """Return the working folder; raises ConfigurationError if it was deleted or its name is not UTF-8."""
    folder = current_folder()
    try:
        str(folder).encode()
    except UnicodeEncodeError:  # it is the root that providers are told, in JSON
        raise ConfigurationError(f"the working folder {str(folder)!r} cannot be used: its name is not UTF-8") from None
    return folder


def current_folder() -> Path:
    """Return the working folder, whatever its name; raises ConfigurationError if it was deleted."""
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigurationError(f"the working folder cannot be used: {error.strerror}; go to another") from None


def state_folder() -> Path:
    """Return where logs, states and trust are kept, for this user alone.

    Raises:
        ConfigurationError: it is not there and cannot be made.
    """
    folder = _folder("state")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(
            f"the state folder {folder} cannot be made: {error.strerror}; set XDG_STATE_HOME to another"
        ) from None
    return folder


_FOLDERS = {  # kind → variable of the XDG Base Directory Specification, its default, and what macOS has instead
    "config": ("XDG_CONFIG_HOME", ".config", "Library/Application Support"),
    "data": ("XDG_DATA_HOME", ".local/share", "Library/Application Support"),
    "state": ("XDG_STATE_HOME", ".local/state", "Library/Application Support"),
}


def _folder(kind: str) -> Path:
    variable, usual, on_macos = _FOLDERS[kind]
    given = os.environ.get(variable, "")
    if Path(given).is_absolute():
        return Path(given) / "gleitzeit"
    home = home_folder(f", or {variable} to an absolute path")
    return home / (on_macos if sys.platform == "darwin" else usual) / "gleitzeit"


def home_folder(instead: str = "") -> Path:
    """Return the user's home; raises ConfigurationError, which says to set HOME or what else would do."""
    try:
        return Path.home()
    except RuntimeError:  # a user without an entry in the system's list, as containers have them
        raise ConfigurationError(f"there is no home folder: set HOME{instead}") from None


# ---- loading


def load(explicit: Path | None, cwd: Path) -> Config:
    """Read the configuration that is in force in a folder.

    Args:
        explicit: The file that `--config` names.
        cwd: Where the search upwards begins.

    Raises:
        ConfigurationError: a file cannot be read or says what cannot be; names file and key.
    """
    user_file = _folder("config") / FILE_NAME
    own = _read(user_file)[0] if user_file.is_file() else {}
    files = [user_file] if user_file.is_file() else []
    warnings: list[str] = []
    untrusted: dict[str, dict[str, Any]] = {}
    other = explicit.resolve() if explicit is not None else _find(cwd)
    exposed = [own.get("expose", {}).get("tools")]
    if other is not None and other != user_file:
        table, digest = _read(other)
        files.append(other)
        exposed.append(table.pop("expose", {}).get("tools"))
        if explicit is None and trusted().get(other) != digest:
            table, untrusted = _restrict(table, own, other, warnings)
        own = _merge(own, table)
    parsed = convert(own, _File, other or user_file)
    for name, provider in parsed.providers.items():
        if provider.replicas.min > provider.replicas.max:
            raise ConfigurationError(
                f"{other or user_file}: providers.{name}.replicas.min: {provider.replicas.min} is more than "
                f"replicas.max, {provider.replicas.max}"
            )
    roots = _default_roots(cwd) if parsed.roots is None else [Path(root) for root in parsed.roots]
    warnings += [f"The root {root} does not exist" for root in roots if not os.path.exists(root)]  # noqa: PTH110
    return Config(
        roots=roots,
        limits=msgspec.structs.replace(
            parsed.limits, default_timeout=min(parsed.limits.default_timeout, parsed.limits.max_timeout)
        ),
        expose=[patterns for patterns in exposed if patterns is not None],
        protocols=dict(parsed.protocols),
        providers=dict(parsed.providers),
        untrusted_settings=untrusted,
        untrusted_file=other if untrusted else None,
        files=files,
        warnings=warnings,
        key=hashlib.sha256(str(other or user_file).encode()).hexdigest()[:16],
    )


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Parse and check one file; return the table, its roots absolute, and the SHA-256 of what it was read from."""
    table, content = read_toml(path)
    for key, kind in (("protocols", _Version), ("providers", ProviderConfig)):
        named = table.get(key)
        for name, value in named.items() if isinstance(named, dict) else ():
            convert(value, kind, path, f"{key}.{name}")  # one by one, so that an error names it
    convert(table, _File, path)
    limits = table.get("limits", {})
    if limits.keys() >= {"default_timeout", "max_timeout"} and limits["default_timeout"] > limits["max_timeout"]:
        raise ConfigurationError(
            f"{path}: limits.default_timeout: {limits['default_timeout']} is more than limits.max_timeout, "
            f"{limits['max_timeout']}"
        )
    if "roots" in table:
        table["roots"] = [_root(root, path) for root in table["roots"]]
    return table, hashlib.sha256(content).hexdigest()


def _root(root: str, path: Path) -> str:
    try:
        return str((path.parent / Path(root).expanduser()).resolve())
    except (RuntimeError, ValueError) as error:  # ~nobody, links in a circle, a zero byte
        raise ConfigurationError(f"{path}: roots: {root!r}: {error}") from None


def _find(cwd: Path) -> Path | None:
    for folder in [cwd.resolve(), *cwd.resolve().parents]:
        if os.path.isfile(folder / FILE_NAME):  # noqa: PTH113 - is_file() raises for a folder that may not be searched
            return (folder / FILE_NAME).resolve()
    return None


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_tables else value
    return merged


def _default_roots(cwd: Path) -> list[Path]:
    folder = cwd.resolve()
    return [] if folder in (Path("/"), Path.home().resolve()) else [folder]


# ---- trust


_HARMLESS = frozenset({"timeout", "priority", "weight"})


def _restrict(
    table: dict[str, Any], own: dict[str, Any], path: Path, warnings: list[str]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Keep what an untrusted file may say: it may choose and narrow, and never widen.

    Returns the table that is left, and its provider settings apart: only a manifest knows which of them are safe.
    """
    ignored: list[str] = []
    kept: dict[str, Any] = {"protocols": table.get("protocols", {})}
    if "roots" in table:
        inside = [root for root in table["roots"] if Path(root).is_relative_to(path.parent)]
        ignored += [f"roots: {root}" for root in table["roots"] if root not in inside]
        kept["roots"] = inside
    allowed = msgspec.to_builtins(convert(own, _File, path).limits)
    limits = table.get("limits", {})
    kept["limits"] = {key: value for key, value in limits.items() if value <= allowed[key]}
    ignored += [f"limits.{key}" for key in limits if key not in kept["limits"]]
    kept["providers"], settings = {}, {}
    for name, provider in table.get("providers", {}).items():
        kept["providers"][name] = {key: value for key, value in provider.items() if key in _HARMLESS}
        if provider.get("enabled") is False:
            kept["providers"][name]["enabled"] = False
        if "settings" in provider:
            settings[name] = provider["settings"]
        taken = {*kept["providers"][name], "settings"}
        ignored += [f"providers.{name}.{key}" for key in provider if key not in taken]
    warnings += [f"{path}: {key} is ignored: {_HOW_TO_TRUST.format(path)}" for key in ignored]
    return kept, settings


_HOW_TO_TRUST = "the file is not trusted; read it, then `gleitzeit-host trust {}`"


def trusted() -> dict[Path, str]:
    """Return the trusted files: path → SHA-256 of the content that was trusted."""
    try:
        store = json.loads((state_folder() / "trusted.json").read_text("utf-8"))
        return {Path(path): str(digest) for path, digest in store.items()}
    except (OSError, ConfigurationError, ValueError, AttributeError):
        return {}


def trust(path: Path) -> None:
    """Trust a file as it is now; raises ConfigurationError if it is none that could be used."""
    resolved = path.resolve()
    _store({**trusted(), resolved: _read(resolved)[1]})


def revoke(path: Path) -> None:
    """Trust a file no longer."""
    _store({file: digest for file, digest in trusted().items() if file != path.resolve()})


def _store(files: dict[Path, str]) -> None:
    target = state_folder() / "trusted.json"
    temporary = target.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({str(path): digest for path, digest in files.items()}, file, indent=1)
    temporary.replace(target)


# ---- one provider's share


def provider_config(config: Config, name: str) -> ProviderConfig:
    """Return what the configuration says about a provider."""
    return config.providers.get(name, ProviderConfig())


def provider_limits(manifest: Manifest, provider: ProviderConfig) -> ProviderLimits:
    """Return the manifest's limits with the configuration's own laid over them."""
    own = {key: value for key, value in msgspec.structs.asdict(provider.limits).items() if value is not None}
    return msgspec.structs.replace(manifest.limits, **own)


def is_eager(manifest: Manifest, provider: ProviderConfig) -> bool:
    """Tell whether the provider starts with the host: only so can one be found that lists no methods."""
    return manifest.methods is None or (provider.start or manifest.start) == "eager"


def settings(config: Config, manifest: Manifest) -> tuple[dict[str, Any], list[str]]:
    """Return the settings for the handshake, and a message for each that an untrusted file may not make."""
    own = provider_config(config, manifest.name).settings
    untrusted = config.untrusted_settings.get(manifest.name, {})
    safe = {key: value for key, value in untrusted.items() if key in manifest.safe_settings}
    how = _HOW_TO_TRUST.format(config.untrusted_file)
    ignored = [
        f"{config.untrusted_file}: providers.{manifest.name}.settings.{key} is ignored: {how}"
        for key in untrusted
        if key not in safe
    ]
    return {**manifest.settings, **own, **safe}, ignored


def unknown_providers(config: Config, known: Iterable[str]) -> list[str]:
    """Return a warning for each provider that is configured and not there."""
    there = sorted(known)
    named = {*config.providers, *config.untrusted_settings}
    return [
        f"The configuration names provider {name}, but the search path has only {', '.join(there) or 'none'}"
        for name in sorted(named.difference(there))
    ]
