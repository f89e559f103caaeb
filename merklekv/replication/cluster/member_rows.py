"""The member table as people and programs read it: the members, how far each is, and which hold back the GC horizon.

A row is a mapping, for `MEMBERS` and `merklekv-tool members`:

    node, store_id      the member; the store id (hex) is empty until it is known
    state               self, member, removed; unreadable: a row of the stored table that cannot be decoded, under a
                        name for `FORGET`
    address             where it was last reached
    contact_ms          how long ago that was, -1 for never
    applied_through_ns  every write that it had when its clock showed this is applied here; for this node its own clock
    stable_ns           as it last reported, it has applied every write that any member had when its clock showed this
    holds_back          why it holds back the GC horizon: `view`, it reported other members than this node knows;
                        `unmet`, there was no exchange with it yet; `applied_through`, `stable`, its time is the
                        smallest; `unreadable`, the member is unknown; empty if it does not
    gc_horizon_ns       only in this node's row: tombstones up to here are collected
"""

from __future__ import annotations

from collections.abc import Mapping

from merklekv.replication.cluster.members import Identity, Member, Members, MembersUnreadable, node_of

Row = Mapping[str, int | str]


def rows(members: Members, gc_horizon_ns: int, now: float) -> list[Row]:
    """This node's row, the members' in the order of their ids, the removed members', the unreadable ones'.

    `now`: wall clock, s.

    The caller holds the engine's lock.
    """
    own = _row(members.identity, "self", applied_through_ns=members.closed, stable_ns=members.stable())
    others = [_member_row(members, identity, member, now) for identity, member in members]
    removed = [_row(identity, "removed") for identity in sorted(members.removed)]
    aside = [
        _row(Identity(name, one.store_id), "unreadable", holds_back="unreadable")
        for name, one in sorted(members.unreadable.items())
    ]
    return [own | {"gc_horizon_ns": gc_horizon_ns}, *others, *removed, *aside]


def stored_members(note: bytes) -> Members:
    """The table of a directory that no node has open.  Raises MembersUnreadable, FormatTooNew."""
    return Members.restore(note, node_of(note))


def problems(note: bytes) -> list[str]:
    """What a start would find wrong with the table of members.  Raises FormatTooNew."""
    try:
        aside = stored_members(note).unreadable
    except MembersUnreadable as error:
        return [str(error)]
    return [f"the table of members has {name}, which cannot be read: {one.reason}" for name, one in aside.items()]


def _member_row(members: Members, identity: Identity, member: Member, now: float) -> dict[str, int | str]:
    contact_ms = int(1000 * max(0.0, now - member.contact)) if member.contact else -1
    return _row(
        identity,
        "member",
        address=member.address,
        contact_ms=contact_ms,
        applied_through_ns=member.applied_through,
        stable_ns=member.report.stable,
        holds_back=_holds_back(members, member),
    )


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


def _row(identity: Identity, state: str, **words: int | str) -> dict[str, int | str]:
    head: dict[str, int | str] = {"node": identity.node, "store_id": identity.store_id.hex(), "state": state}
    unset: dict[str, int | str] = {
        "address": "",
        "contact_ms": -1,
        "applied_through_ns": 0,
        "stable_ns": 0,
        "holds_back": "",
    }
    return head | unset | words
