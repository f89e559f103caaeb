"""What the node holds now, in memory and on disk, and the one place where that changes.

`State` joins the layers (what a key maps to), the log's pending entries, the Merkle leaves and the counters, and keeps
them in step: `_put` moves all of them from a key's old record to its new one, `_remove` takes a record away,
`_raise_truncation` kills what is below a version, `note` keeps a small fact beside them.  Reads are here too.  Who may
write, what a command means, and when all this becomes durable: engine.py.

The tree's leaves are those of the base plus what the memtables change, so absorbing a memtable leaves them as they
are.  Only a floor that spares some of the base's records makes them unknown until the absorber has swept the base.

Invariants, checked by check.py: leaves and counters are those of the newest records above the floor; every record is
at or above the floor; the log's segments hold what the memtables hold.
"""

import threading
from collections.abc import Generator, Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from merklekv.engine.base import Pair
from merklekv.engine.clock import HybridClock
from merklekv.engine.directory import DataDirectory
from merklekv.engine.format import (
    ENTRY,
    LEAF_SIZE,
    MAX_KEY_SIZE,
    METADATA_NAME_SIZE_MAX,
    METADATA_SIZE_MAX,
    OP_METADATA,
    OP_PURGE,
    REMOTE,
)
from merklekv.engine.memtable import KEY_OVERHEAD
from merklekv.engine.merkle import COUNT_MASK, EMPTY_ROOT, LEAF_MASK, MerkleTree, term_of
from merklekv.engine.record import (
    DIGEST_AT,
    FLAGS,
    FLAGS_AT,
    KEY_LENGTHS,
    PURGED,
    RECORD_OVERHEAD,
    TOMBSTONE,
    VALUE_AT,
    VERSION_SIZE,
    is_live,
    is_purge_marker,
    is_sound,
    is_tombstone,
    purge_marker,
    value_of,
    version_of,
)
from merklekv.engine.recovery import open_layers
from merklekv.errors import DiskFull, InvalidArgument, MerkleKVError, Shortage, Stalled

PAGE_KEYS: Final = 1000
PAGE_BYTES: Final = 1 << 20

_entry = ENTRY.pack
from_bytes = int.from_bytes


def refusal(shortage: Shortage) -> Shortage:
    """What clients are told; the log says more."""
    if isinstance(shortage, DiskFull):
        return DiskFull("disk full, write not stored")
    return Shortage("resource shortage, write not stored")


class State:
    """An open data directory's contents.  Raises what opening can raise, see `Engine`."""

    def __init__(self, path: Path, clock: HybridClock, max_value_size: int) -> None:
        self.max_value_size = max_value_size
        self.lock = threading.RLock()
        self.root_ready = False  # whether tree and counts are known
        self.stalled = False  # writes are refused, for one of these reasons, or because merging is behind
        self._failure: MerkleKVError | None = None
        self._unwritable: Shortage | None = None  # the log cannot be written
        self._untold: set[int] = set()  # threads whose next `commit` has to say that changes were taken back
        self.why_taken_back = Shortage()  # the last time
        self._unmergeable: Shortage | None = None  # nor can what is in memory be merged
        self._owed: dict[bytes, bytes] = {}  # notes that come before any write and did not fit on the disk
        self.clock = clock
        self.directory = DataDirectory(path)
        try:
            self._layers, self._log, newest, self.metadata, self._repair_lsn = open_layers(self.directory)
        except BaseException:
            self.directory.release()
            raise
        clock.observe(newest)
        clock.observe_truncation(self._layers.truncation)
        clock.found = clock.last
        self._rebuild_tree()

    def record(self, key: bytes) -> bytes | None:
        """The raw record of a key, a tombstone too."""
        record = self._records.get(key)
        if record is None:
            if not 0 < len(key) <= MAX_KEY_SIZE:
                return None
            with self.lock:
                record = self._layers.lookup(key)
        return None if record is None or is_purge_marker(record) else record

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        record = self._records.get(key)
        if record is None:
            if not 0 < len(key) <= MAX_KEY_SIZE:
                return None
            with self.lock:
                record = self._layers.lookup(key)
        if record is None:
            return None
        flags = record[FLAGS_AT]
        if not flags:
            return record[VALUE_AT:]
        return None if flags & TOMBSTONE else value_of(record)

    def exists(self, key: bytes) -> bool:
        """Whether a key has a value."""
        record = self.record(key)
        return record is not None and is_live(record)

    def page(
        self, prefix: bytes = b"", after: bytes | None = None, limit: int = PAGE_KEYS
    ) -> tuple[list[bytes], bytes | None]:
        """At most `limit` live keys with this prefix above `after`, in order, and where to go on; None: that was all.

        One call is short, and sees one moment.  It may return no keys although more follow.
        """
        with self.lock:
            pairs, following = self._layers.page(prefix, after or b"", limit)
        return [key for key, head in pairs if is_live(head)], following

    def records_page(
        self, prefix: bytes = b"", after: bytes | None = None, limit: int = PAGE_KEYS, max_bytes: int = PAGE_BYTES
    ) -> tuple[list[Pair], bytes | None]:
        """Like `page`, but (key, record), with tombstones; ends behind `max_bytes` of records."""
        with self.lock:
            return self._layers.page(prefix, after or b"", limit, max_bytes)

    def random_key(self) -> bytes | None:
        """Some live key, None when there is none."""
        with self.lock:
            return self._layers.random_key() if self.live_count or not self.root_ready else None

    def root(self) -> bytes:
        """The Merkle root, 32 bytes, zeros without records.  Meaningless unless `root_ready`."""
        with self.lock:
            return self._tree.root(self._layers.truncation)

    def prefix_digest(self, prefix: bytes) -> Generator[None, None, bytes]:
        """A digest (32 bytes) of all records under a prefix, dead ones too; zeros without any.  Yields often."""
        total = 0
        after: bytes | None = b""
        while after is not None:
            with self.lock:
                pairs, after = self._layers.page(prefix, after, PAGE_KEYS)
            total += sum(term_of(head) for _, head in pairs)
            yield
        return sha256((total & LEAF_MASK).to_bytes(LEAF_SIZE, "big")).digest() if total & COUNT_MASK else EMPTY_ROOT

    @property
    def truncation(self) -> bytes:
        """The version (24 bytes) below which every record is dead."""
        return self._layers.truncation

    def _put(self, op: int, items: Iterable[Sequence[Any]], flags: bytes = FLAGS[0], made: bool = False) -> None:
        """Gives keys new records, one after the other: (anything, key, value), or with `made` (anything, key, record).

        The one place where data is written: log entry, memtable, leaf and counters.  What can fail comes first, so when
        it raises, everything before that item is done and nothing of it.  It is the hot path of all writes: it looks
        things up once for all items, calls as little as it can, and spells out `make_record` and `MerkleTree.add`.
        """
        if self.stalled:
            self._require_writable()
        log_, tree, records, older = self._log, self._tree, self._records, self._layers.older
        sums, counts, dirty = tree.sums, tree.counts, tree.dirty
        append, next_version = log_.pending.append, self.clock.next
        size, count, room, grown, live = log_.pending_size, 0, log_.room, 0, 0
        size_max = self.max_value_size + (RECORD_OVERHEAD if made else 0)
        try:
            for _, key, value in items:
                if not 0 < len(key) <= MAX_KEY_SIZE or len(value) > size_max:
                    self._require_sizes(key, value)
                in_active = old = records.get(key)
                if old is None:
                    old = older(key)
                if made:
                    record = value
                    digest = record[DIGEST_AT:VALUE_AT]
                else:
                    version = next_version()
                    if old is not None and version <= old and not self._is_made_up(key, old):
                        version = self.clock.after(old)
                    head = version + flags
                    digest = xxh3_128_digest(KEY_LENGTHS[len(key)] + key + head + value)
                    record = head + digest + value
                entry = _entry(op, len(key), len(record)) + key + record
                needed = size + len(entry)
                if needed > room:
                    log_.reserve(needed)
                    room = log_.room
                size = needed
                count += 1
                append(entry)
                records[key] = record
                bucket = xxh3_64_intdigest(key) >> 48
                dirty.add(bucket >> 8)
                if old is None:
                    sums[bucket] += from_bytes(digest, "big")
                    counts[bucket] += 1
                    if record[FLAGS_AT] & TOMBSTONE:
                        self.tombstone_count += 1
                    else:
                        live += 1
                else:
                    sums[bucket] += from_bytes(digest, "big") - from_bytes(old[DIGEST_AT:VALUE_AT], "big")
                    if old[FLAGS_AT] != record[FLAGS_AT]:
                        if old[FLAGS_AT] & PURGED:
                            counts[bucket] += 1
                        else:
                            self._count(old, -1)
                        self._count(record, 1)
                if in_active is None:
                    grown += len(key) + len(record) + KEY_OVERHEAD
                else:
                    grown += len(record) - len(in_active)
        finally:
            log_.pending_size = size
            log_.appended += count
            if op < REMOTE:
                log_.sequence += count
            self._active.size += grown
            self.live_count += live

    def _is_made_up(self, key: bytes, record: bytes) -> bool:
        """Whether a record has its version from damage: none as new was ever here, and the clock must not follow it."""
        return not is_sound(key, record) and version_of(record) > self._layers.newest()

    def _require_sizes(self, key: bytes, value: bytes) -> None:
        if not 0 < len(key) <= MAX_KEY_SIZE:
            raise InvalidArgument(f"key of {len(key)} bytes: a key has 1 to {MAX_KEY_SIZE} bytes")
        if len(value) > self.max_value_size:
            raise InvalidArgument(
                f"value of {len(value)} bytes: more than max_value_size, which is {self.max_value_size} bytes"
            )

    def _remove(self, key: bytes, old: bytes) -> None:
        """Takes a key's record away as if it had never been: a marker hides it until the base has forgotten it."""
        marker = purge_marker(old)
        entry = _entry(OP_PURGE | REMOTE, len(key), len(marker)) + key + marker
        self._make_room(len(entry))
        self._log_entry(entry)
        in_active = self._records.get(key)
        self._active.size += len(marker) + (len(key) + KEY_OVERHEAD if in_active is None else -len(in_active))
        self._records[key] = marker
        self._tree.add(key, old, -1)
        self._count(old, -1)

    def _count(self, record: bytes, change: int) -> None:
        if is_tombstone(record):
            self.tombstone_count += change
        else:
            self.live_count += change

    @property
    def makes_wait(self) -> bool:
        """Whether a write would raise Stalled now; stalled for lack of something, it raises Shortage instead."""
        return self.stalled and self._shortage is None and self._failure is None

    @property
    def _shortage(self) -> Shortage | None:
        return self._unwritable or self._unmergeable

    def _probe(self) -> None:
        """Looks whether the log can be written again, if it could not."""
        raise NotImplementedError

    def _require_writable(self) -> None:
        # What this thread did before is gone, and its next `commit` says so: of what it does until then, too.
        if self._untold and threading.get_ident() in self._untold:
            raise self.why_taken_back
        if self.stalled and self._unwritable is not None:
            self._probe()
        if self.stalled:
            if self._failure is not None:
                raise self._failure
            if self._shortage is not None:
                raise refusal(self._shortage)
            raise Stalled("merging is behind, writes wait for it")

    def note(self, name: bytes, value: bytes) -> None:
        """Keeps a small fact, at most NOTE_SIZE_MAX bytes, in the place of the one before.  Durable as a write is."""
        if not 0 < len(name) <= METADATA_NAME_SIZE_MAX or len(value) > METADATA_SIZE_MAX:
            raise InvalidArgument(
                f"metadata entry of {len(name)} and {len(value)} bytes: a name has 1 to {METADATA_NAME_SIZE_MAX} bytes "
                f"and a value at most {METADATA_SIZE_MAX}"
            )
        with self.lock:
            entry = _entry(OP_METADATA | REMOTE, len(name), len(value)) + name + value
            self._make_room(len(entry))
            self._log_entry(entry)
            self.metadata[name] = value
            self._owed.pop(name, None)

    def _raise_truncation(self, op: int, truncation: bytes) -> None:
        self._make_room(ENTRY.size + VERSION_SIZE)
        self._log_entry(_entry(op, 0, VERSION_SIZE) + truncation)
        if op < REMOTE:
            self._log.sequence += 1
        self.clock.observe_truncation(truncation)
        self._layers.raise_truncation(truncation)
        self._rebuild_tree()

    def _log_entry(self, entry: bytes) -> None:
        self._log.pending.append(entry)
        self._log.pending_size += len(entry)
        self._log.appended += 1

    def _make_room(self, size: int) -> None:
        size += self._log.pending_size
        if size > self._log.room:
            self._log.reserve(size)

    def _rebuild_tree(self) -> None:
        """Leaves and counters from the base's own and the memtables; needs a base without dead records."""
        layers = self._layers
        base = layers.base
        base_is_dead = base.newest < layers.truncation
        is_ready = base_is_dead or base.truncation == layers.truncation
        self.root_ready = self.root_ready and is_ready
        self._tree = MerkleTree(None if base_is_dead else base.leaves())
        add = self._tree.add
        live, dead = (0, 0) if base_is_dead else (base.live, base.dead)
        of_base = layers.base_record
        for key, record in layers.overlay().items():
            if not is_purge_marker(record):
                add(key, record)
                if is_tombstone(record):
                    dead += 1
                else:
                    live += 1
            hidden = of_base(key)
            if hidden is not None:
                add(key, hidden, -1)
                if is_tombstone(hidden):
                    dead -= 1
                else:
                    live -= 1
        self.live_count, self.tombstone_count = live, dead
        self._adopt_active()
        self.root_ready = is_ready  # last: who sees it set reads the counts without the lock

    def _adopt_active(self) -> None:
        self._active = self._layers.active
        self._records = self._active.records
