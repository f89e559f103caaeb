"""The checkpointer: when a memtable is frozen, what moves it into the base, and how far writers may run ahead of that.

    freeze       the full memtable and its log segment end at the same moment, and a new pair begins
    checkpoint   the base takes in all sealed segments; their memtables go, and then the segments
    backlog      bytes of memtables that the base has not taken in, less what the running checkpoint has done of them
    compaction   a base that would be much smaller is written anew, and takes the place of the old one

Writers wait while the backlog is more than BACKLOG_TABLES memtables, so memory is bounded.  It falls with the progress
that the checkpoint process reports, so writers go on at that pace.  A compaction ends, unfinished, when they would have
to wait for it.

They also wait where the disk is full, while a checkpoint may give space back: full_disk.py.  compactor.py has what
belongs to a compaction.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from merklekv.engine import failpoints
from merklekv.engine.base.reader import Base
from merklekv.engine.base.writer import BaseWriter
from merklekv.engine.checkpoint.child import CheckpointProcess, ChildDied, checkpoint
from merklekv.engine.checkpoint.compaction import Progress
from merklekv.engine.checkpoint.compactor import Compactor
from merklekv.engine.checkpoint.full_disk import FullDisk
from merklekv.engine.checkpoint.space import frees_much
from merklekv.engine.commit import GroupCommit
from merklekv.engine.directory import DataDirectory
from merklekv.engine.format import SEGMENT_HEADER
from merklekv.engine.log.reader import LogPosition
from merklekv.engine.log.retention import Retention
from merklekv.engine.memtable import Memtable
from merklekv.engine.options import CheckpointMode
from merklekv.engine.table import Table
from merklekv.errors import DiskFull, MerkleKVError, Shortage, StorageFailed
from merklekv.log_throttle import LogThrottle, StateLog
from merklekv.shortage import is_shortage, reason_of, shortage_of
from merklekv.worker_thread import WorkerThread

log = logging.getLogger(__name__)

BACKLOG_TABLES: Final = 2.5  # memtables that are not in the base, the active one included, above which writers wait
FROZEN_TABLES_MAX: Final = 3
RETRY_S: Final = 1.0
IDLE_S: Final = 5.0  # without a write; then a memtable is frozen that is not full
IDLE_LOG_SIZE: Final = 1 << 20  # bytes of log that are left for later
COMPACTION_TABLES_MAX: Final = 2  # frozen memtables: then writers will soon have to wait, and a compaction is cut off
CHILD_DEATHS_MAX: Final = 5  # in a row; then starting again does not cure it, which is said


@dataclass(slots=True)
class Checkpoints:
    """Those that completed in this process."""

    count: int = 0
    size: int = 0  # bytes of log that they put into the base
    seconds: float = 0.0  # that they took
    last_s: float = 0.0  # what the last one took
    last_at: float | None = None  # its end, by the monotonic clock

    def add(self, began: float, ended: float, size: int) -> None:
        """One more, which began and ended then."""
        self.count += 1
        self.size += size
        self.last_s, self.last_at = ended - began, ended
        self.seconds += self.last_s


class Checkpointer:
    """Freezes memtables, has the checkpoint process put them into the base, and deletes the segments.

    Contract: while it runs, the backlog becomes smaller whatever clients do; no segment is deleted that the base or the
    outbox still needs.  A checkpoint process that dies is started again, and a shortage or a defect is waited out; only
    a failed disk and damage are failures of the engine.

    It has a thread, checkpointer, which takes the engine's lock, and after a checkpoint the commit lock before it.  In
    the mode `manual` it has neither thread nor process, and `checkpoint_now` does the work.

    Costs: freezing syncs a directory and a header, 1 to 10 ms, for each memtable.
    """

    def __init__(
        self,
        directory: DataDirectory,
        table: Table,
        retention: Retention,
        commits: GroupCommit,
        memtable_size: int,
        mode: CheckpointMode,
    ) -> None:
        self.memtable_size = memtable_size
        self.child: CheckpointProcess | None = None
        if mode == "process":
            self.child = CheckpointProcess(directory.base, directory.new_base, directory.log, directory.lock_fd)
        self._directory = directory
        self._table = table
        self._log = table.log
        self._retention = retention
        self._gate = table.gate
        self._commits = commits
        self._lock = table.lock
        self._running: list[Memtable] = []  # the frozen memtables that the checkpoint under way takes in
        self._share = 0.0  # of those, done
        self._upto = self._done = 0  # LSNs: the checkpoint that was asked for, and the last that was finished
        self._written = (0, 0, 0)  # what was written when the thread looked last whether the node is idle
        self._deaths = 0  # of the checkpoint process, in a row
        self._blocks = StateLog(log)  # of a checkpoint that a shortage stops
        self._throttle = LogThrottle(log)
        self.finished = Checkpoints()
        self._wake = threading.Condition()
        self.worker = WorkerThread("checkpointer", self._step, self._fail, wake=self._notify, retry_s=RETRY_S)
        self._full_disk = FullDisk(table, retention, self._notify, lambda: not self.worker.is_stopping)
        self._headroom = self._full_disk.headroom
        self._compactor = Compactor(directory, table, self._full_disk, self.child)
        commits.after_commit = self._after_commit
        commits.after_roll_back.append(self._update_backlog)

    def start(self) -> None:
        """Starts the thread and takes up what the last process has left."""
        if self.child is not None:
            self._full_disk.start()
            self.worker.start()
        self.delete_segments()
        if self.child is not None:
            with self._lock:
                self._submit()
            self._freeze_due()

    def stop(self) -> None:
        """Ends the process after the transaction it is in, and the thread; finishes what was sealed."""
        if self.child is None:
            return
        self.worker.stop(0)
        self.child.stop()
        self.worker.stop()
        self.child.close()
        try:
            self._log.finish_sealing()
        except StorageFailed as error:
            self._gate.fail(error)  # or the last commit would claim as synced what is not
            raise

    @property
    def compactions(self) -> int:
        """How often the base was compacted."""
        return self._compactor.done

    @property
    def progress(self) -> float:
        """The share of the running checkpoint that is done; 1 without one."""
        return self._share if self._running else 1.0

    def refusal(self) -> str:
        """Why writes are refused for lack of space; empty while they are not.  The caller holds the engine's lock."""
        return self._full_disk.refusal()

    def release_log(self, position: LogPosition) -> None:
        """The outbox has published everything before `position`: the log may go, once it is in the base, too."""
        self._retention.advance(position)
        self.delete_segments()

    def delete_segments(self) -> None:
        """Deletes the segments that neither the base nor the outbox needs."""
        self._retention.delete_segments(self._table.base.checkpoint_lsn)

    def checkpoint_now(self, then: Callable[[BaseWriter], None] = lambda writer: None) -> None:
        """Freezes the memtable and puts everything into the base, in this thread; in the mode `manual` only.

        `then` changes the base further; this engine does not look at what it does.
        """
        with self._commits.lock, self._lock:
            self._checkpoint_all(then)
            self._compactor.compact_if_due()

    def compact_now(self, progress: Progress) -> None:
        """Puts into the base what the disk has room for, and writes it anew; in the mode `manual` only.

        It may use the space that a node has kept; the next node keeps some again.
        Raises DiskFull, Shortage, Corruption, StorageFailed, OSError.
        """
        with self._commits.lock, self._lock:
            self._headroom.release()
            for _ in range(2):  # the first call leaves the last memtable if too many are frozen
                self._checkpoint_all()
        self.compact_base(progress)

    def compact_base(self, progress: Progress = lambda done, total: None) -> None:
        """Writes the base anew as it is; in the mode `manual` only.  Raises like `compact_now`."""
        with self._commits.lock, self._lock:
            self._compactor.compact(progress)

    def _checkpoint_all(self, then: Callable[[BaseWriter], None] = lambda writer: None) -> None:
        assert self.child is None
        self._commits.write()
        if self._log.position > SEGMENT_HEADER.size:  # no segment without a frame
            self._freeze()
        self._table.base.close()
        try:
            with BaseWriter(self._directory.base) as writer:
                checkpoint(writer, self._directory.log, self._log.lsn)
                then(writer)
        finally:
            self._table.base = Base(self._directory.base)
        self._take_over_base()

    # -- freezing: with the commit lock held ---------------------------------------------------------------------------

    def _after_commit(self) -> None:
        with self._lock:
            self._update_backlog()
        self._freeze_if_due()

    def _freeze_if_due(self) -> None:
        """Freezes the memtable if it is full, or if the base needs it."""
        if self._gate.log_shortage is not None:
            return
        is_full = self._table.active.charged >= self.memtable_size or self._log.position >= self.memtable_size
        is_due = self._table.needs_checkpoint or frees_much(self._table) or self._full_disk.needs_checkpoint
        if is_full or is_due:
            self.freeze()

    def freeze(self) -> None:
        """Freezes the memtable with its segment and starts both anew, unless FROZEN_TABLES_MAX are frozen."""
        if len(self._table.frozen) < FROZEN_TABLES_MAX:
            self._freeze()

    def _freeze(self) -> None:
        with self._lock:
            try:
                self._commits.write()  # all of the memtable belongs into the segment
                self._directory.require_in_place()
                following = Memtable(self._log.end_lsn)  # before the segment begins: memory may be short
                self._seal()
            except (Shortage, MemoryError) as error:
                if self._gate.log_shortage is None:  # else a roll-back, which was not of what this thread did
                    self._blocked(shortage_of(error, f"{self._directory.path}: cannot freeze the memtable"))
                return
            except StorageFailed as error:
                self._gate.fail(error)
                raise
            if not self._running:  # else that one's progress tells
                self._unblocked()
            self._full_disk.is_due = False
            failpoints.reached("freeze.sealed")
            self._table.freeze(following)
            if self.child is None:
                self._log.finish_sealing()
            elif len(self._table.frozen) >= COMPACTION_TABLES_MAX:
                self.child.cut_compaction()
            self._submit()

    def _seal(self) -> None:
        try:
            self._log.seal()
        except DiskFull:
            if not self._headroom.release():
                raise
            self._log.seal()

    def _freeze_due(self) -> None:
        """Freezes what is due although no commit may come: writers may wait for room, which only a checkpoint makes."""
        with self._commits.lock, self._lock:
            # A thread with pending changes commits them soon and freezes then, unless it waits for room.  A commit here
            # would split them: the second half may be rolled back.
            if self._gate.failure is None and (self._gate.stalled or not self._commits.is_pending):
                self._freeze_if_due()
            if not self._table.frozen:
                self._full_disk.end_wait()

    # -- back-pressure: with the engine's lock held --------------------------------------------------------------------

    def _update_backlog(self) -> None:
        backlog: float = self._table.active.charged
        if self._table.frozen:
            backlog += sum(table.charged for table in self._table.frozen)
            backlog -= self._share * sum(table.charged for table in self._running)
        is_behind = backlog > BACKLOG_TABLES * self.memtable_size
        if is_behind != self._gate.is_behind:
            self._gate.is_behind = is_behind
            self._gate.update()

    def _blocked(self, error: Shortage) -> None:
        with self._lock:
            self._blocks.lasts(f"{error}; writes go on while memory lasts")
            self._gate.checkpoint_shortage = error
            self._full_disk.end_wait()

    def _unblocked(self) -> None:
        if self._gate.checkpoint_shortage is not None:
            self._gate.checkpoint_shortage = None
            self._blocks.is_over(f"{self._directory.path}: checkpoints go on")

    # -- a checkpoint --------------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        """Asks for a checkpoint of everything that is frozen, unless one is running."""
        if self.child is not None and self._table.frozen and not self._running:
            self._running, self._share = list(self._table.frozen), 0.0
            with self._wake:
                self._upto = self._log.lsn
                self._wake.notify()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _fail(self, error: StorageFailed) -> None:
        if not self.worker.is_stopping:  # else the last commit is still possible
            self._gate.fail(error)

    def _step(self) -> None:
        """Wait until a checkpoint is asked for, and try it once; with none to make, see whether a compaction is due."""
        with self._wake:
            wait_s = min(self._compactor.look_at - time.monotonic(), IDLE_S)
            self._wake.wait_for(
                lambda: self.worker.is_stopping or self._upto > self._done or self._full_disk.is_due, wait_s
            )
        if self.worker.is_stopping:
            return
        if self._upto > self._done:
            self._checkpoint(self._upto)
        elif self._full_disk.is_due:
            self._freeze_due()
        elif time.monotonic() >= self._compactor.look_at:
            self._freeze_due()
            self._compactor.compact_if_due()
        else:
            self._freeze_if_idle()

    def _freeze_if_idle(self) -> None:
        """Freezes what is left in the log when nothing was written for a while: it takes disk, and time at a start."""
        table, log_ = self._table, self._log
        written = (log_.sequence, table.active.lsn, table.active.size)
        if written == self._written and log_.position >= IDLE_LOG_SIZE and self._gate.log_shortage is None:
            with self._commits.lock, self._lock:
                if self._gate.failure is None and not self._commits.is_pending and not table.frozen:
                    self.freeze()
        self._written = written

    def _checkpoint(self, upto: int) -> None:
        assert self.child is not None
        releases = self._headroom.releases
        began, before = time.monotonic(), self._table.base.checkpoint_lsn
        self._log.finish_sealing()
        try:
            self.child.checkpoint(upto, self._progressed)
            self._take_over_base()
            self._freeze_due()
        except ChildDied as death:
            self._on_death(death)
        except Exception as error:
            # LMDB calls a write that a full disk has cut short an input/output error; since then, a write may have
            # given up the reserve.
            if isinstance(error, StorageFailed) and self._headroom.releases > releases:
                return
            if is_shortage(error):
                self._on_shortage(shortage_of(error, "cannot checkpoint"))
                return
            if isinstance(error, (MerkleKVError, OSError)):
                raise StorageFailed(reason_of(error)) from error
            self._blocked(Shortage(f"the checkpointer failed: {error!r}"))
            raise  # a defect
        else:
            self._deaths, self._done = 0, upto
            self.finished.add(began, time.monotonic(), upto - before)
            self._compactor.checkpointed()

    def _on_shortage(self, shortage: Shortage) -> None:
        """Has the checkpoint made again: at once if the reserve was there for it, else later, then of all there is."""
        with self._lock:
            if isinstance(shortage, DiskFull) and self._headroom.release():
                return
        self._blocked(shortage)
        if isinstance(shortage, DiskFull):
            with self._commits.lock, self._lock:  # with what deletes records, it needs less space
                if self._headroom.is_worth_a_checkpoint(self._log.position) and self._gate.log_shortage is None:
                    self.freeze()
                self._running, self._share = list(self._table.frozen), 0.0
                self._upto = self._log.lsn
        raise shortage

    def _on_death(self, death: ChildDied) -> None:
        """Wait before the checkpoint process is started again."""
        self._deaths += 1
        if self._deaths >= CHILD_DEATHS_MAX:
            cause = ": most likely memory is short" if death.killed else ""
            problem = f"the checkpoint process died {self._deaths} times in a row, last: {death}{cause}"
            self._blocked(Shortage(problem))
        if not self.worker.wait(RETRY_S):
            text = "the checkpoint process died (%(reason)s), starting it again"
            self._throttle.warn("died", text, fields={"reason": str(death)})

    def _progressed(self, share: float) -> None:
        with self._lock:
            if share > self._share:  # less or the same where it was cut off and begun again
                self._share = share
                self._unblocked()
            with suppress(Shortage):  # an old snapshot only keeps the writer from reusing pages
                self._table.base.refresh()
                self._headroom.measure(self._table.base)
            self._update_backlog()

    def _take_over_base(self) -> None:
        """Continues from the base that a checkpoint has made."""
        failpoints.reached("checkpointer.told")
        with self._lock:
            records = sum(len(table.records) for table in self._running)
            self._table.take_over_base()
            self._unblocked()
            self._running = []
            self._submit()
            self._update_backlog()
        log.debug(
            "checkpoint: %(records)d records are in the base, which holds the log up to LSN %(lsn)d",
            {"records": records, "lsn": self._table.base.checkpoint_lsn},
        )
        failpoints.reached("checkpointer.before_delete")
        self.delete_segments()
        with self._lock:
            self._full_disk.changed(keeps=self.child is not None)
