"""The commit log of a data directory or of a running node, read forwards, frame by frame, without changing anything.

A directory may be read while a node has it open: the node only appends to its log, a checksum tells a whole frame from
a partly written one, and an open segment can be read to its end after it was deleted. Frames read this way may not be
on disk yet. A node returns over its port only what it has committed.

The reader returns each frame once, in order. If segments were deleted before they were read, it goes on at the next
one and counts the bytes in `skipped`. A bad frame with more of the log behind it is Corruption.

Memory: one frame, or READ_BYTES.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from merklekv.engine.format import (
    FRAME_HEADER,
    FRAME_MAGIC,
    OP_DEL,
    OP_METADATA,
    OP_ORIGIN,
    OP_PURGE,
    OP_REPAIR,
    OP_TRUNCATE,
    SEGMENT_HEADER,
    frame_checksum,
)
from merklekv.engine.log.segment import list_segments, segment_path
from merklekv.engine.record import timestamp_of, value_of
from merklekv.engine.verify.reference import Entry, read_entries
from merklekv.errors import Corruption
from merklekv_tool.errors import FileError
from merklekv_tool.source.node import Node

READ_BYTES: Final = 1 << 20


class LogSource(Protocol):
    """A source of the bytes of segments."""

    name: str

    def segments(self) -> list[int]:
        """LSNs of the segments, in order."""

    def read(self, segment: int, position: int, size: int) -> bytes | None:
        """At most `size` bytes; fewer, or none, at the end; None if the segment was deleted."""


def readable_segments(directory: Path) -> list[int]:
    """LSNs of the segments in a log directory, in order. Raises FileError if it cannot be read."""
    try:
        os.scandir(directory).close()
    except OSError as error:
        raise FileError(f"{directory}: cannot be read: {error.strerror}") from error
    return list_segments(directory)


class DirectoryLog:
    """The log of a data directory. The last segment read stays open, so that it can be read to its end."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._directory = path / "log"
        self._segment = -1
        self._fd = -1

    def segments(self) -> list[int]:
        return readable_segments(self._directory)

    def read(self, segment: int, position: int, size: int) -> bytes | None:
        path = segment_path(self._directory, segment)
        try:
            if segment != self._segment:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self.close()
                self._segment, self._fd = segment, fd
            return os.pread(self._fd, size, position)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FileError(f"{path}: cannot read: {error.strerror}") from error

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._segment = self._fd = -1


class NodeLog:
    """The log of a running node."""

    def __init__(self, node: Node) -> None:
        self.name = node.name
        self._node = node

    def segments(self) -> list[int]:
        return self._node.log_list()[2]

    def read(self, segment: int, position: int, size: int) -> bytes | None:
        return self._node.log_read(segment, position, size)


class Frame(NamedTuple):
    """A commit."""

    lsn: int
    sequence: int  # of its first local event
    payload: bytes


class Event(NamedTuple):
    """An entry of the log with its surroundings."""

    lsn: int  # of its frame
    sequence: int | None  # of a local event
    origin: str | None  # the node that it came from, None for this one
    entry: Entry

    @property
    def time_ns(self) -> int | None:
        """The timestamp of its version, ns since the epoch; None without a version."""
        return None if self.entry.op in (OP_METADATA, OP_REPAIR) else timestamp_of(self.entry.record)

    @property
    def value(self) -> bytes | None:
        """The stored value, None if the entry stores none."""
        if self.entry.op in (OP_DEL, OP_TRUNCATE, OP_PURGE):
            return None
        record = self.entry.record
        return record if self.entry.op in (OP_METADATA, OP_REPAIR) else value_of(record)


class LogReader:
    """Reads from the oldest segment on. `next_frame` is None at the present end of the log; call it again later."""

    def __init__(self, source: LogSource) -> None:
        self.skipped = 0  # bytes of the log that were deleted before they were read
        self._source = source
        self._segment = -1
        self._position = 0
        self._buffer, self._buffer_at = b"", 0

    def next_frame(self) -> Frame | None:
        """The next whole frame. Raises Corruption."""
        if self._segment < 0 and not self._begin():
            return None
        while (frame := self._frame()) is None:
            segments = self._source.segments()
            later = [segment for segment in segments if segment > self._segment]
            if not later:
                return None
            frame = self._frame()  # it may have been finished since
            if frame is not None:
                break
            reached = self._segment + self._position
            if later[0] != reached:
                if self._segment in segments:
                    raise Corruption(
                        f"{self._source.name}: the log segment {self._segment} is damaged at byte {self._position}: no "
                        "whole frame there, and more of the log behind it; `merklekv-tool verify` lists the damage"
                    )
                self.skipped += later[0] - reached
            self._turn_to(later[0])
        self._position += FRAME_HEADER.size + len(frame.payload)
        return frame

    def unread(self) -> bool:
        """Whether something other than zero-filled room is behind the last whole frame."""
        return any(self._bytes(FRAME_HEADER.size, anew=True)) if self._segment >= 0 else False

    def _begin(self) -> bool:
        segments = self._source.segments()
        if segments:
            self._turn_to(segments[0])
        return bool(segments)

    def _turn_to(self, segment: int) -> None:
        self._segment, self._position = segment, SEGMENT_HEADER.size
        self._buffer, self._buffer_at = b"", 0

    def _frame(self) -> Frame | None:
        return self._frame_in_buffer(anew=False) or self._frame_in_buffer(anew=True)

    def _frame_in_buffer(self, anew: bool) -> Frame | None:
        head = self._bytes(FRAME_HEADER.size, anew)
        if len(head) < FRAME_HEADER.size or head[:4] != FRAME_MAGIC:
            return None
        _, length, synced, sequence, local_count, entry_count, checksum = FRAME_HEADER.unpack(head)
        payload = self._bytes(FRAME_HEADER.size + length)[FRAME_HEADER.size :]
        fields = (length, synced, sequence, local_count, entry_count)
        if len(payload) < length or checksum != frame_checksum(self._segment, self._position, fields, payload):
            return None
        start = self._position if self._position != SEGMENT_HEADER.size else 0
        return Frame(self._segment + start, sequence, payload)

    def _bytes(self, size: int, anew: bool = False) -> bytes:
        """At most `size` bytes from here on; `anew`: not from the buffer."""
        offset = self._position - self._buffer_at
        if anew or offset < 0 or offset + size > len(self._buffer):
            self._buffer, self._buffer_at, offset = b"", self._position, 0
            while len(self._buffer) < size:
                at = self._position + len(self._buffer)
                part = self._source.read(self._segment, at, READ_BYTES)
                if not part:
                    break
                self._buffer += part
        return self._buffer[offset : offset + size]


def events(frame: Frame, name: str) -> Iterator[Event]:
    """The entries of a frame, without those that only name an origin. Raises Corruption."""
    origin: str | None = None
    sequence = frame.sequence
    try:
        for entry in read_entries(frame.payload):
            if entry.op == OP_ORIGIN:
                origin = entry.key.decode(errors="replace")
            elif entry.remote:
                own = entry.op in (OP_METADATA, OP_PURGE, OP_REPAIR)  # not published, but not from another node either
                yield Event(frame.lsn, None, None if own else origin, entry)
            else:
                yield Event(frame.lsn, sequence, None, entry)
                sequence += 1
    except ValueError as error:
        raise Corruption(f"{name}: the log is damaged in the frame at LSN {frame.lsn}: {error}") from error
