"""What the fuzzer does with an input: each function here takes one, and raises if a twin differs from its reference.

An input is a tape: the choices are read off it, so that the fuzzer learns which bytes lead somewhere new. Some calls
are made with one allocation failing, after which the two may differ, but nothing may break; and some inputs are used
again and again, after which the heap may not have grown.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import select
import socket
from collections.abc import Callable
from itertools import compress, islice
from pathlib import Path
from threading import RLock
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import merklekv.net.server  # noqa: F401  it imports all that has twins
from merklekv import core
from merklekv.engine.clock import HybridClock
from merklekv.engine.format import BUCKETS, ENTRY, INNER_NODES, LEAF_SIZE, bucket_of
from merklekv.engine.merkle import LEAVES_PER_INNER, MerkleTree
from merklekv.engine.record import EXPIRY, FLAGS, make_record, make_version, pack_expiry, purge_marker
from merklekv.engine.table import Table
from merklekv.engine.time_gate import TimeGate
from merklekv.net.protocol import resp

assert core.IMPLEMENTATION == "compiled", core.WHY_PURE

REPEATS: Final = 20  # of an input whose memory is measured
MEASURED_EACH: Final = 500  # inputs
NOON: Final = 2 * 10**18  # ns: in the year 2033
WRITER: Final = bytes(range(12))
SHARE: Final = 64
NUMBERS: Final = (b"0", b"-0", b"-", b"01", b"-1", b"5", b"%d" % -(1 << 63), b"%d" % ((1 << 63) - 1), b"%d" % (1 << 63))

twins: Final[Any] = importlib.import_module(core.MODULE)
memory: Final[Any] = importlib.import_module("_testcapi")
references: Final[dict[str, Any]] = core.REFERENCES
_allocated: Final[Any] = ctypes.CDLL(None).__sanitizer_get_current_allocated_bytes
_allocated.restype = ctypes.c_size_t


class Tape:
    """Choices, read off an input. At its end they are all zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def number(self, end: int) -> int:
        """From 0 to below `end`."""
        return int.from_bytes(self.take(1 if end <= 256 else 4), "little") % end

    def take(self, size: int) -> bytes:
        """At most so many bytes."""
        self._at += size
        return self._data[self._at - size : self._at]

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def pick(self, choices: Any) -> Any:
        return choices[self.number(len(choices))]

    def key(self) -> bytes:
        return self.pick((b"", b"k", b"x" * 511, b"x" * 512)) if not self.number(8) else b"%d" % self.number(40)


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns, or the kind of exception that it raises."""
    try:
        return function(*arguments)
    except Exception as problem:  # noqa: BLE001  compared
        return type(problem)


def same(one: Any, other: Any) -> None:
    if one != other:
        raise AssertionError(f"twin: {one!r:.2000}\nreference: {other!r:.2000}")


def short_of_memory(tape: Tape, function: Callable[..., Any], *arguments: Any) -> None:
    """Calls with one allocation of Python failing."""
    number = tape.number(64)
    try:
        memory.set_nomemory(number, number + 1)
        function(*arguments)
    except MemoryError:
        pass
    finally:
        memory.remove_mem_hooks()


def measured(work: Callable[[Tape], None]) -> Callable[[bytes], None]:
    """Now and then does an input again and again: after the first times, the heap has to stay as it is."""
    done = 0

    def run(data: bytes) -> None:
        nonlocal done
        work(Tape(data))
        done += 1
        if done % MEASURED_EACH:
            return
        grown = []
        for _ in range(3):
            gc.collect()
            before = _allocated()
            for _ in range(REPEATS):
                work(Tape(data))
            gc.collect()
            grown.append(_allocated() - before)
        assert min(grown) < REPEATS * 16, f"the heap grows: {grown} bytes in {REPEATS} calls"

    return run


def _pure(module: ModuleType) -> Any:
    """A copy of a module that does not use the compiled core."""
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_pure", Path(str(module.__file__)))
    assert spec is not None
    assert spec.loader is not None
    pure = importlib.util.module_from_spec(spec)
    loaded, core._core = core._core, None
    try:
        spec.loader.exec_module(pure)
    finally:
        core._core = loaded
    return pure


pure_resp: Final = _pure(resp)


# -- the parser --------------------------------------------------------------------------------------------------------


@measured
def parser(tape: Tape) -> None:
    """Any cut of a stream gives the requests that the reference finds in all of it."""
    limits = tape.pick((4096, 8192, 64 * 1024)), tape.pick((3, 128, 1000)), resp.REQUEST_BYTES_MIN
    cuts = [tape.number(1024) for _ in range(tape.number(8))]
    data = tape.rest()
    expected = pure_resp.RespParser(*limits).feed(data)
    pieces = [data[begin:end] for begin, end in zip((0, *sorted(cuts)), (*sorted(cuts), len(data)), strict=True)]
    for way in ([data], pieces, [data[at : at + 1] for at in range(min(len(data), 600))] + [data[600:]]):
        twin, reference = resp.RespParser(*limits), pure_resp.RespParser(*limits)
        found: list[Any] = []
        for piece in way:
            mine = twin.feed(piece)
            same(mine, reference.feed(piece))
            found += mine
        same((twin.is_exact, twin.held_bytes), (reference.is_exact, reference.held_bytes))
        same(found, expected)
    for wrong in (None, bytearray(data), memoryview(data), data.decode("latin-1")):
        same(outcome(resp.RespParser(*limits).feed, wrong), TypeError)
    short_of_memory(tape, resp.RespParser(*limits).feed, data)


# -- the engine --------------------------------------------------------------------------------------------------------


@measured
def records(tape: Tape) -> None:
    twin, reference = twins.Records(), references["Records"]()
    while tape:
        key, value = tape.key(), tape.take(3)
        match tape.number(9):
            case 0:
                twin[key] = reference[key] = value
            case 1:
                first, most = tape.number(4) * 1000, 20_000 if tape.number(20) == 1 else 600
                count = tape.number(most)
                for number in range(first, first + count):
                    twin[b"%d" % number] = reference[b"%d" % number] = value
            case 2:
                same(twin.get(key), reference.get(key))
                same(twin.get(key, value), reference.get(key, value))
                same(outcome(twin.__getitem__, key), outcome(reference.__getitem__, key))
                same(key in twin, key in reference)
            case 3:
                while not (reference.prepare() and reference.group()):
                    pass
                low, end, limit = tape.key(), tape.pick((None, tape.key())), tape.number(5000)
                same(twin.items_from(low, end, limit), reference.items_from(low, end, limit))
                for other in (key, *islice(reference, 10)):
                    bucket = bucket_of(other)
                    same(sorted(twin.bucket(bucket)), sorted(reference.bucket(bucket)))
            case 4:
                same(list(twin), list(reference))
                same(list(twin.items()), list(reference.items()))
            case 5:  # it grows below an iterator
                keys, pairs = iter(twin), iter(twin.items())
                next(keys, None), next(pairs, None)
                for number in range(200):
                    twin[b"%d" % number] = reference[b"%d" % number] = value
                list(keys), list(pairs)
            case 6:
                wrong = tape.pick((None, "text", 5, bytearray(b"k")))
                for call in (twin.__getitem__, twin.get, twin.__contains__):
                    same(outcome(call, wrong), TypeError)
                same(outcome(twin.__setitem__, key, wrong), TypeError)
                twin[resp.Push(key)] = reference[key] = value
                assert type(next(iter(twin))) is bytes
            case 7:
                short_of_memory(tape, twin.__setitem__, key, value)
                if twin.get(key) == value:
                    reference[key] = value
            case 8:
                short_of_memory(tape, twin.items_from, key, None, 50)
                short_of_memory(tape, list, twin.items())
                same(sorted(reference.items()), twin.items_from(b"", None, len(twin)))
        same(len(twin), len(reference))


@measured
def leaves(tape: Tape) -> None:
    pairs = [(twins.Leaves(), references["Leaves"]()) for _ in range(2)]
    while tape:
        twin, reference = tape.pick(pairs)
        node = tape.number(INNER_NODES)
        bucket = node * LEAVES_PER_INNER + tape.number(LEAVES_PER_INNER)
        match tape.number(6):
            case 0:
                total, count = tape.pick((1, -1)) * int.from_bytes(tape.take(16)), tape.number(5) - 2
                twin.move(bucket, total, count)
                reference.move(bucket, total, count)
            case 1:
                other = tape.number(2)
                if pairs[other][0] is not twin:
                    twin.merge(pairs[other][0])
                    reference.merge(pairs[other][1])
            case 2:
                packed = tape.take(8) * (LEAVES_PER_INNER * LEAF_SIZE // 8)
                if len(packed) == LEAVES_PER_INNER * LEAF_SIZE:
                    twin.load(node, packed)
                    reference.load(node, packed)
            case 3:
                changed = bytes(reference.changed[node * LEAVES_PER_INNER : (node + 1) * LEAVES_PER_INNER])
                packed_leaves = bytearray(LEAVES_PER_INNER * LEAF_SIZE)
                same(twin.pack(node, packed_leaves), changed.count(1))
                for place in compress(range(LEAVES_PER_INNER), changed):
                    found = int.from_bytes(packed_leaves[place * LEAF_SIZE : (place + 1) * LEAF_SIZE])
                    same(found, reference.leaf(node * LEAVES_PER_INNER + place))
                reference.pack(node, packed_leaves)
            case 4:
                far = tape.pick((-1, BUCKETS, -(1 << 63), (1 << 63) - 1, 1 << 64))
                calls = (twin.move, far, 1, 1), (twin.leaf, far), (twin.load, far, b""), (twin.pack, far, bytearray())
                for call, *arguments in calls:
                    assert outcome(call, *arguments) in (IndexError, OverflowError)
                same(outcome(twin.load, node, bytes(5)), ValueError)
                same(outcome(twin.pack, node, bytearray(5)), ValueError)
                same(outcome(twin.move, bucket, None, 1), TypeError)
                same(outcome(twin.merge, None), TypeError)
                same(outcome(twin.move, bucket, 1, 1 << 64), OverflowError)
            case 5:
                short_of_memory(tape, twin.leaf, bucket)
        same(twin.leaf(bucket), reference.leaf(bucket))
    for twin, reference in pairs:
        same(twin.changed, reference.changed)


class Log:
    """As much of a log as `put_each` uses."""

    def __init__(self) -> None:
        self.lsn = 0
        self.pending: list[bytes] = []
        self.pending_size = self.appended = self.sequence = 0
        self.room = self.urgent_room = 2000

    def reserve(self, size: int, urgent: bool) -> None:
        if size > 20_000:
            raise ValueError("full")
        self.room += 1000
        self.urgent_room += 1500


class Base:
    """As much of a base as a table uses."""

    def __init__(self, contents: dict[bytes, bytes], kept: Any) -> None:
        self.get = contents.get
        self.kept = kept
        self.truncation = self.newest = bytes(24)

    def read(self, key: bytes) -> bytes | None:
        record: bytes | None = self.kept.get(key)
        if record is None:
            record = self.get(key)
            if record is not None:
                if len(self.kept) == 3:
                    self.kept = type(self.kept)()
                self.kept[key] = record
        return record


class Side:
    """A table, with its part of the core compiled or not."""

    def __init__(self, compiled: bool, base: dict[bytes, bytes]) -> None:
        self.now = NOON
        clock = HybridClock(TimeGate(wall_clock=lambda: self.now))
        clock.writer = WRITER
        self.log = Log()
        self.make: Any = twins.Records if compiled else references["Records"]
        stand_ins: list[Any] = [Base(base, self.make()), self.log, clock, SimpleNamespace(closed=False), RLock()]
        table_type: Any = Table
        self.table = table_type(*stand_ins, max_value_size=1000, has_thread=False)
        self.table.tree = MerkleTree({})
        core_ = twins if compiled else SimpleNamespace(**references)
        self.put, self.get, self.sums = core_.put_each, core_.get_each, core_.sums
        if not compiled:
            self.table.tree.leaves = references["Leaves"]()
        self.table.active.records = self.table.records = self.make()

    def freeze(self) -> None:
        """The active memtable becomes the newest frozen one."""
        self.table.frozen.insert(0, self.table.active)
        self.table.active = type(self.table.active)(0)
        self.table.active.records = self.table.records = self.make()

    def hide(self) -> None:
        """Reads find nothing without the lock."""
        self.table.records = self.make()

    def leaf(self, bucket: int) -> int:
        return int(self.table.tree.leaves.leaf(bucket))

    def state(self) -> tuple[Any, ...]:
        table, log, active = self.table, self.log, self.table.active
        return (
            (log.pending, log.pending_size, log.appended, log.sequence, log.room, log.urgent_room),
            (list(active.records.items()), active.size, active.expiries.new, active.tombstones),
            (table.clock.counter, table.clock.newest, table.live_count, table.tombstone_count, table.expired_count),
            [self.leaf(bucket) for bucket in compress(range(BUCKETS), table.tree.leaves.changed)],
            bytes(table.tree.leaves.changed),
        )


def _items(tape: Tape, made: bool) -> list[tuple[Any, ...]]:
    items: list[tuple[Any, ...]] = []
    for _ in range(tape.number(70)):
        key = tape.key() if tape.number(16) else tape.pick((None, resp.Push(b"7")))
        value: Any = tape.take(tape.number(20)) * tape.pick((1, 1, 1, 60)) if tape.number(4) else tape.pick(NUMBERS)
        if made:
            version = make_version(NOON + tape.number(5) - 2, WRITER + tape.take(4).ljust(4, b"\0"))
            expiry = tape.pick((None, None, 1, NOON // 10**6 + 5))
            value = make_record(key or b"none", version, value, tombstone=not tape.number(4), expiry=expiry)
            if not tape.number(8):
                value = purge_marker(value)
            if not tape.number(32):
                value = value[: tape.number(25)]  # without flags; the reference takes those that have them
        items.append((b"", key, value) if tape.number(200) else tape.pick(((b"", key), (b"", key, value, b""))))
    return items


@measured
def put_and_get(tape: Tape) -> None:
    base = {
        b"%d" % number: make_record(b"%d" % number, make_version(NOON + number % 3 - 1, bytes(16)), b"v")
        for number in range(0, 40, 5)
    }
    base[b"35"], base[b"30"] = base[b"35"][:40], base[b"30"][:30]  # damaged
    sides = [Side(True, base), Side(False, base)]
    while tape:
        match tape.number(6):
            case 0 | 1:
                made = not tape.number(3)
                items = _items(tape, made)
                flags = FLAGS[0] if made else tape.pick(FLAGS)
                expiry = pack_expiry(tape.pick((1, NOON // 10**6 + 5))) if flags == FLAGS[EXPIRY] else b""
                is_list, urgent, op = tape.number(2), bool(tape.number(2)), tape.pick((1, 0x81))
                # A twin looks ahead in a list, and finds there at once what is no key, see `_core.pyx`.
                plain = all(len(item) == 3 and type(item[1]) is bytes for item in items)
                found = []
                for side in sides:
                    given = list(items) if is_list and plain else iter(items)
                    found.append(outcome(side.put, side.table, op, given, flags, expiry, made, urgent) is None)
                same(*found)
            case 2:
                requests = [[b"GET", tape.key()] for _ in range(tape.number(70))]
                room = tape.number(100)
                same(*[outcome(side.get, side.table, requests, room) for side in sides])
            case 3:
                for side in sides:
                    side.freeze()
            case 4:
                for side in sides:
                    side.now += 10**6
            case 5:
                for side in sides:
                    side.hide()
            case 6:
                keys, amount = (
                    [tape.key() for _ in range(tape.number(20))],
                    tape.pick((1, -1, (1 << 63) - 1, -(1 << 63))),
                )
                sums = []
                for side in sides:
                    totals: list[int] = []
                    items_of_sums = side.sums(side.table, keys, amount, totals)
                    sums.append((outcome(side.put, side.table, 1, items_of_sums, FLAGS[0], b"", False, False), totals))
                same(*sums)
        same(sides[0].log.pending, sides[1].log.pending)
    same(sides[0].state(), sides[1].state())
    items = [(b"", b"%d" % number, b"v") for number in range(50)]
    side = sides[0]
    short_of_memory(tape, side.put, side.table, 1, items, FLAGS[0], b"", False, False)
    short_of_memory(tape, side.get, side.table, [[b"", key] for _, key, _ in items], 1000)
    short_of_memory(tape, list, side.sums(side.table, [key for _, key, _ in items], 1, []))


@measured
def small_functions(tape: Tape) -> None:
    """`count_each`, `pack_frame`, `note_each`, `bulk_each`, `alike`, `answer_each`."""
    counted = [(tape.key(), tape.take(tape.number(60))) for _ in range(tape.number(5))]
    leaf, goes = tape.take(LEAF_SIZE).ljust(LEAF_SIZE, b"\xff"), bool(tape.number(2))
    both = [{node: bytearray(leaf * LEAVES_PER_INNER) for node in range(INNER_NODES)} for _ in range(2)]
    twins.count_each(both[0], counted, goes)
    references["count_each"](both[1], counted, goes)
    same(*both)
    same(outcome(twins.count_each, both[0], [(None, b"")], goes), TypeError)
    same(outcome(twins.count_each, both[0], [(b"", None)], goes), TypeError)
    short_of_memory(tape, twins.count_each, both[0], counted, goes)
    log = tape.take(tape.number(100))
    for _ in range(tape.number(20)):
        key, record = tape.key(), tape.take(tape.number(60))
        log += ENTRY.pack(tape.number(256), len(key), len(record)) + key + record
    at, end = sorted((tape.number(len(log) + 1), tape.pick((len(log), tape.number(len(log) + 1)))))
    noted = []
    for note_each, kind in ((twins.note_each, twins.Records), (references["note_each"], references["Records"])):
        places = kind()
        noted.append((outcome(note_each, log, at, end, 1, places), list(places.items())))
    same(*noted)
    same(outcome(twins.note_each, log, at, len(log) + 1, 1, twins.Records()), IndexError)
    short_of_memory(tape, outcome, twins.note_each, log, at, end, 1, twins.Records())
    entries = [tape.take(tape.number(300)) for _ in range(tape.number(20))]
    numbers = [tape.number(1 << 32) for _ in range(6)]
    same(twins.pack_frame(*numbers, entries), references["pack_frame"](*numbers, entries))
    values = [None if not tape.number(4) else tape.take(8) * tape.number(2000) for _ in range(tape.number(10))]
    sessions = [SimpleNamespace(nil=tape.pick((b"_\r\n", b"$-1\r\n"))) for _ in values]
    same(twins.bulk_each(values, sessions), references["bulk_each"](values, sessions))
    same(outcome(twins.bulk_each, ["text"], [None]), TypeError)
    same(outcome(twins.bulk_each, [None], []), IndexError)
    same(outcome(twins.pack_frame, *numbers, [None]), TypeError)
    same(outcome(twins.alike, [], 0, 5), IndexError)
    same(outcome(twins.alike, [[]], 0, 5), IndexError)
    requests = [[tape.pick((b"GET", b"get", b"SET"))] * (1 + tape.number(3)) for _ in range(1 + tape.number(20))]
    first, most = tape.number(len(requests)), tape.number(10)
    same(twins.alike(requests, first, most), references["alike"](requests, first, most))
    replies = [tape.take(4) for _ in range(tape.number(10))]
    found, spare = [], tape.number(2)
    for answer in (twins.answer_each, references["answer_each"]):
        connections = [twins.Channel() for _ in range(len(replies) + spare)]
        answered: list[Any] = []
        size = answer("entry", connections, replies, answered)
        found.append((size, [one.replies for one in connections], [connections.index(one) for one in answered]))
    same(*found)
    short_of_memory(tape, twins.pack_frame, *numbers, entries)
    short_of_memory(tape, twins.bulk_each, values, sessions)
    short_of_memory(tape, twins.alike, requests, first, most)
    connections = [twins.Channel() for _ in replies]
    short_of_memory(tape, twins.answer_each, "entry", connections, replies, [])


# -- sockets -----------------------------------------------------------------------------------------------------------


class Entry:
    """As much of a command as `Sockets` uses."""

    def __init__(self, batches: dict[int, int]) -> None:
        self.batches = batches


ENTRIES: Final = {b"GET": Entry({2: 1}), b"SET": Entry({})}


class Connected(twins.Channel):  # type: ignore[misc]
    """As much of a connection as `Sockets` uses, and its other end."""

    def __init__(self, parser_type: type, number: int) -> None:
        super().__init__()
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        self.socket, self.number = ours, number
        self.fd = ours.fileno()
        self.receive, self.send = ours.recv, ours.send
        self.feed = parser_type(4096, 1000, resp.REQUEST_BYTES_MIN).feed
        self.find = ENTRIES.get
        self.kept = b""

    def keep(self, data: bytes) -> None:
        self.kept += data
        self.unsent_bytes += len(data)

    def close(self) -> None:
        self.socket.close()
        self.peer.close()


class Worker:
    """Connections, compiled or not."""

    def __init__(self, compiled: bool, count: int) -> None:
        self.sockets = (twins.Sockets if compiled else references["Sockets"])(5 * SHARE)
        parser_type = (resp if compiled else pure_resp).RespParser
        self.all = [Connected(parser_type, number) for number in range(count)]
        self.by_fd = {one.fd: one for one in self.all}

    def read(self, odd_event: bool) -> tuple[Any, ...]:
        events = [(one.fd, select.EPOLLIN) for one in self.all if one.fd >= 0]
        if odd_event:
            events += [(100_000, select.EPOLLIN), (self.all[0].fd, select.EPOLLHUP)]
        singles: dict[Any, Any] = {}
        pipelines: list[Any] = []
        odd: list[Any] = []
        ended: list[Any] = []
        received = self.sockets.read_each(events, self.by_fd, SHARE, 5, singles, pipelines, odd, ended)
        for connections, requests in singles.values():
            assert len(connections) == len(requests)
        return (
            received,
            [(entry, [one.number for one in found[0]], found[1]) for entry, found in singles.items()],
            [(one.number, requests) for one, requests in pipelines],
            len(odd),
            [(one.number, type(problem)) for one, problem in ended],
        )

    def write(self) -> tuple[Any, ...]:
        looks: list[Any] = []
        given = self.sockets.send_each(list(self.all), looks)
        return given, {(one.number, type(problem)) for one, problem in looks}, [one.kept for one in self.all]

    def close(self) -> None:
        for one in self.all:
            one.close()


@measured
def sockets(tape: Tape) -> None:
    count = 1 + tape.number(12)
    workers = [Worker(True, count), Worker(False, count)]
    try:
        while tape:
            number, choice = tape.number(count), tape.number(9)
            data = tape.pick(
                (b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n", b"x\r\n")
            )
            data = data * (1 + tape.number(4)) if tape.number(4) else tape.take(9)
            size, part, wrong = tape.number(3000), tape.number(30), tape.pick((None, "text"))
            for worker in workers:
                one = worker.all[number]
                match choice:
                    case 0 | 1:
                        outcome(one.peer.send, data)
                    case 2:
                        outcome(one.peer.send, data[:part])
                    case 3:
                        one.peer.close()
                    case 4:
                        outcome(one.peer.shutdown, socket.SHUT_WR)
                    case 5 | 6:
                        one.replies += [b"r" * size, resp.Push(b"push")][: 1 + part % 2]
                    case 7:
                        one.needs_attention = not one.needs_attention
                    case 8 if part == 0 and not one.needs_attention:  # what cannot be sent
                        one.replies.append(wrong)
            if choice == 8:
                same(workers[0].read(bool(part % 2)), workers[1].read(bool(part % 2)))
            elif choice == 5:
                same(workers[0].write(), workers[1].write())
        same(workers[0].read(True), workers[1].read(True))
        same(workers[0].write(), workers[1].write())
        for one in workers[0].all:
            outcome(one.peer.send, b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")
            one.replies.append(b"reply")
        short_of_memory(tape, workers[0].read, True)
        short_of_memory(tape, workers[0].write)
    finally:
        for worker in workers:
            worker.close()
