"""The data directory: made, recognised, and locked by one process at a time.

The lock (flock) is on the directory itself, so it does not depend on the files in it.  The file LOCK names the process
for people.

A compaction writes a new base into `base.new`, moves `base` to `base.old` and `base.new` to `base`.  Both contain the
same until the swap is durable, so either may be the one that a crash leaves: a start finds `base`, or else takes
`base.old`, and deletes what remains.  It is the directory that moves, not the file in it, because LMDB's lock file
belongs to the file: what has the old base open goes on reading it.
"""

import errno
import fcntl
import logging
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from merklekv.engine import failpoints
from merklekv.engine.access import no_permission, trouble
from merklekv.engine.format import FORMAT_LINE, FORMAT_VERSION
from merklekv.engine.log.segment import sync_directory
from merklekv.errors import (
    Corruption,
    DirectoryLocked,
    DirectoryUnwritable,
    FormatTooNew,
    InvalidArgument,
    NotADataDirectory,
    StorageFailed,
)
from merklekv.files import DIRECTORY_MODE, FILE_MODE, occupy_standard_files, replace_file
from merklekv.pause import pause
from merklekv.shortage import shortage_of

ORPHAN_TIMEOUT_S: Final = 10.0  # how long the checkpoint process of a killed server may need to notice
ORPHAN_POLL_S: Final = 0.02
MARK_SIZE_MAX: Final = 256  # bytes of FORMAT that are read
PID_SIZE_MAX: Final = 32  # bytes of LOCK that are read
NEW_BASE: Final = "base.new"
OLD_BASE: Final = "base.old"
LEFTOVERS: Final = (NEW_BASE, OLD_BASE)
LOCK_LIST: Final = Path("/proc/locks")  # the kernel's

REMADE: Final = ("node-id", "outbox", "base/lock.mdb")  # a start makes those that are missing
# A link under one of these names would lead the writer elsewhere.
OVERWRITTEN: Final = ("LOCK", "FORMAT.new", "node-id.new", "outbox.new", "log/.next", "log/.reserve")
RESTORE: Final = "move it away, then restore the directory from a backup"
REMAKE: Final = "move it away, a start makes another"

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_KINDS: Final = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link",
}

log = logging.getLogger(__name__)


class DataDirectory:
    """A data directory, locked by this process until `release`.

    Raises InvalidArgument, DirectoryUnwritable, NotADataDirectory, FormatTooNew, DirectoryLocked, Corruption.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.base, self.log = path, path / "base", path / "log"
        self.new_base, self.old_base = path / NEW_BASE, path / OLD_BASE
        _require_name(path)
        with ExitStack() as on_failure:
            try:
                occupy_standard_files()
                path.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)
                self.lock_fd = os.open(path, _OPEN_DIRECTORY)
                on_failure.callback(os.close, self.lock_fd)
                _lock(self.lock_fd, path)
                require_format(path, may_be_new=True)
                _require_own_files(path)
                self._make()
                self._parts = {path: os.fstat(self.lock_fd), self.base: self.base.stat(), self.log: self.log.stat()}
            except OSError as error:
                if isinstance(error, PermissionError) and path.is_dir():
                    raise no_permission(path) from error
                raise DirectoryUnwritable(
                    f"{path}: cannot use this as data directory: {error.strerror}; fix that, or choose another"
                ) from error
            self.require_in_place()
            on_failure.pop_all()

    def require_in_place(self) -> None:
        """Raises StorageFailed when the directory, its base or its log was moved away or replaced since the start.

        Files are opened by name: what is written next would go elsewhere, maybe into the directory of another node.
        Raises Shortage when that cannot be told.
        """
        for path, status in self._parts.items():
            try:
                is_same = os.path.samestat(path.stat(), status)
            except (FileNotFoundError, NotADirectoryError):
                is_same = False
            except OSError as error:
                raise shortage_of(error, f"{path}: cannot be found") from error
            if not is_same:
                raise StorageFailed(f"{path}: was moved or replaced while it was in use; put it back, then start again")

    def require_movable_base(self) -> None:
        """Raises InvalidArgument if the base is a link to elsewhere, or a file system of its own."""
        if self.base.is_symlink() or self.base.stat().st_dev != self.path.stat().st_dev:
            raise InvalidArgument(
                f"{self.base}: is a link or a file system of its own, and cannot be replaced; "
                "`merklekv backup` and `restore` make a compact directory"
            )

    def swap_base(self) -> None:
        """Puts the new base in the place of the base.  Follow it with `finish_swap`.

        Raises OSError, with nothing changed, and StorageFailed.
        """
        self.require_in_place()
        os.rename(self.base, self.old_base)
        failpoints.reached("compaction.moved")
        try:
            os.rename(self.new_base, self.base)
        except OSError as error:
            try:
                os.rename(self.old_base, self.base)
            except OSError:
                problem = f"{self.base}: was moved to {self.old_base}, and cannot be moved back: {error.strerror}"
                raise StorageFailed(f"{problem}; a start does that") from error
            raise
        failpoints.reached("compaction.swapped")
        self._parts[self.base] = self.base.stat()

    def finish_swap(self) -> None:
        """Makes the swap durable, and then deletes the old base.  The base must not be written before.

        It needs no descriptor: at this point a shortage would have to end the node.
        """
        try:
            os.fsync(self.lock_fd)
        except OSError as error:
            raise StorageFailed(f"{self.path}: cannot sync: {error.strerror}") from error
        shutil.rmtree(self.old_base, ignore_errors=True)  # else the next compaction, or a start, tries again

    def remove_leftovers(self) -> None:
        """Deletes what a compaction that was cut off has left; makes the old base the base if there is no other."""
        if not self.base.exists() and self.old_base.exists():
            os.rename(self.old_base, self.base)
        os.fsync(self.lock_fd)  # first, or a power cut could bring back the old base without its files
        for place in (self.new_base, self.old_base):
            shutil.rmtree(place, ignore_errors=True)

    def warn_of_readers(self) -> None:
        """Logs a warning if every user of this machine may read the directory."""
        if self.path.stat().st_mode & stat.S_IRWXO:
            log.warning("%s: other users of this machine may read it: chmod -R go-rwx %s", self.path, self.path)

    def release(self) -> None:
        """Unlocks it.  Gives what root has made in it to its owner."""
        try:
            give_to_owner(".", os.fstat(self.lock_fd), self.lock_fd)
        finally:
            os.close(self.lock_fd)

    def _make(self) -> None:
        lock = os.open(self.path / "LOCK", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
        try:
            pid = f"{os.getpid()}\n".encode()
            os.pwrite(lock, pid, 0)  # over what is there: a full disk must not keep a node from starting
            os.ftruncate(lock, len(pid))
        finally:
            os.close(lock)
        self.remove_leftovers()
        self.base.mkdir(DIRECTORY_MODE, exist_ok=True)
        self.log.mkdir(DIRECTORY_MODE, exist_ok=True)
        mark = self.path / "FORMAT"
        if mark.exists():
            os.fsync(self.lock_fd)  # a process that was killed may have left names that are not durable
        else:
            sync_way_to(self.path)  # first: a start that was cut off before this mark does it again
            replace_file(mark, f"{FORMAT_LINE}{FORMAT_VERSION}\n".encode())


def sync_way_to(path: Path) -> None:
    """Makes the names durable by which a directory is found, up to its mount point: any of them may be new."""
    place = path.absolute()
    while not os.path.ismount(place):
        place = place.parent
        with suppress(PermissionError):  # this user may not list it, and so has not made it
            sync_directory(place)


def base_of(path: Path) -> Path:
    """Where the base of a data directory is, also after a crash in the middle of a swap."""
    base, old = path / "base", path / OLD_BASE
    return old if old.exists() and not base.exists() else base


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Locks a directory during the block, and changes nothing in it.  Raises DirectoryLocked, DirectoryUnwritable."""
    fd = os.open(path, _OPEN_DIRECTORY)
    try:
        _lock(fd, path)
        yield
    finally:
        os.close(fd)


def _lock(lock_fd: int, path: Path) -> None:
    """Raises DirectoryLocked, which names the process, and DirectoryUnwritable where the file system has no locks."""
    deadline = time.monotonic() + ORPHAN_TIMEOUT_S
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pid = _locking_process(lock_fd, path)
            # The checkpoint process of a killed server has the lock a moment longer than the server.
            if _is_alive(pid) or time.monotonic() > deadline:
                raise DirectoryLocked(
                    f"{path}: in use by process {pid or 'unknown'}; stop it first, or choose another directory"
                ) from None
            pause(ORPHAN_POLL_S)
        except OSError as error:
            raise DirectoryUnwritable(
                f"{path}: cannot be locked: {error.strerror}; choose a directory on a local file system"
            ) from error


def _locking_process(lock_fd: int, path: Path) -> str:
    """The process that has the lock: by the kernel's list, else (another container) by the file LOCK."""
    status = os.fstat(lock_fd)
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError):
        for line in LOCK_LIST.read_text().splitlines():
            _, kind, _, _, pid, locked_inode, *_ = line.replace("->", "").split()
            if kind == "FLOCK" and locked_inode == inode and int(pid) > 0:
                return pid
    with suppress(OSError):
        fd = os.open(path / "LOCK", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.pread(fd, PID_SIZE_MAX, 0).decode(errors="replace").strip()
        finally:
            os.close(fd)
    return ""


def _require_name(path: Path) -> None:
    """LMDB opens only a path that is text in the locale's encoding."""
    encoding = sys.getfilesystemencoding()
    try:
        str(path).encode(encoding)
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise InvalidArgument(
            f"{shown}: a data directory's path must be text in the locale's encoding, {encoding}"
        ) from None


def require_format(path: Path, may_be_new: bool = False) -> None:
    """Raises an error unless this release can read the data directory `path`, or make one there (`may_be_new`).

    Raises InvalidArgument, NotADataDirectory, FormatTooNew, Corruption, DirectoryUnwritable.
    """
    _require_name(path)
    mark = path / "FORMAT"
    if not os.path.lexists(mark):
        others = {entry.name for entry in path.iterdir()} - {"LOCK", "FORMAT.new", "base", "log", "lost+found"}
        if not may_be_new or others:
            raise NotADataDirectory(
                f"{path}: not a MerkleKV data directory (no FORMAT file); choose an empty or a new one"
            )
    _require_kinds(path)
    if not mark.exists():
        return
    with mark.open("rb") as file:
        line = file.read(MARK_SIZE_MAX).decode(errors="replace").strip()
    number = line.removeprefix(FORMAT_LINE)
    if not line.startswith(FORMAT_LINE) or not (number.isascii() and number.isdigit()):
        raise NotADataDirectory(
            f"{mark}: holds {line[:60]!r}, not '{FORMAT_LINE}{FORMAT_VERSION}'; choose another directory, or restore "
            "it from a backup"
        )
    if int(number) < FORMAT_VERSION:
        raise NotADataDirectory(
            f"{path}: data format {number} is from before the first release; dump it with the version that wrote it"
        )
    if int(number) > FORMAT_VERSION:
        raise FormatTooNew(
            f"{path}: data format {number} is from a later release; this one reads {FORMAT_VERSION}: upgrade MerkleKV"
        )


def _require_kinds(path: Path) -> None:
    """Refuses a directory, a pipe or the like under the name of a file: opening it may fail, or wait for ever."""
    try:
        segments = [f"log/{segment.name}" for segment in (path / "log").glob("*.log")]
        for names, expected, way_out in (
            (("base", "log"), stat.S_IFDIR, RESTORE),
            (LEFTOVERS, stat.S_IFDIR, "move it away"),
            (("FORMAT", "base/data.mdb", *segments), stat.S_IFREG, RESTORE),
            ((*REMADE, *OVERWRITTEN), stat.S_IFREG, REMAKE),
        ):
            for name in names:
                kind = _kind(path / name, follow_symlinks=name not in (*OVERWRITTEN, *LEFTOVERS))
                if kind not in (expected, None):
                    found = _KINDS.get(kind, "a device")
                    raise Corruption(f"{path / name}: is {found}, not {_KINDS[expected]}; {way_out}")
    except OSError as error:
        raise trouble(error, path) from error


def _require_own_files(path: Path) -> None:
    """Raises DirectoryUnwritable for `shared_files`."""
    for file in shared_files(path):
        raise DirectoryUnwritable(
            f"{file}: has another name, too (a hard link), whose content would change with it; remove that one "
            f"(find / -samefile {file}), or copy the directory (cp -r {path} COPY) and use the copy"
        )


def shared_files(path: Path) -> Iterator[Path]:
    """Files that are written in place and have another name.

    What has that name, such as a snapshot made by `cp -al`, would change with it, and the lock is of the directory.
    """
    base, log_ = base_of(path), path / "log"
    for file in (base / "data.mdb", base / "lock.mdb", log_ / ".next", *log_.glob("*.log")):
        if file.exists() and file.stat().st_nlink > 1:
            yield file


def _kind(path: Path, follow_symlinks: bool) -> int | None:
    try:
        return stat.S_IFMT(path.stat(follow_symlinks=follow_symlinks).st_mode)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        return stat.S_IFLNK if path.is_symlink() else None


def give_to_owner(top: Path | str, owner: os.stat_result, dir_fd: int | None = None) -> None:
    """Gives what root has made in `top` (relative to `dir_fd`) to the owner of a directory; does nothing for others."""
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    for _, directories, files, fd in os.fwalk(top, dir_fd=dir_fd):
        for name in (".", *directories, *files):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            is_alone = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
            if status.st_uid == 0 and is_alone:  # another name of a file may be anywhere, put here by a user
                os.chown(name, owner.st_uid, owner.st_gid, dir_fd=fd, follow_symlinks=False)


def _is_alive(pid: str) -> bool:
    if not (pid.isascii() and pid.isdigit()):
        return False
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
