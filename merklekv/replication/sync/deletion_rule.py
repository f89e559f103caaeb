"""The deletion rule: is a record that one node holds and the other lacks new, or was it deleted long ago?

A tombstone below the GC horizon is gone, so the record itself has to tell.  A new record is given to the lacking node.
A stale one is re-deleted where it is, so that it does not come back.

    holder            the node that has the record
    lacking node      the other node: it holds nothing as new under the key
    writer            the data directory that the record's version names
    applied-through   timestamp through which the lacking node has applied every write of a member, but for lost writes
    covered           the GC horizon covers a member if it waited for it: all covered members have applied, through the
                      horizon, every write of every covered member
    left behind       the holder knows less than the GC horizon of the lacking node says of it: its stable timestamp is
                      smaller, or it was restored from a backup since
    lost write        a write from the time between the end of a writer's data and its next start: a crash or a restored
                      backup may have lost it (cluster/lost_writes.py)
    re-delete         put a tombstone just above the stale record; a later write stands

The first row that matches decides:

    1   the record is a tombstone                                                           new
    2   its writer may have lost it                                                         new
    3   neither node knows its writer, and the holder was not left behind                   new
    4   neither node knows its writer, and the holder is not covered and was not restored   new
    5   neither node knows its writer, and it is not later than the GC horizon and the      stale
        applied-through timestamp of the holder
    6   it is later than the applied-through timestamp of its writer                        new
    7   it is later than every GC horizon that has reached the lacking node                 new
    8   the holder was left behind: its stable timestamp is below the GC horizon            stale
    9   the holder was left behind: it was restored                                         stale
    10  the holder is not covered, and has another GC horizon                               stale
    11  its writer is neither covered nor removed                                           stale
    12  it is later than the GC horizon                                                     stale
    13  none of these: all had it, no node deleted it, the lacking node lost it by damage   new

The GC horizon is that of the lacking node.  In rows 12 and 13 it is that of the holder if that is larger, covers both,
and the lacking node has reached it.  A holder that is not covered, but has the same GC horizon, has adopted it together
with all writes below it: then every writer is as good as covered.

docs/replication.md has an example of a stale record and one of a new one.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from merklekv.engine.record import is_live, store_id_of, timestamp_of
from merklekv.replication.cluster.lost_writes import NO_LOST_WRITES, LostWrites, restored_since, retains
from merklekv.replication.cluster.members import NO_ROW, Identity
from merklekv.replication.sync.messages import Hello


class Limits(NamedTuple):
    """What decides about the records of one writer; timestamps (ns) of its clock."""

    damaged_through: int  # records that the lacking node lacks by damage alone: row 13
    applied_through: int  # records that the lacking node has applied
    lost: LostWrites  # but for these

    def is_stale(self, record: bytes) -> bool:
        """Whether a record, or its head, is stale."""
        was_here = self.damaged_through < timestamp_of(record) <= self.applied_through
        return was_here and is_live(record) and retains(self.lost, record)


class StaleRecords(NamedTuple):
    """The stale ones among the records of a node."""

    by_writer: dict[bytes, Limits]  # by store id
    by_unknown_writers: Limits

    def is_possible(self) -> bool:
        """Whether any record can be stale."""
        limits = (self.by_unknown_writers, *self.by_writer.values())
        return any(one.damaged_through < one.applied_through for one in limits)

    def contains(self, record: bytes) -> bool:
        """Whether this record, or the one with this head, is stale."""
        return self.by_writer.get(store_id_of(record), self.by_unknown_writers).is_stale(record)


NONE_STALE: Final = StaleRecords({}, Limits(0, 0, NO_LOST_WRITES))


def stale_records(holder: Hello, lacking: Hello) -> StaleRecords:
    """The stale ones among the holder's records that the other node lacks."""
    if not holder.count:
        return NONE_STALE
    table = lacking.table
    unknown_through = _unknown_through(holder, lacking)
    applied_through = dict.fromkeys(table.lost_writes, unknown_through) | dict.fromkeys(holder.table.rows, 0)
    applied_through |= table.applied_through()
    applied_through |= {writer: max(applied_through[writer], unknown_through) for writer in table.removed}
    damaged_through = _damaged_through(holder, lacking)
    has_adopted = _has_adopted(holder, lacking)

    def limits(writer: Identity) -> Limits:
        is_covered = table.horizon_covers(writer) or holder.table.horizon_covers(writer) or writer in table.removed
        return Limits(
            damaged_through if has_adopted or is_covered else 0,
            min(applied_through[writer], table.max_gc_horizon),
            table.lost_writes.get(writer, NO_LOST_WRITES),
        )

    by_writer = {writer.store_id: limits(writer) for writer in applied_through}
    return StaleRecords(by_writer, Limits(0, unknown_through, NO_LOST_WRITES))


def was_left_behind(holder: Hello, lacking: Hello) -> bool:
    """Whether the holder knows less than the lacking node's GC horizon says of it."""
    return holder.table.max_stable < lacking.gc_horizon or was_restored(holder, lacking)


def was_restored(holder: Hello, lacking: Hello) -> bool:
    """Whether the holder went back to a backup, since the lacking node applied its writes or had its GC horizon."""
    one, other = holder.table, lacking.table
    if restored_since(one.lost_writes.get(one.identity, NO_LOST_WRITES), _applied_through_of(holder, lacking)):
        return True
    both_covered = other.horizon_covers(one.identity) and other.horizon_covers(other.identity)
    return both_covered and one.rows.get(other.identity, NO_ROW).applied_through < lacking.gc_horizon


def _applied_through_of(holder: Hello, lacking: Hello) -> int:
    return lacking.table.rows.get(holder.table.identity, NO_ROW).applied_through


def _unknown_through(holder: Hello, lacking: Hello) -> int:
    """Records of writers that neither node knows (a dump was loaded) are stale through this timestamp: rows 3 to 5."""
    is_covered = lacking.table.horizon_covers(holder.table.identity)
    if was_left_behind(holder, lacking) and (is_covered or was_restored(holder, lacking)):
        return min(_applied_through_of(holder, lacking), lacking.gc_horizon)
    return 0


def _damaged_through(holder: Hello, lacking: Hello) -> int:
    """Records of covered writers that the lacking node lacks are damaged there through this timestamp: rows 8 to 13."""
    one, other = holder.table, lacking.table
    is_covered = other.horizon_covers(one.identity) or _has_adopted(holder, lacking)
    if was_left_behind(holder, lacking) or not is_covered or not lacking.gc_horizon:
        return 0
    both_covered = one.horizon_covers(one.identity) and one.horizon_covers(other.identity)
    has_reached = both_covered and other.max_stable >= holder.gc_horizon
    return max(lacking.gc_horizon, holder.gc_horizon) if has_reached else lacking.gc_horizon


def _has_adopted(holder: Hello, lacking: Hello) -> bool:
    """Whether one of the two has adopted the GC horizon of the other, which does not cover the holder."""
    same = holder.gc_horizon == lacking.gc_horizon and holder.table.stable_through == lacking.table.stable_through
    return same and not lacking.table.horizon_covers(holder.table.identity)
