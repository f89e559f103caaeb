"""Exceptions to applied-through timestamps: what a node has refused, and so lacks of what it has applied.

After an exchange a node has applied all that the other had, but for some that it has refused.  The exceptions are
stored and sent with the table of members.  Otherwise what the node lacks would pass for deleted, and others would
delete it.  An exception stands for the versions of its key between two:

    through    value size    the version that was refused
               clock         the last applied-through timestamp.  What was refused is later, but the record that it has
                             replaced, and a restored backup still has, may never have reached the node.
               conflict      none: each node has a record of the version
    after      the version that the node has held of the key since; for a wrong clock at least the GC horizon when it
               was refused first: what is older had reached the node

A value that is too large and of a wrong clock counts as one of a wrong clock.

It ends when the node holds a record that is not older, or when an exchange was complete with a node that has applied
the version and does not have the exception any more.  One of a wrong clock ends with the GC horizon, too: by then all
members have exchanged again, so either the record was refused again, or who had it does not have it any more and has
given what it has instead.  What was refused before for its size is refused still, so a key may have an exception of
each reason.  A node keeps at most REFUSED_MAX exceptions, those of values that are too large first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from merklekv.engine.engine import Engine
from merklekv.engine.record import (
    OP_ID_SIZE,
    make_version,
    op_id_of,
    store_id_of,
    timestamp_of,
    version_of,
)
from merklekv.replication.cluster.refused import CLOCK, TOO_LARGE, RefusedRecord

Exceptions = dict[tuple[bytes, str], RefusedRecord]  # by key and reason
Through = Mapping[bytes, int]  # applied-through timestamps, ns, by store id

_REASONS: Final = (TOO_LARGE, CLOCK)
_LAST_OP_ID: Final = b"\xff" * OP_ID_SIZE


def by_key(exceptions: Iterable[RefusedRecord]) -> Exceptions:
    """One exception for each key and reason.  It stands for all that several of them stand for."""
    found: Exceptions = {}
    for one in exceptions:
        if one.reason in _REASONS:
            other = found.get((one.key, one.reason), one)
            newer = max(one, other, key=lambda each: each.version)
            found[one.key, one.reason] = newer._replace(after=min(one.after, other.after))
    return found


def is_excepted(exceptions: Exceptions, key: bytes, version: bytes) -> bool:
    """Whether a node may never have had this version of a key, whatever it has applied."""
    for reason in _REASONS:
        found = exceptions.get((key, reason))
        if found is not None and found.after < version <= found.version:
            return True
    return False


def unite(one: Exceptions, one_through: Through, two: Exceptions, two_through: Through) -> Exceptions:
    """The exceptions of two nodes that give each other all they have: what neither of them has applied.

    `one_through`, `two_through`: the applied-through timestamps before.
    """
    return by_key(
        common
        for mine, others, through in ((one, two, two_through), (two, one, one_through))
        for exception in mine.values()
        for common in _common(exception, _of_key(others, exception.key), through)
    )


def _of_key(exceptions: Exceptions, key: bytes) -> list[RefusedRecord]:
    return [exceptions[key, reason] for reason in _REASONS if (key, reason) in exceptions]


def _common(one: RefusedRecord, others: list[RefusedRecord], through: Through) -> Iterator[RefusedRecord]:
    """What a node lacks, too, of the versions of an exception; `others` are its own ones of the key.

    If it is one of a wrong clock for either, it ends as such: they meet who still has it, or it is gone.
    """
    if timestamp_of(one.version) > through.get(store_id_of(one.version), 0):
        known = min((other.after for other in others), default=b"")
        common = [one._replace(after=max(one.after, known))]
    else:
        common = [
            one._replace(
                version=min(one.version, other.version),
                after=max(one.after, other.after),
                reason=CLOCK if CLOCK in (one.reason, other.reason) else TOO_LARGE,
            )
            for other in others
        ]
    return (each for each in common if each.after < each.version)


def refused_anew(
    exceptions: Exceptions, refused: Iterable[RefusedRecord], through: int, gc_horizon: int
) -> list[RefusedRecord]:
    """The exceptions that a node with these ones makes of what it has refused now.

    `through`, ns: the last of its applied-through timestamps.
    """
    made = []
    for one in refused:
        before = exceptions.get((one.key, one.reason))
        if one.reason == TOO_LARGE:
            made.append(one._replace(after=before.after if before else b""))
        elif one.reason == CLOCK:
            version = min(one.version, make_version(through + 1, op_id_of(one.version)))
            after = before.after if before else make_version(gc_horizon, _LAST_OP_ID)
            made.append(one._replace(version=version, after=after))
    return made


def bounded(refused: Iterable[RefusedRecord], count_max: int) -> list[RefusedRecord]:
    """At most so many, those that are too large first."""
    return sorted(refused, key=lambda one: one.reason != TOO_LARGE)[:count_max]


def renewed(exceptions: Exceptions, engine: Engine) -> Exceptions:
    """Those of a node that still stand, by what it holds."""
    found = {}
    for at, one in exceptions.items():
        version = version_of(engine.record(one.key) or b"")
        has_passed = one.reason == CLOCK and timestamp_of(one.version) <= engine.gc_horizon
        if not (has_passed or version >= one.version or one.version < engine.truncation):
            found[at] = one._replace(after=max(one.after, version))
    return found
