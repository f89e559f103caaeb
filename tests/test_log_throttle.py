"""Log lines that come in floods: what is told of them, and that what others send cannot make it much."""

from __future__ import annotations

import logging

import pytest

from merklekv.log_throttle import KINDS_MAX, THROTTLE_S, LogThrottle, StateLog


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
def throttle(clock: Clock) -> LogThrottle:
    return LogThrottle(logging.getLogger("test_bursts"), clock)


def test_each_kind_is_told_once_in_a_while(
    throttle: LogThrottle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("a", "b", "a", "a"):
        throttle.warn(kind, f"{kind} happened")
    clock.now += THROTTLE_S
    throttle.warn("a", "a happened")
    assert caplog.messages == ["a happened", "b happened", "a happened (and 2 more before)"]


def test_with_fields_the_text_is_a_format(throttle: LogThrottle, caplog: pytest.LogCaptureFixture) -> None:
    throttle.warn("plain", "100% of %(peer)s")
    throttle.warn("of fields", "100%% of %(peer)s", fields={"peer": "%s"})
    assert caplog.messages == ["100% of %(peer)s", "100% of %s"]
    assert caplog.records[1].args == {"peer": "%s"}


@pytest.mark.parametrize("step_s", [0.0, THROTTLE_S / 1000, THROTTLE_S / KINDS_MAX])
def test_kinds_that_differ_each_time_are_no_flood(
    throttle: LogThrottle, clock: Clock, caplog: pytest.LogCaptureFixture, step_s: float
) -> None:
    for number in range(20_000):
        clock.now += step_s
        throttle.warn(f"kind {number}", "it happened")
    assert len(throttle.kinds) <= KINDS_MAX + 1
    assert len(caplog.messages) <= (KINDS_MAX + 1) * (1 + clock.now / THROTTLE_S)


def test_a_kind_beyond_those_is_told_with_the_others(
    throttle: LogThrottle, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(KINDS_MAX + 10):
        throttle.warn(f"kind {number}", "it happened")
    assert len(caplog.messages) == KINDS_MAX
    clock.now += THROTTLE_S
    throttle.warn("late", "late happened")
    assert caplog.messages[-1] == "late happened"


def test_a_state_that_comes_and_goes_is_told_in_pairs(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    state = StateLog(logging.getLogger("test_states"), clock)
    for _ in range(50):
        state.lasts("full")
        state.is_over("space again")
    assert caplog.messages == ["full", "space again"]
    state.lasts("full")
    clock.now += THROTTLE_S
    assert len(caplog.messages) == 2
    for _ in range(50):
        state.lasts("full")  # it goes on, so it is told after all
    assert caplog.messages[2:] == ["full (and 50 more before)"]
    state.is_over("space again")
    assert caplog.messages[3:] == ["space again"]
