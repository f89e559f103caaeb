"""Values as rows of bits: single ones, counted, found, combined, and as integers of any width.

Bit 0 is the highest bit of the first byte, as in Redis, whose replies and errors these are. A bit beyond the end is 0.
A command that changes a bit writes the whole value, of 16 MiB too.

What may take long works in slices of about a ms: counting, BITOP, and BITFIELD with many operations. BITOP reads its
sources one after the other, so large ones are not of one moment; BITFIELD begins again if the value has changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import Final, NamedTuple

from merklekv.engine.engine import Engine
from merklekv.engine.format import OP_SETBIT
from merklekv.engine.integers import strict_integer
from merklekv.engine.record import head_of, value_of
from merklekv.net.commands.arguments import SYNTAX_ERROR, integer
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.registry import READ, SLOW_READ, SLOW_WRITE, WRITE, Long, Reply, command
from merklekv.net.session import Session
from merklekv.net.steps import Steps

SLICE_BYTES: Final = 1 << 18  # that are counted or combined between two yields
SLICE_FIELDS: Final = 200  # operations of BITFIELD between two yields
BLOCK_BYTES: Final = 1 << 16  # that are compared at once

BAD_OFFSET: Final = "bit offset is not an integer or out of range"


def _offset(word: bytes, engine: Engine, unit: int = 1) -> int:
    """The offset of a bit within the largest value; `word` counts in `unit` bits."""
    number = strict_integer(word)
    if number is None or not 0 <= number * unit < 8 * engine.max_value_size:
        raise RequestError(BAD_OFFSET)
    return number * unit


# -- single bits -------------------------------------------------------------------------------------------------------


@command(
    "SETBIT key offset value",
    "Sets or clears a bit, and returns what it was.",
    group="string",
    flags=WRITE,
    note="within the largest value; a change writes the whole value, which takes long if it is large",
)
def setbit(session: Session, request: Request) -> Reply:
    engine, key = session.engine, request[1]
    offset = _offset(request[2], engine)
    if request[3] not in (b"0", b"1"):
        raise RequestError("bit is not an integer or out of range")
    place, mask = offset >> 3, 128 >> (offset & 7)
    with engine.lock:
        value = engine.get(key) or b""
        byte = value[place] if place < len(value) else 0
        changed = byte | mask if request[3] == b"1" else byte & ~mask
        if changed != byte or place >= len(value):
            engine.change(OP_SETBIT, key, value[:place].ljust(place, b"\0") + bytes((changed,)) + value[place + 1 :])
    return resp.ONE if byte & mask else resp.ZERO


@command("GETBIT key offset", "A bit of a value.", group="get", flags=READ)
def getbit(session: Session, request: Request) -> Reply:
    offset = _offset(request[2], session.engine)
    value = session.engine.get(request[1]) or b""
    return resp.ONE if _bits(value, offset, 1) else resp.ZERO


def _bits(value: bytes | bytearray, offset: int, bits: int) -> int:
    """So many bits as an unsigned number."""
    first, behind = offset >> 3, offset + bits + 7 >> 3
    number = int.from_bytes(value[first:behind].ljust(behind - first, b"\0"), "big")
    return number >> (8 * behind - offset - bits) & (1 << bits) - 1


def _set_bits(value: bytearray, offset: int, bits: int, number: int) -> None:
    """Stores an unsigned number in so many bits, all within the value."""
    first, behind = offset >> 3, offset + bits + 7 >> 3
    shift = 8 * behind - offset - bits
    rest = int.from_bytes(value[first:behind], "big") & ~((1 << bits) - 1 << shift)
    value[first:behind] = (rest | number << shift).to_bytes(behind - first, "big")


# -- counting and finding ----------------------------------------------------------------------------------------------


def _unit(words: Sequence[bytes]) -> int:
    """In how many bits a range is counted."""
    match [word.upper() for word in words]:
        case [] | [b"BYTE"]:
            return 8
        case [b"BIT"]:
            return 1
    raise RequestError(SYNTAX_ERROR)


def _range(size: int, start: int, end: int, unit: int) -> tuple[int, int]:
    """The first and the last bit of a range in a value of so many bytes; a negative bound counts from its end."""
    total = 8 * size // unit
    start = max(start + total, 0) if start < 0 else start
    end = max(end + total, 0) if end < 0 else end
    return start * unit, (min(end, total - 1) + 1) * unit - 1


@command("BITCOUNT key [start end [BYTE|BIT]]", "How many bits are set.", group="get", flags=SLOW_READ)
def bitcount(session: Session, request: Request) -> Reply:
    value = session.engine.get(request[1])
    if value is None:
        return resp.ZERO
    start, end, unit = 0, -1, 8
    if len(request) > 2:
        if not 4 <= len(request) <= 5:
            raise RequestError(SYNTAX_ERROR)
        start, end = integer(request[2]), integer(request[3])
        if end < start < 0:
            return resp.ZERO
        unit = _unit(request[4:])
    return _count(value, *_range(len(value), start, end, unit))


def _count(value: bytes, first: int, last: int) -> Long:
    if first > last:
        return resp.ZERO
    with memoryview(value) as view:
        count = -_bits(value, first & ~7, first & 7).bit_count() - _bits(value, last + 1, 7 - (last & 7)).bit_count()
        for at in range(first >> 3, (last >> 3) + 1, SLICE_BYTES):
            count += int.from_bytes(view[at : min(at + SLICE_BYTES, (last >> 3) + 1)], "big").bit_count()
            if at + SLICE_BYTES <= last >> 3:
                yield None
    return resp.integer(count)


@command(
    "BITPOS key bit [start [end [BYTE|BIT]]]", "Where the first bit is set, or not set.", group="get", flags=SLOW_READ
)
def bitpos(session: Session, request: Request) -> Reply:
    bit = integer(request[2])
    if bit not in (0, 1):
        raise RequestError("The bit argument must be 1 or 0.")
    value = session.engine.get(request[1])
    if value is None:
        return resp.integer(-bit)
    if len(request) > 6:
        raise RequestError(SYNTAX_ERROR)
    start = integer(request[3]) if len(request) > 3 else 0
    unit = _unit(request[5:])
    end = integer(request[4]) if len(request) > 4 else -1
    first, last = _range(len(value), start, end, unit)
    found = _find(value, bit, first, last)
    if found is None and not bit and len(request) < 5 and first <= last:
        return resp.integer(8 * len(value))  # the value goes on with zeros
    return resp.integer(-1 if found is None else found)


_SAME: Final = (b"\xff" * BLOCK_BYTES, b"\0" * BLOCK_BYTES)  # where no bit is 0, and where none is 1


def _find(value: bytes, bit: int, first: int, last: int) -> int | None:
    """The place of the first such bit from `first` to `last`."""
    if first > last:
        return None
    inverted = 0 if bit else 0xFF
    at = first >> 3
    byte = (value[at] ^ inverted) & 0xFF >> (first & 7)
    if not byte:
        at += 1
        same = _SAME[bit]
        while value.startswith(same, at):
            at += BLOCK_BYTES
        block = value[at : at + BLOCK_BYTES]
        rest = block.lstrip(same[:1])
        if not rest:
            return None
        at += len(block) - len(rest)
        byte = value[at] ^ inverted
    found = 8 * at + 8 - byte.bit_length()
    return found if found <= last else None


# -- combining ---------------------------------------------------------------------------------------------------------

_OPERATIONS: Final[dict[bytes, Callable[[int, int], int]]] = {
    b"AND": int.__and__,
    b"OR": int.__or__,
    b"XOR": int.__xor__,
    b"NOT": int.__xor__,  # with ones
}


@command(
    "BITOP AND|OR|XOR|NOT destkey key [key ...]",
    "Stores what values combine to, and returns its length.",
    group="set",
    flags=SLOW_WRITE,
    note=("reads its sources one after the other: large ones (together more than 256 KiB) are not of one moment"),
)
def bitop(session: Session, request: Request) -> Reply:
    name, destination, *keys = request[1].upper(), *request[2:]
    if name not in _OPERATIONS:
        raise RequestError(SYNTAX_ERROR)
    if name == b"NOT" and len(keys) > 1:
        raise RequestError("BITOP NOT must be called with a single source key.")
    return _bitop(session.engine, name, destination, keys)


def _bitop(engine: Engine, name: bytes, destination: bytes, keys: Sequence[bytes]) -> Long:
    steps = Steps(SLICE_BYTES)
    result = bytearray(engine.get(keys[0]) or b"")
    if name == b"NOT":
        yield from _combine(result, b"\xff" * len(result), name, steps)
    for key in keys[1:]:
        value = engine.get(key) or b""
        result += bytes(max(len(value) - len(result), 0))
        yield from _combine(result, value, name, steps)
        del value  # it may be large
    combined = bytes(result)
    result.clear()
    with engine.lock:
        if combined:
            engine.set(destination, combined)
        else:
            engine.delete(destination)
    return resp.integer(len(combined))


def _combine(result: bytearray, value: bytes, name: bytes, steps: Steps) -> Generator[None, None, None]:
    """Combines `result` in its place with a value that is not longer, and is followed by zeros."""
    operation = _OPERATIONS[name]
    for at in range(0, len(value), SLICE_BYTES):
        part = value[at : at + SLICE_BYTES]
        behind = at + len(part)
        both = operation(int.from_bytes(result[at:behind], "big"), int.from_bytes(part, "big"))
        result[at:behind] = both.to_bytes(len(part), "big")
        if steps.add(len(part)):
            yield None
    if steps.add(1000):  # of a key
        yield None
    if name == b"AND":
        result[len(value) :] = bytes(len(result) - len(value))


# -- integers of any width ---------------------------------------------------------------------------------------------

_TYPE: Final = re.compile(rb"([iu])([1-9][0-9]?)")
BAD_TYPE: Final = "Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is."
_PARTS: Final = {b"GET": 3, b"SET": 4, b"INCRBY": 4}


class _Field(NamedTuple):
    """An operation of BITFIELD."""

    name: bytes
    is_signed: bool
    bits: int
    offset: int
    amount: int
    overflow: bytes  # WRAP, SAT or FAIL

    def result(self, old: int) -> int | None:
        """What is to be stored in place of a number, None for nothing."""
        new = old + self.amount if self.name == b"INCRBY" else self.amount
        if not self.is_signed and self.name == b"SET":
            new &= (1 << 64) - 1  # as Redis reads it
        low, high = (-1 << self.bits - 1, (1 << self.bits - 1) - 1) if self.is_signed else (0, (1 << self.bits) - 1)
        if low <= new <= high:
            return new
        match self.overflow:
            case b"FAIL":
                return None
            case b"SAT":
                return high if new > high else low
        return self.signed(new & (1 << self.bits) - 1)

    def signed(self, number: int) -> int:
        """The number that these bits stand for."""
        return number - (1 << self.bits) if self.is_signed and number >> self.bits - 1 else number


_BITFIELD = (
    "[GET encoding offset | SET encoding offset value | INCRBY encoding offset amount | OVERFLOW WRAP|SAT|FAIL ...]"
)


@command(f"BITFIELD key {_BITFIELD}", "Reads and changes integers of any width.", group="string", flags=SLOW_WRITE)
def bitfield(session: Session, request: Request) -> Long:
    fields = yield from _fields(request, session.engine)
    return (yield from _run_fields(session, request[1], fields))


@command(
    "BITFIELD_RO key [GET encoding offset ...]", "Reads integers of any width.", group="get", flags=("readonly", "fast")
)
def bitfield_ro(session: Session, request: Request) -> Long:
    fields = yield from _fields(request, session.engine)
    if any(one.name != b"GET" for one in fields):
        raise RequestError("BITFIELD_RO only supports the GET subcommand")
    return (yield from _run_fields(session, request[1], fields))


def _fields(request: Request, engine: Engine) -> Generator[None, None, list[_Field]]:
    found: list[_Field] = []
    overflow = b"WRAP"
    steps = Steps(SLICE_FIELDS)
    at = 2
    while at < len(request):
        name = request[at].upper()
        if name == b"OVERFLOW" and at + 1 < len(request):
            overflow = request[at + 1].upper()
            if overflow not in (b"WRAP", b"SAT", b"FAIL"):
                raise RequestError("Invalid OVERFLOW type specified")
            at += 2
        elif name in _PARTS and at + _PARTS[name] <= len(request):
            found.append(_field(name, request[at + 1 : at + _PARTS[name]], overflow, engine))
            at += _PARTS[name]
        else:
            raise RequestError(SYNTAX_ERROR)
        if steps.add(1):
            yield None
    return found


def _field(name: bytes, words: Sequence[bytes], overflow: bytes, engine: Engine) -> _Field:
    match = _TYPE.fullmatch(words[0])
    bits = int(match[2]) if match else 0
    is_signed = words[0].startswith(b"i")
    if not 0 < bits <= 63 + is_signed:
        raise RequestError(BAD_TYPE)
    in_units = words[1].startswith(b"#")
    offset = _offset(words[1][in_units:], engine, bits if in_units else 1)
    return _Field(name, is_signed, bits, offset, integer(words[2]) if len(words) > 2 else 0, overflow)


def _run_fields(session: Session, key: bytes, fields: Sequence[_Field]) -> Long:
    """Runs them all on the value as it is at one moment."""
    engine = session.engine
    behind = max((one.offset + one.bits + 7 >> 3 for one in fields if one.name != b"GET"), default=0)
    if behind > engine.max_value_size:
        raise RequestError(BAD_OFFSET)
    while True:
        before = engine.shown(key)
        value = b"" if before is None else value_of(before)
        changing = bytearray(value.ljust(behind, b"\0")) if behind else value
        replies: list[bytes] = []
        steps = Steps(SLICE_FIELDS)
        for one in fields:
            replies.append(_run_field(one, changing, session.nil))
            if steps.add(1):
                yield None
        if not isinstance(changing, bytearray):
            break
        with engine.lock:
            now = engine.shown(key)
            if now is before or (now and before and head_of(now) == head_of(before)):
                if changing != value:
                    engine.change(OP_SETBIT, key, bytes(changing))
                break
    return resp.array(replies)


def _run_field(one: _Field, value: bytes | bytearray, nil: bytes) -> bytes:
    old = one.signed(_bits(value, one.offset, one.bits))
    if not isinstance(value, bytearray) or one.name == b"GET":
        return resp.integer(old)
    new = one.result(old)
    if new is None:
        return nil
    _set_bits(value, one.offset, one.bits, new & (1 << one.bits) - 1)
    return resp.integer(new if one.name == b"INCRBY" else old)
