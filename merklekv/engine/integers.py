"""Integers as text: the one form in which clients send them, and in which a value counts as a number.

It is Redis's: a signed 64-bit decimal number without a plus sign, spaces, leading zeros or a minus before zero.  So
every number has one text, and no text is longer than 20 bytes.
"""

from __future__ import annotations

import re
from typing import Final

INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1

_ZERO: Final = ord("0")
_DIGITS: Final = 19  # of INT64_MAX
_INTEGER: Final = re.compile(rb"-?[1-9][0-9]{0,18}|0")


def strict_integer(text: bytes) -> int | None:
    """The integer that `text` is, from INT64_MIN to INT64_MAX, or None.  Any length of text is safe."""
    if text.isdigit() and text[0] != _ZERO and len(text) < _DIGITS:  # nearly all
        return int(text)
    if _INTEGER.fullmatch(text) is None:
        return None
    number = int(text)
    return number if INT64_MIN <= number <= INT64_MAX else None
