"""The commit log of a data directory or of a running node as events, without changing anything.

`merklekv.engine.log.reader` reads the frames. Events read from a directory while a node has it open may not be on disk
yet; a node returns over its port only what it has committed. If segments were deleted before they were read, the reader
goes on at the next one and counts the bytes in `skipped`.

Memory: one frame.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from merklekv.engine.format import (
    DELETIONS,
    FRAME_HEADER,
    METADATA_PURGED,
    OP_METADATA,
    OP_ORIGIN,
    OP_PURGE,
    OP_REPAIR,
    OP_TRUNCATE,
    RECORD_OPS,
)
from merklekv.engine.log.reader import DirectorySource, LogGone, LogReader, LogSource
from merklekv.engine.log.segment import LogFrame, Segment, corrupt, list_segments, segment_path
from merklekv.engine.record import (
    ZERO_VERSION,
    deleted_at,
    expiry_of,
    is_complete,
    is_purge_marker,
    timestamp_of,
    value_of,
    version_of,
)
from merklekv.engine.verify.reference import Entry, read_entries
from merklekv.errors import Corruption
from merklekv_tool.errors import FileError

OWN_OPS: Final = (OP_METADATA, OP_PURGE, OP_REPAIR)  # not published, but not from another node
_VALUELESS: Final = DELETIONS | {OP_TRUNCATE, OP_PURGE}


def readable_segments(directory: Path) -> list[int]:
    """LSNs of the segments in a log directory, in order. Raises FileError if it cannot be read."""
    try:
        os.scandir(directory).close()
    except OSError as error:
        raise FileError(f"{directory}: cannot be read: {error.strerror}") from error
    return list_segments(directory)


class DirectoryLog(DirectorySource):
    """The log of a data directory, as a `LogSource`. Raises FileError."""

    def __init__(self, path: Path) -> None:
        super().__init__(path / "log")
        self.name = str(path)
        self._log = path / "log"

    def segments(self) -> list[int]:
        return readable_segments(self._log)

    def read(self, segment: int, position: int, size: int) -> bytes | None:
        try:
            return super().read(segment, position, size)
        except OSError as error:
            raise FileError(f"{segment_path(self._log, segment)}: cannot read: {error.strerror}") from error

    def require_undamaged(self, lsn: int) -> None:
        """Raises Corruption for damage that the frames up to `lsn` do not show: what a start refuses, too.

        That is the header of a segment, and a frame at `lsn` that is not whole though a later one says that it had been
        on disk.
        """
        for start in (start for start in self.segments() if start < lsn):
            position = lsn - start
            with contextlib.suppress(FileNotFoundError), Segment(segment_path(self._log, start)) as segment:
                if position < segment.size and segment.claims_synced(position, lsn) and self._ends_at(lsn):
                    raise corrupt(
                        segment.path, position, "a frame does not match its checksum, and what follows was synced"
                    )

    def _ends_at(self, lsn: int) -> bool:
        reader = LogReader(self)
        reader.seek(lsn)
        return reader.next_frame() is None


class Event(NamedTuple):
    """An entry of the log with its surroundings."""

    lsn: int  # of its frame
    sequence: int | None  # of a local event
    origin: str | None  # the node that it came from, None for this one
    entry: Entry

    @property
    def time_ns(self) -> int | None:
        """The timestamp of its version, or of a deletion that has none, ns since the epoch; None without either."""
        if self.is_lone_deletion:
            return deleted_at(self.entry.record)
        return None if self.entry.op in (OP_METADATA, OP_REPAIR) else timestamp_of(self.entry.record)

    @property
    def version(self) -> bytes | None:
        """Its version, 24 bytes."""
        has_none = self.entry.op in (OP_METADATA, OP_REPAIR) or self.is_lone_deletion
        return None if has_none else version_of(self.entry.record)

    @property
    def value(self) -> bytes | None:
        """The stored value, None if the entry stores none."""
        if self.entry.op in _VALUELESS:
            return None
        record = self.entry.record
        return record if self.entry.op in (OP_METADATA, OP_REPAIR) else value_of(record)

    @property
    def expiry_ms(self) -> int | None:
        """When the key expires, milliseconds since the epoch; None if it does not."""
        return expiry_of(self.entry.record) if self.entry.op in RECORD_OPS else None

    @property
    def is_whole(self) -> bool:
        """Predicate: has it all that the others read of it?"""
        op, record = self.entry.op, self.entry.record
        if op == OP_TRUNCATE:
            return len(record) == len(ZERO_VERSION)
        return op in (OP_METADATA, OP_REPAIR) or is_complete(record)

    @property
    def is_lone_deletion(self) -> bool:
        """Predicate: is it a deletion by a lone node, without a tombstone?"""
        return self.entry.op in DELETIONS and is_purge_marker(self.entry.record)

    @property
    def is_beside_deletion(self) -> bool:
        """Predicate: does it only say through which time a lone node has deleted?  Some deletions store that."""
        return self.entry.op == OP_METADATA and self.entry.key == METADATA_PURGED


class EventReader:
    """Reads events from the oldest segment on."""

    def __init__(self, source: LogSource) -> None:
        self.skipped = 0  # bytes of the log that were deleted before they were read
        self._source = source
        self._reader = LogReader(source)

    def until_now(self) -> Iterator[Event]:
        """The events up to the present end of the log; call it again for later ones. Raises Corruption."""
        while True:
            try:
                frame = self._reader.next_frame()
            except LogGone as gone:
                self.skipped += gone.oldest.lsn - self._reader.lsn
                self._reader.seek(gone.oldest.lsn)
                continue
            if frame is None:
                return
            yield from self._events(frame)

    def unread(self) -> bool:
        """Whether a torn tail is behind the last whole frame. Raises Corruption if there is damage."""
        if isinstance(self._source, DirectoryLog):
            self._source.require_undamaged(self._reader.lsn)
        return self._reader.unread()

    def _events(self, frame: LogFrame) -> Iterator[Event]:
        """The entries of a frame, without those that only name an origin."""
        origin: str | None = None
        sequence = frame.sequence
        try:
            for entry in read_entries(frame.data[FRAME_HEADER.size :]):
                if entry.op == OP_ORIGIN:
                    origin = entry.key.decode(errors="replace")
                    continue
                if not Event(frame.start, None, None, entry).is_whole:
                    raise ValueError(f"an entry of op {entry.op} with {len(entry.record)} bytes of record")
                if entry.remote:
                    event = Event(frame.start, None, origin, entry)
                    own = entry.op in OWN_OPS or event.is_lone_deletion
                    yield event._replace(origin=None) if own else event
                else:
                    yield Event(frame.start, sequence, None, entry)
                    sequence += 1
        except ValueError as error:
            message = f"{self._source.name}: the log is damaged in the frame at LSN {frame.start}: {error}"
            raise Corruption(message) from error
