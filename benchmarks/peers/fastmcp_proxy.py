"""The peer: FastMCP's proxy in front of an MCP server in a child process."""

import sys
from pathlib import Path

from fastmcp.client.transports import StdioTransport
from fastmcp.server import create_proxy

create_proxy(StdioTransport(sys.executable, [str(Path(__file__).with_name("mcp_echo.py"))])).run(show_banner=False)
