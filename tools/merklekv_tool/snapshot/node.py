"""Copies the data of a running node as it is at one moment, through its port.

The records are read page by page while they change, and the log from the node's checkpoint on is copied meanwhile. So
the pages form a base that is ahead of its log in places, as a base is during a checkpoint; replaying the log over it
yields the data at the log's last entry. The copy contains every write that was acknowledged before it began.

Memory: one page, and INDEX_KEYS keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from merklekv.engine.base.writer import TRANSACTION_BYTES, TRANSACTION_KEYS, BaseWriter
from merklekv.engine.format import FORMAT_LINE, FORMAT_VERSION, SEGMENT_HEADER, bucket_of
from merklekv.engine.log.segment import segment_path
from merklekv.engine.record import ZERO_VERSION
from merklekv.node_id import NODE_ID_FILE
from merklekv_tool.errors import LogMoved
from merklekv_tool.output import Update
from merklekv_tool.snapshot.directory import ATTEMPTS, empty
from merklekv_tool.source.node import Node
from merklekv_tool.source.source import Pair

INDEX_KEYS: Final = 1 << 18  # written to the index at once, sorted by bucket, so that each of its pages is touched once
READ_BYTES: Final = 1 << 20  # of the log at once, which a node allows


def copy_node(node: Node, draft: Path, update: Update) -> None:
    """Copies the data of a node into the empty directory `draft`. Raises Unreachable, NodeError, LogMoved."""
    for attempt in range(1, ATTEMPTS + 1):
        (draft / "base").mkdir()
        (draft / "log").mkdir()
        (draft / "FORMAT").write_bytes(f"{FORMAT_LINE}{FORMAT_VERSION}\n".encode())
        node_id = node.statistics().get("node_id")
        if node_id:
            (draft / NODE_ID_FILE).write_bytes(f"{node_id}\n".encode())
        try:
            _copy_node(node, draft, update)
            return
        except LogMoved:
            if attempt == ATTEMPTS:
                raise
            empty(draft)


def _copy_node(node: Node, draft: Path, update: Update) -> None:
    _, checkpoint_lsn, _ = node.log_list()
    log = _LogCopy(node, draft / "log", checkpoint_lsn)
    log.copy()
    total = node.count()
    with BaseWriter(draft / "base") as base:
        truncation = node.truncation()
        if truncation > ZERO_VERSION:
            for _ in base.raise_truncation(truncation):
                pass
        metadata = node.metadata()
        filler = _BaseFiller(base, log)
        for page in node.pages():
            filler.add(page)
            update(filler.records, total)
        filler.finish()
        base.finish(checkpoint_lsn, metadata)
    log.copy()


class _BaseFiller:
    """Writes pages into a base in large transactions, and copies the log in between."""

    def __init__(self, base: BaseWriter, log: _LogCopy) -> None:
        self.records = 0
        self._base = base
        self._log = log
        self._pairs: list[Pair] = []
        self._bytes = 0
        self._keys: list[Pair] = []  # (bucket, key), not in the index yet

    def add(self, page: list[Pair]) -> None:
        self.records += len(page)
        self._pairs += page
        self._bytes += sum(len(record) for _, record in page)
        if len(self._pairs) >= TRANSACTION_KEYS or self._bytes >= TRANSACTION_BYTES:
            self._put()
        if len(self._keys) >= INDEX_KEYS:
            self._index()

    def finish(self) -> None:
        self._put()
        self._index()

    def _put(self) -> None:
        added = self._base.put(self._pairs)
        self._keys += [(bucket_of(key).to_bytes(2, "big"), key) for key in added]
        self._pairs, self._bytes = [], 0
        self._log.copy()

    def _index(self) -> None:
        self._keys.sort()
        for start in range(0, len(self._keys), TRANSACTION_KEYS):
            self._base.index(self._keys[start : start + TRANSACTION_KEYS])
            self._log.copy()
        self._keys = []


class _LogCopy:
    """A copy of a node's committed log from a segment on."""

    def __init__(self, node: Node, directory: Path, segment: int) -> None:
        self._node = node
        self._directory = directory
        self._segment = segment
        self._position = 0

    def copy(self) -> None:
        """Copies up to the present end. Raises LogMoved."""
        end, _, segments = self._node.log_list()
        while True:
            following = min((lsn for lsn in segments if lsn > self._segment), default=None)
            limit = (end if following is None else following) - self._segment
            self._copy_segment(max(limit, SEGMENT_HEADER.size))
            if following is None:
                return
            self._segment, self._position = following, 0

    def _copy_segment(self, limit: int) -> None:
        with segment_path(self._directory, self._segment).open("ab") as file:
            while self._position < limit:
                size = min(READ_BYTES, limit - self._position)
                data = self._node.read(self._segment, self._position, size)
                if not data:
                    raise LogMoved(f"{self._node.name}: deletes its log faster than it can be copied: try again later")
                file.write(data)
                self._position += len(data)
