"""Headroom: the space on disk that is kept for deletions and checkpoints.

Only a checkpoint gives the space of the log back, and only checkpoints turn deleted records into free pages of the
base.  Both need space first.  So a write that makes the data grow is accepted only while enough is left behind it:

    growing    space  >=  2 x log + kept        a SET, INCR, a record of another node
    urgent     space  >=  2 x log + 3/4 kept    a DEL, FLUSHALL, a tombstone, what the node itself stores

    space      free on the disk, the reserve file, and the free pages of the base
    log        bytes after the checkpoint; records need up to 1.5 times as much in the half-full pages of the base
    kept       what the copy-on-write of a checkpoint in small transactions needs: KEPT, or a quarter of a smaller disk

An urgent write does not count the log of urgent writes.  It is accepted whatever is left while the log is short, and if
half of `kept` is left while no checkpoint can be made.

The reserve file (`log/.reserve`) holds space that other programs cannot take and that a quota has counted already.
With the free pages of the base it has `kept` bytes, or growing writes are refused.  It is deleted when a checkpoint, an
urgent write or a compaction finds no space, and made again when there is some.  Its content and its presence mean
nothing, so no crash can harm it.

A quota of a user does not show in what is free.  When the file system refuses what should fit (`is_limited`), only a
trial tells whether there is space again.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from merklekv.engine.base.reader import Base
from merklekv.engine.base.writer import BaseWriter
from merklekv.files import FILE_MODE
from merklekv.shortage import NO_ROOM

KEPT: Final = 8 << 20  # bytes; see `transaction_keys`
SHORT_LOG: Final = 8  # a log below this part of `kept` is short: a checkpoint of it would not give back much
TINY_LOG: Final = 64  # below this part of it, nothing is expected of a checkpoint
SPARE: Final = 32  # this part of `kept` stays free on the disk itself
RESERVE_FILE: Final = ".reserve"
KEY_BYTES: Final = 12 * 4096  # pages that a key of a transaction copies, until the transaction after the next
TRANSACTION_KEYS_MIN: Final = 16
UNKNOWN_SPACE: Final = 1 << 60


def disk_space(directory: Path) -> tuple[int, int]:
    """Bytes of the file system of a directory, and how many of them are free for this user.

    Very many where the file system does not say: FUSE, and tmpfs without a limit, report no blocks at all.
    """
    status = os.statvfs(directory)
    if not status.f_blocks:
        return UNKNOWN_SPACE, UNKNOWN_SPACE
    return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize


def transaction_keys(base: BaseWriter, directory: Path, most: int) -> int:
    """How many keys, up to `most`, a transaction of a checkpoint may change: fewer copy fewer pages."""
    space = disk_space(directory)[1] + base.free_bytes
    return max(min(TRANSACTION_KEYS_MIN, most), min(most, space // KEY_BYTES))


def _size(path: Path) -> int:
    """Bytes that a file has on disk."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


class Headroom:
    """Says whether a write leaves enough space.  The caller holds the engine's lock.

    Costs: a statvfs for each answer.
    """

    def __init__(self, log_directory: Path, end_lsn: int) -> None:
        self.is_short = False  # whether the last growing write that asked was refused
        self.is_limited = False  # whether the file system has refused what should fit: by a quota, or a limit on files
        self.releases = 0  # how often the reserve was given up
        self._directory = log_directory
        self._path = log_directory / RESERVE_FILE
        self._reserved = _size(self._path)
        self._checkpoint_lsn = self._free_in_base = 0
        self._grown_to = end_lsn  # LSN up to which growing writes were admitted

    def measure(self, base: Base) -> None:
        """Notes what of the log the base has, and its free pages."""
        self._checkpoint_lsn = base.checkpoint_lsn
        self._free_in_base = base.space.free

    def admits(self, end_lsn: int, growth: int) -> bool:
        """Whether a growing write may take the log to `end_lsn`, for which its file has to grow by `growth` bytes."""
        kept, free = self._look()
        if self._lacking(kept) > 0:
            self._make(kept, free)
            kept, free = self._look()
        on_disk = free + self._reserved - growth  # the log cannot use free pages of the base
        self.is_short = (
            self._lacking(kept) > 0 or on_disk < kept // SPARE or not self._has(free - growth, end_lsn, kept)
        )
        if not self.is_short:
            self._grown_to = max(self._grown_to, end_lsn)
        return not self.is_short

    def has_space(self, end_lsn: int, size: int) -> bool:
        """Whether `size` more bytes of log would be admitted, and a little more is free on the disk."""
        kept, free = self._look()
        has_space = free >= size + kept // SPARE and self.admits(end_lsn + size, size)
        return has_space and (not self.is_limited or self._try(size + kept // SPARE))

    def admits_urgent(self, end_lsn: int, growth: int, is_blocked: bool) -> bool:
        """Likewise for an urgent write; `is_blocked`: no checkpoint can be made."""
        kept, free = self._look()
        log_size = end_lsn - self._checkpoint_lsn
        if is_blocked:
            return self._has(free - growth, 0, kept // 2)
        if free + self._reserved - growth < kept // SHORT_LOG:  # a checkpoint cannot live on free pages alone
            return log_size <= kept // TINY_LOG
        return log_size <= kept // SHORT_LOG or self._has(free - growth, self._grown_to, kept * 3 // 4)

    def _has(self, free: int, log_end: int, kept: int) -> bool:
        space = free + self._reserved + self._free_in_base
        return space >= 2 * max(0, log_end - self._checkpoint_lsn) + kept

    def is_worth_a_checkpoint(self, log_size: int) -> bool:
        """Whether so much log should go into the base now, since the disk is short."""
        return self.is_short and log_size > self.kept // SHORT_LOG

    def is_worth_a_try(self, log_size: int) -> bool:
        """Whether a checkpoint of so much log may make space at all."""
        return log_size > self.kept // TINY_LOG

    def keep(self) -> None:
        """Makes the reserve file, or gives back what it has too much since the base has free pages."""
        kept, free = self._look()
        most = max(kept - self._free_in_base, kept // 4)  # not none: the log needs more than free pages
        if self._reserved <= most:
            self._make(kept, free)
            return
        try:
            os.truncate(self._path, most)
            self._reserved = most
        except OSError:
            self.release()

    def release(self) -> bool:
        """Gives the reserve file up; whether there was one."""
        try:
            self._path.unlink()
        except OSError:
            return False
        self._reserved = 0
        self.releases += 1
        return True

    def lend(self, size: int) -> None:
        """Gives the reserve file up for a compaction if `size` bytes are free then; `keep` makes it again."""
        _, free = self._look()
        if self.is_limited or free < size <= free + self._reserved:
            self.release()

    @property
    def kept(self) -> int:
        """Bytes that are kept on this disk."""
        return self._look()[0]

    @property
    def free(self) -> int:
        """Bytes that the file system has free."""
        return self._look()[1]

    def _lacking(self, kept: int) -> int:
        """Bytes that the reserve file lacks."""
        return kept - self._free_in_base - self._reserved

    def _look(self) -> tuple[int, int]:
        """Bytes to keep on this disk, and bytes free."""
        size, free = disk_space(self._directory)
        return min(KEPT, size // 4), free

    def _make(self, kept: int, free: int) -> None:
        """Makes the reserve file as large as it has to be, or as the disk allows."""
        more = min(self._lacking(kept), free - kept // SPARE)
        if more > 0:
            self._extend(more)
            self._reserved = _size(self._path)  # maybe only a part

    def _try(self, size: int) -> bool:
        """Whether the file system really has so many bytes."""
        has_room = self._extend(size)
        with suppress(OSError):
            os.truncate(self._path, self._reserved)
        return has_room

    def _extend(self, more: int) -> bool:
        """Makes the reserve file longer; whether the file system let it."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
            try:
                os.posix_fallocate(fd, 0, self._reserved + more)
            finally:
                os.close(fd)
        except OSError as error:  # or no descriptor: the next time
            self.is_limited = self.is_limited or error.errno in NO_ROOM
            return False
        self.is_limited = False
        return True
