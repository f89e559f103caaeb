"""The local endpoint of an exchange: what this node says of itself, believes of the peer, merges and records.

A node adopts the peer's larger GC horizon when the exchange is complete.  It keeps its own if the peer's does not cover
all members that it has exchanged with: two groups have found their horizons without each other.

A tombstone from below the horizon cannot be kept: it would be collected here and not there.  If it deletes something,
the key is deleted anew.  So it is with a record that has expired long before the horizon.  A tombstone that is late is
made anew in any case: its writer was restored, and has stamped it below what was applied of it, or lost it.  So the
next horizon may pass it before all members have it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, NoReturn

from merklekv.engine.clock_watch import BEHIND, UNSET, clock_problem
from merklekv.engine.engine import Engine
from merklekv.engine.format import MAX_KEY_SIZE, OP_DEL, OP_SET
from merklekv.engine.record import (
    HEAD_SIZE,
    TOMBSTONE,
    ZERO_VERSION,
    Pair,
    flags_of,
    is_live,
    is_sound,
    make_record,
    make_version,
    redelete_op_id,
    timestamp_of,
    value_size_of,
    version_of,
)
from merklekv.engine.time_gate import UNSET_BEFORE_NS, show_time
from merklekv.engine.tombstone_gc import is_long_expired
from merklekv.log_throttle import LogThrottle
from merklekv.replication.cluster.exceptions import renewed
from merklekv.replication.cluster.lost_writes import LostWriteInterval
from merklekv.replication.cluster.members import NO_ROW, Identity, Members, MemberTable
from merklekv.replication.cluster.refused import CLOCK, TOO_LARGE, RefusedRecord, refused_record
from merklekv.replication.cluster.storage import join, store_members
from merklekv.replication.sync.messages import BATCH_BYTES, BATCH_RECORDS, UNFIT_CLOCK, ExchangeRefused, Hello

log = logging.getLogger(__name__)

_throttle = LogThrottle(log)

SLICE_MERGES: Final = 250  # records in one call of `merge` or `redelete`


def _warn_refused(kind: str, peer: str, reason: str) -> None:
    _throttle.warn(kind, "refused an exchange: %(reason)s", fields={"peer": peer, "reason": reason})


def is_deletion(record: bytes, gc_horizon: int) -> bool:
    """Predicate: is a record a tombstone, or has it expired so long before a horizon that it is as good as one?"""
    return flags_of(record) == TOMBSTONE or is_long_expired(record, gc_horizon)


class Outdated(Exception):
    """A node was restarted, or has another GC horizon than when the exchange began."""


def raise_gc_horizon(engine: Engine, members: Members) -> None:
    """Raise the GC horizon as far as the members' reports allow.  The caller stores the members and commits."""
    with engine.lock:
        gc_horizon = members.gc_horizon()
        if engine.raise_gc_horizon(gc_horizon):
            members.record_horizon(gc_horizon)


class LocalEndpoint:
    """One of the two nodes, as itself.  Thread-safe."""

    def __init__(self, engine: Engine, members: Members, cluster: str) -> None:
        self.engine = engine
        self.members = members
        self.cluster = cluster

    def hello(self) -> tuple[Hello, int]:
        """The hello of an initiator, and what `on_refused` needs.

        It proposes a closed timestamp, and stamps nothing at or below it until the peer has answered.  The proposal is
        stored, since the peer may accept it although no answer comes.  The caller flushes before it sends the hello.
        """
        engine = self.engine
        with engine.lock:
            self._require_clock()
            closed, before = engine.clock.propose()
            self.members.proposed = engine.clock.proposed
            self.members.clamp_lost_writes(closed)
            join(engine, self.members)
            store_members(engine, self.members)
            return self._hello(closed), before

    def on_accepted(self, mine: Hello, theirs: Hello) -> None:
        """The peer has accepted the proposed closed timestamp, so it holds for good.  The caller commits."""
        with self.engine.lock:
            self.members.peer_clocks.observe(theirs.node, 0.0)
            self._close(mine.table.report.closed)
            store_members(self.engine, self.members)

    def on_refused(self, mine: Hello, before: int) -> None:
        """The peer has refused it.  The caller commits."""
        with self.engine.lock:
            self.engine.clock.withdraw(mine.table.report.closed, before)
            self.members.proposed = self.engine.clock.proposed
            store_members(self.engine, self.members)

    def answer(self, peer: Hello) -> tuple[Hello, bool]:
        """The hello of a responder, and whether both nodes hold the same; then the exchange is complete here.

        It closes no more than the initiator proposes to close: both clocks have got there.  The caller flushes before
        it sends the hello.
        """
        engine = self.engine
        with engine.lock:
            closing = engine.clock.closing()
            self._close(max(self.members.closed, min(closing, peer.table.report.closed)))
            self.members.clamp_lost_writes(closing)
            root = engine.root() if engine.root_ready else b""
            equal = root != b"" and (root, engine.truncation) == (peer.root, peer.truncation)
            if equal:
                self.members.record_given(self.members.closed)
                self._apply(peer.table, peer.gc_horizon, [])
            store_members(engine, self.members)
            return self._hello(0), equal

    def _require_clock(self) -> None:
        """Raises ExchangeRefused if this node's clock cannot judge the times that an exchange brings.

        It was never set, or the node has agreed to later times than it shows now.
        """
        problem = clock_problem(self.engine.clock, self.members.identity.node, self.engine.directory.path)
        if problem.kind in (UNSET, BEHIND):
            does = "so the node takes events, but does not exchange; its clock_problem says what to do"
            raise ExchangeRefused(UNFIT_CLOCK, f"{problem.cause}, {does}")

    def _hello(self, closed: int) -> Hello:
        engine = self.engine
        root = engine.root() if engine.root_ready else b""
        count = engine.records_max  # never 0 if there is one: a peer would not ask for it
        table = self.members.table(closed)
        return Hello(
            self.cluster,
            engine.clock.epoch,
            engine.truncation,
            engine.gc_horizon,
            root,
            count,
            engine.max_value_size,
            table,
        )

    def _close(self, closed: int) -> None:
        self.engine.clock.close_through(closed)
        self.members.close_through(closed)
        self.members.proposed = self.engine.clock.proposed

    def accept(self, peer: Hello) -> Hello:
        """What this node believes of a hello.  Raises ExchangeRefused if it does not exchange with the peer."""
        mine, theirs = self.members.identity, peer.table.identity
        self._require_clock()
        if peer.cluster != self.cluster:
            raise ExchangeRefused(
                "cluster",
                f"node {theirs.node} belongs to the cluster '{peer.cluster}' and node {mine.node} to '{self.cluster}': "
                "nodes of one cluster have the same replication.topic_prefix",
            )
        if mine == theirs:
            raise ExchangeRefused(
                "self", f"node {mine.node} was to exchange with itself or with a copy of its data directory"
            )
        if mine.node == theirs.node:
            raise ExchangeRefused("self", f"two nodes have the id {mine.node}: give each its own replication.client_id")
        for gone, removed in ((theirs, self.members.removed), (mine, peer.table.removed)):
            if gone in removed:
                raise ExchangeRefused(
                    "removed",
                    f"node {gone.node} was removed from its cluster: back up its data directory with merklekv, "
                    "then start it with a new one",
                )
        return self._believe(peer)

    def observe_clock(self, peer: Hello) -> None:
        """An initiator says its closed timestamp, which is its wall clock, if nothing has held it ahead of that."""
        times, theirs = self.engine.time_gate, peer.table.identity
        if times.is_set and peer.cluster == self.cluster and theirs.node != self.members.identity.node:
            self.members.peer_clocks.observe(theirs.node, times.ahead_s(peer.table.report.closed))

    def _believe(self, peer: Hello) -> Hello:
        """A hello without times later than this node's wall clock and `max_clock_drift_seconds`.

        A truncation is left out, and all times of a third member.  Raises ExchangeRefused for one of these two nodes.
        """
        times = self.engine.time_gate
        if peer.truncation > self.engine.truncation and not times.admits_truncation(peer.truncation):
            self.members.rows_refused += 1
            _throttle.warn(
                "truncation",
                "the truncation of node %(peer)s is %(reason)s",
                fields={"peer": peer.node, "reason": times.describe_truncation(peer.truncation)},
            )
            peer = replace(peer, truncation=ZERO_VERSION)
        self.believe_time(peer.node, peer.gc_horizon)
        return replace(peer, table=self.believe_table(peer.table))

    def believe_table(self, table: MemberTable) -> MemberTable:
        """A table without times that are too far ahead, see `_believe`."""
        times, mine = self.engine.time_gate, self.members.identity
        latest = times.latest()
        theirs, ours = max(table.own_times()), max(table.times_of(mine), default=0)
        if table.report.closed > latest:
            self.members.rows_refused += 1
            self._refuse_clock(table.identity, mine, table.identity, times.ahead_s(table.report.closed))
        if theirs > latest:
            self._refuse(table.identity.node, "a time that it says of itself", theirs)
        if ours > latest:
            self._refuse(table.identity.node, f"what it says to have of node {mine.node}", ours)
        far = table.beyond(latest)
        for who, time in far.items():
            self.members.rows_refused += 1
            store_id = who.store_id.hex() or "unknown"
            _throttle.warn(
                "row",
                "what node %(peer)s tells of node %(member)s, store id %(store_id)s, is left out: it is %(reason)s",
                fields={
                    "peer": table.identity.node,
                    "member": who.node,
                    "store_id": store_id,
                    "reason": times.describe(time),
                },
            )
        near = {at: one for at, one in table.refused.items() if times.admits_version(one.version)}
        return replace(table.without_times_of(far.keys()) if far else table, refused=near)

    def require_own_clock_near(self, peer: Hello) -> None:
        """Raises ExchangeRefused if this node's clock is too far ahead of the peer's, which would not accept it."""
        theirs = peer.table.report.closed
        ahead = self.engine.clock.closing() - theirs
        if theirs >= UNSET_BEFORE_NS and ahead > self.engine.time_gate.max_drift_ns:
            self._refuse_clock(self.members.identity, peer.table.identity, peer.table.identity, ahead / 10**9)

    def believe_time(self, node: str, time: int) -> int:
        """A GC horizon, ns, from a peer.  Raises ExchangeRefused if it is too far ahead."""
        if not self.engine.time_gate.admits(time):
            self._refuse(node, "a horizon", time)
        return time

    def _refuse_clock(self, fast: Identity, slow: Identity, peer: Identity, seconds: float) -> NoReturn:
        advice = self.members.peer_clocks.advice(
            self.members.identity.node, peer.node, self.engine.time_gate.max_drift_ns / 10**9
        )
        detail = (
            f"node {fast.node}'s clock is ahead of node {slow.node}'s by {seconds:.0f} s, more than "
            f"max_clock_drift_seconds: {advice}"
        )
        _warn_refused(f"clock {peer.node}", peer.node, detail)
        raise ExchangeRefused("clock", detail)

    def _refuse(self, node: str, what: str, time: int) -> NoReturn:
        self.members.rows_refused += 1
        detail = (
            f"{what} in the table of node {node} is of {show_time(time)}, "
            f"{self.engine.time_gate.ahead_s(time):.0f} s ahead of the wall clock of node "
            f"{self.members.identity.node}, more than max_clock_drift_seconds: one of these clocks is wrong or was, or "
            "the message is false"
        )
        _warn_refused(f"table {node}", node, detail)
        raise ExchangeRefused("clock", detail)

    def add_members(self, peer: Hello) -> None:
        """Add the members that the peer knows, and observe its clock.  The caller commits.  Raises TooManyMembers."""
        with self.engine.lock:
            self.members.add_members_of(peer.table)
            clock = self.engine.clock
            closed = peer.table.rows.get(self.members.identity, NO_ROW).applied_through
            if closed > max(self.members.closed, clock.proposed):  # this node was restored from before it closed that
                after = max(clock.closed_through, clock.proposed)
                self.members.add_lost_writes(LostWriteInterval(after, closed, clock.epoch))
            elif closed > self.members.closed:  # some node has accepted the proposal, and its answer was lost
                self._close(closed)
            store_members(self.engine, self.members)

    def catch_up(self, peer: Hello) -> bool:
        """Raise the GC horizon to the peer's larger one at once, if the reports of all members allow that.

        Otherwise both would compare the tombstones that the peer has collected.  Returns whether it was raised.

        If the horizon may be adopted at the end, this node stamps nothing below it from now on.
        """
        members, gc_horizon = self.members, peer.gc_horizon
        with self.engine.lock:
            if members.may_adopt_horizon_of(peer.table):
                self.engine.clock.hold(gc_horizon)
            if gc_horizon > members.gc_horizon():
                return False
            raised = self.engine.raise_gc_horizon(gc_horizon)
            if raised:
                members.record_horizon(gc_horizon)
            return raised

    def read(
        self, keys: list[bytes], max_value_size: int, node: str, room: int = BATCH_BYTES
    ) -> tuple[list[Pair], list[RefusedRecord], int]:
        """The first of these records, until they fill `room` bytes, for a node with this `max_value_size`.

        Returns them, those that are too large for it, and for how many keys that is.
        """
        pairs: list[Pair] = []
        too_large: list[RefusedRecord] = []
        size = tried = 0
        while tried < min(len(keys), BATCH_RECORDS) and size < room:
            key = keys[tried]
            tried += 1
            if (record := self.engine.record(key)) is None:
                continue
            if value_size_of(record) > max_value_size:
                too_large.append(refused_record(key, record, TOO_LARGE, node))
            else:
                pairs.append((key, record))
            size += len(key) + len(record)
        return pairs, too_large, tried

    def merge(
        self, pairs: list[Pair], origin: bytes, gc_horizon: int, new_gc_horizon: int
    ) -> tuple[int, list[RefusedRecord]]:
        """Merge records of the peer in one short call.  Returns how many were new, and which were refused.

        `gc_horizon`, ns: that of this node when the exchange began; `new_gc_horizon`: that of both when it is complete.
        Raises Outdated, Stalled and Shortage; to merge the same again is harmless.
        """
        engine = self.engine
        with engine.lock:
            if engine.gc_horizon != gc_horizon:
                raise Outdated
            items, refused, applied = [], list[tuple[bytes, str]](), 0
            for key, record in pairs:
                if len(record) < HEAD_SIZE or not is_deletion(record, new_gc_horizon):
                    items.append((OP_SET, key, record))
                elif timestamp_of(record) > new_gc_horizon and not self.members.is_late(record):
                    items.append((OP_DEL, key, record))
                elif not (0 < len(key) <= MAX_KEY_SIZE and is_sound(key, record)):
                    refused.append((key, "digest"))
                elif timestamp_of(record) <= new_gc_horizon:
                    applied += self._delete_anew(key, record, origin)
                elif version_of(engine.record(key) or ZERO_VERSION) < version_of(record):
                    items.append((OP_DEL, key, make_record(key, engine.clock.next(), b"", tombstone=True)))
            result = engine.merge(items, origin, stable=True)
        records, own = dict(pairs), self.members.identity.node
        return applied + result.applied, [
            refused_record(key, records[key], reason, own) for key, reason in refused + result.refused
        ]

    def _delete_anew(self, key: bytes, tombstone: bytes, origin: bytes) -> bool:
        """Deletes at the present time what a tombstone hides that will not stay; whether there is anything."""
        old, exception = self.engine.record(key), self.members.refused.get((key, TOO_LARGE))
        newer = (version_of(old or ZERO_VERSION), exception.version if exception else ZERO_VERSION)
        if max(newer) >= version_of(tombstone):
            return False  # a deletion now would also delete that, or the later record that this node has refused
        if old is not None and is_live(old):
            return self.engine.delete(key)
        if exception is None:
            return False
        # Others have what this node has refused, which is older.
        anew = make_record(key, self.engine.clock.next(), b"", tombstone=True)
        return self.engine.merge([(OP_DEL, key, anew)], origin, stable=True).applied > 0

    def redelete(
        self, pairs: list[Pair], origin: bytes, gc_horizon: int, new_gc_horizon: int
    ) -> tuple[int, list[RefusedRecord]]:
        """Put tombstones just above stale records (key, version), if these still stand.  Returns how many.

        Those that have expired long before the new horizon go by themselves, and need no tombstone.  A damaged record
        stays, and is returned as refused: a bit of its version may have flipped, and made it stale.

        Raises Outdated, Stalled, Shortage.
        """
        engine = self.engine
        with engine.lock:
            if engine.gc_horizon != gc_horizon:
                raise Outdated
            items, refused = [], []
            for key, version in pairs:
                record = engine.record(key)
                if record is None or version_of(record) != version or is_long_expired(record, new_gc_horizon):
                    continue
                if not is_sound(key, record):
                    refused.append(refused_record(key, record, "digest", self.members.identity.node))
                    continue
                above = max(timestamp_of(version), gc_horizon) + 1  # at the horizon it would be collected at once
                tombstone = make_record(key, make_version(above, redelete_op_id(version)), b"", tombstone=True)
                items.append((OP_DEL, key, tombstone))
            if items:
                self.members.record_redelete(engine.clock.closing())
                store_members(engine, self.members)
            return engine.merge(items, origin, stable=True, sound=True).applied, refused

    def complete(
        self, peer: MemberTable, gc_horizon: int, refused: Iterable[RefusedRecord] = (), given_through: int = 0
    ) -> MemberTable:
        """This node holds all that the peer held when it sent its table, but for what one of them refused.

        `given_through`, ns: the closed timestamp with which this node has begun, if the peer has all of that, too.

        Returns the new table of this node, which it may send once that is flushed.  Raises ExchangeRefused if the peer
        was removed meanwhile.
        """
        with self.engine.lock:
            if peer.identity in self.members.removed:
                raise ExchangeRefused("removed", f"node {peer.identity.node} was removed meanwhile")
            self.members.record_given(given_through)
            self._apply(peer, gc_horizon, [*refused])
            store_members(self.engine, self.members)
            return self.members.table()

    def name_refused(self, node: str, refused: Iterable[RefusedRecord]) -> None:
        """An exchange with a node was not complete because of these."""
        with self.engine.lock:
            self.members.refused_records.update(node, refused)

    def merge_report(self, peer: MemberTable, given_through: int) -> None:
        """Take over what the peer reports at the end, which may raise the GC horizon.  The caller commits.

        `given_through`, ns: as for `complete`.
        """
        with self.engine.lock:
            self.members.record_given(given_through)
            self.members.add_members_of(self.believe_table(peer))
            raise_gc_horizon(self.engine, self.members)
            store_members(self.engine, self.members)

    def _apply(self, peer: MemberTable, gc_horizon: int, refused: list[RefusedRecord]) -> None:
        members, times = self.members, self.engine.time_gate
        own = [
            one if times.admits_version(one.version) else one._replace(reason=CLOCK)
            for one in refused
            if one.node == members.identity.node and one.reason in (TOO_LARGE, CLOCK)
        ]
        members.merge_refused(peer, own, self.engine.gc_horizon)
        members.refused = renewed(members.refused, self.engine)
        members.refused_records.update(peer.identity.node, refused)
        members.refused_records.update("", members.too_large())
        if members.may_adopt_horizon_of(peer) and self.engine.raise_gc_horizon(gc_horizon):
            members.record_adopted_horizon(peer)
        members.merge_table(peer, gc_horizon)
        raise_gc_horizon(self.engine, members)
