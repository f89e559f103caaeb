"""What a command waits for without being asked again and again."""

from __future__ import annotations

import math
from collections.abc import Callable


class Signal:
    """Lets a long command that has yielded it go on: when it is set, or when its time is over.

    `set` and `expire` come from any thread, at any time, any number of times. Waiting costs nothing.
    """

    __slots__ = ("_on_set", "deadline", "is_over", "is_set")

    def __init__(self, deadline: float = math.inf) -> None:
        self.deadline = deadline  # by the monotonic clock
        self.is_set = False
        self.is_over = False  # whether it has ended without what it waited for
        self._on_set: Callable[[], None] | None = None

    def __call__(self) -> bool:
        """Whether the command may go on."""
        return self.is_set

    def set(self) -> None:
        """What the command waits for is there."""
        self.is_set = True
        if self._on_set is not None:
            self._on_set()

    def expire(self) -> None:
        """The command waits no longer: its time is over, or the node stops."""
        self.is_over = True
        self.set()

    def attach(self, on_set: Callable[[], None]) -> None:
        """Calls this when it is set, maybe more than once, and at once if it is."""
        self._on_set = on_set
        if self.is_set:  # looked at last: it may be set in between
            on_set()
