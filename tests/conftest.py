"""Fixtures: hosts in processes of their own, and search path folders with misbehaving providers."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.host import HostProcess, StartHost
from support.mcp import McpHost
from support.misbehave import add_misbehave


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that ties a test to the rules of docs/provider-protocol.md that it tests."""
    config.addinivalue_line("markers", "rule(number, …): the rules of docs/provider-protocol.md that the test tests")


@pytest.fixture
def start_host(tmp_path: Path) -> Iterator[StartHost]:
    """Start hosts with the arguments of `HostProcess`, the home folder excepted; they end with the test."""
    count = iter(range(1_000))
    with contextlib.ExitStack() as hosts:

        def start(*arguments: str, **options: Any) -> HostProcess:
            home = options.pop("home", None) or tmp_path / f"home{next(count)}"
            return hosts.enter_context(HostProcess(home, *arguments, **options))

        yield start


@pytest.fixture
def host(start_host: StartHost) -> HostProcess:
    """A host with what the project ships."""
    return start_host()


@pytest.fixture
def start_misbehave(tmp_path: Path, start_host: StartHost) -> StartHost:
    """Start hosts with one misbehaving provider each; takes what `add_misbehave` and `HostProcess` take."""
    count = iter(range(1_000))

    def start(**options: Any) -> HostProcess:
        of_host = {name: options.pop(name) for name in ("config", "environ", "home", "cwd") if name in options}
        folder = add_misbehave(tmp_path / f"path{next(count)}", **options)
        return start_host(search_path=[folder], **of_host)

    return start


@pytest.fixture
def start_mcp(tmp_path: Path) -> Iterator[Callable[..., McpHost]]:
    """Start hosts whose every message is checked against MCP's schemas; takes what `HostProcess` takes."""
    count = iter(range(1_000))
    with contextlib.ExitStack() as hosts:

        def start(*arguments: str, **options: Any) -> McpHost:
            return hosts.enter_context(McpHost(tmp_path / f"mcp{next(count)}", *arguments, **options))

        yield start


@pytest.fixture
def mcp(start_mcp: Callable[..., McpHost]) -> McpHost:
    """A host with what the project ships, its every message checked."""
    return start_mcp()


@pytest.fixture
def mcp_misbehave(tmp_path: Path, start_mcp: Callable[..., McpHost]) -> Callable[..., McpHost]:
    """Start hosts as `start_mcp` does, with one misbehaving provider each."""
    count = iter(range(1_000))

    def start(**options: Any) -> McpHost:
        of_host = {name: options.pop(name) for name in ("config", "environ", "cwd") if name in options}
        folder = add_misbehave(tmp_path / f"mcppath{next(count)}", **options)
        return start_mcp(search_path=[folder], **of_host)

    return start
