"""Publish and subscribe: who listens to what, and how a message reaches them.

Each worker has a `Board` of its own sessions, so a message for the publisher's worker needs no lock and no other
thread. For any other worker it waits on that worker's board until the worker comes to it. A message that finds too much
waiting there is dropped, as it is for a subscriber that does not read: nothing that publishes ever waits.

The messages of one publisher reach each subscriber in the order in which they were published.

Threads: what a method needs is said at it; the rest may run in any thread.
"""

from __future__ import annotations

import enum
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from merklekv.net.errors import RequestError
from merklekv.net.glob import compile_glob
from merklekv.net.home import Home
from merklekv.net.limits import (
    BOARD_BYTES_MAX,
    CLIENT_SUBSCRIPTIONS_MAX,
    PATTERN_BYTES_MAX,
    SLICE_S,
    SUBSCRIPTION_BYTES_MAX,
    SUBSCRIPTION_ROOM_BYTES,
    SUBSCRIPTIONS_MAX,
)
from merklekv.net.protocol.resp import Push, bulk

MESSAGE_ROOM_BYTES: Final = 256  # of Python's objects for a message that waits
LARGE_BYTES: Final = 1 << 16  # of a payload that takes long to copy
PATTERN_ROOM_BYTES: Final = 15  # what compiling a pattern and beginning to compare it takes, in bytes of it


class Kind(enum.Enum):
    """What a name of a subscription is; the value stands before the words of the protocol."""

    CHANNEL = b""
    PATTERN = b"p"


class Subscriptions:
    """What one session listens to: names by kind, oldest first."""

    __slots__ = ("names",)

    def __init__(self) -> None:
        self.names: dict[Kind, dict[bytes, None]] = {kind: {} for kind in Kind}

    def __len__(self) -> int:
        return sum(map(len, self.names.values()))

    @property
    def memory_bytes(self) -> int:
        """What they take, here and on the board."""
        return sum(SUBSCRIPTION_ROOM_BYTES * len(names) + sum(map(len, names)) for names in self.names.values())


class Subscriber(Protocol):
    """A session, as much of it as is needed here."""

    protocol: int
    worker: Home
    subscriptions: Subscriptions | None  # None: it listens to nothing
    has_missed: bool  # messages that it did not read, so it is about to be closed

    def __hash__(self) -> int: ...


class Message(NamedTuple):
    channel: bytes
    payload: bytes


class Glob(NamedTuple):
    """A compiled pattern."""

    prefix: bytes  # that a channel must begin with
    matches: Callable[[bytes], object]


_BEGINNING = re.compile(rb"[^*?[\\]*")


def _cost(pattern: bytes) -> int:
    """What it takes to compare a message with it, in bytes: one if only its beginning has to be looked at."""
    beginning = _BEGINNING.match(pattern)
    assert beginning
    behind = len(pattern) - beginning.end()
    return 1 if behind == 0 or (behind == 1 and pattern.endswith(b"*")) else behind + PATTERN_ROOM_BYTES


Receivers = dict[Subscriber, None]  # in the order of their subscriptions


class Board:
    """What the sessions of one worker listen to, and the messages that wait for this worker."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.receivers: dict[Kind, dict[bytes, Receivers]] = {kind: {} for kind in Kind}
        self._globs: dict[bytes, Glob] = {}
        self._cost = 0
        self.subscriptions = 0
        self.dropped = 0  # messages
        self._lock = threading.Lock()  # of the messages that wait
        self._waiting: deque[Message] = deque()
        self._waiting_bytes = 0
        self._is_called = False  # whether the worker is going to deliver them

    # -- in the worker's thread ----------------------------------------------------------------------------------------

    def check_patterns(self, patterns: Iterable[bytes]) -> None:
        """Raises RequestError if these are too many: each message is compared with each."""
        new = [pattern for pattern in patterns if pattern not in self._globs]
        if self._cost + sum(map(_cost, new)) > PATTERN_BYTES_MAX:
            raise RequestError(
                f"too many patterns: behind their first wildcards, those of all clients together may have "
                f"{PATTERN_BYTES_MAX} bytes, with {PATTERN_ROOM_BYTES} more for each but `beginning*`, because each "
                "message is compared with each; subscribe to channels"
            )

    def add(self, session: Subscriber, kind: Kind, name: bytes) -> None:
        if kind is Kind.PATTERN and name not in self._globs:
            self._globs[name] = Glob(*compile_glob(name))
            self._cost += _cost(name)
        self.receivers[kind].setdefault(name, {})[session] = None
        self.subscriptions += 1

    def remove(self, session: Subscriber, kind: Kind, name: bytes) -> None:
        receivers = self.receivers[kind][name]
        del receivers[session]
        self.subscriptions -= 1
        if not receivers:
            del self.receivers[kind][name]
            if kind is Kind.PATTERN:
                del self._globs[name]
                self._cost -= _cost(name)

    def deliver(self, message: Message) -> int:
        """Sends a message to the subscribers here. Returns how many times."""
        channel, payload = bulk(message.channel), bulk(message.payload)
        count = 0
        receivers = self.receivers[Kind.CHANNEL].get(message.channel)
        if receivers:
            self._send(receivers, (b"3\r\n$7\r\nmessage\r\n", channel, payload))
            count = len(receivers)
        for name, glob in self._globs.items():
            if message.channel.startswith(glob.prefix) and glob.matches(message.channel):
                receivers = self.receivers[Kind.PATTERN][name]
                self._send(receivers, (b"4\r\n$8\r\npmessage\r\n", bulk(name), channel, payload))
                count += len(receivers)
        return count

    def _send(self, receivers: Iterable[Subscriber], parts: Sequence[bytes]) -> None:
        if len(parts[-1]) > LARGE_BYTES:  # not to make it again and again for patterns of a client that missed it
            receivers = [session for session in receivers if not session.has_missed]
        push = self._home.push
        pushes: dict[bool, Push] = {}
        for session in receivers:
            is_resp3 = session.protocol == 3
            data = pushes.get(is_resp3)
            if data is None:
                data = pushes[is_resp3] = Push(b"".join((b">" if is_resp3 else b"*", *parts)))
            push(session, data)

    def _deliver_waiting(self) -> None:
        until = time.monotonic() + SLICE_S
        try:
            while self._waiting and time.monotonic() < until:
                with self._lock:
                    message = self._waiting.popleft()
                    self._waiting_bytes -= _size(message)
                self.deliver(message)
        finally:  # also after a lack of memory: the other messages still have to be delivered
            with self._lock:
                self._is_called = again = bool(self._waiting)
            if again:
                self._home.call_soon(self._deliver_waiting)

    # -- in any thread -------------------------------------------------------------------------------------------------

    def audience(self, channel: bytes) -> int:
        """How many times a message on this channel would be sent."""
        count = len(self.receivers[Kind.CHANNEL].get(channel, ()))
        for name, glob in list(self._globs.items()):
            if channel.startswith(glob.prefix) and glob.matches(channel):
                count += len(self.receivers[Kind.PATTERN].get(name, ()))
        return count

    def deliver_soon(self, message: Message) -> None:
        """Lets the worker send it."""
        with self._lock:
            if self._waiting_bytes > BOARD_BYTES_MAX:
                self.dropped += 1
                return
            self._waiting.append(message)
            self._waiting_bytes += _size(message)
            is_called, self._is_called = self._is_called, True
        if not is_called:
            self._home.call_soon(self._deliver_waiting)


def _size(message: Message) -> int:
    return len(message.channel) + len(message.payload) + MESSAGE_ROOM_BYTES


class Cluster(Protocol):
    """The other nodes. Both methods may be called by any thread, and return at once."""

    def send(self, channel: bytes, payload: bytes) -> None:
        """Lets them have a message, as far as they listen."""

    def listen(self, wanted: bool) -> None:
        """Whether anybody here wants their messages."""


class PubSub:
    """Publish and subscribe on one server."""

    def __init__(self) -> None:
        self._boards: dict[Home, Board] = {}
        self._cluster: Cluster | None = None
        self._listens = False
        self._lock = threading.Lock()  # of the two

    # -- in the thread of the session's worker -------------------------------------------------------------------------

    def subscribe(self, session: Subscriber, kind: Kind, names: Sequence[bytes]) -> list[int]:
        """Adds subscriptions, all or none. Returns how many the session has after each. Raises RequestError."""
        board = self._boards.get(session.worker) or self._boards.setdefault(session.worker, Board(session.worker))
        mine = session.subscriptions or Subscriptions()
        present = mine.names[kind]
        new = dict.fromkeys(name for name in names if name not in present)
        if any(len(name) > SUBSCRIPTION_BYTES_MAX for name in new):
            raise RequestError(f"the name of a channel, or a pattern, has over {SUBSCRIPTION_BYTES_MAX} bytes")
        if len(mine) + len(new) > CLIENT_SUBSCRIPTIONS_MAX:
            raise RequestError(f"too many subscriptions: a client may have {CLIENT_SUBSCRIPTIONS_MAX}")
        if self.subscriptions + len(new) > SUBSCRIPTIONS_MAX:
            raise RequestError(f"too many subscriptions: all clients together may have {SUBSCRIPTIONS_MAX}")
        if kind is Kind.PATTERN:
            board.check_patterns(new)
        counts = []
        for name in names:
            if name not in present:
                board.add(session, kind, name)
                present[name] = None
                session.subscriptions = mine
            counts.append(len(mine))
        self._tell_cluster()
        return counts

    def unsubscribe(self, session: Subscriber, kind: Kind, names: Sequence[bytes] = ()) -> list[tuple[bytes, int]]:
        """Ends subscriptions, all of this kind when none is named. Returns each with how many are left then."""
        mine = session.subscriptions
        present = mine.names[kind] if mine else {}
        left = []
        for name in names or list(present):
            if name in present:
                del present[name]
                self._boards[session.worker].remove(session, kind, name)
            left.append((name, len(mine or ())))
        session.subscriptions = mine or None
        self._tell_cluster()
        return left

    def leave(self, session: Subscriber) -> None:
        """Ends all subscriptions of a session."""
        if session.subscriptions:
            for kind in Kind:
                self.unsubscribe(session, kind)

    def publish(self, session: Subscriber, message: Message) -> int:
        """Sends a message of a client. Returns to how many subscriptions of this node."""
        count = 0
        for home, board in list(self._boards.items()):
            if home is session.worker:
                count += board.deliver(message)
            elif audience := board.audience(message.channel):
                count += audience
                board.deliver_soon(message)
        if self._cluster is not None:
            self._cluster.send(*message)
        return count

    # -- in any thread -------------------------------------------------------------------------------------------------

    def join(self, cluster: Cluster) -> None:
        """From here on the other nodes have what is published here."""
        with self._lock:
            self._cluster, self._listens = cluster, False
        self._tell_cluster()

    def _tell_cluster(self) -> None:
        with self._lock:
            listens = self.subscriptions > 0
            if self._cluster is not None and listens != self._listens:
                self._listens = listens
                self._cluster.listen(listens)

    def deliver(self, message: Message, here: Home | None = None) -> None:
        """Sends a message to the subscribers of this node, and of no other. `here`: the worker whose thread this is."""
        for home, board in list(self._boards.items()):
            if home is here:
                board.deliver(message)
            elif board.audience(message.channel):
                board.deliver_soon(message)

    @property
    def subscriptions(self) -> int:
        return sum(board.subscriptions for board in list(self._boards.values()))

    @property
    def dropped(self) -> int:
        """Messages dropped because a worker did not come to them."""
        return sum(board.dropped for board in list(self._boards.values()))

    def names(self, kind: Kind) -> list[bytes]:
        """What is subscribed to, once each."""
        return list(
            dict.fromkeys(name for board in list(self._boards.values()) for name in list(board.receivers[kind]))
        )

    def count(self, kind: Kind) -> int:
        """How many different names are subscribed to."""
        boards = list(self._boards.values())
        return len(boards[0].receivers[kind]) if len(boards) == 1 else len(self.names(kind))

    def subscribers(self, channel: bytes) -> int:
        """How many sessions have subscribed to this channel itself."""
        return sum(len(board.receivers[Kind.CHANNEL].get(channel, ())) for board in list(self._boards.values()))
