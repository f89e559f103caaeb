"""The base as all processes but the checkpoint process see it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb
from xxhash import xxh3_64_digest

from merklekv.engine.access import damage
from merklekv.engine.base.environment import METADATA_PREFIX, OPEN_PATIENCE_S, opened, translate, translating
from merklekv.engine.base.places import PLACE_SPLIT, bucket_of_place, shared_list
from merklekv.engine.format import INNER_NODES, MAX_KEY_SIZE
from merklekv.engine.memtable import Records, charge
from merklekv.engine.merkle import NO_LEAVES
from merklekv.engine.record import (
    EXPIRY_SIZE,
    RECORD_OVERHEAD,
    VALUE_AT,
    VERSION_SIZE,
    ZERO_VERSION,
    Pair,
    padded,
)

META_SIZES: Final = dict.fromkeys((b"checkpoint_lsn", b"checkpointing", b"live", b"dead"), 8) | dict.fromkeys(
    (b"truncation", b"newest"), VERSION_SIZE
)
KEPT_BYTES: Final = 32 << 20  # of records that clients have read
KEPT_RECORD_SIZE: Final = 1024  # larger ones are not kept: there the copying costs more than the search


class Space(NamedTuple):
    """Bytes of the base's file, in pages that hold something and in pages that LMDB reuses."""

    used: int
    free: int


class BaseSnapshot(NamedTuple):
    """One moment of the base: a read transaction, and the handles of the databases in it."""

    txn: Any
    records: Any
    index: Any
    tombstones: Any
    expiries: Any
    leaves: Any
    meta: Any

    def size(self, database: Any) -> int:
        """How many entries a database has."""
        return int(self.txn.stat(database)["entries"])

    @property
    def databases(self) -> "tuple[Any, ...]":
        """All of them."""
        return self[1:]

    @property
    def used_pages(self) -> int:
        """How many pages of the file hold something: two of LMDB's own, one of names, and those of the databases."""
        return 3 + sum(self.pages(database) for database in self.databases)

    def pages(self, database: Any) -> int:
        """How many pages a database has."""
        stat = self.txn.stat(database)
        return int(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])

    def overflow_pages(self, database: Any) -> int:
        """How many of these hold values that are too large to share a page."""
        return int(self.txn.stat(database)["overflow_pages"])

    def number(self, name: bytes) -> int:
        """A number in `meta`, 0 without one."""
        return int.from_bytes(self.txn.get(name, b"", db=self.meta), "big")

    def head(self, key: bytes) -> bytes | None:
        """The head of a key's record, or what there is of it."""
        record = self.txn.get(key)
        return None if record is None else bytes(record[:VALUE_AT])

    def leaf_bytes(self, node: int) -> bytes:
        """The 256 leaves below an inner node, as they are stored."""
        return bytes(self.txn.get(bytes((node,)), NO_LEAVES, db=self.leaves))

    def keys(self, bucket: int) -> list[bytes]:
        """The keys that the index lists in a bucket, in order."""
        with self.txn.cursor(db=self.index) as cursor:
            return [bytes(key) for key in cursor.iternext_dup()] if cursor.set_key(bucket.to_bytes(2, "big")) else []


class Base:
    """The base as readers see it: a snapshot that `refresh` moves forward.  Not locked.

    After a compaction another Base takes its place.  Then it stays open for as long as something refers to it, or to a
    snapshot of it.
    """

    def __init__(self, path: Path, patience_s: float = OPEN_PATIENCE_S) -> None:
        self.path = path  # a compaction changes it: the directory moves
        self._is_pinned = False
        self.current: BaseSnapshot  # valid until `refresh`
        with opened(path, patience_s, readonly=True, max_spare_txns=4) as (self._env, self._databases):
            self._begin()

    def refresh(self) -> None:
        """Moves to what the writer has committed since.  Raises Shortage, and stays where it is then."""
        old = self.current.txn
        self._begin()
        old.abort()

    def pinned(self) -> "Base":
        """Another view of the same file, and this one moved to the same moment.  It stays there, and needs no close.

        One thread may read it beside others that read this one.  Raises Shortage.
        """
        self.refresh()  # first: it makes the map large enough
        view = copy(self)
        view._is_pinned = True
        view._begin()
        return view

    def _begin(self) -> None:
        records = self._databases[0]
        with translating(self.path):
            try:
                txn = self._env.begin(db=records)
            except lmdb.MapResizedError:  # the file has outgrown the map, which no transaction may use while it grows
                self.current.txn.abort()
                self._env.set_mapsize(0)
                txn = self._env.begin(db=records)
            current = BaseSnapshot(txn, *self._databases)
            try:
                self._read_meta(current)
            except BaseException:
                txn.abort()
                raise
        self.current = current
        self.get: Callable[[bytes], bytes | None] = txn.get  # the hot path: one C call, see `failed`
        self.kept = Records(is_ordered=False)  # what clients have read of this snapshot lately
        self._kept_size = 0

    def _read_meta(self, view: BaseSnapshot) -> None:
        for name, size in META_SIZES.items():
            if len(view.txn.get(name, bytes(size), db=view.meta)) != size:
                raise damage(f"{self.path}: {name.decode()} in meta has not {size} bytes")
        self.checkpoint_lsn = view.number(b"checkpoint_lsn")
        self.checkpointing = view.txn.get(b"checkpointing", None, db=view.meta) is not None
        self.truncation: bytes = view.txn.get(b"truncation", ZERO_VERSION, db=view.meta)
        self.newest: bytes = view.txn.get(b"newest", ZERO_VERSION, db=view.meta)
        self.live = view.number(b"live")
        self.dead = view.number(b"dead")

    def failed(self, error: Exception) -> Exception:
        """What an error of `get` means: Corruption, mostly.

        LMDB ends a transaction in which a read has met damage, so `refresh` makes another, for all other keys.
        """
        if not isinstance(error, lmdb.Error):
            return error
        if not self._is_pinned:
            self.refresh()
        return translate(error, self.path)

    @contextmanager
    def reading(self) -> Iterator[BaseSnapshot]:
        """The current snapshot, for a block that reads it.  Raises Corruption, Shortage, StorageFailed."""
        try:
            yield self.current
        except lmdb.Error as error:
            raise self.failed(error) from error

    def read(self, key: bytes) -> bytes | None:
        """Like `get`, for a client: it may soon ask for the same again, which then costs a fifth.

        Up to KEPT_BYTES of small records are kept.
        """
        record = self.kept.get(key)
        if record is None:
            try:
                record = self.get(key)
            except lmdb.Error as error:
                raise self.failed(error) from error
            record = None if record is None else padded(record)
            if record is not None and len(record) <= KEPT_RECORD_SIZE:
                self._kept_size += charge(key, record)
                if self._kept_size > KEPT_BYTES:
                    self.kept, self._kept_size = Records(is_ordered=False), charge(key, record)
                self.kept[key] = record
        return record

    @property
    def space(self) -> Space:
        """How much of the file is used, and how much is free for the next records.  Costs 10 us, whatever the size.

        Half-empty pages count as used: scattered deletions free a page when three quarters of it are gone.  Needs no
        lock: another thread may refresh meanwhile.
        """
        with translating(self.path), self.snapshot() as view:
            used_pages = view.used_pages
        pages = self._env.info()["last_pgno"] + 1
        used = min(pages, used_pages)
        return Space(used * self.page_size, (pages - used) * self.page_size)

    @property
    def page_size(self) -> int:
        """Bytes of a page."""
        return int(self._env.stat()["psize"])

    def leaves(self) -> dict[int, bytes]:
        """The 256 leaves below each inner node that has any, as `merkle` keeps them.  Raises Corruption."""
        found = {}
        with self.reading() as view:
            for node in range(INNER_NODES):
                packed = view.leaf_bytes(node)
                if len(packed) != len(NO_LEAVES):
                    raise damage(f"{self.path}: the leaves of inner node {node} have {len(packed)} bytes")
                if packed != NO_LEAVES:
                    found[node] = packed
        return found

    def heads_from(self, low: bytes, end: bytes | None, limit: int) -> list[Pair]:
        """Like `records_from`, but (key, the first 49 bytes of the record)."""
        return self.records_from(low, end, limit, sys.maxsize, RECORD_OVERHEAD)

    def records_from(
        self, low: bytes, end: bytes | None, limit: int, max_bytes: int, record_part: int | None = None
    ) -> list[Pair]:
        """At most `limit` (key, record) from `low` to below `end` (None: no bound), in order; stops behind `max_bytes`.

        `record_part`: as many bytes of each record.
        """
        found: list[Pair] = []
        size = 0
        with translating(self.path), self.snapshot(buffers=True) as view, view.txn.cursor() as cursor:
            if not cursor.set_range(low[:MAX_KEY_SIZE]):
                return found
            for key_view, record_view in cursor.iternext():
                key = bytes(key_view)
                if end is not None and key >= end:
                    break
                if key >= low:  # not so only when `low` is a key of the largest size and a zero
                    found.append((key, padded(bytes(record_view[:record_part]))))
                    size += len(record_view)  # `Table.records_page` tells by the same sum whether this was cut off
                    if len(found) >= limit or size >= max_bytes:
                        break
        return found

    def tombstones_from(self, version: bytes, bound: bytes, limit: int) -> list[Pair]:
        """At least `limit` (version, key) of tombstones above `version` and at most `bound`, if there are as many."""
        found: list[Pair] = []
        with self.reading() as view, view.txn.cursor(db=view.tombstones) as cursor:
            ahead = cursor.set_range(version)
            if ahead and cursor.key() == version:
                ahead = cursor.next_nodup()
            while ahead and cursor.key() <= bound and len(found) < limit:
                found += [(cursor.key(), key) for key in cursor.iternext_dup()]  # all of a version
                ahead = cursor.next_nodup()
        return found

    def expiries_from(self, after: bytes, upto: bytes, limit: int) -> list[bytes]:
        """At most `limit` expiry places above `after` (14 bytes) up to `upto`, in order."""
        place = (int.from_bytes(after, "big") + 1).to_bytes(len(after), "big")
        name, item = place[:PLACE_SPLIT], place[PLACE_SPLIT:]
        found: list[bytes] = []
        with self.reading() as view, view.txn.cursor(db=view.expiries) as cursor:
            if not cursor.set_range_dup(name, item):  # it has no list of that name, or nothing so late in it
                following = (int.from_bytes(name, "big") + 1).to_bytes(PLACE_SPLIT, "big")
                if not cursor.set_range(following):
                    return found
            for name, item in cursor.iternext():
                place = name + item
                if place > upto or len(found) >= limit:
                    break
                found.append(place)
        return found

    def keys_at(self, place: bytes) -> list[bytes]:
        """The keys that may be those of an expiry place, whatever they map to."""
        hashed = place[EXPIRY_SIZE:]
        return [key for key in self.keys(bucket_of_place(place)) if xxh3_64_digest(key).startswith(hashed)]

    def is_shared(self, place: bytes) -> bool:
        """Whether more than one record has had this expiry place; then it may be listed although none has it now."""
        with self.reading() as view, view.txn.cursor(db=view.expiries) as cursor:
            return bool(cursor.set_key_dup(shared_list(place), place[PLACE_SPLIT:]))

    def metadata(self) -> dict[bytes, bytes]:
        """The metadata entries that the last checkpoint stored."""
        with self.reading() as view, view.txn.cursor(db=view.meta) as cursor:
            return {
                name.removeprefix(METADATA_PREFIX): value for name, value in cursor if name.startswith(METADATA_PREFIX)
            }

    def keys(self, bucket: int) -> list[bytes]:
        """The keys that the index lists in a bucket, in order."""
        with self.reading() as view:
            return view.keys(bucket)

    def index_key_from(self, bucket: int) -> bytes | None:
        """Some key of this bucket or of the next one that has any."""
        with self.reading() as view, view.txn.cursor(db=view.index) as cursor:
            return bytes(cursor.value()) if cursor.set_range(bucket.to_bytes(2, "big")) else None

    @contextmanager
    def snapshot(self, buffers: bool = False) -> Iterator[BaseSnapshot]:
        """What the writer has committed by now.  `buffers`: values are views that end with the block."""
        begin: Any = self._env.begin  # its type stubs want a literal for `buffers`
        with begin(db=self._databases[0], buffers=buffers) as txn:
            yield BaseSnapshot(txn, *self._databases)

    def close(self) -> None:
        """Ends the snapshot and the map."""
        self.current.txn.abort()
        self._env.close()
