"""When to exchange with which peer, and how long to rest between two steps of an exchange.

    added ------------> due at once
    succeeded --------> due after the interval, give or take JITTER
    woken ------------> due at once, or REST_S after the last exchange; also when it is woken in the middle of one
    nudged -----------> due after some seconds, unless the peer comes first
    failed -----------> due after RETRY_MIN_S, twice as long each time, up to RETRY_MAX_S
    put off ----------> due after a moment: the peer exchanges with this node now
    served -----------> due after the interval, unless woken before: the peer has exchanged with this node

The jitter keeps nodes that were started together from exchanging together for ever.  The caller gives the times,
seconds of a monotonic clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

START_SPREAD_S: Final = 0.2
JITTER: Final = 0.2
REST_S: Final = 1.0  # between two exchanges with one peer, however often it is woken
NUDGE_S: Final = 3.0
RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 300.0
PUT_OFF_S: Final = 1.0
COUNTED_WORK_MAX_S: Final = 1.0


@dataclass(slots=True)
class _Slot:
    due: float
    failures: int = 0  # in a row
    ended: float = float("-inf")  # the last exchange
    running: bool = False
    woken: bool = False  # since the last exchange began


class Timetable:
    """Peers by address, each with the time of its next exchange.  Not locked."""

    def __init__(self, interval_s: float, chance: Callable[[], float] = random.random) -> None:
        self._interval_s = interval_s
        self._chance = chance  # 0 to 1
        self._slots: dict[str, _Slot] = {}

    def keep(self, peers: Iterable[str], now: float) -> None:
        """Keep exactly these peers; new ones are due within START_SPREAD_S."""
        wanted = set(peers)
        for peer in self._slots.keys() - wanted:
            del self._slots[peer]
        for peer in sorted(wanted - self._slots.keys()):
            self._slots[peer] = _Slot(now + START_SPREAD_S * self._chance())

    def wake(self, peer: str, now: float) -> None:
        """There may be something to repair with this peer: exchange soon."""
        if (slot := self._slots.get(peer)) is not None:
            slot.woken = True
            slot.due = min(slot.due, max(now, slot.ended + REST_S))

    def nudge(self, peer: str, now: float) -> None:
        """This peer needs an exchange before long, which either node may begin."""
        if (slot := self._slots.get(peer)) is not None and not slot.running:
            slot.due = min(slot.due, now + NUDGE_S * (1 + self._chance()))

    def next_due(self, now: float) -> str | None:
        """The peer that is due, and has waited longest; None if none is due."""
        waiting = [(slot.due, peer) for peer, slot in self._slots.items() if not slot.running and slot.due <= now]
        return min(waiting)[1] if waiting else None

    def wait_s(self, now: float) -> float | None:
        """Seconds until the next peer is due; None without peers to wait for."""
        dues = [slot.due for slot in self._slots.values() if not slot.running]
        return max(0.0, min(dues) - now) if dues else None

    def begin(self, peer: str) -> None:
        """An exchange with this peer begins."""
        if (slot := self._slots.get(peer)) is not None:
            slot.running, slot.woken = True, False

    def succeed(self, peer: str, now: float) -> None:
        """An exchange with this peer is complete."""
        if (slot := self._end(peer, now)) is not None:
            slot.failures = 0
            slot.due = now + (REST_S if slot.woken else self._spread_interval_s())

    def serve(self, peer: str, now: float) -> None:
        """An exchange that the peer began is complete: that is enough for now, unless this one was woken."""
        if (slot := self._slots.get(peer)) is not None and not (slot.woken or slot.running):
            slot.failures = 0
            slot.due = now + self._spread_interval_s()

    def fail(self, peer: str, now: float) -> None:
        """The peer is unreachable, or the exchange was refused or cut."""
        if (slot := self._end(peer, now)) is not None:
            wait_s = min(RETRY_MIN_S * 2**slot.failures, RETRY_MAX_S)
            slot.failures = min(slot.failures + 1, 64)
            slot.due = now + wait_s * (1 + JITTER * (2 * self._chance() - 1))

    def put_off(self, peer: str, now: float) -> None:
        """The peer exchanges with this node now."""
        if (slot := self._end(peer, now)) is not None:
            slot.due = now + PUT_OFF_S * (0.5 + self._chance())

    def _spread_interval_s(self) -> float:
        return max(REST_S, self._interval_s * (1 + JITTER * (2 * self._chance() - 1)))

    def _end(self, peer: str, now: float) -> _Slot | None:
        slot = self._slots.get(peer)
        if slot is not None:
            slot.running = False
            slot.ended = now
        return slot


def rest_s(worked_s: float, share_percent: int) -> float:
    """Seconds to rest after work of `worked_s`, so that work takes `share_percent` of the time.

    A step also waits for the peer, so a long one counts as COUNTED_WORK_MAX_S.
    """
    return min(worked_s, COUNTED_WORK_MAX_S) * (100 - share_percent) / share_percent
