"""Leaves and records: the same after any operations, as numbers and a dictionary say it."""

from __future__ import annotations

import mmap
import random
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.twins import BOTH, REFERENCES, TWINS, outcome
from hypothesis import given, settings
from hypothesis import strategies as st

from merklekv.engine.format import (
    BUCKETS,
    ENTRY,
    INNER_NODES,
    LEAF_SIZE,
    OP_COPY_TO,
    OP_DEL,
    OP_METADATA,
    OP_ORIGIN,
    OP_PURGE,
    OP_REPAIR,
    OP_SET,
    OP_TRUNCATE,
    bucket_of,
)
from merklekv.engine.log.segment import RECORD_PLACE
from merklekv.engine.merkle import COUNT_MASK, LEAVES_PER_INNER, MANY_LEAVES, NO_LEAVES
from merklekv.net.protocol.resp import Push

# -- leaves ------------------------------------------------------------------------------------------------------------

PLACES = [0, 1, 255, 256, 65279, 65280, BUCKETS - 1]
SUMS = [0, 1, 5, 2**63, 2**64 - 1, 2**64, 2**127 + 2**63, 2**128 - 2**64, 2**128 - 1]
sums = st.sampled_from(SUMS) | st.integers(0, 2**128 - 1)
moves = st.tuples(st.just("move"), st.sampled_from(PLACES), sums, st.integers(0, 3), st.booleans())
packings = st.tuples(st.just("pack"), st.sampled_from([0, 1, 255]))
loads = st.tuples(st.just("load"), st.sampled_from([0, 1, 255]), sums, st.integers(0, 2**64 - 1))
fillings = st.tuples(st.just("fill"), st.sampled_from([0, 255]), st.integers(MANY_LEAVES - 1, MANY_LEAVES + 1), sums)
merges = st.tuples(st.just("merge"), st.lists(st.tuples(st.sampled_from(PLACES), sums, st.integers(0, 3)), max_size=5))


class Pair:
    """The reference and the twin, which are told the same."""

    def __init__(self) -> None:
        self.leaves = [module.Leaves() for module in BOTH]

    def move(self, bucket: int, total: int, count: int, goes: bool) -> None:
        """What goes is of a record that has come: only in between a leaf is below zero."""
        for sign in (-1, 1) if goes else (1,):
            for leaves in self.leaves:
                leaves.move(bucket, sign * total, sign * count)

    def fill(self, node: int, count: int, total: int) -> None:
        for bucket in range(node * LEAVES_PER_INNER, node * LEAVES_PER_INNER + count):
            self.move(bucket, total, 1, False)

    def pack(self, node: int) -> None:
        packed = [bytearray(NO_LEAVES) for _ in BOTH]
        for leaves, target in zip(self.leaves, packed, strict=True):
            first = node * LEAVES_PER_INNER
            for number in range(LEAVES_PER_INNER):  # what did not change is up to date already
                if not leaves.changed[first + number]:
                    at = number * LEAF_SIZE
                    target[at : at + LEAF_SIZE] = leaves.leaf(first + number).to_bytes(LEAF_SIZE, "big")
        counts = [leaves.pack(node, target) for leaves, target in zip(self.leaves, packed, strict=True)]
        assert counts[1] == counts[0]
        assert packed[1] == packed[0]

    def load(self, node: int, total: int, count: int) -> None:
        leaf = total.to_bytes(16, "big") + count.to_bytes(8, "big")
        packed = (leaf + bytes(LEAF_SIZE)) * (LEAVES_PER_INNER // 2)
        for leaves in self.leaves:
            leaves.load(node, packed)

    def merge(self, changes: list[tuple[int, int, int]]) -> None:
        """Adds what may be below zero: first taken away, then put back."""
        for sign in (-1, 1):
            others = [module.Leaves() for module in BOTH]
            for other in others:
                for bucket, total, count in changes:
                    other.move(bucket, sign * total, sign * count)
            for leaves, other in zip(self.leaves, others, strict=True):
                leaves.merge(other)

    def compare(self) -> None:
        one, other = self.leaves
        assert bytes(other.changed) == bytes(one.changed)
        for bucket in PLACES:
            assert other.leaf(bucket) == one.leaf(bucket)
            assert type(other.leaf(bucket)) is int


@settings(max_examples=40)
@given(st.lists(moves | packings | loads | fillings | merges, max_size=12))
def test_leaves_are_the_same_numbers(steps: list[tuple[Any, ...]]) -> None:
    pair = Pair()
    for verb, *arguments in steps:
        getattr(pair, verb)(*arguments)
        pair.compare()
    for node in (0, 1, 255):
        pair.pack(node)


def test_what_is_below_zero_on_the_way_is_right_in_the_end() -> None:
    """A sum and a count are reduced apart, so a carry of one never reaches the other."""
    for module in BOTH:
        leaves = module.Leaves()
        leaves.move(7, -5, -2)
        leaves.move(7, 2**128 + 8, 3)
        assert leaves.leaf(7) == 3 << 64 | 1
        leaves.move(7, -3, -1)
        assert leaves.leaf(7) == 0


def test_a_count_wraps_without_touching_the_sum() -> None:
    """As of a damaged leaf."""
    for module in BOTH:
        for many in (0, MANY_LEAVES + 1):
            leaves, packed = module.Leaves(), bytearray(NO_LEAVES)
            leaves.load(0, COUNT_MASK.to_bytes(LEAF_SIZE, "big") * LEAVES_PER_INNER)
            for bucket in (3, *range(10, 10 + many)):
                leaves.move(bucket, 5, 1)
            assert leaves.leaf(3) == 5 << 64
            leaves.pack(0, packed)
            assert int.from_bytes(packed[3 * LEAF_SIZE : 4 * LEAF_SIZE], "big") == 5 << 64


def test_a_sum_wraps_without_touching_the_count() -> None:
    for module in BOTH:
        leaves = module.Leaves()
        for _ in range(2):
            leaves.move(0, 2**128 - 1, 1)
        assert leaves.leaf(0) == (2**128 - 2) << 64 | 2
        leaves.load(0, (b"\xff" * LEAF_SIZE) + bytes(LEAF_SIZE) * (LEAVES_PER_INNER - 1))
        assert leaves.leaf(0) & COUNT_MASK == COUNT_MASK
        assert leaves.leaf(1) == 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("move", (BUCKETS, 1, 1)),
        ("move", (2**70, 1, 1)),
        ("move", (0, None, 1)),
        ("move", (0, "1", 1)),
        ("move", (0, 1, None)),
        ("leaf", (BUCKETS,)),
        ("leaf", (None,)),
        ("load", (256, NO_LEAVES)),
        ("load", (0, None)),
        ("load", (0, "text")),
        ("pack", ("0", bytearray(NO_LEAVES))),
        ("merge", (None,)),
        ("merge", (5,)),
    ],
)
def test_leaves_refuse_what_is_wrong(name: str, arguments: tuple[Any, ...]) -> None:
    for module in BOTH:
        assert outcome(getattr(module.Leaves(), name), *arguments)[0] == "error"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("move", (-1, 1, 1)),
        ("move", (0, 1.5, 1)),
        ("move", (0, 1, 2**70)),
        ("leaf", (-1,)),
        ("load", (-1, NO_LEAVES)),
        ("load", (0, b"")),
        ("load", (0, NO_LEAVES + b"x")),
        ("load", (0, bytearray(NO_LEAVES))),
        ("pack", (256, bytearray(NO_LEAVES))),
        ("pack", (-1, bytearray(NO_LEAVES))),
        ("pack", (0, bytearray())),
        ("pack", (0, NO_LEAVES)),
        ("pack", (0, None)),
    ],
)
def test_leaves_of_the_core_survive_what_never_comes(name: str, arguments: tuple[Any, ...]) -> None:
    """Here the two differ: one may refuse what the other takes."""
    outcome(getattr(TWINS.Leaves(), name), *arguments)


pairs = st.lists(st.tuples(st.binary(max_size=2), st.binary(max_size=60)), max_size=9)
some_leaves = st.lists(st.sampled_from([0, 1, 2**63, 2**64 - 1]), min_size=3, max_size=3)


@given(st.lists(st.tuples(pairs, st.booleans()), max_size=3), some_leaves)
def test_packed_leaves_are_the_same_numbers(
    steps: list[tuple[list[tuple[bytes, bytes]], bool]], leaf: list[int]
) -> None:
    one = b"".join(part.to_bytes(8, "big") for part in leaf)
    both = [{node: bytearray(one * LEAVES_PER_INNER) for node in range(INNER_NODES)} for _ in BOTH]
    for counted, goes in steps:
        for module, leaves in zip(BOTH, both, strict=True):
            module.count_each(leaves, counted, goes)
        assert both[1] == both[0]


@pytest.mark.parametrize("wrong", [None, 5, [(b"k",)], [(b"k", None)], [(None, b"r" * 41)], [("k", b"r")], [None]])
def test_what_is_no_record_is_not_counted(wrong: Any) -> None:
    for module in BOTH:
        leaves = {node: bytearray(NO_LEAVES) for node in range(INNER_NODES)}
        assert outcome(module.count_each, leaves, wrong, False)[0] == "error"
        assert outcome(module.count_each, {}, [(b"k", b"r" * 41)], False) == ("error", KeyError)


@pytest.mark.parametrize("packed", [NO_LEAVES, bytearray(5), bytearray(NO_LEAVES + b"x"), None])
def test_the_core_refuses_leaves_of_a_wrong_kind(packed: Any) -> None:
    found = outcome(TWINS.count_each, dict.fromkeys(range(INNER_NODES), packed), [(b"k", b"")], False)
    assert TWINS is REFERENCES or found == ("error", ValueError)


# -- the log ---------------------------------------------------------------------------------------------------------

entries = st.builds(
    lambda op, key, record, cut: (ENTRY.pack(op, len(key), len(record)) + key + record)[: cut or None],
    st.sampled_from([OP_SET, OP_DEL, OP_COPY_TO, OP_TRUNCATE, OP_ORIGIN, OP_METADATA, OP_PURGE, OP_REPAIR, 0, 63, 127])
    | st.integers(0, 255),
    st.binary(max_size=3),
    st.binary(max_size=5),
    st.sampled_from([0] * 20 + [1, 6, 7, 8]),
)


@given(st.lists(entries, max_size=8).map(b"".join) | st.binary(max_size=40), st.integers(0, 9), st.integers(0, 9))
def test_the_places_of_records_are_the_same(data: bytes, before: int, behind: int) -> None:
    whole = b"x" * before + data + b"y" * behind
    noted = []
    for module in BOTH:
        places = module.Records()
        result = outcome(module.note_each, whole, before, before + len(data), 3, places)
        noted.append((result, list(places.items())))
        for _, place in places.items():
            index, start, size = RECORD_PLACE.unpack(place)
            assert (index, start >= before, start + size <= before + len(data)) == (3, True, True)
    assert noted[1] == noted[0]


def test_places_are_found_in_a_map(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(ENTRY.pack(OP_SET, 3, 6) + b"keyrecord")
    for module in BOTH:
        with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            places = module.Records()
            assert module.note_each(data, 0, len(data), 65535, places) == []
            assert dict(places.items()) == {b"key": RECORD_PLACE.pack(65535, 10, 6)}
            assert outcome(module.note_each, data, 0, len(data), 65536, places)[0] == "error"


@pytest.mark.parametrize("data", [None, "text", 5, [b""]])
@pytest.mark.parametrize("bounds", [(0, 7), (-1, 7), (0, 2**62), (2**62, 2**63 - 1), (0, None)])
def test_what_has_no_places_is_refused(data: Any, bounds: tuple[int, int]) -> None:
    for module in BOTH:
        assert outcome(module.note_each, data, *bounds, 0, module.Records())[0] == "error"


@pytest.mark.parametrize("bounds", [(-1, 7), (-(2**63), 1), (0, 2**62), (2**62, 2**63 - 1)])
def test_the_core_looks_nowhere_else(bounds: tuple[int, int]) -> None:
    assert outcome(TWINS.note_each, bytes(20), *bounds, 0, TWINS.Records())[0] == "error"


# -- records -----------------------------------------------------------------------------------------------------------

keys = st.integers(0, 30).map(lambda number: b"k%d" % number) | st.binary(max_size=3)
records = st.binary(max_size=6)


@given(st.lists(st.tuples(keys, records), max_size=80), st.lists(keys, max_size=10))
def test_records_are_a_dictionary(pairs: list[tuple[bytes, bytes]], others: list[bytes]) -> None:
    plain: dict[bytes, bytes] = {}
    both = [module.Records() for module in BOTH]
    for key, record in pairs:
        plain[key] = record
        for table in both:
            table[key] = record
    for table in both:
        assert list(table.items()) == list(plain.items())
        assert list(table) == list(plain)
        assert (len(table), bool(table)) == (len(plain), bool(plain))
        for key in [*plain, *others]:
            assert table.get(key) == plain.get(key)
            assert table.get(key, "none") == plain.get(key, "none")
            assert (key in table) == (key in plain)
            assert outcome(table.__getitem__, key) == outcome(plain.__getitem__, key)


def test_records_grow() -> None:
    plain = {b"%d" % number: b"%d" % -number for number in range(50_000)}
    for module in BOTH:
        table = module.Records()
        for key, record in plain.items():
            table[key] = record
        assert dict(table.items()) == plain
        assert all(table.get(key) is record for key, record in plain.items())
        assert b"none" not in table


ORDERINGS = {
    "rising": lambda number: b"key:%06d" % number,
    "mixed": lambda number: b"%d" % (number * 7919 % 1_000_003),
    "a long beginning": lambda number: b"x" * 400 + b"%d" % (number * 7919 % 1_000_003),
    "prefixes of each other": lambda number: b"\x00" * (number % 500 + 1) + b"%d" % (number // 500),
    "the same eight bytes": lambda number: b"%d:" % (number % 3) + b"same part" + b"%d" % (number * 7919 % 1_000_003),
}


@pytest.mark.parametrize("key_of", ORDERINGS.values(), ids=ORDERINGS)
def test_records_in_order_however_many_came(key_of: Callable[[int], bytes]) -> None:
    """Looked at when runs have just become whole, or are about to."""
    size, long_size = 2048, 16384
    looks = {1, 2, 100, size - 1, size, size + 1, 5 * size + 7, long_size - 1, long_size, long_size + 1, 2 * long_size}
    both = [module.Records() for module in BOTH]
    plain: list[bytes] = []
    chance = random.Random(1)
    for number in range(2 * long_size + size + 9):
        plain.append(key_of(number))
        for table in both:
            table[plain[-1]] = table[plain[number // 2]] = b"%d" % number
        if len(plain) in looks or number == 2 * long_size + size:
            ordered = sorted(plain)
            for table in both:
                settle(table)
                items = table.items_from(b"", None, len(plain) + 1)
                assert [key for key, _ in items] == ordered
                assert dict(items) == dict(table.items())
                for _ in range(20):
                    low, end = (
                        chance.choice(plain)[: chance.randrange(420)],
                        chance.choice([None, chance.choice(plain)]),
                    )
                    limit = chance.choice([0, 1, 10, 1000])
                    page = ordered[bisect_left(ordered, low) :][:limit]
                    found = [key for key, _ in table.items_from(low, end, limit)]
                    assert found == [key for key in page if end is None or key < end]


@given(st.lists(keys | st.none(), max_size=80), keys, st.none() | keys, st.integers(0, 90))
def test_pages_and_buckets_are_the_same(writes: list[bytes | None], low: bytes, end: bytes | None, limit: int) -> None:
    """A None among the writes is a reader."""
    reference, twin = [module.Records() for module in BOTH]
    for key in [*writes, None]:
        if key is not None:
            reference[key] = twin[key] = b"%d" % len(reference)
            continue
        settle(reference)
        assert twin.prepare()
        assert twin.group()
        assert twin.items_from(low, end, limit) == reference.items_from(low, end, limit)
        assert twin.items_from(b"", None, 100) == sorted(reference.items())
        for bucket in {0, *map(bucket_of, reference)}:
            assert sorted(twin.bucket(bucket)) == sorted(reference.bucket(bucket))


def settle(table: Any) -> None:
    while not (table.prepare() and table.group()):
        pass


class Colliding(bytes):
    """Bytes with a hash of their own: the core has to go by that of the bytes, or it would have a key twice."""

    def __hash__(self) -> int:
        return 7


def test_a_key_of_a_subclass_is_its_bytes() -> None:
    table = TWINS.Records()
    table[Push(b"k")] = Push(b"1")
    table[b"k"] = b"2"
    if not issubclass(TWINS.Records, dict):
        table[Colliding(b"k")] = b"3"
        assert table[Colliding(b"k")] == b"3"
        assert [type(part) for pair in table.items() for part in pair] == [bytes, bytes]
    assert list(table) == [b"k"]


def test_the_core_s_records_may_grow_under_a_loop() -> None:
    """A dictionary refuses to go on."""
    table = TWINS.Records()
    for number in range(50):
        table[b"%d" % number] = b""
    found = []

    def add() -> None:
        for key, _ in table.items():
            found.append(key)
            if len(found) < 10_000:
                table[b"x%d" % len(found)] = b""

    assert outcome(add) in (("result", None), ("error", RuntimeError))
    assert found[:50] == [b"%d" % number for number in range(len(found[:50]))]


@pytest.mark.parametrize("wrong", [None, "text", 5, [], bytearray(b"k"), memoryview(b"k"), (b"k",)])
def test_records_of_the_core_take_bytes_only(wrong: Any) -> None:
    table = TWINS.Records()
    for call in (table.get, table.__getitem__, table.__contains__):
        outcome(call, wrong)
    if not isinstance(table, dict):
        assert outcome(table.__setitem__, wrong, b"record") == ("error", TypeError)
        assert outcome(table.__setitem__, b"key", wrong) == ("error", TypeError)
        assert len(table) == 0


@pytest.mark.parametrize("wrong", [None, "text", 5, -1, 2**16, 2**70])
def test_records_of_the_core_survive_what_never_comes(wrong: Any) -> None:
    table = TWINS.Records()
    table[b"k"] = b""
    outcome(table.bucket, wrong)
    outcome(table.items_from, wrong, None, 1)
    outcome(table.items_from, b"", wrong, 1)
    outcome(table.items_from, b"", None, wrong)
