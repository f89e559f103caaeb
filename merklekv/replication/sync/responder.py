"""The responder: answers the exchanges that other nodes begin.

It answers in slices of a few milliseconds, and keeps nothing between two requests but which nodes have sent one: one
may be lost, cut or repeated, and several exchanges may go on at once.  What an answer says was merged is
committed, and what the initiator may rely on (closed timestamps, what was applied) is flushed.

Memory: one answer, about BATCH_BYTES and the largest record.  Cost: 1 us to read a record, 8 us to merge one, 2 us to
compare one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Final, TypeVar

from merklekv.engine.clock import WRITER_SIZE
from merklekv.engine.engine import Engine
from merklekv.engine.format import BUCKETS, INNER_NODES, MAX_KEY_SIZE
from merklekv.engine.record import HEAD_SIZE, VERSION_SIZE, Pair, digest_of, head_of
from merklekv.errors import Shortage, Stalled
from merklekv.replication.cluster.members import Identity, Members, TooManyMembers
from merklekv.replication.cluster.refused import RefusedRecord, decode_refused, split_by_size
from merklekv.replication.plain_cbor import Fields, Malformed
from merklekv.replication.sync.local_endpoint import SLICE_MERGES, LocalEndpoint, Outdated
from merklekv.replication.sync.messages import (
    BATCH_BYTES,
    BATCH_RECORDS,
    INNER_DIGEST_SIZE,
    MESSAGE_ROOM_BYTES,
    PRINT_SIZES,
    ExchangeRefused,
    Hello,
    decode,
    decode_hello_in_slices,
    encode,
    encode_refusal,
    flat,
    pack,
    parts,
)

INLINE_BYTES: Final = 1024  # a record up to this size goes out at once, a larger one when it is wanted
SERVING_S: Final = 1.0  # an exchange goes on if it had a step so recently
SILENT_S: Final = 5.0  # likewise, if something differs: its initiator rests, and one of the nodes may be busy
EXCLUSIVE_S: Final = 50.0  # an exchange that goes on has the two nodes for itself for so long; SYNC waits longer
BUSY: Final = "busy"
ITSELF: Final = "itself"
SLICE_INNER: Final = 32
SLICE_BUCKETS: Final = 64
SLICE_PRINTS: Final = 8192
BUCKET_PRINTS_MAX: Final = 1 << 18  # as if all held seventeen billion records
SLICE_READS: Final = 1000

T = TypeVar("T")
Pause = Callable[[], bool] | None
Slices = Generator[Pause, None, T]


class Responder:
    """Answers requests, and knows which exchanges go on.  Thread-safe, as its engine is.

    It refuses the node itself, which has reached its own address.  If two nodes begin an exchange with each other at
    once, the one with the smaller id refuses that of the other.
    """

    def __init__(
        self,
        engine: Engine,
        members: Members,
        cluster: str,
        has_begun: Callable[[str], bool],
        is_engaged: Callable[[str], bool],
        on_served: Callable[[Identity], None],
    ) -> None:
        """`has_begun`: is one with that node under way, begun here?  `is_engaged`: does one with another node have to
        end first?  `on_served`: one that a node began is complete.
        """
        self._engine = engine
        self._members = members
        self._endpoint = LocalEndpoint(engine, members, cluster)
        self._has_begun = has_begun
        self._is_engaged = is_engaged
        self._on_served = on_served
        self._serving: dict[str, float] = {}  # nodes, with the time of the last request of any (monotonic)
        self._began: dict[str, float] = {}  # likewise, with that of the first, until all is done
        self._handlers: dict[str, Callable[[Fields], Slices[bytes]]] = {
            "hello": partial(self._serve_peer, self._hello),
            "inner": partial(self._serve_step, self._inner),
            "buckets": partial(self._serve_step, self._buckets),
            "transfer": partial(self._serve_step, self._transfer),
            "scan": partial(self._serve_step, self._scan),
            "done": partial(self._serve_peer, self._done),
        }

    def is_serving(self, node: str) -> bool:
        """Predicate: does an exchange that this node has begun go on?"""
        patience = SILENT_S if node in self._began else SERVING_S
        return time.monotonic() - self._serving.get(node, float("-inf")) < patience

    def serves_another(self, node: str) -> bool:
        """Predicate: does an exchange of another node go on, and not for EXCLUSIVE_S yet?"""
        since = time.monotonic() - EXCLUSIVE_S
        return any(other != node and at > since and self.is_serving(other) for other, at in self._began.items())

    def answer(self, message: bytes) -> Slices[bytes]:
        """The answer to a message.  Yields None to let others run, or a function that says when it can go on.

        If a request cannot be served, the answer says why.  Raises StorageFailed.
        """
        try:
            kind, fields = decode(message, self._engine.max_value_size + MESSAGE_ROOM_BYTES)
            handler = self._handlers.get(kind)
            if handler is None:
                raise Malformed(f"no request is called '{kind}'")
            return (yield from handler(fields))
        except (Malformed, ExchangeRefused, TooManyMembers, Shortage) as problem:
            return encode_refusal(problem, self._members.identity.node)
        except Outdated:
            return encode("outdated")

    def _serve_step(self, serve: Callable[[Fields], Slices[bytes]], fields: Fields) -> Slices[bytes]:
        """The answer to a request in the middle of an exchange."""
        try:
            return (yield from serve(fields))
        finally:
            self._keep_serving()

    def _serve_peer(self, serve: Callable[[Fields, Hello], Slices[bytes]], fields: Fields) -> Slices[bytes]:
        """The answer to the first or the last request of an exchange; only these name the node that has begun it."""
        peer = yield from decode_hello_in_slices(fields.map("hello"))
        yield None  # a table of members may be large: each look at all of it is a slice
        who, own = peer.table.identity, self._members.identity
        closed = (self._members.closed, self._members.proposed)
        if who == own and peer.table.report.closed in closed:
            raise ExchangeRefused(ITSELF, f"node {own.node} has reached itself at this address")
        if self._has_begun(peer.node) and own.node < peer.node and not self.is_serving(peer.node):
            raise ExchangeRefused(BUSY, f"node {own.node} has just begun an exchange by itself")
        before = self._members.applied_through(who)
        try:
            answer = yield from serve(fields, peer)
        finally:  # it may be complete, and its initiator gone before the answer is ready
            if self._members.applied_through(who) > before:
                self._on_served(who)
        self._keep_serving(peer.node)
        return answer

    def _hello(self, fields: Fields, peer: Hello) -> Slices[bytes]:
        endpoint, engine = self._endpoint, self._engine
        if self._is_engaged(peer.node):
            raise ExchangeRefused(BUSY, f"node {self._members.identity.node} exchanges with another node")
        endpoint.observe_clock(peer)
        known, peer = peer.table, endpoint.accept(peer)
        yield None
        endpoint.require_own_clock_near(peer)
        if peer.truncation > engine.truncation:
            yield from self._writing(partial(engine.merge_truncation, peer.truncation, peer.node.encode()))
        endpoint.add_members(peer)
        endpoint.catch_up(peer)
        yield from self._collect()
        while engine.is_counting:
            yield lambda: not engine.is_counting
        for _ in engine.prepare_root():
            yield None
        hello, equal = endpoint.answer(peer)
        engine.flush()
        if equal:
            self._began = _without(self._began, peer.node)
        elif not (peer.node in self._began and self.is_serving(peer.node)):  # else it has only begun again
            self._began = self._began | {peer.node: time.monotonic()}
        yield None
        return encode("hello", equal=int(equal), hello=hello.plain(known))

    def _inner(self, fields: Fields) -> Slices[bytes]:
        yield from self._require_current(fields)
        theirs = parts(fields.binary("digests", INNER_NODES * INNER_DIGEST_SIZE), INNER_DIGEST_SIZE)
        unknown = encode("inner", ready=0, nodes=b"", leaves=b"")
        mine = self._engine.inner_digests()
        if mine is None:
            return unknown
        pairs = zip(mine, theirs, strict=True)
        nodes = bytes(node for node, (own, other) in enumerate(pairs) if own[:INNER_DIGEST_SIZE] != other)
        leaves: list[bytes] = []
        for number, node in enumerate(nodes, 1):
            below = self._engine.leaf_digests(node)
            if below is None:  # since it was rolled back or truncated
                return unknown
            leaves.append(below)
            if not number % SLICE_INNER:
                yield None
        return encode("inner", ready=1, nodes=nodes, leaves=b"".join(leaves))

    def _buckets(self, fields: Fields) -> Slices[bytes]:
        yield from self._require_current(fields)
        size = fields.number("size", max(PRINT_SIZES))
        prints = fields.binary("prints")
        counts, buckets = _numbers(fields, "counts", 4), _numbers(fields, "buckets", 2)
        if size not in PRINT_SIZES or len(prints) != size * sum(counts) or len(counts) != len(buckets):
            raise Malformed("the fingerprints are not as many as it says")
        if max(counts, default=0) > BUCKET_PRINTS_MAX:
            raise Malformed(f"more than {BUCKET_PRINTS_MAX} fingerprints of a bucket")
        while not self._engine.prepare_buckets():
            yield None
        lacks: list[int] = []
        records: list[bytes] = []
        heads: list[bytes] = []
        done = at = found = 0
        while done < len(buckets) and found < BATCH_BYTES:
            slice_ends = at + SLICE_PRINTS
            with self._engine.lock:
                for bucket, count in zip(buckets[done:][:SLICE_BUCKETS], counts[done:][:SLICE_BUCKETS], strict=True):
                    theirs = parts(prints[at * size : (at + count) * size], size)
                    known, mine = set(theirs), set()
                    for key, head in self._engine.bucket(bucket):
                        mark = digest_of(head)[:size]
                        mine.add(mark)
                        if mark not in known:
                            found += self._add(key, records, heads)
                    lacks += [at + number for number, mark in enumerate(theirs) if mark not in mine]
                    at += count
                    done += 1
                    if found >= BATCH_BYTES or at >= slice_ends:
                        break
            yield None
        packed = b"".join([number.to_bytes(4, "big") for number in lacks])
        return encode("buckets", done=done, lacks=packed, records=records, heads=heads)

    def _add(self, key: bytes, records: list[bytes], heads: list[bytes]) -> int:
        """Add a record to an answer, without its value if that is large.  Returns the bytes added."""
        record = self._engine.record(key)
        if record is None:
            return 0
        small = len(record) <= INLINE_BYTES
        (records if small else heads).extend((key, record if small else head_of(record)))
        return len(key) + (len(record) if small else HEAD_SIZE)

    def _transfer(self, fields: Fields) -> Slices[bytes]:
        gc_horizon = yield from self._require_current(fields)
        origin = fields.node_id("origin").encode()
        new_gc_horizon = fields.number("new_gc_horizon")
        self._endpoint.believe_time(origin.decode(), new_gc_horizon)
        max_value_size = fields.number("max_value_size")
        given, stale, wants = fields.pairs("records"), fields.pairs("stale"), fields.strings("wants")
        endpoint = self._endpoint
        applied = discarded = 0
        refused: list[RefusedRecord] = []
        too_large: list[RefusedRecord] = []
        for part in parts(given, SLICE_MERGES):
            merged = yield from self._writing(partial(endpoint.merge, part, origin, gc_horizon, new_gc_horizon))
            applied += merged[0]
            refused += merged[1]
            yield None
        for key, version in stale:
            if not 0 < len(key) <= MAX_KEY_SIZE or len(version) != VERSION_SIZE:
                raise Malformed("stale records that are none")
        for part in parts(stale, SLICE_MERGES):
            deleted = yield from self._writing(partial(endpoint.redelete, part, origin, gc_horizon, new_gc_horizon))
            discarded += deleted[0]
            refused += deleted[1]
            yield None
        found: list[Pair] = []
        served = size = 0
        while served < min(len(wants), BATCH_RECORDS) and size < BATCH_BYTES:
            some = wants[served:][:SLICE_READS]
            pairs, larger, tried = endpoint.read(some, max_value_size, origin.decode(), BATCH_BYTES - size)
            found += pairs
            too_large += larger
            served += tried
            size += sum(len(key) + len(record) for key, record in pairs)
            yield None
        self._engine.commit()
        counts = {"applied": applied, "discarded": discarded, "served": served}
        return encode("transfer", **counts, refused=refused, records=flat(found), too_large=too_large)

    def _scan(self, fields: Fields) -> Slices[bytes]:
        yield from self._require_current(fields)
        following: bytes | None = fields.binary("after", *range(MAX_KEY_SIZE + 1))
        max_value_size, reader = fields.number("max_value_size"), fields.node_id("origin")
        found: list[Pair] = []
        too_large: list[RefusedRecord] = []
        size = 0
        while following is not None and size < BATCH_BYTES and len(found) + len(too_large) < BATCH_RECORDS:
            pairs, following = self._engine.records_page(b"", following, SLICE_READS, BATCH_BYTES)
            pairs, larger = split_by_size(pairs, max_value_size, reader)
            found += pairs
            too_large += larger
            size += sum(len(record) for _, record in pairs)
            yield None
        return encode("scan", records=flat(found), too_large=too_large, following=following or b"")

    def _done(self, fields: Fields, peer: Hello) -> Slices[bytes]:
        before = yield from self._gc_horizon_of(fields)
        endpoint = self._endpoint
        known, peer = peer.table, endpoint.accept(peer)
        yield None
        gc_horizon = endpoint.believe_time(peer.node, fields.number("new_gc_horizon"))
        refused, closed = decode_refused(fields, "refused"), fields.number("closed")
        table = endpoint.complete(peer.table, gc_horizon, refused, closed)
        if before < gc_horizon:
            yield from self._collect()  # as the initiator has
        self._engine.flush()
        self._began = _without(self._began, peer.node)
        yield None
        return encode("done", table=pack(table, known))

    def _require_current(self, fields: Fields) -> Slices[int]:
        """The GC horizon since the exchange began.  Raises Outdated if it has moved, or this node was restarted."""
        gc_horizon = yield from self._gc_horizon_of(fields)
        if gc_horizon != self._engine.gc_horizon:
            raise Outdated
        return gc_horizon

    def _gc_horizon_of(self, fields: Fields) -> Slices[int]:
        yield None
        gc_horizon = fields.number("gc_horizon")
        if fields.binary("to", WRITER_SIZE) != self._engine.clock.writer:
            raise Outdated
        return gc_horizon

    def _collect(self) -> Slices[None]:
        for collect in (self._engine.collect_tombstones, self._engine.collect_expired):
            while (yield from self._writing(collect)):
                yield None

    def _writing(self, call: Callable[[], T]) -> Slices[T]:
        """Make a call; if the engine is stalled, again when there is room."""
        engine = self._engine
        while True:
            try:
                return call()
            except Stalled:
                yield lambda: not engine.makes_wait

    def _keep_serving(self, *begun: str) -> None:
        """A request was answered.  Most do not name their node, so each keeps all exchanges alive, and `begun`."""
        alive = [node for node in self._serving if self.is_serving(node)]
        self._serving = dict.fromkeys([*alive, *begun], time.monotonic())
        self._began = {node: at for node, at in self._began.items() if node in self._serving}


def _without(times: dict[str, float], node: str) -> dict[str, float]:
    return {one: at for one, at in times.items() if one != node}


def _numbers(fields: Fields, name: str, size: int) -> list[int]:
    data = fields.binary(name)
    if len(data) % size or len(data) > size * BUCKETS:
        raise Malformed(f"{name} has {len(data)} bytes")
    return [int.from_bytes(part, "big") for part in parts(data, size)]
