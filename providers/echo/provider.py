"""A whole provider without the SDK: what docs/provider-protocol.md asks for, and nothing else."""

import json
import sys

TYPE_CHECKING = False  # typing is slow to import
if TYPE_CHECKING:
    from typing import Any

HELLO = {"protocolVersion": 1, "provider": {"name": "echo", "version": "1.0.0"}, "methods": ["echo/say"]}


def answer(message: "dict[str, Any]") -> "dict[str, object]":
    """Return the result or the error of one request."""
    if message["method"] == "initialize":
        return {"result": HELLO}
    if message["method"] == "echo/say":
        return {"result": {"response": message["params"]["message"]}}
    return {"error": {"code": -32601, "message": f"echo does not serve {message['method']}"}}


def main() -> None:
    """Answer until end of input."""
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "id" in message and "method" in message:  # everything else needs no answer
            text = json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer(message)}, separators=(",", ":"))
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
