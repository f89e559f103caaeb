"""Tells a shortage from a failure of the disk.

A shortage (of descriptors, memory, processes, room on disk, permission, or of a file system that takes writes) harms
no stored data. It ends by itself or when the administrator acts; until then the caller waits, refuses, or tries again.
Any other error of reading, writing or syncing data is a failed disk: its content is unknown afterwards.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from merklekv.errors import DirectoryLocked, DirectoryUnwritable, DiskFull, Shortage

NO_ROOM: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
SHORTAGES: Final = NO_ROOM | {
    errno.EMFILE,
    errno.ENFILE,
    errno.EAGAIN,
    errno.EINTR,
    errno.ENOMEM,
    errno.ENOBUFS,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,  # if a failed disk is the cause, the next sync fails
}


def is_shortage(error: BaseException) -> bool:
    """Whether this error is a shortage, also one that is no OSError."""
    if isinstance(error, OSError):
        return error.errno in SHORTAGES
    no_thread = isinstance(error, RuntimeError) and str(error).startswith("can't start new thread")
    return no_thread or isinstance(error, (Shortage, MemoryError, DirectoryLocked, DirectoryUnwritable))


@contextmanager
def suppress_shortage() -> Iterator[None]:
    """For what may be left undone when it fails for lack of something."""
    try:
        yield
    except OSError as error:
        if not is_shortage(error):
            raise


def shortage_of(error: BaseException, what: str) -> Shortage:
    """The error as a Shortage; `what` names the work that it stopped."""
    if isinstance(error, Shortage):
        return error
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return DiskFull(f"{what}: disk full: {error.strerror}")
    return Shortage(f"{what}: {reason_of(error)}")


def number_of(text: str) -> int:
    """The errno of a shortage whose text ends a library's message; 0 without one."""
    return next((number for number in SHORTAGES if text.endswith(os.strerror(number))), 0)


def reason_of(error: BaseException) -> str:
    """The text of an error, or its name if it has none."""
    if isinstance(error, MemoryError):
        return "out of memory"
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
