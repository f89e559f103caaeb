"""Which frame of the log the replies of a tick depend on, so that a roll-back takes back those of lost frames only.

Replies leave after the commit of their tick. Other threads commit meanwhile: what the requests of one tick have written
may be in several frames, of which the first may be stored while the last finds the disk full. The replies of a tick
are in parts, one for each frame, in the order of the frames.

Threads: those of a worker. Cost: two numbers are compared for each request; a part costs 0.1 us for each connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from merklekv.net.connection import CLOSED, Connection
from merklekv.net.protocol.resp import Push

if TYPE_CHECKING:
    from merklekv.engine.log.writer import Log


class Parts:
    """The parts of the replies that wait for the commit."""

    __slots__ = ("_ended", "_log", "_undos", "frame")

    def __init__(self, log: Log) -> None:
        self.frame = log.frame  # of the part that has not ended
        self._ended: list[tuple[int, dict[Connection, int]]] = []  # frame, and how many replies there were at the end
        self._undos: list[tuple[int, Connection, Callable[[], None]]] = []  # frame, whose, what
        self._log = log

    def start_over(self) -> None:
        """All replies have left."""
        self._ended.clear()
        self._undos.clear()
        self.frame = self._log.frame

    def begin(self, answered: Sequence[Connection]) -> int:
        """Begins a part: what runs from now on depends on the frame that is pending now. Returns its number."""
        return self.begin_at(self._log.frame, answered)

    def begin_if_due(self, answered: Sequence[Connection]) -> int:
        """Begins a part before the reply of what has just run, if that may depend on a later frame than `frame`.

        Frames were cut while it ran. If nothing is pending, it depends on the last one of these at most.
        """
        is_pending = bool(self._log.pending)  # looked at first: a cut counts the frame before it takes what is pending
        frame = self._log.frame if is_pending else self._log.frame - 1
        return self.begin_at(frame, answered) if frame != self.frame else frame

    def begin_at(self, frame: int, answered: Sequence[Connection]) -> int:
        """Begins a part before the reply of what has just run, and depends on this frame. Returns its number."""
        if answered:
            self._ended.append((self.frame, {connection: len(connection.replies) for connection in answered}))
        self.frame = frame
        return frame

    def if_lost(self, connection: Connection, undo: Callable[[], None]) -> None:
        """Calls `undo` if the frame that is pending now is lost and the connection is still there."""
        self._undos.append((self._log.frame, connection, undo))

    def undo(self, lost: Sequence[range]) -> None:
        """Undoes what depends on one of these frames beside replies."""
        for frame, connection, undo in self._undos:
            if connection.state is not CLOSED and any(frame in frames for frames in lost):
                undo()

    def is_any_in(self, lost: Sequence[range]) -> bool:
        """Whether any of them depends on one of these frames."""
        return any(frame in frames for frames in lost for frame in (self.frame, *(frame for frame, _ in self._ended)))

    def withdraw(self, connection: Connection, lost: Sequence[range], error: bytes) -> bool:
        """Puts an error in the place of each reply that depends on one of these frames; whether there was one."""
        replies = connection.replies
        is_withdrawn = False
        start = 0
        for frame, ends in (*self._ended, (self.frame, {connection: len(replies)})):
            end = ends.get(connection, start)  # it had none until then
            if end > start and any(frame in frames for frames in lost):
                replies[start:end] = [
                    error if reply and not isinstance(reply, Push) else reply for reply in replies[start:end]
                ]
                is_withdrawn = True
            start = end
        return is_withdrawn
