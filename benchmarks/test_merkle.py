"""The Merkle tree: what it costs each write, and a root after one write among many.

The first group shows upkeep beside the whole write: its ratio is the share of SET that the tree takes.  The digest is
not in it, because a record would need its checksum without a tree as well.
"""

import itertools

import pytest
from conftest import VALUE, key_of
from pytest_benchmark.fixture import BenchmarkFixture

from merklekv.engine.engine import Engine
from merklekv.engine.format import BUCKETS, VERSION_SIZE, make_record
from merklekv.engine.merkle import EMPTY_ROOT, MerkleTree, pack_leaves, term_of, unpack_leaves

BATCH = 1000
ROUNDS = 30
FLOOR = bytes(VERSION_SIZE)


@pytest.mark.benchmark(group="merkle: 1,000 SETs, and the upkeep in them")
def test_whole_writes(benchmark: BenchmarkFixture, small: Engine) -> None:
    keys = [key_of(number) for number in range(BATCH)]

    def write() -> None:
        for key in keys:
            small.set(key, VALUE)
        small.commit()

    benchmark.pedantic(write, rounds=ROUNDS, warmup_rounds=1)
    assert small.live_count == BATCH


@pytest.mark.benchmark(group="merkle: 1,000 SETs, and the upkeep in them")
def test_upkeep_of_leaves_and_counters(benchmark: BenchmarkFixture, small: Engine) -> None:
    """`State._account` does what the write path has written out in place; here from a record to itself and back."""
    keys = [key_of(number) for number in range(BATCH)]
    small.mset([(key, VALUE) for key in keys])
    records = [(key, small.record(key)) for key in keys]
    root = small.root()

    def account() -> None:
        for key, record in records:
            assert record is not None
            small._account(key, record, record)

    benchmark.pedantic(account, rounds=ROUNDS, warmup_rounds=1)
    assert small.root() == root


@pytest.mark.benchmark(group="merkle: root")
def test_root_after_one_write(benchmark: BenchmarkFixture, big: Engine, keys: int) -> None:
    """What HASH answers: one inner node and the root are computed anew, whatever the number of keys."""
    roots = [big.root()]
    numbers = itertools.count()

    def write() -> None:
        big.set(key_of(next(numbers) % keys), VALUE)

    def root() -> None:
        roots.append(big.root())

    benchmark.pedantic(root, setup=write, rounds=100)
    assert len(set(roots)) == len(roots)
    big.commit()


@pytest.mark.benchmark(group="merkle: root")
def test_root_when_all_is_new(benchmark: BenchmarkFixture, big: Engine) -> None:
    """What the first HASH after a start pays."""
    leaves = [number << 64 | 1 for number in range(BUCKETS)]
    assert benchmark.pedantic(lambda: MerkleTree(leaves).root(FLOOR), rounds=10) != EMPTY_ROOT


@pytest.mark.benchmark(group="merkle: leaves")
def test_pack_and_unpack_all_leaves(benchmark: BenchmarkFixture) -> None:
    term = term_of(make_record(b"key", FLOOR, 0, VALUE))
    leaves = [term + number for number in range(BUCKETS)]
    assert benchmark.pedantic(lambda: unpack_leaves(pack_leaves(leaves)), rounds=10) == leaves
