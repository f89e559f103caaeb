"""What tells a shortage from a failure: the one list of errors that harm nothing that is stored.

A shortage (no descriptor, no memory, no process, no room on disk, no permission) passes by itself or by what somebody
does about it.  Who meets one waits, refuses or tries again, and goes on when it is over.  Every other error of reading,
writing or syncing data is a failed disk: what the disk holds is unknown then.
"""

import errno
import os
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
}


def is_shortage(error: BaseException) -> bool:
    """Whether this passes by itself; also where Python has a class of its own for it."""
    if isinstance(error, OSError):
        return error.errno in SHORTAGES
    no_thread = isinstance(error, RuntimeError) and str(error).startswith("can't start new thread")
    return no_thread or isinstance(error, (Shortage, MemoryError, DirectoryLocked, DirectoryUnwritable))


def shortage_of(error: BaseException, what: str) -> Shortage:
    """A shortage in words; `what` says what it has kept from being done."""
    if isinstance(error, Shortage):
        return error
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return DiskFull(f"{what}: disk full: {error.strerror}")
    return Shortage(f"{what}: {reason_of(error)}")


def number_of(text: str) -> int:
    """The number of the error that a library has put in words at the end of a sentence; 0 if it is no shortage."""
    return next((number for number in SHORTAGES if text.endswith(os.strerror(number))), 0)


def reason_of(error: BaseException) -> str:
    """What an error says, or its name if it says nothing."""
    if isinstance(error, MemoryError):
        return "out of memory"
    return (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
