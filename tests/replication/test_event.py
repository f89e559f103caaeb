"""Events: round trips, and every kind of refusal. Whatever the bytes, decoding gives a message or a reason."""

from __future__ import annotations

from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merklekv.engine.format import DELETIONS, ENTRY, MAX_KEY_SIZE, OP_ORIGIN, OP_SET, OP_TRUNCATE, OPS, REMOTE
from merklekv.engine.record import EXPIRY_MAX, expiry_of, is_sound, make_record, value_of, version_of
from merklekv.node_id import NODE_ID_BYTES_MAX, is_node_id
from merklekv.replication import plain_cbor
from merklekv.replication.stream import event
from merklekv.replication.stream.event import (
    EventRefused,
    Message,
    Reason,
    decode_message,
    encode_entries,
    encode_message,
)

VERSION = (1_790_000_000_000_000_000).to_bytes(8, "big") + bytes(range(16))
PLAIN: dict[str, Any] = {"v": 1, "op": "set", "key": "k", "val": b"value", "ts": 5, "src": "a", "op_id": bytes(16)}
BATCH: dict[str, Any] = {
    "v": 1,
    "src": "a",
    "seq": 7,
    "events": [
        {"op": "set", "key": "k", "val": b"value", "ts": 5, "op_id": bytes(16)},
        {"op": "del", "key": b"\xff", "val": None, "ts": 6, "op_id": bytes(16)},
        {"op": "truncate", "val": None, "ts": 7, "op_id": bytes(16)},
    ],
}

versions = st.builds(
    lambda timestamp, op_id: timestamp.to_bytes(8, "big") + op_id,
    st.integers(0, event.TIMESTAMP_LIMIT - 1),
    st.binary(min_size=16, max_size=16),
)
keys = st.binary(min_size=1, max_size=40) | st.text(min_size=1, max_size=40).map(str.encode)


@st.composite
def changes(draw: st.DrawFn) -> event.Change:
    op = draw(st.sampled_from(sorted(OPS)))
    version = draw(versions)
    if op == OP_TRUNCATE:
        return op, b"", version
    key = draw(keys)
    if op in DELETIONS:
        return op, key, make_record(key, version, b"", tombstone=True)
    expiry = draw(st.none() | st.integers(1, EXPIRY_MAX))
    return op, key, make_record(key, version, draw(st.binary(max_size=300)), expiry=expiry)


def entries_of(made: list[event.Change]) -> bytes:
    return b"".join(ENTRY.pack(op, len(key), len(record)) + key + record for op, key, record in made)


def message_of(made: list[event.Change], source: str = "node-a", sequence: int = 1) -> bytes:
    data = entries_of(made)
    encoded = encode_entries(data, 0, len(data), 1 << 30)
    assert encoded.at == len(data)
    assert encoded.event_count == len(made)
    return encode_message(source, sequence, encoded.pieces, encoded.event_count)


def split(made: list[event.Change]) -> tuple[list[event.Change], list[bytes]]:
    plain = [change for change in made if change[0] != OP_TRUNCATE]
    return plain, [truncation for op, _, truncation in made if op == OP_TRUNCATE]


def reason_of(item: object) -> Reason:
    with pytest.raises(EventRefused) as caught:
        decode_message(item if isinstance(item, bytes) else cbor2.dumps(item))
    assert str(caught.value).startswith(f"{caught.value.reason}: ")
    return caught.value.reason


@given(
    st.lists(changes(), max_size=8),
    st.text(min_size=1, max_size=20).filter(is_node_id),
    st.integers(0, event.SEQUENCE_LIMIT - 1),
)
def test_what_is_encoded_is_decoded(made: list[event.Change], source: str, sequence: int) -> None:
    message = decode_message(message_of(made, source, sequence))
    assert message == Message(source, sequence, *split(made))
    assert message.event_count == len(made)
    assert message.newest() == max((version_of(record) for _, _, record in made), default=b"")


@given(st.lists(changes(), min_size=1, max_size=3))
def test_messages_are_what_the_protocol_says(made: list[event.Change]) -> None:
    item = cbor2.loads(message_of(made, "node-a", 41))
    assert (item["v"], item["src"], item["seq"]) == (1, "node-a", 41)
    for said, (_op, key, record) in zip(item.get("events", [item]), made, strict=True):
        assert said["ts"].to_bytes(8, "big") + said["op_id"] == version_of(record)
        if "key" not in said:
            assert (said["op"], said["val"]) == ("truncate", None)
            continue
        assert said["key"] == (key.decode() if event.is_utf8(key) else key)
        assert said["val"] == (None if said["op"] in ("del", "rename_from") else value_of(record))
        assert said.get("exp") == expiry_of(record)
        assert "exp" not in said or said["exp"] is not None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(payload: bytes) -> None:
    decode_or_refuse(payload)


@settings(max_examples=300)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=20) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["v", "op", "key", "val", "ts", "src", "op_id", "seq", "events", "exp", "ttl", "x"]),
                inner,
            )
        ),
        max_leaves=12,
    )
)
def test_any_cbor_is_a_message_or_refused(item: object) -> None:
    decode_or_refuse(cbor2.dumps(item))


def test_a_valid_payload_cut_anywhere_is_refused() -> None:
    for payload in (cbor2.dumps(PLAIN | {"exp": 5}), cbor2.dumps(BATCH)):
        for length in range(len(payload)):
            assert reason_of(payload[:length]) is Reason.MALFORMED


def test_a_valid_payload_with_any_bit_flipped_is_a_message_or_refused() -> None:
    for payload in (cbor2.dumps(PLAIN | {"exp": 5}), cbor2.dumps(BATCH)):
        for at in range(len(payload)):
            for bit in range(8):
                flipped = bytearray(payload)
                flipped[at] ^= 1 << bit
                decode_or_refuse(bytes(flipped))


def decode_or_refuse(payload: bytes) -> None:
    try:
        message = decode_message(payload)
    except EventRefused:
        return
    assert all(is_sound(key, record) and 0 < len(key) <= MAX_KEY_SIZE for _, key, record in message.changes)
    assert all(len(truncation) == 24 for truncation in message.truncations)


def test_lists_of_integers_are_taken_for_bytes() -> None:
    listed = PLAIN | {"val": list(b"value"), "op_id": list(bytes(16)), "prev": list(bytes(32))}
    assert decode_message(cbor2.dumps(listed)) == decode_message(cbor2.dumps(PLAIN))


def test_unknown_fields_and_reserved_ones_are_ignored() -> None:
    more = PLAIN | {"prev": bytes(32), "color": ["red"], "nothing": None}
    assert decode_message(cbor2.dumps(more)) == decode_message(cbor2.dumps(PLAIN))
    assert decode_message(cbor2.dumps(PLAIN | {"prev": None, "ttl": None, "exp": None})).event_count == 1


@pytest.mark.parametrize(
    ("fields", "expiry"),
    [
        ({"exp": 1}, 1),
        ({"exp": EXPIRY_MAX}, EXPIRY_MAX),
        ({"ttl": 60}, 1_790_000_060_123),
        ({"ttl": 0}, 1_790_000_000_123),
        ({"ttl": 0, "ts": 999_999}, 1),
        ({"ttl": EXPIRY_MAX // 1000, "ts": 0}, EXPIRY_MAX // 1000 * 1000),
        ({"ttl": 60, "exp": 5}, 5),
        ({"ttl": 1 << 63, "exp": 5}, 5),
        ({"ttl": None, "exp": 5}, 5),
        ({"ttl": 60, "exp": None}, 1_790_000_060_123),
    ],
)
def test_a_key_expires_when_an_event_says_it(fields: dict[str, Any], expiry: int) -> None:
    timestamp = {"ts": 1_790_000_000_123_999_999}
    [(_, key, record)] = decode_message(cbor2.dumps(PLAIN | timestamp | fields)).changes
    assert (expiry_of(record), value_of(record), is_sound(key, record)) == (expiry, b"value", True)
    [(_, key, record)] = decode_message(
        cbor2.dumps(BATCH | {"events": [BATCH["events"][0] | timestamp | fields]})
    ).changes
    assert (expiry_of(record), value_of(record), is_sound(key, record)) == (expiry, b"value", True)


def test_a_batch_without_events_tells_the_sequence() -> None:
    assert decode_message(cbor2.dumps(BATCH | {"events": []})) == Message("a", 7, [], [])


@pytest.mark.parametrize("field", ["v", "op", "key", "val", "ts", "src", "op_id"])
def test_a_missing_field_is_refused(field: str) -> None:
    assert reason_of({name: value for name, value in PLAIN.items() if name != field}) is Reason.MISSING


@pytest.mark.parametrize("field", ["v", "src", "seq"])
def test_a_missing_field_of_a_batch_is_refused(field: str) -> None:
    assert reason_of({name: value for name, value in BATCH.items() if name != field}) is Reason.MISSING


REFUSED: list[tuple[dict[str, Any], Reason]] = [
    ({"v": 2}, Reason.SCHEMA),
    ({"v": 0}, Reason.SCHEMA),
    ({"v": True}, Reason.TYPE),
    ({"v": "1"}, Reason.TYPE),
    ({"op": "rename"}, Reason.OPERATION),
    ({"op": "SET"}, Reason.OPERATION),
    ({"op": "origin"}, Reason.OPERATION),
    ({"op": 1}, Reason.TYPE),
    ({"key": ""}, Reason.LENGTH),
    ({"key": "k" * (MAX_KEY_SIZE + 1)}, Reason.LENGTH),
    ({"key": "\u00e9" * 256}, Reason.LENGTH),
    ({"key": None}, Reason.TYPE),
    ({"key": [107]}, Reason.TYPE),
    ({"val": None}, Reason.TYPE),
    ({"val": "text"}, Reason.TYPE),
    ({"val": [1, 256]}, Reason.RANGE),
    ({"val": [1, -1]}, Reason.RANGE),
    ({"val": [1, True]}, Reason.TYPE),
    ({"val": [1, "2"]}, Reason.TYPE),
    ({"op": "del"}, Reason.TYPE),
    ({"op": "truncate"}, Reason.FIELD),
    ({"ts": -1}, Reason.RANGE),
    ({"ts": 1 << 63}, Reason.RANGE),
    ({"ts": 5.0}, Reason.TYPE),
    ({"ts": True}, Reason.TYPE),
    ({"op_id": bytes(15)}, Reason.LENGTH),
    ({"op_id": bytes(17)}, Reason.LENGTH),
    ({"op_id": "0" * 16}, Reason.TYPE),
    ({"src": ""}, Reason.SOURCE),
    ({"src": "s" * (NODE_ID_BYTES_MAX + 1)}, Reason.SOURCE),
    ({"src": b"a"}, Reason.TYPE),
    ({"seq": -1}, Reason.RANGE),
    ({"seq": 1 << 63}, Reason.RANGE),
    ({"seq": "1"}, Reason.TYPE),
    ({"seq": None}, Reason.TYPE),
    ({"prev": bytes(31)}, Reason.LENGTH),
    ({"prev": "x"}, Reason.TYPE),
    ({"ttl": -1}, Reason.TYPE),
    ({"ttl": "soon"}, Reason.TYPE),
    ({"ttl": True}, Reason.TYPE),
    ({"ttl": "soon", "exp": 5}, Reason.TYPE),
    ({"ttl": EXPIRY_MAX // 1000 + 1}, Reason.RANGE),
    ({"exp": 0}, Reason.RANGE),
    ({"exp": -1}, Reason.RANGE),
    ({"exp": EXPIRY_MAX + 1}, Reason.RANGE),
    ({"exp": 5.0}, Reason.TYPE),
    ({"exp": True}, Reason.TYPE),
    ({"exp": "5"}, Reason.TYPE),
    ({"op": "del", "val": None, "exp": 5}, Reason.FIELD),
    ({"op": "rename_from", "val": None, "exp": 5}, Reason.FIELD),
    ({"events": {}}, Reason.TYPE),
    ({"events": None}, Reason.TYPE),
]


@pytest.mark.parametrize(("wrong", "reason"), REFUSED)
def test_a_wrong_field_is_refused(wrong: dict[str, Any], reason: Reason) -> None:
    assert reason_of(PLAIN | wrong) is reason


@pytest.mark.parametrize(
    "right",
    [
        {"key": "k" * MAX_KEY_SIZE},
        {"ts": (1 << 63) - 1},
        {"ts": 0},
        {"val": b""},
        {"src": "s" * NODE_ID_BYTES_MAX},
        {"seq": (1 << 63) - 1},
        {"key": b"\xff\x00"},
    ],
)
def test_a_field_at_its_limit_is_taken(right: dict[str, Any]) -> None:
    assert decode_message(cbor2.dumps(PLAIN | right)).event_count == 1


def test_one_wrong_event_refuses_its_batch() -> None:
    events = [*BATCH["events"], {"op": "set"}]
    assert reason_of(BATCH | {"events": events}) is Reason.MISSING
    assert reason_of(BATCH | {"events": [*events[:1], 5]}) is Reason.TYPE


def test_a_truncate_with_a_value_is_refused() -> None:
    truncation = {"v": 1, "src": "a", "op": "truncate", "ts": 5, "op_id": bytes(16)}
    assert decode_message(cbor2.dumps(truncation)).truncations == [(5).to_bytes(8, "big") + bytes(16)]
    assert reason_of(truncation | {"val": b""}) is Reason.TYPE
    assert reason_of(truncation | {"exp": 5}) is Reason.FIELD


@pytest.mark.parametrize("item", [1, None, [], "text", b"", [PLAIN], 1.5, cbor2.CBORTag(700, 1)])
def test_what_is_no_map_is_refused(item: object) -> None:
    assert reason_of(cbor2.dumps(item)) in (Reason.TYPE, Reason.MALFORMED)


def test_bytes_behind_the_message_are_refused() -> None:
    assert reason_of(cbor2.dumps(PLAIN) + b"\0") is Reason.TRAILING
    assert reason_of(cbor2.dumps(PLAIN) * 2) is Reason.TRAILING


def test_a_key_said_twice_is_refused() -> None:
    assert reason_of(b"\xa2\x61v\x01\x61v\x01") is Reason.MALFORMED


def test_deep_nesting_is_refused() -> None:
    assert reason_of(b"\x81" * 100_000 + b"\x01") is Reason.MALFORMED
    nested: object = 1
    for _ in range(plain_cbor.NESTING_MAX):
        nested = [nested]
    assert reason_of(PLAIN | {"x": nested}) is Reason.MALFORMED


def test_events_of_other_nodes_are_never_encoded() -> None:
    record = make_record(b"k", VERSION, b"v")
    data = entries_of([(OP_ORIGIN, b"other", b""), (OP_SET | REMOTE, b"k", record), (OP_SET, b"k", record)])
    pieces, count, size, at = encode_entries(data, 0, len(data), 1 << 20)
    assert (count, size, at) == (1, len(b"".join(pieces)), len(data))
    assert decode_message(encode_message("a", 1, pieces, count)).changes == [(OP_SET, b"k", record)]


def test_encoding_stops_where_the_room_ends_and_goes_on_there() -> None:
    made = [(OP_SET, b"k%d" % number, make_record(b"k%d" % number, VERSION, b"v" * 50)) for number in range(9)]
    data = entries_of(made)
    whole = encode_entries(data, 0, len(data), 1 << 20)
    one = whole.size // len(made)
    assert encode_entries(data, 0, len(data), one - 1) == ([], 0, 0, 0)
    gathered, at = b"", 0
    while at < len(data):
        pieces, count, size, at = encode_entries(data, at, len(data), one * 2)
        assert size == one * count <= one * 2
        gathered += b"".join(pieces)
    assert gathered == b"".join(whole.pieces)
    assert len(gathered) == whole.size


@pytest.mark.parametrize("size", [0, 23, 24, 255, 256, 4095, 4096, 65_535, 65_536])
def test_values_of_every_length_of_head(size: int) -> None:
    made: list[event.Change] = [(OP_SET, b"k" * 24, make_record(b"k" * 24, VERSION, b"v" * size))]
    assert decode_message(message_of(made)).changes == made


@pytest.mark.parametrize("count", [0, 2, 23, 24, 255, 256])
def test_the_envelope_is_within_its_size(count: int) -> None:
    source = "s" * NODE_ID_BYTES_MAX
    made: list[event.Change] = [(OP_SET, b"k", make_record(b"k", VERSION, b""))] * count
    data = entries_of(made)
    encoded = encode_entries(data, 0, len(data), 1 << 20)
    message = encode_message(source, event.SEQUENCE_LIMIT - 1, encoded.pieces, count)
    assert len(message) <= encoded.size + len(source) + event.ENVELOPE_SIZE
