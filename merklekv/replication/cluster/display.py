"""The table of members for people and programs: who they are, how far each is, and what holds back the GC horizon.

A row maps names to values, for `MEMBERS` and `merklekv members`:

    node, store_id      the member; the store id (hex) is empty until it is known
    state               self, member or removed; unreadable: a stored row that cannot be read, with a name for `FORGET`
    address             where it was last reached
    contact_ms          how long ago that was; -1: never
    applied_through_ns  this node has applied every write of the member through here; of this node: its closed timestamp
    stable_ns           the member has applied every write of every member through here, as it last reported
    holds_back          why it holds back the horizon: `unmet`, there was no exchange with it yet; `view`, it reported
                        other members than this node knows; `applied_through` or `stable`, its time is the smallest;
                        `unreadable`, the member is unknown; empty for others
    refuses             which records the node refuses, with the reasons; empty for most
    clock_problem       this node's row alone: what is wrong with a clock, its own or that of a peer; else empty
    gc_horizon_ns       this node's row alone: tombstones up to here are collected
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from merklekv.replication.cluster.members import Identity, Member, Members, MembersUnreadable, node_of
from merklekv.replication.cluster.refused import RefusedRecord, in_words

DisplayRow = Mapping[str, int | str]

_UNSET: Final[DisplayRow] = {
    "address": "",
    "contact_ms": -1,
    "applied_through_ns": 0,
    "stable_ns": 0,
    "holds_back": "",
    "refuses": "",
    "clock_problem": "",
}


def display_rows(
    members: Members, gc_horizon_ns: int, now: float, clock_problem: str, refused: Iterable[RefusedRecord] = ()
) -> list[DisplayRow]:
    """This node's row, then the others in order of their ids, removed members, and unreadable rows.

    `clock_problem`: for this node's row.  `now`: wall clock, s.  The caller holds the engine's lock.
    """
    own = _row(
        members.identity,
        "self",
        applied_through_ns=members.closed,
        stable_ns=members.stable(),
        clock_problem=clock_problem,
    )
    others = [
        _row(
            identity,
            "member",
            address=member.address,
            contact_ms=int(1000 * max(0.0, now - member.contact)) if member.contact else -1,
            applied_through_ns=member.applied_through,
            stable_ns=member.report.stable,
            holds_back=_holds_back(members, member),
        )
        for identity, member in members
    ]
    removed = [_row(identity, "removed") for identity in sorted(members.removed)]
    unreadable = [
        _row(Identity(name, one.store_id), "unreadable", holds_back="unreadable")
        for name, one in sorted(members.unreadable.items())
    ]
    own["gc_horizon_ns"] = gc_horizon_ns
    refuses: dict[str, list[RefusedRecord]] = {}
    for one in refused:
        refuses.setdefault(one.node, []).append(one)
    for row in (own, *others):
        row["refuses"] = "; ".join(in_words(refuses.get(str(row["node"]), [])))
    return [own, *others, *removed, *unreadable]


def stored_members(table: bytes) -> Members:
    """The table in a directory that no node has open.  Raises MembersUnreadable, FormatTooNew."""
    return Members.restore(table, node_of(table))


def violations(table: bytes) -> list[str]:
    """What a start would find wrong with a stored table.  Raises FormatTooNew."""
    try:
        unreadable = stored_members(table).unreadable
    except MembersUnreadable as error:
        return [str(error)]
    return [f"the table of members has {name}, which cannot be read: {one.reason}" for name, one in unreadable.items()]


def _holds_back(members: Members, member: Member) -> str:
    if not member.applied_through:
        return "unmet"
    if member.report.view != members.view():
        return "view"
    own = members.stable()
    slowest = min(other.report.stable for _, other in members)
    if own <= slowest:
        return "applied_through" if member.applied_through == own else ""
    return "stable" if member.report.stable == slowest else ""


def _row(identity: Identity, state: str, **values: int | str) -> dict[str, int | str]:
    return {"node": identity.node, "store_id": identity.store_id.hex(), "state": state, **_UNSET, **values}
