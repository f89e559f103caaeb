"""The GC horizon, the collection of tombstones below it, metadata entries and closed timestamps."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import Mock

import pytest
from fixtures import engines
from fixtures.engines import NOON, Wall
from fixtures.support import no_room

from merklekv.engine import tombstone_gc
from merklekv.engine.engine import Engine
from merklekv.engine.format import METADATA_NAME_SIZE_MAX, METADATA_SIZE_MAX, OP_DEL, OP_SET, bucket_of
from merklekv.engine.record import head_of, timestamp_of
from merklekv.engine.tombstone_gc import PURGED_STEP_NS
from merklekv.errors import DiskFull, InvalidArgument

Make = Callable[..., Engine]


def collect_all(engine: Engine) -> None:
    while engine.collect_tombstones(3):
        pass
    engine.commit()


def test_collected_tombstones_leave_nothing_behind(make_engine: Make) -> None:
    """The node is as one where the keys had never been."""
    engine = make_engine()
    engine.join()
    empty = make_engine("empty")
    for number in range(20):
        engine.set(b"k%d" % number, b"v")
        if number == 7:
            engine.checkpoint_now()  # some of it in the base, some in memory
    for number in range(20):
        engine.delete(b"k%d" % number)
        if number == 14:
            engine.checkpoint_now()
    assert engine.tombstone_count == 20
    engine.raise_gc_horizon(engine.clock.closing())
    collect_all(engine)
    assert (engine.tombstone_count, engine.live_count, engine.root()) == (0, 0, empty.root())
    assert engines.everything(engine) == {}
    engine.checkpoint_now()
    assert engines.everything(engine) == {}
    engine.close()
    again = make_engine()
    assert (again.tombstone_count, again.root()) == (0, empty.root())


def test_tombstones_above_the_horizon_stay(make_engine: Make) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.join()
    for key in (b"old", b"new"):
        wall.now += 10
        engine.set(key, b"v")
        engine.delete(key)
    record = engine.record(b"old")
    assert record is not None
    engine.raise_gc_horizon(timestamp_of(record))
    collect_all(engine)
    assert engine.record(b"old") is None
    assert engine.record(b"new") is not None
    assert not engine.collect_tombstones()


def test_each_horizon_looks_only_at_tombstones_that_are_left(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tombstone_gc, "GC_KEYS", 10)
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.join()
    engine.set(b"again", b"v")
    for number in range(1, 6):
        for key in [b"again", *(b"k%d:%d" % (number, each) for each in range(30))]:
            engine.set(key, b"v")
            engine.delete(key)
        horizon = engine.clock.closing()
        wall.now += 10
        engine.set(b"later%d" % number, b"v")
        engine.delete(b"later%d" % number)
        engine.raise_gc_horizon(horizon)
        collect_all(engine)
        assert engine.tombstone_count == 1
    assert len(engine.table.active.tombstones) < 15, "one that is left, and the last ones of some slices"
    engine.raise_gc_horizon(engine.clock.closing())
    collect_all(engine)
    assert engine.tombstone_count == 0


def test_a_tombstone_on_a_tombstone_is_found_wherever_it_is(make_engine: Make) -> None:
    engine = make_engine(wall_clock=Wall())
    engine.join()
    engine.merge([(OP_DEL, b"k", engines.record(b"k", None, NOON))], b"a")
    engine.checkpoint_now()
    engine.raise_gc_horizon(NOON - 1)
    collect_all(engine)
    engine.merge([(OP_DEL, b"k", engines.record(b"k", None, NOON + 5))], b"a")
    engine.raise_gc_horizon(NOON + 1)
    collect_all(engine)
    assert engine.tombstone_count == 1
    engine.raise_gc_horizon(NOON + 5)
    collect_all(engine)
    assert engine.tombstone_count == 0


def test_nothing_comes_back_from_below_the_horizon(make_engine: Make) -> None:
    engine = make_engine(wall_clock=Wall())
    old = (OP_SET, b"k", engines.record(b"k", b"old", NOON))
    engine.merge([old], b"a")
    engine.merge([(OP_DEL, b"k", engines.record(b"k", None, NOON + 1))], b"a")
    engine.raise_gc_horizon(NOON + 1)
    collect_all(engine)
    assert engine.merge([old], b"a").applied == 0
    engine.checkpoint_now()  # the purge marker has gone with what it hid
    assert engine.merge([old], b"a").refused == [(b"k", "stable")]
    assert engine.merge([(OP_DEL, b"k", engines.record(b"k", None, NOON + 1))], b"a").superseded == 1
    assert engine.merge([(OP_SET, b"k", engines.record(b"k", b"new", NOON + 2))], b"a").applied == 1


def test_a_record_below_the_horizon_is_updated_by_a_stable_sender_and_not_deleted(make_engine: Make) -> None:
    """An exchange deletes such a record again, or the other nodes would not get the deletion."""
    engine = make_engine(wall_clock=Wall())
    engine.merge([(OP_SET, key, engines.record(key, b"1", NOON)) for key in (b"a", b"b")], b"x")
    engine.raise_gc_horizon(NOON + 9)
    newer = [(OP_SET, b"a", engines.record(b"a", b"2", NOON + 1)), (OP_DEL, b"b", engines.record(b"b", None, NOON + 1))]
    assert engine.merge(newer, b"x") == (0, 0, [(b"a", "stable"), (b"b", "stable")])
    assert engine.merge(newer, b"x", stable=True) == (1, 0, [(b"b", "stable")])
    assert (engine.get(b"a"), engine.get(b"b"), engine.tombstone_count) == (b"2", b"1", 0)


def test_a_stable_sender_may_bring_what_is_stable(make_engine: Make) -> None:
    engine = make_engine(wall_clock=Wall())
    engine.raise_gc_horizon(NOON + 9)
    items = [(OP_SET, b"k", engines.record(b"k", b"v", NOON))]
    assert engine.merge(items, b"x").refused == [(b"k", "stable")]
    assert engine.merge(items, b"x", stable=True).applied == 1


def test_what_is_written_after_a_collection_counts_as_new(make_engine: Make) -> None:
    engine = make_engine()
    for key in (b"a", b"b"):
        engine.set(key, b"1")
    engine.checkpoint_now()
    for key in (b"a", b"b"):
        engine.delete(key)
    engine.raise_gc_horizon(engine.clock.closing())
    collect_all(engine)
    engine.set(b"a", b"2")
    assert engine.increment(b"b", 3) == 3
    assert (engine.live_count, engine.tombstone_count) == (2, 0)


def test_the_horizon_only_rises_and_is_kept(make_engine: Make) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    assert engine.gc_horizon == 0
    assert engine.raise_gc_horizon(NOON + 100)
    assert not engine.raise_gc_horizon(NOON + 100)
    assert not engine.raise_gc_horizon(NOON)
    for with_checkpoint in (False, True):
        engine.set(b"k", b"v")
        if with_checkpoint:
            engine.checkpoint_now()
        engine.close()
        engine = make_engine(wall_clock=wall)
        assert engine.gc_horizon == NOON + 100
        record = engine.record(b"k")
        assert record is not None
        assert timestamp_of(record) > NOON + 100


def test_metadata_entries_are_kept_like_records(make_engine: Make) -> None:
    engine = make_engine()
    engine.put_metadata(b"a", b"1")
    engine.put_metadata(b"b", b"")
    engine.put_metadata(b"a", b"2")
    engine.commit()
    engine.close()
    engine = make_engine()
    assert engine.metadata == {b"a": b"2", b"b": b""}
    engine.set(b"k", b"v")
    engine.checkpoint_now()
    engine.put_metadata(b"b", b"3")
    engine.close()
    assert make_engine().metadata == {b"a": b"2", b"b": b"3"}


def test_limits_of_metadata_entries(make_engine: Make) -> None:
    engine = make_engine()
    engine.put_metadata(b"n" * METADATA_NAME_SIZE_MAX, b"v" * METADATA_SIZE_MAX)
    for name, value in ((b"n" * (METADATA_NAME_SIZE_MAX + 1), b""), (b"n", b"v" * (METADATA_SIZE_MAX + 1)), (b"", b"")):
        with pytest.raises(InvalidArgument, match="metadata entry of"):
            engine.put_metadata(name, value)
    assert engine.metadata == {b"n" * METADATA_NAME_SIZE_MAX: b"v" * METADATA_SIZE_MAX}


def test_a_closed_timestamp_binds_the_clock_even_when_the_wall_is_set_back(make_engine: Make) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    promised, _ = engine.clock.propose()
    assert promised == NOON
    wall.now -= engines.DRIFT_NS
    engine.set(b"k", b"v")
    record = engine.record(b"k")
    assert record is not None
    assert timestamp_of(record) > promised
    engine.clock.close_through(NOON + 7)
    wall.now -= 3 * engines.DAY_NS
    engine.set(b"k", b"v")
    record = engine.record(b"k")
    assert record is not None
    assert timestamp_of(record) > NOON + 7


def test_a_bucket_lists_what_a_scan_finds(make_engine: Make) -> None:
    engine = make_engine()
    for number in range(300):
        engine.set(b"k%d" % number, b"v")
        if number % 100 == 99:
            engine.checkpoint_now()
    engine.delete(b"k5")
    engine.delete(b"k250")
    while not engine.prepare_buckets():
        pass
    for number in range(300, 320):
        engine.set(b"k%d" % number, b"v")  # after the preparation
    expected: dict[int, list[tuple[bytes, bytes]]] = {}
    for key, record in sorted(engines.everything(engine).items()):
        expected.setdefault(bucket_of(key), []).append((key, head_of(record)))
    assert {bucket: engine.bucket(bucket) for bucket in expected} == expected
    assert engine.bucket(next(bucket for bucket in range(65536) if bucket not in expected)) == []


def test_leaf_digests_differ_where_data_differs(make_engine: Make) -> None:
    one, other = make_engine("one"), make_engine("other")
    one.set(b"k", b"v")
    inner, leaf = divmod(bucket_of(b"k"), 256)
    ours, theirs = one.leaf_digests(inner), other.leaf_digests(inner)
    assert ours is not None
    assert theirs is not None
    assert [at for at in range(256) if ours[8 * at : 8 * at + 8] != theirs[8 * at : 8 * at + 8]] == [leaf]
    pairs = zip(one.inner_digests() or [], other.inner_digests() or [], strict=True)
    different = [node for node, (mine, yours) in enumerate(pairs) if mine != yours]
    assert different == [inner]


def test_what_a_lone_node_purges_is_remembered_in_one_entry(make_engine: Make) -> None:
    """With the millisecond after it, so that a row of deletions stores it once; what is later stores it again."""
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    for number in range(10):
        engine.set(b"%d" % number, b"v")
    before = engine.log.appended
    for number in range(9):
        engine.delete(b"%d" % number)
    assert engine.log.appended == before + 10
    assert engine.purged_through == NOON + PURGED_STEP_NS
    engine.commit()
    wall.now += 10**10
    engine.set(b"9", b"v")
    engine.delete(b"9")
    engine.commit()
    engine.join()
    for with_checkpoint in (False, True):
        if with_checkpoint:
            engine.checkpoint_now()
        engine.close()
        engine = make_engine(wall_clock=wall)
        assert engine.purged_through == NOON + 10**10 + PURGED_STEP_NS
        assert not engine.is_lone


def test_whether_a_purged_key_is_merged_depends_on_no_checkpoint(make_engine: Make) -> None:
    engine = make_engine()
    engine.set(b"k", b"v")
    old = engine.record(b"k")
    assert old is not None
    for with_checkpoint in (False, True):
        engine.delete(b"k")
        if with_checkpoint:
            engine.checkpoint_now()
        assert engine.merge([(OP_SET, b"k", old)], b"dump").applied == 1
    engine.delete(b"k")
    engine.join()
    assert engine.merge([(OP_SET, b"k", old)], b"dump").applied == 1


@pytest.mark.parametrize("end", ["at once", "after a checkpoint", "after a start"])
@pytest.mark.parametrize("place", ["base", "base, purged in a frozen memtable", "frozen memtable"])
def test_a_truncation_brings_no_purged_record_back(place: str, end: str, make_engine: Make) -> None:
    """An old dump has put an older record over the purge marker; the truncation deletes that, and spares the purged."""
    engine = make_engine()
    engine.set(b"k", b"purged")
    engine.set(b"l", b"stays")
    if place == "frozen memtable":
        engines.freeze(engine)
    else:
        engines.checkpoint(engine)
    engine.delete(b"k")
    if place == "base, purged in a frozen memtable":
        engines.freeze(engine)
    assert engine.merge([(OP_SET, b"k", engines.record(b"k", b"older", NOON - 10))], b"dump").applied == 1
    assert engine.merge_truncation(engines.version(NOON - 5), b"dump")
    engine.commit()
    if end == "after a checkpoint":
        engines.checkpoint(engine)
    elif end == "after a start":
        engine.close()
        engine = make_engine()
    assert engines.values(engine) == {b"l": b"stays"}
    engine.set(b"k", b"new")
    assert engine.get(b"k") == b"new"


def test_a_lone_deletion_under_a_wrong_clock_stamps_nothing_in_the_future(make_engine: Make) -> None:
    """The time in its purge marker is for people: it moves neither the clock nor what is written after it."""
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.set(b"k", b"v")
    wall.now += 10**18
    engine.delete(b"k")
    wall.now -= 10**18
    for end in ("at once", "after a start"):
        assert engine.clock.newest == NOON, end
        assert timestamp_of(engine.table.newest()) == NOON
        engine.commit()
        engine.close()
        engine = make_engine(wall_clock=wall)
    engine.set(b"k", b"new")
    record = engine.record(b"k")
    assert record is not None
    assert timestamp_of(record) <= NOON + 1
    engine.checkpoint_now()
    assert engine.get(b"k") == b"new"


def test_a_deleted_key_is_set_after_the_wall_was_set_back(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the cost of any write: its purge marker has no digest, and is no damaged record all the same."""
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.set(b"k", b"v")
    engine.delete(b"k")
    wall.now -= engines.DRIFT_NS
    monkeypatch.setattr(engine.table, "newest", Mock(side_effect=AssertionError))
    engine.set(b"k", b"v")
    record = engine.record(b"k")
    assert record is not None
    assert timestamp_of(record) == NOON + 1
    monkeypatch.undo()


def test_a_lone_node_collects_tombstones_that_come_later(make_engine: Make) -> None:
    engine = make_engine()
    for number in range(3):
        engine.merge([(OP_DEL, b"k%d" % number, engines.record(b"k%d" % number, None, NOON - number))], b"dump")
        collect_all(engine)
        assert engine.tombstone_count == 0


def test_a_lone_node_on_a_full_disk_deletes_nothing_by_half(make_engine: Make) -> None:
    engine = make_engine()
    engine.set(b"k", b"v")
    engine.commit()
    engine.delete(b"k")
    with no_room(0.5), pytest.raises(DiskFull):
        engine.commit()
    assert engine.get(b"k") == b"v"
    assert engine.purged_through == 0
    engine.begin()
    engine.commit()
    assert engine.delete(b"k")
    engine.commit()
    assert engine.tombstone_count == 0
