"""The engine: one node's data.

    set, delete, ...     change the table: memtable, Merkle leaf, counters, and an entry that waits for the log
    commit               one write and one fdatasync for everything since the last; a full memtable is frozen here
    checkpoint process   puts sealed segments into the base

The parts, each with its own contract: table.py (what the node has), commit.py (when it is durable), write_gate.py
(whether writes are taken), checkpoint/checkpointer.py (memory to base, back-pressure), merger.py (which of two records
stands), expiry.py and tombstone_gc.py (the end of keys).  This module has the verbs: what a command means.

A caller sends no reply before its `commit` has returned, so what a client sees survives a crash.

Costs: a write of 100 bytes about 4 us, a read 0.3 us (memtable) to 2 us (base), beside the commit.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeVar

from merklekv.engine.checkpoint.checkpointer import Checkpointer
from merklekv.engine.clock import HybridClock
from merklekv.engine.commit import GroupCommit
from merklekv.engine.directory import DataDirectory
from merklekv.engine.expiry import Expirer
from merklekv.engine.feed import Feed
from merklekv.engine.format import (
    ENTRY,
    MAX_KEY_SIZE,
    OP_APPEND,
    OP_DECR,
    OP_DEL,
    OP_EXPIRE,
    OP_INCR,
    OP_PERSIST,
    OP_PREPEND,
    OP_RENAME_FROM,
    OP_RENAME_TO,
    OP_SET,
    OP_TRUNCATE,
)
from merklekv.engine.integers import INT64_MAX, INT64_MIN, strict_integer
from merklekv.engine.log.retention import DEFAULT_RETAIN_MAX_BYTES, Retention
from merklekv.engine.merger import Merger
from merklekv.engine.options import (
    DEFAULT_MAX_VALUE_SIZE,
    DEFAULT_MEMTABLE_SIZE,
    CheckpointMode,
    Durability,
    require_options,
    require_path,
)
from merklekv.engine.put import sums
from merklekv.engine.record import (
    EXPIRY,
    EXPIRY_MAX,
    FLAGS,
    HEAD_SIZE,
    RECORD_OVERHEAD,
    TOMBSTONE,
    Pair,
    head_of,
    is_live,
    pack_expiry,
    packed_expiry_of,
    timestamp_of,
    value_of,
    version_of,
)
from merklekv.engine.recovery import open_data
from merklekv.engine.table import Table
from merklekv.engine.time_gate import DEFAULT_MAX_DRIFT_S, TimeGate
from merklekv.engine.tombstone_gc import TombstoneGC
from merklekv.engine.tree_upkeep import TreeUpkeep
from merklekv.engine.write_gate import WriteGate
from merklekv.errors import InvalidArgument, MerkleKVError, NotANumber, NumberOverflow, Shortage, Stalled
from merklekv.metrics import EngineMetrics

COUNT_WAIT_S: Final = 0.2  # of a start, for leaves and counters
STALL_WAIT_S: Final = 0.5  # of a stalled write, between two looks at whether it goes on waiting

T = TypeVar("T")


class Transaction:
    """See `Engine.transaction`.  It spells out what a generator would do: scripts and transactions enter it often."""

    __slots__ = ("_engine", "_is_inner", "_mark", "_room")

    def __init__(self, engine: "Engine", room: int) -> None:
        self._engine = engine
        self._room = room

    def __enter__(self) -> None:
        engine = self._engine
        engine.lock.acquire()
        try:
            if self._room:
                if engine.gate.closed:
                    engine.gate.require_open()
                engine.table.reserve(self._room, urgent=False)
        except BaseException:
            engine.lock.release()
            raise
        self._is_inner = engine.table.is_hidden
        self._mark = engine.log.appended
        if not self._is_inner:
            engine.table.hide(True)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        engine = self._engine
        try:
            if self._is_inner:
                return
            engine.table.hide(False)
            if error is None or engine.log.appended == self._mark:
                return
            engine.commits.abandon(error)
            if isinstance(error, Stalled):  # it must not be tried again: it would not begin from nothing
                raise Shortage("checkpoints are behind, transaction not stored: try again later") from error
        finally:
            engine.lock.release()


class Engine:
    """An open data directory.  Thread-safe.  Keys are 1 to 511 bytes, values 0 to `max_value_size` bytes.

    Options: see `merklekv.open`.

    Contract: a write that raises has changed nothing.  A local write gets a version above what this node shows for its
    key.  `merge` is commutative, associative and idempotent: a record stands if its version is the larger one.

    `lock` guards the parts: a caller may take it to do several things at one moment.  A thread that takes the commit
    lock, too, takes that first.  The methods of the parts are bound once, so composition costs no call.

    Raises DirectoryLocked, DirectoryUnwritable, NotADataDirectory, FormatTooNew, Corruption, StorageFailed, Shortage.
    """

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
        retain_max_bytes: int = DEFAULT_RETAIN_MAX_BYTES,
        retain_log_bytes: int = 0,
        retain_log_seconds: float = 0,
    ) -> None:
        place = require_path(path)
        require_options(
            durability,
            memtable_size,
            max_value_size,
            max_clock_drift_s,
            checkpoint,
            retain_max_bytes,
            retain_log_bytes,
            retain_log_seconds,
        )
        self.lock = lock = threading.RLock()
        self.durability = durability
        self.time_gate = TimeGate(int(max_clock_drift_s * 10**9), wall_clock)
        self.clock = clock = HybridClock(self.time_gate)
        self.directory = directory = DataDirectory(place)
        with ExitStack() as stack:
            stack.callback(directory.release)
            base, log, replayed = open_data(directory)
            self.log = log
            self.gate = gate = WriteGate(place, lock, log.probe)
            self.table = table = Table(base, log, clock, gate, lock, max_value_size, has_thread=checkpoint == "process")
            stack.callback(lambda: table.base.close())  # a checkpoint may replace it
            stack.callback(log.close)
            clock.observe(max(replayed.newest, replayed.truncation))
            clock.close_through(timestamp_of(replayed.truncation))
            table.restore(replayed)
            self.retention = Retention(place, log, retain_max_bytes, retain_log_bytes, retain_log_seconds)
            stack.callback(self.retention.close)
            self.feed = Feed(directory.log, self.retention.end.lsn)
            self.tombstone_gc = TombstoneGC(place, table, self.retention)
            self.commits = commits = GroupCommit(place, table, self.retention, durability)
            commits.after_roll_back.append(self.tombstone_gc.start_over)
            commits.on_committed = self.feed.committed
            self.checkpointer = Checkpointer(directory, table, self.retention, commits, memtable_size, checkpoint)
            stack.callback(commits.finish)
            stack.callback(self.checkpointer.stop)
            stack.callback(commits.worker.stop)
            self.upkeep = TreeUpkeep(table, gate.fail)
            stack.callback(self.upkeep.worker.stop)
            self.expirer = Expirer(table, self.tombstone_gc, commits, gate.fail)
            self.merger = Merger(table, self.tombstone_gc)
            commits.after_roll_back.append(self.expirer.start_over)
            stack.callback(self.expirer.worker.stop)
            commits.start()
            self.checkpointer.start()
            if checkpoint == "process":
                self.upkeep.worker.start()
                self.expirer.worker.start()
                table.wait_until_counted(COUNT_WAIT_S)
            self._closing = stack.pop_all()
        self.is_closed = False
        self.workers = [commits.worker, self.checkpointer.worker, self.upkeep.worker, self.expirer.worker]

        self.record = table.record
        self.get = table.get
        self.get_batch = table.get_batch
        self.get_with_expiry = table.get_with_expiry
        self.exists = table.exists
        self.expiry = table.expiry
        self.shown = table.shown
        self.page = table.page
        self.records_page = table.records_page
        self.random_key = table.random_key
        self.root = table.root
        self.prefix_digest = table.prefix_digest
        self.prepare_root = table.prepare_root
        self.wait_until_counted = table.wait_until_counted
        self.inner_digests = table.inner_digests
        self.leaf_digests = table.leaf_digests
        self.inner_leaves = table.inner_leaves
        self.prepare_buckets = table.prepare_buckets
        self.bucket = table.bucket
        self.repair = table.repair
        self.join = self.tombstone_gc.join
        self.raise_gc_horizon = self.tombstone_gc.raise_gc_horizon
        self.collect_tombstones = self.tombstone_gc.collect_tombstones
        self.collect_expired = self.expirer.collect_expired
        self.merge = self.merger.merge
        self.merge_truncation = self.merger.merge_truncation
        self.replace = self.merger.replace
        self.commit = commits.commit
        self.begin = commits.begin
        self.flush = commits.flush
        self.frames_rolled_back = commits.frames_rolled_back
        self.put_metadata = commits.put_metadata
        self.put_metadata_first = commits.put_metadata_first
        self.metadata_or_pending = commits.metadata_or_pending
        self.wait_for_room = gate.wait
        self.checkpoint_now = self.checkpointer.checkpoint_now
        self.compact_now = self.checkpointer.compact_now
        self.release_log = self.checkpointer.release_log
        self._put = table.put

    def close(self) -> None:
        """Commits, syncs, and releases the directory."""
        if self.is_closed:
            return
        self.is_closed = True
        self.end_waits()
        self._closing.close()

    def end_waits(self) -> None:
        """The node stops: wakes all that wait for tree and counters, or for changes."""
        self.table.end_waits()
        self.feed.end_waits()

    def retry_stalled(self, call: Callable[[], T], go_on: Callable[[], bool] = lambda: True) -> T:
        """Makes a call that may raise Stalled, again each time there may be room.

        `go_on` is asked before each wait, about every STALL_WAIT_S; when it says no, the Stalled is raised.
        """
        while True:
            try:
                return call()
            except Stalled:
                if not go_on():
                    raise
                self.wait_for_room(STALL_WAIT_S)

    # -- writing -------------------------------------------------------------------------------------------------------

    def set(self, key: bytes, value: bytes, expiry: int | None = None, op: int = OP_SET) -> None:
        """Stores a value that expires when the wall clock shows `expiry`, milliseconds since the epoch, or never.

        `op`: what the log calls it.
        """
        if expiry is not None:
            _require_expiry(expiry)
        with self.lock:
            self._set(op, key, value, b"" if expiry is None else pack_expiry(expiry))

    def set_batch(self, requests: Iterable[Sequence[bytes]], flags: bytes = FLAGS[0], expiry: bytes = b"") -> int:
        """Stores (anything, key, value) one after the other, cheaper than `set`; how many, up to the first refused.

        `flags`: FLAGS[EXPIRY] for values that expire.  `expiry`: of all, as `pack_expiry` makes it of one that is
        allowed; if it is empty, each value begins with its own.
        """
        with self.lock:
            before = self.log.appended
            try:
                self._put(OP_SET, requests, flags, expiry)
            except Exception:  # noqa: BLE001, S110  also of memory: `set` of the refused one says why
                pass
            return self.log.appended - before

    def change(self, op: int, key: bytes, value: bytes) -> None:
        """Stores a value, and leaves the expiry of the key as it is.  `op`: what the log calls it."""
        with self.lock:
            self._change(op, key, self.table.shown(key), value)

    def expire(self, key: bytes, expiry: int) -> bool:
        """Lets a key expire when the wall clock shows `expiry`, milliseconds since the epoch; whether there is one."""
        _require_expiry(expiry)
        return self._set_expiry(OP_EXPIRE, key, expiry)

    def persist(self, key: bytes) -> bool:
        """Lets a key never expire; whether there is one."""
        return self._set_expiry(OP_PERSIST, key, None)

    def _set_expiry(self, op: int, key: bytes, expiry: int | None) -> bool:
        with self.lock:
            record = self.table.shown(key)
            if record is not None:
                self.set(key, value_of(record), expiry, op)
            return record is not None

    def _change(self, op: int, key: bytes, old: bytes | None, value: bytes) -> None:
        expiry = b"" if old is None else packed_expiry_of(old)
        if expiry:
            self._set(op, key, value, expiry)
        else:
            self._put(op, ((None, key, value),))

    def _set(self, op: int, key: bytes, value: bytes, expiry: bytes) -> None:
        """`expiry`: packed, or empty without one."""
        if expiry:
            self._put(op, ((None, key, value),), FLAGS[EXPIRY], expiry)
        else:
            self._put(op, ((None, key, value),))

    def mset(self, pairs: list[Pair]) -> None:
        """Stores all values or none, also across a crash: they share a frame of the log."""
        size = (ENTRY.size + HEAD_SIZE) * len(pairs)
        for key, value in pairs:
            key_size, value_size = len(key), len(value)
            if not 0 < key_size <= MAX_KEY_SIZE or value_size > self.table.max_value_size:
                self.table.require_sizes(key, value)
            size += key_size + value_size
        with self.transaction(size):
            self._put(OP_SET, [(key, key, value) for key, value in pairs])

    def delete(self, key: bytes, op: int = OP_DEL) -> bool:
        """Removes a key; whether there was one.  `op`: what the log calls it, one of DELETIONS."""
        with self.lock:
            record = self.table.shown(key)
            if record is not None:
                self._delete(op, key, record)
            return record is not None

    def delete_batch(self, keys: Sequence[bytes]) -> list[bool]:
        """Does `delete` for one key after the other; whether there was one of each, up to the first refused."""
        deleted: list[bool] = []
        with self.lock:
            try:
                while len(deleted) < len(keys):
                    self._delete_together(keys[len(deleted) :], deleted)
                    deleted += [self.delete(key) for key in keys[len(deleted) : len(deleted) + 1]]
            except Exception:  # noqa: BLE001, S110  also of memory: `delete` of the refused one says why
                pass
        return deleted

    def _delete_together(self, keys: Sequence[bytes], deleted: list[bool]) -> None:
        """Deletes keys up to the first that has to be deleted by itself, and adds to `deleted` which were there."""
        if self.tombstone_gc.is_lone:
            self.gate.require_open()
            self.table.put_markers(OP_DEL, self.tombstone_gc.markers(keys, deleted))
        else:
            self._put(OP_DEL, self._deletions(keys, deleted), FLAGS[TOMBSTONE], urgent=True)

    def _deletions(self, keys: Sequence[bytes], deleted: list[bool]) -> Iterator[tuple[None, bytes, bytes]]:
        for key in keys:
            was_there = self.table.shown(key) is not None
            if was_there:
                yield None, key, b""
                self.table.list_tombstone(key)
            deleted.append(was_there)

    def _delete(self, op: int, key: bytes, record: bytes) -> None:
        if self.tombstone_gc.is_lone:
            self.tombstone_gc.delete_lone(op, key, record)
        else:
            self._put(op, ((None, key, b""),), FLAGS[TOMBSTONE], urgent=True)
            self.table.list_tombstone(key)

    def rename(self, key: bytes, new_key: bytes) -> bool:
        """Moves a value and its expiry to another key, both or neither, also across a crash; whether there was one."""
        with self.lock:
            record = self.table.shown(key)
            if record is None:
                return False
            self.table.require_sizes(new_key, value_of(record))
            self.gate.require_open()
            self.table.reserve(2 * (ENTRY.size + RECORD_OVERHEAD) + len(key + new_key) + len(record), urgent=False)
            if key != new_key:
                self._delete(OP_RENAME_FROM, key, record)
                self._set(OP_RENAME_TO, new_key, value_of(record), packed_expiry_of(record))
            return True

    def increment(self, key: bytes, amount: int) -> int:
        """Adds to a decimal number (missing: 0) and returns the sum.  Raises NotANumber, NumberOverflow."""
        self.table.require_sizes(key, b"")
        with self.lock:
            old = self.table.shown(key)
            number = 0 if old is None else strict_integer(value_of(old))
            if number is None:
                raise NotANumber(key)
            total = number + amount
            if not INT64_MIN <= total <= INT64_MAX:
                raise NumberOverflow(key)
            self._change(OP_INCR if amount >= 0 else OP_DECR, key, old, b"%d" % total)
            return total

    def increment_batch(self, keys: Iterable[bytes], amount: int) -> list[int]:
        """Does `increment` for one key after the other, cheaper; the sums, up to the first refused, or that expires."""
        totals: list[int] = []
        with self.lock:
            before = self.log.appended
            try:
                self._put(OP_INCR if amount >= 0 else OP_DECR, sums(self.table, keys, amount, totals))
            except Exception:  # noqa: BLE001, S110  also of memory: `increment` of the refused one says why
                pass
            return totals[: self.log.appended - before]

    def append(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes behind a value, a missing key counting as empty; returns the new value."""
        return self._extend(OP_APPEND, key, b"", value)

    def prepend(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes before a value, a missing key counting as empty; returns the new value."""
        return self._extend(OP_PREPEND, key, value, b"")

    def _extend(self, op: int, key: bytes, before: bytes, after: bytes) -> bytes:
        with self.lock:
            old = self.table.shown(key)
            value = before + (b"" if old is None else value_of(old)) + after
            self._change(op, key, old, value)
            return value

    def truncate(self) -> None:
        """Removes every key that any node has now, by raising the truncation version.

        Records that a wrong clock has stamped too far in the future are deleted one by one: a truncation above them
        would be refused elsewhere, and hold this node's clock.  Raises Shortage and Stalled, then maybe with some of
        these left.
        """
        with self.lock:
            self.gate.require_open()
            truncation = self.clock.next()
            newest = max(self.table.newest(), self.table.truncation)
            is_far = truncation <= newest and not self.time_gate.admits_truncation(newest)
            if truncation <= newest and not is_far:
                truncation = self.clock.after(newest)
            self.table.raise_truncation(OP_TRUNCATE, truncation)
            if is_far:
                self._delete_all()

    def _delete_all(self) -> None:
        following: bytes | None = b""
        while following is not None:
            pairs, following = self.records_page(b"", following)
            for key, record in pairs:
                if is_live(record):
                    self._delete(OP_DEL, key, record)

    # -- several verbs at once -----------------------------------------------------------------------------------------

    def transaction(self, room: int) -> "Transaction":
        """Makes the verbs called within one: no thread sees a part of them, and they share a frame of the log.

        `room`: bytes to reserve in the log before anything is done, 0 for none.  Raises Shortage and Stalled, with
        nothing changed.  An error that leaves the block takes back what it has done, with all else that no commit has
        stored yet: the next commit, of any thread, rolls it back.  One within another is a part of that.
        """
        return Transaction(self, room)

    def state_of(self, key: bytes) -> tuple[bytes, bool]:
        """Stands for what a key has, and whether it exists: for `has_changed`."""
        if not 0 < len(key) <= MAX_KEY_SIZE:
            return b"", False
        with self.lock:
            record = self.table.lookup(key) or b""
            exists = self.exists(key)
            return head_of(record) if exists else version_of(record), exists

    def has_changed(self, key: bytes, seen: tuple[bytes, bool]) -> bool:
        """Whether a key was written since that was its state, by a client or another node, or has expired.

        What is left of a key that has expired or was deleted may go, which is no change.  So a missing key that is
        written and goes again may count as unchanged: once a checkpoint has dropped what a lone node has deleted, or
        after a truncation.
        """
        now = self.state_of(key)
        return now != seen and (seen[1] or now != (b"", False))

    # -- state of the parts --------------------------------------------------------------------------------------------

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """The metadata entries, to read."""
        return self.table.metadata

    @property
    def max_value_size(self) -> int:
        """Bytes of the largest value."""
        return self.table.max_value_size

    @property
    def truncation(self) -> bytes:
        """The version (24 bytes) below which every record is dead."""
        return self.table.truncation

    @property
    def gc_horizon(self) -> int:
        """Nanoseconds since the epoch; records at or below it are stable.  0: none are."""
        return self.tombstone_gc.gc_horizon

    @property
    def is_lone(self) -> bool:
        """Predicate: has no other node had a part in this directory?  Then a deletion leaves no tombstone."""
        return self.tombstone_gc.is_lone

    @property
    def purged_through(self) -> int:
        """Everything that the node purged while it was lone has a timestamp (ns) up to here; 0: it purged nothing."""
        return self.tombstone_gc.purged_through

    @property
    def root_ready(self) -> bool:
        """Whether root and counters are known."""
        return self.table.root_ready

    @property
    def is_counting(self) -> bool:
        """Whether root and counters will be known soon, without any help."""
        return self.table.is_counting

    @property
    def is_ending(self) -> bool:
        """Predicate: does the node stop, so that nobody should wait for root and counters?"""
        return self.table.is_ending

    @property
    def records_max(self) -> int:
        """How many records there are at most, tombstones too; with `root_ready` exactly so many."""
        return self.table.records_max

    @property
    def live_count(self) -> int:
        """Keys with a value, expired or not.  Meaningless unless `root_ready`."""
        return self.table.live_count

    @property
    def key_count(self) -> int:
        """Keys with a value that has not expired, as far as the expirer is.  Meaningless unless `root_ready`."""
        return self.table.key_count

    @property
    def sync_late_s(self) -> float:
        """By how much the sync that runs by itself is late, with `everysec`; 0 if none is due."""
        return self.commits.sync_late_s

    @property
    def tombstone_count(self) -> int:
        """Deleted keys whose tombstone is here.  Meaningless unless `root_ready`."""
        return self.table.tombstone_count

    @property
    def makes_wait(self) -> bool:
        """Whether a write would raise Stalled now, so that waiting helps."""
        return self.gate.makes_wait

    @property
    def sync_is_due(self) -> bool:
        """Whether the next commit will wait for the disk."""
        return self.commits.sync_is_due

    @property
    def roll_backs(self) -> int:
        """How often changes were rolled back."""
        return self.commits.roll_backs

    @property
    def rolled_back(self) -> MerkleKVError:
        """The error of the last roll-back, as clients get it."""
        return self.gate.rolled_back

    @property
    def memtables_bytes(self) -> int:
        """What all memtables are taken to use."""
        with self.lock:
            return sum(table.charged for table in self.table.tables)

    def refusal(self) -> str:
        """Why writes are refused now, in a sentence; empty while they are taken, or only wait."""
        with self.lock:
            self.gate.probe()
            return self.gate.refusal or self.checkpointer.refusal()

    def metrics(self) -> EngineMetrics:
        """What the engine reports of itself now."""
        # Before the lock: the file system may be slow. By the descriptor: the directory may be moved, or gone.
        disk, log_bytes = os.fstatvfs(self.directory.lock_fd), self.retention.log_bytes
        with self.lock:
            table, space = self.table, self.table.base.space
            checkpoints = self.checkpointer.finished
            return EngineMetrics(
                durability=self.durability,
                db_keys=table.key_count if table.root_ready else None,
                db_keys_with_expiry=table.with_expiry if table.root_ready else None,
                db_expired=table.expired_count if table.root_ready else None,
                expired_keys=self.expirer.expired_keys,
                db_tombstones=table.tombstone_count if table.root_ready else None,
                memtable_bytes=table.active.charged,
                memtable_keys=len(table.active.records),
                frozen_memtables=len(table.frozen),
                checkpoint_percent=int(100 * self.checkpointer.progress),
                checkpoints=checkpoints.count,
                checkpoint_ms=round(1000 * checkpoints.seconds),
                checkpoint_bytes=checkpoints.size,
                checkpoint_last_ms=round(1000 * checkpoints.last_s),
                checkpoint_age_s=None if checkpoints.last_at is None else int(time.monotonic() - checkpoints.last_at),
                writes_stalled=int(self.gate.stalled),
                writes_refused=int(bool(self.refusal())),
                disk_bytes=disk.f_blocks * disk.f_frsize,
                disk_free_bytes=disk.f_bavail * disk.f_frsize,
                log_bytes=log_bytes,
                log_lsn=self.log.end_lsn,
                checkpoint_lsn=table.base.checkpoint_lsn,
                log_next_sequence=self.log.sequence,
                base_bytes=space.used + space.free,
                base_free_bytes=space.free,
                compactions=self.checkpointer.compactions,
                clock_ns=self.clock.newest,
                clock_ahead_s=max(0, int(self.time_gate.ahead_s(self.clock.newest))),
            )


def _require_expiry(expiry: int) -> None:
    if not 0 < expiry <= EXPIRY_MAX:
        raise InvalidArgument(f"expiry of {expiry}: it has 1 to {EXPIRY_MAX} milliseconds since the epoch")
