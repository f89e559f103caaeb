"""Reading and sending for many connections: over real sockets, the same comes out of both, and the same is left.

A connection is a stand-in with what `merklekv.net.tick` names of it. Each case is built twice.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from operator import itemgetter
from typing import Any

import pytest
from fixtures.twins import BOTH, REFERENCES, TWINS, outcome
from fixtures.wire import Unsendable, encode
from hypothesis import example, given
from hypothesis import strategies as st

from merklekv.net.channel import Channel
from merklekv.net.connection import Muted
from merklekv.net.protocol.resp import REQUEST_BYTES_MIN, Push, RespParser

SHARE = 64
BUFFER_BYTES = 3 * SHARE  # so that more connections take several turns
NOW = 12.5
LARGE = b"x" * 1_000_000  # more than a socket takes


class Entry:
    """What is known of a command."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.batches = {} if name == b"PING" else {2: None}


class Broken(Exception):
    """What a connection fails with."""


class Client(Channel):
    """A connection to one end of a pair of sockets."""

    def __init__(self, number: int, sock: socket.socket, kind: str, entries: dict[bytes, Entry]) -> None:
        super().__init__()
        self.number, self.kind = number, kind
        self.fd = sock.fileno()
        self.receive, self.send = sock.recv, sock.send
        self.find = entries.get
        self.feed = RespParser(100, 100, REQUEST_BYTES_MIN).feed
        self.pushed_bytes = 9
        self.kept: list[bytes] = []

    def keep(self, data: bytes | memoryview) -> None:
        if self.kind == "cannot keep":
            raise Broken
        self.kept.append(bytes(data))
        self.unsent_bytes += len(data)
        self.needs_attention = True


@contextmanager
def pairs(count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """So many pairs of connected sockets that do not block."""
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            pair = socket.socketpair()
            for end in pair:
                stack.callback(end.close)
                end.setblocking(False)
            made.append(pair)
        yield made


def left(sock: socket.socket) -> bytes:
    """What can be read of a socket."""
    data = b""
    try:
        while piece := sock.recv(1 << 16):
            data += piece
    except OSError as problem:
        return data + b" " + errno.errorcode[problem.errno or 0].encode()
    return data + b" end"


def shown(problem: Exception | None) -> tuple[object, ...]:
    return type(problem), getattr(problem, "errno", None)


# -- reading -----------------------------------------------------------------------------------------------------------

requests = st.sampled_from(
    [
        encode("GET", "k"),
        encode("GET", "other"),
        encode("SET", "k", "v"),
        encode("PING"),  # a command without a batch
        encode("UNKNOWN"),
        encode("GET", "k") + encode("GET", "l"),
        encode("GET", "k") + b"*2\r\n$3",  # and a part of another one
        b"*2\r\n$3\r\nGET\r\n$1\r\n",
        b"PING\r\n",
        b"\r\n",
        b"*x\r\n",
        encode("GET", "k" * SHARE),
        encode("SET", "k", "x" * 90),  # more than a share
    ]
)
KINDS = ["plain"] * 4 + [
    "end",
    "reset",
    "closed",
    "feed raises",
    "attention",
    "unknown",
    "hung up",
]
incoming = st.lists(st.tuples(st.sampled_from(KINDS), st.just(b"") | requests), max_size=9)


def read(module: Any, drawn: Sequence[tuple[str, bytes]]) -> object:
    """Everything that comes of a read."""
    entries = {name: Entry(name) for name in (b"GET", b"SET", b"PING")}
    with pairs(len(drawn)) as sockets:
        events, clients, connections = [], [], {}
        for number, ((kind, data), (ours, theirs)) in enumerate(zip(drawn, sockets, strict=True)):
            client = Client(number, ours, kind, entries)
            theirs.send(data) if data else None
            event = select.EPOLLIN
            match kind:
                case "end":
                    theirs.close()
                case "reset":
                    ours.send(b"unread")
                    theirs.close()
                case "closed":
                    ours.close()
                    client.fd = -1
                case "feed raises":
                    client.feed = raises
                case "attention":
                    client.needs_attention = True
                case "hung up":
                    event |= select.EPOLLHUP
            clients.append(client)
            events.append((number, event))
            if kind != "unknown":
                connections[number] = client
        singles: dict[Entry, Any] = {}
        pipelines: list[Any] = []
        odd: list[Any] = []
        ended: list[Any] = []
        sockets_ = module.Sockets(BUFFER_BYTES)
        received = sockets_.read_each(events, connections, SHARE, NOW, singles, pipelines, odd, ended)
        return (
            received,
            [(entry.name, [one.number for one in same], found) for entry, (same, found) in singles.items()],
            [(one.number, found) for one, found in pipelines],
            odd,
            [(one.number, shown(problem)) for one, problem in ended],
            [client.last_active for client in clients],
            [left(ours) if ours.fileno() >= 0 else b"" for ours, _ in sockets],
        )


def raises(_: bytes) -> Any:
    raise Broken


@given(incoming)
def test_both_read_the_same(drawn: list[tuple[str, bytes]]) -> None:
    assert read(TWINS, drawn) == read(REFERENCES, drawn)


def test_more_connections_than_are_read_at_once() -> None:
    """All read a few bytes of one socket, so their order shows."""
    results = []
    for module in BOTH:
        with pairs(1) as [(ours, theirs)]:
            theirs.send(b"".join(b"%04d" % number for number in range(2500)))
            clients = [Client(number, ours, "plain", {}) for number in range(2600)]
            for client in clients:
                client.feed = lambda data: [[data], [data]]
            events = [(number, select.EPOLLIN) for number in range(len(clients))]
            found: list[Any] = []
            received = module.Sockets(1 << 16).read_each(events, dict(enumerate(clients)), 4, NOW, {}, found, [], [])
            results.append((received, [(client.number, pieces) for client, pieces in found]))
    assert results[1] == results[0]
    assert results[1][0] == 10_000


# -- sending -----------------------------------------------------------------------------------------------------------

some_replies = st.lists(
    st.sampled_from([b"+OK\r\n", b"", Push(b">1\r\n"), b"x" * 5000, LARGE]) | st.binary(max_size=4), max_size=3
)
SEND_KINDS = ["plain"] * 5 + [
    "full",
    "gone",
    "closed",
    "cannot keep",
    "unsendable",
    "muted",
    "behind",
    "attention",
    "no replies",
]
outgoing = st.lists(st.tuples(st.sampled_from(SEND_KINDS), st.booleans(), some_replies), max_size=9)


def send(module: Any, drawn: Sequence[tuple[str, bool, list[bytes]]]) -> object:
    """Everything that comes of sending.  How much a socket takes is its own affair: what it took and what is kept are
    compared together."""
    with pairs(len(drawn)) as sockets:
        clients = []
        for number, ((kind, attention, replies), (ours, theirs)) in enumerate(zip(drawn, sockets, strict=True)):
            client = Client(number, ours, kind, {})
            client.needs_attention = attention
            client.replies = list(replies)
            match kind:
                case "full":
                    fill(ours)
                case "gone":
                    theirs.close()
                case "closed":
                    ours.close()
                    client.fd = -1
                case "unsendable":
                    client.replies = Unsendable(Broken())
                    client.replies += replies
                case "muted":
                    client.replies = Muted(list(replies))
                case "behind":
                    client.keep(b"earlier")
                case "no replies":
                    client.replies = None  # type: ignore[assignment]
            clients.append(client)
        looks: list[Any] = []
        given_ = module.Sockets(BUFFER_BYTES).send_each(clients, looks)
        return (
            given_,
            sorted(((one.number, shown(problem)) for one, problem in looks), key=itemgetter(0)),  # in any order
            [
                (
                    (left(theirs).removesuffix(b" EAGAIN") if theirs.fileno() >= 0 else b"") + b"".join(client.kept),
                    client.unsent_bytes > 0,
                    client.needs_attention,
                    client.pushed_bytes,
                    client.replies,
                )
                for client, (_, theirs) in zip(clients, sockets, strict=True)
            ],
        )


def fill(sock: socket.socket) -> None:
    """Sends until the socket takes no more."""
    try:
        while True:
            sock.send(b"#" * 4096)
    except BlockingIOError:
        pass


@given(outgoing)
@example([("unsendable", True, [b"+OK\r\n"])])
@example([("closed", False, [b"+OK\r\n"])])
def test_both_send_the_same(drawn: list[tuple[str, bool, list[bytes]]]) -> None:
    assert send(TWINS, drawn) == send(REFERENCES, drawn)


def test_more_connections_than_are_sent_to_at_once() -> None:
    results = []
    for module in BOTH:
        with pairs(1) as [(ours, theirs)]:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            clients = [Client(number, ours, "plain", {}) for number in range(2600)]
            for client in clients:
                client.replies = [b"%d," % client.number] * (client.number % 3)
            looks: list[Any] = []
            given_ = module.Sockets(1).send_each(clients, looks)
            kept = b"".join(piece for client in clients for piece in client.kept)
            results.append((given_, left(theirs).removesuffix(b" EAGAIN") + kept))
    assert results[1] == results[0]


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [None, (), (0,), 5, "xy", (0, None), (0, 2**40), ([], 1)])
def test_an_event_that_is_none(event: Any) -> None:
    with pairs(1) as [(ours, _)]:
        clients = {0: Client(0, ours, "plain", {})}
        outcome(TWINS.Sockets(100).read_each, [event], clients, 10, NOW, {}, [], [], [])


@pytest.mark.parametrize("share", [0, -5, 101, 2**70, None])
def test_a_share_that_does_not_fit(share: Any) -> None:
    with pairs(1) as [(ours, _)]:
        clients = {0: Client(0, ours, "plain", {})}
        outcome(TWINS.Sockets(100).read_each, [(0, select.EPOLLIN)], clients, share, NOW, {}, [], [], [])


@pytest.mark.parametrize("size", [-1, 0, 2**62, 2**70, None])
def test_a_buffer_of_a_strange_size(size: Any) -> None:
    outcome(TWINS.Sockets, size)


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("wrong", [None, 5, ()])
def test_arguments_of_wrong_types(place: int, wrong: Any) -> None:
    with pairs(1) as [(ours, theirs)]:
        theirs.send(encode("GET", "k"))
        client = Client(0, ours, "plain", {b"GET": Entry(b"GET")})
        arguments: list[Any] = [[(0, select.EPOLLIN)], {0: client}, SHARE, NOW, {}, [], [], []]
        arguments[place] = wrong
        outcome(TWINS.Sockets(BUFFER_BYTES).read_each, *arguments)
        outcome(TWINS.Sockets(BUFFER_BYTES).send_each, wrong, [])
        outcome(TWINS.Sockets(BUFFER_BYTES).send_each, [client], wrong)
        outcome(TWINS.Sockets(BUFFER_BYTES).send_each, [wrong], [])
