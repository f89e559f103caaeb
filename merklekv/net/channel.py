"""What a tick touches of each connection, apart because the compiled core reads and sets it without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from merklekv.core import compiled


@compiled
class Channel:
    """The ends of a connection: where requests come from and where replies go."""

    __slots__ = (
        "entry",
        "fd",
        "feed",
        "find",
        "last_active",
        "needs_attention",
        "pushed_bytes",
        "replies",
        "unsent_bytes",
    )

    def __init__(self) -> None:
        self.fd = -1  # of its socket; -1: closed, or a script
        self.feed: Callable[[bytes], list[Any]]  # parses what has come
        self.find: Callable[[bytes], Any]  # the command of a name, None for an unknown one
        self.entry: Any = None  # the last command
        self.last_active = 0.0  # when it was read last, monotonic
        self.needs_attention = False  # whether the worker has to look at it
        self.replies: list[bytes] = []  # of this tick: they leave after its commit
        self.pushed_bytes = 0  # of these, what answers no request
        self.unsent_bytes = 0  # what the socket did not take
