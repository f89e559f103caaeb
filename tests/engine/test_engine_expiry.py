"""Expiry: a key with one is there until the wall clock shows that time, and never again while it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fixtures import engines
from fixtures.engines import NOON, Wall
from fixtures.support import wait_until

from merklekv.engine.base.environment import DATA_FILE
from merklekv.engine.engine import Engine
from merklekv.engine.expiry import KEYS_MAX, KEYS_MIN, SLICE_S
from merklekv.engine.format import DELETIONS, OP_RENAME_FROM, OP_RENAME_TO, OP_SET, OP_SETRANGE
from merklekv.engine.lmdb_file import page_damage
from merklekv.engine.record import (
    EXPIRY,
    EXPIRY_MAX,
    FLAGS,
    is_tombstone,
    make_record,
    pack_expiry,
)
from merklekv.engine.tombstone_gc import EXPIRY_GRACE_NS
from merklekv.engine.verify.check import check_directory
from merklekv.errors import InvalidArgument

NOON_MS = NOON // 10**6

Make = Callable[..., Engine]


def shown(engine: Engine, key: bytes) -> list[object]:
    """What each way of reading says of a key, that they must agree on."""
    page, _ = engine.page(key)
    return [engine.get(key), engine.get_with_expiry(key), engine.exists(key), key in page, engine.expiry(key)]


def test_a_key_is_hidden_from_its_expiry_on_and_shown_again_if_the_clock_goes_back(make_engine: Make) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.set(b"k", b"v", NOON_MS + 10)
    for move in (lambda engine: None, engines.freeze, engines.checkpoint):
        move(engine)
        root = engine.root()
        for now, is_there in [(9_999_999, True), (10_000_000, False), (11_000_000, False), (0, True)]:
            wall.now = NOON + now
            expected = (
                [b"v", (b"v", NOON_MS + 10), True, True, NOON_MS + 10] if is_there else [None, None] + [False] * 2
            )
            assert shown(engine, b"k") == (expected if is_there else [*expected, None])
            assert engine.random_key() == (b"k" if is_there else None)
            assert engine.root() == root
            assert engine.record(b"k") is not None


def test_a_hidden_key_counts_as_missing_for_writes(make_engine: Make) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.join()
    verbs: list[Callable[[bytes], object]] = [
        lambda key: engine.increment(key, 1),
        lambda key: engine.append(key, b"1"),
        lambda key: engine.prepend(key, b"1"),
        lambda key: engine.change(OP_SETRANGE, key, b"1"),
        lambda key: engine.set(key, b"1"),
    ]
    for verb in verbs:
        engine.set(b"k", b"7", wall.now // 10**6 + 1)
        wall.now += 10**6
        before = engine.log.appended
        assert engine.delete(b"k") is engine.expire(b"k", NOON_MS * 2) is engine.persist(b"k") is False
        assert engine.log.appended == before
        verb(b"k")
        assert engine.get_with_expiry(b"k") == (b"1", None)


def test_in_place_changes_keep_the_expiry_and_a_new_value_clears_it(make_engine: Make) -> None:
    engine = make_engine(wall_clock=Wall())
    later = NOON_MS + 1000
    keep: list[tuple[Callable[[], object], bytes]] = [
        (lambda: engine.increment(b"k", 1), b"8"),
        (lambda: engine.append(b"k", b"1"), b"71"),
        (lambda: engine.prepend(b"k", b"1"), b"17"),
        (lambda: engine.change(OP_SETRANGE, b"k", b"new"), b"new"),
        (lambda: engine.expire(b"k", later), b"7"),
    ]
    for verb, value in keep:
        engine.set(b"k", b"7", later)
        verb()
        assert engine.get_with_expiry(b"k") == (value, later)
    clear: list[Callable[[], object]] = [
        lambda: engine.set(b"k", b"v"),
        lambda: engine.mset([(b"k", b"v")]),
        lambda: engine.set_batch([(b"", b"k", b"v")]),
        lambda: engine.persist(b"k"),
    ]
    for verb in clear:
        engine.set(b"k", b"v", later)
        verb()
        assert engine.get_with_expiry(b"k") == (b"v", None)
    assert engine.expire(b"k", later + 1)
    assert engine.expiry(b"k") == later + 1


def test_a_rename_takes_the_expiry_along(make_engine: Make) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.set(b"k", b"v", NOON_MS + 10)
    engine.set(b"new", b"w", NOON_MS + 5)
    assert engine.rename(b"k", b"new")
    assert engine.get(b"k") is None
    assert engine.get_with_expiry(b"new") == (b"v", NOON_MS + 10)
    assert engine.rename(b"new", b"new")
    assert engine.get_with_expiry(b"new") == (b"v", NOON_MS + 10)
    wall.now += 10 * 10**6
    before = engine.log.appended
    assert not engine.rename(b"new", b"k")
    assert engine.log.appended == before


def test_both_entries_of_a_rename_share_a_frame(make_engine: Make) -> None:
    engine = make_engine()
    engine.set(b"k", b"v")
    engine.join()
    engine.commit()
    assert engine.rename(b"k", b"new")
    ops = [entry[0] for entry in engine.log.pending]
    assert ops == [OP_RENAME_FROM, OP_RENAME_TO]


def test_a_batch_with_an_expiry_each(make_engine: Make) -> None:
    engine = make_engine(wall_clock=Wall(), max_value_size=10)
    batch = [(b"", b"k%d" % number, pack_expiry(NOON_MS + number) + b"v" * number) for number in range(1, 12)]
    assert engine.set_batch(batch, FLAGS[EXPIRY]) == 10
    assert engine.get_with_expiry(b"k10") == (b"v" * 10, NOON_MS + 10)
    with pytest.raises(InvalidArgument, match="value of 11 bytes"):
        engine.set(b"k11", b"v" * 11, NOON_MS)


def test_a_batch_with_one_expiry(make_engine: Make) -> None:
    engine = make_engine(wall_clock=Wall(), max_value_size=10)
    batch = [(b"", b"k%d" % number, b"v" * number) for number in range(12)]
    assert engine.set_batch(batch, FLAGS[EXPIRY], pack_expiry(NOON_MS + 1)) == 11
    assert engine.get_with_expiry(b"k0") == (b"", NOON_MS + 1)
    assert engine.get_with_expiry(b"k10") == (b"v" * 10, NOON_MS + 1)
    assert engine.set_batch(batch[:1], FLAGS[EXPIRY], pack_expiry(NOON_MS)) == 1
    assert engine.get(b"k0") is None


@pytest.mark.parametrize("expiry", [0, -1, EXPIRY_MAX + 1])
def test_an_expiry_outside_its_range_is_refused(make_engine: Make, expiry: int) -> None:
    engine = make_engine()
    for verb in (lambda: engine.set(b"k", b"v", expiry), lambda: engine.expire(b"k", expiry)):
        with pytest.raises(InvalidArgument, match="milliseconds since the epoch"):
            verb()


def test_merges_take_an_expiry_and_refuse_what_no_record_has(make_engine: Make) -> None:
    engine = make_engine(wall_clock=Wall(), max_value_size=10)

    def merged(value: bytes, expiry: int | None, tombstone: bool = False) -> str:
        record = make_record(b"k", engines.version(NOON), value, expiry=expiry, tombstone=tombstone)
        result = engine.merge([(OP_SET, b"k", record)], b"elsewhere")
        return result.refused[0][1] if result.refused else ""

    assert merged(b"", 5, tombstone=True) == "flags"
    assert merged(b"v", 0) == merged(b"v", EXPIRY_MAX + 1) == "expiry"
    assert merged(b"v" * 11, 5) == "value size"
    assert merged(b"v" * 10, EXPIRY_MAX) == ""
    assert engine.expiry(b"k") == EXPIRY_MAX


def test_a_deletion_of_any_name_makes_a_tombstone(make_engine: Make) -> None:
    engine = make_engine()
    engine.join()
    for op in DELETIONS:
        engine.set(b"k", b"v")
        assert engine.delete(b"k", op)
        assert is_tombstone(engine.record(b"k") or b"")


# -- the expirer -------------------------------------------------------------------------------------------------------

ALIKE = (b"alike-6398463", b"alike-17706105")  # their XXH3-64 begin with the same 6 bytes


def expire_all(engine: Engine) -> None:
    while engine.collect_expired():
        pass


def test_a_lone_node_purges_what_has_expired(make_engine: Make) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall, memtable_size=1 << 20)
    for number in range(3000):
        engine.set(b"k%d" % number, b"v", NOON_MS + number)
        if number == 1000:
            engines.checkpoint(engine)
        if number == 2000:
            engines.freeze(engine)
    wall.now += 2500 * 10**6
    expire_all(engine)
    assert (engine.key_count, engine.live_count, engine.expirer.expired_keys) == (
        499,
        499,
        2500,
    )  # k0 was due before the start
    assert engine.record(b"k2500") is None
    engines.checkpoint(engine)
    assert (engine.table.base.live, engine.tombstone_count) == (499, 0)
    assert engine.table.base.current.size(engine.table.base.current.expiries) == 499


@pytest.mark.parametrize("left", [0, 1, 1000])
def test_a_base_whose_keys_have_expired_is_sound(left: int, make_engine: Make) -> None:
    """A long list of places has pages of its own, which LMDB goes on counting when the list is emptied."""
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    for number in range(1000):
        engine.set(b"k%d" % number, b"v", NOON_MS + number)
    for number in range(left):
        engine.set(b"left%d" % number, b"v", NOON_MS + 10**9 + number)
    engines.checkpoint(engine)
    wall.now += 10**12
    expire_all(engine)
    engines.checkpoint(engine)
    base = engine.table.base
    assert base.current.size(base.current.expiries) == left
    engine.close()
    assert page_damage(base.path / DATA_FILE) == []
    assert check_directory(engine.directory.path) == []


@pytest.mark.parametrize("lone", [True, False])
def test_a_key_that_has_expired_does_not_change_when_it_is_purged(lone: bool, make_engine: Make) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    if not lone:
        engine.join()
    for key in (b"expires", b"expired", b"deleted", b"written"):
        engine.set(key, b"v", None if key == b"deleted" else NOON_MS + 10)
    engine.delete(b"deleted")
    before = engine.state_of(b"expires")
    wall.now += 10**12
    seen = {key: engine.state_of(key) for key in (b"expired", b"deleted", b"written")}
    assert engine.has_changed(b"expires", before)
    engine.set(b"written", b"v")
    for purge in (expire_all, lambda engine: engine.raise_gc_horizon(wall.now), expire_all, engines.checkpoint):
        purge(engine)
        assert [key for key, state in seen.items() if engine.has_changed(key, state)] == [b"written"]
        assert engine.has_changed(b"expires", before)
    assert engine.record(b"expired") is None


def test_a_cluster_purges_at_the_gc_horizon(make_engine: Make) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.join()
    engine.set(b"base", b"v", NOON_MS + 10)
    engines.checkpoint(engine)
    engine.set(b"frozen", b"v", NOON_MS + 20)
    engines.freeze(engine)
    engine.set(b"active", b"v", NOON_MS + 30)
    root = engine.root()
    wall.now += 10**12
    expire_all(engine)
    assert (engine.key_count, engine.live_count, engine.root()) == (0, 3, root)
    for left, key_expiry in ((2, 10), (1, 20), (0, 30)):
        due = NOON + key_expiry * 10**6 + EXPIRY_GRACE_NS
        for horizon in (due - 1, due):
            engine.raise_gc_horizon(horizon)
            expire_all(engine)
            assert engine.live_count == left + (horizon < due)


def test_nodes_whose_clocks_differ_much_purge_the_same_at_the_same_horizon(make_engine: Make) -> None:
    """With a larger `max_clock_drift_seconds` a clock may be behind by more than the grace of ten minutes."""
    wall, slow = Wall(), Wall()
    slow.now -= 3600 * 10**9
    nodes = [make_engine(name, wall_clock=clock, max_clock_drift_s=7200) for name, clock in (("a", wall), ("b", slow))]
    record = make_record(b"k", engines.version(NOON), b"v", expiry=NOON_MS + 10)
    horizon = NOON + 10 * 10**6 + EXPIRY_GRACE_NS
    for node in nodes:
        node.join()
        node.merge([(OP_SET, b"k", record)], b"elsewhere")
        node.raise_gc_horizon(horizon)
        expire_all(node)
        assert (node.live_count, node.key_count) == (0, 0)


def test_keys_that_have_expired_when_they_are_written(make_engine: Make) -> None:
    """A node that joins takes in many: each counts once, also those below the watermark."""
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.join()
    engine.set(b"before", b"v", NOON_MS)
    expire_all(engine)
    for number in range(5 * KEYS_MAX):
        engine.set(b"k%d" % number, b"v", NOON_MS - number)
    assert (engine.live_count, engine.key_count) == (5 * KEYS_MAX + 1, 0)
    expire_all(engine)
    assert (engine.live_count, engine.key_count) == (5 * KEYS_MAX + 1, 0)
    engine.raise_gc_horizon(NOON + EXPIRY_GRACE_NS)
    expire_all(engine)
    assert engine.live_count == 0


def test_keys_with_the_same_expiry_place(make_engine: Make) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.join()
    for key in ALIKE:
        engine.set(key, b"v", NOON_MS + 10)
    for move in (lambda engine: None, engines.checkpoint):
        move(engine)
        wall.now = NOON + 10**10
        expire_all(engine)
        assert (engine.key_count, engine.expirer.expired_keys) == (0, 2)
        wall.now = NOON
        expire_all(engine)
        assert engine.key_count == 2
        engine.expirer.expired_keys = 0
    engine.set(ALIKE[0], b"v")
    engines.checkpoint(engine)
    wall.now = NOON + 10**10
    expire_all(engine)
    assert engine.key_count == 1


def test_each_key_that_expires_is_told_once(make_engine: Make) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.join()
    told: list[bytes] = []
    engine.expirer.on_expired = told.extend
    engine.set(b"due", b"v", NOON_MS)
    engine.set(b"later", b"v", NOON_MS + 10)
    engine.set(b"moved", b"v", NOON_MS + 10)
    engine.set(b"moved", b"v", NOON_MS + 20)
    for now, keys in [(9, []), (10, [b"later"]), (19, []), (30, [b"moved"]), (5000, [])]:
        wall.now = NOON + now * 10**6
        expire_all(engine)
        assert told == keys
        told.clear()
    engine.close()
    engine = make_engine(wall_clock=wall)
    engine.expirer.on_expired = told.extend
    expire_all(engine)
    assert (told, engine.key_count, engine.expirer.expired_keys) == ([], 0, 0)
    wall.now = NOON - 10**12
    engine.set(b"later", b"v", NOON_MS - 999_000)
    expire_all(engine)
    assert engine.key_count == 3
    wall.now = NOON
    expire_all(engine)
    assert sorted(told) == [b"due", b"later"]


def test_a_slice_is_short_whatever_has_become_of_the_keys(make_engine: Make) -> None:
    """Keys that were deleted, or do not expire any more, are stale entries of the heap, which are looked at, too."""
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.join()
    for number in range(5 * KEYS_MAX):
        engine.set(b"k%d" % number, b"v", NOON_MS + 10)
    expire_all(engine)
    for number in range(5 * KEYS_MAX):
        engine.persist(b"k%d" % number)
    waiting = engine.table.active.expiries.waiting
    wall.now += 10**9
    more = True
    while more:
        before = len(waiting)
        more = engine.collect_expired()
        assert before - len(waiting) <= KEYS_MAX
    assert (len(waiting), engine.key_count) == (0, 5 * KEYS_MAX)


def test_a_key_that_is_set_and_deleted_again_and_again_is_soon_kept_in_mind_once(make_engine: Make) -> None:
    """A lock is so: each time there is a stale entry, which becomes the same as those before when its time comes."""
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.join()
    waiting = engine.table.active.expiries.waiting
    for number in range(100):
        engine.set(b"lock", b"v", NOON_MS + 30 + number)
        expire_all(engine)
        engine.delete(b"lock")
    engine.set(b"lock", b"v", NOON_MS + 1000)
    wall.now += 200 * 10**6
    expire_all(engine)
    assert len(waiting) < 20
    assert engine.key_count == 1


def test_slices_do_not_shrink_while_others_have_the_lock(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a busy node would expire fewer keys than are written."""
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.join()
    expired: list[int] = []
    engine.expirer.on_expired = lambda keys: expired.append(len(keys))
    for number in range(2 * KEYS_MAX):
        engine.set(b"k%d" % number, b"v", NOON_MS + 10)
    wall.now += 10**9
    monkeypatch.setattr(engine.table, "lock", _Contended(engine.lock))
    expire_all(engine)
    assert sum(expired) == 2 * KEYS_MAX
    assert max(expired) > 2 * KEYS_MIN


class _Contended:
    """A lock that is always taken for longer than a slice is."""

    def __init__(self, lock: object) -> None:
        self._lock: Any = lock

    def __enter__(self) -> None:
        Event().wait(2 * SLICE_S)
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def test_a_running_node_expires_by_itself(tmp_path: Path) -> None:
    with engines.engine_in(tmp_path / "data", checkpoint="process", wall_clock=time.time_ns) as engine:
        for number in range(500):
            engine.set(b"k%d" % number, b"v", time.time_ns() // 10**6 + 1)
        engine.set(b"stays", b"v", engines.LATER_MS)
        engine.commit()
        wait_until(lambda: engine.live_count == 1)
        wait_until(lambda: not engine.commits.is_pending)


def test_a_key_that_is_put_off_again_and_again_is_kept_in_mind_once(make_engine: Make) -> None:
    """A session that each request prolongs must not grow; and it ends in time, also when it was cut short."""
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    engine.join()
    expiries = engine.table.active.expiries
    for number in range(1000):
        engine.set(b"long", b"v", NOON_MS + 1000 + number)
        engine.expire(b"short", NOON_MS + 2000 - number)
        engine.set(b"short", b"v", NOON_MS + 2000 - number)
        if number % 10 == 0:
            expire_all(engine)
    expire_all(engine)
    assert sum(key == b"long" for key in map(expiries.key_of, expiries.waiting)) == 1
    assert len(expiries.new) == 0
    for now, count in ((NOON_MS + 1000, 2), (NOON_MS + 1001, 1), (NOON_MS + 1998, 1), (NOON_MS + 1999, 0)):
        wall.now = now * 10**6
        expire_all(engine)
        assert engine.key_count == count
    assert engine.expirer.expired_keys == 2
