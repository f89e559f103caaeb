"""A row of equal requests at the start of a pipeline is run by one call; nothing in the replies must show it."""

from __future__ import annotations

import random
from collections.abc import Callable

from wire import Wire

from merklekv.engine.engine import Engine
from merklekv.net.server import Server


def encoded(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def test_a_pipeline_is_answered_as_its_requests_one_by_one(start: Callable[..., Server], engine: Engine) -> None:
    address = start().address  # type: ignore[attr-defined]
    draw = random.Random(7)
    keys = [b"a", b"b", b"c", b"", b"k" * 511, b"k" * 512]
    choices = [
        lambda key: (b"SET", key, b"%d" % draw.randrange(100)),
        lambda key: (b"GET", key),
        lambda key: (b"set", key, b"1"),
        lambda key: (b"SET", key, b"2", b"NX"),
        lambda key: (b"GET", key, b"too many"),
        lambda key: (b"DEL", key),
    ]
    for _ in range(60):
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


def test_every_request_of_a_row_is_counted(resp: Wire) -> None:
    resp.send(encoded(b"SET", b"a", b"1") * 5 + encoded(b"GET", b"a") * 3)
    assert [resp.resp() for _ in range(8)] == [b"+OK\r\n"] * 5 + [b"$1\r\n1\r\n"] * 3
    counted = resp.call("STATS")
    assert b"set_commands:5" in counted
    assert b"get_commands:3" in counted


def test_a_row_of_large_replies_waits_for_a_slow_reader(start: Callable[..., Server], engine: Engine) -> None:
    engine.set(b"large", b"x" * 1_000_000)
    server = start()
    with Wire(server.address) as slow:  # type: ignore[attr-defined]
        slow.send(encoded(b"GET", b"large") * 100)
        for _ in range(100):
            assert len(slow.resp()) == 1_000_000 + len(b"$1000000\r\n\r\n")


def test_a_row_stops_before_what_set_refuses(engine: Engine) -> None:
    engine.max_value_size = 100
    row = [(b"SET", b"a", b"1"), (b"SET", b"b", b"x" * 100), (b"SET", b"", b"3"), (b"SET", b"c", b"4")]
    assert engine.set_row(row) == 2
    assert (engine.get(b"b"), engine.get(b"c")) == (b"x" * 100, None)
    assert engine.set_row([(b"SET", b"a", b"2"), (b"SET", b"longer", b"x" * 101)]) == 1


def test_a_row_stops_where_writes_are_stalled(engine: Engine) -> None:
    engine.stalled = True
    assert engine.set_row([(b"SET", b"a", b"1")]) == 0
    engine.stalled = False
    assert engine.set_row([(b"SET", b"a", b"1")]) == 1
