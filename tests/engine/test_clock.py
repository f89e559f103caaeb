"""The laws of versions and the clock that issues them, under every behaviour of the wall clock."""

from __future__ import annotations

import logging

import pytest
from fixtures import engines
from fixtures.engines import DAY_NS, NOON, Wall
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine.clock import LATEST_NS, UNSET_BEFORE_NS, HybridClock
from merklekv.engine.record import store_id_of, timestamp_of

DRIFT = DAY_NS
walls = st.integers(0, 3 * NOON) | st.integers(NOON - 3 * DRIFT, NOON + 3 * DRIFT) | st.just(NOON)
steps = st.lists(
    st.tuples(st.just("wall"), walls)
    | st.tuples(st.sampled_from(["observe", "truncation"]), walls)
    | st.just(("next", 0)),
    max_size=30,
)


@given(steps)
def test_the_clock_keeps_its_laws(history: list[tuple[str, int]]) -> None:
    wall = Wall()
    clock = HybridClock(DRIFT, wall)
    truncation = newest = bytes(24)
    issued = set()
    for step, number in history:
        if step == "wall":
            wall.now = number
        elif step == "observe":
            clock.observe(engines.version(number))
            newest = max(newest, engines.version(number))
        elif step == "truncation":
            clock.close_through(number)
            truncation = max(truncation, engines.version(number))
            newest = max(newest, truncation)
        else:
            followed = clock.set_back
            version = clock.next()
            assert len(version) == 24
            assert version not in issued
            assert version > truncation
            assert timestamp_of(version) >= wall.now
            assert version > newest or clock.set_back > followed
            if wall.now >= UNSET_BEFORE_NS and timestamp_of(truncation) < wall.now:
                assert timestamp_of(version) <= wall.now + DRIFT + 1
            issued.add(version)
            newest = version
            assert clock.last == timestamp_of(version)


@given(st.integers(0, LATEST_NS), st.binary(min_size=16, max_size=16))
def test_after_is_above_whatever_the_wall_says(timestamp: int, op_id: bytes) -> None:
    clock = HybridClock(DRIFT, Wall(5))
    shown = timestamp.to_bytes(8, "big") + op_id
    assert clock.after(shown) > shown
    assert clock.last == 0


def test_a_wall_set_back_is_followed_with_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    wall = Wall()
    clock = HybridClock(DRIFT, wall)
    clock.next()
    wall.now -= DRIFT
    assert timestamp_of(clock.next()) == NOON + 1  # as far back as the drift allows, the clock only slows down
    wall.now -= 2
    with caplog.at_level(logging.WARNING):
        assert timestamp_of(clock.next()) == wall.now
        assert timestamp_of(clock.next()) == wall.now + 1
    assert len(caplog.records) == 1
    assert "86400 s behind" in caplog.text
    assert clock.set_back == 1


def test_a_wall_that_was_never_set_is_not_followed() -> None:
    wall = Wall()
    clock = HybridClock(DRIFT, wall)
    clock.next()
    wall.now = UNSET_BEFORE_NS - 1
    assert timestamp_of(clock.next()) == NOON + 1
    wall.now = UNSET_BEFORE_NS
    assert timestamp_of(clock.next()) == UNSET_BEFORE_NS


def test_the_clock_stays_above_a_closed_timestamp_in_the_future(caplog: pytest.LogCaptureFixture) -> None:
    wall = Wall()
    clock = HybridClock(DRIFT, wall)
    clock.close_through(NOON + 5 * DRIFT)
    with caplog.at_level(logging.WARNING):
        assert [timestamp_of(clock.next()) - NOON - 5 * DRIFT for _ in range(3)] == [1, 2, 3]
    assert not caplog.records


def test_a_refused_proposal_lets_the_clock_follow_the_wall() -> None:
    wall = Wall()
    clock = HybridClock(DRIFT, wall)
    first, before = clock.propose()
    assert (first, before) == (NOON, 0)
    wall.now += 5 * DRIFT
    second, before = clock.propose()
    assert (second, before) == (NOON + 5 * DRIFT, first)
    wall.now = NOON - 5 * DRIFT
    assert timestamp_of(clock.next()) == second + 1
    clock.withdraw(second, before)
    assert timestamp_of(clock.next()) == first + 1, "whose answer is not known yet"
    assert clock.propose() == (first, 0)
    clock.withdraw(first, 0)
    assert timestamp_of(clock.next()) == wall.now


def test_an_accepted_proposal_holds_the_clock() -> None:
    wall = Wall()
    clock = HybridClock(DRIFT, wall)
    closed, _ = clock.propose()
    clock.close_through(closed)
    assert not clock.proposed
    clock.withdraw(closed, 0)
    wall.now -= 5 * DRIFT
    assert timestamp_of(clock.next()) == closed + 1


def test_a_proposal_outlives_a_restart_as_long_as_the_wall_agrees() -> None:
    wall = Wall()
    for proposed, agrees in ((NOON + DRIFT, True), (NOON + DRIFT + 1, False)):
        clock = HybridClock(DRIFT, wall)
        assert clock.resume(proposed) == agrees
        assert timestamp_of(clock.next()) == (proposed + 1 if agrees else NOON)


def test_what_is_seen_is_closed_up_to_half_of_the_drift() -> None:
    clock = HybridClock(DRIFT, Wall())
    clock.observe(engines.version(NOON + DRIFT // 4))
    assert clock.closing() == NOON + DRIFT // 4
    clock.observe(engines.version(NOON + DRIFT))
    assert clock.closing() == NOON + DRIFT // 2


def test_what_is_too_far_ahead() -> None:
    wall = Wall()
    clock = HybridClock(DRIFT, wall)
    assert not clock.too_far_ahead(engines.version(NOON + DRIFT))
    assert clock.too_far_ahead(engines.version(NOON + DRIFT + 1))
    wall.now = UNSET_BEFORE_NS - 1
    assert not clock.too_far_ahead(engines.version(LATEST_NS))
    assert clock.too_far_ahead(engines.version(LATEST_NS + 1))


def test_two_starts_never_issue_one_version() -> None:
    wall = Wall()
    first, second = (HybridClock(DRIFT, wall) for _ in range(2))
    assert first.next() != second.next()
    for clock in (first, second):
        clock.write_as(b"the same")
        assert store_id_of(clock.next()) == b"the same"
        assert clock.next()[8:20] == clock.writer
    assert first.writer != second.writer


def test_the_counter_of_an_op_id_begins_again() -> None:
    clock = HybridClock(DRIFT, Wall())
    clock._counter = (1 << 32) - 2
    versions = [clock.next() for _ in range(3)]
    assert [version[20:].hex() for version in versions] == ["ffffffff", "00000000", "00000001"]
    assert versions == sorted(versions)
