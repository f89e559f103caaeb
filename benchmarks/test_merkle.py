"""The Merkle tree: what it costs each write, and a root after one write among many.

The first group runs the same writes with the tree and without it, in pairs, and prints the share that the tree takes of
a write in the engine: what a client waits for is more, so the share in that is less.  The digest is not in it, because
a record would need its checksum without a tree as well.
"""

import ast
import inspect
import itertools
import random
import statistics
import textwrap
import time
from pathlib import Path

import pytest
from conftest import ROOMY, VALUE, fill, key_of
from pytest_benchmark.fixture import BenchmarkFixture

from merklekv.engine import state as state_module
from merklekv.engine.engine import Engine
from merklekv.engine.format import BUCKETS, VERSION_SIZE, make_record
from merklekv.engine.merkle import EMPTY_ROOT, MerkleTree, pack_leaves, term_of, unpack_leaves
from merklekv.engine.state import State

BATCH = 1000
PAIRS = 200
SPREAD = 100_000  # keys: a few that are written again and again would stay in the processor's cache, with their leaves
FLOOR = bytes(VERSION_SIZE)


def without_upkeep() -> type[Engine]:
    """An engine whose write path does nothing for the tree: the source of `State._put` with those statements gone."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(State._put)))
    remover = _Remover()
    code = compile(ast.fix_missing_locations(remover.visit(tree)), "<State._put without the tree>", "exec")
    assert remover.removed == {"bucket", "dirty", "sums", "counts"}, "the write path is written in other words by now"
    names = dict(vars(state_module))
    exec(code, names)
    return type("Treeless", (Engine,), {"_put": names["_put"]})


class _Remover(ast.NodeTransformer):
    """Takes out: naming the bucket, marking its inner node as dirty, moving its leaf."""

    def __init__(self) -> None:
        self.removed: set[str] = set()

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        return self._without(node, ast.unparse(node.targets[0]), "bucket")

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        return self._without(node, ast.unparse(node).partition(".")[0], "dirty")

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt:
        return self._without(node, ast.unparse(node.target).partition("[")[0], "sums", "counts")

    def _without(self, node: ast.stmt, target: str, *names: str) -> ast.stmt:
        if target not in names:
            return node
        self.removed.add(target)
        return ast.Pass()


@pytest.mark.parametrize("row", [1, 50], ids=["one at a time", "in rows of 50"])
@pytest.mark.benchmark(group="merkle: 1,000 writes, and the upkeep's share in them")
def test_share_of_upkeep(
    row: int, benchmark: BenchmarkFixture, small: Engine, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same writes with and without the tree, in pairs: a machine that is slow for a while is so for both."""
    bare = without_upkeep()(disk / f"bare-{row}", durability="never", memtable_size=ROOMY, absorb="manual")
    for engine in (small, bare):
        fill(engine, list(range(SPREAD)))
    spent: dict[Engine, list[float]] = {small: [], bare: []}
    chance = random.Random(row)
    rows: list[list[tuple[None, bytes, bytes]]] = []

    def choose() -> None:
        requests = [(None, key_of(chance.randrange(SPREAD)), VALUE) for _ in range(BATCH)]
        rows[:] = [requests[at : at + row] for at in range(0, BATCH, row)]
        write(bare)

    def write(engine: Engine) -> None:
        began = time.thread_time()  # not what other processes take
        for one in rows:
            engine.set_row(one)
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
