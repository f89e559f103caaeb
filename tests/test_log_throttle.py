"""Log lines that come in floods: what is told of them, and that what others send cannot make it much."""

from __future__ import annotations

import logging

import pytest

from merklekv.log_throttle import BURST_S, KINDS_MAX, BurstLog


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bursts(clock: Clock) -> BurstLog:
    return BurstLog(logging.getLogger("test_bursts"), clock)


def test_each_kind_is_told_once_in_a_while(bursts: BurstLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("a", "b", "a", "a"):
        bursts.warn(kind, f"{kind} happened")
    clock.now += BURST_S
    bursts.warn("a", "a happened")
    assert caplog.messages == ["a happened", "b happened", "a happened (and 2 more before)"]


@pytest.mark.parametrize("step_s", [0.0, BURST_S / 1000, BURST_S / KINDS_MAX])
def test_kinds_that_differ_each_time_are_no_flood(
    bursts: BurstLog, clock: Clock, caplog: pytest.LogCaptureFixture, step_s: float
) -> None:
    for number in range(20_000):
        clock.now += step_s
        bursts.warn(f"kind {number}", "it happened")
    assert len(bursts._kinds) <= KINDS_MAX + 1
    assert len(caplog.messages) <= (KINDS_MAX + 1) * (1 + clock.now / BURST_S)


def test_a_kind_beyond_those_is_told_with_the_others(
    bursts: BurstLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(KINDS_MAX + 10):
        bursts.warn(f"kind {number}", "it happened")
    assert len(caplog.messages) == KINDS_MAX
    clock.now += BURST_S
    bursts.warn("late", "late happened")
    assert caplog.messages[-1] == "late happened"
