"""Copies an LMDB environment as it is at one moment: `python -m merklekv_tool.snapshot.lmdb_copy FROM TO`.

It copies free pages, too. LMDB 0.9.36, which lmdb 3.0.0 brings, crashes in a copy without them (`compact=True`) where a
list of values of one size, such as that of the expiries, fills a page of its own.

LMDB's copy is one call that may take minutes and cannot be interrupted, so it runs in a process of its own, which can
be killed. That process reports an error in one line: the class of LMDB's error and its message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import lmdb

from merklekv import interpreter
from merklekv.engine.access import damage
from merklekv.engine.base.environment import DATA_FILE, is_full, map_size_of, translate
from merklekv.engine.directory import base_of
from merklekv.engine.lmdb_file import DAMAGE_SIGNALS, require_whole, unreadable
from merklekv.errors import DiskFull, StorageFailed
from merklekv_tool.errors import FileError
from merklekv_tool.output import Update

POLL_S: Final = 0.1
ATTEMPTS: Final = 10
REPLACED: Final = "Replaced"  # a compaction of the node has put another base there


def copy(directory: Path, target: Path, update: Update) -> None:
    """Copies the base of a data directory, which other processes may write to and replace, into the directory `target`.

    `update` gets bytes. Raises Corruption, StorageFailed, DiskFull, FileError.
    """
    for _ in range(ATTEMPTS):
        source = base_of(directory)
        require_whole(source / DATA_FILE)
        status, said = _try(source, target, update)
        if not status:
            return
        name, message = said.partition(" ")[::2]
        if name not in (lmdb.LockError.__name__, REPLACED):  # it may be of the process id, see `translate`
            break
    if is_full(target):  # LMDB has several errors for it
        raise DiskFull(f"{target.parent}: disk full, no room for the copy")
    if os.strerror(errno.EACCES) in message:
        raise FileError(
            f"{source}: cannot be copied: {message}: LMDB has a lock file to write there; be the node's user"
        )
    if -status in DAMAGE_SIGNALS:
        raise damage(f"{source / DATA_FILE}: {unreadable(status)}")
    kind = getattr(lmdb, name, None)
    if isinstance(kind, type) and issubclass(kind, lmdb.Error):
        raise translate(kind(message), source)
    raise StorageFailed(f"{source}: cannot be copied: exit status {status}: {said}")


def _try(source: Path, target: Path, update: Update) -> tuple[int, str]:
    """Runs one child process. Returns its exit status and its stderr."""
    total = size_of(source / DATA_FILE)
    with subprocess.Popen(
        interpreter.command(__name__, str(source), str(target)),
        stderr=subprocess.PIPE,
        text=True,
        env=interpreter.environment(),
    ) as child:
        try:
            while child.poll() is None:
                update(size_of(target / DATA_FILE), total)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_S)
        finally:
            child.kill()
        _, said = child.communicate()
    return child.returncode, said.strip()


def size_of(file: Path) -> int:
    """Bytes of a file, 0 without one: a compaction may replace it at any moment."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def main(source: str, target: str) -> None:
    """The child process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.umask(0o077)  # LMDB creates the copy with mode 0666
    place = Path(source)
    base = _identity(place)
    try:
        with lmdb.open(source, readonly=True, max_dbs=0, map_size=map_size_of(place)) as environment:
            if _identity(place) == base:  # else the lock file may be of one base and the data of another
                environment.copy(target)
                return
    except (lmdb.Error, FileNotFoundError) as error:
        if _identity(place) == base:
            sys.exit(f"{type(error).__name__} {error}")
    sys.exit(f"{REPLACED} while it was opened")


def _identity(place: Path) -> tuple[int, int] | None:
    try:
        status = place.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


if __name__ == "__main__":
    main(*sys.argv[1:])
