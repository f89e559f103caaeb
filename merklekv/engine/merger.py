"""Merges: which of two records stands, and records of other nodes that go into the table."""

from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from merklekv.engine.format import (
    ENTRY,
    MAX_KEY_SIZE,
    OP_DEL,
    OP_ORIGIN,
    OP_SET,
    OP_TRUNCATE,
    RECORD_OPS,
    REMOTE,
    bucket_of,
)
from merklekv.engine.record import (
    EXPIRY,
    EXPIRY_MAX,
    HEAD_SIZE,
    TOMBSTONE,
    VERSION_SIZE,
    ZERO_VERSION,
    expiry_of,
    flags_of,
    is_purge_marker,
    is_sound,
    is_tombstone,
    value_size_of,
    version_of,
)
from merklekv.engine.table import Table
from merklekv.engine.tombstone_gc import TombstoneGC, bound_of, is_long_expired
from merklekv.errors import InvalidArgument

SUPERSEDED: Final = "superseded"

Change = tuple[int, bytes, bytes]  # op, key, record


class MergeResult(NamedTuple):
    """What became of the records given to `merge`."""

    applied: int
    superseded: int  # not above what is here: duplicates, older versions, below the truncation version
    refused: list[tuple[bytes, str]]  # key and reason


class Merger:
    """Merges into one table."""

    def __init__(self, table: Table, gc: TombstoneGC) -> None:
        self.table, self._gc = table, gc
        self._lock, self._gate, self._clock, self._time_gate = table.lock, table.gate, table.clock, table.clock.gate

    def merge(
        self,
        items: Iterable[Change],
        origin: bytes,
        *,
        stable: bool = False,
        applied_through: int = 0,
        sound: bool = False,
    ) -> MergeResult:
        """Merges records of the node `origin` (1 to 511 bytes), as (op, key, record).

        `stable`: the sender has no record that was collected elsewhere, so records at or below the GC horizon count,
        too.  `applied_through`: every write of the sender up to this time (ns) was applied here, so an older record
        that would change something is stale, and is refused like one below the horizon.
        `sound`: this process has made the records, so it does not hash them again.

        Raises Shortage and Stalled, maybe with some of them applied: merging all of them again is harmless.
        """
        superseded = 0
        refused: list[tuple[bytes, str]] = []
        with self._lock:
            self._gate.require_open()
            accepted: dict[bytes, Change] = {}
            applied = 0
            latest = self._time_gate.latest_version()
            bound = ZERO_VERSION if stable else max(self._gc.bound, bound_of(applied_through))
            for item in items:
                op, key, record = item
                if key in accepted:
                    applied += self._take(accepted, origin)  # or this one would not see the one before
                reason = self._reason_to_refuse(op, key, record, latest, sound) or self._verdict(
                    key, record, bound, stable
                )
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
        self.table.append(OP_ORIGIN, origin, b"")
        self._clock.observe(max(record for _, _, record in accepted.values()))
        deletions = [change for change in accepted.values() if is_tombstone(change[2])]
        if deletions:  # first: on a full disk only they find room
            self._put_merged(deletions, urgent=True)
            for _, key, _ in deletions:
                self.table.list_tombstone(key)
            for _, key, record in deletions:
                if record <= self._gc.bound:
                    self.table.purge(key, record)
        if len(deletions) < len(accepted):
            self._put_merged([change for change in accepted.values() if not is_tombstone(change[2])], urgent=False)
        count = len(accepted)
        accepted.clear()
        return count

    def _put_merged(self, changes: list[Change], urgent: bool) -> None:
        for op, group in groupby(changes, itemgetter(0)):
            self.table.put(op | REMOTE, list(group), made=True, urgent=urgent)

    def _verdict(self, key: bytes, record: bytes, bound: bytes, stable: bool) -> str:
        """Why a sound record does not stand, given what is here; empty when it does."""
        if record < self.table.truncation:
            return SUPERSEDED
        old = self.table.lookup(key)
        if old is not None and is_purge_marker(old) and (stable or old > self._gc.bound):
            old = None  # it is there only until the base has dropped its key, and decides nothing
        if old is not None and version_of(record) == version_of(old):
            return SUPERSEDED if record == old or is_purge_marker(old) else "conflict"
        if old is not None and record < old:
            return SUPERSEDED
        if is_tombstone(record) or is_long_expired(record, self._gc.gc_horizon):
            # Below the horizon it would be collected at once, and the peers would return what it deletes.
            if record > self._gc.bound:
                return ""
            return SUPERSEDED if old is None or is_purge_marker(old) else "stable"
        # At or below the bound it was here once, and was deleted.
        return "stable" if record <= bound else ""

    def _reason_to_refuse(self, op: int, key: bytes, record: bytes, latest: bytes, sound: bool = False) -> str:
        if op not in RECORD_OPS:
            return "op"
        if not 0 < len(key) <= MAX_KEY_SIZE:
            return "key size"
        if not sound and not is_sound(key, record):
            return "digest"
        flags, size = flags_of(record), value_size_of(record)
        if flags > EXPIRY or (flags == TOMBSTONE and size):
            return "flags"
        if flags == EXPIRY and not 0 < (expiry_of(record) or 0) <= EXPIRY_MAX:
            return "expiry"
        if size > self.table.max_value_size:
            return "value size"
        return "clock" if record > latest else ""

    def merge_truncation(self, truncation: bytes, origin: bytes) -> bool:
        """Merges a truncation version (24 bytes) of another node; whether it was above ours."""
        if len(truncation) != VERSION_SIZE:
            raise InvalidArgument(f"truncation version of {len(truncation)} bytes: it has {VERSION_SIZE} bytes")
        with self._lock:
            self._gate.require_open()
            if truncation <= self.table.truncation or not self._time_gate.admits_truncation(truncation):
                return False
            self.table.reserve(2 * ENTRY.size + len(origin) + VERSION_SIZE, urgent=True)
            self.table.append(OP_ORIGIN, origin, b"")
            self._clock.observe(truncation)
            self.table.raise_truncation(OP_TRUNCATE | REMOTE, truncation)
            return True

    def replace(self, key: bytes, stored: bytes | None, record: bytes | None, origin: bytes) -> bool:
        """Replaces a damaged record by a sound one of any version, from the node `origin`; whether it did.

        `stored`: the damaged record, None if it was lost; if it has changed since, nothing is done.  Without a `record`
        the damaged one is removed.  Raises Shortage, Stalled.
        """
        with self._lock:
            self._gate.require_open()
            if self.table.lookup(key) != stored or (stored is not None and len(stored) < HEAD_SIZE):
                return False
            self.table.repair(bucket_of(key), key)
            if record is None:
                if stored is not None:
                    self.table.purge(key, stored)
                return True
            op = OP_DEL if is_tombstone(record) else OP_SET
            latest = self._time_gate.latest_version()
            if record < self.table.truncation or self._reason_to_refuse(op, key, record, latest):
                return False
            self._take({key: (op, key, record)}, origin)
            return True
