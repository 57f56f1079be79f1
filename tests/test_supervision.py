"""Restarts, and what becomes of calls when providers die at random."""

import contextlib
import os
import random
import signal
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support.host import HostProcess, StartHost
from support.misbehave import add_misbehave, add_provider

from gleitzeit_host.supervisor import BACK_OFF, BACK_OFF_MAX, Restarts

times = st.lists(st.floats(0, 1000), min_size=1, max_size=40).map(sorted)


@given(times, st.integers(0, 10), st.floats(1, 100), st.floats(0, 1, exclude_max=True))
def test_the_crash_budget_is_what_fits_the_window(
    crashes: list[float], budget: int, window: float, jitter: float
) -> None:
    restarts = Restarts(budget, window)
    for index, now in enumerate(crashes):
        recent = [crash for crash in crashes[: index + 1] if crash > now - window]
        delay = restarts.after_crash(now, jitter)
        assert (delay is None) == (len(recent) > budget)
        if delay is not None:
            assert BACK_OFF / 2 <= delay <= BACK_OFF_MAX


def test_each_further_crash_waits_longer_up_to_the_most() -> None:
    restarts = Restarts(100, 1000.0)
    delays = [restarts.after_crash(float(n), 1.0) for n in range(20)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-1] == BACK_OFF_MAX


def test_every_request_has_exactly_one_answer_however_often_providers_are_killed(
    tmp_path: Path, start_host: StartHost
) -> None:
    kills = int(os.environ.get("GLEITZEIT_KILLS", "60"))
    seed = int(os.environ.get("GLEITZEIT_SEED", str(random.randrange(2**32))))
    print(f"GLEITZEIT_SEED={seed}")  # noqa: T201 - pytest shows it when the test fails
    chance = random.Random(seed)
    names = ["one", "two", "three"]
    for name in names:
        add_misbehave(tmp_path / "path", name, start="eager", limits={"max_restarts": 100_000, "restart_window": 1})
    host = start_host(search_path=[tmp_path / "path"])
    for name in names:
        host.call("misbehave/echo", {"value": 0, "_meta": {"provider": name}})
    asked: list[int] = []
    outcomes = {"answered": 0, "refused": 0}

    def collect(value: int) -> None:
        answer = host.answer(asked[value], timeout=60)
        if "error" in answer:
            assert answer["error"]["code"] == -31004
            outcomes["refused"] += 1
        else:
            assert answer["result"] == value
            outcomes["answered"] += 1

    collected = 0
    for _ in range(kills):
        for _ in range(chance.randrange(1, 30)):
            value = len(asked)
            if chance.random() < 0.7:
                asked.append(host.request("misbehave/echo", {"value": value}))
            else:
                asked.append(host.request("misbehave/do", {"how": "text", "value": value}))
        kill_one(host, chance)
        while len(asked) - collected > 300:
            collect(collected)
            collected += 1
    for value in range(collected, len(asked)):
        collect(value)
    print(kills, "kills:", outcomes)  # noqa: T201
    host.finish()
    assert all(host.answers_to(id) == 1 for id in asked)
    assert outcomes["answered"] > outcomes["refused"]


def kill_one(host: HostProcess, chance: random.Random) -> None:
    """Kill a provider that runs, at a moment that the last answer to come decides."""
    rows = [
        row for row in host.call("host/providers")["providers"] if row["pid"] and row["name"] in ("one", "two", "three")
    ]
    if rows:
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(rows)["pid"], chance.choice([signal.SIGKILL, signal.SIGTERM]))


def test_two_hosts_with_one_configuration_do_not_disturb_each_other(tmp_path: Path, start_host: StartHost) -> None:
    add_misbehave(tmp_path / "path")
    home = tmp_path / "one-home"
    hosts = [start_host(search_path=[tmp_path / "path"], home=home, config="") for _ in range(3)]
    for number, host in enumerate(hosts):
        host.call("misbehave/do", {"how": "text", "value": number})
        assert host.call("misbehave/echo", {"value": number}) == number
    logs = sorted((home / "state" / "gleitzeit" / "logs").glob("*/misbehave.log"))
    assert len(logs) == 3
    for number, host in enumerate(hosts):
        host.call("misbehave/do", {"how": "state", "value": {"of": number}})
        host.call("misbehave/echo", {"value": number})
    for host in hosts:
        assert host.finish() == 0
    after = start_host(search_path=[tmp_path / "path"], home=home, config="")
    state = after.call("misbehave/received")["initialize"]["state"]
    assert state in [{"of": number} for number in range(3)]  # one of them, whole: the last to write wins


def test_a_failed_provider_says_so_and_its_methods_name_the_reason(start_misbehave: StartHost) -> None:
    host = start_misbehave(switches={"before": "exit"}, limits={"max_restarts": 2})
    error = host.refusal("misbehave/echo", {"value": 1})
    assert error.code == -31001
    assert "misbehave is failed: it exited with status" in error.message
    assert "crash number 3 within 60 s" in error.message
    row = host.provider("misbehave")
    assert row["state"] == "failed"
    assert row["lastError"]
    assert host.call("host/health")["status"] == "degraded"
    host.wait_for_stderr("misbehave has failed")


def test_the_last_line_of_an_exception_group_is_the_exception_and_not_its_frame(
    start_host: StartHost, tmp_path: Path
) -> None:
    program = "raise ExceptionGroup('some', [ValueError('the cause')])"
    add_provider(tmp_path, {"name": "grouped", "command": ["{python}", "-c", program], "methods": ["echo/say"]})
    host = start_host(search_path=[tmp_path])
    error = host.refusal("echo/say", {"message": "x", "_meta": {"provider": "grouped"}})
    assert "its stderr ends: 'ValueError: the cause'" in error.message
