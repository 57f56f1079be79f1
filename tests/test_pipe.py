"""JSON-RPC 2.0 on the client's pipe: https://www.jsonrpc.org/specification."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.host import HostProcess, StartHost

SAY = {"jsonrpc": "2.0", "method": "echo/say"}


def say(id: Any, message: Any = "hi") -> dict[str, Any]:
    return {**SAY, "id": id, "params": {"message": message}}


@pytest.mark.parametrize("id", [1, 0, -7, 1.5, 2**63, "a", "", "\u00fc\u2028", None])
def test_an_id_is_echoed_as_it_is(host: HostProcess, id: Any) -> None:
    host.send(say(id))
    assert host.result(id) == {"response": "hi"}


@pytest.mark.parametrize("raw", ["1.0", "1e2", "-0", '"\\u0061"', "123456789012345678901234567890"])
def test_the_bytes_of_an_id_are_echoed(host: HostProcess, raw: str) -> None:
    host.send(f'{{"jsonrpc":"2.0","id":{raw},"method":"echo/say","params":["x"]}}\n'.encode())
    assert f'"id":{raw},'.encode() in host.raw_answer(json.loads(raw))


@pytest.mark.parametrize("id", [True, [1], {"a": 1}])
def test_an_id_of_another_type_is_an_invalid_request(host: HostProcess, id: Any) -> None:
    host.send(say(id))
    assert host.error(None).code == -32600


def test_a_notification_is_never_answered(host: HostProcess) -> None:
    host.send({**SAY, "params": {"message": "quiet"}})
    host.send({**SAY, "params": {"message": 5}})
    host.send({"jsonrpc": "2.0", "method": "no/such"})
    host.send({"jsonrpc": "2.0", "method": "host/info"})
    host.send({"jsonrpc": "2.0", "method": "notifications/unheard_of"})
    assert host.call("echo/say", {"message": "loud"}) == {"response": "loud"}
    host.finish()
    assert host.answers_to(None) == 0


def test_positional_params_are_mapped_by_the_order_of_the_schema(host: HostProcess) -> None:
    assert host.call("echo/say", ["first"]) == {"response": "first"}
    error = host.refusal("echo/say", ["first", "second"])
    assert error.code == -32602
    assert error.data["errors"] == [{"path": "/1", "message": "2 positional params, but echo/say has 1"}]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"echo/say"', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"echo/say","params":{"message":"\xff"}}', -32700),
        (b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"echo/say","params":{"message":"bom"}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"echo/say","params":{"message":NaN}}', -32700),
        (b"5", -32600),
        (b'"text"', -32600),
        (b"null", -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"2.0"}', -32600),
        (b'{"jsonrpc":"2.0","method":1,"params":"bar"}', -32600),
        (b'{"jsonrpc":"1.0","method":"echo/say"}', -32600),
        (b'{"method":"echo/say"}', -32600),
    ],
)
def test_what_is_no_request_gets_the_standard_error_with_id_null(host: HostProcess, line: bytes, code: int) -> None:
    host.send(line + b"\n")
    assert host.error(None).code == code
    assert host.call("echo/say", {"message": "still here"}) == {"response": "still here"}


@pytest.mark.parametrize("params", ["bar", 5, None, True])
def test_params_that_are_no_structure_are_an_invalid_request(host: HostProcess, params: Any) -> None:
    host.send({**SAY, "id": 9, "params": params})
    assert host.error(9).code == -32600


def test_an_invalid_request_whose_id_can_be_told_is_answered_to_it(host: HostProcess) -> None:
    host.send({"jsonrpc": "1.0", "id": "mine", "method": "echo/say"})
    assert host.error("mine").code == -32600


def test_an_unknown_method_is_not_found_and_the_error_names_what_there_is(host: HostProcess) -> None:
    error = host.refusal("echo/shout")
    assert error.code == -32601
    assert "echo/say" in error.message


def test_every_violation_of_the_schema_is_listed_with_its_pointer(host: HostProcess) -> None:
    error = host.refusal("echo/say", {"message": 5, "volume": 11, "speed": 1})
    assert error.code == -32602
    assert {e["path"] for e in error.data["errors"]} == {"/message", ""}
    assert "volume" in str(error.data["errors"])
    assert error.data["name"] == "invalid_params"
    assert error.data["source"] == "host"
    assert error.data["retryable"] is False


def test_a_batch_is_answered_in_one_array_each_entry_in_its_place(host: HostProcess) -> None:
    host.send(
        [
            say(1, "one"),
            {**SAY, "params": {"message": "a notification"}},
            {"foo": "boo"},
            say("two", "two"),
            {"jsonrpc": "2.0", "id": 3, "method": "no/such"},
            [say(4)],
            17,
            {"jsonrpc": "2.0", "id": 5, "method": "host/info"},
        ]
    )
    answers = host.batch()
    assert [answer["id"] for answer in answers] == [1, None, "two", 3, None, None, 5]
    assert answers[0]["result"] == {"response": "one"}
    assert answers[2]["result"] == {"response": "two"}
    assert [answer.get("error", {}).get("code") for answer in answers] == [
        None,
        -32600,
        None,
        -32601,
        -32600,
        -32600,
        None,
    ]


def test_an_empty_batch_is_one_invalid_request(host: HostProcess) -> None:
    host.send([])
    assert host.error(None).code == -32600


def test_a_batch_of_invalid_entries_is_an_array_of_errors(host: HostProcess) -> None:
    host.send([1, 2, 3])
    assert [answer["error"]["code"] for answer in host.batch()] == [-32600] * 3


def test_a_batch_of_notifications_only_is_not_answered(host: HostProcess) -> None:
    host.send([{**SAY, "params": ["a"]}, {**SAY, "params": ["b"]}, {"jsonrpc": "2.0", "method": "no/such"}])
    assert host.call("echo/say", ["after"]) == {"response": "after"}
    host.finish()
    assert host.batches == []


def test_a_batch_over_the_limit_is_refused_whole(start_host: StartHost) -> None:
    host = start_host(config="[limits]\nbatch = 2\n")
    host.send([say(1), say(2), say(3)])
    assert host.error(None).code == -31009
    host.send([say(1), say(2)])
    assert len(host.batch()) == 2


def test_the_order_of_an_id_and_the_rest_does_not_matter(host: HostProcess) -> None:
    host.send(b' { "params" : { "message" : "x" } , "method" : "echo/say" , "id" : 1 , "jsonrpc" : "2.0" } \r\n\n \n')
    assert host.result(1) == {"response": "x"}


def test_a_message_of_20_mb_passes_both_ways(host: HostProcess) -> None:
    text = "0123456789abcde\u00fc" * (20 * 1024 * 1024 // 17)
    assert host.call("echo/say", {"message": text}, timeout=60) == {"response": text}


def test_a_message_over_the_limit_is_refused_and_the_next_one_served(start_host: StartHost) -> None:
    host = start_host(config="[limits]\nmessage_bytes = 100000\n")
    host.send(say(1, "x" * 200_000))
    assert host.error(None).code == -31009
    assert host.call("echo/say", ["small"]) == {"response": "small"}


def test_a_message_nested_too_deep_is_refused(start_host: StartHost) -> None:
    host = start_host(config="[limits]\ndepth = 20\n")
    for depth in (30, 5_000, 500_000):
        host.send(b'{"jsonrpc":"2.0","id":1,"method":"echo/say","params":' + b"[" * depth + b"]" * depth + b"}\n")
        error = host.error(1 if depth < 1000 else None)
        assert error.code == -31009
    assert host.call("echo/say", ["shallow"]) == {"response": "shallow"}


def test_an_answer_that_nobody_asked_for_is_not_answered(host: HostProcess) -> None:
    host.send({"jsonrpc": "2.0", "id": 99, "result": {}})
    host.send({"jsonrpc": "2.0", "id": 99, "error": {"code": 1, "message": "x"}})
    assert host.call("echo/say", ["after"]) == {"response": "after"}
    host.finish()
    assert host.answers_to(99) == 0


def test_a_lone_surrogate_escape_arrives_as_a_replacement_character(host: HostProcess) -> None:
    host.send(b'{"jsonrpc":"2.0","id":1,"method":"echo/say","params":["a\\ud83d\\u0041"]}\n')
    assert host.result(1) == {"response": "a\ufffdA"}


def test_a_number_too_large_for_a_double_is_an_error_of_the_params(host: HostProcess) -> None:
    host.send(b'{"jsonrpc":"2.0","id":1,"method":"echo/say","params":{"message":1e999}}\n')
    assert host.error(1).code == -32602


def test_meta_is_consumed_by_the_host_and_checked(host: HostProcess) -> None:
    assert host.call("echo/say", {"message": "x", "_meta": {"timeoutMs": 5000, "unknown": 1}}) == {"response": "x"}
    meta: Any
    for meta in ({"timeoutMs": 0}, {"timeoutMs": "soon"}, {"progressToken": {}}, {"provider": 5}, 17):
        assert host.refusal("echo/say", {"message": "x", "_meta": meta}).code == -32602


def test_an_unknown_provider_is_named_with_those_there_are(host: HostProcess) -> None:
    error = host.refusal("echo/say", {"message": "x", "_meta": {"provider": "nobody"}})
    assert error.code == -31001
    assert "echo" in error.message
    assert host.call("echo/say", {"message": "x", "_meta": {"provider": "echo"}}) == {"response": "x"}


def test_llm_calls_say_what_to_install_until_a_provider_comes(host: HostProcess) -> None:
    error = host.refusal("llm/chat", {"prompt": "hello"})
    assert error.code == -31001
    assert error.data["retryable"] is True
    assert "llm" in error.message


def test_many_requests_at_once_each_get_their_own_answer(host: HostProcess) -> None:
    host.send(b"".join(json.dumps(say(i, f"m{i}")).encode() + b"\n" for i in range(20_000)))
    host.close_stdin()
    host.wait(60)
    assert all(host.result(i) == {"response": f"m{i}"} for i in range(20_000))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_no_bytes_make_the_host_write_anything_but_json_rpc(host: HostProcess, lines: list[bytes]) -> None:
    host.send(b"\n".join(lines) + b"\n")
    assert host.call("echo/say", ["alive"]) == {"response": "alive"}
    assert host.garbage == []
