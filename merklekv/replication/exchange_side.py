"""What both sides of an exchange do with their own node: say who it is, judge the other, merge, remember.

The rule for what was collected, where one node has deleted a key and forgotten that, and the other may still have it.
Let `a` be a node with the horizon H, and r a record of the other, `b`, for which `a` holds nothing as new.  It is dead,
that is `a` has had it and it was deleted since, if `a` has had all that the writer of r, whom every version names, had
written up to r (`Table.had`), and r is from before `a`'s reach, the furthest horizon that whatever `a` holds has passed
through: a later tombstone would be here still.  `b` has r from a broker that lost its deletion, say, from an exchange
that was cut, or from an old backup.  But it is not dead, although that is so, if

- H counts on `b` and on the writer, r is from before H, and `b` was not left behind: so all had the same, and `a` has
  lost r by damage (likewise if `b` has taken over H, or has a further one that counts on both, which `a` has reached);
- its writer has forgotten r itself (lapses.py): `a` may have missed it with the writer;
- its writer was restored, and has written it since, in a time of which `a` has seen what it wrote before (likewise).

Left behind is who has not merged everything up to H, or has not seen `a` so far although H counts on both, or says that
it was away when `a` has seen it (`was_away`): as after the restoration of an old backup.  Such a node's records that no
member wrote (a dump was loaded) are dead as well, if they are from before H and older than what `a` has seen of `b`,
unless `b` is new to H.

All else is new to `a`, and joins the union: a node that joins loses nothing of its own.  What is dead is buried: `b`
puts a tombstone just above r, so that r does not come back from a third node either, and what was written later stands.

A node on which H counts, and that has merged everything up to H of all others on whom it does, is *current*, and adopts
H at once, any other one when the exchange is complete.  (It goes on with its own if H does not count on all whom it has
met: two groups that have settled without each other.  Then its tombstones wait here for a horizon that counts on all.)

A tombstone from below the horizon cannot be kept (it would be collected at once, here and not there), so if it kills
something, that is deleted anew.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from merklekv.engine.engine import Engine
from merklekv.engine.format import (
    FLAGS_AT,
    MAX_KEY_SIZE,
    OP_DEL,
    OP_SET,
    TOMBSTONE,
    VERSION_SIZE,
    make_record,
    record_is_sound,
)
from merklekv.engine.layers import is_live
from merklekv.engine.store import Pair
from merklekv.engine.version import timestamp_of, writer_of
from merklekv.errors import Shortage
from merklekv.replication.exchange_wire import ExchangeRefused, Hello
from merklekv.replication.lapses import NO_LAPSES, Lapse, Lapses, account_for, was_away
from merklekv.replication.members import NO_ROW, Identity, Members, MembersUnreadable, Table

NOTE_MEMBERS: Final = b"members"
NOTE_UNREADABLE: Final = b"members-unreadable"  # a table that could not be read, as it was

log = logging.getLogger(__name__)

Refused = list[tuple[bytes, str]]  # keys with reasons


class Moved(Exception):
    """The horizon is not what it was when the exchange began."""


def load_members(engine: Engine, node: str) -> Members:
    """The node's members as its engine keeps them, and its promise kept.

    What cannot be read of them is set aside and logged.  Raises FormatTooNew, TooManyMembers, Shortage.
    """
    with engine.lock:
        stored = engine.notes.get(NOTE_MEMBERS)
        members = Members(node) if stored is None else _restored(engine, stored, node)
        engine.clock.write_as(members.identity.birth)
        engine.keep_promise(members.promised)
        before = members.lapses.get(members.identity, NO_LAPSES)
        end = engine.clock.last if before else 0
        engine.keep_promise(max((lapse.until + 1 for lapse in before), default=0))  # that tells runs apart
        members.began(Lapse(end, engine.promise(), engine.clock.run))
        if before:
            engine.note_first(NOTE_MEMBERS, members.encode())  # a node starts with a full disk, too
        else:
            try:
                engine.note(NOTE_MEMBERS, members.encode())
            except Shortage as error:
                raise Shortage(f"{engine.directory.path}: {error}, so it cannot begin as node {node}") from error
        first = members.encode()
        engine.when_taken_back = lambda: members.take_over(
            Members.restore(engine.noted(NOTE_MEMBERS) or first, node)
        )
    try:
        engine.flush()
    except Shortage:
        if not before:
            raise
    return members


def _restored(engine: Engine, stored: bytes, node: str) -> Members:
    """The members of a stored table; whatever stands in it, the node can serve its data."""
    try:
        members = Members.restore(stored, node)
    except MembersUnreadable as error:
        engine.note(NOTE_UNREADABLE, stored)
        members = Members.after_damage(stored, node, error)
    for name, one in members.aside.items():
        log.error(
            "members: %s: %s. This node serves its data, and no node of its cluster collects deleted keys until the "
            "nodes have met again and 'merklekv-tool forget %s' takes this out; see docs/operations.md",
            name,
            one.reason,
            name,
        )
    return members


def store_members(engine: Engine, members: Members) -> None:
    """Notes the table in the log.  The caller commits."""
    with engine.lock:
        data = members.encode()
        if engine.notes.get(NOTE_MEMBERS) != data:
            engine.note(NOTE_MEMBERS, data)


def settle(engine: Engine, members: Members) -> None:
    """Moves the horizon as far as the members' reports allow.  The caller stores the members and commits."""
    with engine.lock:
        horizon = members.horizon()
        if engine.raise_horizon(horizon):
            members.count_on_all(horizon)


class Dead(NamedTuple):
    """Which records of a node are dead where the other holds nothing as new under their keys: the rule above."""

    had: dict[bytes, tuple[int, int]]  # ns: those of these writers, from behind the one time up to the other
    had_more: int  # ns: and those of all others up to here
    lapses: dict[bytes, Lapses]  # but for what writers have forgotten

    def may_be(self) -> bool:
        """Whether any can be."""
        return bool(self.had_more) or any(behind < until for behind, until in self.had.values())

    def covers(self, record: bytes) -> bool:
        """Whether this one is, a record or its head."""
        if not is_live(record):
            return False
        writer = writer_of(record)
        behind, until = self.had.get(writer, (0, self.had_more))
        return behind < timestamp_of(record) <= until and account_for(self.lapses.get(writer, NO_LAPSES), record)


NOTHING_IS_DEAD: Final = Dead({}, 0, {})


class Terms(NamedTuple):
    """What two nodes with these hellos do about the horizon."""

    horizon: int  # of the one that is further; tombstones up to here are not handed over
    dead_here: Dead
    dead_there: Dead


def terms_of(mine: Hello, theirs: Hello) -> Terms:
    """The rule above."""
    return Terms(max(mine.horizon, theirs.horizon), _dead_of(mine, theirs), _dead_of(theirs, mine))


def _dead_of(holder: Hello, other: Hello) -> Dead:
    """Which records of the holder are dead at the other."""
    if not holder.count:
        return NOTHING_IS_DEAD
    one, two = holder.table, other.table
    who = one.identity
    seen = two.rows.get(who, NO_ROW).seen
    counted = two.counts_on(who)
    was_restored = was_away(one.lapses.get(who, NO_LAPSES), seen) or (
        counted and two.counts_on(two.identity) and one.rows.get(two.identity, NO_ROW).seen < other.horizon
    )
    left_behind = was_restored or one.current < other.horizon
    had_more = min(seen, other.horizon) if left_behind and (counted or was_restored) else 0
    had = dict.fromkeys(one.rows, 0) | two.had()
    had |= {writer: max(had[writer], had_more) for writer in two.forgotten}
    follows = not counted and holder.horizon == other.horizon and one.settled == two.settled
    spared = other.horizon if (counted or follows) and not left_behind else 0
    if spared and one.counts_on(who) and one.counts_on(two.identity) and two.current >= holder.horizon:
        spared = max(spared, holder.horizon)  # `two` has got as far, and does not follow for other reasons

    def is_common(writer: Identity) -> bool:
        return follows or two.counts_on(writer) or one.counts_on(writer) or writer in two.forgotten

    return Dead(
        {writer.birth: (spared if is_common(writer) else 0, min(until, two.reach)) for writer, until in had.items()},
        had_more,
        {writer.birth: lapses for writer, lapses in two.lapses.items()},
    )


class Side:
    """A node in its exchanges.  Thread-safe."""

    def __init__(self, engine: Engine, members: Members, cluster: str) -> None:
        self.engine = engine
        self.members = members
        self.cluster = cluster
        self.instance = engine.clock.instance

    def hello(self, equal_to: Hello | None = None) -> tuple[Hello, bool]:
        """What this node says of itself; and whether it holds the same as the other, which is remembered at once.

        The caller flushes before it tells anyone.
        """
        engine, members = self.engine, self.members
        with engine.lock:
            members.promise(engine.promise())
            root = engine.root() if engine.root_ready else b""
            equal = equal_to is not None and root != b"" and (root, engine.floor) == (equal_to.root, equal_to.floor)
            if equal and equal_to is not None:
                self._remember(equal_to.table, equal_to.horizon)
            store_members(engine, members)
            count = engine.live_count + engine.dead_count
            hello = Hello(self.cluster, self.instance, engine.floor, engine.horizon, root, count, members.table())
        return hello, equal

    def judge(self, peer: Hello) -> None:
        """Raises ExchangeRefused if this node does not exchange with the other."""
        mine, theirs = self.members.identity, peer.table.identity
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
        for gone, forgotten in ((theirs, self.members.forgotten), (mine, peer.table.forgotten)):
            if gone in forgotten:
                raise ExchangeRefused(
                    "forgotten",
                    f"node {gone.node} was forgotten by its cluster: back up its data directory with merklekv-tool, "
                    "then start it with a new one",
                )
        clock = peer.table.report.clock
        if self.engine.clock.too_far_ahead(clock.to_bytes(8, "big")):
            raise ExchangeRefused(
                "clock",
                f"node {theirs.node}'s clock is ahead of node {mine.node}'s by more than max_clock_drift: "
                "set the clocks of both machines",
            )

    def meet(self, peer: Hello) -> None:
        """Takes in whom the other knows, and its clock.  The caller commits.  Raises ExchangeRefused."""
        with self.engine.lock:
            self.members.meet(peer.table)
            clock = self.engine.clock
            seen = peer.table.rows.get(self.members.identity, NO_ROW).seen
            if seen > self.members.promised:  # this node was restored from before it made that promise
                self.members.began(Lapse(clock.last, seen + 1, clock.run))
                self.engine.keep_promise(seen + 1)
            clock.observe(peer.table.report.clock.to_bytes(8, "big"))
            store_members(self.engine, self.members)

    def is_current(self, peer: Hello) -> bool:
        """Whether the other is further, and this node holds nothing that is dead there: it may adopt that at once."""
        members, theirs = self.members, peer.table
        behind = self.engine.horizon < peer.horizon <= members.current and theirs.counts_on(members.identity)
        gone = members.forgotten.keys() | {members.identity}
        return behind and all(  # it may have been restored from before some were members
            members.seen(who) >= peer.horizon for who in theirs.settled if theirs.counts_on(who) and who not in gone
        )

    def take(self, pairs: list[Pair], origin: bytes, horizon: int, settled: int) -> tuple[int, Refused]:
        """Merges records of the other node, in one short call; how many were new, and what was refused.

        `horizon` is the one that this node had when the exchange began, `settled` the one that both will have.  Raises
        Moved, Stalled and Shortage; merging the same again is harmless.
        """
        engine = self.engine
        with engine.lock:
            if engine.horizon != horizon:
                raise Moved
            items, refused, applied = [], [], 0
            for key, record in pairs:
                if record[FLAGS_AT : FLAGS_AT + 1] != b"\1":
                    items.append((OP_SET, key, record))
                elif timestamp_of(record) > settled:
                    items.append((OP_DEL, key, record))
                elif 0 < len(key) <= MAX_KEY_SIZE and record_is_sound(key, record):
                    applied += self._delete_anew(key, record)
                else:
                    refused.append((key, "digest"))
            result = engine.merge(items, origin, settled=True)
        return applied + result.applied, refused + result.refused

    def _delete_anew(self, key: bytes, tombstone: bytes) -> bool:
        old = self.engine.record(key)
        if old is None or not is_live(old) or old[:VERSION_SIZE] >= tombstone[:VERSION_SIZE]:
            return False
        return self.engine.delete(key)

    def bury(self, pairs: list[Pair], origin: bytes, horizon: int) -> int:
        """Puts tombstones above dead records (key, version) that stand here still; how many.

        Raises Moved, Stalled, Shortage.
        """
        engine = self.engine
        with engine.lock:
            if engine.horizon != horizon:
                raise Moved
            items = []
            for key, version in pairs:
                if (engine.record(key) or b"")[:VERSION_SIZE] != version:
                    continue
                above = max(timestamp_of(version), horizon) + 1  # one at the horizon would go at once
                items.append((OP_DEL, key, make_record(key, above.to_bytes(8, "big") + version[8:], TOMBSTONE, b"")))
            if items:
                self.members.bury(engine.clock.last)
                store_members(engine, self.members)
            return engine.merge(items, origin, settled=True).applied

    def finish(self, peer: Table, horizon: int) -> Table:
        """This node holds all that the other held when it said `peer`; what it tells now, once that was flushed.

        Raises ExchangeRefused if the other was forgotten meanwhile.
        """
        with self.engine.lock:
            if peer.identity in self.members.forgotten:
                raise ExchangeRefused("forgotten", f"node {peer.identity.node} was forgotten meanwhile")
            self._remember(peer, horizon)
            store_members(self.engine, self.members)
            return self.members.table()

    def hear(self, peer: Table) -> None:
        """Takes in what the other reports after it has finished, which may move the horizon.  The caller commits."""
        with self.engine.lock:
            self.members.meet(peer)
            settle(self.engine, self.members)
            store_members(self.engine, self.members)

    def adopt(self, peer: Table, horizon: int) -> bool:
        """Takes over the horizon of the other node, if that counts on all whom this node has met; whether it does."""
        with self.engine.lock:
            follows = self.members.follows(peer)
            if follows and self.engine.raise_horizon(horizon):
                self.members.count_as(peer)
            return follows

    def _remember(self, peer: Table, horizon: int) -> None:
        self.adopt(peer, horizon)
        self.members.learn(peer, horizon)
        settle(self.engine, self.members)
