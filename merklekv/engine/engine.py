"""The engine: one node's data, behind one door.

Writes change memory and append to the log's pending entries under one lock, and are durable when a `commit` that began
after them returns.  Callers answer nobody before that: what anybody can see has survived a crash.  Several threads may
commit at once; one leads, the others find their entries on disk.

    set, delete, ... -> memtable + Merkle leaves + log entry (in memory)
    commit           -> one write and one fdatasync for everything since the last; a full memtable is frozen here
    merger           -> sealed segments into LMDB, in a child process

Promises: a write that raises has changed nothing.  A local write gets a version above what this node shows for its
key.  `merge` is commutative, associative and idempotent: a record stands if its version is the larger one.

Costs: a write of 100 bytes about 4 us, a read 0.3 us (memtable) to 2 us (base), beside the commit.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple

from merklekv.engine import crashpoints
from merklekv.engine.absorber import AbsorbingChild, absorb
from merklekv.engine.format import (
    ENTRY,
    FLAGS,
    FLAGS_AT,
    MAX_KEY_SIZE,
    MAX_VALUE_SIZE_LIMIT,
    OP_APPEND,
    OP_DECR,
    OP_DEL,
    OP_INCR,
    OP_ORIGIN,
    OP_PREPEND,
    OP_SET,
    OP_TRUNCATE,
    REMOTE,
    TOMBSTONE,
    VALUE_AT,
    VERSION_SIZE,
    record_is_sound,
)
from merklekv.engine.log import Sealed, segment_path
from merklekv.engine.memtable import Memtable
from merklekv.engine.merger import Merger
from merklekv.engine.state import State
from merklekv.engine.store import Base, BaseWriter, Pair
from merklekv.engine.tail import DEFAULT_HOLD_MAX_BYTES, Place, Tail
from merklekv.engine.version import DEFAULT_MAX_DRIFT_S, HybridClock
from merklekv.errors import (
    DiskFull,
    InvalidArgument,
    MerkleKVError,
    NotANumber,
    NumberOverflow,
    StorageFailed,
)

log = logging.getLogger(__name__)

Durability = Literal["always", "everysec", "never"]

DEFAULT_MEMTABLE_SIZE: Final = 64 << 20
MIN_MEMTABLE_SIZE: Final = 64 << 10
DEFAULT_MAX_VALUE_SIZE: Final = 16 << 20
BACKLOG_TABLES: Final = 2.5  # unmerged memtables, the active one included, above which writers wait
FROZEN_TABLES_MAX: Final = 3
SYNC_INTERVAL_S: Final = 1.0
INT64_MIN: Final = -(1 << 63)
INT64_MAX: Final = (1 << 63) - 1
NUMBER_DIGITS_MAX: Final = 20

_entry = ENTRY.pack


class MergeResult(NamedTuple):
    """What became of the records given to `merge`."""

    applied: int
    superseded: int  # not above what is here: duplicates, older versions, below the floor
    refused: list[tuple[bytes, str]]  # key and reason


class Engine(State):
    """An open data directory.  Thread-safe.  Keys are 1 to 511 bytes, values 0 to `max_value_size` bytes.

    `durability`: when `commit` returns, what was written is on disk (``always``), in the kernel and on disk within a
    second (``everysec``), or in the kernel (``never``).  `absorb`: ``process`` merges in a child as needed; ``manual``
    leaves merging to calls of `absorb_sealed`, for tests and simulation.  `hold_max_bytes`: how much of the log is kept
    for the outbox (see tail.py).

    Raises DirectoryLocked, DirectoryUnwritable, NotADataDirectory, FormatTooNew, Corruption, StorageFailed, DiskFull.
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
        absorb: Literal["process", "manual"] = "process",
        hold_max_bytes: int = DEFAULT_HOLD_MAX_BYTES,
    ) -> None:
        if memtable_size < MIN_MEMTABLE_SIZE:
            raise InvalidArgument(f"memtable_size {memtable_size} is below {MIN_MEMTABLE_SIZE} bytes")
        if not 0 <= max_value_size <= MAX_VALUE_SIZE_LIMIT:
            raise InvalidArgument(f"max_value_size {max_value_size} is not within 0 to {MAX_VALUE_SIZE_LIMIT} bytes")
        self.durability = durability
        self.memtable_size = memtable_size
        self.max_value_size = max_value_size
        super().__init__(Path(path), HybridClock(int(max_clock_drift_s * 10**9), wall_clock))
        self.tail = Tail(self.directory.path, self._log, hold_max_bytes)
        self._commit_lock = threading.Lock()
        self._unstalled = threading.Condition(self.lock)
        self._committed = self._log.appended
        self._merging: list[Memtable] = []  # the frozen memtables that are being absorbed
        self._merged_share = 0.0  # of those
        self._closing = threading.Event()
        self._merger: Merger | None = None
        if absorb == "process":
            child = AbsorbingChild(self.directory.base, self.directory.log, self.directory.lock_fd)
            self._merger = Merger(self, self._log, child)
            self._merger.start()
        self._syncer = threading.Thread(target=self._sync_regularly, name="log-sync", daemon=True)
        if durability == "everysec":
            self._syncer.start()
        self._delete_segments()
        self._start_merging(None)
        if self._merger is not None:
            self._absorb_floor()

    # -- writing ---------------------------------------------------------------------------------------------------

    def set(self, key: bytes, value: bytes) -> None:
        """Stores a value."""
        if not 0 < len(key) <= MAX_KEY_SIZE or len(value) > self.max_value_size:
            self._require_sizes(key, value)
        with self.lock:
            self._put(OP_SET, key, value)

    def set_row(self, requests: Iterable[Sequence[bytes]]) -> int:
        """Stores (anything, key, value) one after the other as `set` does; how many, up to the first it refuses.

        A pipeline of writes costs a good part less this way.
        """
        stored = 0
        value_size_max = self.max_value_size
        with self.lock, suppress(MerkleKVError):  # whoever stores the refused one by itself is told why
            put = self._put
            for _, key, value in requests:
                if not 0 < len(key) <= MAX_KEY_SIZE or len(value) > value_size_max:
                    break
                put(OP_SET, key, value)
                stored += 1
        return stored

    def mset(self, pairs: list[Pair]) -> None:
        """Stores all values or none, also across a crash: they share a frame of the log."""
        size = 0
        for key, value in pairs:
            self._require_sizes(key, value)
            size += ENTRY.size + len(key) + VALUE_AT + len(value)
        with self.lock:
            self._require_writable()
            self._make_room(size)
            for key, value in pairs:
                self._put(OP_SET, key, value)

    def delete(self, key: bytes) -> bool:
        """Removes a key; whether there was one."""
        if not self.exists(key):
            return False
        with self.lock:
            if not self.exists(key):
                return False
            self._put(OP_DEL, key, b"", FLAGS[TOMBSTONE])
            return True

    def increment(self, key: bytes, amount: int) -> int:
        """Adds to a decimal number (missing: 0) and returns the sum.  Raises NotANumber, NumberOverflow."""
        self._require_sizes(key, b"")
        with self.lock:
            text = self.get(key)
            total = (0 if text is None else _parse_number(key, text)) + amount
            if not INT64_MIN <= total <= INT64_MAX:
                raise NumberOverflow(key)
            self._put(OP_INCR if amount >= 0 else OP_DECR, key, b"%d" % total)
            return total

    def append(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes behind a value, a missing key counting as empty; returns the new value."""
        with self.lock:
            return self._replace(OP_APPEND, key, (self.get(key) or b"") + value)

    def prepend(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes before a value, a missing key counting as empty; returns the new value."""
        with self.lock:
            return self._replace(OP_PREPEND, key, value + (self.get(key) or b""))

    def truncate(self) -> None:
        """Removes every key that any node holds now, by raising the floor."""
        with self.lock:
            self._require_writable()
            floor = self.clock.next()
            newest = max(self._layers.newest(), self._layers.floor)
            if floor <= newest:
                floor = self.clock.after(newest)
            self._raise_floor(OP_TRUNCATE, floor)

    def merge(self, items: Iterable[tuple[int, bytes, bytes]], origin: bytes) -> MergeResult:
        """Takes in records made elsewhere, as (op, key, record), from the node `origin` (1 to 511 bytes).

        Raises DiskFull and Stalled, maybe with some of them applied: merging all of them again is harmless.
        """
        applied = superseded = 0
        refused: list[tuple[bytes, str]] = []
        with self.lock:
            self._require_writable()
            for op, key, record in items:
                reason = self._reason_to_refuse(op, key, record)
                if reason:
                    refused.append((key, reason))
                    continue
                old = self._layers.lookup(key)
                if record < self._layers.floor or (old is not None and record[:VERSION_SIZE] <= old[:VERSION_SIZE]):
                    if old is not None and record[:VERSION_SIZE] == old[:VERSION_SIZE] and record != old:
                        refused.append((key, "conflict"))
                    else:
                        superseded += 1
                    continue
                self._make_room(2 * ENTRY.size + len(origin) + len(key) + len(record))
                if not applied:
                    self._log_entry(_entry(OP_ORIGIN, len(origin), 0) + origin)
                self.clock.observe(record)
                self._put(op | REMOTE, key, record[VALUE_AT:], made=record)
                applied += 1
        return MergeResult(applied, superseded, refused)

    def merge_floor(self, floor: bytes, origin: bytes) -> bool:
        """Takes in a floor (24 bytes) that another node has set; whether it was above ours."""
        if len(floor) != VERSION_SIZE:
            raise InvalidArgument(f"floor of {len(floor)} bytes: a floor is a version of {VERSION_SIZE} bytes")
        with self.lock:
            self._require_writable()
            if floor <= self._layers.floor or self.clock.too_far_ahead(floor):
                return False
            self._make_room(2 * ENTRY.size + len(origin) + VERSION_SIZE)
            self._log_entry(_entry(OP_ORIGIN, len(origin), 0) + origin)
            self.clock.observe(floor)
            self._raise_floor(OP_TRUNCATE | REMOTE, floor)
            return True

    def _replace(self, op: int, key: bytes, value: bytes) -> bytes:
        self._require_sizes(key, value)
        self._put(op, key, value)
        return value

    # -- durability ------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Returns when everything done before the call, by any thread, is durable.  Raises StorageFailed."""
        mark = self._log.appended
        if mark == self._committed and self._failure is None and not self.stalled:
            return
        with self._commit_lock:
            if self._failure is not None:
                raise self._failure
            if self._committed < mark or self.stalled:  # stalled: a rotation that found no room is tried again
                self._flush()
                if self._active.size >= self.memtable_size or self._log.position >= self.memtable_size:
                    self._rotate()
                elif not self.root_ready and not self._layers.frozen:
                    self._rotate()  # the floor is in the log: absorbing that is what makes the tree whole again
                with self.lock:  # not beside an `mset`, which would then store half
                    self._update_stall()

    @property
    def sync_is_due(self) -> bool:
        """Whether the next commit will wait for the disk; what is done before it, it makes durable in the same wait."""
        return self._log.appended != self._committed and self.durability == "always"

    def wait_for_room(self, timeout_s: float) -> bool:
        """Waits until writes are not stalled; False when the time is over."""
        with self.lock:
            return self._unstalled.wait_for(lambda: not self.stalled, timeout_s)

    def absorb_sealed(self) -> None:
        """Freezes the memtable and absorbs everything, in this thread; with `absorb="manual"` only."""
        assert self._merger is None
        with self._commit_lock, self.lock:
            self._flush()
            if self._active.records or not self.root_ready:
                self._rotate()
            base = self._layers.base
            base.close()
            try:
                with BaseWriter(self.directory.base) as writer:
                    absorb(writer, self.directory.log, self._log.lsn)
            finally:
                self._layers.base = Base(self.directory.base)
            self._take_over_base()

    def close(self) -> None:
        """Commits, syncs, and lets the directory go.  What is not merged yet is read from the log at the next start."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._syncer.is_alive():
            self._syncer.join()
        if self._merger is not None:
            self._merger.stop()
        try:
            with self._commit_lock:
                if self._failure is None:
                    self._flush()
                    self._log.sync()
        finally:
            self._log.close()
            self.tail.close()
            self._layers.base.close()
            self.directory.release()

    def _flush(self) -> None:
        """Writes (and in `always` syncs) what is pending.  With the commit lock held."""
        log_ = self._log
        with self.lock:
            mark = log_.appended
            if mark == self._committed:
                return
            position, frame = log_.take()
        try:
            log_.write(position, frame)
            if self.durability == "always":
                log_.sync()
        except StorageFailed as error:
            self._fail(error)
            raise
        self._committed = mark
        self.tail.committed(log_.lsn, position, frame)

    def _rotate(self) -> None:
        """Freezes the memtable with its segment and starts both anew.  With the commit lock held."""
        if len(self._layers.frozen) >= FROZEN_TABLES_MAX:
            return
        with self.lock:
            self._flush()  # what other threads have added since: it is in the memtable, so it must be in the segment
            try:
                sealed = self._log.seal()
            except DiskFull as error:
                self.merge_blocked(error)
                return
            except StorageFailed as error:
                self._fail(error)
                raise
            self._disk_full = None
            crashpoints.reached("rotate.sealed")
            self._layers.freeze(self._log.lsn)
            self._adopt_active()
            if self._merger is None:
                self._log.finish_sealing(sealed)
            else:
                self._start_merging(sealed)

    def _sync_regularly(self) -> None:
        log_ = self._log
        while not self._closing.wait(SYNC_INTERVAL_S):
            if log_.written_lsn > log_.synced_lsn:
                try:
                    log_.sync()
                except StorageFailed as error:
                    self._fail(error)
                    return

    def _fail(self, error: MerkleKVError) -> None:
        """From here on nothing is acknowledged any more: commits and writes raise."""
        log.critical("%s: stopping, since what the disk holds is unknown", error)
        with self.lock:
            self._failure = error
            self.stalled = True
            self._unstalled.notify_all()

    # -- merging: called by the merger's thread --------------------------------------------------------------------

    def merge_progressed(self, share: float) -> None:
        """See merger.Owner."""
        with self.lock:
            self._merged_share = share
            self._disk_full = None
            self._layers.base.refresh()  # a snapshot that stays behind would keep the writer from reusing pages
            self._update_stall()

    def merge_finished(self) -> None:
        """See merger.Owner."""
        self._take_over_base()
        self._absorb_floor()

    def _take_over_base(self) -> None:
        """Goes on from what the base has taken in."""
        crashpoints.reached("merge.finished")
        with self.lock:
            self._disk_full = None
            self._layers.drop_absorbed()
            if not self.root_ready:
                self._rebuild_tree()
            self._merging = []
            self._start_merging(None)
            self._update_stall()
        crashpoints.reached("merge.before_delete")
        self._delete_segments()

    def _absorb_floor(self) -> None:
        """Seals the segment of a floor that the base has to take in before the tree is whole again."""
        with self._commit_lock:
            if not self.root_ready and not self._layers.frozen and self._failure is None:
                self._rotate()

    def merge_blocked(self, error: DiskFull) -> None:
        """See merger.Owner."""
        with self.lock:
            if self._disk_full is None:
                log.error("%s; writes go on while memory lasts, make room", error)
            self._disk_full = error

    def merge_failed(self, error: MerkleKVError) -> None:
        """See merger.Owner."""
        self._fail(error)

    def _start_merging(self, sealed: Sealed | None) -> None:
        """Hands the merger a sealed segment, and everything that is frozen once it has nothing in hand."""
        if self._merger is None:
            return
        frozen = self._layers.frozen
        if frozen and not self._merging:
            self._merging, self._merged_share = list(frozen), 0.0
            self._merger.submit(self._log.lsn, sealed)
        elif sealed is not None:
            self._merger.submit(0, sealed)

    def _update_stall(self) -> None:
        merged = self._merged_share * sum(table.size for table in self._merging)
        backlog = self._active.size + sum(table.size for table in self._layers.frozen) - merged
        stalled = self._failure is not None or backlog > BACKLOG_TABLES * self.memtable_size
        if self.stalled and not stalled:
            self._unstalled.notify_all()
        self.stalled = stalled

    def release_log(self, place: Place) -> None:
        """The outbox has dealt with everything before `place`: the log may go, once it is merged too."""
        self.tail.hold(place)
        self._delete_segments()

    def _delete_segments(self) -> None:
        for lsn in self.tail.deletable(self._layers.base.absorbed):
            segment_path(self.directory.log, lsn).unlink(missing_ok=True)

    def statistics(self) -> dict[str, int | str]:
        """Figures for STATS and INFO; sizes in bytes."""
        with self.lock:
            layers, log_ = self._layers, self._log
            return {
                "durability": self.durability,
                "db_keys": self.live_count,
                "db_tombstones": self.dead_count,
                "memtable_bytes": self._active.size,
                "memtable_keys": len(self._records),
                "frozen_memtables": len(layers.frozen),
                "merged_percent": int(100 * self._merged_share) if self._merging else 100,
                "writes_stalled": int(self.stalled),
                "log_lsn": log_.end_lsn,
                "log_absorbed_lsn": layers.base.absorbed,
                "log_next_sequence": log_.sequence,
                "base_bytes": (self.directory.base / "data.mdb").stat().st_size,
                "clock_ns": self.clock.last,
            }

    # -- what is refused -------------------------------------------------------------------------------------------

    def _require_sizes(self, key: bytes, value: bytes) -> None:
        if not 0 < len(key) <= MAX_KEY_SIZE:
            raise InvalidArgument(f"key of {len(key)} bytes: a key has 1 to {MAX_KEY_SIZE} bytes")
        if len(value) > self.max_value_size:
            raise InvalidArgument(
                f"value of {len(value)} bytes: more than max_value_size, which is {self.max_value_size} bytes"
            )

    def _reason_to_refuse(self, op: int, key: bytes, record: bytes) -> str:
        if not OP_SET <= op <= OP_PREPEND:
            return "op"
        if not 0 < len(key) <= MAX_KEY_SIZE:
            return "key size"
        if len(record) - VALUE_AT > self.max_value_size:
            return "value size"
        if not record_is_sound(key, record):
            return "digest"
        if record[FLAGS_AT] not in (0, TOMBSTONE) or (record[FLAGS_AT] and len(record) > VALUE_AT):
            return "flags"
        if self.clock.too_far_ahead(record):
            return "clock"
        return ""


def _parse_number(key: bytes, text: bytes) -> int:
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    if not digits.isdigit() or len(digits) > NUMBER_DIGITS_MAX or not INT64_MIN <= int(text) <= INT64_MAX:
        raise NotANumber(key)
    return int(text)
