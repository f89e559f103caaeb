"""The payload of DUMP and RESTORE: a string as in Redis's RDB format, so that values move between both.

    type       1    0: a string; others are Redis's other types
    string          one of these, by the first byte
                      00nnnnnn                 n bytes follow
                      01nnnnnn n               14 bits, big-endian, then so many bytes
                      10000000 nnnn            32 bits, big-endian, then so many bytes
                      10000001 nnnnnnnn        64 bits, big-endian, then so many bytes
                      11000000 to 11000010     an integer of 1, 2 or 4 bytes, little-endian, in decimal
                      11000011                 LZF: the length compressed and the plain one, as above, and the bytes
    version    2    of RDB, little-endian
    checksum   8    CRC-64 of all before, little-endian

Strings have been written in this way since the first version. What is written here is what Redis 7.0 writes without
compression. What is read is hostile: each length is checked before it is believed, and nothing may be left over.

Cost of 16 MiB: 0.1 s for the checksum, and up to 4 s for LZF; in slices of a few ms.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from typing import Final

from merklekv.engine.integers import strict_integer
from merklekv.net.crc64 import crc64
from merklekv.net.errors import RequestError
from merklekv.net.steps import Steps

STRING: Final = 0
VERSION: Final = 10  # of Redis 7.0
VERSION_MAX: Final = 12  # of Redis 8: the latest whose strings are known to be the same
FOOTER: Final = struct.Struct("<HQ")
INTEGER_BYTES_MAX: Final = 11  # a longer text is not stored as an integer
LZF_STEP: Final = 5000  # tokens between two yields, about 3 ms

_INTEGERS: Final = {0xC0: struct.Struct("<b"), 0xC1: struct.Struct("<h"), 0xC2: struct.Struct("<i")}
_LZF: Final = 0xC3
_LENGTHS: Final = {0x80: struct.Struct(">I"), 0x81: struct.Struct(">Q")}

DAMAGED: Final = "Bad data format"


def dump(value: bytes) -> Generator[None, None, bytes]:
    """The payload, in slices."""
    body = bytes((STRING,)) + _string(value) + VERSION.to_bytes(2, "little")
    crc = yield from crc64(body)
    return body + crc.to_bytes(8, "little")


def _string(value: bytes) -> bytes:
    number = strict_integer(value) if len(value) <= INTEGER_BYTES_MAX else None
    if number is not None:
        for first, form in _INTEGERS.items():
            half = 1 << 8 * form.size - 1
            if -half <= number < half:
                return bytes((first,)) + form.pack(number)
    return _length(len(value)) + value


def _length(size: int) -> bytes:
    if size < 1 << 6:
        return bytes((size,))
    if size < 1 << 14:
        return (0x4000 | size).to_bytes(2, "big")
    return b"\x80" + size.to_bytes(4, "big")


def load(payload: bytes, size_max: int) -> Generator[None, None, bytes]:
    """The value in a payload, at most `size_max` bytes, in slices.  Raises RequestError."""
    body = len(payload) - FOOTER.size
    if body < 0:
        raise RequestError("DUMP payload version or checksum are wrong")
    version, checksum = FOOTER.unpack_from(payload, body)
    if version > VERSION_MAX or (yield from crc64(payload[:-8])) != checksum:
        raise RequestError("DUMP payload version or checksum are wrong")
    reader = _Reader(payload, body)
    kind = reader.byte()
    if kind != STRING:
        raise RequestError(f"{DAMAGED}: the value has RDB type {kind}, and only strings, type 0, can be restored here")
    value = yield from _load_string(reader, size_max)
    if reader.left:
        raise RequestError(DAMAGED)
    return value


def _load_string(reader: _Reader, size_max: int) -> Generator[None, None, bytes]:
    first = reader.byte()
    if first in _INTEGERS:
        form = _INTEGERS[first]
        number: int = form.unpack(reader.take(form.size))[0]
        return b"%d" % number
    if first != _LZF:
        size = reader.length(first)
        _require_size(size, size_max)
        return reader.take(size)
    packed, size = reader.length(reader.byte()), reader.length(reader.byte())
    _require_size(size, size_max)
    return (yield from _decompress(reader.take(packed), size))


def _require_size(size: int, size_max: int) -> None:
    if size > size_max:
        raise RequestError(f"{DAMAGED}: a value of {size} bytes, and max_value_size is {size_max} bytes")


class _Reader:
    """Takes the bytes of the body from the start; raises RequestError when it is asked for more than there are."""

    def __init__(self, payload: bytes, end: int) -> None:
        self._payload = payload
        self._at = 0
        self._end = end

    @property
    def left(self) -> int:
        return self._end - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise RequestError(DAMAGED)
        self._at += size
        return self._payload[self._at - size : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def length(self, first: int) -> int:
        if first < 0x40:
            return first
        if first < 0x80:
            return (first & 0x3F) << 8 | self.byte()
        form = _LENGTHS.get(first)
        if form is None:
            raise RequestError(DAMAGED)
        size: int = form.unpack(self.take(form.size))[0]
        return size


def _decompress(packed: bytes, size: int) -> Generator[None, None, bytes]:
    """Undoes LZF: each token is a run of plain bytes, or a distance and a length of what is to be repeated."""
    plain = bytearray()
    steps = Steps(LZF_STEP)
    at, end = 0, len(packed)
    while at < end and len(plain) <= size:
        control = packed[at]
        at += 1
        if control < 32:
            run = packed[at : at + control + 1]
            at += control + 1
        else:
            length = control >> 5
            if length == 7 and at < end:
                length += packed[at]
                at += 1
            if at >= end:
                break
            start = len(plain) - ((control & 31) << 8 | packed[at]) - 1
            at += 1
            if start < 0:
                break
            run = bytes(plain[start : start + length + 2])
            run = (run * ((length + 2) // len(run) + 1))[: length + 2]  # it may repeat itself
        plain += run
        if steps.add(1):
            yield None
    if at != end or len(plain) != size:
        raise RequestError(DAMAGED)
    return bytes(plain)
