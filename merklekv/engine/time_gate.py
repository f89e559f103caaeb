"""The one check of times that come from outside: from other nodes, from tools and dumps, or with a stored table.

Whatever becomes a bound of this node for good, or a version in its data, passes here first: versions, truncations, GC
horizons, closed, stable, applied-through and confirmed timestamps, lost-write intervals.  A time that is further ahead
of the wall clock than the bound is refused by itself: the caller leaves out that record or row, says so with
`describe`, counts it, and goes on with the rest.

A wall clock that was never set can judge no time.  Such a node takes records up to LATEST_NS, so that no write of
others is lost to it, but no truncation, and does not exchange.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from merklekv.engine.record import OP_ID_SIZE, make_version, timestamp_of

UNSET_BEFORE_NS: Final = 1_767_225_600 * 10**9  # 2026-01-01: a wall clock before the first release was never set
DEFAULT_MAX_DRIFT_S: Final = 600
MAX_TRUNCATION_AHEAD_S: Final = 60  # a truncation deletes what is written until its time, so it is bounded tighter
LATEST_NS: Final = 4_102_444_800 * 10**9  # 2100-01-01: no node is believed beyond, whatever the wall clock says


def show_time(timestamp: int) -> str:
    """A timestamp, ns, as people read it: the date and time in UTC, to the second."""
    return datetime.fromtimestamp(timestamp // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class TimeGate:
    """Judges times by the wall clock.  Thread-safe: it keeps nothing."""

    def __init__(
        self, max_drift_ns: int = DEFAULT_MAX_DRIFT_S * 10**9, wall_clock: Callable[[], int] = time.time_ns
    ) -> None:
        self.max_drift_ns = max_drift_ns
        self.wall = wall_clock  # what the wall clock shows, ns since the epoch

    @property
    def is_set(self) -> bool:
        """Whether the wall clock was ever set."""
        return self.wall() >= UNSET_BEFORE_NS

    def latest(self) -> int:
        """The latest timestamp, ns, that is believed."""
        return self._wall_plus(self.max_drift_ns)

    def latest_version(self) -> bytes:
        """No version or record that is believed compares as more than this."""
        return make_version(self.latest(), b"\xff" * (OP_ID_SIZE + 1))

    def admits(self, timestamp: int) -> bool:
        """Whether a timestamp, ns, is believed."""
        return timestamp <= self.latest()

    def admits_version(self, version: bytes) -> bool:
        """Whether the timestamp of a version, or record, is believed."""
        return version <= self.latest_version()

    def admits_truncation(self, truncation: bytes) -> bool:
        """Whether a truncation version is believed."""
        latest = self._wall_plus(min(self.max_drift_ns, MAX_TRUNCATION_AHEAD_S * 10**9))
        return self.is_set and timestamp_of(truncation) <= latest

    def ahead_s(self, timestamp: int) -> float:
        """How far a timestamp, ns, is ahead of the wall clock."""
        return (timestamp - self.wall()) / 10**9

    def describe(self, timestamp: int) -> str:
        """Why a timestamp, ns, is refused: for messages."""
        if not self.is_set:
            return f"of {show_time(timestamp)}, which the wall clock here cannot judge: it was never set"
        return (
            f"of {show_time(timestamp)}, {self.ahead_s(timestamp):.0f} s ahead of the wall clock here, more than "
            "max_clock_drift_seconds"
        )

    def describe_truncation(self, truncation: bytes) -> str:
        """Why a truncation version is refused: for messages."""
        at = timestamp_of(truncation)
        if not self.is_set:
            return self.describe(at)
        return f"of {show_time(at)}, {self.ahead_s(at):.0f} s ahead of the wall clock here: it has to wait until then"

    def _wall_plus(self, drift_ns: int) -> int:
        return min(LATEST_NS, self.wall() + drift_ns) if self.is_set else LATEST_NS
