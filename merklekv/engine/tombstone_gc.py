"""Tombstone GC: removing tombstones that have nothing left to hide.

    stable          every member has applied every write up to a timestamp, so none of them can bring anything older
    GC horizon      the timestamp (ns) up to which this node knows that; kept as a metadata entry, and only rises
    tombstone GC    removes tombstones at or below the GC horizon

After that, `Engine.merge` refuses a record from below the horizon that would change something: it was here once and was
deleted.  merklekv/replication decides how far the horizon goes.  Every step is a log entry that is not published.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from merklekv.engine.access import damage
from merklekv.engine.format import GC_HORIZON_SIZE, METADATA_GC_HORIZON
from merklekv.engine.record import ZERO_VERSION, is_purge_marker, is_tombstone
from merklekv.engine.table import Table
from merklekv.errors import Shortage

GC_KEYS: Final = 1000  # in one call of `collect_tombstones`
TOMBSTONES_READ: Final = 1000  # of the base, at once


def bound_of(gc_horizon: int) -> bytes:
    """The largest version (24 bytes) at the horizon; every record at or below it compares as less."""
    return gc_horizon.to_bytes(8, "big") + b"\xff" * 16 if gc_horizon else ZERO_VERSION


class TombstoneGC:
    """Keeps the GC horizon of a table and removes the tombstones below it.

    Contract: the horizon never falls but by a roll-back; after `collect_tombstones` has returned False no tombstone is
    below it.  The caller commits.

    Costs: 5 us for each tombstone that is removed; raising the horizon looks at each tombstone between the old one and
    the new.  Memory: 1,000 keys.
    """

    def __init__(self, path: Path, table: Table) -> None:
        """Raises Corruption."""
        self._table = table
        size = len(table.metadata.get(METADATA_GC_HORIZON, bytes(GC_HORIZON_SIZE)))
        if size != GC_HORIZON_SIZE:
            raise damage(f"{path}: the GC horizon in the log has {size} bytes, not {GC_HORIZON_SIZE}")
        table.clock.close_through(self.gc_horizon)
        self.start_over()

    @property
    def gc_horizon(self) -> int:
        """Nanoseconds since the epoch; records at or below it are stable.  0: none are."""
        return int.from_bytes(self._table.metadata.get(METADATA_GC_HORIZON, b""), "big")

    def start_over(self) -> None:
        """Looks at every tombstone again, since the table was restored."""
        self.bound = bound_of(self.gc_horizon)  # the largest version at the horizon
        self._seen = ZERO_VERSION  # tombstones of the base up to here have been looked at
        self._due = self._due_tombstones()

    def raise_gc_horizon(self, gc_horizon: int) -> bool:
        """Moves the horizon up, in ns; whether it was below.  Every member has applied everything up to there."""
        with self._table.lock:
            if gc_horizon <= self.gc_horizon:
                return False
            self._table.put_metadata(METADATA_GC_HORIZON, gc_horizon.to_bytes(GC_HORIZON_SIZE, "big"))
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
            keys = list(islice(self._due, limit))
            try:
                for key in keys:
                    record = self._table.lookup(key)
                    if record is None or record > self.bound:
                        continue
                    if is_tombstone(record) and not is_purge_marker(record):
                        self._table.purge(key, record)
            except Shortage:
                self.start_over()  # what was not removed comes again
                raise
            return len(keys) == limit

    def _due_tombstones(self) -> Iterator[bytes]:
        """Keys that may have a tombstone below the horizon; each may come more than once."""
        bound = self.bound
        for table in self._table.tables:
            yield from list(table.tombstones)
        while pairs := self._table.base.tombstones_from(self._seen, bound, TOMBSTONES_READ):
            yield from (key for _, key in pairs)
            self._seen = pairs[-1][0]  # not before: a new pass may begin in the middle of these
