"""Copies an LMDB environment, compacted, as it is at one moment: `python -m merklekv_tool.snapshot.lmdb_copy FROM TO`.

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
from merklekv.engine.base import DATA_FILE, is_full, map_size_of, translate
from merklekv.engine.lmdb_file import require_whole
from merklekv.errors import DiskFull, StorageFailed
from merklekv_tool.errors import FileError
from merklekv_tool.output import Update

POLL_S: Final = 0.1
ATTEMPTS: Final = 10


def copy(source: Path, target: Path, update: Update) -> None:
    """Copies the environment in `source`, which other processes may write to, into the directory `target`.

    `update` gets bytes. Raises Corruption, StorageFailed, DiskFull, FileError.
    """
    require_whole(source / DATA_FILE)
    for _ in range(ATTEMPTS):
        status, said = _try(source, target, update)
        if not status:
            return
        name, message = said.partition(" ")[::2]
        if name != lmdb.LockError.__name__:  # it may be of the process id, see `translate`
            break
    if is_full(target):  # LMDB has several errors for it
        raise DiskFull(f"{target.parent}: disk full, no room for the copy")
    if os.strerror(errno.EACCES) in message:
        raise FileError(
            f"{source}: cannot be copied: {message}: LMDB has a lock file to write there; be the node's user"
        )
    kind = getattr(lmdb, name, None)
    if isinstance(kind, type) and issubclass(kind, lmdb.Error):
        raise translate(kind(message), source)
    raise StorageFailed(f"{source}: cannot be copied: exit status {status}: {said}")


def _try(source: Path, target: Path, update: Update) -> tuple[int, str]:
    """Runs one child process. Returns its exit status and its stderr."""
    total = (source / DATA_FILE).stat().st_size
    with subprocess.Popen(
        interpreter.command(__name__, str(source), str(target)),
        stderr=subprocess.PIPE,
        text=True,
        env=interpreter.environment(),
    ) as child:
        try:
            while child.poll() is None:
                copied = target / DATA_FILE
                update(copied.stat().st_size if copied.exists() else 0, total)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_S)
        finally:
            child.kill()
        _, said = child.communicate()
    return child.returncode, said.strip()


def main(source: str, target: str) -> None:
    """The child process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.umask(0o077)  # LMDB creates the copy with mode 0666
    try:
        with lmdb.open(source, readonly=True, max_dbs=0, map_size=map_size_of(Path(source))) as environment:
            environment.copy(target, compact=True)
    except lmdb.Error as error:
        sys.exit(f"{type(error).__name__} {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
