"""The side of an exchange that is asked.

`Responder.answer` makes one answer to one request, in slices of a few milliseconds, and keeps nothing between two
requests: a request that is lost, cut, repeated or the last one ever does no harm, and any number of exchanges may go on
at the same time.  It carries no bytes itself; see exchange_wire.py for the messages and exchange.py for the other side.

Nothing is promised before it is durable: what an answer says was merged has been committed, and what is told to be
remembered (the clock, what was seen) has been flushed.

Memory: one answer, about REPLY_BYTES and the largest record.  Cost: 1 us a record that is read, 8 us one that is
merged, 2 us one that is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Final, TypeVar

from merklekv.engine.base import Pair
from merklekv.engine.clock import WRITER_SIZE
from merklekv.engine.engine import Engine
from merklekv.engine.format import BUCKETS, INNER_NODES, MAX_KEY_SIZE
from merklekv.engine.record import HEAD_SIZE, VERSION_SIZE, digest_of, head_of
from merklekv.errors import Shortage, Stalled
from merklekv.replication.cluster.members import Members, TooManyMembers
from merklekv.replication.fields import Fields, Malformed
from merklekv.replication.sync.local_endpoint import LocalEndpoint, Moved, Refused
from merklekv.replication.sync.messages import (
    FULL,
    MESSAGE_ROOM_BYTES,
    ExchangeRefused,
    decode,
    encode,
    encode_refusal,
    flat,
    hello_of,
    pack,
)

INNER_DIGEST_SIZE: Final = 16  # of the 32 bytes
LEAF_DIGEST_SIZE: Final = 8
PRINT_SIZES: Final = (8, 16)  # of a record's digest: enough to tell records apart; all of it
REPLY_BYTES: Final = 512 << 10  # an answer ends behind so many bytes of records
REPLY_RECORDS: Final = 4000
INLINE_BYTES: Final = 1024  # a record up to this size goes out at once, a larger one only when it is asked for
SLICE_INNER: Final = 32
SLICE_BUCKETS: Final = 64
SLICE_MERGES: Final = 250
SLICE_READS: Final = 1000

T = TypeVar("T")
Pause = Callable[[], bool] | None
Slices = Generator[Pause, None, T]


class Responder:
    """A node that answers.  Thread-safe, as its engine is."""

    def __init__(self, engine: Engine, members: Members, cluster: str) -> None:
        self._engine = engine
        self._side = LocalEndpoint(engine, members, cluster)
        self._kinds: dict[str, Callable[[Fields], Slices[bytes]]] = {
            "hello": self._hello,
            "inner": self._inner,
            "buckets": self._buckets,
            "swap": self._swap,
            "pull": self._pull,
            "done": self._done,
        }

    def answer(self, payload: bytes) -> Slices[bytes]:
        """The answer to a request.  Yields None to let others run, or a function that says when it can go on.

        A request that cannot be served is answered too, with what is wrong.  Raises StorageFailed.
        """
        try:
            kind, fields = decode(payload, self._engine.max_value_size + MESSAGE_ROOM_BYTES)
            handler = self._kinds.get(kind)
            if handler is None:
                raise Malformed(f"no request is called '{kind}'")
            return (yield from handler(fields))
        except Malformed as problem:
            return encode_refusal("damaged", str(problem))
        except (ExchangeRefused, TooManyMembers, Shortage) as problem:
            return encode_refusal(getattr(problem, "why", FULL), str(problem))
        except Moved:
            return encode("moved")

    def _hello(self, fields: Fields) -> Slices[bytes]:
        peer = hello_of(fields)
        side, engine = self._side, self._engine
        known, peer = peer.table, side.judge(peer)
        side.judge_own_clock(peer)
        if peer.truncation > engine.truncation:
            yield from self._writing(partial(engine.merge_truncation, peer.truncation, peer.node.encode()))
        side.meet(peer)
        if side.is_current(peer):
            side.adopt(peer.table, peer.gc_horizon)
        yield from self._collect()
        for _ in engine.prepare_root():
            yield None
        hello, equal = side.answer(peer)
        engine.flush()
        return encode("hello", equal=int(equal), **hello.plain(known))

    def _inner(self, fields: Fields) -> Slices[bytes]:
        yield from self._expected(fields)
        theirs = fields.binary("digests", INNER_NODES * INNER_DIGEST_SIZE)
        with self._engine.lock:
            if not self._engine.root_ready:
                return encode("inner", ready=0, nodes=b"", leaves=b"")
            mine = self._engine.inner_digests()
        nodes = bytes(
            node
            for node in range(INNER_NODES)
            if mine[node][:INNER_DIGEST_SIZE] != theirs[node * INNER_DIGEST_SIZE :][:INNER_DIGEST_SIZE]
        )
        leaves: list[bytes] = []
        for number, node in enumerate(nodes, 1):
            leaves.append(self._engine.leaf_digests(node))
            if not number % SLICE_INNER:
                yield None
        return encode("inner", ready=1, nodes=nodes, leaves=b"".join(leaves))

    def _buckets(self, fields: Fields) -> Slices[bytes]:
        yield from self._expected(fields)
        size = fields.number("size", max(PRINT_SIZES))
        prints = fields.binary("prints")
        counts = [int.from_bytes(count, "big") for count in _pieces(fields.binary("counts"), 4, "counts")]
        buckets = [int.from_bytes(bucket, "big") for bucket in _pieces(fields.binary("buckets"), 2, "buckets")]
        if size not in PRINT_SIZES or len(prints) != size * sum(counts) or len(counts) != len(buckets):
            raise Malformed("the fingerprints are not as many as it says")
        while not self._engine.prepare_buckets():
            yield None
        lacks: list[int] = []
        records: list[bytes] = []
        heads: list[bytes] = []
        done = at = found = 0
        while done < len(buckets) and found < REPLY_BYTES:
            with self._engine.lock:
                for bucket, count in zip(buckets[done:][:SLICE_BUCKETS], counts[done:][:SLICE_BUCKETS], strict=True):
                    theirs = {prints[at + size * number :][:size] for number in range(count)} if count else set()
                    mine = set()
                    for key, head in self._engine.bucket(bucket):
                        mark = digest_of(head)[:size]
                        mine.add(mark)
                        if mark not in theirs:
                            found += self._add(key, records, heads)
                    first = at // size
                    lacks += [
                        first + number for number in range(count) if prints[at + size * number :][:size] not in mine
                    ]
                    at += size * count
                    done += 1
                    if found >= REPLY_BYTES:
                        break
            yield None
        packed = b"".join([number.to_bytes(4, "big") for number in lacks])
        return encode("buckets", done=done, lacks=packed, records=records, heads=heads)

    def _add(self, key: bytes, records: list[bytes], heads: list[bytes]) -> int:
        """Adds what is stored under a key to an answer, without its value if that is large; how many bytes that is."""
        record = self._engine.record(key)
        if record is None:
            return 0
        small = len(record) <= INLINE_BYTES
        (records if small else heads).extend((key, record if small else head_of(record)))
        return len(key) + (len(record) if small else HEAD_SIZE)

    def _swap(self, fields: Fields) -> Slices[bytes]:
        gc_horizon = yield from self._expected(fields)
        origin = _origin(fields)
        settled = fields.number("settled", self._engine.clock.latest_ns())
        give, dead, wants = fields.pairs("give"), fields.pairs("dead"), fields.strings("wants")
        side = self._side
        applied = discarded = 0
        refused: Refused = []
        for at in range(0, len(give), SLICE_MERGES):
            slice_ = give[at : at + SLICE_MERGES]
            taken = yield from self._writing(partial(side.take, slice_, origin, gc_horizon, settled))
            applied += taken[0]
            refused += taken[1]
            yield None
        if dead:
            for key, version in dead:
                if not 0 < len(key) <= MAX_KEY_SIZE or len(version) != VERSION_SIZE:
                    raise Malformed("records to bury that are none")
            for at in range(0, len(dead), SLICE_MERGES):
                slice_ = dead[at : at + SLICE_MERGES]
                discarded += yield from self._writing(partial(side.bury, slice_, origin, gc_horizon))
                yield None
        found, served = yield from self._read(wants)
        self._engine.commit()
        reasons = [word for key, reason in refused for word in (key, reason.encode())]
        return encode("swap", applied=applied, discarded=discarded, refused=reasons, served=served, records=flat(found))

    def _read(self, keys: list[bytes]) -> Slices[tuple[list[Pair], int]]:
        found: list[Pair] = []
        size = served = 0
        for key in keys:
            record = self._engine.record(key)
            if record is not None:
                found.append((key, record))
                size += len(key) + len(record)
            served += 1
            if size >= REPLY_BYTES:
                break
            if not served % SLICE_READS:
                yield None
        return found, served

    def _pull(self, fields: Fields) -> Slices[bytes]:
        yield from self._expected(fields)
        following: bytes | None = fields.binary("after", *range(MAX_KEY_SIZE + 1))
        found: list[Pair] = []
        size = 0
        while following is not None and size < REPLY_BYTES and len(found) < REPLY_RECORDS:
            pairs, following = self._engine.records_page(b"", following, SLICE_READS, REPLY_BYTES)
            found += pairs
            size += sum(len(record) for _, record in pairs)
            yield None
        return encode("pull", records=flat(found), following=following)

    def _done(self, fields: Fields) -> Slices[bytes]:
        before = yield from self._expected(fields, done=True)
        peer = hello_of(fields.map("hello"))
        side = self._side
        known, peer = peer.table, side.judge(peer)
        gc_horizon = side.believe_time(peer.table, fields.number("settled"))
        table = side.finish(peer.table, gc_horizon)
        if before < gc_horizon:
            yield from self._collect()  # the other has, too
        self._engine.flush()
        return encode("done", table=pack(table, known))

    def _expected(self, fields: Fields, done: bool = False) -> Slices[int]:
        """Raises Moved unless this node is as it was when the exchange began; the horizon since then."""
        yield None
        gc_horizon = fields.number("gc_horizon")
        if fields.binary("to", WRITER_SIZE) != self._side.instance:
            raise Moved
        if gc_horizon != self._engine.gc_horizon and not done:
            raise Moved
        return gc_horizon

    def _collect(self) -> Slices[None]:
        while (yield from self._writing(self._engine.collect)):
            yield None

    def _writing(self, call: Callable[[], T]) -> Slices[T]:
        """Makes a call that may find merging behind, again when there is room."""
        engine = self._engine
        while True:
            try:
                return call()
            except Stalled:
                yield lambda: not engine.makes_wait


def _pieces(data: bytes, size: int, name: str) -> list[bytes]:
    if len(data) % size or len(data) > size * BUCKETS:
        raise Malformed(f"{name} has {len(data)} bytes")
    return [data[at : at + size] for at in range(0, len(data), size)]


def _origin(fields: Fields) -> bytes:
    return fields.node_id("from").encode()
