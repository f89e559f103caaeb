"""What the cluster has settled: the horizon, and the collection of tombstones below it.

Below the horizon every member has merged everything, so nothing new can come from there, and a tombstone there has
nothing left to hide.  `collect` removes these; from then on a record from there that would change something is
refused (`merge`): it has been here once, and can only be one that was killed since.  Who decides how far the horizon
goes, and what a node does that was away for longer: merklekv/replication.

Every step is in the log before anything else, like a write, but is no local event: it is not published.

    raise_gc_horizon -> note "horizon"         collect -> a marker for each record that goes

Costs: collecting 5 us a tombstone; raising the horizon looks at each tombstone between the old one and the new.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from merklekv.engine.base import Pair
from merklekv.engine.durable import Durable
from merklekv.engine.format import GC_HORIZON_SIZE, INNER_NODES, METADATA_GC_HORIZON
from merklekv.engine.merkle import pack_leaves
from merklekv.engine.record import TOMBSTONE, ZERO_VERSION, flags_of
from merklekv.errors import Corruption, Shortage

COLLECT_KEYS: Final = 1000  # in one call of `collect`
TOMBSTONES_READ: Final = 1000  # of the base, at once
INNER_SLICE: Final = 32  # inner nodes whose digests are computed at once, 1 to 2 ms


def bound_of(gc_horizon: int) -> bytes:
    """The largest version (24 bytes) at the horizon; every record at or below it compares as less."""
    return gc_horizon.to_bytes(8, "big") + b"\xff" * 16 if gc_horizon else ZERO_VERSION


class Settled(Durable):
    """Adds the horizon and the notes to `Durable`.  Options and errors: see `Engine`."""

    def __init__(self, path: str | Path, **options: Any) -> None:
        super().__init__(path, **options)
        size = len(self.metadata.get(METADATA_GC_HORIZON, bytes(GC_HORIZON_SIZE)))
        if size != GC_HORIZON_SIZE:
            self.close()
            raise Corruption(
                f"{path}: the horizon in the log has {size} bytes, not {GC_HORIZON_SIZE}; "
                "keep a copy of the directory and restore a backup of it"
            )
        self._bound = bound_of(self.gc_horizon)
        self.clock.keep_promise(self.gc_horizon)
        self._look_anew()

    def _look_anew(self) -> None:
        self._collected = ZERO_VERSION  # tombstones of the base up to here have been looked at
        self._due = self._due_tombstones()

    def _replay(self) -> None:
        super()._replay()
        self._bound = bound_of(self.gc_horizon)
        self._look_anew()

    # -- the horizon ---------------------------------------------------------------------------------------------------

    @property
    def gc_horizon(self) -> int:
        """Nanoseconds since the epoch; records at or below it are settled.  0: none are."""
        return int.from_bytes(self.metadata.get(METADATA_GC_HORIZON, b""), "big")

    def raise_gc_horizon(self, gc_horizon: int) -> bool:
        """Moves the horizon up, in ns; whether it was below.  The caller knows that all members have got this far."""
        with self.lock:
            if gc_horizon <= self.gc_horizon:
                return False
            self.note(METADATA_GC_HORIZON, gc_horizon.to_bytes(GC_HORIZON_SIZE, "big"))
            self._bound = bound_of(gc_horizon)
            self.clock.keep_promise(gc_horizon)
            self._due = self._due_tombstones()
            return True

    def collect(self, limit: int = COLLECT_KEYS) -> bool:
        """Looks at up to `limit` tombstones and removes those below the horizon; whether there may be more to do.

        Raises Shortage, StorageFailed.
        """
        with self.lock:
            self._require_writable()
            keys = list(islice(self._due, limit))
            try:
                for key in keys:
                    record = self._layers.lookup(key)
                    if record is not None and record <= self._bound and flags_of(record) == TOMBSTONE:
                        self._remove(key, record)
            except Shortage:
                self._look_anew()  # what was not removed comes again
                raise
            return len(keys) == limit

    def _due_tombstones(self) -> Iterator[bytes]:
        """Keys that may have a tombstone below the horizon; each may come more than once."""
        layers, bound = self._layers, self._bound
        for table in (layers.active, *layers.frozen):
            yield from list(table.tombstones)
        while pairs := layers.base.tombstones_from(self._collected, bound, TOMBSTONES_READ):
            yield from (key for _, key in pairs)
            self._collected = pairs[-1][0]  # not before: a new pass may begin in the middle of these

    # -- what an exchange compares -------------------------------------------------------------------------------------

    def prepare_root(self) -> Iterator[None]:
        """Does in slices most of what `root` and `inner_digests` would do at once, after many writes."""
        for first in range(0, INNER_NODES, INNER_SLICE):
            with self.lock:
                self._tree.refresh(range(first, first + INNER_SLICE))
            yield

    def inner_digests(self) -> list[bytes]:
        """The digests of the 256 inner nodes, 32 bytes each.  Meaningless unless `root_ready`."""
        with self.lock:
            return list(self._tree.inner_digests())

    def leaf_digests(self, inner: int) -> bytes:
        """What tells two leaves apart: 8 bytes for each of the 256 below an inner node, zeros when it is empty."""
        with self.lock:
            return self._tree.leaf_digests(inner)

    def inner_leaves(self, inner: int) -> bytes:
        """The 256 leaves below an inner node, as in the base: sum of digests (16 bytes) and count (8) each."""
        with self.lock:
            return pack_leaves(self._tree.inner_leaves(inner))

    def prepare_buckets(self) -> bool:
        """A slice of a few ms of what `bucket` needs; call it until it is True."""
        with self.lock:
            return self._layers.group()

    def bucket(self, bucket: int) -> list[Pair]:
        """(key, head of 41 bytes) of each record of a bucket, in key order, tombstones too."""
        with self.lock:
            while not self._layers.group():
                pass  # only what has come since `prepare_buckets`
            return self._layers.bucket(bucket)
