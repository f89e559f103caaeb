"""One client's connection: its socket, its protocol, its state, and the requests and replies that wait.

The first byte that a connection receives decides the protocol. The worker decides when to read, run and send; a
connection knows in which state that leaves it:

    OPEN --pause--> PAUSED --resume--> OPEN    a request waits, or the client does not read its replies
    OPEN, PAUSED --close_when_sent--> CLOSING --linger--> LINGERING
    any --close--> CLOSED

What is unusual sets `needs_attention`: another state than OPEN, unsent replies, the end of input. The worker looks at
such a connection after sending; all others pass by on this one attribute. All fields belong to the worker's thread.
"""

from __future__ import annotations

import enum
import math
import select
import socket
import time
from collections.abc import Callable, Generator

from merklekv.net.limits import BULK_BYTES_MIN, LINGER_S
from merklekv.net.protocol.resp import RespParser
from merklekv.net.protocol.text import FOREIGN, REFUSED, Request, TextParser
from merklekv.net.registry import Entry, Long, Pause
from merklekv.net.session import Context, Session

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

_RESP_FIRST = b"*"
_TLS_FIRST = b"\x16"  # a handshake record; what a server chose, such as a ticket, may hold lines that are commands


class State(enum.Enum):
    OPEN = enum.auto()  # reads and runs requests
    PAUSED = enum.auto()  # keeps requests for later and reads no more of them
    CLOSING = enum.auto()  # runs nothing more, drops what it reads, and sends the replies that are left
    LINGERING = enum.auto()  # has sent all and told the client that no more will come; drops what it reads
    CLOSED = enum.auto()


OPEN, PAUSED, CLOSING, LINGERING, CLOSED = State  # looked up faster than attributes of the enum


class Connection(Session):
    __slots__ = (
        "backlog",
        "deadline",
        "end_of_input",
        "feed",
        "interest",
        "needs_attention",
        "receive",
        "refusal",
        "replies",
        "send",
        "socket",
        "state",
        "task",
        "unsent",
        "waits_for",
        "when_sent",
    )

    def __init__(
        self, context: Context, identity: int, sock: socket.socket, address: str, local_address: str, refusal: str = ""
    ) -> None:
        super().__init__(context, identity, address, local_address, sock.fileno())
        self.socket = sock
        self.receive = sock.recv
        self.send = sock.send
        self.feed: Callable[[bytes], list[Request]] = self._greet
        self.state = OPEN
        self.needs_attention = False
        self.interest = 0  # the epoll events that the worker has registered
        self.refusal = refusal  # why this client is not served, told once its protocol is known
        self.deadline = math.inf  # lingering or refused: closed by then in any case
        self.end_of_input = False  # nothing more will be read
        self.replies: list[bytes] = []  # of this tick: they leave after its commit
        self.unsent: bytes | memoryview = b""  # what the socket did not take
        self.backlog: list[Request] = []  # of a paused connection, oldest first
        self.task: Long | None = None  # the oldest of them, when it is a long command under way
        self.waits_for: Pause = None  # what must become true before it goes on
        self.when_sent: Callable[[], None] | None = None  # called when the last reply is sent

    def _greet(self, data: bytes) -> list[Request]:
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
        """The entry for a name in mixed case, or for one that no command has."""
        commands = self.context.commands
        return self.find(name.upper()) or (commands.resp if self.protocol else commands.line).unknown

    # -- states ------------------------------------------------------------------------------------------------------

    def pause(self, requests: list[Request]) -> None:
        """Keeps requests until `resume`: the first one waits, or there are replies enough to send before it.

        Not of a connection that ends, or that was closed in this tick.
        """
        if self.state is not OPEN:
            return
        self.backlog = requests
        self.state = PAUSED
        self.needs_attention = True

    def resume(self) -> list[Request]:
        """The requests that wait, which run now."""
        backlog, self.backlog = self.backlog, []
        self.state = OPEN
        return backlog

    def end_input(self) -> None:
        """Reads nothing more; closes once the requests received are answered."""
        self.end_of_input = self.needs_attention = True

    def close_when_sent(self, when_sent: Callable[[], None] | None = None) -> None:
        """Runs nothing more, sends the replies that are left, then calls `when_sent` and lingers."""
        self._drop_requests()
        self.when_sent = when_sent
        self.state = CLOSING
        self.needs_attention = True

    def linger(self) -> None:
        """Tells the client that no more will come, and leaves it LINGER_S to read. Raises OSError."""
        self.state = LINGERING
        self.deadline = time.monotonic() + LINGER_S
        self._call_when_sent()
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Closes at once; unsent replies are lost."""
        self.state = CLOSED
        self._call_when_sent()
        self.replies.clear()
        self.unsent = b""
        self._drop_requests()
        self.socket.close()  # this also takes it out of the epoll set

    def turn_away(self) -> None:
        """Tells a client that no worker has yet why it is not served, as Redis does. Raises OSError."""
        self.send(b"-ERR %b\r\n" % self.refusal.encode())
        self.close_when_sent()
        self.linger()

    def fail_task(self, problem: Exception) -> None:
        """Lets the long command under way end with this error when it goes on."""
        if self.task is not None:
            self.task.close()
            self.task, self.waits_for = _failed(problem), None

    def _drop_requests(self) -> None:
        self.feed = _discard
        self.backlog = []
        task, self.task, self.waits_for = self.task, None, None
        if task is not None:
            task.close()

    def _call_when_sent(self) -> None:
        """Also when the client did not wait for the reply."""
        when_sent, self.when_sent = self.when_sent, None
        if when_sent:
            when_sent()

    # -- what comes next ---------------------------------------------------------------------------------------------

    @property
    def reads_replies(self) -> bool:
        """Whether the client has read enough of its replies for further requests to run."""
        return len(self.unsent) <= self.context.limits.output_soft_bytes

    @property
    def events(self) -> int:
        """The epoll events that it waits for."""
        reading = not self.end_of_input and self.state is not PAUSED and self.reads_replies
        return (READABLE if reading else 0) | (WRITABLE if self.unsent else 0)

    def is_overdue(self, now: float, idle_limit_s: float) -> bool:
        """Whether it was silent, or lingered, for longer than it may."""
        idle = idle_limit_s and now - self.last_active > idle_limit_s and self.state is not PAUSED
        return bool(idle) or self.deadline <= now


def _discard(data: bytes) -> list[Request]:
    """The parser of a connection that is about to close."""
    return []


def _failed(problem: Exception) -> Generator[Pause, None, bytes]:
    raise problem.with_traceback(None)  # one error for many: it must not keep the frames of all of them
    yield None  # type: ignore[unreachable]  # it makes this a generator
