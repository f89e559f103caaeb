"""The commit log: every change, in the order in which this node made it, durable before anything else is.

The log is a row of segment files; the last one is open and grows by one frame for each commit (layout: format.py).
A segment holds exactly what one memtable holds, so a sealed segment is all that absorbing needs.

Group commit: writers append entries in memory under the engine's lock; `take` cuts what has gathered into one frame,
`write` and `sync` put it on disk outside of that lock.  One fdatasync serves all clients of a tick.

Room is reserved before an entry is accepted (`reserve`, posix_fallocate), so a full disk refuses a write before
anything has changed, and on most file systems a frame that was accepted has its place.  Where reserved room is no
promise (btrfs, ZFS, thin volumes) `write` can still find none; `take_back` then cuts the file back.  Reserved room also
makes fdatasync cheaper: the file's size does not change (`benchmarks/test_log.py`).

Syncing, writing and rotating need no new descriptor: the directory and the file of the next segment (`.next`) are open
ahead, and a full segment keeps its descriptor until it is synced to its end.

Recovery (`recover`) reads the segments from the first that is not yet absorbed, cuts off a torn tail and says so, and
refuses damage: a bad frame although a later one testifies that the log had been synced past it.

Not here: what entries mean (engine.py), when to seal (engine.py), publishing (replication/outbox.py).
"""

import logging
import mmap
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

from merklekv.engine.format import (
    ENTRY,
    FORMAT_VERSION,
    FRAME_HEADER,
    FRAME_MAGIC,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    frame_checksum,
)
from merklekv.errors import Corruption, DiskFull, FormatTooNew, InvalidArgument, Shortage, StorageFailed
from merklekv.private import FILE_MODE
from merklekv.shortage import NO_ROOM, is_shortage, shortage_of

log = logging.getLogger(__name__)

PAYLOAD_SIZE_MAX: Final = (1 << 32) - 1  # what a frame's 4-byte length can say
RESERVE_STEP: Final = 4 << 20  # bytes reserved ahead of the writes
PROBE_SIZE: Final = 64 << 10  # bytes that a disk has to take before it is trusted again
NEXT_FILE: Final = ".next"  # becomes the next segment
_ENTRY_SIZE: Final = ENTRY.size
_NAME: Final = re.compile(r"[0-9]{20}")


class Frame(NamedTuple):
    """One commit as read back; `payload` spans `start` to `end` of the segment's bytes."""

    position: int
    start: int
    end: int
    synced: int
    sequence: int
    local_count: int
    entry_count: int


def segment_path(directory: Path, lsn: int) -> Path:
    """The file of the segment whose first byte is at `lsn`."""
    return directory / f"{lsn:020d}.log"


def list_segments(directory: Path) -> list[int]:
    """LSNs of the segments in a log directory, in order."""
    return sorted(int(path.stem) for path in directory.glob("*.log") if _NAME.fullmatch(path.stem))


class Segment:
    """One segment file, read through a memory map.  `with Segment(path) as segment: ...`"""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lsn = int(path.stem)
        self.size = path.stat().st_size
        if self.size < SEGMENT_HEADER.size:
            raise _damaged(path, 0, "the file is shorter than a segment's header")
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        head = self.data[: SEGMENT_HEADER.size]
        magic, version, _, lsn, self.sequence, self.created_ns, checksum = SEGMENT_HEADER.unpack(head)
        whole = magic == SEGMENT_MAGIC and checksum == xxh3_64_intdigest(head[:-8])
        if whole and version > FORMAT_VERSION:
            self.data.close()
            raise FormatTooNew(f"{path}: log format {version} is from a later release; this one reads {FORMAT_VERSION}")
        if not whole or lsn != self.lsn:
            self.data.close()
            raise _damaged(path, 0, "the segment's header does not match its checksum")

    def __enter__(self) -> "Segment":
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close()

    def frame_at(self, position: int) -> Frame | None:
        """The frame at a position of the file, or None where there is no whole one."""
        if position + FRAME_HEADER.size > self.size:
            return None
        magic, length, synced, sequence, local_count, entry_count, checksum = FRAME_HEADER.unpack_from(
            self.data, position
        )
        start = position + FRAME_HEADER.size
        end = start + length
        if magic != FRAME_MAGIC or end > self.size:
            return None
        fields = (length, synced, sequence, local_count, entry_count)
        if checksum != frame_checksum(self.lsn, position, fields, self.data[start:end]):
            return None
        return Frame(position, start, end, synced, sequence, local_count, entry_count)

    def frames(self, position: int = SEGMENT_HEADER.size) -> Iterator[Frame]:
        """The whole frames from `position` on, up to the first that is not."""
        while (frame := self.frame_at(position)) is not None:
            yield frame
            position = frame.end

    def entries(self, frame: Frame) -> Iterator[tuple[int, bytes, int, int]]:
        """The entries of a frame, in the order in which they were made: (op, key, start and end of the record)."""
        data, at, end = self.data, frame.start, frame.end
        unpack = ENTRY.unpack_from
        while at < end:
            op, key_length, record_length = unpack(data, at)
            key_at = at + _ENTRY_SIZE
            record_at = key_at + key_length
            at = record_at + record_length
            yield op, data[key_at:record_at], record_at, at

    def is_zero_filled(self, position: int) -> bool:
        """Whether only reserved room (zeros) lies behind `position`."""
        data, step = self.data, 1 << 20
        return not any(data[at : at + step].strip(b"\0") for at in range(position, self.size, step))

    def synced_claim(self, position: int) -> int:
        """The largest LSN that any whole frame behind `position` claims as synced, 0 without such a frame."""
        claimed = 0
        while (position := self.data.find(FRAME_MAGIC, position)) >= 0:
            frame = self.frame_at(position)
            if frame is not None:
                claimed = max(claimed, frame.synced)
            position += 1
        return claimed


def _damaged(path: Path, position: int, what: str) -> Corruption:
    return Corruption(
        f"{path}: damaged at byte {position}: {what}; nothing was changed. `merklekv-tool verify` lists the damage; "
        "keep the directory, and restore a backup or let the other nodes fill a new one"
    )


@dataclass
class Recovered:
    """Where the log ends: what `Log` goes on from."""

    segments: list[int]  # LSNs of those not yet absorbed, the open one last
    end: int  # bytes of the last segment that hold whole frames
    sequence: int  # of the next local event


def recover(directory: Path, checkpoint_lsn: int) -> Recovered | None:
    """Finds the end of the log, cuts off a torn tail, and refuses damage; None when there is no log yet.

    `checkpoint_lsn` is the LSN up to which LMDB holds everything.  Segments before it are kept for the outbox alone.
    """
    lsns = list_segments(directory)
    if not checkpoint_lsn or (
        lsns and lsns[-1] > checkpoint_lsn
    ):  # the base ends where a segment begins that is on disk
        _drop_unborn(directory, lsns)
    live = [lsn for lsn in lsns if lsn >= checkpoint_lsn]
    if not lsns and not checkpoint_lsn:
        return None
    if not live or live[0] != checkpoint_lsn:
        raise _damaged(segment_path(directory, checkpoint_lsn), 0, "the segment is missing")
    for index, lsn in enumerate(live):
        path = segment_path(directory, lsn)
        sync_file(path)  # a crash of the process alone leaves frames that were never synced, yet are readable
        with Segment(path) as segment:
            end, sequence = SEGMENT_HEADER.size, segment.sequence
            for frame in segment.frames():
                end, sequence = frame.end, frame.sequence + frame.local_count
            following = live[index + 1 :]
            if following and following[0] == lsn + end:
                continue
            _require_torn_tail(directory, segment, end, following)
            if segment.is_zero_filled(end) and not following:
                return Recovered(live, end, sequence)
        _cut(directory, path, end, following)
        return Recovered(live[: index + 1], end, sequence)
    raise AssertionError("the last segment has none behind it")


def _drop_unborn(directory: Path, lsns: list[int]) -> None:
    """Forgets a newest segment whose header never reached the disk: a crash while it was being made."""
    if not lsns:
        return
    path = segment_path(directory, lsns[-1])
    if path.stat().st_size > SEGMENT_HEADER.size or any(path.read_bytes()):
        return  # the header is synced before anything is put behind it
    log.warning("%s: dropped, it was being created when the process ended", path)
    path.unlink()
    sync_directory(directory)  # or a later crash might bring it back, in the midst of other segments then
    lsns.pop()


def _require_torn_tail(directory: Path, segment: Segment, end: int, following: list[int]) -> None:
    claimed = segment.synced_claim(end)
    for lsn in following:
        with Segment(segment_path(directory, lsn)) as later:
            claimed = max(claimed, later.synced_claim(SEGMENT_HEADER.size))
    if claimed > segment.lsn + end:
        raise _damaged(segment.path, end, "a frame does not match its checksum, and what follows had been synced")


def _cut(directory: Path, path: Path, end: int, following: list[int]) -> None:
    lost = path.stat().st_size - end
    log.warning("%s: cut off a torn tail of at most %d bytes at byte %d: it was never synced", path, lost, end)
    for lsn in reversed(following):
        segment_path(directory, lsn).unlink()
    os.truncate(path, end)
    sync_file(path)
    sync_directory(directory)


def write_whole(fd: int, data: bytes, position: int) -> None:
    """Writes all of it: a single write may be cut short."""
    written = os.pwrite(fd, data, position)
    while written < len(data):
        written += os.pwrite(fd, data[written:], position + written)


@contextmanager
def suppress_shortage() -> Iterator[None]:
    """For what may be left undone when it fails for lack of something."""
    try:
        yield
    except OSError as error:
        if not is_shortage(error):
            raise


def sync_file(path: Path) -> None:
    """Makes a file's contents and size durable.  Raises StorageFailed."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    except OSError as error:
        raise StorageFailed(f"{path}: cannot sync: {error.strerror}") from error
    finally:
        os.close(fd)


def sync_directory(directory: Path) -> None:
    """Makes created, renamed and deleted names durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@dataclass
class Sealed:
    """A segment that is full, until it is cut to its size, synced and closed."""

    lsn: int
    end: int
    fd: int
    synced: bool  # all its frames are


class Log:
    """The open end of the log.  All but `write`, `sync` and `finish_sealing` are called under the engine's lock."""

    def __init__(self, directory: Path, recovered: Recovered | None) -> None:
        self.directory = directory
        self.pending: list[bytes] = []  # entries since the last frame was cut
        self.pending_size = 0
        self.room = 0  # bytes of entries that fit into the reserved room
        self.appended = 0  # entries ever accepted by this process
        self.sequence = recovered.sequence if recovered else 1  # of the next local event
        self._frame_sequence = self.sequence
        self._entries_cut = 0
        self._sealed: deque[Sealed] = deque()  # oldest first
        self._turning = threading.Lock()  # held for a moment, while it changes what is open and what is sealed
        self._syncing = threading.Lock()  # held during a sync, so that nobody closes what it syncs
        self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self._next_fd = -1
        if recovered is None:
            self._adopt(0, self._begin_segment(0))
        else:
            self.lsn = recovered.segments[-1]
            self._fd = os.open(segment_path(directory, self.lsn), os.O_RDWR)
            self.position = recovered.end
            self._reserved = max(self.position, os.fstat(self._fd).st_size)
            self._measure_room()
            with suppress_shortage():
                self._next_fd = self._open_next()
        self.written_lsn = self.synced_lsn = self.end_lsn

    @property
    def end_lsn(self) -> int:
        """Where the next frame goes."""
        return self.lsn + self.position

    def reserve(self, size: int) -> None:
        """Makes room for `size` bytes of entries in the next frame, or raises DiskFull."""
        if size > PAYLOAD_SIZE_MAX:
            raise InvalidArgument(f"{size} bytes in one commit: at most {PAYLOAD_SIZE_MAX}; commit more often")
        needed = self.position + FRAME_HEADER.size + size
        for target in (max(needed, self._reserved + RESERVE_STEP), needed):
            if target <= self._reserved:
                return
            try:
                os.posix_fallocate(self._fd, self._reserved, target - self._reserved)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise self._trouble(error, "cannot reserve room") from error
            else:
                self._reserved = target
                self._measure_room()
                return
        raise DiskFull("disk full, write not stored")

    def take(self) -> tuple[int, bytes]:
        """Cuts the gathered entries into a frame; returns its position and bytes, for `write`."""
        payload = b"".join(self.pending)
        entry_count = self.appended - self._entries_cut
        local_count = self.sequence - self._frame_sequence
        fields = (len(payload), self.synced_lsn, self._frame_sequence, local_count, entry_count)
        position = self.position
        checksum = frame_checksum(self.lsn, position, fields, payload)
        self.pending = []
        self.pending_size = 0
        self._entries_cut = self.appended
        self._frame_sequence = self.sequence
        self.position = position + FRAME_HEADER.size + len(payload)
        self._measure_room()
        return position, FRAME_HEADER.pack(FRAME_MAGIC, *fields, checksum) + payload

    def write(self, position: int, frame: bytes) -> None:
        """Puts a frame into the file.  Raises Shortage, after which only `take_back` helps, and StorageFailed."""
        try:
            write_whole(self._fd, frame, position)
        except OSError as error:
            raise self._trouble(error, "cannot write") from error
        self.written_lsn = self.lsn + position + len(frame)

    def take_back(self) -> None:
        """Forgets everything behind the last frame that was written, also what a failed `write` has left in the file.

        The caller sets `sequence`.  Raises StorageFailed.
        """
        self.pending = []
        self.pending_size = 0
        self._entries_cut = self.appended
        self.position = max(self.written_lsn - self.lsn, SEGMENT_HEADER.size)
        try:
            os.ftruncate(self._fd, self.position)  # or a later, shorter frame would have the rest of this one behind it
        except OSError as error:
            raise StorageFailed(f"{self._path}: cannot cut back: {error.strerror}") from error
        self._reserved = self.position
        self._measure_room()

    def resume(self, sequence: int) -> None:
        """The next local event has this number."""
        self.sequence = self._frame_sequence = sequence

    def probe(self) -> None:
        """Writes zeros, as reserved room has them, behind the last frame.  Raises Shortage if the disk has no room."""
        self.reserve(PROBE_SIZE)
        try:
            write_whole(self._fd, bytes(PROBE_SIZE), self.position)
        except OSError as error:
            raise self._trouble(error, "cannot write") from error

    def sync(self) -> None:
        """Makes every written frame durable, those of full segments first.  Raises StorageFailed: the kernel may have
        dropped the pages.  May run beside `write`, `seal` and `finish_sealing`.
        """
        with self._syncing:
            with self._turning:
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
        """Starts a new segment and puts the full one aside for `finish_sealing`; its frames must all be written.

        Raises Shortage, with the old segment still in use, and StorageFailed.
        """
        fd = self._begin_segment(self.end_lsn)
        with self._turning:
            self._sealed.append(Sealed(self.lsn, self.position, self._fd, self.synced_lsn >= self.end_lsn))
            self._adopt(self.end_lsn, fd)

    def finish_sealing(self) -> None:
        """Cuts the reserved room off full segments, syncs and closes them; one thread at a time.  Raises StorageFailed.

        Readers get along with the reserved room, so this may come late; `sync` does not wait for it.
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
            with self._syncing, self._turning:
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
        self.room = self._reserved - self.position - FRAME_HEADER.size

    def _adopt(self, lsn: int, fd: int) -> None:
        self.lsn, self._fd = lsn, fd
        self.position = self._reserved = SEGMENT_HEADER.size
        self._measure_room()

    def _begin_segment(self, lsn: int) -> int:
        """Makes the prepared file a segment without frames, durably; its descriptor.

        Raises Shortage, with nothing changed, and StorageFailed.
        """
        path = segment_path(self.directory, lsn)
        head = SEGMENT_HEADER.pack(SEGMENT_MAGIC, FORMAT_VERSION, 0, lsn, self.sequence, time.time_ns(), 0)[:-8]
        try:
            if self._next_fd < 0:
                self._next_fd = self._open_next()
            write_whole(self._next_fd, head + xxh3_64_intdigest(head).to_bytes(8, "big"), 0)
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
        return os.open(self.directory / NEXT_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE)

    def _trouble(self, error: OSError, what: str, path: Path | None = None) -> Shortage | StorageFailed:
        what = f"{path or self._path}: {what}"
        return shortage_of(error, what) if is_shortage(error) else StorageFailed(f"{what}: {error.strerror}")
