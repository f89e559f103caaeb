"""The checker and an open engine: whatever of its memory is not what its disk says, it names."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from fixtures import engines
from fixtures.engines import NOON

from merklekv.engine.engine import Engine
from merklekv.engine.format import BUCKETS, bucket_of
from merklekv.engine.memtable import Records
from merklekv.engine.verify.check import check_engine

KEY = b"k05"
BUCKET = bucket_of(KEY)


def only(problems: list[str], *words: object) -> None:
    """One problem, that has all these words."""
    assert len(problems) == 1, problems
    for word in words:
        assert str(word) in problems[0]


def broken(engine: Engine) -> list[str]:
    engines.damaged(engine.directory.path)
    return check_engine(engine)


def test_an_engine_with_a_wrong_leaf(make_engine: Callable[..., Engine]) -> None:
    engine = engines.filled(make_engine())
    engine.table.tree.leaves.move(BUCKET, 1, 0)
    problems = broken(engine)
    assert f"tree: leaf {BUCKET} (sum, count) is " in problems[0]


def test_an_engine_with_an_inner_digest_out_of_date(make_engine: Callable[..., Engine]) -> None:
    engine = engines.filled(make_engine())
    engine.root()
    engine.set(KEY, b"changed")
    engine.table.tree.changed[:] = bytes(BUCKETS)
    only(broken(engine), "tree: the root is ", "expected ")


@pytest.mark.parametrize("part", [(1, 0), (0, 1)], ids=["sum", "count"])
def test_an_engine_with_a_leaf_of_no_record(make_engine: Callable[..., Engine], part: tuple[int, int]) -> None:
    engine = engines.filled(make_engine())
    tree = engine.table.tree
    empty = next(bucket for bucket in range(BUCKETS) if not tree.leaf(bucket))
    tree.leaves.move(empty, *part)
    assert any(f"tree: leaf {empty} (sum, count) is " in problem for problem in broken(engine))


@pytest.mark.parametrize(("name", "what"), [("live_count", "live keys"), ("tombstone_count", "tombstones")])
def test_an_engine_with_a_wrong_counter(make_engine: Callable[..., Engine], name: str, what: str) -> None:
    engine = engines.filled(make_engine())
    setattr(engine.table, name, getattr(engine, name) + 1)
    only(broken(engine), f"engine: the number of {what} is ")


def test_an_engine_with_a_wrong_charge(make_engine: Callable[..., Engine]) -> None:
    engine = engines.filled(make_engine())
    engine.table.active.size -= 1
    only(broken(engine), "memtable ", "the charged size is ")


def test_an_engine_whose_memtable_is_not_what_its_segment_says(make_engine: Callable[..., Engine]) -> None:
    engine = engines.filled(make_engine())
    frozen = engine.table.frozen[0]
    records, frozen.records = frozen.records, Records()
    for key, record in records.items():
        if key != b"frozen":
            frozen.records[key] = record
    engine.table.records[b"active"] = engines.record(b"active", b"", NOON + 100)
    problems = broken(engine)
    assert any("key b'frozen': holds nothing, expected 2" in problem for problem in problems)
    assert any("key b'active': holds 2000000000000000100-" in problem for problem in problems)


def test_an_engine_whose_layers_are_upside_down(make_engine: Callable[..., Engine]) -> None:
    engine = engines.filled(make_engine())
    engine.table.frozen[0].records[b"active"] = engines.record(b"active", b"", NOON + 100)
    engine.table.records[b"k10"] = engines.record(b"k10", b"", NOON - 100)
    problems = broken(engine)
    assert any("key b'active': is newer than in a memtable above it" in problem for problem in problems)
    assert any("base, key b'k10': is newer than in a memtable" in problem for problem in problems)


def test_an_engine_whose_clock_is_behind_its_data(make_engine: Callable[..., Engine]) -> None:
    engine = engines.filled(make_engine())
    engine.clock.newest = NOON - 1
    only(broken(engine), f"clock: has seen {NOON - 1}, expected at least 20000000000000000")


def test_an_engine_with_a_record_below_its_floor(make_engine: Callable[..., Engine]) -> None:
    engine = engines.filled(make_engine())
    engine.table.truncation = engines.version(NOON + 100)
    assert any("below the truncation version" in problem for problem in broken(engine))


def test_an_engine_that_has_lost_a_segment(make_engine: Callable[..., Engine]) -> None:
    engine = engines.filled(make_engine())
    shutil.copy(engine.log._path, engine.directory.log / f"{10**9:020d}.log")
    assert any("log: the segments is " in problem for problem in broken(engine))


def test_an_engine_that_miscounts_what_is_pending(make_engine: Callable[..., Engine]) -> None:
    engine = engines.filled(make_engine())
    engine.set(b"pending", b"")
    assert check_engine(engine) == []
    engine.log.pending_size += 1
    only(broken(engine), "log: the size of what is pending is ")
