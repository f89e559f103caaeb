"""The members of a cluster as one node knows them, and which part of the past is stable.

A member is a data directory: a node id and a store id, which is drawn at random when the directory is created.  A node
that starts with a new, empty directory is a new member.

Of each other member this node keeps

    applied_through    the timestamp through which every write of the member has been applied here; 0 before the first
                       exchange
    confirmed_through  how much of that `stable` may rely on; less only for a while after a member was removed
    report             what the member last reported of itself: closed timestamp, `stable` and `view` (below)

and from these follow

    stable             the smallest `confirmed_through`, this node's own closed timestamp included: every write up to
                       there, by any member, has been applied here
    view               a hash of all members and of `redeleted`, which tells whether two nodes speak of the same members
    GC horizon         the smallest `stable`, once all members report the same view: all members have applied every
                       write up to there, so a tombstone from there has nothing left to hide (cf. causal stability:
                       Baquero et al., "Making Operation-based CRDTs Operation-based", 2014); at most `given_through`,
                       since reports may be of the time before this node was restored from a backup

`stable_through` is, for each member, the last GC horizon that covers it: all members have applied its writes up to
there.  It stays when the member is removed.  If a record from before that time is not there any more, it was deleted,
unless the member lost the write itself: then it is in one of its lost-write intervals (lost_writes.py), which are known
as far as its writes are applied.  `removed` keeps `applied_through` of each removed member, `removed_at` when that was.

A stale record is re-deleted by a tombstone with a timestamp in the past (sync/), which members that reported before did
not apply.  `redeleted` says when each member last did this.  It is part of the view, so the horizon rests until all
members report that they have applied it.

A node adopts the horizon of another only if that horizon covers all members that it has exchanged with
(`may_adopt_horizon_of`); two groups that became stable without each other do not adopt each other's.  `max_gc_horizon`
is the largest horizon of all nodes whose data were merged here: these nodes have no tombstones from before it.

A stored row, or a whole table, that cannot be read moves to `unreadable`, with a name and a reason.  Its member is
unknown, so this node's `stable` is then 0, which holds back every horizon of the cluster, and it adopts none.  That
ends when the member is added again, or by `remove`.

Whoever may publish at the broker can announce nodes that do not exist.  So no more than UNMET_MAX members are there
without an exchange or an event of theirs; one whose times are too far ahead to be believed counts as such, too.  A node
that finds no room becomes a member by its first exchange or event.  If nodes then know different members, their views
differ, and the horizon rests.

A silent member may still have what others have deleted, so only `remove` removes a member, for good: the last
REMOVED_MAX are kept in mind, and one from before would be a new member.  Some members may
have applied writes of it that others lack and that are older than what these have applied of each other.  So nothing
that was applied before is confirmed beyond what was applied of the removed member, until there was an exchange with a
node that has removed it, too.

The tables of two nodes merge by maxima and unions, in any order and any number of times.  No threads, clock or disk;
callers hold the engine's lock.  Cost: microseconds for tens of members.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from copy import copy
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeVar

import cbor2

from merklekv.address import ADDRESS_BYTES_MAX, is_address
from merklekv.engine.record import STORE_ID_SIZE, is_redelete, store_id_of, timestamp_of
from merklekv.errors import FormatTooNew, MerkleKVError
from merklekv.node_id import is_node_id
from merklekv.replication.cluster.exceptions import Exceptions, bounded, by_key, refused_anew, unite
from merklekv.replication.cluster.lost_writes import (
    NO_LOST_WRITES,
    LostWriteInterval,
    LostWrites,
    decode_lost_writes,
    merge_accounts,
    retains,
    union,
    unknown,
)
from merklekv.replication.cluster.peer_clocks import PeerClocks
from merklekv.replication.cluster.refused import REFUSED_MAX, TOO_LARGE, RefusedRecord, RefusedRecords, decode_refused
from merklekv.replication.plain_cbor import Fields, Malformed, decode_map, row_of

T = TypeVar("T")

TABLE_VERSION: Final = 6
VIEW_SIZE: Final = 8
MEMBERS_MAX: Final = 1000
UNMET_MAX: Final = 100  # of these: members of which nobody has told a time, or a believable one
REMOVED_MAX: Final = 1000
DESCRIBED_MAX: Final = MEMBERS_MAX + REMOVED_MAX
REASON_SIZE_MAX: Final = 1000
CONTACT_MAX: Final = 1e12  # s
TABLE_ITEMS_MAX: Final = 150_000  # CBOR items of a stored table; the fullest one has 137,000
UNKNOWN_STORE_ID: Final = b""  # of a member without an exchange so far
_WHO: Final = ("node", "store_id")  # how a row names a member
_UNREADABLE: Final = "unreadable+"  # begins the name of an unreadable row; no node id has a '+'


class UnknownMember(MerkleKVError):
    """No member has this id, or several have it and the store id has to say which."""


class TooManyMembers(MerkleKVError):
    """The table of members is full.  Nothing was changed."""


class MembersUnreadable(MerkleKVError):
    """The stored table as a whole is damaged."""


class Identity(NamedTuple):
    """A member: a node id with the store id of its data directory."""

    node: str
    store_id: bytes


class SelfReport(NamedTuple):
    """What a member last reported of itself.  The larger one is the later one."""

    closed: int = 0  # ns: its closed timestamp, it stamps nothing at or below it any more
    stable: int = 0  # ns
    view: bytes = b""


NO_REPORT: Final = SelfReport()


class MemberRow(NamedTuple):
    """What a table says of another member."""

    applied_through: int = 0  # ns
    confirmed_through: int = 0  # ns
    report: SelfReport = NO_REPORT


NO_ROW: Final = MemberRow()


@dataclass(slots=True)
class Member:
    """Another member, as this node knows it."""

    applied_through: int = 0  # ns
    confirmed_through: int = 0  # ns
    report: SelfReport = NO_REPORT
    address: str = ""  # where it was last reached, host:port
    contact: float = 0.0  # when it last sent anything, wall clock, s

    @property
    def row(self) -> MemberRow:
        """What the table says of it."""
        return MemberRow(self.applied_through, self.confirmed_through, self.report)


class UnreadableRow(NamedTuple):
    """A stored row, or a whole table, that cannot be read."""

    store_id: bytes  # of its member, empty if that cannot be read either
    reason: str


@dataclass(eq=False, kw_only=True)
class MemberMaps:
    """What a node keeps of the cluster beside its members, and tells others as it is."""

    max_gc_horizon: int = 0  # ns
    removed: dict[Identity, int] = field(default_factory=dict)  # ns: `applied_through` of each removed member
    removed_at: dict[Identity, int] = field(default_factory=dict)  # ns: when, of these
    stable_through: dict[Identity, int] = field(default_factory=dict)  # ns
    lost_writes: dict[Identity, LostWrites] = field(default_factory=dict)
    redeleted: dict[Identity, int] = field(default_factory=dict)  # ns of the member's clock
    refused: Exceptions = field(default_factory=dict)  # to what was applied

    def maps(self) -> dict[str, Any]:
        """A copy of the fields above by name."""
        return {one.name: copy(getattr(self, one.name)) for one in fields(MemberMaps)}


@dataclass
class MemberTable(MemberMaps):
    """What a node tells others of its members and of itself."""

    identity: Identity
    report: SelfReport
    rows: dict[Identity, MemberRow] = field(default_factory=dict)

    def horizon_covers(self, who: Identity) -> bool:
        """Predicate: does the node's GC horizon cover this member?"""
        return who in self.stable_through and self.stable_through[who] == max(self.stable_through.values())

    def applied_through(self) -> dict[Identity, int]:
        """Through when, ns, the node has applied the writes of each member, but for those that the member lost."""
        through = {who: row.applied_through for who, row in self.rows.items()} | self.removed
        alone = self.stable_through.get(self.identity, 0)  # what a lone node purged no other node has agreed to close
        return through | {self.identity: max(self.report.closed, alone)}

    def knows_all_of(self, other: MemberTable) -> bool:
        """Predicate: has the node applied all writes that every member has applied by the GC horizon of another?

        If not it is new, or was restored from a backup: it may hold what was deleted below that horizon.  A restored
        node may have applied all others' writes, if their clocks were ahead, and lack its own.
        """
        horizon, applied_through = max(other.stable_through.values(), default=0), self.applied_through()
        covered = {who for who, until in other.stable_through.items() if until == horizon}
        if any(applied_through.get(who, 0) < horizon for who in covered):
            return False
        own, told = (table.lost_writes.get(self.identity, NO_LOST_WRITES) for table in (self, other))
        return self.identity not in covered or all(one.after >= horizon for one in unknown(own, told))

    def own_times(self) -> tuple[int, ...]:
        """All times, ns, that the node says of itself."""
        report = self.report
        return (report.closed, report.stable, self.max_gc_horizon, *self.times_of(self.identity))

    def times_of(self, who: Identity) -> Iterator[int]:
        """All times, ns, that the node says of a member in its maps."""
        if (row := self.rows.get(who)) is not None:
            yield from (row.applied_through, row.confirmed_through, row.report.closed, row.report.stable)
        for times in (self.removed, self.removed_at, self.stable_through, self.redeleted):
            yield times.get(who, 0)
        for interval in self.lost_writes.get(who, NO_LOST_WRITES):
            yield from (interval.after, interval.until, interval.missed_through)

    def beyond(self, latest: int) -> dict[Identity, int]:
        """The members of which the node says a time beyond `latest`, ns, with the largest such time."""
        maps = (self.rows, self.removed, self.removed_at, self.stable_through, self.redeleted, self.lost_writes)
        largest = {who: max(self.times_of(who)) for who in set[Identity]().union(*maps)}
        return {who: time for who, time in largest.items() if time > latest}

    def without_times_of(self, who: Set[Identity]) -> MemberTable:
        """The table with nothing about these members, except that they are members: so the horizon waits for them."""
        return replace(
            self,
            rows=self.rows | dict.fromkeys(self.rows.keys() & who, NO_ROW),
            removed=_without(self.removed, who),
            removed_at=_without(self.removed_at, who),
            stable_through=_without(self.stable_through, who),
            lost_writes=_without(self.lost_writes, who),
            redeleted=_without(self.redeleted, who),
        )

    def plain(self) -> dict[str, object]:
        """The table in plain types, for CBOR."""
        lost = sorted(self.lost_writes.items())
        return {
            "node": self.identity.node,
            "store_id": self.identity.store_id,
            **self.report._asdict(),
            "max_gc_horizon": self.max_gc_horizon,
            "rows": [
                [*who, row.applied_through, row.confirmed_through, *row.report]
                for who, row in sorted(self.rows.items())
            ],
            "removed": _plain_times(self.removed),
            "removed_at": _plain_times(self.removed_at),
            "stable_through": _plain_times(self.stable_through),
            "redeleted": _plain_times(self.redeleted),
            "refused": [list(one) for _, one in sorted(self.refused.items())],
            "lost_writes": [[*who, [list(one) for one in sorted(intervals)]] for who, intervals in lost],
        }


def decode_table(given: Fields, on_unreadable: Callable[[Any, Malformed], None] | None = None) -> MemberTable:
    """The inverse of `MemberTable.plain`.

    `on_unreadable` gets the rows that cannot be read; without it, or elsewhere in the table, they raise Malformed.
    """
    rows = {}
    for item in given.items("rows", MEMBERS_MAX):
        try:
            row = row_of(item, "a row", *_WHO, "applied_through", "confirmed_through", "closed", "stable", "view")
            report = _decode_report(row, 0, VIEW_SIZE)
            rows[_who(row)] = MemberRow(row.number("applied_through"), row.number("confirmed_through"), report)
        except Malformed as problem:
            if on_unreadable is None:
                raise
            on_unreadable(item, problem)
    lost = given.rows("lost_writes", DESCRIBED_MAX, *_WHO, "intervals")
    return MemberTable(
        Identity(given.node_id("node"), given.binary("store_id", STORE_ID_SIZE)),
        _decode_report(given, VIEW_SIZE),
        rows,
        max_gc_horizon=given.number("max_gc_horizon"),
        removed=_decode_times(given, "removed", REMOVED_MAX),
        removed_at=_decode_times(given, "removed_at", REMOVED_MAX) if "removed_at" in given else {},
        stable_through=_decode_times(given, "stable_through", DESCRIBED_MAX),
        lost_writes={_who(one): decode_lost_writes(one) for one in lost},
        redeleted=_decode_times(given, "redeleted", DESCRIBED_MAX),
        refused=by_key(decode_refused(given, "refused")),
    )


def _without(described: dict[Identity, T], who: Set[Identity]) -> dict[Identity, T]:
    return {one: what for one, what in described.items() if one not in who}


def _plain_times(times: dict[Identity, int]) -> list[list[object]]:
    return [[*who, time] for who, time in sorted(times.items())]


def _decode_times(given: Fields, name: str, count_max: int) -> dict[Identity, int]:
    return {_who(row): row.number(name) for row in given.rows(name, count_max, *_WHO, name)}


def _who(row: Fields) -> Identity:
    return Identity(row.node_id("node"), row.binary("store_id", 0, STORE_ID_SIZE))


def _decode_report(fields: Fields, *view_sizes: int) -> SelfReport:
    return SelfReport(fields.number("closed"), fields.number("stable"), fields.binary("view", *view_sizes))


class Members(MemberMaps):
    """The table of one node, as it changes."""

    def __init__(self, node: str, store_id: bytes = b"") -> None:
        super().__init__()
        self.identity = Identity(node, store_id or secrets.token_bytes(STORE_ID_SIZE))
        self.closed = 0  # ns: the closed timestamp, the largest clock that another node has accepted
        self.given_through = 0  # ns: another node has, on its disk, what this one has stamped through there
        self.proposed = 0  # ns: a larger one, proposed to a node whose answer is not known; 0: none
        self.rows_refused = 0  # since the start: times in others' tables too far ahead of the wall clock
        self.peer_clocks = PeerClocks()  # for people
        self.refused_records = RefusedRecords()  # for people
        self.unreadable: dict[str, UnreadableRow] = {}  # by a name that `remove` takes
        self._others: dict[Identity, Member] = {}

    def replace_with(self, other: Members) -> None:
        """Take over the contents of another table of the same node."""
        kept = ("rows_refused", "peer_clocks", "refused_records")
        vars(self).update(vars(other) | {name: getattr(self, name) for name in kept})

    # -- queries -------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[Identity, Member]]:
        """The other members, in order of their ids."""
        return iter(sorted(self._others.items(), key=lambda item: item[0]))

    def __len__(self) -> int:
        """How many members there are, this node included."""
        return len(self._others) + 1

    @property
    def is_alone(self) -> bool:
        """Predicate: does this node know of no other, not even of one that was removed?"""
        return not (self._others or self.removed or self.unreadable)

    def is_removed(self, node: str, store_id: bytes = UNKNOWN_STORE_ID) -> bool:
        """Predicate: was this data directory removed?  Without a store id: was every directory of this node removed?"""
        if store_id:
            return Identity(node, store_id) in self.removed
        removed = any(who.node == node for who in self.removed)
        return removed and not any(who.node == node for who in self._others)

    def applied_through(self, identity: Identity) -> int:
        """Through which time, ns, every write of a member has been applied here."""
        member = self._others.get(identity)
        return member.applied_through if member else 0

    def writer_applied_through(self, records: list[bytes]) -> int:
        """Through which time, ns, every write of the writer of these records was applied here.

        A record from before this time changes nothing.  All records are of one writer; 0 if it lost one of them.
        """
        writer = store_id_of(records[0])
        who = next((who for who in self._others if who.store_id == writer), self.identity)
        through, lost = min(self.applied_through(who), self.max_gc_horizon), self.lost_writes.get(who, NO_LOST_WRITES)
        if timestamp_of(min(records)) > through:
            return through  # all are new, as nearly always, and this check is cheap
        old = (one for one in records if timestamp_of(one) <= through)
        return through if all(retains(lost, one) for one in old) else 0

    def is_late(self, tombstone: bytes) -> bool:
        """Predicate: did its writer, restored since, stamp it below what was applied of it here, or lose it?

        A GC horizon may pass such a tombstone at any time, before all members have it.  For a re-deletion it rests.
        """
        if is_redelete(tombstone):
            return False
        writer, time = store_id_of(tombstone), timestamp_of(tombstone)
        who = next((who for who in self._others if who.store_id == writer), self.identity)
        through = self.given_through if writer == self.identity.store_id else self.applied_through(who)
        return time <= through and not retains(self.lost_writes.get(who, NO_LOST_WRITES), tombstone)

    def stable(self, proposed: int = 0) -> int:
        """Through which time, ns, every write of every member has been applied here.

        0 while this node is alone or does not know all members.  `proposed`, ns: a closed timestamp that it proposes.
        """
        if not self._others or self.unreadable:
            return 0
        return min((max(self.closed, proposed), *(member.confirmed_through for member in self._others.values())))

    def view(self) -> bytes:
        """A hash that tells apart two sets of members, or two states of what is known to be re-deleted."""
        everyone = [list(who) for who in sorted([self.identity, *self._others])]
        return sha256(cbor2.dumps((everyone, _plain_times(self.redeleted)))).digest()[:VIEW_SIZE]

    def gc_horizon(self) -> int:
        """Through which time, ns, all members have applied every write; 0 while that is unknown.

        What the others report may be of the time before this node was restored from a backup.  What it has written
        since, with a slow clock, is above `given_through` until an exchange is complete.
        """
        view = self.view()
        if not all(member.report.view == view for member in self._others.values()):
            return 0
        return min((self.stable(), self.given_through, *(member.report.stable for member in self._others.values())))

    def may_adopt_horizon_of(self, peer: MemberTable) -> bool:
        """Predicate: does the horizon of a node cover all members that this node has exchanged with?

        Otherwise one of these may still have what a tombstone below that horizon has to hide.  A node that a horizon
        covers already adopts only one that covers it, too.
        """
        if self.unreadable:
            return False
        if self.identity in self.stable_through and not peer.horizon_covers(self.identity):
            return False
        exchanged = (who for who, member in self._others.items() if member.applied_through and who != peer.identity)
        return all(peer.horizon_covers(who) for who in exchanged)

    def table(self, proposed: int = 0) -> MemberTable:
        """What this node tells others.  `proposed`, ns: a closed timestamp that it proposes."""
        return MemberTable(
            self.identity,
            SelfReport(max(self.closed, proposed), self.stable(proposed), self.view()),
            {who: member.row for who, member in self._others.items()},
            **self.maps(),
        )

    # -- commands ------------------------------------------------------------------------------------------------------

    def add_lost_writes(self, interval: LostWriteInterval) -> None:
        """This node has started: its data end where the interval begins, and it stamps nothing before the end of it."""
        own = self.lost_writes.get(self.identity, NO_LOST_WRITES)
        self.lost_writes[self.identity] = union(own, frozenset({interval}))

    def clamp_lost_writes(self, wall: int) -> None:
        """Let no interval of this node end behind its wall clock, ns, which was set back if one does."""
        intervals = self.lost_writes.get(self.identity, NO_LOST_WRITES)
        if any(interval.until > wall for interval in intervals):
            self.lost_writes[self.identity] = frozenset(
                one._replace(after=min(one.after, wall), until=min(one.until, wall)) for one in intervals
            )

    def close_through(self, timestamp: int) -> None:
        """This node stamps nothing at or below `timestamp`, ns, any more, and another node has accepted that."""
        self.closed = max(self.closed, timestamp)

    def record_given(self, through: int) -> None:
        """A complete exchange has begun with this closed timestamp, ns: the other node has what was stamped by then."""
        self.given_through = max(self.given_through, min(through, self.closed))

    def record_redelete(self, clock: int) -> None:
        """This node writes a tombstone in the past: members that reported before have not applied it."""
        self.redeleted[self.identity] = max(clock, self.redeleted.get(self.identity, 0) + 1)

    def record_contact(
        self,
        node: str,
        store_id: bytes = UNKNOWN_STORE_ID,
        address: str = "",
        now: float = 0.0,
        *,
        has_written: bool = False,
    ) -> bool:
        """A node has sent something: add it if it is new, with its address and the time (wall clock, s).

        A node without a store id stands for itself until that is known.  Returns whether a member was added.  Raises
        TooManyMembers.  `has_written`: it has sent writes, which the horizon must not pass without it.
        """
        if not is_node_id(node):
            return False
        who = Identity(node, store_id)
        known = [other for other in self._others if other.node == node]
        is_known = who in self._others if store_id else bool(known)
        added = not is_known and not self.is_removed(node, store_id) and node != self.identity.node
        if added:
            takes_a_place = Identity(node, UNKNOWN_STORE_ID) not in self._others  # or it takes its own
            if takes_a_place and not has_written and not self._unmet_room(self._others):
                raise TooManyMembers(f"{UNMET_MAX} members have not exchanged yet: it becomes one when it does")
            self._add({who})
        for other in [who] if store_id else known or [who]:
            if (member := self._others.get(other)) is not None:
                member.address = address or member.address
                member.contact = max(member.contact, now)
        return added

    def remove(self, node: str, store_id: bytes = UNKNOWN_STORE_ID, now: int = 0) -> list[Identity]:
        """Remove a member for good.  The store id says which, if several have had this node id.

        `now`: ns.  An unreadable row goes by its name.  Returns the removed members.  Raises UnknownMember.
        """
        if self.unreadable.pop(node, None) is not None:
            return []
        found = [who for who in self._others if who.node == node and store_id in (UNKNOWN_STORE_ID, who.store_id)]
        if not found:
            is_removed = any(who.node == node and store_id in (UNKNOWN_STORE_ID, who.store_id) for who in self.removed)
            raise UnknownMember(f"{node}: {'is removed already' if is_removed else 'no such member'}")
        if len(found) > 1:
            store_ids = ", ".join(sorted(who.store_id.hex() for who in found))
            raise UnknownMember(f"{node}: several members have had this id; say which store id: {store_ids}")
        self._remove(dict.fromkeys(found, now))
        return found

    def add_members_of(self, peer: MemberTable) -> None:
        """Take over which members a node knows, which it has removed, and what all of them reported.

        `merge_table` takes over what was applied.  Raises TooManyMembers.
        """
        gone = peer.removed.keys() - self.removed.keys() - {self.identity}
        rest = self._everyone(set(), gone)
        reports = {who: row.report for who, row in peer.rows.items()} | {peer.identity: peer.report}
        new = reports.keys() - rest - self.removed.keys() - gone - {self.identity}
        unmet = sorted(who for who in new if peer.rows.get(who) == NO_ROW)
        new -= {*unmet[self._unmet_room(rest) :]}
        self._everyone(new, gone)  # first: where there is no room for those, the others stay
        self._remove({who: peer.removed_at.get(who, 0) for who in peer.removed})
        self._add(new)
        for who, report in reports.items():
            if (member := self._others.get(who)) is not None:
                member.report = max(member.report, report)

    def too_large(self) -> list[RefusedRecord]:
        """The values that are too large for a node, which lacks them."""
        return [one._replace(after=b"") for one in self.refused.values() if one.reason == TOO_LARGE]

    def merge_refused(self, peer: MemberTable, refused: list[RefusedRecord], gc_horizon: int) -> None:
        """Before `merge_table`: what this node still lacks of what it will have applied then.

        `refused`: what it has refused of the peer's records.  `gc_horizon`, ns: of this node.  Raises TooManyMembers.
        """
        if not (self.refused or peer.refused or refused):
            return
        mine, theirs = (
            {who.store_id: through for who, through in table.applied_through().items()}
            for table in (self.table(), peer)
        )
        made = refused_anew(self.refused, refused, max(*mine.values(), *theirs.values()), gc_horizon)
        united = by_key([*unite(self.refused, mine, peer.refused, theirs).values(), *made]).values()
        if sum(one.reason == TOO_LARGE for one in united) > REFUSED_MAX:
            raise TooManyMembers(f"more than {REFUSED_MAX} records are too large for a node: raise its max_value_size")
        self.refused = by_key(bounded(united, REFUSED_MAX))

    def merge_table(self, peer: MemberTable, gc_horizon: int = 0) -> None:
        """This node has merged all that a node had when it sent `peer`, and so all writes which that one had applied.

        `gc_horizon`, ns: the larger one of the two nodes.
        """
        closed = peer.report.closed
        rows = peer.rows | {peer.identity: MemberRow(closed, closed)}
        for who in (self.lost_writes.keys() | peer.lost_writes.keys()) - {self.identity}:
            here = max(self.applied_through(who), self.removed.get(who, 0))
            there = max(rows.get(who, NO_ROW).applied_through, peer.removed.get(who, 0))
            self.lost_writes[who] = merge_accounts(
                self.lost_writes.get(who, NO_LOST_WRITES), here, peer.lost_writes.get(who, NO_LOST_WRITES), there
            )
        is_confirmed = peer.removed.keys() >= self.removed.keys()
        for who, row in rows.items():
            if (member := self._others.get(who)) is not None:
                member.applied_through = max(member.applied_through, row.applied_through)
                if is_confirmed:
                    member.confirmed_through = max(member.confirmed_through, row.confirmed_through)
        for who, through in self.removed.items():
            self.removed[who] = max(through, peer.removed.get(who, 0), rows.get(who, NO_ROW).applied_through)
        for who, at in peer.redeleted.items():
            self.redeleted[who] = max(at, self.redeleted.get(who, 0))
        self.max_gc_horizon = max(self.max_gc_horizon, peer.max_gc_horizon, gc_horizon)
        self._bound()

    def record_horizon(self, gc_horizon: int) -> None:
        """The engine has this GC horizon now, ns, and it covers all members."""
        self.max_gc_horizon = max(self.max_gc_horizon, gc_horizon)
        self.stable_through |= dict.fromkeys((self.identity, *self._others), gc_horizon)

    def record_horizon_alone(self, gc_horizon: int) -> None:
        """The engine has this GC horizon now, ns, from when this node was a cluster of one."""
        self.max_gc_horizon = max(self.max_gc_horizon, gc_horizon)
        self.stable_through[self.identity] = gc_horizon

    def record_adopted_horizon(self, peer: MemberTable) -> None:
        """The engine has adopted the GC horizon of a node."""
        for who, until in peer.stable_through.items():
            self.stable_through[who] = max(self.stable_through.get(who, 0), until)
            self.max_gc_horizon = max(self.max_gc_horizon, until)
        self._bound()

    def _bound(self) -> None:
        """If there is too much to store, drop what others told of nodes that are neither members nor removed."""
        known = self._others.keys() | self.removed.keys() | {self.identity}
        for described in (self.stable_through, self.redeleted, self.lost_writes):
            if len(described) > DESCRIBED_MAX:
                for who in described.keys() - known:
                    del described[who]

    def _unmet_room(self, others: Iterable[Identity]) -> int:
        """How many more members there may be without an exchange, beside these."""
        return max(0, UNMET_MAX - sum(not self._others[who].applied_through for who in others))

    def _everyone(self, new: Set[Identity], gone: Set[Identity] = frozenset()) -> set[Identity]:
        """All others, once these are added and those removed.  Raises TooManyMembers.

        One without a store id gives way to one of the same node that has one, or had when removed.
        """
        everyone = (self._others.keys() | new) - gone
        named = {who.node for who in everyone | self.removed.keys() | gone if who.store_id} | {self.identity.node}
        everyone = {who for who in everyone if who.store_id or who.node not in named}
        if len(everyone) >= MEMBERS_MAX:
            raise TooManyMembers(f"more than {MEMBERS_MAX} members: forget those that are gone")
        return everyone

    def _add(self, new: Set[Identity]) -> None:
        everyone = self._everyone(new)
        self._others = {who: self._others.get(who) or Member() for who in everyone}
        store_ids = {who.store_id for who in everyone if who.store_id}
        self.unreadable = {name: row for name, row in self.unreadable.items() if row.store_id not in store_ids}

    def _remove(self, gone: Mapping[Identity, int]) -> None:
        """Remove members, and keep in mind the last REMOVED_MAX, as all nodes do.  `gone` says when, ns."""
        new = gone.keys() - self.removed.keys() - {self.identity}
        at = {who: max(gone.get(who, 0), self.removed_at.get(who, 0)) for who in self.removed.keys() | new}
        last = sorted(at, key=lambda who: (at[who], who))[-REMOVED_MAX:] if len(at) > REMOVED_MAX else at
        self.removed_at = {who: at[who] for who in last}
        members = {who: self._others.pop(who, None) for who in new if who in self.removed_at or who in self._others}
        if not members:
            return
        applied = {who: member.applied_through if member else 0 for who, member in members.items()}
        for other in self._others.values():
            other.confirmed_through = min(other.confirmed_through, *applied.values())
        self.removed = {who: through for who, through in (self.removed | applied).items() if who in self.removed_at}
        self._add(set())
        for who in members if len(self.refused_records) else ():
            self.refused_records.update(who.node, ())  # no exchange with it will say that these are gone

    # -- storing -------------------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """All of it, for `restore`."""
        contacts = [[*who, member.address, member.contact] for who, member in self]
        unreadable = [[name, *row] for name, row in sorted(self.unreadable.items())]
        times = {"proposed": self.proposed, "given_through": self.given_through}
        local = {"v": TABLE_VERSION, "contacts": contacts, "unreadable": unreadable}
        return cbor2.dumps(local | times | self.table().plain())

    @classmethod
    def restore(cls, data: bytes, node: str, anew: bool = False) -> Members:
        """The table that `encode` has stored, for the node that now has this id.

        If the directory was copied, or the node renamed, or if `anew`, it is a new member, and the former one stays a
        member.  Raises MembersUnreadable, FormatTooNew, TooManyMembers.
        """
        unreadable: dict[str, UnreadableRow] = {}

        def on_unreadable(item: Any, problem: Malformed) -> None:
            store_id = item[1] if type(item) is list and len(item) > 1 and type(item[1]) is bytes else b""
            known = store_id if len(store_id) == STORE_ID_SIZE else UNKNOWN_STORE_ID
            if len(unreadable) < MEMBERS_MAX:  # one is enough to hold back the horizon
                unreadable[_name_of(ascii(item).encode())] = UnreadableRow(known, f"{problem}: {item!a:.200}")

        try:
            given = decode_map(data, TABLE_ITEMS_MAX)
            version = given.number("v")
            if version > TABLE_VERSION:
                raise FormatTooNew(
                    f"the table of members is of version {version}, from a later release; this one reads "
                    f"{TABLE_VERSION}: upgrade MerkleKV"
                )
            if version != TABLE_VERSION:
                raise Malformed(f"it is of version {version}, this release reads {TABLE_VERSION}")
            for row in given.rows("unreadable", MEMBERS_MAX, "name", "store_id", "reason"):
                unreadable[row.text("name", REASON_SIZE_MAX)] = UnreadableRow(
                    row.binary("store_id", 0, STORE_ID_SIZE), row.text("reason", REASON_SIZE_MAX)
                )
            stored = decode_table(given, on_unreadable)
            proposed, given_through = given.number("proposed"), given.number("given_through")
            contacts = dict(filter(None, map(_decode_contact, given.items("contacts"))))
        except Malformed as error:
            raise MembersUnreadable(f"the table of members cannot be read: {error}") from error
        is_same = node == stored.identity.node and not anew
        members = cls(node, stored.identity.store_id if is_same else b"")
        members.closed, members.proposed, members.given_through = stored.report.closed, proposed, given_through
        vars(members).update(stored.maps())
        members.unreadable = unreadable
        members._others = {who: Member(*row, *contacts.get(who, ("", 0.0))) for who, row in stored.rows.items()}
        if members.identity != stored.identity:
            if len(members) >= MEMBERS_MAX + 1:
                raise TooManyMembers(
                    f"node {stored.identity.node} cannot be renamed to {node}: with the old name there would be more "
                    f"than {MEMBERS_MAX} members; start it under the old name and forget those that are gone"
                )
            closed = stored.report.closed
            members._others[stored.identity] = Member(closed, closed, stored.report)
        return members

    @classmethod
    def after_damage(cls, data: bytes, node: str, problem: MembersUnreadable) -> Members:
        """The table of a node that cannot read its own: a new member, and the whole lost table is unreadable."""
        members = cls(node)
        members.unreadable[_name_of(data)] = UnreadableRow(UNKNOWN_STORE_ID, str(problem)[:200])
        return members


def node_of(data: bytes) -> str:
    """The node id in a stored table; empty if it cannot be read."""
    try:
        return decode_map(data, TABLE_ITEMS_MAX).node_id("node")
    except Malformed:
        return ""


def _name_of(unreadable: bytes) -> str:
    return _UNREADABLE + sha256(unreadable).hexdigest()[:8]


def _decode_contact(item: Any) -> tuple[Identity, tuple[str, float]] | None:
    """Where and when a member was last reached; None if it cannot be read, which does no harm."""
    try:
        row = row_of(item, "a contact", *_WHO, "address", "contact")
        who, address = _who(row), row.text("address", ADDRESS_BYTES_MAX, 0)
    except Malformed:
        return None
    contact = item[-1]
    is_time = type(contact) is float and 0 <= contact <= CONTACT_MAX
    return who, (address if is_address(address) else "", contact if is_time else 0.0)
