"""Tombstone GC: removing tombstones that have nothing left to hide.

    stable          every member has applied every write up to a timestamp, so none of them can bring anything older
    GC horizon      the timestamp (ns) up to which this node knows that; kept as a metadata entry, and only rises
    tombstone GC    removes tombstones at or below the GC horizon
    lone            no other node has had a part in this directory yet, so no tombstone has anything to hide

After that, `Merger.merge` refuses a record from below the horizon that would change something: it was here once and was
deleted.  merklekv/replication decides how far the horizon goes.  Every step is a log entry that is not published.

A lone node purges what it deletes at once, and collects all tombstones that it has.  It is lone from the start of the
directory until `join`, or until a replication cursor says that its events are published; then never again.  What it
purged until then has no tombstone, so `purged_through` tells replication how far that goes.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from merklekv.engine.access import damage
from merklekv.engine.format import METADATA_GC_HORIZON, METADATA_JOINED, METADATA_PURGED, METADATA_TIMES, TIME_SIZE
from merklekv.engine.log.retention import Retention
from merklekv.engine.record import (
    EXPIRY,
    NS_PER_MS,
    VERSION_SIZE,
    ZERO_VERSION,
    deletion_marker,
    expiry_of,
    flags_of,
    is_purge_marker,
    is_tombstone,
    timestamp_of,
)
from merklekv.engine.table import Table
from merklekv.errors import Shortage, Stalled

GC_KEYS: Final = 1000  # in one call of `collect_tombstones`
TOMBSTONES_READ: Final = 1000  # of the base, at once
EXPIRY_GRACE_NS: Final = 600 * 10**9  # a wall clock that has gone back by less does not show again what is gone
ALL_VERSIONS: Final = b"\xff" * VERSION_SIZE
PURGED_STEP_NS: Final = 10**6  # `purged_through` is stored so much too large, and not with each purge
TIME_MAX: Final = (1 << 8 * TIME_SIZE) - 1


def bound_of(gc_horizon: int) -> bytes:
    """The largest version (24 bytes) at the horizon; every record at or below it compares as less."""
    return gc_horizon.to_bytes(8, "big") + b"\xff" * 16 if gc_horizon else ZERO_VERSION


def is_long_expired(record: bytes, gc_horizon: int) -> bool:
    """Predicate: is a record at or below this GC horizon (ns), and does it expire EXPIRY_GRACE_NS before it?

    Every member has this record then, or a later one, and has hidden it: it is its own tombstone, and may go.  This
    depends on the record and the horizon alone, so nodes with the same horizon agree on what is gone.
    """
    if flags_of(record) != EXPIRY or not expiry_of(record):
        return False
    return long_expired_at(record) <= gc_horizon


def long_expired_at(record: bytes) -> int:
    """The GC horizon, ns, from which on a record with an expiry is `is_long_expired`."""
    return max((expiry_of(record) or 0) * NS_PER_MS + EXPIRY_GRACE_NS, timestamp_of(record))


def is_unpurged(record: bytes) -> bool:
    """Predicate: is it a tombstone?  A purge marker is none."""
    return record != b"" and is_tombstone(record) and not is_purge_marker(record)


class TombstoneGC:
    """Keeps the GC horizon of a table and removes the tombstones below it, or all while the node is lone.

    Contract: the horizon never falls but by a roll-back; after `collect_tombstones` has returned False no tombstone is
    below it.  The caller commits.

    Costs: 5 us for each tombstone that is removed; raising the horizon looks at each tombstone between the old one and
    the new.  Memory: 1,000 keys.
    """

    def __init__(self, path: Path, table: Table, retention: Retention) -> None:
        """Raises Corruption."""
        self._table = table
        self._retention = retention
        for name in METADATA_TIMES:
            size = len(table.metadata.get(name, bytes(TIME_SIZE)))
            if size != TIME_SIZE:
                raise damage(f"{path}: the metadata entry {name.decode()} has {size} bytes, not {TIME_SIZE}")
        table.clock.close_through(self.gc_horizon)
        self.start_over()

    # -- a lone node ---------------------------------------------------------------------------------------------------

    @property
    def is_lone(self) -> bool:
        """Predicate: has no other node had a part in this directory?"""
        return METADATA_JOINED not in self._table.metadata and self._retention.cursor is None

    @property
    def purged_through(self) -> int:
        """Everything that the node purged while it was lone has a timestamp (ns) up to here; 0: it purged nothing."""
        return int.from_bytes(self._table.metadata.get(METADATA_PURGED, b""), "big")

    def delete_lone(self, op: int, key: bytes, record: bytes) -> None:
        """Deletes a live key of a lone node, with its record.  Raises Shortage, with nothing deleted."""
        self._table.gate.require_open()
        self._note_purge(record)
        self._table.delete(op, key, record)

    def markers(self, keys: Iterable[bytes], deleted: list[bool]) -> Iterator[tuple[None, bytes, bytes]]:
        """The purge markers for keys of a lone node, as items for `put_each`, up to the first that needs a note.

        Which keys were there is in `deleted`, once their markers are stored.
        """
        noted, wall = self._table.metadata.get(METADATA_PURGED, b""), self._table.clock.gate.wall
        for key in keys:
            record = self._table.shown(key)
            if record is not None:
                if record > noted:
                    return
                yield None, key, deletion_marker(record, wall())
            deleted.append(record is not None)

    def purge_lone(self, key: bytes, record: bytes) -> None:
        """Purges a tombstone or an expired record of a lone node.  Raises Shortage, with nothing purged."""
        self._note_purge(record)
        self._table.purge(key, record)

    def _note_purge(self, record: bytes) -> None:
        if record > self._table.metadata.get(METADATA_PURGED, b""):
            through = min(timestamp_of(record) + PURGED_STEP_NS, TIME_MAX)
            self._table.put_metadata(METADATA_PURGED, through.to_bytes(TIME_SIZE, "big"))

    def join(self) -> None:
        """Another node is to have a part in this directory: from now on deletions leave tombstones.

        The caller commits before anything leaves this node.  Raises Shortage.
        """
        with self._table.lock:
            if METADATA_JOINED not in self._table.metadata:
                self._table.put_metadata(METADATA_JOINED, b"")

    # -- the GC horizon ------------------------------------------------------------------------------------------------

    @property
    def gc_horizon(self) -> int:
        """Nanoseconds since the epoch; records at or below it are stable.  0: none are."""
        return int.from_bytes(self._table.metadata.get(METADATA_GC_HORIZON, b""), "big")

    def start_over(self) -> None:
        """Looks at every tombstone again, since the table was restored."""
        self.bound = bound_of(self.gc_horizon)  # the largest version at the horizon
        self._seen = ZERO_VERSION  # tombstones of the base up to here have been looked at
        self._due_while_lone = self.is_lone
        self._due = self._due_tombstones()

    def raise_gc_horizon(self, gc_horizon: int) -> bool:
        """Moves the horizon up, in ns; whether it was below.  Every member has applied everything up to there."""
        with self._table.lock:
            if gc_horizon <= self.gc_horizon:
                return False
            self._table.put_metadata(METADATA_GC_HORIZON, gc_horizon.to_bytes(TIME_SIZE, "big"))
            self.bound = bound_of(gc_horizon)
            self._table.clock.close_through(gc_horizon)
            self._due = self._due_tombstones()
            return True

    def collect_tombstones(self, limit: int = GC_KEYS) -> bool:
        """Looks at up to `limit` tombstones and removes those below the horizon; whether there may be more to do.

        Raises Shortage, StorageFailed, Stalled.
        """
        with self._table.lock:
            self._table.gate.require_open()
            is_lone = self.is_lone
            if is_lone != self._due_while_lone:
                self.start_over()
            bound = ALL_VERSIONS if is_lone else self.bound
            keys = list(islice(self._due, limit))
            try:
                for key in keys:
                    record = self._table.lookup(key)
                    if record is not None and record <= bound and is_unpurged(record):
                        (self.purge_lone if is_lone else self._table.purge)(key, record)
            except (Shortage, Stalled):
                self.start_over()  # what was not removed comes again
                raise
            if is_lone and len(keys) < limit:
                self.start_over()  # a dump may bring more, of any version
            return len(keys) == limit

    def _due_tombstones(self) -> Iterator[bytes]:
        """Keys that may have a tombstone that may go; each may come more than once."""
        bound = ALL_VERSIONS if self._due_while_lone else self.bound
        for table in self._table.tables:
            listed, left = list(table.tombstones), list[bytes]()
            for first in range(0, len(listed), GC_KEYS):
                keys = listed[first : first + GC_KEYS]
                yield from keys
                left += (key for key in keys if is_unpurged(table.records.get(key, b"")))
            table.tombstones[: len(listed)] = left  # or each new horizon would look at all that went before, too
        while pairs := self._table.base.tombstones_from(self._seen, bound, TOMBSTONES_READ):
            yield from (key for _, key in pairs)
            self._seen = pairs[-1][0]  # not before: a new pass may begin in the middle of these
