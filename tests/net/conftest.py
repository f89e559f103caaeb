"""Servers for the network tests: real ones on a port of their own, over an engine in a temporary directory."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fixtures.support import free_port, wait_until
from fixtures.wire import Wire

from merklekv.engine.engine import Engine
from merklekv.errors import InvalidArgument, MerkleKVError
from merklekv.net.server import Server

Start = Callable[..., Server]


class FakeServices:
    """Stands for the rest of the node, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.stops = 0
        self.sync_with: Callable[[], None] = lambda: None
        self.exchange_slices: list[Callable[[], bool] | None] = []

    def replicate(self, action: str) -> str:
        self.asked.append(action)
        return "REPLICATION enabled 3 nodes outbox=0" if action == "status" else "OK"

    def sync(self, host: str, port: int, full: bool, verify: bool) -> None:
        self.asked.append((host, port, full, verify))
        self.sync_with()

    def exchange(self, message: bytes) -> Generator[Callable[[], bool] | None, None, bytes]:
        self.asked.append(message)
        yield from self.exchange_slices
        return message[::-1]

    def members(self) -> Sequence[Mapping[str, int | str]]:
        return [{"node": "a", "clock": 5}, {"node": "b", "clock": 3}]

    def forget(self, node: str, store_id: str) -> None:
        if node == "a":
            raise InvalidArgument("a is this node")
        self.asked.append((node, store_id))

    def shutdown(self) -> None:
        self.stops += 1

    def statistics(self) -> Mapping[str, int | str]:
        return {"outbox_length": 7}


@pytest.fixture
def services() -> FakeServices:
    return FakeServices()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with_data = Engine(tmp_path / "data", durability="never")
    yield with_data
    with_data.close()


@pytest.fixture
def fatal() -> list[Exception]:
    """The errors for which the server wanted the process to end."""
    return []


@pytest.fixture
def start(engine: Engine, services: FakeServices, fatal: list[Exception]) -> Iterator[Start]:
    """Starts a server; its address is in `server.address`. All are stopped at the end."""
    servers: list[Server] = []

    def start_one(**options: Any) -> Server:
        options = {"host": "127.0.0.1", "port": 0, "services": services, "fatal": fatal.append} | options
        server = Server(options.pop("engine", engine), **options)
        server.address = server.start()  # type: ignore[attr-defined]
        servers.append(server)
        return server

    yield start_one
    for server in servers:
        server.stop(deadline_s=5)


@pytest.fixture
def server(start: Start) -> Server:
    return start()


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Wire]]:
    """Connects to a server, the test's own `server` if none is given."""
    wires: list[Wire] = []

    def connect_one(to: Server | None = None, **options: Any) -> Wire:
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


class StubEngine:
    """An engine made of a dictionary, for what the real one does only under rare conditions."""

    max_value_size = 1024
    live_count = 0
    stalled = False
    sync_is_due = False
    taken_back = 0

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.commits: list[dict[bytes, bytes]] = []
        self.commit_error: MerkleKVError | None = None

    def get(self, key: bytes) -> bytes | None:
        return self.data.get(key)

    def set(self, key: bytes, value: bytes) -> None:
        self.data[key] = value

    @property
    def makes_wait(self) -> bool:
        return self.stalled

    def set_batch(self, requests: Iterable[Sequence[bytes]]) -> int:
        return 0  # leaves every request to `set`

    def commit(self) -> None:
        if self.commit_error:
            raise self.commit_error
        self.commits.append(dict(self.data))

    def statistics(self) -> dict[str, int | str]:
        return {}
