"""Ordered reads of a memtable equal those of a sorted list, however writes and reads take turns."""

from __future__ import annotations

import random
import tracemalloc
from heapq import heappush
from itertools import pairwise

import pytest
from fixtures import engines
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from merklekv.core import REFERENCES
from merklekv.engine import memtable as memtable_module
from merklekv.engine.format import bucket_of
from merklekv.engine.memtable import (
    BLOCK_KEYS,
    EXPIRY_OVERHEAD,
    HALVED_MAX,
    KEY_OVERHEAD,
    SLICE_KEYS,
    Memtable,
    Records,
    charge,
    pack_number,
    prefix_end,
)
from merklekv.engine.record import purge_marker

keys = st.binary(max_size=3).map(lambda tail: b"\x00a\xff"[len(tail) % 3 : len(tail) % 3 + 1] + tail)
prefixes = st.text(alphabet="\x00a\xfe\xff", max_size=3).map(lambda text: text.encode("latin-1"))


@given(prefixes, st.lists(prefixes))
def test_a_prefix_ends_where_its_keys_end(prefix: bytes, others: list[bytes]) -> None:
    end = prefix_end(prefix)
    for key in others:
        assert key.startswith(prefix) == (prefix <= key and (end is None or key < end))


@given(
    st.lists(keys | st.none(), max_size=60),
    keys,
    st.none() | keys,
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(2, 9),
)
def test_keys_come_in_order(
    writes: list[bytes | None], low: bytes, end: bytes | None, limit: int, slice_keys: int, block_keys: int
) -> None:
    """A None among the writes is a reader who prepares one more slice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memtable_module, "SLICE_KEYS", slice_keys)
        patch.setattr(memtable_module, "BLOCK_KEYS", block_keys)
        patch.setattr(memtable_module, "HALVED_MAX", 1 + slice_keys // 3)
        table = Records()
        for key in writes:
            if key is None:
                table.prepare()
            else:
                table[key] = b"x" + key
        while not table.prepare():
            pass
        expected = sorted(item for item in table.items() if item[0] >= low and (end is None or item[0] < end))
        assert table.items_from(low, end, limit) == expected[:limit]
        assert sorted(table.items()) == table.items_from(b"", None, 100)


@given(st.lists(st.integers(0, 40) | st.none(), max_size=60), st.integers(1, 9))
def test_buckets_have_each_key_once(writes: list[int | None], slice_keys: int) -> None:
    """A None among the writes is a reader who prepares one more slice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memtable_module, "SLICE_KEYS", slice_keys)
        table = Records()
        for number in writes:
            if number is None:
                table.group()
            else:
                table[b"%d" % number] = b"x"
        while not table.group():
            pass
        for bucket in {bucket_of(key) for key in table}:
            assert sorted(table.bucket(bucket)) == sorted(key for key in table if bucket_of(key) == bucket)


def test_a_slice_halves_so_many_blocks_and_no_more() -> None:
    table = REFERENCES["Records"]()
    keys = [b"%d" % number for number in range(BLOCK_KEYS * 4 * HALVED_MAX)]
    random.Random(1).shuffle(keys)
    for key in keys:
        table[key] = b"x"
    counts = [1]
    while not table.prepare():
        counts.append(len(table._blocks))
    assert max(after - before for before, after in pairwise(counts)) == HALVED_MAX
    assert table.items_from(b"", None, len(keys)) == sorted(table.items())


def test_a_slice_and_a_block_are_bounded() -> None:
    table = REFERENCES["Records"]()
    for number in range(SLICE_KEYS):
        table[b"%d" % number] = b"x"
    assert table.prepare()
    assert table.group()
    for number in range(SLICE_KEYS, 2 * SLICE_KEYS + 1):
        table[b"%d" % number] = b"x"
    assert not table.prepare()
    assert not table.group()
    assert table.prepare()
    assert table.group()
    assert max(map(len, table._blocks)) <= BLOCK_KEYS


def test_the_memory_of_an_expiry_does_not_depend_on_the_key() -> None:
    count = 5000
    keys = [b"%0400d" % number for number in range(count)]
    for heap in ("waiting", "passed"):
        table = Memtable(0)
        for key in keys:
            table.records[key] = b""
        tracemalloc.start()
        for key in keys:
            table.expiries.new.append(key)
        while table.expiries.new:
            for number, key in table.expiries.take_new(7):
                heappush(getattr(table.expiries, heap), xxh3_128_digest(key)[:14] + pack_number(number))
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sorted(map(table.expiries.key_of, getattr(table.expiries, heap))) == keys
        assert used <= EXPIRY_OVERHEAD * count
        assert table.charged == table.size + EXPIRY_OVERHEAD * count


def test_a_truncation_version_takes_what_is_below_it_and_its_charge() -> None:
    table = Memtable(0)
    for number in range(20):
        key = b"k%d" % number
        table.records[key] = engines.record(key, b"v", number)
        table.size += charge(key, table.records[key])
    table.records.prepare()
    table.drop_below(engines.version(15), hides=False)
    assert sorted(table) == [b"k15", b"k16", b"k17", b"k18", b"k19"]
    assert table.size == 5 * (3 + 42 + KEY_OVERHEAD)
    assert table.records.prepare()
    assert [key for key, _ in table.records.items_from(b"k17", None, 10)] == [b"k17", b"k18", b"k19"]
    table.drop_below(engines.version(17), hides=True)
    assert table.records[b"k15"] == table.records[b"k16"] == purge_marker(engines.version(17))
    assert table.size == 5 * (3 + 41 + KEY_OVERHEAD) + 3
