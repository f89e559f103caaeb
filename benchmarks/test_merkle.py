"""The Merkle tree: what it costs each write, and a root after one write among many.

With MERKLEKV_PURE=1 the first two groups run the same writes with the tree and without it, in pairs, and print the
share that it takes: of a write in the engine, and of a SET over TCP, which is the same upkeep in a larger whole.  Both
count the time of the processor.  The digest is not in it, because a record would need its checksum without a tree as
well.
"""

import itertools
import random
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from data_sets import ROOMY, VALUE, fill, key_of
from nodes import make_node
from pytest_benchmark.fixture import BenchmarkFixture
from treeless import make_treeless_node, without_upkeep

from merklekv.core import IMPLEMENTATION
from merklekv.engine.engine import Engine
from merklekv.engine.format import BUCKETS
from merklekv.engine.merkle import EMPTY_ROOT, MerkleTree, pack_leaves, term_of, unpack_leaves
from merklekv.engine.record import VERSION_SIZE, make_record
from merklekv.harness.process import Node
from merklekv.net.client import Client

BATCH = 1000
PAIRS = 200
SERVED_PAIRS = 20
SPREAD = 100_000  # keys: a few that are written again and again would stay in the processor's cache, with their leaves
TRUNCATION = bytes(VERSION_SIZE)


if IMPLEMENTATION == "pure":  # nothing can take the place of the leaves in the core

    @pytest.mark.parametrize("row", [1, 50], ids=["one at a time", "in rows of 50"])
    @pytest.mark.benchmark(group="merkle: 1,000 writes, and the upkeep's share in them")
    def test_share_of_upkeep(
        row: int, benchmark: BenchmarkFixture, small: Engine, disk: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The same writes with and without the tree, in pairs: a machine that is slow for a while is so for both."""
        with without_upkeep():
            bare = Engine(disk / f"bare-{row}", durability="never", memtable_size=ROOMY, checkpoint="manual")
        for engine in (small, bare):
            fill(engine, list(range(SPREAD)))
        spent: dict[Engine, list[float]] = {small: [], bare: []}
        chance = random.Random(row)
        rows: list[list[tuple[bytes, bytes, bytes]]] = []

        def choose() -> None:
            requests = [(b"SET", key_of(chance.randrange(SPREAD)), VALUE) for _ in range(BATCH)]
            rows[:] = [requests[at : at + row] for at in range(0, BATCH, row)]
            write(bare)

        def write(engine: Engine) -> None:
            began = time.thread_time()  # not what other processes take
            for one in rows:
                engine.set_batch(one)
            engine.commit()
            spent[engine].append(time.thread_time() - began)

        benchmark.pedantic(write, args=(small,), setup=choose, rounds=PAIRS, warmup_rounds=1)
        shares = [1 - less / more for more, less in zip(spent[small], spent[bare], strict=True)]
        benchmark.extra_info["upkeep_share"] = share = statistics.median(shares)
        upkeep_us = (statistics.median(spent[small]) - statistics.median(spent[bare])) / BATCH * 1e6
        with capsys.disabled():
            print(f"\n  upkeep of the tree, rows of {row}: {share:.1%} of a write in the engine, {upkeep_us:.2f} us")
        assert small.live_count == bare.live_count == SPREAD
        assert small.root() != EMPTY_ROOT == bare.root()
        bare.close()

    @pytest.mark.parametrize("durability", ["always", "everysec"])
    @pytest.mark.benchmark(group="merkle: SETs of 50 clients over TCP, and the upkeep's share in them")
    def test_share_of_upkeep_over_tcp(
        durability: str, benchmark: BenchmarkFixture, disk: Path, keys: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The same of whole nodes: what their processes take for a SET, of which the engine is a part."""
        if shutil.which("redis-benchmark") is None:
            pytest.fail("redis-benchmark is not installed: apt-get install redis-tools")
        requests = max(keys // 20, BATCH)
        with (
            make_node(disk / f"with-{durability}", durability=durability) as node,
            make_treeless_node(disk / f"without-{durability}", durability=durability) as bare,
        ):
            spent: dict[Node, list[float]] = {node: [], bare: []}
            words = ["-h", "127.0.0.1", "-c", "50", "-r", str(SPREAD), "-d", str(len(VALUE)), "-n", str(requests), "-q"]

            def write(server: Node) -> None:
                process = psutil.Process(server.pid)
                before = process.cpu_times()
                command = ["redis-benchmark", "-p", str(server.port), *words, "-t", "set"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
                after = process.cpu_times()
                spent[server].append(after.user + after.system - before.user - before.system)

            benchmark.pedantic(write, args=(node,), setup=lambda: write(bare), rounds=SERVED_PAIRS, warmup_rounds=1)
            with Client("127.0.0.1", node.port) as client, Client("127.0.0.1", bare.port) as other:
                assert all(one.call(b"DBSIZE") in range(1, SPREAD + 1) for one in (client, other))
                assert client.call(b"HASH") != other.call(b"HASH") == EMPTY_ROOT.hex().encode()
        if not benchmark.enabled:
            return  # a single small run is nothing to the clock, which ticks a hundred times a second
        costs = [sum(spent[server][1:]) / SERVED_PAIRS / requests * 1e6 for server in (node, bare)]
        benchmark.extra_info["upkeep_share"] = share = 1 - costs[1] / costs[0]
        with capsys.disabled():
            print(f"\n  upkeep of the tree, {durability}: {share:.1%} of a SET over TCP, {costs[0]:.1f} us of CPU")


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
    leaves = {node: pack_leaves([number << 64 | 1 for number in range(256)]) for node in range(256)}
    assert benchmark.pedantic(lambda: MerkleTree(leaves).root(TRUNCATION), rounds=10) != EMPTY_ROOT


@pytest.mark.benchmark(group="merkle: leaves")
def test_pack_and_unpack_all_leaves(benchmark: BenchmarkFixture) -> None:
    term = term_of(make_record(b"key", TRUNCATION, VALUE))
    leaves = [term + number for number in range(BUCKETS)]
    assert benchmark.pedantic(lambda: unpack_leaves(pack_leaves(leaves)), rounds=10) == leaves
