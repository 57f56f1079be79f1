"""Framing and envelopes, with wild inputs."""

import itertools
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_host import wire
from gleitzeit_host.errors import InvalidRequest, MessageTooLarge, ParseError, RpcError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


@given(st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=8), st.lists(st.integers(0, 400)))
def test_lines_come_out_the_same_however_the_stream_is_cut(lines: list[bytes], places: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    buffer = wire.LineBuffer(1000)
    assert [line for chunk in cut(data, places) for line in buffer.feed(chunk)] == lines
    assert buffer.end() == []


@given(st.lists(st.integers(0, 60), max_size=8), st.lists(st.integers(0, 400)))
def test_a_line_over_the_limit_becomes_an_oversized_line_and_the_next_one_is_whole(
    sizes: list[int], places: list[int]
) -> None:
    lines = [bytes([65 + i]) * size for i, size in enumerate(sizes)]
    buffer = wire.LineBuffer(30)
    data = b"".join(line + b"\n" for line in lines)
    found = [line for chunk in cut(data, places) for line in buffer.feed(chunk)]
    assert len(found) == len(lines)
    for expected, line in zip(lines, found, strict=True):
        assert isinstance(line, wire.OversizedLine) == (len(expected) > 30)
        assert expected.startswith(line) if len(expected) > 30 else line == expected


def test_an_endless_line_is_told_of_once_and_not_kept_in_memory() -> None:
    buffer = wire.LineBuffer(1000)
    found = [line for _ in range(1000) for line in buffer.feed(b"x" * 500)]
    assert [type(line) for line in found] == [wire.OversizedLine]
    assert buffer._parts == []
    assert buffer.feed(b"x\nnext\n") == [b"next"]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_error_of_json_rpc(line: bytes) -> None:
    try:
        wire.parse(line)
    except RpcError as error:
        assert error.code in (-32700, -32600, -31009)  # noqa: PT017


@given(json_values)
def test_any_json_value_is_a_message_or_an_invalid_request(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        wire.parse(json.dumps(value).encode("utf-8", "surrogatepass"))


def params(line: bytes) -> Any:
    raw = wire.parse(line).params
    assert isinstance(raw, msgspec.Raw)
    return msgspec.json.decode(raw)


@given(st.text(st.characters(), max_size=30))
def test_unpaired_surrogates_become_replacement_characters_and_everything_else_stays(text: str) -> None:
    line = json.dumps({"jsonrpc": "2.0", "method": "m", "params": {"t": text}}).encode()
    expected = re.sub(
        "[\ud800-\udfff]", "\ufffd", text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    )
    repaired = json.loads(wire.repair_surrogates(line))["params"]["t"]
    assert repaired == expected
    assert params(line) == {"t": expected}


def test_an_escaped_backslash_before_u_is_not_an_escape() -> None:
    line = rb'{"jsonrpc":"2.0","method":"m","params":{"a":"\\ud800","b":"\ud800"}}'
    assert params(line) == {"a": "\\ud800", "b": "\ufffd"}


@given(st.integers(1, 60), st.integers(1, 60), st.booleans())
def test_depth_is_counted_exactly(depth: int, limit: int, objects: bool) -> None:
    opening, closing = (b'{"a":', b"}") if objects else (b"[", b"]")
    text = opening * depth + b'"[[[[{{{{"' + closing * depth
    assert wire.deeper_than(limit, text) == (depth > limit)


@given(json_values, st.integers(1, 4))
def test_depth_of_any_value_is_counted_exactly(value: Any, limit: int) -> None:
    def depth(value: Any) -> int:
        if isinstance(value, dict):
            return 1 + max(map(depth, value.values()), default=0)
        return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0

    assert wire.deeper_than(limit, json.dumps(value).encode()) == (depth(value) > limit)


@given(json_values, st.integers(1, 20))
def test_values_are_counted_whatever_strings_hold(value: Any, limit: int) -> None:
    def separators(value: Any) -> int:
        if isinstance(value, dict | list):
            children = list(value.values()) if isinstance(value, dict) else value
            return 1 + max(0, len(children) - 1) + sum(map(separators, children))
        return 0

    text = json.dumps(value).encode()
    assert wire.has_more_values(limit, text) == (len(text) > 2 * limit and separators(value) > limit)


@pytest.mark.parametrize("count", [1_000, 1_000_000])
def test_brackets_without_end_are_an_error_and_no_crash(count: int) -> None:
    with pytest.raises((ParseError, InvalidRequest, MessageTooLarge)):
        wire.parse(b"[" * count)
    with pytest.raises(MessageTooLarge):
        wire.parse(b'{"jsonrpc":"2.0","method":"m","params":' + b"[" * count + b"]" * count + b"}")


@pytest.mark.parametrize(
    ("line", "id"),
    [
        (b'{"jsonrpc":"2.0","id":7,"result":NaN}', 7),
        (b'{"id":7,"result":{}}', 7),
        (b'{"jsonrpc":"2.0","id":7,"result":"' + b"x" * 2_000_000 + b"\x01", 7),
        (b'{"jsonrpc":"2.0","id":7,"method":"m","params":NaN}', None),
        (b'{"jsonrpc":"2.0","id":"7","result":NaN}', None),
        (b"rubbish", None),
        (b"[" * 100_000, None),
    ],
)
def test_the_call_that_a_broken_answer_meant_is_found_where_it_can_be(line: bytes, id: int | None) -> None:
    assert wire.answered_id(line) == id
