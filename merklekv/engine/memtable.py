"""Recent writes in memory: newest record of each key, and the keys in order when somebody scans.

The records are a plain dict, which the engine's write path fills directly.  Nothing is ever removed from it, so its
last `n` keys are its newest, and order costs a write nothing: scans sort what has come since the last scan into short
runs.

Memory: about `charge()` bytes for each key.  Sorting a run of RUN_SIZE keys takes a few ms; a scan over a memtable
that was never scanned does that one run at a call (`prepare`).
"""

from bisect import bisect_left
from collections.abc import Iterator
from heapq import merge
from itertools import islice
from typing import Final

from xxhash import xxh3_64_intdigest

RUN_SIZE: Final = 8192
KEY_OVERHEAD: Final = 176  # bytes that CPython needs beside key and record: object headers, dict and order slots


def charge(key: bytes, record: bytes) -> int:
    """Bytes of memory that a new key is taken to cost."""
    return len(key) + len(record) + KEY_OVERHEAD


def prefix_end(prefix: bytes) -> bytes | None:
    """The first key behind all keys with this prefix; None when there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,)) if trimmed else None


class Memtable:
    """One memtable.  Not locked: the engine calls it under its own lock."""

    def __init__(self, lsn: int) -> None:
        self.lsn = lsn  # of the segment that holds the same changes
        self.records: dict[bytes, bytes] = {}
        self.size = 0  # charged bytes
        self.tombstones: list[bytes] = []  # every key that was deleted here; what it maps to may have changed since
        self._runs: list[list[bytes]] = []
        self._sorted = 0  # how many of the dict's keys are in runs
        self._buckets: dict[int, list[bytes]] = {}
        self._grouped = 0  # how many of the dict's keys are in buckets

    def prepare(self) -> bool:
        """Sorts up to one run of keys; True when all keys are in runs."""
        run = self._next_keys(self._sorted)
        if run:
            self._sorted += len(run)
            if self._runs and len(self._runs[-1]) + len(run) <= RUN_SIZE:
                run += self._runs.pop()
            run.sort()
            self._runs.append(run)
        return self._sorted == len(self.records)

    def group(self) -> bool:
        """Puts up to one run of keys into their buckets; True when all keys are there."""
        keys = self._next_keys(self._grouped)
        self._grouped += len(keys)
        buckets = self._buckets
        for key in keys:
            buckets.setdefault(xxh3_64_intdigest(key) >> 48, []).append(key)
        return self._grouped == len(self.records)

    def bucket(self, bucket: int) -> list[bytes]:
        """The keys of a bucket, in no order.  Needs `group`."""
        return self._buckets.get(bucket, [])

    def _next_keys(self, known: int) -> list[bytes]:
        """The keys, at most RUN_SIZE, that came behind the `known` first ones."""
        waiting = len(self.records) - known
        if not waiting:
            return []
        newest = islice(reversed(self.records), waiting - min(waiting, RUN_SIZE), None)
        return list(islice(newest, min(waiting, RUN_SIZE)))

    def keys_from(self, low: bytes, end: bytes | None, limit: int) -> list[bytes]:
        """At most `limit` keys from `low` to below `end` (None: no bound), in order.  Needs `prepare`."""
        pieces = []
        for run in self._runs:
            first = bisect_left(run, low)
            last = bisect_left(run, end, first) if end is not None else len(run)
            if first < last:
                pieces.append(run[first : min(last, first + limit)])
        return list(islice(merge(*pieces), limit)) if len(pieces) > 1 else pieces[0] if pieces else []

    def drop_below(self, floor: bytes) -> None:
        """Forgets every record with a version below `floor`."""
        self.records = {key: record for key, record in self.records.items() if record >= floor}
        self.size = sum(charge(key, record) for key, record in self.records.items())
        self._runs, self._sorted = [], 0
        self._buckets, self._grouped = {}, 0

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.records)
