"""The open end of the log.

Group commit: writers append entries in memory under the engine's lock.  `take` cuts the pending entries into one frame;
`write` and `sync` put it on disk outside of that lock.  One fdatasync serves all clients of a tick.

Room is reserved before an entry is accepted (`reserve`, posix_fallocate).  So a full disk refuses a write before
anything has changed.  Urgent writes (deletions, and what the node itself stores) may take room that writes which make
the data grow must leave (`admits`).

Some file systems (btrfs, ZFS, thin volumes) do not guarantee reserved room: if `write` finds none, `take_back` cuts the
file back.  Reserved room also makes fdatasync cheaper, because the file's size does not change
(`benchmarks/test_log.py`).

Syncing, writing and rotating need no new descriptor: the directory and the file of the next segment (`.next`) are open
already, and a full segment stays open until it is synced to its end.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from merklekv.engine.format import FRAME_HEADER, SEGMENT_HEADER
from merklekv.engine.log.segment import LogFrame, pack_frame, pack_header, segment_path, write_whole
from merklekv.errors import DiskFull, InvalidArgument, Shortage, StorageFailed
from merklekv.files import FILE_MODE
from merklekv.shortage import NO_ROOM, is_shortage, shortage_of, suppress_shortage

PAYLOAD_SIZE_MAX: Final = (1 << 32) - 1  # what a frame's 4-byte length can say
RESERVE_STEP: Final = 4 << 20  # bytes reserved ahead of the writes
SMALL_STEPS: Final = 64  # of these make a RESERVE_STEP; used where there is no room for a whole one
PROBE_SIZE: Final = 64 << 10  # bytes that a disk has to take before it is trusted again
NEXT_FILE: Final = ".next"  # becomes the next segment
_HEADER: Final = FRAME_HEADER.size
_FIRST: Final = SEGMENT_HEADER.size  # position of the first frame


@dataclass
class LogEnd:
    """Where the log ends after a restart."""

    segments: list[int]  # LSNs of those that the base lacks, the open one last
    end: int  # bytes of the last segment, up to the end of its last whole frame
    sequence: int  # of the next local event


@dataclass
class Sealed:
    """A segment that is full, until it is cut to its size, synced and closed."""

    lsn: int
    end: int
    fd: int
    synced: bool  # all its frames are


class Log:
    """The open end of the log.  All but `write`, `sync` and `finish_sealing` are called under the engine's lock."""

    def __init__(self, directory: Path, recovered: LogEnd | None) -> None:
        self.directory = directory
        self.pending: list[bytes] = []  # entries since the last frame was cut
        self.pending_size = 0
        self.room = 0  # bytes of entries that fit into the room admitted for all writes
        self.urgent_room = 0  # the same for urgent writes: all that is reserved
        self.admits: Callable[[int, int, bool], bool] = lambda end_lsn, growth, urgent: True
        self.make_room: Callable[[bool, bool], bool] = lambda urgent, waits: False  # whether it did
        self.appended = 0  # entries ever accepted by this process
        self.frame = 0  # which frame, counted from the start of the process, the next entry goes into
        self.sequence = recovered.sequence if recovered else 1  # of the next local event
        self._frame_sequence = self.sequence
        self._entries_cut = 0
        self._sealed: deque[Sealed] = deque()  # oldest first
        self._files_lock = threading.Lock()  # briefly, while it changes what is open and what is sealed
        self._sync_lock = threading.Lock()  # during a sync, so the file stays open
        self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._next_fd = -1
        self._is_uncut = False  # behind the last written frame there may be a part of one that was taken back
        if recovered is None:
            self._adopt(0, self._begin_segment(0))
        else:
            self.lsn = recovered.segments[-1]
            self._fd = os.open(segment_path(directory, self.lsn), os.O_RDWR)
            self.position = self._admitted = recovered.end
            self._reserved = max(self.position, os.fstat(self._fd).st_size)
            self._measure_room()
            with suppress_shortage():
                self._next_fd = self._open_next()
        self.written_lsn = self.synced_lsn = self.end_lsn

    @property
    def end_lsn(self) -> int:
        """Where the next frame goes."""
        return self.lsn + self.position

    @property
    def is_empty(self) -> bool:
        """Whether this segment has no frame and will have none."""
        return self.position == _FIRST and not self.pending

    def reserve(self, size: int, urgent: bool, waits: bool = True) -> None:
        """Makes room for `size` bytes of entries in the next frame.

        `waits`: the caller can wait for a checkpoint that may make room: raises Stalled then.  Raises DiskFull.
        """
        if size > PAYLOAD_SIZE_MAX:
            raise InvalidArgument(f"{size} bytes in one commit: at most {PAYLOAD_SIZE_MAX}; commit more often")
        needed = self.position + _HEADER + size
        is_admitted = self._admit(needed) or (urgent and self._admit_urgent(needed, waits))
        while not is_admitted:
            if not self.make_room(urgent, waits):
                raise DiskFull("disk full, write not stored")
            # An urgent write takes that room before `admits` of other writes can keep it.
            is_admitted = self._admit_urgent(needed, waits) if urgent else self._admit(needed)

    def _admit(self, needed: int) -> bool:
        """Lets all writes go up to `needed` in this segment, and ahead of that where there is room."""
        if needed <= self._admitted:
            return True
        for step in (RESERVE_STEP, RESERVE_STEP // SMALL_STEPS, 0):
            target = max(needed, self._admitted + step)
            if self.admits(self.lsn + target, max(0, target - self._reserved), False) and self._extend(target):
                self._admitted = target
                self._measure_room()
                return True
        return False

    def _admit_urgent(self, needed: int, waits: bool) -> bool:
        if needed <= self._reserved:
            return True
        for target in (needed + RESERVE_STEP // SMALL_STEPS, needed):
            is_admitted = not waits or self.admits(self.lsn + target, target - self._reserved, True)
            if is_admitted and self._extend(target):
                return True
        return False

    def _extend(self, target: int) -> bool:
        """Reserves room in the file up to `target`; False if the disk is full."""
        if target > self._reserved:
            try:
                self._cut_back()
                os.posix_fallocate(self._fd, self._reserved, target - self._reserved)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise self._trouble(error, "cannot reserve room") from error
                return False
            self._reserved = target
            self._measure_room()
        return True

    def take(self) -> LogFrame:
        """Cuts the pending entries into a frame, for `write`."""
        lsn, position, sequence = self.lsn, self.position, self._frame_sequence
        local_count, entry_count = self.sequence - sequence, self.appended - self._entries_cut
        data = pack_frame(lsn, position, self.synced_lsn, sequence, local_count, entry_count, self.pending)
        self.frame += 1  # first: who sees nothing pending without the lock sees this
        self.pending = []
        self.pending_size = 0
        self._entries_cut = self.appended
        self._frame_sequence = self.sequence
        self.position = end = position + len(data)
        self.room = self._admitted - end - _HEADER
        self.urgent_room = self._reserved - end - _HEADER
        return LogFrame(lsn if position == _FIRST else lsn + position, lsn + end, sequence, local_count, data)

    def write(self, frame: LogFrame) -> None:
        """Puts a frame into the file.  Raises Shortage, after which only `take_back` helps, and StorageFailed."""
        try:
            write_whole(self._fd, frame.data, frame.start - self.lsn or _FIRST)
        except OSError as error:
            raise self._trouble(error, "cannot write") from error
        self.written_lsn = frame.end

    def take_back(self) -> None:
        """Drops everything behind the last written frame, also from the file.  Call `resume` then.

        Raises StorageFailed.
        """
        self.frame += 1
        self.pending = []
        self.pending_size = 0
        self._entries_cut = self.appended
        self.position = max(self.written_lsn - self.lsn, _FIRST)
        self._is_uncut = True
        try:
            with suppress_shortage():  # `_extend` tries it again before anything is written
                self._cut_back()
        except OSError as error:
            raise StorageFailed(f"{self._path}: cannot cut back: {error.strerror}") from error
        self._reserved = self._admitted = self.position
        self._measure_room()

    def _cut_back(self) -> None:
        """Cuts the rest of a frame off that was taken back: a later, shorter frame would have it behind itself."""
        if self._is_uncut:
            os.ftruncate(self._fd, self.position)
            self._is_uncut = False

    def resume(self, sequence: int) -> None:
        """The next local event has this number."""
        self.sequence = self._frame_sequence = sequence

    def probe(self) -> None:
        """Writes zeros behind the last frame, as in reserved room.  Raises Shortage if the disk has no room."""
        self.reserve(PROBE_SIZE, urgent=True, waits=False)
        try:
            write_whole(self._fd, bytes(PROBE_SIZE), self.position)
        except OSError as error:
            raise self._trouble(error, "cannot write") from error

    def sync(self) -> None:
        """Makes every written frame durable, those of full segments first.  Other threads may write or seal meanwhile.

        Raises StorageFailed: the kernel may have dropped the pages.
        """
        with self._sync_lock:
            with self._files_lock:
                written, fd = self.written_lsn, self._fd
                dirty = [sealed for sealed in self._sealed if not sealed.synced]
            try:
                for sealed in dirty:
                    os.fdatasync(sealed.fd)
                    sealed.synced = True
                os.fdatasync(fd)
            except OSError as error:
                raise StorageFailed(f"{self._path}: cannot sync: {error.strerror}") from error
            self.synced_lsn = max(self.synced_lsn, written)

    def seal(self) -> None:
        """Starts a new segment and leaves the full one to `finish_sealing`; its frames must all be written.

        Raises Shortage, with the old segment still in use, and StorageFailed.
        """
        fd = self._begin_segment(self.end_lsn)
        with self._files_lock:
            self._sealed.append(Sealed(self.lsn, self.position, self._fd, self.synced_lsn >= self.end_lsn))
            self._adopt(self.end_lsn, fd)

    def finish_sealing(self) -> None:
        """Cuts the reserved room off full segments, syncs and closes them; one thread at a time.  Raises StorageFailed.

        Readers accept reserved room, so this may happen late; `sync` does not wait for it.
        """
        while self._sealed:
            sealed = self._sealed[0]
            try:
                with suppress_shortage():
                    os.ftruncate(sealed.fd, sealed.end)
                os.fsync(sealed.fd)
            except OSError as error:
                path = segment_path(self.directory, sealed.lsn)
                raise StorageFailed(f"{path}: cannot sync: {error.strerror}") from error
            with self._sync_lock, self._files_lock:
                self._sealed.popleft()
                os.close(sealed.fd)
                self.synced_lsn = max(self.synced_lsn, sealed.lsn + sealed.end)

    def close(self) -> None:
        """Gives the reserved room back."""
        fd, self._fd = self._fd, -1  # the number may soon be another file's
        with suppress_shortage():
            os.ftruncate(fd, self.position)
            (self.directory / NEXT_FILE).unlink(missing_ok=True)
        for each in (fd, self._next_fd, self._directory_fd):
            if each >= 0:
                os.close(each)

    @property
    def _path(self) -> Path:
        return segment_path(self.directory, self.lsn)

    def _measure_room(self) -> None:
        self.room = self._admitted - self.position - _HEADER
        self.urgent_room = self._reserved - self.position - _HEADER

    def _adopt(self, lsn: int, fd: int) -> None:
        self.lsn, self._fd = lsn, fd
        self.position = self._reserved = self._admitted = _FIRST
        self._measure_room()

    def _begin_segment(self, lsn: int) -> int:
        """Makes the prepared file a segment without frames, durably; its descriptor.

        Raises Shortage, with nothing changed, and StorageFailed.
        """
        path = segment_path(self.directory, lsn)
        try:
            if self._next_fd < 0:
                self._next_fd = self._open_next()
            write_whole(self._next_fd, pack_header(lsn, self.sequence), 0)
            os.fsync(self._next_fd)
            os.rename(self.directory / NEXT_FILE, path)
            try:
                os.fsync(self._directory_fd)
            except OSError:
                os.rename(path, self.directory / NEXT_FILE)  # durable with the name that the next attempt gives it
                raise
        except OSError as error:
            raise self._trouble(error, "cannot start a log segment", path) from error
        fd, self._next_fd = self._next_fd, -1
        with suppress_shortage():  # it is tried again when it is needed
            self._next_fd = self._open_next()
        return fd

    def _open_next(self) -> int:
        fd = os.open(self.directory / NEXT_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)
        try:
            os.posix_fallocate(fd, 0, _FIRST)  # so the header finds room on a full disk
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _trouble(self, error: OSError, what: str, path: Path | None = None) -> Shortage | StorageFailed:
        what = f"{path or self._path}: {what}"
        return shortage_of(error, what) if is_shortage(error) else StorageFailed(f"{what}: {error.strerror}")
