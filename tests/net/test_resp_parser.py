"""The RESP parser, a function of bytes. Its two ways of reading must not differ in anything but time."""

from __future__ import annotations

from functools import partial

import pytest
from fixtures.wire import encode, feed, feed_every_way
from hypothesis import given, settings
from hypothesis import strategies as st

from merklekv.net.protocol.resp import (
    HEADER_BYTES_MAX,
    PLAIN_ARGUMENTS,
    PLAIN_BULK_BYTES,
    REQUEST_BYTES_MIN,
    RespParser,
)
from merklekv.net.protocol.text import BROKEN

BULK_MAX = 2 * PLAIN_BULK_BYTES
ARGUMENTS_MAX = 1000
make = partial(RespParser, BULK_MAX, ARGUMENTS_MAX, REQUEST_BYTES_MIN)
PING = encode("PING")

REQUESTS = [
    [b"PING"],
    [b"GET", b"key"],
    [b"SET", b"key", b"value"],
    [b"SET", b"key", b""],
    [b"", b""],
    [b"SET", b"\x00\xff", b"a\r\nb"],
    [b"SET", b"\r\n", b"\r\n"],
    [b"SET", b"k", b"$5\r\nhello\r\n*1\r\n"],
    [b"SET", b"k", b"x" * PLAIN_BULK_BYTES],
    [b"SET", b"k", b"x" * (PLAIN_BULK_BYTES + 1)],
    [b"SET", b"k", b"x" * BULK_MAX],
    [b"MGET", *[b"k"] * (PLAIN_ARGUMENTS - 1)],
    [b"MGET", *[b"k"] * PLAIN_ARGUMENTS],
    [b"MGET", *[b"k"] * (ARGUMENTS_MAX - 1)],
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: f"{request[0]!r}-{len(request)}")
def test_a_request(request_: list[bytes]) -> None:
    data = encode(*request_)
    assert feed_every_way(make, data, PING) == [request_]
    assert feed(make(), [data + PING + data]) == [request_, [b"PING"], request_]


def test_a_pipeline_of_everything() -> None:
    data = b"".join(encode(*request) for request in REQUESTS)
    assert feed_every_way(make, data, PING) == REQUESTS


@pytest.mark.parametrize("nothing", [b"*0\r\n", b"*-1\r\n", b"*-7\r\n", b"\r\n", b"\n\r\n"])
def test_empty_requests_and_blank_lines_are_skipped(nothing: bytes) -> None:
    assert feed_every_way(make, nothing + PING + nothing + PING, PING) == [[b"PING"], [b"PING"]]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"*1001\r\n", "invalid multibulk length"),
        (b"*99999999999999999999\r\n", "invalid multibulk length"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*+1\r\n", "invalid multibulk length"),
        (b"*01\r\n", "invalid multibulk length"),
        (b"* 1\r\n", "invalid multibulk length"),
        (b"*1\r\n$%d\r\n" % (BULK_MAX + 1), "invalid bulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$-0\r\n", "invalid bulk length"),
        (b"*1\r\n$x\r\n", "invalid bulk length"),
        (b"*1\r\n$\r\n", "invalid bulk length"),
        (b"*2\r\n$3\r\nGET\r\n$9223372036854775808\r\n", "invalid bulk length"),
        (b"*1\r\n*1\r\n$1\r\nx\r\n", "expected '$', got '*'"),
        (b"*1\r\n+PING\r\n", "expected '$', got '+'"),
        (b"*2\r\n$3\r\nGET\r\n:1\r\n", "expected '$', got ':'"),
        (b"*1\r\n%1\r\n", "expected '$', got '%'"),
        (b"*1\r\n$4\r\nPINGxx", "expected CRLF after bulk string"),
        (b"*1\r\n$2\r\nPING\r\n", "expected CRLF after bulk string"),
        (b"*1\r\n$1\r\n\r\n\r\n", "expected CRLF after bulk string"),
        (b"*" + b"1" * (HEADER_BYTES_MAX + 1), "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * (HEADER_BYTES_MAX + 1), "too big bulk count string"),
    ],
)
def test_a_broken_stream_is_refused_in_redis_words(data: bytes, error: str) -> None:
    expected = [[b"PING"], [BROKEN, b"Protocol error: " + error.encode()]]
    assert feed_every_way(make, PING + data, PING) == expected
    assert feed(make(), [PING + data + PING]) == expected


@pytest.mark.parametrize("header", [b"*1001\r\n", b"*1\r\n$9999999\r\n", b"*1\r\n:", b"*1\r\n$4\r\nPINGx?"])
def test_it_is_refused_at_the_first_byte_that_shows_it(header: bytes) -> None:
    parser = make()
    assert feed(parser, [header[at : at + 1] for at in range(len(header) - 1)]) == []
    assert feed(parser, [header[-1:]])[0][0] is BROKEN


def test_a_request_is_bounded_as_a_whole() -> None:
    """Many values that are each allowed must not add up without end."""
    values = REQUEST_BYTES_MIN // BULK_MAX
    fits = [b"x" * BULK_MAX] * (values - 1)
    assert len(feed(make(), [encode(*fits)])) == 1
    too_large = encode(*fits, b"x" * BULK_MAX, b"x" * BULK_MAX)
    error = b"Protocol error: request larger than %d bytes" % REQUEST_BYTES_MIN
    assert feed(make(), [too_large]) == [[BROKEN, error]]
    chunks = [too_large[at : at + 10_000] for at in range(0, len(too_large), 10_000)]
    assert feed(make(), chunks) == [[BROKEN, error]]


def test_what_is_held_is_bounded_by_what_has_come_not_by_what_is_announced() -> None:
    parser = RespParser(1 << 40, 1 << 20, 1 << 41)
    assert feed(parser, [b"*1000000\r\n$1000000000000\r\n", b"x" * 1000]) == []
    assert len(parser._buffer) == 1000


def test_nothing_is_held_of_a_broken_stream() -> None:
    parser = make()
    feed(parser, [b"*x\r\n", b"y" * 10_000, b"z" * 10_000])
    assert not parser._buffer


arguments = st.lists(st.binary(max_size=8) | st.sampled_from([b"\r\n", b"$1\r\n", b"*1\r\n", b"x" * 5000]), min_size=1)
pieces = st.sampled_from(
    [b"*", b"$", b"1", b"0", b"-", b"2", b"\r\n", b"\r", b"\n", b"GET", b"+", b"x", b"*1\r\n", b"$1\r\n", PING]
)


def cut(stream: bytes, data: st.DataObject) -> list[bytes]:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


@given(st.lists(arguments, max_size=8), st.data())
def test_requests_survive_any_cut(requests: list[list[bytes]], data: st.DataObject) -> None:
    stream = b"".join(encode(*request) for request in requests)
    assert feed(make(), cut(stream, data)) == requests


@settings(max_examples=500)
@given(st.lists(pieces | st.binary(max_size=3), max_size=25), st.data())
def test_garbage_is_read_the_same_way_however_it_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    whole = feed(make(), [stream])
    assert feed(make(), cut(stream, data)) == whole
    assert feed(make(), [stream[at : at + 1] for at in range(len(stream))]) == whole
