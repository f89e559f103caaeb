"""The deletion rule: is a record that one node holds and the other lacks new, or was it deleted long ago?

A tombstone below the GC horizon is gone, so the record itself has to tell.  A new record is given to the lacking node.
A stale one is re-deleted where it is, so that it does not come back.

    holder            the node that has the record
    lacking node      the other node: it holds nothing as new under the key
    writer            the data directory that the record's version names; if neither node knows it, the holder stands
                      for it
    applied-through   timestamp through which the lacking node has applied every write of a writer, but for lost writes
    GC horizon        all members that it waited for have applied, through it, every write of every one of them
    stable-through    the last GC horizon that waited for a writer, as far as the lacking node knows, or the holder, if
                      its GC horizon has waited for the lacking node, too
    behind            a node that has applied less of a member than the GC horizon of the other says that all have: it
                      is new, or was restored from a backup
    lost write        a write from the time between the end of a writer's data and its next start: a crash or a restored
                      backup may have lost it (cluster/lost_writes.py)

The first row that matches decides:

    1  the record is a tombstone                                                            new
    2  its writer may have lost it                                                          new
    3  the lacking node has refused it, or a later record of the key that replaced it       new
    4  it is later than the applied-through timestamp of its writer                         new
    5  it is later than every GC horizon that has reached the lacking node                  new
    6  the holder is behind                                                                 stale
    7  it is later than the stable-through timestamp of its writer                          stale
    8  none of these: all had it, no node deleted it, the lacking node lost it by damage    new

A node refuses a value that is too large for it, and what a wrong clock has stamped (cluster/exceptions.py).

A record of a writer that neither node knows comes from a dump.  Through the stable-through timestamp of the holder the
lacking node had all that the holder had, so row 4 takes that for the applied-through timestamp, too.

docs/replication.md has an example of a stale record and one of a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from merklekv.engine.record import is_live, store_id_of, timestamp_of, version_of
from merklekv.replication.cluster.exceptions import Exceptions, is_excepted
from merklekv.replication.cluster.lost_writes import NO_LOST_WRITES, LostWrites, retains
from merklekv.replication.cluster.members import Identity, MemberTable
from merklekv.replication.sync.messages import Hello

ALL: Final = -1  # records are later than this timestamp
NONE: Final = 1 << 64  # no record is later than this one


class Pair(NamedTuple):
    """The tables of two nodes."""

    holder: MemberTable
    lacking: MemberTable
    applied_through: dict[Identity, int]  # ns: of the lacking node, by writer
    stable_through: dict[Identity, int]  # ns, by writer
    is_behind: bool  # the holder
    refused: Exceptions  # of the lacking node

    @classmethod
    def of(cls, holder: MemberTable, lacking: MemberTable) -> Pair:
        """The pair, with what the tables say of each other."""
        applied_through = dict.fromkeys((*holder.rows, *holder.removed), 0) | lacking.applied_through()
        for who, time in lacking.stable_through.items():  # also where the row of a member cannot be read any more
            applied_through[who] = max(time, applied_through.get(who, 0))
        stable_through = lacking.stable_through
        if holder.horizon_covers(lacking.identity):  # or it may be from before a deletion that the other has applied
            later = holder.stable_through.items()
            stable_through = stable_through | {who: max(time, stable_through.get(who, 0)) for who, time in later}
        is_behind = not holder.knows_all_of(lacking)
        return cls(holder, lacking, applied_through, stable_through, is_behind, lacking.refused)


class RecordRow(NamedTuple):
    """A row that matches single records; they are new."""

    name: str
    matches: Callable[[bytes, bytes, LostWrites, Exceptions], bool]  # key, record, its writer's lost writes, refused


class TimeRow(NamedTuple):
    """A row that matches the records of a writer that are later than a timestamp."""

    name: str
    is_stale: bool
    later_than: Callable[[Pair, Identity], int]


RECORD_ROWS: tuple[RecordRow, ...] = (
    RecordRow("1 tombstone", lambda key, record, lost, refused: not is_live(record)),
    RecordRow("2 lost write", lambda key, record, lost, refused: not retains(lost, record)),
    RecordRow("3 refused", lambda key, record, lost, refused: is_excepted(refused, key, version_of(record))),
)
TIME_ROWS: tuple[TimeRow, ...] = (
    TimeRow("4 not applied", False, lambda pair, writer: pair.applied_through[writer]),
    TimeRow("5 above every horizon", False, lambda pair, writer: pair.lacking.max_gc_horizon),
    TimeRow("6 holder behind", True, lambda pair, writer: ALL if pair.is_behind else NONE),
    TimeRow("7 not stable", True, lambda pair, writer: pair.stable_through.get(writer, 0)),
)


class Limits(NamedTuple):
    """What the rows say of the records of one writer: stale are those between two timestamps, ns."""

    damaged_through: int
    applied_through: int
    lost: LostWrites
    refused: Exceptions

    def is_stale(self, key: bytes, record: bytes) -> bool:
        """Whether a record, or its head, is stale."""
        if not self.damaged_through < timestamp_of(record) <= self.applied_through:
            return False
        for row in RECORD_ROWS:  # noqa: SIM110 - a generator takes a quarter longer
            if row.matches(key, record, self.lost, self.refused):
                return False
        return True


class StaleRecords(NamedTuple):
    """The stale ones among the records of a node."""

    by_writer: dict[bytes, Limits]  # by store id
    by_unknown_writers: Limits

    def is_possible(self) -> bool:
        """Whether any record can be stale."""
        limits = (self.by_unknown_writers, *self.by_writer.values())
        return any(one.damaged_through < one.applied_through for one in limits)

    def contains(self, key: bytes, record: bytes) -> bool:
        """Whether this record, or the one with this head, is stale."""
        return self.by_writer.get(store_id_of(record), self.by_unknown_writers).is_stale(key, record)


NONE_STALE: Final = StaleRecords({}, Limits(0, 0, NO_LOST_WRITES, {}))


def stale_records(holder: Hello, lacking: Hello) -> StaleRecords:
    """The stale ones among the holder's records that the other node lacks."""
    if not holder.count:
        return NONE_STALE
    pair = Pair.of(holder.table, lacking.table)
    by_writer = {
        writer.store_id: _limits(pair, writer, lacking.table.lost_writes.get(writer, NO_LOST_WRITES))
        for writer in pair.applied_through
    }
    who = holder.table.identity
    from_dump = pair._replace(applied_through={who: lacking.table.stable_through.get(who, 0)})
    return StaleRecords(by_writer, _limits(from_dump, who, NO_LOST_WRITES))


def _limits(pair: Pair, writer: Identity, lost: LostWrites) -> Limits:
    """What the time rows say.  Those with new records come first, so the smallest timestamp of each kind counts."""
    new, stale = (
        min((row.later_than(pair, writer) for row in TIME_ROWS if row.is_stale == is_stale), default=NONE)
        for is_stale in (False, True)
    )
    return Limits(stale, new, lost, pair.refused)
