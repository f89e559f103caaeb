"""Following the log behind its writers: what was committed, frame by frame, and how far somebody has dealt with it.

One follower (the outbox) reads frames from a place on, each only once it is durable in the sense of the `durability`
setting.  Frames just committed are handed over in memory, up to RECENT_BYTES of them; a follower that is further behind
reads the files.  `commit` pays one append to a deque, and one wake-up when the follower asked for it.

The place up to which everything is dealt with is a file, `outbox`, in the data directory.  Segments at or behind it are
kept, whoever opens the directory, until they are more than `retain_max_bytes`; then the oldest go, and the follower
finds out by LogGone.  The file is written lazily: an old place, or a damaged file, makes the follower repeat, never
skip.

Invariants: the held place is never behind the end of the log; no segment is deleted because of a place that a crash
could take back.
"""

import logging
import os
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from merklekv.engine.format import FRAME_HEADER, FRAME_MAGIC, SEGMENT_HEADER, frame_checksum
from merklekv.engine.log import Log, list_segments, segment_path, sync_directory, sync_file
from merklekv.errors import Corruption, DirectoryUnwritable
from merklekv.private import private

log = logging.getLogger(__name__)

DEFAULT_HOLD_MAX_BYTES: Final = 1 << 30
RECENT_BYTES: Final = 4 << 20  # of frames kept in memory for the follower
RECENT_FRAMES: Final = 20_000
READ_BYTES: Final = 1 << 20  # one read of a segment
POSITION_FILE: Final = "outbox"
POSITION_MAGIC: Final = b"MKVPLACE"

_PLACE = Struct(">8sQQQ")
_HEADER = FRAME_HEADER.size


class LogPosition(NamedTuple):
    """A place in the log: between two local events."""

    lsn: int  # of the frame that holds the next event, or of the end of the frame before
    sequence: int  # of the next local event


def position_of(data: bytes) -> LogPosition | None:
    """The place that a file keeps; None when it is damaged."""
    if len(data) != _PLACE.size or data[:8] != POSITION_MAGIC:
        return None
    _, lsn, sequence, checksum = _PLACE.unpack(data)
    return LogPosition(lsn, sequence) if checksum == xxh3_64_intdigest(data[:-8]) else None


class LogFrame(NamedTuple):
    """A committed frame.  Its entries are `data[payload_at:]`; without local events `data` is empty."""

    start: int  # LSN; for the first frame of a segment, the LSN of the segment
    end: int  # LSN behind it
    sequence: int
    local_count: int
    data: bytes
    payload_at: int


class LogGone(Exception):
    """The log does not reach back that far any more; `oldest` is where it begins."""

    def __init__(self, oldest: LogPosition) -> None:
        super().__init__(f"the log begins at {oldest.lsn}")
        self.oldest = oldest


class LogReader:
    """Reads committed frames from the segment files, forwards.  Not thread-safe.

    `end` is always the LSN up to which the log is committed: behind it a frame may be half written.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = -1
        self._segment = 0
        self._buffer, self._buffer_at = b"", 0

    def frame(self, at: int, end: int) -> LogFrame:
        """The frame at the LSN `at`, which is before `end`.  Raises LogGone, Corruption."""
        if self._fd < 0 or at < self._segment:
            self._open_holding(at)
        frame = self._frame_here(at, end)
        if frame is None:  # the end of this segment: the next one begins there
            self._open_holding(at)
            frame = self._frame_here(at, end)
        if frame is None:
            path = segment_path(self._directory, self._segment)
            raise Corruption(f"{path}: damaged at byte {at - self._segment}: no frame where the log had one")
        return frame

    def close(self) -> None:
        """Lets the file go."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _open_holding(self, at: int) -> None:
        """Opens the segment that holds `at`; where one ends and the next begins, the next."""
        lsns = list_segments(self._directory)
        holding = [lsn for lsn in lsns if lsn <= at]
        if not holding:
            raise LogGone(self._beginning(lsns[0]))
        self.close()
        try:
            self._fd = os.open(segment_path(self._directory, holding[-1]), os.O_RDONLY)
        except FileNotFoundError:  # given up between the two calls
            raise LogGone(self._beginning(list_segments(self._directory)[0])) from None
        self._segment = holding[-1]
        self._buffer, self._buffer_at = b"", 0

    def _beginning(self, lsn: int) -> LogPosition:
        with segment_path(self._directory, lsn).open("rb") as file:
            head = file.read(SEGMENT_HEADER.size)
        return LogPosition(lsn, SEGMENT_HEADER.unpack(head)[4])

    def _frame_here(self, at: int, end: int) -> LogFrame | None:
        position = at - self._segment or SEGMENT_HEADER.size
        left = end - self._segment - position
        header = self._bytes(position, _HEADER, left)
        if len(header) < _HEADER or header[:4] != FRAME_MAGIC:
            return None
        _, length, synced, sequence, local_count, entry_count, checksum = FRAME_HEADER.unpack(header)
        frame_end = self._segment + position + _HEADER + length
        if not local_count:
            return LogFrame(at, frame_end, sequence, 0, b"", 0)
        payload = self._bytes(position + _HEADER, length, left - _HEADER)
        fields = (length, synced, sequence, local_count, entry_count)
        if len(payload) < length or checksum != frame_checksum(self._segment, position, fields, payload):
            path = segment_path(self._directory, self._segment)
            raise Corruption(f"{path}: damaged at byte {position}: a frame does not match its checksum")
        return LogFrame(at, frame_end, sequence, local_count, payload, 0)

    def _bytes(self, position: int, size: int, left: int) -> bytes:
        """`size` bytes of the segment; reads ahead, but never more than the `left` that are committed."""
        offset = position - self._buffer_at
        if offset < 0 or offset + size > len(self._buffer):
            self._buffer = os.pread(self._fd, min(max(READ_BYTES, size), left), position)
            self._buffer_at, offset = position, 0
        return self._buffer[offset : offset + size]


class Tail:
    """The committed end of the log, and the place that is held for the follower.

    `committed` is called by the committing thread, one at a time; `next_frame` by the follower's thread.
    """

    def __init__(self, directory: Path, log_: Log, retain_max_bytes: int = DEFAULT_HOLD_MAX_BYTES) -> None:
        self.retain_max_bytes = retain_max_bytes
        in_segment = log_.position if log_.position > SEGMENT_HEADER.size else 0
        self.end = LogPosition(log_.lsn + in_segment, log_.sequence)  # everything before it is committed
        self.wake: Callable[[], None] = lambda: None
        self.given_up_lsn = 0  # where the log begins since it grew past `retain_max_bytes`
        self.wanted = False  # set by the follower before it sleeps: call `wake` at the next local event
        self._log_directory = log_.directory
        self._path = directory / POSITION_FILE
        self._recent: deque[tuple[int, int, bytes]] = deque()  # LSN of start and end, the frame or nothing
        self._given = self._taken = 0  # bytes that ever went into and out of `_recent`
        self._reader = LogReader(log_.directory)
        self.held = self._load()
        self._durable_lsn = self.held.lsn if self.held else 0

    def follow(self) -> LogPosition:
        """Where the follower goes on.  The first time it is the end of the log, which is held from now on."""
        if self.held is None:
            try:
                self._save(self.end)
            except OSError as error:
                raise DirectoryUnwritable(f"{self._path}: cannot be written: {error.strerror}") from error
            self.held = self.end
            self._make_durable(self.held)
        return self.held

    def unfollow(self) -> None:
        """Holds nothing any more."""
        self._path.unlink(missing_ok=True)
        self.held = None

    def hold(self, place: LogPosition) -> None:
        """Everything before `place` is dealt with.  Survives a crash later, or not: then it is dealt with again."""
        self.held = place
        try:
            self._save(place)
        except OSError as error:
            log.warning("%s: cannot be written: %s; events will be published again after a crash", self._path, error)

    def committed(self, segment_lsn: int, position: int, frame: bytes) -> None:
        """A frame has become durable."""
        _, _, _, sequence, local_count, _, _ = FRAME_HEADER.unpack_from(frame)
        start = segment_lsn + (position if position != SEGMENT_HEADER.size else 0)
        end = segment_lsn + position + len(frame)
        if self.held is not None:
            kept = frame if local_count else b""
            if self._given - self._taken + len(kept) <= RECENT_BYTES and len(self._recent) < RECENT_FRAMES:
                self._given += len(kept)
                self._recent.append((start, end, kept))
        self.end = LogPosition(end, sequence + local_count)
        if self.wanted and local_count:
            self.wanted = False
            self.wake()

    def next_frame(self, at: int) -> LogFrame | None:
        """The committed frame at this LSN; None when there is none yet.  Raises LogGone, Corruption."""
        recent = self._recent
        gone = at < self.given_up_lsn
        if gone:
            self._reader.close()  # an open file would outlive its name
        while recent and (recent[0][1] <= at or gone):
            self._taken += len(recent.popleft()[2])
        if recent and recent[0][0] == at:
            start, end, frame = recent.popleft()
            self._taken += len(frame)
            if not frame:
                return LogFrame(start, end, 0, 0, b"", 0)
            _, _, _, sequence, local_count, _, _ = FRAME_HEADER.unpack_from(frame)
            return LogFrame(start, end, sequence, local_count, frame, _HEADER)
        end = self.end.lsn
        return self._reader.frame(at, end) if at < end else None

    def deletable(self, checkpoint_lsn: int) -> list[int]:
        """LSNs of the segments that nobody needs: absorbed up to `checkpoint_lsn`, and dealt with or given up."""
        lsns = []
        for lsn, following in pairwise(list_segments(self._log_directory)):
            if following > checkpoint_lsn:
                break
            if self.held is not None and following > self._durable_lsn:
                if following <= self.held.lsn:
                    self._make_durable(self.held)  # or a crash could bring back a place in a segment that is gone
                elif self.end.lsn - lsn > self.retain_max_bytes:
                    self.given_up_lsn = following
                else:
                    break
            lsns.append(lsn)
        return lsns

    def close(self) -> None:
        """Lets the files go."""
        self._reader.close()

    def _load(self) -> LogPosition | None:
        try:
            with self._path.open("rb") as file:
                data = file.read(_PLACE.size + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DirectoryUnwritable(f"{self._path}: cannot be read: {error.strerror}") from error
        oldest = LogPosition(list_segments(self._log_directory)[0], 0)
        place = position_of(data)
        if place is None:
            log.warning("%s: damaged; everything that is left of the log will be published again", self._path)
            return oldest
        if place.lsn > self.end.lsn:
            log.warning("%s: ahead of the log, which a crash has cut back; going on from its end", self._path)
            self._save(self.end)
            return self.end
        return place

    def _save(self, place: LogPosition) -> None:
        body = _PLACE.pack(POSITION_MAGIC, *place, 0)[:-8]
        draft = self._path.with_suffix(".new")
        with open(draft, "wb", opener=private) as file:
            file.write(body + xxh3_64_intdigest(body).to_bytes(8, "big"))
        draft.replace(self._path)

    def _make_durable(self, place: LogPosition) -> None:
        sync_file(self._path)
        sync_directory(self._path.parent)
        self._durable_lsn = place.lsn
