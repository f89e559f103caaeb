"""Whether an LMDB file is as long as it says: a look at its two meta pages before LMDB maps it.

LMDB reads pages through a memory map, and a page behind the end of the file kills the process (SIGBUS).

Layout (MDB_page and MDB_meta in LMDB's mdb.c): pages 0 and 1 are meta pages, and the one of the later transaction
counts.  Behind a header of 16 bytes (data format 0.9) or 24 (1.0) each holds, in the byte order of the machine:

    0  magic  4      8  address   8     24  free pages: an MDB_db, which begins with the page size (4)    48
    4  version 4    16  map size  8     72  main: an MDB_db  48     120  last page  8     128  transaction  8
"""

import os
from pathlib import Path
from struct import Struct
from typing import Final

from lmdb.verify import VerifyError, verify

from merklekv.engine.access import damage, trouble

MAGIC: Final = 0xBEEFC0DE
HEADER_SIZES: Final = (16, 24)
PAGE_SIZES: Final = tuple(1 << bits for bits in range(8, 17))
_META: Final = Struct("=I20xI92xQQ")  # magic, page size, last page, transaction


def require_whole(data: Path) -> None:
    """Raises Corruption if this file of a base is too short, and the errors of `trouble`."""
    try:
        short = shortfall(data)
    except OSError as error:
        raise trouble(error, data.parent.parent) from error
    if short:
        raise damage(f"{data}: {short}")


def shortfall(data: Path) -> str:
    """What is wrong with the length of the file, in words, or "".  A file that is missing or empty is new."""
    try:
        with data.open("rb") as file:
            needed = _size_needed(file.fileno())
            size = os.fstat(file.fileno()).st_size  # afterwards: beside a node the file only grows
    except FileNotFoundError:
        size = 0
    if size == 0:
        return ""
    if needed is None:
        return f"is {size} bytes long and does not begin with the two meta pages of LMDB"
    # LMDB does not write pages that the last transaction has taken and given back, so the end may be missing.
    if size >= needed or not _is_damaged(data):
        return ""
    return f"is {size} bytes long, expected {needed}: it was cut off"


def _size_needed(fd: int) -> int | None:
    """Bytes up to the end of the last page, None without two meta pages."""
    for header in HEADER_SIZES:
        first = _meta(fd, header)
        if first is not None and first[1] in PAGE_SIZES:
            second = _meta(fd, first[1] + header)
            if second is not None:
                _, page_size, last_page, _ = max(first, second, key=lambda meta: meta[3])
                return int((last_page + 1) * page_size)
    return None


def _meta(fd: int, position: int) -> tuple[int, int, int, int] | None:
    packed = os.pread(fd, _META.size, position)
    meta = _META.unpack(packed) if len(packed) == _META.size else (0, 0, 0, 0)
    return meta if meta[0] == MAGIC else None


def _is_damaged(data: Path) -> bool:
    try:
        return bool(verify(str(data)))  # type: ignore[no-untyped-call]
    except VerifyError:
        return True
