"""The initiator: one exchange with another node, after which both hold the union of what they held when it began.

The nodes compare their data as trees, so the cost follows the difference and not the size: `hello`, which is all if the
roots are equal, then `inner`, `buckets` and `transfer` for what differs, and `done` (messages.py).  If one node holds
next to nothing, whole pages of records in key order take the place of comparing (`scan`), until they
become too many: a client that appends keys may be faster.  The larger version stands, whatever is written meanwhile.

The caller transports requests and answers, and rests in between.  It may end at any step: what was merged stays, and
the next exchange finds what is still missing.  Only a complete one moves applied-through, and with it the GC horizon.

When the disk of this node is full, it goes on with the peer's deletions, which make room, and fails in the end.

Memory: two batches.  Cost: one differing record among a million takes four rounds and 8 KiB; a million records into an
empty node, 8 us each.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from merklekv.engine.engine import Engine
from merklekv.engine.format import BUCKETS, INNER_NODES, MAX_KEY_SIZE
from merklekv.engine.merkle import LEAVES_PER_INNER
from merklekv.engine.record import HEAD_SIZE, Pair, digest_of, is_tombstone, version_of
from merklekv.errors import DiskFull, Stalled
from merklekv.output import counted
from merklekv.replication.cluster.exceptions import bounded
from merklekv.replication.cluster.members import Members, TooManyMembers
from merklekv.replication.cluster.refused import REFUSED_MAX, TOO_LARGE, RefusedRecord, decode_refused, split_by_size
from merklekv.replication.plain_cbor import Fields, Malformed
from merklekv.replication.sync.deletion_rule import NONE_STALE, stale_records
from merklekv.replication.sync.local_endpoint import SLICE_MERGES, LocalEndpoint, Outdated
from merklekv.replication.sync.messages import (
    BATCH_BYTES,
    BATCH_RECORDS,
    DAMAGED,
    FULL,
    INNER_DIGEST_SIZE,
    LEAF_DIGEST_SIZE,
    MESSAGE_ROOM_BYTES,
    PRINT_SIZES,
    ExchangeFailed,
    ExchangeRefused,
    Hello,
    decode,
    decode_hello,
    encode,
    flat,
    parts,
    unpack,
)

PASSES_MAX: Final = 5  # in one exchange: it begins again when a GC horizon moves, and to verify
STALL_WAIT_S: Final = 60.0
COUNT_WAIT_S: Final = 5.0  # for the root after a start; without it an exchange compares all buckets
BATCH_PRINTS: Final = 8192  # fingerprints in one request, but for those of its last bucket
BATCH_BUCKETS: Final = 1024
LEAVES_SIZE: Final = LEAVES_PER_INNER * LEAF_DIGEST_SIZE  # bytes, of one inner node
PAGES_RATIO: Final = 8  # if one node holds so many times more records than the other, they go page by page
PAGES_GROWTH: Final = 2  # until it is so many times the records that there were: then they compare the rest

T = TypeVar("T")
Steps = Generator[bytes, bytes, T]


@dataclass
class ExchangeReport:
    """What an exchange has done."""

    node: str = ""  # the other node
    rounds: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    keys_sent: int = 0  # that were new there
    keys_received: int = 0  # that were new here
    discarded: int = 0  # stale records that were re-deleted, here or there
    equal: bool = False  # both nodes held the same before
    refused: list[RefusedRecord] = field(default_factory=list)  # by either node, of each reason REFUSED_MAX + 1 at most
    duration_s: float = 0.0


def refusal_text(report: ExchangeReport) -> str:
    """What to say of an exchange with refused records."""
    first = next((one for one in report.refused if not one.is_left_out), report.refused[0])
    number, too_many = counted(len(report.refused), "record"), ""
    if len(report.refused) > REFUSED_MAX:
        number = f"more than {REFUSED_MAX:,} records"
    if _too_large(report.refused) > REFUSED_MAX:
        too_many = f", more than the {REFUSED_MAX:,} too large ones that may be left out"
    return f"node {report.node}: {number} refused{too_many}; all others were exchanged. The first is {first}"


def _too_large(refused: Iterable[RefusedRecord]) -> int:
    """For how many of them a node has to keep an exception."""
    return sum(one.reason == TOO_LARGE for one in refused)


class Initiator:
    """An exchange that this node begins.

    `full`: compare every record, without the trees.  `verify`: repeat until the roots are equal.
    """

    def __init__(
        self, engine: Engine, members: Members, cluster: str, *, full: bool = False, verify: bool = False
    ) -> None:
        self.report = ExchangeReport()  # of what was done so far
        self._engine = engine
        self._endpoint = LocalEndpoint(engine, members, cluster)
        self._mine = members.identity.node
        self._full = full
        self._verify = verify
        self._refused: dict[tuple[str, bytes], RefusedRecord] = {}  # by node and key; of each reason REFUSED_MAX + 1
        self._refused_of = Counter[str]()  # how many of each reason
        self._disk_full: DiskFull | None = None  # since then, this pass takes only deletions
        self._gc_horizon = 0  # ns: of this node, as long as this pass goes on
        self._new_gc_horizon = 0  # ns: of both, when this pass is complete; tombstones from below are not given
        self._stale_here = self._stale_there = NONE_STALE  # what one node has, and the other lacks
        self._theirs: Hello
        self._context: dict[str, object] = {}  # fields of every request behind the hello

    def steps(self) -> Steps[ExchangeReport]:
        """Yield requests, be sent the answers, return the report.

        Raises ExchangeRefused, ExchangeFailed, Shortage, StorageFailed.
        """
        report, began = self.report, time.monotonic()
        for number in range(PASSES_MAX):
            try:
                equal = yield from self._pass()
            except Outdated:
                continue
            except Malformed as problem:
                raise ExchangeFailed(f"node {report.node or 'at that address'}: {problem}") from problem
            except TooManyMembers as problem:
                raise ExchangeRefused(FULL, str(problem)) from problem
            report.equal = report.equal or (equal and number == 0)
            report.duration_s = time.monotonic() - began
            report.refused = [*self._refused.values()]
            if not self._is_complete():
                self._endpoint.name_refused(report.node, report.refused[:REFUSED_MAX])
                raise ExchangeFailed(refusal_text(report))
            if equal or report.refused or not self._verify:
                return report
            self._full = False  # once is enough: from here on the roots show a difference
        raise ExchangeFailed(
            f"node {report.node}: the data of both moved during {PASSES_MAX} attempts: try again when less is written"
            if not self._verify
            else f"node {report.node}: the roots still differ: more is being written than is exchanged, one node has "
            "collected deleted keys that the other keeps for a while, or SYNC --full is needed"
        )

    def _pass(self) -> Steps[bool]:
        """One whole exchange.  Returns whether both held the same from the start."""
        engine, endpoint = self._engine, self._endpoint
        self._refused.clear()
        self._refused_of.clear()
        self._disk_full = None
        self._collect()
        engine.wait_until_counted(COUNT_WAIT_S)
        for _ in engine.prepare_root():
            pass  # others get at the engine in between
        mine, before = endpoint.hello()
        engine.flush()
        self._context = {}
        try:
            answer = yield from self._ask("hello", hello=mine.plain())
        except ExchangeRefused as refusal:
            if refusal.why != FULL:  # a node that refuses for another reason relies on nothing in the hello
                endpoint.on_refused(mine, before)
                engine.commit()
            raise
        theirs = decode_hello(answer.map("hello"), mine.table)
        endpoint.on_accepted(mine, theirs)
        equal = bool(answer.number("equal", 1))
        self.report.node = theirs.node
        theirs = self._theirs = endpoint.accept(theirs)
        self._origin = theirs.node.encode()
        self._context = {"to": theirs.process, "gc_horizon": theirs.gc_horizon}
        if theirs.truncation > engine.truncation:
            self._write(lambda: engine.merge_truncation(theirs.truncation, self._origin))
        endpoint.add_members(theirs)
        self._new_gc_horizon = max(mine.gc_horizon, theirs.gc_horizon)
        self._stale_here, self._stale_there = stale_records(mine, theirs), stale_records(theirs, mine)
        if equal and not self._full:
            endpoint.complete(theirs.table, self._new_gc_horizon, given_through=mine.table.report.closed)
            engine.commit()
            return True
        caught_up = endpoint.catch_up(theirs)
        if caught_up:
            self._collect()
            with engine.lock:
                equal = engine.root_ready and (engine.root(), engine.truncation) == (theirs.root, theirs.truncation)
        self._gc_horizon = self._new_gc_horizon if caught_up else mine.gc_horizon
        if self._full or not equal:
            yield from self._union(mine)
        yield from self._done(mine)
        return equal and not self._full

    def _union(self, mine: Hello) -> Steps[None]:
        theirs, stale_here = self._theirs.count, self._stale_here.is_possible()
        few = min(mine.count, theirs) * PAGES_RATIO < max(mine.count, theirs)
        joins = stale_here and mine.count < theirs
        if self._full or not few or self._stale_there.is_possible() or (stale_here and not joins):
            yield from self._compare((yield from self._differing()))
        elif mine.count > theirs:
            if theirs:
                yield from self._scan()
            yield from self._push(mine.count)
        else:  # what the smaller node has goes first, or all of its own would come back
            if joins:
                yield from self._compare(self._filled_buckets())
            elif mine.count:
                yield from self._push(mine.count)
            yield from self._scan()

    def _filled_buckets(self) -> Sequence[int]:
        return self._unequal_buckets((node, bytes(LEAVES_SIZE)) for node in range(INNER_NODES))

    def _done(self, mine: Hello) -> Steps[None]:
        engine, theirs = self._engine, self._theirs
        engine.commit()
        if self._disk_full is not None:
            raise self._disk_full
        if engine.gc_horizon != self._gc_horizon:
            raise Outdated
        if not self._is_complete():
            return
        refused = bounded(self._refused.values(), REFUSED_MAX)
        self._endpoint.complete(theirs.table, self._new_gc_horizon, refused)
        if self._gc_horizon < self._new_gc_horizon:
            self._collect()  # as the responder has
        engine.flush()
        answer = yield from self._ask(
            "done",
            hello=mine.plain(),
            closed=theirs.table.report.closed,
            new_gc_horizon=self._new_gc_horizon,
            refused=refused,
        )
        self._endpoint.merge_report(unpack(answer.binary("table"), mine.table), mine.table.report.closed)
        engine.commit()

    def _is_complete(self) -> bool:
        """Whether both nodes hold the union now, but for records that may be left out."""
        refused = self._refused.values()
        return _too_large(refused) <= REFUSED_MAX and all(one.is_left_out for one in refused)

    # -- comparing -----------------------------------------------------------------------------------------------------

    def _differing(self) -> Steps[Sequence[int]]:
        """The buckets that differ; all of them if that cannot be told."""
        mine = None if self._full else self._engine.inner_digests()
        if mine is None:
            return range(BUCKETS)
        digests = b"".join(digest[:INNER_DIGEST_SIZE] for digest in mine)
        answer = yield from self._ask("inner", digests=digests)
        if not answer.number("ready", 1):
            return range(BUCKETS)
        nodes, leaves = answer.binary("nodes"), answer.binary("leaves")
        if len(nodes) > INNER_NODES or len(leaves) != len(nodes) * LEAVES_SIZE:
            raise Malformed("it sent no leaves for its inner nodes")
        return self._unequal_buckets(zip(nodes, parts(leaves, LEAVES_SIZE), strict=True))

    def _unequal_buckets(self, others: Iterable[tuple[int, bytes]]) -> Sequence[int]:
        """The buckets whose leaves differ from others, given by inner node; all buckets if that cannot be told."""
        found: list[int] = []
        for node, theirs in others:
            mine = self._engine.leaf_digests(node)
            if mine is None:  # since it was rolled back or truncated
                return range(BUCKETS)
            pairs = zip(parts(mine, LEAF_DIGEST_SIZE), parts(theirs, LEAF_DIGEST_SIZE), strict=True)
            found += [node * LEAVES_PER_INNER + at for at, (leaf, other) in enumerate(pairs) if leaf != other]
        return found

    def _compare(self, buckets: Sequence[int]) -> Steps[None]:
        """Make the buckets equal, a batch at a time."""
        size = PRINT_SIZES[self._full]
        at = 0
        while at < len(buckets):
            while not self._engine.prepare_buckets():
                pass
            counts: list[int] = []
            mine: list[Pair] = []
            for bucket in buckets[at : at + BATCH_BUCKETS]:
                pairs = self._engine.bucket(bucket)
                mine += pairs
                counts.append(len(pairs))
                if len(mine) >= BATCH_PRINTS:
                    break
            answer = yield from self._ask(
                "buckets",
                size=size,
                buckets=b"".join([bucket.to_bytes(2, "big") for bucket in buckets[at : at + len(counts)]]),
                counts=b"".join([count.to_bytes(4, "big") for count in counts]),
                prints=b"".join([digest_of(head)[:size] for _, head in mine]),
            )
            done = answer.number("done", len(counts))
            if not done:
                raise Malformed("it does not go on")
            yield from self._resolve(mine, answer)
            at += done

    def _resolve(self, mine: list[Pair], answer: Fields) -> Steps[None]:
        """Transfer what one node lacks or has older, and re-delete what is stale."""
        engine = self._engine
        records, heads = answer.pairs("records"), answer.pairs("heads")
        theirs = dict(records) | dict(heads)
        if any(len(record) < HEAD_SIZE for record in theirs.values()):
            raise Malformed("it sent records that are cut")
        stale_there = [
            (key, version_of(record))
            for key, record in (theirs.items() if self._stale_there.is_possible() else ())
            if self._stale_there.contains(key, record) and version_of(record) > version_of(engine.record(key) or b"")
        ]
        stale_keys = {key for key, _ in stale_there}
        self._merge([pair for pair in records if pair[0] not in stale_keys])
        wants = [
            key
            for key, head in heads
            if key not in stale_keys and version_of(head) >= version_of(engine.record(key) or b"")
        ]
        if self._disk_full is not None:
            wants = []  # large values
        given, stale_here = [], []
        for packed in parts(answer.binary("lacks"), 4):
            index = int.from_bytes(packed, "big")
            if index >= len(mine):
                raise Malformed("it lacks more than it was asked for")
            key, head = mine[index]
            if version_of(head) <= version_of(theirs.get(key, b"")):
                continue
            if self._stale_here.contains(key, head):
                stale_here.append((key, version_of(head)))
            else:
                given.append(key)
        for part in parts(stale_here, SLICE_MERGES):
            redelete = partial(self._endpoint.redelete, part, self._origin, self._gc_horizon, self._new_gc_horizon)
            discarded, refused = self._write(redelete)
            self.report.discarded += discarded
            self._refuse(refused)
        while given or stale_there or wants:
            pairs, too_large, tried = self._endpoint.read(given, self._theirs.max_value_size, self._theirs.node)
            self._refuse(too_large)
            if not (pairs or stale_there or wants):
                given = given[tried:]
                continue
            answer = yield from self._transfer(pairs, stale_there[:BATCH_RECORDS], wants[:BATCH_RECORDS])
            served = answer.number("served", len(wants))
            if wants and not served:
                raise Malformed("it does not send what it was asked for")
            self._merge(answer.pairs("records"))
            given, stale_there, wants = given[tried:], stale_there[BATCH_RECORDS:], wants[served:]

    # -- page by page --------------------------------------------------------------------------------------------------

    def _scan(self) -> Steps[None]:
        after = b""
        passed = 0
        while passed <= PAGES_GROWTH * self._theirs.count:
            answer = yield from self._ask(
                "scan", after=after, origin=self._mine, max_value_size=self._engine.max_value_size
            )
            records = answer.pairs("records")
            passed += len(records)
            self._merge(records)
            self._refuse(decode_refused(answer, "too_large", 2 * BATCH_RECORDS))
            following = answer.binary("following", *range(MAX_KEY_SIZE + 1))
            if not following or self._disk_full is not None:  # not for a few deletions: the peer has a lot more
                return
            if following <= after:
                raise Malformed("it does not go on")
            after = following
        yield from self._compare((yield from self._differing()))

    def _push(self, count: int) -> Steps[None]:
        after: bytes | None = b""
        passed = 0
        while after is not None and passed <= PAGES_GROWTH * count:
            pairs, after = self._engine.records_page(b"", after, BATCH_RECORDS, BATCH_BYTES)
            passed += len(pairs)
            pairs, too_large = split_by_size(pairs, self._theirs.max_value_size, self._theirs.node)
            self._refuse(too_large)
            if pairs:
                yield from self._transfer(pairs)
        if after is not None:
            yield from self._compare((yield from self._differing()))

    # -- what all of these need ----------------------------------------------------------------------------------------

    def _transfer(self, pairs: list[Pair], stale: Sequence[Pair] = (), wants: Sequence[bytes] = ()) -> Steps[Fields]:
        answer = yield from self._ask(
            "transfer",
            origin=self._mine,
            max_value_size=self._engine.max_value_size,
            new_gc_horizon=self._new_gc_horizon,
            records=flat(pairs),
            stale=flat(stale),
            wants=list(wants),
        )
        self.report.keys_sent += answer.number("applied", len(pairs))
        self.report.discarded += answer.number("discarded", len(stale))
        self._refuse(decode_refused(answer, "refused", len(pairs) + len(stale)))
        self._refuse(decode_refused(answer, "too_large", len(wants)))
        return answer

    def _refuse(self, refused: list[RefusedRecord]) -> None:
        for one in refused:
            at, reason = (one.node, one.key), one.reason if one.is_left_out else DAMAGED
            if (before := self._refused.pop(at, None)) is not None:
                self._refused_of[before.reason if before.is_left_out else DAMAGED] -= 1
            if self._refused_of[reason] <= REFUSED_MAX:
                self._refused[at] = one
                self._refused_of[reason] += 1

    def _merge(self, pairs: list[Pair]) -> None:
        """Merge records of the responder.  Raises Outdated."""
        for part in parts(pairs, SLICE_MERGES):
            if self._disk_full is not None:
                part = [pair for pair in part if len(pair[1]) >= HEAD_SIZE and is_tombstone(pair[1])]
            merge = partial(self._endpoint.merge, part, self._origin, self._gc_horizon, self._new_gc_horizon)
            try:
                applied, refused = self._write(merge)
            except DiskFull as error:
                self._disk_full = error  # the engine has merged the deletions among them: these come first
                continue
            self.report.keys_received += applied
            self._refuse(refused)
        self._engine.commit()

    def _collect(self) -> None:
        for collect in (self._engine.collect_tombstones, self._engine.collect_expired):
            while self._write(collect):
                pass
        self._engine.commit()

    def _write(self, call: Callable[[], T]) -> T:
        """Make a call; if the engine is stalled, again when there is room."""
        deadline = time.monotonic() + STALL_WAIT_S

        def go_on() -> bool:
            self._engine.commit()
            return time.monotonic() < deadline

        try:
            return self._engine.retry_stalled(call, go_on)
        except Stalled:
            raise ExchangeFailed(
                f"node {self.report.node}: checkpoints here are {STALL_WAIT_S:.0f} s behind, try again later"
            ) from None

    def _ask(self, kind: str, **fields: object) -> Steps[Fields]:
        """One request and its answer.  Raises Outdated, ExchangeRefused and Malformed."""
        request = encode(kind, **self._context, **fields)
        self.report.rounds += 1
        self.report.bytes_sent += len(request)
        answer = yield request
        self.report.bytes_received += len(answer)
        answered, found = decode(answer, self._engine.max_value_size + MESSAGE_ROOM_BYTES)
        if answered == "outdated":
            raise Outdated
        if answered == "refused":
            why, detail = found.text("why", 20), found.text("text", 4000)
            self.report.node = self.report.node or found.node_id("node")
            if why == DAMAGED:
                raise ExchangeFailed(f"node {self.report.node}: a request arrived damaged: {detail}")
            raise ExchangeRefused(why, detail)
        if answered != kind:
            raise Malformed(f"it answered '{answered}' to '{kind}'")
        return found
