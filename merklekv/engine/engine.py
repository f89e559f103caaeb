"""The engine: one node's data.

    set, delete, ...     change the table: memtable, Merkle leaf, counters, and an entry that waits for the log
    commit               one write and one fdatasync for everything since the last; a full memtable is frozen here
    checkpoint process   puts sealed segments into the base

The parts, each with its own contract: table.py (what the node has), commit.py (when it is durable), write_gate.py
(whether writes are taken), checkpoint/checkpointer.py (memory to base, back-pressure) and tombstone_gc.py (the end of
deleted keys).  This module has the verbs: what a command means, and which of two records stands.

A caller sends no reply before its `commit` has returned, so what a client sees survives a crash.

Costs: a write of 100 bytes about 4 us, a read 0.3 us (memtable) to 2 us (base), beside the commit.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from merklekv.engine.base import DATA_FILE, Pair
from merklekv.engine.checkpoint.checkpointer import Checkpointer
from merklekv.engine.clock import HybridClock
from merklekv.engine.commit import GroupCommit
from merklekv.engine.directory import DataDirectory
from merklekv.engine.format import (
    ENTRY,
    MAX_KEY_SIZE,
    OP_APPEND,
    OP_DECR,
    OP_DEL,
    OP_INCR,
    OP_ORIGIN,
    OP_PREPEND,
    OP_SET,
    OP_TRUNCATE,
    REMOTE,
    bucket_of,
)
from merklekv.engine.integers import INT64_MAX, INT64_MIN, strict_integer
from merklekv.engine.log.retention import DEFAULT_RETAIN_MAX_BYTES, Retention
from merklekv.engine.options import (
    DEFAULT_MAX_VALUE_SIZE,
    DEFAULT_MEMTABLE_SIZE,
    CheckpointMode,
    Durability,
    require_options,
    require_path,
)
from merklekv.engine.record import (
    FLAGS,
    HEAD_SIZE,
    TOMBSTONE,
    VERSION_SIZE,
    ZERO_VERSION,
    flags_of,
    is_live,
    is_purge_marker,
    is_sound,
    is_tombstone,
    timestamp_of,
    value_size_of,
    version_of,
)
from merklekv.engine.recovery import open_data
from merklekv.engine.table import Table
from merklekv.engine.time_gate import DEFAULT_MAX_DRIFT_S, TimeGate
from merklekv.engine.tombstone_gc import TombstoneGC, bound_of
from merklekv.engine.tree_upkeep import TreeUpkeep
from merklekv.engine.write_gate import WriteGate
from merklekv.errors import InvalidArgument, MerkleKVError, NotANumber, NumberOverflow, Stalled
from merklekv.metrics import EngineMetrics

SUPERSEDED: Final = "superseded"
COUNT_WAIT_S: Final = 0.2  # of a start, for leaves and counters
STALL_WAIT_S: Final = 0.5  # of a stalled write, between two looks at whether it goes on waiting

T = TypeVar("T")

Change = tuple[int, bytes, bytes]  # op, key, record


class MergeResult(NamedTuple):
    """What became of the records given to `merge`."""

    applied: int
    superseded: int  # not above what is here: duplicates, older versions, below the truncation version
    refused: list[tuple[bytes, str]]  # key and reason


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
    ) -> None:
        place = require_path(path)
        require_options(durability, memtable_size, max_value_size, max_clock_drift_s, checkpoint)
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
            self.retention = Retention(place, log, retain_max_bytes)
            stack.callback(self.retention.close)
            self.tombstone_gc = TombstoneGC(place, table, self.retention)
            self.commits = commits = GroupCommit(place, table, self.retention, durability)
            commits.after_roll_back.append(self.tombstone_gc.start_over)
            self.checkpointer = Checkpointer(directory, table, self.retention, commits, memtable_size, checkpoint)
            stack.callback(commits.finish)
            stack.callback(self.checkpointer.stop)
            stack.callback(commits.worker.stop)
            self.upkeep = TreeUpkeep(table, gate.fail)
            stack.callback(self.upkeep.worker.stop)
            commits.start()
            self.checkpointer.start()
            if checkpoint == "process":
                self.upkeep.worker.start()
                table.wait_until_counted(COUNT_WAIT_S)
            self._closing = stack.pop_all()
        self.is_closed = False
        self.workers = [commits.worker, self.checkpointer.worker, self.upkeep.worker]

        self.record = table.record
        self.get = table.get
        self.exists = table.exists
        self.page = table.page
        self.records_page = table.records_page
        self.random_key = table.random_key
        self.root = table.root
        self.prefix_digest = table.prefix_digest
        self.prepare_root = table.prepare_root
        self.wait_until_counted = table.wait_until_counted
        self.end_waits = table.end_waits
        self.inner_digests = table.inner_digests
        self.leaf_digests = table.leaf_digests
        self.inner_leaves = table.inner_leaves
        self.prepare_buckets = table.prepare_buckets
        self.bucket = table.bucket
        self.repair = table.repair
        self.join = self.tombstone_gc.join
        self.raise_gc_horizon = self.tombstone_gc.raise_gc_horizon
        self.collect_tombstones = self.tombstone_gc.collect_tombstones
        self.commit = commits.commit
        self.begin = commits.begin
        self.flush = commits.flush
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

    def set(self, key: bytes, value: bytes) -> None:
        """Stores a value."""
        with self.lock:
            self._put(OP_SET, ((None, key, value),))

    def set_batch(self, requests: Iterable[Sequence[bytes]]) -> int:
        """Stores (anything, key, value) one after the other, cheaper than `set`; how many, up to the first refused."""
        with self.lock:
            before = self.log.appended
            with suppress(MerkleKVError):  # `set` of the refused one says why
                self._put(OP_SET, requests)
            return self.log.appended - before

    def mset(self, pairs: list[Pair]) -> None:
        """Stores all values or none, also across a crash: they share a frame of the log."""
        size = 0
        for key, value in pairs:
            self.table.require_sizes(key, value)
            size += ENTRY.size + len(key) + HEAD_SIZE + len(value)
        with self.lock:
            self.gate.require_open()
            self.table.reserve(size, urgent=False)
            self._put(OP_SET, [(None, *pair) for pair in pairs])

    def delete(self, key: bytes) -> bool:
        """Removes a key; whether there was one."""
        with self.lock:
            record = self.record(key)
            if record is None or not is_live(record):
                return False
            if self.tombstone_gc.is_lone:
                self.tombstone_gc.delete_lone(key, record)
            else:
                self._put(OP_DEL, ((None, key, b""),), FLAGS[TOMBSTONE], urgent=True)
                self.table.list_tombstone(key)
            return True

    def increment(self, key: bytes, amount: int) -> int:
        """Adds to a decimal number (missing: 0) and returns the sum.  Raises NotANumber, NumberOverflow."""
        self.table.require_sizes(key, b"")
        with self.lock:
            text = self.get(key)
            number = 0 if text is None else strict_integer(text)
            if number is None:
                raise NotANumber(key)
            total = number + amount
            if not INT64_MIN <= total <= INT64_MAX:
                raise NumberOverflow(key)
            self._put(OP_INCR if amount >= 0 else OP_DECR, ((None, key, b"%d" % total),))
            return total

    def append(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes behind a value, a missing key counting as empty; returns the new value."""
        return self._extend(OP_APPEND, key, b"", value)

    def prepend(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes before a value, a missing key counting as empty; returns the new value."""
        return self._extend(OP_PREPEND, key, value, b"")

    def _extend(self, op: int, key: bytes, before: bytes, after: bytes) -> bytes:
        with self.lock:
            value = before + (self.get(key) or b"") + after
            self._put(op, ((None, key, value),))
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
                    self.delete(key)

    # -- records of other nodes ----------------------------------------------------------------------------------------

    def merge(
        self,
        items: Iterable[Change],
        origin: bytes,
        *,
        stable: bool = False,
        applied_through: int = 0,
        sound: bool = False,
    ) -> MergeResult:
        """Merges records of the node `origin` (1 to 511 bytes), as (op, key, record).

        `stable`: the sender has no record that was collected elsewhere, so records at or below the GC horizon count,
        too.  `applied_through`: every write of the sender up to this time (ns) was applied here, so an older record
        that would change something is stale, and is refused like one below the horizon.
        `sound`: this process has made the records, so it does not hash them again.

        Raises Shortage and Stalled, maybe with some of them applied: merging all of them again is harmless.
        """
        superseded = 0
        refused: list[tuple[bytes, str]] = []
        with self.lock:
            self.gate.require_open()
            accepted: dict[bytes, Change] = {}
            applied = 0
            latest = self.time_gate.latest_version()
            bound = ZERO_VERSION if stable else max(self.tombstone_gc.bound, bound_of(applied_through))
            for item in items:
                op, key, record = item
                if key in accepted:
                    applied += self._take(accepted, origin)  # or this one would not see the one before
                reason = self._reason_to_refuse(op, key, record, latest, sound) or self._verdict(
                    key, record, bound, stable
                )
                if not reason:
                    accepted[key] = item
                elif reason == SUPERSEDED:
                    superseded += 1
                else:
                    refused.append((key, reason))
            applied += self._take(accepted, origin)
        return MergeResult(applied, superseded, refused)

    def _take(self, accepted: dict[bytes, Change], origin: bytes) -> int:
        """Stores records that stand, of different keys, and empties the dictionary; how many."""
        if not accepted:
            return 0
        self.table.append(OP_ORIGIN, origin, b"")
        self.clock.observe(max(record for _, _, record in accepted.values()))
        deletions = [change for change in accepted.values() if is_tombstone(change[2])]
        if deletions:  # first: on a full disk only they find room
            self._put_merged(deletions, urgent=True)
            for _, key, _ in deletions:
                self.table.list_tombstone(key)
            for _, key, record in deletions:
                if record <= self.tombstone_gc.bound:
                    self.table.purge(key, record)
        if len(deletions) < len(accepted):
            self._put_merged([change for change in accepted.values() if not is_tombstone(change[2])], urgent=False)
        count = len(accepted)
        accepted.clear()
        return count

    def _put_merged(self, changes: list[Change], urgent: bool) -> None:
        for op, group in groupby(changes, itemgetter(0)):
            self._put(op | REMOTE, group, made=True, urgent=urgent)

    def _verdict(self, key: bytes, record: bytes, bound: bytes, stable: bool) -> str:
        """Why a sound record does not stand, given what is here; empty when it does."""
        if record < self.table.truncation:
            return SUPERSEDED
        old = self.table.lookup(key)
        if old is not None and is_purge_marker(old) and (stable or old > self.tombstone_gc.bound):
            old = None  # it is there only until the base has dropped its key, and decides nothing
        if old is not None and version_of(record) == version_of(old):
            return SUPERSEDED if record == old or is_purge_marker(old) else "conflict"
        if old is not None and record < old:
            return SUPERSEDED
        if is_tombstone(record):
            # Below the horizon it would be collected at once, and the peers would return what it deletes.
            if record > self.tombstone_gc.bound:
                return ""
            return SUPERSEDED if old is None or is_purge_marker(old) else "stable"
        # At or below the bound it was here once, and was deleted.
        return "stable" if record <= bound else ""

    def _reason_to_refuse(self, op: int, key: bytes, record: bytes, latest: bytes, sound: bool = False) -> str:
        if not OP_SET <= op <= OP_PREPEND:
            return "op"
        if not 0 < len(key) <= MAX_KEY_SIZE:
            return "key size"
        if not sound and not is_sound(key, record):
            return "digest"
        flags, size = flags_of(record), value_size_of(record)
        if flags & ~TOMBSTONE or (flags and size):
            return "flags"
        if size > self.table.max_value_size:
            return "value size"
        return "clock" if record > latest else ""

    def merge_truncation(self, truncation: bytes, origin: bytes) -> bool:
        """Merges a truncation version (24 bytes) of another node; whether it was above ours."""
        if len(truncation) != VERSION_SIZE:
            raise InvalidArgument(f"truncation version of {len(truncation)} bytes: it has {VERSION_SIZE} bytes")
        with self.lock:
            self.gate.require_open()
            if truncation <= self.table.truncation or not self.time_gate.admits_truncation(truncation):
                return False
            self.table.reserve(2 * ENTRY.size + len(origin) + VERSION_SIZE, urgent=True)
            self.table.append(OP_ORIGIN, origin, b"")
            self.clock.observe(truncation)
            self.table.raise_truncation(OP_TRUNCATE | REMOTE, truncation)
            return True

    # -- repairs -------------------------------------------------------------------------------------------------------

    def replace(self, key: bytes, stored: bytes | None, record: bytes | None, origin: bytes) -> bool:
        """Replaces a damaged record by a sound one of any version, from the node `origin`; whether it did.

        `stored`: the damaged record, None if it was lost; if it has changed since, nothing is done.  Without a `record`
        the damaged one is removed.  Raises Shortage, Stalled.
        """
        with self.lock:
            self.gate.require_open()
            if self.table.lookup(key) != stored or (stored is not None and len(stored) < HEAD_SIZE):
                return False
            self.table.repair(bucket_of(key), key)
            if record is None:
                if stored is not None:
                    self.table.purge(key, stored)
                return True
            op = OP_DEL if is_tombstone(record) else OP_SET
            latest = self.time_gate.latest_version()
            if record < self.table.truncation or self._reason_to_refuse(op, key, record, latest):
                return False
            self._take({key: (op, key, record)}, origin)
            return True

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
        """Keys with a value.  Meaningless unless `root_ready`."""
        return self.table.live_count

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

    def metrics(self) -> EngineMetrics:
        """What the engine reports of itself now."""
        with self.lock:
            table = self.table
            return EngineMetrics(
                durability=self.durability,
                db_keys=table.live_count if table.root_ready else None,
                db_tombstones=table.tombstone_count if table.root_ready else None,
                memtable_bytes=table.active.size,
                memtable_keys=len(table.active.records),
                frozen_memtables=len(table.frozen),
                checkpoint_percent=int(100 * self.checkpointer.progress),
                writes_stalled=int(self.gate.stalled),
                log_lsn=self.log.end_lsn,
                checkpoint_lsn=table.base.checkpoint_lsn,
                log_next_sequence=self.log.sequence,
                base_bytes=(self.directory.base / DATA_FILE).stat().st_size,
                base_free_bytes=table.base.space.free,
                compactions=self.checkpointer.compactions,
                clock_ns=self.clock.newest,
                clock_ahead_s=max(0, int(self.time_gate.ahead_s(self.clock.newest))),
            )
