"""The checkpointer: when a memtable is frozen, what moves it into the base, and how far writers may run ahead of that.

    freeze       the full memtable and its log segment end at the same moment, and a new pair begins
    checkpoint   the base takes in all sealed segments; their memtables go, and then the segments
    backlog      bytes of memtables that the base has not taken in, less what the running checkpoint has done of them
    compaction   a base that would be much smaller is written anew, and takes the place of the old one

Writers wait while the backlog is more than BACKLOG_TABLES memtables, so memory is bounded.  It falls with the progress
that the checkpoint process reports, so writers go on at that pace.  A compaction ends, unfinished, when they would have
to wait for it.

They also wait where the disk is full, while a checkpoint may give space back; see headroom.py.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from merklekv.engine import failpoints
from merklekv.engine.access import damage
from merklekv.engine.base import Base, BaseWriter
from merklekv.engine.checkpoint.child import CheckpointProcess, ChildDied, checkpoint
from merklekv.engine.checkpoint.compaction import Progress, remove, write_compacted
from merklekv.engine.checkpoint.space import CompactionRule, NoRoom, frees_much, require_room, room_needed
from merklekv.engine.commit import GroupCommit
from merklekv.engine.directory import DataDirectory
from merklekv.engine.format import SEGMENT_HEADER
from merklekv.engine.headroom import Headroom
from merklekv.engine.log.reader import LogPosition
from merklekv.engine.log.retention import Retention
from merklekv.engine.log.segment import segment_path
from merklekv.engine.memtable import Memtable
from merklekv.engine.options import CheckpointMode
from merklekv.engine.table import Table
from merklekv.errors import DiskFull, MerkleKVError, Shortage, Stalled, StorageFailed
from merklekv.shortage import is_shortage, shortage_of, suppress_shortage
from merklekv.worker_thread import WorkerThread

log = logging.getLogger(__name__)

BACKLOG_TABLES: Final = 2.5  # memtables that are not in the base, the active one included, above which writers wait
FROZEN_TABLES_MAX: Final = 3
RETRY_S: Final = 1.0
IDLE_S: Final = 5.0  # without a write; then a memtable is frozen that is not full
IDLE_LOG_SIZE: Final = 1 << 20  # bytes of log that are left for later
COMPACTION_TABLES_MAX: Final = 2  # frozen memtables: then writers will soon have to wait, and a compaction is cut off
COMPACTION_RETRY_S: Final = 10.0  # until one that could not be finished is tried again; twice as long each time
COMPACTION_RETRY_MAX_S: Final = 600.0
SPACE_AGAIN: Final = 8  # a disk that was full has space again when this part of what is kept is free beside it
TRY_S: Final = 0.05  # until another checkpoint is made for space, after one that made none; twice as long each time
TRY_MAX_S: Final = 0.2
CHILD_DEATHS_MAX: Final = 5  # in a row; then something is wrong that starting again does not cure


class Checkpointer:
    """Freezes memtables, has the checkpoint process put them into the base, and deletes the segments.

    Contract: while it runs, the backlog becomes smaller whatever clients do; no segment is deleted that the base or the
    outbox still needs.  A checkpoint process that dies is started again, and a shortage is waited out; anything else is
    a failure of the engine.

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
        self.compactions = 0
        self._rule = CompactionRule()
        self._look_at = 0.0  # when the space is looked at next, by the monotonic clock
        self._not_before = 0.0  # ... if a checkpoint is finished earlier
        self._retry_s = COMPACTION_RETRY_S
        self._put_off_for: type[Exception] | None = None  # why the last compaction was not finished
        self._is_full = False  # writes are refused, and the log says so
        self._is_trying = False  # a checkpoint was made for a write that found no space
        self._try_at = self._try_s = 0.0  # when the next may be, by the monotonic clock, and the wait after it
        self._space_is_due = False  # freeze and checkpoint what there is: the disk is short
        self._headroom = Headroom(directory.log, table.log.end_lsn)
        self._wake = threading.Condition()
        self.worker = WorkerThread("checkpointer", self._step, self._fail, wake=self._notify, retry_s=RETRY_S)
        commits.after_commit = self._after_commit
        commits.after_roll_back.append(self._update_backlog)

    def start(self) -> None:
        """Starts the thread and takes up what the last process has left."""
        if self.child is not None:
            self._headroom.measure(self._table.base)
            self._headroom.keep()
            self._log.admits, self._log.make_room = self._admits, self._make_room
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
    def progress(self) -> float:
        """The share of the running checkpoint that is done; 1 without one."""
        return self._share if self._running else 1.0

    def release_log(self, position: LogPosition) -> None:
        """The outbox has published everything before `position`: the log may go, once it is in the base, too."""
        self._retention.advance(position)
        self.delete_segments()

    def delete_segments(self) -> None:
        """Deletes the segments that neither the base nor the outbox needs."""
        with suppress_shortage():  # after the next checkpoint it tries again
            self._unlink(self._retention.deletable(self._table.base.checkpoint_lsn))

    def _unlink(self, lsns: list[int]) -> None:
        for lsn in lsns:
            segment_path(self._directory.log, lsn).unlink(missing_ok=True)

    def checkpoint_now(self, then: Callable[[BaseWriter], None] = lambda writer: None) -> None:
        """Freezes the memtable and puts everything into the base, in this thread; in the mode `manual` only.

        `then` changes the base further; this engine does not look at what it does.
        """
        with self._commits.lock, self._lock:
            self._checkpoint_all(then)
            self._compact_if_due()

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
            self._compact(progress)

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
        is_full = self._table.active.size >= self.memtable_size or self._log.position >= self.memtable_size
        is_due = self._table.needs_checkpoint or frees_much(self._table) or self._needs_space
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
                self._seal()
            except Shortage as error:
                if self._gate.log_shortage is None:  # else a roll-back, which was not of what this thread did
                    self._blocked(error)
                return
            except StorageFailed as error:
                self._gate.fail(error)
                raise
            if not self._running:  # else that one's progress tells
                self._unblocked()
            self._space_is_due = False
            failpoints.reached("freeze.sealed")
            self._table.freeze(self._log.lsn)
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
                self._end_wait_for_space()

    # -- a full disk: with the engine's lock held ----------------------------------------------------------------------

    def _admits(self, end_lsn: int, growth: int, urgent: bool) -> bool:
        """Whether the log may go up to `end_lsn`, for which its file grows by so many bytes."""
        if urgent:
            is_blocked = self._gate.checkpoint_shortage is not None
            return self._headroom.admits_urgent(end_lsn, growth, is_blocked)
        admitted = self._headroom.admits(end_lsn, growth)
        if self._is_full and admitted:
            self._look_for_space()
        return admitted

    def _make_room(self, urgent: bool, waits: bool) -> bool:
        """Makes space for a write that finds none; whether there is more now.

        Raises Stalled if the caller `waits` and a checkpoint may make some.
        """
        if waits and self._gate.checkpoint_shortage is None and not self.worker.is_stopping:
            if not self._table.frozen and not self._log.is_empty and (urgent or self._may_try):
                self._space_is_due = self._is_trying = True
                self._notify()
            if self._table.frozen or self._space_is_due:
                self._gate.awaits_space = True
                self._gate.update()
                raise Stalled("the disk is full, writes wait for a checkpoint")
        if (urgent and self._headroom.release()) or self._delete_retained():
            return True
        if not self._is_full and not self._has_space(0):
            self._is_full = True
            log.error(
                "%s: disk full: writes are refused; deletions may use the %d MiB that are kept for them",
                self._directory.path,
                self._headroom.kept >> 20,
            )
        return False

    @property
    def _may_try(self) -> bool:
        """Whether a checkpoint of the active memtable may make space: one after each deletion would be costly."""
        is_truncated = self._table.truncation > self._table.base.truncation
        return is_truncated or time.monotonic() >= self._try_at or self._headroom.is_worth_a_try(self._log.position)

    def _delete_retained(self) -> bool:
        """Deletes the oldest segment that only the outbox needs; whether there was one."""
        with suppress_shortage():
            retained = self._retention.deletable(self._table.base.checkpoint_lsn, is_full=True)
            self._unlink(retained)
            if retained:
                log.warning(
                    "%s: disk full: dropped events that were not published; other nodes get these writes by exchanges",
                    self._directory.path,
                )
                return True
        return False

    def _look_for_space(self) -> None:
        if self._is_full and self._has_space(self._headroom.kept // SPACE_AGAIN):
            self._is_full = False
            self._try_s = 0.0
            log.warning("%s: there is space again, writes are stored", self._directory.path)

    def _has_space(self, size: int) -> bool:
        """Whether small writes are accepted, with so many bytes to spare."""
        return self._headroom.has_space(self._log.end_lsn, size)

    def _space_changed(self) -> None:
        """A checkpoint or a compaction has ended."""
        with self._lock:
            self._headroom.measure(self._table.base)
            if self.child is not None:
                self._headroom.keep()
                self._look_for_space()
            self._end_wait_for_space()

    def _end_wait_for_space(self) -> None:
        if self._is_trying:
            self._is_trying = False
            self._try_at = time.monotonic() + self._try_s
            self._try_s = min(TRY_MAX_S, 2 * self._try_s + TRY_S)
        self._space_is_due = self._gate.awaits_space = False
        self._gate.update()

    @property
    def _needs_space(self) -> bool:
        """Whether the memtable is frozen before it is full, since the disk is short."""
        return self._space_is_due or (
            not self._table.frozen and self._headroom.is_worth_a_checkpoint(self._log.position)
        )

    # -- back-pressure: with the engine's lock held --------------------------------------------------------------------

    def _update_backlog(self) -> None:
        done = self._share * sum(table.size for table in self._running)
        backlog = sum(table.size for table in self._table.tables) - done
        self._gate.is_behind = backlog > BACKLOG_TABLES * self.memtable_size
        self._gate.update()

    def _blocked(self, error: Shortage) -> None:
        with self._lock:
            if self._gate.checkpoint_shortage is None:
                log.error("%s; writes go on while memory lasts", error)
            self._gate.checkpoint_shortage = error
            self._end_wait_for_space()

    def _unblocked(self) -> None:
        if self._gate.checkpoint_shortage is not None:
            self._gate.checkpoint_shortage = None
            log.warning("%s: checkpoints go on", self._directory.path)

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
            wait_s = min(self._look_at - time.monotonic(), IDLE_S)
            self._wake.wait_for(
                lambda: self.worker.is_stopping or self._upto > self._done or self._space_is_due, wait_s
            )
        if self.worker.is_stopping:
            return
        if self._upto > self._done:
            self._checkpoint(self._upto)
        elif self._space_is_due:
            self._freeze_due()
        elif time.monotonic() >= self._look_at:
            is_counting = self._table.is_counting  # after a start; until then nobody knows what is gone
            self._look_at = time.monotonic() + RETRY_S if is_counting else math.inf
            self._freeze_due()
            self._compact_if_due()
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
            if isinstance(error, MerkleKVError):
                raise StorageFailed(str(error)) from error
            log.exception("the checkpointer failed")
            raise StorageFailed(f"the checkpointer failed: {error!r}") from error
        else:
            self._deaths, self._done = 0, upto
            self._rule.observe(self._table.base)
            self._look_at = self._not_before

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
            problem = f"the checkpoint process died {self._deaths} times in a row, last: {death}"
            if not death.killed:
                raise StorageFailed(problem) from death
            self._blocked(Shortage(f"{problem}: most likely memory is short"))
        if not self.worker.wait(RETRY_S):
            log.warning("the checkpoint process died (%s), starting it again", death)

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
            self._table.take_over_base()
            self._unblocked()
            self._running = []
            self._submit()
            self._update_backlog()
        failpoints.reached("checkpointer.before_delete")
        self.delete_segments()
        self._space_changed()

    # -- a compaction: by the thread that makes checkpoints, so nobody writes to the base meanwhile --------------------

    def _compact_if_due(self) -> None:
        """What keeps it from that is logged when it is new, and the base stays as it is."""
        try:
            if self._rule.is_due(self._table.base):
                self._compact()
                self._put_off_for, self._not_before, self._retry_s = None, 0.0, COMPACTION_RETRY_S
        except (MerkleKVError, ChildDied, OSError) as error:
            remove(self._directory.new_base)
            self._space_changed()
            if self._gate.failure is not None:
                raise
            if self.worker.is_stopping:
                return
            if type(error) is not self._put_off_for:
                log.warning("the compaction of the base was not finished: %s; it is tried again later", error)
            self._put_off_for = type(error)
            self._look_at = time.monotonic() + self._retry_s
            self._not_before = 0.0 if isinstance(error, NoRoom) else self._look_at  # a checkpoint may make room
            self._retry_s = min(2 * self._retry_s, COMPACTION_RETRY_MAX_S)

    def _compact(self, progress: Progress = lambda done, total: None) -> None:
        directory, began = self._directory, time.monotonic()
        size_before = sum(self._table.base.space)
        directory.require_movable_base()
        remove(directory.old_base)
        needed = room_needed(self._table.base)
        with self._lock:
            self._headroom.lend(needed)
        require_room(self._table.base)
        if self.child is None:
            write_compacted(self._table.base, directory.new_base, progress)
        else:
            self.child.compact()
        self._swap_base()
        self._space_changed()  # not before: what had the old base open kept its space
        self.compactions += 1
        size = sum(self._table.base.space)
        self._rule.compacted(self._table.base)
        seconds = time.monotonic() - began
        log.info("compacted the base in %.1f s: %d MiB, before %d MiB", seconds, size >> 20, size_before >> 20)

    def _swap_base(self) -> None:
        """Puts the new base in the place of the old one.  Raises OSError, Shortage, Corruption with nothing changed."""
        failpoints.reached("compaction.written")
        old = self._table.base
        new = Base(self._directory.new_base)
        if (new.checkpoint_lsn, new.live, new.dead) != (old.checkpoint_lsn, old.live, old.dead):
            new.close()
            raise damage(f"{new.path}: is not what was written")
        try:
            with self._lock:
                self._directory.swap_base()
                new.path = self._directory.base
                self._table.base = new  # the old one is closed with the last snapshot of it: a scrub may have one
            self._directory.finish_swap()
        except StorageFailed as error:
            self._gate.fail(error)
            raise
