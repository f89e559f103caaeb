"""What of the log is retained, for the outbox and for readers of changes, and how the outbox reads it.

One subscriber (the outbox) reads committed frames from its replication cursor on.  It sees a frame only once the frame
is durable in the sense of the setting `durability`.  Recent frames come from memory, up to RECENT_BYTES of them; a
subscriber that is further behind reads the files.  A commit pays one append to a deque, and one `notify` when the
subscriber asked for it.

The replication cursor is the position before which every event is published; the file `outbox` stores it.  Segments at
or behind the cursor are retained, also by a process without a subscriber, until they are more than `retain_max_bytes`;
then the oldest are dropped, and the subscriber gets LogGone.  An old cursor, or a damaged file, makes the subscriber
repeat events, never skip any, so the file is written lazily.

Readers of changes (feed.py) keep their cursors themselves.  For them a segment is retained while it has any of the last
`retain_log_bytes` of the log, or while something in it is not older than `retain_log_seconds`; longer until the next
checkpoint.  On a full disk the oldest segment that only they or the outbox need is dropped.

Invariants: the cursor is never behind the end of the log; no segment is deleted because of a cursor that a crash could
take back.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Final

from xxhash import xxh3_64_intdigest

from merklekv.engine.access import trouble
from merklekv.engine.format import SEGMENT_HEADER
from merklekv.engine.log.reader import DirectorySource, LogGone, LogPosition, LogReader
from merklekv.engine.log.segment import (
    LogFrame,
    created_at,
    first_event,
    list_segments,
    segment_path,
    sync_directory,
    sync_file,
)
from merklekv.engine.log.writer import Log
from merklekv.errors import DirectoryUnwritable
from merklekv.files import replace_file
from merklekv.log_throttle import LogThrottle
from merklekv.shortage import is_shortage

log = logging.getLogger(__name__)

DEFAULT_RETAIN_MAX_BYTES: Final = 1 << 30
RECENT_BYTES: Final = 4 << 20  # of frames in memory for the subscriber
RECENT_FRAMES: Final = 20_000
CURSOR_FILE: Final = "outbox"
CURSOR_MAGIC: Final = b"MKVCURSR"

_CURSOR: Final = Struct(">8sQQQ")


def read_cursor(data: bytes) -> LogPosition | None:
    """The replication cursor in the bytes of its file; None when they are damaged."""
    if len(data) != _CURSOR.size or data[:8] != CURSOR_MAGIC:
        return None
    _, lsn, sequence, checksum = _CURSOR.unpack(data)
    return LogPosition(lsn, sequence) if checksum == xxh3_64_intdigest(data[:-8]) else None


class Retention:
    """The committed end of the log, and the replication cursor.

    `committed` is called by the committing thread, one at a time; `next_frame` by the subscriber's thread.
    """

    def __init__(
        self,
        directory: Path,
        log_: Log,
        retain_max_bytes: int = DEFAULT_RETAIN_MAX_BYTES,
        retain_log_bytes: int = 0,
        retain_log_seconds: float = 0,
    ) -> None:
        self.retain_max_bytes = retain_max_bytes
        self.retain_log_bytes = retain_log_bytes
        self.retain_log_seconds = retain_log_seconds
        in_segment = log_.position if log_.position > SEGMENT_HEADER.size else 0
        self.end = LogPosition(log_.lsn + in_segment, log_.sequence)  # everything before it is committed
        self.notify: Callable[[], None] = lambda: None
        self.notify_next = False  # set by the subscriber before it sleeps: call `notify` at the next local event
        self.dropped_lsn = 0  # where the log begins for the outbox since it grew past `retain_max_bytes`
        self._dropped_sequence = 0  # of the first event there
        self.drops_events = False  # whether that took events of this node that were not published
        self._throttle = LogThrottle(log)
        self._log_directory = log_.directory
        self._path = directory / CURSOR_FILE
        self._recent: deque[LogFrame] = deque()
        self._given = self._taken = 0  # bytes that ever went into and out of `_recent`
        self._source = DirectorySource(log_.directory)
        self._reader = LogReader(self._source, local_only=True)
        self.cursor = self._load()  # None without a subscriber
        self._durable_lsn = self.cursor.lsn if self.cursor else 0

    @property
    def log_bytes(self) -> int:
        """Bytes of log on disk; 0 if its directory is gone."""
        segments = list_segments(self._log_directory)
        return self.end.lsn - segments[0] if segments else 0

    def subscribe(self) -> LogPosition:
        """The replication cursor.  The first time it is the end of the log, which is retained from now on."""
        if self.cursor is None:
            try:
                self._save(self.end)
            except OSError as error:
                raise DirectoryUnwritable(f"{self._path}: cannot be written: {error.strerror}") from error
            self.cursor = self.end
            self._make_durable(self.cursor)
        return self.cursor

    def advance(self, cursor: LogPosition) -> None:
        """Every event before `cursor` is published.  After a crash some of them may be published again."""
        self.cursor = cursor
        try:
            self._save(cursor)
        except OSError as error:
            problem = f"{self._path}: cannot be written: {error.strerror}"
            self._throttle.warn("cursor", f"{problem}; events will be published again after a crash")

    def committed(self, frame: LogFrame) -> None:
        """A frame has become durable."""
        if self.cursor is not None:
            recent = frame if frame.local_count else LogFrame(*frame[:4], b"")
            if self._given - self._taken + len(recent.data) <= RECENT_BYTES and len(self._recent) < RECENT_FRAMES:
                self._given += len(recent.data)
                self._recent.append(recent)
        self.end = LogPosition(frame.end, frame.sequence + frame.local_count)
        if self.notify_next and frame.local_count:
            self.notify_next = False
            self.notify()

    def next_frame(self, at: int) -> LogFrame | None:
        """The committed frame at this LSN; None when there is none yet.  Raises LogGone, Corruption."""
        recent = self._recent
        is_dropped = at < self.dropped_lsn
        if is_dropped:
            self._source.close()  # an open file would outlive its name
            self._reader = LogReader(self._source, local_only=True)
        while recent and (recent[0].end <= at or is_dropped):
            self._taken += len(recent.popleft().data)
        if is_dropped:
            raise LogGone(LogPosition(self.dropped_lsn, self._dropped_sequence))
        if recent and recent[0].start == at:
            frame = recent.popleft()
            self._taken += len(frame.data)
            return frame
        end = self.end.lsn
        if at >= end:
            return None
        self._reader.seek(at)
        return self._reader.next_frame(end)

    def delete_segments(self, checkpoint_lsn: int, is_full: bool = False) -> bool:
        """Deletes what is `deletable`, unless a shortage prevents that; whether there was any."""
        try:
            lsns = self.deletable(checkpoint_lsn, is_full)
            for lsn in lsns:
                segment_path(self._log_directory, lsn).unlink(missing_ok=True)
                sync_directory(self._log_directory)  # one by one, or a crash could leave a gap
        except OSError as error:
            if not is_shortage(error):
                raise
            return False
        return bool(lsns)

    def deletable(self, checkpoint_lsn: int, is_full: bool = False) -> list[int]:
        """LSNs of the segments that nothing needs: in the base up to `checkpoint_lsn`, published and read, or dropped.

        `is_full`: one segment that the outbox or readers need is dropped for space.
        """
        lsns: list[int] = []
        is_kept = False  # the first of those that readers need
        for lsn, following in pairwise(list_segments(self._log_directory)):
            if following > checkpoint_lsn:
                break
            is_needed = self._is_for_readers(following)
            if self.cursor is not None and following > self._durable_lsn:
                if following <= self.cursor.lsn:
                    self._make_durable(self.cursor)  # or a crash could bring back a cursor in a segment that is gone
                elif is_full or self.end.lsn - lsn > self.retain_max_bytes:
                    self._drop_before(following)
                    is_needed = is_needed or is_full
                else:
                    break
            is_kept = is_kept or (is_needed and not is_full)
            if not is_kept:
                lsns.append(lsn)
            is_full = is_full and not is_needed
        return lsns

    def _drop_before(self, lsn: int) -> None:
        """The outbox has to go on at this segment.  Readers may still need those before it."""
        if lsn > self.dropped_lsn and self.cursor is not None:
            self._dropped_sequence = first_event(segment_path(self._log_directory, lsn))
            self.drops_events = self._dropped_sequence > self.cursor.sequence
            self.dropped_lsn = lsn

    def _is_for_readers(self, following: int) -> bool:
        """Whether the segment before this one is retained for readers of changes."""
        if self.end.lsn - following < self.retain_log_bytes:
            return True
        if not self.retain_log_seconds:
            return False
        age_s = time.time() - created_at(segment_path(self._log_directory, following)) / 10**9
        return abs(age_s) < self.retain_log_seconds  # below zero after the clock was set back

    def close(self) -> None:
        """Closes the open segment."""
        self._source.close()

    def _load(self) -> LogPosition | None:
        try:
            with self._path.open("rb") as file:
                data = file.read(_CURSOR.size + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise trouble(error, self._path.parent) from error
        cursor = read_cursor(data)
        if cursor is None:
            log.warning("%s: damaged; everything that is left of the log will be published again", self._path)
            return LogPosition(list_segments(self._log_directory)[0], 0)
        if cursor.lsn > self.end.lsn:
            log.warning("%s: ahead of the log, which a crash has cut back; going on from its end", self._path)
            self._save(self.end)
            self._sync()  # or a later crash could bring it back when the log has other events there
            return self.end
        return cursor

    def _save(self, cursor: LogPosition) -> None:
        body = _CURSOR.pack(CURSOR_MAGIC, *cursor, 0)[:-8]
        replace_file(self._path, body + xxh3_64_intdigest(body).to_bytes(8, "big"), durable=False)

    def _make_durable(self, cursor: LogPosition) -> None:
        self._sync()
        self._durable_lsn = cursor.lsn

    def _sync(self) -> None:
        sync_file(self._path)
        sync_directory(self._path.parent)
