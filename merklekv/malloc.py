"""Has the C library give memory back to the system when large blocks are freed.

glibc raises the size from which a block is mapped by itself up to that of the largest block ever freed, 32 MiB at most.
From then on large requests and values come from the heap, where one small block behind them keeps them all resident.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

# Of mallopt(3).
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
MAPPED_BYTES: Final = 1 << 20  # from this size on; smaller ones would pay more for page faults than they give back
TRIMMED_BYTES: Final = 4 << 20  # free at the end of the heap


_libc: Final = ctypes.CDLL(None)


def give_memory_back() -> None:
    """Fixes both sizes for this process, and has all threads share one heap: they hold one lock anyway.

    Before threads start. Without effect where the C library has no mallopt, as all of this.
    """
    with suppress(AttributeError):
        _libc.mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
        _libc.mallopt(_TRIM_THRESHOLD, TRIMMED_BYTES)
        _libc.mallopt(_ARENA_MAX, 1)


def trim() -> None:
    """Gives back what is free within the heap, too, see malloc_trim(3)."""
    with suppress(AttributeError):
        _libc.malloc_trim(0)
