"""The example providers, through the host and by hand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.host import TIMEOUT, HostProcess, StartHost

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
NEEDS = {"bash": ("bash", "jq"), "node": ("node",), "python": ()}


@pytest.fixture(params=sorted(NEEDS))
def example(request: pytest.FixtureRequest) -> str:
    missing = [program for program in NEEDS[request.param] if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    return str(request.param)


def serve(start_host: StartHost, example: str) -> HostProcess:
    return start_host(search_path=[EXAMPLES / example])


def test_an_example_serves_what_it_declares_and_keeps_the_protocol(start_host: StartHost, example: str) -> None:
    host = serve(start_host, example)
    calls: dict[str, list[tuple[str, dict[str, Any], Any]]] = {
        "bash": [("shout/say", {"message": "grüße"}, {"response": "GRüßE"})],
        "node": [
            ("text/count", {"text": "zwei Wörter 🙂"}, {"characters": 13, "words": 3}),
            ("text/reverse", {"text": "ab🙂"}, {"response": "🙂ba"}),
        ],
        "python": [
            ("counter/count", {"to": 3}, {"counted": 3}),
            ("counter/relay", {"message": "hi"}, {"response": "hi"}),
        ],
    }
    for method, params, expected in calls[example]:
        assert host.call(method, params) == expected
        name = method.split("/")[0]
        assert host.refusal(method, {}).code == -32602
    row = host.provider(name)
    assert (row["state"], row["problems"]) == ("ready", 0)


def test_the_python_example_streams_and_can_be_cancelled(start_host: StartHost) -> None:
    host = serve(start_host, "python")
    id = host.request("counter/count", {"to": 3, "stream": True})
    assert host.result(id) == {"counted": 3}
    assert [host.notification("notifications/progress")["delta"] for _ in range(3)] == ["1 ", "2 ", "3 "]
    endless = host.request("counter/count", {"to": 1_000_000, "pause": 0.01, "stream": True})
    host.notification("notifications/progress", lambda params: params["progressToken"] == endless)
    host.cancel(endless)
    assert host.error(endless).code == -31005
    host.call("counter/count", {"to": 1})


def test_an_example_answers_by_hand(example: str) -> None:
    by_hand: dict[str, tuple[list[str], str, dict[str, str]]] = {
        "bash": (["bash", "bash/providers/shout/provider.sh"], "shout/say", {"message": "a"}),
        "node": (["node", "node/providers/text/provider.mjs"], "text/reverse", {"text": "ab"}),
        "python": ([sys.executable, "python/providers/counter/provider.py"], "counter/relay", {"message": "x"}),
    }
    command, method, params = by_hand[example]
    messages: list[dict[str, Any]] = [
        {"id": 1, "method": "initialize", "params": {"protocolVersion": 1}},
        {"method": "notifications/unheard_of", "params": {}},
        {"id": 2, "method": "no/such", "params": {"_meta": {}}},
        {"id": 3, "method": method, "params": {**params, "_meta": {"timeoutMs": 1000}}},
    ]
    done = subprocess.run(
        command,
        cwd=EXAMPLES,
        input="".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    hello, refusal, answer = map(json.loads, done.stdout.splitlines())
    assert method in hello["result"]["methods"]
    assert refusal["error"]["code"] == -32601
    if example == "python":  # its answer waits for the host's
        assert (answer["method"], answer["params"]["_meta"]) == ("echo/say", {"parent": 3})
    else:
        assert (answer["id"], answer["result"]) == (3, {"response": "A"} if example == "bash" else {"response": "ba"})
