"""A full disk: what becomes of a write that finds no space, and when there is space again.

    refused      it would leave less than deletions and checkpoints need (headroom.py), and no checkpoint helps
    waits        for a checkpoint that may give space back: one under way, or one of all that there is (`is_due`)
    dropped      events that were not published go, so that their log segments make room

It decides, and the checkpointer makes the checkpoints.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from merklekv.engine.headroom import Headroom
from merklekv.engine.log.retention import Retention
from merklekv.engine.table import Table
from merklekv.errors import Stalled
from merklekv.log_throttle import LogThrottle, StateLog

log = logging.getLogger(__name__)

SPACE_AGAIN: Final = 8  # a disk that was full has space again when this part of what is kept is free beside it
TRY_S: Final = 0.05  # until another checkpoint is made for space, after one that made none; twice as long each time
TRY_MAX_S: Final = 0.2


class FullDisk:
    """Answers the log when it needs space, see `start`.  The caller holds the engine's lock.

    `wake_checkpointer` is called when `is_due` becomes true.  `may_wait`: whether there will be checkpoints.
    """

    def __init__(
        self,
        table: Table,
        retention: Retention,
        wake_checkpointer: Callable[[], None],
        may_wait: Callable[[], bool],
    ) -> None:
        self.headroom = Headroom(table.log.directory, table.log.end_lsn)
        self.is_due = False  # freeze and checkpoint what there is: a write waits for it
        self._path = table.log.directory.parent
        self._table = table
        self._log = table.log
        self._gate = table.gate
        self._retention = retention
        self._wake_checkpointer = wake_checkpointer
        self._may_wait = may_wait
        self._is_full = False  # writes are refused
        self._state = StateLog(log)  # of that
        self._throttle = LogThrottle(log)
        self._is_trying = False  # a checkpoint was made for a write that found no space
        self._try_at = self._try_s = 0.0  # when the next may be, by the monotonic clock, and the wait after it

    def start(self) -> None:
        """From now on writes leave space."""
        self.headroom.measure(self._table.base)
        self.headroom.keep()
        self._log.admits, self._log.make_room = self._admits, self._make_room

    def ask_for_checkpoint(self) -> bool:
        """Has all that there is checkpointed, unless something is being checkpointed; whether there is anything."""
        if self._table.frozen or self._log.is_empty:
            return False
        self.is_due = True
        self._wake_checkpointer()
        return True

    @property
    def needs_checkpoint(self) -> bool:
        """Whether the memtable is frozen before it is full, since the disk is short."""
        return self.is_due or (not self._table.frozen and self.headroom.is_worth_a_checkpoint(self._log.position))

    def refusal(self) -> str:
        """Why writes are refused; empty while the disk has space for them.  Looks whether it has some again."""
        self._look_for_space()
        return f"{self._path}: disk full{self._hint()}" if self._is_full else ""

    def changed(self, keeps: bool) -> None:
        """A checkpoint or a compaction has ended.  `keeps`: makes the reserve file again."""
        self.headroom.measure(self._table.base)
        if keeps:
            self.headroom.keep()
            self._look_for_space()
        self.end_wait()

    def end_wait(self) -> None:
        """Lets writes try again: the checkpoint that they wait for has ended, or cannot be made."""
        if self._is_trying:
            self._is_trying = False
            self._try_at = time.monotonic() + self._try_s
            self._try_s = min(TRY_MAX_S, 2 * self._try_s + TRY_S)
        self.is_due = self._gate.awaits_space = False
        self._gate.update()

    def _admits(self, end_lsn: int, growth: int, urgent: bool) -> bool:
        """Whether the log may go up to `end_lsn`, for which its file grows by so many bytes."""
        if urgent:
            is_blocked = self._gate.checkpoint_shortage is not None
            return self.headroom.admits_urgent(end_lsn, growth, is_blocked)
        admitted = self.headroom.admits(end_lsn, growth)
        if admitted:
            self._look_for_space()
        return admitted

    def _make_room(self, urgent: bool, waits: bool) -> bool:
        """Makes space for a write that finds none; whether there is more now.

        Raises Stalled if the caller `waits` and a checkpoint may make some.
        """
        if waits and self._gate.checkpoint_shortage is None and self._may_wait():
            if urgent or self._may_try:
                self._is_trying = self.ask_for_checkpoint() or self._is_trying
            if self._table.frozen or self.is_due:
                self._gate.awaits_space = True
                self._gate.update()
                raise Stalled("the disk is full, writes wait for a checkpoint")
        if (urgent and self.headroom.release()) or self._drop_retained():
            return True
        if not self.headroom.is_short:
            self.headroom.is_limited = True  # it should have fitted
        if self._is_full or not self._has_space(0):
            self._is_full = True
            self._state.lasts(
                f"{self._path}: disk full{self._hint()}: writes are refused; deletions may use the "
                f"{self.headroom.kept >> 20} MiB that are kept for them"
            )
        return False

    def _hint(self) -> str:
        free = self.headroom.free
        if not self.headroom.is_limited or free < self.headroom.kept:
            return ""
        return f" for this user, though {free >> 20} MiB are free (a quota, or a limit on the size of files)"

    @property
    def _may_try(self) -> bool:
        """Whether a checkpoint of the active memtable may make space: one after each deletion would be costly."""
        is_truncated = self._table.truncation > self._table.base.truncation
        return is_truncated or time.monotonic() >= self._try_at or self.headroom.is_worth_a_try(self._log.position)

    def _drop_retained(self) -> bool:
        """Deletes the oldest segment that only the outbox needs; whether there was one."""
        if not self._retention.delete_segments(self._table.base.checkpoint_lsn, is_full=True):
            return False
        if self._retention.drops_events:
            problem = f"{self._path}: disk full: dropped events that were not published"
            self._throttle.warn("dropped", f"{problem}; other nodes get these writes by exchanges")
        return True

    def _look_for_space(self) -> None:
        if self._is_full and self._has_space(self.headroom.kept // SPACE_AGAIN):
            self._is_full = False
            self._try_s = 0.0
            self._state.is_over(f"{self._path}: there is space again, writes are stored")

    def _has_space(self, size: int) -> bool:
        """Whether small writes are accepted, with so many bytes to spare."""
        return self.headroom.has_space(self._log.end_lsn, size)
