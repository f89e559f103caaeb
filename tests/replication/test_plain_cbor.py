"""CBOR from untrusted senders: its cost is bounded before anything is built, and only plain types come out."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine.record import HEAD_SIZE
from merklekv.replication.cluster.members import Members
from merklekv.replication.plain_cbor import (
    ITEMS_MAX,
    NESTING_MAX,
    Malformed,
    decode_map,
    decode_plain,
    require_few_items,
)
from merklekv.replication.stream.event import MESSAGE_BYTES_MAX, EventRefused, Reason, decode_message
from merklekv.replication.stream.outbox import BATCH_BYTES
from merklekv.replication.sync import messages
from merklekv.replication.sync.messages import BATCH_RECORDS, TABLE_BYTES_MAX, _dictionary, pack, unpack

MEMORY_MAX = 8 << 20  # of any message that is refused for what it would become

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text() | st.binary(), inner, max_size=5),
    max_leaves=20,
)


def item_count(item: Any) -> int:
    if isinstance(item, list):
        return 1 + sum(map(item_count, item))
    if isinstance(item, dict):
        return 1 + sum(item_count(key) + item_count(value) for key, value in item.items())
    return 1


def array(count: int, item: bytes) -> bytes:
    return b"\x9a" + count.to_bytes(4, "big") + item * count


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(plain)
def test_the_walk_counts_the_items_that_the_decoder_makes(item: Any) -> None:
    data = cbor2.dumps(item)
    count = item_count(item)
    require_few_items(data, count)
    with pytest.raises(ValueError, match="more than"):
        require_few_items(data, count - 1)


@given(plain)
def test_plain_items_come_back(item: Any) -> None:
    data = cbor2.dumps(item)
    nested = max((data.count(head) for head in b"\x81\x82\x83\x84\x85\xa1\xa2\xa3\xa4\xa5"), default=0)
    if nested < NESTING_MAX // 2:
        assert decode_plain(data) == (item, 0)


@given(st.binary(max_size=200))
def test_the_walk_ends_whatever_the_bytes(data: bytes) -> None:
    require_few_items(data, len(data))


def test_what_nodes_write_has_fewer_items() -> None:
    event = {"op": "del", "key": "k", "val": None, "ts": 1 << 60, "op_id": bytes(16)}
    assert BATCH_BYTES // len(cbor2.dumps(event)) * item_count(event) < ITEMS_MAX, "a batch of the smallest events"
    smallest_record = 1 + HEAD_SIZE
    assert 2 * (messages.BATCH_BYTES // smallest_record + BATCH_RECORDS) < ITEMS_MAX, "keys and records of an answer"
    assert 4 * BATCH_RECORDS + BATCH_RECORDS < ITEMS_MAX, "records to merge, stale records, keys that are wanted"


def test_a_message_may_have_so_many_items_and_not_one_more() -> None:
    item, left = decode_plain(array(ITEMS_MAX - 1, b"\x18\x20"))
    assert (len(item), left) == (ITEMS_MAX - 1, 0)
    with pytest.raises(ValueError, match="more than"):
        decode_plain(array(ITEMS_MAX, b"\x18\x20"))


@pytest.mark.parametrize("item", [b"\xa0", b"\x80", b"\x40", b"\x60", b"\x01", b"\x20", b"\xe0", b"\x61a", b"\x81\x80"])
def test_a_message_of_many_small_items_costs_no_more_than_its_bytes(item: bytes) -> None:
    bomb = b"\xa2\x61v\x01\x61x" + array((2 << 20) // len(item), item)

    def refused() -> None:
        with pytest.raises(EventRefused) as refusal:
            decode_message(bomb)
        assert refusal.value.reason is Reason.MALFORMED
        with pytest.raises(Malformed, match="more than 131072 items"):
            decode_map(bomb)

    assert peak_of(refused) < MEMORY_MAX


def test_a_batch_of_many_small_events_is_bounded_too() -> None:
    tiny = b"\xa1" + cbor2.dumps("op") + cbor2.dumps("set")
    bomb = b"\xa4" + b"".join(map(cbor2.dumps, ("v", 1, "src", "evil", "seq", 1, "events"))) + array(1 << 20, tiny)
    with pytest.raises(EventRefused, match="more than 131072 items"):
        decode_message(bomb)


def test_a_message_is_as_large_as_the_limit_and_not_a_byte_larger() -> None:
    fields = {"v": 1, "op": "set", "key": "k", "ts": 5, "src": "a", "op_id": bytes(16)}
    room = MESSAGE_BYTES_MAX - len(cbor2.dumps(fields | {"val": bytes(1 << 20)})) + (1 << 20)
    largest = cbor2.dumps(fields | {"val": bytes(room)})
    assert len(largest) == MESSAGE_BYTES_MAX
    assert decode_message(largest).event_count == 1
    with pytest.raises(EventRefused) as refusal:
        decode_message(cbor2.dumps(fields | {"val": bytes(room + 1)}))
    assert refusal.value.reason is Reason.SIZE


@pytest.mark.parametrize("size", [head + b"\x7f" * 8 for head in (b"\x5b", b"\x7b", b"\x9b", b"\xbb")])
def test_a_length_that_is_declared_and_not_there_costs_nothing(size: bytes) -> None:
    def refused() -> None:
        with pytest.raises(EventRefused):
            decode_message(b"\xa1\x61x" + size + b"\x61y")

    assert peak_of(refused) < 1 << 20


TAGGED = {
    "date": b"\xc0\x61a",
    "epoch": b"\xc1\xfb\x7f\xf0\0\0\0\0\0\0",
    "bignum": b"\xc2\x49" + b"\xff" * 9,
    "negative bignum": b"\xc3\x49" + b"\xff" * 9,
    "decimal": b"\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01",
    "bigfloat": b"\xc5\x82\x1a\x3f\xff\xff\xff\x01",
    "shareable": b"\xd8\x1c\x81\xd8\x1d\x00",
    "rational": b"\xd8\x1e\x82\x01\x02",
    "regex": b"\xd8\x23\x61a",
    "set": b"\xd9\x01\x02\x81\x61a",
    "self-described": b"\xd9\xd9\xf7\x01",
    "unknown": b"\xdb" + b"\xff" * 8 + b"\x01",
}


@pytest.mark.parametrize("data", TAGGED.values(), ids=TAGGED.keys())
def test_tags_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed, match="tag"):
        decode_map(b"\xa1\x61x" + data)
    with pytest.raises(EventRefused) as refusal:
        decode_message(b"\xa2\x61v\x01\x61x" + data)
    assert refusal.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    "data",
    [
        b"\xa2\x61x\x01\x61x\x02",  # a key twice
        b"\xa1\xf9\x7e\x00\x01",  # NaN as a key
        b"\xa1\x01\x02",  # a number as a key
        b"\xa1\x61x\x63\xed\xa0\x80",  # half of a surrogate pair
        b"\xa1\x61x\x61\xff",  # no UTF-8
        b"\xa1\x61x" + b"\x81" * 100_000,
        b"\xbf\x61x\x01\xff",  # of no length
        b"\xa1\x61x\x1c",  # a reserved head
        b"",
    ],
)
def test_what_is_not_plain_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_map(data)


def test_a_table_that_inflates_to_many_items_is_refused() -> None:
    for size, problem in ((3 << 20, "more than 150000 items"), (5 << 20, "more than 4194304 bytes")):
        deflate = zlib.compressobj(zdict=_dictionary(None))
        bomb = deflate.compress(array(size, b"\xa0")) + deflate.flush()
        assert len(bomb) < 20_000

        def refused(bomb: bytes = bomb, problem: str = problem) -> None:
            with pytest.raises(Malformed, match=problem):
                unpack(bomb)

        assert peak_of(refused) < 3 * TABLE_BYTES_MAX


def test_nothing_may_stand_behind_a_table() -> None:
    table = Members("a").table()
    assert unpack(pack(table)) == table
    with pytest.raises(Malformed, match="behind"):
        unpack(pack(table) + b"x")
