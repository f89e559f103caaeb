"""The table of members: its times never claim more than the nodes have applied, and tables merge in any order."""

from __future__ import annotations

import random
from collections.abc import Callable

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merklekv.address import PORT_MAX
from merklekv.engine.format import METADATA_SIZE_MAX
from merklekv.engine.record import STORE_ID_SIZE
from merklekv.errors import FormatTooNew
from merklekv.node_id import NODE_ID_BYTES_MAX
from merklekv.replication.cluster import members as members_module
from merklekv.replication.cluster.lost_writes import INTERVALS_MAX, LostWriteInterval
from merklekv.replication.cluster.members import (
    Identity,
    MemberRow,
    Members,
    MembersUnreadable,
    MemberTable,
    SelfReport,
    TooManyMembers,
    UnknownMember,
    decode_table,
)
from merklekv.replication.plain_cbor import NUMBER_MAX, Malformed, decode_map
from merklekv.replication.sync.messages import MESSAGE_ROOM_BYTES, pack, unpack

QUICK = settings(max_examples=60, deadline=None)
VIEW = b"view" * 2


def store_id(number: int) -> bytes:
    return bytes([number]) * STORE_ID_SIZE


def who(name: str, number: int = 1) -> Identity:
    return Identity(name, store_id(number))


def table(name: str, clock: int = 10, **fields: object) -> MemberTable:
    return MemberTable(who(name), SelfReport(clock, 0, VIEW), **fields)  # type: ignore[arg-type]


def new(name: str) -> Members:
    return Members(name, store_id(1))


# -- stable and the horizon --------------------------------------------------------------------------------------------


def test_alone_nothing_is_stable() -> None:
    members = new("a")
    members.close_through(100)
    assert (len(members), members.stable(), members.gc_horizon()) == (1, 0, 0)


def exchange(first: Members, second: Members, clock: int, whole: bool = True) -> None:
    """An exchange that the first begins, as far as the tables go."""
    first.close_through(clock)
    sent = first.table()
    second.add_members_of(sent)
    second.close_through(clock)
    answer = second.table()
    first.add_members_of(answer)
    if whole:
        for node, other in ((first, answer), (second, sent)):
            node.record_given(clock)
            node.merge_table(other)
        first.add_members_of(second.table())


def test_what_two_nodes_exchanged_is_stable() -> None:
    a, b = new("a"), new("b")
    exchange(a, b, 10)
    assert (a.stable(), b.stable(), a.gc_horizon(), b.gc_horizon()) == (10, 10, 10, 0)
    exchange(b, a, 20)
    assert (a.gc_horizon(), b.gc_horizon()) == (10, 20)


def test_an_unmet_member_stops_the_horizon_of_two_others() -> None:
    a, b, c = new("a"), new("b"), new("c")
    exchange(a, b, 10)
    assert a.record_contact("c", store_id(1))
    exchange(a, b, 20)
    assert (a.stable(), a.gc_horizon(), b.gc_horizon()) == (0, 0, 0)
    for clock in (30, 40, 50):
        exchange(a, c, clock)
        exchange(b, c, clock)
        exchange(a, b, clock)
    assert a.gc_horizon() == 50
    assert a.applied_through(c.identity) == 50


def test_applied_through_of_others_is_passed_on() -> None:
    a, b, c = new("a"), new("b"), new("c")
    exchange(a, b, 10)
    exchange(b, c, 20)
    assert c.applied_through(a.identity) == 10
    assert c.stable() == 10


def test_lost_writes_are_known_as_far_as_the_member_is_applied() -> None:
    a, b, c = new("a"), new("b"), new("c")
    b.add_lost_writes(first := LostWriteInterval(3, 7, b"run1"))
    c.add_members_of(b.table())
    assert c.lost_writes == {}
    exchange(b, c, 10)
    exchange(a, c, 20)
    b.add_lost_writes(LostWriteInterval(11, 30, b"run2"))
    assert a.lost_writes == c.lost_writes == {b.identity: frozenset({first})}
    a.remove("b")
    assert a.lost_writes, "what it wrote may still come"


def test_the_applied_through_timestamp_of_a_writer_does_not_cover_lost_writes() -> None:
    def written(*times: int, by: int = 2) -> list[bytes]:
        return [time.to_bytes(8, "big") + store_id(by) + bytes(8) for time in times]

    a, b = Members("a", store_id(1)), Members("b", store_id(2))
    b.add_lost_writes(LostWriteInterval(3, 7, b"run1"))
    exchange(a, b, 10)
    assert a.writer_applied_through(written(1, 9)) == 0, "no node has collected a tombstone"
    a.record_horizon(8)
    assert a.writer_applied_through(written(1, 9)) == 8
    assert a.writer_applied_through(written(1, 5)) == 0, "it may have lost one of them"
    assert a.writer_applied_through(written(1, 9, by=3)) == 0
    assert a.table().applied_through() == {a.identity: 10, b.identity: 10}
    a.remove("b")
    assert a.table().applied_through() == {a.identity: 10, b.identity: 10}, "it is removed, its timestamp is not"


def test_which_members_a_horizon_covers() -> None:
    a, b, c, d = (new(name) for name in "abcd")
    a.record_contact("b", store_id(1))
    a.record_contact("c", store_id(1))
    assert not a.table().horizon_covers(b.identity)
    a.record_horizon(50)
    a.remove("c")
    a.record_contact("d", store_id(1))
    assert [a.table().horizon_covers(one.identity) for one in (a, b, c, d)] == [True, True, True, False]
    a.remove("d")
    a.record_horizon(70)
    sent = a.table()
    assert [sent.horizon_covers(one.identity) for one in (a, b, c, d)] == [True, True, False, False]
    assert sent.stable_through == {a.identity: 70, b.identity: 70, c.identity: 50}
    d.record_contact("b", store_id(1))
    d.record_horizon(60)
    d.record_adopted_horizon(sent)
    assert d.stable_through == {a.identity: 70, b.identity: 70, c.identity: 50, d.identity: 60}
    assert not d.table().horizon_covers(d.identity)


def test_a_horizon_is_adopted_if_it_covers_all_members_with_an_exchange() -> None:
    a = new("a")
    a.record_contact("no exchange", store_id(1))
    exchange(a, new("b"), 10)
    counts_on_b = table("c", stable_through={who("b"): 20, who("old"): 10})
    assert a.may_adopt_horizon_of(counts_on_b)
    assert not a.may_adopt_horizon_of(table("c", stable_through={who("b"): 20, who("later"): 30}))
    assert not a.may_adopt_horizon_of(table("c"))
    a.record_horizon(15)
    assert not a.may_adopt_horizon_of(counts_on_b), "it counts on this node no more"
    assert a.may_adopt_horizon_of(table("c", stable_through={who("a"): 20, who("b"): 20}))


# -- hearing and forgetting --------------------------------------------------------------------------------------------


def test_a_node_without_a_store_id_gives_way_to_the_one_it_turns_out_to_be() -> None:
    members = new("a")
    assert members.record_contact("b", now=5.0)
    assert not members.record_contact("b")
    assert members.record_contact("b", store_id(1), "host:1", 7.0)
    assert [identity for identity, _ in members] == [who("b")]
    assert not members.record_contact("b", b"", "host:2", 6.0)
    member = dict(members).get(who("b"))
    assert member is not None
    assert (member.address, member.contact) == ("host:2", 7.0)


def test_a_node_that_says_its_store_id_takes_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "UNMET_MAX", 1)
    members = new("a")
    assert members.record_contact("b")
    with pytest.raises(TooManyMembers):
        members.record_contact("c", store_id(1))
    assert members.record_contact("b", store_id(1))
    assert [identity for identity, _ in members] == [who("b")]


def test_this_node_is_no_other_member() -> None:
    members = new("a")
    assert not members.record_contact("a")
    assert not members.record_contact("a", store_id(2))
    assert len(members) == 1


def test_a_removed_member_stays_removed() -> None:
    members = new("a")
    members.record_contact("b", store_id(1))
    assert members.remove("b") == [who("b")]
    assert not members.record_contact("b", store_id(1))
    assert not members.record_contact("b")
    assert members.is_removed("b", store_id(1))
    members.add_members_of(table("c", rows={who("b"): MemberRow()}))
    assert [name for (name, _), _ in members] == ["c"]
    assert members.record_contact("b", store_id(2))


def test_a_node_without_a_store_id_goes_with_the_one_that_it_was() -> None:
    members = new("a")
    members.record_contact("b")
    members.add_members_of(table("c", removed={who("b"): 0}))
    members.add_members_of(table("c", rows={Identity("b", b""): MemberRow()}))
    assert [name for (name, _), _ in members] == ["c"]


def test_removal_of_an_ambiguous_name_needs_a_store_id() -> None:
    members = new("a")
    with pytest.raises(UnknownMember, match="b: no such member"):
        members.remove("b")
    members.record_contact("b", store_id(1))
    members.record_contact("b", store_id(2))
    with pytest.raises(UnknownMember, match=f"say which store id: {store_id(1).hex()}, {store_id(2).hex()}"):
        members.remove("b")
    assert members.remove("b", store_id(1)) == [who("b", 1)]
    assert members.remove("b") == [who("b", 2)]


def test_a_node_does_not_remove_itself() -> None:
    members = new("a")
    members.add_members_of(table("b", removed={who("a"): 0}))
    assert members.removed == {}


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "MEMBERS_MAX", 3)
    monkeypatch.setattr(members_module, "REMOVED_MAX", 1)
    members = new("a")
    members.record_contact("b", store_id(1))
    members.record_contact("c", store_id(1))
    for call in (lambda: members.record_contact("d", store_id(1)), lambda: members.add_members_of(table("d"))):
        with pytest.raises(TooManyMembers, match="more than 3 members: forget those that are gone"):
            call()
    assert len(members) == 3
    members.remove("b", now=10)
    members.remove("c", now=20)
    assert members.removed.keys() == {who("c")}, "the last ones are kept in mind"


def test_halves_that_have_removed_more_than_is_kept_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "REMOVED_MAX", 3)
    a, b = new("a"), new("b")
    for members, names in ((a, "cdef"), (b, "efgh")):
        for name in "cdefgh":
            members.record_contact(name, store_id(1))
        for name in names:
            members.remove(name, now=ord(name))
    assert a.removed.keys() == {who("d"), who("e"), who("f")}
    for _ in range(2):
        exchange(a, b, 50)
        exchange(b, a, 50)
    assert a.removed.keys() == b.removed.keys() == {who("f"), who("g"), who("h")}
    assert a.removed_at == b.removed_at
    assert {one.node for one, _ in a} == {"b", "c"}, "c was not kept in mind, and b had not heard of it"
    a.record_contact("i", store_id(1))
    a.remove("i", now=1)
    assert who("i") not in dict(a), "removed all the same"
    assert Members.restore(a.encode(), "a").removed_at == a.removed_at


def test_at_a_limit_nothing_of_a_table_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "MEMBERS_MAX", 3)
    members = new("a")
    members.record_contact("b", store_id(1))
    members.record_contact("c", store_id(1))
    before = members.encode()
    with pytest.raises(TooManyMembers):
        members.add_members_of(table("d", rows={who("e"): MemberRow(5, 5)}, removed={who("b"): 0}))
    assert members.encode() == before
    members.add_members_of(table("d", removed={who("b"): 0}))
    assert [one.node for one, _ in members] == ["c", "d"], "one goes, so there is room for another"


def test_nodes_that_only_announce_themselves_take_a_part_of_the_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "UNMET_MAX", 2)
    members = new("a")
    for name in "bc":
        assert members.record_contact(name, store_id(1))
    with pytest.raises(TooManyMembers, match="2 members have not exchanged yet: it becomes one when it does"):
        members.record_contact("d", store_id(1))
    assert not members.record_contact("b", store_id(1)), "it is one"
    assert members.record_contact("d", store_id(1), has_written=True)
    told = table("e", rows={who("f"): MemberRow(), who("g"): MemberRow(5, 5)})
    members.add_members_of(told)
    assert [one.node for one, _ in members] == ["b", "c", "d", "e", "g"], "f has exchanged with nobody"
    members.merge_table(told)
    for name in "bcd":
        exchange(members, new(name), 20)
    members.add_members_of(told)
    assert [one.node for one, _ in members] == ["b", "c", "d", "e", "f", "g"]


# -- as bytes ----------------------------------------------------------------------------------------------------------

times = st.integers(0, NUMBER_MAX)
identities = st.builds(who, st.sampled_from("abcdef"), st.integers(1, 2))
reports = st.builds(SelfReport, times, times, st.sampled_from([b"", VIEW]))
tables = st.builds(
    MemberTable,
    identities,
    st.builds(SelfReport, times, times, st.just(VIEW)),
    st.dictionaries(identities, st.builds(MemberRow, times, times, reports), max_size=4),
    max_gc_horizon=times,
    removed=st.dictionaries(identities, times, max_size=2),
    stable_through=st.dictionaries(identities, times, max_size=4),
    lost_writes=st.dictionaries(
        identities,
        st.frozensets(st.builds(LostWriteInterval, times, times, st.just(b"run1"), times), max_size=INTERVALS_MAX),
        max_size=2,
    ),
    redeleted=st.dictionaries(identities, times, max_size=2),
)


@given(tables)
@QUICK
def test_a_table_survives_its_bytes(given_table: MemberTable) -> None:
    assert decode_table(decode_map(cbor2.dumps(given_table.plain()))) == given_table


@given(tables, tables)
@QUICK
def test_a_table_is_told_to_who_has_another(given_table: MemberTable, known: MemberTable) -> None:
    packed = pack(given_table, known)
    assert unpack(packed, decode_table(decode_map(cbor2.dumps(known.plain())))) == given_table
    assert len(pack(known, known)) <= len(pack(known))
    if known != given_table:
        with pytest.raises(Malformed, match="a table that cannot be unpacked"):
            unpack(packed, given_table)


@given(st.lists(tables, max_size=4))
@QUICK
def test_members_survive_their_bytes(tables: list[MemberTable]) -> None:
    members = new("self")
    members.record_contact("b", store_id(1), "host:1", 12.5)
    for one in tables:
        members.add_members_of(one)
        members.merge_table(one)
    members.close_through(77)
    again = Members.restore(members.encode(), "self")
    assert again.table() == members.table()
    assert list(again) == list(members)
    assert again.closed == 77


def test_a_copy_under_another_name_is_another_member() -> None:
    members = new("a")
    exchange(members, new("b"), 10)
    copy = Members.restore(members.encode(), "copy")
    assert copy.identity != members.identity
    assert (copy.applied_through(members.identity), copy.applied_through(who("b"))) == (10, 10)


def test_sizes_at_their_limits() -> None:
    members = new("n" * NODE_ID_BYTES_MAX)
    members.record_contact("o" * NODE_ID_BYTES_MAX, store_id(1), f"{'h' * 63}:{PORT_MAX}")
    assert list(Members.restore(members.encode(), "a"))
    plain = members.table().plain()
    for name, value in (
        ("node", "n" * (NODE_ID_BYTES_MAX + 1)),
        ("node", ""),
        ("closed", NUMBER_MAX + 1),
        ("closed", -1),
    ):
        with pytest.raises(Malformed, match=f"{name} "):
            decode_table(decode_map(cbor2.dumps(plain | {name: value})))


def test_the_largest_table_can_be_stored_and_sent() -> None:
    """With ids as long as they may be, of which nothing can be packed."""
    chance = random.Random(1)
    members = new("n" * NODE_ID_BYTES_MAX)
    letters = [letter for letter in map(chr, range(33, 127)) if letter not in "/+#"]
    everyone = [
        Identity("".join(chance.choices(letters, k=NODE_ID_BYTES_MAX)), chance.randbytes(STORE_ID_SIZE))
        for _ in range(members_module.MEMBERS_MAX - 1 + members_module.REMOVED_MAX)
    ]
    present, gone = everyone[: members_module.MEMBERS_MAX - 1], everyone[members_module.MEMBERS_MAX - 1 :]
    members.add_members_of(table("peer", rows=dict.fromkeys(present[1:], MemberRow(1, 1))))
    members.removed |= dict.fromkeys(gone, 5)
    members.removed_at |= {one: chance.randrange(NUMBER_MAX) for one in gone}
    for one in everyone:
        members.stable_through[one] = chance.randrange(NUMBER_MAX)
        members.redeleted[one] = chance.randrange(NUMBER_MAX)
        ends = (chance.randrange(NUMBER_MAX) for _ in range(INTERVALS_MAX))
        members.lost_writes[one] = frozenset(LostWriteInterval(end, end, chance.randbytes(4), end) for end in ends)
    assert len(members) == members_module.MEMBERS_MAX
    assert len(members.encode()) <= METADATA_SIZE_MAX
    sent = members.table()
    for known in (None, sent):  # as a dictionary it is more than zlib takes
        packed = pack(sent, known)
        assert len(packed) <= MESSAGE_ROOM_BYTES
        assert unpack(packed, known) == sent


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda plain: plain.pop("node"), "node is missing"),
        (lambda plain: plain.update(node=b"x"), "node is bytes, not text"),
        (lambda plain: plain.update(node="a/b"), "node is 'a/b', not 1 to 128 bytes"),
        (lambda plain: plain.update(store_id=b"short"), "store_id has 5 bytes, not 8"),
        (lambda plain: plain.update(closed=True), "closed is bool, not a number"),
        (lambda plain: plain.update(rows={}), "rows is a map, not a list"),
        (lambda plain: plain.update(rows=[[]] * 1001), "rows has 1001 items, more than 1000"),
        (lambda plain: plain.update(lost_writes=[["b", b"", [[1, 2]] * 9]]), "intervals has 9 items, more than 8"),
        (lambda plain: plain.update(lost_writes=[["b", b"", [[1]]]]), "intervals is not a list of 4"),
        (lambda plain: plain.update(removed=[["b", b"1", 1]]), "store_id has 1 bytes, not 0 or 8"),
        (lambda plain: plain.update(unreadable=[["b", b""]]), "unreadable is not a list of 3 items"),
        (lambda plain: plain.update(v=1), "it is of version 1, this release reads 6"),
    ],
)
def test_a_damaged_table_is_refused(change: Callable[[dict[str, object]], object], says: str) -> None:
    plain = cbor2.loads(new("a").encode())
    change(plain)
    with pytest.raises(MembersUnreadable, match=f"cannot be read: {says}"):
        Members.restore(cbor2.dumps(plain), "a")


def test_a_table_of_a_later_release_is_left_to_that() -> None:
    plain = cbor2.loads(new("a").encode())
    with pytest.raises(FormatTooNew, match="the table of members is of version 8, from a later release"):
        Members.restore(cbor2.dumps(plain | {"v": 8, "rows": "of another kind"}), "a")


@pytest.mark.parametrize("local", [["b", b"", 1, 2.0], ["b", b"", "", 2], ["b", b"", "a..b:1", float("inf")], "x"])
def test_where_a_member_was_may_be_lost(local: object) -> None:
    members = new("a")
    members.record_contact("b")
    plain = cbor2.loads(members.encode())
    again = Members.restore(cbor2.dumps(plain | {"contacts": [local]}), "a")
    assert [(who.node, member.address, member.contact) for who, member in again] == [("b", "", 0.0)]
    assert not again.unreadable


# -- rows that cannot be read ------------------------------------------------------------------------------------------


def damaged(members: Members, *rows: object) -> Members:
    plain = cbor2.loads(members.encode())
    plain["rows"] += rows
    return Members.restore(cbor2.dumps(plain), members.identity.node)


BAD_ROWS = (
    [1, 2],
    ["", store_id(9), 0, 0, 0, 0, b""],
    ["a/b", store_id(9), 0, 0, 0, 0, b""],
    ["x", b"1", 0, 0, 0, 0, b""],
    ["x", store_id(9), -1, 0, 0, 0, b""],
    ["x", store_id(9), 0, 0, 0, 0, 2.5],
    [["\x1b" * 500] * 50] * 7,
    None,
)


@pytest.mark.parametrize("row", BAD_ROWS)
def test_an_unreadable_row_is_kept_and_stops_the_horizon(row: object) -> None:
    a, b = new("a"), new("b")
    for _ in range(2):
        exchange(a, b, 10)
        exchange(b, a, 10)
    assert a.gc_horizon() == 10
    a = damaged(a, row)
    assert [who.node for who, _ in a] == ["b"], "the rows beside it are read"
    ((name, one),) = a.unreadable.items()
    assert name.startswith("unreadable+")
    assert one.reason.isprintable()
    assert a.identity.store_id == store_id(1)
    exchange(b, a, 20)
    exchange(a, b, 20)
    exchange(b, a, 30)
    assert a.gc_horizon() == b.gc_horizon() == 0, "nor does a horizon move at those who know it"
    assert not a.may_adopt_horizon_of(b.table())
    again = Members.restore(a.encode(), "a")
    assert again.unreadable == a.unreadable, "until an operator removes it"
    assert again.remove(name) == []
    assert again.unreadable == {}
    exchange(b, again, 40)
    exchange(again, b, 40)
    exchange(b, again, 50)
    exchange(again, b, 50)
    assert again.gc_horizon() > 0


def test_an_unreadable_row_goes_when_its_member_is_known_again() -> None:
    a = damaged(new("a"), ["b", store_id(7), -1, 0, 0, 0, b""], ["?", store_id(8), -1, 0, 0, 0, b""])
    assert {one.store_id for one in a.unreadable.values()} == {store_id(7), store_id(8)}
    a.add_members_of(table("peer", rows={Identity("b", store_id(7)): MemberRow()}))
    assert {one.store_id for one in a.unreadable.values()} == {store_id(8)}


def test_no_more_unreadable_rows_are_kept_than_can_be_read_again() -> None:
    a = new("a")
    for attempt in range(3):
        a = damaged(a, *([attempt, number] for number in range(members_module.MEMBERS_MAX)))
        assert len(a.unreadable) == members_module.MEMBERS_MAX


@given(st.binary(max_size=100))
@QUICK
def test_any_bytes_are_refused_or_a_table(data: bytes) -> None:
    with pytest.raises(MembersUnreadable):
        Members.restore(data, "a")


# -- laws --------------------------------------------------------------------------------------------------------------


def merged(*tables: MemberTable) -> Members:
    members = new("self")
    for one in tables:
        members.add_members_of(one)
    return members


@given(tables, tables, tables)
@QUICK
def test_meeting_commutes_and_repeats(first: MemberTable, second: MemberTable, third: MemberTable) -> None:
    plain = merged(first, second, third).table()
    assert merged(third, first, second).table() == plain
    assert merged(first, first, second, third, second, first).table() == plain
