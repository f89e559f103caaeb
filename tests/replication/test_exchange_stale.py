"""Stale records that a node has from elsewhere: the cluster has deleted them and collected the tombstones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.exchanges import (
    NOON,
    SECOND,
    Cut,
    Node,
    agree,
    carry,
    cluster,
    cut_when,
    exchange,
    meet_all,
    set_clocks,
)

from merklekv.replication.sync import initiator as exchange_module
from merklekv.replication.sync.messages import decode


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    """For a, b and c it is stable that `k` of a is deleted; j is new."""
    with cluster(tmp_path, "abcj") as (a, b, c, j):
        j.now -= 10 * SECOND
        j.set(b"own")
        a.set(b"k")
        a.set(b"stays")
        meet_all([a, b, c])
        yield [a, b, c, j]


def delete_and_collect(a: Node, b: Node, c: Node) -> None:
    a.delete(b"k")
    meet_all([a, b, c])
    meet_all([a, b, c])
    assert not any(node.engine.tombstone_count for node in (a, b, c))


def joined(nodes: list[Node]) -> None:
    meet_all(nodes)
    meet_all(nodes)
    assert agree(*nodes)
    assert set(nodes[0].values()) == {b"stays", b"own"}
    assert not any(node.engine.tombstone_count for node in nodes)


@pytest.mark.parametrize("begins", ["joining", "other"])
def test_an_old_event_whose_deletion_the_broker_lost(nodes: list[Node], begins: str) -> None:
    a, b, c, j = nodes
    late = a.records()[b"k"]
    j.members.record_contact("a", a.members.identity.store_id)  # it does not take events of nodes that it does not know
    j.take_event(b"k", late, "a")
    delete_and_collect(a, b, c)
    report = exchange(j, b) if begins == "joining" else exchange(b, j)
    assert report.discarded == 1
    assert set(b.values()) == set(j.values()) == {b"stays", b"own"}
    joined(nodes)


@pytest.mark.parametrize("begins", ["joining", "other"])
def test_a_new_node_that_holds_little_takes_the_rest_page_by_page(
    nodes: list[Node], begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, j = nodes
    late = a.records()[b"k"]
    j.take_event(b"k", late, "a")
    for number in range(100):
        a.engine.set(b"more:%d" % number, b"value")
    delete_and_collect(a, b, c)
    asked: list[str] = []

    def listen(_: int, request: bytes) -> bytes:
        asked.append(decode(request, 1 << 20)[0])
        return request

    carry(*((j.initiate().steps(), b) if begins == "joining" else (b.initiate().steps(), j)), before=listen)
    assert asked == (
        ["hello", "buckets", "transfer", "scan", "done"]
        if begins == "joining"
        else ["hello", "inner", "buckets", "transfer", "done"]
    )
    assert agree(b, j)
    assert b"k" not in j.values()
    assert len(j.values()) == 102


def test_what_came_in_an_exchange_that_was_cut(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a node that was gone then, so no node knows where the record came from."""
    monkeypatch.setattr(exchange_module, "PAGES_RATIO", 1)
    a, b, c, j = nodes

    with pytest.raises(Cut):
        carry(j.initiate().steps(), c, before=cut_when(lambda _: b"k" in j.records()))
    assert b"k" in j.values()
    for node in (a, b):
        node.members.remove("c")
    a.delete(b"k")
    meet_all([a, b])
    meet_all([a, b])
    assert not a.engine.tombstone_count
    exchange(a, j)
    joined([a, b, j])


def test_what_came_from_a_restored_node(nodes: list[Node]) -> None:
    a, b, c, j = nodes
    copy = c.backup()
    delete_and_collect(a, b, c)
    c.restore(copy)
    exchange(j, c)
    assert b"k" in j.values()
    exchange(a, c)  # c drops it
    exchange(c, j)  # and does not get it back
    assert b"k" not in c.values()
    exchange(j, a)
    joined(nodes)


def test_what_two_new_nodes_gave_each_other(nodes: list[Node]) -> None:
    a, b, c, j = nodes
    late = a.records()[b"k"]
    with cluster(a.path.parent / "more", "i") as (i,):
        i.take_event(b"k", late, "a")
        exchange(i, j)
        delete_and_collect(a, b, c)
        exchange(i, a)
        exchange(i, j)
        assert b"k" not in i.values()
        exchange(j, a)
        joined([*nodes, i])


def test_what_a_writer_lost_that_was_restored_is_not_stale(nodes: list[Node]) -> None:
    """It comes back without knowing of those who have it, and settles everything with a new node first."""
    a, _, _, j = nodes
    with cluster(a.path.parent / "more", "xi") as (x, i):
        x.now = i.now = j.now
        copy = x.backup()
        x.set(b"written", b"and acknowledged")
        for _ in range(2):
            exchange(x, j)
            exchange(j, x)
        x.restore(copy)
        x.now += 100 * SECOND
        for _ in range(2):
            set_clocks(x, i)
            exchange(x, i)
            exchange(i, x)
        assert x.engine.gc_horizon > j.engine.gc_horizon > 0
        exchange(j, x)
        assert {node.engine.get(b"written") for node in (j, x)} == {b"and acknowledged"}


@pytest.mark.parametrize("first", ["restored", "new"])
@pytest.mark.parametrize("begins", ["member", "other"])
def test_what_a_restored_node_makes_stable_with_a_new_one_first(tmp_path: Path, first: str, begins: str) -> None:
    """It was restored to where it knew no other node, so the two have a horizon of their own, above the others'."""
    with cluster(tmp_path, "axj") as (a, x, j):
        x.set(b"k")
        copy = x.backup()
        meet_all([a, x])
        a.delete(b"k")
        meet_all([a, x])
        assert not a.engine.tombstone_count
        x.restore(copy)
        x.tick(100)
        meet_all([x, j])
        assert set(j.values()) == {b"k"}
        assert min(x.engine.gc_horizon, j.engine.gc_horizon) > a.engine.gc_horizon > 0
        for node in (x, j) if first == "restored" else (j, x):
            report = exchange(a, node) if begins == "member" else exchange(node, a)
            assert report.discarded == (1 if node.values() == {} else 0)
        meet_all([a, x, j])
        meet_all([a, x, j])
        assert agree(a, x, j)
        assert a.values() == {}
        assert not any(node.engine.tombstone_count for node in (a, x, j))


def test_what_a_restored_node_deletes_stays_deleted_where_others_have_it_from_before(tmp_path: Path) -> None:
    with cluster(tmp_path, "axj") as (a, x, j):
        x.set(b"k")
        copy = x.backup()
        meet_all([a, x])
        x.restore(copy)
        x.tick(100)
        x.delete(b"k")
        meet_all([x, j])
        assert not x.engine.tombstone_count
        assert set(a.values()) == {b"k"}
        exchange(a, x)
        meet_all([a, x, j])
        assert a.values() == x.values() == j.values() == {}


@pytest.mark.parametrize("restarts", [0, 2])
def test_what_a_restored_node_writes_before_it_meets_anybody(tmp_path: Path, restarts: int) -> None:
    """Whatever its clock, and however often it is started."""
    with cluster(tmp_path, "ax") as (a, x):
        x.set(b"k")
        copy, slow = x.backup(), x.now
        a.tick(500)
        meet_all([a, x])
        a.delete(b"k")
        meet_all([a, x])
        x.now = slow
        x.restore(copy)
        x.set(b"late")
        for _ in range(restarts):
            x.reopen()
            x.tick()
        assert x.records()[b"late"] < a.engine.gc_horizon.to_bytes(8, "big")
        exchange(x, a)
        meet_all([a, x])
        assert set(a.values()) == set(x.values()) == {b"late"}


@pytest.mark.parametrize("restarts", [0, 2])
def test_what_a_restored_node_with_a_slow_clock_writes_comes_by_way_of_a_new_one(tmp_path: Path, restarts: int) -> None:
    with cluster(tmp_path, "axj") as (a, x, j):
        for _ in range(restarts):
            x.tick()
            x.reopen()
        x.set(b"k")
        copy = x.backup()
        x.tick(200)
        x.set(b"k", b"lost")
        a.tick(400)
        meet_all([a, x])
        a.delete(b"k")
        meet_all([a, x])
        x.restore(copy)
        x.now = j.now = NOON + 20 * SECOND
        x.set(b"late")
        j.take_event(b"late", x.records()[b"late"], "x")
        exchange(j, a)
        assert a.engine.get(b"late") == b"value"
        meet_all([a, x, j])
        assert set(a.values()) == set(x.values()) == set(j.values()) == {b"late"}


def test_a_restored_node_is_known_by_one_that_joined_later(tmp_path: Path) -> None:
    """On which the horizon does not count that it has taken over."""
    with cluster(tmp_path, "axij") as (a, x, i, j):
        x.set(b"k")
        copy = x.backup()
        meet_all([a, x])
        a.delete(b"k")
        meet_all([a, x])
        exchange(i, a)
        x.tick(100)
        x.restore(copy)
        exchange(x, j)
        assert exchange(x, i).discarded == 1
        meet_all([a, x, i, j])
        assert a.values() == x.values() == i.values() == j.values() == {}


def test_what_a_restored_node_has_from_one_that_is_new(nodes: list[Node]) -> None:
    a, b, c, j = nodes
    copy = c.backup()
    delete_and_collect(a, b, c)
    c.restore(copy)
    assert j.records()[b"own"] < a.engine.gc_horizon.to_bytes(8, "big")
    exchange(j, c)
    exchange(c, a)
    assert set(a.values()) == {b"stays", b"own"}
    joined(nodes)


def test_a_newer_write_of_a_stale_record_stands(nodes: list[Node]) -> None:
    a, b, c, j = nodes
    j.take_event(b"k", a.records()[b"k"], "a")
    delete_and_collect(a, b, c)
    with cluster(a.path.parent / "more", "i") as (i,):
        i.now = a.now + 1
        i.set(b"k", b"again")
        exchange(j, b)
        exchange(i, j)
        meet_all([*nodes, i])
        assert {node.engine.get(b"k") for node in (*nodes, i)} == {b"again"}


def test_what_a_writer_outside_has_written_is_not_stale(nodes: list[Node]) -> None:
    """It comes by way of another, and its writer never does."""
    a, b, c, j = nodes
    with cluster(a.path.parent / "more", "i") as (i,):
        i.now = j.now
        i.set(b"from outside")
        assert i.records()[b"from outside"] < a.records()[b"stays"]
        exchange(i, j)
        delete_and_collect(a, b, c)
        report = exchange(j, a)
        assert report.discarded == 0
        assert a.engine.get(b"from outside") == b"value"


def test_damage_on_a_member_deletes_nothing_elsewhere(nodes: list[Node]) -> None:
    """A member that lost a record, whatever its horizon, gets it back from those that the horizon covers."""
    a, b, c, _ = nodes
    for node in (a, b, c):
        node.tick(100)
    exchange(a, b)
    exchange(a, c)
    exchange(a, b)
    behind, ahead = sorted((a, b, c), key=lambda node: node.engine.gc_horizon)[::2]
    assert behind.engine.gc_horizon < ahead.engine.gc_horizon
    ahead.lose(b"stays")
    exchange(behind, ahead)
    meet_all([a, b, c])
    assert {node.engine.get(b"stays") for node in (a, b, c)} == {b"value"}
