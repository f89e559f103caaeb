"""Fixtures of the integration suite. Its classes live in `harness`, and are named here as well:

    from conftest import MerkleKVClient

`server` is shared by the tests of a module and emptied before each; `own_server` belongs to one test, which may stop,
kill and restart it. With MERKLEKV_TEST_HOST or MERKLEKV_TEST_PORT set, `server` is the one that is already there, which
has to be empty, because the tests erase it; when no server answers there, one is started on that port.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.cluster import NodeHandle, ReplicationTestHarness
from harness import BenchmarkResult, MerkleKVClient, MerkleKVServer, PerformanceMonitor
from run_tests import TestRunner
from suite_reference import ReferenceServer

__all__ = [
    "BenchmarkResult",
    "MerkleKVClient",
    "MerkleKVServer",
    "NodeHandle",
    "PerformanceMonitor",
    "ReplicationTestHarness",
    "TestRunner",
]

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7379


@pytest.fixture(scope="module")
def server_flags() -> tuple[str, ...]:
    """With what flags `server` is started; a module may have others, or several in turn."""
    return ()


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory, server_flags: tuple[str, ...]) -> Iterator[MerkleKVServer]:
    """A server for the tests of a module: the one that the environment names, or a new one."""
    host, port = os.environ.get("MERKLEKV_TEST_HOST"), os.environ.get("MERKLEKV_TEST_PORT")
    named = MerkleKVServer(host or DEFAULT_HOST, int(port or DEFAULT_PORT))
    if (host or port) and answers(named):
        require_empty(named)
        yield named
    else:
        server = MerkleKVServer.in_directory(tmp_path_factory.mktemp("server"), *server_flags, port=int(port or 0))
        server.start()
        yield server
        assert server.stop() == 0


def answers(server: MerkleKVServer) -> bool:
    try:
        with server.client() as client:
            return client.send_command("PING") == "PONG"
    except OSError as error:
        if not server.is_here:
            pytest.exit(f"no server at {server.host}:{server.port}: {error}", returncode=2)
        return False


def require_empty(server: MerkleKVServer) -> None:
    with server.client() as client:
        size = client.send_command("DBSIZE")
    if size != "DBSIZE 0":
        pytest.exit(f"{server.host}:{server.port} holds data ({size}) and these tests erase it", returncode=2)


@pytest.fixture
def server(running_server: MerkleKVServer, request: pytest.FixtureRequest) -> Iterator[MerkleKVServer]:
    """A server with no keys. What it logged during the test is shown if the test fails."""
    with running_server.client() as client:
        assert client.send_command("TRUNCATE") == "OK"
    before = len(running_server.logged())
    yield running_server
    request.node.add_report_section("teardown", "log of the server", running_server.logged()[before:])
    if running_server.external:
        with running_server.client() as client:
            client.send_command("TRUNCATE")


@pytest.fixture
def own_server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[MerkleKVServer]:
    """A server of the test's own, running."""
    server = MerkleKVServer.in_directory(tmp_path).start()
    yield server
    server.own.end()
    request.node.add_report_section("teardown", "log of the server", server.own.log.read_text(errors="replace"))


@pytest.fixture
def connected_client(server: MerkleKVServer) -> Iterator[MerkleKVClient]:
    """A client of `server`."""
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReferenceServer]:
    """What benchmarks compare the server with."""
    server = ReferenceServer(tmp_path_factory.mktemp("reference"))
    yield server
    server.close()
