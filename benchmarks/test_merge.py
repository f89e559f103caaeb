"""The checkpoint of a memtable into bases of several sizes, and merging records of another node.

How the first grows with the base is what decides whether a long load keeps its pace: see load.py for the load itself.
"""

import random
from collections.abc import Callable

import pytest
from data_sets import VALUE, fill, key_of
from pytest_benchmark.fixture import BenchmarkFixture

from merklekv.engine.clock import HybridClock
from merklekv.engine.engine import Engine
from merklekv.engine.format import OP_SET
from merklekv.engine.record import make_record
from merklekv.engine.time_gate import TimeGate

ROUNDS = 3
MEMTABLE_SHARE = 20  # a memtable of a twentieth of the keys: 50,000 in a million


@pytest.mark.benchmark(group="checkpoint of a memtable, half of its keys new, by the size of the base")
@pytest.mark.parametrize("share", [0, 10, 1], ids=["empty", "tenth", "whole"])
def test_checkpoint_of_a_memtable(
    benchmark: BenchmarkFixture, copy_of: Callable[[int], Engine], keys: int, share: int
) -> None:
    size = keys // share if share else 0
    engine = copy_of(size)
    writes = keys // MEMTABLE_SHARE
    numbers = random.Random(share)
    highest = keys

    def fill_memtable() -> None:
        nonlocal highest
        new = range(highest, highest + writes // 2)
        highest = new.stop
        old = [numbers.randrange(size) for _ in range(writes - len(new))] if size else []
        mixed = [*new, *old]
        numbers.shuffle(mixed)
        fill(engine, mixed)

    benchmark.pedantic(engine.checkpoint_now, setup=fill_memtable, rounds=ROUNDS)
    benchmark.extra_info |= {"base_keys": size, "memtable_keys": writes}
    assert engine.live_count == size + highest - keys
    assert engine.metrics().memtable_keys == 0
    assert engine.get(key_of(highest - 1)) == VALUE


@pytest.mark.benchmark(group="merge: 1,000 records of another node")
@pytest.mark.parametrize("known", [False, True], ids=["new", "duplicates"])
def test_merge_records(benchmark: BenchmarkFixture, small: Engine, known: bool) -> None:
    clock = HybridClock(TimeGate())

    def records() -> list[tuple[int, bytes, bytes]]:
        return [(OP_SET, key_of(n), make_record(key_of(n), clock.next(), VALUE)) for n in range(1000)]

    first = records()
    small.merge(first, b"elsewhere")
    items = benchmark.pedantic(
        small.merge, setup=lambda: ((first if known else records(), b"elsewhere"), {}), rounds=20
    )
    assert items.applied == (0 if known else 1000)
    assert items.refused == []
