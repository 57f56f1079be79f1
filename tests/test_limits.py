"""Bounded everywhere, and one slow method does not hold up another."""

import json
import signal
from pathlib import Path

from support.host import HostProcess, StartHost
from support.misbehave import add_misbehave


def lines(method: str, params: str, first: int, count: int) -> bytes:
    line = f'{{"jsonrpc":"2.0","id":%d,"method":"{method}","params":{params}}}\n'
    return "".join(line % id for id in range(first, first + count)).encode()


def test_a_flood_on_a_method_that_hangs_is_refused_and_another_method_is_served(start_misbehave: StartHost) -> None:
    host = start_misbehave(config="[limits]\nqueue = 50\n", limits={"concurrency": 2})
    host.send(lines("misbehave/hold", "{}", 1, 3000))
    assert host.call("echo/say", {"message": "still served"}) == {"response": "still served"}
    error = host.error(3000)
    assert error.code == -31003
    assert error.data["name"] == "overloaded"
    assert error.data["retryable"] is True
    assert error.data["retryAfterMs"] >= 1
    assert host.provider("misbehave")["inFlight"] == 2
    host.kill(signal.SIGTERM)
    assert host.wait() == 128 + signal.SIGTERM


def test_more_requests_than_fit_the_queue_wait_where_the_queue_moves(start_host: StartHost) -> None:
    host = start_host(config="[limits]\nqueue = 20\nrequests = 100\n")
    host.send(lines("echo/say", '["x"]', 1, 20_000), timeout=60)
    host.close_stdin()
    host.wait(60)
    assert all(host.result(id) == {"response": "x"} for id in range(1, 20_001))


def test_a_client_with_too_much_under_way_is_not_read_until_there_is_room(start_misbehave: StartHost) -> None:
    host = start_misbehave(config="[limits]\nrequests = 4\nqueue = 1000\n")
    host.send(lines("misbehave/hold", '{"_meta":{"timeoutMs":400}}', 1, 40))
    host.request("echo/say", ["after"], id="after")
    assert [host.error(id).code for id in range(1, 41)] == [-31002] * 40
    assert host.result("after") == {"response": "after"}


def test_a_call_that_waits_in_the_queue_is_bounded_by_its_deadline(start_misbehave: StartHost) -> None:
    host = start_misbehave(limits={"concurrency": 1})
    host.request("misbehave/hold", id="first")
    waiting = host.request("misbehave/hold", {"_meta": {"timeoutMs": 200}})
    assert host.error(waiting).code == -31002
    cancelled = host.request("misbehave/hold")
    host.cancel(cancelled)
    assert host.error(cancelled).code == -31005
    host.cancel("first")
    assert host.error("first").code == -31005


def test_the_longest_time_out_is_the_configurations(start_misbehave: StartHost) -> None:
    host = start_misbehave(config="[limits]\nmax_timeout = 0.3\n")
    assert host.refusal("misbehave/hold", {"_meta": {"timeoutMs": 3_600_000}}).code == -31002


def test_a_provider_chosen_by_name_gets_the_call(tmp_path: Path, start_host: StartHost) -> None:
    folder = tmp_path / "path"
    for name in ("one", "two"):
        add_misbehave(folder, name)
    host = start_host(search_path=[folder])
    for name in ("one", "two", "one"):
        host.call("misbehave/echo", {"value": 1, "_meta": {"provider": name}})
        assert host.provider(name)["served"] >= 1
    assert host.provider("one")["served"] == 2


def test_calls_go_to_the_least_loaded_of_several_providers(tmp_path: Path, start_host: StartHost) -> None:
    folder = tmp_path / "path"
    for name in ("one", "two"):
        add_misbehave(folder, name, start="eager")
    host = start_host(search_path=[folder])
    wait_until_ready(host, "one", "two")
    for _ in range(4):
        host.request("misbehave/hold")
    assert [host.provider(name)["inFlight"] for name in ("one", "two")] == [2, 2]
    for name in ("one", "two"):
        host.call("misbehave/release", {"_meta": {"provider": name}})


def wait_until_ready(host: HostProcess, *names: str) -> None:
    for name in names:
        host.call("misbehave/echo", {"value": 1, "_meta": {"provider": name}})


def test_the_hosts_own_methods_describe_it(start_host: StartHost) -> None:
    host = start_host(config="roots = []\n[limits]\nqueue = 7\n")
    info = host.call("host/info")
    assert info["pid"] == host.pid
    assert info["limits"]["queue"] == 7
    assert info["roots"] == []
    assert host.call("host/health") == {"status": "ok", "providers": []}
    protocols = {row["name"]: row for row in host.call("host/protocols")["protocols"]}
    assert protocols["echo"]["methods"] == {"echo/say": True}
    assert protocols["llm"]["methods"]["llm/chat"] is False
    document = host.call("rpc.discover")
    assert {"echo/say", "python/execute", "llm/chat"} <= {method["name"] for method in document["methods"]}
    assert "http" not in json.dumps([method["params"] for method in document["methods"]])
    assert host.refusal("host/info", {"verbose": True}).code == -32602
    assert host.refusal("host/reboot").code == -32601


def test_host_info_answers_before_a_provider_that_hangs_at_its_start(start_misbehave: StartHost) -> None:
    host = start_misbehave(methods=None, switches={"hello": "hang"})
    assert host.call("host/info")["name"] == "gleitzeit-host"
    assert host.call("echo/say", ["there"]) == {"response": "there"}
    assert host.provider("misbehave")["state"] == "starting"
