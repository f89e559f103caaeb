"""Publish and subscribe: against a real Redis, across workers, with slow clients and at the limits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import redis
import redis.asyncio
from fixtures.handlers import pauses_of
from fixtures.servers import Start, StartedServer
from fixtures.support import no_room, wait_until
from fixtures.wire import Wire, connection_of, encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merklekv.engine.engine import Engine
from merklekv.net import limits
from merklekv.net import pubsub as pubsub_module
from merklekv.net.commands import pubsub as commands
from merklekv.net.connection import Connection
from merklekv.net.home import Home
from merklekv.net.limits import Limits
from merklekv.net.protocol.resp import Push
from merklekv.net.pubsub import Board, Kind, Message, Subscriptions
from merklekv.net.session import Session

Connect = Callable[..., Wire]

names = st.sampled_from(["a", "b", "ab", "\n"])  # no pattern of Redis matches an empty name
globs = st.sampled_from(["*", "a*", "?", "[ab]", "a", "[^a]*"])
some_names, some_globs = st.lists(names, max_size=3), st.lists(globs, max_size=3)
requests = st.one_of(
    st.tuples(st.just("SUBSCRIBE"), some_names),
    st.tuples(st.just("PSUBSCRIBE"), some_globs),
    st.tuples(st.just("UNSUBSCRIBE"), some_names),
    st.tuples(st.just("PUNSUBSCRIBE"), some_globs),
    st.tuples(st.just("PUBLISH"), st.tuples(names, st.sampled_from(["", "x", "\r\n"]))),
    st.tuples(st.just("PUBSUB"), st.tuples(st.just("NUMSUB"), names, names)),
    st.tuples(
        st.just("PUBSUB"), st.sampled_from([("NUMPAT",), ("CHANNELS",), ("CHANNELS", "a*"), ("CHANNELS", "a", "b")])
    ),
    st.sampled_from(
        [("GET", ("k",)), ("PING", ()), ("RESET", ()), ("HELLO", ("3",)), ("client", ("list", "x")), ("NO", ())]
    ),
)
steps = st.lists(st.tuples(st.integers(0, 2), requests), max_size=25)


def settle(wire: Wire, number: int) -> list[bytes]:
    """All replies and messages up to the answer to a PING of our own, in an order that does not depend on hashing."""
    token = b"token-%d" % number
    wire.send(encode("PING", token))
    replies = []
    while token not in (reply := wire.resp()):
        replies.append(reply)
    return sorted(replies)


def transcript(address: tuple[str, int], done: list[tuple[int, tuple[str, Sequence[str]]]]) -> list[object]:
    seen: list[object] = []
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(address)) for _ in range(3)]
        for number, (at, (name, arguments)) in enumerate(done):
            wires[at].send(encode(name, *arguments))
            seen.append([settle(wires[at], number), *(settle(wire, number) for wire in wires)])
        for wire in wires:
            wire.send(encode("QUIT"))
            wire.rest()
    return [[without_unordered(reply) for reply in part] for part in seen]  # type: ignore[attr-defined]


def without_unordered(replies: list[bytes]) -> list[bytes]:
    """Redis lists its channels, and ends all subscriptions at once, in the order of a hash table; HELLO has an id."""
    if any(b"unsubscribe" in reply or b"server" in reply for reply in replies):
        return sorted(line for reply in replies for line in reply.split(b"\r\n") if b"server" not in reply)
    return [b"".join(sorted(reply.split(b"\r\n"))) if reply.startswith(b"*") else reply for reply in replies]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_replies_and_messages_are_those_of_redis(
    server: StartedServer, redis_address: tuple[str, int], done: list[tuple[int, tuple[str, Sequence[str]]]]
) -> None:
    wait_until(lambda: not server.context.pubsub.subscriptions)
    with Wire(redis_address) as wire:
        wire.call("FLUSHALL")  # other tests have used it
    assert transcript(server.address, done) == transcript(redis_address, done)


def subscribe(wire: Wire, *channels: str) -> Wire:
    wire.send(encode("SUBSCRIBE", *channels))
    for _ in channels:
        wire.resp()
    return wire


def message(payload: str, channel: str = "c") -> bytes:
    return encode("message", channel, payload)


def test_messages_stand_between_whole_replies_in_resp3(connect: Connect) -> None:
    """A client that publishes to itself gets the message before the reply."""
    wire = connect()
    wire.call("HELLO", "3")
    wire.call("SUBSCRIBE", "c")
    wire.send(encode("PUBLISH", "c", "1") + encode("SET", "k", "v") + encode("PUBLISH", "c", "2") + encode("GET", "k"))
    expected = [message("1").replace(b"*", b">"), b":1\r\n", b"+OK\r\n", message("2").replace(b"*", b">"), b":1\r\n"]
    assert [wire.resp() for _ in range(5)] == expected
    assert wire.resp() == b"$1\r\nv\r\n"


def test_a_client_that_leaves_has_no_subscriptions(server: StartedServer, connect: Connect) -> None:
    pubsub = server.context.pubsub
    gone, quits, resets = (subscribe(connect(), "a", "b") for _ in range(3))
    gone.send(encode("PSUBSCRIBE", "*"))
    wait_until(lambda: pubsub.subscriptions == 7)
    gone.close()
    quits.send(encode("QUIT"))
    assert resets.call("RESET") == b"+RESET\r\n"
    wait_until(lambda: not pubsub.subscriptions)
    assert pubsub.names(Kind.CHANNEL) == pubsub.names(Kind.PATTERN) == []
    assert resets.call("PUBLISH", "a", "x") == b":0\r\n"


def test_what_is_reported(server: StartedServer, connect: Connect) -> None:
    wire, other = subscribe(connect(), "a", "b"), connect()
    wire.call("PSUBSCRIBE", "*")
    assert b" flags=P db=0 sub=2 psub=1 ssub=0 " in other.call("CLIENT", "LIST", "TYPE", "pubsub")
    assert b" flags=N db=0 sub=0 psub=0 ssub=0 " in other.call("CLIENT", "LIST", "TYPE", "normal")
    assert b"pubsub_channels:2\r\npubsub_patterns:1\r\n" in other.call("INFO", "stats")


@pytest.mark.parametrize("workers", [1, 3])
def test_the_messages_of_a_publisher_come_in_order_and_to_all(start: Start, connect: Connect, workers: int) -> None:
    """Subscribers on every worker; each publisher has its own sequence."""
    server = start(threads=workers)
    subscribers = [subscribe(connect(server), "c") for _ in range(2 * workers)]
    publishers = [connect(server) for _ in range(workers + 1)]
    count = 200
    for number, publisher in enumerate(publishers):
        publisher.send(b"".join(encode("PUBLISH", "c", f"{number} {at}") for at in range(count)))
    for publisher in publishers:
        assert {publisher.resp() for _ in range(count)} == {b":%d\r\n" % len(subscribers)}
    for wire in subscribers:
        received = [wire.resp() for _ in range(count * len(publishers))]
        for number in range(len(publishers)):
            expected = [message(f"{number} {at}") for at in range(count)]
            assert [one for one in received if one.endswith(b"\r\n%d " % number + one.split(b" ")[-1])] == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_after_the_confirmation_no_message_comes(start: Start, connect: Connect, workers: int) -> None:
    server = start(threads=workers)
    wires = [subscribe(connect(server), "c") for _ in range(2)]
    publisher = connect(server)
    for _ in range(50):
        publisher.send(encode("PUBLISH", "c", "x") * 10)
        for wire in wires:
            wire.send(encode("UNSUBSCRIBE", "c"))
            while wire.resp() == message("x"):
                pass
            assert wire.call("PING") == b"+PONG\r\n"
            subscribe(wire, "c")
        for _ in range(10):
            publisher.resp()
        for wire in wires:  # what was published after the new subscription
            wire.send(encode("RESET"))
            while wire.resp() == message("x"):
                pass
            subscribe(wire, "c")


def test_a_slow_subscriber_is_closed_and_nobody_waits(
    server: StartedServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SUBSCRIBER_OUTPUT_BYTES", 4 * limits.MIB)
    slow, reader = subscribe(connect(receive_buffer=4096), "c"), subscribe(connect(), "c")
    other, publisher = connect(), connect()
    other.call("SET", "big", b"x" * limits.MIB)
    payload = "x" * 10_000
    published = 0
    while server.context.traffic.output_limit_closed == 0:
        publisher.call("PUBLISH", "c", payload)
        assert reader.resp() == message(payload)
        published += 1
        assert published < 5000, "the slow subscriber goes on"
    assert published * 10_000 > 4 * limits.MIB
    wait_until(lambda: server.context.pubsub.subscribers(b"c") == 1)
    assert publisher.call("PUBLISH", "c", "y") == b":1\r\n"
    assert reader.resp() == message("y")
    with pytest.raises((ConnectionResetError, AssertionError)):
        assert len(slow.rest()) >= published * len(message(payload))  # what it had not read is lost


def test_one_request_cannot_fill_the_memory_with_messages(
    server: StartedServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message goes out once for each pattern, and a script or a transaction may publish many at a time."""
    monkeypatch.setattr(limits, "SUBSCRIBER_OUTPUT_BYTES", limits.MIB)
    wire, publisher = connect(), connect()
    for size in range(100):
        wire.call("PSUBSCRIBE", "a" * size + "*")
    payload = "x" * 200_000
    sent = server.context.traffic.output_bytes
    assert publisher.call("PUBLISH", "a" * 100, payload) == b":100\r\n"
    assert publisher.call("PING") == b"+PONG\r\n"  # in a later tick
    assert server.context.traffic.output_limit_closed == 1
    assert limits.MIB // 2 < server.context.traffic.output_bytes - sent < 2 * limits.MIB
    subscribe(wire := connect(), "c")
    assert publisher.call("PUBLISH", "c", payload) == b":1\r\n"
    assert wire.resp() == message(payload)


PUBLISH_MANY = "for i = 1, ARGV[1] do redis.call('PUBLISH', 'c', i .. string.rep('x', ARGV[2])) end"


def test_messages_of_one_moment_are_not_copied_for_each_subscriber(server: StartedServer, connect: Connect) -> None:
    wires = [subscribe(connect(receive_buffer=4096), "c") for _ in range(10)]
    connections = [connection_of(server, wire) for wire in wires]
    for one in connections:  # the kernel takes no more
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * limits.KIB)
    publisher = connect()
    assert publisher.call("EVAL", PUBLISH_MANY, "0", "100", "100000") == b"$-1\r\n"
    waiting = [piece for one in connections for piece in list(one.unsent)]
    assert sum(map(len, waiting)) > 40 * limits.MIB
    whole = {id(obj): memoryview(obj).nbytes for obj in (memoryview(piece).obj for piece in waiting)}
    assert sum(whole.values()) < 20 * limits.MIB
    for wire in wires:
        assert [wire.resp() for _ in range(100)] == [message(f"{at}" + "x" * 100_000) for at in range(1, 101)]
        assert wire.call("PING") == encode("pong", "")
    wait_until(lambda: server.context.traffic.output_bytes > 10 * 100 * 100_000)


@pytest.mark.parametrize("count", [1, 2])
def test_subscribers_that_read_are_not_closed_for_a_large_message(
    server: StartedServer, connect: Connect, count: int
) -> None:
    """What is sent at once takes no memory of clients, however many there are."""
    wires = [subscribe(connect(), "c") for _ in range(100)]
    publisher = connect()
    memory = server.context.memory
    memory.limit = 1_500_000
    memory.look(server.context.connections())
    payload = "x" * 20_000
    publisher.send(encode("MULTI") + encode("PUBLISH", "c", payload) * count + encode("EXEC"))
    assert [publisher.resp() for _ in range(count + 2)][-1] == b"*%d\r\n" % count + b":100\r\n" * count
    for wire in wires:
        assert [wire.resp() for _ in range(count)] == [message(payload)] * count
        assert wire.call("PING") == encode("pong", "")
    assert server.context.traffic.evicted == 0


def test_a_message_counts_once_for_each_protocol(server: StartedServer, connect: Connect) -> None:
    """However the receivers follow each other."""
    wires = [connect() for _ in range(20)]
    for wire in wires[::2]:
        wire.call("HELLO", "3")
    for wire in wires:
        subscribe(wire, "c")
    server.context.memory.limit = 8 * limits.MIB
    publisher = connect()
    payload = "x" * 400_000
    publisher.send(encode("MULTI") + encode("PUBLISH", "c", payload) * 3 + encode("EXEC"))
    assert [publisher.resp() for _ in range(5)][-1] == b"*3\r\n" + b":20\r\n" * 3
    for number, wire in enumerate(wires):
        expected = message(payload) if number % 2 else message(payload).replace(b"*", b">", 1)
        assert [wire.resp() for _ in range(3)] == [expected] * 3
    assert server.context.traffic.output_limit_closed == 0


def test_one_moment_has_room_for_so_many_messages(server: StartedServer, connect: Connect) -> None:
    """Each counts once, however many receive it. Who would get more is closed."""
    wires = [subscribe(connect(), "c") for _ in range(20)]
    publisher = connect()
    payload = "x" * 1_000_000
    publisher.send(encode("MULTI") + encode("PUBLISH", "c", payload) * 5 + encode("EXEC"))
    assert [publisher.resp() for _ in range(7)][-1] == b"*5\r\n" + b":20\r\n" * 5
    for wire in wires:
        assert [wire.resp() for _ in range(5)] == [message(payload)] * 5
    server.context.memory.limit = 8 * limits.MIB
    publisher.send(encode("MULTI") + encode("PUBLISH", "c", payload) * 5 + encode("EXEC"))
    assert [publisher.resp() for _ in range(7)][-1] == b"*5\r\n" + b":20\r\n" * 5
    wait_until(lambda: server.context.traffic.output_limit_closed == 20)
    assert publisher.call("PUBLISH", "c", "x") == b":0\r\n"


def test_a_slow_subscriber_that_catches_up_gets_everything(server: StartedServer, connect: Connect) -> None:
    slow, publisher = subscribe(connect(receive_buffer=4096), "c"), connect()
    (session,) = [one for one in server.context.sessions() if isinstance(one, Connection) and one.subscriptions]
    sizes: list[int] = []
    while session.unsent_bytes < 4 * limits.MIB:
        for size in (1, 100, 300_000, 5, 70_000):
            publisher.call("PUBLISH", "c", f"{len(sizes)}" + "x" * size)
            sizes.append(size)
    assert [slow.resp() for _ in sizes] == [message(f"{at}" + "x" * size) for at, size in enumerate(sizes)]
    assert slow.call("PING") == encode("pong", "")
    wait_until(lambda: session.unsent_bytes == 0)


def test_a_subscriber_may_be_silent(start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 0.02)
    server = start(limits=Limits(idle_timeout_s=3600))
    wire, idle = subscribe(connect(server), "c"), connect(server)
    idle.call("PING")
    for one in (wire, idle):
        connection_of(server, one).last_active -= 4000  # seconds pass
    assert idle.rest() == b""
    wait_until(lambda: server.context.traffic.idle_closed == 1)
    assert wire.call("PING") == encode("pong", "")


def test_a_roll_back_changes_no_subscription_and_no_message(start: Start, engine: Engine, connect: Connect) -> None:
    server = start()
    wire, publisher = connect(server), connect(server)
    publisher.call("SET", "k", "v")
    wire.call("HELLO", "3")
    with no_room():
        wire.send(encode("SET", "k", "w") + encode("SUBSCRIBE", "c", "d") + encode("PUBLISH", "c", "x"))
        replies = [wire.resp() for _ in range(5)]
    assert replies[0].startswith(b"-")
    assert replies[1:4] == [
        b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n",
        b">3\r\n$9\r\nsubscribe\r\n$1\r\nd\r\n:2\r\n",
        message("x").replace(b"*", b">"),
    ]
    assert publisher.call("PUBLISH", "d", "x") == b":1\r\n"


def test_limits_on_subscriptions(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is refused as a whole, and what was there stays."""
    monkeypatch.setattr(pubsub_module, "CLIENT_SUBSCRIPTIONS_MAX", 4)
    monkeypatch.setattr(pubsub_module, "SUBSCRIPTIONS_MAX", 6)
    wire, other = subscribe(connect(), "a", "b", "c"), connect()
    assert wire.call("SUBSCRIBE", "d", "e") == b"-ERR too many subscriptions: a client may have 4\r\n"
    assert wire.call("SUBSCRIBE", "a", "a")[-4:] == b":3\r\n"
    assert wire.resp()[-4:] == b":3\r\n"
    assert wire.call("PSUBSCRIBE", "d*")[-4:] == b":4\r\n"
    too_many = b"-ERR too many subscriptions: all clients together may have 6\r\n"
    assert other.call("SUBSCRIBE", "a", "b", "c") == too_many
    assert other.call("PING") == b"+PONG\r\n"
    assert subscribe(other, "a", "b").call("PUNSUBSCRIBE")[-4:] == b":2\r\n"


def test_limits_on_names(connect: Connect) -> None:
    wire, longest = connect(), "x" * limits.SUBSCRIPTION_BYTES_MAX
    assert wire.call("PUBLISH", longest, "m") == b":0\r\n"
    assert wire.call("PUBLISH", longest + "x", "m").startswith(b"-ERR name of a channel larger than 1024 bytes")
    assert wire.call("SUBSCRIBE", longest).endswith(b":1\r\n")
    assert wire.call("SUBSCRIBE", "a", longest + "x").startswith(b"-ERR the name of a channel, or a pattern, has over")


def test_many_patterns_are_refused_and_costly_ones_let_others_run(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what stands behind the first wildcard costs time. The same pattern of another client costs nothing more."""
    monkeypatch.setattr(pubsub_module, "PATTERN_BYTES_MAX", 700)
    hostile = "*" + "a" * 599 + "b"
    wire, other, publisher = connect(), connect(), connect()
    assert wire.call("PSUBSCRIBE", hostile, "long beginning" * 50 + "*").endswith(b":1\r\n")
    assert wire.resp().endswith(b":2\r\n")
    assert other.call("PSUBSCRIBE", hostile).endswith(b":1\r\n")
    assert other.call("PSUBSCRIBE", "*" + "c" * 200).startswith(b"-ERR too many patterns: ")
    publisher.send(encode("PUBLISH", "a" * 1000, "m") * 20 + encode("PUBLISH", "a" * 700 + "b", "m"))
    assert [publisher.resp() for _ in range(21)] == [b":0\r\n"] * 20 + [b":2\r\n"]
    assert wire.resp() == other.resp() == encode("pmessage", hostile, "a" * 700 + "b", "m")
    wire.send(encode("PUNSUBSCRIBE"))
    wait_until(lambda: publisher.call("PUBSUB", "NUMPAT") == b":1\r\n")
    other.call("PUNSUBSCRIBE")
    assert other.call("PSUBSCRIBE", "*" + "c" * 200).endswith(b":1\r\n")


def test_each_pattern_counts(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is not more than a beginning: a message looks at each of them."""
    monkeypatch.setattr(pubsub_module, "PATTERN_BYTES_MAX", 21)
    wire = connect()
    subscribe(wire, "a", "b", "c")
    for pattern in ("a", "beginning*", "*", "c\\*d"):  # 1, 1, 1, and 15 more than the 3 bytes of the last
        assert b"psubscribe" in wire.call("PSUBSCRIBE", pattern)
    assert wire.call("PSUBSCRIBE", "d").startswith(b"-ERR too many patterns: ")
    wire.call("PUNSUBSCRIBE", "a")
    assert b"psubscribe" in wire.call("PSUBSCRIBE", "d")


def test_a_request_has_not_more_names_than_a_client_may_have(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "CLIENT_SUBSCRIPTIONS_MAX", 2)
    wire = connect()
    assert subscribe(wire, "a", "a").call("PING") == encode("pong", "")
    for name in ("SUBSCRIBE", "PSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE"):
        assert wire.call(name, "a", "a", "a") == b"-ERR more than 2 names, which no client may subscribe to\r\n"


def test_to_count_subscribers_of_many_channels_lets_others_run(session: Session) -> None:
    assert pauses_of(session, [b"PUBSUB", b"NUMSUB", *[b"a"] * 2500]) == 2


class StuckHome:
    """A worker that does not come to its calls."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.sent: list[tuple[object, Push]] = []

    def call_soon(self, function: Callable[[], None]) -> None:
        self.calls.append(function)

    def push(self, connection: Any, data: Push) -> None:
        self.sent.append((connection, data))

    def if_lost(self, connection: Any, undo: Callable[[], None]) -> None:
        raise NotImplementedError

    def cut(self, connection: Any) -> None:
        raise NotImplementedError


class FakeSession:
    def __init__(self, home: StuckHome) -> None:
        self.protocol = 2
        self.worker: Home = home
        self.subscriptions: Subscriptions | None = None
        self.has_missed = False


def test_messages_for_a_stuck_worker_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub_module, "BOARD_BYTES_MAX", 10_000)
    home = StuckHome()
    board = Board(home)
    board.add(FakeSession(home), Kind.CHANNEL, b"c")
    for number in range(1000):
        board.deliver_soon(Message(b"c", b"%d" % number))
    kept = 1000 - board.dropped
    assert 30 <= kept <= 45
    assert len(home.calls) == 1
    while home.calls:
        home.calls.pop()()
    assert [data for _, data in home.sent] == [message(f"{number}") for number in range(kept)]
    board.deliver_soon(Message(b"c", b"again"))
    assert len(home.calls) == 1


def test_a_lack_of_memory_costs_one_message() -> None:
    class Poor(StuckHome):
        def push(self, connection: Any, data: Push) -> None:
            if b"first" in bytes(data):
                raise MemoryError
            super().push(connection, data)

    home = Poor()
    board = Board(home)
    board.add(FakeSession(home), Kind.CHANNEL, b"c")
    for payload in (b"first", b"second"):
        board.deliver_soon(Message(b"c", payload))
    with pytest.raises(MemoryError):
        home.calls.pop()()
    board.deliver_soon(Message(b"c", b"third"))
    assert len(home.calls) == 1
    home.calls.pop()()
    assert [data for _, data in home.sent] == [message("second"), message("third")]
    assert not home.calls


def test_redis_py(server: StartedServer) -> None:
    host, port = server.address
    for protocol in (2, 3):
        with redis.Redis(host=host, port=port, protocol=protocol) as client, client.pubsub() as listener:
            seen: list[object] = []
            listener.subscribe(c=seen.append)
            listener.psubscribe(**{"p*": seen.append})
            assert {listener.get_message(timeout=60)["type"] for _ in range(2)} == {"subscribe", "psubscribe"}
            thread = listener.run_in_thread(sleep_time=0.01, daemon=True)
            assert client.publish("c", "one") == client.publish("pq", "two") == 1
            wait_until(lambda: len(seen) == 2)  # noqa: B023
            assert [one["data"] for one in seen] == [b"one", b"two"]  # type: ignore[index]
            thread.stop()
            thread.join(60)


def test_redis_py_asyncio(server: StartedServer) -> None:
    host, port = server.address

    async def run() -> list[object]:
        client = redis.asyncio.Redis(host=host, port=port)
        async with client, client.pubsub() as listener:
            await listener.subscribe("c")
            await listener.psubscribe("c*")
            seen: list[object] = []
            for number in range(3):
                await client.publish("c", f"{number}")
            while len(seen) < 6:
                one = await listener.get_message(ignore_subscribe_messages=True, timeout=10)
                if one is not None:
                    seen.append((one["type"], one["data"]))
            await listener.unsubscribe()
            return seen

    kinds = ("message", "pmessage")
    assert asyncio.run(run()) == [(kind, b"%d" % number) for number in range(3) for kind in kinds]
