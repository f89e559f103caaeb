"""What one node has and the other lacks, and what it means: damaged there, new, or deleted there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from shutil import copytree

import cbor2
import pytest
from fixtures.exchanges import NOON, SECOND, Cut, Node, agree, carry, cluster, cut_when, exchange, meet_all, set_clocks

from merklekv.engine.format import OP_SET
from merklekv.engine.record import is_redelete, make_record, timestamp_of
from merklekv.replication.cluster.members import Members
from merklekv.replication.sync import initiator as exchange_module
from merklekv.replication.sync.local_endpoint import raise_gc_horizon
from merklekv.replication.sync.messages import decode


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    with cluster(tmp_path, "abcj") as made:
        yield made


def tick(*nodes: Node, seconds: int = 10) -> None:
    for node in nodes:
        node.tick(seconds)


def cut_after(kind: str) -> Callable[[int, bytes], bytes]:
    """For `after`: cuts an exchange when it was answered with such a message."""
    return cut_when(lambda answered: answered == kind)


def load(node: Node, key: bytes) -> None:
    """A record of a dump, that no member has written."""
    version = (NOON - 100 * SECOND).to_bytes(8, "big") + b"elsewhere".ljust(16)
    node.engine.merge([(OP_SET, key, make_record(key, version, b"dumped"))], b"load", stable=True)
    node.engine.commit()


def test_damage_deletes_nothing_on_a_node_that_has_joined_while_a_member_is_away(nodes: list[Node]) -> None:
    """So that the horizon does not count on it yet."""
    a, b, c, j = nodes
    a.set(b"stays")
    meet_all([a, b, c])
    tick(a, b, j, seconds=100)
    exchange(j, a)
    exchange(j, b)
    exchange(a, b)
    a.lose(b"stays")
    assert exchange(a, j).discarded == 0
    assert a.engine.get(b"stays") == b"value"


def test_damage_deletes_nothing_below_a_horizon_that_is_not_adopted(nodes: list[Node]) -> None:
    a, b, c, j = nodes
    a.set(b"0")
    meet_all([a, b, c])
    tick(a, b, c)
    b.set(b"stays")
    exchange(a, b)
    exchange(b, c)
    exchange(c, a)
    tick(a, b, c)
    exchange(b, c)
    exchange(a, j)
    exchange(a, b)
    assert a.members.max_gc_horizon > a.engine.gc_horizon
    a.lose(b"stays")
    for other in (c, b):
        assert exchange(a, other).discarded == 0
        assert a.engine.get(b"stays") == b"value"


@pytest.mark.parametrize("way", ["itself", "event"])
def test_a_restored_node_with_a_slow_clock_is_known_before_it_writes(tmp_path: Path, way: str) -> None:
    with cluster(tmp_path, "axj") as (a, x, j):
        x.set(b"k")
        copy = x.backup()
        x.tick(5)
        x.set(b"lost")
        a.now = x.now
        meet_all([a, x])
        meet_all([a, x])
        x.now = j.now = NOON + 3 * SECOND
        x.restore(copy)
        exchange(x, j)
        exchange(j, a)
        x.set(b"late")
        assert x.records()[b"late"] < a.members.applied_through(x.members.identity).to_bytes(8, "big")
        if way == "event":
            j.take_event(b"late", x.records()[b"late"], "x")
            exchange(j, a)
        exchange(x, a)
        meet_all([a, x, j])
        assert set(a.values()) == set(x.values()) == set(j.values()) == {b"k", b"lost", b"late"}


def test_a_node_that_exchanged_with_a_restored_node_learns_what_others_applied_of_it_before(tmp_path: Path) -> None:
    """From one that does not know yet that it was restored: its clock is slow, and what it writes then is new."""
    with cluster(tmp_path, "axj") as (a, x, j):
        x.set(b"k")
        x.engine.flush()
        copy = copytree(x.path, tmp_path / "copy")  # while it runs, so that its next start is of the restored one
        x.tick(5)
        a.now = x.now
        meet_all([a, x])
        x.now = j.now = NOON + 3 * SECOND
        x.restore(copy)
        exchange(x, j)
        exchange(a, j)
        x.set(b"late")
        assert x.records()[b"late"] < j.members.applied_through(x.members.identity).to_bytes(8, "big")
        assert exchange(x, j).discarded == 0
        meet_all([a, x, j])
        assert set(a.values()) == set(x.values()) == set(j.values()) == {b"k", b"late"}


def test_a_node_restored_from_before_another_joined_has_not_applied_its_writes(tmp_path: Path) -> None:
    """Although all that it had is from after that: it does not follow the horizon before it has merged the rest."""
    with cluster(tmp_path, "abxj") as nodes:
        a, b, x, j = nodes

        def later() -> None:
            now = max(node.now for node in nodes) + 10 * SECOND
            for node in nodes:
                node.now = now

        x.set(b"kept")
        j.take_event(b"kept", x.records()[b"kept"], "x")
        later()
        a.set(b"0")
        later()
        with pytest.raises(Cut):
            carry(a.initiate().steps(), b, before=cut_when(lambda kind: kind == "done"))
        copy = a.backup()
        later()
        for node in (a, b):
            node.members.record_contact("x", x.members.identity.store_id)
        exchange(x, a)
        for _ in range(2):
            later()
            exchange(b, x)
        a.restore(copy)
        with pytest.raises(Cut):
            carry(a.initiate().steps(), b, before=cut_when(lambda kind: kind != "hello"))
        with pytest.raises(Cut):
            carry(a.initiate().steps(), j, before=cut_when(lambda kind: kind == "done"))
        exchange(b, j)
        meet_all(nodes)
        assert all(set(node.values()) == {b"0", b"kept"} for node in nodes)


def test_a_third_node_has_what_was_redeleted_before_it_reported(tmp_path: Path) -> None:
    """It has said that it had merged everything up to a later time: that does not cover the new tombstone."""
    with cluster(tmp_path, "xac") as (x, a, c):
        x.set(b"k")
        tick(x, a)
        with pytest.raises(Cut):
            carry(x.initiate().steps(), a, before=cut_when(lambda kind: kind == "done"))
        assert x.members.applied_through(a.members.identity)
        copy = x.backup()
        x.delete(b"k")
        a.now = x.now
        exchange(a, x)
        assert a.engine.gc_horizon > 0
        x.restore(copy)
        c.take_event(b"k", x.records()[b"k"], "x")
        for node, others in ((x, (a, c)), (a, (x, c)), (c, (x, a))):
            node.now = NOON + 100 * SECOND
            for other in others:
                node.members.record_contact(other.name, other.members.identity.store_id)
        exchange(x, c)
        assert exchange(x, a).discarded == 1
        exchange(c, x)
        meet_all([x, a, c])
        assert x.values() == a.values() == c.values() == {}


def test_what_a_node_wrote_between_its_restoration_and_its_removal_stands(tmp_path: Path) -> None:
    """A node removed it without an exchange with it, and learns only later what others had applied of it."""
    with cluster(tmp_path, "npjqx") as (n, p, j, q, x):
        x.set(b"k")
        x.engine.flush()
        copy = copytree(x.path, tmp_path / "copy")
        x.tick(8)
        p.now = x.now
        meet_all([p, x])
        x.now = j.now = NOON + 3 * SECOND
        x.restore(copy)
        exchange(x, j)
        n.members.record_contact("x", x.members.identity.store_id)
        n.members.remove("x")
        for node in (n, p, q):
            node.now = NOON + 30 * SECOND
        exchange(p, n)
        exchange(n, j)
        x.set(b"late")
        exchange(x, q)
        assert exchange(q, n).discarded == 0
        meet_all([n, p, j, q])
        assert all(set(node.values()) == {b"k", b"late"} for node in (n, p, j, q))


def test_a_dump_is_loaded_on_a_node_whose_first_exchange_was_cut_at_its_end(nodes: list[Node]) -> None:
    a, b, _, j = nodes
    a.set(b"k")
    meet_all([a, b])
    tick(a, j, seconds=100)
    with pytest.raises(Cut):
        carry(a.initiate().steps(), j, before=cut_when(lambda kind: kind == "done"))
    load(j, b"dump")
    assert exchange(j, a).discarded == 0
    meet_all([a, b, j])
    assert a.engine.get(b"dump") == b"dumped"


def test_a_dump_is_loaded_on_a_node_that_others_know(nodes: list[Node]) -> None:
    a, b, c, j = nodes
    exchange(c, j)
    tick(*nodes, seconds=100)
    a.set(b"k")
    meet_all([a, b])
    exchange(c, a)
    load(j, b"dump")
    assert exchange(j, a).discarded == 0
    meet_all(nodes)
    assert a.engine.get(b"dump") == b"dumped"


def test_a_dump_that_was_loaded_before_a_backup_and_deleted_since(nodes: list[Node]) -> None:
    a, b, c, _ = nodes
    load(c, b"dump")
    meet_all([a, b, c])
    copy = c.backup()
    a.delete(b"dump")
    meet_all([a, b, c])
    c.restore(copy)
    assert exchange(c, a).discarded == 1
    assert a.values() == c.values() == {}


def test_what_was_deleted_stays_so_where_something_older_has_come_since(nodes: list[Node]) -> None:
    a, b, _, j = nodes
    a.set(b"k")
    late = a.records()[b"k"]
    meet_all([a, b])
    a.delete(b"k")
    meet_all([a, b])
    load(a, b"k")
    j.take_event(b"k", late, "a")
    assert exchange(a, j).discarded == 1
    meet_all([a, b, j])
    assert a.values() == b.values() == j.values() == {b"k": b"dumped"}


def test_what_a_removed_writer_had_stays_deleted(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what it wrote after the last horizon that covered it."""
    monkeypatch.setattr(exchange_module, "PAGES_RATIO", 1)
    a, b, c, j = nodes
    a.set(b"stays")
    meet_all([a, b, c])
    tick(*nodes)
    c.set(b"k")
    exchange(c, a)
    exchange(c, b)

    with pytest.raises(Cut):
        carry(j.initiate().steps(), c, before=cut_when(lambda _: b"k" in j.records()))
    assert b"k" in j.values()
    for node in (a, b):
        node.members.remove("c")
    a.delete(b"k")
    meet_all([a, b])
    meet_all([a, b])
    assert exchange(a, j).discarded == 1
    meet_all([a, b, j])
    assert set(a.values()) == set(b.values()) == set(j.values()) == {b"stays"}


def test_what_another_group_takes_for_news_is_stale_for_those_that_had_it(tmp_path: Path) -> None:
    """Although these count on each other: their horizon says nothing of writers in the other group."""
    with cluster(tmp_path, "abcij") as (a, b, c, i, j):
        nodes = [a, b, c, i, j]

        def meet(one: Node, other: Node) -> int:
            tick(*nodes, seconds=1)
            return exchange(one, other).discarded

        def greet(one: Node, other: Node) -> None:
            tick(*nodes, seconds=1)
            with pytest.raises(Cut):
                carry(one.initiate().steps(), other, before=cut_when(lambda kind: kind != "hello"))

        c.set(b"k")
        meet_all([a, b, c])
        for node in nodes:
            node.now = NOON + 20 * SECOND
        a.delete(b"k")
        meet(b, c)
        meet(a, b)
        tick(*nodes)
        i.set(b"i")
        meet_all([i, j], 4)
        for node in nodes:
            node.now = NOON + 60 * SECOND
        meet(a, i)  # i cannot keep the tombstone, and has nothing to delete
        meet(j, c)
        assert meet(j, i) == 1
        for one, other in ((c, j), (j, i), (c, j), (i, j), (c, i)):
            meet(one, other)
        greet(a, i)
        greet(b, i)
        for _ in range(3):
            meet(a, b)
        tick(*nodes)
        meet_all(nodes, 4)
        assert agree(*nodes)
        assert set(a.values()) == {b"i"}


@pytest.mark.parametrize("row", ["read", "lost"])
def test_a_deletion_waits_for_a_peer_that_a_horizon_elsewhere_does_not_cover(tmp_path: Path, row: str) -> None:
    """The peer has written before the deletion, and no other node knows that yet."""
    with cluster(tmp_path, "abcd") as nodes:
        a, b, c, d = nodes
        d.members.record_contact("away", b"away" * 2)  # so the horizon of these two rests
        b.set(b"k")
        exchange(b, d)
        tick(*nodes)
        d.set(b"k")
        tick(*nodes)
        b.delete(b"k")
        tick(*nodes)
        meet_all([a, c])
        if row == "lost":
            plain = cbor2.loads(b.members.encode())
            for damaged in plain["rows"]:
                damaged[0] = ""
            b.members.replace_with(Members.restore(cbor2.dumps(plain), "b"))
        exchange(a, b)
        exchange(d, b)
        exchange(a, b)
        assert not any(node.values() for node in nodes)


def test_damage_above_every_horizon_deletes_nothing(tmp_path: Path) -> None:
    with cluster(tmp_path, "abc") as (a, b, c):
        meet_all([a, b, c])
        a.set(b"k")
        for _ in range(3):  # c is away, so no horizon passes the key
            b.now = a.now
            exchange(a, b)
            exchange(b, a)
        a.lose(b"k")
        exchange(b, a)
        assert a.engine.get(b"k") == b.engine.get(b"k") == b"value"


def test_damage_to_what_a_removed_member_wrote_deletes_nothing(tmp_path: Path) -> None:
    with cluster(tmp_path, "abc") as (a, b, c):
        c.set(b"k")
        meet_all([a, b, c])
        for node in (a, b):
            node.members.remove("c")
        meet_all([a, b])
        meet_all([a, b])
        a.lose(b"k")
        exchange(b, a)
        assert a.engine.get(b"k") == b.engine.get(b"k") == b"value"


@pytest.mark.parametrize("starts", [0, 3, 5, 12])
def test_many_starts_do_not_hide_what_a_restored_node_lost(tmp_path: Path, starts: int) -> None:
    with cluster(tmp_path, "axij") as (a, x, i, j):
        a.set(b"z")
        meet_all([a, j])
        copy = x.backup()
        x.set(b"k")
        for _ in range(2):
            exchange(x, j)
            exchange(j, x)
        x.restore(copy)
        x.tick(100)
        for _ in range(starts):
            x.set(b"y")
            x.reopen()
        i.now = j.now = x.now
        for _ in range(2):
            exchange(x, i)
            exchange(i, x)
        exchange(j, x)
        assert j.engine.get(b"k") == x.engine.get(b"k") == b"value"


def test_a_node_that_follows_no_horizon_takes_nothing_stale_from_a_restored_one(tmp_path: Path) -> None:
    """It has applied all that was deleted, and gives nothing of that to those who collected it either."""
    with cluster(tmp_path, "abcjx") as nodes:
        a, b, c, j, x = nodes

        def set_all_clocks() -> None:
            now = max(node.now for node in nodes) + SECOND
            for node in nodes:
                node.now = now

        a.set(b"k")
        meet_all([a, b, c])
        copy = c.backup()
        a.delete(b"k")
        meet_all([a, b, c])
        set_all_clocks()
        j.members.record_contact("away", b"away" * 2)
        exchange(j, x)  # so it follows no horizon that does not cover x, and the two have none of their own
        exchange(j, a)
        assert j.engine.gc_horizon == 0 < a.engine.gc_horizon
        c.restore(copy)
        set_all_clocks()
        exchange(c, j)
        exchange(j, b)
        meet_all(nodes)
        assert not any(node.values() for node in nodes)


def test_a_late_deletion_of_a_restored_node_outlives_the_next_horizon(tmp_path: Path) -> None:
    """Those that the horizon covers have applied all that the node had written by then, so it hides the tombstone."""
    with cluster(tmp_path) as (a, b, c):
        c.set(b"k")
        meet_all([a, b, c])
        copy = a.backup()
        pairs = cycle([(a, b), (b, c), (a, c)])
        while c.engine.gc_horizon <= b.engine.gc_horizon:  # so a has closed more than the copy says
            a.tick()
            set_clocks(a, b, c)
            exchange(*next(pairs))
        a.restore(copy)
        a.now = b.engine.gc_horizon - SECOND // 2  # its clock is slow, too
        a.delete(b"k")
        late = a.engine.record(b"k") or b""
        assert b.engine.gc_horizon < timestamp_of(late) <= c.engine.gc_horizon
        exchange(a, b)
        assert (b.engine.record(b"k") or b"") > c.engine.gc_horizon.to_bytes(8, "big")
        meet_all([a, b, c])
        assert not any(node.values() for node in (a, b, c))


def test_a_write_after_a_re_deletion_stands(tmp_path: Path) -> None:
    """Its tombstone is older than what was applied of the restored node, whose record it deletes."""
    with cluster(tmp_path) as (a, b, c):
        a.set(b"k")
        copy = a.backup()
        meet_all([a, b])
        b.delete(b"k")
        meet_all([a, b])
        a.restore(copy)
        set_clocks(a, b, c)
        exchange(a, c)
        c.set(b"k", b"new")
        set_clocks(a, b, c)
        exchange(a, b)
        assert is_redelete(a.engine.record(b"k") or b"")
        b.tick()
        exchange(a, b)
        meet_all([a, b, c])
        assert [node.values() for node in (a, b, c)] == [{b"k": b"new"}] * 3


def test_what_a_node_deletes_in_an_exchange_outlives_the_horizon_that_it_adopts(tmp_path: Path) -> None:
    """It was restored, its clock is slow, and the horizon passes what it writes meanwhile."""
    with cluster(tmp_path, "ab") as (a, b):
        a.set(b"k")
        copy = b.backup()
        meet_all([a, b])
        b.restore(copy)
        b.now = a.engine.gc_horizon - 6 * SECOND

        def delete_meanwhile(_: int, reply: bytes) -> bytes:
            if b.values():
                b.delete(b"k")
            return reply

        carry(a.initiate().steps(), b, after=delete_meanwhile)
        assert b.engine.gc_horizon == a.engine.gc_horizon
        meet_all([a, b])
        assert not any(node.values() for node in (a, b))


@pytest.mark.parametrize("restarts", [False, True])
def test_what_a_restored_node_deletes_below_a_horizon_reaches_the_others_first(tmp_path: Path, restarts: bool) -> None:
    """Even if it has exchanged since, so that the reports of all members allow to collect it."""
    with cluster(tmp_path, "ab") as (a, b):
        b.set(b"k")
        copy = a.backup()
        b.tick()
        set_clocks(a, b)
        exchange(a, b)
        a.restore(copy)
        a.now = b.now - 6 * SECOND
        with pytest.raises(Cut):
            carry(b.initiate().steps(), a, after=cut_after("done"))
        a.delete(b"k")
        b.tick()
        set_clocks(a, b)
        with pytest.raises(Cut):
            carry(a.initiate().steps(), b, before=cut_when(lambda kind: kind != "hello"))
        if restarts:
            a.reopen()
        raise_gc_horizon(a.engine, a.members)
        a.engine.collect_tombstones()
        meet_all([a, b])
        assert not any(node.values() for node in (a, b))


@pytest.mark.parametrize("begins", ["a", "b"])
@pytest.mark.parametrize("ends", ["whole", "request", "answer"])
def test_what_a_node_has_given_is_what_it_had_when_the_exchange_began(tmp_path: Path, begins: str, ends: str) -> None:
    """It closes a later timestamp meanwhile, with a third node.  Only the end of the exchange counts."""
    with cluster(tmp_path) as (a, b, c):
        first, second = (a, b) if begins == "a" else (b, a)
        first.set(b"k")
        second.set(b"l")
        set_clocks(a, b, c)
        began = a.now

        def meanwhile(_: int, reply: bytes) -> bytes:
            kind = decode(reply, 1 << 24)[0]
            if kind == "inner":
                assert a.members.closed == began
                a.set(b"later")
                with pytest.raises(Cut):
                    carry(a.initiate().steps(), c, before=cut_when(lambda kind: kind != "hello"))
                assert a.members.closed > began
            if kind == "done" and ends == "answer":
                raise Cut
            return reply

        with nullcontext() if ends == "whole" else pytest.raises(Cut):
            before = cut_when(lambda kind: kind == "done" and ends == "request")
            carry(first.initiate().steps(), second, before=before, after=meanwhile)
        is_known = ends == "whole" or (ends == "answer" and begins == "b")
        assert a.members.given_through == (began if is_known else 0)


@pytest.mark.parametrize("is_collected", [False, True])
def test_what_a_restored_node_has_deleted_before_stays_so_although_other_clocks_were_ahead(
    tmp_path: Path, is_collected: bool
) -> None:
    """By their timestamps it has applied all that the others have written, and only its own deletion is lost."""
    with cluster(tmp_path) as (a, b, c):
        c.tick(45)
        a.set(b"k")
        exchange(c, a)
        copy = a.backup()
        c.set(b"other")

        def delete_meanwhile(number: int, reply: bytes) -> bytes:
            if not number:
                a.delete(b"k")
            return reply

        carry(c.initiate().steps(), a, after=delete_meanwhile)
        if is_collected:
            a.tick()
            exchange(a, c)
            exchange(c, a)
            while c.engine.collect_tombstones():
                pass
        assert (b"k" in c.records()) is not is_collected
        assert b"k" not in c.values()
        a.restore(copy)
        a.tick(5)
        b.now = a.now
        exchange(a, b)
        exchange(a, c)
        meet_all([a, b, c])
        assert [list(node.values()) for node in (a, b, c)] == [[b"other"]] * 3
