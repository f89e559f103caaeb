"""Whether a compaction is worth it: how much smaller the base would be, and whether the disk has room for it."""

import math
from typing import Final

import lmdb

from merklekv.engine.base.environment import translate
from merklekv.engine.base.reader import Base, BaseSnapshot
from merklekv.engine.format import BUCKETS
from merklekv.engine.headroom import disk_space
from merklekv.engine.table import Table
from merklekv.errors import DiskFull

SMALLEST: Final = 1 << 20  # bytes: a smaller base stays as it is
FREED_MIN: Final = 4 << 20  # bytes that a checkpoint has to give back to be made before the memtable is full
GAIN: Final = 2  # a base is compacted if its file would shrink to less than one part in so many
SHRUNK: Final = 0.75  # ... and if so much is left of what it needed since the last compaction
ROOM_SHARE: Final = 1.125  # of the expected size, and ROOM_SPARE bytes, have to be free on the disk: writes go on
ROOM_SPARE: Final = 1 << 18

SAMPLED_BUCKETS: Final = 64
SAMPLED_RECORDS: Final = 4  # of each of these buckets
_PAGE_HEADER: Final = 16
_NODE: Final = 10  # bytes of LMDB for an entry: its header, and its place in the page
_SPLIT: Final = 1.4  # lists in the index of more than half a page do not fill theirs


class NoRoom(DiskFull):
    """The disk has no room for a compaction, so it was not begun."""


class CompactionRule:
    """Says when a base is worth compacting.

    Checkpoints themselves leave free pages, which the next ones use.  So after a compaction the next is due only when
    the data has shrunk since.
    """

    def __init__(self) -> None:
        self._needed = math.inf  # the most bytes that the records have needed since the last compaction

    def observe(self, base: Base) -> float:
        """Looks at the base after a checkpoint, at most 400 pages.  Returns the bytes that it needs."""
        needed = packed_size(base)
        self._needed = max(self._needed, needed)
        return needed

    def is_due(self, base: Base) -> bool:
        """Whether the base would be much smaller."""
        size = sum(base.space)
        if size < SMALLEST:
            return False
        needed = self.observe(base)
        return needed * GAIN < size and needed < SHRUNK * self._needed

    def compacted(self, base: Base) -> None:
        """This is the new base."""
        self._needed = base.space.used


def frees_much(table: Table) -> bool:
    """Whether a checkpoint of the active memtable would give back much of the base, or of a log that was truncated."""
    base = table.base
    if table.frozen or not table.root_ready:
        return False
    is_truncated = table.truncation > base.truncation
    if is_truncated and table.log.position > table.active.size + FREED_MIN:
        return True
    records = base.live + base.dead
    gone = max(base.live - table.live_count, records - table.live_count - table.tombstone_count)
    if gone * 2 <= base.live:
        return False
    if not is_truncated and gone > len(table.active.records):
        return False  # counters of the base are damaged
    return gone * base.space.used > FREED_MIN * records


def packed_size(base: Base) -> int:
    """About how many bytes the file would have after a compaction, by a sample.  Raises Corruption, Shortage."""
    page_size = base.page_size
    usable = page_size - _PAGE_HEADER
    try:
        with base.snapshot(buffers=True) as view:
            count, pages = view.size(view.records), view.used_pages
            in_order = view.pages(view.records) + view.pages(view.index) - view.overflow_pages(view.records)
            records, index = _sample(view, usable)
    except lmdb.Error as error:
        raise translate(error, base.path) from error
    if count and not records:  # the index is damaged
        return pages * page_size
    return (pages - in_order) * page_size + int(count * (records + index) * page_size / usable)


def _sample(view: BaseSnapshot, usable: int) -> tuple[float, float]:
    """Mean bytes that a record takes among the records, without overflow pages, and its key in the index."""
    inline_max = usable // 2 - 2
    sizes: list[int] = []
    index_bytes = listed = 0
    with view.txn.cursor(db=view.index) as cursor:
        for number in range(SAMPLED_BUCKETS):
            bucket = (number * BUCKETS + BUCKETS // 2) // SAMPLED_BUCKETS
            if not cursor.set_range(bucket.to_bytes(2, "big")):
                continue
            keys = [bytes(key) for key in cursor.iternext_dup()]
            listed += len(keys)
            in_list = sum(_NODE + len(key) for key in keys)
            has_pages = in_list > inline_max
            index_bytes += math.ceil(in_list * _SPLIT / usable) * usable if has_pages else in_list + 2 * _NODE
            for key in keys[:SAMPLED_RECORDS]:
                record = len(view.txn.get(key, b""))
                in_page = len(key) + record + _NODE
                sizes.append(in_page if in_page <= inline_max else len(key) + 8 + _NODE)
    return (sum(sizes) / len(sizes), index_bytes / listed) if sizes else (0.0, 0.0)


def room_needed(base: Base) -> int:
    """Bytes that have to be free for a compaction, and for writes beside it."""
    return int(packed_size(base) * ROOM_SHARE) + ROOM_SPARE


def require_room(base: Base) -> None:
    """Raises NoRoom unless the disk has room for a compaction."""
    needed = room_needed(base)
    _, free = disk_space(base.path.parent)
    if free < needed:
        raise NoRoom(
            f"{base.path}: cannot be compacted: disk full: the new base needs about {needed >> 20} MiB beside the old "
            f"one, and {free >> 20} MiB are free"
        )
