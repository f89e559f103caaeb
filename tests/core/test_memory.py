"""The core keeps no reference too much and none too few, and when memory is short nothing is half done."""

from __future__ import annotations

import gc
import importlib
import select
import socket
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import pytest
from fixtures import engines
from fixtures.engines import LATER_MS, NOON
from fixtures.twins import TWINS, outcome, parser_of
from fixtures.wire import encode

from merklekv.engine.format import ENTRY, INNER_NODES, OP_METADATA, OP_SET
from merklekv.engine.merkle import NO_LEAVES
from merklekv.engine.record import EXPIRY, FLAGS, pack_expiry
from merklekv.net.channel import Channel
from merklekv.net.protocol.resp import REQUEST_BYTES_MIN

_testcapi: Any = importlib.import_module("_testcapi")  # of CPython's own tests, without types

ROUNDS = 1500
SLACK_BYTES = 20_000  # far below what one byte a round and more would be

KEY, VALUE = b"a key that nothing else refers to", b"a value that nothing else refers to"


def growth(call: Callable[[], object], rounds: int = ROUNDS) -> int:
    """How many bytes more are in use after so many calls."""
    for _ in range(rounds // 10):
        call()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(rounds):
            call()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


class Command:
    """The entry of every command."""

    batches: ClassVar[dict[int, object]] = {2: None}


def parse(data: bytes) -> Any:
    """The requests in what has come."""
    if data == b"bad":
        raise ValueError
    return [[data, KEY]]


class Client(Channel):
    """What the core sees of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        self.fd = sock.fileno()
        self.receive, self.send = sock.recv, sock.send
        self.nil = b"$-1\r\n"
        self.feed, self.find = parse, lambda _: Command

    def keep(self, data: bytes) -> None:
        raise ValueError


@contextmanager
def client() -> Iterator[tuple[Client, socket.socket]]:
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            stack.callback(end.close)
            end.setblocking(False)
        yield Client(ours), theirs


def simple_calls() -> dict[str, Callable[[], object]]:
    """Calls of what needs no engine, also such that fail, by their names."""
    parser = parser_of(TWINS)(100, 100, REQUEST_BYTES_MIN)
    leaves, packed = TWINS.Leaves(), bytearray(NO_LEAVES)
    nodes = dict.fromkeys(range(INNER_NODES), packed)
    requests: list[Any] = [[b"GET", KEY], [b"GET", VALUE], None]
    records = TWINS.Records()
    frame = b"".join(ENTRY.pack(op, len(KEY), len(VALUE)) + KEY + VALUE for op in (OP_SET, OP_METADATA))

    def table() -> object:
        made = TWINS.Records()
        for number in range(100):
            made[b"%d" % number] = VALUE
            made[b"%d" % number] = KEY
        return [
            made.items_from(b"", b"9", 50),
            made.bucket(5),
            list(made),
            list(made.items()),
            made.get(KEY),
            outcome(made.__getitem__, KEY),
        ]

    def tree() -> None:
        leaves.move(5, 2**127, 1)
        leaves.load(3, NO_LEAVES)
        leaves.leaf(5)
        TWINS.count_each(nodes, [(KEY, VALUE), (KEY, KEY)], True)
        outcome(TWINS.count_each, nodes, [(KEY, VALUE), (KEY, None)], False)
        leaves.pack(0, packed)
        for wrong in ((-1, 1, 1), (0, "x", 1), (0, 1, 2**70)):
            outcome(leaves.move, *wrong)

    return {
        "PlainParser": lambda: parser.feed(encode("GET", "k") + encode(b"x" * 30, "k")),
        "bulk_each": lambda: TWINS.bulk_each([VALUE, b""], []),
        "bulk_each fails": lambda: outcome(TWINS.bulk_each, [VALUE, None], []),
        "bulk_each fails late": lambda: outcome(TWINS.bulk_each, [VALUE, 5], [None, None]),
        "alike": lambda: TWINS.alike(requests[:2], 0, 5),
        "alike fails": lambda: outcome(TWINS.alike, requests, 0, 5),
        "pack_frame": lambda: TWINS.pack_frame(2**60, 2**60, 2**60, 1, 1, 2, [KEY, VALUE]),
        "pack_frame fails": lambda: outcome(TWINS.pack_frame, 1, 1, 1, 1, 1, 2, [KEY, 5]),
        "pack_frame fails late": lambda: outcome(TWINS.pack_frame, -1, 1, 1, 1, 1, 2, [KEY, VALUE]),
        "note_each": lambda: TWINS.note_each(frame, 0, len(frame), 1, records),
        "note_each fails": lambda: outcome(TWINS.note_each, frame, 0, len(frame) - 1, 1, records),
        "Records": table,
        "Records fails": lambda: outcome(records.__setitem__, [KEY], VALUE),
        "Records of a wrong key": lambda: outcome(records.get, 5),
        "Leaves": tree,
    }


@pytest.mark.parametrize("name", simple_calls())
def test_calls_leave_nothing(name: str) -> None:
    call = simple_calls()[name]
    gc.collect()  # of what tests before it have left
    counts = sys.getrefcount(KEY), sys.getrefcount(VALUE), sys.getrefcount(None)
    assert growth(call, 300 if name == "Records" else ROUNDS) < SLACK_BYTES
    assert (sys.getrefcount(KEY), sys.getrefcount(VALUE)) == counts[:2]
    assert abs(sys.getrefcount(None) - counts[2]) < ROUNDS // 2


def test_tables_give_their_memory_back() -> None:
    """What they hold is no memory of Python's, so this looks at the process."""

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def make() -> None:
        leaves = TWINS.Leaves()
        leaves.merge(TWINS.Leaves())
        records = TWINS.Records()
        for number in range(2000):
            records[b"%d" % number] = VALUE
        TWINS.Sockets(1 << 20)

    for _ in range(5):
        make()
    before = resident()
    for _ in range(100):  # 300 MB and more
        make()
    assert resident() - before < 60 << 20


def test_reading_and_sending_leave_nothing() -> None:
    with client() as (one, theirs):
        sockets = TWINS.Sockets(1000)
        connections, events = {0: one}, [(0, select.EPOLLIN), (1, select.EPOLLIN)]

        def turn() -> None:
            ended: list[Any] = []
            for data in (b"GET", b"bad"):
                theirs.send(data)
                sockets.read_each(events, connections, 100, 1.5, {}, [], [], ended)
            outcome(sockets.read_each, events, connections, 2000, 1.5, {}, [], [], ended)
            looks: list[Any] = []
            wrong: Any = 5
            for replies, unsent in (([VALUE], 0), ([VALUE, KEY], 0), ([VALUE], 5), ([wrong], 0), ([VALUE, wrong], 0)):
                one.replies, one.unsent_bytes = list(replies), unsent
                sockets.send_each([one], looks)
            theirs.recv(1000)
            one.replies = []
            TWINS.answer_each("entry", [one, one], [VALUE, KEY], [])
            outcome(TWINS.answer_each, "entry", [one, None], [VALUE, KEY], [])
            one.replies = []
            assert (len(ended), len(looks)) == (1, 3)

        gc.collect()  # of what tests before it have left
        counts = sys.getrefcount(KEY), sys.getrefcount(VALUE), sys.getrefcount(one)
        assert growth(turn, 1000) < SLACK_BYTES
        assert (sys.getrefcount(KEY), sys.getrefcount(VALUE), sys.getrefcount(one)) == counts


def test_writing_and_reading_leave_nothing() -> None:
    with engines.fresh_engine(max_value_size=1000) as engine:
        good = [(b"SET", b"k%d" % number, VALUE) for number in range(40)]
        own = [(b"SET", b"e%d" % number, pack_expiry(LATER_MS) + VALUE) for number in range(3)]
        bad = [*good[:3], (b"SET", b"", VALUE)]
        made = [(1, b"m", engines.record(b"m", VALUE, NOON + 1))]
        requests = [(b"GET", b"k%d" % number) for number in range(50)]

        def turn() -> None:
            assert engine.set_batch(good) == 40
            assert engine.set_batch(own, FLAGS[EXPIRY]) == 3
            assert engine.set_batch(bad) == 3
            outcome(engine._put, 1, [*good[:2], 5])
            outcome(engine._put, 1, [*good[:2], (None, KEY, None)])
            outcome(engine._put, 1, [*good[:2], (None, KEY, VALUE * 100)])
            engine.merge(made, b"elsewhere")
            engine.increment_batch([b"n", b"n", b"k1"], 1)
            assert len(engine.get_batch(requests, 10_000)) == 50
            outcome(engine.get_batch, [*requests, (None, None)], 10_000)
            engine.commit()

        gc.collect()  # of what tests before it have left
        counts = sys.getrefcount(KEY), sys.getrefcount(VALUE)
        assert growth(turn, 100) < 100_000  # of 4,600 items; the log keeps a little of its own
        assert (sys.getrefcount(KEY), sys.getrefcount(VALUE)) == counts


# -- memory that is short ----------------------------------------------------------------------------------------------


def failing_at(number: int, call: Callable[..., object], *arguments: Any) -> object:
    """Calls it, and its allocation of this number finds no memory; its error."""
    _testcapi.set_nomemory(number, number + 1)
    try:
        call(*arguments)
    except Exception as error:  # noqa: BLE001  it is looked at
        return error
    finally:
        _testcapi.remove_mem_hooks()
    return None


@pytest.mark.parametrize("name", simple_calls())
def test_calls_without_memory_raise_and_leave_nothing(name: str) -> None:
    call = simple_calls()[name]
    call()
    gc.collect()  # of what tests before it have left
    counts = sys.getrefcount(KEY), sys.getrefcount(VALUE)
    for number in range(1, 60):
        assert isinstance(failing_at(number, call), MemoryError | None)
    assert (sys.getrefcount(KEY), sys.getrefcount(VALUE)) == counts
    call()


def test_connections_without_memory_are_looked_at() -> None:
    """The call may raise as a whole, too; the next one goes on."""
    with client() as (one, theirs):
        sockets = TWINS.Sockets(1000)
        for number in range(1, 40):
            theirs.send(b"GET")
            one.replies = [VALUE, KEY]
            failing_at(number, sockets.read_each, [(0, 1)], {0: one}, 9, 1.5, {}, [], [], [])
            failing_at(number, sockets.send_each, [one], [])
            failing_at(number, TWINS.answer_each, "entry", [one], [VALUE], [])
            outcome(one.receive, 100)
            outcome(theirs.recv, 1000)
        theirs.send(b"GET")
        singles: dict[Any, Any] = {}
        assert sockets.read_each([(0, 1)], {0: one}, 9, 1.5, singles, [], [], []) == 3
        assert singles == {Command: ([one], [[b"GET", KEY]])}


BATCHES: dict[str, tuple[list[Any], bytes, bytes]] = {
    "new keys": ([(None, b"n%d" % number, VALUE) for number in range(4)], FLAGS[0], b""),
    "known keys": ([(None, b"k%d" % number, VALUE) for number in range(4)], FLAGS[0], b""),
    "newer than the clock": ([(None, b"future", VALUE), (None, b"k1", VALUE)], FLAGS[0], b""),
    "expiring": ([(None, b"k0", VALUE), (None, b"n", VALUE)], FLAGS[EXPIRY], pack_expiry(LATER_MS)),
    "expired": ([(None, b"k0", VALUE), (None, b"n", VALUE)], FLAGS[EXPIRY], pack_expiry(1)),
    "deleted": ([(None, b"k0", b""), (None, b"n", b""), (None, b"e", b"")], FLAGS[1], b""),
    "no longer expiring": ([(None, b"e", VALUE), (None, b"k0", VALUE)], FLAGS[0], b""),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_without_memory_raises_and_keeps_no_reference(name: str) -> None:
    """Not that nothing is half done: with no memory for a number, both leave an item counted in one place only."""
    items, flags, expiry = BATCHES[name]
    gc.collect()  # of what tests before it have left
    counts = sys.getrefcount(KEY), sys.getrefcount(VALUE)
    for number in range(1, 30):
        with engines.directory() as path:
            engine = engines.open_engine(path)
            for each in range(3):
                engine.set(b"k%d" % each, b"before")
            engine.set(b"e", b"before", LATER_MS)
            engine.merge([(1, b"future", engines.record(b"future", b"v", NOON + 10**9))], b"elsewhere")
            engine.commit()
            assert isinstance(failing_at(number, engine._put, 1, items, flags, expiry), MemoryError | None)
            assert len(engine.get_batch([item[:2] for item in items], 10_000)) == len(items)
            engine.close()
    del engine
    gc.collect()
    assert (sys.getrefcount(KEY), sys.getrefcount(VALUE)) == counts


def test_reads_without_memory_raise_and_go_on() -> None:
    with engines.fresh_engine() as engine:
        engine.set_batch([(b"SET", b"k", VALUE), (b"SET", KEY, VALUE)])
        requests = [(b"GET", key) for key in (b"k", KEY, b"none")]
        gc.collect()  # of what tests before it have left
        counts = sys.getrefcount(KEY), sys.getrefcount(VALUE)
        for number in range(1, 30):
            assert isinstance(failing_at(number, engine.get_batch, requests, 10_000), MemoryError | None)
        assert engine.get_batch(requests, 10_000) == [VALUE, VALUE, None]
        assert (sys.getrefcount(KEY), sys.getrefcount(VALUE)) == counts
