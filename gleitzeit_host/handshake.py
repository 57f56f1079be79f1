"""The handshake of the provider protocol, version 1: what the host says, and one verdict on what a provider answers.

docs/provider-protocol.md has the rules.
"""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Raw

from gleitzeit_host import __version__, protocol
from gleitzeit_host.errors import ConfigurationError
from gleitzeit_host.manifest import Manifest
from gleitzeit_host.protocol import Protocol

PROTOCOL_VERSION = 1
PIPELINED = 256  # calls in flight at a provider that declares no concurrency

_Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Identity(msgspec.Struct):
    """Who a provider says it is."""

    name: str
    version: str


class Hello(msgspec.Struct, rename="camel"):
    """A provider's answer to `initialize`."""

    protocol_version: int
    provider: Identity
    methods: list[str]
    concurrency: _Count | None = None
    capabilities: dict[str, Any] = {}
    ping: bool = False
    protocols: dict[str, dict[str, Any]] = {}


class Changed(msgspec.Struct):
    """The params of `notifications/changed`: what is absent stays as it is."""

    methods: list[str] | None = None
    capabilities: dict[str, Any] | None = None


class Health(msgspec.Struct):
    """A provider's answer to `ping`."""

    health: Literal["ok", "degraded", "failing"] = "ok"
    detail: str | None = None
    resources: list[dict[str, Any]] = []


class Refused(Exception):
    """The provider cannot be used; the text says why. It is not started again."""


def greeting(
    name: str, settings: dict[str, Any], roots: list[str], message_bytes: int, state: Raw | None
) -> dict[str, Any]:
    """Build the params of `initialize`."""
    params: dict[str, Any] = {
        "protocolVersion": PROTOCOL_VERSION,
        "host": {"name": "gleitzeit-host", "version": __version__},
        "provider": name,
        "settings": settings,
        "roots": roots,
        "limits": {"messageBytes": message_bytes},
    }
    if state is not None:
        params["state"] = state
    return params


def read(result: Raw) -> Hello:
    """Decode the answer; raises Refused if the version is wrong or the answer malformed."""
    try:
        version = msgspec.json.decode(result, type=dict[str, Raw]).get("protocolVersion")
        if version is not None and bytes(version) != b"%d" % PROTOCOL_VERSION:
            raise Refused(
                f"Its protocolVersion is {bytes(version)[:40].decode()}, this host speaks {PROTOCOL_VERSION} "
                "(an integer): install a provider or a host of the same version"
            )
        return msgspec.json.decode(result, type=Hello)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(f"Its answer to initialize is malformed: {error}") from None


def read_health(result: Raw) -> dict[str, Any]:
    """Decode the answer to a ping; raises msgspec.MsgspecError."""
    health: dict[str, Any] = msgspec.to_builtins(msgspec.json.decode(result, type=Health))
    return health


def offered(manifest: Manifest, methods: list[str]) -> tuple[list[str], list[str]]:
    """Compare what a provider declares with what its manifest lists; return (accepted methods, complaints)."""
    declared = list(dict.fromkeys(methods))
    if manifest.methods is None:
        return declared, []
    extra = [name for name in declared if name not in manifest.methods]
    missing = [name for name in manifest.methods if name not in declared]
    complaints = [f"It declares {name}, which its manifest does not list: refused" for name in extra]
    complaints += [f"Its manifest lists {name}, but it does not declare it" for name in missing]
    return [name for name in declared if name in manifest.methods], complaints


_BROUGHT = r"([a-z][a-z0-9_-]{0,63})(?:/(v[1-9][0-9]{0,5}))?"


def brought(hello: Hello, provider: str, defined: dict[str, Protocol]) -> tuple[list[Protocol], list[str]]:
    """Build the protocols that a provider brings (`NAME` or `NAME/vN` → OpenRPC document).

    Returns the usable ones, and complaints: a protocol that a file defines, or another provider brought, stays.
    """
    protocols, complaints = [], []
    for key, document in hello.protocols.items():
        match = re.fullmatch(_BROUGHT, key)
        if match is None:
            complaints.append(f"It brings a protocol named {key[:80]!r}, which is not NAME or NAME/vN")
            continue
        name, version = match[1], match[2] or "v1"
        known = defined.get(name)
        if known is not None and known.origin != f"provider {provider}":
            complaints.append(f"It brings protocol {name}, which {known.origin} defines already: refused")
            continue
        try:
            brought_protocol = protocol.define(name, version, document, f"provider {provider}")
            brought_protocol.check()
            protocols.append(brought_protocol)
        except ConfigurationError as error:
            complaints.append(f"It brings protocol {name}, which cannot be used: {error}")
    return protocols, complaints
