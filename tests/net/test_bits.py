"""Bit commands on large values and with many operations: in slices, and right whatever changes between two of them."""

from __future__ import annotations

import pytest
from fixtures.handlers import begin, finish, pauses_of, result_of

from merklekv.engine.engine import Engine
from merklekv.net.commands import bits
from merklekv.net.errors import RequestError
from merklekv.net.session import Session

LARGE = 4 << 20


@pytest.mark.parametrize(
    ("request_", "slices"),
    [
        (b"BITCOUNT a", LARGE // bits.SLICE_BYTES),
        (b"BITCOUNT a 1 -2 BIT", LARGE // bits.SLICE_BYTES),
        (b"BITOP NOT d a", LARGE // bits.SLICE_BYTES),
        (b"BITOP AND d a b", LARGE // bits.SLICE_BYTES),
        (b"BITOP XOR d a b a", 2 * LARGE // bits.SLICE_BYTES),
        (b"BITOP OR d" + b" none" * 5000, 5000 * 1000 // bits.SLICE_BYTES),
        (b"BITFIELD a" + b" GET u8 #5" * 5000, 2 * 5000 // bits.SLICE_FIELDS),
        (b"BITFIELD c" + b" INCRBY u8 #5 1" * 5000, 2 * 5000 // bits.SLICE_FIELDS),
    ],
    ids=lambda value: value[:16].decode() if isinstance(value, bytes) else "",
)
def test_others_run_between_the_slices(request_: bytes, slices: int, engine: Engine, session: Session) -> None:
    for number, key in enumerate((b"a", b"b")):
        engine.set(key, bytes((number + 1,)) * LARGE)
    assert pauses_of(session, request_.split()) >= slices - 1


def test_counts_and_combines_across_slices(engine: Engine, session: Session) -> None:
    value = b"\x01" * (2 * bits.SLICE_BYTES + 7)
    engine.set(b"a", value)
    engine.set(b"b", b"\x03" * (bits.SLICE_BYTES + 5))
    for request, reply in {
        b"BITCOUNT a": len(value),
        b"BITCOUNT a 7 -8 BIT": len(value) - 1,
        b"BITPOS a 1 %d" % bits.SLICE_BYTES: 8 * bits.SLICE_BYTES + 7,
        b"BITOP XOR d a b": len(value),
        b"BITCOUNT d": len(value),
        b"BITOP AND d a b": len(value),
        b"BITCOUNT d ": bits.SLICE_BYTES + 5,
    }.items():
        assert result_of(session, request.split()) == b":%d\r\n" % reply, request


def test_a_bit_is_found_at_every_place_around_a_block(engine: Engine, session: Session) -> None:
    for bit, filler in ((1, b"\0"), (0, b"\xff")):
        for at in (0, 1, bits.BLOCK_BYTES - 1, bits.BLOCK_BYTES, bits.BLOCK_BYTES + 1, 3 * bits.BLOCK_BYTES):
            value = filler * at + b"\x10" + filler * 9 if bit else filler * at + b"\xef" + filler * 9
            engine.set(b"k", value)
            place = 8 * at + 3
            for rest, found in ((b"", place), (b"0 %d BIT" % (place - 1), -1), (b"%d 99999999 BIT" % place, place)):
                assert result_of(session, [b"BITPOS", b"k", b"%d" % bit, *rest.split()]) == b":%d\r\n" % found
            assert result_of(session, [b"BITPOS", b"k", b"%d" % bit, b"%d" % (place + 1), b"-1", b"BIT"]) == b":-1\r\n"


def test_fields_of_a_value_that_changes_meanwhile(engine: Engine, session: Session) -> None:
    engine.set(b"k", b"\x01")
    operations = [b"INCRBY", b"u8", b"0", b"1"] * bits.SLICE_FIELDS + [b"GET", b"u8", b"0"]
    task = begin(session, [b"BITFIELD", b"k", *operations])
    assert next(task) is None  # parsed
    assert next(task) is None  # run, and not stored
    engine.set(b"k", b"\x02")
    reply, _ = finish(task)
    assert engine.get(b"k") == bytes((2 + bits.SLICE_FIELDS & 0xFF,))
    assert reply.endswith(b":%d\r\n" % (2 + bits.SLICE_FIELDS & 0xFF))


def test_a_field_has_to_be_within_the_largest_value(engine: Engine, session: Session) -> None:
    last = 8 * engine.max_value_size - 8
    assert result_of(session, [b"BITFIELD", b"k", b"SET", b"u8", b"%d" % last, b"1"]) == b"*1\r\n:0\r\n"
    assert len(engine.get(b"k") or b"") == engine.max_value_size
    before = engine.log.appended
    for offset in (last + 1, last + 8):
        with pytest.raises(RequestError, match=bits.BAD_OFFSET):
            result_of(session, [b"BITFIELD", b"k", b"SET", b"u8", b"%d" % offset, b"1"])
    with pytest.raises(RequestError, match=bits.BAD_OFFSET):
        result_of(session, [b"SETBIT", b"k", b"%d" % (last + 8), b"1"])
    assert engine.log.appended == before


def test_a_bit_that_stays_is_not_written(engine: Engine, session: Session) -> None:
    result_of(session, b"SETBIT k 5 1".split())
    before = engine.log.appended
    assert result_of(session, b"SETBIT k 5 1".split()) == b":1\r\n"
    assert result_of(session, b"BITFIELD k SET u8 0 4".split()) == b"*1\r\n:4\r\n"
    assert engine.log.appended == before
