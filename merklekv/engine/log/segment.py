"""The files of the log: their names, their frames, and the calls that make them durable.

A frame is whole when its checksum fits its bytes and its position (layout: format.py).  A crash can leave a torn tail
behind the last whole frame.  Zeros behind it are room that the writer had reserved.
"""

import mmap
import os
import re
import time
from collections.abc import Iterator
from itertools import starmap
from pathlib import Path
from struct import Struct
from typing import Any, Final, NamedTuple

from xxhash import xxh3_64, xxh3_64_digest, xxh3_64_intdigest

from merklekv.core import compiled
from merklekv.engine.access import damage
from merklekv.engine.format import (
    ENTRY,
    FORMAT_VERSION,
    FRAME_HEAD,
    FRAME_HEADER,
    FRAME_MAGIC,
    FRAME_PLACE,
    KEYLESS_OPS,
    REMOTE,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
)
from merklekv.errors import Corruption, FormatTooNew, StorageFailed

_ENTRY_SIZE: Final = ENTRY.size
_HEADER_SIZE: Final = FRAME_HEADER.size
LARGE_PAYLOAD: Final = 64 << 10  # from here on a copy costs more than the calls that spare it
_place: Final = FRAME_PLACE.pack
RECORD_PLACE: Final = Struct(">HQI")
"""Where a record is: number of a segment, position there, size."""

LSN_MAX: Final = (1 << 64) - 1
_NAME: Final = re.compile(r"[0-9]{20}")


class Frame(NamedTuple):
    """A whole frame: `position` and `end` count from the beginning of its segment."""

    position: int
    end: int
    synced: int
    sequence: int
    local_count: int
    entry_count: int
    payload: bytes


FrameFields = tuple[int, int, int, int, int, int, bytes]  # those of `Frame`


class LogFrame(NamedTuple):
    """A frame of the log: its LSNs, and its bytes."""

    start: int  # for the first frame of a segment, the LSN of the segment
    end: int  # LSN behind it
    sequence: int  # of its first local event
    local_count: int
    data: bytes  # header and entries; readers that need only local events may leave out a frame without any


def segment_path(directory: Path, lsn: int) -> Path:
    """The file of the segment whose first byte is at `lsn`."""
    return directory / f"{lsn:020d}.log"


def list_segments(directory: Path) -> list[int]:
    """LSNs of the segments in a log directory, in order."""
    lsns = (int(path.stem) for path in directory.glob("*.log") if _NAME.fullmatch(path.stem))
    return sorted(lsn for lsn in lsns if lsn <= LSN_MAX)


def first_event(path: Path) -> int:
    """The number of the first local event in a segment, or behind it."""
    return int(_header_fields(path)[4])


def created_at(path: Path) -> int:
    """When a segment was begun, and the one before it full, in nanoseconds since the epoch."""
    return int(_header_fields(path)[5])


def _header_fields(path: Path) -> tuple[Any, ...]:
    with path.open("rb") as file:
        return SEGMENT_HEADER.unpack(file.read(SEGMENT_HEADER.size))


def pack_header(lsn: int, sequence: int) -> bytes:
    """The header of a segment that begins with local event `sequence`."""
    now = max(0, time.time_ns())  # a clock that was never set may be before 1970
    header = SEGMENT_HEADER.pack(SEGMENT_MAGIC, FORMAT_VERSION, 0, lsn, sequence, now, 0)[:-8]
    return header + xxh3_64_intdigest(header).to_bytes(8, "big")


@compiled
def pack_frame(
    lsn: int, position: int, synced: int, sequence: int, local_count: int, entry_count: int, entries: list[bytes]
) -> bytes:
    """A frame of these entries for a position of segment `lsn`."""
    payload = b"".join(entries)
    head = FRAME_HEAD.pack(FRAME_MAGIC, len(payload), synced, sequence, local_count, entry_count)
    return b"".join((head, xxh3_64_digest(_place(lsn, position) + head + payload), payload))


def whole_frames(
    data: bytes | mmap.mmap,
    data_at: int,
    lsn: int,
    position: int,
    *,
    local_only: bool = False,
    with_payload: bool = True,
) -> Iterator[FrameFields]:
    """The whole frames from a position of segment `lsn` on, up to the first that is not, as plain tuples: it is hot.

    `data` is the segment's bytes from `data_at` on.  `local_only`: a frame without local events needs only its head,
    and has no payload.  Without `with_payload` a large one is checked without a copy, and left out.
    """
    at, size = position - data_at, len(data)
    unpack, head_size = FRAME_HEAD.unpack_from, FRAME_HEAD.size
    while 0 <= at <= size - _HEADER_SIZE:
        magic, length, synced, sequence, local_count, entry_count = unpack(data, at)
        head_end, start = at + head_size, at + _HEADER_SIZE
        end, payload = start + length, b""
        if magic != FRAME_MAGIC:
            return
        if local_count or not local_only:
            if end > size:
                return
            place = _place(lsn, at + data_at) + data[at:head_end]
            if length < LARGE_PAYLOAD:
                payload = data[start:end]
                checksum = xxh3_64_digest(place + payload)
            else:
                hashing = xxh3_64(place)
                with memoryview(data) as view, view[start:end] as part:
                    hashing.update(part)
                checksum = hashing.digest()
                payload = data[start:end] if with_payload else b""
            if data[head_end:start] != checksum:
                return
        yield at + data_at, end + data_at, synced, sequence, local_count, entry_count, payload
        at = end


def whole_frame(
    data: bytes | mmap.mmap, data_at: int, lsn: int, position: int, local_only: bool = False
) -> Frame | None:
    """The first of these, or None; of a large one without the payload."""
    frames = whole_frames(data, data_at, lsn, position, local_only=local_only, with_payload=False)
    return next(starmap(Frame, frames), None)


@compiled
def note_each(
    data: bytes | mmap.mmap, at: int, end: int, index: int, places: dict[bytes, bytes]
) -> list[tuple[int, bytes, bytes]]:
    """Notes where the newest record of each key is, as RECORD_PLACE, of the entries between two positions.

    `data` is that of segment number `index`.  Returns what changes no key: op, key, and record.
    Raises ValueError if the entries do not end there.
    """
    others: list[tuple[int, bytes, bytes]] = []
    unpack, pack = ENTRY.unpack_from, RECORD_PLACE.pack
    while at < end:
        op, key_length, record_length = unpack(data, at) if at + _ENTRY_SIZE <= end else (0, 0, end)
        record_at = at + _ENTRY_SIZE + key_length
        if record_at + record_length > end:
            raise ValueError("an entry reaches beyond its frame")
        key = data[at + _ENTRY_SIZE : record_at]
        if op & ~REMOTE in KEYLESS_OPS:
            others.append((op, key, data[record_at : record_at + record_length]))
        else:
            places[key] = pack(index, record_at, record_length)
        at = record_at + record_length
    return others


def write_whole(fd: int, data: bytes, position: int) -> None:
    """Writes all of `data`: a single write may be cut short."""
    written = os.pwrite(fd, data, position)
    while written < len(data):
        written += os.pwrite(fd, data[written:], position + written)


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


class Segment:
    """One segment file, read through a memory map.  `with Segment(path) as segment: ...`"""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lsn = int(path.stem)
        with path.open("rb") as file:
            head = file.read(SEGMENT_HEADER.size)
            if len(head) < SEGMENT_HEADER.size:
                raise corrupt(path, 0, "the file is shorter than a segment's header")
            magic, version, _, lsn, self.sequence, _, checksum = SEGMENT_HEADER.unpack(head)
            is_whole = magic == SEGMENT_MAGIC and checksum == xxh3_64_intdigest(head[:-8])
            if is_whole and version > FORMAT_VERSION:
                raise FormatTooNew(
                    f"{path}: log format {version} is from a later release; this one reads {FORMAT_VERSION}"
                )
            if not is_whole or lsn != self.lsn:
                raise corrupt(path, 0, "the segment's header does not match its checksum")
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.size = len(self.data)

    def __enter__(self) -> "Segment":
        return self

    def __exit__(self, *_: object) -> None:
        self.data.close()

    def frames(self, position: int = SEGMENT_HEADER.size) -> Iterator[Frame]:
        """The whole frames from `position` on, up to the first that is not; large ones without the payload."""
        return starmap(Frame, whole_frames(self.data, 0, self.lsn, position, with_payload=False))

    def note_each(self, frame: Frame, index: int, places: dict[bytes, bytes]) -> list[tuple[int, bytes, bytes]]:
        """`note_each` for the entries of a frame.  Raises Corruption."""
        try:
            return note_each(self.data, frame.position + _HEADER_SIZE, frame.end, index, places)
        except ValueError as error:
            raise corrupt(self.path, frame.position, str(error)) from error

    def is_zero_filled(self, position: int) -> bool:
        """Whether only reserved room (zeros) lies behind `position`."""
        data, step = self.data, 1 << 20
        return not any(data[at : at + step].strip(b"\0") for at in range(position, self.size, step))

    def claims_synced(self, position: int, lsn: int) -> bool:
        """Whether a whole frame at or behind `position` says that what is behind `lsn` had been synced.

        A value may be full of what looks like frames, and the checksum of each takes long: those that could not say
        so do not count.
        """
        while (position := self.data.find(FRAME_MAGIC, position)) >= 0:
            head = self.data[position : position + FRAME_HEAD.size]
            synced = FRAME_HEAD.unpack(head)[2] if len(head) == FRAME_HEAD.size else 0
            if lsn < synced <= self.lsn + position and whole_frame(self.data, 0, self.lsn, position):
                return True
            position += 1
        return False


def corrupt(path: Path, position: int, what: str) -> Corruption:
    where = f"{path}: damaged at byte {position}: {what}"
    return damage(f"{where}; nothing was changed. `merklekv verify` lists the damage")
