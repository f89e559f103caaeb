"""Versions and the hybrid clock that issues them.

A version is 24 bytes, `timestamp (8) | op id (16)`, compared as bytes: the later timestamp wins, the larger op id
breaks ties.  An op id holds the store id (8 bytes), the epoch of the process (4 random bytes drawn at the start, so
that a restored backup or a copied directory does not issue an op id twice), and a counter (4).

The clock follows the wall clock, forward and back.  Only two things hold a version above the wall: the lower bound,
below which another node may rely on nothing being written (the truncation version, the GC horizon and closed
timestamps), and the stored version of the key, which a local write has to beat.  Both were at most `max_drift_ns` ahead
of a wall clock when they came in, so a clock that was wrong and is right again is at most that far ahead.

A closed timestamp is first proposed to another node, and final once accepted.  The caller stores both.

`latest_ns` bounds every time that comes from outside: in a version, a truncation, a message of an exchange.
"""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from struct import Struct
from typing import Final

from merklekv.engine.record import EPOCH_SIZE, OP_ID_SIZE, STORE_ID_SIZE, make_version, timestamp_of

UNSET_BEFORE_NS: Final = 1_767_225_600 * 10**9  # 2026-01-01: a wall clock before the first release was never set
DEFAULT_MAX_DRIFT_S: Final = 600
MAX_TRUNCATION_AHEAD_S: Final = 60  # a truncation deletes what is written until its time, so it is bounded tighter
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
        self.max_drift_ns = max_drift_ns
        self.newest = 0  # the largest timestamp issued or seen, ns; it moves nothing
        self.proposed = 0  # ns; nothing is stamped at or below while another node may rely on it; 0: there is none
        self._closed_through = 0  # ns; likewise, for good
        self.lower_bound = 0  # the larger one of the two; every version is above
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
        """A version of now, above the lower bound."""
        timestamp = self._wall()
        if timestamp <= self.lower_bound:
            timestamp = self.lower_bound + 1
        if timestamp > self.newest:
            self.newest = timestamp
        self._counter = self._counter + 1 & _COUNTER_MASK
        return _pack(timestamp, self.writer, self._counter)

    def after(self, version: bytes) -> bytes:
        """A version just above `version`, whatever the wall says: for a key that has a later version than `next`."""
        timestamp = timestamp_of(version) + 1
        if timestamp > self.newest:
            self.newest = timestamp
        self._counter = self._counter + 1 & _COUNTER_MASK
        return _pack(timestamp, self.writer, self._counter)

    def observe(self, version: bytes) -> None:
        """A version was seen: `newest` has it, and nothing else changes."""
        self.newest = max(self.newest, timestamp_of(version))

    def close_through(self, timestamp: int) -> None:
        """From now on every version is above `timestamp`, ns, even if the wall clock is set back."""
        self._closed_through = max(self._closed_through, timestamp)
        if self.proposed <= self._closed_through:
            self.proposed = 0
        self._bound()

    def closing(self) -> int:
        """A timestamp, ns, that this node may close: its wall clock has got there, or it is closed already."""
        wall = self._wall()
        return max(self.lower_bound, wall if wall >= UNSET_BEFORE_NS else 0)

    def propose(self) -> tuple[int, int]:
        """Closes a timestamp until another node has judged it; the timestamp, and what `withdraw` goes back to, ns."""
        closed, before = self.closing(), self.proposed
        if closed > self._closed_through:
            self.proposed = closed
            self._bound()
        return closed, before if before < closed else 0

    def withdraw(self, closed: int, before: int) -> None:
        """Takes a refused proposal back, so that the clock may follow the wall below it."""
        if self.proposed == closed:
            self.proposed = before
            self._bound()

    def resume(self, proposed: int) -> bool:
        """Restores a proposal (ns) from before a restart if the wall clock agrees; whether it does."""
        if proposed > self.latest_ns():
            return False
        if proposed > self._closed_through:
            self.proposed = proposed
            self._bound()
        return True

    def too_far_ahead(self, version: bytes) -> bool:
        """Whether a remote version lies further in the future than this node believes any clock to be."""
        return version > self.latest()

    def truncates_too_far_ahead(self, truncation: bytes) -> bool:
        """Whether a remote truncation version does, or this node cannot tell because its wall clock was never set."""
        latest = self._wall_plus(min(self.max_drift_ns, MAX_TRUNCATION_AHEAD_S * 10**9))
        return not self.is_set or timestamp_of(truncation) > latest

    def latest(self) -> bytes:
        """No version or record that is not too far ahead compares as more than this."""
        return make_version(self.latest_ns(), b"\xff" * (OP_ID_SIZE + 1))

    def latest_ns(self) -> int:
        """No timestamp of another node is believed beyond this, ns.

        A wall clock that was never set bounds only records; a node does not exchange with it, see `is_set`.
        """
        return self._wall_plus(self.max_drift_ns)

    def ahead_s(self, timestamp: int) -> float:
        """How far a timestamp, ns, is ahead of the wall clock."""
        return (timestamp - self._wall()) / 10**9

    @property
    def wall(self) -> int:
        """What the wall clock shows, ns since the epoch."""
        return self._wall()

    @property
    def is_set(self) -> bool:
        """Whether the wall clock was ever set.  If not, it can judge no time from outside, and closes none."""
        return self._wall() >= UNSET_BEFORE_NS

    def _wall_plus(self, drift_ns: int) -> int:
        wall = self._wall()
        return min(LATEST_NS, wall + drift_ns) if wall >= UNSET_BEFORE_NS else LATEST_NS

    def _bound(self) -> None:
        self.lower_bound = max(self._closed_through, self.proposed)
