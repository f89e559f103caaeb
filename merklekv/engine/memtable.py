"""Recent writes in memory: newest record of each key, and the keys in order for a scan.

Memory: about `charge()` bytes for each key, and EXPIRY_OVERHEAD for each expiry.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain, islice
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

from merklekv.core import compiled
from merklekv.engine.format import BUCKETS, bucket_of
from merklekv.engine.record import purge_marker

SLICE_KEYS: Final = 2000  # looked at in one call of `prepare` or `group`
BLOCK_KEYS: Final = 2048
HALVED_MAX: Final = 4  # blocks in one call of `prepare`: evenly drawn keys fill all of them at about the same time
GROUP_SHIFT: Final = 52  # the 12 bits of a key's XXH3-64 above it name its group, which has 16 buckets
GROUPS: Final = 1 << 64 - GROUP_SHIFT
PURGE_TIME_SIZE: Final = 12  # ns of a time that is given in ms
KEY_OVERHEAD: Final = 176  # bytes for each key beside it and its record: object headers, slots of table and order
EXPIRY_OVERHEAD: Final = 82  # likewise, for each key in `Expiries`
NUMBERED_KEYS: Final = 1024

pack_number: Final = Struct(">I").pack
"""The number of a key in `Expiries` as the heaps have it, 4 bytes."""

from_bytes = int.from_bytes


def charge(key: bytes, record: bytes) -> int:
    """Bytes of memory that a new key is taken to cost."""
    return len(key) + len(record) + KEY_OVERHEAD


def prefix_end(prefix: bytes) -> bytes | None:
    """The first key behind all keys with this prefix; None when there is none."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,)) if trimmed else None


class _Newcomers:
    """The keys of a dict that grows, each once, a slice at a time."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []  # newest first
        self._taken = 0  # keys that are in `_waiting` or were

    def take(self, records: dict[bytes, bytes]) -> list[bytes]:
        """At most SLICE_KEYS more, newest first."""
        if not self._waiting:
            # All at once: a dictionary can only be entered at its ends.
            self._waiting = list(islice(reversed(records), len(records) - self._taken))
            self._taken = len(records)
        keys = self._waiting[-SLICE_KEYS:]
        del self._waiting[-SLICE_KEYS:]
        return keys

    def put_back(self, keys: list[bytes]) -> None:
        """Takes again what is left of a slice, in the same order."""
        self._waiting += keys

    def all_taken(self, records: dict[bytes, bytes]) -> bool:
        """Whether there are no more."""
        return not self._waiting and self._taken == len(records)


@compiled
class Records(dict[bytes, bytes]):
    """The newest record of each key, in the order in which the keys came.  Nothing is ever removed from it.

    So its last `n` keys are its newest, and neither order nor buckets cost a write anything: a reader that needs them
    first adds the new keys, a slice at a time.  A slice takes below 1 ms, but for the first, which lists all new keys:
    3 ms with 200,000.  The compiled core adds the keys when they come, and has no slices.

    Order is kept in blocks: each has the keys of a range, and is sorted when it is read, or when it is so large that it
    is halved.  So many keys are never sorted at once.  Buckets are kept in groups: reading one splits its group, so the
    others of that are cheap.
    """

    def __init__(self, is_ordered: bool = True) -> None:
        """`is_ordered`: its readers need order or buckets."""
        super().__init__()
        self._to_order, self._to_group = _Newcomers(), _Newcomers()
        self._blocks: list[list[bytes]] = [[]]  # each in no order
        self._lows = [b""]  # of each block: its keys are at or above it, and below the next one's
        self._groups: defaultdict[int, list[bytes]] = defaultdict(list)  # made when they are asked for
        self._split_of = (0, 0)  # the group, and how many keys it had, of
        self._split: defaultdict[int, list[bytes]] = defaultdict(list)  # its buckets

    def prepare(self) -> bool:
        """A slice of bringing keys in order; True when all keys are."""
        blocks, lows = self._blocks, self._lows
        keys = self._to_order.take(self)
        halved = 0
        while keys and halved < HALVED_MAX:
            key = keys.pop()
            at = bisect_right(lows, key) - 1
            block = blocks[at]
            block.append(key)
            if len(block) > BLOCK_KEYS:
                block.sort()
                blocks.insert(at + 1, block[BLOCK_KEYS // 2 :])
                del block[BLOCK_KEYS // 2 :]
                lows.insert(at + 1, blocks[at + 1][0])
                halved += 1
        self._to_order.put_back(keys)
        return self._to_order.all_taken(self)

    def group(self) -> bool:
        """A slice of putting keys into their groups; True when all keys are there."""
        if self._to_group.all_taken(self):
            return True
        for key in self._to_group.take(self):
            self._groups[xxh3_64_intdigest(key) >> GROUP_SHIFT].append(key)
        return self._to_group.all_taken(self)

    def bucket(self, bucket: int) -> list[bytes]:
        """The keys of a bucket, in no order.  Needs `group`."""
        group = bucket * GROUPS // BUCKETS
        keys = self._groups.get(group, [])
        if self._split_of != (group, len(keys)):
            self._split_of = (group, len(keys))
            self._split = defaultdict(list)
            for key in keys:
                self._split[bucket_of(key)].append(key)
        return self._split.get(bucket, [])

    def items_from(self, low: bytes, end: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """At most `limit` keys from `low` to below `end` (None: no bound), in order, and records.  Needs `prepare`."""
        keys: list[bytes] = []
        at = bisect_right(self._lows, low) - 1
        while len(keys) < limit and at < len(self._blocks) and (end is None or self._lows[at] < end):
            block = self._blocks[at]
            block.sort()
            first = bisect_left(block, low)
            last = len(block) if end is None else bisect_left(block, end, first)
            keys += block[first : min(last, first + limit - len(keys))]
            at += 1
        return [(key, self[key]) for key in keys]


class Expiries:
    """The keys of a memtable that were given an expiry.  Its entries may be stale: the key maps to something else now.

    A key whose expiry was put off keeps its entry, which is moved when its time comes.  So a key that is set again and
    again has one entry.

    An entry of a heap is a time and the number of a key, so it copies no key.  The keys by number are in tuples: a full
    garbage collection looks at each object in a list, but not at those in a tuple of bytes.

    Memory: 82 bytes for a key.
    """

    def __init__(self) -> None:
        self.new: list[bytes] = []  # keys that were written and are in neither heap yet
        self.waiting: list[bytes] = []  # a heap of expiry place + number: those above the watermark, see expiry.py
        self.passed: list[bytes] = []  # a heap of time of purging (12 bytes, ns) + number: those at or below it
        self._numbered: list[tuple[bytes, ...]] = []  # up to NUMBERED_KEYS each
        self._taken = 0  # keys in there

    def take_new(self, limit: int) -> Iterator[tuple[int, bytes]]:
        """Takes at most `limit` keys, and NUMBERED_KEYS, out of `new`; the number of each, and the key."""
        limit = min(limit, NUMBERED_KEYS)
        keys = tuple(self.new[-limit:])
        numbered = self._numbered
        # What may find no memory comes before anything is taken away.
        if numbered and len(numbered[-1]) + len(keys) <= NUMBERED_KEYS:
            first = (len(numbered) - 1) * NUMBERED_KEYS + len(numbered[-1])
            numbered[-1] += keys
        else:
            first = len(numbered) * NUMBERED_KEYS
            numbered.append(keys)
        del self.new[-limit:]
        self._taken += len(keys)
        return enumerate(keys, first)

    def key_of(self, entry: bytes) -> bytes:
        """The key of an entry of a heap."""
        number = from_bytes(entry[-4:])
        return self._numbered[number // NUMBERED_KEYS][number % NUMBERED_KEYS]

    def __len__(self) -> int:
        """How many keys it has, some of them several times."""
        return self._taken + len(self.new)

    @property
    def pending(self) -> int:
        """How many entries there are of keys that are still to expire."""
        return len(self.new) + len(self.waiting)

    def start_over(self) -> None:
        """The watermark starts again."""
        self.new += chain.from_iterable(self._numbered)
        self._numbered.clear()
        self._taken = 0
        self.waiting.clear()
        self.passed.clear()


class Memtable:
    """One memtable.  Not locked: the table calls it with the engine's lock."""

    def __init__(self, lsn: int) -> None:
        self.lsn = lsn  # of the segment with the same changes
        self.records = Records()
        self.size = 0  # bytes charged for keys and records
        self.tombstones: list[bytes] = []  # every key that was deleted here; what it maps to may have changed since
        self.expiries = Expiries()

    @property
    def charged(self) -> int:
        """Bytes of memory that it is taken to use."""
        return self.size + EXPIRY_OVERHEAD * len(self.expiries)

    def drop_below(self, truncation: bytes, hides: bool) -> None:
        """Forgets every record with a version below `truncation`; if it `hides` something, markers stay instead."""
        marker = purge_marker(truncation)
        before, self.records = self.records, Records()
        for key, record in before.items():
            if record >= truncation:
                self.records[key] = record
            elif hides:
                self.records[key] = marker
        self.size = sum(charge(key, record) for key, record in self.records.items())

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.records)
