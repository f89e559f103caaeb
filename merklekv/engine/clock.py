"""Versions and the hybrid clock that issues them.

A version is 24 bytes, `timestamp (8) | op id (16)`, compared as bytes: the later timestamp wins, the larger op id
breaks ties.  An op id holds the store id (8 bytes), the epoch of the process (4 random bytes drawn at the start, so
that a restored backup or a copied directory does not issue an op id twice), and a counter (4).

The clock is a hybrid logical clock (Kulkarni et al., "Logical Physical Clocks", 2014) folded into one number: wall
time in nanoseconds, moved ahead of every timestamp it has issued or seen.  So a local write beats whatever this node
already shows, and time does not run backwards over a restart.  It never runs more than `max_drift_ns` ahead of a wall
clock that is set: when the wall is set back further than that, the clock follows, and logs it; and `latest` bounds
every timestamp of another node.

Even when the wall is set back, this node issues no version at or below the truncation version, the GC horizon and its
closed timestamps.  A closed timestamp is first proposed to another node, and final once accepted.  The caller stores
both.
"""

import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from struct import Struct
from typing import Final

from merklekv.engine.record import EPOCH_SIZE, OP_ID_SIZE, STORE_ID_SIZE, make_version, timestamp_of

log = logging.getLogger(__name__)

UNSET_BEFORE_NS: Final = 1_767_225_600 * 10**9  # 2026-01-01: a wall clock before the first release was never set
DEFAULT_MAX_DRIFT_S: Final = 86_400
MAX_TRUNCATION_AHEAD_S: Final = 60  # a truncation deletes what is written until its time, so it is bounded tighter
LOWER_BOUND_SLACK_NS: Final = 10**9  # above the lower bound, for as many versions, each a nanosecond later
LATEST_NS: Final = 4_102_444_800 * 10**9  # 2100-01-01: no node is believed beyond, whatever the wall clock says

WRITER_SIZE: Final = STORE_ID_SIZE + EPOCH_SIZE
_COUNTER_MASK: Final = (1 << 32) - 1

_pack = Struct(">Q12sI").pack


def show_time(timestamp: int) -> str:
    """A timestamp, ns, as people read it: the date and time in UTC, to the second."""
    return datetime.fromtimestamp(timestamp // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class HybridClock:
    """Issues versions.  Not locked: the caller has the engine's lock."""

    def __init__(
        self, max_drift_ns: int = DEFAULT_MAX_DRIFT_S * 10**9, wall_clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.last = 0  # the largest timestamp issued or seen, ns
        self.max_drift_ns = max_drift_ns
        self.found = 0  # the largest timestamp in the data directory when it was opened, ns
        self.set_back = 0  # how often it has followed a wall clock that was set back
        self._closed_through = 0  # ns; nothing is stamped at or below
        self.proposed = 0  # ns; likewise, while another node may rely on it that has not answered; 0: there is none
        self._wall = wall_clock
        self.writer = os.urandom(WRITER_SIZE)  # of the op ids of this process
        self._counter = 0

    def write_as(self, writer: bytes) -> None:
        """Sets the store id (8 bytes, random before) in every version from now on."""
        self.writer = writer + self.writer[STORE_ID_SIZE:]

    @property
    def epoch(self) -> bytes:
        """The epoch of this process, 4 bytes."""
        return self.writer[STORE_ID_SIZE:]

    def next(self) -> bytes:
        """A version above every one that was issued or seen."""
        timestamp = self._wall()
        last = self.last
        if timestamp <= last:
            timestamp = self._ahead(timestamp)
        self.last = timestamp
        self._counter = self._counter + 1 & _COUNTER_MASK
        return _pack(timestamp, self.writer, self._counter)

    def after(self, version: bytes) -> bytes:
        """A version above `version`, whatever the wall says.

        Needed only after the clock followed a wall that was set back, so it does not move the clock.
        """
        self._counter = self._counter + 1 & _COUNTER_MASK
        return _pack(timestamp_of(version) + 1, self.writer, self._counter)

    def observe(self, version: bytes) -> None:
        """Moves the clock to a version that was seen."""
        timestamp = timestamp_of(version)
        if timestamp > self.last:
            self.last = timestamp

    def close_through(self, timestamp: int) -> None:
        """From now on every version is above `timestamp`, ns, even if the wall clock is set back."""
        self.last = max(self.last, timestamp)
        self._closed_through = max(self._closed_through, timestamp)
        if self.proposed <= self._closed_through:
            self.proposed = 0

    def follow(self) -> None:
        """Goes back to a wall clock that was set back, if it is too far ahead of it."""
        wall = self._wall()
        if wall <= self.last:
            self.last = self._ahead(wall) - 1

    def now(self) -> int:
        """Where the clock is, ns; every version from now on is later, unless the wall clock is set back."""
        self.follow()
        self.last = max(self.last, self._wall())
        return self.last

    def closing(self) -> int:
        """A timestamp, ns, that this node may close: its wall clock agrees.

        What it has seen may be up to `max_drift_ns` ahead.  Only half of that is taken over, or nodes whose wall clocks
        are a little behind would take this one's for wrong.
        """
        wall, last = self._wall(), self.now()
        if wall < UNSET_BEFORE_NS:
            return last
        return max(self._lower_bound, wall, min(last, wall + self.max_drift_ns // 2))

    def propose(self) -> tuple[int, int]:
        """Closes a timestamp until another node has judged it; the timestamp, and what `withdraw` goes back to, ns."""
        closed, before = self.closing(), self.proposed
        self.last = max(self.last, closed)
        if closed > self._closed_through:
            self.proposed = closed
        return closed, before if before < closed else 0

    def withdraw(self, closed: int, before: int) -> None:
        """Takes a refused proposal back, so that the clock may follow the wall below it."""
        if self.proposed == closed:
            self.proposed = before

    def resume(self, proposed: int) -> bool:
        """Restores a proposal (ns) from before a restart if the wall clock agrees; whether it does."""
        if proposed > self.latest_ns():
            return False
        if proposed > self._closed_through:
            self.proposed = proposed
            self.last = max(self.last, proposed)
        return True

    def too_far_ahead(self, version: bytes) -> bool:
        """Whether a remote version lies further in the future than this node believes any clock to be."""
        return version > self.latest()

    def truncates_too_far_ahead(self, truncation: bytes) -> bool:
        """Whether a remote truncation version does."""
        return self.too_far_ahead(truncation) or timestamp_of(truncation) > self._wall_plus(
            MAX_TRUNCATION_AHEAD_S * 10**9
        )

    def latest(self) -> bytes:
        """No version or record that is not too far ahead compares as more than this."""
        return make_version(self.latest_ns(), b"\xff" * (OP_ID_SIZE + 1))

    def latest_ns(self) -> int:
        """No timestamp of another node is believed beyond this, ns.  A wall clock that was never set bounds nothing."""
        return self._wall_plus(self.max_drift_ns)

    def ahead_s(self, timestamp: int) -> float:
        """How far a timestamp, ns, is ahead of the wall clock."""
        return (timestamp - self._wall()) / 10**9

    def _wall_plus(self, drift_ns: int) -> int:
        wall = self._wall()
        return min(LATEST_NS, wall + drift_ns) if wall >= UNSET_BEFORE_NS else LATEST_NS

    @property
    def _lower_bound(self) -> int:
        """Where the clock stays above when it follows a wall clock that was set back, ns."""
        return max(self._closed_through, self.proposed)

    def _ahead(self, wall: int) -> int:
        is_far = self.last - wall > self.max_drift_ns and self.last - self._lower_bound > LOWER_BOUND_SLACK_NS
        if is_far and wall >= UNSET_BEFORE_NS:
            self.set_back += 1
            log.warning(
                "the wall clock is %.0f s behind this node's versions, more than max_clock_drift_seconds: "
                "following the wall",
                (self.last - wall) / 1e9,
            )
            return max(wall, self._lower_bound + 1)
        return self.last + 1
