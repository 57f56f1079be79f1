"""The Python SDK, through the host's pipe."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.host import TIMEOUT, HostProcess, StartHost, isolated_environment

Serve = Callable[..., HostProcess]

METHODS = ["say", "add", "wait", "stream", "ask", "state", "boom", "refuse", "odd", "blocking", "who"]


def protocol(name: str, methods: list[str]) -> dict[str, Any]:
    return {
        "openrpc": "1.3.2",
        "info": {"title": name, "version": "1.0.0"},
        "methods": [
            {
                "name": f"{name}/{method}",
                "params": [],
                "result": {"name": "result", "schema": {}},
                "x-gleitzeit": {"additionalParams": True, "streams": True},
            }
            for method in methods
        ],
    }


@pytest.fixture
def serve(tmp_path: Path, start_host: StartHost) -> Serve:
    """Start a host with one provider whose program is the given text; extra lines go into its manifest."""

    def start(program: str, manifest: str = "", config: str | None = None, **options: Any) -> HostProcess:
        folder = tmp_path / "path"
        (folder / "providers" / "sample").mkdir(parents=True)
        (folder / "protocols" / "sample").mkdir(parents=True)
        (folder / "providers" / "sample" / "provider.py").write_text(textwrap.dedent(program))
        (folder / "providers" / "sample" / "provider.toml").write_text(
            'name = "sample"\ncommand = ["{python}", "{dir}/provider.py"]\n' + textwrap.dedent(manifest)
        )
        (folder / "protocols" / "sample" / "v1.json").write_text(json.dumps(protocol("sample", METHODS)))
        return start_host(search_path=[folder], config=config, **options)

    return start


def test_decorated_functions_are_a_provider(serve: Serve) -> None:
    host = serve(
        """
        from gleitzeit_host.sdk import method, run

        @method("sample/say")
        def say(message: str, times: int = 1) -> dict[str, str]:
            print("this goes to the log")
            return {"response": message * times}

        @method("sample/add")
        async def add(a: int, b: int) -> int:
            return a + b

        run()
        """
    )
    assert host.call("sample/say", {"message": "ab", "times": 2}) == {"response": "abab"}
    assert host.call("sample/add", {"a": 2**60, "b": 1}) == 2**60 + 1
    error = host.refusal("sample/say", {"volume": 11})
    assert error.code == -32603
    assert error.message == (
        "sample/say: its handler say has no parameter 'volume', which the protocol allows, "
        "and requires 'message', which the protocol does not"
    )
    assert host.provider("sample")["problems"] == 0


def test_prints_before_and_inside_never_reach_the_stream(serve: Serve) -> None:
    host = serve(
        """
        import os
        from gleitzeit_host.sdk import method, run
        print("loading")
        os.write(1, b"raw bytes")

        @method("sample/say")
        def say():
            print("x" * 100_000)
            os.system("echo a child prints")
            return input() if False else "said"

        run()
        """
    )
    assert host.call("sample/say") == "said"
    assert host.provider("sample")["problems"] == 0
    log = next((host.home / "state" / "gleitzeit" / "logs").rglob("sample.log"), None) or next(
        host.home.rglob("sample.log")
    )
    assert "a child prints" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_exceptions_become_errors_and_their_traceback_goes_to_the_log(serve: Serve) -> None:
    host = serve(
        """
        from gleitzeit_host.sdk import AccessDenied, method, run

        @method("sample/boom")
        def boom():
            raise ZeroDivisionError("no")

        @method("sample/refuse")
        async def refuse():
            raise AccessDenied("not yours", path="/etc")

        @method("sample/odd")
        def odd():
            return {"a": float("nan"), "b": "\\ud800", "c": object} if False else {"b": "\\ud800"}

        @method("sample/say")
        def say():
            return object()

        run()
        """
    )
    error = host.refusal("sample/boom")
    assert (error.code, error.message) == (-32603, "ZeroDivisionError: no")
    assert error.data["source"] == "provider"
    assert error.data["provider"] == "sample"
    error = host.refusal("sample/refuse")
    assert (error.code, error.message) == (-31008, "not yours")
    assert (error.data["name"], error.data["path"]) == ("access_denied", "/etc")
    assert host.call("sample/odd") == {"b": "\ufffd"}
    assert host.refusal("sample/say").message == "sample/say returned a object, which JSON cannot hold"


UNFIT = [
    ('float("nan")', "nan"),
    ('{"a": [1, {"mean": float("nan")}]}', "nan at /a/1/mean"),
    ('[None, float("-inf")]', "-inf at /1"),
    ('{"a/b~c": float("inf")}', "inf at /a~1b~0c"),
    ('{"a": b"bytes"}', "bytes at /a"),
    ('{"a": bytearray()}', "bytearray at /a"),
    ('{"a": {1, 2}}', "a set at /a"),
    ("(1, frozenset())", "a frozenset at /1"),
    ("Row(1.0, float('nan'))", "nan at /mean"),
    ("[Row(1.0, {'x': {2}})]", "a set at /0/mean/x"),
    ("Model(x=float('nan'))", "nan at /x"),
    ("Kept(given=b'')", "bytes at /named"),
    ('{"a": object()}', "a object at /a"),
    ('{"\\ud800": b""}', "bytes at /?"),
]
FIT = [
    ("Row(1.0, (2, 'x'))", {"name": 1.0, "mean": [2, "x"]}),
    ("[Model(x=1.5), Kept(given=None)]", [{"x": 1.5}, {"named": None}]),
    ("datetime.date(2026, 1, 2)", "2026-01-02"),
    ('{"null": "G\\x7f", "b": [None, True, 2**64 - 1, 1e300, -0.5, ""]}', None),
    ("{1: 2}", {"1": 2}),
    ('Row("\\ud800", 1)', {"name": "\ufffd", "mean": 1}),
]


def test_what_json_cannot_hold_is_an_error_that_says_where_it_is(serve: Serve) -> None:
    host = serve(
        f"""
        import dataclasses
        import datetime
        from typing import Any
        import msgspec
        import pydantic
        from gleitzeit_host.sdk import AccessDenied, current_call, host, method, run

        @dataclasses.dataclass
        class Row:
            name: Any
            mean: Any

        class Model(pydantic.BaseModel):
            x: float

        class Kept(msgspec.Struct):
            given: Any = msgspec.field(name="named")

        @method("sample/say")
        async def say(index: int):
            return [{", ".join(text for text, _ in UNFIT)}][index]

        @method("sample/odd")
        async def odd(index: int):
            return [{", ".join(text for text, _ in FIT)}][index]

        @method("sample/stream")
        async def stream():
            await current_call().progress(delta={{"x": float("nan")}})

        @method("sample/ask")
        async def ask():
            return await host.call("echo/say", {{"message": b"bytes"}})

        @method("sample/state")
        async def state():
            await host.save_state({{"seen": {{1, 2}}}})

        @method("sample/refuse")
        async def refuse(fit: bool = True):
            raise AccessDenied("no \\udcff", path=None if fit else {{1}})

        @method("sample/boom")
        async def boom():
            raise ValueError("\\udcff")

        run()
        """,
        manifest='calls = ["echo/*"]',
    )
    for index, (_, what) in enumerate(UNFIT):
        error = host.refusal("sample/say", {"index": index})
        assert (error.code, error.message) == (-32603, f"sample/say returned {what}, which JSON cannot hold")
    for index, (_, expected) in enumerate(FIT):
        result = host.call("sample/odd", {"index": index})
        assert expected is None or result == expected
    messages = {
        name: host.refusal(f"sample/{name}", params).message
        for name, params in {
            "stream": {"_meta": {"progressToken": 1}},
            "ask": {},
            "state": {},
            "refuse": {"fit": False},
            "boom": {},
        }.items()
    }
    assert messages == {
        "stream": "the progress of sample/stream holds nan at /delta/x, which JSON cannot hold",
        "ask": "the params for echo/say hold bytes at /message, which JSON cannot hold",
        "state": "the state holds a set at /seen, which JSON cannot hold",
        "refuse": "sample/refuse failed (no ?), and the error's data holds a set at /path, which JSON cannot hold",
        "boom": "ValueError: ?",
    }
    assert host.refusal("sample/refuse").code == -31008
    assert host.provider("sample")["restarts"] == 0


def test_a_handler_that_cannot_be_called_by_name_makes_the_provider_unavailable(serve: Serve) -> None:
    host = serve(
        """
        from gleitzeit_host.sdk import method, run

        @method("sample/say")
        def say(message, /):
            return message

        run()
        """,
        manifest='methods = ["sample/say"]',
    )
    assert "sample/say: the parameter 'message' of its handler" in host.refusal("sample/say").message


def test_cancellation_reaches_async_and_plain_functions(serve: Serve) -> None:
    host = serve(
        """
        import threading
        import anyio
        from gleitzeit_host.sdk import current_call, host, method, run
        seen = []

        @method("sample/wait")
        async def wait():
            try:
                await host.log("warning", "waiting")
                await anyio.sleep_forever()
            finally:
                seen.append("async")

        @method("sample/blocking")
        def blocking():
            call = current_call()
            anyio.from_thread.run(host.log, "warning", "blocking")
            while not call.cancelled:
                threading.Event().wait(0.01)
            seen.append("plain")

        @method("sample/say")
        async def say():
            return seen

        run()
        """
    )
    waiting = host.request("sample/wait")
    host.wait_for_stderr("waiting")
    host.cancel(waiting)
    assert host.error(waiting).code == -31005
    blocking = host.request("sample/blocking", {"_meta": {"timeoutMs": 500}})
    host.wait_for_stderr("blocking")
    assert host.error(blocking).code == -31002
    while len(seen := host.call("sample/say")) < 2:
        pass
    assert seen == ["async", "plain"]


def test_progress_streams_before_the_answer_and_only_if_wanted(serve: Serve) -> None:
    host = serve(
        """
        import anyio
        from gleitzeit_host.sdk import current_call, method, run

        @method("sample/stream")
        async def stream(stream: bool = False):
            call = current_call()
            for word in ("a", "b", "c"):
                await call.progress(delta=word, total=3)
            return call.wants_progress

        @method("sample/blocking")
        def blocking():
            call = current_call()
            anyio.from_thread.run(lambda: call.progress(0.5, message="half"))
            return round(call.timeout)

        run()
        """
    )
    assert host.call("sample/stream") is False
    assert host.call("sample/stream", {"_meta": {"progressToken": "mine"}}) is True
    for count, word in enumerate("abc", 1):
        assert host.notification("notifications/progress") == {
            "progressToken": "mine",
            "progress": count,
            "total": 3,
            "delta": word,
        }
    id = host.request("sample/stream", {"stream": True})
    assert host.result(id) is True
    assert host.notification("notifications/progress")["progressToken"] == id
    assert host.call("sample/blocking", {"_meta": {"progressToken": 7, "timeoutMs": 90_000}}) == 90
    assert host.notification("notifications/progress", lambda p: p.get("message") == "half")["progressToken"] == 7


def test_a_provider_calls_others_through_the_host(serve: Serve) -> None:
    host = serve(
        """
        from gleitzeit_host.sdk import RpcError, current_call, host, method, run

        @method("sample/ask")
        async def ask(method: str, params: dict, timeout: float | None = None):
            try:
                return await host.call(method, params, timeout=timeout)
            except RpcError as error:
                return {"code": error.code, "message": error.message, "data": error.data}

        @method("sample/stream")
        async def stream():
            for word in ("x", "y"):
                await current_call().progress(delta=word)
            return "done"

        @method("sample/who")
        async def who():
            heard = []
            result = await host.call("sample/stream", on_progress=lambda p: heard.append(p["delta"]))
            return [result, heard]

        run()
        """,
        manifest='calls = ["echo/*", "sample/*"]',
    )
    assert host.call("sample/ask", {"method": "echo/say", "params": {"message": "hi"}}) == {"response": "hi"}
    for forbidden in ("llm/chat", "host/info", "rpc.discover"):
        answer = host.call("sample/ask", {"method": forbidden, "params": {}})
        assert (answer["code"], answer["data"]["name"]) == (-31008, "access_denied")
    assert host.call("sample/who") == ["done", ["x", "y"]]
    loop: dict[str, Any] = {"method": "echo/say", "params": {"message": "deep"}}
    for _ in range(20):
        loop = {"method": "sample/ask", "params": loop}
    assert host.call("sample/ask", loop)["code"] == -31010


def test_settings_are_a_pydantic_model_and_unknown_ones_are_named(serve: Serve) -> None:
    program = """
        import pydantic
        from gleitzeit_host.sdk import ProtocolProvider, method, run

        class Settings(pydantic.BaseModel):
            greeting: str = "hello"
            limit: int = 3

        class Sample(ProtocolProvider[Settings]):
            version = "2.5"
            concurrency = 1

            async def start(self) -> None:
                self.capabilities = {"tags": [self.settings.greeting]}

            @method("sample/say")
            async def say(self):
                return [self.settings.greeting, self.settings.limit, self.state]

            @method("sample/state")
            async def remember(self, value):
                await self.host.save_state(value)

        run(Sample)
        """
    host = serve(program, config='[providers.sample.settings]\ngreeting = "moin"\n')
    assert host.call("sample/say") == ["moin", 3, None]
    row = host.provider("sample")
    assert (row["version"], row["concurrency"], row["capabilities"]) == ("2.5", 1, {"tags": ["moin"]})
    host.call("sample/state", {"value": {"count": 3}})
    host.finish()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [("colour = 1", "unknown settings: colour; there are: limit"), ('limit = "many"', "invalid settings: limit")],
)
def test_settings_that_cannot_be_used_make_the_provider_unavailable(
    serve: Serve, settings: str, complaint: str
) -> None:
    host = serve(
        """
        import pydantic
        from gleitzeit_host.sdk import ProtocolProvider, method, run

        class Settings(pydantic.BaseModel):
            limit: int = 3

        class Sample(ProtocolProvider[Settings]):
            @method("sample/say")
            async def say(self):
                return 1

        run(Sample)
        """,
        manifest='methods = ["sample/say"]',
        config=f"[providers.sample.settings]\n{settings}\n",
    )
    error = host.refusal("sample/say")
    assert error.code == -31001
    assert complaint in error.message
    assert host.provider("sample")["state"] == "unavailable"


def test_a_failed_start_is_the_reason_and_stop_is_called_all_the_same(serve: Serve) -> None:
    host = serve(
        """
        import sys
        from gleitzeit_host.sdk import ProtocolProvider, ProviderUnavailable, run

        class Sample(ProtocolProvider):
            async def start(self):
                raise ProviderUnavailable("pip install the-extra")

            async def stop(self):
                print("stopped", file=sys.stderr, flush=True)

        run(Sample)
        """,
        manifest='methods = ["sample/say"]',
    )
    assert "pip install the-extra" in host.refusal("sample/say").message
    host.finish()
    assert "stopped" in next(host.home.rglob("sample.log")).read_text()


def test_state_survives_the_host(serve: Serve, start_host: StartHost, tmp_path: Path) -> None:
    program = """
        from gleitzeit_host.sdk import ProtocolProvider, method, run

        class Sample(ProtocolProvider):
            @method("sample/state")
            async def remember(self, value=None):
                old, self.state = self.state, value
                await self.host.save_state(value)
                return old

        run(Sample)
        """
    home = tmp_path / "one-home"
    host = serve(program, home=home)
    assert host.call("sample/state", {"value": [1, "ü"]}) is None
    assert host.finish() == 0
    again = start_host(search_path=[tmp_path / "path"], home=home)
    assert again.call("sample/state", {"value": None}) == [1, "ü"]


def test_paths_outside_the_roots_are_refused_after_resolving_links(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "root" / "file").write_text("f")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    host = serve(
        """
        from gleitzeit_host.sdk import ProtocolProvider, method, run

        class Sample(ProtocolProvider):
            @method("sample/say")
            async def say(self, path: str):
                return self.resolve_path(path).read_text()

        run(Sample)
        """,
        config=f'roots = ["{tmp_path / "root"}"]\n',
    )
    assert host.call("sample/say", {"path": str(tmp_path / "root" / "file")}) == "f"
    for outside in ("secret", "root/link", "root/../secret", "nothing"):
        assert host.refusal("sample/say", {"path": str(tmp_path / outside)}).code == -31008
    missing = host.refusal("sample/say", {"path": str(tmp_path / "root" / "missing")})
    assert missing.code == -32602
    assert "missing" in missing.message


def test_a_provider_can_be_tried_by_hand(tmp_path: Path) -> None:
    program = tmp_path / "provider.py"
    program.write_text(
        "from gleitzeit_host.sdk import method, run\n@method('a/b')\ndef b(x: int) -> int:\n    return x + 1\nrun()\n"
    )
    (tmp_path / "home").mkdir()
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1, "provider": "a"}},
        {"jsonrpc": "2.0", "id": 2, "method": "a/b", "params": {"x": 1}},
    ]
    done = subprocess.run(
        [sys.executable, str(program)],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env=isolated_environment(tmp_path / "home"),
        check=True,
    )
    answers = {answer["id"]: answer["result"] for answer in map(json.loads, done.stdout.splitlines())}
    assert answers[1]["methods"] == ["a/b"]
    assert answers[2] == 2
