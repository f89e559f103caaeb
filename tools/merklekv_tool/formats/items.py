"""What a dump consists of, and the checks that both of its encodings make; see dump.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from xxhash import xxh3_128

from merklekv.engine.format import MAX_KEY_SIZE
from merklekv.engine.record import EXPIRY, EXPIRY_MAX, TOMBSTONE, VERSION_SIZE, digest_of, flags_of, make_record
from merklekv.errors import shown
from merklekv_tool.errors import DumpError

DUMP_VERSION: Final = 3
MARK: Final = "merklekv_dump"  # the first field of the head, in both formats

Pair = tuple[bytes, bytes]


@dataclass(frozen=True)
class Head:
    """The beginning of a dump."""

    prefix: bytes


@dataclass(frozen=True)
class End:
    """The end of a dump. `truncation`: 24 bytes, None under a prefix."""

    records: int
    truncation: bytes | None
    checksum: bytes


Item = Head | Pair | End


def require_dump_version(version: object) -> None:
    """Raises ValueError for a dump of another release."""
    if version != DUMP_VERSION:
        raise ValueError(f"a dump of version {shown(version)}: this release reads {DUMP_VERSION}")


def check_flags(key: bytes, record: bytes) -> bool:
    """Whether a record is a tombstone. Raises DumpError for flags of a later release: a dump would lose them."""
    flags = flags_of(record)
    if flags not in (0, TOMBSTONE, EXPIRY):
        raise DumpError(f"the record of {key!r} has flags {flags:#x} of a later release: dump it with that release")
    return flags == TOMBSTONE


def build_record(
    key: bytes, version: bytes, tombstone: bool, digest: bytes, value: bytes, expiry: object = None
) -> bytes:
    """The record as the engine stores it. Raises ValueError for fields that no record has."""
    if not 0 < len(key) <= MAX_KEY_SIZE:
        raise ValueError(f"a key of {len(key)} bytes: keys have 1 to {MAX_KEY_SIZE}")
    if len(version) != VERSION_SIZE:
        raise ValueError(f"a version of {len(version)} bytes: versions have {VERSION_SIZE}")
    if expiry is not None:
        if not isinstance(expiry, int) or isinstance(expiry, bool) or not 0 < expiry <= EXPIRY_MAX:
            raise ValueError(f"{expiry!r:.40} is no expiry: it has 1 to {EXPIRY_MAX} milliseconds since the epoch")
        if tombstone:
            raise ValueError("a tombstone with an expiry")
    record = make_record(key, version, value, tombstone=tombstone, expiry=expiry)
    if digest_of(record) != digest:
        raise ValueError(f"the record of {key!r} does not match its digest: it was damaged or edited")
    return record


def checksum_of(head: Head) -> xxh3_128:
    """The checksum of a dump, to be updated with each record's digest and the truncation version."""
    return xxh3_128(len(head.prefix).to_bytes(8, "big") + head.prefix)
