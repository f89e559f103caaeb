"""Small helpers that every test may use. No fixture lives here, see the `fix_*.py` modules for those."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import pytest

from merklekv.engine.engine import Engine
from merklekv.errors import DiskFull

T = TypeVar("T")

WAIT_S = 10.0
POLL_S = 0.01


def wait_until(condition: Callable[[], T], *, seconds: float = WAIT_S, what: str = "") -> T:
    """Ask again and again until the condition gives something true, and give that back. Alone in sleeping."""
    deadline = time.monotonic() + seconds
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain for {what or condition}")
        time.sleep(POLL_S)


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def failing_writes(error: BaseException, part: float = 0.0) -> Iterator[None]:
    """The disk takes that part of what is written at a position, as in the log, and then the write raises."""
    real = os.pwrite

    def pwrite(fd: int, data: bytes, position: int) -> int:
        if taken := data[: int(part * len(data))]:
            real(fd, taken, position)
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        yield


def no_room(part: float = 0.0) -> AbstractContextManager[None]:
    """The disk takes that part of what is written, although room was reserved for it, and then says that it is full."""
    return failing_writes(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), part)


def run_out_of_room(engine: Engine) -> None:
    """A write finds the disk full and is taken back; then there is room again."""
    engine.set(b"lost", b"v")
    with no_room(), pytest.raises(DiskFull):
        engine.commit()
    engine.commit()
