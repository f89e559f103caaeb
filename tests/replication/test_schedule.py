"""The timetable of anti-entropy, without waiting for any time to pass."""

from __future__ import annotations

from functools import partial

import pytest

from merklekv.replication.sync.schedule import (
    COUNTED_WORK_MAX_S,
    JITTER,
    NUDGE_S,
    PUT_OFF_S,
    REST_S,
    RETRY_MAX_S,
    RETRY_MIN_S,
    START_SPREAD_S,
    Timetable,
    rest_s,
)

INTERVAL_S = 60.0


def table(*peers: str, chance: float = 0.5, interval_s: float = INTERVAL_S) -> Timetable:
    """Peers who are all due at 0 and whose first exchange ended then."""
    made = Timetable(interval_s, lambda: chance)
    made.keep(peers, -1000)
    for peer in peers:
        made.begin(peer)
        made.succeed(peer, 0)
    return made


def test_a_new_peer_is_due_at_once() -> None:
    for chance in (0, 1):
        made = Timetable(INTERVAL_S, partial(float, chance))
        assert (made.next_due(0), made.wait_s(0)) == (None, None)
        made.keep(["a"], 100)
        assert made.next_due(100 + START_SPREAD_S) == "a"


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_then_after_the_interval_with_jitter(chance: float) -> None:
    made = table("a", chance=chance)
    due = INTERVAL_S * (1 + JITTER * (2 * chance - 1))
    assert made.wait_s(0) == pytest.approx(due)
    assert made.next_due(due - 0.01) is None
    assert made.next_due(due + 0.01) == "a"


def test_who_has_waited_longest_comes_first() -> None:
    made = Timetable(INTERVAL_S, lambda: 0.5)
    made.keep(["b"], 0)
    made.keep(["b", "a"], 1)
    assert made.next_due(2) == "b"
    made.begin("b")
    assert made.next_due(2) == "a"
    made.begin("a")
    assert (made.next_due(2), made.wait_s(2)) == (None, None)


def test_a_peer_that_is_not_wanted_any_more_is_left_alone() -> None:
    made = table("a", "b")
    made.keep(["b"], 0)
    assert made.next_due(1000) == "b"
    for step in (made.begin, lambda peer: made.succeed(peer, 0), lambda peer: made.fail(peer, 0)):
        step("a")
    made.wake("a", 0)
    made.put_off("a", 0)
    made.begin("b")
    assert made.next_due(10_000) is None


def test_woken_it_is_due_at_once_but_not_without_a_rest() -> None:
    made = table("a")
    made.wake("a", 30)
    assert made.next_due(30) == "a"
    made.begin("a")
    made.succeed("a", 31)
    for _ in range(5):
        made.wake("a", 31)
    assert made.wait_s(31) == pytest.approx(REST_S)
    assert made.next_due(31 + REST_S) == "a"


def test_woken_in_the_middle_of_an_exchange_it_comes_again() -> None:
    made = table("a", "b")
    made.begin("a")
    made.wake("a", 10)
    assert made.next_due(11) is None
    made.succeed("a", 12)
    assert made.next_due(12 + REST_S) == "a"
    made.begin("a")
    made.succeed("a", 20)
    assert made.wait_s(20) == pytest.approx(40), "only once"


def test_who_cannot_be_reached_is_tried_less_and_less_often() -> None:
    made = Timetable(INTERVAL_S, lambda: 0.5)
    made.keep(["a"], 0)
    waits = []
    for _ in range(100):
        made.begin("a")
        made.fail("a", 0)
        waits.append(made.wait_s(0))
    assert waits[:4] == [RETRY_MIN_S, 2 * RETRY_MIN_S, 4 * RETRY_MIN_S, 8 * RETRY_MIN_S]
    assert waits[-1] == RETRY_MAX_S
    made.begin("a")
    made.succeed("a", 0)
    made.begin("a")
    made.fail("a", 0)
    assert made.wait_s(0) == RETRY_MIN_S


def test_waking_shortens_the_wait_for_one_that_cannot_be_reached_once() -> None:
    made = Timetable(INTERVAL_S, lambda: 0.5)
    made.keep(["a"], 0)
    for _ in range(9):
        made.begin("a")
        made.fail("a", 0)
    made.wake("a", 10)
    assert made.next_due(10) == "a"
    made.begin("a")
    made.fail("a", 11)
    assert made.wait_s(11) == RETRY_MAX_S


def test_put_off_for_a_moment() -> None:
    for chance in (0.0, 1.0):
        made = table("a", chance=chance)
        made.begin("a")
        made.put_off("a", 0)
        assert made.wait_s(0) == pytest.approx(PUT_OFF_S * (0.5 + chance))


def test_an_exchange_that_the_peer_began_does_unless_there_was_reason_for_one() -> None:
    made = table("a")
    made.serve("a", 30)
    assert made.wait_s(30) == pytest.approx(INTERVAL_S)
    made.wake("a", 40)
    made.serve("a", 41)
    assert made.next_due(41) == "a"
    made.begin("a")
    made.serve("a", 42)
    assert made.next_due(1000) is None, "it is still running"
    made.succeed("a", 43)
    assert made.wait_s(43) == pytest.approx(INTERVAL_S)
    made.serve("b", 43)


def test_nudged_it_is_due_before_long_unless_the_peer_comes_first() -> None:
    made = table("a")
    made.nudge("a", 10)
    assert made.wait_s(10) == pytest.approx(1.5 * NUDGE_S)
    made.serve("a", 11)
    assert made.wait_s(11) == pytest.approx(INTERVAL_S)
    made.nudge("a", 11 + INTERVAL_S - 1)
    assert made.wait_s(11 + INTERVAL_S - 1) == pytest.approx(1), "it would have come sooner anyway"
    made.begin("a")
    made.nudge("a", 100)
    made.nudge("b", 100)
    made.succeed("a", 100)
    assert made.wait_s(100) == pytest.approx(INTERVAL_S)


def test_a_short_interval_leaves_a_rest() -> None:
    assert table("a", interval_s=0.1).wait_s(0) == pytest.approx(REST_S)


def test_rest_in_proportion_to_work() -> None:
    assert rest_s(0.01, 50) == pytest.approx(0.01)
    assert rest_s(0.01, 20) == pytest.approx(0.04)
    assert rest_s(0.01, 1) == pytest.approx(0.99)
    assert rest_s(100, 100) == 0
    assert rest_s(100, 50) == rest_s(COUNTED_WORK_MAX_S, 50) == COUNTED_WORK_MAX_S
