"""The times from which a member may have forgotten what it wrote.

A node that starts notes where its data end and where its clock is: a lapse.  If it simply was down, it has written
nothing in between.  If its directory was restored from a backup, or lost its last writes in a power failure, then all
that it has forgotten lies in this lapse.  So a record with a timestamp in a lapse of its writer was written and lost;
whoever has it, has it by right, although the writer and those that have met it since may hold nothing there.

Each lapse also names the process that began behind it, its run, as every version does.  If a restored node has a slow
clock, then it writes in times in which it has written before; the run tells the one from the other.  And who has seen
such a node before, further than where its run has begun, has not seen what that run has written up to there.

The newest lapses are kept, and of the others the longest, since a backup is older than a restart takes.  Accounts of
them merge by union and maxima, in any order.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final, NamedTuple

from merklekv.engine.record import EPOCH_SIZE, epoch_of, timestamp_of
from merklekv.replication.fields import Malformed, a_list, binary, number

NEWEST: Final = 4  # that are kept of a member
LONGEST: Final = 4
LAPSES_MAX: Final = LONGEST + NEWEST


class Lapse(NamedTuple):
    """From behind `after` up to `until`, ns of the member's clock, which may stand still."""

    after: int
    until: int
    run: bytes  # of the process that has noted it, 4 bytes: no other notes the same
    missed: int = 0  # ns: what that run has written up to here, some may not have seen who have seen the member so far


Lapses = frozenset[Lapse]
NO_LAPSES: Final[Lapses] = frozenset()


def lapses_of(found: Any) -> Lapses:
    """The inverse of lists of their fields, as CBOR brings them.  Raises Malformed."""
    if type(found) is not list or len(found) > LAPSES_MAX:
        raise Malformed(f"lapses are not a list of at most {LAPSES_MAX}")
    return frozenset(_lapse(*a_list(item, "a lapse", 4)) for item in found)


def _lapse(after: Any, until: Any, run: Any, missed: Any) -> Lapse:
    times = [number(time, "a lapse") for time in (after, until, missed)]
    return Lapse(times[0], times[1], binary(run, "a run", EPOCH_SIZE), times[2])


def joined(one: Lapses, other: Lapses) -> Lapses:
    """The lapses of two accounts of a member, as many as are kept."""
    lapses = {lapse[:3]: lapse for lapse in sorted(one | other)}  # of two that differ in what was missed, the larger
    newest = sorted(lapses.values(), reverse=True)
    longest = sorted(newest[NEWEST:], key=lambda lapse: lapse.after - lapse.until)
    return frozenset(newest[:NEWEST] + longest[:LONGEST])


def shared(one: Lapses, one_seen: int, two: Lapses, two_seen: int) -> Lapses:
    """What two nodes know together that have seen a member with its clock there, ns, and know these lapses of it.

    One that has seen it further than where a run began, of which it has not heard, has seen it before it was restored,
    or restored from before that run.
    """
    both, missed = joined(one, two), Counter[bytes]()
    for known, seen in ((one, one_seen), (two, two_seen)):
        for run in {lapse.run for lapse in both} - {lapse.run for lapse in known}:
            missed[run] = max(missed[run], seen)
    return frozenset(
        lapse._replace(missed=max(lapse.missed, missed[lapse.run])) if lapse.until < missed[lapse.run] else lapse
        for lapse in both
    )


def account_for(lapses: Lapses, version: bytes) -> bool:
    """Whether what a member with these lapses has not forgotten includes this version of its own, or a record."""
    timestamp, run = timestamp_of(version), epoch_of(version)
    if any(one.after < timestamp <= one.until or (one.run == run and timestamp <= one.missed) for one in lapses):
        return False
    before = [lapse for lapse in lapses if lapse.until < timestamp]
    if not before:
        return True
    newest = max(lapse.until for lapse in before)
    runs = {lapse.run for lapse in before if lapse.until == newest}
    all_are_known = len(lapses) < LAPSES_MAX or any(lapse.until == newest for lapse in sorted(lapses)[-NEWEST:])
    return runs == {run} or not all_are_known  # that came between it and this


def was_away(lapses: Lapses, seen: int) -> bool:
    """Whether a member with these lapses was restored since it was seen with its clock there, ns."""
    return any(lapse.after < seen < lapse.until for lapse in lapses)
