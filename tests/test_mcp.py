"""The Model Context Protocol on the client's pipe: https://modelcontextprotocol.io/specification."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from support.host import HostError
from support.mcp import LEGACY, MODERN, SUBSCRIPTION, McpHost, modern_meta
from support.misbehave import METHODS, add_provider

from gleitzeit_host.mcp.schemas import as_object, inline
from gleitzeit_host.mcp.tools import tool_names

StartMcp = Callable[..., McpHost]
ERAS = [*LEGACY, MODERN]
SAY = {"name": "echo_say", "arguments": {"message": "hi"}}


def do(how: str, **arguments: Any) -> dict[str, Any]:
    return {"name": "misbehave_do", "arguments": {"how": how, **arguments}}


def served(mcp: McpHost) -> list[str]:
    """Return the tools for what the host's providers serve."""
    rows = mcp.call("host/providers")["providers"]
    return sorted(name.replace("/", "_") for row in rows for name in row["methods"])


def text_of(result: dict[str, Any]) -> str:
    return str(result["content"][0]["text"])


# ---- which era


@pytest.mark.parametrize("version", LEGACY)
def test_initialize_negotiates_every_legacy_revision(mcp: McpHost, version: str) -> None:
    result = mcp.initialize(version)
    assert result["protocolVersion"] == version
    assert result["serverInfo"]["name"] == "gleitzeit-host"
    assert mcp.legacy("ping") == {}


@pytest.mark.parametrize("wanted", ["1999-01-01", MODERN])
def test_initialize_with_an_unknown_revision_is_answered_with_the_newest(mcp: McpHost, wanted: str) -> None:
    params = {"protocolVersion": wanted, "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
    assert mcp.result(mcp.ask("2025-11-25", "initialize", params))["protocolVersion"] == "2025-11-25"


def test_discover_names_every_revision(mcp: McpHost) -> None:
    result = mcp.modern("server/discover")
    assert result["resultType"] == "complete"
    assert result["supportedVersions"] == [MODERN, *reversed(LEGACY)]
    assert result["_meta"]["io.modelcontextprotocol/serverInfo"]["name"] == "gleitzeit-host"


@pytest.mark.parametrize("wanted", ["1900-01-01", "2025-11-25"])
def test_another_revision_in_meta_is_refused_with_the_supported_ones(mcp: McpHost, wanted: str) -> None:
    error = mcp.error(mcp.ask(MODERN, "tools/list", {"_meta": {"io.modelcontextprotocol/protocolVersion": wanted}}))
    assert error.code == -32022
    assert error.data["requested"] == wanted
    assert error.data["supported"][0] == MODERN


def test_a_modern_request_without_capabilities_is_invalid(mcp: McpHost) -> None:
    meta = modern_meta()
    del meta["io.modelcontextprotocol/clientCapabilities"]
    assert mcp.refusal("tools/list", {"_meta": meta}).code == -32602
    assert mcp.refusal("tools/list", {"_meta": {**modern_meta(), "io.modelcontextprotocol/protocolVersion": 5}})


@pytest.mark.parametrize("method", ["tools/list", "tools/call", "ping", "server/discover", "resources/list"])
def test_an_mcp_method_of_neither_era_says_how_to_speak_both(mcp: McpHost, method: str) -> None:
    error = mcp.refusal(method)
    assert error.code == -32602
    assert "initialize" in error.message
    assert "io.modelcontextprotocol/protocolVersion" in error.message


@pytest.mark.parametrize("method", ["ping", "logging/setLevel", "initialize", "resources/subscribe", "no/such"])
def test_what_the_modern_era_has_no_more_is_not_found(mcp: McpHost, method: str) -> None:
    assert mcp.error(mcp.ask(MODERN, method)).code == -32601


@pytest.mark.parametrize("method", ["logging/setLevel", "prompts/list", "subscriptions/listen", "server/discover"])
def test_what_is_not_offered_is_not_found_in_the_legacy_era(mcp: McpHost, method: str) -> None:
    mcp.initialize("2025-11-25")
    assert mcp.error(mcp.ask("2025-11-25", method)).code == -32601


@pytest.mark.parametrize("id", [None, 1.5])
def test_an_id_that_mcp_does_not_allow_is_refused_without_one(mcp: McpHost, id: Any) -> None:
    mcp.send({"jsonrpc": "2.0", "id": id, "method": "tools/list", "params": {"_meta": modern_meta()}})
    assert mcp.modern("tools/list")
    refused = [message for message in mcp.said if "id" not in message]
    assert [message["error"]["code"] for message in refused] == [-32600]


def test_plain_legacy_and_modern_are_spoken_side_by_side(mcp: McpHost) -> None:
    mcp.initialize("2025-06-18")
    asked: list[Any] = []
    for number in range(100):
        call = {"name": "echo_say", "arguments": {"message": f"m{number}"}}
        plain = mcp.request("echo/say", {"message": f"m{number}"})
        asked.append((plain, mcp.ask("2025-06-18", "tools/call", call), mcp.ask(MODERN, "tools/call", call)))
    for number, (plain, legacy, modern) in enumerate(asked):
        expected = {"response": f"m{number}"}
        assert mcp.result(plain) == expected
        answer = mcp.result(legacy)
        assert answer["structuredContent"] == expected
        assert "resultType" not in answer
        answer = mcp.result(modern)
        assert answer["structuredContent"] == expected
        assert answer["resultType"] == "complete"


# ---- batches


def test_a_batch_is_served_in_revision_2025_03_26_alone(mcp: McpHost) -> None:
    mcp.initialize("2025-03-26")
    mcp.send([mcp.message("2025-03-26", "ping"), mcp.message("2025-03-26", "tools/call", SAY)])
    ping, call = mcp.batch()
    assert ping["result"] == {}
    assert json.loads(text_of(call["result"])) == {"response": "hi"}


@pytest.mark.parametrize("version", ["2024-11-05", "2025-06-18", "2025-11-25", MODERN])
def test_mcp_in_a_batch_is_refused_entry_by_entry_in_other_revisions(mcp: McpHost, version: str) -> None:
    if version != MODERN:
        mcp.initialize(version)
    plain = {"jsonrpc": "2.0", "id": "p", "method": "echo/say", "params": ["x"]}
    mcp.send([mcp.message(version, "tools/list"), plain, mcp.message(version, "tools/call", SAY)])
    first, middle, last = mcp.batch()
    assert first["error"]["code"] == last["error"]["code"] == -32600
    assert middle["result"] == {"response": "x"}


def test_initialize_in_a_batch_is_refused(mcp: McpHost) -> None:
    params = {"protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}
    mcp.send([mcp.message("2025-03-26", "initialize", params)])
    assert mcp.batch()[0]["error"]["code"] == -32600


def test_a_cancelled_entry_leaves_its_batch(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    mcp.initialize("2025-03-26")
    mcp.legacy("tools/call", do("echo"))
    held = mcp.message("2025-03-26", "tools/call", {"name": "misbehave_hold", "_meta": {"progressToken": "h"}})
    ping = mcp.message("2025-03-26", "ping")
    mcp.send([held, ping])
    mcp.notification("notifications/progress")
    mcp.cancel(held["id"])
    assert [answer["id"] for answer in mcp.batch()] == [ping["id"]]


# ---- the list


@pytest.mark.parametrize("version", ERAS)
def test_every_served_method_is_a_tool(mcp: McpHost, version: str) -> None:
    tools = {tool["name"]: tool for tool in mcp.era(version)("tools/list")["tools"]}
    assert list(tools) == served(mcp)
    echo = tools["echo_say"]
    assert echo["inputSchema"]["properties"]["message"] == {"type": "string", "description": "What to say."}
    assert ("outputSchema" in echo) == (version >= "2025-06-18")
    assert ("annotations" in echo) == (version >= "2025-03-26")
    if version >= "2025-06-18":
        assert echo["title"] == "Echo"


def test_a_modern_list_may_be_cached(mcp: McpHost) -> None:
    for method in ("tools/list", "resources/list", "resources/templates/list", "server/discover"):
        result = mcp.modern(method)
        assert result["ttlMs"] >= 0
        assert result["cacheScope"] == "private"


@pytest.mark.parametrize("version", ["2025-11-25", MODERN])
def test_a_long_list_comes_in_pages(tmp_path: Path, start_mcp: StartMcp, version: str) -> None:
    methods = [
        {"name": f"many/m{number:03}", "params": [], "result": {"name": "r", "schema": {"type": "object"}}}
        for number in range(450)
    ]
    write_protocol(tmp_path, "many", methods)
    add_provider(tmp_path, {"name": "many", "command": ["cat"], "methods": [str(m["name"]) for m in methods]})
    mcp = start_mcp(search_path=[tmp_path])
    call = mcp.era(version)
    names: list[str] = []
    params: dict[str, Any] = {}
    pages = 0
    while True:
        result = call("tools/list", params)
        names += [tool["name"] for tool in result["tools"]]
        pages += 1
        if "nextCursor" not in result:
            break
        params = {"cursor": result["nextCursor"]}
    assert pages == 3
    assert names == served(mcp)


@pytest.mark.parametrize("cursor", ["", "nonsense", "after:%", "after:/w==", 5])
def test_a_cursor_that_was_never_given_out_is_invalid(mcp: McpHost, cursor: Any) -> None:
    assert mcp.error(mcp.ask(MODERN, "tools/list", {"cursor": cursor})).code == -32602


def test_the_list_waits_for_providers_that_start_with_the_host(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave(methods=None)
    assert "misbehave_do" in [tool["name"] for tool in mcp.modern("tools/list")["tools"]]


def test_the_list_does_not_wait_for_ever(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave(methods=None, switches={"before": "hang"})
    mcp.initialize("2025-06-18")
    names = [tool["name"] for tool in mcp.legacy("tools/list")["tools"]]
    assert "echo_say" in names
    assert "misbehave_do" not in names


def test_a_request_that_waits_for_the_list_can_be_cancelled(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave(methods=None, switches={"before": "hang"})
    listing, other = mcp.ask(MODERN, "tools/list"), mcp.ask(MODERN, "tools/list")
    mcp.cancel(listing)
    assert mcp.result(other)
    assert mcp.answers_to(listing) == 0


@pytest.mark.parametrize(
    ("patterns", "shown"),
    [
        (["echo_*"], ["echo_say"]),
        (["echo_*", "python_*", "!python_*"], ["echo_say"]),
        (["!python_*", "!llm_*"], ["echo_say"]),
        ([], []),
    ],
)
def test_what_is_not_exposed_can_be_neither_seen_nor_called(
    start_mcp: StartMcp, patterns: list[str], shown: list[str]
) -> None:
    mcp = start_mcp(config=f"[expose]\ntools = {json.dumps(patterns)}\n")
    assert [tool["name"] for tool in mcp.modern("tools/list")["tools"]] == shown
    hidden = mcp.error(mcp.ask(MODERN, "tools/call", {"name": "python_execute", "arguments": {"code": "1"}}))
    assert hidden.code == -32602
    assert "Unknown tool" in hidden.message
    assert mcp.call("echo/say", ["plain"]) == {"response": "plain"}


# ---- calls


@pytest.mark.parametrize("version", ERAS)
def test_a_tool_call_returns_text_and_what_the_provider_answered(mcp: McpHost, version: str) -> None:
    result = mcp.era(version)("tools/call", SAY)
    assert json.loads(text_of(result)) == {"response": "hi"}
    assert "isError" not in result
    assert result.get("structuredContent") == ({"response": "hi"} if version >= "2025-06-18" else None)


@pytest.mark.parametrize("value", [[1, 2], "text", 5, None, True, {"a": {"b": 1}}])
def test_a_result_that_need_not_be_an_object_is_wrapped_in_the_legacy_era(mcp_misbehave: StartMcp, value: Any) -> None:
    mcp = mcp_misbehave()
    call = {"name": "misbehave_echo", "arguments": {"value": value}}
    assert mcp.modern("tools/call", call)["structuredContent"] == value
    mcp.initialize("2025-11-25")
    expected = value if isinstance(value, dict) else {"result": value}
    assert mcp.legacy("tools/call", call)["structuredContent"] == expected


@pytest.mark.parametrize("version", ["2025-06-18", "2025-11-25", MODERN])
def test_structured_content_satisfies_the_output_schema(mcp: McpHost, version: str) -> None:
    call = mcp.era(version)
    tools = {tool["name"]: tool for tool in call("tools/list")["tools"]}
    for name, arguments in (("echo_say", {"message": "x"}), ("python_execute", {"code": "result = [1]"})):
        result = call("tools/call", {"name": name, "arguments": arguments})
        jsonschema_rs.validate(tools[name]["outputSchema"], result["structuredContent"])


def test_an_answer_with_a_response_reads_as_that_response(tmp_path: Path, start_mcp: StartMcp) -> None:
    script = fake_llm({"response": 'Grüße\n"and" more', "done": True})
    mcp = start_mcp(search_path=[add_script(tmp_path, "llama", script, ["llm/chat"])])
    result = mcp.modern("tools/call", {"name": "llm_chat", "arguments": {"prompt": "hello"}})
    assert text_of(result) == 'Grüße\n"and" more'
    assert result["structuredContent"]["done"] is True


def test_images_come_as_image_content(tmp_path: Path, start_mcp: StartMcp) -> None:
    images = ["data:image/webp;base64,UklGRg==", "iVBORw0KGgo=", {"data": "AA==", "mimeType": "image/x"}, "no image"]
    script = fake_llm({"response": "look", "images": images})
    mcp = start_mcp(search_path=[add_script(tmp_path, "llama", script, ["llm/chat"])])
    mcp.initialize("2024-11-05")
    for call in (mcp.modern, mcp.legacy):
        blocks = call("tools/call", {"name": "llm_chat", "arguments": {"prompt": "p"}})["content"]
        assert [block["type"] for block in blocks] == ["text", "image", "image", "image"]
        assert [block["mimeType"] for block in blocks[1:]] == ["image/webp", "image/png", "image/x"]


def test_meta_inside_the_arguments_is_dropped(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    for id, key in enumerate(('"_meta"', '"\\u005fmeta"')):
        arguments = f'{{"value":1,{key}:{{"provider":"nobody","timeoutMs":-1}}}}'
        mcp.send(raw_call(id, "misbehave_echo", arguments))
        assert mcp.result(id)["structuredContent"] == 1


def test_the_bytes_of_arguments_and_result_pass_unchanged(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    value = '{"a" : 1.50, "b":"\\u00fc", "c":1e2}'
    mcp.send(raw_call(7, "misbehave_echo", f'{{"value":{value}}}'))
    mcp.result(7)
    received = json.loads(text_of(mcp.modern("tools/call", {"name": "misbehave_received"})))
    assert any(value in line for line in received["lines"])


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"name": 5},
        {"name": "no_such_tool"},
        {"name": "echo_say", "arguments": []},
        {"name": "echo_say", "arguments": "x"},
        {"name": "echo_say", "arguments": {"message": "x"}, "_meta": {"progressToken": 1.5}},
        {"name": "echo_say", "arguments": {"message": "x"}, "_meta": {"timeoutMs": "soon"}},
    ],
)
def test_a_malformed_call_is_a_protocol_error(mcp: McpHost, params: dict[str, Any]) -> None:
    assert mcp.error(mcp.ask(MODERN, "tools/call", params)).code == -32602
    mcp.initialize("2025-11-25")
    assert mcp.error(mcp.ask("2025-11-25", "tools/call", params)).code == -32602


@pytest.mark.parametrize("version", ERAS)
def test_bad_arguments_are_a_tool_error_that_says_what_is_wrong(mcp: McpHost, version: str) -> None:
    result = mcp.era(version)("tools/call", {"name": "echo_say", "arguments": {"message": 5, "volume": 11}})
    assert result["isError"] is True
    assert "/message" in text_of(result)
    assert "volume" in text_of(result)


def test_a_providers_error_is_a_tool_error(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    error = {"code": -32001, "message": "the disk is full", "data": {"free": 0}}
    result = mcp.modern("tools/call", do("error", value=error))
    assert result["isError"] is True
    assert "the disk is full" in text_of(result)
    assert '"free":0' in text_of(result)
    gone = mcp.modern("tools/call", do("exit"))
    assert gone["isError"] is True
    assert "-31004" in text_of(gone)


def test_a_tool_that_nobody_serves_says_what_to_do(mcp: McpHost) -> None:
    result = mcp.modern("tools/call", {"name": "llm_chat", "arguments": {"prompt": "hello"}})
    assert result["isError"] is True
    assert "install a provider" in text_of(result)


def test_a_time_out_in_meta_holds(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    result = mcp.modern("tools/call", {"name": "misbehave_hold", "_meta": {"timeoutMs": 50}})
    assert "timeout (-31002)" in text_of(result)


def test_a_call_without_an_id_is_not_made(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    mcp.notify("tools/call", {"name": "misbehave_hold", "_meta": modern_meta()})
    received = json.loads(text_of(mcp.modern("tools/call", {"name": "misbehave_received"})))
    assert not any("misbehave/hold" in line for line in received["lines"])


# ---- progress and cancellation


@pytest.mark.parametrize("version", ["2024-11-05", "2025-11-25", MODERN])
@pytest.mark.parametrize("token", ["t", 0, -7])
def test_progress_comes_under_the_clients_token_and_increases(
    mcp_misbehave: StartMcp, version: str, token: Any
) -> None:
    mcp = mcp_misbehave()
    call = mcp.era(version)
    call("tools/call", {**do("flood_progress", count=5), "_meta": {"progressToken": token}})
    told = [message["params"] for message in mcp.notifications]
    assert [params["progressToken"] for params in told] == [token] * 5
    assert [params["progress"] for params in told] == [1, 2, 3, 4, 5]
    assert told[0]["message"] == '{"n":1}'
    assert not any("delta" in params for params in told)


def test_streamed_text_arrives_as_progress_messages(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    line = (
        '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":$ID,"progress":1,"delta":"%s"}}'
    )
    script = do("write", lines=[line % "Hel", line % "lo", line.replace(',"delta":"%s"', ""), "$ANSWER"])
    mcp.modern("tools/call", {**script, "_meta": {"progressToken": "s"}})
    told = [message["params"] for message in mcp.notifications]
    assert "".join(params["message"] for params in told) == "Hello"
    assert told[0]["progress"] < told[1]["progress"]


def test_nobody_who_did_not_ask_is_told_about_progress(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    mcp.modern("tools/call", do("flood_progress", count=3))
    assert mcp.notifications == []


@pytest.mark.parametrize("version", ["2025-11-25", MODERN])
def test_a_cancelled_call_is_not_answered_and_its_provider_told(mcp_misbehave: StartMcp, version: str) -> None:
    mcp = mcp_misbehave()
    call = mcp.era(version)
    held = mcp.ask(version, "tools/call", {"name": "misbehave_hold", "_meta": {"progressToken": 1}})
    mcp.notification("notifications/progress")
    mcp.cancel(held)
    received = json.loads(text_of(call("tools/call", {"name": "misbehave_received"})))
    assert any("notifications/cancelled" in line for line in received["lines"])
    assert mcp.answers_to(held) == 0


def test_a_cancelled_plain_call_beside_it_is_answered(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    mcp.initialize("2025-11-25")
    plain = mcp.request("misbehave/hold", {"_meta": {"progressToken": "p"}})
    mcp.notification("notifications/progress")
    mcp.cancel(plain)
    assert mcp.error(plain).code == -31005


# ---- changes


def change(*methods: str) -> dict[str, Any]:
    return do("notify", method="notifications/changed", params={"methods": list(methods)})


def test_a_changed_list_is_told_in_both_eras(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    mcp.initialize("2025-11-25")
    before = mcp.legacy("tools/list")["tools"]
    listen = mcp.ask(MODERN, "subscriptions/listen", {"notifications": {"toolsListChanged": True}}, id="l")
    assert mcp.notification("notifications/subscriptions/acknowledged") == {
        "_meta": {SUBSCRIPTION: listen},
        "notifications": {"toolsListChanged": True},
    }
    mcp.legacy("tools/call", change("misbehave/do", "misbehave/echo"))
    mcp.notification("notifications/tools/list_changed", lambda params: not params)
    mcp.notification("notifications/tools/list_changed", lambda params: params and params["_meta"][SUBSCRIPTION] == "l")
    after = mcp.legacy("tools/list")["tools"]
    assert len(before) - len(after) == len(METHODS) - 2


def test_nobody_is_told_what_they_did_not_ask_for(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    mcp.ask(MODERN, "subscriptions/listen", {"notifications": {"promptsListChanged": True}})
    acknowledged = mcp.notification("notifications/subscriptions/acknowledged")
    assert acknowledged["notifications"] == {}
    mcp.modern("tools/call", change("misbehave/do"))
    mcp.modern("tools/list")
    assert len(mcp.notifications) == 1


def test_a_provider_that_comes_late_is_announced(tmp_path: Path, start_mcp: StartMcp) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    add_script(tmp_path, "llama", f"open({str(gate)!r}).read()\n" + fake_llm({}), None)
    mcp = start_mcp(search_path=[tmp_path])
    mcp.initialize("2025-06-18")
    assert "llm_chat" not in [tool["name"] for tool in mcp.legacy("tools/list")["tools"]]
    gate.write_text("open")
    mcp.notification("notifications/tools/list_changed")
    assert "llm_chat" in [tool["name"] for tool in mcp.legacy("tools/list")["tools"]]


def test_a_cancelled_subscription_is_silent(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    listen = mcp.ask(MODERN, "subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    mcp.notification("notifications/subscriptions/acknowledged")
    mcp.cancel(listen)
    mcp.modern("tools/call", change("misbehave/do"))
    mcp.modern("tools/list")
    mcp.finish()
    assert len(mcp.notifications) == 1
    assert mcp.answers_to(listen) == 0


def test_the_end_of_input_ends_subscriptions_with_a_result(mcp: McpHost) -> None:
    listen = mcp.ask(MODERN, "subscriptions/listen", {"notifications": {"toolsListChanged": True}}, id="the end")
    mcp.notification("notifications/subscriptions/acknowledged")
    mcp.finish()
    assert mcp.result(listen)["_meta"][SUBSCRIPTION] == listen
    assert mcp.notification("notifications/cancelled")["requestId"] == listen


def test_a_subscription_id_is_used_once_at_a_time(mcp: McpHost) -> None:
    mcp.ask(MODERN, "subscriptions/listen", {"notifications": {}}, id="twice")
    mcp.ask(MODERN, "subscriptions/listen", {"notifications": {}}, id="twice")
    assert mcp.error("twice").code == -32600


# ---- resources


@pytest.mark.parametrize("version", ERAS)
def test_protocols_and_providers_are_resources(mcp: McpHost, version: str) -> None:
    call = mcp.era(version)
    uris = [resource["uri"] for resource in call("resources/list")["resources"]]
    assert uris == sorted(uris)
    assert {"gleitzeit://protocols/echo/v1", "gleitzeit://providers/python"} <= set(uris)
    for uri in uris:
        (contents,) = call("resources/read", {"uri": uri})["contents"]
        assert contents["uri"] == uri
        assert json.loads(contents["text"])
    templates = call("resources/templates/list")["resourceTemplates"]
    assert [template["uriTemplate"] for template in templates] == [
        "gleitzeit://protocols/{name}/{version}",
        "gleitzeit://providers/{name}",
    ]


@pytest.mark.parametrize("uri", ["gleitzeit://protocols/echo/v9", "gleitzeit://providers/", "file:///etc/passwd", "x"])
def test_a_resource_that_is_not_there_has_its_eras_error(mcp: McpHost, uri: str) -> None:
    error = mcp.error(mcp.ask(MODERN, "resources/read", {"uri": uri}))
    assert (error.code, error.data["uri"]) == (-32602, uri)
    mcp.initialize("2025-11-25")
    assert mcp.error(mcp.ask("2025-11-25", "resources/read", {"uri": uri})).code == -32002


@pytest.mark.parametrize("version", ERAS)
def test_variables_of_templates_are_completed(mcp: McpHost, version: str) -> None:
    call = mcp.era(version)

    def complete(uri: str, name: str, value: str, **context: Any) -> Any:
        params = {"ref": {"type": "ref/resource", "uri": uri}, "argument": {"name": name, "value": value}}
        return call("completion/complete", {**params, **context})["completion"]["values"]

    assert complete("gleitzeit://providers/{name}", "name", "PY") == ["python"]
    assert complete("gleitzeit://protocols/{name}/{version}", "name", "") == ["echo", "llm", "python"]
    known = {"context": {"arguments": {"name": "echo"}}}
    assert complete("gleitzeit://protocols/{name}/{version}", "version", "v", **known) == ["v1"]
    with pytest.raises(HostError, match="-32602"):
        complete("gleitzeit://elsewhere/{name}", "name", "")


def test_a_change_of_a_provider_is_told_to_who_subscribed_to_it(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    uri = "gleitzeit://providers/misbehave"
    mcp.initialize("2025-06-18")
    assert mcp.legacy("resources/subscribe", {"uri": uri}) == {}
    wanted = {"resourceSubscriptions": [uri, "gleitzeit://providers/nobody"]}
    mcp.ask(MODERN, "subscriptions/listen", {"notifications": wanted}, id="s")
    acknowledged = mcp.notification("notifications/subscriptions/acknowledged")
    assert acknowledged["notifications"] == {"resourceSubscriptions": [uri]}
    mcp.legacy("tools/call", do("echo"))
    assert mcp.notification("notifications/resources/updated", lambda params: "_meta" not in params) == {"uri": uri}
    mcp.notification("notifications/resources/updated", lambda params: "_meta" in params)
    assert mcp.legacy("resources/unsubscribe", {"uri": uri}) == {}


# ---- the end


@pytest.mark.parametrize("version", ["2025-11-25", MODERN])
def test_the_end_of_input_cancels_calls_and_stops_even_stubborn_providers_soon(
    mcp_misbehave: StartMcp, version: str
) -> None:
    mcp = mcp_misbehave(switches={"at_eof": "ignore", "sigterm": "ignore"}, limits={"stop_timeout": 30})
    call = mcp.era(version)
    call("tools/list")
    held = mcp.ask(version, "tools/call", {"name": "misbehave_hold", "_meta": {"progressToken": 1}})
    mcp.notification("notifications/progress")
    began = time.monotonic()
    assert mcp.finish() == 0
    assert time.monotonic() - began < 10  # its own ladder would take 60 s; 1.5 s is what is wanted on an idle machine
    assert mcp.answers_to(held) == 0


def test_a_plain_call_is_answered_after_the_end_of_input_though_mcp_was_spoken(mcp_misbehave: StartMcp) -> None:
    mcp = mcp_misbehave()
    mcp.initialize("2025-11-25")
    mcp.legacy("tools/call", do("echo"))
    plain = mcp.request("misbehave/do", {"how": "slow", "seconds": 0.2, "value": "late"})
    mcp.finish()
    assert mcp.result(plain) == "late"


def test_a_list_asked_for_just_before_the_end_is_answered(mcp: McpHost) -> None:
    listing = mcp.ask(MODERN, "tools/list")
    mcp.finish()
    assert "echo_say" in [tool["name"] for tool in mcp.result(listing)["tools"]]


# ---- names and schemas


def test_names_of_tools_are_safe_short_and_unique() -> None:
    long = "llm/" + "x" * 100
    names = tool_names(["llm/chat", "a/b.c", "a_b/c", "a/b_c", "x/y.z/w", long, long + "y"])
    assert names["llm/chat"] == "llm_chat"
    assert names["x/y.z/w"] == "x_y_z_w"
    assert names["a_b/c"] != names["a/b_c"] != names["a/b.c"]
    assert all(len(name) <= 48 for name in names.values())
    assert len(set(names.values())) == len(names)


COMPONENTS = {
    "schemas": {
        "Text": {"type": "string", "description": "some text"},
        "Tree": {"type": "object", "properties": {"left": {"$ref": "#/components/schemas/Tree"}}},
        "Pair": {"allOf": [{"$ref": "#/components/schemas/Text"}, {"minLength": 2}]},
    }
}


def test_references_are_replaced_by_what_they_point_to() -> None:
    schema = {"properties": {"$ref": {"$ref": "#/components/schemas/Text", "description": "mine"}, "b": False}}
    assert inline(schema, COMPONENTS) == {
        "properties": {"$ref": {"type": "string", "description": "mine"}, "b": {"not": {}}}
    }
    tree = inline({"$ref": "#/components/schemas/Tree"}, COMPONENTS)
    assert tree == {"type": "object", "properties": {"left": {}}}
    clash = inline({"$ref": "#/components/schemas/Text", "type": ["string", "null"]}, COMPONENTS)
    assert clash == {"allOf": [{"type": "string", "description": "some text"}, {"type": ["string", "null"]}]}
    assert inline({"default": {"$ref": "#/x"}}, COMPONENTS) == {"default": {"$ref": "#/x"}}


def test_a_schema_that_grows_without_bound_is_cut() -> None:
    schemas: dict[str, Any] = {"S0": {"type": "string"}}
    for number in range(1, 40):
        reference = {"$ref": f"#/components/schemas/S{number - 1}"}
        schemas[f"S{number}"] = {"properties": {"a": reference, "b": reference}}
    text = json.dumps(inline({"$ref": "#/components/schemas/S39"}, {"schemas": schemas}))
    assert len(text) < 500_000


def test_objects_lose_the_combinators_at_their_top() -> None:
    objects = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert as_object({"allOf": [objects, {"properties": {"b": {}}, "type": "object"}]}) == {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {}},
        "required": ["a"],
    }
    assert as_object({"oneOf": [objects, objects]}) == {"type": "object"}
    assert as_object({"oneOf": [objects, {"type": "array"}]}) is None
    assert as_object({}) is None


# ---- helpers


def raw_call(id: int, tool: str, arguments: str) -> bytes:
    params = f'{{"name":"{tool}","arguments":{arguments},"_meta":{json.dumps(modern_meta())}}}'
    return f'{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{params}}}\n'.encode()


def write_protocol(folder: Path, name: str, methods: list[dict[str, Any]]) -> None:
    path = folder / "protocols" / name / "v1.json"
    path.parent.mkdir(parents=True)
    document = {"openrpc": "1.3.2", "info": {"title": name, "version": "1.0.0"}, "methods": methods}
    path.write_text(json.dumps(document))


def fake_llm(answer: Any) -> str:
    return (
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    message = json.loads(line)\n"
        '    if "id" in message:\n'
        '        hello = {"protocolVersion": 1, "provider": {"name": "l", "version": "1"}, "methods": ["llm/chat"]}\n'
        f'        result = hello if message["method"] == "initialize" else {answer!r}\n'
        '        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)\n'
    )


def add_script(folder: Path, name: str, script: str, methods: list[str] | None) -> Path:
    declared = {} if methods is None else {"methods": methods}
    add_provider(folder, {"name": name, "command": ["{python}", "{dir}/provider.py"], **declared})
    (folder / "providers" / name / "provider.py").write_text(script)
    return folder
