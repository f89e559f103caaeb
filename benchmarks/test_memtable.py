"""Reads and writes of the engine in memory, a thousand at a time, and the memtable's order for scans.

Nothing here waits for the disk: commits have durability `never`, and there is one for each thousand writes.
"""

import itertools
import time
from collections.abc import Callable

import pytest
from data_sets import VALUE, fill, key_of
from pytest_benchmark.fixture import BenchmarkFixture

from merklekv.core import REFERENCES
from merklekv.engine.engine import Engine
from merklekv.engine.memtable import SLICE_KEYS, Records

BATCH = 1000
ROUNDS = 30
CROWD = 200_000


@pytest.mark.benchmark(group="engine: 1,000 writes")
def test_set_new_keys(benchmark: BenchmarkFixture, small: Engine) -> None:
    numbers = itertools.count()

    def write() -> None:
        for _ in range(BATCH):
            small.set(key_of(next(numbers)), VALUE)
        small.commit()

    benchmark.pedantic(write, rounds=ROUNDS, warmup_rounds=1)
    assert small.live_count == next(numbers) >= BATCH


@pytest.mark.benchmark(group="engine: 1,000 writes")
def test_set_keys_again(benchmark: BenchmarkFixture, small: Engine) -> None:
    keys = [key_of(number) for number in range(BATCH)]

    def write() -> None:
        for key in keys:
            small.set(key, VALUE)
        small.commit()

    benchmark.pedantic(write, rounds=ROUNDS, warmup_rounds=1)
    assert small.live_count == BATCH


@pytest.mark.benchmark(group="engine: 1,000 writes")
def test_increment(benchmark: BenchmarkFixture, small: Engine) -> None:
    def count() -> int:
        for _ in range(BATCH):
            total = small.increment(b"counter", 1)
        small.commit()
        return total

    assert benchmark.pedantic(count, rounds=ROUNDS, warmup_rounds=1) % BATCH == 0


@pytest.mark.benchmark(group="engine: 1,000 writes")
def test_mset(benchmark: BenchmarkFixture, small: Engine) -> None:
    pairs = [(key_of(number), VALUE) for number in range(BATCH)]

    def write() -> None:
        small.mset(pairs)
        small.commit()

    benchmark.pedantic(write, rounds=ROUNDS, warmup_rounds=1)
    assert small.live_count == BATCH


def read(engine: Engine, keys: list[bytes]) -> int:
    return sum(engine.get(key) is not None for key in keys)


@pytest.mark.benchmark(group="engine: 1,000 reads")
def test_get_from_the_memtable(benchmark: BenchmarkFixture, small: Engine) -> None:
    fill(small, list(range(BATCH)))
    assert benchmark(read, small, [key_of(number) for number in range(BATCH)]) == BATCH


@pytest.mark.benchmark(group="engine: 1,000 reads")
def test_get_from_the_base(benchmark: BenchmarkFixture, copy_of: Callable[[int], Engine], keys: int) -> None:
    engine = copy_of(keys)
    step = max(1, keys // BATCH)
    wanted = [key_of(number) for number in range(0, keys, step)][:BATCH]
    assert benchmark(read, engine, wanted) == len(wanted)


@pytest.mark.benchmark(group="engine: 1,000 reads")
def test_get_what_is_nowhere(benchmark: BenchmarkFixture, big: Engine) -> None:
    assert benchmark(read, big, [b"nowhere:%d" % number for number in range(BATCH)]) == 0


def crowd(kind: type[Records]) -> Records:
    """As many keys as a memtable of the usual size has, in no order."""
    records = kind()
    for number in range(CROWD):
        records[key_of(number * 7919 % CROWD)] = b""
    return records


@pytest.mark.benchmark(group="memtable: 200,000 keys")
@pytest.mark.parametrize("way", ["prepare", "group"], ids=["order", "buckets"])
def test_longest_slice(way: str, benchmark: BenchmarkFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """What pure Python does before the first scan or exchange can answer; other clients wait for a slice of it."""
    next_slice: Callable[[], bool] = getattr(crowd(REFERENCES["Records"]), way)
    slices: list[float] = []

    def all_slices() -> None:
        done = False
        while not done:
            began = time.thread_time()
            done = next_slice()
            slices.append(time.thread_time() - began)

    benchmark.pedantic(all_slices)
    benchmark.extra_info["longest_slice_ms"] = 1000 * max(slices)
    with capsys.disabled():
        print(f"\n  {way}: {len(slices)} slices, the longest {1000 * max(slices):.1f} ms")
    assert len(slices) >= CROWD // SLICE_KEYS


@pytest.mark.benchmark(group="memtable: a page")
def test_list_keys(benchmark: BenchmarkFixture) -> None:
    crowded = crowd(Records)
    while not crowded.prepare():
        pass
    assert benchmark(crowded.items_from, key_of(CROWD // 2), None, 100) == [
        (key_of(number), b"") for number in range(CROWD // 2, CROWD // 2 + 100)
    ]
