"""Copies a data directory as it is at one moment, while a node may have it open.

A base together with the log from the base's checkpoint on is the whole data, wherever that log is cut: a start on the
copy yields the data of the node at the cut.

LMDB copies its newest state, which knows its checkpoint LSN. The segments from there on are copied too, through
descriptors that were opened before, so that none is lost if the node deletes it. The last segment is cut behind its
last whole frame. The copy contains every write that was acknowledged before it began, the truncation version, the GC
horizon and the metadata.

The node is not disturbed. While LMDB copies, it keeps the pages that the copy needs, so the base may grow.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import lmdb

from merklekv.engine.base.environment import DATA_FILE, map_size_of, translating
from merklekv.engine.directory import base_of, give_to_owner
from merklekv.engine.format import SEGMENT_HEADER
from merklekv.engine.log.segment import Segment, segment_path
from merklekv.errors import Corruption
from merklekv.node_id import NODE_ID_FILE
from merklekv_tool.output import Update
from merklekv_tool.snapshot import lmdb_copy
from merklekv_tool.source.log import readable_segments

ATTEMPTS: Final = 5
COPY_BYTES: Final = 1 << 20
TAIL_TRIES: Final = 50  # until a partly written frame must be whole
TAIL_WAIT_S: Final = 0.02


def copy_directory(source: Path, draft: Path, update: Update) -> None:
    """Copies a data directory into the empty directory `draft`. Raises Corruption, StorageFailed."""
    for _ in range(ATTEMPTS):
        with ExitStack() as stack:
            segments = _Segments(source / "log", stack)
            (draft / "base").mkdir()
            (draft / "log").mkdir()
            if lmdb_copy.size_of(base_of(source) / DATA_FILE):  # else a node died while it created the directory
                lmdb_copy.copy(source, draft / "base", update)
                with suppress(FileNotFoundError):  # a compaction of the node has just replaced it
                    give_to_owner(base_of(source), source.stat())  # LMDB creates a missing lock file
            segments.open()
            checkpoint_lsn, needed = _extent(draft / "base")
            is_whole = checkpoint_lsn in segments.files or not (segments.files or checkpoint_lsn)
            if is_whole and _copy_log(segments, checkpoint_lsn, draft / "log") >= needed:
                for name in ("FORMAT", NODE_ID_FILE):
                    if (source / name).is_file():
                        shutil.copyfile(source / name, draft / name)
                return
        empty(draft)
    raise Corruption(
        f"{source}: the log from {checkpoint_lsn} to {needed}, which the base needs, is not there; `merklekv verify` "
        "says more"
    )


class _Segments:
    """The segments of a log, kept open so that they can be read after they were deleted."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.files: dict[int, int] = {}  # LSN -> descriptor
        self.directory = directory
        self._stack = stack
        self.open()

    def open(self) -> None:
        """Opens the new ones."""
        for lsn in readable_segments(self.directory):
            if lsn not in self.files:
                try:
                    fd = os.open(segment_path(self.directory, lsn), os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                self._stack.callback(os.close, fd)
                self.files[lsn] = fd


def _extent(base: Path) -> tuple[int, int]:
    """LSNs: the checkpoint of a base, and the end of the checkpoint under way, which may be in the base in part."""
    if not (base / DATA_FILE).exists():
        return 0, 0
    with (
        translating(base),
        lmdb.open(str(base), readonly=True, lock=False, max_dbs=1, map_size=map_size_of(base)) as environment,
    ):
        try:
            meta = environment.open_db(b"meta", create=False)
        except lmdb.NotFoundError:  # a node died while it created the base
            return 0, 0
        with environment.begin(db=meta) as transaction:
            checkpoint_lsn = int.from_bytes(transaction.get(b"checkpoint_lsn", b""), "big")
            return checkpoint_lsn, max(checkpoint_lsn, int.from_bytes(transaction.get(b"checkpointing", b""), "big"))


def _copy_log(segments: _Segments, lsn: int, target: Path) -> int:
    """Copies the consecutive segments from `lsn` on. Returns the LSN behind the last one."""
    while lsn in segments.files:
        path = segment_path(target, lsn)
        end = _copy_segment(segments.files[lsn], path)
        later = sorted(other for other in segments.files if other > lsn)
        if end is None:  # torn or damaged: recovery of the copy tells which, from the later segments
            for other in later:
                _copy_segment(segments.files[other], segment_path(target, other))
            return later[-1] if later else lsn
        if later and later[0] != lsn + end and lsn in readable_segments(segments.directory):
            source = segments.directory / path.name
            raise Corruption(f"{source}: the segment behind it, {lsn + end}, is missing; `merklekv verify` says more")
        if not end:
            break
        lsn += end
    return lsn


def _copy_segment(fd: int, path: Path) -> int | None:
    """Copies whole frames. Returns the size of the copy, or None if other bytes follow the frames and stay there.

    A node may be writing the last frame: it is read again until it is whole.
    """
    position = 0
    for _ in range(TAIL_TRIES):
        _copy_bytes(fd, path, position)
        if path.stat().st_size <= SEGMENT_HEADER.size and not any(path.read_bytes()):
            path.unlink()  # the node was creating it
            return 0
        with Segment(path) as segment:
            position = max(position, SEGMENT_HEADER.size)
            for frame in segment.frames(position):
                position = frame.end
            zero_filled = segment.is_zero_filled(position)
        if zero_filled:
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


def empty(directory: Path) -> None:
    """Deletes everything in a directory."""
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
