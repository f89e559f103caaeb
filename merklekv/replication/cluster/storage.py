"""The table of members in the engine's metadata: loaded when a node starts, stored after each change.

The table travels through the log like a write, so it is as durable as the records that it speaks of, and a recovery
that takes writes back takes the table back, too.  A table that cannot be read does not keep a node from its data.
"""

from __future__ import annotations

import logging
from typing import Final

from merklekv.engine.clock_watch import clock_problem, restamp_advice
from merklekv.engine.engine import Engine
from merklekv.engine.format import METADATA_JOINED
from merklekv.engine.time_gate import show_time
from merklekv.errors import Shortage
from merklekv.output import counted
from merklekv.replication.cluster.lost_writes import NO_LOST_WRITES, LostWriteInterval
from merklekv.replication.cluster.members import Members, MembersUnreadable

METADATA_MEMBERS: Final = b"members"
METADATA_UNREADABLE: Final = b"members-unreadable"  # a table that could not be read, as it was

log = logging.getLogger(__name__)


def load_members(engine: Engine, node: str, joins: bool = False) -> Members:
    """The stored members of a node, with the lost-write interval of this start.  The clock keeps the closed timestamp.

    `joins`: it is set up to meet other nodes, so its deletions leave tombstones.

    A start closes no timestamp: the wall clock may be wrong, and no other node has accepted it yet.  Rows that cannot
    be read are logged.  Raises FormatTooNew, TooManyMembers, Shortage.
    """
    with engine.lock:
        stored = engine.metadata.get(METADATA_MEMBERS)
        members = Members(node) if stored is None else _restored(engine, stored, node)
        clock, own = engine.clock, members.identity
        clock.write_as(own.store_id)
        clock.close_through(members.closed)
        _check_clock(engine, members)
        if (joins or not members.is_alone) and METADATA_JOINED not in engine.metadata:
            engine.put_metadata_first(METADATA_JOINED, b"")
        before = members.lost_writes.get(own, NO_LOST_WRITES)
        now = clock.closing()
        # The data end at the newest version, unless a wrong clock has stamped that.
        newest = clock.newest if clock.newest <= now else 0
        end = max(clock.lower_bound, newest, min(engine.purged_through, now))
        members.refused_records.update("", members.too_large())
        members.add_lost_writes(LostWriteInterval(end if before else 0, now, clock.epoch))
        if before:
            engine.put_metadata_first(METADATA_MEMBERS, members.encode())  # a node starts with a full disk, too
        else:
            try:
                engine.put_metadata(METADATA_MEMBERS, members.encode())
            except Shortage as error:
                raise type(error)(f"{engine.directory.path}: {error}, so it cannot begin as node {node}") from error
        first = members.encode()
        engine.commits.after_roll_back.append(
            lambda: members.replace_with(Members.restore(engine.metadata_or_pending(METADATA_MEMBERS) or first, node))
        )
    try:
        engine.flush()
    except Shortage:
        if not before:
            raise
    return members


def join(engine: Engine, members: Members) -> None:
    """Another node is to have a part in this directory: a deletion leaves a tombstone from now on.

    What this node has purged until now was deleted by all members of a cluster of one, so that is its GC horizon, but
    for times that the wall clock has not reached.  The caller stores the table and commits.  Raises Shortage.
    """
    with engine.lock:
        engine.join()
        clock, through = engine.clock, engine.purged_through
        if through and clock.gate.is_set and not engine.gc_horizon:
            gc_horizon = through if clock.gate.admits(through) else clock.closing()
            if engine.raise_gc_horizon(gc_horizon):
                members.record_horizon_alone(gc_horizon)


def store_members(engine: Engine, members: Members) -> None:
    """Store the table if it has changed.  The caller commits.  Raises Shortage, Stalled."""
    with engine.lock:
        if not members.is_alone:
            join(engine, members)
        data = members.encode()
        if engine.metadata.get(METADATA_MEMBERS) != data:
            engine.put_metadata(METADATA_MEMBERS, data)


def _restored(engine: Engine, stored: bytes, node: str) -> Members:
    try:
        members = Members.restore(stored, node)
    except MembersUnreadable as error:
        engine.put_metadata(METADATA_UNREADABLE, stored)
        members = Members.after_damage(stored, node, error)
    for name, one in members.unreadable.items():
        log.error(
            "members: %s: %s. This node serves its data, and no node of its cluster collects deleted keys until the "
            "nodes have exchanged again and 'merklekv forget %s' takes this out; see docs/operations.md",
            name,
            one.reason,
            name,
        )
    return members


def _check_clock(engine: Engine, members: Members) -> None:
    clock, times, node = engine.clock, engine.time_gate, members.identity.node
    if not clock.resume(members.proposed):
        log.warning(
            "node %s: its clock was at %s before this start, %.0f s ahead of its wall clock now, and no node had "
            "agreed: it goes on from the wall clock",
            node,
            show_time(members.proposed),
            times.ahead_s(members.proposed),
        )
        members.proposed = 0
    problem = clock_problem(clock, node, engine.directory.path)
    if problem:
        log.warning("%s", problem.text)
    far = members.table().beyond(times.latest())
    far.pop(members.identity, None)
    members.rows_refused += len(far)
    if far and not problem:  # which gives the same advice
        latest = max(far, key=lambda who: far[who])
        log.warning(
            "node %s: its table of members has times ahead of its wall clock in %s, up to %s in that of node %s, store "
            "id %s, and other nodes leave them out: %s",
            node,
            counted(len(far), "row"),
            show_time(far[latest]),
            latest.node,
            latest.store_id.hex() or "unknown",
            restamp_advice(engine.directory.path),
        )
