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
from typing import Final, NamedTuple

from merklekv.engine.format import (
    ENTRY,
    FLAGS,
    FLAGS_AT,
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
    TOMBSTONE,
    VALUE_AT,
    VERSION_SIZE,
    record_is_sound,
)
from merklekv.engine.layers import is_marker
from merklekv.engine.settled import Settled
from merklekv.engine.store import Pair
from merklekv.errors import InvalidArgument, MerkleKVError, NotANumber, NumberOverflow

INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1
NUMBER_DIGITS_MAX: Final = 20
_entry = ENTRY.pack


class MergeResult(NamedTuple):
    """What became of the records given to `merge`."""

    applied: int
    superseded: int  # not above what is here: duplicates, older versions, below the floor
    refused: list[tuple[bytes, str]]  # key and reason


class Engine(Settled):
    """An open data directory.  Thread-safe.  Keys are 1 to 511 bytes, values 0 to `max_value_size` bytes.

    `durability`: when `commit` returns, what was written is on disk (``always``), in the kernel and on disk within a
    second (``everysec``), or in the kernel (``never``).  `absorb`: ``process`` merges in a child as needed; ``manual``
    leaves merging to calls of `absorb_sealed`, for tests and simulation.  `hold_max_bytes`: how much of the log is kept
    for the outbox (see tail.py).

    Raises DirectoryLocked, DirectoryUnwritable, NotADataDirectory, FormatTooNew, Corruption, StorageFailed, DiskFull.
    """

    def set(self, key: bytes, value: bytes) -> None:
        """Stores a value."""
        if not 0 < len(key) <= MAX_KEY_SIZE or len(value) > self.max_value_size:
            self._require_sizes(key, value)
        with self.lock:
            self._put(OP_SET, key, value)

    def set_row(self, requests: Iterable[Sequence[bytes]]) -> int:
        """Stores (anything, key, value) one after the other as `set` does; how many, up to the first it refuses.

        A pipeline of writes costs a good part less this way.
        """
        stored = 0
        value_size_max = self.max_value_size
        with self.lock, suppress(MerkleKVError):  # whoever stores the refused one by itself is told why
            put = self._put
            for _, key, value in requests:
                if not 0 < len(key) <= MAX_KEY_SIZE or len(value) > value_size_max:
                    break
                put(OP_SET, key, value)
                stored += 1
        return stored

    def mset(self, pairs: list[Pair]) -> None:
        """Stores all values or none, also across a crash: they share a frame of the log."""
        size = 0
        for key, value in pairs:
            self._require_sizes(key, value)
            size += ENTRY.size + len(key) + VALUE_AT + len(value)
        with self.lock:
            self._require_writable()
            self._make_room(size)
            for key, value in pairs:
                self._put(OP_SET, key, value)

    def delete(self, key: bytes) -> bool:
        """Removes a key; whether there was one."""
        if not self.exists(key):
            return False
        with self.lock:
            if not self.exists(key):
                return False
            self._put(OP_DEL, key, b"", FLAGS[TOMBSTONE])
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
            self._put(OP_INCR if amount >= 0 else OP_DECR, key, b"%d" % total)
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
            floor = self.clock.next()
            newest = max(self._layers.newest(), self._layers.floor)
            if floor <= newest:
                floor = self.clock.after(newest)
            self._raise_floor(OP_TRUNCATE, floor)

    def merge(self, items: Iterable[tuple[int, bytes, bytes]], origin: bytes, *, settled: bool = False) -> MergeResult:
        """Takes in records made elsewhere, as (op, key, record), from the node `origin` (1 to 511 bytes).

        `settled`: the sender is known to hold nothing that has been collected, so a record at or below the horizon
        whose key is not here is taken as well.

        Raises DiskFull and Stalled, maybe with some of them applied: merging all of them again is harmless.
        """
        applied = superseded = 0
        refused: list[tuple[bytes, str]] = []
        with self.lock:
            self._require_writable()
            for op, key, record in items:
                reason = self._reason_to_refuse(op, key, record)
                if reason:
                    refused.append((key, reason))
                    continue
                old = self._layers.lookup(key)
                if record < self._layers.floor or (old is not None and record[:VERSION_SIZE] <= old[:VERSION_SIZE]):
                    if old is not None and record[:VERSION_SIZE] == old[:VERSION_SIZE] and _differ(record, old):
                        refused.append((key, "conflict"))
                    else:
                        superseded += 1
                    continue
                if record <= self._bound and (old is None or is_marker(old)):
                    if record[FLAGS_AT] & TOMBSTONE:  # it has been collected, or would be
                        superseded += 1
                        continue
                    if not settled:
                        refused.append((key, "settled"))
                        continue
                self._make_room(2 * ENTRY.size + len(origin) + len(key) + len(record))
                if not applied:
                    self._log_entry(_entry(OP_ORIGIN, len(origin), 0) + origin)
                self.clock.observe(record)
                self._put(op | REMOTE, key, record[VALUE_AT:], made=record)
                if record[FLAGS_AT] & TOMBSTONE:
                    if record <= self._bound:
                        self._remove(key, record)
                    else:
                        self._active.tombstones.append(key)
                applied += 1
        return MergeResult(applied, superseded, refused)

    def merge_floor(self, floor: bytes, origin: bytes) -> bool:
        """Takes in a floor (24 bytes) that another node has set; whether it was above ours."""
        if len(floor) != VERSION_SIZE:
            raise InvalidArgument(f"floor of {len(floor)} bytes: a floor is a version of {VERSION_SIZE} bytes")
        with self.lock:
            self._require_writable()
            if floor <= self._layers.floor or self.clock.too_far_ahead(floor):
                return False
            self._make_room(2 * ENTRY.size + len(origin) + VERSION_SIZE)
            self._log_entry(_entry(OP_ORIGIN, len(origin), 0) + origin)
            self.clock.observe(floor)
            self._raise_floor(OP_TRUNCATE | REMOTE, floor)
            return True

    def _replace(self, op: int, key: bytes, value: bytes) -> bytes:
        self._require_sizes(key, value)
        self._put(op, key, value)
        return value

    def _require_sizes(self, key: bytes, value: bytes) -> None:
        if not 0 < len(key) <= MAX_KEY_SIZE:
            raise InvalidArgument(f"key of {len(key)} bytes: a key has 1 to {MAX_KEY_SIZE} bytes")
        if len(value) > self.max_value_size:
            raise InvalidArgument(
                f"value of {len(value)} bytes: more than max_value_size, which is {self.max_value_size} bytes"
            )

    def _reason_to_refuse(self, op: int, key: bytes, record: bytes) -> str:
        if not OP_SET <= op <= OP_PREPEND:
            return "op"
        if not 0 < len(key) <= MAX_KEY_SIZE:
            return "key size"
        if len(record) - VALUE_AT > self.max_value_size:
            return "value size"
        if not record_is_sound(key, record):
            return "digest"
        if record[FLAGS_AT] not in (0, TOMBSTONE) or (record[FLAGS_AT] and len(record) > VALUE_AT):
            return "flags"
        if self.clock.too_far_ahead(record):
            return "clock"
        return ""


def _differ(record: bytes, old: bytes) -> bool:
    return record != old and not is_marker(old)


def _parse_number(key: bytes, text: bytes) -> int:
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    if not digits.isdigit() or len(digits) > NUMBER_DIGITS_MAX or not INT64_MIN <= int(text) <= INT64_MAX:
        raise NotANumber(key)
    return int(text)
