"""The base: all records but the most recent, in LMDB, in key order.

One process writes it (the checkpoint process, `BaseWriter`), others read it (`Base`).  Each transaction changes records
together with their leaves and counters.  The index (keys of each bucket) follows in transactions of its own, in bucket
order, which touches each of its pages once; while the `checkpointing` mark is set, it may lack keys.

Memory of a writer: one transaction's pages, TRANSACTION_KEYS or TRANSACTION_BYTES.  Cost: a transaction syncs once.

meta
    checkpoint_lsn  8    LSN up to which the base holds the whole log
    checkpointing   8    LSN that the checkpoint in progress will reach; absent when none is
    truncation     24    versions below it are gone
    newest         24    no record has a larger version
    live            8    keys whose record is no tombstone
    dead            8    tombstones
    metadata:*      n    metadata entries
"""

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final, NamedTuple

import lmdb
from xxhash import xxh3_64_intdigest

from merklekv.engine.access import damage, no_permission
from merklekv.engine.format import INNER_NODES, LEAF_SIZE, MAX_KEY_SIZE, bucket_of
from merklekv.engine.lmdb_file import require_whole
from merklekv.engine.merkle import LEAF_MASK, LEAVES_PER_INNER, NO_LEAVES, term_of
from merklekv.engine.record import (
    DIGEST_AT,
    FLAGS_AT,
    PURGED,
    TOMBSTONE,
    VALUE_AT,
    VERSION_SIZE,
    ZERO_VERSION,
    is_sound,
)
from merklekv.errors import DirectoryLocked, DiskFull, MerkleKVError, Shortage, StorageFailed
from merklekv.files import FILE_MODE
from merklekv.pause import pause
from merklekv.shortage import NO_ROOM, number_of

FULL_BELOW: Final = 1 << 20  # bytes: a disk with less room than this is taken for full when a write has failed
TRANSACTION_KEYS: Final = 8192
TRANSACTION_BYTES: Final = 8 << 20
SHRUNK: Final = 2  # a record that becomes smaller by this factor is deleted before it is put
# Sparse: an address range, not memory and not disk.  It is larger where the file already is.
MAP_SIZE: Final = 1 << 38 if sys.maxsize > 2**32 else 1 << 30

DATA_FILE: Final = "data.mdb"
DATABASES: Final = (b"records", b"index", b"tombstones", b"leaves", b"meta")
LISTS: Final = (b"index", b"tombstones")  # several sorted values to a key
METADATA_PREFIX: Final = b"metadata:"

OPEN_PATIENCE_S: Final = 10.0
OPEN_POLL_S: Final = 0.1
READERS_POLL_S: Final = 0.001
_READER: Final = re.compile(r"^ *\d+ +[0-9a-f]+ +(\d+)$", re.MULTILINE)  # process, thread, transaction that it sees
SHORTAGES: Final = (lmdb.ReadersFullError, lmdb.MapFullError, lmdb.MapResizedError, lmdb.MemoryError, lmdb.TlsFullError)
_EIO: Final = os.strerror(errno.EIO)

Pair = tuple[bytes, bytes]


def translate(error: lmdb.Error, path: Path) -> MerkleKVError:
    """What an LMDB error means to the person who runs the node."""
    text = str(error)
    if isinstance(error, (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)):
        return damage(f"{path}: LMDB reports damage: {text}")
    if isinstance(error, lmdb.LockError):
        return DirectoryLocked(
            f"{path}: in use by a process of another container with the same process id as this one; try again"
        )
    number = number_of(text)
    if number in NO_ROOM or isinstance(error, lmdb.DiskError) or (text.endswith(_EIO) and is_full(path)):
        return DiskFull(f"{path}: disk full, cannot checkpoint")
    if number in (errno.EACCES, errno.EPERM) or isinstance(error, lmdb.ReadonlyError):
        return no_permission(path.parent)
    if number or isinstance(error, SHORTAGES):
        return Shortage(f"{path}: LMDB lacks something: {text}")
    return StorageFailed(f"{path}: LMDB failed: {text}")


def is_full(directory: Path) -> bool:
    """Whether the disk has no room left.  LMDB calls a write that this has cut short an input/output error."""
    try:
        with TemporaryFile(dir=directory) as probe:
            os.posix_fallocate(probe.fileno(), 0, FULL_BELOW)
    except OSError as error:
        return error.errno in NO_ROOM
    return False


@contextmanager
def _opened(path: Path, patience_s: float, **options: Any) -> "Iterator[tuple[lmdb.Environment, list[Any]]]":
    """An environment and its databases; it stays open unless the block fails."""
    require_whole(path / DATA_FILE)
    try:
        environment = _open(path, patience_s, **options)
        try:
            create = not options.get("readonly")
            yield environment, [environment.open_db(name, create=create, dupsort=name in LISTS) for name in DATABASES]
        except BaseException:
            environment.close()
            raise
    except lmdb.Error as error:
        raise translate(error, path) from error


def map_size_of(directory: Path) -> int:
    """Bytes of address space for the base in this directory, or for a new one."""
    file = directory / DATA_FILE
    return max(MAP_SIZE, 2 * file.stat().st_size if file.exists() else 0)


def _open(path: Path, patience_s: float, **options: Any) -> lmdb.Environment:
    """LMDB locks a byte for the process id of each user; another container may have a process of the same id."""
    map_size = map_size_of(path)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return lmdb.open(
                str(path), mode=FILE_MODE, max_dbs=len(DATABASES), map_size=map_size, readahead=False, **options
            )
        except lmdb.LockError:
            if time.monotonic() >= deadline:
                raise
            pause(OPEN_POLL_S)


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
    leaves: Any
    meta: Any

    def size(self, database: Any) -> int:
        """How many entries a database has."""
        return int(self.txn.stat(database)["entries"])

    @property
    def databases(self) -> "tuple[Any, ...]":
        """All five."""
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
        self.current: BaseSnapshot  # valid until `refresh`
        with _opened(path, patience_s, readonly=True, max_spare_txns=4) as (self._env, self._databases):
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
        view._begin()
        return view

    def _begin(self) -> None:
        records = self._databases[0]
        try:
            txn = self._env.begin(db=records)
        except lmdb.MapResizedError:  # the file has outgrown the map, which no transaction may use while it grows
            self.current.txn.abort()
            self._env.set_mapsize(0)
            txn = self._env.begin(db=records)
        except lmdb.Error as error:
            raise translate(error, self.path) from error
        self.get: Callable[[bytes], bytes | None] = txn.get  # the hot path: one C call
        current = self.current = BaseSnapshot(txn, *self._databases)
        self.checkpoint_lsn = current.number(b"checkpoint_lsn")
        self.checkpointing = txn.get(b"checkpointing", None, db=current.meta) is not None
        self.truncation = txn.get(b"truncation", ZERO_VERSION, db=current.meta)
        self.newest = txn.get(b"newest", ZERO_VERSION, db=current.meta)
        self.live = current.number(b"live")
        self.dead = current.number(b"dead")

    @property
    def space(self) -> Space:
        """How much of the file is used, and how much is free for the next records.  Costs 10 us, whatever the size.

        Half-empty pages count as used: scattered deletions free a page when three quarters of it are gone.  Needs no
        lock: another thread may refresh meanwhile.
        """
        with self.snapshot() as view:
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
        for node in range(INNER_NODES):
            packed = self.current.leaf_bytes(node)
            if len(packed) != len(NO_LEAVES):
                raise damage(f"{self.path}: the leaves of inner node {node} have {len(packed)} bytes")
            if packed != NO_LEAVES:
                found[node] = packed
        return found

    def heads_from(self, low: bytes, end: bytes | None, limit: int) -> list[Pair]:
        """Like `records_from`, but (key, version, flags and digest)."""
        return self.records_from(low, end, limit, sys.maxsize, VALUE_AT)

    def records_from(
        self, low: bytes, end: bytes | None, limit: int, max_bytes: int, record_part: int | None = None
    ) -> list[Pair]:
        """At most `limit` (key, record) from `low` to below `end` (None: no bound), in order; stops behind `max_bytes`.

        `record_part`: as many bytes of each record.
        """
        found: list[Pair] = []
        size = 0
        with self._env.begin(db=self._databases[0], buffers=True) as txn, txn.cursor() as cursor:
            if not cursor.set_range(low[:MAX_KEY_SIZE]):
                return found
            for key_view, record_view in cursor.iternext():
                key = bytes(key_view)
                if end is not None and key >= end:
                    break
                if key >= low:  # not so only when `low` is a key of the largest size and a zero
                    found.append((key, bytes(record_view[:record_part])))
                    size += len(record_view)  # `Table.records_page` tells by the same sum whether this was cut off
                    if len(found) >= limit or size >= max_bytes:
                        break
        return found

    def tombstones_from(self, version: bytes, bound: bytes, limit: int) -> list[Pair]:
        """At least `limit` (version, key) of tombstones above `version` and at most `bound`, if there are as many."""
        found: list[Pair] = []
        with self.current.txn.cursor(db=self.current.tombstones) as cursor:
            ahead = cursor.set_range(version)
            if ahead and cursor.key() == version:
                ahead = cursor.next_nodup()
            while ahead and cursor.key() <= bound and len(found) < limit:
                found += [(cursor.key(), key) for key in cursor.iternext_dup()]  # all of a version
                ahead = cursor.next_nodup()
        return found

    def metadata(self) -> dict[bytes, bytes]:
        """The metadata entries that the last checkpoint stored."""
        with self.current.txn.cursor(db=self.current.meta) as cursor:
            return {
                name.removeprefix(METADATA_PREFIX): value for name, value in cursor if name.startswith(METADATA_PREFIX)
            }

    def index_key_from(self, bucket: int) -> bytes | None:
        """Some key of this bucket or of the next one that has any."""
        with self.current.txn.cursor(db=self.current.index) as cursor:
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


def _batches(cursor: Any, path: Path) -> Iterator[list[Pair]]:
    """The entries of a database, a transaction's worth at a time."""
    batch: list[Pair] = []
    size = 0
    try:
        for key, value in cursor:
            batch.append((key, value))
            size += len(value)
            if len(batch) >= TRANSACTION_KEYS or size >= TRANSACTION_BYTES:
                yield batch
                batch, size = [], 0
    except lmdb.Error as error:
        raise translate(error, path) from error
    if batch:
        yield batch


class BaseWriter:
    """The base as its one writer changes it, in whole transactions.

    `patience_s`: how long it waits for a process of another container that has the same id.
    `sync`: each transaction syncs.
    """

    def __init__(self, path: Path, patience_s: float = OPEN_PATIENCE_S, sync: bool = True) -> None:
        self._path = path
        with _opened(path, patience_s, sync=sync) as (self._env, self._databases):
            self._records, self._index, self._tombstones, self._leaves, self._meta = self._databases
            self._env.reader_check()  # slots of readers that were killed would keep old pages for ever
            with self.snapshot() as view:
                self.checkpoint_lsn = view.number(b"checkpoint_lsn")
                self.truncation = view.txn.get(b"truncation", ZERO_VERSION, db=self._meta)

    @property
    def free_bytes(self) -> int:
        """Bytes of the file in pages that LMDB reuses."""
        with self.snapshot() as view:
            pages = self._env.info()["last_pgno"] + 1 - view.used_pages
        return max(0, int(pages * self._env.stat()["psize"]))

    def wait_for_readers(self, timeout_s: float) -> bool:
        """Waits until no reader sees an older state than the last, so that pages are free for reuse; False in vain."""
        last = self._env.info()["last_txnid"]
        deadline = time.monotonic() + timeout_s
        while any(int(txn) < last for txn in _READER.findall(self._env.readers())):
            if time.monotonic() > deadline:
                return False
            pause(READERS_POLL_S)
        return True

    @contextmanager
    def _transaction(self) -> "Iterator[lmdb.Transaction[bytes]]":
        try:
            with self._env.begin(write=True) as txn:
                yield txn
        except lmdb.Error as error:
            raise translate(error, self._path) from error

    @contextmanager
    def snapshot(self) -> Iterator[BaseSnapshot]:
        """What was committed last."""
        with self._env.begin(db=self._records) as txn:
            yield BaseSnapshot(txn, *self._databases)

    def begin_checkpoint(self, upto: int) -> bool:
        """Sets the mark; True if it was set already: a checkpoint was cut short, and the index may lack keys."""
        with self._transaction() as txn:
            was_set = txn.get(b"checkpointing", db=self._meta) is not None
            txn.put(b"checkpointing", upto.to_bytes(8, "big"), db=self._meta)
        return was_set

    def finish(self, upto: int, metadata: dict[bytes, bytes]) -> None:
        """Stores the metadata entries, records that everything before `upto` is here, and clears the mark."""
        with self._transaction() as txn:
            for name, value in metadata.items():
                txn.put(METADATA_PREFIX + name, value, db=self._meta)
            txn.put(b"checkpoint_lsn", upto.to_bytes(8, "big"), db=self._meta)
            txn.delete(b"checkpointing", db=self._meta)
        self.checkpoint_lsn = upto

    def lower(self, name: bytes, version: bytes) -> None:
        """Sets `truncation` or `newest` to a smaller version (24 bytes) that holds for the records that are here."""
        with self._transaction() as txn:
            txn.put(name, version, db=self._meta)
        if name == b"truncation":
            self.truncation = version

    def put(self, pairs: list[Pair]) -> list[bytes]:
        """Stores records (in key order, at most a transaction's worth); returns the keys that were not there."""
        with self._transaction() as txn:
            cursor = txn.cursor(db=self._records)
            before = dict(cursor.getmulti([key for key, _ in pairs]))
            changed = [pair for pair in pairs if before.get(pair[0]) != pair[1]] if before else pairs
            removed = [(key, before[key]) for key, _ in changed if key in before]
            markers = [key for key, record in changed if record[FLAGS_AT] & PURGED]
            if markers:
                for key in before.keys() & set(markers):
                    self._delete(txn, key)
                changed = [pair for pair in changed if not pair[1][FLAGS_AT] & PURGED]
            if not removed and not changed:
                return []
            for key, record in changed:
                # LMDB merges pages only when it deletes: tombstones put over records would leave pages nearly empty.
                if key in before and len(record) < len(before[key]) // SHRUNK:
                    txn.delete(key, db=self._records)
            cursor.putmulti(changed)
            self._account(txn, removed, changed)
        return [key for key, _ in changed if key not in before]

    def _delete(self, txn: "lmdb.Transaction[bytes]", key: bytes) -> None:
        txn.delete(key, db=self._records)
        txn.delete(bucket_of(key).to_bytes(2, "big"), key, db=self._index)

    def index(self, pairs: list[Pair]) -> None:
        """Lists (bucket, key) pairs in the index, in order; those that are there stay."""
        with self._transaction() as txn:
            txn.cursor(db=self._index).putmulti(pairs, dupdata=False)

    def rebuild(self, buckets: Mapping[int, Collection[bytes]]) -> Iterator[None]:
        """Derives index, leaves, list of tombstones and counters of these buckets from their records, damaged or not.

        Each bucket comes with keys that the index may lack.  Yields between transactions; may be left at any and
        repeated.  Costs 2 us a record of these buckets, and a look at every tombstone of the base.
        """
        tombstones: set[Pair] = set()
        newest = ZERO_VERSION
        for _, numbers in groupby(sorted(buckets), lambda bucket: bucket // LEAVES_PER_INNER):
            with self._transaction() as txn:
                leaves: dict[int, int] = {}
                for bucket in numbers:
                    records = self._rebuild_index(txn, bucket, buckets[bucket])
                    leaves[bucket] = sum(term_of(record) for _, record in records)
                    for key, record in records:
                        if record[FLAGS_AT] & TOMBSTONE:
                            tombstones.add((record[:VERSION_SIZE], key))
                        if record > newest and is_sound(key, record):
                            newest = record[:VERSION_SIZE]
                self._move_leaves(txn, leaves, anew=True)
            yield
        if buckets:
            with self._transaction() as txn:
                self._recount(txn, buckets, tombstones, newest)

    def _rebuild_index(self, txn: "lmdb.Transaction[bytes]", bucket: int, more: Collection[bytes]) -> list[Pair]:
        """Makes the index list exactly the keys of a bucket that have a record.  Returns their records."""
        name = bucket.to_bytes(2, "big")
        with txn.cursor(db=self._index) as cursor:
            listed = set(cursor.iternext_dup()) if cursor.set_key(name) else set()
        found: list[Pair] = []
        for key in sorted(listed.union(more)):
            record = txn.get(key, db=self._records) if bucket_of(key) == bucket else None
            if record is None:
                txn.delete(name, key, db=self._index)
                continue
            if key not in listed:
                txn.put(name, key, db=self._index)
            found.append((key, record))
        return found

    def _recount(
        self, txn: "lmdb.Transaction[bytes]", buckets: Collection[int], tombstones: set[Pair], newest: bytes
    ) -> None:
        with txn.cursor(db=self._tombstones) as cursor:
            stale = [pair for pair in cursor if bucket_of(pair[1]) in buckets and pair not in tombstones]
        for version, key in stale:
            txn.delete(version, key, db=self._tombstones)
        for version, key in tombstones:
            txn.put(version, key, db=self._tombstones)
        dead = txn.stat(self._tombstones)["entries"]
        live = max(0, txn.stat(self._records)["entries"] - dead)  # buckets not rebuilt yet may list too much
        for name, count in ((b"dead", dead), (b"live", live)):
            txn.put(name, count.to_bytes(8, "big"), db=self._meta)
        txn.put(b"newest", max(newest, txn.get(b"newest", ZERO_VERSION, db=self._meta)), db=self._meta)

    def raise_truncation(self, truncation: bytes) -> Iterator[None]:
        """Removes every record below `truncation`; yields between transactions, and may be left at any."""
        with self._transaction() as txn:
            newest = txn.get(b"newest", ZERO_VERSION, db=self._meta)
        if newest < truncation:
            with self._transaction() as txn:
                for database in (self._records, self._index, self._tombstones, self._leaves):
                    txn.drop(database, delete=False)
                for name in (b"live", b"dead"):
                    txn.delete(name, db=self._meta)
                txn.put(b"newest", ZERO_VERSION, db=self._meta)
        else:
            after: bytes | None = b""
            while after is not None:
                after = self._sweep(after, truncation)
                yield
        with self._transaction() as txn:
            txn.put(b"truncation", truncation, db=self._meta)
        self.truncation = truncation

    def _sweep(self, after: bytes, truncation: bytes) -> bytes | None:
        """Removes the records below `truncation` among the next keys; returns the key to go on from."""
        with self._transaction() as txn:
            cursor = txn.cursor(db=self._records)
            dead: list[Pair] = []
            seen, last = 0, b""
            if cursor.set_range(after):
                for key, record in islice(cursor.iternext(), TRANSACTION_KEYS):
                    seen, last = seen + 1, key
                    if record < truncation:
                        dead.append((key, record))
            for key, _ in dead:
                self._delete(txn, key)
            self._account(txn, dead, [])
        return last + b"\0" if seen >= TRANSACTION_KEYS else None

    def _account(self, txn: "lmdb.Transaction[bytes]", removed: list[Pair], added: list[Pair]) -> None:
        """Updates leaves, counters and `newest` for removed and added records."""
        meta = self._meta
        newest = txn.get(b"newest", ZERO_VERSION, db=meta)
        terms: dict[int, int] = {}
        dead = 0
        for key, record in removed:  # first: the record that replaces it may have the same version
            bucket = bucket_of(key)
            terms[bucket] = terms.get(bucket, 0) - term_of(record)
            if record[FLAGS_AT] & TOMBSTONE:
                dead -= 1
                txn.delete(record[:VERSION_SIZE], key, db=self._tombstones)
        for key, record in added:
            bucket = xxh3_64_intdigest(key) >> 48
            terms[bucket] = terms.get(bucket, 0) + (int.from_bytes(record[DIGEST_AT:VALUE_AT], "big") << 64 | 1)
            if record[FLAGS_AT] & TOMBSTONE:
                dead += 1
                txn.put(record[:VERSION_SIZE], key, db=self._tombstones)
            if record > newest:
                newest = record
        self._move_leaves(txn, terms)
        for name, change in ((b"dead", dead), (b"live", len(added) - len(removed) - dead)):
            count = int.from_bytes(txn.get(name, b"", db=meta), "big") + change
            # Below zero only if flags are damaged: the checkpoint goes on, the scrub counts anew.
            txn.put(name, max(0, count).to_bytes(8, "big"), db=meta)
        txn.put(b"newest", newest[:VERSION_SIZE], db=meta)

    def _move_leaves(self, txn: "lmdb.Transaction[bytes]", terms: dict[int, int], anew: bool = False) -> None:
        """Adds terms to the leaves of their buckets; `anew`: to nothing.  Leaves of zero are not stored."""
        for node, buckets in groupby(sorted(terms), lambda bucket: bucket // LEAVES_PER_INNER):
            name = bytes((node,))
            packed = bytearray(txn.get(name, NO_LEAVES, db=self._leaves))
            for bucket in buckets:
                at = bucket % LEAVES_PER_INNER * LEAF_SIZE
                before = 0 if anew else int.from_bytes(packed[at : at + LEAF_SIZE], "big")
                packed[at : at + LEAF_SIZE] = (before + terms[bucket] & LEAF_MASK).to_bytes(LEAF_SIZE, "big")
            if packed == NO_LEAVES:
                txn.delete(name, db=self._leaves)
            else:
                txn.put(name, bytes(packed), db=self._leaves)

    def fill(self, base: Base) -> Iterator[tuple[int, int]]:
        """Puts all entries of another base, in order, into this empty one.

        Yields (entries done, entries in all) after each transaction.  Raises Corruption if not all of them could be
        read, or are not in order.
        """
        with base.snapshot() as view:
            total = sum(view.size(database) for database in view.databases)
            done = 0
            for source, target in zip(view.databases, self._databases, strict=True):
                with view.txn.cursor(db=source) as cursor:
                    for batch in _batches(cursor, base.path):
                        with self._transaction() as txn:
                            done += txn.cursor(db=target).putmulti(batch, append=True)[1]
                        yield done, total
        if done != total:
            raise damage(f"{base.path}: {done} of {total} entries are in order")

    def close(self) -> None:
        """Closes the environment.  Makes the file as long as it says, see lmdb_file.py: a look at that is cheaper.

        A write that found the disk full leaves a longer file, whose end nobody would count as free.
        """
        data = self._path / DATA_FILE
        needed = (self._env.info()["last_pgno"] + 1) * self._env.stat()["psize"]
        self._env.close()
        if data.stat().st_size != needed:
            os.truncate(data, needed)

    def __enter__(self) -> "BaseWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
