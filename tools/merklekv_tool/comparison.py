"""Finds the records in which two sources differ.

Both Merkle trees are compared, and then only the heads of the records in the buckets that differ: the cost follows the
difference, beside 1.5 MiB of leaves from each source. No value is read, since a digest is enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from merklekv.engine.format import BUCKETS, LEAF_SIZE
from merklekv.engine.record import version_of
from merklekv_tool.output import progress
from merklekv_tool.source.source import Pair, Source


class Difference(NamedTuple):
    """A key on which two sources differ, with the head of its record in each."""

    kind: str  # only_a, only_b, newer_a, newer_b; conflict: one version with two contents
    key: bytes
    a: bytes | None
    b: bytes | None


def differences(a: Source, b: Source) -> Iterator[Difference]:
    """Every difference, bucket by bucket."""
    with progress("compare", prints=True) as update:
        leaves = b"".join(a.leaves()), b"".join(b.leaves())
        buckets = [
            bucket
            for bucket in range(BUCKETS)
            if len({one[bucket * LEAF_SIZE : (bucket + 1) * LEAF_SIZE] for one in leaves}) > 1
        ]
        for done, pairs in enumerate(zip(a.heads(buckets), b.heads(buckets), strict=True), 1):
            yield from compare(*pairs)
            update(done, len(buckets))


def compare(pairs_a: list[Pair], pairs_b: list[Pair]) -> Iterator[Difference]:
    """The differences between the (key, head) pairs of one bucket in two sources."""
    heads_a, heads_b = dict(pairs_a), dict(pairs_b)
    for key in sorted(heads_a.keys() | heads_b.keys()):
        a, b = heads_a.get(key), heads_b.get(key)
        if a != b:
            yield Difference(_kind(a, b), key, a, b)


def _kind(a: bytes | None, b: bytes | None) -> str:
    if b is None:
        return "only_a"
    if a is None:
        return "only_b"
    if version_of(a) == version_of(b):
        return "conflict"
    return "newer_a" if a > b else "newer_b"
