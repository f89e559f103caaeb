"""Replies: what a value becomes, who gets which, and which requests are answered together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fixtures.twins import BOTH, TWINS, outcome
from hypothesis import given
from hypothesis import strategies as st

from merklekv.net.channel import Channel
from merklekv.net.connection import Muted
from merklekv.net.protocol.resp import PLAIN_BULK_BYTES, Push

sizes = st.integers(0, 120) | st.sampled_from([999, 1000, PLAIN_BULK_BYTES, PLAIN_BULK_BYTES + 1, 9999, 10000, 100_000])
values = st.lists(st.none() | st.binary(max_size=5) | sizes.map(lambda size: b"\r" * size), max_size=40)
names = st.sampled_from([b"GET", b"get", b"SET", b""])
requests = st.lists(st.lists(names, min_size=1, max_size=3), min_size=1, max_size=9)


@given(values)
def test_each_value_becomes_its_session_s_reply(found: list[bytes | None]) -> None:
    sessions = [SimpleNamespace(nil=b"$-1\r\n" if number % 2 else b"_\r\n") for number in range(len(found))]
    one, other = (module.bulk_each(list(found), sessions) for module in BOTH)
    assert other == one
    assert all(type(reply) is bytes for reply in other[0])


@given(requests, st.integers(0, 8), st.integers(0, 10))
def test_equal_requests_go_together(pipeline: list[list[bytes]], first: int, most: int) -> None:
    first %= len(pipeline)
    one, other = (module.alike(pipeline, first, most) for module in BOTH)
    assert other == one
    assert list(map(id, other)) == list(map(id, one))


class Client(Channel):
    """What `answer_each` sees of a connection: one that mutes its replies, or has some already."""

    def __init__(self, mute: str | None, earlier: list[bytes]) -> None:
        super().__init__()
        self.replies = list(earlier)
        if mute is not None:
            self.replies = muted = Muted(self.replies)
            muted.is_off = mute == "off"
            muted.skip(len(mute) if mute.isdigit() else 0)


@given(
    st.lists(
        st.tuples(st.sampled_from([None, None, "off", "on", "1", "22"]), st.lists(st.binary(max_size=3), max_size=1)),
        max_size=8,
    ),
    st.lists(st.binary(max_size=5) | st.binary(max_size=5).map(Push), max_size=8),
)
def test_each_client_gets_its_reply(drawn: list[tuple[str | None, list[bytes]]], replies: list[bytes]) -> None:
    replies = replies[: len(drawn)]
    results = []
    for module in BOTH:
        clients = [Client(*one) for one in drawn]
        answered: list[Any] = []
        size = module.answer_each("entry", clients, replies, answered)
        state = [(list(client.replies), client.entry) for client in clients]
        results.append((size, state, [clients.index(client) for client in answered]))
    assert results[1] == results[0]


numbers = st.sampled_from([0, 1, 40, 2**32 - 1])
large = numbers | st.sampled_from([2**32, 2**63, 2**64 - 1])


@given(large, large, large, large, numbers, numbers, st.lists(st.binary(max_size=300), max_size=9))
def test_both_pack_the_same_frame(
    lsn: int, position: int, synced: int, sequence: int, local_count: int, entry_count: int, entries: list[bytes]
) -> None:
    one, other = (
        module.pack_frame(lsn, position, synced, sequence, local_count, entry_count, entries) for module in BOTH
    )
    assert other == one


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("pack_frame", (-1, 0, 0, 0, 0, 0, [])),
        ("pack_frame", (2**64, 0, 0, 0, 0, 0, [])),
        ("pack_frame", (0, None, 0, 0, 0, 0, [])),
        ("pack_frame", (0, 0, 0, 0, 0, 0, None)),
        ("pack_frame", (0, 0, 0, 0, 0, 0, [None])),
        ("pack_frame", (0, 0, 0, 0, 0, 0, [b"x", "x"])),
        ("bulk_each", (None, [])),
        ("bulk_each", ([5], [])),
        ("bulk_each", (["x"], [])),
        ("bulk_each", ([None], [None])),
        ("alike", (None, 0, 1)),
        ("alike", ([], 0, 1)),
        ("alike", ([[b"a"]], 1, 1)),
        ("alike", ([[]], 0, 1)),
        ("alike", ([None], 0, 1)),
        ("alike", ([[b"a"], None], 0, 2)),
        ("alike", ([[b"a"]], "x", 1)),
        ("answer_each", (None, [None], [b"x"], [])),
        ("answer_each", (None, [Client(None, [])], [None], [])),
        ("answer_each", (None, [Client(None, [])], [b"x"], None)),
        ("answer_each", (None, None, [b"x"], [])),
    ],
)
def test_both_refuse_what_is_wrong(name: str, arguments: tuple[Any, ...]) -> None:
    for module in BOTH:
        assert outcome(getattr(module, name), *arguments)[0] == "error"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("bulk_each", ([None], [])),  # fewer sessions than values
        ("bulk_each", ([None] * 100, (SimpleNamespace(nil=b""),))),
        ("bulk_each", ([Push(b"x")], [])),
        ("alike", ([[b"a"]], -1, 1)),
        ("alike", ([[b"a"]], -(2**63), 1)),
        ("alike", ([[b"a"]], 2**63, 1)),
        ("alike", ([[b"a"], []], 0, 2)),
        ("answer_each", (None, [], [b"x"], [])),
        ("pack_frame", (0, 0, 0, 0, 2**32, 0, [])),
        ("pack_frame", (0, 0, 0, 0, 0, 0, [Push(b"x")])),
    ],
)
def test_the_core_survives_what_never_comes(name: str, arguments: tuple[Any, ...]) -> None:
    """Here the two differ: one may refuse what the other takes."""
    outcome(getattr(TWINS, name), *arguments)
