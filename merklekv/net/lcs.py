"""The longest common subsequence of two strings, and which of them Redis finds.

The table of the textbook, L[i][j] for the first i bytes of `a` and the first j of `b`, is computed a row at a time, by
a few operations on large numbers (Hyyrö, "Bit-parallel LCS-length computation revisited", 2004). A row is kept as one
number, whose bit j says whether L rises by one behind j. Rows are those of the shorter string: few, and each is long.

The way back through the table is Redis's: where the bytes differ, to i - 1 only if L is larger there than at j - 1.

Cost: 0.1 ms for two strings of 1 KiB; memory: CELLS_MAX bits for the rows, and as much for masks. Strings that differ
much in length take up to 4 s for the way back, 0.2 us for each byte. All in slices of a few ms.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from merklekv.net.steps import Steps

CELLS_MAX: Final = 1 << 27  # of the table; Redis's limit, unless configured otherwise
MASK_STEP_BYTES: Final = 1 << 16  # of a string that are turned into bits at once
ROW_STEP_BITS: Final = 1 << 23  # of rows between two yields, about 1 ms
BACK_STEP: Final = 5000  # cells on the way back between two yields


class Match(NamedTuple):
    """A part that both strings have, from the last one to the first."""

    a: int  # where it begins in a
    b: int
    size: int


@dataclass
class Table:
    """The rows, up to the last byte of the shorter string."""

    a: bytes
    b: bytes
    rows: list[int]  # of the empty string first

    @property
    def length(self) -> int:
        return self.rows[-1].bit_count()

    def __sizeof__(self) -> int:
        """With the rows: a client may let many of its commands wait in the midst of the way back."""
        return (len(self.a) + 1) * (len(self.b) + 1) >> 3


def fits(a: bytes, b: bytes) -> bool:
    """Whether the table is small enough."""
    return (len(a) + 1) * (len(b) + 1) <= CELLS_MAX


def compare(a: bytes, b: bytes) -> Generator[None, None, Table]:
    """Fills the table of two strings that fit, in slices."""
    short, long = (a, b) if len(a) <= len(b) else (b, a)
    every = (1 << len(long)) - 1
    masks: dict[int, int] = {}
    rows = [0]
    falls = every  # the complement of a row
    steps = Steps(ROW_STEP_BITS)
    for byte in short:
        mask = masks.get(byte)
        if mask is None:
            mask = masks[byte] = yield from _mask(long, byte)
        common = falls & mask
        falls = (falls + common | falls - common) & every
        rows.append(falls ^ every)
        if steps.add(len(long) + 1000):
            yield None
    return Table(a, b, rows)


def _mask(text: bytes, byte: int) -> Generator[None, None, int]:
    """The number whose bit n says whether byte n of the text is this one."""
    digits = bytes(48 + (one == byte) for one in range(256))
    parts: list[bytes] = []
    for at in range(0, len(text), MASK_STEP_BYTES):
        if at:
            yield None
        part = text[at : at + MASK_STEP_BYTES]
        parts.append(int(part[::-1].translate(digits), 2).to_bytes(len(part) + 7 >> 3, "little"))
    return int.from_bytes(b"".join(parts), "little")


def matches(table: Table) -> Generator[None, None, list[Match]]:
    """The parts that make up the subsequence, last one first, in slices."""
    found: list[Match] = []
    size = 0
    steps = Steps(BACK_STEP)
    i, j = len(table.a), len(table.b)
    for i, j, is_match in _way_back(table):
        if is_match:
            size += 1
        elif size:
            found.append(Match(i, j, size))
            size = 0
        if steps.add(1):
            yield None
    if size:
        found.append(Match(i, j, size))
    return found


def _way_back(table: Table) -> Iterator[tuple[int, int, bool]]:
    """The cells from the last one on: (i, j) in front of a match, or where a step without one begins."""
    return _back_by_a(table) if len(table.a) <= len(table.b) else _back_by_b(table)


def _back_by_a(table: Table) -> Iterator[tuple[int, int, bool]]:
    """Bit j of row i: does L rise from j to j + 1?  Where it rises, L[i - 1][j] is as large as L[i][j]."""
    a, b, rows = table.a, table.b, table.rows
    i, j = len(a), len(b)
    bits = _bytes(rows[i], len(b))
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            bits = _bytes(rows[i], len(b))
            yield i, j, True
            continue
        yield i, j, False
        if bits[j - 1 >> 3] >> (j - 1 & 7) & 1:
            i -= 1
            bits = _bytes(rows[i], len(b))
        else:
            j -= 1


def _back_by_b(table: Table) -> Iterator[tuple[int, int, bool]]:
    """Bit i of row j: does L rise from i to i + 1?  L of this row and of the one before it are carried along."""
    a, b, rows = table.a, table.b, table.rows
    i, j = len(a), len(b)
    here = table.length
    while i and j:
        before = (rows[j - 1] & (1 << i) - 1).bit_count()
        bits = _bytes(rows[j - 1], len(a))
        while i and a[i - 1] != b[j - 1]:
            yield i, j, False
            if here == before:
                break
            i -= 1
            before -= bits[i >> 3] >> (i & 7) & 1
        else:
            if i:
                i, j, here = i - 1, j - 1, here - 1
                yield i, j, True
            continue
        j, here = j - 1, before


def _bytes(row: int, size: int) -> bytes:
    return row.to_bytes((size >> 3) + 1, "little")
