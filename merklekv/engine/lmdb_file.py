"""Whether an LMDB file is as long as it says: a look at its two meta pages before LMDB maps it.

LMDB reads pages through a memory map, and a page behind the end of the file kills the process (SIGBUS).

Layout (MDB_page and MDB_meta in LMDB's mdb.c): pages 0 and 1 are meta pages, and the one of the later transaction
counts.  Behind a header of 16 bytes (data format 0.9) or 24 (1.0) each holds, in the byte order of the machine:

    0  magic  4      8  address   8     24  free pages: an MDB_db, which begins with the page size (4)    48
    4  version 4    16  map size  8     72  main: an MDB_db  48     120  last page  8     128  transaction  8
"""

import mmap
import os
import re
from pathlib import Path
from struct import Struct
from typing import Final

from lmdb.verify import VerifyError, verify

from merklekv.engine.access import damage, trouble

MAGIC: Final = 0xBEEFC0DE
VERSIONS: Final = (1, 2)  # of data formats 0.9 and 1.0
HEADER_SIZES: Final = (16, 24)
PAGE_SIZES: Final = tuple(1 << bits for bits in range(8, 17))
# LMDB's lists of several values to a key: a long list has pages of its own, and when it is emptied, LMDB 0.9 goes on
# counting some of them.  It only shows the number, in its statistics.
_PAGES_OF_LISTS: Final = re.compile(
    r"main/(?:index|tombstones|expiries) DB: walked (\d+) (?:branch|leaf) pages"
    r"(?: \((\d+) with dup sub-trees\))?, record says (\d+)"
)
FIRST_SYNC: Final = 3 * mmap.PAGESIZE  # bytes
_META: Final = Struct("=II16xI92xQQ")  # magic, version, page size, last page, transaction


def is_new(data: Path) -> bool:
    """Whether there is no base in this file: it is missing, empty, or was cut off while LMDB made it.

    LMDB syncs it for the first time with three pages, in which there is no entry.  Raises OSError.
    """
    try:
        with data.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return size == 0 or (size <= FIRST_SYNC and _size_needed(file.fileno()) is None)
    except FileNotFoundError:
        return True


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
    if size >= needed or not page_damage(data):
        return ""
    return f"is {size} bytes long, expected {needed}: it was cut off"


def page_damage(data: Path) -> list[str]:
    """What is wrong with the pages of a file that no process has open, in words.  Reads all of them."""
    try:
        found: list[str] = verify(str(data))  # type: ignore[no-untyped-call]
    except VerifyError as error:
        return [str(error)]
    return [sentence for sentence in found if not _counts_too_many(sentence)]


def _counts_too_many(sentence: str) -> bool:
    """Whether it says of a database of lists that LMDB counts more pages than there are."""
    match = _PAGES_OF_LISTS.fullmatch(sentence)
    return match is not None and int(match[3]) > int(match[2] or match[1])


def _size_needed(fd: int) -> int | None:
    """Bytes up to the end of the last page, None without two meta pages."""
    for header in HEADER_SIZES:
        first = _meta(fd, header)
        if first is not None and first[0] in PAGE_SIZES:
            second = _meta(fd, first[0] + header)
            if second is not None:
                page_size, last_page, _ = max(first, second, key=lambda meta: meta[2])
                return int((last_page + 1) * page_size)
    return None


def _meta(fd: int, position: int) -> tuple[int, int, int] | None:
    """Page size, last page and transaction."""
    packed = os.pread(fd, _META.size, position)
    magic, version, *meta = _META.unpack(packed) if len(packed) == _META.size else (0, 0, 0, 0, 0)
    return (meta[0], meta[1], meta[2]) if magic == MAGIC and version in VERSIONS else None
