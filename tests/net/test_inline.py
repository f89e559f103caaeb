"""Inline commands: lines on a connection that speaks RESP, as a real Redis reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
from fixtures.servers import Start
from fixtures.wire import Wire, encode, feed, feed_every_way
from hypothesis import given, settings
from hypothesis import strategies as st

from merklekv.net.protocol import inline
from merklekv.net.protocol.resp import REQUEST_BYTES_MIN, RespParser
from merklekv.net.protocol.text import BROKEN, FOREIGN

make = partial(RespParser, 8192, 1000, REQUEST_BYTES_MIN)
PING = encode("PING")


@pytest.fixture
def redis(redis_address: tuple[str, int]) -> Iterator[Wire]:
    with Wire(redis_address) as wire:
        wire.call("FLUSHALL")
        yield wire


@pytest.fixture
def line(start: Start, connect: Callable[..., Wire]) -> Wire:
    """A connection to a server without the line protocol."""
    return connect(start(text_protocol=False))


LINES = [
    b"PING\r\n",
    b"PING\n",
    b"  ping  hello \t\r\n",
    b"\r\n\r\nPING\r\n",
    b"\n \t \nPING\r\n",
    b'SET k "a b"\r\nGET k\r\n',
    b"SET k 'a b'\r\nGET k\r\n",
    b'ECHO "\\x41\\xff\\n\\r\\t\\b\\a\\q\\"\\\\ \\xzz"\r\n',
    b"ECHO 'it\\'s \\n \\x41 \\\\x'\r\n",
    b"ECHO foo\"bar baz\"\r\nECHO a'b c'\r\n",
    b"ECHO \"\"\r\nECHO ''\r\n",
    b'ECHO "a"\x0b\r\nECHO\x0ba\r\nECHO a\x0bb\r\nECHO \x0ca\r\n',
    b"FOO bar\r\nGET\r\n",
    b"get k\r\nGET k v\r\n",
    b"ECHO \xff\xfe\r\nECHO a\rb\r\n",
    b"PING\r\n" + PING + b"PING\r\n",
    PING + b"\r\n" + b"PING\r\n" + PING,
    b"*1 x\r\nPING\r\n",
    b'SET k "unbalanced\r\nPING\r\n',
    b"SET k 'unbalanced\r\nPING\r\n",
    b'SET k "a"b\r\nPING\r\n',
    b"ECHO 'a\\\\'\r\nPING\r\n",
    b"ECHO " + b"x" * 60_000 + b"\r\n",
    b"x" * (inline.LINE_BYTES_MAX + 100),
]


@pytest.mark.parametrize("sent", LINES, ids=range(len(LINES)))
def test_a_line_is_answered_as_by_redis(sent: bytes, line: Wire, redis: Wire) -> None:
    for wire in (line, redis):
        wire.send(sent + b"QUIT\r\n" * sent.endswith(b"\n"))
    assert line.rest() == redis.rest()


words = st.text(alphabet=" \t\v\fab\"'\\nx4", max_size=12).map(str.encode)


@settings(max_examples=500, deadline=None)
@given(st.lists(words, min_size=1, max_size=3).map(b" ".join))
def test_any_line_is_split_as_by_redis(redis_words: Callable[[bytes], list[bytes] | None], given_: bytes) -> None:
    assert inline.split(given_) == redis_words(given_)


@pytest.fixture(scope="module")
def redis_words(redis_address: tuple[str, int]) -> Callable[[bytes], list[bytes] | None]:
    """The words of a line as Redis has them, told by a script that returns its arguments."""

    def ask(line: bytes) -> list[bytes] | None:
        with Wire(redis_address) as wire:
            wire.send(b'EVAL "return ARGV" 0 ' + line + b"\r\n")
            reply = wire.resp()
        if reply.startswith(b"-"):
            assert b"unbalanced" in reply
            return None
        return reply.split(b"\r\n")[2:-1:2]

    return ask


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_and_requests_in_any_cut(end: bytes) -> None:
    data = b"SET k 'a b'" + end + encode("SET", b"k", b"a\r\nb") + end + b"PING" + end
    expected = [[b"SET", b"k", b"a b"], [b"SET", b"k", b"a\r\nb"], [b"PING"]]
    assert feed_every_way(make, data, PING) == expected


def test_a_line_is_bounded() -> None:
    fits = b"x" * inline.LINE_BYTES_MAX
    assert feed(make(), [fits + b"\r\n"]) == feed(make(), [fits, b"\r", b"\n"]) == [[fits]]
    error = [[BROKEN, b"Protocol error: too big inline request"]]
    assert feed(make(), [fits + b"xx\n" + PING]) == feed(make(), [fits, b"xx", b"\n"]) == error


@pytest.mark.parametrize(
    "head",
    [b"GET / HTTP/1.1", b"POST / HTTP/1.1", b"POST /", b"Host: x", b"host:x", b"OPTIONS *", b"PRI * HTTP/2.0"],
)
@pytest.mark.parametrize("before", [b"", PING])
def test_a_client_of_http_is_closed_and_nothing_of_it_runs(head: bytes, before: bytes, line: Wire) -> None:
    assert feed(make(), [before + head + b"\r\nPING\r\n"])[-1] == [FOREIGN, head]
    line.send(before + head + b"\r\nContent-Length: 9\r\n\r\nFLUSHALL\r\n" + PING)
    assert line.rest() == (b"+PONG\r\n" if before else b"")


def test_tls_is_closed_and_a_refused_client_is_told_in_resp(
    start: Start, connect: Callable[..., Wire], pretend_remote: None
) -> None:
    wire = connect(start(text_protocol=False))
    wire.send(b"PING\r\n")
    assert wire.line().startswith(b"-ERR protected mode")
    wire = connect(start(text_protocol=False, allow_remote=True))
    wire.send(b"\x16\x03\x01\r\nPING\r\n")
    assert wire.rest() == b""


def test_a_connection_that_has_begun_with_resp_takes_lines_beside_the_line_protocol(resp: Wire, text: Wire) -> None:
    resp.send(PING + b"PING\r\n")
    assert resp.line() + resp.line() == b"+PONG\r\n+PONG\r\n"
    assert text.ask("PING") == "PONG"
