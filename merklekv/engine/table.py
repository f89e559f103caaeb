"""The table: what the node has now, and the one place where that changes.

A read sees the memtable, the frozen memtables and the base, newest first, above the truncation version.  A record in a
newer layer hides those below it; so does the purge marker of a collected record.  Records of the base below the
truncation version are dead: reads skip them until a checkpoint has removed them.  Memtables drop theirs at once, and
leave purge markers where something newer might show.

A write changes the memtable, the leaf, the counters and the pending entries of the log together: `put` replaces a
key's record, `purge` removes one, `raise_truncation` removes what is below a version, `put_metadata` stores a small
named fact.

The tree's leaves are those of the base plus what the memtables change, so a checkpoint leaves them as they are.  Only a
truncation version that spares some of the base's records makes them unknown (`root_ready`) until a checkpoint has swept
the base.  After a start or a roll-back they are unknown until the memtables are counted in (count.py), by a thread if
there is one and it is much.

Ordered reads come in pages: short calls that see all layers at one moment.  Between two pages others get the lock.

Invariants, which verify/check.py checks: leaves and counters are those of the newest records; every record is at or
above the truncation version; the log's segments have what the memtables have.
"""

import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import islice
from threading import Condition, RLock
from typing import Any, Final

from merklekv.engine.base.places import FIRST_PLACE
from merklekv.engine.base.reader import Base
from merklekv.engine.clock import HybridClock
from merklekv.engine.count import Count
from merklekv.engine.format import (
    BUCKETS,
    ENTRY,
    INNER_NODES,
    LEAF_SIZE,
    MAX_KEY_SIZE,
    METADATA_NAME_SIZE_MAX,
    METADATA_SIZE_MAX,
    OP_METADATA,
    OP_PURGE,
    OP_REPAIR,
    REMOTE,
)
from merklekv.engine.log.writer import Log
from merklekv.engine.memtable import Memtable, Records, prefix_end
from merklekv.engine.merkle import COUNT_MASK, EMPTY_ROOT, LEAF_MASK, MerkleTree, term_of
from merklekv.engine.put import get_each, put_each
from merklekv.engine.record import (
    EXPIRY,
    EXPIRY_SIZE,
    FLAGS,
    FLAGS_AT,
    NS_PER_MS,
    PURGED,
    RECORD_OVERHEAD,
    TOMBSTONE,
    VALUE_AT,
    Pair,
    deletion_marker,
    expiry_of,
    expiry_place,
    head_of,
    is_expired,
    is_purge_marker,
    is_sound,
    pack_expiry,
    purge_marker,
    timestamp_of,
    value_of,
    version_of,
)
from merklekv.engine.recovery import Replayed
from merklekv.engine.write_gate import WriteGate
from merklekv.errors import InvalidArgument, StorageFailed
from merklekv.shortage import is_shortage, reason_of, shortage_of

PAGE_KEYS: Final = 1000
PAGE_BYTES: Final = 1 << 20
HEADS_ONLY: Final = 0  # for `max_bytes`: at least what is before the values, however many bytes these have
COUNTED_AT_ONCE: Final = 2000  # keys of memtables, 6 ms
RANDOM_TRIES: Final = 100
RANDOM_MEMTABLE_SHARE: Final = 0.5
INNER_SLICE: Final = 32  # inner nodes whose digests are computed at once, up to 2 ms
LEAVES_SLICE: Final = 2000  # changed leaves that are packed between two yields, about 1 ms

_HIDDEN: Final = Records()  # stays empty
_entry = ENTRY.pack
_join = b"".join
from_bytes = int.from_bytes


class Table:
    """Memtables over the base over the truncation version, with the Merkle tree and the counters of it all.

    Contract: a write that raises has changed nothing, but for the items of `put` before the one that raised.  Reads
    and `repair` take the lock themselves, a read only if the memtable lacks the record; for all else the caller has it.

    Not here: which version of a record stands (merger.py), what makes a write durable (commit.py), when a memtable is
    frozen (checkpoint/checkpointer.py).

    Costs: a write of 100 bytes about 3 us, a read 0.3 us (memtable) to 2 us (base).  Memory: the memtables, and 7 MiB
    for the tree.
    """

    tree_type: type[MerkleTree] = MerkleTree  # benchmarks measure the write path without it

    def __init__(
        self,
        base: Base,
        log: Log,
        clock: HybridClock,
        gate: WriteGate,
        lock: "RLock",
        max_value_size: int,
        has_thread: bool,
    ) -> None:
        """`has_thread`: some thread calls `count_in`."""
        self.base = base
        self.active = Memtable(log.lsn)
        self.frozen: list[Memtable] = []  # newest first
        self.truncation = base.truncation  # the version (24 bytes) below which every record is dead
        self.metadata: dict[bytes, bytes] = {}
        self.repair_lsn: int | None = None  # of the last segment with a repair that the base has not taken in
        self.tree: MerkleTree  # of `restore`
        self.live_count = self.tombstone_count = 0
        self.watermark = FIRST_PLACE
        self.expired_count = 0  # of the live ones
        self.root_ready = False  # whether tree and counters are known
        self.is_swept = False  # whether the base has no record below the truncation version, or no other one
        self.has_thread = has_thread
        self._uncounted: Count | None = None  # what is not in tree and counters yet
        self._counted = Condition(lock)
        self.is_ending = False  # nobody waits for tree and counters any more
        self.max_value_size = max_value_size
        self.records = self.active.records  # where a read without the lock looks, see `hide`
        self.is_hidden = False  # whether reads of other threads wait for the lock
        self.log = log
        self.clock = clock
        self.gate = gate
        self.lock = lock
        self._wall = clock.gate.wall

    def restore(self, replayed: Replayed) -> None:
        """Restores memory from the base and the segments behind it."""
        *frozen, self.active = replayed.tables
        self.frozen = frozen[::-1]
        self.truncation = replayed.truncation
        self.clock.truncated_through = timestamp_of(self.truncation)
        # A checkpoint that was cut off may have raised the truncation version in the base already.
        if self.truncation > self.base.truncation or self.base.checkpointing:
            self._drop_below(self.truncation)
        self.metadata, self.repair_lsn = replayed.metadata, replayed.repair_lsn
        self.rebuild(self.base.pinned())

    # -- reading -------------------------------------------------------------------------------------------------------

    def record(self, key: bytes) -> bytes | None:
        """The raw record of a key, a tombstone too."""
        record = self.records.get(key)
        if record is None:
            if not 0 < len(key) <= MAX_KEY_SIZE:
                return None
            with self.lock:
                record = self.lookup(key)
        return None if record is None or is_purge_marker(record) else record

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        record = self.records.get(key)
        if record is None:
            if not 0 < len(key) <= MAX_KEY_SIZE:
                return None
            with self.lock:
                record = self.read(key)
        if record is None:
            return None
        flags = record[FLAGS_AT]
        if not flags:
            return record[VALUE_AT:]
        # This is `is_shown`, spelt out.
        if flags == EXPIRY and from_bytes(record[VALUE_AT:RECORD_OVERHEAD], "big") * NS_PER_MS > self._wall():
            return record[RECORD_OVERHEAD:]
        return None

    def get_batch(self, requests: Iterable[Sequence[bytes]], room: int) -> list[bytes | None]:
        """The values of (anything, key), until they have more than `room` bytes."""
        return get_each(self, requests, room)

    def packed_now(self) -> bytes:
        """The time that expiries are compared with, packed as they are."""
        return pack_expiry(self._wall() // NS_PER_MS)

    def shown(self, key: bytes) -> bytes | None:
        """The record of a key that has a value now."""
        record = self.records.get(key)
        if record is None:
            if not 0 < len(key) <= MAX_KEY_SIZE:
                return None
            with self.lock:
                record = self.lookup(key)
        if record is None:
            return None
        return record if not record[FLAGS_AT] or self.is_shown(record) else None

    def is_shown(self, record: bytes) -> bool:
        """Whether a record, or its first 49 bytes, gives its key a value now: it neither deletes it nor is expired."""
        flags = record[FLAGS_AT]
        return not flags or (flags == EXPIRY and not is_expired(record, self.clock.gate.wall()))

    def exists(self, key: bytes) -> bool:
        """Whether a key has a value."""
        return self.shown(key) is not None

    def expiry(self, key: bytes) -> int | None:
        """When a key expires, milliseconds since the epoch; None without an expiry, or without the key."""
        record = self.shown(key)
        return None if record is None else expiry_of(record)

    def get_with_expiry(self, key: bytes) -> tuple[bytes, int | None] | None:
        """The value of a key, and when it expires, milliseconds since the epoch, if it does; None without the key."""
        record = self.shown(key)
        return None if record is None else (value_of(record), expiry_of(record))

    def page(
        self, prefix: bytes = b"", after: bytes | None = None, limit: int = PAGE_KEYS
    ) -> tuple[list[bytes], bytes | None]:
        """At most `limit` keys with this prefix above `after` that have a value, in order, and where to go on.

        None: that was all.  A page may have no keys although more follow.
        """
        pairs, following = self.records_page(prefix, after, limit, HEADS_ONLY)
        is_shown = self.is_shown
        return [key for key, head in pairs if not head[FLAGS_AT] or is_shown(head)], following

    def records_page(
        self, prefix: bytes = b"", after: bytes | None = None, limit: int = PAGE_KEYS, max_bytes: int = PAGE_BYTES
    ) -> tuple[list[Pair], bytes | None]:
        """Like `page`, but (key, record), with tombstones and expired records; ends behind `max_bytes` of records."""
        after = after or b""
        with self.lock:
            tables = self.tables
            if not all(table.records.prepare() for table in tables):
                return [], after
            low = prefix if after < prefix else after + b"\0"
            end = prefix_end(prefix)
            if max_bytes == HEADS_ONLY:
                pairs = self.base.heads_from(low, end, limit)
                more = len(pairs) >= limit
            else:
                pairs = self.base.records_from(low, end, limit, max_bytes)
                more = len(pairs) >= limit or sum(len(record) for _, record in pairs) >= max_bytes
            bounds = [pairs[-1][0]] if more and pairs else []  # a source that was cut off is known only up to here
            found = {key: record for key, record in pairs if record >= self.truncation}
            for table in reversed(tables):
                items = table.records.items_from(low, end, limit)
                if len(items) >= limit:
                    bounds.append(items[-1][0])
                found.update(items)
        bound = min(bounds) if bounds else None
        shown = [key for key, record in found.items() if not is_purge_marker(record)]
        ordered = sorted(shown if bound is None else [key for key in shown if key <= bound])
        page: list[Pair] = []
        size = 0
        for key in ordered:
            record = found[key]
            page.append((key, record))
            size += len(record)
            if len(page) >= limit or (max_bytes != HEADS_ONLY and size >= max_bytes):
                return page, key if key != ordered[-1] or bound is not None else None
        return page, bound

    def random_key(self) -> bytes | None:
        """A key that has a value, None without one.  Any key may come, but not each with the same probability."""
        with self.lock:
            if self.root_ready and self.key_count <= 0:
                return None
            for _ in range(RANDOM_TRIES):
                table = random.choice(self.tables)
                if table.records and random.random() < RANDOM_MEMTABLE_SHARE:
                    key = next(islice(table.records, random.randrange(len(table.records)), None))
                else:
                    found = self.base.index_key_from(random.randrange(BUCKETS))
                    if found is None:
                        continue
                    key = found
                record = self.lookup(key)
                if record is not None and self.is_shown(record):
                    return key
        after: bytes | None = b""  # nearly everything is dead or has expired: take the first that is not
        while after is not None:  # without the lock between two pages
            keys, after = self.page(b"", after, RANDOM_TRIES)
            if keys:
                return keys[0]
        return None

    @property
    def tables(self) -> list[Memtable]:
        """All memtables, newest first."""
        return [self.active, *self.frozen]

    def lookup(self, key: bytes) -> bytes | None:
        """The newest record of a key, tombstones and purge markers too."""
        record = self.active.records.get(key)
        return self.older(key) if record is None else record

    def read(self, key: bytes) -> bytes | None:
        """Like `lookup`, for a client, see `Base.read`."""
        for table in self.tables:
            record = table.records.get(key)
            if record is not None:
                return record
        record = self.base.read(key)
        return record if record is None or record >= self.truncation else None

    def older(self, key: bytes) -> bytes | None:
        """The newest record of a key below the active memtable, purge markers too."""
        for table in self.frozen:
            record = table.records.get(key)
            if record is not None:
                return record
        record = self.base.get(key)
        return record if record is None or record >= self.truncation else None

    def overlay(self) -> dict[bytes, bytes]:
        """The newest record or purge marker of every key that is in any memtable."""
        records: dict[bytes, bytes] = {}
        for table in reversed(self.tables):
            records.update(table.records.items())
        return records

    def newest(self) -> bytes:
        """The largest version (24 bytes) of any record; a lower truncation version would spare something."""
        return max(self.base.newest, version_of(max(self.overlay().values(), default=b"")))

    # -- what an exchange compares -------------------------------------------------------------------------------------

    def root(self) -> bytes:
        """The Merkle root, 32 bytes, zeros without records.  Meaningless unless `root_ready`."""
        with self.lock:
            return self.tree.root(self.truncation)

    def prefix_digest(self, prefix: bytes) -> Generator[None, None, bytes]:
        """A digest (32 bytes) of all records under a prefix, dead ones too; zeros without any.  Yields often."""
        total = 0
        after: bytes | None = b""
        while after is not None:
            pairs, after = self.records_page(prefix, after, PAGE_KEYS, HEADS_ONLY)
            total += sum(term_of(head) for _, head in pairs)
            yield
        return sha256((total & LEAF_MASK).to_bytes(LEAF_SIZE, "big")).digest() if total & COUNT_MASK else EMPTY_ROOT

    @property
    def key_count(self) -> int:
        """Keys with a value that has not expired, as far as the expirer is.  Meaningless unless `root_ready`."""
        return self.live_count - self.expired_count

    @property
    def with_expiry(self) -> int:
        """About how many keys have an expiry."""
        waiting = sum(table.expiries.pending for table in self.tables)
        return max(0, self.base.current.size(self.base.current.expiries) - self.expired_count) + waiting

    @property
    def records_max(self) -> int:
        """How many records there are at most, tombstones too; with `root_ready` exactly so many."""
        with self.lock:
            return self.live_count + self.tombstone_count + (len(self._uncounted) if self._uncounted else 0)

    def prepare_root(self) -> Iterator[None]:
        """Does in slices most of what `root` and `inner_digests` would do at once, after many writes."""
        packed = 0
        for first in range(0, INNER_NODES, INNER_SLICE):
            with self.lock:
                packed += self.tree.refresh(range(first, first + INNER_SLICE))
            if packed > LEAVES_SLICE:
                packed = 0
                yield

    def inner_digests(self) -> list[bytes] | None:
        """The digests of the 256 inner nodes, 32 bytes each; None unless `root_ready`."""
        with self.lock:
            return list(self.tree.inner_digests()) if self.root_ready else None

    def leaf_digests(self, inner: int) -> bytes | None:
        """What tells two leaves apart: 8 bytes for each of the 256 below an inner node, zeros when it is empty.

        None unless `root_ready`: a leaf that lacks what is in memory may equal that of a peer, which lacks it, too.
        """
        with self.lock:
            return self.tree.leaf_digests(inner) if self.root_ready else None

    def inner_leaves(self, inner: int) -> bytes:
        """The 256 leaves below an inner node, as in the base: sum of digests (16 bytes) and count (8) each."""
        with self.lock:
            return self.tree.inner_leaves(inner)

    def prepare_buckets(self) -> bool:
        """A slice of a few ms of what `bucket` needs; call it until it is True."""
        with self.lock:
            return all(table.records.group() for table in self.tables)

    def bucket(self, bucket: int) -> list[Pair]:
        """(key, head of 41 bytes) of each record of a bucket, in key order, tombstones too."""
        with self.lock:
            while not self.prepare_buckets():
                pass  # only what has come since the caller's `prepare_buckets`
            keys = set(self.base.current.keys(bucket))
            for table in self.tables:
                keys.update(table.records.bucket(bucket))
            found = [(key, self.lookup(key)) for key in sorted(keys)]
        return [(key, head_of(record)) for key, record in found if record is not None and not is_purge_marker(record)]

    # -- writing -------------------------------------------------------------------------------------------------------

    def put(
        self,
        op: int,
        items: Iterable[Sequence[Any]],
        flags: bytes = FLAGS[0],
        expiry: bytes = b"",
        made: bool = False,
        urgent: bool = False,
    ) -> None:
        """Gives keys new records, one after the other: (anything, key, value), or with `made` (anything, key, record).

        `flags`: of them all.  `expiry`: packed, of them all, with FLAGS[EXPIRY]; if it is empty then, each value begins
        with its own.  The caller has checked them.
        `urgent`: of deletions, which may take the last room on the disk.

        When it raises, everything before that item is done and nothing of it.
        """
        if self.gate.closed:
            self.gate.require_open()
        put_each(self, op, items, flags, expiry, made, urgent)

    def is_corrupt_version(self, key: bytes, record: bytes) -> bool:
        """Whether damage made the version of this record, so that the clock must not follow it: none here is as new."""
        if is_purge_marker(record) or is_sound(key, record):
            return False
        return version_of(record) > self.newest()  # which looks at every key in memory

    def require_sizes(self, key: bytes, value: bytes) -> None:
        """Raises InvalidArgument unless the key has 1 to 511 bytes and the value at most `max_value_size`."""
        if not 0 < len(key) <= MAX_KEY_SIZE:
            raise InvalidArgument(f"key of {len(key)} bytes: a key has 1 to {MAX_KEY_SIZE} bytes")
        if len(value) > self.max_value_size:
            raise InvalidArgument(
                f"value of {len(value)} bytes: more than max_value_size, which is {self.max_value_size} bytes"
            )

    def list_tombstone(self, key: bytes) -> None:
        """Lets the tombstone GC look at a key that was just deleted."""
        self.active.tombstones.append(key)

    def purge(self, key: bytes, old: bytes) -> None:
        """Removes a key's record `old` without a trace: a purge marker hides it until the base drops it."""
        self.put_markers(OP_PURGE, [(None, key, purge_marker(old))])

    def delete(self, op: int, key: bytes, old: bytes) -> None:
        """Like `purge`, but for a client: the log has a deletion, of now."""
        self.put_markers(op, [(None, key, deletion_marker(old, self.clock.gate.wall()))])

    def put_markers(self, op: int, items: Iterable[Sequence[Any]]) -> None:
        """Puts purge markers, as (anything, key, marker), in the place of records."""
        put_each(self, op | REMOTE, items, FLAGS[0], b"", made=True, urgent=True)

    @property
    def watermark(self) -> bytes:
        """What is at or below this expiry place has expired, see expiry.py."""
        return self._watermark

    @watermark.setter
    def watermark(self, place: bytes) -> None:
        self._watermark = place
        self.later = pack_expiry(from_bytes(place[:EXPIRY_SIZE], "big") + 1)  # this expiry is above it with any key

    def count(self, key: bytes, record: bytes, change: int) -> None:
        """Counts a record in, or out with a `change` of -1.  Purge markers do not count."""
        flags = record[FLAGS_AT]
        if flags & TOMBSTONE:
            self.tombstone_count += 0 if flags & PURGED else change
            return
        self.live_count += change
        if flags == EXPIRY:
            if change > 0:
                self.active.expiries.new.append(key)
            watermark = self.watermark
            if record[VALUE_AT:RECORD_OVERHEAD] <= watermark and FIRST_PLACE < expiry_place(key, record) <= watermark:
                self.expired_count += change

    def restart_expiry(self) -> None:
        """Counts no key as expired; the expirer starts again."""
        self.watermark, self.expired_count = FIRST_PLACE, 0
        for table in self.tables:
            table.expiries.start_over()

    def put_metadata(self, name: bytes, value: bytes) -> None:
        """Stores a metadata entry, at most METADATA_SIZE_MAX bytes, in the place of the one before.

        It is durable when a write would be.  Raises InvalidArgument, Shortage.
        """
        if not 0 < len(name) <= METADATA_NAME_SIZE_MAX or len(value) > METADATA_SIZE_MAX:
            raise InvalidArgument(
                f"metadata entry of {len(name)} and {len(value)} bytes: a name has 1 to {METADATA_NAME_SIZE_MAX} bytes "
                f"and a value at most {METADATA_SIZE_MAX}"
            )
        self.append(OP_METADATA | REMOTE, name, value, waits=False)
        self.metadata[name] = value

    def repair(self, bucket: int, key: bytes = b"") -> None:
        """Has index, leaf and counters of a bucket rebuilt by a checkpoint, after the next commit.  Takes the lock.

        `key`: a key of the bucket that its index may lack, or have wrongly.
        """
        with self.lock:
            self.append(OP_REPAIR | REMOTE, bucket.to_bytes(2, "big"), key, waits=False)
            self.repair_lsn = self.active.lsn

    def raise_truncation(self, op: int, truncation: bytes) -> None:
        """Makes every record below a version (24 bytes) dead.  Raises Shortage."""
        base = self.base.pinned()
        self.append(op, b"", truncation)
        if op < REMOTE:
            self.log.sequence += 1
        self.clock.truncated_through = timestamp_of(truncation)
        self.clock.close_through(timestamp_of(truncation))
        self.truncation = truncation
        self._drop_below(truncation)
        self.rebuild(base)

    def _drop_below(self, truncation: bytes) -> None:
        """Drops what is dead from the memtables, and shows nothing that it has hidden.

        A dead record may be older than the one below it: where a purged key came back from an old dump, or where a
        damaged record was replaced.
        """
        hides = self.base.newest >= truncation
        for table in reversed(self.tables):
            table.drop_below(truncation, hides)
            hides = hides or bool(table.records)

    def append(self, op: int, name: bytes, body: bytes, waits: bool = True) -> None:
        """Adds a pending entry, an urgent one.  Raises Shortage, and Stalled if `waits`, with nothing changed."""
        entry = _entry(op, len(name), len(body)) + name + body
        self.reserve(len(entry), urgent=True, waits=waits)
        self.log.pending.append(entry)
        self.log.pending_size += len(entry)
        self.log.appended += 1

    def reserve(self, size: int, urgent: bool, waits: bool = True) -> None:
        """Makes room in the log for `size` more bytes of entries.  Raises Shortage, and Stalled if `waits`."""
        size += self.log.pending_size
        if size > (self.log.urgent_room if urgent else self.log.room):
            self.log.reserve(size, urgent, waits)

    # -- layers --------------------------------------------------------------------------------------------------------

    @property
    def needs_checkpoint(self) -> bool:
        """Whether the tree is right only after a checkpoint of the active segment: of a truncation or a repair."""
        return not self.frozen and (not self.is_swept or self.repair_lsn == self.active.lsn)

    def freeze(self, following: Memtable) -> None:
        """Goes on with this new memtable."""
        self.frozen.insert(0, self.active)
        self._adopt_active(following)

    def take_over_base(self) -> None:
        """Moves to the base's newest snapshot and drops the memtables that it has taken in.  Raises Shortage."""
        base = self.base.pinned()  # and moved there
        self.frozen = [table for table in self.frozen if table.lsn >= self.base.checkpoint_lsn]
        is_repaired = self.repair_lsn is not None and self.repair_lsn < self.base.checkpoint_lsn
        if is_repaired:
            self.repair_lsn = None
        if is_repaired or not self.is_swept:
            self.rebuild(base)

    def segments_to_replay(self) -> list[int]:
        """LSNs of the segments after the checkpoint, oldest first."""
        return [table.lsn for table in reversed(self.tables) if table.lsn >= self.base.checkpoint_lsn]

    def rebuild(self, base: Base) -> None:
        """Makes tree and counters anew, from those of the base and what the memtables change of them.

        `base`: the table's, pinned at this moment.
        """
        base_is_dead = base.newest < self.truncation
        self.is_swept = base_is_dead or base.truncation == self.truncation
        # One that waits for a sweep is begun anew after it.  It keeps no moment of the base: the sweep needs its pages.
        shown = base if self.is_swept and not base_is_dead else None
        count = Count(self.overlay(), shown, self.truncation)
        tree = self.tree_type({} if base_is_dead else base.leaves())
        live, dead = (0, 0) if base_is_dead else (base.live, base.dead)
        is_known = self.is_swept and not (self.has_thread and len(count) > COUNTED_AT_ONCE)
        if is_known and (changes := count.run(tree)) is not None:
            live, dead = live + changes.live, dead + changes.dead
        self.root_ready = self.root_ready and is_known
        self.tree = tree
        self.live_count, self.tombstone_count = live, dead
        self.restart_expiry()
        self._adopt_active(self.active)
        self._uncounted = None if is_known else count
        self.root_ready = is_known  # last: a reader without the lock that sees it set may read the counters
        with self._counted:
            self._counted.notify_all()

    def count_in(self, goes_on: Callable[[], bool]) -> None:
        """Does what `rebuild` has left to a thread, if anything; all of it, unless it does not go on.  Takes the lock.

        Raises StorageFailed, Shortage.
        """
        count = self._uncounted
        if count is None or not self.is_swept:
            return
        tree = self.tree_type({})
        try:
            changes = count.run(tree, lambda: self._uncounted is count and goes_on())
        except Exception as error:
            if is_shortage(error):
                raise shortage_of(error, "cannot count the keys") from error
            raise StorageFailed(f"{self.base.path}: cannot count the keys: {reason_of(error)}") from error
        with self.lock:
            if changes is not None and self._uncounted is count:
                self.tree.merge(tree)
                self.live_count += changes.live
                self.tombstone_count += changes.dead
                self._uncounted = None
                self.root_ready = True
                self._counted.notify_all()

    @property
    def is_counting(self) -> bool:
        """Whether tree and counters will be known when a thread has counted, so that waiting helps."""
        return self._uncounted is not None and self.is_swept and not self.is_ending

    def wait_until_counted(self, timeout_s: float) -> bool:
        """Waits while `is_counting`; False when the time is over."""
        with self._counted:
            return self._counted.wait_for(lambda: not self.is_counting, timeout_s)

    def end_waits(self) -> None:
        """The node stops: wakes all that wait for tree and counters."""
        with self._counted:
            self.is_ending = True
            self._counted.notify_all()

    def _adopt_active(self, table: Memtable) -> None:
        self.active = table
        self.records = _HIDDEN if self.is_hidden else table.records

    def hide(self, hidden: bool) -> None:
        """Makes reads of other threads wait for the lock, so that they see nothing between two writes; ends that."""
        self.is_hidden = hidden
        self.records = _HIDDEN if hidden else self.active.records
