"""Ordered reads over a big base: a prefix with a hundred hits, a page of a thousand, and digests of a prefix."""

from collections.abc import Generator

import pytest
from data_sets import VALUE, key_of
from pytest_benchmark.fixture import BenchmarkFixture

from merklekv.engine.engine import Engine

HITS = 100
FIRST = 1200
PREFIX = key_of(FIRST)[:-2]


def scan(engine: Engine, prefix: bytes) -> list[bytes]:
    keys: list[bytes] = []
    after: bytes | None = b""
    while after is not None:
        page, after = engine.page(prefix, after)
        keys += page
    return keys


def finish(digest: Generator[None, None, bytes]) -> bytes:
    while True:
        try:
            next(digest)
        except StopIteration as end:
            return bytes(end.value)


@pytest.mark.benchmark(group="scan: 100 hits among all keys")
def test_scan_a_prefix(benchmark: BenchmarkFixture, big: Engine) -> None:
    assert benchmark(scan, big, PREFIX) == [key_of(FIRST + number) for number in range(HITS)]


@pytest.mark.benchmark(group="scan: 100 hits among all keys")
def test_scan_a_prefix_right_after_writes(benchmark: BenchmarkFixture, big: Engine) -> None:
    """The memtable has to be put in order first, by what has come since the last scan."""

    def write() -> None:
        for number in range(1000):
            big.set(key_of(number), VALUE)

    found = benchmark.pedantic(lambda: scan(big, PREFIX), setup=write, rounds=20)
    assert found == [key_of(FIRST + number) for number in range(HITS)]
    big.commit()


@pytest.mark.benchmark(group="scan: 100 hits among all keys")
def test_digest_of_a_prefix(benchmark: BenchmarkFixture, big: Engine) -> None:
    """`HASH prefix`: no tree helps here, it reads what is under the prefix."""
    assert benchmark(lambda: finish(big.prefix_digest(PREFIX))) != bytes(32)


@pytest.mark.benchmark(group="scan: a slice of a long one")
def test_page_of_a_thousand_keys(benchmark: BenchmarkFixture, big: Engine) -> None:
    """How long a SCAN over everything keeps others waiting at a time."""
    keys, after = benchmark(big.page, b"", b"", 1000)
    assert keys == [key_of(number) for number in range(1000)]
    assert after == keys[-1]
