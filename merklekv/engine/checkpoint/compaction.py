"""Compaction: the records of the base are written anew, in order, into a base beside it, which takes its place.

LMDB's file never becomes smaller, and deletions that are scattered leave pages that are nearly empty.  The new base has
full pages and no free ones, and contains the same.  space.py says when it is worth that; directory.py has the swap, and
what a start makes of one that was cut off.

Cost: 1.5 us a record and as much for its index entry, and a sync.  Memory: one transaction.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from merklekv.engine import failpoints
from merklekv.engine.base.environment import DATA_FILE
from merklekv.engine.base.reader import Base
from merklekv.engine.base.writer import BaseWriter
from merklekv.engine.log.segment import sync_directory, sync_file
from merklekv.files import DIRECTORY_MODE, FILE_MODE

LOCK_FILE: Final = "lock.mdb"
LOCK_FILE_SIZE: Final = 8192  # as LMDB makes it

Progress = Callable[[int, int], None]


def write_compacted(base: Base, place: Path, progress: Progress = lambda done, total: None) -> None:
    """Writes the base anew into the directory `place`, and syncs it.  Nobody may write to the base meanwhile.

    `progress` gets entries written and in all, after each transaction.  An error or an exit leaves nothing in `place`.
    Raises DiskFull, Shortage, Corruption, StorageFailed, OSError.
    """
    remove(place)
    try:
        place.mkdir(DIRECTORY_MODE)  # within the try, or a signal right after it would leave the directory
        _reserve_lock_file(place)
        with BaseWriter(place, sync=False) as writer:
            for done, total in writer.fill(base):
                progress(done, total)
                failpoints.reached("compaction.part")
        for name in ("", DATA_FILE, LOCK_FILE):
            _permit(place / name, base.path / name)
        sync_file(place / DATA_FILE)
        sync_directory(place)
    except BaseException:
        remove(place)
        raise


def _reserve_lock_file(place: Path) -> None:
    """LMDB writes to its lock file through a memory map: on a full disk the kernel kills the process for that."""
    fd = os.open(place / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
    try:
        os.posix_fallocate(fd, 0, LOCK_FILE_SIZE)
    finally:
        os.close(fd)


def _permit(file: Path, model: Path) -> None:
    """Lets those use a file who may use another: an administrator may have opened the base to a group."""
    with suppress(PermissionError, FileNotFoundError):  # of a group that this user does not belong to
        shutil.copymode(model, file)
        os.chown(file, -1, model.stat().st_gid)


def remove(place: Path) -> None:
    """Removes a base that is not, or not yet, the one in use."""
    shutil.rmtree(place, ignore_errors=True)
