"""The engine: one node's data, behind one door.

Writes change memory and append to the log's pending entries under one lock, and are durable when a `commit` that began
after them returns.  Callers answer nobody before that: what anybody can see has survived a crash.  Several threads may
commit at once; one leads, the others find their entries on disk.

    set, delete, ... -> memtable + Merkle leaves + log entry (in memory)
    commit           -> one write and one fdatasync for everything since the last; a full memtable is frozen here
    merger           -> sealed segments into LMDB, in a child process

Promises: a write that raises has changed nothing.  A local write gets a version above what this node shows for its
key.  `merge` is commutative, associative and idempotent: a record stands if its version is the larger one.

Costs: a write of 100 bytes about 4 us, a read 0.3 us (memtable) to 2 us (base), beside the commit.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from merklekv.engine.base import Pair
from merklekv.engine.format import (
    ENTRY,
    MAX_KEY_SIZE,
    OP_APPEND,
    OP_DECR,
    OP_DEL,
    OP_INCR,
    OP_ORIGIN,
    OP_PREPEND,
    OP_SET,
    OP_TRUNCATE,
    REMOTE,
    bucket_of,
)
from merklekv.engine.integers import INT64_MAX, INT64_MIN, strict_integer
from merklekv.engine.record import (
    FLAGS,
    HEAD_SIZE,
    TOMBSTONE,
    VERSION_SIZE,
    ZERO_VERSION,
    flags_of,
    is_purge_marker,
    is_sound,
    is_tombstone,
    value_size_of,
    version_of,
)
from merklekv.engine.settled import Settled, bound_of
from merklekv.errors import InvalidArgument, MerkleKVError, NotANumber, NumberOverflow

SUPERSEDED: Final = "superseded"

Change = tuple[int, bytes, bytes]  # op, key, record

_entry = ENTRY.pack


class MergeResult(NamedTuple):
    """What became of the records given to `merge`."""

    applied: int
    superseded: int  # not above what is here: duplicates, older versions, below the floor
    refused: list[tuple[bytes, str]]  # key and reason


class Engine(Settled):
    """An open data directory.  Thread-safe.  Keys are 1 to 511 bytes, values 0 to `max_value_size` bytes.

    `durability`: when `commit` returns, what was written is on disk (``always``), in the kernel and on disk within a
    second (``everysec``), or in the kernel (``never``).  `checkpoint`: ``process`` makes checkpoints in a child as
    needed; ``manual`` leaves them to calls of `checkpoint_now`, for tests.  `retain_max_bytes`: how much of the
    log is kept for the outbox (see tail.py).

    Raises DirectoryLocked, DirectoryUnwritable, NotADataDirectory, FormatTooNew, Corruption, StorageFailed, Shortage.
    """

    def set(self, key: bytes, value: bytes) -> None:
        """Stores a value."""
        with self.lock:
            self._put(OP_SET, ((None, key, value),))

    def set_batch(self, requests: Iterable[Sequence[bytes]]) -> int:
        """Stores (anything, key, value) one after the other as `set` does; how many, up to the first it refuses.

        A pipeline of writes costs a good part less this way.
        """
        with self.lock:
            before = self._log.appended
            with suppress(MerkleKVError):  # whoever stores the refused one by itself is told why
                self._put(OP_SET, requests)
            return self._log.appended - before

    def mset(self, pairs: list[Pair]) -> None:
        """Stores all values or none, also across a crash: they share a frame of the log."""
        size = 0
        for key, value in pairs:
            self._require_sizes(key, value)
            size += ENTRY.size + len(key) + HEAD_SIZE + len(value)
        with self.lock:
            self._require_writable()
            self._make_room(size)
            self._put(OP_SET, [(None, *pair) for pair in pairs])

    def delete(self, key: bytes) -> bool:
        """Removes a key; whether there was one."""
        if not self.exists(key):
            return False
        with self.lock:
            if not self.exists(key):
                return False
            self._put(OP_DEL, ((None, key, b""),), FLAGS[TOMBSTONE])
            self._active.tombstones.append(key)
            return True

    def increment(self, key: bytes, amount: int) -> int:
        """Adds to a decimal number (missing: 0) and returns the sum.  Raises NotANumber, NumberOverflow."""
        self._require_sizes(key, b"")
        with self.lock:
            text = self.get(key)
            total = (0 if text is None else _parse_number(key, text)) + amount
            if not INT64_MIN <= total <= INT64_MAX:
                raise NumberOverflow(key)
            self._put(OP_INCR if amount >= 0 else OP_DECR, ((None, key, b"%d" % total),))
            return total

    def append(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes behind a value, a missing key counting as empty; returns the new value."""
        with self.lock:
            return self._replace(OP_APPEND, key, (self.get(key) or b"") + value)

    def prepend(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes before a value, a missing key counting as empty; returns the new value."""
        with self.lock:
            return self._replace(OP_PREPEND, key, value + (self.get(key) or b""))

    def truncate(self) -> None:
        """Removes every key that any node holds now, by raising the floor."""
        with self.lock:
            self._require_writable()
            truncation = self.clock.next()
            newest = max(self._layers.newest(), self._layers.truncation)
            if truncation <= newest:
                truncation = self.clock.after(newest)
            self._raise_truncation(OP_TRUNCATE, truncation)

    def merge(self, items: Iterable[Change], origin: bytes, *, settled: bool = False, had: int = 0) -> MergeResult:
        """Takes in records made elsewhere, as (op, key, record), from the node `origin` (1 to 511 bytes).

        `settled`: the sender is known to hold nothing that has been collected, so a record at or below the horizon
        is taken as well.  `had`: all that the sender wrote up to this time, ns, has been here, so what would change
        anything now is refused, as if it were below the horizon.

        Raises Shortage and Stalled, maybe with some of them applied: merging all of them again is harmless.
        """
        superseded = 0
        refused: list[tuple[bytes, str]] = []
        with self.lock:
            self._require_writable()
            accepted: dict[bytes, Change] = {}
            applied = 0
            latest = self.clock.latest()
            bound = ZERO_VERSION if settled else max(self._bound, bound_of(had))
            for item in items:
                op, key, record = item
                if key in accepted:
                    applied += self._take(accepted, origin)  # or this one would not see the one before
                reason = self._reason_to_refuse(op, key, record, latest) or self._verdict(key, record, bound, settled)
                if not reason:
                    accepted[key] = item
                elif reason == SUPERSEDED:
                    superseded += 1
                else:
                    refused.append((key, reason))
            applied += self._take(accepted, origin)
        return MergeResult(applied, superseded, refused)

    def _take(self, accepted: dict[bytes, Change], origin: bytes) -> int:
        """Stores records that stand, of different keys, and empties the dictionary; how many."""
        if not accepted:
            return 0
        self._make_room(ENTRY.size + len(origin))
        self._log_entry(_entry(OP_ORIGIN, len(origin), 0) + origin)
        self.clock.observe(max(record for _, _, record in accepted.values()))
        for op, changes in groupby(accepted.values(), itemgetter(0)):
            self._put(op | REMOTE, changes, made=True)
        for _, key, record in accepted.values():
            if is_tombstone(record):
                if record <= self._bound:
                    self._remove(key, record)
                else:
                    self._active.tombstones.append(key)
        count = len(accepted)
        accepted.clear()
        return count

    def _verdict(self, key: bytes, record: bytes, bound: bytes, settled: bool) -> str:
        """Why a sound record does not stand, given what is here; nothing when it does."""
        if record < self._layers.truncation:
            return SUPERSEDED
        old = self._records.get(key)
        if old is None:
            old = self._layers.older(key)
        if settled and old is not None and is_purge_marker(old):
            old = None  # it is there only until the base has forgotten its key, and must not decide anything
        if old is not None and version_of(record) <= version_of(old):
            differ = version_of(record) == version_of(old) and record != old and not is_purge_marker(old)
            return "conflict" if differ else SUPERSEDED
        if is_tombstone(record):
            # Below the horizon it would be collected at once, and what it kills would come back from those who hold it.
            return "" if record > self._bound else SUPERSEDED if old is None or is_purge_marker(old) else "settled"
        # Was it here once?  What is held although it is older has come with a node that joined.
        return "settled" if record <= bound else ""

    def replace(self, key: bytes, stored: bytes | None, record: bytes | None, origin: bytes) -> bool:
        """Puts a sound record, from the node `origin`, in the place of a damaged one, whatever its version.

        `stored`: the damaged record as it is, None when it was lost; nothing is done when it has changed since.  A
        `record` of None takes the damaged one away.  Whether it was done.  Raises Shortage, Stalled.
        """
        with self.lock:
            self._require_writable()
            if self._layers.lookup(key) != stored or (stored is not None and len(stored) < HEAD_SIZE):
                return False
            self.repair(bucket_of(key), key)
            if record is None:
                if stored is not None:
                    self._remove(key, stored)
                return True
            op = OP_DEL if is_tombstone(record) else OP_SET
            if record < self._layers.truncation or self._reason_to_refuse(op, key, record, self.clock.latest()):
                return False
            self._take({key: (op, key, record)}, origin)
            return True

    def merge_truncation(self, truncation: bytes, origin: bytes) -> bool:
        """Takes in a floor (24 bytes) that another node has set; whether it was above ours."""
        if len(truncation) != VERSION_SIZE:
            raise InvalidArgument(f"floor of {len(truncation)} bytes: a floor is a version of {VERSION_SIZE} bytes")
        with self.lock:
            self._require_writable()
            if truncation <= self._layers.truncation or self.clock.truncates_too_far_ahead(truncation):
                return False
            self._make_room(2 * ENTRY.size + len(origin) + VERSION_SIZE)
            self._log_entry(_entry(OP_ORIGIN, len(origin), 0) + origin)
            self.clock.observe(truncation)
            self._raise_truncation(OP_TRUNCATE | REMOTE, truncation)
            return True

    def _replace(self, op: int, key: bytes, value: bytes) -> bytes:
        self._put(op, ((None, key, value),))
        return value

    def _reason_to_refuse(self, op: int, key: bytes, record: bytes, latest: bytes) -> str:
        if not OP_SET <= op <= OP_PREPEND:
            return "op"
        if not 0 < len(key) <= MAX_KEY_SIZE:
            return "key size"
        if not is_sound(key, record):
            return "digest"
        if flags_of(record) & ~TOMBSTONE or (is_tombstone(record) and value_size_of(record)):
            return "flags"
        if value_size_of(record) > self.max_value_size:
            return "value size"
        return "clock" if record > latest else ""


def _parse_number(key: bytes, text: bytes) -> int:
    number = strict_integer(text)
    if number is None:
        raise NotANumber(key)
    return number
