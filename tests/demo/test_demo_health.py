"""When the demo calls nodes equal, healing or healed: told what is seen at which second."""

from __future__ import annotations

import pytest

from merklekv.demo.health import SETTLE_S, STUCK_S, Health, State


class Looks:
    """Looks at a cluster, a tenth of a second apart."""

    def __init__(self) -> None:
        self.health = Health()
        self.now = 100.0
        self.started_at = self.now

    def see(self, *, equal: bool = True, runs: bool = True, seen: object = None, times: int = 1) -> State:
        for _ in range(times):
            self.now += 0.1
            news = object() if seen is None else seen
            self.health.see(self.now, runs=runs, started_at=self.started_at, are_equal=equal, seen=news)
        return self.health.state

    def start(self) -> None:
        self.started_at = self.now


def test_the_start_is_no_outage() -> None:
    looks = Looks()
    assert looks.see(equal=False) is State.STARTING
    assert looks.see(equal=False, runs=False) is State.STARTING
    looks.start()
    assert looks.see() is State.EQUAL
    assert looks.health.healed_s is None


def test_an_outage_heals_from_its_last_start_on() -> None:
    looks = Looks()
    looks.see()
    assert looks.see(equal=False, runs=False, times=30) is State.OUTAGE
    assert looks.see(runs=False) is State.OUTAGE  # what still runs is equal
    looks.start()
    assert looks.see(equal=False, times=15) is State.HEALING
    assert round(looks.health.healing_s, 1) == 1.5
    assert looks.see() is State.EQUAL
    assert looks.health.healed_s is not None
    assert round(looks.health.healed_s, 1) == 1.6


def test_an_outage_that_nobody_saw_heals_too() -> None:
    looks = Looks()
    looks.see()
    looks.start()
    assert looks.see(equal=False) is State.HEALING
    assert looks.see() is State.EQUAL
    assert looks.health.healed_s is not None


def test_writes_under_way_do_not_flicker() -> None:
    looks = Looks()
    looks.see()
    for _ in range(20):
        assert looks.see(equal=False, times=int(SETTLE_S / 0.1) - 1) is State.EQUAL
        assert looks.see() is State.EQUAL
    assert looks.see(equal=False, times=int(SETTLE_S / 0.1) + 2) is State.DIFFERING
    assert looks.see() is State.EQUAL
    assert looks.health.healed_s is None


@pytest.mark.parametrize(("seconds", "is_stuck"), [(STUCK_S - 0.2, False), (STUCK_S + 0.2, True)])
def test_what_does_not_move_is_stuck(seconds: float, is_stuck: bool) -> None:
    looks = Looks()
    looks.see()
    looks.see(equal=False, seen="different roots", times=round(seconds / 0.1))
    assert looks.health.is_stuck is is_stuck
