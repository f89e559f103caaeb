"""What a read sees: the memtable, the frozen memtables and the base, newest first, above the floor.

A record in a newer layer hides those below it; so does the marker of a collected one, which counts for nothing itself.
Records of the base below the floor are dead and are filtered here until the absorber has removed them; memtables forget
theirs at once (`raise_truncation`).

Ordered reads come in pages: one page is a short call that sees all layers at one moment; a scan asks for page after
page and lets others in between.  Not locked: the engine calls all of it under its own lock, but for
`active.records.get`.
"""

import random
from itertools import islice
from typing import Final

from merklekv.engine.base import Base, Pair
from merklekv.engine.format import BUCKETS
from merklekv.engine.memtable import Memtable, prefix_end
from merklekv.engine.record import head_of, is_live, is_purge_marker, version_of

RANDOM_TRIES: Final = 100
RANDOM_MEMTABLE_SHARE: Final = 0.5
HEADS_ONLY: Final = 0  # for `page`: versions, flags and digests instead of whole records


class Layers:
    """Memtables over the base."""

    def __init__(self, base: Base, tables: list[Memtable], truncation: bytes) -> None:
        self.base = base
        self.active = tables[-1]
        self.frozen = tables[-2::-1]  # newest first
        self.truncation = truncation

    def lookup(self, key: bytes) -> bytes | None:
        """The newest record of a key, tombstones and markers too."""
        record = self.active.records.get(key)
        return self.older(key) if record is None else record

    def older(self, key: bytes) -> bytes | None:
        """The newest record of a key below the active memtable, markers too."""
        for table in self.frozen:
            record = table.records.get(key)
            if record is not None:
                return record
        return self.base_record(key)

    def base_record(self, key: bytes) -> bytes | None:
        """The record of a key in the base, unless the floor has killed it."""
        record = self.base.get(key)
        return record if record is None or record >= self.truncation else None

    def overlay(self) -> dict[bytes, bytes]:
        """The newest record or marker of every key that is in any memtable."""
        records: dict[bytes, bytes] = {}
        for table in (*reversed(self.frozen), self.active):
            records.update(table.records)
        return records

    def newest(self) -> bytes:
        """The largest version (24 bytes) of any record; below it a floor would spare something."""
        return max(self.base.newest, version_of(max(self.overlay().values(), default=b"")))

    def random_key(self) -> bytes | None:
        """Some live key; not evenly drawn, but any key may come."""
        for _ in range(RANDOM_TRIES):
            table = random.choice((self.active, *self.frozen))
            if table.records and random.random() < RANDOM_MEMTABLE_SHARE:
                key = next(islice(table.records, random.randrange(len(table.records)), None))
            else:
                found = self.base.index_key_from(random.randrange(BUCKETS))
                if found is None:
                    continue
                key = found
            record = self.lookup(key)
            if record is not None and is_live(record):
                return key
        after: bytes | None = b""  # nearly everything is dead: take the first that is not
        while after is not None:
            pairs, after = self.page(b"", after, RANDOM_TRIES)
            for key, head in pairs:
                if is_live(head):
                    return key
        return None

    def group(self) -> bool:
        """A slice of preparing for `bucket`: True when all memtables are grouped."""
        return all(table.group() for table in (self.active, *self.frozen))

    def bucket(self, bucket: int) -> list[Pair]:
        """(key, version, flags and digest) of a bucket's records, in key order, tombstones too.  Needs `group`."""
        keys = set(self.base.bucket_keys(bucket))
        for table in (self.active, *self.frozen):
            keys.update(table.bucket(bucket))
        found = ((key, self.lookup(key)) for key in sorted(keys))
        return [(key, head_of(record)) for key, record in found if record is not None and not is_purge_marker(record)]

    def freeze(self, lsn: int) -> None:
        """Starts a new active memtable, for the segment at `lsn`."""
        self.frozen.insert(0, self.active)
        self.active = Memtable(lsn)

    def drop_checkpointed(self) -> None:
        """Moves to the base's newest snapshot and forgets the memtables that it has taken in."""
        self.base.refresh()
        self.frozen = [table for table in self.frozen if table.lsn >= self.base.checkpoint_lsn]

    def raise_truncation(self, truncation: bytes) -> None:
        """Makes everything below `truncation` dead."""
        self.truncation = truncation
        for table in (*self.frozen, self.active):
            table.drop_below(truncation)

    def page(
        self, prefix: bytes, after: bytes, limit: int, max_bytes: int = HEADS_ONLY
    ) -> tuple[list[Pair], bytes | None]:
        """At most `limit` (key, record) with this prefix above `after`, in order, tombstones too; and where to go on.

        Ends behind `max_bytes` of records; with HEADS_ONLY it returns records without their values.  None as the
        second: that was all.  A page may be empty although more follows.
        """
        tables = (*reversed(self.frozen), self.active)
        if not all(table.prepare() for table in tables):
            return [], after
        low = prefix if after < prefix else after + b"\0"
        end = prefix_end(prefix)
        if max_bytes == HEADS_ONLY:
            pairs = self.base.heads_from(low, end, limit)
            more = len(pairs) >= limit
        else:
            pairs = self.base.records_from(low, end, limit, max_bytes)
            more = len(pairs) >= limit or sum(len(record) for _, record in pairs) >= max_bytes
        bounds = [pairs[-1][0]] if more and pairs else []  # a source that was cut off is known only up to here
        found = {key: record for key, record in pairs if record >= self.truncation}
        for table in tables:
            keys = table.keys_from(low, end, limit)
            if len(keys) >= limit:
                bounds.append(keys[-1])
            records = table.records
            for key in keys:
                found[key] = records[key]
        bound = min(bounds) if bounds else None
        shown = [key for key, record in found.items() if not is_purge_marker(record)]
        ordered = sorted(shown if bound is None else [key for key in shown if key <= bound])
        return self._cut(found, ordered, bound, limit, max_bytes)

    @staticmethod
    def _cut(
        found: dict[bytes, bytes], ordered: list[bytes], bound: bytes | None, limit: int, max_bytes: int
    ) -> tuple[list[Pair], bytes | None]:
        page: list[Pair] = []
        size = 0
        for key in ordered:
            record = found[key]
            page.append((key, record))
            size += len(record)
            if len(page) >= limit or (max_bytes != HEADS_ONLY and size >= max_bytes):
                return page, key if key != ordered[-1] or bound is not None else None
        return page, bound
