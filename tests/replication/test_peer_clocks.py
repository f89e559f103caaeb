"""Which of several clocks is most likely wrong, as each node sees it."""

from __future__ import annotations

import pytest

from merklekv.replication.cluster.peer_clocks import AGE_MAX_S, NODES_MAX, PeerClocks

DRIFT_S = 600
DAY_S = 86_400


class Seconds:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def seen(ahead_s: dict[str, float], monotonic: Seconds | None = None) -> PeerClocks:
    clocks = PeerClocks(monotonic or Seconds())
    for node, ahead in ahead_s.items():
        clocks.observe(node, ahead)
    return clocks


@pytest.mark.parametrize(
    ("ahead_s", "problem"),
    [
        ({}, ""),
        ({"b": DRIFT_S, "c": -DRIFT_S}, ""),
        ({"b": DAY_S}, "the clock of node b is ahead of that of node a by 86400 s: set the clock that is wrong"),
        (
            {"b": -DAY_S, "c": 1},
            "the clock of node b is behind that of node a by 86400 s: "
            "set the clock of node b; that of node a agrees with 1 other node",
        ),
        (
            {"b": DAY_S, "c": DAY_S + 1},
            "the clock of node c is ahead of that of node a by 86401 s, those of 1 other node too: "
            "set the clock of node a; it differs from those of all 2 nodes that it knows",
        ),
    ],
)
def test_the_clock_that_differs_is_named(ahead_s: dict[str, float], problem: str) -> None:
    assert seen(ahead_s).problem("a", DRIFT_S) == problem


def test_what_was_seen_is_forgotten() -> None:
    monotonic = Seconds()
    clocks = seen({"b": DAY_S}, monotonic)
    monotonic.now = AGE_MAX_S
    assert clocks.problem("a", DRIFT_S)
    clocks.observe("c", DAY_S)
    monotonic.now += 1
    assert "node c" in clocks.problem("a", DRIFT_S)
    clocks.observe("c", 0)
    assert clocks.problem("a", DRIFT_S) == ""
    clocks.observe("b", DAY_S)
    clocks.observe("c", DAY_S)
    clocks.forget("b")
    assert "node c" in clocks.problem("a", DRIFT_S)
    clocks.forget("c")
    assert clocks.problem("a", DRIFT_S) == ""
    clocks.observe("b", DAY_S)
    clocks.clear()
    assert clocks.problem("a", DRIFT_S) == ""


def test_a_liar_with_many_names_takes_no_more_memory() -> None:
    clocks = seen({"b": DAY_S})
    for number in range(NODES_MAX):
        assert clocks.problem("a", DRIFT_S) or number == NODES_MAX
        clocks.observe(f"n{number}", 0)
    assert clocks.problem("a", DRIFT_S) == ""
