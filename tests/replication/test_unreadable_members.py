"""Whatever an earlier run or a disk has made of what a node keeps: the node serves its data, and no deletion is undone.

And the other half: what a node accepts, by whatever way, it can read again, and so can a new node.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest
from fixtures.exchanges import Node, agree, exchange, set_clocks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merklekv.engine.engine import Engine
from merklekv.engine.record import STORE_ID_SIZE
from merklekv.errors import Corruption, DiskFull, FormatTooNew, InvalidArgument, Shortage
from merklekv.node_id import is_node_id
from merklekv.replication.cluster.members import (
    Identity,
    MemberRow,
    Members,
    MemberTable,
    TooManyMembers,
    UnknownMember,
    decode_table,
)
from merklekv.replication.cluster.membership import Membership
from merklekv.replication.cluster.presence import ONLINE, STATUS_BYTES_MAX, Status, decode_status
from merklekv.replication.cluster.storage import METADATA_MEMBERS, METADATA_UNREADABLE, load_members, store_members
from merklekv.replication.plain_cbor import Malformed, decode_map
from merklekv.replication.sync.local_endpoint import LocalEndpoint
from merklekv.replication.sync.messages import decode_hello

Damage = Callable[[dict[str, Any]], object]


def damage(directory: Path, change: Damage | bytes) -> None:
    """Stores another table of members."""
    engine = Engine(directory, checkpoint="manual")
    if isinstance(change, bytes):
        engine.put_metadata(METADATA_MEMBERS, change)
    else:
        plain = cbor2.loads(engine.metadata[METADATA_MEMBERS])
        change(plain)
        engine.put_metadata(METADATA_MEMBERS, cbor2.dumps(plain))
    engine.close()


BAD_ROW = ["", b"birthday", 0, 0, 0, 0, b""]
BEYOND_REPAIR: dict[str, Damage | bytes] = {
    "no CBOR": b"\xff" * 40,
    "empty": b"",
    "cut": b"\xa3\x61v",
    "an earlier version": lambda plain: plain.update(v=1),
    "its node": lambda plain: plain.update(node=""),
    "its store id": lambda plain: plain.pop("store_id"),
    "its clock": lambda plain: plain.update(closed=-1),
    "a removed member": lambda plain: plain["removed"].append(["a/b", b"birthday", 0]),
    "lost writes": lambda plain: plain["lost_writes"].append(5),
    "too many": lambda plain: plain.update(rows=[BAD_ROW] * 1001),
    "a bomb": b"\xa1\x61x\x9a\x00\xa0\x00\x00" + b"\xa0" * (10 << 20),
}


@pytest.mark.parametrize("change", BEYOND_REPAIR.values(), ids=BEYOND_REPAIR.keys())
def test_a_node_whose_table_is_lost_serves_and_is_a_new_member(
    tmp_path: Path, change: Damage | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = Node(tmp_path / "a"), Node(tmp_path / "b")
    a.set(b"k")
    exchange(a, b)
    old = a.members.identity
    a.engine.close()
    damage(a.path, change)
    stored = Engine(a.path, checkpoint="manual")
    unreadable = stored.metadata[METADATA_MEMBERS]
    stored.close()
    with caplog.at_level(logging.ERROR):
        a.open()
    assert a.engine.get(b"k") is not None
    ((name, one),) = a.members.unreadable.items()
    assert f"members: {name}: {one.reason}" in caplog.text
    assert a.members.identity.node == "a"
    assert a.members.identity != old
    assert a.engine.metadata[METADATA_UNREADABLE] == unreadable, "it is kept"

    a.set(b"after")
    exchange(a, b)
    assert agree(a, b)
    assert {who.store_id for who, _ in a.members if who.node == "a"} == {old.store_id}, "learned from the other"
    a.engine.close()
    a.open()
    assert a.members.unreadable.keys() == {name}, "until an operator removes it"


def test_a_deletion_is_not_undone_by_who_was_in_the_lost_table(tmp_path: Path) -> None:
    a, b, c = (Node(tmp_path / name) for name in "abc")
    a.set(b"k")
    for _ in range(2):
        exchange(a, b)
    b.engine.close()
    a.delete(b"k")
    before = a.engine.gc_horizon
    a.engine.close()
    damage(a.path, b"nothing")
    a.open()
    for _ in range(4):  # with a node that knows b no better than a does now
        exchange(a, c)
        exchange(c, a)
    assert a.engine.gc_horizon == before
    assert a.engine.tombstone_count == c.engine.tombstone_count == 1, "the tombstone waits"
    b.open()
    exchange(b, a)
    assert b.engine.get(b"k") is None
    (name,) = a.members.unreadable
    Membership(a.engine, a.members).remove(name)
    for _ in range(4):
        for one, other in ((a, b), (b, c), (c, a)):
            exchange(one, other)
    assert a.engine.gc_horizon == before, "the member that a was is known by b, and in the way"
    with pytest.raises(UnknownMember):
        Membership(a.engine, a.members).remove(name)
    old = next(who for who, _ in c.members if who.node == "a" and who != a.members.identity)
    Membership(c.engine, c.members).remove("a", old.store_id.hex())
    set_clocks(a, b, c)
    for _ in range(4):
        for one, other in ((a, b), (b, c), (c, a)):
            exchange(one, other)
    assert a.engine.gc_horizon > before
    assert a.engine.tombstone_count == 0


def test_a_row_that_cannot_be_read_costs_no_identity(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b = Node(tmp_path / "a"), Node(tmp_path / "b")
    a.set(b"k")
    exchange(a, b)
    old = a.members.identity
    a.engine.close()
    damage(a.path, lambda plain: plain["rows"].append(BAD_ROW))
    with caplog.at_level(logging.ERROR):
        a.open()
    assert a.members.identity == old
    assert [who.node for who, _ in a.members] == ["b"]
    (name,) = a.members.unreadable
    assert f"members: {name}: node is '', not 1 to 128 bytes" in caplog.text
    assert f"merklekv forget {name}" in caplog.text
    a.delete(b"k")
    for _ in range(3):
        exchange(a, b)
        exchange(b, a)
    assert a.engine.tombstone_count == b.engine.tombstone_count == 1
    rows = Membership(a.engine, a.members).rows()
    assert [row["state"] for row in rows] == ["self", "member", "unreadable"]
    Membership(a.engine, a.members).remove(name)
    set_clocks(a, b)
    for _ in range(3):
        exchange(a, b)
        exchange(b, a)
    assert a.engine.tombstone_count == b.engine.tombstone_count == 0


def test_a_table_of_a_later_release_stops_the_start(tmp_path: Path) -> None:
    a = Node(tmp_path / "a")
    a.engine.close()
    damage(a.path, lambda plain: plain.update(v=plain["v"] + 1))
    engine = Engine(a.path, checkpoint="manual")
    with pytest.raises(FormatTooNew, match="from a later release"):
        load_members(engine, "a")
    assert METADATA_UNREADABLE not in engine.metadata
    engine.close()


@pytest.mark.parametrize("problem", [DiskFull("disk full, write not stored"), Shortage("resource shortage")])
def test_a_node_whose_identity_cannot_be_stored_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Shortage
) -> None:
    def refuse(*_: object) -> None:
        raise problem

    engine = Engine(tmp_path, checkpoint="manual")
    monkeypatch.setattr(engine, "put_metadata", refuse)
    with pytest.raises(type(problem), match=f"^{tmp_path}: {problem}, so it cannot begin as node a$"):
        load_members(engine, "a")
    engine.close()


def test_a_horizon_that_is_none_is_named(tmp_path: Path) -> None:
    engine = Engine(tmp_path, checkpoint="manual")
    engine.put_metadata(b"gc_horizon", bytes(9))
    engine.close()
    for _ in range(2):  # the directory is let go of
        with pytest.raises(Corruption, match="the metadata entry gc_horizon has 9 bytes, not 8"):
            Engine(tmp_path, checkpoint="manual")


def test_a_full_table_is_read_again_and_a_node_in_it_is_not_renamed(tmp_path: Path) -> None:
    engine = Engine(tmp_path, checkpoint="manual")
    members = load_members(engine, "a")
    for number in range(999):
        assert members.record_contact(f"n{number}", has_written=True)
    with pytest.raises(TooManyMembers):
        members.record_contact("one-more")
    store_members(engine, members)
    assert len(load_members(engine, "a")) == len(members) == 1000
    renamed = load_members(engine, "b")
    assert len(renamed) == 1001
    with pytest.raises(TooManyMembers, match="node b cannot be renamed to c: "):
        load_members(engine, "c")
    assert len(load_members(engine, "b")) == 1001
    engine.close()


# -- what is accepted can be read --------------------------------------------------------------------------------------

names = st.text(max_size=5) | st.sampled_from(["", "a", "b", "A", "a/b", "+", "#", "\ud800", "\0", "n" * 129, "é" * 65])
store_ids = st.sampled_from(["", "00" * 8, "11" * 8, "FF" * 8, "1", "zz" * 8])
addresses = st.text(max_size=20) | st.sampled_from(["a:1", "a..b:1", "h" * 400 + ":1"])
TIMES = (0, 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1)


@st.composite
def statuses(draw: st.DrawFn) -> tuple[str, bytes]:
    node = draw(names)
    said = Status(node, ONLINE, draw(addresses), store_id=draw(store_ids), sequence=draw(st.sampled_from(TIMES)))
    return node, said.encode()


@st.composite
def told_tables(draw: st.DrawFn) -> bytes:
    """What some node says, right or not."""
    plain = Members("peer", b"p" * STORE_ID_SIZE).table().plain()
    time = st.sampled_from(TIMES)
    store_id = st.sampled_from([b"", b"1" * 8, b"2" * 8, b"1"])
    plain["rows"] = draw(
        st.lists(st.tuples(names, store_id, time, time, time, time, st.just(b"")).map(list), max_size=3)
    )
    for name in ("removed", "stable_through", "redeleted"):
        plain[name] = draw(st.lists(st.tuples(names, store_id, time).map(list), max_size=3))
    try:
        return cbor2.dumps(plain)
    except UnicodeEncodeError:
        return b""


inputs = st.one_of(
    st.tuples(st.just("status"), statuses()),
    st.tuples(st.just("events"), st.tuples(names, store_ids)),
    st.tuples(st.just("table"), told_tables()),
    st.tuples(st.just("remove"), st.tuples(names, store_ids)),
    st.tuples(st.just("contact"), st.tuples(names, addresses)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(inputs, max_size=8))
def test_whatever_comes_in_can_be_read_again(tmp_path_factory: pytest.TempPathFactory, said: list[Any]) -> None:
    engine = Engine(tmp_path_factory.mktemp("node"), checkpoint="manual", durability="never")
    members = load_members(engine, "own")
    membership = Membership(engine, members)
    for kind, what in said:
        if kind == "status":
            if (status := decode_status(*what)) is not None:
                assert len(status.encode()) <= STATUS_BYTES_MAX
                membership.on_status(status)
        elif kind == "events":
            if not membership.is_removed(*what):
                membership.on_events_from(*what)
        elif kind == "contact":
            membership.record_contact(what[0], address=what[1])
        elif kind == "remove":
            try:
                membership.remove(*what)
            except (UnknownMember, InvalidArgument):
                pass
        else:
            try:
                table = decode_table(decode_map(what))
            except Malformed:
                continue
            members.add_members_of(table)
            members.merge_table(table)
            members.record_adopted_horizon(table)
    store_members(engine, members)
    again = Members.restore(engine.metadata[METADATA_MEMBERS], "own")
    assert again.table() == members.table()
    assert not again.unreadable
    assert all(is_node_id(who.node) for who, _ in again)

    hello, _ = LocalEndpoint(engine, members, "cluster").hello()
    read = decode_hello(decode_map(cbor2.dumps(hello.plain())))
    assert read == hello
    new = Members("new")
    new.add_members_of(read.table)
    assert Members.restore(new.encode(), "new").table() == new.table()
    engine.close()


def test_what_many_peers_tell_of_strangers_is_bounded() -> None:
    members = Members("own")
    for peer in range(3):
        strangers = [Identity(f"s{peer}-{number}", b"%08d" % number) for number in range(5000)]
        plain = Members(f"peer{peer}").table()
        times = dict.fromkeys(strangers, 5)
        table = MemberTable(plain.identity, plain.report, stable_through=times, redeleted=times)
        members.add_members_of(table)
        members.merge_table(table)
        members.record_adopted_horizon(table)
    again = Members.restore(members.encode(), "own")
    assert again.table() == members.table()
    assert len(again.stable_through) <= 6000


def test_a_peers_row_of_a_member_is_taken_whole_or_not() -> None:
    plain = Members("peer", b"p" * STORE_ID_SIZE).table().plain() | {
        "rows": [["", b"b" * 8, *MemberRow()[:2], 0, 0, b""]]
    }
    with pytest.raises(Malformed, match="node is ''"):
        decode_table(decode_map(cbor2.dumps(plain)))
