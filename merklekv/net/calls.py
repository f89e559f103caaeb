"""Functions that any thread gives a worker to run, and the event that wakes the worker for them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress


class Calls:
    """What waits for one worker, oldest first. `add` and `wake` may be called by any thread, the rest by the worker."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.waiting: deque[Callable[[], None]] = deque()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable when the worker is to look
        self._lock = threading.Lock()  # so that nobody writes to its number once it is closed
        self._is_woken = False  # whether the worker has yet to look

    def add(self, function: Callable[[], None]) -> None:
        self.waiting.append(function)
        if not self._is_woken:
            self._is_woken = True
            self.wake()

    def wake(self) -> None:
        """Lets the worker look, also where nothing waits."""
        with self._lock:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def woken(self) -> None:
        """The worker is awake: the event has done what it is for."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def look(self) -> int:
        """How many wait now. What comes from here on wakes the worker again."""
        self._is_woken = False  # first
        return len(self.waiting)

    def close(self) -> None:
        """After the worker has ended."""
        with self._lock:
            os.close(self.fd)
            self.fd = -1
