"""One end of a JSON-RPC 2.0 connection: bytes in, bytes out, the table of open requests.

The same class serves the client's pipe, every provider's pipe, and the provider's own end in the SDK. It does no I/O:
whoever owns it feeds it what was read, and gives it a function that writes.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, Raw, UnsetType

from gleitzeit_host import wire
from gleitzeit_host.errors import (
    InternalError,
    InvalidRequest,
    MessageTooLarge,
    ProviderProtocol,
    RemoteError,
    RpcError,
)
from gleitzeit_host.wire import LineBuffer, Message


class _ErrorObject(msgspec.Struct):
    code: int
    message: str
    data: Any = None


LONG = 64 * 1024  # bytes from which on a line is not copied to add its newline
log = logging.getLogger("gleitzeit_host")
_decode_error = msgspec.json.Decoder(_ErrorObject).decode


class Outlet(Protocol):
    """Where the answer to a request goes: the peer, or the batch that the request came in."""

    def send(self, line: bytes) -> None:
        """Send an answer."""

    def notify(self, method: str, params: Any) -> None:
        """Send a notification about the request."""


class Request:
    """A request or notification that arrived. It is answered exactly once; answering a notification does nothing."""

    __slots__ = ("id", "meta", "method", "outlet", "params", "size")

    def __init__(self, outlet: Outlet, method: str, id: bytes | None, params: Raw | UnsetType, size: int) -> None:
        self.outlet = outlet
        self.method = method
        self.id = id  # the id's own bytes; None: a notification
        self.params = params
        self.meta: Any = None  # what was asked for beside the params; None: their `_meta` member says it
        self.size = size  # of the line, bytes

    def respond(self, result: Any) -> None:
        """Answer with a result, as raw JSON."""
        if self.id is not None:
            self.outlet.send(wire.result_line(self.id, result))

    def fail(self, error: RpcError) -> None:
        """Answer with an error."""
        if self.id is not None:
            self.outlet.send(wire.error_line(self.id, error))

    def notify(self, method: str, params: Any) -> None:
        """Send a notification about it; `params` may hold raw spans."""
        self.outlet.notify(method, params)


class Pending(Protocol):
    """Somebody who waits for an answer from the other end; exactly one of the two is called."""

    def answered(self, result: Raw) -> None:
        """Take the result."""

    def failed(self, error: RpcError) -> None:
        """Take the error."""


class Owner(Protocol):
    """What a peer tells its owner, from the loop callback in which the bytes arrived."""

    def on_request(self, request: Request) -> None:
        """Take a request, or a notification of an ordinary method, and answer it some time."""

    def on_notification(self, method: str, params: Raw | UnsetType) -> None:
        """Take a notification whose method begins with `notifications/`."""

    def on_problem(self, line: bytes, error: RpcError) -> None:
        """Take a line that is no message, or an answer that nobody asked for."""


class Turn:
    """What was sent while one chunk of input was handled, by any peer of the process, is written when it is done.

    So a chunk with many requests costs one write for each peer that they concern, and a single request goes out
    without waiting for the loop's next turn.
    """

    def __init__(self) -> None:
        self._peers: list[Peer] = []
        self._depth = 0
        self._now = 0.0
        self._loop = asyncio.get_running_loop()

    def now(self) -> float:
        """Return the monotonic time in seconds; within a chunk, that of its beginning."""
        return self._now if self._depth else time.monotonic()

    def begin(self) -> None:
        """A chunk is going to be handled."""
        if not self._depth:
            self._now = time.monotonic()
        self._depth += 1

    def end(self) -> None:
        """It has been handled."""
        self._depth -= 1
        if not self._depth and self._peers:
            self.flush()

    def note(self, peer: "Peer") -> None:
        """Have the peer flushed at the end of the chunk, or of the loop's turn where no chunk is being handled."""
        if not self._depth and not self._peers:
            self._loop.call_soon(self.flush)
        self._peers.append(peer)

    def flush(self) -> None:
        """Write what the peers have to send."""
        while self._peers:
            self._peers.pop().flush()


class Peer:
    """Frames, decodes and dispatches one connection. `max_depth` 0 leaves depth to the decoder."""

    def __init__(
        self,
        owner: Owner,
        write: Callable[[bytes], None],
        *,
        turn: Turn,
        max_bytes: int,
        max_values: int,
        max_depth: int = 0,
        max_batch: int = 0,
    ) -> None:
        self.open: dict[int, Pending] = {}
        self._owner = owner
        self._write = write
        self._lines = LineBuffer(max_bytes)
        self._max_values = max_values
        self._max_depth = max_depth
        self._max_batch = max_batch
        self._next_id = 1
        self._out: list[bytes] = []
        self._turn = turn
        self._paused = False
        self._kept: list[bytes] = []

    # ---- in

    def feed(self, data: bytes) -> None:
        """Handle every message that these bytes complete; while paused, keep them."""
        self._handle(self._lines.feed(data))

    def feed_end(self) -> None:
        """Handle the last line if it came without a newline."""
        self._handle(self._lines.end())

    def pause(self) -> None:
        """Handle nothing further, not even the rest of the chunk that is being handled."""
        self._paused = True

    def resume(self) -> bool:
        """Handle what was kept; return whether all of it was, and no pause came of it."""
        self._paused = False
        kept, self._kept = self._kept, []
        self._handle(kept)
        return not self._paused

    @property
    def has_kept(self) -> bool:
        """Whether messages wait for `resume`."""
        return bool(self._kept)

    def _handle(self, lines: list[bytes]) -> None:
        if self._paused:
            self._kept += lines
            return
        self._turn.begin()
        try:
            for index, line in enumerate(lines, 1):
                self._line(line)
                if self._paused:  # by what the line caused
                    self._kept = lines[index:]  # type: ignore[unreachable]
                    return
        finally:
            self._turn.end()

    def _line(self, line: bytes) -> None:
        try:
            message = wire.parse(line)
            if message.method is UNSET:
                self._answer(message)
            else:
                self.dispatch(message, None if message.id is UNSET else wire.request_id(message.id), self, line)
        except RpcError as error:
            self._not_a_message(line, error)

    def dispatch(self, message: Message, id: bytes | None, outlet: Outlet, text: bytes) -> None:
        """Hand a request or notification, whose JSON is `text`, to the owner."""
        method = message.method
        assert method is not UNSET
        request = Request(outlet, method, id, message.params, len(text))
        try:
            self.check_values(text)
            self._check_depth(text)
        except MessageTooLarge as error:
            log.warning("%s is refused: %s", method[:200], error.message)
            request.fail(error)
            return
        if id is None and method.startswith("notifications/"):
            self._owner.on_notification(method, message.params)
            return
        try:
            self._owner.on_request(request)
        except RpcError as error:
            request.fail(error)
        except Exception as error:
            log.exception("%s could not be handled", method)
            request.fail(InternalError(f"The host made a mistake: {error!r}", method=method))

    def _answer(self, message: Message) -> None:
        if message.id is UNSET:
            raise InvalidRequest("The message has neither a method nor an id")
        if message.result is UNSET and message.error is UNSET:
            raise InvalidRequest("The message has no method, no result and no error")
        try:
            pending = self.open.pop(int(message.id))
        except (ValueError, KeyError):
            id = bytes(message.id)[:40].decode("utf-8", "replace")
            hint = " (the request's id is a number, and must come back as one)" if id.startswith('"') else ""
            raise ProviderProtocol(f"An answer with id {id} that no open request has{hint}") from None
        if message.error is UNSET:
            assert message.result is not UNSET
            pending.answered(message.result)
            return
        error = _read_error(message.error)
        if message.result is not UNSET:
            error = ProviderProtocol("The answer has both a result and an error")
        pending.failed(error)
        if isinstance(error, ProviderProtocol):
            raise error

    def check_values(self, text: bytes) -> None:
        """Raise MessageTooLarge if what a line holds would take far more memory than its text."""
        if wire.has_more_values(self._max_values, text):
            raise MessageTooLarge(f"The message holds more values than limits.values = {self._max_values} allows")

    def _check_depth(self, text: bytes) -> None:
        if len(text) > 2 * self._max_depth > 0 and wire.deeper_than(self._max_depth, text):
            raise MessageTooLarge(f"The message is nested deeper than limits.depth = {self._max_depth}")

    def _not_a_message(self, line: bytes, error: RpcError) -> None:
        start = line.lstrip()[:1]
        if not start:
            return  # blank lines separate nothing
        if start == b"[" and self._max_batch and isinstance(error, InvalidRequest):
            Batch(self, line, self._max_batch)
        else:
            self._owner.on_problem(line, error)

    # ---- out

    def send(self, line: bytes) -> None:
        """Send one message. What is sent in one turn is written in one go, in this order."""
        if not self._out:
            self._turn.note(self)
        self._out.append(line)

    def flush(self) -> None:
        """Write what was sent."""
        if len(self._out) == 1 and len(self._out[0]) > LONG:
            self._write(self._out.pop())
            self._write(b"\n")
        elif self._out:
            self._out.append(b"")
            data = b"\n".join(self._out)
            self._out.clear()
            self._write(data)

    def notify(self, method: str, params: Any) -> None:
        """Send a notification; `params` may hold raw spans."""
        self.send(wire.notification_line(method, params))

    def reserve(self, pending: Pending) -> int:
        """Enter somebody into the table of open requests and return the id to send. Ids are never used again."""
        id = self._next_id
        self._next_id = id + 1
        self.open[id] = pending
        return id

    def request(self, pending: Pending, method: str, params: Any) -> int:
        """Send a request and return its id."""
        id = self.reserve(pending)
        self.send(b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":%b}' % (id, wire.encode(method), wire.encode(params)))
        return id

    async def call(self, method: str, params: Any) -> Raw:
        """Send a request and wait for its result; raises the RpcError that was answered."""
        answer = Answer()
        id = self.request(answer, method, params)
        try:
            return await answer.future
        except asyncio.CancelledError:
            if self.open.pop(id, None) is not None:
                self.open[id] = _FORGOTTEN
                self.notify("notifications/cancelled", {"requestId": id})
            raise

    def fail_open(self, make_error: Callable[[], RpcError]) -> None:
        """Fail whoever still waits, each with an error of its own: the connection is over."""
        waiting = list(self.open.values())
        self.open.clear()
        for pending in waiting:
            pending.failed(make_error())


class Answer:
    """A pending answer as a future."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Raw] = asyncio.get_running_loop().create_future()

    def answered(self, result: Raw) -> None:
        """Hand on the result."""
        if not self.future.done():
            self.future.set_result(result)

    def failed(self, error: RpcError) -> None:
        """Hand on the error."""
        if not self.future.done():
            self.future.set_exception(error)


def deliver(line: bytes, pending: Pending) -> None:
    """Hand the answer on this line to whoever waits for it."""
    message = wire.decode_message(line)
    if message.error is UNSET:
        assert message.result is not UNSET
        pending.answered(message.result)
    else:
        pending.failed(_read_error(message.error))


class _Forgotten:
    def answered(self, result: Raw) -> None:
        pass

    def failed(self, error: RpcError) -> None:
        pass


_FORGOTTEN = _Forgotten()  # waits for the answers of cancelled calls: allowed, and dropped


class Batch:
    """The answers to one array of messages, sent as one array when the last is there (section 6)."""

    def __init__(self, peer: Peer, line: bytes, limit: int) -> None:
        self._peer = peer
        self._answers: list[bytes | None] = []
        self._missing = 0
        self._complete = False
        try:
            peer.check_values(line)
            try:
                items = wire.split_items(line)
            except RecursionError:
                raise MessageTooLarge("The batch is nested deeper than limits.depth allows") from None
            if not items:
                raise InvalidRequest("The batch is empty")
            if len(items) > limit:
                raise MessageTooLarge(f"The batch has {len(items)} entries; limits.batch allows {limit}")
        except RpcError as error:
            peer.send(wire.error_line(wire.NULL, error))
            return
        for item in items:
            self._take(bytes(item))
        self._complete = True
        self._send_if_done()

    def _take(self, item: bytes) -> None:
        place = Place(self, len(self._answers))
        try:
            message = wire.parse(item)
            if message.method is UNSET:
                raise InvalidRequest("A batch entry without a method")
            id = None if message.id is UNSET else wire.request_id(message.id)
            if id is not None:
                self._expect()
            self._peer.dispatch(message, id, place, item)
        except RpcError as error:
            if place.index == len(self._answers):
                self._expect()
            place.send(wire.error_line(wire.detectable_id(item), error))

    def _expect(self) -> None:
        self._answers.append(None)
        self._missing += 1

    def put(self, index: int, line: bytes | None) -> None:
        """Take the answer for one place, or None where there will be none."""
        self._answers[index] = line
        self._missing -= 1
        self._send_if_done()

    def notify(self, method: str, params: Any) -> None:
        """Notifications do not wait for the batch."""
        self._peer.notify(method, params)

    def _send_if_done(self) -> None:
        if self._complete and not self._missing:
            answers = [line for line in self._answers if line is not None]
            if answers:
                self._peer.send(b"[" + b",".join(answers) + b"]")


class Place:
    """Where one entry of a batch sends its answer."""

    __slots__ = ("_batch", "index")

    def __init__(self, batch: Batch, index: int) -> None:
        self._batch = batch
        self.index = index

    def send(self, line: bytes) -> None:
        """Put the answer in its place."""
        self._batch.put(self.index, line)

    def leave(self) -> None:
        """Leave the place without an answer: the request was cancelled where that ends it."""
        self._batch.put(self.index, None)

    def notify(self, method: str, params: Any) -> None:
        """Notifications do not wait for the batch."""
        self._batch.notify(method, params)


def _read_error(raw: Raw) -> RpcError:
    try:
        error = _decode_error(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        return ProviderProtocol(f"The answer's error object is malformed: {problem}")
    return RemoteError(error.code, error.message, error.data)
