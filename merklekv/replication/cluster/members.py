"""The members of a cluster as one node knows them, and what follows: which part of the past is settled.

A member is a data directory: a node id and its birth, eight random bytes drawn when the directory first became one.  A
node that starts anew with an empty directory is another member.

For each other member this node keeps

    seen      a time T: this node has merged all that the member had when its clock was T; 0 if they never met
    counted   as much of `seen` as `stable` may count on; less only for a while after somebody was forgotten
    report    what the member last said of itself: its clock, `stable` and `view` (below)

and from these follow

    stable    the smallest `counted`, its own clock included: everything older, by anyone, has been merged here
    view      a hash of all members and of `buried`, to tell whether two nodes speak of the same ones
    horizon   the smallest `stable`, once all members report the same view: everything older has been merged by all,
              so a tombstone from there has nothing left to hide (cf. causal stability: Baquero et al., "Making
              Operation-based CRDTs Operation-based", 2014)

What a member wrote before a horizon that counts on it, all have merged.  `settled` keeps this time for each, also when
it was forgotten: a record from before it that is not there any more was deleted, whoever comes with it, unless the
member has forgotten that itself: it is in one of its lapses then (lapses.py), which are known as far as it was seen.
`removed` keeps how far each was seen.

A dead record is buried under a tombstone stamped in the past (exchange_side.py), which those have not merged who
reported before.  `buried` is when each member did so last, as far as it has been merged here; it is part of the view,
so the horizon rests until all members report that they have merged that.

`current` is a time up to which this node has merged everything: the largest that `stable` ever was, here or at a node
whose data this one has merged.  Unlike `stable` it does not fall when a member is added.  A horizon above it tells a
node that it was left behind: it was restored from an old backup, say.  A node takes over the horizon of another only if
that one counts on all members whom it has met itself (`follows`): groups that have settled without each other do not.
`reach` is the furthest horizon of all whose data have been merged here: from them nothing later can be missing.

A stored row that cannot be read is set aside, by name and reason, and a whole table likewise, instead of keeping the
node from its data.  The member in it is not known any more, so as long as something is set aside this node has `stable`
at 0, which keeps every horizon of the cluster where it is, and takes over none.  That ends when the row's member is met
again, or by `forget`.

Nobody leaves by being silent, since a silent member may still hold what others have deleted: `forget` is the only way
out.  It is for good: a forgotten directory is refused from then on.  What it wrote, some members may have and others
not, older than the clocks that these have seen of each other.  So nothing that was seen before counts beyond what was
seen of the forgotten one, until each member has been met again after it, too, had forgotten.

Tables of two nodes merge by maxima and unions, in any order and any number of times.  Pure: no threads, no clock, no
disk; callers hold the engine's lock.  Cost: microseconds for tens of members; at most MEMBERS_MAX are kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeVar

import cbor2

from merklekv.address import ADDRESS_BYTES_MAX, is_address
from merklekv.engine.record import store_id_of, timestamp_of
from merklekv.errors import FormatTooNew, MerkleKVError
from merklekv.node_id import is_node_id
from merklekv.replication.cluster.lost_writes import NO_LAPSES, Lapse, Lapses, account_for, joined, lapses_of, shared
from merklekv.replication.fields import (
    Fields,
    Malformed,
    a_list,
    binary,
    decode_map,
    node_id,
    number,
    text,
)

T = TypeVar("T")

TABLE_VERSION: Final = 2
STORE_ID_SIZE: Final = 8
VIEW_SIZE: Final = 8
MEMBERS_MAX: Final = 1000
REMOVED_MAX: Final = 5000
TOLD_MAX: Final = MEMBERS_MAX + REMOVED_MAX
REASON_SIZE_MAX: Final = 1000
CONTACT_MAX: Final = 1e12  # s
TABLE_ITEMS_MAX: Final = 1 << 19  # CBOR items of a stored table; with all members that it may have there are 345,000
UNKNOWN_STORE_ID: Final = b""  # of a member that was heard of and never met
_ASIDE: Final = "unreadable+"  # begins the name of what was set aside: no node is called so


class UnknownMember(MerkleKVError):
    """No member has this id, or several have and the birth has to say which."""


class TooManyMembers(MerkleKVError):
    """The table of members is full.  Nothing was changed."""


class MembersUnreadable(MerkleKVError):
    """The stored table as a whole is damaged."""


class Identity(NamedTuple):
    """A member: a node id with the birth of its data."""

    node: str
    store_id: bytes


class Report(NamedTuple):
    """What a member last said of itself.  The larger one is the later one."""

    clock: int = 0  # ns: it has stamped nothing since at or below
    stable: int = 0  # ns
    view: bytes = b""


NOTHING_SAID: Final = Report()


class Row(NamedTuple):
    """What a node tells of another member."""

    seen: int = 0
    counted: int = 0
    report: Report = NOTHING_SAID


NO_ROW: Final = Row()


@dataclass(slots=True)
class Member:
    """Another member, as this node knows it."""

    seen: int = 0  # ns of its clock
    counted: int = 0  # likewise
    report: Report = NOTHING_SAID
    address: str = ""  # where it was last reached, host:port
    contact: float = 0.0  # when it was last heard, wall clock, s


class Aside(NamedTuple):
    """A stored row that cannot be read, or a whole table."""

    store_id: bytes  # of its member, empty when that cannot be told
    reason: str


@dataclass(frozen=True)
class Table:
    """What a node tells others of its members, and of itself."""

    identity: Identity
    report: Report
    current: int
    reach: int = 0
    rows: dict[Identity, Row] = field(default_factory=dict)
    removed: dict[Identity, int] = field(default_factory=dict)  # likewise
    settled: dict[Identity, int] = field(default_factory=dict)  # see Members
    lapses: dict[Identity, Lapses] = field(default_factory=dict)  # likewise
    buried: dict[Identity, int] = field(default_factory=dict)  # likewise

    def counts_on(self, who: Identity) -> bool:
        """Whether the node's horizon counts on this member."""
        return who in self.settled and self.settled[who] == max(self.settled.values())

    def had(self) -> dict[Identity, int]:
        """Up to when, ns, this node has had all that these wrote, but for what they have forgotten since."""
        had = {who: row.seen for who, row in self.rows.items()} | self.removed | {self.identity: self.report.clock}
        return had | {who: max(until, had.get(who, 0)) for who, until in self.settled.items()}

    def counts_on_all(self, met: Iterable[Identity]) -> bool:
        """Whether it counts on all of these that are members still."""
        return all(who in self.removed or who == self.identity or self.counts_on(who) for who in met)

    def own_times(self) -> tuple[int, ...]:
        """All times, ns, that the node says of itself."""
        return (self.report.clock, self.report.stable, self.current, self.reach, *self.times_of(self.identity))

    def times_of(self, who: Identity) -> Iterator[int]:
        """All times, ns, that the node says of a member in its maps."""
        if (row := self.rows.get(who)) is not None:
            yield from (row.seen, row.counted, row.report.clock, row.report.stable)
        for times in (self.removed, self.settled, self.buried):
            yield times.get(who, 0)
        for lapse in self.lapses.get(who, NO_LAPSES):
            yield from (lapse.after, lapse.until, lapse.missed)

    def beyond(self, latest: int) -> dict[Identity, int]:
        """The members of whom the node says a time beyond `latest`, ns, with the largest one."""
        named = self.rows.keys() | self.removed.keys() | self.settled.keys() | self.buried.keys() | self.lapses.keys()
        furthest = {who: max(self.times_of(who)) for who in named}
        return {who: time for who, time in furthest.items() if time > latest}

    def without_times_of(self, who: Set[Identity]) -> Table:
        """The table with nothing about these, but that they are members: so the horizon waits for them."""
        return replace(
            self,
            rows=self.rows | dict.fromkeys(self.rows.keys() & who, NO_ROW),
            removed=_without(self.removed, who),
            settled=_without(self.settled, who),
            lapses=_without(self.lapses, who),
            buried=_without(self.buried, who),
        )

    def plain(self) -> dict[str, object]:
        """For CBOR."""
        return {
            "node": self.identity.node,
            "store_id": self.identity.store_id,
            "clock": self.report.clock,
            "stable": self.report.stable,
            "view": self.report.view,
            "current": self.current,
            "reach": self.reach,
            "rows": [[*who, row.seen, row.counted, *row.report] for who, row in sorted(self.rows.items())],
            "removed": [[*who, seen] for who, seen in sorted(self.removed.items())],
            "settled": [[*who, until] for who, until in sorted(self.settled.items())],
            "buried": [[*who, at] for who, at in sorted(self.buried.items())],
            "lapses": [[*who, [list(one) for one in sorted(lapses)]] for who, lapses in sorted(self.lapses.items())],
        }


def table_of(fields: Fields, set_aside: Callable[[Any, Malformed], None] | None = None) -> Table:
    """The inverse of `Table.plain`.  `set_aside` gets the rows that cannot be read.  Raises Malformed."""
    identity = Identity(fields.node_id("node"), fields.binary("store_id", STORE_ID_SIZE))
    report = Report(fields.number("clock"), fields.number("stable"), fields.binary("view", VIEW_SIZE))
    rows = {}
    for item in fields.items("rows", MEMBERS_MAX):
        try:
            node, store_id, seen, counted, *said = a_list(item, "a row", 7)
            rows[_identity(node, store_id)] = Row(number(seen, "a time"), number(counted, "a time"), _report(*said))
        except Malformed as problem:
            if set_aside is None:
                raise
            set_aside(item, problem)
    removed = _times(fields, "removed", REMOVED_MAX)
    settled = _times(fields, "settled", TOLD_MAX)
    buried = _times(fields, "buried", TOLD_MAX)
    lapses = {}
    for item in fields.items("lapses", TOLD_MAX):
        node, store_id, found = a_list(item, "lapses", 3)
        lapses[_identity(node, store_id)] = lapses_of(found)
    current, reach = fields.number("current"), fields.number("reach")
    return Table(identity, report, current, reach, rows, removed, settled, lapses, buried)


def _without(told: dict[Identity, T], who: Set[Identity]) -> dict[Identity, T]:
    return {one: what for one, what in told.items() if one not in who}


def _times(fields: Fields, name: str, most: int) -> dict[Identity, int]:
    times = {}
    for item in fields.items(name, most):
        node, store_id, time = a_list(item, name, 3)
        times[_identity(node, store_id)] = number(time, name)
    return times


def _identity(node: Any, store_id: Any) -> Identity:
    return Identity(node_id(node, "a node id"), binary(store_id, "a birth", 0, STORE_ID_SIZE))


def _report(clock: Any, stable: Any, view: Any) -> Report:
    return Report(number(clock, "a clock"), number(stable, "a stable time"), binary(view, "a view", 0, VIEW_SIZE))


class Members:
    """The table of one node."""

    def __init__(self, node: str, store_id: bytes = b"") -> None:
        self.identity = Identity(node, store_id or secrets.token_bytes(STORE_ID_SIZE))
        self.promised = 0  # ns: the largest clock that another node has accepted
        self.proposed = 0  # ns: a larger one that was told to a node whose answer is not known; 0: there is none
        self.rows_refused = 0  # since the start: what others told that is too far ahead of the wall clock
        self.current = 0  # ns
        self.reach = 0  # ns
        self.removed: dict[Identity, int] = {}  # with how far it was seen, as `seen`
        self.settled: dict[Identity, int] = {}  # the last horizon of the engine, ns, that counted on this member
        self.lapses: dict[Identity, Lapses] = {}  # this node's own, and of others as far as they were seen
        self.buried: dict[Identity, int] = {}  # when each last put a tombstone into the past, ns of its clock
        self.aside: dict[str, Aside] = {}  # what could not be read, by a name that `forget` takes
        self._others: dict[Identity, Member] = {}

    def take_over(self, other: Members) -> None:
        """Says from now on what another table of the same node says."""
        vars(self).update(vars(other) | {"rows_refused": self.rows_refused})

    # -- reading -------------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[Identity, Member]]:
        """The other members, in order of their ids."""
        return iter(sorted(self._others.items(), key=lambda item: item[0]))

    def __len__(self) -> int:
        """How many members there are, this node included."""
        return len(self._others) + 1

    def get(self, identity: Identity) -> Member | None:
        """Another member."""
        return self._others.get(identity)

    def is_removed(self, node: str, store_id: bytes) -> bool:
        """Whether this data directory has been taken out."""
        return Identity(node, store_id) in self.removed

    def seen(self, identity: Identity) -> int:
        """Up to when this node has merged what that member had, ns of its clock."""
        member = self._others.get(identity)
        return member.seen if member else 0

    def had(self, events: list[bytes]) -> int:
        """Up to when, ns, all that the writer of these records had has been merged here; 0 if it has forgotten some."""
        writer = store_id_of(events[0])
        who = next((who for who in self._others if who.store_id == writer), self.identity)
        seen, lapses = min(self.seen(who), self.reach), self.lapses.get(who, NO_LAPSES)
        if timestamp_of(min(events)) > seen:
            return seen  # all are new, as nearly always: told at little cost
        old = (one for one in events if timestamp_of(one) <= seen)
        return seen if all(account_for(lapses, one) for one in old) else 0

    def stable(self, clock: int = 0) -> int:
        """Up to when this node has merged what anybody had, ns; 0 while it is alone, or does not know all members.

        `clock`: what it proposes to close, ns.
        """
        if not self._others or self.aside:
            return 0
        return min((max(self.promised, clock), *(member.counted for member in self._others.values())))

    def view(self) -> bytes:
        """What tells apart two sets of members, or two states of knowing what was buried."""
        everyone = sorted([self.identity, *self._others])
        told = [list(who) for who in everyone], [[*who, at] for who, at in sorted(self.buried.items())]
        return sha256(cbor2.dumps(told)).digest()[:VIEW_SIZE]

    def gc_horizon(self) -> int:
        """Up to when all members have merged what anybody had, ns; 0 while that cannot be said."""
        view = self.view()
        if not all(member.report.view == view for member in self._others.values()):
            return 0
        return min((self.stable(), *(member.report.stable for member in self._others.values())))

    def follows(self, peer: Table) -> bool:
        """Whether this node may take over the horizon of another: it counts on all that this node has ever met.

        Else a member of this node's may still hold what a tombstone below that horizon has to hide.  A node on whom a
        horizon counts already follows only one that does so, too.
        """
        if self.aside:
            return False
        members = [who for who, member in self._others.items() if member.seen]
        return peer.counts_on_all(members) and (self.identity not in self.settled or peer.counts_on(self.identity))

    def table(self, clock: int = 0) -> Table:
        """What is told to others; `clock`: what it proposes to close, ns."""
        rows = {who: Row(member.seen, member.counted, member.report) for who, member in self._others.items()}
        report = Report(max(self.promised, clock), self.stable(clock), self.view())
        return Table(
            self.identity,
            report,
            self.current,
            self.reach,
            rows,
            dict(self.removed),
            dict(self.settled),
            dict(self.lapses),
            dict(self.buried),
        )

    # -- changing ------------------------------------------------------------------------------------------------------

    def began(self, lapse: Lapse) -> None:
        """This node has started: its data end where the lapse begins, and it stamps nothing before that ends."""
        self.lapses[self.identity] = joined(self.lapses.get(self.identity, NO_LAPSES), frozenset({lapse}))

    def shorten_lapses(self, clock: int, latest: int) -> None:
        """No lapse of this node ends behind its clock, ns, or lies beyond `latest`, ns.

        One may when the wall clock was set back since: what was lost, was lost before now.
        """
        lapses = set()
        for lapse in self.lapses.get(self.identity, NO_LAPSES):
            after = min(lapse.after, latest)
            lapses.add(lapse._replace(after=after, until=max(after, min(lapse.until, clock))))
        if lapses:
            self.lapses[self.identity] = frozenset(lapses)

    def promise(self, clock: int) -> None:
        """This node stamps nothing at or below `clock`, ns, any more, and another node has accepted that."""
        self.promised = max(self.promised, clock)
        self.current = max(self.current, self.stable())

    def bury(self, clock: int) -> None:
        """This node puts a tombstone into the past: what was said before does not tell that others have merged it."""
        self.buried[self.identity] = max(clock, self.buried.get(self.identity, 0) + 1)

    def heard(self, node: str, store_id: bytes = UNKNOWN_STORE_ID, address: str = "", now: float = 0.0) -> bool:
        """A node was heard of, whatever it holds; whether the members have changed.

        Without its birth it stands for itself until that is known.  One that cannot be called so is none.  Raises
        TooManyMembers.
        """
        if not is_node_id(node):
            return False
        who = Identity(node, store_id)
        known = [other for other in self._others if other.node == node]
        if store_id:
            added = who not in self._others and who not in self.removed
        else:
            added = not known and not any(gone.node == node for gone in self.removed)
        added = added and node != self.identity.node
        if added:
            self._add({who})
        for other in [who] if store_id else known or [who]:
            if (member := self._others.get(other)) is not None:
                member.address = address or member.address
                member.contact = max(member.contact, now)
        return added

    def forget(self, node: str, store_id: bytes = UNKNOWN_STORE_ID) -> list[Identity]:
        """Takes a member out, for good; the birth has to say which when several have had this id.

        What was set aside goes by its name.  Raises UnknownMember, TooManyMembers.
        """
        if self.aside.pop(node, None) is not None:
            return []
        found = [who for who in self._others if who.node == node and store_id in (UNKNOWN_STORE_ID, who.store_id)]
        if not found:
            raise UnknownMember(f"{node}: no such member")
        if len(found) > 1:
            store_ids = ", ".join(sorted(who.store_id.hex() for who in found))
            raise UnknownMember(f"{node}: several members have had this id; say which birth: {store_ids}")
        self._forget(set(found))
        return found

    def meet(self, peer: Table) -> None:
        """Takes in whom a node knows, whom it has forgotten, and what everybody reported, as it tells it.

        What was seen is not taken: that is for `learn`.  Raises TooManyMembers.
        """
        self._forget(peer.removed.keys())
        met = {who: row.report for who, row in peer.rows.items()} | {peer.identity: peer.report}
        self._add({who for who in met if who != self.identity and who not in self.removed})
        for who, report in met.items():
            if (member := self._others.get(who)) is not None:
                member.report = max(member.report, report)

    def learn(self, peer: Table, gc_horizon: int = 0) -> None:
        """This node has merged all that a node had when it told `peer`, and so all that one had seen of others.

        `gc_horizon`, ns: the further one of the two nodes.
        """
        clock = peer.report.clock
        told = peer.rows | {peer.identity: Row(clock, clock)}
        for who in (self.lapses.keys() | peer.lapses.keys()) - {self.identity}:
            mine = self.lapses.get(who, NO_LAPSES), max(self.seen(who), self.removed.get(who, 0))
            theirs = peer.lapses.get(who, NO_LAPSES), max(told.get(who, NO_ROW).seen, peer.removed.get(who, 0))
            self.lapses[who] = shared(*mine, *theirs)
        counts = peer.removed.keys() >= self.removed.keys()
        for who, row in told.items():
            if (member := self._others.get(who)) is not None:
                member.seen = max(member.seen, row.seen)
                member.counted = max(member.counted, row.counted) if counts else member.counted
        for who, seen in self.removed.items():
            self.removed[who] = max(seen, peer.removed.get(who, 0), told.get(who, NO_ROW).seen)
        for who, at in peer.buried.items():
            self.buried[who] = max(at, self.buried.get(who, 0))
        self.current = max(self.current, peer.current, self.stable())
        self.reach = max(self.reach, peer.reach, gc_horizon)
        self._bound()

    def count_on_all(self, gc_horizon: int) -> None:
        """The engine has this horizon now, ns, and it counts on all members."""
        self.reach = max(self.reach, gc_horizon)
        self.settled |= dict.fromkeys((self.identity, *self._others), gc_horizon)

    def count_as(self, peer: Table) -> None:
        """The engine has taken over the horizon of a node."""
        for who, until in peer.settled.items():
            self.settled[who] = max(self.settled.get(who, 0), until)
            self.reach = max(self.reach, until)
        self._bound()

    def _bound(self) -> None:
        """Drops what was told of nodes that are neither members nor forgotten, if it would be too much to store."""
        known = self._others.keys() | self.removed.keys() | {self.identity}
        for told in (self.settled, self.buried, self.lapses):
            if len(told) > TOLD_MAX:
                for who in told.keys() - known:
                    del told[who]

    def _add(self, new: set[Identity]) -> None:
        """Adds members.  One whose birth is not known gives way to one of the same id whose birth is or was known."""
        everyone = self._others.keys() | new
        met = {who.node for who in everyone | self.removed.keys() if who.store_id} | {self.identity.node}
        everyone = {who for who in everyone if who.store_id or who.node not in met}
        if len(everyone) >= MEMBERS_MAX:
            raise TooManyMembers(f"more than {MEMBERS_MAX} members: forget those that are gone")
        self._others = {who: self._others.get(who) or Member() for who in everyone}
        store_ids = {who.store_id for who in everyone if who.store_id}
        self.aside = {name: one for name, one in self.aside.items() if one.store_id not in store_ids}

    def _forget(self, gone: Set[Identity]) -> None:
        if len(self.removed.keys() | gone) > REMOVED_MAX:
            raise TooManyMembers(f"more than {REMOVED_MAX} members forgotten")
        for who in gone - self.removed.keys() - {self.identity}:
            member = self._others.pop(who, None)
            seen = member.seen if member else 0
            for other in self._others.values():
                other.counted = min(other.counted, seen)
            self.removed[who] = seen
            self._add(set())

    # -- storing -------------------------------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """All of it, for `restore`."""
        plain = self.table().plain()
        local = [[*who, member.address, member.contact] for who, member in self]
        aside = [[name, *one] for name, one in sorted(self.aside.items())]
        closed = {"promised": self.promised, "proposed": self.proposed}
        return cbor2.dumps({"v": TABLE_VERSION, **closed, "local": local, "aside": aside, **plain})

    @classmethod
    def restore(cls, data: bytes, node: str) -> Members:
        """The table that `encode` has stored, for the node that now has this id.

        A directory that was copied or whose node was renamed is a new member; the one that it was stays one.  Raises
        MembersUnreadable, FormatTooNew, TooManyMembers.
        """
        aside: dict[str, Aside] = {}

        def set_aside(item: Any, problem: Malformed) -> None:
            store_id = item[1] if type(item) is list and len(item) > 1 and type(item[1]) is bytes else b""
            known = store_id if len(store_id) == STORE_ID_SIZE else UNKNOWN_STORE_ID
            if len(aside) < MEMBERS_MAX:  # one is enough to keep the horizon where it is
                aside[_name_aside(ascii(item).encode())] = Aside(known, f"{problem}: {item!a:.200}")

        try:
            fields = decode_map(data, TABLE_ITEMS_MAX)
            version = fields.number("v")
            if version > TABLE_VERSION:
                raise FormatTooNew(
                    f"the table of members is of version {version}, from a later release; this one reads "
                    f"{TABLE_VERSION}: upgrade MerkleKV"
                )
            if version != TABLE_VERSION:
                raise Malformed(f"it is of version {version}, this release reads {TABLE_VERSION}")
            for item in fields.items("aside", MEMBERS_MAX):
                name, store_id, reason = a_list(item, "aside", 3)
                checked = Aside(
                    binary(store_id, "a birth", 0, STORE_ID_SIZE), text(reason, "a reason", REASON_SIZE_MAX)
                )
                aside[text(name, "a name", REASON_SIZE_MAX)] = checked
            stored = table_of(fields, set_aside)
            promised, proposed = fields.number("promised"), fields.number("proposed")
            local = dict(filter(None, map(_local, fields.items("local"))))
        except Malformed as error:
            raise MembersUnreadable(f"the table of members cannot be read: {error}") from error
        members = cls(node, stored.identity.store_id if node == stored.identity.node else b"")
        members.promised, members.proposed = promised, proposed
        members.current, members.reach = stored.current, stored.reach
        members.removed, members.settled, members.lapses = stored.removed, stored.settled, stored.lapses
        members.buried, members.aside = stored.buried, aside
        for who, row in stored.rows.items():
            members._others[who] = Member(*row, *local.get(who, ("", 0.0)))
        if members.identity != stored.identity:
            if len(members._others) >= MEMBERS_MAX:
                raise TooManyMembers(
                    f"node {stored.identity.node} cannot be renamed to {node}: with the old name there would be more "
                    f"than {MEMBERS_MAX} members; start it under the old name and forget those that are gone"
                )
            clock = stored.report.clock
            members._others[stored.identity] = Member(clock, clock, stored.report)
        return members

    @classmethod
    def after_damage(cls, data: bytes, node: str, problem: MembersUnreadable) -> Members:
        """The table of a node that cannot read its own: a new member, and what it has lost set aside."""
        members = cls(node)
        members.aside[_name_aside(data)] = Aside(UNKNOWN_STORE_ID, str(problem)[:200])
        return members


def node_of(data: bytes) -> str:
    """The id that a stored table has for its own node; empty when it cannot be told."""
    try:
        return decode_map(data, TABLE_ITEMS_MAX).node_id("node")
    except Malformed:
        return ""


def _name_aside(data: bytes) -> str:
    return _ASIDE + sha256(data).hexdigest()[:8]


def _local(item: Any) -> tuple[Identity, tuple[str, float]] | None:
    """Where and when a member was reached last, which may be lost without harm; None when it cannot be read."""
    try:
        node, store_id, address, contact = a_list(item, "local", 4)
        who, where = _identity(node, store_id), text(address, "an address", ADDRESS_BYTES_MAX, 0)
    except Malformed:
        return None
    is_time = type(contact) is float and 0 <= contact <= CONTACT_MAX
    return who, (where if is_address(where) else "", contact if is_time else 0.0)
