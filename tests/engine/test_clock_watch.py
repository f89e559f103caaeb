"""What a node can tell of its own wall clock: never set, jumped, behind its data."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

import pytest
from fixtures.engines import NOON, Wall

from merklekv.engine.clock import HybridClock
from merklekv.engine.clock_watch import BEHIND, TRUNCATION, ClockWatch, clock_problem
from merklekv.engine.engine import Engine
from merklekv.engine.time_gate import LATEST_NS, TimeGate
from merklekv.log_throttle import THROTTLE_S

SECOND = 10**9
DRIFT_S = 600


class Machine:
    """A wall clock, and a clock that nobody sets, which both run."""

    def __init__(self) -> None:
        self.wall = Wall()
        self.boot = Wall(5 * SECOND)
        self.clock = HybridClock(TimeGate(DRIFT_S * SECOND, self.wall))
        self.watch = ClockWatch(self.clock, "a", "/data", self.boot)

    def run(self, seconds: float, jump_s: float = 0) -> bool:
        self.boot.now += int(seconds * SECOND)
        self.wall.now += int((seconds + jump_s) * SECOND)
        return self.watch.look()


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_a_clock_that_runs_is_no_news(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    for seconds in (1, 1, 3600, 0.1):  # the machine slept, too
        assert not machine.run(seconds, jump_s=0.9)
    assert not caplog.records
    assert machine.watch.problem().text == machine.watch.last_jump == ""


def test_a_pause_between_the_readings_of_two_clocks_is_no_jump(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pauses = [10 * SECOND]

    def wall() -> int:
        shown = machine.wall()
        if pauses:
            pause = pauses.pop()
            machine.wall.now += pause
            machine.boot.now += pause
        return shown

    monkeypatch.setattr(machine.clock.gate, "wall", wall)
    assert not machine.run(1)
    assert not machine.run(1)
    assert not pauses
    assert not caplog.records


@pytest.mark.parametrize(
    ("jump_s", "words", "is_far"),
    [
        (5, "forward by 5 s, to 2033-05-18 03:33:26 UTC", False),
        (-5, "back by 5 s, to 2033-05-18 03:33:16 UTC", False),
        (172_800, "forward by 172800 s, to 2033-05-20", True),
        (-172_800, "back by 172800 s, to 2033-05-16", True),
    ],
)
def test_a_jump_is_logged(
    machine: Machine, caplog: pytest.LogCaptureFixture, jump_s: int, words: str, is_far: bool
) -> None:
    assert machine.run(1, jump_s) == is_far
    assert f"the wall clock of node a jumped {words}" in caplog.text
    assert ": if it is wrong now, set it" in caplog.text
    assert bool(machine.watch.last_jump) == is_far


def test_a_clock_that_jumps_each_second_does_not_fill_the_log(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    for second in range(100):
        machine.run(1, 7200 if second % 2 else -7200)
    assert len(caplog.records) <= 2 * (100 / THROTTLE_S + 1)
    assert "(and 4 more before)" in caplog.text


def test_records_from_the_future_are_told_from_when_the_clock_is_right_again(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.run(1, 172_800)
    machine.clock.next()
    assert machine.watch.problem().text == ""
    machine.run(1, -172_800)
    text = machine.watch.problem().text
    assert text.startswith("node a has versions up to 2033-05-20 03:33:21 UTC, 172799 s ahead of its wall clock, and")
    assert text.endswith("set the clock if it is slow; if it is right, stop the node and run 'merklekv restamp /data'")
    assert text in caplog.text
    machine.run(200_000)
    assert "the data of node a are not ahead of its wall clock any more" in caplog.text


def test_a_bound_in_the_future_is_told(machine: Machine) -> None:
    machine.clock.close_through(NOON + (DRIFT_S + 1) * SECOND)
    text = machine.watch.problem().text
    assert text.startswith("node a stamps its writes after 2033-05-18 03:43:21 UTC, 601 s ahead of its wall clock")
    assert "merklekv restamp /data" in text


def test_a_clock_that_no_node_believes_is_told(machine: Machine) -> None:
    machine.wall.now = LATEST_NS + 1
    machine.clock.next()
    assert machine.watch.problem().text == "the wall clock of node a is wrong, it shows 2100-01-01 00:00:00 UTC: set it"


@pytest.mark.parametrize("ahead_s", [540, 172_800])
def test_a_flushall_in_the_future_is_told(tmp_path: Path, ahead_s: int) -> None:
    """Of a minute or more: other nodes do not take it before."""
    wall = Wall()
    with contextlib.closing(Engine(tmp_path, wall_clock=wall, checkpoint="manual")) as engine:
        engine.set(b"k", b"v")
        engine.truncate()
        assert not clock_problem(engine.clock, "a", "/data")
        wall.now -= ahead_s * SECOND
        problem = clock_problem(engine.clock, "a", "/data")
        assert problem.kind == (BEHIND if ahead_s > DRIFT_S else TRUNCATION)
        engine.commit()
    with contextlib.closing(Engine(tmp_path, wall_clock=wall, checkpoint="manual")) as engine:
        assert clock_problem(engine.clock, "a", "/data") == problem
        wall.now += (ahead_s - 59) * SECOND
        assert not clock_problem(engine.clock, "a", "/data")
    assert problem.text == (
        f"node a has a FLUSHALL of 2033-05-18 03:33:20 UTC, {ahead_s} s ahead of its wall clock, and all that any node "
        "writes before that time is deleted: set the clock if it is slow; if it is right, stop the node and run "
        "'merklekv restamp /data'"
    )


def test_a_clock_that_was_never_set_is_told(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine.wall.now = 60 * SECOND
    problem = clock_problem(machine.clock, "a", "/data")
    assert problem.text == "the wall clock of node a was never set, it shows 1970-01-01 00:01:00 UTC: set it"
    with caplog.at_level(logging.WARNING):
        machine.watch.look()
    assert problem.text in caplog.text
