"""Where nodes differ, by majority."""

from __future__ import annotations

from merklekv.engine.format import INNER_NODES
from merklekv.web.differences import differing

SAME = [b"same"] * INNER_NODES


def but(*numbers: int, own: bytes = b"own") -> list[bytes]:
    return [own if number in numbers else part for number, part in enumerate(SAME)]


def test_equal_nodes_differ_nowhere() -> None:
    assert differing({"a": SAME, "b": SAME, "c": SAME}) == {"a": [], "b": [], "c": []}
    assert differing({"a": SAME}) == {"a": []}
    assert differing({}) == {}


def test_the_one_that_is_alone_differs() -> None:
    assert differing({"a": SAME, "b": but(0, 255), "c": SAME}) == {"a": [], "b": [0, 255], "c": []}


def test_without_a_majority_all_differ() -> None:
    assert differing({"a": SAME, "b": but(7)}) == {"a": [7], "b": [7]}
    assert differing({"a": SAME, "b": but(7), "c": but(7, own=b"third")}) == {"a": [7], "b": [7], "c": [7]}


def test_a_node_that_broke_off_is_left_out() -> None:
    assert differing({"a": SAME, "b": but(7)[:100], "c": SAME}) == {"a": [], "c": []}
