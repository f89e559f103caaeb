"""Reads and writes of the engine in memory, a thousand at a time, and the memtable's order for scans.

Nothing here waits for the disk: commits have durability `never`, and there is one for each thousand writes.
"""

import itertools
from collections.abc import Callable

import pytest
from conftest import VALUE, fill, key_of
from pytest_benchmark.fixture import BenchmarkFixture

from merklekv.engine.engine import Engine
from merklekv.engine.memtable import RUN_SIZE, Memtable

BATCH = 1000
ROUNDS = 30


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


@pytest.mark.benchmark(group="memtable: order")
def test_sort_a_run(benchmark: BenchmarkFixture) -> None:
    """What the first scan over a memtable pays for each 8,192 keys."""

    def unsorted() -> tuple[tuple[Memtable], dict[str, object]]:
        table = Memtable(0)
        table.records = {key_of(number * 7919 % RUN_SIZE): b"" for number in range(RUN_SIZE)}
        return (table,), {}

    assert benchmark.pedantic(Memtable.prepare, setup=unsorted, rounds=ROUNDS)


@pytest.mark.benchmark(group="memtable: order")
def test_list_keys_of_many_runs(benchmark: BenchmarkFixture) -> None:
    table = Memtable(0)
    total = 16 * RUN_SIZE
    table.records = {key_of(number * 7919 % total): b"" for number in range(total)}
    while not table.prepare():
        pass
    assert benchmark(table.keys_from, key_of(total // 2), None, 100) == [
        key_of(number) for number in range(total // 2, total // 2 + 100)
    ]
