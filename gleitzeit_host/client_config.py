"""How an MCP client is told to launch this host: the entry that it needs, and the file that the entry belongs into.

A client's file is the user's: what is put into it changes the text where it must, and every other byte stays.
"""

import contextlib
import difflib
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from gleitzeit_host import config
from gleitzeit_host.errors import ConfigurationError

ENTRY = "gleitzeit"


class Client(NamedTuple):
    """Where a client looks for servers, and how it wants them described."""

    servers: str  # the member of its file that holds them
    says_stdio: bool  # whether an entry names its transport
    file: Callable[[], Path] | None  # None: of no client in particular


def _in_config(name: str) -> Callable[[], Path]:
    def file() -> Path:
        given = Path(os.environ.get("XDG_CONFIG_HOME", ""))
        return (given if given.is_absolute() and sys.platform != "darwin" else config.home_folder() / ".config") / name

    return file


def _claude_desktop() -> Path:
    name = "Claude/claude_desktop_config.json"
    if sys.platform == "darwin":
        return config.home_folder() / "Library" / "Application Support" / name
    return _in_config(name)()


CLIENTS = {
    "claude-desktop": Client("mcpServers", says_stdio=False, file=_claude_desktop),
    "claude-code": Client("mcpServers", says_stdio=True, file=lambda: config.current_folder() / ".mcp.json"),
    "vscode": Client("servers", says_stdio=True, file=lambda: config.current_folder() / ".vscode" / "mcp.json"),
    "cursor": Client("mcpServers", says_stdio=False, file=lambda: config.home_folder() / ".cursor" / "mcp.json"),
    "zed": Client("context_servers", says_stdio=False, file=_in_config("zed/settings.json")),
    "json": Client("mcpServers", says_stdio=False, file=None),
}


def find(name: str) -> Client:
    """Return a client; raises ConfigurationError, with the names there are, if there is none of this name."""
    if name not in CLIENTS:
        raise ConfigurationError(f"there is no client {name!r}; there are {', '.join(CLIENTS)}")
    return CLIENTS[name]


# ---- the entry


def snippet(client: Client, paths: list[Path], explicit: Path | None, log_level: str | None) -> dict[str, Any]:
    """Return what has to be in the client's file.

    Args:
        client: Whose format it has.
        paths: What `--path` is to name.
        explicit: What `--config` is to name.
        log_level: What `--log-level` is to be.

    Raises:
        ConfigurationError: the host would refuse a path or the configuration, or JSON cannot hold its name.
    """
    here = config.current_folder()
    config.search_path(paths)
    if explicit is not None:
        config.load(explicit, here)
    words = [*_command(), "serve"]
    for path in paths:
        words += ["--path", str(here / path)]
    if explicit is not None:
        words += ["--config", str(here / explicit)]
    if log_level is not None:
        words += ["--log-level", log_level]
    for word in words:
        try:
            word.encode()
        except UnicodeError:
            raise ConfigurationError(f"{word!r} is not UTF-8: JSON cannot hold it; give it another name") from None
    transport = {"type": "stdio"} if client.says_stdio else {}
    return {client.servers: {ENTRY: {**transport, "command": words[0], "args": words[1:]}}}


def _command() -> list[str]:
    """Return the command of this installation; links stay, for a virtual environment's interpreter is one."""
    if not sys.executable:
        raise ConfigurationError("Python does not know where its interpreter is; call gleitzeit-host by its full path")
    python = Path(sys.executable).absolute()
    script = python.with_name("gleitzeit-host")
    return [str(script)] if os.access(script, os.X_OK) else [str(python), "-P", "-m", "gleitzeit_host"]


# ---- the file


class Change(NamedTuple):
    """What is to happen to a client's file."""

    file: Path  # behind all links
    before: str | None  # None: there is no such file
    after: str
    mode: int | None  # of the file there is

    def diff(self) -> str:
        """Return the difference for people; empty: there is none."""
        before = (self.before or "").splitlines()
        name = str(self.file)
        old = os.devnull if self.before is None else name
        return "\n".join(difflib.unified_diff(before, self.after.splitlines(), old, name, lineterm=""))


def plan(client: Client, wanted: dict[str, Any]) -> Change:
    """Return how the client's file gets what is wanted.

    Raises:
        ConfigurationError: the file cannot be read, or is not a JSON object that could be added to.
    """
    if client.file is None:
        raise ConfigurationError("json is no client's own format: there is no file to write; paste what is printed")
    file = client.file()
    try:
        file = file.resolve()
        if file.is_symlink():  # links in a circle, as Python 3.13 resolves them; before, they are a RuntimeError
            _refuse(file, "its link leads nowhere")
        if not file.exists():
            return Change(file, None, _dump(wanted, _Style(), 0) + "\n", None)
        if not file.is_file():
            _refuse(file, "it is not a file")
        if not os.access(file, os.W_OK):
            _refuse(file, "it is read-only")
        before, mode = file.read_bytes().decode(), stat.S_IMODE(file.stat().st_mode)
    except UnicodeDecodeError:
        _refuse(file, "it is not UTF-8")
    except (OSError, RuntimeError) as error:
        _refuse(file, getattr(error, "strerror", None) or str(error))
    if not before.strip():
        return Change(file, before, _dump(wanted, _Style(), 0) + "\n", mode)
    _check(file, before, client.servers)
    return Change(file, before, _put(before, before.index("{"), wanted, 1, _style(before)), mode)


def _check(file: Path, text: str, servers: str) -> None:
    try:
        document = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        _refuse(file, "it is nested too deep")
    except ValueError as error:
        _refuse(file, f"it is not plain JSON (comments and trailing commas are not): {error}")
    if not isinstance(document, dict):
        _refuse(file, "it is not a JSON object")
    if not isinstance(document.get(servers, {}), dict):
        _refuse(file, f"its {servers!r} is not an object")


def _refuse(file: Path, why: str) -> NoReturn:
    raise ConfigurationError(f"{file}: {why}; nothing was written: paste what is printed into it yourself") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):  # which of them counts is up to the client
        raise ValueError("an object has the same key twice")
    return members


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def write(change: Change) -> Path | None:
    """Make the change; the file is the old or the new one at any moment. Return where the old one is kept.

    Raises:
        ConfigurationError: it cannot be written.
    """
    file = change.file
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _create(temporary, change.after, change.mode)
        backup = None if change.before is None else _back_up(file, change.before, change.mode)
        temporary.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        _refuse(file, error.strerror or str(error))
    return backup


def _back_up(file: Path, text: str, mode: int | None) -> Path:
    count = 0
    while True:
        backup = file.with_name(f"{file.name}.bak{count or ''}")
        try:
            _create(backup, text, mode)
        except FileExistsError:
            count += 1
        else:
            return backup


def _create(path: Path, text: str, mode: int | None) -> None:
    """Write a file that is not there yet; with a mode, nobody else can read it before it has that."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600), "wb") as file:
        if mode is not None:
            os.fchmod(file.fileno(), mode)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


# ---- JSON text


class _Style(NamedTuple):
    newline: str = "\n"
    indent: str = "  "


_SPACE = re.compile(r"[ \t\r\n]*")
_INDENT = re.compile(r'(\r?\n)([ \t]+)"')
_decode = json.JSONDecoder().raw_decode


def _style(text: str) -> _Style:
    found = _INDENT.search(text)
    return _Style(found[1], found[2]) if found else _Style()


def _put(text: str, start: int, wanted: dict[str, Any], depth: int, style: _Style) -> str:
    """Return JSON text whose object at `start` has what is wanted, objects merged, and else as it was."""
    for key, value in wanted.items():
        spans = dict(_members(text, start))
        if key not in spans:
            text = _append(text, start, f"{json.dumps(key)}: {_dump(value, style, depth)}", depth, style)
            continue
        begin, end = spans[key]
        old = _decode(text, begin)[0]
        if isinstance(old, dict) and isinstance(value, dict):
            text = _put(text, begin, value, depth + 1, style)
        elif old != value:
            text = text[:begin] + _dump(value, style, depth) + text[end:]
    return text


def _append(text: str, start: int, member: str, depth: int, style: _Style) -> str:
    line = style.newline + style.indent * depth + member
    spans = list(_members(text, start))
    if spans:
        end = spans[-1][1][1]
        return f"{text[:end]},{line}{text[end:]}"
    end = text.index("}", start)
    return f"{text[: start + 1]}{line}{style.newline}{style.indent * (depth - 1)}{text[end:]}"


def _members(text: str, start: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each key of the object at `start`, with where its value begins and ends; the text is valid."""
    position = _skip(text, start + 1)
    while text[position] != "}":
        key, position = _decode(text, position)
        begin = _skip(text, _skip(text, position) + 1)  # behind the colon
        position = _decode(text, begin)[1]
        yield key, (begin, position)
        position = _skip(text, position)
        if text[position] == ",":
            position = _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None
    return found.end()


def _dump(value: Any, style: _Style, depth: int) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=style.indent)
    return text.replace("\n", style.newline + style.indent * depth)
