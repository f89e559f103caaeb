"""The write gate: whether the engine takes a write now, and if not, why.

Each reason has one owner, which sets it and takes it back:

    reason               owner           a write raises    ends
    failure              any             that              never: what the disk holds is unknown
    log_shortage         group commit    Shortage          when the disk takes a probe
    metadata_shortage    group commit    Shortage          when the pending metadata is in the log
    is_behind            checkpointer    Stalled           when checkpoints have caught up
    awaits_space         checkpointer    Stalled           when the checkpoint that may give space back has ended
    checkpoint_shortage  checkpointer    -                 but with is_behind: Shortage, for waiting does not help

A roll-back also closes the gate for each thread of that moment, until its next `commit` has raised: what the thread
wrote may be gone, so what it writes next must not be stored.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from merklekv.errors import DiskFull, MerkleKVError, Shortage, Stalled
from merklekv.log_throttle import StateLog

log = logging.getLogger(__name__)

_ROLLED_BACK: Final = "writes that were not acknowledged are rolled back, reads go on"
PROBE_INTERVAL_S: Final = 0.1  # a probe writes to the disk, with the engine's lock held


class WriteGate:
    """Says whether writes are taken.  The caller holds the engine's lock, but to read an attribute.

    Cost: a write reads `closed`.  After a roll-back it stays set while any thread of that moment has not committed
    since; then a write costs 0.2 us more.
    """

    def __init__(self, path: Path, lock: "threading.RLock", probe: Callable[[], None]) -> None:
        """`probe` raises Shortage while the log cannot be written."""
        self.closed = False  # a write has to call `require_open`
        self.stalled = False  # no thread may write
        self.failure: MerkleKVError | None = None
        self.log_shortage: Shortage | None = None
        self.metadata_shortage: Shortage | None = None
        self.checkpoint_shortage: Shortage | None = None
        self.is_behind = False
        self.awaits_space = False
        self.rolled_back = Shortage()  # what `commit` raises in an affected thread
        self._affected: set[int] = set()  # threads of a roll-back whose `commit` has not raised since
        self._path = path
        self._log = StateLog(log)  # of the log shortage
        self._probe = probe
        self._probe_at = 0.0  # no probe before that, by the monotonic clock
        self._opened = threading.Condition(lock)

    @property
    def makes_wait(self) -> bool:
        """Whether a write would raise Stalled now: waiting helps."""
        return self.stalled and self._shortage is None and self.failure is None

    @property
    def is_affected(self) -> bool:
        """Whether changes of this thread may have been rolled back since its last `commit`."""
        return bool(self._affected) and threading.get_ident() in self._affected

    def require_open(self) -> None:
        """Raises Stalled, Shortage or StorageFailed while no write is taken.  Probes the log after a log shortage."""
        if self.is_affected:
            raise self.rolled_back
        self.probe()
        if not self.stalled:
            return
        if self.failure is not None:
            raise self.failure
        if self._shortage is not None:
            raise _refusal(self._shortage)
        raise Stalled("checkpoints are behind, writes wait for them")

    def probe(self) -> None:
        """Ends the log shortage if the log can be written again.  Looks at most once in PROBE_INTERVAL_S."""
        if self.log_shortage is None or time.monotonic() < self._probe_at:
            return
        self._probe_at = time.monotonic() + PROBE_INTERVAL_S
        try:
            self._probe()
        except Shortage:
            self._log.lasts(f"{self.log_shortage}; {_ROLLED_BACK}")
            return
        self.log_shortage = None
        self._log.is_over(f"{self._path}: there is room again, writes are stored")
        self.update()

    def update(self) -> None:
        """Opens or closes the gate: call it when a reason has changed."""
        refused = self.failure or self.log_shortage or self.metadata_shortage
        stalled = refused is not None or self.is_behind or self.awaits_space
        if self.stalled and not stalled:
            self._opened.notify_all()
        self.stalled = stalled
        self.closed = stalled or bool(self._affected)

    def wait(self, timeout_s: float) -> bool:
        """Waits until writes are not stalled; False when the time is over."""
        with self._opened:
            return self._opened.wait_for(lambda: not self.stalled, timeout_s)

    def fail(self, error: MerkleKVError) -> None:
        """Makes all commits and writes raise from now on.  From any thread."""
        with self._opened:
            if self.failure is None:
                log.critical("%(reason)s: stopping, since what the disk holds is unknown", {"reason": str(error)})
                self.failure = error
            self.update()

    def roll_back(self, shortage: Shortage) -> None:
        """Everything that was not committed is gone: affects all threads but this one, which gets the error now."""
        self._log.lasts(f"{shortage}; {_ROLLED_BACK}")
        self.log_shortage = shortage
        self._probe_at = 0.0
        self.rolled_back = _refusal(shortage)
        self._affected |= sys._current_frames().keys() - {threading.get_ident()}
        self.update()

    def acknowledge(self) -> None:
        """This thread gets the error, or had no changes, so it may write again."""
        with self._opened:
            self._affected.discard(threading.get_ident())
            self.update()

    @property
    def refusal(self) -> str:
        """Why writes are refused; empty while they are taken, or only wait."""
        refused = self.failure or self._shortage
        return str(refused) if self.stalled and refused is not None else ""

    @property
    def _shortage(self) -> Shortage | None:
        return self.log_shortage or self.metadata_shortage or self.checkpoint_shortage


def _refusal(shortage: Shortage) -> Shortage:
    """The error as clients get it; the log says more."""
    if isinstance(shortage, DiskFull):
        return DiskFull("disk full, write not stored")
    return Shortage("resource shortage, write not stored")
