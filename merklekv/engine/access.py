"""What keeps a data directory from being used: damage, a wrong owner, a shortage, a failed disk."""

import errno
import os
import pwd
from itertools import chain
from pathlib import Path
from typing import Final

from merklekv.errors import Corruption, DirectoryUnwritable, MerkleKVError, StorageFailed
from merklekv.shortage import is_shortage, shortage_of

_NAME_ERRORS: Final = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR)


def trouble(error: OSError, directory: Path) -> MerkleKVError:
    """What an error of a file in this data directory means to the person who runs the node."""
    if isinstance(error, PermissionError):
        return no_permission(directory)
    if error.errno == errno.EROFS:
        return DirectoryUnwritable(f"{directory}: cannot write the data directory: {error.strerror}")
    what = f"{error.filename or directory}: cannot be opened"
    if error.errno in _NAME_ERRORS:
        return DirectoryUnwritable(f"{what}: {error.strerror}")
    return shortage_of(error, what) if is_shortage(error) else StorageFailed(f"{what}: {error.strerror}")


def damage(what: str) -> Corruption:
    """The error for a damaged file; `what` names the file and the damage."""
    return Corruption(f"{what}; keep the directory, and restore a backup or let the other nodes fill a new one")


def require_access(directory: Path) -> None:
    """Raises DirectoryUnwritable unless log and base can be read and written, now and later."""
    if _unusable(directory):
        raise no_permission(directory)


def no_permission(directory: Path) -> DirectoryUnwritable:
    """Names the first file in a data directory that this process may not use, its owner, and the way out."""
    path = _unusable(directory, "*") or directory
    user, owner = os.geteuid(), path.stat().st_uid
    if owner == user:
        return DirectoryUnwritable(f"{path}: no permission to use it; chmod -R u+rwX {directory}")
    return DirectoryUnwritable(
        f"{path}: belongs to {_name(owner)}, this process to {_name(user)}; chown -R {_name(user)} {directory}"
    )


def _unusable(directory: Path, *others: str) -> Path | None:
    """The first that cannot be used of the directory, log, base and their files, and of what the patterns match."""
    parts = (directory / "log", directory / "base")
    files = (file for part in parts for file in (part, *sorted(part.glob("*"))))
    more = (file for pattern in others for file in sorted(directory.glob(pattern)))
    for path in chain((directory,), files, more):
        needed = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
        if path.exists() and not os.access(path, needed, effective_ids=True):
            return path
    return None


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
