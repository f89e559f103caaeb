"""A node that was alone has purged what it deleted, and then another one joins: what comes back, and what does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.exchanges import SECOND, Node, agree, answer, cluster, exchange, meet_all, set_clocks

from merklekv.engine.time_gate import DEFAULT_MAX_DRIFT_S
from merklekv.replication.cluster.storage import join, load_members
from merklekv.replication.sync.messages import ExchangeRefused, decode

DRIFT_NS = DEFAULT_MAX_DRIFT_S * SECOND


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    """a was alone; b and c are new, and no node knows another one."""
    with cluster(tmp_path, "abc", lone=True) as nodes:
        nodes[0].set(b"stays")
        yield nodes


def purge(a: Node, *keys: bytes) -> list[bytes]:
    """Writes and deletes keys; their records, as a dump from between has them."""
    for key in keys:
        a.set(key)
    records = [a.records()[key] for key in keys]
    for key in keys:
        a.delete(key)
    assert a.engine.is_lone
    assert a.engine.tombstone_count == 0
    return records


def meet(one: Node, other: Node, begins: str) -> None:
    exchange(*((one, other) if begins == "first" else (other, one)))


@pytest.mark.parametrize("begins", ["first", "second"])
@pytest.mark.parametrize("ahead_s", [-300, 0, 300])
@pytest.mark.parametrize("restarts", [0, 1, 9])
def test_a_dump_of_the_node_brings_nothing_back(nodes: list[Node], begins: str, ahead_s: int, restarts: int) -> None:
    a, b, c = nodes
    (dumped,) = purge(a, b"k")
    for _ in range(restarts):
        a.reopen()
    set_clocks(a, b, c)
    b.now += ahead_s * SECOND
    b.take_event(b"k", dumped, "dump")
    b.set(b"own")
    meet(a, b, begins)
    assert b.engine.get(b"k") is None
    meet_all(nodes)
    meet_all(nodes)
    assert agree(*nodes)
    assert set(c.values()) == {b"stays", b"own"}
    assert not any(node.engine.tombstone_count for node in nodes)


@pytest.mark.parametrize("begins", ["first", "second"])
def test_a_dump_that_comes_after_the_joining_brings_nothing_back(nodes: list[Node], begins: str) -> None:
    """The third node is known and away, so there is no horizon of all."""
    a, b, c = nodes
    (dumped,) = purge(a, b"k")
    set_clocks(a, b, c)
    for node in (a, b):
        node.members.record_contact("c", c.members.identity.store_id)
    meet(a, b, begins)
    for node in (b, c):
        node.take_event(b"k", dumped, "dump")
    meet(a, b, begins)
    meet(b, c, begins)
    meet_all(nodes)
    assert agree(*nodes)
    assert set(c.values()) == {b"stays"}


@pytest.mark.parametrize("begins", ["first", "second"])
def test_a_node_that_joins_loses_nothing(nodes: list[Node], begins: str) -> None:
    """What it wrote under a key that the other one has purged is new, also if it is older than the deletion."""
    a, b, c = nodes
    b.set(b"old", b"of b")
    purge(a, b"old", b"new")
    set_clocks(a, b, c)
    b.set(b"new", b"of b")
    purge(b, b"other")
    meet(a, b, begins)
    meet_all(nodes)
    assert agree(*nodes)
    assert c.values() == {b"stays": b"value", b"old": b"of b", b"new": b"of b"}


@pytest.mark.parametrize("begins", ["first", "second"])
def test_two_nodes_that_were_alone(nodes: list[Node], begins: str) -> None:
    """Each has a dump of the other one, and each has deleted in its own data what the dump has."""
    a, b, c = nodes
    of_a, of_b = purge(a, b"a1", b"a2"), purge(b, b"b1", b"b2")
    for number in range(2):
        b.take_event(b"a%d" % (number + 1), of_a[number], "dump")
        a.take_event(b"b%d" % (number + 1), of_b[number], "dump")
    set_clocks(*nodes)
    meet(a, b, begins)
    meet_all(nodes)
    meet_all(nodes)
    assert agree(*nodes)
    assert set(c.values()) == {b"stays"}


def test_a_record_of_a_third_writer_comes_back(nodes: list[Node]) -> None:
    """Neither knows the writer: both have loaded the same dump, as two groups may that have never met."""
    a, b, c = nodes
    c.set(b"k")
    dumped = c.records()[b"k"]
    for node in (a, b):
        node.take_event(b"k", dumped, "dump")
    set_clocks(a, b)
    a.delete(b"k")
    exchange(a, b)
    assert agree(a, b)
    assert a.engine.get(b"k") == b"value"


def test_a_backup_from_before_the_joining(nodes: list[Node]) -> None:
    """It knows no other node.  With a peer or a broker in its settings it leaves tombstones from the start on."""
    a, b, _ = nodes
    purge(a, b"gone")
    (dumped,) = purge(a, b"k")
    copy = a.backup()
    set_clocks(*nodes)
    b.take_event(b"k", dumped, "dump")
    a.set(b"later")
    meet_all([a, b])
    b.set(b"of b")
    meet_all([a, b])
    a.restore(copy)
    assert a.engine.is_lone
    join(a.engine, a.members)
    set_clocks(*nodes)
    a.delete(b"stays")
    meet_all(nodes)
    meet_all(nodes)
    assert agree(*nodes)
    assert set(b.values()) == {b"later", b"of b"}


def test_a_copy_under_another_name_is_not_alone(nodes: list[Node]) -> None:
    a = nodes[0]
    a.set(b"k")
    a.engine.close()
    a.name = "renamed"
    a.open()
    assert not a.engine.is_lone
    a.delete(b"k")
    assert a.engine.tombstone_count == 1


@pytest.mark.parametrize("joins", ["presence", "hello", "answer", "subscription"])
def test_what_ends_the_time_alone(nodes: list[Node], joins: str) -> None:
    a, b, _ = nodes
    (dumped,) = purge(a, b"k")
    b.take_event(b"k", dumped, "dump")
    set_clocks(*nodes)
    a.set(b"late")
    if joins == "presence":
        a.members.record_contact("b", b.members.identity.store_id)
        load_members_again = a.members.encode()
        a.engine.put_metadata(b"members", load_members_again)
        a.reopen()
    elif joins == "subscription":
        a.engine.retention.subscribe()
    elif joins == "hello":
        next(a.initiate().steps())
    else:
        answer(a, next(b.initiate().steps()))
    assert not a.engine.is_lone
    a.delete(b"late")
    assert a.engine.tombstone_count == 1
    a.reopen()
    assert not a.engine.is_lone
    meet_all(nodes)
    assert agree(*nodes)
    assert set(b.values()) == {b"stays"}


def test_a_refused_stranger_does_not_end_it(nodes: list[Node], tmp_path: Path) -> None:
    a = nodes[0]
    with cluster(tmp_path / "elsewhere", "x", cluster="other") as (x,):
        with pytest.raises(ExchangeRefused):
            exchange(x, a)
        assert decode(answer(a, next(x.initiate().steps())), 1 << 20)[0] == "refused"
    assert a.engine.is_lone


def test_what_a_wrong_clock_has_stamped_keeps_no_node_away(nodes: list[Node]) -> None:
    """It was deleted while the clock was wrong: the horizon stays below what others believe."""
    a, b, _ = nodes
    (before,) = purge(a, b"before")
    right = a.now
    a.now += 5 * 365 * 86_400 * SECOND
    purge(a, b"k")
    a.now = right + SECOND
    set_clocks(*nodes)
    b.take_event(b"before", before, "dump")
    meet_all(nodes)
    assert agree(*nodes)
    assert a.engine.gc_horizon <= a.now + DRIFT_NS
    assert set(b.values()) == {b"stays"}


def test_a_deletion_while_another_node_is_asked(nodes: list[Node]) -> None:
    """Between the hello and its answer: a tombstone is left."""
    a, b, _ = nodes
    a.set(b"k")
    dumped = a.records()[b"k"]
    b.take_event(b"k", dumped, "dump")
    set_clocks(*nodes)
    steps = a.initiate().steps()
    hello = next(steps)
    a.delete(b"k")
    reply = answer(b, hello)
    steps.send(reply)
    steps.close()
    meet_all(nodes)
    assert agree(*nodes)
    assert set(b.values()) == {b"stays"}


def test_a_table_that_was_lost_ends_it(nodes: list[Node]) -> None:
    a = nodes[0]
    a.engine.put_metadata(b"members", b"damaged")
    a.engine.close()
    a.open()
    assert load_members(a.engine, "a").unreadable
    assert not a.engine.is_lone
