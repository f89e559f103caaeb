"""The times from which a member may have forgotten what it wrote.

A node that starts notes where its data end and where its clock is: a lapse.  If it simply was down, it has written
nothing in between.  If its directory was restored from a backup, or lost its last writes in a power failure, then all
that it has forgotten lies in this lapse.  So a record with a timestamp in a lapse of its writer was written and lost;
whoever has it, has it by right, although the writer and those that have met it since may hold nothing there.

Each lapse also names the process that began behind it, its run, as every version does.  If a restored node has a slow
clock, then it writes in times in which it has written before; the run tells the one from the other.

The newest lapses are kept, and of the others the longest, since a backup is older than a restart takes.  Sets of lapses
merge by union, in any order.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from merklekv.engine.version import run_of, timestamp_of

NEWEST: Final = 4  # that are kept of a member
LONGEST: Final = 4
LAPSES_MAX: Final = LONGEST + NEWEST


class Lapse(NamedTuple):
    """From behind `after` up to `until`, ns of the member's clock, which may stand still."""

    after: int
    until: int
    run: bytes  # of the process that has noted it, 4 bytes: no other notes the same


Lapses = frozenset[Lapse]
NO_LAPSES: Final[Lapses] = frozenset()


def joined(one: Lapses, other: Lapses) -> Lapses:
    """The lapses of two accounts of a member, as many as are kept."""
    newest = sorted(one | other, reverse=True)
    longest = sorted(newest[NEWEST:], key=lambda lapse: lapse.after - lapse.until)
    return frozenset(newest[:NEWEST] + longest[:LONGEST])


def shared(one: Lapses, one_seen: int, two: Lapses, two_seen: int) -> Lapses:
    """What two nodes know together that have seen a member with its clock there, ns, and know these lapses of it.

    Who has seen it behind a lapse of a run that is new there, has seen it before it was restored, and its clock is slow
    now: what it has written in that run up to what was seen, that one has not seen.
    """
    both = joined(one, two)
    longer = [
        lapse._replace(until=seen)
        for known, seen in ((one, one_seen), (two, two_seen))
        for lapse in both
        if lapse.until < seen and all(other.run != lapse.run for other in known)
    ]
    return joined(both, frozenset(longer))


def account_for(lapses: Lapses, version: bytes) -> bool:
    """Whether what a member with these lapses has not forgotten includes this version of its own, or a record."""
    timestamp = timestamp_of(version)
    if any(after < timestamp <= until for after, until, _ in lapses):
        return False
    before = [lapse for lapse in lapses if lapse.until < timestamp]
    if not before:
        return True
    newest = max(before, key=lambda lapse: lapse.until)
    all_are_known = len(lapses) < LAPSES_MAX or newest in sorted(lapses)[-NEWEST:]  # that came between it and this
    return run_of(version) == newest.run or not all_are_known


def was_away(lapses: Lapses, seen: int) -> bool:
    """Whether a member with these lapses was restored since it was seen with its clock there, ns."""
    return any(after < seen < until for after, until, _ in lapses)
