"""MONITOR: clients that see every request of all clients, as one line each.

A line is sent when its request has run, that of a script before, and in any case before the reply to it leaves. While
no client watches, this costs nothing, see `interception`. A watching client that does not read is closed at its output
limit; lines for a worker that is behind by BEHIND_BYTES_MAX are dropped. The first SHOWN_BYTES_MAX of a request are
shown: each byte takes 50 ns, in which all clients wait, and up to four bytes of the line.

Threads: any. A lock guards who watches, and what is under way to whom.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from merklekv.errors import MerkleKVError, Stalled
from merklekv.net.interception import Interception
from merklekv.net.protocol.resp import Push
from merklekv.net.protocol.text import Request
from merklekv.net.registry import Entry, Handler, Reply

BEHIND_BYTES_MAX: Final = 1 << 20
SHOWN_BYTES_MAX: Final = 1 << 16
REDACTED: Final = b"(redacted)"
SHOWN_FIRST: Final = frozenset(("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"))  # before what they call
_NAME: Final = "monitor"
_ESCAPES: Final = {0x22: b'\\"', 0x5C: b"\\\\", 0x0A: b"\\n", 0x0D: b"\\r", 0x09: b"\\t", 0x07: b"\\a", 0x08: b"\\b"}
_SHOWN: Final = [_ESCAPES.get(byte, b"%c" % byte if 32 <= byte < 127 else b"\\x%02x" % byte) for byte in range(256)]


class Monitor:
    """The watching clients of one server."""

    def __init__(self, interception: Interception) -> None:
        self._interception = interception
        self._lock = threading.Lock()
        self._behind: dict[Any, int] = {}  # watching sessions, and the bytes under way to each in its worker

    def __contains__(self, session: Any) -> bool:
        return session in self._behind

    def join(self, session: Any) -> None:
        """The session watches from now on."""
        with self._lock:
            self._behind = {session: 0, **self._behind}
            self._interception.add(_NAME, self._intercept)

    def leave(self, session: Any) -> None:
        """It does not watch any more, if it did."""
        if session not in self._behind:
            return
        with self._lock:
            self._behind = {one: size for one, size in self._behind.items() if one is not session}
            if not self._behind:
                self._interception.remove(_NAME)

    def _intercept(self, entry: Entry, handler: Handler) -> Handler:
        if "admin" in entry.command.flags:
            return handler  # as in Redis

        def watched(session: Any, request: Request) -> Reply:
            if entry.command.name in SHOWN_FIRST:
                self._show(entry, session, request)
                return handler(session, request)
            try:
                answer = handler(session, request)
            except Stalled:
                raise  # it runs again
            except MerkleKVError:
                self._show(entry, session, request)
                raise
            self._show(entry, session, request)
            return answer

        return watched

    def _show(self, entry: Entry, session: Any, request: Request) -> None:
        seconds, microseconds = divmod(time.time_ns() // 1000, 10**6)
        address = b"lua" if session.is_script else session.address.encode()
        words = b" ".join(_shown(redacted(entry, request)))
        line = Push(b"+%d.%06d [0 %b] %b\r\n" % (seconds, microseconds, address, words))
        for watching in self._behind:
            if threading.current_thread() == watching.worker:
                watching.worker.push(watching, line)
            else:
                self._send(watching, line)

    def _send(self, watching: Any, line: Push) -> None:
        """To a session of another worker."""
        with self._lock:
            if self._behind.get(watching, BEHIND_BYTES_MAX) + len(line) > BEHIND_BYTES_MAX:
                return
            self._behind[watching] += len(line)

        def push() -> None:
            with self._lock:
                if watching not in self._behind:
                    return
                self._behind[watching] -= len(line)
            watching.worker.push(watching, line)

        watching.worker.call_soon(push)


def _shown(words: Sequence[bytes]) -> Iterator[bytes]:
    """The words in quotes, and after SHOWN_BYTES_MAX how much is left out."""
    room = SHOWN_BYTES_MAX
    for at, word in enumerate(words):
        if room <= 0:
            yield b'"... (%d more arguments)"' % (len(words) - at)
            return
        text = b"".join(map(_SHOWN.__getitem__, word[:room]))
        yield b'"%b... (%d more bytes)"' % (text, len(word) - room) if len(word) > room else b'"%b"' % text
        room -= len(word) + 1


def redacted(entry: Entry, request: Request) -> list[bytes]:
    """The words of a request that may be shown: no passwords."""
    words = list(request)
    match entry.command.name:
        case "AUTH":
            words[1:] = [REDACTED] * (len(words) - 1)
        case "HELLO":
            for at, word in enumerate(words):
                if word.upper() == b"AUTH":
                    words[at + 1 : at + 3] = [REDACTED] * len(words[at + 1 : at + 3])
    return words
