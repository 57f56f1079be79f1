"""A provider that breaks the provider protocol on demand: the bad neighbour of every test.

It is correct unless told otherwise. Three ways to tell it, from the earliest moment to the latest:

* switches, as arguments ``key=value`` or as settings of the same names (settings win): see `Switches`;
* ``misbehave/do {how, …}``: one misdeed, named in `SCRIPTS` or as a ``do_…`` function of `Provider`;
* ``misbehave/do {how: "write", lines: […]}``: any lines at all; a character stands for one byte, ``$ID`` for
  the call's id and ``$ANSWER`` for a right answer.

``misbehave/redo`` is ``misbehave/do`` for a method that the protocol calls idempotent. ``misbehave/received``
answers what the host sent and gave to this process. Standard library only.
"""

import contextlib
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

METHODS = [
    "misbehave/call",
    "misbehave/do",
    "misbehave/echo",
    "misbehave/hold",
    "misbehave/loop",
    "misbehave/received",
    "misbehave/redo",
    "misbehave/release",
]
KEPT_LINES = 2_000
KEPT_BYTES = 10_000

ANSWER = b"$ANSWER"
SCRIPTS: dict[str, list[bytes]] = {
    # Lines that are not messages, around a right answer.
    "text": [b"Loading the model ...", b"  50 %", ANSWER, b"done"],
    "half_line": [b'{"jsonrpc":"2.0","id":$ID,"resu', ANSWER],
    "two_on_a_line": [b'{"jsonrpc":"2.0","id":$ID,"result":1}{"jsonrpc":"2.0","id":$ID,"result":2}', ANSWER],
    "scalars": [b"42", b'"text"', b"null", b"true", ANSWER],
    "empty_object": [b"{}", ANSWER],
    "bom": [b'\xef\xbb\xbf{"jsonrpc":"2.0","method":"notifications/nonsense","params":{}}', ANSWER],
    "bad_utf8": [b'\xff\xfe{"jsonrpc":"2.0"}', b"\xc3\x28 caf\xe9", ANSWER],
    "bad_utf8_answer": [b'{"jsonrpc":"2.0","id":$ID,"result":"caf\xe9"}'],
    "nul_bytes": [b"\x00\x00\x00\x00", ANSWER],
    "batch": [b'[{"jsonrpc":"2.0","id":$ID,"result":"batch"}]', b"[]", ANSWER],
    "blank_lines": [b"", b"   ", b"\r", ANSWER],
    # Answers that break the protocol, their id readable: the call ends with -31007.
    "nan": [b'{"jsonrpc":"2.0","id":$ID,"result":NaN}'],
    "nan_deep": [b'{"jsonrpc":"2.0","id":$ID,"result":{"a":[1,-Infinity]}}'],
    "infinity_in_error": [b'{"jsonrpc":"2.0","id":$ID,"error":{"code":1,"message":"m","data":Infinity}}'],
    "result_and_error": [b'{"jsonrpc":"2.0","id":$ID,"result":1,"error":{"code":1,"message":"m"}}'],
    "no_jsonrpc": [b'{"id":$ID,"result":1}'],
    "jsonrpc_1": [b'{"jsonrpc":"1.0","id":$ID,"result":1}'],
    "bom_answer": [b'\xef\xbb\xbf{"jsonrpc":"2.0","id":$ID,"result":"bom"}'],
    "result_and_null_error": [b'{"jsonrpc":"2.0","id":$ID,"result":1,"error":null}'],
    "no_result": [b'{"jsonrpc":"2.0","id":$ID}'],
    "error_text": [b'{"jsonrpc":"2.0","id":$ID,"error":"it failed"}'],
    "error_null": [b'{"jsonrpc":"2.0","id":$ID,"error":null}'],
    "error_without_code": [b'{"jsonrpc":"2.0","id":$ID,"error":{"message":"it failed"}}'],
    "error_code_text": [b'{"jsonrpc":"2.0","id":$ID,"error":{"code":"E1","message":"it failed"}}'],
    "error_code_fraction": [b'{"jsonrpc":"2.0","id":$ID,"error":{"code":1.5,"message":"it failed"}}'],
    "error_without_message": [b'{"jsonrpc":"2.0","id":$ID,"error":{"code":1}}'],
    # Answers to nobody, beside a right one.
    "double_answer": [ANSWER, ANSWER],
    "two_different_answers": [ANSWER, b'{"jsonrpc":"2.0","id":$ID,"result":"the second"}'],
    "unknown_id": [b'{"jsonrpc":"2.0","id":9007199254740000,"result":1}', ANSWER],
    "negative_id": [b'{"jsonrpc":"2.0","id":-1,"result":1}', ANSWER],
    "huge_id": [b'{"jsonrpc":"2.0","id":123456789012345678901234567890,"result":1}', ANSWER],
    "text_id": [b'{"jsonrpc":"2.0","id":"$ID","result":"text id"}', ANSWER],
    "null_id": [b'{"jsonrpc":"2.0","id":null,"result":1}', ANSWER],
    "no_id": [b'{"jsonrpc":"2.0","result":1}', ANSWER],
    # Members.
    "any_order": [b'{"result":{"order":"any"},"id":$ID,"jsonrpc":"2.0"}'],
    "unknown_members": [b'{"jsonrpc":"2.0","x":[1],"id":$ID,"result":{"order":"extra"},"y":null}'],
    "white_space": [b' { "jsonrpc" : "2.0" ,\t"id" : $ID , "result" : { "order" : "spaced" } } \r'],
    "duplicate_keys": [b'{"jsonrpc":"2.0","id":$ID,"result":{"a":1,"a":2}}'],
    "lone_surrogate": [b'{"jsonrpc":"2.0","id":$ID,"result":"a\\ud800b\\udfffc"}'],
    # Requests and notifications that break the protocol, beside a right answer.
    "request_null_id": [
        b'{"jsonrpc":"2.0","id":null,"method":"misbehave/echo","params":{"value":"dropped"}}',
        ANSWER,
    ],
    "request_list_id": [b'{"jsonrpc":"2.0","id":[1],"method":"misbehave/echo","params":{"value":"dropped"}}', ANSWER],
    "method_number": [b'{"jsonrpc":"2.0","method":7,"params":{}}', ANSWER],
    "unknown_notification": [b'{"jsonrpc":"2.0","method":"notifications/nonsense","params":{}}', ANSWER],
    "progress_unknown_token": [
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"no","progress":1}}',
        ANSWER,
    ],
    "progress_without_number": [
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":$ID}}',
        ANSWER,
    ],
    "progress_text_number": [
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":$ID,"progress":"1"}}',
        ANSWER,
    ],
    "progress_unwanted": [
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":$ID,"progress":1}}',
        ANSWER,
    ],
    "progress_after_answer": [
        ANSWER,
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":$ID,"progress":1}}',
    ],
    "message_without_level": [
        b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":"text"}}',
        ANSWER,
    ],
    "message_odd_level": [
        b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"loud","data":"text"}}',
        ANSWER,
    ],
    "message_without_params": [b'{"jsonrpc":"2.0","method":"notifications/message"}', ANSWER],
    "state_missing": [b'{"jsonrpc":"2.0","method":"notifications/state","params":{}}', ANSWER],
    "changed_nonsense": [
        b'{"jsonrpc":"2.0","method":"notifications/changed","params":{"methods":"all"}}',
        ANSWER,
    ],
    "cancel_nobody": [
        b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"nobody"}}',
        ANSWER,
    ],
}


class Switches:
    """What the process does wrong by itself.

    * ``before``: at the start, before reading: exit, hang, text, flood_stderr, half_line, grandchild
    * ``hello``: at ``initialize``: exit, hang, error, twice, text, nan, raw (answers ``hello_raw``), late
      (answers when nothing more has come for a while)
    * ``result``: members laid over those of the handshake's result; a null removes the member
    * ``pings``: ok, ignore, error, or an object, the answer to ``ping``; declares ``ping: true``, and every
      ping is told by a log record
    * ``on_cancel``: answer (default), ignore, twice, result, progress, die
    * ``at_eof``: exit (default), ignore, save (hands over the number of calls as state, then exits)
    * ``sigterm``: die (default), ignore
    * ``die_at``: the number of the call that kills the process, from 1
    * ``save``: a state that is handed over at once after the handshake
    """

    def __init__(self, arguments: list[str]) -> None:
        self.values: dict[str, Any] = {}
        for argument in arguments:
            key, _, value = argument.partition("=")
            self.values[key] = _json_or_text(value)

    def __getattr__(self, name: str) -> Any:
        return self.values.get(name)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


class Call:
    """A request of the host: its id, params and, in ``meta``, what the host says about it."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.id: Any = message["id"]
        self.params: dict[str, Any] = message["params"]
        self.meta: dict[str, Any] = self.params.get("_meta", {})

    def get(self, name: str, default: Any = None) -> Any:
        return self.params.get(name, default)


class Provider:
    """Reads lines from stdin until its end; every method named ``do_…`` is a misdeed."""

    def __init__(self, switches: Switches) -> None:
        self.switches = switches
        self.lock = threading.Lock()
        self.received: list[str] = []
        self.initialize: dict[str, Any] = {}
        self.held: dict[Any, Call] = {}
        self.waiting: dict[Any, Callable[[dict[str, Any]], None]] = {}
        self.relayed: dict[Any, Call] = {}
        self.calls = 0
        self.next_id = 1
        self.grandchild: int | None = None
        self.rest = b""
        self.early = False  # something came between initialize and its late answer
        self.longest = 0  # line received, bytes
        self.most_held = 0

    # Out.

    def write(self, data: bytes) -> None:
        with self.lock:
            while data:
                data = data[os.write(1, data) :]

    def send(self, **members: Any) -> None:
        text = json.dumps({"jsonrpc": "2.0", **members}, ensure_ascii=False, separators=(",", ":"))
        self.write(text.encode("utf-8", "surrogatepass") + b"\n")

    def answer(self, call: Call, result: Any) -> None:
        self.send(id=call.id, result=result)

    def refuse(self, call: Call, code: int, message: str) -> None:
        self.send(id=call.id, error={"code": code, "message": message})

    def progress(self, call: Call, progress: float, **more: Any) -> None:
        if "progressToken" in call.meta:
            params = {"progressToken": call.meta["progressToken"], "progress": progress, **more}
            self.send(method="notifications/progress", params=params)

    def call_back(
        self, method: str, params: dict[str, Any], then: Callable[[dict[str, Any]], None], own_id: Any = None
    ) -> Any:
        if own_id is None:
            own_id, self.next_id = self.next_id, self.next_id + 1
        self.waiting[own_id] = then
        self.send(id=own_id, method=method, params=params)
        return own_id

    def pass_on_progress(self, params: dict[str, Any]) -> None:
        """Pass progress of a call-back on to the call whose id its token is."""
        if params["progressToken"] in self.relayed:
            self.progress(self.relayed[params.pop("progressToken")], **params)

    # In.

    def run(self) -> None:
        if self.switches.sigterm == "ignore":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.before()
        while chunk := os.read(0, 65_536):
            *lines, self.rest = (self.rest + chunk).split(b"\n")
            while lines:
                line = lines.pop(0)
                self.longest = max(self.longest, len(line))
                self.received = [*self.received[-KEPT_LINES:], line[:KEPT_BYTES].decode("utf-8", "replace")]
                self.take(json.loads(line), more=bool(lines or self.rest))
        self.at_eof()

    def before(self) -> None:
        match self.switches.before:
            case "exit":
                os._exit(3)
            case "hang":
                _sleep_for_ever()
            case "text":
                self.write(b"Welcome!\n\n{not json}\n")
            case "half_line":
                self.write(b'{"jsonrpc":"2.0","id":1,"resu')
                os._exit(3)
            case "flood_stderr":
                _flood_stderr(1_000_000)
            case "grandchild":
                self.grandchild = spawn_grandchild()

    def take(self, message: dict[str, Any], *, more: bool) -> None:
        if "method" not in message:
            then = self.waiting.pop(message["id"], None)
            if then is not None:
                then(message)
        elif "id" not in message:
            self.take_notification(message)
        elif message["method"] == "initialize":
            self.early = self.switches.hello == "late" and (more or _readable_within(0.3))
            self.hello(Call(message))
        elif message["method"] == "ping":
            self.pong(Call(message))
        else:
            self.take_call(message["method"], Call(message))

    def take_notification(self, message: dict[str, Any]) -> None:
        if message["method"] == "notifications/progress":
            self.pass_on_progress(message["params"])
        if message["method"] != "notifications/cancelled":
            return
        call = self.held.pop(message["params"]["requestId"], None)
        if call is None:
            return
        match self.switches.on_cancel:
            case "ignore":
                self.held[call.id] = call
            case "twice":
                self.refuse(call, -31005, "cancelled")
                self.refuse(call, -31005, "cancelled again")
            case "result":
                self.answer(call, "done all the same")
            case "progress":
                self.progress(call, 1, message="cancelled")
                self.refuse(call, -31005, "cancelled")
            case "die":
                os._exit(3)
            case _:
                self.refuse(call, -31005, "cancelled")

    def take_call(self, method: str, call: Call) -> None:
        self.calls += 1
        if self.calls == self.switches.die_at:
            os._exit(3)
        handler = {
            "misbehave/call": self.relay,
            "misbehave/do": self.do,
            "misbehave/echo": lambda call: self.answer(call, call.get("value")),
            "misbehave/hold": self.hold,
            "misbehave/loop": self.loop,
            "misbehave/received": self.tell,
            "misbehave/redo": self.do,
            "misbehave/release": self.release,
        }.get(method)
        if handler is None:
            # A method of the handshake's own choosing is an echo of the params.
            handler = self.echo_all if method in (self.switches.result or {}).get("methods", []) else None
        if handler is None:
            self.refuse(call, -32601, f"misbehave does not serve {method}")
        else:
            handler(call)

    def at_eof(self) -> None:
        match self.switches.at_eof:
            case "ignore":
                _sleep_for_ever()
            case "save":
                self.send(method="notifications/state", params={"state": {"calls": self.calls}})
        # Timers of slow answers must not keep the process.
        os._exit(0)

    # The handshake, and health.

    def hello(self, call: Call) -> None:
        self.initialize = call.params
        self.switches.values.update(call.get("settings", {}))
        result: dict[str, Any] = {
            "protocolVersion": 1,
            "provider": {"name": call.get("provider", "misbehave"), "version": "1.0"},
            "methods": METHODS,
        }
        if self.switches.pings is not None:
            result["ping"] = True
        result.update(self.switches.result or {})
        result = {name: value for name, value in result.items() if value is not None}
        match self.switches.hello:
            case "exit":
                os._exit(3)
            case "hang":
                _sleep_for_ever()
            case "error":
                self.refuse(call, 7, "no licence key: set `key` in [providers.misbehave.settings]")
            case "nan":
                self.write(b'{"jsonrpc":"2.0","id":%d,"result":NaN}\n' % call.id)
            case "raw":
                text = self.switches.hello_raw.replace("$ID", str(call.id))
                self.write(text.encode("latin-1") + b"\n")
            case "text":
                self.write(b"Hello!\n")
                self.answer(call, result)
            case "twice":
                self.answer(call, result)
                self.answer(call, result)
            case _:
                self.answer(call, result)
        if self.switches.save is not None:
            self.send(method="notifications/state", params={"state": self.switches.save})

    def pong(self, call: Call) -> None:
        match self.switches.pings:
            case None:
                self.refuse(call, -32601, "misbehave did not declare ping")
            case "ignore":
                pass
            case "error":
                self.refuse(call, 7, "not well")
            case dict() as answer:
                self.answer(call, answer)
            case _:
                self.answer(call, {})
        self.send(method="notifications/message", params={"level": "error", "data": "pinged"})

    # Right behaviour.

    def echo_all(self, call: Call) -> None:
        self.answer(call, {name: value for name, value in call.params.items() if name != "_meta"})

    def hold(self, call: Call) -> None:
        """Keep the call unanswered until it is cancelled or released; progress says that it has begun."""
        self.held[call.id] = call
        self.most_held = max(self.most_held, len(self.held))
        self.progress(call, 0, message="held")

    def release(self, call: Call) -> None:
        """Answer what is held, the newest first, then this call."""
        count = self.answer_held("released")
        self.answer(call, count)

    def answer_held(self, result: str) -> int:
        calls, self.held = list(self.held.values()), {}
        for call in reversed(calls):
            self.answer(call, result)
        return len(calls)

    def tell(self, call: Call) -> None:
        told = {
            "argv": sys.argv,
            "cwd": os.getcwd(),  # noqa: PTH109
            "descriptors": _open_descriptors(),
            "early": self.early,
            "environ": dict(os.environ),
            "grandchild": self.grandchild,
            "held": len(self.held),
            "initialize": self.initialize,
            "lines": self.received,
            "longest": self.longest,
            "mostHeld": self.most_held,
            "pid": os.getpid(),
        }
        self.answer(call, told)

    def relay(self, call: Call) -> None:
        """Call back ``method`` with ``params`` and answer with the whole answer to that; pass progress on."""
        params = call.get("params", {})
        if "progressToken" in call.meta:
            self.relayed[call.id] = call
            params = {**params, "_meta": {**params.get("_meta", {}), "progressToken": call.id}}
        if call.get("parent") is not None:
            parent = call.id if call.get("parent") == "own" else call.get("parent")
            params = {**params, "_meta": {**params.get("_meta", {}), "parent": parent}}
        own_id = call.id if call.get("own_id") == "$ID" else call.get("own_id")
        own_id = self.call_back(call.get("method"), params, lambda answer: self.answer(call, answer), own_id)
        if call.get("cancel"):
            self.send(method="notifications/cancelled", params={"requestId": own_id, "reason": "a test"})

    def loop(self, call: Call) -> None:
        """Call this method back, for ever; answer with the error that ends it and the depth it came from."""
        depth = call.get("depth", 1)

        def then(answer: dict[str, Any]) -> None:
            error = answer.get("error")
            self.answer(call, answer["result"] if error is None else {"depth": depth, "error": error})

        self.call_back("misbehave/loop", {"depth": depth + 1, "_meta": {"parent": call.id}}, then)

    # Misdeeds.

    def do(self, call: Call) -> None:
        """Do ``how``; with ``unless``, a path, only while that file is missing, and make it."""
        if (path := call.get("unless")) is not None:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                self.answer(call, call.get("value"))
                return
        how = call.get("how")
        if how in SCRIPTS:
            self.write_lines(call, SCRIPTS[how])
        elif hasattr(self, f"do_{how}"):
            getattr(self, f"do_{how}")(call)
        else:
            self.refuse(call, -32602, f"no misdeed is named {how}")

    def write_lines(self, call: Call, lines: list[bytes]) -> None:
        result = json.dumps(call.get("value"), separators=(",", ":")).encode()
        right = b'{"jsonrpc":"2.0","id":$ID,"result":%b}' % result
        text = b"".join(line + b"\n" for line in lines)
        self.write(text.replace(ANSWER, right).replace(b"$ID", str(call.id).encode()))

    def do_write(self, call: Call) -> None:
        self.write_lines(call, [line.encode("latin-1") for line in call.get("lines")])

    def do_nothing(self, _call: Call) -> None:
        """Leave the call unanswered for ever, deaf to its cancellation."""

    def do_slow(self, call: Call) -> None:
        threading.Timer(call.get("seconds", 1), self.answer, [call, call.get("value")]).start()

    def do_error(self, call: Call) -> None:
        self.send(id=call.id, error=call.get("value"))

    def do_exit(self, _call: Call) -> None:
        os._exit(3)

    def do_kill(self, _call: Call) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def do_exit_after_answer(self, call: Call) -> None:
        self.answer(call, call.get("value"))
        os._exit(3)

    def do_exit_in_answer(self, call: Call) -> None:
        self.write(b'{"jsonrpc":"2.0","id":%d,"result":"cut o' % call.id)
        os._exit(3)

    def do_exit_before_newline(self, call: Call) -> None:
        self.write(b'{"jsonrpc":"2.0","id":%d,"result":"whole"}' % call.id)
        os._exit(3)

    def do_bytewise(self, call: Call) -> None:
        """Answer rightly, one byte a write."""
        for byte in b'{"jsonrpc":"2.0","id":%d,"result":"bytewise"}\n' % call.id:
            self.write(bytes([byte]))

    def do_close_stdout(self, _call: Call) -> None:
        os.close(1)

    def do_close_stdin(self, call: Call) -> None:
        os.close(0)
        self.answer(call, call.get("value"))
        _sleep_for_ever()

    def do_stop_reading(self, call: Call) -> None:
        """Answer, then live on without reading stdin."""
        self.answer(call, call.get("value"))
        _sleep_for_ever()

    def do_stop(self, _call: Call) -> None:
        """Stop the whole process, as a debugger or a full machine would."""
        os.kill(os.getpid(), signal.SIGSTOP)

    def do_huge(self, call: Call) -> None:
        """Answer with a line of ``bytes`` bytes; with ``late``, the id stands at its end."""
        head, tail = b'{"jsonrpc":"2.0","id":%d,"result":"' % call.id, b'"}'
        if call.get("late"):
            head, tail = b'{"jsonrpc":"2.0","result":"', b'","id":%d}' % call.id
        text = b"x" * (call.get("bytes", 1) - len(head) - len(tail))
        self.write(head + text + tail + b"\n")

    def do_endless_line(self, _call: Call) -> None:
        """Write for ever, never a newline."""
        while True:
            self.write(b"x" * 65_536)

    def do_deep(self, call: Call) -> None:
        count = call.get("count", 1)
        self.write(b'{"jsonrpc":"2.0","id":%d,"result":%b%b}\n' % (call.id, b"[" * count, b"]" * count))

    def do_flood_stdout(self, call: Call) -> None:
        line = b"flood " * 16 + b"\n"
        self.write(line * call.get("count", 1))
        self.answer(call, call.get("value"))

    def do_flood_stderr(self, call: Call) -> None:
        _flood_stderr(call.get("bytes", 1))
        self.answer(call, call.get("value"))

    def do_flood_progress(self, call: Call) -> None:
        count = call.get("count", 1)
        for number in range(count):
            self.progress(call, number + 1, total=count, message=f"step {number + 1}", delta={"n": number + 1})
        self.answer(call, count)

    def do_notify(self, call: Call) -> None:
        """Send the notification ``method`` with ``params``, then answer."""
        self.send(method=call.get("method"), params=call.get("params"))
        self.answer(call, call.get("value"))

    def do_state(self, call: Call) -> None:
        self.send(method="notifications/state", params={"state": call.get("value")})
        self.answer(call, call.get("value"))

    def do_huge_state(self, call: Call) -> None:
        self.send(method="notifications/state", params={"state": "x" * call.get("bytes", 1)})
        self.answer(call, call.get("value"))

    def do_call_back_and_answer(self, call: Call) -> None:
        """Answer while a call-back of the call is still open."""
        self.call_back("misbehave/hold", {"_meta": {"parent": call.id}}, lambda _answer: None)
        self.answer(call, call.get("value"))

    def do_call_back_without_end(self, call: Call) -> None:
        """Flood the host with ``count`` call-backs, then answer with how many were refused."""
        count = call.get("count", 1)
        answers: list[dict[str, Any]] = []

        def then(answer: dict[str, Any]) -> None:
            answers.append(answer)
            if len(answers) == count:
                self.answer(call, sum("error" in each for each in answers))

        for _ in range(count):
            self.call_back("misbehave/echo", {"value": 1, "_meta": {"parent": call.id}}, then)

    def do_grandchild(self, call: Call) -> None:
        self.grandchild = spawn_grandchild()
        self.answer(call, self.grandchild)


def spawn_grandchild() -> int:
    """Start an orphan with a session and an empty environment of its own, deaf to SIGTERM; return its pid.

    It keeps this process's descriptors, so that the pipes stay open when the provider is gone.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        grandchild = os.fork()
        if grandchild == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.execve("/bin/sleep", ["sleep", "600"], {})
        os.write(writer, str(grandchild).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        return int(stream.read())


def _open_descriptors() -> list[int]:
    found = []
    for entry in Path("/dev/fd").iterdir():
        with contextlib.suppress(OSError):
            os.fstat(int(entry.name))
            found.append(int(entry.name))
    return sorted(found)


def _readable_within(seconds: float) -> bool:
    return bool(select.select([0], [], [], seconds)[0])


def _flood_stderr(size: int) -> None:
    line = b"noise on stderr " * 4 + b"\n"
    for _ in range(size // len(line)):
        os.write(2, line)


def _sleep_for_ever() -> NoReturn:
    while True:
        signal.pause()


if __name__ == "__main__":
    Provider(Switches(sys.argv[1:])).run()
