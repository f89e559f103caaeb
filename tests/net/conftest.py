"""Servers for the network tests: real ones on a port of their own, over an engine in a temporary directory."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.servers import FakeServices, Start, StartedServer
from fixtures.support import free_port, wait_until
from fixtures.wire import Wire

from merklekv.engine.engine import Engine
from merklekv.net.limits import Limits
from merklekv.net.session import Context, Session


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has closed its side waits as long as the test needs to send the rest and read the last reply."""
    monkeypatch.setattr("merklekv.net.connection.LINGER_S", 3600.0)


@pytest.fixture
def one_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a pipeline runs in one tick, and shares its commit, also where the machine stands still in its midst."""
    monkeypatch.setattr("merklekv.net.limits.PIPELINE_S", 3600.0)


@pytest.fixture
def services() -> FakeServices:
    return FakeServices()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with_data = Engine(tmp_path / "data", durability="never")
    yield with_data
    with_data.close()


@pytest.fixture
def session(engine: Engine, services: FakeServices) -> Session:
    """A client without a connection, for handlers that a test calls itself."""
    one = Session(Context(engine, services, Limits()), 1, "127.0.0.1:1", "127.0.0.1:2", -1)
    one.speak(2)
    return one


@pytest.fixture
def fatal() -> list[Exception]:
    """The errors for which the server wanted the process to end."""
    return []


@pytest.fixture
def start(engine: Engine, services: FakeServices, fatal: list[Exception]) -> Iterator[Start]:
    """Starts a server; its address is in `server.address`. All are stopped at the end."""
    servers: list[StartedServer] = []

    def start_one(**options: Any) -> StartedServer:
        options = {"host": "127.0.0.1", "port": 0, "services": services, "fatal": fatal.append} | options
        server = StartedServer(options.pop("engine", engine), **options)
        servers.append(server)
        return server

    yield start_one
    for server in servers:
        server.stop(deadline_s=60)


@pytest.fixture
def server(start: Start) -> StartedServer:
    return start()


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Wire]]:
    """Connects to a server, the test's own `server` if none is given."""
    wires: list[Wire] = []

    def connect_one(to: StartedServer | None = None, **options: Any) -> Wire:
        wire = Wire((to or request.getfixturevalue("server")).address, **options)
        wires.append(wire)
        return wire

    yield connect_one
    for wire in wires:
        wire.close()


@pytest.fixture
def pretend_remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every client seems to come from another machine."""
    monkeypatch.setattr("merklekv.net.server.is_loopback", lambda host: False)


@pytest.fixture
def text(connect: Callable[..., Wire]) -> Wire:
    return connect()


@pytest.fixture
def resp(connect: Callable[..., Wire]) -> Wire:
    return connect()


@pytest.fixture(scope="session")
def redis_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A real Redis, to compare with."""
    program = shutil.which("redis-server")
    assert program, "redis-server is not installed: `make test` sees to that"
    port = free_port()
    directory = tmp_path_factory.mktemp("redis")
    options = {"port": port, "bind": "127.0.0.1", "dir": directory, "save": "", "appendonly": "no", "databases": 1}
    options["rdbcompression"] = "no"  # a node does not compress what it dumps, either
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(port), what="redis-server")
        yield "127.0.0.1", port
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with Wire(("127.0.0.1", port)) as wire:
            return wire.call("PING") == b"+PONG\r\n"
    except OSError:
        return False
