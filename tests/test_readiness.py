"""Waiting for descriptors, also for those that `select` cannot take."""

from __future__ import annotations

import fcntl
import math
import os
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from merklekv.readiness import wait_readable, wait_writable

HIGH = 1500  # above FD_SETSIZE


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe with descriptors from HIGH on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 100), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        low = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH) for fd in low]
        for fd in (*low, *high):
            stack.callback(os.close, fd)
        yield high[0], high[1]


def test_a_descriptor_that_can_be_read(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    began = time.monotonic()
    assert wait_readable([reading], 0.05) == []
    assert time.monotonic() - began >= 0.05
    os.write(writing, b"x")
    assert wait_readable([reading], math.inf) == [reading]
    assert wait_readable([reading], None) == [reading]
    assert wait_readable([], 0) == []


def test_a_descriptor_that_takes_bytes(pipe: tuple[int, int]) -> None:
    _, writing = pipe
    assert wait_writable(writing, None)
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    assert not wait_writable(writing, 0)
