"""Both parsers cut a stream into the same requests, and hold the same of what is incomplete."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.twins import BOTH, outcome, parser_of
from fixtures.wire import encode
from hypothesis import given, settings
from hypothesis import strategies as st

from merklekv.net.protocol.resp import PLAIN_ARGUMENTS, PLAIN_BULK_BYTES, REQUEST_BYTES_MIN

PARSERS = [parser_of(module) for module in BOTH]
ARGUMENTS_MAX = PLAIN_ARGUMENTS + 2

sizes = st.integers(0, 20) | st.sampled_from([99, 100, 999, 1000, PLAIN_BULK_BYTES, PLAIN_BULK_BYTES + 1])
values = st.binary(max_size=8) | st.sampled_from([b"\r\n", b"$1\r\n", b"*1\r\n"]) | sizes.map(lambda size: b"x" * size)
requests = st.lists(values, min_size=1, max_size=6).map(lambda parts: encode(*parts))
long_requests = st.integers(PLAIN_ARGUMENTS - 1, ARGUMENTS_MAX + 1).map(lambda count: encode(*[b"k"] * count))
pieces = st.sampled_from(
    [
        *(
            b"*",
            b"$",
            b"1",
            b"0",
            b"-",
            b"2",
            b"10",
            b"01",
            b"9999",
            b"10000",
            b"\r\n",
            b"\r",
            b"\n",
            b"GET k",
            b"+",
            b'"',
        ),
        *(b"*1\r\n", b"$1\r\n", b"*0\r\n", b"$0\r\n\r\n", b"*01\r\n", b"*128\r\n", b"*129\r\n", b"$4097\r\n", b"\0"),
    ]
)
streams = st.lists(requests | long_requests | pieces | st.binary(max_size=3), max_size=12)


def state(parser: Any) -> tuple[object, ...]:
    """What it holds of the next request; `_request_bytes` means nothing before its first header."""
    held = bytes(parser._buffer), list(parser._request), parser.held_bytes
    return (
        bool(parser.is_exact),
        parser._broken,
        parser._missing,
        parser._size,
        parser._missing and parser._request_bytes,
        *held,
    )


def feed_both(chunks: list[bytes], bulk_bytes: int) -> None:
    """Feeds both the same, and compares them at each chunk."""
    one, other = (parser(bulk_bytes, ARGUMENTS_MAX, REQUEST_BYTES_MIN) for parser in PARSERS)
    for chunk in chunks:
        found = other.feed(chunk)
        assert found == one.feed(chunk)
        assert all(type(part) is bytes for request in found if type(request) is list for part in request)
        assert state(other) == state(one)


@settings(max_examples=300)
@given(streams, st.data(), st.sampled_from([0, 7, 100, PLAIN_BULK_BYTES, 2 * PLAIN_BULK_BYTES]))
def test_any_stream_cut_anywhere(parts: list[bytes], data: st.DataObject, bulk_bytes: int) -> None:
    stream = b"".join(parts)
    feed_both([stream], bulk_bytes)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    feed_both([stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)], bulk_bytes)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100])
def test_names_that_are_remembered_are_those_that_came(size: int) -> None:
    """More names than there are places for, again and again."""
    names = [bytes((number,)) * size for number in range(200)]
    feed_both([b"".join(encode(name, b"k") for name in names + names[::-1])], PLAIN_BULK_BYTES)


@pytest.mark.parametrize("wrong", [None, "text", 5, [b"*1\r\n"]])
def test_what_is_no_bytes_is_refused(wrong: object) -> None:
    for parser in PARSERS:
        assert outcome(parser(9, 9, REQUEST_BYTES_MIN).feed, wrong)[0] == "error"
