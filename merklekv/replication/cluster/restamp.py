"""Restamping a directory: current versions for what a wrong clock has stamped in the future, under a new identity.

`engine/restamp.py` does the records, the truncation and the GC horizon; this adds the table of members.  Together with
other nodes a node may have closed, applied or collected through a time that has not come yet.  Each of these times is
a claim about everything up to it, so it also holds for less: all of them are lowered to now.

The directory goes on as a new member, because others may have agreed that the former one writes nothing before such a
time.  The former one is removed; other nodes learn of that in exchanges.
"""

from __future__ import annotations

from secrets import token_bytes
from typing import Any, NamedTuple

import cbor2

from merklekv.engine.engine import Engine
from merklekv.engine.record import STORE_ID_SIZE, timestamp_of
from merklekv.engine.restamp import FutureData, Progress, find, has_future_data, restamp_data
from merklekv.replication.cluster.members import Identity, Members, node_of
from merklekv.replication.cluster.storage import METADATA_MEMBERS


class Restamped(NamedTuple):
    """What was in the future, and who the directory is and was; None where no node has run on it yet."""

    found: FutureData
    identity: Identity | None
    former: Identity | None
    has_met: bool  # whether it knows another node, which then knows the former identity


def restamp(engine: Engine, now: int, progress: Progress, *, dry_run: bool = False) -> Restamped | None:
    """Restamp everything from after `now`, ns.  Returns None if there is nothing.

    `engine` is in the mode `manual`; afterwards it can only be closed.  `dry_run`: only say what would be done.
    Raises MembersUnreadable, FormatTooNew, TooManyMembers, Shortage, StorageFailed.
    """
    stored = engine.metadata.get(METADATA_MEMBERS)
    if not has_future_data(engine, now) and (stored is None or latest_time(stored) <= now):
        return None
    store_id, entries, identity, former, has_met = token_bytes(STORE_ID_SIZE), {}, None, None, False
    if stored is not None:
        members, former = restamped_members(stored, now, is_lone=engine.tombstone_gc.is_lone)
        store_id, entries, identity = members.identity.store_id, {METADATA_MEMBERS: members.encode()}, members.identity
        has_met = any(members)
    found = find(engine, now, progress) if dry_run else restamp_data(engine, now, store_id, entries, progress)
    return Restamped(found, identity, former, has_met)


def latest_time(stored: bytes) -> int:
    """The latest time, ns, in a stored table.  Raises MembersUnreadable, FormatTooNew."""
    Members.restore(stored, node_of(stored))
    return _largest(cbor2.loads(stored))


def restamped_members(stored: bytes, now: int, *, is_lone: bool) -> tuple[Members, Identity]:
    """The table of the new member, with no time after `now`, ns, and the former identity.

    `is_lone`: no other node can know the former one.  Raises MembersUnreadable, FormatTooNew, TooManyMembers.
    """
    node = node_of(stored)
    former = Members.restore(stored, node).identity
    members = Members.restore(cbor2.dumps(_lowered(cbor2.loads(stored), now)), node, anew=True)
    members.remove(former.node, former.store_id, now)
    # An exception is to what was applied, and of what is after `now` nothing is: no record would end this one.
    members.refused = {at: one for at, one in members.refused.items() if timestamp_of(one.version) <= now}
    if is_lone:
        members.removed.clear()  # or it would keep tombstones from now on
        members.removed_at.clear()
    return members, former


def _largest(item: Any) -> int:
    if type(item) is int:
        return item
    inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    return max(map(_largest, inner), default=0)


def _lowered(item: Any, now: int) -> Any:
    if type(item) is int:
        return min(item, now)
    if isinstance(item, dict):
        return {name: _lowered(inner, now) for name, inner in item.items()}
    return [_lowered(inner, now) for inner in item] if isinstance(item, list) else item
