"""Numbers as INCRBYFLOAT reads, adds and writes them: in the x86 long double of Redis, so that both count the same.

It has 64 bits of mantissa and exponents up to 2^16384. A text is read as C's strtold does it, rounded to the nearest
long double; a sum is rounded again; it is written with 17 digits behind the point, without the zeros at the end and
without an exponent. All of it is exact arithmetic on whole numbers.

Not here: NaN, which is no number to add to; the sum of infinities is refused.

Cost: 10 us for two numbers as people write them. A text has at most TEXT_BYTES_MAX bytes, and no power beyond those of
a long double is ever computed, so no number costs more than 2 ms.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal
from typing import Final

TEXT_BYTES_MAX: Final = 5 * 1024 - 1  # what Redis reads
MANTISSA_BITS: Final = 64
EXPONENT_MIN: Final = -16445  # of the last bit of the smallest numbers
BITS_MAX: Final = 16384  # a number with more before the point is infinite
DIGITS: Final = 17  # behind the point
EXPONENT_DIGITS_MAX: Final = 8  # enough to be beyond every long double, with TEXT_BYTES_MAX digits before or behind it

_DECIMAL: Final = re.compile(rb"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e([+-]?[0-9]+))?", re.IGNORECASE)
_HEX: Final = re.compile(rb"([+-]?)0x([0-9a-f]+(?:\.[0-9a-f]*)?|\.[0-9a-f]+)(?:p([+-]?[0-9]+))?", re.IGNORECASE)
_INFINITE: Final = re.compile(rb"([+-]?)inf(?:inity)?", re.IGNORECASE)
_EXACT: Final = Context(prec=3 * TEXT_BYTES_MAX)  # of numbers whose digits exceed what `int` converts

Number = tuple[int, int]  # mantissa and exponent: mantissa * 2 ** exponent
INFINITY: Final = (1, BITS_MAX)


def read(text: bytes) -> Number | None:
    """The long double that is nearest to a text, or None if it is none, or beyond what a long double can hold."""
    if len(text) > TEXT_BYTES_MAX:
        return None
    if match := _DECIMAL.fullmatch(text):
        base, ten, per_digit = 10, 5, 1  # 10 ** n is 5 ** n * 2 ** n
    elif match := _HEX.fullmatch(text):
        base, ten, per_digit = 16, 1, 4
    elif match := _INFINITE.fullmatch(text):
        return _signed(match[1], INFINITY)
    else:
        return None
    whole, _, part = match[2].partition(b".")
    digits = (whole + part).lstrip(b"0")
    if not digits:
        return 0, 0
    exponent = _bounded(match[3] or b"0") - per_digit * len(part)
    # Beyond these by far it is too large, or zero; in between no power is large.
    if not -2 * BITS_MAX < exponent + per_digit * len(digits) < 2 * BITS_MAX:
        return None
    mantissa = int(digits, 16) if base == 16 else int(Decimal(digits.decode()))
    power: int = ten ** abs(exponent)
    rounded = _round(mantissa * power, 1, exponent) if exponent > 0 else _round(mantissa, power, exponent)
    return None if not rounded[0] or _is_infinite(rounded) else _signed(match[1], rounded)


def add(first: Number, second: Number) -> Number | None:
    """The sum, or None if it is infinite or none."""
    if _is_infinite(first) or _is_infinite(second):
        return None
    exponent = min(first[1], second[1])
    total = (first[0] << first[1] - exponent) + (second[0] << second[1] - exponent)
    mantissa, exponent = _round(abs(total), 1, exponent)
    return None if _is_infinite((mantissa, exponent)) else (-mantissa if total < 0 else mantissa, exponent)


def write(number: Number) -> bytes:
    """The text, with at most 17 digits behind the point."""
    mantissa, exponent = abs(number[0]), number[1]
    scaled = mantissa * 10**DIGITS
    scaled = scaled << exponent if exponent > 0 else _divide(scaled, 1 << -exponent)
    text = format(_EXACT.create_decimal(scaled), "f").encode().rjust(DIGITS + 1, b"0")
    whole, part = text[:-DIGITS], text[-DIGITS:].rstrip(b"0")
    shown = whole + b"." + part if part else whole
    return b"-" + shown if number[0] < 0 and shown != b"0" else shown


def _bounded(exponent: bytes) -> int:
    """The exponent; one of many digits becomes one that is as far beyond every number."""
    digits = exponent.lstrip(b"+-").lstrip(b"0")[: EXPONENT_DIGITS_MAX + 1] or b"0"
    return -int(digits) if exponent.startswith(b"-") else int(digits)


def _signed(sign: bytes, number: Number) -> Number:
    return (-number[0], number[1]) if sign == b"-" else number


def _is_infinite(number: Number) -> bool:
    return number[0].bit_length() + number[1] > BITS_MAX


def _round(numerator: int, denominator: int, exponent: int) -> Number:
    """numerator / denominator * 2 ** exponent as the nearest long double, of two the even one."""
    if not numerator:
        return 0, 0
    # By so many bits the quotient has as many as the mantissa, or one more.
    excess = max(numerator.bit_length() - denominator.bit_length() - MANTISSA_BITS, EXPONENT_MIN - exponent)
    while True:
        over, under = (numerator, denominator << excess) if excess > 0 else (numerator << -excess, denominator)
        if over // under >> MANTISSA_BITS == 0:
            return _divide(over, under), exponent + excess
        excess += 1


def _divide(numerator: int, denominator: int) -> int:
    """The nearest whole number to the quotient, of two the even one."""
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient & 1))
