"""The rules of docs/provider-protocol.md, through a real host and real providers."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.host import HostProcess, StartHost, isolated_environment
from support.misbehave import METHODS, PROGRAM, add_misbehave, add_provider

SPECIFICATION = Path(__file__).parent.parent / "docs" / "provider-protocol.md"
QUICK = {"stop_timeout": 0.3, "max_restarts": 1}
SMALL_LINES = "[limits]\nmessage_bytes = 65536\n"

# ---- helpers


def do(host: HostProcess, how: str, provider: str | None = None, **options: Any) -> Any:
    return host.call("misbehave/do", {"how": how, **options, **meta(provider=provider)})


def meta(**members: Any) -> dict[str, Any]:
    present = {name: value for name, value in members.items() if value is not None}
    return {"_meta": present} if present else {}


def told(host: HostProcess, provider: str | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = host.call("misbehave/received", meta(provider=provider))
    return answer


def requests(host: HostProcess, method: str, provider: str | None = None) -> list[dict[str, Any]]:
    """Return the messages with this method that the provider has received."""
    messages = [json.loads(line) for line in told(host, provider)["lines"]]
    return [message for message in messages if message.get("method") == method]


def flagged(host: HostProcess, name: str = "misbehave") -> tuple[int, str]:
    """Return how many problems were flagged at all that the provider has written so far, and the last."""
    host.call("misbehave/echo", {"value": None, **meta(provider=name)})
    entry = host.provider(name)
    return entry["problems"], entry["lastProblem"] or ""


def hold(host: HostProcess, token: str, **options: Any) -> int:
    """Send a call that the provider keeps, and wait until it has it."""
    call: int = host.request("misbehave/hold", meta(progressToken=token, **options))
    host.notification("notifications/progress", lambda params: params["progressToken"] == token)
    return call


@pytest.fixture(scope="module")
def pinged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HostProcess, int]]:
    """A host whose providers are pinged while the other tests run: the first test starts it, the last asks."""
    folder = tmp_path_factory.mktemp("pinged")
    add_misbehave(folder, "well", switches={"pings": {"health": "degraded", "detail": "warm", "resources": []}})
    add_misbehave(folder, "deaf", switches={"pings": "ignore"})
    add_misbehave(folder, "plain")
    with HostProcess(folder / "home", search_path=[folder]) as host:
        for name in ("well", "plain"):
            host.call("misbehave/echo", {"value": 1, **meta(provider=name)})
        held = hold(host, "held", provider="deaf", timeoutMs=590_000)
        yield host, held


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host for tests that leave its misbehaving provider as they found it."""
    folder = add_misbehave(tmp_path_factory.mktemp("shared"))
    with HostProcess(folder / "home", search_path=[folder]) as host:
        yield host


# ---- framing


@pytest.mark.usefixtures("pinged")
@pytest.mark.rule("P-1", "P-7")
@pytest.mark.parametrize("how", ["white_space", "any_order"])
def test_an_answer_may_be_spaced_and_its_members_in_any_order(shared: HostProcess, how: str) -> None:
    before = flagged(shared)[0]
    assert "order" in do(shared, how)
    assert flagged(shared)[0] == before


@pytest.mark.rule("P-1")
def test_blank_lines_mean_nothing(shared: HostProcess) -> None:
    before = flagged(shared)[0]
    assert do(shared, "blank_lines", value="after them") == "after them"
    assert flagged(shared)[0] == before


@pytest.mark.rule("P-1")
def test_an_answer_written_byte_by_byte_arrives_whole(shared: HostProcess) -> None:
    assert do(shared, "bytewise") == "bytewise"


@pytest.mark.rule("P-1", "P-64")
def test_an_answer_whose_newline_is_missing_at_the_end_of_the_output_counts(start_misbehave: StartHost) -> None:
    assert do(start_misbehave(), "exit_before_newline") == "whole"


@pytest.mark.rule("P-1", "P-8")
def test_the_host_writes_one_compact_object_a_line(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    assert host.call("misbehave/echo", {"value": "caf\u00e9 \U0001f980\n"}) == "caf\u00e9 \U0001f980\n"
    for line in told(host)["lines"]:
        message = json.loads(line)
        assert message["jsonrpc"] == "2.0"
        assert isinstance(message["params"], dict)
        assert "\n" not in line
        assert not line.startswith("\ufeff")


@pytest.mark.rule("P-2", "P-3")
@pytest.mark.parametrize(
    "how",
    [
        "text",
        "half_line",
        "two_on_a_line",
        "scalars",
        "empty_object",
        "bom",
        "bad_utf8",
        "nul_bytes",
        "batch",
        "no_id",
        "null_id",
        "method_number",
    ],
)
def test_a_line_that_is_no_message_is_flagged_and_goes_nowhere(shared: HostProcess, how: str) -> None:
    before = flagged(shared)[0]
    seen = len(shared.notifications)
    other = hold(shared, "other")
    assert do(shared, how, value={"right": True}) == {"right": True}
    assert flagged(shared)[0] > before
    shared.call("misbehave/release")
    assert shared.result(other) == "released"
    assert shared.provider("misbehave")["restarts"] == 0
    assert [n["params"]["progressToken"] for n in shared.notifications[seen:]] == ["other"]


@pytest.mark.rule("P-3", "P-16")
@pytest.mark.parametrize("switches", [{"before": "text"}, {"hello": "text"}])
def test_text_before_the_handshake_does_no_harm(start_misbehave: StartHost, switches: dict[str, str]) -> None:
    host = start_misbehave(switches=switches)
    assert host.call("misbehave/echo", {"value": 1}) == 1
    assert flagged(host)[0] >= 1


@pytest.mark.rule("P-4")
def test_lone_surrogates_become_replacement_characters(shared: HostProcess) -> None:
    assert do(shared, "lone_surrogate") == "a\ufffdb\ufffdc"


@pytest.mark.rule("P-5")
def test_lines_of_exactly_the_limit_pass_in_both_directions(start_misbehave: StartHost) -> None:
    host = start_misbehave(config=SMALL_LINES)
    limit = told(host)["initialize"]["limits"]["messageBytes"]
    assert limit == 65_536
    assert len(do(host, "huge", bytes=limit)) > limit - 100
    frame = b'{"jsonrpc":"2.0","id":"long","method":"misbehave/echo","params":{"value":"%b"}}'
    host.send(frame % (b"x" * (limit - len(frame) + 2)) + b"\n")
    answer = host.answer("long")
    assert "result" in answer or answer["error"]["code"] == -31009
    assert told(host)["longest"] <= limit


@pytest.mark.rule("P-6")
def test_an_over_long_answer_that_begins_with_its_id_ends_that_call_only(start_misbehave: StartHost) -> None:
    host = start_misbehave(config=SMALL_LINES)
    other = hold(host, "other")
    for size in (65_537, 1_000_000):
        refusal = host.refusal("misbehave/do", {"how": "huge", "bytes": size})
        assert refusal.code == -31009
        assert refusal.data["provider"] == "misbehave"
    assert flagged(host)[0] == 2
    host.call("misbehave/release")
    assert host.result(other) == "released"
    assert host.provider("misbehave")["restarts"] == 0


@pytest.mark.rule("P-6")
@pytest.mark.parametrize("misdeed", [{"how": "huge", "bytes": 200_000, "late": True}, {"how": "endless_line"}])
def test_an_over_long_line_that_hides_its_id_restarts_the_provider(
    start_misbehave: StartHost, misdeed: dict[str, Any]
) -> None:
    host = start_misbehave(config=SMALL_LINES)
    before = told(host)["pid"]
    other = hold(host, "other")
    assert host.refusal("misbehave/do", misdeed).code == -31007
    assert host.error(other).code == -31007
    assert told(host)["pid"] != before


@pytest.mark.rule("P-6")
def test_an_answer_nested_deeper_than_the_host_reads_ends_its_call(shared: HostProcess) -> None:
    assert shared.call("misbehave/do", {"how": "deep", "count": 200}) is not None
    before = flagged(shared)[0]
    assert shared.refusal("misbehave/do", {"how": "deep", "count": 100_000}).code == -31009
    assert flagged(shared)[0] == before + 1


@pytest.mark.rule("P-7")
def test_members_that_the_host_does_not_know_are_ignored(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"result": {"capabilities": {"tags": ["x"]}, "novelty": {"a": 1}}})
    assert do(host, "unknown_members") == {"order": "extra"}
    assert flagged(host) == (0, "")


@pytest.mark.rule("P-9")
def test_ids_are_integers_that_are_never_used_twice(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    for value in range(20):
        host.call("misbehave/echo", {"value": value})
    ids = [message["id"] for line in told(host)["lines"] if "id" in (message := json.loads(line))]
    assert len(ids) == len(set(ids)) == 22
    assert all(type(each) is int and 1 <= each < 2**53 for each in ids)


@pytest.mark.rule("P-10", "P-55")
@pytest.mark.parametrize("own_id", ["text", "$ID", 7, 9_007_199_254_740_991])
def test_the_ids_of_call_backs_are_a_space_of_their_own(shared: HostProcess, own_id: str | int) -> None:
    before = flagged(shared)[0]
    answer = shared.call("misbehave/call", {"method": "misbehave/echo", "params": {"value": "back"}, "own_id": own_id})
    assert answer["result"] == "back"
    assert type(answer["id"]) is (str if own_id == "text" else int)
    assert flagged(shared)[0] == before


# ---- the process


@pytest.mark.rule("P-11")
def test_a_provider_sees_only_the_environment_that_is_meant_for_it(start_misbehave: StartHost) -> None:
    host = start_misbehave(
        env=["WANTED"],
        environ={"WANTED": "yes", "SECRET_KEY": "s", "LC_TIME": "C", "TZ": "UTC", "HTTPS_PROXY": "http://proxy:1"},
    )
    process = told(host)
    environ = process["environ"]
    assert environ["GLEITZEIT_PROVIDER"] == "misbehave"
    assert environ["WANTED"] == "yes"
    assert environ["HTTPS_PROXY"] == "http://proxy:1"
    assert environ["TZ"] == "UTC"
    assert "SECRET_KEY" not in environ
    assert "PYTHONPATH" not in environ
    allowed = re.compile(
        r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|GLEITZEIT_PROVIDER|WANTED|(?i:\w+_PROXY)|SSL_CERT_\w+"
        r"|\w*CA_(BUNDLE|CERTS?)\w*|__CF_USER_TEXT_ENCODING"
    )
    assert [name for name in environ if not allowed.fullmatch(name)] == []
    assert process["cwd"] == os.path.realpath(host.home)
    assert process["descriptors"] == [0, 1, 2]


@pytest.mark.rule("P-12")
def test_two_calls_at_once_start_a_provider_once(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"hello": "late"})
    assert host.provider("misbehave")["state"] == "idle"
    first = host.request("misbehave/received")
    second = host.request("misbehave/received")
    assert host.result(first)["pid"] == host.result(second)["pid"]
    assert host.provider("misbehave")["state"] == "ready"
    assert len(requests(host, "initialize")) == 1


@pytest.mark.rule("P-12")
@pytest.mark.parametrize("manifest", [{"methods": None}, {"start": "eager"}])
def test_eager_providers_and_those_without_methods_start_with_the_host(
    start_misbehave: StartHost, manifest: dict[str, Any]
) -> None:
    host = start_misbehave(**manifest)
    assert host.provider("misbehave")["state"] in {"starting", "ready"}
    assert host.call("misbehave/echo", {"value": 1}) == 1


@pytest.mark.rule("P-13", "P-2")
def test_a_flooded_stderr_blocks_nobody_and_is_kept(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"before": "flood_stderr"})
    assert do(host, "flood_stderr", bytes=500_000, value="done") == "done"
    assert flagged(host) == (0, "")
    host.finish()
    (log,) = host.home.rglob("misbehave.log")
    assert "noise on stderr" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


# ---- the handshake


@pytest.mark.rule("P-14")
def test_nothing_follows_initialize_before_its_answer(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"hello": "late"})
    waiting = [host.request("misbehave/echo", {"value": n}) for n in range(3)]
    assert [host.result(call) for call in waiting] == [0, 1, 2]
    process = told(host)
    assert process["early"] is False
    assert json.loads(process["lines"][0])["method"] == "initialize"
    assert len(requests(host, "initialize")) == 1


@pytest.mark.rule("P-15")
def test_initialize_says_who_with_what_and_where(start_misbehave: StartHost, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    host = start_misbehave(
        settings={"colour": "red", "size": 1},
        safe_settings=["colour"],
        config=f'roots = ["{tmp_path}/data"]\n[providers.misbehave.settings]\nsize = 2\n',
    )
    hello = told(host)["initialize"]
    assert hello["protocolVersion"] == 1
    assert hello["host"]["name"] == "gleitzeit-host"
    assert isinstance(hello["host"]["version"], str)
    assert hello["provider"] == "misbehave"
    assert hello["settings"] == {"colour": "red", "size": 2}
    assert hello["roots"] == [os.path.realpath(tmp_path / "data")]
    assert type(hello["limits"]["messageBytes"]) is int
    assert "state" not in hello


@pytest.mark.rule("P-16", "P-62")
def test_what_the_handshake_declares_is_shown(start_misbehave: StartHost) -> None:
    result = {"concurrency": 3, "capabilities": {"models": ["m"], "tags": ["gpu"]}, "ping": True}
    host = start_misbehave(switches={"result": result, "pings": "ok"})
    host.call("misbehave/echo", {"value": 1})
    entry = host.provider("misbehave")
    assert entry["state"] == "ready"
    assert entry["version"] == "1.0"
    assert entry["concurrency"] == 3
    assert entry["capabilities"] == {"models": ["m"], "tags": ["gpu"]}
    assert sorted(entry["methods"]) == METHODS
    assert entry["pid"] == told(host)["pid"]
    assert flagged(host) == (0, "")


@pytest.mark.rule("P-16", "P-68")
def test_a_second_answer_to_initialize_is_flagged_and_dropped(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"hello": "twice"})
    assert host.call("misbehave/echo", {"value": 1}) == 1
    assert flagged(host)[0] == 1


@pytest.mark.rule("P-17", "P-18")
def test_an_error_to_initialize_is_the_reason_for_being_unavailable(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"hello": "error"}, limits=QUICK)
    for _ in range(2):
        refusal = host.refusal("misbehave/echo", {"value": 1})
        assert refusal.code == -31001
        assert "no licence key: set `key`" in refusal.message
    entry = host.provider("misbehave")
    assert entry["state"] == "unavailable"
    assert "no licence key: set `key`" in entry["reason"]
    assert entry["restarts"] == 0
    assert entry["pid"] is None


@pytest.mark.rule("P-19")
def test_another_protocol_version_makes_a_provider_unavailable(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"result": {"protocolVersion": 2}}, limits=QUICK)
    refusal = host.refusal("misbehave/echo", {"value": 1})
    assert refusal.code == -31001
    entry = host.provider("misbehave")
    assert entry["state"] == "unavailable"
    assert re.search(r"\b2\b.*\b1\b", entry["reason"])
    assert entry["restarts"] == 0


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"result": {"protocolVersion": None}}, "protocolVersion"),
    ({"result": {"protocolVersion": "1"}}, "version"),
    ({"result": {"provider": None}}, "provider"),
    ({"result": {"provider": "misbehave"}}, "provider"),
    ({"result": {"provider": {"name": "misbehave", "version": 1}}}, "version"),
    ({"result": {"methods": None}}, "methods"),
    ({"result": {"methods": "misbehave/echo"}}, "methods"),
    ({"result": {"methods": ["misbehave/echo", 1]}}, "methods"),
    ({"result": {"concurrency": 0}}, "concurrency"),
    ({"result": {"concurrency": "many"}}, "concurrency"),
    ({"result": {"concurrency": 1.5}}, "concurrency"),
    ({"result": {"capabilities": ["m"]}}, "capabilities"),
    ({"result": {"ping": "yes"}}, "ping"),
    ({"result": {"protocols": [{}]}}, "protocols"),
    *(
        ({"hello": "raw", "hello_raw": '{"jsonrpc":"2.0","id":$ID,"result":' + result + "}"}, "")
        for result in ("null", "[]", '"yes"', "1", "true", "{}", "NaN")
    ),
    ({"hello": "raw", "hello_raw": '{"jsonrpc":"2.0","id":$ID}'}, ""),
    ({"hello": "raw", "hello_raw": '{"jsonrpc":"2.0","id":$ID,"error":"no"}'}, ""),
]


@pytest.fixture(scope="module")
def malformed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host whose providers answer `initialize` with every entry of MALFORMED."""
    folder = tmp_path_factory.mktemp("malformed")
    for n, (switches, _) in enumerate(MALFORMED):
        add_misbehave(folder, f"p{n}", switches=switches, limits=QUICK)
    with HostProcess(folder / "home", search_path=[folder]) as host:
        yield host


@pytest.mark.rule("P-20", "P-67")
@pytest.mark.parametrize("n", range(len(MALFORMED)), ids=[json.dumps(switches) for switches, _ in MALFORMED])
def test_a_malformed_handshake_makes_a_provider_unavailable(malformed: HostProcess, n: int) -> None:
    refusal = malformed.refusal("misbehave/echo", {"value": 1, **meta(provider=f"p{n}")})
    assert refusal.code == -31001
    entry = malformed.provider(f"p{n}")
    assert entry["state"] == "unavailable"
    assert MALFORMED[n][1] in entry["reason"]
    assert entry["restarts"] == 0


@pytest.mark.rule("P-21", "P-70", "P-71")
def test_a_provider_that_never_answers_initialize_fails_and_delays_no_other(
    tmp_path: Path, start_host: StartHost
) -> None:
    limits = {"start_timeout": 2, "stop_timeout": 0.3, "max_restarts": 0}
    add_misbehave(tmp_path / "path", "silent", switches={"hello": "hang"}, limits=limits)
    add_misbehave(tmp_path / "path", "good")
    host = start_host(search_path=[tmp_path / "path"])
    stuck = host.request("misbehave/echo", {"value": 1, **meta(provider="silent")})
    assert host.call("misbehave/echo", {"value": 2, **meta(provider="good")}) == 2
    assert host.answers_to(stuck) == 0
    refusal = host.error(stuck)
    assert refusal.code == -31001
    entry = host.provider("silent")
    assert entry["state"] == "failed"
    assert entry["restarts"] == 0
    assert "initialize" in entry["reason"]


@pytest.mark.rule("P-22", "P-70")
@pytest.mark.parametrize("switches", [{"before": "exit"}, {"before": "half_line"}, {"hello": "exit"}], ids=json.dumps)
def test_an_exit_before_the_handshake_is_a_crash(start_misbehave: StartHost, switches: dict[str, str]) -> None:
    host = start_misbehave(switches=switches, limits=QUICK)
    refusal = host.refusal("misbehave/echo", {"value": 1})
    assert refusal.code == -31001
    entry = host.provider("misbehave")
    assert entry["state"] == "failed"
    assert entry["restarts"] == 1
    assert "exited with status 3" in entry["reason"]


@pytest.mark.rule("P-22")
@pytest.mark.parametrize("command", [["/no/such/program"], ["{dir}/provider.toml"]])
def test_a_command_that_cannot_be_run_makes_a_provider_unavailable(
    tmp_path: Path, start_host: StartHost, command: list[str]
) -> None:
    add_misbehave(tmp_path, "good")
    add_provider(tmp_path, {"name": "broken", "command": command, "methods": ["misbehave/echo"]})
    host = start_host(search_path=[tmp_path])
    refusal = host.refusal("misbehave/echo", {"value": 1, **meta(provider="broken")})
    assert refusal.code == -31001
    assert host.provider("broken")["state"] == "unavailable"
    assert host.call("misbehave/echo", {"value": 1}) == 1


@pytest.mark.rule("P-23")
def test_methods_that_are_not_a_providers_own_are_refused_by_name(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"result": {"methods": [*METHODS, "misbehave/strict"]}})
    count, last = flagged(host)
    assert count == 1
    assert "misbehave/strict" in last
    assert host.refusal("misbehave/strict", {"message": "hi"}).code == -31001


@pytest.mark.rule("P-23")
def test_methods_that_no_protocol_defines_are_refused_by_name(start_misbehave: StartHost) -> None:
    host = start_misbehave(
        methods=None, switches={"result": {"methods": [*METHODS, "misbehave/nonsense", "misbehave/strict"]}}
    )
    count, last = flagged(host)
    assert count == 1
    assert "misbehave/nonsense" in last
    assert host.refusal("misbehave/nonsense", {}).code == -32601
    assert host.call("misbehave/strict", {"message": "hi"}) == {"message": "hi"}


OWN_PROTOCOL = {
    "openrpc": "1.3.2",
    "info": {"title": "own", "version": "1"},
    "methods": [
        {
            "name": "own/say",
            "paramStructure": "by-name",
            "params": [{"name": "text", "required": True, "schema": {"type": "string"}}],
            "result": {"name": "said", "schema": {}},
        }
    ],
}


@pytest.mark.rule("P-24")
def test_a_provider_may_bring_a_protocol_that_only_it_serves(tmp_path: Path, start_host: StartHost) -> None:
    brought = {"methods": ["own/say", "misbehave/echo"], "protocols": {"own/v1": OWN_PROTOCOL}}
    add_misbehave(tmp_path, "bringer", methods=None, switches={"result": brought})
    claimed = ["own/say", "misbehave/echo"]
    add_misbehave(tmp_path, "other", methods=claimed, switches={"result": {"methods": claimed}})
    host = start_host(search_path=[tmp_path])
    assert host.call("own/say", {"text": "hi"}) == {"text": "hi"}
    assert host.refusal("own/say", {"text": 1}).code == -32602
    count, last = flagged(host, "other")
    assert count >= 1
    assert "own/say" in last
    refusal = host.refusal("own/say", {"text": "hi", **meta(provider="other")})
    assert refusal.code == -31001
    assert flagged(host, "bringer") == (0, "")


@pytest.mark.rule("P-24")
@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("misbehave/v2", {**OWN_PROTOCOL, "methods": []}),
        ("host", {**OWN_PROTOCOL, "methods": []}),
        ("Own!", OWN_PROTOCOL),
        ("other/v1", OWN_PROTOCOL),
        ("own", {"openrpc": "1.3.2"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_document_that_may_not_be_brought_is_flagged_by_name(
    start_misbehave: StartHost, name: str, document: dict[str, Any]
) -> None:
    host = start_misbehave(switches={"result": {"protocols": {name: document}}})
    assert host.call("misbehave/echo", {"value": 1}) == 1
    count, last = flagged(host)
    assert count == 1
    assert name.partition("/")[0] in last


@pytest.mark.rule("P-25")
def test_a_method_that_the_handshake_lacks_is_not_sent(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"result": {"methods": ["misbehave/echo", "misbehave/received"]}})
    assert flagged(host)[0] == len(METHODS) - 2
    refusal = host.refusal("misbehave/hold")
    assert refusal.code == -31001
    assert "misbehave/hold" in refusal.message
    assert requests(host, "misbehave/hold") == []


# ---- calls


@pytest.mark.rule("P-26", "P-27")
def test_only_declared_methods_reach_a_provider(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    host.call("misbehave/echo", {"value": 1})
    assert host.refusal("misbehave/unserved").code == -31001
    assert host.refusal("misbehave/nonsense").code == -32601
    methods = {json.loads(line).get("method") for line in told(host)["lines"]}
    assert methods <= {"initialize", *METHODS}


@pytest.mark.rule("P-28")
@pytest.mark.parametrize("how", ["unknown_notification", "cancel_nobody"])
def test_notifications_that_mean_nothing_are_ignored(shared: HostProcess, how: str) -> None:
    before = flagged(shared)[0]
    assert do(shared, how, value=1) == 1
    assert flagged(shared)[0] == before


@pytest.mark.rule("P-29")
@pytest.mark.parametrize("value", [None, False, 0, -1.5, "", "text", [], {}, [None, {"a": [1]}]], ids=json.dumps)
def test_a_result_may_be_any_json_value(shared: HostProcess, value: Any) -> None:
    before = flagged(shared)[0]
    assert do(shared, "write", lines=["$ANSWER"], value=value) == value
    assert flagged(shared)[0] == before


@pytest.mark.rule("P-30")
def test_params_reach_the_provider_byte_for_byte(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    value = b'{"z":1.10,"a" : "\\u00e9\\/",  "n":1e3,"big":123456789012345678901234567890}'
    for id, rest in ((b'"a"', b""), (b'"b"', b',"_meta":{"timeoutMs":5000,"secret":true}')):
        host.send(b'{"jsonrpc":"2.0","id":%b,"method":"misbehave/echo","params":{"value":%b%b}}\n' % (id, value, rest))
        host.result(json.loads(id))
    lines = [line for line in told(host)["lines"] if "misbehave/echo" in line]
    assert len(lines) == 2
    for line in lines:
        assert f'"value":{value.decode()}' in line
        assert "secret" not in line
        assert set(json.loads(line)["params"]["_meta"]) == {"timeoutMs"}


@pytest.mark.rule("P-30")
def test_params_that_break_the_schema_never_reach_the_provider(start_misbehave: StartHost) -> None:
    methods = [*METHODS, "misbehave/strict"]
    host = start_misbehave(methods=methods, switches={"result": {"methods": methods}})
    refusal = host.refusal("misbehave/strict", {"message": "too long", "times": 0, "more": 1})
    assert refusal.code == -32602
    assert len(refusal.data["errors"]) == 3
    assert requests(host, "misbehave/strict") == []


@pytest.mark.rule("P-31")
@pytest.mark.parametrize(
    "result",
    [
        '{"z":1.10,"a" : "\\u00e9\\/",  "n":1e3,"big":123456789012345678901234567890}',
        '{"a":1,"a":2}',
        '[ 1 ,2,  "\\t\\u0000"]',
        '"caf\u00c3\u00a9"',
    ],
)
def test_a_result_reaches_the_caller_byte_for_byte(shared: HostProcess, result: str) -> None:
    line = '{"jsonrpc":"2.0","id":$ID,"result":' + result + "}"
    call = shared.request("misbehave/do", {"how": "write", "lines": [line]})
    assert b'"result":' + result.encode("latin-1") in shared.raw_answer(call)


@pytest.mark.rule("P-31")
def test_a_raw_carriage_return_in_an_answer_forges_no_line(shared: HostProcess) -> None:
    forged = '{"jsonrpc":"2.0","id":$ID,"result":[1,\r{"jsonrpc":"2.0","id":1,"result":"forged"}\r]}'
    call = shared.request("misbehave/do", {"how": "write", "lines": [forged]})
    answer = shared.raw_answer(call)
    assert b"\r" not in answer
    assert json.loads(answer)["result"] == [1, {"jsonrpc": "2.0", "id": 1, "result": "forged"}]


@pytest.mark.rule("P-32", "P-29")
@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (None, {}),
        ({"x": [1], "retryable": True}, {"x": [1], "retryable": True}),
        ("a text", {"detail": "a text"}),
        ([1, 2], {"detail": [1, 2]}),
    ],
)
def test_a_providers_error_keeps_code_and_message_and_gets_its_name(
    shared: HostProcess, data: Any, kept: dict[str, Any]
) -> None:
    error = {"code": 4711, "message": "out of \u00e4pples"} | ({} if data is None else {"data": data})
    refusal = shared.refusal("misbehave/do", {"how": "error", "value": error})
    assert refusal.code == 4711
    assert refusal.message == "out of \u00e4pples"
    assert refusal.data["source"] == "provider"
    assert refusal.data["provider"] == "misbehave"
    assert refusal.data["method"] == "misbehave/do"
    assert {name: refusal.data[name] for name in kept} == kept


@pytest.mark.rule("P-33", "P-41")
def test_a_call_without_answer_times_out_and_the_provider_is_told(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    host.call("misbehave/echo", {"value": "warm"})
    refusal = host.refusal("misbehave/do", {"how": "nothing", **meta(timeoutMs=300)})
    assert refusal.code == -31002
    assert refusal.data["provider"] == "misbehave"
    (call,) = requests(host, "misbehave/do")
    assert 1 <= call["params"]["_meta"]["timeoutMs"] <= 300
    (cancelled,) = requests(host, "notifications/cancelled")
    assert cancelled["params"]["requestId"] == call["id"]


@pytest.mark.rule("P-33")
def test_the_time_left_does_not_include_the_time_spent_waiting(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"hello": "late"})
    host.call("misbehave/echo", {"value": 1, **meta(timeoutMs=15_000)})
    (call,) = requests(host, "misbehave/echo")
    assert call["params"]["_meta"]["timeoutMs"] <= 15_000 - 300


@pytest.mark.rule("P-34")
def test_a_trace_reaches_the_provider(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    host.call("misbehave/echo", {"value": 1, **meta(traceparent=trace)})
    host.call("misbehave/echo", {"value": 2})
    first, second = requests(host, "misbehave/echo")
    assert first["params"]["_meta"]["traceparent"] == trace
    assert "traceparent" not in second["params"]["_meta"]


@pytest.mark.rule("P-35")
def test_a_clients_notification_is_a_request_for_the_provider(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    host.notify("misbehave/echo", {"value": "quiet"})
    (call,) = requests(host, "misbehave/echo")
    assert type(call["id"]) is int
    assert call["params"]["value"] == "quiet"
    assert host.answers_to(None) == 0


# ---- concurrency and order


@pytest.mark.rule("P-36", "P-42")
@pytest.mark.parametrize("concurrency", [1, 2, None])
def test_no_more_calls_are_in_flight_than_the_provider_takes(
    start_misbehave: StartHost, concurrency: int | None
) -> None:
    slots = concurrency or 256
    host = start_misbehave(switches={"result": {"concurrency": concurrency}})
    calls = [host.request("misbehave/hold", meta(progressToken=n)) for n in range(slots + 5)]
    for _ in range(slots):
        host.notification("notifications/progress")
    assert host.provider("misbehave")["inFlight"] == slots
    for call in reversed(calls):
        host.cancel(call)
    assert {host.error(call).code for call in calls} == {-31005}
    assert told(host)["mostHeld"] == slots
    assert len(requests(host, "misbehave/hold")) == slots


@pytest.mark.rule("P-37")
def test_calls_may_be_answered_in_any_order(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    held = [hold(host, f"t{n}") for n in range(5)]
    echo = host.call("misbehave/echo", {"value": "overtakes"})
    assert echo == "overtakes"
    assert host.call("misbehave/release") == 5
    assert [host.result(call) for call in held] == ["released"] * 5


@pytest.mark.rule("P-38")
@pytest.mark.parametrize("concurrency", [1, None])
def test_calls_are_written_in_the_order_they_came(start_misbehave: StartHost, concurrency: int | None) -> None:
    host = start_misbehave(switches={"result": {"concurrency": concurrency}})
    calls = [host.request("misbehave/echo", {"value": n}) for n in range(300)]
    assert [host.result(call) for call in calls] == list(range(300))
    assert [message["params"]["value"] for message in requests(host, "misbehave/echo")] == list(range(300))


@pytest.mark.rule("P-39", "P-47")
def test_progress_comes_complete_in_order_and_before_the_answer(shared: HostProcess) -> None:
    before = flagged(shared)[0]
    seen = len(shared.notifications)
    call = shared.request("misbehave/do", {"how": "flood_progress", "count": 2_000, **meta(progressToken="p")})
    assert shared.result(call) == 2_000
    progress = [n["params"]["progress"] for n in shared.notifications[seen:]]
    assert progress == list(range(1, 2_001))
    assert flagged(shared)[0] == before


@pytest.mark.rule("P-40", "P-71")
def test_a_provider_that_does_not_read_keeps_only_its_own_callers_waiting(
    tmp_path: Path, start_host: StartHost
) -> None:
    add_misbehave(tmp_path, "bad", limits=QUICK)
    add_misbehave(tmp_path, "good")
    host = start_host(search_path=[tmp_path])
    assert do(host, "stop_reading", provider="bad", value=1) == 1
    to_bad = meta(provider="bad", timeoutMs=500)
    stuck = [host.request("misbehave/echo", {"value": "x" * 10_000, **to_bad}) for _ in range(100)]
    for n in range(20):
        assert host.call("misbehave/echo", {"value": n, **meta(provider="good")}) == n
    assert {host.error(call).code for call in stuck} == {-31002}


# ---- cancellation


@pytest.mark.rule("P-41", "P-42")
@pytest.mark.parametrize("on_cancel", ["answer", "result", "twice", "progress"])
def test_whatever_a_provider_says_to_a_cancelled_call_is_dropped(start_misbehave: StartHost, on_cancel: str) -> None:
    host = start_misbehave(switches={"on_cancel": on_cancel, "result": {"concurrency": 1}})
    call = hold(host, "held")
    host.cancel(call, "not needed")
    assert host.error(call).code == -31005
    count, _ = flagged(host)
    assert count == (1 if on_cancel == "twice" else 0)
    assert host.answers_to(call) == 1
    assert len(host.notifications) == 1
    (cancelled,) = requests(host, "notifications/cancelled")
    assert cancelled["params"]["requestId"] == requests(host, "misbehave/hold")[0]["id"]


@pytest.mark.rule("P-41")
def test_a_cancellation_does_not_overtake_its_request(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    host.call("misbehave/echo", {"value": "warm"})
    for id in range(1_000, 1_020):
        host.send(
            b'{"jsonrpc":"2.0","id":%d,"method":"misbehave/hold","params":{}}\n'
            b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}\n' % (id, id)
        )
        assert host.error(id).code == -31005
    process = told(host)
    assert process["held"] == 0
    seen: set[int] = set()
    for message in map(json.loads, process["lines"]):
        if message["method"] == "misbehave/hold":
            seen.add(message["id"])
        if message["method"] == "notifications/cancelled":
            assert message["params"]["requestId"] in seen


@pytest.mark.rule("P-41")
def test_a_call_cancelled_while_it_waits_in_the_host_is_never_written(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"result": {"concurrency": 1}})
    first = hold(host, "first")
    waiting = host.request("misbehave/echo", {"value": "never"})
    host.cancel(waiting)
    assert host.error(waiting).code == -31005
    host.cancel(first)
    assert host.error(first).code == -31005
    assert requests(host, "misbehave/echo") == []


@pytest.mark.rule("P-44")
def test_a_provider_whose_slots_are_held_by_cancelled_calls_is_restarted(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"on_cancel": "ignore", "result": {"concurrency": 2}})
    before = told(host)["pid"]
    for token in ("a", "b"):
        call = hold(host, token)
        host.cancel(call)
        assert host.error(call).code == -31005
    assert told(host)["pid"] != before
    entry = host.provider("misbehave")
    assert entry["restarts"] == 1
    assert "cancelled" in entry["lastError"]


@pytest.mark.rule("P-44")
def test_one_free_slot_keeps_a_provider_that_ignores_cancellations(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"on_cancel": "ignore", "result": {"concurrency": 2}})
    call = hold(host, "a")
    host.cancel(call)
    assert host.error(call).code == -31005
    # Longer than the 5 s after which the provider would be restarted.
    assert host.refusal("misbehave/hold", meta(timeoutMs=5_500)).code == -31002
    assert host.provider("misbehave")["restarts"] == 0


# ---- progress and log


@pytest.mark.rule("P-45")
def test_a_progress_token_is_there_only_if_wanted_and_equals_the_id(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    host.call("misbehave/echo", {"value": 1})
    host.call("misbehave/echo", {"value": 2, **meta(progressToken="mine")})
    plain, wanted = requests(host, "misbehave/echo")
    assert "progressToken" not in plain["params"]["_meta"]
    assert wanted["params"]["_meta"]["progressToken"] == wanted["id"]


@pytest.mark.rule("P-46", "P-47")
@pytest.mark.parametrize("token", ["text", 12, 1.5, ""])
def test_progress_reaches_the_caller_under_its_own_token(shared: HostProcess, token: Any) -> None:
    shared.call("misbehave/do", {"how": "flood_progress", "count": 1, **meta(progressToken=token)})
    assert shared.notification("notifications/progress", lambda params: params["progressToken"] == token) == {
        "progressToken": token,
        "progress": 1,
        "total": 1,
        "message": "step 1",
        "delta": {"n": 1},
    }


@pytest.mark.rule("P-47")
@pytest.mark.parametrize(
    ("how", "token"),
    [
        ("progress_unknown_token", "mine"),
        ("progress_without_number", "mine"),
        ("progress_text_number", "mine"),
        ("progress_after_answer", "mine"),
        ("progress_unwanted", None),
    ],
)
def test_progress_that_nobody_can_use_is_dropped_and_flagged(shared: HostProcess, how: str, token: str | None) -> None:
    before = flagged(shared)[0]
    seen = len(shared.notifications)
    assert shared.call("misbehave/do", {"how": how, "value": 1, **meta(progressToken=token)}) == 1
    assert flagged(shared)[0] == before + 1
    assert len(shared.notifications) == seen


@pytest.mark.rule("P-48", "P-49")
@pytest.mark.parametrize("data", ["the disk is full", {"disk": "full"}])
def test_log_records_go_to_the_logs_and_never_to_a_plain_client(start_misbehave: StartHost, data: Any) -> None:
    host = start_misbehave()
    for level in ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"):
        params = {"level": level, "logger": "disk", "data": data}
        do(host, "notify", method="notifications/message", params=params)
    assert flagged(host) == (0, "")
    assert host.notifications == []
    host.finish()
    assert "misbehave" in host.stderr
    assert "full" in host.stderr
    (log,) = host.home.rglob("misbehave.log")
    assert log.read_text().count("full") == 8


@pytest.mark.rule("P-49")
@pytest.mark.parametrize("how", ["message_without_level", "message_odd_level", "message_without_params"])
def test_a_log_record_without_a_proper_level_is_flagged(shared: HostProcess, how: str) -> None:
    before = flagged(shared)[0]
    seen = len(shared.notifications)
    assert do(shared, how, value=1) == 1
    assert flagged(shared)[0] == before + 1
    assert len(shared.notifications) == seen


# ---- state and change


@pytest.mark.rule("P-50")
@pytest.mark.parametrize("state", [{"count": 1, "text": "\u00e9"}, [1, "2", None], 0], ids=json.dumps)
def test_state_is_handed_back_after_a_restart_of_the_host(
    tmp_path: Path, start_misbehave: StartHost, state: Any
) -> None:
    host = start_misbehave(home=tmp_path / "home")
    do(host, "state", value="an older one")
    do(host, "state", value=state)
    assert "state" not in told(host)["initialize"]
    assert host.finish() == 0
    again = start_misbehave(home=tmp_path / "home")
    assert told(again)["initialize"]["state"] == state


@pytest.mark.rule("P-50", "P-69")
def test_state_is_handed_back_after_the_death_of_the_provider(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    do(host, "state", value={"kept": True})
    assert host.refusal("misbehave/do", {"how": "kill"}).code == -31004
    assert told(host)["initialize"]["state"] == {"kept": True}


@pytest.mark.rule("P-51")
def test_too_large_a_state_is_flagged_and_the_old_one_stays(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    do(host, "state", value="small")
    do(host, "huge_state", bytes=1024 * 1024)
    count, last = flagged(host)
    assert count == 1
    assert "state" in last
    assert host.refusal("misbehave/do", {"how": "exit"}).code == -31004
    assert told(host)["initialize"]["state"] == "small"
    do(host, "huge_state", bytes=1024 * 1024 - 2)
    assert host.refusal("misbehave/do", {"how": "exit"}).code == -31004
    assert len(told(host)["initialize"]["state"]) == 1024 * 1024 - 2


@pytest.mark.rule("P-52")
def test_changed_replaces_what_it_names_and_keeps_the_rest(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"result": {"capabilities": {"models": ["old"]}}})
    held = hold(host, "held")
    fewer = [name for name in METHODS if name not in {"misbehave/hold", "misbehave/loop"}]
    do(host, "notify", method="notifications/changed", params={"methods": fewer})
    assert host.refusal("misbehave/loop").code == -31001
    assert host.provider("misbehave")["capabilities"] == {"models": ["old"]}
    do(host, "notify", method="notifications/changed", params={"capabilities": {"models": ["new"]}})
    entry = host.provider("misbehave")
    assert entry["capabilities"] == {"models": ["new"]}
    assert sorted(entry["methods"]) == fewer
    host.call("misbehave/release")
    assert host.result(held) == "released"
    do(host, "notify", method="notifications/changed", params={"methods": METHODS})
    assert sorted(host.provider("misbehave")["methods"]) == METHODS


@pytest.mark.rule("P-52", "P-23")
def test_changed_to_methods_outside_the_manifest_is_refused_by_name(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    params = {"methods": [*METHODS, "misbehave/strict"]}
    do(host, "notify", method="notifications/changed", params=params)
    count, last = flagged(host)
    assert count == 1
    assert "misbehave/strict" in last
    assert host.refusal("misbehave/strict", {"message": "hi"}).code == -31001


@pytest.mark.rule("P-53")
@pytest.mark.parametrize("how", ["state_missing", "changed_nonsense"])
def test_malformed_state_and_changes_are_flagged_and_change_nothing(start_misbehave: StartHost, how: str) -> None:
    host = start_misbehave()
    do(host, "state", value="good")
    assert do(host, how, value=1) == 1
    assert flagged(host)[0] == 1
    assert sorted(host.provider("misbehave")["methods"]) == METHODS
    assert host.refusal("misbehave/do", {"how": "exit"}).code == -31004
    assert told(host)["initialize"]["state"] == "good"


# ---- call-backs


def call_back(host: HostProcess, method: str, params: dict[str, Any] | None = None, **options: Any) -> Any:
    """Have the provider call back, and return the whole answer that it got."""
    return host.call("misbehave/call", {"method": method, "params": params or {}, **options})


@pytest.mark.rule("P-54")
@pytest.mark.parametrize("method", ["host/info", "host/providers", "rpc.discover"])
def test_the_hosts_own_methods_are_never_callable_by_a_provider(start_misbehave: StartHost, method: str) -> None:
    host = start_misbehave(calls=["*", "host/*", "rpc.*"])
    assert call_back(host, method)["error"]["code"] == -31008
    assert flagged(host) == (0, "")


CALLS: list[tuple[list[str], list[str] | None, bool]] = [
    (["misbehave/*"], None, True),
    (["misbehave/echo"], None, True),
    (["*"], None, True),
    ([], None, False),
    (["misbehave/e"], None, False),
    (["misbehave/*"], [], False),
    (["misbehave/*"], ["misbehave/echo"], True),
    ([], ["misbehave/echo"], False),
]


@pytest.mark.rule("P-54")
def test_a_provider_may_call_what_its_manifest_and_the_configuration_allow(
    tmp_path: Path, start_host: StartHost
) -> None:
    config = ""
    for n, (manifest, narrowed, _) in enumerate(CALLS):
        add_misbehave(tmp_path, f"p{n}", calls=manifest)
        if narrowed is not None:
            config += f"[providers.p{n}]\ncalls = {json.dumps(narrowed)}\n"
    host = start_host(search_path=[tmp_path], config=config)
    for n, (_, _, allowed) in enumerate(CALLS):
        answer = call_back(host, "misbehave/echo", {"value": "back"}, **meta(provider=f"p{n}"))
        assert answer.get("result") == ("back" if allowed else None), CALLS[n]
        if not allowed:
            assert answer["error"]["code"] == -31008
            assert "misbehave/echo" in answer["error"]["message"]


@pytest.mark.rule("P-55")
def test_every_call_back_is_answered_as_any_clients(shared: HostProcess) -> None:
    assert call_back(shared, "misbehave/nonsense")["error"]["code"] == -32601
    assert call_back(shared, "misbehave/unserved")["error"]["code"] == -31001
    answer = call_back(shared, "misbehave/echo", {"wrong": 1})
    assert answer["error"]["code"] == -32602
    assert answer["error"]["data"]["errors"]
    assert do(shared, "call_back_without_end", count=200) == 0


@pytest.mark.rule("P-55", "P-47")
def test_a_call_back_has_progress_if_it_wants_it(shared: HostProcess) -> None:
    inner = {"method": "misbehave/do", "params": {"how": "flood_progress", "count": 3}}
    answer = shared.call("misbehave/call", {**inner, **meta(progressToken="outer")})
    assert answer["result"] == 3
    outer = [n["params"] for n in shared.notifications if n["params"]["progressToken"] == "outer"]
    assert [params["progress"] for params in outer] == [1, 2, 3]
    assert outer[2]["delta"] == {"n": 3}


@pytest.mark.rule("P-56", "P-58")
def test_a_call_back_without_parent_belongs_to_the_newest_call(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    older = hold(host, "older")
    newer = host.request("misbehave/call", {"method": "misbehave/hold", **meta(progressToken="newer")})
    host.notification("notifications/progress", lambda params: params["progressToken"] == "newer")
    assert told(host)["held"] == 2
    host.cancel(older)
    assert host.error(older).code == -31005
    assert told(host)["held"] == 1
    host.cancel(newer)
    assert host.error(newer).code == -31005
    assert told(host)["held"] == 0


@pytest.mark.rule("P-56", "P-58")
def test_a_call_back_belongs_to_the_parent_it_names(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    parent = hold(host, "parent")
    own_id = requests(host, "misbehave/hold")[0]["id"]
    inner = {"method": "misbehave/hold", "parent": own_id}
    caller = host.request("misbehave/call", {**inner, **meta(progressToken="inner")})
    host.notification("notifications/progress", lambda params: params["progressToken"] == "inner")
    assert told(host)["held"] == 2
    host.cancel(parent)
    assert host.error(parent).code == -31005
    assert host.result(caller)["error"]["code"] == -31005


@pytest.mark.rule("P-56")
@pytest.mark.parametrize("parent", [1, 999_999])
def test_a_parent_that_is_not_in_flight_is_refused(shared: HostProcess, parent: int) -> None:
    assert call_back(shared, "misbehave/echo", {"value": 1}, parent=parent)["error"]["code"] == -31005


@pytest.mark.rule("P-57")
def test_a_call_back_inherits_time_and_trace(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    inner = {"method": "misbehave/echo", "params": {"value": 1}, "parent": "own"}
    host.call("misbehave/call", {**inner, **meta(timeoutMs=7_000, traceparent=trace)})
    (call,) = requests(host, "misbehave/echo")
    assert call["params"]["_meta"]["timeoutMs"] <= 7_000
    assert call["params"]["_meta"]["traceparent"] == trace


@pytest.mark.rule("P-57")
def test_a_call_back_may_ask_for_less_time_and_not_for_more(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    answer = call_back(host, "misbehave/hold", meta(timeoutMs=200), parent="own")
    assert answer["error"]["code"] == -31002
    inner = {"method": "misbehave/echo", "params": {"value": 1, **meta(timeoutMs=60_000)}, "parent": "own"}
    host.call("misbehave/call", {**inner, **meta(timeoutMs=7_000)})
    (call,) = requests(host, "misbehave/echo")
    assert call["params"]["_meta"]["timeoutMs"] <= 7_000


@pytest.mark.rule("P-58")
def test_a_call_back_is_cancelled_when_its_parent_is_answered(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    assert do(host, "call_back_and_answer", value="early") == "early"
    assert told(host)["held"] == 0
    (held,) = requests(host, "misbehave/hold")
    (cancelled,) = requests(host, "notifications/cancelled")
    assert cancelled["params"]["requestId"] == held["id"]


@pytest.mark.rule("P-58", "P-33")
def test_a_call_back_ends_when_the_time_of_its_parent_has_run_out(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    host.call("misbehave/echo", {"value": "warm"})
    inner = {"method": "misbehave/hold", "parent": "own", **meta(timeoutMs=300)}
    assert host.refusal("misbehave/call", inner).code == -31002
    assert told(host)["held"] == 0


@pytest.mark.rule("P-59")
def test_call_backs_nest_sixteen_deep_and_no_deeper(shared: HostProcess) -> None:
    end = shared.call("misbehave/loop")
    assert end["error"]["code"] == -31010
    assert end["depth"] == 17


@pytest.mark.rule("P-60")
def test_a_provider_may_cancel_its_call_back(shared: HostProcess) -> None:
    answer = call_back(shared, "misbehave/hold", cancel=True)
    assert answer["error"]["code"] == -31005
    assert told(shared)["held"] == 0


@pytest.mark.rule("P-54", "P-56")
def test_one_provider_calls_another_through_the_host(tmp_path: Path, start_host: StartHost) -> None:
    add_misbehave(tmp_path, "front")
    add_misbehave(tmp_path, "back")
    host = start_host(search_path=[tmp_path])
    inner = {"method": "misbehave/received", "params": meta(provider="back")}
    answer = host.call("misbehave/call", {**inner, **meta(provider="front")})
    assert answer["result"]["environ"]["GLEITZEIT_PROVIDER"] == "back"


# ---- end of input


@pytest.mark.rule("P-64")
def test_what_a_provider_writes_after_the_end_of_its_input_counts(tmp_path: Path, start_misbehave: StartHost) -> None:
    host = start_misbehave(home=tmp_path / "home", switches={"at_eof": "save"})
    host.call("misbehave/echo", {"value": 1})
    assert host.finish() == 0
    again = start_misbehave(home=tmp_path / "home")
    assert told(again)["initialize"]["state"] == {"calls": 1}


@pytest.mark.rule("P-64")
def test_an_answer_written_just_before_the_exit_arrives(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    assert do(host, "exit_after_answer", value="the last words") == "the last words"


@pytest.mark.rule("P-65")
@pytest.mark.parametrize(
    "switches",
    [
        {"at_eof": "ignore"},
        {"at_eof": "ignore", "sigterm": "ignore"},
        {"before": "grandchild"},
        {"before": "grandchild", "at_eof": "ignore", "sigterm": "ignore"},
    ],
    ids=json.dumps,
)
def test_nothing_that_a_provider_started_outlives_the_host(
    start_misbehave: StartHost, switches: dict[str, str]
) -> None:
    host = start_misbehave(switches=switches, limits=QUICK)
    assert told(host)["pid"] in host.descendants()
    assert host.finish() == 0


@pytest.mark.rule("P-65")
def test_the_grandchildren_of_a_provider_that_died_are_killed(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    grandchild = do(host, "grandchild")
    assert host.refusal("misbehave/do", {"how": "exit"}).code == -31004
    told(host)
    assert grandchild not in host.descendants()


@pytest.mark.rule("P-66")
def test_a_provider_that_closes_its_stdout_has_gone(start_misbehave: StartHost) -> None:
    host = start_misbehave(limits=QUICK)
    before = told(host)["pid"]
    other = hold(host, "other")
    assert host.refusal("misbehave/do", {"how": "close_stdout"}).code == -31004
    assert host.error(other).code == -31004
    assert told(host)["pid"] != before


# ---- what a broken provider gets


@pytest.mark.rule("P-67")
@pytest.mark.parametrize(
    "how",
    [
        "nan",
        "nan_deep",
        "infinity_in_error",
        "bom_answer",
        "bad_utf8_answer",
        "no_jsonrpc",
        "jsonrpc_1",
        "result_and_error",
        "result_and_null_error",
        "no_result",
        "error_text",
        "error_null",
        "error_without_code",
        "error_code_text",
        "error_code_fraction",
        "error_without_message",
    ],
)
def test_an_answer_that_breaks_the_protocol_ends_its_call(shared: HostProcess, how: str) -> None:
    before = flagged(shared)[0]
    other = hold(shared, "other")
    refusal = shared.refusal("misbehave/do", {"how": how})
    assert refusal.code == -31007
    assert refusal.data["provider"] == "misbehave"
    assert flagged(shared)[0] == before + 1
    shared.call("misbehave/release")
    assert shared.result(other) == "released"


@pytest.mark.rule("P-68")
@pytest.mark.parametrize(
    "how",
    [
        "double_answer",
        "two_different_answers",
        "unknown_id",
        "negative_id",
        "huge_id",
        "text_id",
        "request_null_id",
        "request_list_id",
    ],
)
def test_answers_to_nobody_and_odd_ids_are_flagged_and_dropped(shared: HostProcess, how: str) -> None:
    before = flagged(shared)[0]
    call = shared.request("misbehave/do", {"how": how, "value": "right"})
    assert shared.result(call) == "right"
    assert flagged(shared)[0] == before + 1
    assert shared.answers_to(call) == 1
    assert shared.answers_to(None) == 0
    assert "dropped" not in [call["params"]["value"] for call in requests(shared, "misbehave/echo")]


@pytest.mark.rule("P-69")
@pytest.mark.parametrize("how", ["exit", "kill", "exit_in_answer"])
def test_calls_in_flight_at_a_dying_provider_end_with_provider_gone(start_misbehave: StartHost, how: str) -> None:
    host = start_misbehave()
    others = [hold(host, f"t{n}") for n in range(3)]
    dying = host.request("misbehave/do", {"how": how})
    for call in [*others, dying]:
        refusal = host.error(call)
        assert refusal.code == -31004
        assert refusal.data["provider"] == "misbehave"
        assert refusal.data["retryable"] is False
    assert host.call("misbehave/echo", {"value": "back"}) == "back"
    assert host.provider("misbehave")["restarts"] == 1


@pytest.mark.rule("P-69")
def test_an_idempotent_call_is_retried_at_the_restarted_provider(tmp_path: Path, start_misbehave: StartHost) -> None:
    host = start_misbehave()
    params = {"how": "exit", "unless": str(tmp_path / "died"), "value": "second time"}
    assert host.call("misbehave/redo", params) == "second time"
    assert host.provider("misbehave")["restarts"] == 1


@pytest.mark.rule("P-69")
def test_an_idempotent_call_is_retried_at_another_provider(tmp_path: Path, start_host: StartHost) -> None:
    for name in ("one", "two"):
        add_misbehave(tmp_path, name, limits={"max_restarts": 0})
    host = start_host(search_path=[tmp_path])
    params = {"how": "exit", "unless": str(tmp_path / "died"), "value": "elsewhere"}
    assert host.call("misbehave/redo", params) == "elsewhere"
    assert sorted(host.provider(name)["state"] for name in ("one", "two")) == ["failed", "ready"]


@pytest.mark.rule("P-69")
def test_an_idempotent_call_is_retried_once_only(start_misbehave: StartHost) -> None:
    host = start_misbehave()
    refusal = host.refusal("misbehave/redo", {"how": "exit"})
    assert refusal.code == -31004
    assert refusal.data["retryable"] is True
    told(host)
    assert host.provider("misbehave")["restarts"] == 2


@pytest.mark.rule("P-70")
def test_a_provider_that_crashes_too_often_has_failed(start_misbehave: StartHost) -> None:
    host = start_misbehave(limits={"max_restarts": 2, "restart_window": 60})
    for _ in range(3):
        assert host.refusal("misbehave/do", {"how": "exit"}).code == -31004
    for _ in range(2):
        refusal = host.refusal("misbehave/echo", {"value": 1})
        assert refusal.code == -31001
        assert "exited with status 3" in refusal.message
    entry = host.provider("misbehave")
    assert entry["state"] == "failed"
    assert entry["restarts"] == 2
    assert "exited with status 3" in entry["reason"]


@pytest.mark.rule("P-70")
def test_a_call_that_waits_for_a_restart_keeps_its_own_deadline(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"hello": "hang"}, limits={"start_timeout": 30, "stop_timeout": 0.3})
    assert host.refusal("misbehave/echo", {"value": 1, **meta(timeoutMs=300)}).code == -31002


HOSTILE: list[dict[str, Any]] = [
    {"how": "text"},
    {"how": "bad_utf8"},
    {"how": "batch"},
    {"how": "nan"},
    {"how": "no_result"},
    {"how": "double_answer"},
    {"how": "unknown_id"},
    {"how": "flood_stdout", "count": 5_000},
    {"how": "flood_stderr", "bytes": 1_000_000},
    {"how": "flood_progress", "count": 5_000},
    {"how": "huge", "bytes": 200_000},
    {"how": "huge", "bytes": 200_000, "late": True},
    {"how": "deep", "count": 20_000},
    {"how": "call_back_without_end", "count": 500},
    {"how": "endless_line"},
    {"how": "exit_in_answer"},
    {"how": "kill"},
    {"how": "close_stdout"},
    {"how": "stop"},
]


@pytest.mark.rule("P-71")
@pytest.mark.parametrize("misdeed", HOSTILE, ids=json.dumps)
def test_a_hostile_provider_changes_nothing_for_its_neighbour(
    tmp_path: Path, start_host: StartHost, misdeed: dict[str, Any]
) -> None:
    add_misbehave(tmp_path, "bad", limits={**QUICK, "max_restarts": 5})
    add_misbehave(tmp_path, "good")
    host = start_host(search_path=[tmp_path], config=SMALL_LINES)
    assert do(host, "write", "bad", lines=["$ANSWER"], value=1) == 1
    bad = host.request("misbehave/do", {**misdeed, **meta(provider="bad", timeoutMs=3_000, progressToken="bad")})
    good = [host.request("misbehave/echo", {"value": n, **meta(provider="good")}) for n in range(100)]
    assert [host.result(call) for call in good] == list(range(100))
    host.answer(bad)
    assert host.call("misbehave/echo", {"value": "after", **meta(provider="good")}) == "after"
    assert host.answers_to(bad) == 1
    assert flagged(host, "good") == (0, "")


@pytest.mark.rule("P-71")
def test_fifty_providers_start_side_by_side(tmp_path: Path, start_host: StartHost) -> None:
    for n in range(50):
        add_misbehave(tmp_path, f"p{n}", switches={"hello": "hang"} if n == 25 else {})
    host = start_host(search_path=[tmp_path])
    calls = {n: host.request("misbehave/received", meta(provider=f"p{n}", timeoutMs=19_000)) for n in range(50)}
    names = [host.result(calls[n], timeout=60)["environ"]["GLEITZEIT_PROVIDER"] for n in range(50) if n != 25]
    assert len(set(names)) == 49
    host.cancel(calls[25])
    assert host.error(calls[25]).code == -31005


# ---- health


@pytest.mark.rule("P-61", "P-62", "P-63")
def test_pings_tell_health_and_a_provider_deaf_to_three_is_restarted(pinged: tuple[HostProcess, int]) -> None:
    host, held = pinged
    refusal = host.error(held, timeout=100)
    assert refusal.code == -31004
    assert refusal.data["provider"] == "deaf"
    assert len(requests(host, "ping", "well")) >= 3
    assert all(ping["params"] == {} for ping in requests(host, "ping", "well"))
    assert requests(host, "ping", "plain") == []
    assert host.provider("well")["health"] == {"health": "degraded", "detail": "warm", "resources": []}
    assert host.provider("well")["restarts"] == 0
    assert host.provider("plain")["health"] is None
    entry = host.provider("deaf")
    assert "ping" in entry["lastError"]


# ---- providers on their own, and the document


class Pipes:
    """A provider without a host: write lines, read lines."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def converse(self, *messages: dict[str, Any]) -> list[dict[str, Any]]:
        lines = b"".join(json.dumps(message).encode() + b"\n" for message in messages)
        output, _ = self.process.communicate(lines, timeout=20)
        return [json.loads(line) for line in output.splitlines()]


def document() -> str:
    return SPECIFICATION.read_text(encoding="utf-8")


def tutorial(folder: Path) -> Path:
    """Write the files of the document's tutorial and return the folder."""
    files = re.findall(r"^`([\w./-]+)`,.*?\n```\w+\n(.*?)^```", document(), re.MULTILINE | re.DOTALL)
    assert len(files) == 3
    for name, text in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.suffix == ".sh":
            path.chmod(0o755)
            assert len(text.splitlines()) <= 12
    return folder


needs_jq = pytest.mark.skipif(shutil.which("jq") is None, reason="the document's provider needs jq")

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": 1,
        "host": {"name": "test", "version": "0"},
        "provider": "shout",
        "settings": {},
        "roots": [],
        "limits": {"messageBytes": 1_000_000},
    },
}


@needs_jq
@pytest.mark.rule("P-16", "P-27", "P-28", "P-29", "P-43", "P-64")
def test_the_documents_provider_keeps_the_rules_without_a_host(tmp_path: Path) -> None:
    provider = Pipes([str(tutorial(tmp_path) / "providers/shout/provider.sh")])
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}}
    hello, said, refused, again = provider.converse(
        INITIALIZE,
        cancelled,
        {"jsonrpc": "2.0", "id": 2, "method": "shout/say", "params": {"message": "hello"}},
        {"jsonrpc": "2.0", "method": "notifications/nonsense", "params": {}},
        {"jsonrpc": "2.0", "id": 3, "method": "shout/nonsense", "params": {}},
        {"jsonrpc": "2.0", "id": 9_007_199_254_740_991, "method": "shout/say", "params": {"message": "\u00e9"}},
    )
    assert hello["result"]["protocolVersion"] == 1
    assert said == {"jsonrpc": "2.0", "id": 2, "result": {"response": "HELLO"}}
    assert refused["error"]["code"] == -32601
    assert again["id"] == 9_007_199_254_740_991
    assert provider.process.returncode == 0


@pytest.mark.rule("P-27", "P-28", "P-43")
def test_misbehave_behaves_unless_told_otherwise() -> None:
    provider = Pipes([sys.executable, str(PROGRAM)])
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}}
    hello, echo, refused = provider.converse(
        INITIALIZE,
        {"jsonrpc": "2.0", "id": 2, "method": "misbehave/echo", "params": {"value": 1}},
        cancelled,
        {"jsonrpc": "2.0", "id": 3, "method": "misbehave/nonsense", "params": {}},
    )
    assert hello["result"]["methods"] == METHODS
    assert echo["result"] == 1
    assert refused["error"]["code"] == -32601
    assert provider.process.returncode == 0


@needs_jq
def test_the_documents_provider_works_as_the_document_says(start_host: StartHost, tmp_path: Path) -> None:
    host = start_host(search_path=[tutorial(tmp_path)])
    assert host.call("shout/say", {"message": "hello"}) == {"response": "HELLO"}
    assert host.refusal("shout/say", {"message": 1}).code == -32602
    entry = host.provider("shout")
    assert (entry["problems"], entry["restarts"]) == (0, 0)


@needs_jq
def test_the_documents_command_prints_what_the_document_says(tmp_path: Path) -> None:
    found = re.search(r"^\$ gleitzeit-host ([^\n]*)\n(.*?)^```", document(), re.MULTILINE | re.DOTALL)
    assert found is not None
    tutorial(tmp_path / "demo")
    done = subprocess.run(
        [sys.executable, "-m", "gleitzeit_host", *found[1].split()],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=tmp_path,
        env=isolated_environment(tmp_path),
        timeout=20,
        check=True,
    )
    assert done.stdout.decode() == found[2]


def test_every_message_in_the_document_is_one_line_of_json() -> None:
    lines = re.findall(r"^[→←] (\{.*)$", document(), re.MULTILINE)
    assert len(lines) >= 16
    for line in lines:
        message = json.loads(line.replace("[…]", "[]"))
        assert message["jsonrpc"] == "2.0"
        assert "params" in message if "method" in message else "id" in message


def test_the_rules_are_numbered_without_gaps() -> None:
    numbers = [
        int(number) for number in re.findall(r"^- \*\*P-(\d+)\*\* \((?:host|provider|both)\)", document(), re.MULTILINE)
    ]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == document().count("- **P-")


def test_every_rule_of_the_document_has_a_test() -> None:
    rules = set(re.findall(r"^- \*\*(P-\d+)\*\*", document(), re.MULTILINE))
    marks = re.findall(r"^@pytest\.mark\.rule\((.*)\)$", Path(__file__).read_text(encoding="utf-8"), re.MULTILINE)
    tested = {rule for mark in marks for rule in re.findall(r"P-\d+", mark)}
    assert tested == rules


def test_every_rule_that_the_document_refers_to_exists() -> None:
    rules = set(re.findall(r"^- \*\*(P-\d+)\*\*", document(), re.MULTILINE))
    assert set(re.findall(r"\bP-\d+\b", document())) == rules
