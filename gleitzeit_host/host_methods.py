"""What the host itself serves: `host/*` and `rpc.discover`, dispatched by jsonrpcserver.

Imported in a thread with the first such request: jsonrpcserver takes 0.2 s to import.
"""

import os
import warnings
from typing import TYPE_CHECKING, Any

import msgspec

from gleitzeit_host import __version__
from gleitzeit_host.errors import InternalError, InvalidParams, RpcError
from gleitzeit_host.handshake import PROTOCOL_VERSION
from gleitzeit_host.protocol import Protocol

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks setuptools for its own version
    from jsonrpcserver import Result, Success, dispatch_to_serializable

if TYPE_CHECKING:
    from gleitzeit_host.host import Host


def info(host: "Host") -> Result:
    """Who this host is and what it was configured with."""
    return Success(
        {
            "name": "gleitzeit-host",
            "version": __version__,
            "providerProtocol": PROTOCOL_VERSION,
            "pid": os.getpid(),
            "uptimeMs": round(host.uptime() * 1000),
            "providers": len(host.router.providers),
            "methods": len(host.router.routes),
            "configuration": [str(path) for path in host.config.files],
            "warnings": host.warnings,
            "roots": [str(root) for root in host.config.roots],
            "limits": {_camel(key): value for key, value in msgspec.structs.asdict(host.config.limits).items()},
        }
    )


def providers(host: "Host") -> Result:
    """Every provider, those that cannot be used included, with the reason."""
    return Success({"providers": host.describe_providers()})


def protocols(host: "Host") -> Result:
    """Every loaded protocol, and what is wrong with those that could not be loaded."""
    loaded = [
        {
            "name": protocol.name,
            "version": protocol.version,
            "title": protocol.document["info"]["title"],
            "origin": protocol.origin,
            "methods": {name: _is_available(host, name) for name in protocol.methods},
        }
        for protocol in host.protocols.values()
    ]
    return Success({"protocols": loaded, "problems": host.protocol_problems})


def health(host: "Host") -> Result:
    """Tell in one word how the host is, and which providers are the reason."""
    troubled = [
        {"provider": row["name"], "state": row["state"], "reason": row["reason"]}
        for row in host.describe_providers()
        if row["state"] in ("failed", "unavailable", "backoff") or (row["health"] or {}).get("health") == "failing"
    ]
    return Success({"status": "degraded" if troubled else "ok", "providers": troubled})


def discover(host: "Host") -> Result:
    """Return the merged OpenRPC document (specification, section "Service Discovery Method")."""
    methods: list[Any] = []
    components: dict[str, dict[str, Any]] = {}
    for protocol in host.protocols.values():
        document = _with_own_components(protocol)
        for kind, members in document.get("components", {}).items():
            components.setdefault(kind, {}).update(members)
        for method in document["methods"]:
            extension = {**method.get("x-gleitzeit", {}), "available": _is_available(host, method["name"])}
            methods.append({**method, "x-gleitzeit": extension})
    return Success(
        {
            "openrpc": "1.3.2",
            "info": {"title": "gleitzeit-host", "version": __version__},
            "methods": methods,
            "components": components,
        }
    )


METHODS = {
    "host/info": info,
    "host/providers": providers,
    "host/protocols": protocols,
    "host/health": health,
    "rpc.discover": discover,
}


def serve(host: "Host", method: str, params: dict[str, Any] | list[Any]) -> Any:
    """Dispatch one request that is parsed already; return the result or raise the RpcError."""
    request: Any = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
    answer: Any = dispatch_to_serializable(request, METHODS, context=host, deserializer=_as_it_is, validator=_as_it_is)
    if "result" in answer:
        return answer["result"]
    error = answer["error"]
    raise _error(error["code"], f"{error['message']}: {error.get('data')}", method)


def _error(code: int, message: str, method: str) -> RpcError:
    if code == InvalidParams.code:
        return InvalidParams(message, method=method, errors=[{"path": "", "message": message}])
    return InternalError(message, method=method)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _as_it_is(value: Any) -> Any:
    return value


def _is_available(host: "Host", method: str) -> bool:
    return any(provider.can_serve for provider in host.router.routes[method].providers)


def _with_own_components(protocol: Protocol) -> dict[str, Any]:
    """Prefix the document's component names with the protocol's, so that documents can be merged."""

    def rename(value: Any) -> Any:
        if isinstance(value, list):
            return [rename(child) for child in value]
        if not isinstance(value, dict):
            return value
        return {key: _prefixed(child) if key == "$ref" else rename(child) for key, child in value.items()}

    def _prefixed(reference: Any) -> Any:
        if not isinstance(reference, str) or reference.count("/") < 3:
            return reference
        _, _, kind, name = reference.split("/", 3)
        return f"#/components/{kind}/{protocol.name}_{name}"

    document: dict[str, Any] = rename(protocol.document)
    document["components"] = {
        kind: {f"{protocol.name}_{name}": value for name, value in members.items()}
        for kind, members in document.get("components", {}).items()
    }
    return document
