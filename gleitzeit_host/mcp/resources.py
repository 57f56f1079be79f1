"""Resources: what the host knows about its protocols and providers, to be read by MCP clients."""

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from gleitzeit_host import wire

if TYPE_CHECKING:
    from gleitzeit_host.host import Host

_PROTOCOLS = "gleitzeit://protocols/"
_PROVIDERS = "gleitzeit://providers/"
_KIND = "application/json"
TEMPLATES = [
    {
        "uriTemplate": _PROTOCOLS + "{name}/{version}",
        "name": "protocol",
        "title": "Protocol",
        "description": "The OpenRPC document of a protocol: its methods, their parameters and results, with examples.",
        "mimeType": _KIND,
    },
    {
        "uriTemplate": _PROVIDERS + "{name}",
        "name": "provider",
        "title": "Provider",
        "description": "The state of a provider: what it serves, or why it does not, and how it has been doing.",
        "mimeType": _KIND,
    },
]
MAX_COMPLETIONS = 100


class Resources:
    """The host's protocols and providers under URIs."""

    def __init__(self, host: "Host") -> None:
        self._host = host

    def listed(self) -> list[dict[str, str]]:
        """Return the `Resource` objects, in the order of their URIs."""
        protocols = [
            {
                "uri": f"{_PROTOCOLS}{protocol.name}/{protocol.version}",
                "name": f"{protocol.name}/{protocol.version}",
                "title": str(protocol.document["info"]["title"]),
                "description": f"The OpenRPC document of {protocol.name}/{protocol.version}.",
                "mimeType": _KIND,
            }
            for protocol in self._host.protocols.values()
        ]
        providers = [
            {
                "uri": f"{_PROVIDERS}{row['name']}",
                "name": str(row["name"]),
                "title": f"Provider {row['name']}",
                "description": str(row["description"] or f"The state of provider {row['name']}."),
                "mimeType": _KIND,
            }
            for row in self._host.describe_providers()
        ]
        return sorted(protocols + providers, key=lambda resource: resource["uri"])

    def read(self, uri: str) -> dict[str, str] | None:
        """Return `TextResourceContents`, or None if there is no such resource."""
        value = self._find(uri)
        return None if value is None else {"uri": uri, "mimeType": _KIND, "text": wire.encode(value).decode()}

    def _find(self, uri: str) -> dict[str, Any] | None:
        if uri.startswith(_PROTOCOLS):
            name, _, version = unquote(uri.removeprefix(_PROTOCOLS)).partition("/")
            protocol = self._host.protocols.get(name)
            return protocol.document if protocol is not None and protocol.version == version else None
        if uri.startswith(_PROVIDERS):
            name = unquote(uri.removeprefix(_PROVIDERS))
            return next((row for row in self._host.describe_providers() if row["name"] == name), None)
        return None

    @staticmethod
    def is_static(uri: str) -> bool:
        """Tell whether the resource stays as it is: a released version of a protocol does."""
        return uri.startswith(_PROTOCOLS)

    def fingerprint(self, uri: str) -> object:
        """Return something that changes with the resource, its counters excepted; None if there is no such one."""
        value = self._find(uri)
        if value is None or self.is_static(uri):
            return value is not None or None
        return [value[key] for key in ("state", "reason", "methods", "capabilities", "version", "restarts")]

    def complete(self, template: str, variable: str, known: dict[str, str]) -> list[str] | None:
        """Return what a template's variable may be, given the other ones; None if there is no such variable."""
        if template == TEMPLATES[1]["uriTemplate"] and variable == "name":
            return [str(row["name"]) for row in self._host.describe_providers()]
        if template == TEMPLATES[0]["uriTemplate"] and variable in ("name", "version"):
            protocols = [p for p in self._host.protocols.values() if known.get("name") in (None, p.name)]
            if variable == "name":
                return sorted(self._host.protocols)
            return sorted({protocol.version for protocol in protocols})
        return None
