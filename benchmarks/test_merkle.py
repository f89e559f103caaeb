"""The Merkle tree: what it costs each write, and a root after one write among many.

The first group shows upkeep beside the whole write: its ratio is the share of SET that the tree takes.  The digest is
not in it, because a record would need its checksum without a tree as well.
"""

import itertools

import pytest
from conftest import VALUE, key_of
from pytest_benchmark.fixture import BenchmarkFixture
from xxhash import xxh3_64_intdigest

from merklekv.engine.engine import Engine
from merklekv.engine.format import BUCKETS, DIGEST_AT, VALUE_AT, VERSION_SIZE, bucket_of, make_record
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
def test_upkeep_of_leaves(benchmark: BenchmarkFixture) -> None:
    """What the write path (`State._put`) does for the tree, written out as there, to keys that it moves to and fro."""
    keys = [key_of(number) for number in range(BATCH)]
    one, other = ([make_record(key, version, 0, VALUE) for key in keys] for version in (FLOOR, b"\1" * VERSION_SIZE))
    tree = MerkleTree()
    for key, record in zip(keys, one, strict=True):
        tree.leaves[bucket_of(key)] += term_of(record)
    root = tree.root(FLOOR)

    def move(before: list[bytes], after: list[bytes]) -> None:
        digests = [int.from_bytes(record[DIGEST_AT:VALUE_AT], "big") for record in after]  # the write path has these
        for key, old, digest in zip(keys, before, digests, strict=True):
            bucket = xxh3_64_intdigest(key) >> 48
            tree.dirty.add(bucket >> 8)
            tree.leaves[bucket] += (digest - int.from_bytes(old[DIGEST_AT:VALUE_AT], "big")) << 64

    turns = itertools.cycle([(one, other), (other, one)])
    benchmark.pedantic(move, setup=lambda: (next(turns), {}), rounds=ROUNDS, warmup_rounds=1)
    before, after = next(turns)
    if before is other:
        assert tree.root(FLOOR) != root
        move(before, after)
    assert tree.root(FLOOR) == root


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
