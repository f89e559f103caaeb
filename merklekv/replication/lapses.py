"""The times from which a member may have forgotten what it wrote.

A node that starts notes where its data end and where its clock is: a lapse.  If it simply was down, it has written
nothing in between.  If its directory was restored from a backup, or lost its last writes in a power failure, then all
that it has forgotten lies in this lapse.  So a record with a timestamp in a lapse of its writer was written and lost;
whoever has it, has it by right, although the writer and those that have met it since may hold nothing there.

A member whose lapses another one knows as of time T, and that has one more from before T, was restored since: behind
that one it has written another history (`departure`).

The newest lapses are kept, and of the others the longest, since a backup is older than a restart takes.  Sets of lapses
merge by union, in any order.
"""

from __future__ import annotations

from typing import Final, NamedTuple

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


def lie_around(lapses: Lapses, timestamp: int) -> bool:
    """Whether this time, ns, is in one of them."""
    return any(after < timestamp <= until for after, until, _ in lapses)


def departure(now: Lapses, known: Lapses, seen: int) -> int:
    """From when on, ns, a member with these lapses writes another history than was seen up to `seen`; or `seen`."""
    return min([seen, *(lapse.until for lapse in now - known if lapse.after < seen)])
