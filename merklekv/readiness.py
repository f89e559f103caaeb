"""Waiting until a file can be read or written.

`select.select` fails for descriptors from 1024 on, which a server with many clients has, so this is a poll.
"""

from __future__ import annotations

import math
import select
from collections.abc import Iterable
from typing import Final

WAIT_MAX_S: Final = 1_000_000.0


def wait_readable(fds: Iterable[int], timeout_s: float | None) -> list[int]:
    """The descriptors that can be read, or have ended; waits for the first, at most `timeout_s`. None: without end."""
    return _ready(fds, select.POLLIN, timeout_s)


def wait_writable(fd: int, timeout_s: float | None) -> bool:
    """Whether the descriptor takes bytes, or has failed, within `timeout_s`. None: without end."""
    return bool(_ready([fd], select.POLLOUT, timeout_s))


def _ready(fds: Iterable[int], events: int, timeout_s: float | None) -> list[int]:
    poll = select.poll()
    for fd in fds:
        poll.register(fd, events)
    # Rounded up: a wait that ends before its time would be begun again and again.
    timeout_ms = None if timeout_s is None else math.ceil(1000 * min(timeout_s, WAIT_MAX_S))
    return [fd for fd, _ in poll.poll(timeout_ms)]
