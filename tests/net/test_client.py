"""The client against peers of any kind: a reply is bounded in size and in time, and memory stays where it is."""

from __future__ import annotations

import itertools
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import pytest
from fixtures.node import NodeFactory
from fixtures.servers import StartedServer
from hypothesis import given
from hypothesis import strategies as st

from merklekv.net import client as client_module
from merklekv.net.client import Client, NoAnswer, NodeError, Unreachable
from merklekv.net.commands import records
from merklekv.net.protocol import replies
from merklekv.net.protocol.replies import INCOMPLETE, BadReply, ErrorReply, ReplyParser

MIB = 1 << 20
Peer = Callable[[Iterable[bytes]], tuple[str, int]]


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A peer that answers whatever it is asked with these pieces, as long as it is let."""
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(listener: socket.socket, pieces: Iterable[bytes]) -> None:
        with suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                for piece in pieces:
                    connection.sendall(piece)
                connection.recv(100)

    def make(pieces: Iterable[bytes]) -> tuple[str, int]:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threads.append(threading.Thread(target=serve, args=(listener, pieces)))
        threads[-1].start()
        host, port = listener.getsockname()
        return host, port

    yield make
    for listener in listeners:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(60)


FILLING = b"x" * 65536
ENDLESS = {
    "a bulk": ([b"$4000000000\r\n"], FILLING, "a length of b'4000000000'"),
    "a bulk in a list": ([b"*2\r\n$4000000000\r\n"], FILLING, "a length of b'4000000000'"),
    "a line": ([b"+"], FILLING, "a line of more than 65536 bytes"),
    "an error": ([b"-ERR "], FILLING, "a line of more than 65536 bytes"),
    "a number": ([b":1"], b"1" * 65536, "a line of more than 65536 bytes"),
    "digits": ([b"$"], b"1" * 65536, "a line of more than 65536 bytes"),
    "a list": ([b"*1000000000\r\n"], b"$1\r\nx\r\n" * 9000, "a length of b'1000000000'"),
    "lists": ([b""], b"*1\r\n" * 16000, "lists within lists, more than 4 deep"),
    "lists of lists": ([b"*20000\r\n"], b"*2\r\n:1\r\n:1\r\n" * 5000, "a reply of more than 32768 values"),
    "a list of bulks": ([b"*20000\r\n"], b"$65000\r\n%b\r\n" % (b"x" * 65000), "a reply of more than 67108864 bytes"),
    "HTTP": ([b"HTTP/1.1 200 OK\r\n"], FILLING, "a reply that begins with b'H'"),
    "nothing known": ([b"\x00\xff"], FILLING, "a line of more than 65536 bytes"),
}


def ping(client: Client) -> object:
    return client.call(b"PING")


@pytest.mark.parametrize(
    ("name", "ask"),
    [
        *((name, ping) for name in ENDLESS),
        ("a bulk", partial(records.ask, message=b"x")),
        ("a bulk in a list", partial(records.fetch, key=b"k")),
    ],
)
def test_a_reply_without_an_end(
    name: str, ask: Callable[[Client], object], peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "VALUES_MAX", 1 << 15)  # tracing memory makes each value ten times as slow
    head, body, said = ENDLESS[name]
    address = peer(itertools.chain(head, itertools.repeat(body)))
    tracemalloc.start()
    try:
        with Client(*address) as client, pytest.raises(Unreachable, match="does not answer as a MerkleKV") as error:
            ask(client)
        assert said in str(error.value)
        bound = 140 * MIB if "67108864" in said else 5 * MIB if "32768" in said else 4 * MIB
        assert tracemalloc.get_traced_memory()[1] < bound
    finally:
        tracemalloc.stop()


def test_a_reply_that_comes_too_slowly(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then is not enough, however regular they are."""
    pause = threading.Event()

    def drip() -> Iterator[bytes]:
        yield b"$100000\r\n"
        while not pause.wait(0.02):
            yield b"x"

    with Client(*peer(drip()), timeout_s=0.5) as client, pytest.raises(NoAnswer, match=r"too slowly|no whole answer"):
        client.call(b"PING")
    pause.set()


def test_a_long_reply_has_the_time_that_its_bytes_need(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece comes within the time, all of them together take longer than the time for the first."""
    monkeypatch.setattr(client_module, "PROGRESS_BYTES_S", 50)  # a piece gives it 20 seconds more
    clock = itertools.count(0, 15)  # and so many pass until the next, as the client has it
    monkeypatch.setattr(client_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    pause = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield b"$20000\r\n" + b"x" * 1000
        for _ in range(19):
            pause.wait(0.02)
            yield b"x" * 1000
        yield b"\r\n"

    with Client(*peer(pieces()), timeout_s=60.0) as client:
        assert client.call(b"PING") == b"x" * 20000
    assert next(clock) > 2 * 60


def test_an_error_is_harmless_to_a_terminal(peer: Peer) -> None:
    with Client(*peer([b"-ERR \x1b[2J\x07\r\n"])) as client, pytest.raises(NodeError) as error:
        client.call(b"PING")
    assert str(error.value).endswith(r"\x1b[2J\x07")


def test_a_peer_that_says_nothing(peer: Peer) -> None:
    with Client(*peer([]), timeout_s=0.2) as client, pytest.raises(NoAnswer, match=r"no whole answer within 0\.2 s"):
        client.call(b"PING")


@pytest.mark.parametrize("host", ["a..b", "x" * 64, "\udcff"])
def test_a_host_name_that_is_none(host: str) -> None:
    with pytest.raises(Unreachable, match="is not a host name"):
        Client(host, 7379)


def test_the_longest_reply(server: StartedServer) -> None:
    host, port = server.address
    value = b"x" * 1000
    with Client(host, port, reply_bytes=len(b"$1000\r\n\r\n") + 1000) as client:
        assert client.call(b"ECHO", value) == value
        with pytest.raises(Unreachable, match="a reply of more than 1009 bytes"):
            client.call(b"ECHO", value + b"x")


def test_sync_with_a_peer_that_streams(node_factory: NodeFactory, peer: Peer) -> None:
    """The whole way: a node that is told to exchange with such a peer answers at once, and stays small."""
    node = node_factory()
    with node.connect() as client:
        for name, (head, body, _) in ENDLESS.items():
            if name in ("a list of bulks", "lists of lists"):
                continue
            host, port = peer(itertools.chain(head, itertools.repeat(body)))
            before = int(client.ask("MEMORY").split()[1])
            assert "does not answer as a MerkleKV node" in client.ask(f"SYNC {host} {port}"), name
            assert int(client.ask("MEMORY").split()[1]) - before < 32 * MIB, name
        assert "is not a host name" in client.ask("SYNC a..b 7379")
        assert client.ask("SET k v") == "OK"


# -- the parser --------------------------------------------------------------------------------------------------------


def encoded(value: object) -> bytes:
    match value:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % value
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(value), value)
        case list():
            return b"*%d\r\n" % len(value) + b"".join(map(encoded, value))
    raise AssertionError(value)


plain = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=50))
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=4), max_leaves=10)


@given(st.lists(values, max_size=5), st.randoms(use_true_random=False))
def test_any_replies_with_any_cut(wanted: list[object], random: object) -> None:
    data = b"".join(map(encoded, wanted)) + b"+OK\r\n"
    for size in (1, 2, 7, 10_000):
        parser = ReplyParser(10_000)
        found = []
        for at in range(0, len(data), size):
            parser.feed(data[at : at + size])
            while (value := parser.next()) is not INCOMPLETE:
                found.append(value)
        assert found == [*wanted, b"OK"]


def test_an_error_leaves_the_stream_intact() -> None:
    parser = ReplyParser(100)
    parser.feed(b":1\r\n-ERR no\r\n*2\r\n:2\r\n$1\r\nx\r\n*-1\r\n*0\r\n")
    assert parser.next() == 1
    with pytest.raises(ErrorReply, match=r"^ERR no$"):
        parser.next()
    assert [parser.next() for _ in range(3)] == [[2, b"x"], None, []]
    assert parser.next() is INCOMPLETE


def test_a_list_with_an_error_is_an_error_once_it_is_whole() -> None:
    parser = ReplyParser(100)
    parser.feed(b"*3\r\n+OK\r\n-ERR first\r\n*1\r\n-ERR second\r")
    assert parser.next() is INCOMPLETE
    parser.feed(b"\n+OK\r\n")
    with pytest.raises(ErrorReply, match=r"^ERR first$"):
        parser.next()
    assert parser.next() == b"OK"


def test_the_bound_on_bytes_is_that_of_each_reply() -> None:
    parser = ReplyParser(20)
    for _ in range(10_000):
        parser.feed(b"$13\r\n" + b"x" * 13 + b"\r\n")
        assert parser.next() == b"x" * 13
    assert len(parser._buffer) < 2 * replies.COMPACT_BYTES


@pytest.mark.parametrize("data", [b":x\r\n", b":+1\r\n", b"$-2\r\n", b"$x\r\n", b"*-2\r\n", b"%1\r\n", b"\r\n"])
def test_what_is_no_reply(data: bytes) -> None:
    parser = ReplyParser(1000)
    parser.feed(data)
    with pytest.raises(BadReply):
        parser.next()


@pytest.mark.parametrize("data", [b"-\r\n", b"- \r\n", b"*1\r\n-\r\n"])
def test_an_error_without_a_text_has_words(data: bytes) -> None:
    parser = ReplyParser(1000)
    parser.feed(data)
    with pytest.raises(ErrorReply, match="an error without a text"):
        parser.next()


def test_a_node_that_hangs_is_found_out_before_a_long_command(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "ANSWER_TIMEOUT_S", 0.05)
    with Client(*peer([]), timeout_s=3600) as client, pytest.raises(NoAnswer, match=r"no whole answer within 0\.05 s"):
        client.require_answer()
    monkeypatch.undo()
    with Client(*peer([b"+PONG\r\n"]), timeout_s=3600) as client:
        client.require_answer()
        assert client._timeout_s == 3600


def test_a_node_that_takes_no_more_clients_says_so(peer: Peer) -> None:
    with Client(*peer([b"-ERR max number of clients reached\r\n"])) as client:
        with pytest.raises(NodeError, match=r"127\.0\.0\.1:\d+: ERR max number of clients reached"):
            client.require_answer()
        assert client._timeout_s == client_module.REPLY_TIMEOUT_S
