"""A worker as its sessions see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from merklekv.net.protocol.resp import Push


class Home(Protocol):
    """The worker of a session."""

    def call_soon(self, function: Callable[[], None]) -> None:
        """Runs a short function in the worker's thread, before it waits for clients again. From any thread."""

    def push(self, connection: Any, data: Push) -> None:
        """Sends a session of this worker what answers no request. Only in the worker's thread."""

    def if_lost(self, connection: Any, undo: Callable[[], None]) -> None:
        """Calls `undo` if a roll-back takes back what this session does now. Only with the engine's lock held."""

    def cut(self, connection: Any) -> None:
        """Closes a session of this worker at once. Only in the worker's thread, in a function of `call_soon`."""
