"""The `repair` entries of the log: what the base has to rebuild beside its records.

When the scrub finds index, leaf, list of tombstones or counters of a bucket wrong, or replaces a damaged record, the
log gets a `repair` entry for the bucket.  The checkpoint or the start that reads the segment calls
`BaseWriter.rebuild` first, because a checkpoint relies on what is derived.
"""

from collections.abc import Iterable

from merklekv.engine.format import bucket_of


class Repairs:
    """The buckets to rebuild, each with keys that the index may lack."""

    def __init__(self) -> None:
        self.buckets: dict[int, set[bytes]] = {}

    def add(self, bucket: bytes, key: bytes) -> None:
        """Takes in a `repair` entry; the key may be empty."""
        self.buckets.setdefault(int.from_bytes(bucket, "big"), set()).update((key,) if key else ())

    def complete(self, keys: Iterable[bytes]) -> None:
        """Adds those of the log's keys that are in these buckets: a cut checkpoint may not have listed them."""
        for key in keys if self.buckets else ():
            if (bucket := bucket_of(key)) in self.buckets:
                self.buckets[bucket].add(key)
