"""The base as its one writer, the checkpoint process, changes it."""

import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb

from merklekv.engine.access import damage
from merklekv.engine.base.environment import DATA_FILE, METADATA_PREFIX, OPEN_PATIENCE_S, opened, translate, translating
from merklekv.engine.base.places import PLACE_SPLIT, shared_list
from merklekv.engine.base.reader import Base, BaseSnapshot
from merklekv.engine.format import LEAF_SIZE, bucket_of
from merklekv.engine.merkle import LEAVES_PER_INNER, NO_LEAVES, count_each
from merklekv.engine.record import (
    FLAGS_AT,
    PURGED,
    RECORD_OVERHEAD,
    TOMBSTONE,
    VERSION_SIZE,
    ZERO_VERSION,
    Pair,
    expiry_place,
    is_sound,
    padded,
)
from merklekv.pause import pause

TRANSACTION_KEYS: Final = 8192
TRANSACTION_BYTES: Final = 8 << 20
OVERFLOW_PAGES_COPIED: Final = 2000  # of large values
SHRUNK: Final = 2  # a record that becomes smaller by this factor is deleted before it is put
READERS_POLL_S: Final = 0.001
_READER: Final = re.compile(r"^ *\d+ +[0-9a-f]+ +(\d+)$", re.MULTILINE)  # process, thread, transaction that it sees


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


class _PackedLeaves(dict[int, bytearray]):
    """The leaves below each inner node, 24 bytes each: read when they are asked for, and stored at once by `put`."""

    def __init__(self, txn: "lmdb.Transaction[bytes]", database: Any) -> None:
        self._txn, self._database = txn, database

    def __missing__(self, node: int) -> bytearray:
        stored = self._txn.get(bytes((node,)), NO_LEAVES, db=self._database)
        size = len(NO_LEAVES)
        packed = self[node] = bytearray(stored.ljust(size, b"\0")[:size])  # of another size: it is damaged
        return packed

    def put(self) -> None:
        """Stores them.  Leaves of zero are not stored."""
        for node, packed in self.items():
            if packed == NO_LEAVES:
                self._txn.delete(bytes((node,)), db=self._database)
            else:
                self._txn.put(bytes((node,)), bytes(packed), db=self._database)


class _Replaced(NamedTuple):
    """What the base has of some keys that are to be written."""

    heads: dict[bytes, bytes]  # the first RECORD_OVERHEAD bytes of each record, or more: what accounts need
    same: set[bytes]  # keys whose record stays as it is
    larger: set[bytes]  # those whose record is larger than the new one by SHRUNK


class BaseWriter:
    """The base as its one writer changes it, in whole transactions.

    `patience_s`: how long it waits for a process of another container that has the same id.
    `sync`: each transaction syncs.
    """

    def __init__(self, path: Path, patience_s: float = OPEN_PATIENCE_S, sync: bool = True) -> None:
        self._path = path
        with opened(path, patience_s, sync=sync) as (self._env, self._databases):
            self._records, self._index, self._tombstones, self._expiries, self._leaves, self._meta = self._databases
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
        with translating(self._path), self._env.begin(write=True) as txn:
            yield txn

    @contextmanager
    def _reading(self) -> "Iterator[lmdb.Transaction[memoryview]]":
        """A transaction that reads without copying; what it gives ends with it."""
        with translating(self._path), self._env.begin(buffers=True) as txn:
            yield txn

    @contextmanager
    def snapshot(self) -> Iterator[BaseSnapshot]:
        """What was committed last."""
        with translating(self._path), self._env.begin(db=self._records) as txn:
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
        replaced = self._replaced(dict(pairs))
        before = replaced.heads
        changed = [pair for pair in pairs if pair[0] not in replaced.same] if before else pairs
        removed = [(key, before[key]) for key, _ in changed if key in before]
        markers = {key for key, record in changed if record[FLAGS_AT] & PURGED}
        changed = [pair for pair in changed if pair[0] not in markers] if markers else changed
        if not removed and not changed:
            return []
        with self._transaction() as txn:
            for key in before.keys() & markers:
                self._delete(txn, key)
            # LMDB merges pages only when it deletes: tombstones put over records would leave pages nearly empty.
            for key in replaced.larger - markers:
                txn.delete(key, db=self._records)
            txn.cursor(db=self._records).putmulti(changed)
            self._account(txn, removed, changed)
        return [key for key, _ in changed if key not in before] if before else [key for key, _ in changed]

    def _replaced(self, records: Mapping[bytes, bytes]) -> _Replaced:
        """What there is of these keys. It copies values only if they are small: all together may be gigabytes."""
        with self.snapshot() as view:
            if view.overflow_pages(self._records) <= OVERFLOW_PAGES_COPIED:  # the quick way
                before = dict(view.txn.cursor().getmulti(list(records)))
                same = {key for key, record in before.items() if record == records[key]}
                larger = {key for key, record in before.items() if len(records[key]) < len(record) // SHRUNK}
                return _Replaced({key: padded(record) for key, record in before.items()}, same, larger)
        replaced = _Replaced({}, set(), set())
        with self._reading() as txn:
            for name, stored in txn.cursor(db=self._records).getmulti(list(records)):
                key = bytes(name)
                record, head = records[key], bytes(stored[:RECORD_OVERHEAD])
                replaced.heads[key] = padded(head)
                if record.startswith(head) and record == bytes(stored):  # not by the head alone: it may be a repair
                    replaced.same.add(key)
                elif len(record) < len(stored) // SHRUNK:
                    replaced.larger.add(key)
        return replaced

    def _delete(self, txn: "lmdb.Transaction[bytes]", key: bytes) -> None:
        txn.delete(key, db=self._records)
        txn.delete(bucket_of(key).to_bytes(2, "big"), key, db=self._index)

    def index(self, pairs: list[Pair]) -> None:
        """Lists (bucket, key) pairs in the index, in order; those that are there stay."""
        with self._transaction() as txn:
            txn.cursor(db=self._index).putmulti(pairs, dupdata=False)

    def rebuild(self, buckets: Mapping[int, Collection[bytes]]) -> Iterator[None]:
        """Derives index, leaves, lists and counters of these buckets from their records, damaged or not.

        Each bucket comes with keys that the index may lack.  Yields between transactions; may be left at any and
        repeated.  Costs 2 us a record of these buckets, and a look at every tombstone and expiry of the base.
        """
        tombstones: set[Pair] = set()
        places: Counter[bytes] = Counter()
        newest = ZERO_VERSION
        for _, numbers in groupby(sorted(buckets), lambda bucket: bucket // LEAVES_PER_INNER):
            with self._transaction() as txn:
                leaves = _PackedLeaves(txn, self._leaves)
                for bucket in numbers:
                    heads: list[Pair] = []
                    for key, record in self._rebuild_index(txn, bucket, buckets[bucket]):
                        heads.append((key, record[:RECORD_OVERHEAD]))
                        if record[FLAGS_AT] & TOMBSTONE:
                            tombstones.add((record[:VERSION_SIZE], key))
                        elif place := expiry_place(key, record):
                            places[place] += 1
                        if record > newest and is_sound(key, record):
                            newest = record[:VERSION_SIZE]
                    at = bucket % LEAVES_PER_INNER * LEAF_SIZE
                    leaves[bucket // LEAVES_PER_INNER][at : at + LEAF_SIZE] = bytes(LEAF_SIZE)
                    count_each(leaves, heads, False)
                leaves.put()
            yield
        if buckets:
            with self._transaction() as txn:
                self._recount(txn, buckets, tombstones, newest)
                self._relist(txn, buckets, places)

    def _rebuild_index(self, txn: "lmdb.Transaction[bytes]", bucket: int, more: Collection[bytes]) -> Iterator[Pair]:
        """Makes the index list exactly the keys of a bucket that have a record.  Yields their records."""
        name = bucket.to_bytes(2, "big")
        with txn.cursor(db=self._index) as cursor:
            listed = set(cursor.iternext_dup()) if cursor.set_key(name) else set()
        for key in sorted(listed.union(more)):
            record = txn.get(key, db=self._records) if bucket_of(key) == bucket else None
            if record is None:
                txn.delete(name, key, db=self._index)
                continue
            if key not in listed:
                txn.put(name, key, db=self._index)
            yield key, padded(record)

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

    def _relist(self, txn: "lmdb.Transaction[bytes]", buckets: Collection[int], places: "Counter[bytes]") -> None:
        """Lists exactly these expiry places in these buckets."""
        with txn.cursor(db=self._expiries) as cursor:
            stale = [(name, item) for name, item in cursor if int.from_bytes(item[3:5], "big") in buckets]
        for name, item in stale:
            txn.delete(name, item, db=self._expiries)
        for place, count in places.items():
            for _ in range(min(count, 2)):
                self._list_expiry(txn, place)

    def _list_expiries(self, txn: "lmdb.Transaction[bytes]", places: list[bytes]) -> None:
        """Lists places, in order.  Those behind all others are appended, which fills the pages."""
        with txn.cursor(db=self._expiries) as cursor:
            last = b"".join(cursor.item()) if cursor.last() else b""
            later = sorted({place for place in places if place > last})
            cursor.putmulti([(place[:PLACE_SPLIT], place[PLACE_SPLIT:]) for place in later], append=True)
        appended = set(later)
        for place in places:
            if place in appended:
                appended.remove(place)  # the first of equal ones
            else:
                self._list_expiry(txn, place)

    def _list_expiry(self, txn: "lmdb.Transaction[bytes]", place: bytes) -> None:
        if not txn.put(place[:PLACE_SPLIT], place[PLACE_SPLIT:], dupdata=False, db=self._expiries):
            txn.put(shared_list(place), place[PLACE_SPLIT:], dupdata=False, db=self._expiries)

    def _unlist_expiry(self, txn: "lmdb.Transaction[bytes]", place: bytes) -> None:
        with txn.cursor(db=self._expiries) as cursor:
            if not cursor.set_key_dup(shared_list(place), place[PLACE_SPLIT:]):
                txn.delete(place[:PLACE_SPLIT], place[PLACE_SPLIT:], db=self._expiries)

    def raise_truncation(self, truncation: bytes) -> Iterator[None]:
        """Removes every record below `truncation`; yields between transactions, and may be left at any."""
        with self._transaction() as txn:
            newest = txn.get(b"newest", ZERO_VERSION, db=self._meta)
        if newest < truncation:
            with self._transaction() as txn:
                for database in (self._records, self._index, self._tombstones, self._expiries, self._leaves):
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
        dead: list[Pair] = []  # heads
        seen, last = 0, b""
        with self._reading() as view, view.cursor(db=self._records) as cursor:
            if cursor.set_range(after):
                for name, record in islice(cursor.iternext(), TRANSACTION_KEYS):
                    seen, last, head = seen + 1, bytes(name), bytes(record[:RECORD_OVERHEAD])
                    if head < truncation:
                        dead.append((last, padded(head)))
        with self._transaction() as txn:
            for key, _ in dead:
                self._delete(txn, key)
            self._account(txn, dead, [])
        return last + b"\0" if seen >= TRANSACTION_KEYS else None

    def _account(self, txn: "lmdb.Transaction[bytes]", removed: list[Pair], added: list[Pair]) -> None:
        """Updates leaves, counters and `newest` for removed records, of which heads do, and added ones."""
        meta = self._meta
        newest = txn.get(b"newest", ZERO_VERSION, db=meta)
        places: list[bytes] = []
        dead = 0
        leaves = _PackedLeaves(txn, self._leaves)
        count_each(leaves, removed, True)
        count_each(leaves, added, False)
        leaves.put()
        for key, record in removed:  # first: the record that replaces it may have the same version
            if not record[FLAGS_AT]:
                continue
            if record[FLAGS_AT] & TOMBSTONE:
                dead -= 1
                txn.delete(record[:VERSION_SIZE], key, db=self._tombstones)
            elif place := expiry_place(key, record):
                self._unlist_expiry(txn, place)
        for key, record in added:
            if record > newest:
                newest = record
            if not record[FLAGS_AT]:
                continue
            if record[FLAGS_AT] & TOMBSTONE:
                dead += 1
                txn.put(record[:VERSION_SIZE], key, db=self._tombstones)
            elif place := expiry_place(key, record):
                places.append(place)
        if places:
            self._list_expiries(txn, sorted(places))
        for name, change in ((b"dead", dead), (b"live", len(added) - len(removed) - dead)):
            count = int.from_bytes(txn.get(name, b"", db=meta), "big") + change
            # Below zero only if flags are damaged: the checkpoint goes on, the scrub counts anew.
            txn.put(name, max(0, count).to_bytes(8, "big"), db=meta)
        txn.put(b"newest", newest[:VERSION_SIZE], db=meta)

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
