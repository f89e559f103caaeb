"""A guard: a process that cleans up if the process that it guards, such as the demo, was killed.

    python -m merklekv.harness.guard DIRECTORY

It reads process ids, a line each, from a pipe that only the guarded process writes. When that ends, the pipe ends: the
guard kills those of the processes that still run, and removes the directory. After a normal end nothing is left to do.
It refers to processes by descriptors (pidfd), so a process that got the same id later is not hit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from merklekv import interpreter

REMOVE_ATTEMPTS: Final = 50
REMOVE_PAUSE_S: Final = 0.1


class Guard:
    """A guard that runs until `dismiss`."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            interpreter.command(__name__, str(directory)),
            stdin=subprocess.PIPE,
            text=True,
            env=interpreter.environment(),
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """Adds a process to kill."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the guard was killed: the rest goes on without it
            self._process.stdin.write(f"{pid}\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """Ends the guard, when everything is cleaned up."""
        self._process.communicate()


def remove(directory: Path) -> bool:
    """Removes a directory of nodes. Returns whether it is gone.

    The checkpoint process of a killed node ends by itself, but may write for a moment.
    """
    for _ in range(REMOVE_ATTEMPTS):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return True
        time.sleep(REMOVE_PAUSE_S)
    return False


def watch(pids: Iterable[str]) -> None:
    """Kills these processes when the input ends."""
    watched: list[int] = []
    for pid in pids:
        for fd in [fd for fd in watched if not _signal(fd, 0)]:  # it has ended
            os.close(fd)
            watched.remove(fd)
        with contextlib.suppress(ProcessLookupError):
            watched.append(os.pidfd_open(int(pid)))
    for fd in watched:
        _signal(fd, signal.SIGKILL)


def _signal(fd: int, number: int) -> bool:
    """Whether the process existed."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(fd, number)
        return True
    return False


if __name__ == "__main__":
    watch(sys.stdin)
    remove(Path(sys.argv[1]))
