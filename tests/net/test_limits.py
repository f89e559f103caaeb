"""Every limit on a client: at it all is well, past it there is a clear error, and no other client notices."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from fixtures.node import NodeFactory
from fixtures.servers import Start, StartedServer
from fixtures.support import free_port, wait_until
from fixtures.wire import Wire, connection_of, encode, readable

from merklekv.engine.engine import Engine
from merklekv.errors import InvalidArgument
from merklekv.exit_codes import EXIT_USAGE
from merklekv.net import limits
from merklekv.net.limits import Limits
from merklekv.net.listening import PROTECTED
from merklekv.net.registry import OPTIONS_MAX
from merklekv.net.server import Server
from merklekv.net.session import Cursors
from merklekv.web.keys import AT_ONCE
from merklekv.web.server import CONNECTIONS_MAX
from merklekv.web.view import NODES_MAX

Connect = Callable[..., Wire]
MIB = 1024 * 1024
TOO_MANY = b"-ERR max number of clients reached\r\n"


def traffic(server: StartedServer) -> dict[str, int]:
    counters = server.context.traffic
    return {name: getattr(counters, name) for name in counters.__slots__}


def test_connections(start: Start, connect: Connect) -> None:
    server = start(limits=Limits(connections=3))
    served = [connect(server) for _ in range(3)]
    assert [wire.ask("PING") for wire in served] == ["PONG"] * 3
    for said in (b"", b"PING\n", b"*1\r\n$4\r\nPING\r\n", b"SET k v\n" * 10_000):
        one_more = connect(server)
        one_more.send(said)
        assert one_more.rest() == TOO_MANY
    assert served[0].ask("DBSIZE") == "DBSIZE 0"
    assert [wire.ask("PING") for wire in served] == ["PONG"] * 3
    assert traffic(server)["refused"] == 4
    served[0].close()
    wait_until(lambda: len(server.context.sessions()) == 2)
    assert connect(server).ask("PING") == "PONG"


def test_redis_py_takes_the_limit_for_a_broken_connection(start: Start, connect: Connect) -> None:
    """Which it tries again later, as it does with a Redis."""
    server = start(limits=Limits(connections=1))
    assert connect(server).ask("PING") == "PONG"
    host, port = server.address
    with redis.Redis(host=host, port=port) as client, pytest.raises(redis.ConnectionError):
        client.ping()


def test_refused_clients_that_stay_are_bounded(start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merklekv.net.server.REFUSED_WAITING_MAX", 2)
    server = start(limits=Limits(connections=0))
    waiting = [connect(server) for _ in range(5)]
    wait_until(lambda: traffic(server)["refused"] == 5)
    assert sum(len(worker.connections) for worker in server.workers) == 2
    assert [wire.rest() for wire in waiting] == [TOO_MANY] * 5


def test_a_refused_client_that_stays_is_closed_before_long(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 0.05)
    monkeypatch.setattr("merklekv.net.connection.LINGER_S", 0.05)
    server = start(limits=Limits(connections=0))
    assert connect(server).rest() == TOO_MANY
    wait_until(lambda: not any(worker.connections or worker.refused for worker in server.workers))


@pytest.mark.usefixtures("pretend_remote")
def test_a_client_from_elsewhere_that_says_nothing_is_told_in_text(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 0.05)
    monkeypatch.setattr("merklekv.net.server.LINGER_S", 0.05)
    assert connect(start()).rest() == b"ERROR %b\r\n" % PROTECTED.encode()


# -- open files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["always", "everysec", "never"])
def test_clients_leave_the_node_the_files_that_it_needs(node_factory: NodeFactory, durability: str) -> None:
    """With a low limit on open files and more idle clients than fit, a write is stored, synced and merged."""
    files, room = 128, 128 - limits.FILES_RESERVED - limits.REFUSED_WAITING_MAX
    node = node_factory("--durability", durability, "--memtable-size", "64KiB", start=False)
    node.wrapper = ["prlimit", f"--nofile={files}:{files}"]
    node.start()
    assert f"the system allows {files} open files: the limit on clients is {room}, not 10000" in node.output()
    address = ("127.0.0.1", node.port)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Wire(address))
        assert first.call("PING") == b"+PONG\r\n"
        idle = [stack.enter_context(Wire(address)) for _ in range(200)]
        assert first.call("CONFIG", "GET", "maxclients") == b"*2\r\n$10\r\nmaxclients\r\n$%d\r\n%d\r\n" % (2, room)
        assert b"\r\nmaxclients:%d\r\n" % room in first.call("INFO", "clients")
        assert [wire.rest() for wire in idle[room - 1 :]] == [TOO_MANY] * (len(idle) - room + 1)
        assert not any(readable(wire) for wire in idle[: room - 1])
        for number in range(100):  # segments and merges come and go meanwhile
            assert first.call("SET", f"k{number}", b"x" * 20_000) == b"+OK\r\n"
        assert {wire.call("STRLEN", "k99") for wire in idle[: room - 1]} == {b":20000\r\n"}
    assert node.stop() == 0


def test_a_node_that_serves_http_keeps_files_for_that(node_factory: NodeFactory) -> None:
    assert limits.FILES_OVER_HTTP >= CONNECTIONS_MAX + NODES_MAX + AT_ONCE + 2 + 1  # listeners, a wake-up
    files = limits.FILES_RESERVED + limits.REFUSED_WAITING_MAX + limits.FILES_OVER_HTTP + 20
    port = free_port()
    node = node_factory("--http-port", str(port), "--memtable-size", "64KiB", start=False)
    node.wrapper = ["prlimit", f"--nofile={files}:{files}"]
    node.start()
    assert "the limit on clients is 20, not 10000" in node.output()
    with contextlib.ExitStack() as stack:
        first, *_ = [stack.enter_context(Wire(("127.0.0.1", node.port))) for _ in range(50)]
        for _ in range(30):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        for number in range(20):
            assert first.call("SET", f"k{number}", b"x" * 20_000) == b"+OK\r\n"
    assert node.stop() == 0
    assert "Too many open files" not in node.output()


def test_too_few_files_to_serve_anybody(node_factory: NodeFactory) -> None:
    files = limits.FILES_RESERVED + limits.REFUSED_WAITING_MAX
    node = node_factory(start=False)
    node.wrapper = ["prlimit", f"--nofile={files}:{files}"]
    node.launch()
    assert node.wait() == EXIT_USAGE
    assert f"the system allows this process {files} open files, which leaves none for clients" in node.output()
    node.wrapper = ["prlimit", f"--nofile={files + 1}:{files + 1}"]
    node.start()
    with node.connect() as client:
        assert client.ask("SET k v") == "OK"
    assert node.stop() == 0


def test_the_limit_on_open_files_is_raised_as_far_as_needed(node_factory: NodeFactory) -> None:
    node = node_factory("--set", "limits.max_connections=300", start=False)
    node.wrapper = ["prlimit", "--nofile=100:1000"]
    node.start()
    with Wire(("127.0.0.1", node.port)) as wire:
        assert wire.call("CONFIG", "GET", "maxclients").endswith(b"$3\r\n300\r\n")
    assert "open files" not in node.output()


def test_line_length(server: StartedServer, connect: Connect) -> None:
    wire = connect()
    head = b"SET k "
    wire.send(head + b"x" * (MIB - len(head)) + b"\r\n")
    assert wire.line() == b"OK\r\n"
    wire.send(b"PING\n" + head + b"x" * (MIB - len(head) + 1) + b"\r\n" + b"PING\n" * 10)
    assert wire.rest() == b"PONG\r\nERROR line too long\r\n"
    assert traffic(server)["protocol_errors"] == 1


def test_the_client_reads_the_error_although_it_goes_on_sending(start: Start, connect: Connect) -> None:
    """Closing with input unread would make the kernel throw the error away."""
    wire = connect(start())
    wire.send(b"x" * (8 * MIB))
    assert wire.rest() == b"ERROR line too long\r\n"


def test_arguments(start: Start, connect: Connect) -> None:
    server = start(limits=Limits(arguments=10))
    assert connect(server).call("MGET", *["k"] * 9) == b"*9\r\n" + b"$-1\r\n" * 9
    wire = connect(server)
    wire.send(encode("PING") + b"*11\r\n")
    assert wire.rest() == b"+PONG\r\n-ERR Protocol error: invalid multibulk length\r\n"


def test_arguments_by_default(resp: Wire) -> None:
    resp.send(b"*1048576\r\n$6\r\nEXISTS\r\n" + b"$1\r\nk\r\n" * 1048575)
    assert resp.resp() == b":0\r\n"
    resp.send(b"*1048577\r\n")
    assert resp.rest() == b"-ERR Protocol error: invalid multibulk length\r\n"


def test_value_size(start: Start, connect: Connect, engine: Engine) -> None:
    largest = engine.max_value_size
    wire = connect(start())
    assert wire.call("SET", "k", b"x" * largest) == b"+OK\r\n"
    assert wire.call("STRLEN", "k") == b":%d\r\n" % largest
    assert wire.call("SETRANGE", "k", str(largest - 1), "y") == b":%d\r\n" % largest
    assert wire.call("SETRANGE", "k", str(largest), "y").startswith(b"-ERR string exceeds maximum allowed size")
    assert wire.call("APPEND", "k", "y").startswith(b"-ERR value of %d bytes" % (largest + 1))
    assert wire.call("STRLEN", "k") == b":%d\r\n" % largest
    wire.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n" % (largest + 1))
    assert wire.rest() == b"-ERR Protocol error: invalid bulk length\r\n"


def test_request_size(start: Start, connect: Connect) -> None:
    server = start(limits=Limits(request_bytes=20 * MIB))
    value = b"x" * (5 * MIB)
    assert connect(server).call("MSET", "a", value, "b", value, "c", value) == b"+OK\r\n"
    wire = connect(server)
    wire.send(encode("MSET", "a", value, "b", value, "c", value, "d", value))
    assert wire.rest() == b"-ERR Protocol error: request larger than %d bytes\r\n" % (20 * MIB)


def test_the_largest_value_always_fits_into_a_request(start: Start, connect: Connect, engine: Engine) -> None:
    wire = connect(start(limits=Limits(request_bytes=0)))
    assert wire.call("SET", "k", b"x" * engine.max_value_size) == b"+OK\r\n"


def test_a_slow_reader_is_not_run_ahead_of(start: Start, connect: Connect) -> None:
    """Over the soft limit nothing more of that connection is run; once it reads, all of it is, in order."""
    server = start(limits=Limits(output_soft_bytes=MIB))
    slow, other = connect(server, receive_buffer=4096), connect(server)
    other.call("SET", "big", b"x" * MIB)
    count = 60
    slow.send(encode("GET", "big") * count + encode("INCR", "ran"))
    wait_until(lambda: largest_output(server) > 0)
    assert largest_output(server) <= 2 * MIB + 100
    assert other.call("GET", "ran") == b"$-1\r\n"
    for _ in range(count):
        assert len(slow.resp()) == MIB + len(b"$1048576\r\n\r\n")
    assert slow.resp() == b":1\r\n"


def largest_output(server: StartedServer) -> int:
    return max(one.unsent_bytes for worker in server.workers for one in list(worker.connections.values()))


def test_too_much_unread_output_closes_the_connection(engine: Engine, start: Start, connect: Connect) -> None:
    engine.set(b"big", b"x" * engine.max_value_size)
    server = start(limits=Limits(output_soft_bytes=40 * MIB, output_hard_bytes=20 * MIB))
    slow, other = connect(server, receive_buffer=4096), connect(server)
    slow.send(encode("GET", "big") * 3)
    wait_until(lambda: traffic(server)["output_limit_closed"] == 1)
    assert other.call("PING") == b"+PONG\r\n"
    assert len(slow.rest()) < 2 * engine.max_value_size


def test_a_reply_over_the_output_limit_is_not_gathered(engine: Engine, start: Start, connect: Connect) -> None:
    engine.set(b"big", b"x" * engine.max_value_size)
    wire = connect(start(limits=Limits(output_hard_bytes=20 * MIB)))
    too_large = b"-ERR reply larger than %d bytes: ask for less at a time\r\n" % (20 * MIB)
    assert wire.call("MGET", "big", "big") == too_large
    assert wire.call("MGET", "big", "none").startswith(b"*2\r\n$16777216\r\n")


def test_an_output_limit_below_the_largest_value_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidArgument, match="output limit of 1048576 bytes is less than the largest value"):
        Server(engine, limits=Limits(output_hard_bytes=MIB))


def test_idle_time(start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 0.02)
    server = start(limits=Limits(idle_timeout_s=3600))
    idle, half, busy = (connect(server) for _ in range(3))
    assert idle.ask("PING") == "PONG"
    half.send(b"*1\r\n$4\r\nPI")
    wait_until(lambda: connection_of(server, half).held_bytes == 2, what="half a request")
    for wires in ((idle, half, busy), (idle, half), (busy,)):
        assert busy.ask("PING") == "PONG"
        for wire in wires:
            connection_of(server, wire).last_active -= 2000  # seconds pass
    wait_until(lambda: traffic(server)["idle_closed"] == 2)
    assert idle.rest() == half.rest() == b""
    assert busy.ask("PING") == "PONG"


def test_half_a_request_costs_what_it_has_sent(start: Start, connect: Connect) -> None:
    server = start()
    stalled, other = connect(server), connect(server)
    stalled.send(b"*2\r\n$3\r\nGET\r\n$16777216\r\nx")
    assert other.call("PING") == b"+PONG\r\n"
    parsers: list[Any] = [
        one.feed.__self__  # type: ignore[attr-defined]
        for worker in server.workers
        for one in worker.connections.values()
    ]
    assert sorted(len(parser._buffer) for parser in parsers) == [0, 1]


def test_by_default_an_idle_connection_stays(
    server: StartedServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 0.01)
    wire = connect()
    assert wire.ask("PING") == "PONG"
    sweeps: list[float] = []
    sweep = server.workers[0]._sweep

    def counted(now: float) -> None:
        sweeps.append(now)
        sweep(now)

    monkeypatch.setattr(server.workers[0], "_sweep", counted)
    wait_until(lambda: len(sweeps) > 3)
    assert wire.ask("PING") == "PONG"


def test_a_flood_is_read_a_share_at_a_time(
    server: StartedServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much one client has sent, another waits for one share of it at most."""
    flooding, other = connect(), connect()
    assert flooding.ask("PING") == other.ask("PING") == "PONG"
    chunks: list[int] = []
    connection: Any = next(one for one in server.context.sessions() if one.id == 1)
    feed = connection.feed

    def measured(data: bytes) -> object:
        chunks.append(len(data))
        return feed(data)

    monkeypatch.setattr(connection, "feed", measured)
    flooding.send(b"PING\n" * 100_000)
    assert other.ask("PING") == "PONG"
    for _ in range(100_000):
        assert flooding.line() == b"PONG\r\n"
    assert max(chunks) <= limits.RECEIVE_BYTES_MAX
    assert sum(chunks) == 500_000


def test_cursors_are_forgotten_oldest_first() -> None:
    cursors = Cursors(limit=3)
    first, second, third = (cursors.remember(b"%d" % number, 0) for number in range(3))
    assert cursors.recall(first) == b"0"
    fourth = cursors.remember(b"3", 0)
    assert cursors.recall(second) is None
    assert [cursors.recall(one) for one in (first, third, fourth)] == [b"0", b"2", b"3"]


def test_a_scan_holds_at_most_two_cursors() -> None:
    cursors = Cursors()
    used = 0
    for number in range(100):
        following = cursors.remember(b"%d" % number, used)
        assert cursors.recall(following) == b"%d" % number
        used = following
    assert len(cursors._after) <= 2


@pytest.fixture
def no_file_left() -> Iterator[Callable[[], Callable[[], None]]]:
    """Uses up all files that this process may open; gives back how to let go of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []

    def let_go() -> None:
        while taken:
            os.close(taken.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def use_up() -> Callable[[], None]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        return let_go

    yield use_up
    let_go()


def test_no_file_left_for_a_connection(
    start: Start,
    no_file_left: Callable[[], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The port rests instead of spinning, and is served again when there is room."""
    monkeypatch.setattr(limits, "SWEEP_S", 0.05)
    server = start()
    with socket.socket() as client:
        client.settimeout(60)
        let_go = no_file_left()
        client.connect(server.address)
        client.sendall(b"PING\n")
        wait_until(lambda: "cannot accept connections for now: [Errno 24] Too many open files" in caplog.text)
        samples = list(server.context.vitals._samples)
        wait_until(lambda: list(server.context.vitals._samples) != samples, what="a sample")
        assert server.context.vitals.peak_bytes > 1 << 20
        assert "an error outside of the work" not in caplog.text
        let_go()
        assert client.recv(100) == b"PONG\r\n"


def test_a_client_that_is_gone_before_it_is_served(
    server: StartedServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(sock: socket.socket, peer: tuple[str, int]) -> None:
        monkeypatch.undo()
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(server, "_admit", fail)
    assert connect().rest() == b""
    assert connect().ask("PING") == "PONG"


def test_options_are_not_a_list(resp: Wire) -> None:
    """They are read at once, and Redis takes one any number of times."""
    assert resp.call("SET", "k", "v", *["GET"] * (OPTIONS_MAX - 3)) == b"$-1\r\n"
    for words in (["SET", "k", "v", *["GET"] * 1000], ["EXPIRE", "k", "9", *["GT"] * 1000], ["HELLO"] * 1001):
        assert resp.call(*words) == b"-ERR wrong number of arguments for '%b' command\r\n" % words[0].lower().encode()
    assert resp.call("INFO", *["server"] * 1000).startswith(b"-ERR wrong number of arguments for 'info'")
    assert resp.call("CLIENT", "KILL", *["ID", "99"] * 50_000) == b":0\r\n"
    assert resp.call("SCRIPT", "EXISTS", *["x"] * 100_001).startswith(b"-ERR unknown subcommand or wrong number")
    assert resp.call("WATCH", *["x"] * 10_001).startswith(b"-ERR too many watched keys")
    assert resp.call("EXISTS", *["k"] * 200_000) == b":200000\r\n"
