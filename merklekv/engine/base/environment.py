"""The LMDB environment of the base: its databases, how it is opened, and what its errors mean."""

import errno
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

import lmdb

from merklekv.engine.access import damage, no_permission
from merklekv.engine.lmdb_file import require_whole
from merklekv.errors import DirectoryLocked, DiskFull, MerkleKVError, Shortage, StorageFailed
from merklekv.files import FILE_MODE
from merklekv.pause import pause
from merklekv.shortage import NO_ROOM, number_of

FULL_BELOW: Final = 1 << 20  # bytes: a disk with less room than this is taken for full when a write has failed
# Sparse: an address range, not memory and not disk.  It is larger where the file already is.
MAP_SIZE: Final = 1 << 38 if sys.maxsize > 2**32 else 1 << 30

DATA_FILE: Final = "data.mdb"
DATABASES: Final = (b"records", b"index", b"tombstones", b"expiries", b"leaves", b"meta")
LISTS: Final = (b"index", b"tombstones", b"expiries")  # several sorted values to a key
FIXED_LISTS: Final = (b"expiries",)  # of one size
METADATA_PREFIX: Final = b"metadata:"

OPEN_PATIENCE_S: Final = 10.0
OPEN_POLL_S: Final = 0.1
SHORTAGES: Final = (lmdb.ReadersFullError, lmdb.MapFullError, lmdb.MapResizedError, lmdb.MemoryError, lmdb.TlsFullError)
DAMAGES: Final = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.BadTxnError,  # the call before met damage, and did not say so
)
_EIO: Final = os.strerror(errno.EIO)


def translate(error: lmdb.Error, path: Path) -> MerkleKVError:
    """What an LMDB error means to the person who runs the node."""
    text = str(error)
    if isinstance(error, DAMAGES):
        return damage(f"{path}: LMDB reports damage: {text}")
    if isinstance(error, lmdb.LockError):
        return DirectoryLocked(
            f"{path}: in use by a process of another container with the same process id as this one; try again"
        )
    number = number_of(text)
    if number in NO_ROOM or isinstance(error, lmdb.DiskError) or (text.endswith(_EIO) and is_full(path)):
        return DiskFull(f"{path}: disk full, cannot checkpoint")
    if number in (errno.EACCES, errno.EPERM) or isinstance(error, lmdb.ReadonlyError):
        return no_permission(path.parent)
    if number == errno.ENOMEM and 0 <= resource.getrlimit(resource.RLIMIT_AS)[0] < MAP_SIZE:
        return Shortage(
            f"{path}: needs {MAP_SIZE >> 30} GiB of address space, which is no memory: raise the limit (ulimit -v, "
            "LimitAS)"
        )
    if number or isinstance(error, SHORTAGES):
        return Shortage(f"{path}: LMDB lacks something: {text}")
    return StorageFailed(f"{path}: LMDB failed: {text}")


@contextmanager
def translating(path: Path) -> Iterator[None]:
    """What the block reads of the base in this directory: an error of LMDB is raised as what it means."""
    try:
        yield
    except lmdb.Error as error:
        raise translate(error, path) from error


def is_full(directory: Path) -> bool:
    """Whether the disk has no room left.  LMDB calls a write that this has cut short an input/output error."""
    try:
        with TemporaryFile(dir=directory) as probe:
            os.posix_fallocate(probe.fileno(), 0, FULL_BELOW)
    except OSError as error:
        return error.errno in NO_ROOM
    return False


@contextmanager
def opened(path: Path, patience_s: float, **options: Any) -> "Iterator[tuple[lmdb.Environment, list[Any]]]":
    """An environment and its databases; it stays open unless the block fails."""
    require_whole(path / DATA_FILE)
    try:
        environment = _open(path, patience_s, **options)
        try:
            create = not options.get("readonly")
            yield environment, [open_database(environment, name, create) for name in DATABASES]
        except BaseException:
            environment.close()
            raise
    except lmdb.Error as error:
        raise translate(error, path) from error


def open_database(environment: "lmdb.Environment", name: bytes, create: bool = False) -> Any:
    """One of DATABASES."""
    return environment.open_db(name, create=create, dupsort=name in LISTS, dupfixed=name in FIXED_LISTS)


def map_size_of(directory: Path) -> int:
    """Bytes of address space for the base in this directory, or for a new one."""
    file = directory / DATA_FILE
    return max(MAP_SIZE, 2 * file.stat().st_size if file.exists() else 0)


def _open(path: Path, patience_s: float, **options: Any) -> lmdb.Environment:
    """LMDB locks a byte for the process id of each user; another container may have a process of the same id."""
    map_size = map_size_of(path)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return lmdb.open(
                str(path), mode=FILE_MODE, max_dbs=len(DATABASES), map_size=map_size, readahead=False, **options
            )
        except lmdb.LockError:
            if time.monotonic() >= deadline:
                raise
            pause(OPEN_POLL_S)
