"""All clients share one budget of memory: at it, those that hold most are closed, and no other client notices."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
from fixtures.servers import Start, StartedServer
from fixtures.support import wait_until
from fixtures.wire import Wire, connection_of, encode, replace

from merklekv.engine.engine import Engine
from merklekv.errors import InvalidArgument
from merklekv.net import lcs, limits
from merklekv.net.limits import CONNECTION_BYTES, SUBSCRIPTION_ROOM_BYTES, Limits
from merklekv.net.memory import Memory, held_by
from merklekv.net.server import Server
from merklekv.net.worker import CROWDED

Connect = Callable[..., Wire]
MIB = 1 << 20
BUDGET = 64 * MIB
FILL = b"x" * (4 * MIB)
SMALL = Limits(memory_bytes=BUDGET)
LAST_WORDS = b"-ERR %b\r\n" % CROWDED.encode()


@pytest.fixture
def server(start: Start) -> StartedServer:
    return start(limits=SMALL)


def evicted(server: StartedServer) -> int:
    return server.context.traffic.evicted


def used(server: StartedServer) -> int:
    return sum(one.memory_bytes for one in server.context.connections())


def half_a_value(wire: Wire) -> None:
    wire.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16000000\r\n" + b"x" * 15_900_000)


def half_of_many_arguments(wire: Wire) -> None:
    wire.send(b"*1000000\r\n$3\r\nDEL\r\n" + b"$2\r\nab\r\n" * 170_000)


def half_a_transaction(wire: Wire) -> None:
    wire.send(encode("MULTI") + encode("SET", "k", FILL) * 4)


def replies_that_it_does_not_read(wire: Wire) -> None:
    wire.send(encode("GET", "big") * 4)


def a_command_that_waits(wire: Wire) -> None:
    wire.send(encode("ECHO", FILL) + encode("ECHO", "behind it"))


def a_command_that_has_read_much(wire: Wire) -> None:
    wire.send(encode("DUMP", "big"))


HOLDERS = [
    half_a_value,
    half_of_many_arguments,
    half_a_transaction,
    replies_that_it_does_not_read,
    a_command_that_waits,
    a_command_that_has_read_much,
]


@pytest.mark.parametrize("hold", HOLDERS)
def test_clients_that_hold_most_are_closed(
    server: StartedServer, connect: Connect, engine: Engine, hold: Callable[[Wire], None]
) -> None:
    """Ten of each kind hold about twice the budget. Some stay, and others are served all the while."""
    engine.set(b"big", b"x" * engine.max_value_size)
    ends: list[bool] = []

    def waits(session: Any, request: Any) -> Generator[Any, None, bytes]:
        read = engine.get(b"big") if request[0] == b"DUMP" else b""
        yield lambda: bool(ends)
        return read or b""

    for name in (b"ECHO", b"DUMP"):
        replace(server, name, waits)
    other = connect()
    assert other.call("SET", "small", "v") == b"+OK\r\n"
    holders = [connect(receive_buffer=4096) for _ in range(10 if hold is not a_command_that_waits else 30)]
    for wire in holders:
        assert wire.call("PING") == b"+PONG\r\n"
    for wire in holders:
        try:
            hold(wire)
        except (ConnectionResetError, BrokenPipeError):
            pass  # it was closed
        assert other.call("GET", "small") == b"$1\r\nv\r\n"
    wait_until(lambda: evicted(server) > 0)
    wait_until(lambda: used(server) <= BUDGET)
    assert evicted(server) < len(holders)
    assert other.call("SET", "small", "w") == b"+OK\r\n"
    wait_until(lambda: b"evicted_clients:%d\r\n" % evicted(server) in other.call("INFO", "stats"))
    wait_until(lambda: server.context.memory.used <= BUDGET)
    ends.append(True)


def test_the_largest_is_told_and_closed(
    server: StartedServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 0.01)
    large, small = connect(), connect()
    small.send(b"*2\r\n$3\r\nGET\r\n$5\r\nab")
    half_a_value(large)
    wait_until(lambda: server.context.memory.used > 15_900_000)
    server.context.memory.limit = 10_000_000
    assert large.rest() == LAST_WORDS
    small.send(b"cde\r\n")
    assert small.resp() == b"$-1\r\n"
    assert evicted(server) == 1


def test_one_of_another_worker_is_told_and_closed(start: Start, connect: Connect) -> None:
    server = start(limits=SMALL, threads=2)
    large, other = connect(server), connect(server)
    half_a_value(large)
    here, there = connection_of(server, large), connection_of(server, other)
    assert here.worker is not there.worker
    wait_until(lambda: here.held_bytes > 15_900_000)
    server.context.memory.limit = 10_000_000
    there.worker.call_soon(there.worker._relieve)
    assert large.rest() == LAST_WORDS
    assert other.call("PING") == b"+PONG\r\n"


def test_a_connection_that_ends_lets_go_at_once(server: StartedServer, connect: Connect) -> None:
    wire = connect()
    half_a_transaction(wire)
    wait_until(lambda: used(server) > 4 * len(FILL))
    wire.send(b"*1\r\n:1\r\n" + b"x" * 1000)
    assert wire.rest().endswith(b"-ERR Protocol error: expected '$', got ':'\r\n")
    wait_until(lambda: used(server) < MIB)


def test_what_replies_that_are_read_take_counts_for_nothing(server: StartedServer, connect: Connect) -> None:
    wire = connect()
    assert wire.call("SET", "k", FILL) == b"+OK\r\n"
    for _ in range(4 * BUDGET // len(FILL)):
        assert len(wire.call("GET", "k")) > len(FILL)
    assert evicted(server) == 0
    wait_until(lambda: used(server) == CONNECTION_BYTES)


def test_messages_of_nodes_and_scripts_lower_what_clients_may_hold() -> None:
    memory = Memory(1000)
    others = [300, 200]
    memory.others += [lambda: others[0], lambda: others[1]]
    small: Any = _Holder(200)
    large: Any = _Holder(250)
    assert memory.look([small, large]) == []
    assert (memory.used, memory.room) == (950, 62)
    others[1] = 300
    assert memory.look([small, large]) == [large]
    assert (memory.used, memory.room) == (800, 200)
    memory.grown += 201
    assert memory.is_due
    assert not memory.look([])
    assert not memory.is_due


class _Holder:
    def __init__(self, size: int) -> None:
        self.memory_bytes = size


def test_what_a_long_command_holds() -> None:
    def inner() -> Generator[None, None, None]:
        gathered = [b"x" * 1000] * 100_000
        yield None
        gathered.clear()

    def outer(value: bytes) -> Generator[None, None, None]:
        yield from inner()

    task = outer(b"v" * 10**6)
    assert held_by(task) == pytest.approx(10**6, rel=0.001)
    next(task)
    assert held_by(task) == pytest.approx(10**6 + 100_000 * 1033, rel=0.01)
    assert list(task) == []
    assert held_by(task) == held_by(None) == 0


def test_what_a_command_holds_in_other_ways() -> None:
    """Also in numbers, which may be long, and in the table of an LCS on its way back."""

    def task() -> Generator[None, None, None]:
        masks = dict.fromkeys(range(3), 1 << 8_000_000)
        every = 1 << 16_000_000
        yield None
        masks.clear()
        assert every

    def way_back(table: lcs.Table) -> Generator[None, None, list[lcs.Match]]:
        return (yield from lcs.matches(table))

    held = task()
    next(held)
    assert held_by(held) == pytest.approx(5_000_000 * 16 / 15, rel=0.01)
    held.close()
    a, b = b"ab" * 5000, b"ba" * 5000
    table = list_of(lcs.compare(a, b))
    back = way_back(table)
    next(back)
    assert held_by(back) > 2 * len(a) * len(b) // 8  # in both frames
    back.close()


def list_of(task: Generator[None, None, lcs.Table]) -> lcs.Table:
    while True:
        try:
            next(task)
        except StopIteration as end:
            table: lcs.Table = end.value
            return table


def test_subscriptions_count(server: StartedServer, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 0.01)
    wire, other = connect(), connect()
    names = [str(number).ljust(1000, "x") for number in range(1000)]
    assert wire.call("SUBSCRIBE", *names).endswith(b":1\r\n")
    for number in range(2, 1001):
        assert wire.resp().endswith(b":%d\r\n" % number)
    connection = connection_of(server, wire)
    wait_until(lambda: connection.memory_bytes == CONNECTION_BYTES + 1000 * (1000 + SUBSCRIPTION_ROOM_BYTES))
    server.context.memory.limit = 1_500_000
    assert wire.rest() == LAST_WORDS
    assert other.call("PUBSUB", "CHANNELS") == b"*0\r\n"
    assert evicted(server) == 1


def held_in_unsent(connection: Any) -> int:
    return sum(memoryview(memoryview(piece).obj).nbytes for piece in list(connection.unsent))


def test_the_end_of_a_reply_does_not_keep_all_of_it(server: StartedServer, connect: Connect, engine: Engine) -> None:
    """A client that leaves the last bytes of a large reply would hold much, and count for little."""
    engine.set(b"big", b"x" * engine.max_value_size)
    wire = connect(receive_buffer=4096)
    wire.send(encode("GET", "big"))
    connection = connection_of(server, wire)
    wait_until(lambda: connection.unsent_bytes > 4 * MIB)
    left = engine.max_value_size
    while connection.unsent_bytes > MIB:
        left -= len(wire.read(64 << 10))
    wait_until(lambda: held_in_unsent(connection) <= 2 * connection.unsent_bytes <= 2 * MIB)
    assert wire.read(left + len(b"$16777216\r\n") + 2).endswith(b"x\r\n")
    assert wire.call("PING") == b"+PONG\r\n"


def test_one_request_or_reply_takes_at_most_half(start: Start, connect: Connect, engine: Engine) -> None:
    engine.set(b"big", b"x" * engine.max_value_size)
    wire = connect(start(limits=SMALL))
    assert wire.call("MGET", "big", "big").startswith(b"-ERR reply larger than 33554432 bytes")
    assert wire.call("CONFIG", "GET", "client-query-buffer-limit").endswith(b"$8\r\n33554432\r\n")
    assert wire.call("CONFIG", "GET", "maxmemory-clients").endswith(b"$8\r\n67108864\r\n")


def test_a_budget_that_is_too_small_for_the_largest_value_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidArgument, match="less than 3 times the largest value, 16777216 bytes"):
        Server(engine, limits=Limits(memory_bytes=48 * MIB - 1))


def test_long_scans_of_short_keys_count_as_what_they_take(
    server: StartedServer, connect: Connect, engine: Engine
) -> None:
    engine.mset([(b"%d" % number, b"") for number in range(20_000)])
    object.__setattr__(server.context.limits, "output_hard_bytes", MIB)
    assert connect().call("SCAN", "0", "COUNT", "1000000").startswith(b"-ERR reply larger than 1048576 bytes")
