"""When to exchange with a peer, and how long to rest between two steps of an exchange.

    added ------------> due within START_SPREAD_S
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
from collections.abc import Callable
from typing import Final

START_SPREAD_S: Final = 0.2
JITTER: Final = 0.2
REST_S: Final = 1.0  # between two exchanges with one peer, however often it is woken
NUDGE_S: Final = 3.0
RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 300.0
HALVINGS_MAX: Final = 8
PUT_OFF_S: Final = 1.0
COUNTED_WORK_MAX_S: Final = 1.0


class Schedule:
    """When the next exchange with a peer is due.  Not locked."""

    def __init__(self, interval_s: float, now: float, chance: Callable[[], float] = random.random) -> None:
        """`chance` is from 0 to 1."""
        self.due = now + START_SPREAD_S * chance()
        self.ended = float("-inf")  # the last exchange
        self.running = False
        self.failures = 0  # in a row
        self._woken = False  # since the last exchange began
        self._interval_s = interval_s
        self._chance = chance

    def priority(self, now: float) -> float:
        """How long it has been due, s; half of that for each failure in a row."""
        return (now - self.due) * 0.5 ** min(self.failures, HALVINGS_MAX)

    def wake(self, now: float) -> None:
        """There may be something to repair with this peer: exchange soon."""
        self._woken = True
        self.due = min(self.due, max(now, self.ended + REST_S))

    def nudge(self, now: float) -> None:
        """This peer needs an exchange before long, which either node may begin."""
        if not self.running:
            self.due = min(self.due, now + NUDGE_S * (1 + self._chance()))

    def begin(self) -> None:
        """An exchange with this peer begins."""
        self.running, self._woken = True, False

    def succeed(self, now: float) -> None:
        """An exchange with this peer is complete."""
        self.failures = 0
        self._end(now, REST_S if self._woken else self._spread_interval_s())

    def serve(self, now: float) -> None:
        """An exchange that the peer began is complete: that is enough for now, unless this one was woken."""
        if not (self._woken or self.running):
            self.failures = 0
            self.due = now + self._spread_interval_s()

    def fail(self, now: float) -> None:
        """The peer is unreachable, or the exchange was refused or cut."""
        wait_s = min(RETRY_MIN_S * 2**self.failures, RETRY_MAX_S)
        self.failures = min(self.failures + 1, 64)
        self._end(now, wait_s * (1 + JITTER * (2 * self._chance() - 1)))

    def put_off(self, now: float) -> None:
        """The peer exchanges with this node now."""
        self._end(now, PUT_OFF_S * (0.5 + self._chance()))

    def _spread_interval_s(self) -> float:
        return max(REST_S, self._interval_s * (1 + JITTER * (2 * self._chance() - 1)))

    def _end(self, now: float, wait_s: float) -> None:
        self.running, self.ended, self.due = False, now, now + wait_s


def rest_s(worked_s: float, share_percent: int) -> float:
    """Seconds to rest after work of `worked_s`, so that work takes `share_percent` of the time.

    A step also waits for the peer, so a long one counts as COUNTED_WORK_MAX_S.
    """
    return min(worked_s, COUNTED_WORK_MAX_S) * (100 - share_percent) / share_percent
