"""What stands before commands for a while: a client that watches them all, or a pause of the clients.

While nobody wants that, it costs nothing: a request finds the handler of its command, as ever. An interceptor makes a
handler from a handler. While there are any, each request runs by itself, because a batch would pass them by.

Threads: handlers are exchanged under a lock, and a request that has begun goes on with the handler that it had.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from merklekv.net.registry import BatchHandler, Commands, Entry, Handler

Interceptor = Callable[[Entry, Handler], Handler]


class Interception:
    """The interceptors of one server."""

    def __init__(self, commands: Commands) -> None:
        self._lock = threading.Lock()
        self._entries = [entry for entry in commands.every() if entry.command.name]
        self._plain: dict[Entry, tuple[Handler, Mapping[int, BatchHandler]]] = {}  # what they had before the first
        self._interceptors: dict[str, Interceptor] = {}

    def add(self, name: str, interceptor: Interceptor) -> None:
        """Puts it before all commands, in the place of one with this name. It runs before those added earlier."""
        with self._lock:
            self._interceptors.pop(name, None)
            self._interceptors[name] = interceptor
            self._apply()

    def remove(self, name: str) -> None:
        """Takes it away, if it is there."""
        with self._lock:
            if self._interceptors.pop(name, None) is not None:
                self._apply()

    def _apply(self) -> None:
        if not self._plain:
            self._plain = {entry: (entry.handler, entry.batches) for entry in self._entries}
        for entry, (handler, batches) in self._plain.items():
            for interceptor in self._interceptors.values():
                handler = interceptor(entry, handler)
            entry.handler = handler
            entry.batches = {} if self._interceptors else dict(batches)
        if not self._interceptors:
            self._plain = {}


def one_by_one(entry: Entry, handler: Handler) -> Handler:
    """The interceptor that does nothing but let each request run by itself."""
    return handler
