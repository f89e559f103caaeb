"""Compaction: the records of the base are written anew, in order, into a base beside it, which takes its place.

LMDB's file never becomes smaller, and deletions that are scattered leave pages that are nearly empty.  The new base has
full pages and no free ones, and contains the same.  space.py says when it is worth that; directory.py has the swap, and
what a start makes of one that was cut off.

Cost: 1.5 us a record and as much for its index entry, and a sync.  Memory: one transaction.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from merklekv.engine import failpoints
from merklekv.engine.base import DATA_FILE, Base, BaseWriter
from merklekv.engine.log.segment import sync_directory, sync_file
from merklekv.files import DIRECTORY_MODE

Progress = Callable[[int, int], None]


def write_compacted(base: Base, place: Path, progress: Progress = lambda done, total: None) -> None:
    """Writes the base anew into the directory `place`, and syncs it.  Nobody may write to the base meanwhile.

    `progress` gets entries written and in all, after each transaction.  An error or an exit leaves nothing in `place`.
    Raises DiskFull, Shortage, Corruption, StorageFailed, OSError.
    """
    remove(place)
    place.mkdir(DIRECTORY_MODE)
    try:
        with BaseWriter(place, sync=False) as writer:
            for done, total in writer.fill(base):
                progress(done, total)
                failpoints.reached("compaction.part")
        sync_file(place / DATA_FILE)
        sync_directory(place)
    except BaseException:
        remove(place)
        raise


def remove(place: Path) -> None:
    """Removes a base that is not, or not yet, the one in use."""
    shutil.rmtree(place, ignore_errors=True)
