"""What the base keeps beside its records, derived from them anew: index, leaves, list of tombstones, counters.

Every transaction of the base keeps these in step with the records, so they are wrong only where the disk, the memory or
this program was.  When the scrub has found that, or puts a sound record in the place of a damaged one, the log gets a
`repair` entry for the bucket.  Whoever takes the segment into the base, merging or a start, does what it asks for
first, since merging goes by what is derived.  All of it goes by the records as they are stored, damaged or not, and
depends on nothing else: it may be cut off anywhere and done again.

Cost: 2 us a record of the buckets concerned, and a look at every tombstone of the base.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby

import lmdb

from merklekv.engine.base import NO_LEAVES, BaseWriter, Pair
from merklekv.engine.format import LEAF_SIZE, bucket_of
from merklekv.engine.merkle import LEAF_MASK, LEAVES_PER_INNER, term_of
from merklekv.engine.record import ZERO_VERSION, is_sound, is_tombstone, version_of


class Repairs:
    """Buckets of which the base derives anew what it keeps beside their records, as the log asks for it."""

    def __init__(self) -> None:
        self.buckets: dict[int, set[bytes]] = {}  # each with keys that the index may lack
        self._entries = 0

    def __len__(self) -> int:
        return self._entries

    def add(self, bucket: bytes, key: bytes) -> None:
        """Takes in a `repair` entry; the key may be empty."""
        self._entries += 1
        self.buckets.setdefault(int.from_bytes(bucket, "big"), set()).update((key,) if key else ())

    def complete(self, keys: Iterable[bytes]) -> None:
        """Adds those of the log's keys that are in these buckets: a cut absorption may not have listed them."""
        for key in keys if self else ():
            if (bucket := bucket_of(key)) in self.buckets:
                self.buckets[bucket].add(key)


def repair(base: BaseWriter, repairs: Repairs) -> Iterator[None]:
    """Derives from the records of these buckets, as they are stored, their index and leaves, the tombstones listed
    and the counters.  Yields between transactions; may be left at any and done again.
    """
    tombstones: set[Pair] = set()
    newest = ZERO_VERSION
    for node, buckets in groupby(sorted(repairs.buckets), lambda bucket: bucket // LEAVES_PER_INNER):
        with base._transaction() as txn:
            name = bytes((node,))
            packed = bytearray(txn.get(name, NO_LEAVES, db=base._leaves))
            for bucket in buckets:
                records = _relist(base, txn, bucket, repairs.buckets[bucket])
                leaf = sum(term_of(record) for _, record in records) & LEAF_MASK
                at = bucket % LEAVES_PER_INNER * LEAF_SIZE
                packed[at : at + LEAF_SIZE] = leaf.to_bytes(LEAF_SIZE, "big")
                for key, record in records:
                    if is_tombstone(record):
                        tombstones.add((version_of(record), key))
                    if record > newest and is_sound(key, record):
                        newest = version_of(record)
            txn.put(name, bytes(packed), db=base._leaves)
        yield
    if repairs:
        with base._transaction() as txn:
            _recount(base, txn, repairs, tombstones, newest)


def _relist(base: BaseWriter, txn: "lmdb.Transaction[bytes]", bucket: int, more: set[bytes]) -> list[Pair]:
    """Makes the index of a bucket list what has a record; these records."""
    name = bucket.to_bytes(2, "big")
    with txn.cursor(db=base._index) as cursor:
        listed = set(cursor.iternext_dup()) if cursor.set_key(name) else set()
    found: list[Pair] = []
    for key in sorted(listed | more):
        record = txn.get(key, db=base._records) if bucket_of(key) == bucket else None
        if record is None:
            txn.delete(name, key, db=base._index)
            continue
        if key not in listed:
            txn.put(name, key, db=base._index)
        found.append((key, record))
    return found


def _recount(
    base: BaseWriter, txn: "lmdb.Transaction[bytes]", repairs: Repairs, tombstones: set[Pair], newest: bytes
) -> None:
    with txn.cursor(db=base._tombstones) as cursor:
        stale = [pair for pair in cursor if bucket_of(pair[1]) in repairs.buckets and pair not in tombstones]
    for version, key in stale:
        txn.delete(version, key, db=base._tombstones)
    for version, key in tombstones:
        txn.put(version, key, db=base._tombstones)
    dead = txn.stat(base._tombstones)["entries"]
    live = max(0, txn.stat(base._records)["entries"] - dead)  # buckets that are not repaired yet may list too much
    for name, count in ((b"dead", dead), (b"live", live)):
        txn.put(name, count.to_bytes(8, "big"), db=base._meta)
    txn.put(b"newest", max(newest, txn.get(b"newest", ZERO_VERSION, db=base._meta)), db=base._meta)
