"""The record: what a key maps to, in memory, in the log, in the base and between nodes.

    version   24    timestamp 8 (nanoseconds since the epoch), store id 8, process epoch 4, counter 4
    flags      1    bit 0: tombstone; bit 1: an expiry follows the digest; bit 2: purge marker
    digest    16    XXH3-128 over: key length (2), key, version, flags, [expiry], value
    [expiry]   8    milliseconds since the epoch, only with flag bit 1
    value      n    empty in a tombstone

The first 41 bytes are the head, the rest is the body.  Versions compare as bytes: the later timestamp wins, and the op
id (the 16 bytes behind the timestamp) breaks ties.  Records compare like their versions, because a record begins with
its version.  The digest is the record's checksum and its term in the Merkle tree; it covers what a merge compares.

A purge marker (a version, flags 5, sixteen zeros) stands for a tombstone that was collected, or for a record that a
lone node has deleted; then the time of the deletion follows (8, nanoseconds), for people.  It hides the record in older
layers, has no term in the tree, and ends in the base together with the record that it hides.

An expiry is of live records only.  A node hides such a record from the moment on at which its own wall clock shows the
expiry, as if the key did not exist; the record stays as it is, so clocks change no digest.

This module knows the offsets.  The write function of the engine and the base use them too, because a call for each
record costs them too much; every other module calls the functions below.  Each takes a record or, but for `value_of`
and `body_of`, a head; a call costs about 50 ns.
"""

from collections.abc import Callable
from operator import itemgetter
from struct import Struct
from typing import Final

from xxhash import xxh3_64_digest, xxh3_128_digest

from merklekv.engine.format import MAX_KEY_SIZE

Pair = tuple[bytes, bytes]  # a key and its record, or its head

TIMESTAMP_SIZE: Final = 8
TIMESTAMP_MAX: Final = (1 << 64) - 2  # nanoseconds, of a truncation: what is written next is later
STORE_ID_SIZE: Final = 8
EPOCH_SIZE: Final = 4
OP_ID_SIZE: Final = 16
VERSION_SIZE: Final = TIMESTAMP_SIZE + OP_ID_SIZE
DIGEST_SIZE: Final = 16
HEAD_SIZE: Final = VERSION_SIZE + 1 + DIGEST_SIZE
EXPIRY_SIZE: Final = 8
EXPIRY_KEY_SIZE: Final = 6  # of a key's hash in an expiry place
EXPIRY_MAX: Final = (1 << 63) - 1
RECORD_OVERHEAD: Final = HEAD_SIZE + EXPIRY_SIZE  # at most what a record adds to its value

FLAGS_AT: Final = VERSION_SIZE
DIGEST_AT: Final = FLAGS_AT + 1
VALUE_AT: Final = HEAD_SIZE  # of a record without an expiry

TOMBSTONE: Final = 1
EXPIRY: Final = 2
PURGED: Final = 4
FLAGS: Final = tuple(bytes((flags,)) for flags in range(4))  # the flag byte of every record that is no purge marker
PURGE_MARKER_TAIL: Final = bytes((TOMBSTONE | PURGED,)) + bytes(DIGEST_SIZE)  # what follows the version

NS_PER_MS: Final = 10**6
ZERO_VERSION: Final = bytes(VERSION_SIZE)
KEY_LENGTHS: Final = tuple(length.to_bytes(2, "big") for length in range(MAX_KEY_SIZE + 1))

_REDELETE_COUNTER: Final = b"\xff" * 4
_unpack_timestamp = Struct(">Q").unpack_from

# -- making and checking -----------------------------------------------------------------------------------------------


def make_record(
    key: bytes, version: bytes, value: bytes, *, tombstone: bool = False, expiry: int | None = None
) -> bytes:
    """The record of `key` at `version` (24 bytes).  `expiry`: milliseconds since the epoch, 1 to EXPIRY_MAX."""
    if expiry is None:
        head, body = version + FLAGS[tombstone], value
    else:
        head, body = version + FLAGS[tombstone | EXPIRY], pack_expiry(expiry) + value
    return head + xxh3_128_digest(len(key).to_bytes(2, "big") + key + head + body) + body


def pack_expiry(expiry: int) -> bytes:
    """An expiry as it stands before the value, 8 bytes."""
    return expiry.to_bytes(EXPIRY_SIZE, "big")


def purge_marker(record: bytes) -> bytes:
    """The purge marker for a record or for a version."""
    return record[:VERSION_SIZE] + PURGE_MARKER_TAIL


def deletion_marker(record: bytes, time: int) -> bytes:
    """The purge marker for a record that is deleted at this time, ns."""
    return purge_marker(record) + time.to_bytes(TIMESTAMP_SIZE, "big")


def deleted_at(marker: bytes) -> int | None:
    """The time, ns, in a purge marker of `deletion_marker`."""
    return int.from_bytes(marker[VALUE_AT:], "big") if len(marker) > HEAD_SIZE else None


def is_complete(record: bytes) -> bool:
    """Whether the record is long enough for its head, and for its expiry if it has one."""
    return len(record) >= RECORD_OVERHEAD or (len(record) >= HEAD_SIZE and not record[FLAGS_AT] & EXPIRY)


def is_sound(key: bytes, record: bytes) -> bool:
    """Whether the record is whole and was made for this key."""
    if not is_complete(record):
        return False
    hashed = len(key).to_bytes(2, "big") + key + record[:DIGEST_AT] + record[HEAD_SIZE:]
    return xxh3_128_digest(hashed) == record[DIGEST_AT:HEAD_SIZE]


def padded(record: bytes) -> bytes:
    """A record of the base, with zeros in the place of a part of its head that damage has cut off.

    Its digest does not fit then, and what reads its fields finds them.
    """
    return record if len(record) >= HEAD_SIZE else record.ljust(HEAD_SIZE, b"\0")


# -- fields ------------------------------------------------------------------------------------------------------------


def version_of(record: bytes) -> bytes:
    """The version, 24 bytes."""
    return record[:VERSION_SIZE]


flags_of: Final[Callable[[bytes], int]] = itemgetter(FLAGS_AT)
"""The flag byte."""


def is_tombstone(record: bytes) -> bool:
    """Whether the key is deleted: the record is a tombstone or a purge marker."""
    return record[FLAGS_AT] & TOMBSTONE != 0


def is_live(record: bytes) -> bool:
    """Whether the key has a value."""
    return record[FLAGS_AT] & TOMBSTONE == 0


def is_purge_marker(record: bytes) -> bool:
    """Whether the record is a purge marker."""
    return record[FLAGS_AT] & PURGED != 0


def digest_of(record: bytes) -> bytes:
    """The digest, 16 bytes."""
    return record[DIGEST_AT:HEAD_SIZE]


def head_of(record: bytes) -> bytes:
    """Version, flags and digest, 41 bytes: all that an exchange compares."""
    return record[:HEAD_SIZE]


def body_of(record: bytes) -> bytes:
    """What follows the head: the expiry, if the record has one, and the value."""
    return record[HEAD_SIZE:]


def expiry_of(record: bytes) -> int | None:
    """The expiry in milliseconds since the epoch, None without one."""
    return int.from_bytes(record[HEAD_SIZE:RECORD_OVERHEAD], "big") if record[FLAGS_AT] & EXPIRY else None


def packed_expiry_of(record: bytes) -> bytes:
    """The expiry as it stands before the value, 8 bytes; empty without one."""
    return record[HEAD_SIZE:RECORD_OVERHEAD] if record[FLAGS_AT] & EXPIRY else b""


def expiry_place(key: bytes, record: bytes) -> bytes:
    """Where a record is in the order in which records expire, 14 bytes, see format.py; empty for one that does not."""
    if record[FLAGS_AT] != EXPIRY or len(record) < RECORD_OVERHEAD or record[HEAD_SIZE] & 0x80:
        return b""  # the latter two: it is damaged
    return record[HEAD_SIZE:RECORD_OVERHEAD] + xxh3_64_digest(key)[:EXPIRY_KEY_SIZE]


def is_expired(record: bytes, now: int) -> bool:
    """Whether a wall clock that shows `now`, ns, has reached the expiry of a record."""
    if not record[FLAGS_AT] & EXPIRY:
        return False
    return int.from_bytes(record[HEAD_SIZE:RECORD_OVERHEAD], "big") * NS_PER_MS <= now


def value_of(record: bytes) -> bytes:
    """The value."""
    return record[RECORD_OVERHEAD:] if record[FLAGS_AT] & EXPIRY else record[HEAD_SIZE:]


def lead_of(record: bytes) -> bytes:
    """What is before the value: the head, and the expiry, if the record has one; 41 or 49 bytes."""
    return record[:RECORD_OVERHEAD] if record[FLAGS_AT] & EXPIRY else record[:HEAD_SIZE]


def is_lead(lead: bytes) -> bool:
    """Whether bytes are as long as what is before the value of a record that begins with them."""
    return len(lead) >= HEAD_SIZE and len(lead) == (RECORD_OVERHEAD if lead[FLAGS_AT] & EXPIRY else HEAD_SIZE)


def value_at(data: bytes, at: int) -> int:
    """Where the value begins in the record at `at`."""
    return at + (RECORD_OVERHEAD if data[at + FLAGS_AT] & EXPIRY else HEAD_SIZE)


split_version: Final = Struct(f"{TIMESTAMP_SIZE}s{OP_ID_SIZE}s").unpack_from
"""Timestamp (8 bytes) and op id of the record or version at an offset of some bytes."""


def value_size_of(record: bytes) -> int:
    """The size of the value."""
    return len(record) - (RECORD_OVERHEAD if record[FLAGS_AT] & EXPIRY else HEAD_SIZE)


# -- fields of a version -----------------------------------------------------------------------------------------------


def make_version(timestamp: int, op_id: bytes) -> bytes:
    """The version with this timestamp (ns) and op id (16 bytes)."""
    return timestamp.to_bytes(TIMESTAMP_SIZE, "big") + op_id


def timestamp_of(record: bytes) -> int:
    """The timestamp of a record or version, nanoseconds since the epoch."""
    timestamp: int = _unpack_timestamp(record)[0]
    return timestamp


def op_id_of(record: bytes) -> bytes:
    """The op id of a record or version, 16 bytes: store id, process epoch and counter."""
    return record[TIMESTAMP_SIZE:VERSION_SIZE]


def store_id_of(record: bytes) -> bytes:
    """The store id in a record or version, 8 bytes: the data directory that wrote it."""
    return record[TIMESTAMP_SIZE : TIMESTAMP_SIZE + STORE_ID_SIZE]


def epoch_of(record: bytes) -> bytes:
    """The process epoch in a record or version, 4 bytes: the process of that data directory that wrote it."""
    return record[TIMESTAMP_SIZE + STORE_ID_SIZE : TIMESTAMP_SIZE + STORE_ID_SIZE + EPOCH_SIZE]


def redelete_op_id(record: bytes) -> bytes:
    """The op id (16 bytes) of a tombstone that re-deletes a record or version: its own, with the largest counter."""
    return record[TIMESTAMP_SIZE : VERSION_SIZE - len(_REDELETE_COUNTER)] + _REDELETE_COUNTER


def is_redelete(tombstone: bytes) -> bool:
    """Whether a tombstone (or its version) is of a re-deletion.

    A client's has the same counter once in 2^32 writes of a process, and is taken for one then.
    """
    return tombstone[VERSION_SIZE - len(_REDELETE_COUNTER) : VERSION_SIZE] == _REDELETE_COUNTER


def show_version(record: bytes) -> str:
    """The version of a record or version as people read it: timestamp, a dash, op id in hex."""
    return f"{timestamp_of(record)}-{op_id_of(record).hex()}"
