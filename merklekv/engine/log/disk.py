"""The system calls that make the log's files and their names durable."""

import os
from pathlib import Path

from merklekv.errors import StorageFailed


def write_whole(fd: int, data: bytes, position: int) -> None:
    """Writes all of `data`: a single write may be cut short."""
    written = os.pwrite(fd, data, position)
    while written < len(data):
        written += os.pwrite(fd, data[written:], position + written)


def sync_file(path: Path) -> None:
    """Makes a file's contents and size durable.  Raises StorageFailed."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    except OSError as error:
        raise StorageFailed(f"{path}: cannot sync: {error.strerror}") from error
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Makes created, renamed and deleted names durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
