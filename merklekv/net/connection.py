"""One client's connection: its socket, its protocol, its state, and the requests and replies that wait.

The first byte that a connection receives decides the protocol, unless the line protocol is switched off. The worker
decides when to read, run and send; a connection knows in which state that leaves it:

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
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import Self

from merklekv.net.limits import ARGUMENT_BYTES, BULK_BYTES_MIN, CONNECTION_BYTES, LINGER_S, SEND_BYTES, WATCHED_BYTES
from merklekv.net.memory import held_by
from merklekv.net.protocol.resp import Push, RespParser
from merklekv.net.protocol.text import FOREIGN, REFUSED, Request, TextParser
from merklekv.net.registry import Entry, Long, Pause
from merklekv.net.session import Context, Session
from merklekv.net.waiting import Signal

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
HUNG_UP = select.EPOLLRDHUP  # the client sends no more

_RESP_FIRST = b"*"
_TLS_FIRST = b"\x16"  # a handshake record; what a server chose, such as a ticket, may hold lines that are commands


class State(enum.Enum):
    OPEN = enum.auto()  # reads and runs requests
    PAUSED = enum.auto()  # keeps requests for later and reads no more of them
    CLOSING = enum.auto()  # runs nothing more, drops what it reads, and sends the replies that are left
    LINGERING = enum.auto()  # has sent all and told the client that no more will come; drops what it reads
    CLOSED = enum.auto()


OPEN, PAUSED, CLOSING, LINGERING, CLOSED = State  # looked up faster than attributes of the enum


class Muted(list[bytes]):
    """The replies of a client that wants none, or not the next ones, see CLIENT REPLY. What answers nothing passes."""

    def __init__(self, replies: list[bytes]) -> None:
        super().__init__(replies)
        self.is_off = False
        self._skips = 0

    def skip(self, count: int) -> None:
        """Drops so many more replies. Without effect while all are dropped."""
        self._skips = 0 if self.is_off else count

    def unmute(self) -> None:
        """Drops no more."""
        self.is_off, self._skips = False, 0

    def append(self, reply: bytes) -> None:
        if isinstance(reply, Push):
            super().append(reply)
        elif self._skips:
            self._skips -= 1
        elif not self.is_off:
            super().append(reply)

    def __iadd__(self, replies: Iterable[bytes]) -> Self:  # type: ignore[misc,override]
        for reply in replies:
            self.append(reply)
        return self


class Connection(Session):
    __slots__ = (
        "backlog",
        "deadline",
        "end_of_input",
        "interest",
        "parser",
        "receive",
        "refusal",
        "send",
        "socket",
        "state",
        "task",
        "task_s",
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
        self.feed = self._greet
        self.parser: RespParser | TextParser | None = None
        self.state = OPEN
        self.interest = 0  # the epoll events that the worker has registered
        self.refusal = refusal  # why this client is not served, told once its protocol is known
        self.deadline = math.inf  # lingering or refused: closed by then in any case
        self.end_of_input = False  # nothing more will be read
        self.unsent: deque[bytes | memoryview] = deque()  # what the socket did not take, in pieces
        self.backlog: list[Request] = []  # of a paused connection, oldest first
        self.task: Long | None = None  # the oldest of them, when it is a long command under way
        self.task_s = 0.0  # how long its slices have taken
        self.waits_for: Pause = None  # what must become true before it goes on
        self.when_sent: Callable[[], None] | None = None  # called when the last reply is sent

    def _greet(self, data: bytes) -> list[Request]:
        """Takes the first bytes: they decide the protocol."""
        context = self.context
        if data[:1] == _TLS_FIRST:
            return [(FOREIGN, b"TLS")]
        if data[:1] == _RESP_FIRST or not context.text_protocol:
            self.speak(2)
            self.use(None)
            limits = context.limits
            bulk_bytes = max(self.engine.max_value_size, BULK_BYTES_MIN)
            self.parser = RespParser(bulk_bytes, limits.arguments, limits.request_bytes)
        else:
            self.parser = TextParser(context.limits.line_bytes)
        self.feed = self.parser.feed
        if self.refusal:
            return [(REFUSED, self.refusal.encode())]
        return self.feed(data)

    def lookup(self, name: bytes) -> Entry:
        """The entry for a name in mixed case, or for one that no command has."""
        commands = self.context.commands
        return self.find(name.upper()) or (commands.resp if self.protocol else commands.line).unknown

    @property
    def held_bytes(self) -> int:
        """What has come of the next request."""
        parser = self.parser  # looked up once: another thread may ask
        return parser.held_bytes if parser else 0

    @property
    def memory_bytes(self) -> int:
        """What the server holds for this client."""
        size = CONNECTION_BYTES + self.unsent_bytes + held_by(self.task)
        if parser := self.parser:
            size += parser.held_bytes + ARGUMENT_BYTES * parser.held_arguments
        if transaction := self.transaction:
            size += transaction.bytes
        if self.backlog:
            size += sum(sum(map(len, request)) + ARGUMENT_BYTES * len(request) for request in self.backlog)
        if self.watched:
            size += sum(map(len, self.watched)) + WATCHED_BYTES * len(self.watched)
        if subscriptions := self.subscriptions:
            size += subscriptions.memory_bytes
        return size

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
        self.unsent.clear()
        self.unsent_bytes = 0
        self._drop_requests()
        self.socket.close()  # this also takes it out of the epoll set
        self.fd = -1  # the number may soon be another connection's

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

    def unblock(self, problem: Exception | None = None) -> None:
        """Ends the waiting of a blocking command, as its timeout does or with this error. In the worker's thread."""
        signal = self.waits_for
        if self.task is None or not isinstance(signal, Signal):
            return
        if problem is not None:
            self.task.close()
            self.task = _failed(problem)
        signal.expire()

    def _drop_requests(self) -> None:
        self.context.monitor.leave(self)
        self.feed, self.parser = _discard, None
        self.backlog = []
        self.transaction, self.watched = None, {}
        self.context.pubsub.leave(self)
        task, self.task, self.waits_for = self.task, None, None
        if task is not None:
            task.close()

    def _call_when_sent(self) -> None:
        """Also when the client did not wait for the reply."""
        when_sent, self.when_sent = self.when_sent, None
        if when_sent:
            when_sent()

    def unmute(self) -> None:
        if isinstance(self.replies, Muted):
            self.replies.unmute()

    # -- sending -----------------------------------------------------------------------------------------------------

    def keep(self, data: bytes | memoryview) -> None:
        """Keeps what the socket did not take."""
        self.unsent.append(_let_go(data))
        self.unsent_bytes += len(data)
        self.needs_attention = True

    def send_apart(self) -> int:
        """Sends the replies of this tick one by one, and keeps what the socket does not take. Returns their size.

        Joined they would be a copy, where the messages among them are one for all their receivers. Raises OSError.
        """
        size = sum(map(len, self.replies))
        goes_on = not self.unsent_bytes
        for reply in self.replies:
            self.keep(reply)
        self.replies.clear()
        self.pushed_bytes = 0
        while goes_on and self.unsent:
            goes_on = self.send_unsent()
        return size

    def send_unsent(self) -> bool:
        """Sends a piece of it; whether the socket took it whole. Raises OSError.

        Small pieces are joined, and each byte only a few times, however much is left.
        """
        unsent = self.unsent
        data = unsent.popleft()
        if unsent and len(data) < SEND_BYTES:
            pieces, size = [data], len(data)
            while unsent and size < SEND_BYTES:
                pieces.append(unsent.popleft())
                size += len(pieces[-1])
            data = b"".join(pieces)
        sent = 0
        try:
            sent = self.send(data)
        except BlockingIOError:
            pass
        finally:
            if sent < len(data):
                unsent.appendleft(_let_go(memoryview(data)[sent:]))
            self.unsent_bytes -= sent
        return sent == len(data)

    # -- what comes next ---------------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        return self.state is PAUSED and isinstance(self.waits_for, Signal)

    @property
    def is_blocked(self) -> bool:
        return self.waits and self.entry is not None and "blocking" in self.entry.command.flags

    @property
    def only_listens(self) -> bool:
        """Whether it gets what it does not ask for: messages, or the requests of all clients."""
        return bool(self.subscriptions) or self in self.context.monitor

    @property
    def reads_replies(self) -> bool:
        """Whether the client has read enough of its replies for further requests to run."""
        return self.unsent_bytes <= self.context.limits.output_soft_bytes

    @property
    def events(self) -> int:
        """The epoll events that it waits for."""
        reading = not self.end_of_input and self.state is not PAUSED and self.reads_replies
        # A client that waits, maybe for ever, is not read, so it would go away unnoticed.
        waiting = self.state is PAUSED and isinstance(self.waits_for, Signal)
        return (READABLE if reading else 0) | (WRITABLE if self.unsent_bytes else 0) | (HUNG_UP if waiting else 0)

    def is_overdue(self, now: float, idle_limit_s: float) -> bool:
        """Whether it was silent, or lingered, for longer than it may."""
        may_idle = self.state is PAUSED or self.only_listens
        idle = idle_limit_s and now - self.last_active > idle_limit_s and not may_idle
        return bool(idle) or self.deadline <= now


def _let_go(data: bytes | memoryview) -> bytes | memoryview:
    """The same, without much else: a view keeps all of what it is a part of, however little is counted."""
    if isinstance(data, memoryview) and 2 * len(data) < memoryview(data.obj).nbytes:
        with suppress(MemoryError):
            return bytes(data)
    return data


def _discard(data: bytes) -> list[Request]:
    """The parser of a connection that is about to close."""
    return []


def _failed(problem: Exception) -> Generator[Pause, None, bytes]:
    raise problem.with_traceback(None)  # one error for many: it must not keep the frames of all of them
    yield None  # type: ignore[unreachable]  # it makes this a generator
