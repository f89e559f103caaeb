"""CLIENT PAUSE: requests that wait for a while, all of them or those that may change data.

A request that waits is kept on its connection, and costs nothing. CLIENT is never paused, so that CLIENT UNPAUSE can
end it, and neither is what runs in a transaction or a script that has begun: those cannot wait in their midst. While no
pause is on, this costs nothing, see `interception`.
"""

from __future__ import annotations

import time
from typing import Any, Final

from merklekv.net.interception import Interception
from merklekv.net.protocol.text import Request
from merklekv.net.registry import Entry, Handler, Long, Reply
from merklekv.net.waiting import Signal

MAY_WRITE: Final = frozenset(("EVAL", "EVALSHA", "PUBLISH", "SYNC"))  # beside those with the flag
SCRIPTS: Final = frozenset(("EVAL", "EVALSHA"))
NEVER: Final = frozenset(("CLIENT",))
_NAME: Final = "pause"


class ClientPause:
    """The pause of one server."""

    def __init__(self, interception: Interception) -> None:
        self._interception = interception
        self._until = 0.0  # monotonic
        self._only_writes = False
        self._signals: set[Signal] = set()  # of the requests that wait

    def begin(self, seconds: float, *, only_writes: bool) -> None:
        """Pauses from now on. During a pause: the later end of both, and all requests if either has all."""
        now = time.monotonic()
        if now < self._until:
            only_writes = only_writes and self._only_writes
        self._until = max(self._until, now + seconds)
        self._only_writes = only_writes
        self._interception.add(_NAME, self._intercept)

    def end(self) -> None:
        self._until = 0.0
        self._interception.remove(_NAME)
        for signal in list(self._signals):
            signal.set()

    def _intercept(self, entry: Entry, handler: Handler) -> Handler:
        one = entry.command
        if one.name in NEVER or (self._only_writes and not may_write(entry)):
            return handler

        def paused(session: Any, request: Request) -> Reply:
            if session.is_script or (session.transaction is not None and not one.always):
                return handler(session, request)
            if self._only_writes and not _would_write(session, one.name, request):
                return handler(session, request)
            if time.monotonic() < self._until:
                return self._wait(handler, session, request)
            self.end()
            return handler(session, request)

        return paused

    def _wait(self, handler: Handler, session: Any, request: Request) -> Long:
        while time.monotonic() < self._until:
            signal = Signal(self._until)
            self._signals.add(signal)
            try:
                yield signal
            finally:
                self._signals.discard(signal)
            if signal.is_over and time.monotonic() < signal.deadline:
                break  # the node stops
        answer = handler(session, request)
        if isinstance(answer, bytes):
            return answer
        reply: bytes = yield from answer
        return reply


def may_write(entry: Entry) -> bool:
    """Whether a command waits in a pause of writes: it may change data, or what clients see."""
    return entry.writes or entry.command.name in MAY_WRITE


def _would_write(session: Any, name: str, request: Request) -> bool:
    """Whether a request of such a command may do that: a transaction of reads does not, nor a script that says so."""
    if name == "EXEC":
        queued = session.transaction.requests() if session.transaction is not None else ()
        return any(may_write(entry) and _would_write(session, entry.command.name, each) for entry, each in queued)
    return name not in SCRIPTS or session.context.scripts.may_write(request[1])
