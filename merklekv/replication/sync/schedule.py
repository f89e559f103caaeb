"""When to exchange with whom: a timetable of peers, and how long to rest between two steps of an exchange.

    added ------------> due at once
    succeeded --------> due after the interval, give or take JITTER
    woken ------------> due at once, or REST_S after the last exchange; also when it is woken in the middle of one
    nudged -----------> due after some seconds, unless the peer comes first
    failed -----------> due after RETRY_MIN_S, twice as long each time, up to RETRY_MAX_S
    put off ----------> due after a moment: the other side is at it
    served -----------> due after the interval, unless woken before: the other side did it

The jitter keeps nodes that were started together from exchanging together for ever.  Pure: times are seconds of any
clock that goes forward, given by the caller, and chance comes from a function that may be replaced.
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
class _Entry:
    due: float
    failures: int = 0  # in a row
    ended: float = float("-inf")  # the last exchange
    running: bool = False
    woken: bool = False  # since the last exchange began


class Timetable:
    """Peers by name, each with the time of its next exchange.  Not locked."""

    def __init__(self, interval_s: float, chance: Callable[[], float] = random.random) -> None:
        self._interval_s = interval_s
        self._chance = chance  # 0 to 1
        self._entries: dict[str, _Entry] = {}

    def keep(self, peers: Iterable[str], now: float) -> None:
        """Exactly these peers; the new ones are due at once, all within START_SPREAD_S."""
        wanted = set(peers)
        for peer in self._entries.keys() - wanted:
            del self._entries[peer]
        for peer in sorted(wanted - self._entries.keys()):
            self._entries[peer] = _Entry(now + START_SPREAD_S * self._chance())

    def wake(self, peer: str, now: float) -> None:
        """There may be something to repair with this peer: do not wait for the interval."""
        if (entry := self._entries.get(peer)) is not None:
            entry.woken = True
            entry.due = min(entry.due, max(now, entry.ended + REST_S))

    def nudge(self, peer: str, now: float) -> None:
        """There is something to tell this peer, by either side's exchange: do not wait for a long interval."""
        if (entry := self._entries.get(peer)) is not None and not entry.running:
            entry.due = min(entry.due, now + NUDGE_S * (1 + self._chance()))

    def next_due(self, now: float) -> str | None:
        """The peer whose time has come, the one that has waited longest."""
        waiting = [(entry.due, peer) for peer, entry in self._entries.items() if not entry.running and entry.due <= now]
        return min(waiting)[1] if waiting else None

    def wait_s(self, now: float) -> float | None:
        """How long until the next peer is due; None when there is nobody to wait for."""
        dues = [entry.due for entry in self._entries.values() if not entry.running]
        return max(0.0, min(dues) - now) if dues else None

    def begin(self, peer: str) -> None:
        """An exchange with this peer begins."""
        if (entry := self._entries.get(peer)) is not None:
            entry.running, entry.woken = True, False

    def succeed(self, peer: str, now: float) -> None:
        """An exchange with this peer came to its end."""
        if (entry := self._end(peer, now)) is not None:
            entry.failures = 0
            entry.due = now + (REST_S if entry.woken else self._spread_interval_s())

    def serve(self, peer: str, now: float) -> None:
        """An exchange that the peer itself began came to its end: enough for now, unless there was reason for one."""
        if (entry := self._entries.get(peer)) is not None and not (entry.woken or entry.running):
            entry.failures = 0
            entry.due = now + self._spread_interval_s()

    def fail(self, peer: str, now: float) -> None:
        """The peer cannot be reached, or the exchange was refused or cut."""
        if (entry := self._end(peer, now)) is not None:
            wait_s = min(RETRY_MIN_S * 2**entry.failures, RETRY_MAX_S)
            entry.failures = min(entry.failures + 1, 64)
            entry.due = now + wait_s * (1 + JITTER * (2 * self._chance() - 1))

    def put_off(self, peer: str, now: float) -> None:
        """The peer is at an exchange with this node itself."""
        if (entry := self._end(peer, now)) is not None:
            entry.due = now + PUT_OFF_S * (0.5 + self._chance())

    def _spread_interval_s(self) -> float:
        return max(REST_S, self._interval_s * (1 + JITTER * (2 * self._chance() - 1)))

    def _end(self, peer: str, now: float) -> _Entry | None:
        entry = self._entries.get(peer)
        if entry is not None:
            entry.running = False
            entry.ended = now
        return entry


def rest_s(worked_s: float, share_percent: int) -> float:
    """How long to rest after so much work, for the work to take that share of the time.

    What a step took is an upper bound of the work: it has waited for the other side, too, so a long one counts as
    COUNTED_WORK_MAX_S.
    """
    return min(worked_s, COUNTED_WORK_MAX_S) * (100 - share_percent) / share_percent
