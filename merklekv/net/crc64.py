"""CRC-64 as Redis computes it over a DUMP: Jones's polynomial, bits reflected, no initial value.

A table takes a byte at a time, 0.1 us each, which is too much for a long value. So a long one is shortened first. The
CRC is the remainder of the data, read as a polynomial over GF(2), by the polynomial P. P(x)^w is P(x^w) when w is a
power of two. So the same few terms divide the data in digits of w bits, where each step is an exclusive-or of large
numbers. That leaves 64 digits with the same remainder, and halving w shortens them again, until the table can do the
rest.

Cost: 5 ns a byte.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Final

from merklekv.net.steps import Steps

POLYNOMIAL: Final = 0xAD93D23594C935A9  # bit n: the term x^n; x^64 is left out
DIGITS: Final = 64  # of a remainder
TABLE_BYTES_MAX: Final = 1024  # what the table does
STEP_BYTES_MAX: Final = 1 << 19  # of digits, between two yields: about 1 ms

# A digit at the front stands for x^64 * what follows, so it is added to the digits at these distances behind it.
_DISTANCES: Final = [DIGITS - n for n in reversed(range(DIGITS)) if POLYNOMIAL >> n & 1]


def _entry(byte: int) -> int:
    reflected = int(f"{POLYNOMIAL:064b}"[::-1], 2)
    for _ in range(8):
        byte = byte >> 1 ^ (reflected if byte & 1 else 0)
    return byte


_TABLE: Final = [_entry(byte) for byte in range(256)]


def crc64(data: bytes) -> Generator[None, None, int]:
    """The CRC, in slices of a few ms."""
    width = _width(len(data))
    while width and len(data) > TABLE_BYTES_MAX:
        data = yield from _shortened(data, width)
        width = _width(len(data))
    crc = 0
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def _width(size: int) -> int:
    """Bytes of a digit with which so many bytes are about two remainders long."""
    return 1 << max(0, (size // DIGITS).bit_length() - 2)


def _shortened(data: bytes, width: int) -> Generator[None, None, bytes]:
    """64 digits of `width` bytes, a power of two, with the CRC of the data."""
    steps = Steps(STEP_BYTES_MAX)
    at = -(-len(data) % width)  # zeros at the front change nothing
    digits: list[int] = []
    while at < len(data):
        digits.append(int.from_bytes(data[max(at, 0) : at + width], "little") << -8 * min(at, 0))
        at += width
        if steps.add(width):
            yield None
    for place in range(len(digits) - DIGITS):
        digit = digits[place]
        for distance in _DISTANCES:
            digits[place + distance] ^= digit
        if steps.add(width * len(_DISTANCES)):
            yield None
    left = bytearray()
    for digit in digits[-DIGITS:]:
        left += digit.to_bytes(width, "little")
        if steps.add(width):
            yield None
    return bytes(left)
