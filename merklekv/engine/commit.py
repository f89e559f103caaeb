"""Group commit: when what was written becomes durable.

    pending entries    what the table has appended to the log since the last frame, in memory
    frame              all pending entries of a moment, of all threads, as one write to the disk

Several threads may commit at once: one leads, the others find, once they hold the commit lock, that their entries are
on disk.  A frame that meets a shortage is rolled back: the log is cut to its last good frame, and the table is made
anew from it.  A failed write or sync is fatal, because what the disk holds is unknown.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from merklekv.engine.log.retention import Retention
from merklekv.engine.log.segment import LogFrame
from merklekv.engine.options import Durability
from merklekv.engine.recovery import replay
from merklekv.engine.table import Table
from merklekv.errors import Shortage, StorageFailed
from merklekv.pause import pause
from merklekv.shortage import is_shortage, reason_of, shortage_of
from merklekv.worker_thread import WorkerThread

log = logging.getLogger(__name__)

ROLL_BACKS_KEPT: Final = 64
ROLL_BACK_PATIENCE_S: Final = 10.0  # with a shortage; nobody is served meanwhile, and the process ends behind it
ROLL_BACK_POLL_S: Final = 0.1
SYNC_INTERVAL_S: Final = 0.5  # from start to start: the other half of the second is for the sync itself


class GroupCommit:
    """Makes the pending entries of a table durable, and rolls them back where that cannot be.

    Contract: when `commit` returns, everything that any thread did before the call is on disk (`always`), in the kernel
    and on disk within a second (`everysec`), or in the kernel (`never`); and nothing that this thread did since its
    last `commit` was rolled back.

    It takes `lock` (of commits; public, for what must not run beside one) and then the engine's.  With `everysec` it
    has a thread, log-sync.  It does not decide when a memtable is full: `after_commit` does, with the commit lock held.

    Costs: one write and, with `always`, one fdatasync for all entries; a roll-back as much as a start.
    """

    def __init__(self, path: Path, table: Table, retention: Retention, durability: Durability) -> None:
        self.durability = durability
        self.lock = threading.Lock()
        self.roll_backs = 0  # how often changes were rolled back
        self._rolled_back: deque[range] = deque(maxlen=ROLL_BACKS_KEPT)  # the frames of each, oldest first
        self._stored_below = 0  # frames below this number are stored, or were rolled back
        self.after_commit: Callable[[], None] = lambda: None
        self.on_committed: Callable[[LogFrame], None] = lambda frame: None  # called with the commit lock held
        self.after_roll_back: list[Callable[[], None]] = []  # called with both locks held
        self._path = path
        self._table = table
        self._log = table.log
        self._retention = retention
        self._gate = table.gate
        self._engine_lock = table.lock
        self._abandoned: Shortage | None = None  # why what is pending must not be stored
        self.committed = table.log.appended  # entries that frames hold, of all that were ever appended
        self._first: dict[bytes, bytes] = {}  # metadata entries of `put_metadata_first` that no frame has yet
        self._pending: dict[bytes, bytes] = {}  # those that found no room: they come before any write
        self._sync_due = 0.0  # monotonic clock
        self.worker = WorkerThread("log-sync", self._sync_regularly, self._gate.fail)

    def start(self) -> None:
        """Starts the thread, if the durability needs one."""
        if self.durability == "everysec":
            self._sync_due = time.monotonic() + SYNC_INTERVAL_S
            self.worker.start()

    def finish(self) -> None:
        """Commits and syncs at the end; an empty frame claims that as synced.  Raises StorageFailed."""
        if self._gate.failure is not None:
            return
        with self.lock:
            try:
                self.write()
            except Shortage as error:
                log.error("%s: %s; what was not acknowledged is not stored", self._path, error)
            log_ = self._log
            log_.sync()
            if log_.appended and log_.synced_lsn == log_.end_lsn:
                with suppress(Shortage):  # then damage of the last data frame looks like a torn write
                    self._table.reserve(0, urgent=True, waits=False)
                    log_.write(log_.take())
                    log_.sync()

    def commit(self) -> None:
        """Returns when everything done before the call, by any thread, is durable.

        Raises Shortage when changes since this thread's last `commit` may have been rolled back, by any thread: no
        reply that has seen them may be sent.  Raises StorageFailed.
        """
        mark = self._log.appended
        gate = self._gate
        if mark == self.committed and not (gate.closed and (gate.stalled or gate.is_affected)):
            return
        with self.lock:
            if gate.failure is not None:
                raise gate.failure
            if gate.is_affected:
                gate.acknowledge()
                raise gate.rolled_back
            if self.committed < mark or gate.stalled:  # stalled: what found no room is tried again
                self.write()
                with self._engine_lock:  # not beside an `mset`, which would then store half
                    gate.probe()
                    if gate.metadata_shortage is not None:
                        self._put_pending_metadata()
                self.after_commit()

    def begin(self) -> None:
        """Call this when this thread has no uncommitted changes: its next `commit` then ignores earlier roll-backs."""
        if self._gate.is_affected:
            with self.lock:
                self._gate.acknowledge()

    def flush(self) -> None:
        """Commits, and syncs whatever the durability.  Raises what `commit` raises."""
        self.commit()
        if self._log.written_lsn > self._log.synced_lsn:
            self._sync()

    @property
    def is_pending(self) -> bool:
        """Whether a commit has something to write."""
        return self._log.appended != self.committed

    @property
    def sync_late_s(self) -> float:
        """By how much the next regular sync, or the one in hand, is late; 0 without them."""
        return max(0.0, time.monotonic() - self._sync_due) if self.worker.is_alive else 0.0

    @property
    def sync_is_due(self) -> bool:
        """Whether the next commit will wait for the disk; what is done before it shares the wait."""
        return self._log.appended != self.committed and self.durability == "always"

    def write(self) -> None:
        """Writes the pending entries, with `always` onto the disk.  The caller holds the commit lock."""
        log_ = self._log
        try:
            with self._engine_lock:
                mark = log_.appended
                if mark == self.committed:
                    return
                if self._abandoned is not None:
                    raise self._abandoned
                number = log_.frame
                frame = log_.take()
            log_.write(frame)
        except (Shortage, MemoryError) as error:
            self._roll_back(error)
            raise self._gate.rolled_back from error
        except StorageFailed as error:
            self._gate.fail(error)
            raise
        except BaseException:  # Ctrl-C in a program that uses the library: no frame, or part of one, is there
            self._gate.fail(StorageFailed(f"{self._path}: interrupted while it was written to: open it again"))
            raise
        if self.durability == "always":
            self._sync()
        self.committed = mark
        self._stored_below = number + 1
        if self._first:
            self._first.clear()
        self._retention.committed(frame)
        self.on_committed(frame)

    def frames_rolled_back(self, since: int) -> list[range]:
        """The frames (`Log.frame`) of all roll-backs but the first `since`, or more, where these are many."""
        with self._engine_lock:
            count = self.roll_backs - since
            found = list(self._rolled_back)[-count:] if count else []
            return found if len(found) == count else [range(found[-1].stop)]

    def abandon(self, cause: BaseException) -> None:
        """Has the next commit roll everything pending back.  The caller holds the engine's lock."""
        self._abandoned = shortage_of(cause, str(self._path))

    def _roll_back(self, cause: Exception) -> None:
        """Restores the table from the log, whose last frame could not be written.  The caller holds the commit lock."""
        shortage = shortage_of(cause, str(self._path))
        with self._engine_lock:
            lost = range(self._stored_below, self._log.frame + 1)
            try:
                self._log.take_back()
                self._restore_table()
            except Exception as error:
                failure = StorageFailed(f"{self._path}: cannot roll writes back: {reason_of(error)}")
                self._gate.fail(failure)
                raise failure from error
            self._abandoned = None
            self._gate.roll_back(shortage)
            self._pending.update(self._first)
            self._put_pending_metadata()
            self._stored_below = lost.stop
            self._rolled_back.append(lost)
            self.roll_backs += 1
            for call in self.after_roll_back:
                call()
            self.committed = self._log.appended  # last: a thread that reads it finds the rest in place

    def _restore_table(self) -> None:
        """Makes the table anew from the log; with a shortage again, for a while."""
        deadline = time.monotonic() + ROLL_BACK_PATIENCE_S
        while True:
            try:
                replayed = replay(self._log.directory, self._table.base, self._table.segments_to_replay())
                self._log.resume(replayed.sequence)
                return self._table.restore(replayed)
            except Exception as error:
                if not is_shortage(error) or time.monotonic() > deadline:
                    raise
            pause(ROLL_BACK_POLL_S)

    # -- metadata entries that come before any write -------------------------------------------------------------------

    def put_metadata_first(self, name: bytes, value: bytes) -> None:
        """Stores a metadata entry before anything else is written: while it finds no room, writes are refused."""
        with self._engine_lock:
            self._first[name] = self._pending[name] = value
            self._put_pending_metadata()
            if self._pending:
                log.error("%s: %s; reads go on, make room", self._path, self._gate.metadata_shortage)

    def put_metadata(self, name: bytes, value: bytes) -> None:
        """Stores a metadata entry, also in the place of a pending one.  Raises InvalidArgument, Shortage."""
        with self._engine_lock:
            self._table.put_metadata(name, value)
            self._pending.pop(name, None)

    def metadata_or_pending(self, name: bytes) -> bytes | None:
        """The metadata entry of this name, or what it will be once there is room."""
        return self._pending.get(name, self._table.metadata.get(name))

    def _put_pending_metadata(self) -> None:
        gate = self._gate
        gate.metadata_shortage = gate.log_shortage if self._pending else None
        if gate.log_shortage is None:
            for name, value in list(self._pending.items()):
                try:
                    self.put_metadata(name, value)
                except Shortage as error:
                    gate.metadata_shortage = error
        gate.update()

    # -- syncing -------------------------------------------------------------------------------------------------------

    def _sync(self) -> None:
        try:
            self._log.sync()
        except StorageFailed as error:
            self._gate.fail(error)
            raise

    def _sync_regularly(self) -> None:
        if self.worker.wait(max(0.0, self._sync_due - time.monotonic())):
            return
        self._sync_due = time.monotonic() + SYNC_INTERVAL_S
        if self._log.written_lsn > self._log.synced_lsn:
            self._log.sync()
