"""The write path without the tree, to measure what that costs: as an engine, and, when this file is run, as a node.

The tree is replaced, not the write path: what remains of the upkeep adds to one number that is always in the cache.  So
the share that is measured is a little too small.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from nodes import make_node

from merklekv.cli import main
from merklekv.engine.format import BUCKETS, INNER_NODES
from merklekv.engine.merkle import EMPTY_INNER, Leaves, MerkleTree
from merklekv.engine.table import Table
from merklekv.harness.process import Node


class NullLeaves(Leaves):
    """One leaf for all keys."""

    hash_of = staticmethod(len)

    def __init__(self) -> None:
        self.sums, self.counts, self.changed = [0], [0], bytearray(BUCKETS)


class NullTree(MerkleTree):
    """One bucket for all keys, and the root of an empty tree."""

    def __init__(self, leaves: Mapping[int, bytes]) -> None:
        self.leaves = NullLeaves()

    def add(self, key: bytes, record: bytes, sign: int = 1) -> None:
        pass

    def refresh(self, nodes: range) -> int:
        return 0

    def inner_digests(self) -> list[bytes]:
        return [EMPTY_INNER] * INNER_NODES


def make_treeless_node(directory: Path, **settings: str) -> Node:
    """A node with such a tree; its HASH says that it is empty."""
    node = make_node(directory, **settings)
    node.program = [sys.executable, __file__]
    return node


@contextmanager
def without_upkeep() -> Iterator[None]:
    """Engines that are opened meanwhile do nothing for the tree."""
    Table.tree_type = NullTree
    try:
        yield
    finally:
        Table.tree_type = MerkleTree


if __name__ == "__main__":
    with without_upkeep():
        main()
