"""The schedule of a peer, without waiting for any time to pass."""

from __future__ import annotations

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
    Schedule,
    rest_s,
)

INTERVAL_S = 60.0


def after_one(chance: float = 0.5, interval_s: float = INTERVAL_S) -> Schedule:
    """The schedule of a peer whose first exchange ended at 0."""
    made = Schedule(interval_s, -1000, lambda: chance)
    made.begin()
    made.succeed(0)
    return made


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_a_new_peer_is_due_at_once(chance: float) -> None:
    assert 100 <= Schedule(INTERVAL_S, 100, lambda: chance).due <= 100 + START_SPREAD_S


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_then_after_the_interval_with_jitter(chance: float) -> None:
    made = after_one(chance)
    assert made.due == pytest.approx(INTERVAL_S * (1 + JITTER * (2 * chance - 1)))
    assert not made.running


def test_woken_it_is_due_at_once_but_not_without_a_rest() -> None:
    made = after_one()
    made.wake(30)
    assert made.due == 30
    made.begin()
    made.succeed(31)
    for _ in range(5):
        made.wake(31)
    assert made.due == pytest.approx(31 + REST_S)


def test_woken_in_the_middle_of_an_exchange_it_comes_again() -> None:
    made = after_one()
    made.begin()
    made.wake(10)
    assert made.running
    made.succeed(12)
    assert (made.running, made.due) == (False, 12 + REST_S)
    made.begin()
    made.succeed(20)
    assert made.due == pytest.approx(20 + INTERVAL_S), "only once"


def test_an_unreachable_peer_is_tried_less_and_less_often() -> None:
    made = Schedule(INTERVAL_S, 0, lambda: 0.5)
    waits = []
    for _ in range(100):
        made.begin()
        made.fail(0)
        waits.append(made.due)
    assert waits[:4] == [RETRY_MIN_S, 2 * RETRY_MIN_S, 4 * RETRY_MIN_S, 8 * RETRY_MIN_S]
    assert waits[-1] == RETRY_MAX_S
    made.begin()
    made.succeed(0)
    made.begin()
    made.fail(0)
    assert made.due == RETRY_MIN_S


def test_waking_shortens_the_wait_for_an_unreachable_peer_once() -> None:
    made = Schedule(INTERVAL_S, 0, lambda: 0.5)
    for _ in range(9):
        made.begin()
        made.fail(0)
    made.wake(10)
    assert made.due == 10
    made.begin()
    made.fail(11)
    assert made.due == 11 + RETRY_MAX_S


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_put_off_for_a_moment(chance: float) -> None:
    made = after_one(chance)
    made.begin()
    made.put_off(0)
    assert made.due == pytest.approx(PUT_OFF_S * (0.5 + chance))
    assert not made.running


def test_an_exchange_that_the_peer_began_does_unless_there_was_reason_for_one() -> None:
    made = after_one()
    made.serve(30)
    assert made.due == pytest.approx(30 + INTERVAL_S)
    made.wake(40)
    made.serve(41)
    assert made.due == 40
    made.begin()
    made.serve(42)
    assert made.running
    made.succeed(43)
    assert made.due == pytest.approx(43 + INTERVAL_S)


def test_nudged_it_is_due_before_long_unless_the_peer_comes_first() -> None:
    made = after_one()
    made.nudge(10)
    assert made.due == pytest.approx(10 + 1.5 * NUDGE_S)
    made.serve(11)
    assert made.due == pytest.approx(11 + INTERVAL_S)
    made.nudge(11 + INTERVAL_S - 1)
    assert made.due == pytest.approx(11 + INTERVAL_S), "it would have come sooner anyway"
    made.begin()
    made.nudge(100)
    made.succeed(100)
    assert made.due == pytest.approx(100 + INTERVAL_S)


def test_a_short_interval_leaves_a_rest() -> None:
    assert after_one(interval_s=0.1).due == pytest.approx(REST_S)


def test_rest_in_proportion_to_work() -> None:
    assert rest_s(0.01, 50) == pytest.approx(0.01)
    assert rest_s(0.01, 20) == pytest.approx(0.04)
    assert rest_s(0.01, 1) == pytest.approx(0.99)
    assert rest_s(100, 100) == 0
    assert rest_s(100, 50) == rest_s(COUNTED_WORK_MAX_S, 50) == COUNTED_WORK_MAX_S
