"""An MCP server with one tool, by FastMCP."""

from fastmcp import FastMCP

server = FastMCP("echo")


@server.tool
def say(message: str) -> dict[str, str]:
    """Say it back."""
    return {"response": message}


server.run(show_banner=False)
