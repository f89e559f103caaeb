"""A data directory that no process has open, as a source of records. Opening it repairs what a node's start repairs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from merklekv.engine.clock_watch import clock_problem
from merklekv.engine.engine import Engine
from merklekv.engine.format import OP_DEL, OP_SET
from merklekv.engine.record import is_tombstone
from merklekv.errors import Corruption, InvalidArgument
from merklekv.replication.cluster.display import DisplayRow, display_rows, stored_members
from merklekv.replication.cluster.members import MembersUnreadable
from merklekv.replication.cluster.storage import METADATA_MEMBERS
from merklekv_tool.source.source import ORIGIN, PAGE_BYTES, PAGE_RECORDS, Content, Merged, Pair, split_by_size


class Directory:
    """See `source.Source`."""

    def __init__(self, path: Path, to_load: bool) -> None:
        self.name = str(path)
        # Loaded records are made durable once, by `close`.
        self._engine = Engine(path, durability="never", checkpoint="process" if to_load else "manual")

    def count(self) -> int:
        return self._engine.records_max

    def truncation(self) -> bytes:
        return self._engine.truncation

    def pages(self, prefix: bytes = b"") -> Iterator[list[Pair]]:
        after: bytes | None = b""
        while after is not None:
            pairs, after = self._engine.records_page(prefix, after, PAGE_RECORDS, PAGE_BYTES)
            yield pairs

    def root(self) -> bytes:
        while not self._engine.root_ready:
            self._engine.checkpoint_now()
        return self._engine.root()

    def inner_digests(self) -> list[bytes]:
        self.root()  # known from here on
        return self._engine.inner_digests() or []

    def leaves(self, inner: Sequence[int]) -> list[bytes]:
        self.root()
        return [self._engine.inner_leaves(node) for node in inner]

    def heads(self, buckets: Sequence[int]) -> Iterator[list[Pair]]:
        while not self._engine.prepare_buckets():
            pass
        return map(self._engine.bucket, buckets)

    def members(self) -> list[DisplayRow]:
        table = self._engine.metadata.get(METADATA_MEMBERS)
        if not table:
            return []
        try:
            members = stored_members(table)
        except MembersUnreadable as error:
            raise Corruption(f"{self.name}: {error}; a start sets it aside") from error
        problem = clock_problem(self._engine.clock, members.identity.node, self.name).text
        return display_rows(members, self._engine.gc_horizon, time.time(), problem)

    def merge(self, pairs: list[Pair]) -> Merged:
        items = [(OP_DEL if is_tombstone(record) else OP_SET, key, record) for key, record in pairs]
        result = self._engine.retry_stalled(lambda: self._engine.merge(items, ORIGIN))
        self._engine.commit()
        return Merged(*result)

    def write(self, contents: list[Content]) -> Merged:
        fit, refused = split_by_size(contents, self._engine.max_value_size)
        for content in fit:
            self._engine.retry_stalled(partial(self._engine.set, *content))
        self._engine.commit()
        return Merged(len(fit), 0, refused)

    def merge_truncation(self, truncation: bytes) -> None:
        times = self._engine.time_gate
        if not times.admits_truncation(truncation):
            raise InvalidArgument(f"a truncation version {times.describe_truncation(truncation)}")
        self._engine.merge_truncation(truncation, ORIGIN)
        self._engine.commit()

    def close(self) -> None:
        self._engine.close()
