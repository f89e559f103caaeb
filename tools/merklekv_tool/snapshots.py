"""Copies of data as it is at one moment, taken while its node goes on: what `backup` is made of.

Both kinds rest on the same fact: a base together with the log from the place where that base ends is the whole data, up
to wherever that log is cut. What a start makes of it is exactly what the node held then.

Of a directory, open or not: LMDB copies its newest state, which knows up to where (LSN) the log is in it; the segments
from there on are copied beside it, through descriptors that were opened before, so that none is lost by being deleted.
The last one is cut behind its last whole frame. Nothing of the node is disturbed; while it is copied, LMDB keeps the
pages that the copy needs, so the base may grow.

Of a node, through its port: records are read page by page while they change, and the log from where the base ended
when it began is copied along. So the pages stand for a base that is ahead of its log in places, as a base is while it
takes in a segment; reading the log over it makes all of it as it was at the log's last entry.

In both cases that moment lies after the beginning: every write that was acknowledged before is in the copy, as are the
floor, the horizon and the notes.

Memory: one page, and INDEX_KEYS keys.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import lmdb

from merklekv.engine.base import MAP_SIZE, TRANSACTION_BYTES, TRANSACTION_KEYS, BaseWriter
from merklekv.engine.directory import give_to_owner
from merklekv.engine.format import FORMAT_LINE, FORMAT_VERSION, SEGMENT_HEADER, bucket_of
from merklekv.engine.log import Segment, segment_path
from merklekv.engine.record import ZERO_VERSION
from merklekv.errors import Corruption, MerkleKVError
from merklekv_tool import copying
from merklekv_tool.output import Update
from merklekv_tool.segments import readable_segments

if TYPE_CHECKING:
    from merklekv_tool.places import Node, Pair

ATTEMPTS: Final = 5
INDEX_KEYS: Final = 1 << 18  # are put into the index at once, by bucket, since it touches its pages once that way
COPY_BYTES: Final = 1 << 20
MIRROR_BYTES: Final = 1 << 20  # at once, which a node allows
TAIL_TRIES: Final = 50  # until a frame that is being written must be whole
TAIL_WAIT_S: Final = 0.02
NODE_ID_FILE: Final = "node-id"


class LogMoved(MerkleKVError):
    """The log was deleted faster than it could be copied."""


def of_directory(source: Path, draft: Path, update: Update) -> None:
    """Copies a data directory, open or not, into the empty directory `draft`. Raises Corruption, StorageFailed."""
    for _ in range(ATTEMPTS):
        with ExitStack() as stack:
            segments = _Segments(source / "log", stack)
            (draft / "base").mkdir()
            (draft / "log").mkdir()
            data = source / "base" / "data.mdb"
            if data.exists() and data.stat().st_size:  # else a node died while it made the directory
                copying.copy(source / "base", draft / "base", update)
                give_to_owner(source / "base", source.stat())  # LMDB makes its lock file where it is missing
            segments.open()
            checkpoint_lsn, needed = _extent(draft / "base")
            is_whole = checkpoint_lsn in segments.files or not (segments.files or checkpoint_lsn)
            if is_whole and _copy_log(segments, checkpoint_lsn, draft / "log") >= needed:
                for name in ("FORMAT", NODE_ID_FILE):
                    if (source / name).is_file():
                        shutil.copyfile(source / name, draft / name)
                return
        _empty(draft)
    raise Corruption(
        f"{source}: the log from {checkpoint_lsn} to {needed}, which the base needs, is not there: verify it"
    )


class _Segments:
    """The segments of a log, open, so that they can be read also after they were deleted."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.files: dict[int, int] = {}  # LSN -> descriptor
        self._directory = directory
        self._stack = stack
        self.open()

    def open(self) -> None:
        """Opens those that have come since."""
        for lsn in self.listed():
            if lsn not in self.files:
                try:
                    fd = os.open(segment_path(self._directory, lsn), os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                self._stack.callback(os.close, fd)
                self.files[lsn] = fd

    def listed(self) -> list[int]:
        """Those that are there now."""
        return readable_segments(self._directory)


def _extent(base: Path) -> tuple[int, int]:
    """LSNs: up to where a base holds the whole log, and up to where it may hold parts of it."""
    if not (base / "data.mdb").exists():
        return 0, 0
    with lmdb.open(str(base), readonly=True, lock=False, max_dbs=1, map_size=MAP_SIZE) as environment:
        meta = environment.open_db(b"meta", create=False)
        with environment.begin(db=meta) as transaction:
            checkpoint_lsn = int.from_bytes(transaction.get(b"checkpoint_lsn", b""), "big")
            return checkpoint_lsn, max(checkpoint_lsn, int.from_bytes(transaction.get(b"checkpointing", b""), "big"))


def _copy_log(segments: _Segments, lsn: int, target: Path) -> int:
    """Copies the segments from `lsn` on that join each other; the LSN behind the last one."""
    while lsn in segments.files:
        path = segment_path(target, lsn)
        end = _copy_segment(segments.files[lsn], path)
        later = sorted(other for other in segments.files if other > lsn)
        if end is None:  # torn by a crash, or damaged: the rest goes along, and recovery tells which
            for other in later:
                _copy_segment(segments.files[other], segment_path(target, other))
            return later[-1] if later else lsn
        if later and later[0] != lsn + end and lsn in segments.listed():
            raise Corruption(f"{path.name}: the segment behind it, {lsn + end}, is missing: `merklekv-tool verify`")
        if not end:
            break
        lsn += end
    return lsn


def _copy_segment(fd: int, path: Path) -> int | None:
    """Copies whole frames, and says where they end; None when something else is behind them and stays there.

    Beside a node the last frame may be half written: it is looked at again until it is whole.
    """
    position = 0
    for _ in range(TAIL_TRIES):
        _copy_bytes(fd, path, position)
        if path.stat().st_size <= SEGMENT_HEADER.size and not any(path.read_bytes()):
            path.unlink()  # was being made
            return 0
        with Segment(path) as segment:
            position = max(position, SEGMENT_HEADER.size)
            for frame in segment.frames(position):
                position = frame.end
            blank = segment.is_zero_filled(position)
        if blank:
            os.truncate(path, position)
            return position
        time.sleep(TAIL_WAIT_S)
    return None


def _copy_bytes(fd: int, path: Path, position: int) -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(position)
        file.seek(position)
        while data := os.pread(fd, COPY_BYTES, file.tell()):
            file.write(data)


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def of_node(node: Node, draft: Path, update: Update) -> None:
    """Copies what a running node holds into the empty directory `draft`. Raises Unreachable, NodeError, LogMoved."""
    for attempt in range(1, ATTEMPTS + 1):
        (draft / "base").mkdir()
        (draft / "log").mkdir()
        (draft / "FORMAT").write_text(f"{FORMAT_LINE}{FORMAT_VERSION}\n")
        node_id = node.statistics().get("node_id")
        if node_id:
            (draft / NODE_ID_FILE).write_text(node_id + "\n")
        try:
            _copy_node(node, draft, update)
            return
        except LogMoved:
            if attempt == ATTEMPTS:
                raise
            _empty(draft)


def _copy_node(node: Node, draft: Path, update: Update) -> None:
    _, checkpoint_lsn, _ = node.log_list()
    mirror = _Mirror(node, draft / "log", checkpoint_lsn)
    mirror.pull()
    total = node.count()
    with BaseWriter(draft / "base") as base:
        truncation = node.truncation()
        if truncation > ZERO_VERSION:
            for _ in base.raise_truncation(truncation):
                pass
        metadata = node.metadata()
        filling = _Filling(base, mirror)
        for page in node.pages():
            filling.add(page)
            update(filling.records, total)
        filling.finish()
        base.finish(checkpoint_lsn, metadata)
    mirror.pull()


class _Filling:
    """Puts pages into a base, in large transactions, with the log followed in between."""

    def __init__(self, base: BaseWriter, mirror: _Mirror) -> None:
        self.records = 0
        self._base = base
        self._mirror = mirror
        self._pairs: list[Pair] = []
        self._bytes = 0
        self._keys: list[Pair] = []  # bucket and key, not in the index yet

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
        self._mirror.pull()

    def _index(self) -> None:
        self._keys.sort()
        for start in range(0, len(self._keys), TRANSACTION_KEYS):
            self._base.index(self._keys[start : start + TRANSACTION_KEYS])
            self._mirror.pull()
        self._keys = []


class _Mirror:
    """The log of a running node from a segment on, byte by byte, as far as it is committed."""

    def __init__(self, node: Node, directory: Path, segment: int) -> None:
        self._node = node
        self._directory = directory
        self._segment = segment
        self._position = 0

    def pull(self) -> None:
        """Copies up to the end as it is now. Raises LogMoved."""
        end, _, segments = self._node.log_list()
        while True:
            following = min((lsn for lsn in segments if lsn > self._segment), default=None)
            limit = (end if following is None else following) - self._segment
            self._copy(max(limit, SEGMENT_HEADER.size))
            if following is None:
                return
            self._segment, self._position = following, 0

    def _copy(self, limit: int) -> None:
        with segment_path(self._directory, self._segment).open("ab") as file:
            while self._position < limit:
                size = min(MIRROR_BYTES, limit - self._position)
                data = self._node.log_read(self._segment, self._position, size)
                if not data:
                    raise LogMoved(f"{self._node.name}: deletes its log faster than it can be copied: try again later")
                file.write(data)
                self._position += len(data)
