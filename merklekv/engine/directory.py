"""The data directory: made, recognised, and held by one process at a time."""

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Final

from merklekv.engine.format import FORMAT_LINE, FORMAT_VERSION
from merklekv.engine.log import sync_directory
from merklekv.errors import DirectoryLocked, DirectoryUnwritable, FormatTooNew, NotADataDirectory

ORPHAN_TIMEOUT_S: Final = 10.0  # how long the absorbing child of a killed server may need to notice
ORPHAN_POLL_S: Final = 0.02


class DataDirectory:
    """A data directory that this process holds until `release`.

    Raises DirectoryUnwritable, NotADataDirectory, FormatTooNew, DirectoryLocked.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base = path / "base"
        self.log = path / "log"
        try:
            path.mkdir(parents=True, exist_ok=True)
            require_format(path, may_be_new=True)
            self.lock_fd = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DirectoryUnwritable(
                f"{path}: cannot use this as data directory: {error.strerror}; make it writable or choose another"
            ) from error
        try:
            lock_directory(self.lock_fd, path)
            holder = f"{os.getpid()}\n".encode()
            os.pwrite(self.lock_fd, holder, 0)  # over what is there: a full disk must not keep a node from starting
            os.ftruncate(self.lock_fd, len(holder))
            self._make()
        except OSError as error:
            os.close(self.lock_fd)
            raise DirectoryUnwritable(f"{path}: cannot write the data directory: {error.strerror}") from error
        except DirectoryLocked:
            os.close(self.lock_fd)
            raise

    def release(self) -> None:
        """Lets the next process in."""
        os.close(self.lock_fd)

    def _make(self) -> None:
        self.base.mkdir(exist_ok=True)
        self.log.mkdir(exist_ok=True)
        mark = self.path / "FORMAT"
        if not mark.exists():
            draft = self.path / "FORMAT.new"
            with draft.open("w") as file:
                file.write(f"{FORMAT_LINE}{FORMAT_VERSION}\n")
                file.flush()
                os.fsync(file.fileno())
            draft.rename(mark)
            sync_directory(self.path)
            sync_directory(self.path.absolute().parent)


def lock_directory(lock_fd: int, path: Path) -> None:
    """Takes the lock through a descriptor of the file LOCK in `path`; DirectoryLocked names the holder."""
    deadline = time.monotonic() + ORPHAN_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = os.pread(lock_fd, 32, 0).decode(errors="replace").strip()
            # The child of a server that was killed holds the lock a moment longer than its parent.
            if _is_alive(holder) or time.monotonic() > deadline:
                raise DirectoryLocked(
                    f"{path}: in use by process {holder or 'unknown'}; stop it first, or choose another directory"
                ) from None
            time.sleep(ORPHAN_POLL_S)


def require_format(path: Path, may_be_new: bool = False) -> None:
    """Refuses what is no data directory, or one that this release cannot read."""
    mark = path / "FORMAT"
    if not mark.exists():
        others = {entry.name for entry in path.iterdir()} - {"LOCK", "FORMAT.new", "base", "log", "lost+found"}
        if may_be_new and not others:
            return
        raise NotADataDirectory(f"{path}: not a MerkleKV data directory (no FORMAT file); choose an empty or a new one")
    line = mark.read_text(errors="replace").strip()
    number = line.removeprefix(FORMAT_LINE)
    if not line.startswith(FORMAT_LINE) or not number.isdigit():
        raise NotADataDirectory(f"{mark}: holds {line[:60]!r}, not '{FORMAT_LINE}{FORMAT_VERSION}'")
    if int(number) > FORMAT_VERSION:
        raise FormatTooNew(
            f"{path}: data format {number} is from a later release; this one reads {FORMAT_VERSION}: upgrade MerkleKV"
        )


def _is_alive(holder: str) -> bool:
    if not holder.isdigit():
        return False
    try:
        os.kill(int(holder), 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True
