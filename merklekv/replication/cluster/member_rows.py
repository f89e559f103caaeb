"""The table of members as people and programs read it: who they are, how far each is, and what holds the horizon back.

A row is a mapping of words, for `MEMBERS` and `merklekv-tool members`:

    node, birth     who it is; the birth (hex) is empty until it is known
    state           self, member, forgotten; unreadable: something in the stored table that cannot be read, under a name
                    for `FORGET`
    address         where it was last reached
    contact_ms      how long ago that was, -1 for never
    seen_ns         this node has merged all that it had when its clock was there; for this node its own clock
    stable_ns       it has merged all that anybody had when clocks were there, as it last reported
    holds           why the horizon is no further: `view`, it reported other members than this node knows; `unmet`,
                    there was no exchange with it yet; `seen`, `stable`, its time is the smallest; `unreadable`, whoever
                    it was is not known any more; empty for others
    horizon_ns      this node's row alone: tombstones up to here are collected
"""

from __future__ import annotations

from collections.abc import Mapping

from merklekv.replication.cluster.members import Identity, Member, Members, MembersUnreadable, node_of

Row = Mapping[str, int | str]


def rows(members: Members, gc_horizon_ns: int, now: float) -> list[Row]:
    """This node's row, the others' in the order of their ids, those of forgotten nodes and of what cannot be read.

    `now`: wall clock, s.

    The caller holds the engine's lock.
    """
    own = _row(members.identity, "self", seen_ns=members.closed, stable_ns=members.stable())
    others = [_member_row(members, identity, member, now) for identity, member in members]
    removed = [_row(identity, "removed") for identity in sorted(members.removed)]
    aside = [
        _row(Identity(name, one.store_id), "unreadable", holds="unreadable")
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
        seen_ns=member.applied_through,
        stable_ns=member.report.stable,
        holds=_holds(members, member),
    )


def _holds(members: Members, member: Member) -> str:
    if not member.applied_through:
        return "unmet"
    if member.report.view != members.view():
        return "view"
    own = members.stable()
    slowest = min(other.report.stable for _, other in members)
    if own <= slowest:
        return "seen" if member.applied_through == own else ""
    return "stable" if member.report.stable == slowest else ""


def _row(identity: Identity, state: str, **words: int | str) -> dict[str, int | str]:
    head: dict[str, int | str] = {"node": identity.node, "store_id": identity.store_id.hex(), "state": state}
    unset: dict[str, int | str] = {"address": "", "contact_ms": -1, "seen_ns": 0, "stable_ns": 0, "holds": ""}
    return head | unset | words
