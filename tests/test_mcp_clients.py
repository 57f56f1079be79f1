"""The host as a tool server of MCP clients that others wrote, each launched the way its users launch it.

What the host says to them is recorded and checked against the schemas, like everything it says in test_mcp.py.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.host import TIMEOUT, isolated_environment
from support.mcp import MODERN, check_transcripts
from support.misbehave import add_misbehave

TEE = Path(__file__).parent / "support" / "tee.py"
NODE_CLIENTS = Path(__file__).parent / "support" / "node"


class Server:
    """How a client is to launch a host of its own."""

    def __init__(self, folder: Path) -> None:
        self.record = folder / "record"
        self.cwd = folder
        (folder / "home").mkdir()
        self.environ = isolated_environment(folder / "home")
        search_path = add_misbehave(folder / "path")
        self.arguments = [
            str(TEE),
            str(self.record),
            sys.executable,
            "-m",
            "gleitzeit_host",
            "--path",
            str(search_path),
        ]
        self.command = sys.executable

    def configuration(self) -> dict[str, Any]:
        """Return what `client-config` prints, with the environment of the tests in it."""
        ran = subprocess.run(
            [sys.executable, "-m", "gleitzeit_host", "client-config", "json"],
            env=self.environ,
            cwd=self.cwd,
            capture_output=True,
            timeout=TIMEOUT,
            check=True,
        )
        printed: dict[str, Any] = json.loads(ran.stdout)
        printed["mcpServers"]["gleitzeit"]["env"] = self.environ
        return printed


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    if server.record.exists():  # a test that was skipped started nothing
        assert check_transcripts(server.record) > 1


# ---- the official Python SDK


@pytest.mark.parametrize(("mode", "version"), [("legacy", "2025-11-25"), ("auto", MODERN), (MODERN, MODERN)])
def test_the_python_sdk_uses_tools_resources_and_completion(server: Server, mode: str, version: str) -> None:
    mcp = pytest.importorskip("mcp")
    types = pytest.importorskip("mcp_types")
    parameters = mcp.StdioServerParameters(
        command=server.command, args=server.arguments, env=server.environ, cwd=server.cwd
    )
    heard: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, _total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    async def use() -> None:
        async with mcp.Client(mcp.client.stdio.stdio_client(parameters), mode=mode) as client:
            assert client.protocol_version == version
            tools = (await client.list_tools()).tools
            assert {"echo_say", "python_execute", "misbehave_do"} <= {tool.name for tool in tools}
            said = await client.call_tool("echo_say", {"message": "hi"})
            assert said.structured_content == {"response": "hi"}
            computed = await client.call_tool("python_execute", {"code": "result = 6 * 7"})
            assert computed.structured_content["result"] == 42
            wrong = await client.call_tool("echo_say", {"message": 5})
            assert wrong.is_error
            await client.call_tool("misbehave_do", {"how": "flood_progress", "count": 3}, progress_callback=on_progress)
            assert [progress for progress, _ in heard] == [1, 2, 3]
            uris = [str(resource.uri) for resource in (await client.list_resources()).resources]
            assert "gleitzeit://protocols/echo/v1" in uris
            read = await client.read_resource("gleitzeit://protocols/echo/v1")
            assert json.loads(read.contents[0].text)["openrpc"]
            templates = (await client.list_resource_templates()).resource_templates
            reference = types.ResourceTemplateReference(type="ref/resource", uri=templates[1].uri_template)
            completed = await client.complete(reference, {"name": "name", "value": "ec"})
            assert completed.completion.values == ["echo"]

    anyio.run(use)


def test_the_python_sdk_cancels_a_call(server: Server) -> None:
    mcp = pytest.importorskip("mcp")
    parameters = mcp.StdioServerParameters(
        command=server.command, args=server.arguments, env=server.environ, cwd=server.cwd
    )

    async def use() -> None:
        async with mcp.Client(mcp.client.stdio.stdio_client(parameters)) as client:
            began = anyio.Event()

            async def on_progress(*_: Any) -> None:
                began.set()

            async with anyio.create_task_group() as tasks:

                async def hold() -> None:
                    await client.call_tool("misbehave_hold", {}, progress_callback=on_progress)

                tasks.start_soon(hold)
                await began.wait()
                tasks.cancel_scope.cancel()
            received = await client.call_tool("misbehave_received", {})
            assert any("notifications/cancelled" in line for line in received.structured_content["lines"])

    anyio.run(use)


def test_the_python_sdk_hears_of_changes_by_listening(server: Server) -> None:
    mcp = pytest.importorskip("mcp")
    parameters = mcp.StdioServerParameters(
        command=server.command, args=server.arguments, env=server.environ, cwd=server.cwd
    )
    change = {"how": "notify", "method": "notifications/changed", "params": {"methods": ["misbehave/do"]}}

    async def use() -> None:
        async with mcp.Client(mcp.client.stdio.stdio_client(parameters), mode=MODERN) as client:
            assert "misbehave_hold" in [tool.name for tool in (await client.list_tools()).tools]
            async with client.listen(tools_list_changed=True) as events:
                await client.call_tool("misbehave_do", change)
                with anyio.fail_after(20):
                    async for event in events:
                        assert type(event).__name__ == "ToolsListChanged"
                        break
            assert "misbehave_hold" not in [tool.name for tool in (await client.list_tools()).tools]

    anyio.run(use)


# ---- FastMCP


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("mode", "version"), [("legacy", "2025-11-25"), ("auto", MODERN), (MODERN, MODERN)])
def test_fastmcps_client_uses_tools_and_resources(server: Server, mode: str, version: str) -> None:
    fastmcp = pytest.importorskip("fastmcp")
    transports = pytest.importorskip("fastmcp.client.transports")
    transport = transports.StdioTransport(
        server.command, server.arguments, env=server.environ, cwd=str(server.cwd), keep_alive=False
    )

    async def use() -> None:
        async with fastmcp.Client(transport, mode=mode) as client:
            assert client.protocol_version == version
            assert "echo_say" in [tool.name for tool in await client.list_tools()]
            said = await client.call_tool("echo_say", {"message": "hi"})
            assert said.structured_content == {"response": "hi"}
            wrong = await client.call_tool("echo_say", {"message": 5}, raise_on_error=False)
            assert wrong.is_error
            assert "gleitzeit://providers/echo" in [str(r.uri) for r in await client.list_resources()]
            (read,) = await client.read_resource("gleitzeit://providers/echo")
            assert json.loads(read.text)["name"] == "echo"

    anyio.run(use)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fastmcps_client_launches_what_client_config_prints(server: Server) -> None:
    fastmcp = pytest.importorskip("fastmcp")
    configuration = server.configuration()

    async def use() -> None:
        async with fastmcp.Client(configuration) as client:
            said = await client.call_tool("echo_say", {"message": "hi"})
            assert said.structured_content == {"response": "hi"}

    anyio.run(use)


# ---- Node.js: run where support/fetch_node_clients.sh has fetched them


def node_clients() -> Path:
    folder = os.environ.get("GLEITZEIT_NODE_CLIENTS", "")
    if not folder or shutil.which("node") is None:
        pytest.skip("GLEITZEIT_NODE_CLIENTS does not name a folder with the MCP clients for Node.js")
    return Path(folder)


def run_node(server: Server, *command: str | Path) -> str:
    """Run a program that needs node, and return what it prints."""
    ran = subprocess.run(
        command,
        env={**server.environ, "PATH": os.environ["PATH"]},
        cwd=server.cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    ("script", "mode", "version"),
    [
        ("sdk_v1.mjs", "legacy", "2025-11-25"),
        ("sdk_v2.mjs", "legacy", "2025-11-25"),
        ("sdk_v2.mjs", "auto", MODERN),
        ("sdk_v2.mjs", MODERN, MODERN),
    ],
)
def test_the_typescript_sdk_uses_tools_and_resources(server: Server, script: str, mode: str, version: str) -> None:
    folder = node_clients()
    for name in (script, "use.mjs"):
        shutil.copyfile(NODE_CLIENTS / name, folder / name)
    told = json.loads(run_node(server, "node", folder / script, mode, server.command, *server.arguments))
    assert told["version"] == version
    assert "echo_say" in told["tools"]
    assert told["said"] == {"response": "hi"}
    assert told["wrong"] is True
    assert told["progress"] == ["held"]
    assert "gleitzeit://protocols/echo/v1" in told["resources"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--method", "tools/list"], '"echo_say"'),
        (["--method", "tools/call", "--tool-name", "echo_say", "--tool-arg", "message=hi"], '"response": "hi"'),
        (["--method", "resources/list"], "gleitzeit://providers/echo"),
    ],
)
def test_the_inspectors_command_line_uses_the_host(server: Server, arguments: list[str], expected: str) -> None:
    inspector = node_clients() / "node_modules" / ".bin" / "mcp-inspector"
    assert expected in run_node(server, inspector, "--cli", server.command, *server.arguments, *arguments)


def test_the_inspectors_command_line_launches_what_client_config_prints(server: Server) -> None:
    inspector = node_clients() / "node_modules" / ".bin" / "mcp-inspector"
    file = server.cwd / "mcp.json"
    file.write_text(json.dumps(server.configuration()))
    listed = run_node(server, inspector, "--cli", "--config", file, "--server", "gleitzeit", "--method", "tools/list")
    assert '"echo_say"' in listed
