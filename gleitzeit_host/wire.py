"""JSON-RPC 2.0 as lines of bytes: framing, envelopes, and the splices that forward a message. No I/O.

A message is decoded into its envelope only: `params`, `result` and `error` stay raw spans of the line that they
arrived in, so that what the host forwards is byte for byte what was sent.
"""

import re
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gleitzeit_host.errors import InvalidParams, InvalidRequest, MessageTooLarge, ParseError, RpcError

NULL = b"null"
EMPTY = Raw(b"{}")

encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder().decode
split_members = msgspec.json.Decoder(dict[str, Raw]).decode
split_items = msgspec.json.Decoder(list[Raw]).decode
_check_syntax = msgspec.json.Decoder(Raw).decode  # builds nothing


class Message(msgspec.Struct, gc=False):
    """The envelope of a request, notification or answer (JSON-RPC 2.0, sections 4 and 5)."""

    jsonrpc: Literal["2.0"]
    method: str | UnsetType = UNSET
    id: Raw | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


decode_message = msgspec.json.Decoder(Message).decode


class OversizedLine(bytes):
    """The beginning of a line that was longer than the limit; the rest was thrown away as it came."""

    __slots__ = ()


_SHOWN_SIZE = 256  # bytes of a line that an OversizedLine has, and in which a leading id is looked for
_SALVAGE_SIZE = 1024 * 1024
_LEADING_ID = rb'\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,16})\s*,'


def leading_id(line: bytes) -> int | None:
    """Return the integer id if the line begins with one, as `{"jsonrpc":"2.0","id":7,…` does."""
    match = re.match(_LEADING_ID, line[:_SHOWN_SIZE])
    return int(match[1]) if match else None


class LineBuffer:
    """Cuts a stream of chunks into lines, holding at most `limit` bytes of an unfinished one."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._skipping = False  # to the end of a line whose OversizedLine was given out already

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without their newlines.

        A line over the limit comes as an `OversizedLine`, as soon as it is over.
        """
        first = data.find(b"\n")  # find is ten times as fast as split, which matters where lines are long
        if first < 0:
            lines, rest = [], data
        else:
            last = data.rfind(b"\n")
            lines = [data[:first]]
            if last > first:
                lines += data[first + 1 : last].split(b"\n")
            rest = data[last + 1 :]
            if self._skipping:
                del lines[0]
                self._skipping = False
            elif self._parts:
                self._parts.append(lines[0])
                lines[0] = self._take()
            if self._size + len(data) > self.limit:
                lines = [line if len(line) <= self.limit else OversizedLine(line[:_SHOWN_SIZE]) for line in lines]
            self._size = 0
        if rest and not self._skipping:
            self._parts.append(rest)
            self._size += len(rest)
            if self._size > self.limit:
                self._skipping = True
                lines.append(OversizedLine(self._take()[:_SHOWN_SIZE]))
                self._size = 0
        return lines

    def end(self) -> list[bytes]:
        """Return the unfinished last line, if there is one: end of input ends a line too."""
        return [self._take()] if self._parts else []

    def _take(self) -> bytes:
        line = b"".join(self._parts)
        self._parts.clear()
        return line


def check_utf8(line: bytes) -> None:
    """Raise ParseError unless the line is UTF-8: raw spans are forwarded without being decoded."""
    try:
        str(line, "utf-8")
    except UnicodeDecodeError as error:
        raise ParseError(f"The line is not UTF-8: {error.reason} at byte {error.start}") from None


_ESCAPE = rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)"


def repair_surrogates(line: bytes) -> bytes:
    r"""Replace unpaired surrogate escapes (`"\ud800"`) by U+FFFD.

    JSON's grammar allows them, no UTF-8 text can hold them, and msgspec refuses the line.
    """
    return re.sub(_ESCAPE, lambda match: rb"\ufffd" if match[1] else match[0], line)


def _decode_line(line: bytes) -> Message:
    message = decode_message(line)
    if b"\r" in line:  # who reads lines in text mode would see one end there, and a forged message begin
        return decode_message(line.replace(b"\r", b" "))
    return message


def parse(line: bytes) -> Message:
    """Decode the envelope of one line.

    Raises:
        ParseError: the line is not JSON.
        InvalidRequest: it is JSON, but neither a request nor an answer.
        MessageTooLarge: it is over the size limit, or nested deeper than any decoder here goes.
    """
    try:
        if not line.isascii():
            check_utf8(line)
        return _decode_line(line)
    except msgspec.ValidationError as error:
        problem: msgspec.DecodeError = error
        try:
            _check_syntax(line)
        except msgspec.DecodeError as malformed:  # further on, where the envelope's decoder did not come
            problem = malformed
        except RecursionError:
            pass
        if isinstance(problem, msgspec.ValidationError):
            raise InvalidRequest(f"Not a JSON-RPC 2.0 message: {problem}") from None
        raise ParseError(f"Not JSON: {problem}{_hint(line)}") from None
    except msgspec.DecodeError as error:
        if type(line) is OversizedLine:
            raise MessageTooLarge("The line is longer than limits.message_bytes allows") from None
        repaired = repair_surrogates(line)
        if repaired != line:
            return parse(repaired)
        raise ParseError(f"Not JSON: {error}{_hint(line)}") from None
    except RecursionError:
        raise MessageTooLarge("The message is nested deeper than limits.depth allows") from None


def _hint(line: bytes) -> str:
    if line.startswith(b"\xef\xbb\xbf"):
        return "; it begins with a byte order mark, which must go"
    if line.rstrip().endswith((b"{", b"[", b",", b":")):
        return "; a message is one line: make pretty-printed JSON compact, as with jq -c"
    return ""


def answered_id(line: bytes) -> int | None:
    """Return which request a line that `parse` refused was meant to answer, if that can be told.

    A short line is read more leniently (NaN, Infinity, missing members); a long one must begin with its id.
    """
    if len(line) > _SALVAGE_SIZE:
        return leading_id(line)
    import json  # noqa: PLC0415 - only for what msgspec refuses

    try:
        value = json.loads(line.decode("utf-8-sig", "replace"))
    except RecursionError:
        return leading_id(line)
    except ValueError:
        return None
    id = value.get("id") if isinstance(value, dict) and "method" not in value else None
    return id if type(id) is int else None


def request_id(raw: Raw) -> bytes:
    """Return the id's own bytes, to be echoed exactly; raises InvalidRequest unless string, number or null."""
    value = bytes(raw)
    if value[0] not in b'"-0123456789n':
        raise InvalidRequest("The id is neither a string nor a number nor null")
    return value


def detectable_id(line: bytes) -> bytes:
    """Return the id of an invalid request where it has a usable one, else null (section 5.1)."""
    if len(line) > _SALVAGE_SIZE or type(line) is OversizedLine:
        id = leading_id(line)
        return NULL if id is None else b"%d" % id
    try:
        return request_id(split_members(line)["id"])
    except (msgspec.MsgspecError, RecursionError, KeyError, InvalidRequest):
        return NULL


_OPENING = (b"[", b"{")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def has_more_values(limit: int, text: bytes) -> bool:
    """Tell whether JSON text holds more than about `limit` values: each costs a hundred times its bytes once decoded.

    Counted are commas and opening brackets, those within strings only where that decides. Nothing is built.
    """
    if len(text) <= 2 * limit:  # a value and its comma
        return False
    excess = _separators(text) - limit
    if excess > 0:
        for string in _STRING.finditer(text):
            excess -= _separators(string[0])
            if excess <= 0:
                break
    return excess > 0


def _separators(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def deeper_than(limit: int, text: bytes) -> bool:
    """Tell whether JSON text nests more than `limit` containers.

    Text with few opening brackets cannot, and finding that out is a few memchr calls; only the rest is decoded
    and walked, level by level.
    """
    if len(text) < 2 * limit or not _has_more_openings(limit, text):
        return False
    try:
        level: list[Any] = [decode(text)]
    except RecursionError:
        return True
    for _ in range(limit):
        level = [
            child
            for value in level
            for child in (value.values() if type(value) is dict else value)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _has_more_openings(limit: int, text: bytes) -> bool:
    found = 0
    for bracket in _OPENING:
        at = text.find(bracket)
        while at >= 0:
            found += 1
            if found > limit:
                return True
            at = text.find(bracket, at + 1)
    return False


def read_params(raw: Raw | UnsetType) -> Any:
    """Decode `params`: a dict or a list.

    Raises:
        InvalidRequest: it is neither (JSON-RPC 2.0, section 4.2).
        InvalidParams: a number in it is beyond what a double can hold.
    """
    if raw is UNSET:
        return {}
    try:
        value = decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidParams(
            f"The params cannot be read: {error}", errors=[{"path": "", "message": str(error)}]
        ) from None
    if type(value) is dict or type(value) is list:
        return value
    raise InvalidRequest("The params are neither an object nor an array")


def result_line(id: bytes, *result: Any) -> bytes:
    """Splice an answer around the raw result, which may come in pieces."""
    return b"".join((b'{"jsonrpc":"2.0","id":', id, b',"result":', *result, b"}"))


def error_line(id: bytes, error: RpcError) -> bytes:
    """Build the answer that carries an error."""
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (id, encode(error.to_dict()))


def notification_line(method: str, params: Any) -> bytes:
    """Build a notification; `params` may hold raw spans."""
    return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (encode(method), encode(params))
