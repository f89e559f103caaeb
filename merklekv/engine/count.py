"""Counting memtables in: what their records change of the leaves and the counters of the base below them.

    leaves of all records = leaves of the base + for each key in a memtable: its newest record - what the base has of it

Everything is linear, so this may be done at any time and beside writes, as long as it keeps to one moment: a write
meanwhile moves the leaves from the record that it replaces to its own, whether that one has been counted or not.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final, NamedTuple

from merklekv.engine.base.reader import Base
from merklekv.engine.merkle import MerkleTree, digest_number
from merklekv.engine.record import is_purge_marker, is_tombstone, padded

BLOCK_KEYS: Final = 8192  # sorted at once, in 3 ms, because neighbours in the base cost less
ASKED_KEYS: Final = 256


def _no_record(key: bytes) -> bytes | None:
    return None


class Counters(NamedTuple):
    """How many keys have a value, and how many a tombstone."""

    live: int
    dead: int


class Count:
    """The records of memtables at one moment, and the base below them at that moment.

    Contract: `run` needs no lock, changes nothing but the tree that it is given, and may be left and begun anew.

    Costs: 3 us a key.  While it exists, the base does not reuse the pages of its moment.
    """

    def __init__(self, records: Mapping[bytes, bytes], base: Base | None, truncation: bytes) -> None:
        """`records`: the newest of each key, purge markers too; `base`: a view of its own, None to ignore the base.

        `truncation`: the version (24 bytes) below which records of the base do not count.
        """
        self._records = records
        self._base = base
        self._truncation = truncation

    def __len__(self) -> int:
        return len(self._records)

    def run(self, tree: MerkleTree, goes_on: Callable[[], bool] = lambda: True) -> Counters | None:
        """Adds all that changes to a tree, and returns how the counters change; None if it was not to go on.

        It asks that every ASKED_KEYS keys: at some ms each where the base is on a cold disk, that is a second.

        Raises Corruption.
        """
        if self._base is None:
            return self._run(_no_record, tree, goes_on)
        with self._base.reading() as view:
            return self._run(view.txn.get, tree, goes_on)

    def _run(
        self, get: Callable[[bytes], bytes | None], tree: MerkleTree, goes_on: Callable[[], bool]
    ) -> Counters | None:
        records, truncation = self._records, self._truncation
        counts = [0, 0]
        rest = iter(records)
        while keys := sorted(islice(rest, BLOCK_KEYS)):
            for number, key in enumerate(keys):
                if not number % ASKED_KEYS and not goes_on():
                    return None
                record, hidden = records[key], get(key)
                total = count = 0
                if not is_purge_marker(record):
                    total, count = digest_number(record), 1
                    counts[is_tombstone(record)] += 1
                if hidden is not None and hidden >= truncation:
                    hidden = padded(hidden)
                    total, count = total - digest_number(hidden), count - 1
                    counts[is_tombstone(hidden)] -= 1
                tree.move(key, total, count)
        return Counters(*counts)
