"""The laws of versions and the clock that issues them, under every behaviour of the wall clock."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fixtures import engines
from fixtures.engines import DAY_NS, NOON, Wall
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine.clock import HybridClock
from merklekv.engine.record import store_id_of, timestamp_of
from merklekv.engine.time_gate import LATEST_NS, UNSET_BEFORE_NS, TimeGate

DRIFT = DAY_NS
walls = st.integers(0, 3 * NOON) | st.integers(NOON - 3 * DRIFT, NOON + 3 * DRIFT) | st.just(NOON)
steps = st.lists(
    st.tuples(st.just("wall"), walls)
    | st.tuples(st.sampled_from(["observe", "close", "propose", "withdraw"]), walls)
    | st.just(("next", 0)),
    max_size=30,
)


@given(steps)
def test_the_clock_keeps_its_laws(history: list[tuple[str, int]]) -> None:
    """A version is of the wall clock, unless something was closed above that; what was merely seen moves nothing."""
    wall = Wall()
    clock = HybridClock(TimeGate(DRIFT, wall))
    closed = 0
    proposals: list[tuple[int, int]] = []
    issued = set()
    for step, number in history:
        if step == "wall":
            wall.now = number
        elif step == "observe":
            clock.observe(engines.version(number))
        elif step == "close":
            clock.close_through(number)
            closed = max(closed, number)
        elif step == "propose":
            proposals.append(clock.propose())
        elif step == "withdraw" and proposals:
            clock.withdraw(*proposals.pop())
        else:
            version = clock.next()
            assert len(version) == 24
            assert version not in issued
            assert timestamp_of(version) == max(wall.now, max(closed, clock.proposed) + 1)
            assert clock.newest >= timestamp_of(version)
            issued.add(version)
        assert clock.lower_bound == max(closed, clock.proposed)


@given(st.integers(0, LATEST_NS), st.binary(min_size=16, max_size=16))
def test_after_is_above_whatever_the_wall_says(timestamp: int, op_id: bytes) -> None:
    clock = HybridClock(TimeGate(DRIFT, Wall(5)))
    shown = timestamp.to_bytes(8, "big") + op_id
    assert clock.after(shown) > shown
    assert timestamp_of(clock.next()) == 5


@pytest.mark.parametrize("back_ns", [1, 10**9, 5 * DRIFT, NOON - UNSET_BEFORE_NS + 1])
def test_a_wall_set_back_is_followed_at_once(back_ns: int) -> None:
    wall = Wall()
    clock = HybridClock(TimeGate(DRIFT, wall))
    first = clock.next()
    wall.now -= back_ns
    versions = [clock.next() for _ in range(3)]
    assert [timestamp_of(version) for version in versions] == [wall.now] * 3
    assert versions == sorted({*versions})
    assert clock.newest == timestamp_of(first)


def test_a_closed_timestamp_in_the_future_holds_the_clock() -> None:
    clock = HybridClock(TimeGate(DRIFT, Wall()))
    clock.close_through(NOON + 5 * DRIFT)
    versions = [clock.next() for _ in range(3)]
    assert {timestamp_of(version) for version in versions} == {NOON + 5 * DRIFT + 1}
    assert versions == sorted({*versions})


def test_a_refused_proposal_lets_the_clock_follow_the_wall() -> None:
    wall = Wall()
    clock = HybridClock(TimeGate(DRIFT, wall))
    first, before = clock.propose()
    assert (first, before) == (NOON, 0)
    wall.now += DRIFT // 2
    second, before = clock.propose()
    assert (second, before) == (NOON + DRIFT // 2, first)
    wall.now = NOON - DRIFT // 2
    assert timestamp_of(clock.next()) == second + 1
    clock.withdraw(second, before)
    assert timestamp_of(clock.next()) == first + 1, "whose answer is not known yet"
    assert clock.propose() == (first, 0)
    clock.withdraw(first, 0)
    assert timestamp_of(clock.next()) == wall.now


def test_a_proposal_of_a_wrong_clock_does_not_outlive_that() -> None:
    wall = Wall()
    clock = HybridClock(TimeGate(DRIFT, wall))
    clock.close_through(NOON + 5)
    wall.now += DRIFT + 1
    clock.propose()
    wall.now -= 1
    assert timestamp_of(clock.next()) == NOON + DRIFT + 2, "as the answer may have been lost"
    wall.now = NOON
    assert timestamp_of(clock.next()) == NOON + 6
    assert not clock.proposed


def test_an_accepted_proposal_holds_the_clock() -> None:
    wall = Wall()
    clock = HybridClock(TimeGate(DRIFT, wall))
    closed, _ = clock.propose()
    clock.close_through(closed)
    assert not clock.proposed
    clock.withdraw(closed, 0)
    wall.now -= 5 * DRIFT
    assert timestamp_of(clock.next()) == closed + 1


def test_a_wall_that_was_never_set_closes_nothing_new() -> None:
    wall = Wall(UNSET_BEFORE_NS - 1)
    clock = HybridClock(TimeGate(DRIFT, wall))
    assert clock.propose() == (0, 0)
    clock.close_through(NOON)
    assert clock.propose() == (NOON, 0)


def test_a_proposal_outlives_a_restart_as_long_as_the_wall_agrees() -> None:
    wall = Wall()
    for proposed, agrees in ((NOON + DRIFT, True), (NOON + DRIFT + 1, False)):
        clock = HybridClock(TimeGate(DRIFT, wall))
        assert clock.resume(proposed) == agrees
        assert timestamp_of(clock.next()) == (proposed + 1 if agrees else NOON)


def test_two_starts_never_issue_one_version() -> None:
    wall = Wall()
    first, second = (HybridClock(TimeGate(DRIFT, wall)) for _ in range(2))
    assert first.next() != second.next()
    for clock in (first, second):
        clock.write_as(b"the same")
        assert store_id_of(clock.next()) == b"the same"
        assert clock.next()[8:20] == clock.writer
    assert first.writer != second.writer


def test_the_counter_of_an_op_id_begins_again() -> None:
    clock = HybridClock(TimeGate(DRIFT, Wall()))
    clock.counter = (1 << 32) - 2
    versions = [clock.next() for _ in range(3)]
    assert [version[20:].hex() for version in versions] == ["ffffffff", "00000000", "00000001"]


def test_a_wall_clock_before_1970_is_one_that_was_never_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: -(10**18))
    with engines.engine_in(tmp_path / "data", wall_clock=time.time_ns) as engine:
        engine.set(b"k", b"v")
        engine.commit()
        assert not engine.time_gate.is_set
    with engines.engine_in(tmp_path / "data", wall_clock=time.time_ns) as engine:
        assert engine.get(b"k") == b"v"
