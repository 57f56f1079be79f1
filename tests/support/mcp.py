"""A host that is spoken to in MCP, and the check of every message that leaves it against the schema of its era.

    with McpHost(tmp_path / "home") as host:
        host.initialize("2025-06-18")
        tools = host.legacy("tools/list")["tools"]
        tools = host.modern("tools/list")["tools"]

Leaving the context validates all messages, those included that no test looked at. The schemas in `mcp-schema` are the
specification's: https://github.com/modelcontextprotocol/modelcontextprotocol/tree/main/schema.
"""

import json
import re
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import jsonschema_rs
from support.host import HostProcess

LEGACY = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
MODERN = "2026-07-28"
SCHEMAS = Path(__file__).parent / "mcp-schema"
RESULTS = {
    "initialize": "InitializeResult",
    "ping": "EmptyResult",
    "server/discover": "DiscoverResult",
    "tools/list": "ListToolsResult",
    "tools/call": "CallToolResult",
    "resources/list": "ListResourcesResult",
    "resources/templates/list": "ListResourceTemplatesResult",
    "resources/read": "ReadResourceResult",
    "resources/subscribe": "EmptyResult",
    "resources/unsubscribe": "EmptyResult",
    "completion/complete": "CompleteResult",
    "subscriptions/listen": "SubscriptionsListenResult",
}
NOTIFICATIONS = {
    "notifications/progress": "ProgressNotification",
    "notifications/cancelled": "CancelledNotification",
    "notifications/tools/list_changed": "ToolListChangedNotification",
    "notifications/resources/list_changed": "ResourceListChangedNotification",
    "notifications/resources/updated": "ResourceUpdatedNotification",
    "notifications/subscriptions/acknowledged": "SubscriptionsAcknowledgedNotification",
}
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"


def modern_meta(**more: Any) -> dict[str, Any]:
    return {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "0"},
        **more,
    }


class McpHost(HostProcess):
    """A host and its MCP client. A request's era is remembered, for the check of what comes back."""

    def __init__(self, home: Path, *arguments: str, **options: Any) -> None:
        self.said: list[dict[str, Any]] = []  # every message of the host, in order
        self.checker = Checker()
        super().__init__(home, *arguments, **options)

    def _take(self, line: bytes) -> None:
        super()._take(line)
        message = json.loads(line)
        self.said += message if isinstance(message, list) else [message]

    # ---- out

    def ask(self, version: str, method: str, params: dict[str, Any] | None = None, *, id: Any = None) -> Any:
        """Send an MCP request of a revision and return its id."""
        message = self.message(version, method, params, id=id)
        self.send(message)
        return message["id"]

    def message(
        self, version: str, method: str, params: dict[str, Any] | None = None, *, id: Any = None
    ) -> dict[str, Any]:
        """Return an MCP request, and remember it."""
        if id is None:
            id, self._next_id = self._next_id, self._next_id + 1
        given = dict(params or {})
        if version == MODERN:
            given["_meta"] = modern_meta(**given.get("_meta", {}))
        self.checker.asked[json.dumps(id)] = version, method
        return {"jsonrpc": "2.0", "id": id, "method": method, "params": given}

    def modern(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Call a method of the modern era and return its result; raises HostError."""
        return self.result(self.ask(MODERN, method, params))

    def legacy(self, method: str, params: dict[str, Any] | None = None) -> Any:
        """Call a method of the legacy session and return its result; raises HostError."""
        return self.result(self.ask(self.checker.version, method, params))

    def initialize(self, version: str) -> Any:
        """Begin a legacy session, as a client does."""
        params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "tests", "version": "0"}}
        result = self.result(self.ask(version, "initialize", params))
        self.checker.version = result["protocolVersion"]
        self.notify("notifications/initialized")
        return result

    def era(self, version: str) -> Any:
        """Return the function that calls methods of a revision, once there is a session if it needs one."""
        if version == MODERN:
            return self.modern
        self.initialize(version)
        return self.legacy

    # ---- the end

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if kind is None:
            for message in self.said:
                self.checker.check(message)


class Checker:
    """Knows which era each message of a host belongs to, and checks it against that era's schema."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[str, str]] = {}  # id as JSON → revision, method
        self.version = ""  # of the legacy session

    def heard(self, message: dict[str, Any]) -> None:
        """Take note of what a client said to the host."""
        if "method" in message and "id" in message:
            params = message.get("params", {})
            version = params.get("_meta", {}).get("io.modelcontextprotocol/protocolVersion")
            if message["method"] == "initialize":
                self.version = version = params["protocolVersion"]
            self.asked[json.dumps(message["id"])] = version or self.version, message["method"]

    def check(self, message: dict[str, Any]) -> None:
        """Fail unless the message satisfies the schema of its era; plain JSON-RPC is not MCP's to judge."""
        if "method" in message:
            self._check_notification(message)
        elif json.dumps(message.get("id")) in self.asked:
            version, method = self.asked[json.dumps(message["id"])]
            if "error" in message:
                self._check_error(version, message)
            else:
                must_be(version, "JSONRPCResponse" if version in LEGACY[:3] else "JSONRPCResultResponse", message)
                must_be(version, RESULTS[method], message["result"])
                if method == "tools/list":
                    check_tools(message["result"]["tools"])

    @staticmethod
    def _check_error(version: str, message: dict[str, Any]) -> None:
        must_be(version, "JSONRPCError" if version in LEGACY[:3] else "JSONRPCErrorResponse", message)
        code = message["error"]["code"]
        if code == -32022:
            must_be(version, "UnsupportedProtocolVersionError", message)
        elif version == MODERN:
            assert not -32099 <= code <= -32000, f"a code of MCP's own range: {message}"
        else:
            assert code == -32002 or not -32099 <= code <= -32000, f"a reserved code: {message}"

    def _check_notification(self, message: dict[str, Any]) -> None:
        method, params = message["method"], message.get("params", {})
        modern = SUBSCRIPTION in params.get("_meta", {}) or method == "notifications/cancelled"
        versions = [MODERN] if modern else [self.version or MODERN]
        if method == "notifications/progress":
            versions = [MODERN, *([self.version] if self.version else [])]
        for version in versions:
            must_be(version, NOTIFICATIONS[method], message)
            must_be(version, "ServerNotification", message)


@cache
def _validator(version: str, name: str) -> Any:
    schema = json.loads((SCHEMAS / f"{version}.json").read_text())
    key = "$defs" if "$defs" in schema else "definitions"
    return jsonschema_rs.validator_for({**schema, "$ref": f"#/{key}/{name}"}, validate_formats=True)


def must_be(version: str, name: str, value: Any) -> None:
    """Fail unless the value satisfies a definition of a revision's schema."""
    problems = [f"{error.instance_path}: {error.message}" for error in _validator(version, name).iter_errors(value)]
    assert not problems, f"not a {name} of {version}: {problems}\n{json.dumps(value)[:2_000]}"


def check_tools(tools: list[dict[str, Any]]) -> None:
    """Fail unless every client can read the tools."""
    names = [tool["name"] for tool in tools]
    assert names == sorted(set(names))
    for tool in tools:
        assert re.fullmatch("[a-zA-Z0-9_-]{1,48}", tool["name"])
        for schema in [tool["inputSchema"], *([tool["outputSchema"]] if "outputSchema" in tool else [])]:
            jsonschema_rs.meta.validate(schema)
            assert '"$ref"' not in json.dumps(schema)
        schema = tool["inputSchema"]
        assert schema["type"] == "object"
        assert not {"allOf", "anyOf", "oneOf", "not", "if", "$ref"} & set(schema)


def check_transcripts(folder: Path) -> int:
    """Check what hosts said, as `tee.py` recorded it; return how many messages there were."""
    count = 0
    for record in folder.iterdir():
        checker = Checker()
        for line in (record / "stdin").read_bytes().splitlines():
            checker.heard(json.loads(line))
        for line in (record / "stdout").read_bytes().splitlines():
            checker.check(json.loads(line))
            count += 1
    return count
