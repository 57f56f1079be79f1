"""Makes search path folders with `tests/providers/misbehave` under other switches and manifests."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MISBEHAVE = Path(__file__).parent.parent / "providers" / "misbehave"
PROGRAM = MISBEHAVE / "providers" / "misbehave" / "provider.py"
PROTOCOL = MISBEHAVE / "protocols" / "misbehave" / "v1.json"
METHODS = [
    "misbehave/call",
    "misbehave/do",
    "misbehave/echo",
    "misbehave/hold",
    "misbehave/loop",
    "misbehave/received",
    "misbehave/redo",
    "misbehave/release",
]


def add_misbehave(
    folder: Path,
    name: str = "misbehave",
    *,
    switches: dict[str, Any] | None = None,
    methods: Sequence[str] | None = METHODS,
    calls: Sequence[str] = ("misbehave/*",),
    **keys: Any,
) -> Path:
    """Add a misbehaving provider to a search path folder and return the folder.

    Args:
        folder: Made if it is missing, with the misbehave protocol in it.
        name: The provider's name; several in a folder may serve the same methods.
        switches: What the program does wrong by itself; see its `Switches`.
        methods: The manifest's; None leaves the key out, so that the provider starts with the host.
        calls: The manifest's.
        keys: More of the manifest, such as `limits={"start_timeout": 1}` or `start="eager"`.
    """
    arguments = [f"{key}={json.dumps(value)}" for key, value in (switches or {}).items()]
    manifest = {"name": name, "command": ["{python}", str(PROGRAM), *arguments], "calls": list(calls), **keys}
    if methods is not None:
        manifest["methods"] = list(methods)
    add_provider(folder, manifest)
    protocol = folder / "protocols" / "misbehave" / "v1.json"
    if not protocol.exists():
        protocol.parent.mkdir(parents=True)
        shutil.copyfile(PROTOCOL, protocol)
    return folder


def add_provider(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `providers/NAME/provider.toml`."""
    path = folder / "providers" / manifest["name"] / "provider.toml"
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in manifest.items()))


def toml(value: Any) -> str:
    """Return a JSON value as TOML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return json.dumps(value)
