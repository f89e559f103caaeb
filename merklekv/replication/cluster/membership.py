"""Who belongs to the cluster: commands and queries on the table of members, from any thread.

`members.py` says what the table means.  This adds the engine's lock, the clock, and storing: a command returns when its
change is committed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from merklekv.engine.engine import Engine
from merklekv.engine.record import STORE_ID_SIZE
from merklekv.errors import InvalidArgument, Shortage
from merklekv.log_throttle import LogThrottle
from merklekv.replication.cluster.display import DisplayRow, display_rows
from merklekv.replication.cluster.members import UNKNOWN_STORE_ID, Members, TooManyMembers
from merklekv.replication.cluster.presence import ONLINE, Status
from merklekv.replication.cluster.refused import RefusedRecord, has_ended
from merklekv.replication.cluster.storage import store_members

log = logging.getLogger(__name__)

WRITERS_MAX: Final = 10_000  # remembered; messages may name any number


class Membership:
    """The members of one node's cluster."""

    def __init__(self, engine: Engine, members: Members) -> None:
        self._engine = engine
        self._members = members
        self._throttle = LogThrottle(log)
        self._writers: set[tuple[str, str]] = set()  # nodes and store ids that became members by their events

    # -- queries -------------------------------------------------------------------------------------------------------

    def is_removed(self, node: str, store_id: str) -> bool:
        """Predicate: was this node removed from the cluster?  `store_id`: hex, or empty if the node did not say one."""
        if not self._members.removed:
            return False
        with self._engine.lock:
            return self._members.is_removed(node, _parse_store_id(store_id))

    def applied_through(self, records: list[bytes]) -> int:
        """Through which time, ns, every write of the writer of these records was applied; 0 if it lost one of them."""
        with self._engine.lock:
            return self._members.writer_applied_through(records)

    def late(self, tombstones: list[bytes]) -> list[bytes]:
        """Those that a restored node has stamped below what was applied of it here."""
        with self._engine.lock:
            return [one for one in tombstones if self._members.is_late(one)]

    def refused(self) -> list[RefusedRecord]:
        """The records that this node or a peer refuses."""
        with self._engine.lock:
            named = self._members.refused_records
            named.drop(lambda one: has_ended(one, self._engine, self._members.identity.node))
            return list(named)

    def rows(self, clock_problem: str = "") -> list[DisplayRow]:
        """The members, for people and tools."""
        with self._engine.lock:
            refused = self.refused()
            return display_rows(self._members, self._engine.gc_horizon, time.time(), clock_problem, refused)

    # -- commands ------------------------------------------------------------------------------------------------------

    def on_status(self, *statuses: Status) -> None:
        """Nodes have announced themselves: add those as members that are new.  One that cannot be added is logged.

        The table is stored once for all of them: each time, all of it goes into the log.
        """
        self._add(statuses, has_written=False)

    def _add(self, statuses: Sequence[Status], has_written: bool) -> bool:
        """Whether all could be added, or are there."""
        added, is_whole = False, True
        with self._engine.lock:
            for status in statuses:
                try:
                    store_id = _parse_store_id(status.store_id)
                    added |= self._members.record_contact(
                        status.node, store_id, status.address, time.time(), has_written=has_written
                    )
                except TooManyMembers as problem:
                    self._warn_no_member(status, problem)
                    is_whole = False
            if not added:
                return is_whole
            try:
                store_members(self._engine, self._members)
            except Shortage as problem:
                self._warn_no_member(statuses[0], problem)
                return False
        self._engine.commit()
        return is_whole

    def _warn_no_member(self, status: Status, problem: Exception) -> None:
        text = "node %(peer)s is no member yet: %(reason)s"
        self._throttle.warn("members", text, fields={"peer": status.node, "reason": str(problem)})

    def on_events_from(self, node: str, store_id: str) -> None:
        """Events of a node are about to be applied: add it as a member if it is new, even if its status was lost.

        Otherwise the horizon would pass writes that are here without waiting for their writer.
        """
        writer = (node, store_id)
        if writer in self._writers or not self._add([Status(node, ONLINE, store_id=store_id)], has_written=True):
            return
        if len(self._writers) >= WRITERS_MAX:
            self._writers.clear()  # those that go on writing come back
        self._writers.add(writer)

    def record_contact(self, node: str, store_id: bytes = UNKNOWN_STORE_ID, address: str = "") -> None:
        """There was an exchange with a member just now."""
        with self._engine.lock:
            self._members.record_contact(node, store_id, address, time.time())

    def remove(self, node: str, store_id: str = "") -> None:
        """Remove a member for good, durably.  `store_id` (hex) says which, if several have had this node id.

        An unreadable row goes by its name.  Raises UnknownMember, InvalidArgument, Shortage.
        """
        given = _parse_store_id(store_id)
        if store_id and given == UNKNOWN_STORE_ID:
            raise InvalidArgument(f"{store_id}: a store id is {2 * STORE_ID_SIZE} hex digits")
        with self._engine.lock:
            own = self._members.identity
            if node == own.node and given in (UNKNOWN_STORE_ID, own.store_id):
                raise InvalidArgument(f"{node} is this node itself: ask another one to forget it")
            removed = self._members.remove(node, given, self._engine.clock.closing())
            store_members(self._engine, self._members)
        self._engine.flush()
        for who in removed:
            log.warning(
                "node %(peer)s, store id %(store_id)s, is removed: if it returns, it needs a new data directory",
                {"peer": node, "store_id": who.store_id.hex() or "unknown"},
            )


def _parse_store_id(text: str) -> bytes:
    try:
        store_id = bytes.fromhex(text)
    except ValueError:
        return UNKNOWN_STORE_ID
    return store_id if len(store_id) == STORE_ID_SIZE else UNKNOWN_STORE_ID
