"""Reads committed frames forwards.

The bytes come from a `LogSource`: the files of a directory, or a node.  Log files only grow, and the checksum tells
whether a frame is whole, so a directory may be read while a process writes to it.

Memory: one frame, or READ_BYTES.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from merklekv.engine.format import FRAME_HEADER, FRAME_MAGIC, SEGMENT_HEADER
from merklekv.engine.log.segment import LogFrame, list_segments, segment_path, whole_frame
from merklekv.errors import Corruption

READ_BYTES: Final = 1 << 20  # one read of a segment
READ_BYTES_MAX: Final = 64 << 20  # of one; a damaged head may say 4 GiB


class LogPosition(NamedTuple):
    """A position in the log: between two local events."""

    lsn: int  # of the frame with the next event, or of the end of the frame before
    sequence: int  # of the next local event


class LogSource(Protocol):
    """The bytes of a log."""

    name: str

    def segments(self) -> list[int]:
        """LSNs of the segments that are there, in order."""

    def read(self, segment: int, position: int, size: int) -> bytes | None:
        """At most `size` bytes; fewer, or none, at the end; None when the segment is gone."""


class DirectorySource:
    """The segment files of a log directory.  Raises OSError.

    The file that was read last stays open, so a segment can be read to its end after it was deleted.
    """

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self._directory = directory
        self._segment = self._fd = -1

    def segments(self) -> list[int]:
        return list_segments(self._directory)

    def read(self, segment: int, position: int, size: int) -> bytes | None:
        if segment != self._segment:
            try:
                fd = os.open(segment_path(self._directory, segment), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            self.close()
            self._segment, self._fd = segment, fd
        return os.pread(self._fd, size, position)

    def close(self) -> None:
        """Closes the open file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._segment = self._fd = -1


class LogGone(Exception):
    """The log is deleted up to `oldest`."""

    def __init__(self, oldest: LogPosition) -> None:
        super().__init__(f"the log begins at LSN {oldest.lsn}")
        self.oldest = oldest


class LogReader:
    """Reads frame after frame from `lsn` on.  Not thread-safe.

    `local_only`: the payload of a frame without local events is neither read nor checked; `data` is empty then.
    """

    def __init__(self, source: LogSource, local_only: bool = False) -> None:
        self.source = source
        self.lsn = -1  # of the next frame; -1 is the oldest there is
        self._local_only = local_only
        self._segment = -1
        self._buffer, self._buffer_at = b"", 0

    def seek(self, lsn: int) -> None:
        """Goes on with the frame at `lsn`, or with the oldest one (-1)."""
        if lsn != self.lsn:
            self.lsn, self._segment = lsn, -1

    def next_frame(self, end: int | None = None) -> LogFrame | None:
        """The next whole frame; None where the log ends for now.

        `end`: the LSN up to which the log is committed, when that is known; nothing behind it is read.  Raises
        LogGone, after which `seek` helps, and Corruption.
        """
        if self._segment < 0 and not self._find():
            return None
        while (frame := self._frame(end)) is None:
            segments = self.source.segments()
            later = [segment for segment in segments if segment > self._segment]
            if later:
                frame = self._frame(end)  # the writer may have finished it since
                if frame is not None:
                    break
            elif end is None or self.lsn >= end:
                return None
            if not later or (later[0] != self.lsn and self._segment in segments):
                raise Corruption(
                    f"{self.source.name}: the log segment {self._segment} is damaged at byte {self._position}: no "
                    "whole frame there, and more of the log behind it; `merklekv verify` lists the damage"
                )
            if later[0] != self.lsn:
                raise LogGone(self._beginning(later[0]))
            self._open(later[0])
        self.lsn = frame.end
        return frame

    def unread(self) -> bool:
        """Whether something other than reserved room lies behind the last whole frame."""
        size = FRAME_HEADER.size
        return self._segment >= 0 and any(self._read(self._position, size, None)[:size])

    def _find(self) -> bool:
        """Opens the segment with the next frame; False if there is no segment."""
        segments = self.source.segments()
        if not segments:
            return False
        if self.lsn < 0:
            self.lsn = segments[0]
        if segments[0] > self.lsn:
            raise LogGone(self._beginning(segments[0]))
        self._open(max(segment for segment in segments if segment <= self.lsn))
        return True

    def _beginning(self, segment: int) -> LogPosition:
        head = self.source.read(segment, 0, SEGMENT_HEADER.size) or b""
        return LogPosition(segment, SEGMENT_HEADER.unpack(head)[4] if len(head) == SEGMENT_HEADER.size else 0)

    def _open(self, segment: int) -> None:
        self._segment = segment
        self._buffer, self._buffer_at = b"", 0

    @property
    def _position(self) -> int:
        """Where the next frame begins in its segment."""
        return self.lsn - self._segment or SEGMENT_HEADER.size

    def _frame(self, end: int | None) -> LogFrame | None:
        position, only = self._position, self._local_only
        frame = whole_frame(self._buffer, self._buffer_at, self._segment, position, only)
        if frame is None:
            self._fill(position, end)
            frame = whole_frame(self._buffer, position, self._segment, position, only)
            if frame is None:
                return None
        at = self._buffer_at
        data = self._buffer[position - at : frame.end - at] if frame.local_count or not only else b""
        if frame.end - at >= len(self._buffer):
            self._buffer = b""  # a large frame would stay in memory until the next one comes
        return LogFrame(self.lsn, self._segment + frame.end, frame.sequence, frame.local_count, data)

    def _fill(self, position: int, end: int | None) -> None:
        """Reads the frame at a position of the segment, or more."""
        size = FRAME_HEADER.size
        buffer = self._read(position, size, end)
        if len(buffer) >= size and buffer[:4] == FRAME_MAGIC:
            _, length, _, _, local_count, _, _ = FRAME_HEADER.unpack_from(buffer)
            if size + length > len(buffer) and (local_count or not self._local_only):
                buffer = self._read(position, size + length, end)
        self._buffer, self._buffer_at = buffer, position

    def _read(self, position: int, size: int, end: int | None) -> bytes:
        """At least `size` bytes, or what there is."""
        parts, at = [], position
        while at < position + size:
            most = min(max(READ_BYTES, position + size - at), READ_BYTES_MAX)  # one read of a frame spares a copy
            left = most if end is None else min(most, end - self._segment - at)
            part = self.source.read(self._segment, at, left) if left > 0 else b""
            if not part:
                break
            parts.append(part)
            at += len(part)
        return b"".join(parts)
