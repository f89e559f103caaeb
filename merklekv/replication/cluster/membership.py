"""Who belongs to the cluster: the table of members, changed by what is heard and by hand, and kept in the log.

members.py says what the table means; here it meets presence, people, the engine that keeps it, and the clock.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from merklekv.engine.engine import Engine
from merklekv.errors import InvalidArgument, Shortage
from merklekv.log_throttle import LogThrottle
from merklekv.replication.cluster.member_rows import Row, rows
from merklekv.replication.cluster.members import (
    STORE_ID_SIZE,
    UNKNOWN_STORE_ID,
    Members,
    TooManyMembers,
)
from merklekv.replication.cluster.presence import ONLINE, Status
from merklekv.replication.sync.local_endpoint import store_members

log = logging.getLogger(__name__)

STORE_ID_DIGITS: Final = 2 * STORE_ID_SIZE
WRITERS_MAX: Final = 10_000  # known by name; messages may name as many as they like


class Membership:
    """The members of one node's cluster.  From any thread."""

    def __init__(self, engine: Engine, members: Members) -> None:
        self._engine = engine
        self._members = members
        self._throttle = LogThrottle(log)
        self._writers: set[str] = set()  # nodes whose events were taken since the start

    def refuses(self, node: str, store_id: str) -> bool:
        """Whether events of a node, with its birth (hex) if it said one, are not taken, since it was forgotten.

        One that is not known yet is a member from here on, even if its presence was lost on the way: what it has
        written is here, so nothing may be settled without it.
        """
        if self.is_removed(node, store_id):
            return True
        if node not in self._writers:
            self.on_status(Status(node, ONLINE, store_id=store_id))
            if len(self._writers) >= WRITERS_MAX:
                self._writers.clear()  # those that go on writing are noted again
            self._writers.add(node)
        return False

    def on_status(self, status: Status) -> None:
        """Makes a member of a node that shows at the broker.  What cannot be one is left out, and logged."""
        try:
            with self._engine.lock:
                if not self._members.record_contact(
                    status.node, _store_id_of(status.store_id), status.address, time.time()
                ):
                    return
                store_members(self._engine, self._members)
        except (TooManyMembers, Shortage) as problem:
            self._throttle.warn("members", f"node {status.node} was heard and is no member: {problem}")
            return
        self._engine.commit()

    def record_contact(self, node: str, store_id: bytes = UNKNOWN_STORE_ID, address: str = "") -> None:
        """Notes that there was an exchange with a member just now."""
        with self._engine.lock:
            self._members.record_contact(node, store_id, address, time.time())

    def writer_applied_through(self, events: list[bytes]) -> int:
        """Up to when, ns, whatever the writer of these records had has been merged here, so they tell nothing new."""
        with self._engine.lock:
            return self._members.writer_applied_through(events)

    def is_removed(self, node: str, store_id: str) -> bool:
        """Whether a node, with its birth (hex) if it said one, was taken out of the cluster."""
        if not self._members.removed:
            return False
        with self._engine.lock:
            if (data := _store_id_of(store_id)) != UNKNOWN_STORE_ID:
                return self._members.is_removed(node, data)
            known = {identity.node for identity, _ in self._members}
            return node not in known and node in {identity.node for identity in self._members.removed}

    def remove(self, node: str, store_id: str = "") -> None:
        """Takes a node out, durably; its birth (hex) says which, if several have had this id.  What was set aside as
        unreadable goes by its name.

        Raises UnknownMember, TooManyMembers, InvalidArgument, Shortage.
        """
        data = _store_id_of(store_id)
        if store_id and data == UNKNOWN_STORE_ID:
            raise InvalidArgument(f"{store_id}: a birth is {STORE_ID_DIGITS} hex digits")
        with self._engine.lock:
            if node == self._members.identity.node and data in (UNKNOWN_STORE_ID, self._members.identity.store_id):
                raise InvalidArgument(f"{node} is this node itself: ask another one to forget it")
            gone = self._members.remove(node, data)
            store_members(self._engine, self._members)
        self._engine.flush()
        for identity in gone:
            born = identity.store_id.hex() or "unknown"
            log.warning("node %s, birth %s, is forgotten: if it returns, it needs a new data directory", node, born)

    def rows(self) -> list[Row]:
        """The members, for people and tools."""
        with self._engine.lock:
            return rows(self._members, self._engine.gc_horizon, time.time())


def _store_id_of(text: str) -> bytes:
    try:
        store_id = bytes.fromhex(text)
    except ValueError:
        return UNKNOWN_STORE_ID
    return store_id if len(store_id) == STORE_ID_SIZE else UNKNOWN_STORE_ID
