"""When what a node holds becomes durable, and how it moves from memory into the base.

    commit    -> one write and one fdatasync for everything since the last; a full memtable is frozen here
    merger    -> sealed segments into LMDB, in a child process; their memtables go, and then the segments

`Durable` adds this to `State`.  Several threads may commit at once: one leads, the others find their entries on disk.
Writers wait (`stalled`) while more than BACKLOG_TABLES memtables are not merged, so memory is bounded; the backlog
counts what the child has done so far, so they go on at the pace of merging, in small steps.

A frame that finds no room on disk, or another shortage, is taken back: the log is cut to its last good frame, memory is
made anew from it, and each thread is told by its next `commit`.  Then writes are refused until the disk takes some.

A failed write or sync ends it: whatever happens afterwards raises, and the process has to stop.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from merklekv.engine import failpoints
from merklekv.engine.base import Base, BaseWriter
from merklekv.engine.checkpoint.checkpointer import Checkpointer
from merklekv.engine.checkpoint.child import CheckpointProcess, checkpoint
from merklekv.engine.clock import DEFAULT_MAX_DRIFT_S, HybridClock
from merklekv.engine.format import ENTRY, OP_REPAIR, REMOTE
from merklekv.engine.log import segment_path, suppress_shortage
from merklekv.engine.memtable import Memtable
from merklekv.engine.options import MIN_MEMTABLE_SIZE as MIN_MEMTABLE_SIZE
from merklekv.engine.options import CheckpointMode, Durability, require_options, require_path
from merklekv.engine.recovery import replay
from merklekv.engine.state import State, refusal
from merklekv.engine.tail import DEFAULT_HOLD_MAX_BYTES, LogPosition, Tail
from merklekv.errors import MerkleKVError, Shortage, StorageFailed
from merklekv.metrics import EngineMetrics
from merklekv.shortage import reason_of, shortage_of

log = logging.getLogger(__name__)

DEFAULT_MEMTABLE_SIZE: Final = 64 << 20
DEFAULT_MAX_VALUE_SIZE: Final = 16 << 20
BACKLOG_TABLES: Final = 2.5  # unmerged memtables, the active one included, above which writers wait
FROZEN_TABLES_MAX: Final = 3
SYNC_INTERVAL_S: Final = 0.5  # from start to start: the other half of the second is for the sync itself


class Durable(State):
    """An open data directory that commits and merges.  Options and errors: see `Engine`."""

    def __init__(
        self,
        path: str | Path,
        *,
        durability: Durability = "always",
        memtable_size: int = DEFAULT_MEMTABLE_SIZE,
        max_value_size: int = DEFAULT_MAX_VALUE_SIZE,
        max_clock_drift_s: float = DEFAULT_MAX_DRIFT_S,
        wall_clock: Callable[[], int] = time.time_ns,
        checkpoint: CheckpointMode = "process",
        retain_max_bytes: int = DEFAULT_HOLD_MAX_BYTES,
    ) -> None:
        place = require_path(path)
        require_options(durability, memtable_size, max_value_size, max_clock_drift_s, checkpoint)
        self.durability = durability
        self.memtable_size = memtable_size
        super().__init__(place, HybridClock(int(max_clock_drift_s * 10**9), wall_clock), max_value_size)
        self._commit_lock = threading.Lock()
        self._unstalled = threading.Condition(self.lock)
        self._committed = self._log.appended
        self.taken_back = 0  # how often changes were
        self._first: dict[bytes, bytes] = {}  # notes of `put_metadata_first` that are not written yet
        self.when_taken_back: Callable[[], None] = lambda: None  # called with the lock held
        self._merging: list[Memtable] = []  # the frozen memtables that are being absorbed
        self._merged_share = 0.0  # of those
        self._closing = threading.Event()
        self._checkpointer: Checkpointer | None = None
        self._syncer = threading.Thread(target=self._sync_regularly, name="log-sync", daemon=True)
        try:
            self.tail = Tail(self.directory.path, self._log, retain_max_bytes)
            if durability == "everysec":
                self._syncer.start()
            if checkpoint == "process":
                child = CheckpointProcess(self.directory.base, self.directory.log, self.directory.lock_fd)
                self._checkpointer = Checkpointer(self, self._log, child)
                self._checkpointer.start()
        except BaseException:  # most likely no thread is to be had
            self._stop_syncer()
            self._let_go()
            raise
        self._delete_segments()
        self._start_merging()
        if self._checkpointer is not None:
            self._go_on_merging()

    def commit(self) -> None:
        """Returns when everything done before the call, by any thread, is durable.

        Raises Shortage when changes since this thread's last `commit` may have been taken back, whoever ran into it:
        then nothing may be answered that has seen them.  Raises StorageFailed.
        """
        mark = self._log.appended
        if mark == self._committed and self._failure is None and not self.stalled and not self._is_untold:
            return
        with self._commit_lock:
            if self._failure is not None:
                raise self._failure
            if self._is_untold:
                self._untold.remove(threading.get_ident())
                raise self.why_taken_back
            if self._committed < mark or self.stalled:  # stalled: a rotation that found no room is tried again
                self._flush()
                with self.lock:  # not beside an `mset`, which would then store half
                    self._probe()
                    self._update_stall()
                self._rotate_due()  # the last word on whether the disk has room: what waits for merging needs a segment

    def begin(self) -> None:
        """Call this when this thread has no uncommitted changes: its next `commit` then ignores what was taken back."""
        if self._is_untold:
            with self._commit_lock:
                self._untold.discard(threading.get_ident())

    @property
    def _is_untold(self) -> bool:
        """Whether this thread is; that others are, some of which never commit, costs it nothing."""
        return bool(self._untold) and threading.get_ident() in self._untold

    def _rotate_due(self) -> None:
        """Freezes the memtable if it is full, or if the base needs it.  With the commit lock held."""
        is_full = self._active.size >= self.memtable_size or self._log.position >= self.memtable_size
        if (is_full or self._base_is_due) and self._unwritable is None:
            self._rotate()

    @property
    def _base_is_due(self) -> bool:
        """Whether the active segment holds what the base has to take in for the tree to be right: a floor, a repair."""
        return not self._layers.frozen and (not self.root_ready or self._repair_lsn == self._active.lsn)

    def repair(self, bucket: int, key: bytes = b"") -> None:
        """Derives anew what is kept beside the records of a bucket, here and in the base: index, leaf, counters.

        `key`: one of the bucket, or of what may be in its index.  The next commit has it done, by merging.
        """
        with self.lock:
            name = bucket.to_bytes(2, "big")
            entry = ENTRY.pack(OP_REPAIR | REMOTE, len(name), len(key)) + name + key
            self._make_room(len(entry))
            self._log_entry(entry)
            self._repair_lsn = self._active.lsn

    def put_metadata_first(self, name: bytes, value: bytes) -> None:
        """Notes this before anything else is written: while the disk has no room for it, writes are refused."""
        with self.lock:
            self._first[name] = value
            try:
                self.note(name, value)
            except Shortage as error:
                log.error("%s: %s; reads go on, make room", self.directory.path, error)
                self._owed[name] = value
                self._update_stall()

    def noted(self, name: bytes) -> bytes | None:
        """The note of this name, or what `put_metadata_first` will make of it."""
        return self._owed.get(name, self.metadata.get(name))

    def flush(self) -> None:
        """Commits, and returns when it is on disk whatever the `durability`.  Raises what `commit` raises."""
        self.commit()
        if self._log.written_lsn > self._log.synced_lsn:
            self._sync()

    @property
    def sync_is_due(self) -> bool:
        """Whether the next commit will wait for the disk; what is done before it, it makes durable in the same wait."""
        return self._log.appended != self._committed and self.durability == "always"

    def wait_for_room(self, timeout_s: float) -> bool:
        """Waits until writes are not stalled; False when the time is over."""
        with self.lock:
            return self._unstalled.wait_for(lambda: not self.stalled, timeout_s)

    def checkpoint_now(self) -> None:
        """Freezes the memtable and absorbs everything, in this thread; with `checkpoint="manual"` only."""
        assert self._checkpointer is None
        with self._commit_lock, self.lock:
            self._flush()
            if self._active.records or self._base_is_due:  # no segment without a frame
                self._rotate()
            base = self._layers.base
            base.close()
            try:
                with BaseWriter(self.directory.base) as writer:
                    checkpoint(writer, self.directory.log, self._log.lsn)
            finally:
                self._layers.base = Base(self.directory.base)
            self._take_over_base()

    def close(self) -> None:
        """Commits, syncs, and lets the directory go.  What is not merged yet is read from the log at the next start."""
        if self._closing.is_set():
            return
        self._stop_syncer()
        try:
            if self._checkpointer is not None:
                self._checkpointer.stop()
            with self._commit_lock:
                if self._failure is None:
                    try:
                        self._flush()
                    except Shortage as error:
                        log.error("%s: %s; what was not acknowledged is not stored", self.directory.path, error)
                    self._log.sync()
                    self._testify()
        finally:
            self.tail.close()
            self._let_go()

    def _stop_syncer(self) -> None:
        self._closing.set()
        if self._syncer.is_alive():
            self._syncer.join()

    def _testify(self) -> None:
        """Says in an empty frame that all before it is on disk: rot in the last one would look like a torn tail."""
        log_ = self._log
        if log_.appended and log_.synced_lsn == log_.end_lsn:
            with suppress(Shortage):  # then it stays unsaid
                self._make_room(0)
                log_.write(*log_.take())
                log_.sync()

    def _let_go(self) -> None:
        self._log.close()
        self._layers.base.close()
        self.directory.release()

    def _flush(self) -> None:
        """Writes (and in `always` syncs) what is pending.  With the commit lock held."""
        log_ = self._log
        try:
            with self.lock:
                mark = log_.appended
                if mark == self._committed:
                    return
                position, frame = log_.take()
            log_.write(position, frame)
        except (Shortage, MemoryError) as error:
            self._take_back(error)
            raise self.why_taken_back from error
        except StorageFailed as error:
            self._fail(error)
            raise
        except BaseException:  # Ctrl-C in a program that uses the library: no frame, or part of one, is there
            self._fail(StorageFailed(f"{self.directory.path}: interrupted while it was written to: open it again"))
            raise
        if self.durability == "always":
            self._sync()
        self._committed = mark
        if self._first:
            self._first.clear()
        self.tail.committed(log_.lsn, position, frame)

    def _take_back(self, cause: Exception) -> None:
        """Makes memory what the log holds, whose last frame could not be written.  With the commit lock held.

        It reads all that is not merged, so it takes about as long as a start; writes are refused afterwards.
        """
        shortage = shortage_of(cause, str(self.directory.path))
        log.error("%s; writes that were not acknowledged are taken back, reads go on", shortage)
        with self.lock:
            try:
                self._log.take_back()
                self._replay()
            except Exception as error:
                failure = StorageFailed(f"{self.directory.path}: cannot take writes back: {reason_of(error)}")
                self._fail(failure)
                raise failure from error
            self._unwritable = shortage
            self._untold |= sys._current_frames().keys() - {threading.get_ident()}
            self.why_taken_back = refusal(shortage)
            self.taken_back += 1
            self._owed.update(self._first)
            self.when_taken_back()
            self._update_stall()
            self._committed = self._log.appended  # last: who sees it finds the rest in place

    def _replay(self) -> None:
        """Reads anew what is not merged yet."""
        base = self._layers.base
        tables = (*reversed(self._layers.frozen), self._layers.active)
        lsns = [table.lsn for table in tables if table.lsn >= base.checkpoint_lsn]  # the others' segments may be gone
        replayed = replay(self.directory.log, base, lsns)
        self._log.resume(replayed.sequence)
        self._layers = replayed.layers(base)
        self.metadata, self._repair_lsn = replayed.metadata, replayed.repair_lsn
        self._rebuild_tree()

    def _probe(self) -> None:
        if self._unwritable is None:
            return
        with suppress(Shortage):
            self._log.probe()
            self._unwritable = None
            log.warning("%s: there is room again, writes are stored", self.directory.path)
            self._update_stall()

    def _sync(self) -> None:
        try:
            self._log.sync()
        except StorageFailed as error:
            self._fail(error)
            raise

    def _rotate(self) -> None:
        """Freezes the memtable with its segment and starts both anew.  With the commit lock held."""
        if len(self._layers.frozen) >= FROZEN_TABLES_MAX:
            return
        with self.lock:
            try:
                self._flush()  # what other threads have added since is in the memtable, so it must be in the segment
                self.directory.require_in_place()
                self._log.seal()
            except Shortage as error:
                if self._unwritable is None:  # else it was the flush: others are told, what this thread did is durable
                    self.checkpoint_blocked(error)
                return
            except StorageFailed as error:
                self._fail(error)
                raise
            self._may_merge()
            failpoints.reached("rotate.sealed")
            self._layers.freeze(self._log.lsn)
            self._adopt_active()
            if self._checkpointer is None:
                self._log.finish_sealing()
            else:
                self._start_merging()

    def _sync_regularly(self) -> None:
        log_ = self._log
        due = time.monotonic() + SYNC_INTERVAL_S
        while not self._closing.wait(max(0.0, due - time.monotonic())):
            due = time.monotonic() + SYNC_INTERVAL_S
            if log_.written_lsn > log_.synced_lsn:
                try:
                    self._sync()
                except StorageFailed:
                    return

    def _fail(self, error: MerkleKVError) -> None:
        """From here on nothing is acknowledged any more: commits and writes raise."""
        log.critical("%s: stopping, since what the disk holds is unknown", error)
        with self.lock:
            self._failure = error
            self.stalled = True
            self._unstalled.notify_all()

    # -- merging: called by the merger's thread --------------------------------------------------------------------

    def checkpoint_progressed(self, share: float) -> None:
        """See merger.Owner."""
        with self.lock:
            if share > self._merged_share:  # less or the same where it was cut off and begun again
                self._merged_share = share
                self._may_merge()
            with suppress(Shortage):  # a snapshot that stays behind only keeps the writer from reusing pages
                self._layers.base.refresh()
            self._update_stall()

    def checkpoint_finished(self) -> None:
        """See merger.Owner."""
        self._take_over_base()
        self._go_on_merging()

    def _take_over_base(self) -> None:
        """Goes on from what the base has taken in."""
        failpoints.reached("merge.finished")
        with self.lock:
            self._layers.drop_checkpointed()
            self._may_merge()
            repaired = self._repair_lsn is not None and self._repair_lsn < self._layers.base.checkpoint_lsn
            if repaired or not self.root_ready:
                self._rebuild_tree()
                self._repair_lsn = None if repaired else self._repair_lsn
            self._merging = []
            self._start_merging()
            self._update_stall()
        failpoints.reached("merge.before_delete")
        self._delete_segments()

    def _go_on_merging(self) -> None:
        """Freezes what is due.  While all memtables that it may freeze are being merged a commit cannot, and afterwards
        no commit may come: writers wait for room, which only merging makes."""
        with self._commit_lock, self.lock:
            # A thread that has changes pending commits them soon and freezes then, unless it waits for room.  To commit
            # them here would split what it does between two commits, of which the second may be taken back.
            if self._failure is None and (self.stalled or self._log.appended == self._committed):
                self._rotate_due()

    def checkpoint_blocked(self, error: Shortage) -> None:
        """See merger.Owner."""
        with self.lock:
            if self._unmergeable is None:
                log.error("%s; writes go on while memory lasts", error)
            self._unmergeable = error

    def _may_merge(self) -> None:
        if self._unmergeable is not None:
            self._unmergeable = None
            log.warning("%s: merging goes on", self.directory.path)

    def checkpoint_failed(self, error: MerkleKVError) -> None:
        """See merger.Owner."""
        self._fail(error if isinstance(error, StorageFailed) else StorageFailed(str(error)))

    def _start_merging(self) -> None:
        """Hands the merger everything that is frozen once it has nothing in hand."""
        if self._checkpointer is not None and self._layers.frozen and not self._merging:
            self._merging, self._merged_share = list(self._layers.frozen), 0.0
            self._checkpointer.submit(self._log.lsn)

    def _update_stall(self) -> None:
        self._note_owed()
        merged = self._merged_share * sum(table.size for table in self._merging)
        backlog = self._active.size + sum(table.size for table in self._layers.frozen) - merged
        refused = self._failure is not None or self._unwritable is not None or bool(self._owed)
        stalled = refused or backlog > BACKLOG_TABLES * self.memtable_size
        if self.stalled and not stalled:
            self._unstalled.notify_all()
        self.stalled = stalled

    def _note_owed(self) -> None:
        if self._unwritable is not None:
            return
        for name, value in list(self._owed.items()):
            try:
                self.note(name, value)
                self._unmergeable = None
            except Shortage as error:
                self._unmergeable = error

    def release_log(self, place: LogPosition) -> None:
        """The outbox has dealt with everything before `place`: the log may go, once it is merged too."""
        self.tail.hold(place)
        self._delete_segments()

    def _delete_segments(self) -> None:
        with suppress_shortage():  # the next merge tries again
            for lsn in self.tail.deletable(self._layers.base.checkpoint_lsn):
                segment_path(self.directory.log, lsn).unlink(missing_ok=True)

    def metrics(self) -> EngineMetrics:
        """What the engine reports of itself now."""
        with self.lock:
            layers, log_ = self._layers, self._log
            return EngineMetrics(
                durability=self.durability,
                db_keys=self.live_count,
                db_tombstones=self.tombstone_count,
                memtable_bytes=self._active.size,
                memtable_keys=len(self._records),
                frozen_memtables=len(layers.frozen),
                checkpoint_percent=int(100 * self._merged_share) if self._merging else 100,
                writes_stalled=int(self.stalled),
                log_lsn=log_.end_lsn,
                checkpoint_lsn=layers.base.checkpoint_lsn,
                log_next_sequence=log_.sequence,
                base_bytes=(self.directory.base / "data.mdb").stat().st_size,
                clock_ns=self.clock.last,
                clock_found_ahead_s=max(0, int(self.clock.ahead_s(self.clock.found))),
            )
