"""Equal requests run in one call, of a pipeline or of many clients; the replies do not show it."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from fixtures.engines import let_go_on, stall
from fixtures.servers import StartedServer
from fixtures.support import wait_until
from fixtures.wire import Wire

from merklekv.engine.engine import Engine
from merklekv.engine.log.segment import Segment, segment_path
from merklekv.errors import Corruption
from merklekv.net import limits
from merklekv.net.commands.strings import MSET_PAIRS_MAX, TOGETHER_PAIRS_MAX
from merklekv.net.connection import CLOSED, Connection
from merklekv.net.executor import BATCH_REQUESTS, Executor
from merklekv.net.protocol.text import Request
from merklekv.net.registry import Long
from merklekv.net.session import Session


def encoded(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def test_a_pipeline_is_answered_as_its_requests_one_by_one(start: Callable[..., StartedServer], engine: Engine) -> None:
    address = start().address
    draw = random.Random(7)
    keys = [b"a", b"b", b"c", b"", b"k" * 511, b"k" * 512]
    choices: list[Callable[[bytes], tuple[bytes, ...]]] = [
        lambda key: (b"SET", key, b"%d" % draw.randrange(100)),
        lambda key: (b"GET", key),
        lambda key: (b"set", key, b"1"),
        lambda key: (b"SET", key, b"2", b"NX"),
        lambda key: (b"SET", key, b"3", b"EX", b"%d" % draw.choice((0, 100, 10**9))),
        lambda key: (b"SET", key, b"4", draw.choice((b"px", b"PXAT", b"EXAT", b"IFEQ", b"Ex")), b"33177117420123"),
        lambda key: (b"SETEX", key, draw.choice((b"100", b"-1", b"010", b"9" * 12, b"9" * 18)), b"5"),
        lambda key: (draw.choice((b"INCR", b"DECR")), key),
        lambda key: (b"SET", key, draw.choice((b"9223372036854775806", b"-9223372036854775808", b"01", b"x"))),
        lambda key: (b"TTL", key),
        lambda key: (b"GET", key, b"too many"),
        lambda key: (draw.choice((b"DEL", b"UNLINK")), key),
        lambda key: (b"MSET", key, b"%d" % draw.randrange(100)),
        lambda key: (b"MSET", key, b"6", draw.choice(keys), b"7", *draw.choice(((), (key,), (key, b"8")))),
    ]
    for _ in range(80):
        make = draw.choice(choices)
        head = [make(draw.choice(keys)) for _ in range(draw.randrange(1, 6))]
        requests = head + [draw.choice(choices)(draw.choice(keys)) for _ in range(draw.randrange(6))]
        engine.truncate()
        with Wire(address) as one_by_one:
            expected = [one_by_one.call(*request) for request in requests]
        contents = [engine.get(key) for key in keys]
        engine.truncate()
        with Wire(address) as together:
            together.send(b"".join(encoded(*request) for request in requests))
            assert [together.resp() for _ in requests] == expected, requests
        assert [engine.get(key) for key in keys] == contents


def test_every_request_of_a_batch_is_counted(resp: Wire) -> None:
    resp.send(encoded(b"SET", b"a", b"1") * 5 + encoded(b"GET", b"a") * 3)
    assert [resp.resp() for _ in range(8)] == [b"+OK\r\n"] * 5 + [b"$1\r\n1\r\n"] * 3
    counted = resp.call("STATS")
    assert b"set_commands:5" in counted
    assert b"get_commands:3" in counted


def test_a_batch_of_large_replies_waits_for_a_slow_reader(start: Callable[..., StartedServer], engine: Engine) -> None:
    engine.set(b"large", b"x" * 1_000_000)
    server = start()
    with Wire(server.address) as slow:
        slow.send(encoded(b"GET", b"large") * 100)
        for _ in range(100):
            assert len(slow.resp()) == 1_000_000 + len(b"$1000000\r\n\r\n")


def test_what_arrives_behind_a_long_command_waits_for_it(
    start: Callable[..., StartedServer], services: Any, engine: Engine
) -> None:
    """Also when a write of the same tick made the worker look for input once more."""
    engine.durability = "always"
    services.exchange_slices = [None, None, None]
    with Wire(start().address) as client:
        echoes = [b"%d" % number for number in range(20_000)]  # several times what is read at once
        client.send(
            encoded(b"SET", b"k", b"v")
            + encoded(b"EXCHANGE", b"abc")
            + b"".join(encoded(b"ECHO", text) for text in echoes)
        )
        assert client.resp() == b"+OK\r\n"
        assert client.resp() == b"$3\r\ncba\r\n"
        assert [client.resp().split(b"\r\n")[1] for _ in echoes] == echoes


def test_a_long_command_goes_on_while_its_client_does_not_read(server: StartedServer) -> None:
    """Else the worker would ask it again and again, and do nothing else."""

    def last_slice() -> Long:
        yield from ()
        return b"+done\r\n"

    near, far = socket.socketpair()
    with near, far:
        connection = Connection(server.context, 1, near, "here", "there")
        connection.task = last_slice()
        connection.unsent_bytes = server.context.limits.output_soft_bytes + 1
        Executor(server.context).run(connection, [[b"SCAN", b"0"], [b"PING"]])
        assert connection.replies == [b"+done\r\n"]
        assert connection.backlog == [[b"PING"]]


def test_a_pipeline_that_takes_long_goes_on_in_later_ticks(
    server: StartedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large values or many subscribers make a request take milliseconds, and thousands arrive at once."""
    asked: list[Request] = [[b"ECHO", b"%d" % number] for number in range(20)]
    left, done = asked, 0
    near, far = socket.socketpair()
    with near, far:
        connection = Connection(server.context, 1, near, "here", "there")
        connection.feed(encoded(b"PING"))
        for most in (0.0, 0.0, 3600.0):
            monkeypatch.setattr(limits, "PIPELINE_S", most)
            Executor(server.context).run(connection, left)
            left = connection.resume()
            done += 1 if not most else len(asked) - done
            assert len(connection.replies) == done
        assert [reply.split(b"\r\n")[1] for reply in connection.replies] == [text for _, text in asked]


def test_a_batch_that_takes_nothing_looks_at_few_requests(
    server: StartedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a pipeline and of many clients: each request behind it tries again."""
    monkeypatch.setattr(limits, "PIPELINE_S", 3600.0)
    sizes: list[int] = []

    def stalled(sessions: Sequence[Session], requests: Sequence[Request], room: int) -> list[bytes]:
        sizes.append(len(requests))
        return []

    entry = server.context.commands.resp.all[b"SET"]
    entry.batches[3] = stalled
    near, far = socket.socketpair()
    with near, far:
        connection = Connection(server.context, 1, near, "here", "there")
        connection.feed(encoded(b"PING"))
        executor = Executor(server.context)
        requests: list[Request] = [[b"SET", b"", b"v"] for _ in range(1000)]
        executor.run(connection, requests)
        assert len(connection.replies) == 1000
        assert executor.run_each(entry, [connection] * 1000, requests) == 0
    assert 999 <= len(sizes) <= 1000
    assert max(sizes) == BATCH_REQUESTS


def test_clients_that_ask_in_one_tick_are_answered_each_by_itself(start: Callable[..., StartedServer]) -> None:
    """One request of each is taken together; what the batch does not take runs by itself."""
    server = start()
    draw = random.Random(3)
    keys = [b"a", b"b", b"k" * 512]
    with ExitStack() as stack:
        clients = [stack.enter_context(Wire(server.address)) for _ in range(40)]
        for client in clients[::3]:
            client.call("HELLO", "3")
        for _ in range(20):
            asked = []
            for number, client in enumerate(clients):
                own = b"own%d" % number
                request = draw.choice(
                    [(b"SET", own, b"%d" % number), (b"GET", own), (b"set", own, b"1"), (b"GET", b"missing"),
                     (b"SET", own), (b"GET", keys[number % 3]), (b"SET", own, b"1", b"XX"), (b"PING",)]
                )  # fmt: skip
                client.send(encoded(*request))
                asked.append(request)
            for number, (client, request) in enumerate(zip(clients, asked, strict=True)):
                reply = client.resp()
                if request == (b"SET", b"own%d" % number, b"%d" % number) or request[0] == b"set":
                    assert reply == b"+OK\r\n"
                elif request == (b"GET", b"missing"):
                    assert reply == (b"_\r\n" if number % 3 == 0 else b"$-1\r\n")
                elif request == (b"GET", b"own%d" % number):
                    nil = b"_\r\n" if number % 3 == 0 else b"$-1\r\n"
                    assert reply in (nil, b"$1\r\n1\r\n", b"$%d\r\n%d\r\n" % (len(b"%d" % number), number))
                elif len(request) == 2 and request[0] == b"SET":
                    assert reply.startswith(b"-ERR wrong number")
                elif request == (b"PING",):
                    assert reply == b"+PONG\r\n"


def test_msets_that_run_together_are_each_all_or_none(
    start: Callable[..., StartedServer], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is refused takes none of the others with it; there are more than run at once."""
    engine.table.max_value_size = 10
    sizes: list[int] = []
    mset = engine.mset

    def counted(pairs: list[tuple[bytes, bytes]]) -> None:
        sizes.append(len(pairs))
        mset(pairs)

    monkeypatch.setattr(engine, "mset", counted)
    many = [word for number in range(MSET_PAIRS_MAX) for word in (b"many%d" % number, b"1")]
    requests = [
        *[(b"MSET", b"a%d" % number, b"1", b"b%d" % number, b"2") for number in range(3 * BATCH_REQUESTS)],
        (b"MSET", b"refused", b"1", b"long", b"x" * 11),
        (b"MSET", b"last", b"1", b"last", b"2"),
        *[(b"MSET", *many)] * TOGETHER_PAIRS_MAX,
    ]
    with Wire(start().address) as client:
        client.send(b"".join(encoded(*request) for request in requests))
        replies = [client.resp() for _ in requests]
        assert replies.pop(3 * BATCH_REQUESTS).startswith(b"-")
        assert set(replies) == {b"+OK\r\n"}
        assert client.call("GET", "last") == b"$1\r\n2\r\n"
        assert client.call("EXISTS", "refused", "long") == b":0\r\n"
        assert client.call("DBSIZE") == b":%d\r\n" % (6 * BATCH_REQUESTS + 1 + MSET_PAIRS_MAX)
    assert MSET_PAIRS_MAX < max(sizes) <= TOGETHER_PAIRS_MAX


def test_a_batch_stops_before_what_set_refuses(engine: Engine) -> None:
    engine.table.max_value_size = 100
    batch = [(b"SET", b"a", b"1"), (b"SET", b"b", b"x" * 100), (b"SET", b"", b"3"), (b"SET", b"c", b"4")]
    assert engine.set_batch(batch) == 2
    assert (engine.get(b"b"), engine.get(b"c")) == (b"x" * 100, None)
    assert engine.set_batch([(b"SET", b"a", b"2"), (b"SET", b"longer", b"x" * 101)]) == 1


def test_a_batch_stops_where_writes_are_stalled(engine: Engine) -> None:
    stall(engine)
    assert engine.set_batch([(b"SET", b"a", b"1")]) == 0
    let_go_on(engine)
    assert engine.set_batch([(b"SET", b"a", b"1")]) == 1


def test_a_pipeline_of_deletes_of_several_keys_shares_its_commits(resp: Wire, engine: Engine) -> None:
    """Each of a few keys is done in the tick in which it was read."""
    engine.mset([(b"k%d" % number, b"v") for number in range(200)])
    engine.commit()
    before, position = engine.log.appended, engine.log.written_lsn
    resp.send(b"".join(encoded(b"DEL", b"k%d" % number, b"k%d" % (number + 100)) for number in range(100)))
    assert [resp.resp() for _ in range(100)] == [b":2\r\n"] * 100
    appended = engine.log.appended - before
    with Segment(segment_path(engine.log.directory, engine.log.lsn)) as segment:
        frames = [frame for frame in segment.frames() if segment.lsn + frame.position >= position]
    assert len(frames) < 10
    assert 200 <= appended <= 200 + len(frames)  # a frame also says what was purged through


def test_damage_is_reported_for_the_request_that_meets_it(
    resp: Wire, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.table.base.get

    def damaged(key: bytes) -> bytes | None:
        if key == b"damaged":
            raise Corruption("damaged at byte 7")
        return real(key)

    monkeypatch.setattr(engine.table.base, "get", damaged)
    engine.set(b"a", b"1")
    engine.commit()
    resp.send(encoded(b"GET", b"a") + encoded(b"GET", b"damaged") + encoded(b"GET", b"a"))
    assert [resp.resp() for _ in range(3)] == [b"$1\r\n1\r\n", b"-ERR damaged at byte 7\r\n", b"$1\r\n1\r\n"]


def test_a_connection_that_was_closed_in_this_tick_stays_closed(resp: Wire, server: StartedServer) -> None:
    assert resp.call("PING") == b"+PONG\r\n"
    (connection,) = [one for worker in server.workers for one in worker.connections.values()]
    resp.close()
    wait_until(lambda: connection.state is CLOSED, what="the end of the connection")
    connection.pause([[b"PING"]])
    assert connection.state is CLOSED
    assert not connection.backlog
