"""Nodes that a wrong clock has left in the future, alone or together, are part of the cluster again after a restamp."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.exchanges import NOON, SECOND, Node, agree, cluster, exchange, meet_all

from merklekv.engine import restamp as restamp_module
from merklekv.engine.base.writer import BaseWriter
from merklekv.engine.engine import Engine
from merklekv.engine.record import store_id_of, timestamp_of
from merklekv.engine.restamp import FIRST_KEYS
from merklekv.engine.verify.check import check_directory
from merklekv.replication.cluster.members import MembersUnreadable
from merklekv.replication.cluster.restamp import Restamped, restamp
from merklekv.replication.cluster.storage import METADATA_MEMBERS, load_members

YEARS = 9 * 365 * 86_400 * SECOND
DRIFT_S = 600


class Stop(Exception):
    """The process ends here."""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    """Three members that agree and have a GC horizon."""
    with cluster(tmp_path, "abc", max_clock_drift_s=DRIFT_S) as made:
        made[0].set(b"kept")
        made[1].set(b"deleted")
        meet_all(made)
        made[2].delete(b"deleted")
        meet_all(made)
        assert made[0].engine.gc_horizon > 0
        yield made


def restamped(node: Node, *, dry_run: bool = False) -> Restamped | None:
    """The directory of a node, restamped while it is stopped; it runs again."""
    node.engine.close()
    node.tick()
    engine = Engine(node.path, checkpoint="manual", durability="never", wall_clock=lambda: node.now)
    try:
        return restamp(engine, node.now, lambda done, total: None, dry_run=dry_run)
    finally:
        engine.close()
        node.open()


def set_clocks(nodes: list[Node], by: int) -> None:
    for node in nodes:
        node.now += by


def write_a_key(wrong: list[Node]) -> None:
    wrong[0].set(b"poisoned", b"1")


def write_and_delete(wrong: list[Node]) -> None:
    wrong[0].set(b"poisoned", b"1")
    wrong[0].delete(b"kept")
    wrong[0].engine.checkpoint_now()
    wrong[0].set(b"later")


def flush_all(wrong: list[Node]) -> None:
    wrong[0].set(b"gone")
    wrong[0].engine.checkpoint_now()
    wrong[0].engine.truncate()
    wrong[0].set(b"poisoned", b"1")


def flush_all_alone(wrong: list[Node]) -> None:
    wrong[0].engine.truncate()
    wrong[0].engine.commit()


def agree_with_each_other(wrong: list[Node]) -> None:
    """They close, apply and collect in the future."""
    wrong[-1].set(b"poisoned", b"1")
    wrong[-1].set(b"short")
    meet_all(wrong)
    wrong[0].delete(b"short")
    meet_all(wrong)


def agree_without_a_write(wrong: list[Node]) -> None:
    meet_all(wrong)


@pytest.mark.parametrize("wrong", ["a", "ab"])
@pytest.mark.parametrize(
    "happens",
    [write_a_key, write_and_delete, flush_all, flush_all_alone, agree_with_each_other, agree_without_a_write],
)
def test_after_a_restamp_a_node_takes_part_with_all_that_it_had(
    nodes: list[Node], happens: Callable[[list[Node]], None], wrong: str
) -> None:
    a, b, c = nodes
    affected = [node for node in nodes if node.name in wrong]
    set_clocks(affected, YEARS)
    happens(affected)
    had = affected[0].values()
    set_clocks(affected, -YEARS)
    for node in affected:
        node.reopen()
    c.set(b"meanwhile")
    before = {node.name: node.members.identity for node in nodes}
    held = {node.name: node.values() for node in affected}
    is_future = {node.name: restamped(node, dry_run=True) is not None for node in affected}
    assert is_future["a"] or not had or happens is agree_without_a_write
    for node in affected:
        if is_future[node.name]:
            assert restamped(node) is not None
            assert restamped(node) is None
        assert node.values() == held[node.name]
        assert node.engine.time_gate.ahead_s(max(node.engine.clock.newest, node.engine.clock.lower_bound)) < DRIFT_S
    a.set(b"fresh")
    meet_all(nodes, 4)
    assert agree(a, b, c)
    assert a.values().keys() >= {*had, b"fresh", b"meanwhile"}
    if b"poisoned" in had:
        assert c.values()[b"poisoned"] == b"1"
    horizon = c.engine.gc_horizon
    set_clocks(nodes, 60 * SECOND)
    meet_all(nodes)
    former = {before[name] for name in wrong if is_future[name]}
    for node in nodes:
        assert former <= node.members.removed.keys()
        assert {who for who, _ in node.members} == {one.members.identity for one in nodes if one is not node}
        assert not node.members.table().beyond(node.now + DRIFT_S * SECOND)
        assert max(node.members.table().own_times()) <= node.now + DRIFT_S * SECOND
        assert node.engine.gc_horizon > horizon
        assert node.engine.tombstone_count == 0


def test_a_refusal_from_the_future_ends_when_the_restamped_record_is_taken(nodes: list[Node]) -> None:
    a, b, _ = nodes
    set_clocks([a, b], YEARS)
    b.reopen(max_value_size=100)
    a.set(b"large", bytes(101))
    meet_all([a, b])
    assert [key for key, _ in b.members.refused] == [b"large"]
    set_clocks([a, b], -YEARS)
    assert restamped(a) is not None
    assert restamped(b) is not None
    meet_all(nodes)
    assert [key for key, _ in b.members.refused] == [b"large"]
    b.reopen(max_value_size=1000)
    meet_all(nodes)
    assert b.members.refused == {}
    assert agree(*nodes)


def test_records_of_another_writer_are_restamped_too(nodes: list[Node]) -> None:
    a, b, c = nodes
    set_clocks([a, b], YEARS)
    a.set(b"poisoned", b"1")
    exchange(a, b)
    set_clocks([a, b], -YEARS)
    a.empty()  # its directory was lost
    result = restamped(b)
    assert result is not None
    assert [key for key, _ in result.found.first] == [b"poisoned"]
    assert store_id_of(b.records()[b"poisoned"]) == b.members.identity.store_id
    b.reopen()
    meet_all(nodes)
    assert agree(a, b, c)
    assert c.values()[b"poisoned"] == b"1"


def test_only_what_is_in_the_future_gets_a_new_version(nodes: list[Node]) -> None:
    a = nodes[0]
    kept = a.records()
    set_clocks([a], YEARS)
    for number in range(2 * FIRST_KEYS):
        a.set(b"key-%02d" % number, b"%d" % number)
    set_clocks([a], -YEARS)
    before = a.records()
    result = restamped(a)
    assert result is not None
    assert (result.found.records, len(result.found.first)) == (2 * FIRST_KEYS, FIRST_KEYS)
    assert result.found.first[1][0] == b"key-01"
    assert result.found.newest == max(map(timestamp_of, before.values()))
    after = a.records()
    assert {key: after[key] for key in kept} == kept
    assert {store_id_of(after[key]) for key in after.keys() - kept.keys()} == {a.members.identity.store_id}
    assert result.former != result.identity == a.members.identity


@pytest.mark.parametrize("after", range(6))
def test_a_restamp_that_was_cut_off_is_finished_by_the_next(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """After each of its transactions the directory is whole, and nothing is lost."""
    monkeypatch.setattr(restamp_module, "TRANSACTION_KEYS", 20)
    a, b, c = nodes
    set_clocks([a], YEARS)
    a.engine.truncate()
    for number in range(50):
        a.engine.set(b"%05d" % number, b"v")
    a.engine.commit()
    set_clocks([a], -YEARS)
    had = a.values()
    steps = 0

    def cut(method: str) -> None:
        whole = getattr(BaseWriter, method)

        def then_stop(*arguments: object) -> object:
            nonlocal steps
            result = whole(*arguments)
            steps += is_cut
            if is_cut and steps > after:
                raise Stop
            return result

        monkeypatch.setattr(BaseWriter, method, then_stop)

    is_cut = False
    a.engine.checkpoint_now()
    for method in ("finish", "lower", "put"):
        cut(method)
    is_cut = True
    try:
        restamped(a)
    except Stop:
        pass
    else:
        assert after == 5
    is_cut = False
    a.reopen()
    assert a.values() == had
    restamped(a)
    assert restamped(a) is None
    assert a.values() == had
    meet_all(nodes)
    assert agree(a, b, c)
    assert c.values().items() >= had.items()


def test_a_directory_without_a_node_is_restamped_too(tmp_path: Path) -> None:
    engine = Engine(tmp_path, checkpoint="manual", durability="never", wall_clock=lambda: NOON + YEARS)
    engine.set(b"k", b"v")
    engine.commit()
    result = restamp(engine, NOON, lambda done, total: None)
    assert result is not None
    assert (result.identity, result.former, result.found.records) == (None, None, 1)
    engine.close()
    assert check_directory(tmp_path) == []


def test_a_damaged_record_is_left_as_it_is(nodes: list[Node]) -> None:
    a = nodes[0]
    a.engine.checkpoint_now()
    record = a.records()[b"kept"]
    a.engine.close()
    with BaseWriter(a.path / "base") as writer:
        writer.put([(b"kept", b"\x7f" + record[1:])])
    a.open()
    result = restamped(a)
    assert result is not None
    assert (result.found.damaged, result.found.records) == (1, 0)
    assert a.records()[b"kept"] == b"\x7f" + record[1:]
    a.engine.close()
    with BaseWriter(a.path / "base") as writer:
        writer.put([(b"kept", record)])
        writer.lower(b"newest", record[:24])
    a.open()


def test_a_damaged_table_of_members_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    engine = Engine(tmp_path, checkpoint="manual", durability="never", wall_clock=lambda: NOON + YEARS)
    engine.set(b"k", b"v")
    engine.put_metadata(METADATA_MEMBERS, b"damaged")
    engine.commit()
    before = engine.record(b"k")
    with pytest.raises(MembersUnreadable, match="the table of members cannot be read"):
        restamp(engine, NOON, lambda done, total: None)
    assert engine.record(b"k") == before
    engine.close()


@pytest.mark.parametrize("joins", [False, True])
def test_the_former_member_of_a_lone_node_is_not_removed(tmp_path: Path, joins: bool) -> None:
    """It would keep tombstones from then on, and no other node knows it."""

    def opened(wall: int) -> Engine:
        return Engine(tmp_path, checkpoint="manual", durability="never", wall_clock=lambda: wall)

    engine = opened(NOON + YEARS)
    former = load_members(engine, "a", joins=joins).identity
    engine.set(b"k", b"v")
    engine.set(b"gone", b"v")
    engine.delete(b"gone")
    engine.close()
    engine = opened(NOON)
    assert restamp(engine, NOON, lambda done, total: None) is not None
    engine.close()
    engine = opened(NOON + SECOND)
    assert restamp(engine, NOON + SECOND, lambda done, total: None) is None
    members = load_members(engine, "a", joins=joins)
    assert list(members.removed) == [former] * joins
    assert engine.tombstone_gc.is_lone != joins
    assert engine.purged_through <= NOON
    engine.close()
    assert check_directory(tmp_path) == []
