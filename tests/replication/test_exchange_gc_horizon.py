"""Below the GC horizon: tombstones go once all members have them, and nothing that was deleted comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.exchanges import SECOND, Cut, Node, agree, carry, cluster, exchange, meet_all, set_clocks

from merklekv.replication.cluster import members as members_module
from merklekv.replication.cluster import membership as membership_module
from merklekv.replication.cluster.members import Identity
from merklekv.replication.cluster.membership import Membership
from merklekv.replication.sync.local_endpoint import raise_gc_horizon
from merklekv.replication.sync.messages import ExchangeRefused


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    with cluster(tmp_path, "abc") as made:
        for node in made:
            for other in made:
                node.members.record_contact(other.name, other.members.identity.store_id)
        yield made


def tombstones(*nodes: Node) -> int:
    return sum(node.engine.tombstone_count for node in nodes)


def settle(nodes: list[Node]) -> None:
    meet_all(nodes)
    for node in nodes:
        while node.engine.collect_tombstones():
            pass
        node.engine.commit()
    assert tombstones(*nodes) == 0


def test_a_tombstone_goes_when_all_have_it_and_not_before(nodes: list[Node]) -> None:
    a, b, _c = nodes
    a.set(b"k")
    meet_all(nodes)
    a.delete(b"k")
    for _ in range(5):
        exchange(a, b)
        exchange(b, a)
    assert (tombstones(a), tombstones(b)) == (1, 1)
    settle(nodes)
    assert agree(*nodes)
    assert a.records() == {}


def test_keys_that_are_set_and_deleted_for_ever_leave_no_more_and_travel_once(nodes: list[Node]) -> None:
    """However long it goes on, a node has the tombstones of the last few rounds, and takes each tombstone once."""
    a, rounds, keys = nodes[0], 30, 20
    taken = 0
    for number in range(rounds):
        for key in range(keys):
            a.engine.set(b"%d %d" % (number, key), b"v" * 100)
            a.delete(b"%d %d" % (number, key))
        set_clocks(*nodes)
        for first, second in ((0, 1), (0, 2), (1, 2)):
            report = exchange(nodes[first], nodes[second])
            taken += report.keys_sent + report.keys_received
        for node in nodes:
            while node.engine.collect_tombstones():
                pass
            assert node.engine.tombstone_count <= 2 * keys
    assert taken <= 2 * rounds * keys
    settle(nodes)


def test_the_horizon_never_passes_what_a_member_has_applied(nodes: list[Node]) -> None:
    a, b, c = nodes
    meet_all(nodes)
    seen = min(c.members.applied_through(a.members.identity), c.members.applied_through(b.members.identity))
    for _ in range(5):
        for node in (a, b):
            node.tick(1000)
        exchange(a, b)
        exchange(b, a)
    assert 0 < max(a.engine.gc_horizon, b.engine.gc_horizon) <= seen + SECOND


def test_a_member_without_contact_stops_the_gc_horizon(nodes: list[Node]) -> None:
    a, b, c = nodes
    a.set(b"k")
    a.delete(b"k")
    for _ in range(3):
        exchange(a, b)
        exchange(b, a)
    assert a.engine.gc_horizon == b.engine.gc_horizon == 0
    for node in (a, b):
        node.members.remove("c")
    set_clocks(*nodes)
    for _ in range(3):
        exchange(a, b)
        exchange(b, a)
    assert tombstones(a, b) == 0
    with pytest.raises(ExchangeRefused, match="node c was removed from its cluster: back up its data"):
        exchange(c, a)
    with pytest.raises(ExchangeRefused, match="node c was removed"):
        exchange(b, c)
    c.empty()
    exchange(c, a)
    assert agree(a, c)


def test_removal_spreads(nodes: list[Node]) -> None:
    a, b, c = nodes
    meet_all(nodes)
    identity = c.members.identity
    assert a.members.remove("c") == [identity]
    exchange(b, a)
    assert b.members.is_removed(*identity)
    assert identity not in dict(b.members)
    with pytest.raises(ExchangeRefused) as caught:
        exchange(b, c)
    assert caught.value.why == "removed"


def test_writers_are_remembered_up_to_a_bound(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_module, "WRITERS_MAX", 3)
    engine, members = nodes[0].engine, nodes[0].members
    membership = Membership(engine, members)
    for _ in range(2):
        for number in range(10):
            membership.on_events_from(f"n{number}", "")
            assert len(membership._writers) <= 3
    assert {f"n{number}" for number in range(10)} <= {identity.node for identity, _ in members}


def test_a_writer_with_a_new_data_directory_is_another_member(nodes: list[Node]) -> None:
    members = nodes[0].members
    membership = Membership(nodes[0].engine, members)
    membership.on_events_from("n", bytes(8).hex())
    membership.on_events_from("n", b"anew----".hex())
    assert {Identity("n", bytes(8)), Identity("n", b"anew----")} <= dict(members).keys()


def test_a_writer_without_room_becomes_a_member_when_there_is_some(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = nodes[0].members
    membership = Membership(nodes[0].engine, members)
    with monkeypatch.context() as full:
        full.setattr(members_module, "MEMBERS_MAX", len(members))
        membership.on_events_from("n", "")
        assert "n" not in {identity.node for identity, _ in members}
    membership.on_events_from("n", "")
    assert "n" in {identity.node for identity, _ in members}


def test_a_late_event_does_not_bring_a_deleted_key_back(nodes: list[Node]) -> None:
    a, b, _c = nodes
    a.set(b"k")
    late = a.records()[b"k"]
    meet_all(nodes)
    a.delete(b"k")
    settle(nodes)
    b.take_event(b"k", late)
    assert b.records() == {}


def test_a_node_that_was_away_receives_deletions(nodes: list[Node]) -> None:
    a, b, c = nodes
    for number in range(20):
        a.set(b"k%d" % number)
    meet_all(nodes)
    for number in range(10):
        a.delete(b"k%d" % number)
    c.set(b"own")
    for _ in range(5):
        exchange(a, b)
    report = exchange(c, a)
    assert agree(a, c)
    assert report.discarded == 0
    assert len(c.values()) == 11


@pytest.mark.parametrize("begins", ["restored", "other"])
def test_a_restored_node_drops_what_was_deleted_without_it(nodes: list[Node], begins: str) -> None:
    a, b, c = nodes
    for number in range(20):
        a.set(b"k%02d" % number)
    meet_all(nodes)
    copy = c.backup()
    for number in range(10):
        b.delete(b"k%02d" % number)
    b.set(b"k15", b"newer")
    settle(nodes)
    c.restore(copy)
    c.tick(100)
    c.set(b"written since")
    c.set(b"k03", b"again")
    report = exchange(c, a) if begins == "restored" else exchange(a, c)
    assert report.discarded == 9
    assert agree(a, c)
    assert set(a.values()) == {b"k%02d" % number for number in range(10, 20)} | {b"written since", b"k03"}
    assert a.values()[b"k15"] == b"newer"
    settle(nodes)
    assert agree(*nodes)


def test_what_a_restored_node_writes_under_a_slow_clock_stays(nodes: list[Node]) -> None:
    a, b, c = nodes
    a.set(b"k")
    meet_all(nodes)
    copy, slow = c.backup(), c.now
    a.tick(500)
    meet_all(nodes, 5)
    c.now = slow
    c.restore(copy)
    c.set(b"w")
    assert a.engine.gc_horizon > c.now
    exchange(c, b)
    assert b.engine.get(b"w") == b"value"
    assert agree(b, c)
    c.set(b"later")
    assert c.records()[b"later"] > c.members.applied_through(c.members.identity).to_bytes(8, "big")


def test_a_restored_node_claims_nothing_of_what_it_drops(nodes: list[Node]) -> None:
    """Another node joined by way of the restored one: its data are not taken for deleted."""
    a, b, c = nodes
    for node in nodes:
        node.now += SECOND
    meet_all(nodes)
    copy = c.backup()
    a.tick(500)
    meet_all(nodes, 5)
    c.restore(copy)
    with cluster(a.path.parent / "more", "j") as (j,):
        j.set(b"joined")  # older than the horizon of a
        exchange(j, c)
        exchange(c, a)
        exchange(j, a)
        exchange(j, c)
        exchange(a, b)
        assert {node.engine.get(b"joined") for node in (a, b, c, j)} == {b"value"}
        assert agree(a, j)


@pytest.mark.parametrize("begins", ["joining", "other"])
def test_a_joining_node_loses_nothing(nodes: list[Node], begins: str) -> None:
    a, b, _c = nodes
    a.set(b"k")
    a.set(b"gone")
    meet_all(nodes)
    a.delete(b"gone")
    settle(nodes)
    with cluster(a.path.parent / "more", "j") as (j,):
        j.set(b"old")
        j.set(b"k", b"joining")
        assert j.records()[b"old"][:8] < a.engine.gc_horizon.to_bytes(8, "big")
        report = exchange(j, a) if begins == "joining" else exchange(a, j)
        assert agree(a, j)
        assert report.discarded == 0
        assert j.engine.gc_horizon == a.engine.gc_horizon
        for _ in range(2):
            for first in (*nodes, j):
                for second in (*nodes, j):
                    if first is not second:
                        exchange(first, second)
        assert agree(*nodes, j)
        assert set(b.values()) == {b"k", b"old"}


def test_what_a_joining_node_has_deleted_is_deleted_anew(nodes: list[Node]) -> None:
    """Its tombstone lies below the horizon, where it would be collected on one node and not on another."""
    a, b, c = nodes
    a.set(b"k")
    meet_all(nodes)
    a.tick(100)
    settle(nodes)
    with cluster(a.path.parent / "more", "j") as (j,):
        j.tick(50)
        j.set(b"k")
        j.delete(b"k")
        j.set(b"other")
        j.delete(b"other")
        exchange(a, j)
        exchange(a, b)
        exchange(c, b)
        assert [node.engine.get(b"k") for node in (a, b, c)] == [None, None, None]
        assert b.records()[b"k"] > j.engine.gc_horizon.to_bytes(8, "big")
        meet_all([*nodes, j])
        assert agree(*nodes, j)


def test_a_node_that_knows_everything_follows_the_horizon_at_once(nodes: list[Node]) -> None:
    a, b, c = nodes
    a.set(b"k")
    a.delete(b"k")
    meet_all(nodes)
    for node in nodes:
        node.tick()
    a.set(b"l")
    a.delete(b"l")
    for first, second in ((a, b), (b, c), (a, c), (a, b)):
        exchange(first, second)
    ahead, behind = (a, c) if a.engine.gc_horizon > c.engine.gc_horizon else (c, a)
    assert ahead.engine.gc_horizon > behind.engine.gc_horizon
    while ahead.engine.collect_tombstones():
        pass
    report = exchange(behind, ahead)
    assert report.rounds <= 2
    assert report.discarded == report.keys_sent == report.keys_received == 0
    assert agree(ahead, behind)


def test_an_emptied_node_is_another_member(nodes: list[Node]) -> None:
    a, _b, c = nodes
    a.set(b"k")
    meet_all(nodes)
    gone = c.members.identity
    c.empty()
    meet_all(nodes)
    assert agree(*nodes)
    a.delete(b"k")
    meet_all(nodes)
    assert tombstones(*nodes) == 3  # the directory that was lost could return
    a.members.remove("c", gone.store_id)
    settle(nodes)


def test_two_clusters_become_one(tmp_path: Path) -> None:
    """A node that was not known when a horizon was found loses nothing to it."""
    with cluster(tmp_path, "abcd") as nodes:
        a, b, c, d = nodes
        for first, second in ((a, b), (c, d)):
            for node in (first, second):
                node.set(b"of %b" % node.name.encode())
            for _ in range(3):
                first.tick(10)
                exchange(first, second)
                exchange(second, first)
            assert first.engine.gc_horizon > 0
        d.set(b"of d, later")
        exchange(b, c)
        exchange(a, b)
        for _ in range(2):
            exchange(c, d)
            exchange(d, a)
        meet_all(nodes)
        assert agree(*nodes)
        assert len(a.values()) == 5


def test_removing_a_member_keeps_tombstones_that_only_some_have_from_it(nodes: list[Node]) -> None:
    a, b, c = nodes
    a.set(b"k")
    meet_all(nodes)
    a.delete(b"k")
    for node in (b, c):
        node.tick(100)
    exchange(b, c)
    exchange(c, b)
    exchange(a, c)  # from here on c has the tombstone, which is older than all that b and c have applied of each other
    for node in (b, c):
        node.members.remove("a")
    with pytest.raises(Cut):
        carry(b.initiate().steps(), c, before=lambda number, request: cut() if number else request)
    for node in (b, c):
        raise_gc_horizon(node.engine, node.members)
        while node.engine.collect_tombstones():
            pass
    exchange(b, c)
    assert agree(b, c)
    assert b.values() == {}
    for _ in range(3):
        b.tick(100)
        exchange(b, c)
        exchange(c, b)
    assert tombstones(b, c) == 0


def test_a_writer_is_a_member_even_if_its_presence_was_lost(tmp_path: Path) -> None:
    """Else something becomes stable in one half of a cluster that the other half does not know."""
    with cluster(tmp_path, "abcd") as nodes:
        a, b, c, d = nodes
        for first, second in ((a, b), (c, d)):
            first.members.record_contact(second.name, second.members.identity.store_id)
        c.set(b"k", b"older")
        exchange(c, d)
        event = c.records()[b"k"]
        a.tick(10)
        a.set(b"k")
        a.delete(b"k")
        for node in (a, b):
            membership = Membership(node.engine, node.members)
            assert not membership.is_removed("c", "")
            membership.on_events_from("c", "")
            node.take_event(b"k", event, "c")
            assert len(node.members) >= 2
        for _ in range(3):
            a.tick(100)
            exchange(a, b)
            exchange(b, a)
        assert tombstones(a) == 1
        meet_all(nodes, 4)
        assert agree(*nodes)
        assert a.values() == {}
        a.members.remove("c")
        assert Membership(a.engine, a.members).is_removed("c", c.members.identity.store_id.hex())


def cut() -> bytes:
    raise Cut
