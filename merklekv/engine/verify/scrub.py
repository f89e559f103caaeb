"""The scrub reads all data of a running node and reports what is damaged, before a client meets it.

    records      of the base, in key order      digest; listed in the index, and as a tombstone if it is one
    tombstones   the base's list of them        each is the record's
    expiries     the base's list of them        each is that of a record
    buckets      one after the other            leaf (sum and count) of the base and of the tree in memory; what the
                                                index lists exists; digests of the records in memtables
    counters     all at one moment              of the base and in memory

A `Scrub` is one pass, in slices of about a millisecond.  Each slice sees one moment; between slices the node writes and
makes checkpoints.  A pass changes nothing.  Damage is of two kinds:

- Something *derived* from the records is wrong: the index, a leaf, a counter.  `engine.repair` derives it anew.
- A record itself is damaged or missing (`lost`).  Only another node has it: `fits` says whether the record of that node
  may take its place, and `engine.replace` stores it.  A leaf is the sum of the digests that its records once had, so
  while all others of a bucket are sound it still gives the digest of the lost one.

A pass does not compare a bucket that has a damaged record with its leaf, because `repair` would overwrite the leaf.

Not noticed: a record that is whole but not the newest one written.  Not survived: damage to LMDB's own pages may end
the process inside LMDB; where LMDB reports it instead, the scrub reports it too, and repairs nothing.

Cost: 6 us a record and 15 us a bucket that is not empty; each record's page of the base is read twice.
"""

import time
from collections.abc import Collection, Generator, Iterator
from contextlib import ExitStack
from itertools import compress, islice
from typing import Final, NamedTuple

import lmdb

from merklekv.engine.base.environment import translate
from merklekv.engine.base.places import FIRST_PLACE, LAST_PLACE, PLACE_SPLIT, bucket_of_place
from merklekv.engine.engine import Engine
from merklekv.engine.format import INNER_NODES, LEAF_SIZE, bucket_of
from merklekv.engine.merkle import COUNT_MASK, LEAF_MASK, LEAVES_PER_INNER, NO_LEAVES, term_of, unpack_leaves
from merklekv.engine.record import (
    DIGEST_SIZE,
    PURGED,
    TOMBSTONE,
    VERSION_SIZE,
    ZERO_VERSION,
    digest_of,
    expiry_place,
    flags_of,
    is_purge_marker,
    is_sound,
    is_tombstone,
    padded,
    version_of,
)
from merklekv.engine.verify.report import record_violations, show, version_text

PAGE_RECORDS: Final = 100
PAGE_BYTES: Final = 1 << 18
COUNTED_KEYS: Final = 500
PLACES_S: Final = 0.001  # with the lock: each place costs a look at all keys of its bucket, however many these are
_LAST_VERSION: Final = b"\xff" * VERSION_SIZE


class Damage(NamedTuple):
    """Something that is wrong."""

    problem: str  # a sentence: where, what, what was expected
    bucket: int | None  # to derive anew; None: that would not help
    key: bytes = b""
    lost: bool = False  # the record of `key` is damaged or missing, and only another node can have it
    stored: bytes | None = None  # what a reader finds in its place
    original: bytes = b""  # the digest (16 bytes) that it had, if known
    stray: bool = False  # nothing else names this key: the key itself may be what is damaged
    record: bytes = b""  # as it is now; a reader does not find one below the truncation version


def fits(damage: Damage, record: bytes) -> bool:
    """Whether a record of another node may take the place of one that is lost.

    It has to be the same one, by its version or by the digest that it had, or a newer one.  An older one does not fit:
    the damaged record may be a write that has not reached the other node yet.
    """
    if not is_sound(damage.key, record):
        return False
    is_same = digest_of(record) in (damage.original, digest_of(damage.record))
    return is_same or record >= _version_before(damage.key, damage.record)


def _version_before(key: bytes, damaged: bytes) -> bytes:
    """The version (24 bytes) that a damaged record had, before a bit of it flipped; empty for a missing record."""
    version = int.from_bytes(version_of(damaged), "big")
    rest = damaged.removeprefix(version_of(damaged))
    for bit in range(8 * VERSION_SIZE):
        before = (version ^ 1 << bit).to_bytes(VERSION_SIZE, "big")
        if is_sound(key, before + rest):
            return before
    return version_of(damaged)


Steps = Generator[Damage | None, None, None]


class Scrub:
    """One pass over an engine.  It reads the engine's internals, as the checker does."""

    def __init__(self, engine: Engine) -> None:
        self.read = 0  # records of the base, so far
        self._engine = engine
        self._damaged: set[int] = set()  # buckets with a record that is damaged

    def steps(self) -> Steps:
        """The pass: each damage, and None after each slice."""
        while not self._engine.prepare_buckets():
            yield None
        for part in (self._records, self._tombstones, self._expiries, self._buckets, self._counters):
            try:
                yield from part()
            except lmdb.Error as error:
                yield Damage(str(translate(error, self._engine.directory.base)), None)

    # -- the base in key order -----------------------------------------------------------------------------------------

    def _records(self) -> Steps:
        """Checks every record of the base by itself, and that it is listed."""
        after: bytes | None = b""
        while after is not None:
            unsound, underived, after = self._page(after)
            for key, record, listed in unsound:
                yield self._classify(key, record, listed)
            yield from underived
            yield None

    def _page(self, after: bytes) -> tuple[list[tuple[bytes, bytes, bool]], list[Damage], bytes | None]:
        """Unsound records with whether they are listed, what else is wrong, and the key to continue behind.

        Uses one transaction, so it compares one moment, without the engine's lock.
        """
        base = self._engine.table.base
        unsound: list[tuple[bytes, bytes, bool]] = []
        underived: list[Damage] = []
        count = size = 0
        begin = after
        with (
            base.snapshot() as view,
            view.txn.cursor(db=view.records) as cursor,
            view.txn.cursor(db=view.index) as index,
            view.txn.cursor(db=view.tombstones) as tombstones,
            view.txn.cursor(db=view.expiries) as expiries,
        ):
            checkpointing = view.txn.get(b"checkpointing", db=view.meta) is not None  # then the index may lack keys
            newest = view.txn.get(b"newest", ZERO_VERSION, db=view.meta)
            if not cursor.set_range(after):
                return unsound, underived, None
            for key, record in cursor.iternext():
                if key == after:
                    continue
                if count >= PAGE_RECORDS or size >= PAGE_BYTES:
                    if after == begin:
                        raise lmdb.CorruptedError(f"keys are not in order behind {show(after)}")
                    self.read += count
                    return unsound, underived, after
                after = max(after, key)  # one that is damaged may be anywhere
                count, size = count + 1, size + len(record)
                bucket = bucket_of(key)
                listed = index.set_key_dup(bucket.to_bytes(2, "big"), key)
                where = f"the base, key {show(key)}"
                if not is_sound(key, record):
                    self._damaged.add(bucket)
                    if view.txn.get(key) == record:
                        unsound.append((key, padded(record), listed or checkpointing))
                    else:
                        problem = f"{where}: the key is damaged and not in order, so that LMDB does not find it"
                        underived.append(Damage(problem, None))
                    continue
                if not listed and not checkpointing:
                    underived.append(Damage(f"{where}: is not listed in the index", bucket, key))
                if is_tombstone(record) and not tombstones.set_key_dup(version_of(record), key):
                    underived.append(Damage(f"{where}: is not in the list of tombstones", bucket, key))
                place = expiry_place(key, record)
                if place and not expiries.set_key_dup(place[:PLACE_SPLIT], place[PLACE_SPLIT:]):
                    underived.append(Damage(f"{where}: is not in the list of expiries", bucket, key))
                if record > newest and version_of(record) > newest:
                    shown = version_text(newest), version_text(record)
                    problem = f"{where}: the newest version is said to be {shown[0]}, expected {shown[1]} or more"
                    underived.append(Damage(problem, bucket, key))
        self.read += count
        return unsound, underived, None

    def _classify(self, key: bytes, record: bytes, listed: bool) -> Damage:
        """The damage of a record of the base: whether a reader would find it, and the digest that it had."""
        engine = self._engine
        bucket = bucket_of(key)
        problem = f"the base, key {show(key)}: {next(record_violations(key, record, ZERO_VERSION))}"
        self._prepare()
        with engine.lock:
            stored = engine.table.lookup(key)
            is_below = stored is None and record < engine.truncation  # its version may be what is damaged
            if stored != record and not (is_below and self._is_swept):
                return Damage(f"{problem}; no reader finds it", bucket, key)
            return Damage(problem, bucket, key, True, stored, self._digest_lost(bucket, key), not listed, record)

    @property
    def _is_swept(self) -> bool:
        """Whether the base contains nothing below the truncation version.  Under the lock.

        Otherwise memtables have dropped keys that a checkpoint may have put into the base and not into the index yet.
        """
        table = self._engine.table
        return table.base.truncation == table.truncation

    def _digest_lost(self, bucket: int, key: bytes) -> bytes:
        """The digest that a record had when the leaf was summed; empty if unknown."""
        engine = self._engine
        rest = engine.table.tree.leaf(bucket)
        for other, _ in engine.bucket(bucket):
            if other != key:
                record = engine.table.lookup(other)
                if record is None or not is_sound(other, record):
                    return b""
                rest -= term_of(record)
        return _digest_of(rest) if engine.root_ready else b""

    def _tombstones(self) -> Steps:
        """Checks that the base's list of tombstones lists nothing else."""
        engine = self._engine
        version = ZERO_VERSION
        while True:
            with engine.lock:
                base = engine.table.base
                pairs = base.tombstones_from(version, _LAST_VERSION, PAGE_RECORDS)
                records = [base.get(key) for _, key in pairs]
            for (version, key), record in zip(pairs, records, strict=True):
                listed = record is not None and version_of(record) == version and is_tombstone(record)
                if not listed and bucket_of(key) not in self._damaged:
                    problem = f"the base, key {show(key)}: is listed with a tombstone that is not there"
                    yield Damage(problem, bucket_of(key), key)
            if len(pairs) < PAGE_RECORDS:
                return
            yield None

    def _expiries(self) -> Steps:
        """Checks that the base's list of expiries lists nothing else."""
        engine = self._engine
        place = FIRST_PLACE
        while True:
            found: list[bytes] = []
            with engine.lock:
                base = engine.table.base
                if base.checkpointing:  # the index may lack keys
                    return
                places = base.expiries_from(place, LAST_PLACE, PAGE_RECORDS)
                until = time.monotonic() + PLACES_S
                for place in places:
                    if bucket_of_place(place) not in self._damaged and not base.is_shared(place):
                        records = ((key, base.get(key)) for key in base.keys_at(place))
                        if not any(record and expiry_place(key, record) == place for key, record in records):
                            found.append(place)
                    if time.monotonic() > until:
                        break
                is_last = not places or (len(places) < PAGE_RECORDS and place == places[-1])
            for stale in found:
                problem = f"the base: the list of expiries has {stale.hex()}, which no record has"
                yield Damage(problem, bucket_of_place(stale))
            if is_last:
                return
            yield None

    # -- buckets -------------------------------------------------------------------------------------------------------

    def _buckets(self) -> Steps:
        """Compares every leaf with the records below it, in the base and in memory."""
        engine = self._engine
        for node in range(INNER_NODES):
            with engine.lock:
                filled = self._filled(node)
            yield None
            for bucket in filled:
                self._prepare()
                self._touch(bucket)
                with engine.lock:
                    found, recent = self._bucket(bucket) if self._is_swept else ([], [])
                yield from found
                for key, record in recent:
                    if not is_purge_marker(record) and not is_sound(key, record):
                        problem = next(record_violations(key, record, ZERO_VERSION))
                        yield Damage(f"memory, key {show(key)}: {problem}", bucket, key)
                yield None

    def _filled(self, node: int) -> list[int]:
        """The buckets below an inner node that a leaf or the index says are not empty.  Under the lock."""
        base = self._engine.table.base
        with base.snapshot() as view, view.txn.cursor(db=view.index) as cursor:
            packed = view.leaf_bytes(node)
            stored = unpack_leaves(packed) if packed != NO_LEAVES else []
            first = node * LEAVES_PER_INNER
            found = {*compress(range(first, first + LEAVES_PER_INNER), stored), *self._engine.table.tree.filled(node)}
            ahead = cursor.set_range(bytes((node, 0)))
            while ahead and cursor.key()[0] == node:
                found.add(int.from_bytes(cursor.key(), "big"))
                ahead = cursor.next_nodup()
        return sorted(found)

    def _prepare(self) -> None:
        """Sorts new entries of the memtables into buckets, and frees the lock in between."""
        while not self._engine.prepare_buckets():
            pass

    def _touch(self, bucket: int) -> None:
        """Reads a bucket of the base, so that `_bucket` does not wait for the disk under the lock."""
        with self._engine.table.base.snapshot(buffers=True) as view:
            for key in view.keys(bucket):
                view.head(key)

    def _bucket(self, bucket: int) -> tuple[list[Damage], list[tuple[bytes, bytes]]]:
        """What is wrong with a bucket, and its records in memtables.  Under the lock, in one moment."""
        table = self._engine.table
        while not table.prepare_buckets():
            pass  # only what has come since `_prepare`
        recent = {
            key: memtable.records[key] for memtable in reversed(table.tables) for key in memtable.records.bucket(bucket)
        }
        missing: list[bytes] = []
        stored = in_memory = 0
        with table.base.snapshot(buffers=True) as view:
            leaf = _leaf_of(view.leaf_bytes(bucket // LEAVES_PER_INNER), bucket)
            keys = set(view.keys(bucket))
            for key in keys | recent.keys():
                head = view.head(key)
                if head is not None:
                    stored += term_of(head)
                elif key in keys:
                    missing.append(key)
                newest = recent.get(key, head)
                if newest is not None and (key not in recent or not is_purge_marker(newest)):
                    in_memory += term_of(newest)
        found: list[Damage] = []
        if missing:
            found += self._missing(bucket, sorted(missing), (leaf - stored) & LEAF_MASK, recent.keys())
        elif bucket not in self._damaged:
            pairs = [("the base", leaf, stored)]
            if table.root_ready:
                pairs.append(("memory", table.tree.leaf(bucket), in_memory))
            for where, is_, expected in pairs:
                if (is_ - expected) & LEAF_MASK:
                    problem = f"{where}: leaf {bucket} is {_show_leaf(is_)}, expected {_show_leaf(expected)}"
                    found.append(Damage(problem, bucket))
        return found, list(recent.items())

    def _missing(self, bucket: int, missing: list[bytes], rest: int, recent: Collection[bytes]) -> Iterator[Damage]:
        """Keys that the index lists without a record: lost if the leaf counts more records than exist."""
        for key in missing:
            problem = f"the base, key {show(key)}: is listed in the index and has no record"
            lost = bool(rest & COUNT_MASK) and key not in recent
            yield Damage(problem, bucket, key, lost, None, _digest_of(rest) if lost else b"")

    # -- counters ------------------------------------------------------------------------------------------------------

    def _counters(self) -> Steps:
        """Counts live keys and tombstones of one moment, a slice at a time."""
        engine = self._engine
        with ExitStack() as stack:
            with engine.lock:
                if not (self._is_swept and engine.root_ready):
                    return
                active, *frozen = (table.records for table in engine.table.tables)
                tables = [dict(active.items()), *frozen]
                said = [engine.live_count, engine.tombstone_count]
                view = stack.enter_context(engine.table.base.snapshot(buffers=True))
            dead = view.size(view.tombstones)
            counted = [view.size(view.records) - dead, dead]
            for name, expected in zip(("live", "dead"), counted, strict=True):
                stored = int.from_bytes(view.txn.get(name.encode(), b"", db=view.meta), "big")
                if stored != expected:
                    yield Damage(f"the base: the counter {name} is {stored}, expected {expected}", 0)
            for at, table in enumerate(tables):
                rest = iter(table.items())
                while pairs := list(islice(rest, COUNTED_KEYS)):
                    for key, record in pairs:
                        if not any(key in newer for newer in tables[:at]):
                            _count(counted, flags_of(record), 1)
                            hidden = view.head(key)
                            _count(counted, PURGED if hidden is None else flags_of(hidden), -1)
                    yield None
        for what, is_, expected in zip(("live keys", "tombstones"), said, counted, strict=True):
            if is_ != expected:
                yield Damage(f"memory: the number of {what} is {is_}, expected {expected}", 0)


def _count(counted: list[int], flags: int, change: int) -> None:
    if not flags & PURGED:
        counted[flags & TOMBSTONE] += change


def _digest_of(term: int) -> bytes:
    """The digest in a term; empty when it is not that of one record."""
    term &= LEAF_MASK
    return (term >> 64).to_bytes(DIGEST_SIZE, "big") if term & COUNT_MASK == 1 else b""


def _leaf_of(packed: bytes, bucket: int) -> int:
    at = bucket % LEAVES_PER_INNER * LEAF_SIZE
    return int.from_bytes(packed[at : at + LEAF_SIZE], "big")


def _show_leaf(leaf: int) -> str:
    leaf &= LEAF_MASK
    return f"{leaf >> 64:032x} of {leaf & COUNT_MASK} records"
