"""One client's connection: its socket, its protocol, and what is under way for it.

A connection is a session with a socket. It decides the protocol by the first byte it receives and knows how its
errors look; when to read, run and send is the worker's business. All its fields belong to the worker's thread.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from merklekv.net.limits import BULK_BYTES_MIN
from merklekv.net.protocol.resp import RespParser
from merklekv.net.protocol.text import FOREIGN, REFUSED, Request, TextParser
from merklekv.net.session import Context, Long, Pause, Session

if TYPE_CHECKING:
    from merklekv.net.commands.registry import Entry

_RESP_FIRST = b"*"
_TLS_FIRST = b"\x16"  # a handshake record; what a server chose, such as a ticket, may hold lines that are commands


class Connection(Session):
    __slots__ = (
        "afterwards",
        "backlog",
        "closed",
        "closing",
        "deadline",
        "end_of_input",
        "feed",
        "lingering",
        "mask",
        "pause",
        "receive",
        "refusal",
        "replies",
        "scheduled",
        "send",
        "socket",
        "special",
        "task",
        "unsent",
    )

    def __init__(
        self, context: Context, identity: int, sock: socket.socket, address: str, local_address: str, refusal: str = ""
    ) -> None:
        super().__init__(context, identity, address, local_address, sock.fileno())
        self.socket = sock
        self.receive = sock.recv
        self.send = sock.send
        self.mask = 0  # the epoll events asked for
        self.feed: Callable[[bytes], Sequence[Request]] = self._greet
        self.refusal = refusal  # why this client is not served, said once its protocol is known
        self.deadline = math.inf  # lingering or refused: closed by then in any case

        self.replies: list[bytes] = []  # of this round: they leave after its commit
        self.unsent: bytes | memoryview = b""  # what the socket did not take
        self.backlog: Sequence[Request] = ()  # received, to be run when what comes before is done
        self.task: Long | None = None  # a long command under way
        self.pause: Pause = None  # what the connection waits for
        self.scheduled = False  # stands in the worker's queue of runnable or of parked connections
        self.end_of_input = False  # nothing more will be read
        self.closing = False  # closes as soon as the replies are sent
        self.afterwards: Callable[[], None] | None = None  # called when they are
        self.lingering = False  # all is sent, and the client knows that nothing more will come
        self.closed = False
        self.special = False  # any of the above needs a look after sending; False on the fast way

    def _greet(self, data: bytes) -> Sequence[Request]:
        """Takes the first bytes: they decide the protocol."""
        context = self.context
        if data[:1] == _RESP_FIRST:
            self.speak(2)
            self.refuse(False)
            limits = context.limits
            bulk_bytes = max(self.engine.max_value_size, BULK_BYTES_MIN)
            self.feed = RespParser(bulk_bytes, limits.arguments, context.request_bytes).feed
        elif data[:1] == _TLS_FIRST:
            return [(FOREIGN, b"TLS")]
        else:
            self.feed = TextParser(context.limits.line_bytes).feed
        if self.refusal:
            return [(REFUSED, self.refusal.encode())]
        return self.feed(data)

    def lookup(self, name: bytes) -> Entry:
        """The entry for a name that is not written all in one case, or is none of ours."""
        commands = self.context.commands
        return self.find(name.upper()) or (commands.resp if self.protocol else commands.line).unknown

    def close_when_sent(self) -> None:
        """Runs nothing more; what the client still sends is dropped."""
        self.closing = self.special = True
        self.feed = discard
        self.backlog = ()

    def turn_away(self) -> None:
        """Says at once why this client is not served, as Redis does. For one that no worker has yet; raises OSError."""
        self.close_when_sent()
        self.lingering = True
        self.send(b"-ERR %b\r\n" % self.refusal.encode())
        self.socket.shutdown(socket.SHUT_WR)

    def drop_task(self) -> None:
        """Ends a long command where it is."""
        task, self.task, self.pause = self.task, None, None
        if task is not None:
            task.close()

    def say_afterwards(self) -> None:
        """Does what a Goodbye asked for, once. Also when its client did not wait for the reply."""
        afterwards, self.afterwards = self.afterwards, None
        if afterwards:
            afterwards()

    def is_overdue(self, now: float, idle_limit_s: float) -> bool:
        """Whether it was silent, or lingered, for longer than it may."""
        idle = idle_limit_s and now - self.last_active > idle_limit_s and not self.busy
        return bool(idle) or self.deadline <= now

    @property
    def busy(self) -> bool:
        """Something received earlier is not finished, so nothing more is read or run."""
        return self.task is not None or self.pause is not None or bool(self.backlog)


def discard(data: bytes) -> Sequence[Request]:
    """The parser of a connection that is about to close."""
    return ()
