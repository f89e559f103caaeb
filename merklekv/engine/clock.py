"""Versions and the hybrid clock that issues them.

A version is 24 bytes, `timestamp (8) | op id (16)`, compared as bytes: the later timestamp wins, the larger op id
breaks ties.  An op id holds the store id (8 bytes), the epoch of the process (4 random bytes drawn at the start, so
that a restored backup or a copied directory does not issue an op id twice), and a counter (4).

The clock follows the wall clock, forward and back.  Only two things hold a version above the wall: the lower bound,
below which another node may rely on nothing being written (the truncation version, the GC horizon and closed
timestamps), and the stored version of the key, which a local write has to beat.  Each of them has passed the time gate
when it came in, so a clock that was wrong and is right again is at most `max_drift_ns` ahead.

A closed timestamp is first proposed to another node, and final once accepted.  The caller stores both.
"""

import os
from struct import Struct
from typing import Final

from merklekv.engine.record import EPOCH_SIZE, STORE_ID_SIZE, timestamp_of
from merklekv.engine.time_gate import TimeGate

WRITER_SIZE: Final = STORE_ID_SIZE + EPOCH_SIZE
COUNTER_MASK: Final = (1 << 32) - 1

pack_version: Final = Struct(">Q12sI").pack
"""The version (24 bytes) of a timestamp (ns), writer (12 bytes) and counter."""


class HybridClock:
    """Issues versions.  Not locked: the caller has the engine's lock."""

    def __init__(self, gate: TimeGate) -> None:
        self.newest = 0  # the largest timestamp issued or seen, ns; it moves nothing
        self.proposed = 0  # ns; nothing is stamped at or below while another node may rely on it; 0: there is none
        self._closed_through = 0  # ns; likewise, for good
        self._held_through = 0  # ns; likewise, while this process may adopt that GC horizon
        self.lower_bound = 0  # the largest one of the three; every version is above
        self.truncated_through = 0  # ns: of the truncation version, for the clock watch
        self.gate = gate
        self._wall = gate.wall
        self.writer = os.urandom(WRITER_SIZE)  # of the op ids of this process
        self.counter = 0  # of the last version

    def write_as(self, writer: bytes) -> None:
        """Sets the store id (8 bytes, random before) in every version from now on."""
        self.writer = writer + self.writer[STORE_ID_SIZE:]

    @property
    def epoch(self) -> bytes:
        """The epoch of this process, 4 bytes."""
        return self.writer[STORE_ID_SIZE:]

    def next(self) -> bytes:
        """A version of now, above the lower bound."""
        self.counter = self.counter + 1 & COUNTER_MASK
        return pack_version(self.now(), self.writer, self.counter)

    def now(self) -> int:
        """The timestamp (ns) for versions of now.  The caller makes them, and counts on `counter`."""
        timestamp = self._wall()
        if timestamp <= self.lower_bound:
            self._drop_what_is_wrong()
            timestamp = max(timestamp, self.lower_bound + 1)
        if timestamp > self.newest:
            self.newest = timestamp
        return timestamp

    def after(self, version: bytes) -> bytes:
        """A version just above `version`, whatever the wall says: for a key that has a later version than `next`."""
        timestamp = timestamp_of(version) + 1
        if timestamp > self.newest:
            self.newest = timestamp
        self.counter = self.counter + 1 & COUNTER_MASK
        return pack_version(timestamp, self.writer, self.counter)

    def observe(self, version: bytes) -> None:
        """A version was seen: `newest` has it, and nothing else changes."""
        self.newest = max(self.newest, timestamp_of(version))

    def close_through(self, timestamp: int) -> None:
        """From now on every version is above `timestamp`, ns, even if the wall clock is set back."""
        self._closed_through = max(self._closed_through, timestamp)
        if self.proposed <= self._closed_through:
            self.proposed = 0
        self._bound()

    def hold(self, gc_horizon: int) -> None:
        """From now on every version of this process is above `gc_horizon`, ns, unless the wall clock disagrees."""
        self._held_through = max(self._held_through, gc_horizon)
        self._bound()

    @property
    def closed_through(self) -> int:
        """The timestamp, ns, that every version is above for good; a proposal may be later."""
        return self._closed_through

    def closing(self) -> int:
        """A timestamp, ns, that this node may close: its wall clock has got there, or it is closed already."""
        return max(self._closed_through, self.proposed, self._wall() if self.gate.is_set else 0)

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
        if not self.gate.admits(proposed):
            return False
        if proposed > self._closed_through:
            self.proposed = proposed
            self._bound()
        return True

    def _drop_what_is_wrong(self) -> None:
        """Forgets what the wall clock disagrees with by now, as `resume` does: no right clock accepts it."""
        self.proposed = self.proposed if self.gate.admits(self.proposed) else 0
        self._held_through = self._held_through if self.gate.admits(self._held_through) else 0
        self._bound()

    def _bound(self) -> None:
        self.lower_bound = max(self._closed_through, self.proposed, self._held_through)
