"""The clauses of the deletion rule and of what feeds it, each of which can be left out.

A clause is a row of the decision table, or a condition elsewhere.  Without it some history breaks what the cluster
promises; its seeds are here.  A clause without a seed has no reason to be in the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final, NamedTuple
from unittest import mock

from merklekv.engine.engine import Engine
from merklekv.engine.record import epoch_of
from merklekv.replication.cluster import lost_writes
from merklekv.replication.cluster.exceptions import Exceptions, refused_anew, renewed
from merklekv.replication.cluster.lost_writes import LostWrites
from merklekv.replication.cluster.members import Identity, Members, MemberTable
from merklekv.replication.cluster.refused import TOO_LARGE, RefusedRecord
from merklekv.replication.sync import deletion_rule
from merklekv.replication.sync.deletion_rule import RECORD_ROWS, TIME_ROWS, Pair, RecordRow, TimeRow
from merklekv.replication.sync.local_endpoint import LocalEndpoint

from .mutations import Change, meanwhile, replaced, silenced


class Clause(NamedTuple):
    """A part of the rule."""

    name: str
    seeds: tuple[str, ...]  # of histories that fail without it
    changes: Callable[[], tuple[Change, ...]]


CLAUSES: Final[list[Clause]] = []
Changes = Callable[[], tuple[Change, ...]]


def clause(name: str, *seeds: str) -> Callable[[Changes], None]:
    """Declares one; the function gives the replacements that leave it out."""

    def declare(changes: Changes) -> None:
        CLAUSES.append(Clause(name, seeds, changes))

    return declare


@contextmanager
def without(left_out: Clause) -> Iterator[None]:
    """The product without this clause."""
    with ExitStack() as stack:
        for change in left_out.changes():
            stack.enter_context(change)
        yield


def find_clause(name: str) -> Clause:
    """The one whose name has these words.  Raises LookupError if there is none, or there are several."""
    found = [one for one in CLAUSES if name in one.name]
    exact = [one for one in found if one.name == name] or found
    if len(exact) != 1:
        raise LookupError(f"{len(exact)} clauses have '{name}' in their name; all are: {[one.name for one in CLAUSES]}")
    return exact[0]


# -- the rows ----------------------------------------------------------------------------------------------------------

ROW_SEEDS: Final = {
    "1 tombstone": ("relapse-6",),
    "2 lost write": ("forgetful-0",),
    "3 refused": ("v48",),
    "4 not applied": ("groups-0",),
    "5 above every horizon": ("unseen-1",),
    "6 holder behind": ("r8",),
    "7 not stable": ("detour-6",),
}


def _without_row(row: RecordRow | TimeRow) -> tuple[Change, ...]:
    by_record = tuple(one for one in RECORD_ROWS if one is not row)
    by_time = tuple(one for one in TIME_ROWS if one is not row)
    return (
        mock.patch.object(deletion_rule, "RECORD_ROWS", by_record),
        mock.patch.object(deletion_rule, "TIME_ROWS", by_time),
    )


_ROWS: Final[list[RecordRow | TimeRow]] = [*RECORD_ROWS, *TIME_ROWS]
for _row in _ROWS:
    CLAUSES.append(Clause(f"row {_row.name}", ROW_SEEDS[_row.name], partial(_without_row, _row)))


def _stable_through(chosen: Callable[[MemberTable, MemberTable], dict[Identity, int]]) -> tuple[Change, ...]:
    def of(holder: MemberTable, lacking: MemberTable, sound: Callable[..., Pair] = Pair.of) -> Pair:
        return sound(holder, lacking)._replace(stable_through=chosen(holder, lacking))

    return (replaced(Pair.of, of),)


@clause("row 8 damage", "widow-0")
def _() -> tuple[Change, ...]:
    return _stable_through(lambda holder, lacking: {})


@clause("stable-through of the holder", "unled-1")
def _() -> tuple[Change, ...]:
    return _stable_through(lambda holder, lacking: lacking.stable_through)


@clause("stable-through of a holder whose horizon covers the lacking node", "detour-6")
def _() -> tuple[Change, ...]:
    def larger(holder: MemberTable, lacking: MemberTable) -> dict[Identity, int]:
        one, other = holder.stable_through, lacking.stable_through
        return {who: max(one.get(who, 0), other.get(who, 0)) for who in one | other}

    return _stable_through(larger)


@clause("stable-through of the lacking node", "ahead-0")
def _() -> tuple[Change, ...]:
    return _stable_through(
        lambda holder, lacking: holder.stable_through if holder.horizon_covers(lacking.identity) else {}
    )


# -- lost writes -------------------------------------------------------------------------------------------------------

Retains = Callable[[LostWrites, bytes], bool]


@clause("lost writes are in an interval", "forgetful-0")
def _() -> tuple[Change, ...]:
    def retains(lost: LostWrites, version: bytes, sound: Retains = lost_writes.retains) -> bool:
        return sound(frozenset(one._replace(after=one.until) for one in lost), version)

    return (replaced(lost_writes.retains, retains),)


@clause("lost writes name the process", "s22")
def _() -> tuple[Change, ...]:
    def retains(lost: LostWrites, version: bytes, sound: Retains = lost_writes.retains) -> bool:
        epoch = epoch_of(version)
        same = (
            one._replace(epoch=epoch, missed_through=one.missed_through if one.epoch == epoch else 0) for one in lost
        )
        return sound(frozenset(same), version)

    return (replaced(lost_writes.retains, retains),)


@clause("lost writes of a slow clock are missed", "worn-0")
def _() -> tuple[Change, ...]:
    def merge(one: LostWrites, _one: int, two: LostWrites, _two: int) -> LostWrites:
        return lost_writes.union(one, two)

    return (replaced(lost_writes.merge_accounts, merge),)


@clause("lost writes in the longest intervals", "forgetful-0")
def _() -> tuple[Change, ...]:
    return (mock.patch.object(lost_writes, "LONGEST", 0),)


@clause("lost writes in the newest intervals", "worn-0")
def _() -> tuple[Change, ...]:
    return mock.patch.object(lost_writes, "NEWEST", 0), mock.patch.object(lost_writes, "LONGEST", 8)


@clause("lost writes end at the wall clock", "w1")
def _() -> tuple[Change, ...]:
    return (silenced(Members.clamp_lost_writes),)


@clause("lost writes of its own put a node behind", "c7102157")
def _() -> tuple[Change, ...]:
    return (replaced(lost_writes.unknown, lambda known, elsewhere: lost_writes.NO_LOST_WRITES),)


@clause("what a record of a wrong clock has replaced was not applied", "x8301701")
def _() -> tuple[Change, ...]:
    def anew(known: Exceptions, refused: Iterable[RefusedRecord], *times: int) -> list[RefusedRecord]:
        return refused_anew(known, [one for one in refused if one.reason == TOO_LARGE], *times)

    return (replaced(refused_anew, anew),)


@clause("what a node held of a key that it has refused had reached it", "w8400005")
def _() -> tuple[Change, ...]:
    def renew(known: Exceptions, engine: Engine) -> Exceptions:
        return {key: one._replace(after=b"") for key, one in renewed(known, engine).items()}

    return (replaced(renewed, renew),)


# -- what is stable ----------------------------------------------------------------------------------------------------


@clause("stable waits for the slowest member", "straggler-1")
def _() -> tuple[Change, ...]:
    def stable(members: Members, proposed: int = 0) -> int:
        confirmed = [member.confirmed_through for _, member in members]
        return max(members.closed, proposed, *confirmed) if confirmed and not members.unreadable else 0

    return (replaced(Members.stable, stable),)


@clause("stable waits for unreadable rows", "hearsay-8")
def _() -> tuple[Change, ...]:
    def stable(members: Members, proposed: int = 0) -> int:
        confirmed = [member.confirmed_through for _, member in members]
        return min((max(members.closed, proposed), *confirmed)) if confirmed else 0

    return (replaced(Members.stable, stable),)


@clause("stable relies on what is confirmed after a removal", "legacy-0")
def _() -> tuple[Change, ...]:
    def remove(members: Members, gone: set[Any], sound: Any = Members._remove) -> None:
        before = {who: member.confirmed_through for who, member in members}
        sound(members, gone)
        for who, member in members:
            member.confirmed_through = before[who]

    return (replaced(Members._remove, remove),)


@clause("stable is confirmed by nodes with the same removed members", "legacy-0")
def _() -> tuple[Change, ...]:
    def merge_table(members: Members, peer: MemberTable, *rest: Any, sound: Any = Members.merge_table) -> None:
        sound(members, peer, *rest)
        for who, member in members:
            if (row := peer.rows.get(who)) is not None:
                member.confirmed_through = max(member.confirmed_through, row.confirmed_through)
            if who == peer.identity:
                member.confirmed_through = max(member.confirmed_through, peer.report.closed)

    return (replaced(Members.merge_table, merge_table),)


@clause("horizon waits for one view", "revival-2")
def _() -> tuple[Change, ...]:
    def gc_horizon(members: Members) -> int:
        return min((members.stable(), *(member.report.stable for _, member in members)))

    return (replaced(Members.gc_horizon, gc_horizon),)


@clause("horizon waits for the reports of all", "legacy-3")
def _() -> tuple[Change, ...]:
    def gc_horizon(members: Members) -> int:
        view = members.view()
        return members.stable() if all(member.report.view == view for _, member in members) else 0

    return (replaced(Members.gc_horizon, gc_horizon),)


@clause("horizon waits for re-deletions", "revival-2")
def _() -> tuple[Change, ...]:
    return (silenced(Members.record_redelete),)


@clause("stable-through of what a removed member wrote", "widow-0")
def _() -> tuple[Change, ...]:
    def of(holder: MemberTable, lacking: MemberTable, sound: Callable[..., Pair] = Pair.of) -> Pair:
        pair = sound(holder, lacking)
        gone = holder.removed.keys() | lacking.removed.keys()
        return pair._replace(stable_through={who: t for who, t in pair.stable_through.items() if who not in gone})

    return (replaced(Pair.of, of),)


@clause("applied nothing of a writer that only the holder has known, and removed", "x8700404")
def _() -> tuple[Change, ...]:
    def of(holder: MemberTable, lacking: MemberTable, sound: Callable[..., Pair] = Pair.of) -> Pair:
        pair = sound(holder, lacking)
        unknown = holder.removed.keys() - holder.rows.keys() - lacking.applied_through().keys()
        return pair._replace(applied_through={who: t for who, t in pair.applied_through.items() if who not in unknown})

    return (replaced(Pair.of, of),)


# -- whose horizon a node follows --------------------------------------------------------------------------------------


@clause("stamps nothing below a horizon that it may adopt", "s1000134")
def _() -> tuple[Change, ...]:
    return (meanwhile(LocalEndpoint.catch_up, lambda: replaced(Members.may_adopt_horizon_of, lambda *_: False)),)


@clause("horizon waits for what a restored node has written since", "2001894")
def _() -> tuple[Change, ...]:
    def gc_horizon(members: Members, sound: Any = Members.gc_horizon) -> int:
        members.given_through = members.closed
        horizon: int = sound(members)
        return horizon

    return (replaced(Members.gc_horizon, gc_horizon),)


# -- merging -----------------------------------------------------------------------------------------------------------


@clause("deletes anew what a tombstone below the horizon hides", "hearsay-1")
def _() -> tuple[Change, ...]:
    return (replaced(LocalEndpoint._delete_anew, lambda *_: False),)


@clause("deletes anew what a node has refused, and others have", "v8741717")
def _() -> tuple[Change, ...]:
    def anew(endpoint: LocalEndpoint, key: bytes, *rest: Any, sound: Any = LocalEndpoint._delete_anew) -> bool:
        return endpoint.engine.record(key) is not None and sound(endpoint, key, *rest)

    return (replaced(LocalEndpoint._delete_anew, anew),)


@clause("deletes anew what is late", "groups+relapse-700035")
def _() -> tuple[Change, ...]:
    return (replaced(Members.is_late, lambda members, tombstone: False),)


@clause("refuses late events of what was applied", "overdue-3")
def _() -> tuple[Change, ...]:
    return (replaced(Members.writer_applied_through, lambda members, records: 0),)


@clause("takes over lost writes", "relapse-19")
def _() -> tuple[Change, ...]:
    def merge_table(members: Members, peer: MemberTable, *rest: Any, sound: Any = Members.merge_table) -> None:
        before = dict(members.lost_writes)
        sound(members, peer, *rest)
        members.lost_writes = before

    return (replaced(Members.merge_table, merge_table),)


@clause("takes over the largest horizon", "detour-6")
def _() -> tuple[Change, ...]:
    def merge_table(members: Members, peer: MemberTable, *rest: Any, sound: Any = Members.merge_table) -> None:
        before = members.max_gc_horizon
        sound(members, peer, *rest)
        members.max_gc_horizon = before

    return (replaced(Members.merge_table, merge_table),)


@clause("takes over re-deletions", "revival-0")
def _() -> tuple[Change, ...]:
    def merge_table(members: Members, peer: MemberTable, *rest: Any, sound: Any = Members.merge_table) -> None:
        before = dict(members.redeleted)
        sound(members, peer, *rest)
        members.redeleted = before

    return (replaced(Members.merge_table, merge_table),)
