"""Expiry: what becomes of records whose time has come.

    hidden      the wall clock has reached the record's expiry: readers take the key for missing, see `Table.is_shown`
    expired     the expirer has seen that: the record no longer counts as a key
    purged      the record is gone, as a tombstone that was collected

The first needs nothing but the record and a clock, so it is exact.  The expirer follows in slices.  It moves a
**watermark**, an expiry place (format.py), up to the wall clock, through the list of the base and a heap for each
memtable.  So each due record is looked at once, whatever else there is.

A lone node purges at once what has expired.  In a cluster every node purges a record at the same GC horizon, see
`tombstone_gc.is_long_expired`.  So expiring writes nothing; purging writes an entry that is not published.

Invariant, which verify/check.py checks: `Table.expired_count` is the number of current records with an expiry place at
or below the watermark.  So a write knows from the place of the record that it replaces whether that one counts.

If the wall clock goes back, or the table is restored, the watermark starts again at the beginning.
"""

import time
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from merklekv.engine.base.places import FIRST_PLACE
from merklekv.engine.commit import GroupCommit
from merklekv.engine.memtable import PURGE_TIME_SIZE, Memtable, pack_number
from merklekv.engine.record import (
    EXPIRY_KEY_SIZE,
    EXPIRY_SIZE,
    NS_PER_MS,
    expiry_place,
    pack_expiry,
)
from merklekv.engine.table import Table
from merklekv.engine.tombstone_gc import EXPIRY_GRACE_NS, TombstoneGC, is_long_expired, long_expired_at
from merklekv.worker_thread import Fatal, WorkerThread

PAUSE_S: Final = 0.1  # between two looks at what is due
BACK_MS: Final = 1000  # a wall clock that is behind the watermark by more was set back
SLICE_S: Final = 0.002  # with the lock, about
KEYS_MIN: Final = 8
KEYS_MAX: Final = 1000  # looked at in one slice
UNCOMMITTED_MAX: Final = 2000  # purges between two commits
FROZEN_MAX: Final = 1  # memtables; with more, purging waits, so that no client has to wait for room
_PLACE_SIZE: Final = EXPIRY_SIZE + EXPIRY_KEY_SIZE


def _bound(time_ms: int) -> bytes:
    """The last expiry place of records that have expired at this time."""
    return pack_expiry(max(0, time_ms)) + b"\xff" * EXPIRY_KEY_SIZE


def _packed(time_ns: int) -> bytes:
    return time_ns.to_bytes(PURGE_TIME_SIZE, "big")


class Expirer:
    """Lets keys expire and purges their records, on the thread `expirer` or when told to.

    It takes the engine's lock for some 2 ms at a time.  Costs: 2 us a key in a memtable; 5 us one in the base, and 0.2
    us for each key in its bucket.  Purging costs as much again, and 5 us.
    """

    def __init__(self, table: Table, tombstone_gc: TombstoneGC, commits: GroupCommit, fatal: Fatal) -> None:
        self.expired_keys = 0  # that have expired since the start
        self.on_expired: Callable[[list[bytes]], None] | None = None  # called with keys that have, without a lock
        self._table = table
        self._gc = tombstone_gc
        self._commits = commits
        self._wall = table.clock.gate.wall
        self._told = _bound(self._now())  # what is at or below has been counted, or was due before the start
        self._limit = KEYS_MIN
        self._uncommitted = 0
        self.start_over()
        self.worker = WorkerThread("expirer", self._step, fatal)

    def start_over(self) -> None:
        """Looks again for what can be purged, since the table was restored."""
        self._purged_upto = FIRST_PLACE  # in the base
        self._looked_at: object = None  # the base and the horizon that it holds for

    def collect_expired(self, purges: bool = True) -> bool:
        """A slice of letting keys expire and, if told so, of purging; whether there may be more to do.

        After it has returned False no record is here that may go, so nodes with the same horizon hold the same.  The
        caller commits.  Raises Shortage, Stalled, StorageFailed.
        """
        began = time.thread_time()  # without waits for locks and for other threads, which smaller slices do not shorten
        expired: list[bytes] = []
        with self._table.lock:
            more = self._pass(expired)
        on_expired = self.on_expired  # looked up once: another thread may take it away
        if expired and on_expired is not None:
            on_expired(expired)
        if purges:
            with self._table.lock:
                more = self._purge() or more
        took = time.thread_time() - began
        self._limit = min(KEYS_MAX, self._limit * 2) if took < SLICE_S else max(KEYS_MIN, self._limit // 2)
        return more

    # -- what has expired ----------------------------------------------------------------------------------------------

    def _now(self) -> int:
        """What has expired by this time, ms, counts so.  All nodes purge at the same horizon, however slow a clock."""
        return max(self._wall(), self._gc.gc_horizon - EXPIRY_GRACE_NS) // NS_PER_MS

    def _pass(self, expired: list[bytes]) -> bool:
        """Moves the watermark; adds the keys that have expired since the start, and returns whether there is more."""
        table, now = self._table, self._now()
        if now + BACK_MS < int.from_bytes(table.watermark[:EXPIRY_SIZE], "big"):
            table.restart_expiry()
            self._told = _bound(now)
            self.start_over()
        if not all(self._take_in(memtable) for memtable in table.tables):
            return True  # one of the keys may be due, and comes first
        before = table.watermark
        upto = goal = max(before, _bound(now))
        listed = table.base.expiries_from(before, upto, self._limit)
        if len(listed) >= self._limit:
            upto = listed[-1]
        due, upto = self._take_due(upto)
        for place in listed:
            if place <= upto:
                due.update((place + key, key) for key in table.base.keys_at(place))
        table.watermark = max(before, upto)  # what was written since with an expiry in the past is below
        for entry, key in due.items():
            place = entry[:_PLACE_SIZE]
            record = table.lookup(key)
            if place > before and record is not None and expiry_place(key, record) == place:
                table.expired_count += 1
                if place > self._told:
                    self.expired_keys += 1
                    expired.append(key)
        self._told = max(self._told, upto)
        return upto < goal

    def _take_in(self, memtable: Memtable) -> bool:
        """A slice of moving a memtable's new keys to its heap; whether it has all."""
        expiries, records = memtable.expiries, memtable.records
        for number, key in expiries.take_new(self._limit):
            record = records.get(key)
            if record is not None and (place := expiry_place(key, record)):
                heappush(expiries.waiting, place + pack_number(number))
        return not expiries.new

    def _take_due(self, upto: bytes) -> tuple[dict[bytes, bytes], bytes]:
        """Takes about `_limit` entries up to a place from the heaps, stale ones too; says up to where these are all.

        Returns the keys by expiry place + key.
        """
        due: dict[bytes, bytes] = {}
        put_off: set[tuple[int, bytes]] = set()  # a key that is written again and again may have many stale ones
        place = b""
        looked = 0
        tables = self._table.tables
        while waiting := [table for table in tables if table.expiries.waiting]:
            table = waiting[0] if len(waiting) == 1 else min(waiting, key=lambda one: one.expiries.waiting[0])
            before, place = place, table.expiries.waiting[0][:_PLACE_SIZE]
            if place > upto:
                break
            if looked >= self._limit and place != before:
                upto = before
                break
            looked += 1
            entry = heappop(table.expiries.waiting)
            key, number = table.expiries.key_of(entry), entry[_PLACE_SIZE:]
            record = table.records.get(key)
            now = b"" if record is None else expiry_place(key, record)
            if record is not None and now == place:
                due[place + key] = key
                heappush(table.expiries.passed, _packed(long_expired_at(record)) + number)
            elif now > place and (table.lsn, now + key) not in put_off:
                put_off.add((table.lsn, now + key))
                heappush(table.expiries.waiting, now + number)
        return due, upto

    # -- purging -------------------------------------------------------------------------------------------------------

    def _purge(self) -> bool:
        """Purges what may go; whether there is more."""
        table, is_lone, horizon = self._table, self._gc.is_lone, self._gc.gc_horizon
        looked_at = (table.base.checkpoint_lsn, is_lone, horizon)
        if looked_at != self._looked_at:
            self._purged_upto, self._looked_at = FIRST_PLACE, looked_at
        if is_lone:  # what has expired here has done so everywhere
            horizon = self._wall() + EXPIRY_GRACE_NS
        left = self._purge_recent(horizon, self._limit)
        return self._purge_listed(horizon, left) <= 0

    def _purge_recent(self, horizon: int, left: int) -> int:
        """Purges records of memtables; how many more may be looked at in this slice."""
        for memtable in self._table.tables:
            passed = memtable.expiries.passed
            while left > 0 and passed and passed[0][:PURGE_TIME_SIZE] <= _packed(horizon):
                left -= 1
                self._purge_key(memtable.expiries.key_of(passed[0]), horizon)
                heappop(passed)
        return left

    def _purge_listed(self, horizon: int, left: int) -> int:
        """Likewise, of the base."""
        table = self._table
        last = min(table.watermark, _bound((horizon - EXPIRY_GRACE_NS) // NS_PER_MS))
        if left <= 0 or last <= self._purged_upto:
            return left
        places = table.base.expiries_from(self._purged_upto, last, left)
        for place in places:
            for key in table.base.keys_at(place):
                self._purge_key(key, horizon)
            self._purged_upto = place
        if len(places) < left:
            self._purged_upto = last
        return left - len(places)

    def _purge_key(self, key: bytes, horizon: int) -> None:
        table = self._table
        record = table.lookup(key)
        if record is None or not FIRST_PLACE < expiry_place(key, record) <= table.watermark:
            return
        if not is_long_expired(record, horizon):
            return
        table.gate.require_open()
        (self._gc.purge_lone if self._gc.is_lone else table.purge)(key, record)
        self._uncommitted += 1

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        began = time.thread_time()
        self._commits.begin()
        more = self.collect_expired(purges=len(self._table.frozen) <= FROZEN_MAX)
        if self._uncommitted and (not more or self._uncommitted >= UNCOMMITTED_MAX):
            self._uncommitted = 0
            self._commits.commit()
        self.worker.wait(time.thread_time() - began if more else PAUSE_S)
