"""The tree is the sum of its records: canonical, whatever came when, and equal to the plain computation."""

from __future__ import annotations

import random
from unittest import mock

from fixtures import engines
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine import merkle
from merklekv.engine.format import bucket_of
from merklekv.engine.merkle import (
    COUNT_MASK,
    EMPTY_ROOT,
    LEAF_MASK,
    MANY_LEAVES,
    MerkleTree,
    pack_leaves,
    unpack_leaves,
)
from merklekv.engine.verify import reference

TRUNCATION = bytes(24)
names = st.integers(0, 12).map(lambda number: b"k%d" % number)
records = st.dictionaries(
    names, st.tuples(st.none() | st.binary(max_size=4), st.integers(1, 2**60)), min_size=0, max_size=10
).map(lambda drawn: {key: engines.record(key, value, ts) for key, (value, ts) in drawn.items()})


def plain(of: dict[bytes, bytes]) -> reference.Tree:
    tree = reference.Tree()
    for key, record in of.items():
        tree.add(key, record)
    return tree


@given(records, records, st.sampled_from((0, MANY_LEAVES)), st.randoms(use_true_random=False))
def test_any_history_ends_in_the_plain_tree(
    gone: dict[bytes, bytes], kept: dict[bytes, bytes], many: int, chance: random.Random
) -> None:
    """Records that came and went leave nothing behind, in any order of additions and removals."""
    with mock.patch.object(merkle, "MANY_LEAVES", many):  # all leaves of an inner node are packed, or what has changed
        history(gone, kept, chance)


def history(gone: dict[bytes, bytes], kept: dict[bytes, bytes], chance: random.Random) -> None:
    changes = [(key, record, 1) for key, record in kept.items()]
    changes += [(key, record, sign) for key, record in gone.items() for sign in (1, -1)]
    chance.shuffle(changes)
    tree = MerkleTree({})
    for number, (key, record, sign) in enumerate(changes):
        tree.add(key, record, sign)
        if number % 3 == 0:
            tree.root(TRUNCATION)  # inner digests are kept: a change must mark them
    expected = plain(kept)
    assert tree.root(TRUNCATION) == expected.root(TRUNCATION)
    for key in gone | kept:
        bucket = bucket_of(key)
        node, leaf = divmod(bucket, 256)
        assert (
            tree.leaf(bucket) == unpack_leaves(tree.inner_leaves(node))[leaf] == reference.number(expected.leaf(bucket))
        )
        assert kept.get(key) is None or tree.leaf(bucket) & COUNT_MASK
    again = MerkleTree({node: leaves for node in range(256) if any(leaves := tree.inner_leaves(node))})
    assert again.root(TRUNCATION) == tree.root(TRUNCATION)


@given(records)
def test_the_root_tells_sets_and_truncation_versions_apart(one: dict[bytes, bytes]) -> None:
    root = plain(one).root(TRUNCATION)
    assert (root == EMPTY_ROOT) == (not one)
    for key in one:
        less = {other: record for other, record in one.items() if other != key}
        assert plain(less).root(TRUNCATION) != root
        assert plain(one | {key: engines.record(key, b"another", 7)}).root(TRUNCATION) != root
    if one:
        assert plain(one).root(engines.version(1)) != root


@given(records, records, st.integers(0, 256))
def test_a_tree_may_be_brought_up_to_date_in_parts(
    one: dict[bytes, bytes], more: dict[bytes, bytes], middle: int
) -> None:
    tree, whole = MerkleTree({}), MerkleTree({})
    for number, part in enumerate((one, more)):
        for key, record in part.items():
            name = b"%d:%b" % (number, key)
            tree.add(name, record)
            whole.add(name, record)
        tree.refresh(range(middle))
        assert not any(tree.changed[: middle * 256])
    tree.refresh(range(middle, 256))
    assert not any(tree.changed)
    assert tree.root(TRUNCATION) == whole.root(TRUNCATION)


@given(st.lists(st.integers(0, LEAF_MASK), max_size=20))
def test_leaves_pack_and_unpack(leaves: list[int]) -> None:
    assert unpack_leaves(pack_leaves(leaves)) == leaves
    assert pack_leaves([leaf - LEAF_MASK - 1 for leaf in leaves]) == pack_leaves(leaves)  # below zero on the way


def test_a_sum_wraps_without_touching_the_count() -> None:
    top = (LEAF_MASK >> 64 << 64) | 1
    assert unpack_leaves(pack_leaves([top + (1 << 64 | 1)])) == [2]


def test_an_empty_tree_is_zeros() -> None:
    assert MerkleTree({}).root(engines.version(5)) == EMPTY_ROOT == bytes(32)
