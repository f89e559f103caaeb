"""Lost-write intervals: the times from which a member may have lost what it wrote.

A node that starts records an interval from the end of its data to its clock.  If its directory was restored from a
backup, or a power failure took its last writes, then all lost writes lie in the interval.  So a record whose timestamp
is in an interval of its writer was lost.  A node that still has it keeps it, although the writer, and nodes that
exchanged with the writer since, may not have it.

An interval names the process epoch that began behind it; every version names its epoch, too.  If the clock of a
restored node is slow, the node writes in times in which it has written before, and the epoch tells the two apart.  A
node that had applied the writer's writes beyond the start of an epoch has not seen what that epoch wrote up to there
(`missed_through`).

Of each member the newest NEWEST intervals are kept, and the longest LONGEST of the others: a backup is older than a
restart takes.  Two accounts merge by union and maxima, in any order.  Pure functions.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, NamedTuple

from merklekv.engine.record import EPOCH_SIZE, epoch_of, timestamp_of
from merklekv.replication.plain_cbor import NUMBER_MAX, Fields, row_of

NEWEST: Final = 4
LONGEST: Final = 4
INTERVALS_MAX: Final = LONGEST + NEWEST
_TYPES: Final = [int, int, bytes, int]  # of an interval


class LostWriteInterval(NamedTuple):
    """Times behind `after` up to `until`, ns of the member's clock; it may be empty."""

    after: int
    until: int
    epoch: bytes  # 4 bytes, of the process that recorded it; no other process records the same
    missed_through: int = 0  # ns: nodes that knew the member before may lack writes of this epoch up to here


LostWrites = frozenset[LostWriteInterval]
NO_LOST_WRITES: Final[LostWrites] = frozenset()


def decode_lost_writes(given: Fields) -> LostWrites:
    """The intervals in the field `intervals`, a list of lists of their fields.  Raises Malformed."""
    return frozenset(map(_decode_interval, given.items("intervals", INTERVALS_MAX)))


def _decode_interval(item: Any) -> LostWriteInterval:
    # By hand what Fields does below: most of a large table is intervals.
    if type(item) is list and [type(part) for part in item] == _TYPES and len(item[2]) == EPOCH_SIZE:
        after, until, _, missed_through = item
        if min(after, until, missed_through) >= 0 and max(after, until, missed_through) <= NUMBER_MAX:
            return LostWriteInterval(*item)
    one = row_of(item, "intervals", *LostWriteInterval._fields)
    return LostWriteInterval(
        one.number("after"), one.number("until"), one.binary("epoch", EPOCH_SIZE), one.number("missed_through")
    )


def union(one: LostWrites, other: LostWrites) -> LostWrites:
    """The intervals of two accounts of a member, as many as are kept."""
    # Of two that differ only in `missed_through`, the larger wins.
    distinct = {interval[:3]: interval for interval in sorted(one | other)}
    newest = sorted(distinct.values(), reverse=True)
    longest = sorted(newest[NEWEST:], key=lambda interval: interval.after - interval.until)
    return frozenset(newest[:NEWEST] + longest[:LONGEST])


def unknown(known: LostWrites, elsewhere: LostWrites) -> LostWrites:
    """The intervals that another account of a member lacks, and would keep."""
    epochs = {interval.epoch for interval in elsewhere}
    return frozenset(interval for interval in union(known, elsewhere) if interval.epoch not in epochs)


def merge_accounts(one: LostWrites, one_through: int, two: LostWrites, two_through: int) -> LostWrites:
    """What two nodes know together of a member's lost writes.

    `one_through`, `two_through`: through which time, ns, each node has applied the member's writes.  If a node is
    beyond the start of an epoch that it does not know, it applied them before the member was restored, or was itself
    restored from before that epoch.
    """
    both, missed = union(one, two), Counter[bytes]()
    for known, through in ((one, one_through), (two, two_through)):
        for epoch in {interval.epoch for interval in both} - {interval.epoch for interval in known}:
            missed[epoch] = max(missed[epoch], through)
    return frozenset(
        interval._replace(missed_through=max(interval.missed_through, missed[interval.epoch]))
        if interval.until < missed[interval.epoch]
        else interval
        for interval in both
    )


def retains(lost: LostWrites, version: bytes) -> bool:
    """Predicate: does a member with these lost writes still have what it wrote with this version (or record)?"""
    timestamp, epoch = timestamp_of(version), epoch_of(version)
    for one in lost:
        if one.after < timestamp <= one.until or (one.epoch == epoch and timestamp <= one.missed_through):
            return False
    before = [interval for interval in lost if interval.until < timestamp]
    if not before:
        return True
    newest = max(interval.until for interval in before)
    epochs = {interval.epoch for interval in before if interval.until == newest}
    # Between this interval and the version there may have been others that were not kept.
    is_complete = len(lost) < INTERVALS_MAX or any(one.until == newest for one in sorted(lost, reverse=True)[:NEWEST])
    return epochs == {epoch} or not is_complete
