"""The same facts as the engine's, computed the plain way: what the checker compares with.

Nothing here shares code with what it is to catch: digests, buckets, leaves, roots, frames and entries are read and
computed straight from the prose of format.py.  All of it is meant to be obvious, none of it to be fast.

Cost: about 2 us a record; memory for the leaves that are not empty, and for one frame of the log.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from xxhash import xxh3_64_digest, xxh3_128_digest

MAGIC_SEGMENT: Final = b"MKVSEGM1"
MAGIC_FRAME: Final = b"MKVF"
HEADER_SIZE: Final = 48  # of a segment
FRAME_HEAD_SIZE: Final = 40
ENTRY_HEAD_SIZE: Final = 7
VERSION_SIZE: Final = 24
HEAD_SIZE: Final = 25  # version and flags
RECORD_SIZE_MIN: Final = 41
EXPIRY_END: Final = 49  # where the value begins behind an expiry
KEY_SIZE_MAX: Final = 511


def number(data: bytes) -> int:
    """An unsigned big-endian integer."""
    return int.from_bytes(data, "big")


def bucket_of(key: bytes) -> int:
    """The top 16 bits of the key's XXH3-64."""
    return number(xxh3_64_digest(key)[:2])


def digest_of(key: bytes, record: bytes) -> bytes:
    """XXH3-128 over key length, key, version, flags and value."""
    return xxh3_128_digest(number_bytes(len(key), 2) + key + record[:HEAD_SIZE] + record[RECORD_SIZE_MIN:])


def version_of(record: bytes) -> bytes:
    """The first 24 bytes."""
    return record[:VERSION_SIZE]


def number_bytes(value: int, size: int) -> bytes:
    """An unsigned integer, big-endian."""
    return value.to_bytes(size, "big")


def is_purge_marker(record: bytes) -> bool:
    """Bit 2 of the flags: no record, but what hides one that was collected."""
    return record[24] & 4 == 4


def is_tombstone(record: bytes) -> bool:
    """Bit 0 of the flags."""
    return record[24] & 1 == 1


def expiry_place(key: bytes, record: bytes) -> bytes:
    """Expiry and the first 6 bytes of the key's XXH3-64; empty without an expiry."""
    if record[24] != 2 or len(record) < EXPIRY_END or record[RECORD_SIZE_MIN] > 127:
        return b""
    return record[RECORD_SIZE_MIN:EXPIRY_END] + xxh3_64_digest(key)[:6]


@dataclass
class Tree:
    """Leaves, counters and the newest version of a set of records, each given once to `add`."""

    sums: dict[int, int] = field(default_factory=dict)  # of the leaves that are not empty
    counts: dict[int, int] = field(default_factory=dict)
    nodes: dict[int, set[int]] = field(default_factory=dict)  # these leaves by inner node
    live: int = 0
    dead: int = 0
    newest: bytes = bytes(VERSION_SIZE)
    expiring: int = 0  # records with an expiry

    def add(self, key: bytes, record: bytes) -> None:
        """Counts a record in."""
        bucket = bucket_of(key)
        self.sums[bucket] = (self.sums.get(bucket, 0) + number(record[25:41])) % 2**128
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.nodes.setdefault(bucket // 256, set()).add(bucket)
        if is_tombstone(record):
            self.dead += 1
        else:
            self.live += 1
            self.expiring += expiry_place(key, record) != b""
        self.newest = max(self.newest, record[:VERSION_SIZE])

    def leaf(self, bucket: int) -> bytes:
        """24 bytes: sum and count."""
        return number_bytes(self.sums.get(bucket, 0), 16) + number_bytes(self.counts.get(bucket, 0), 8)

    def leaves(self, node: int) -> bytes:
        """The 256 leaves of an inner node."""
        leaves = bytearray(256 * 24)
        for bucket in self.nodes.get(node, ()):
            at = bucket % 256 * 24
            leaves[at : at + 24] = self.leaf(bucket)
        return bytes(leaves)

    def root(self, truncation: bytes) -> bytes:
        """SHA-256 of the 256 inner digests and the truncation version, each inner one the SHA-256 of its 256 leaves."""
        if not self.counts:
            return bytes(32)
        inner = b"".join(sha256(self.leaves(node)).digest() for node in range(256))
        return sha256(inner + truncation).digest()


class Frame(NamedTuple):
    """A whole frame of the log."""

    position: int
    end: int
    synced: int
    sequence: int
    local_count: int
    entry_count: int
    payload: bytes


class Entry(NamedTuple):
    """One entry of a frame."""

    op: int
    remote: bool
    key: bytes
    record: bytes


def read_header(file: BinaryIO, lsn: int) -> tuple[int, int] | None:
    """Format version and first sequence number from a segment's header, None when it is not whole."""
    file.seek(0)
    head = file.read(HEADER_SIZE)
    whole = len(head) == HEADER_SIZE and head[:8] == MAGIC_SEGMENT and head[40:] == xxh3_64_digest(head[:40])
    if not whole or number(head[16:24]) != lsn:
        return None
    return number(head[8:12]), number(head[24:32])


def read_frame(file: BinaryIO, lsn: int, position: int) -> Frame | None:
    """The whole frame at a position of the segment that starts at `lsn`, or None."""
    file.seek(position)
    head = file.read(FRAME_HEAD_SIZE)
    if len(head) < FRAME_HEAD_SIZE or head[:4] != MAGIC_FRAME:
        return None
    length = number(head[4:8])
    if position + FRAME_HEAD_SIZE + length > Path(file.name).stat().st_size:
        return None
    payload = file.read(length)
    if head[32:] != xxh3_64_digest(number_bytes(lsn, 8) + number_bytes(position, 8) + head[:32] + payload):
        return None
    end = position + FRAME_HEAD_SIZE + length
    synced, sequence = number(head[8:16]), number(head[16:24])
    return Frame(position, end, synced, sequence, number(head[24:28]), number(head[28:32]), payload)


def read_entries(payload: bytes) -> Iterator[Entry]:
    """The entries of a frame's payload.  Raises ValueError when they do not fill it exactly."""
    at = 0
    while at < len(payload):
        key_at = at + ENTRY_HEAD_SIZE
        record_at = key_at + number(payload[at + 1 : at + 3])
        end = record_at + number(payload[at + 3 : key_at])
        if key_at > len(payload) or end > len(payload):
            raise ValueError(f"the entry at byte {at} of the payload reaches beyond its end")
        yield Entry(payload[at] & 0x7F, payload[at] >= 0x80, payload[key_at:record_at], payload[record_at:end])
        at = end


def claims_synced(path: Path, lsn: int, position: int, until: int) -> bool:
    """Whether a whole frame at or behind a position says that what is behind the LSN `until` had been synced."""
    data = path.read_bytes()
    with path.open("rb") as file:
        while (position := data.find(MAGIC_FRAME, position)) >= 0:
            synced = number(data[position + 8 : position + 16])
            if until < synced <= lsn + position and read_frame(file, lsn, position):
                return True
            position += 1
    return False
