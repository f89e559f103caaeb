"""The bounds of times from outside, under every wall clock."""

from __future__ import annotations

from fixtures import engines
from fixtures.engines import NOON, Wall
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine.time_gate import LATEST_NS, MAX_TRUNCATION_AHEAD_S, UNSET_BEFORE_NS, TimeGate

SECOND = 10**9
TRUNCATION = MAX_TRUNCATION_AHEAD_S * SECOND
walls = st.integers(0, 2 * LATEST_NS) | st.sampled_from([UNSET_BEFORE_NS - 1, UNSET_BEFORE_NS, NOON, LATEST_NS])
times = st.integers(0, (1 << 63) - 1) | st.sampled_from([LATEST_NS, LATEST_NS + 1])


@given(walls, times, st.integers(-1, 1), st.sampled_from([0, TRUNCATION - 1, TRUNCATION, 600 * SECOND]))
def test_a_time_passes_up_to_the_drift_and_a_truncation_up_to_a_minute(
    wall: int, time: int, beside: int, drift: int
) -> None:
    gate = TimeGate(drift, Wall(wall))
    is_set = wall >= UNSET_BEFORE_NS
    latest = min(LATEST_NS, wall + drift) if is_set else LATEST_NS
    for at in (time, max(0, latest + beside)):
        assert gate.admits(at) == gate.admits_version(engines.version(at, (1 << 128) - 1)) == (at <= latest)
    ahead = min(drift, TRUNCATION)
    for at in (time, max(0, wall + ahead + beside)):
        allowed = is_set and at <= min(LATEST_NS, wall + ahead)
        assert gate.admits_truncation(engines.version(at, (1 << 128) - 1)) == allowed
    assert gate.is_set == is_set
    for text in (gate.describe(time), gate.describe_truncation(engines.version(time))):
        assert text.startswith("of ")
        assert " UTC, " in text
        assert ("was never set" in text) == (not is_set)
    assert ("max_clock_drift_seconds" in gate.describe(time)) == is_set
