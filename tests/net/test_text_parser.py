"""The line protocol's parser, a function of bytes."""

from __future__ import annotations

from functools import partial

import pytest
from fixtures.wire import feed, feed_every_way
from hypothesis import given
from hypothesis import strategies as st

from merklekv.net.protocol.text import BROKEN, LINE_TOO_LONG, TextParser, line_safe, one_line

LIMIT = 40
make = partial(TextParser, LIMIT)
TRAILING = b"PING\r\n"


@pytest.mark.parametrize(
    ("data", "requests"),
    [
        (b"GET key\r\n", [(b"GET", b"key")]),
        (b"get key\n", [(b"get", b"key")]),
        (b"SET key a value  with\tspaces\r\n", [(b"SET", b"key a value  with\tspaces")]),
        (b'SET key ""\r\n', [(b"SET", b'key ""')]),
        (b" \t SET key v \t \r\n", [(b"SET", b"key v")]),
        (b"GET  key\n", [(b"GET", b" key")]),
        (b"\n", [(b"", b"")]),
        (b"   \r\n", [(b"", b"")]),
        (b"PING\nPING\r\nPING x\n", [(b"PING", b""), (b"PING", b""), (b"PING", b"x")]),
        (b"SET k \xff\x00\xfe\r\n", [(b"SET", b"k \xff\x00\xfe")]),
        (b"SET k a\rb\n", [(b"SET", b"k a\rb")]),
        (b"GET k\ttab\n", [(b"GET", b"k\ttab")]),
        (b"x" * LIMIT + b"\n", [(b"x" * LIMIT, b"")]),
        (b"x" * LIMIT + b"\r\n", [(b"x" * LIMIT, b"")]),
        (b"PING\n" * 20, [(b"PING", b"")] * 20),
    ],
)
def test_lines_become_requests(data: bytes, requests: list[tuple[bytes, bytes]]) -> None:
    assert feed_every_way(make, data, TRAILING) == [list(request) for request in requests]
    assert feed(make(), [data + TRAILING]) == [*map(list, requests), [b"PING", b""]]


@pytest.mark.parametrize("data", [b"", b"GE", b"GET key", b"GET key\r", b"x" * LIMIT, b"x" * LIMIT + b"\r"])
def test_an_incomplete_line_is_no_request(data: bytes) -> None:
    assert feed(make(), [data]) == []
    assert feed(make(), [data[at : at + 1] for at in range(len(data))]) == []


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"x"])
def test_a_line_over_the_limit_ends_the_stream(end: bytes) -> None:
    data = b"PING\n" + b"x" * (LIMIT + 1) + end
    requests = feed_every_way(make, data, TRAILING)
    assert requests == [[b"PING", b""], [BROKEN, LINE_TOO_LONG]]
    assert requests[-1][0] is BROKEN
    assert feed(make(), [data + TRAILING]) == requests


def test_a_long_line_is_refused_before_its_end_comes() -> None:
    parser = make()
    assert feed(parser, [b"x"] * LIMIT) == []
    assert feed(parser, [b"x"]) == [[BROKEN, LINE_TOO_LONG]]
    assert feed(parser, [b"x" * 1000] * 100) == []


def test_no_client_can_send_the_name_of_a_broken_stream() -> None:
    assert bytes(BROKEN) != BROKEN
    names: dict[object, int] = {BROKEN: 1}
    assert names.get(bytes(BROKEN)) is None
    assert {b"protocol error": 1}.get(BROKEN) is None


@given(st.lists(st.sampled_from([b"GET", b" ", b"\n", b"\r", b"\t", b"k", b"v" * 30, b"\x00\xff"])), st.data())
def test_cutting_the_stream_changes_nothing(pieces: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert feed(make(), chunks) == feed(make(), [stream])


@given(st.text())
def test_an_error_stays_on_its_line(message: str) -> None:
    assert line_safe(one_line(message.encode(errors="replace").decode()))
