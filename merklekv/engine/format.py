"""Every byte that MerkleKV keeps on disk, in prose, then as structs.  The record: record.py.

A data directory
    FORMAT          one line of text, ``MerkleKV data format 3``
    LOCK            the pid of the process that has the directory open; the lock (flock) is on the directory itself
    base/           an LMDB environment: the sorted base
    log/            the commit log: one file a segment, named by the log position (LSN) of its first byte, 20 digits
    outbox          the replication cursor, see log/retention.py; only on nodes that replicate

Integers are big-endian, so that comparing bytes compares numbers.

Segment (log/<lsn>.log)
    header    48    magic 8, format 4, unused 4, LSN of this byte 8, sequence number of its first local event 8,
                    time of creation in ns 8, XXH3-64 of the 40 bytes before
    frame ...       one for each commit
    zeros           room reserved for what comes; cut off when the segment is sealed

    An LSN counts the bytes of all segments since the log began, headers included.

Frame
    magic      4
    length     4    of the payload
    synced     8    the LSN up to which the log was known to be on disk when this frame was written
    sequence   8    sequence number of the frame's first local event
    locals     4    how many of its entries are local events
    entries    4
    checksum   8    XXH3-64 over segment LSN (8), position in the segment (8), the 32 bytes before, payload
    payload    n    entries, back to back

    Only frames behind the synced LSN can be torn by a crash.  So a bad frame is a torn tail that may be cut off,
    unless a later frame claims an LSN behind it as synced: then it is damage.

Entry
    op         1    one of OPS; bit 7 is set if the entry is not to be published: it came from another node, mostly
    key        2    length
    record     4    length
    key, record     `truncate`: no key; the record is the truncation version, 24 bytes
                    `origin`: the key is the id of the node that the remote entries behind it came from; no record
                    `del`, `rename_from`: a tombstone; on a lone node, with bit 7, a purge marker: it is not published
                    `metadata` (always with bit 7): the key is a name, the record its value; the newest counts
                    `purge` (always with bit 7): the record is a purge marker
                    `repair` (always with bit 7): the key is a bucket (2 bytes), the record one of its keys that the
                    index may lack, or nothing: the base derives anew what it keeps beside the bucket's records

LMDB databases in base/
    records         key -> record
    index           bucket (2 bytes) -> keys of that bucket (sorted duplicates)
    tombstones      version of a tombstone -> its key (sorted duplicates)
    expiries        expiry place, first 5 bytes -> the other 9 (sorted duplicates): one for each record with an expiry
    leaves          inner node (1 byte) -> its 256 leaves of 24 bytes: sum of record digests mod 2^128 (16), count (8)
    meta            name -> value, see base.py

Expiry place of a record with an expiry: the order in which they expire
    expiry     8    milliseconds since the epoch, below 2^63
    key        6    the first bytes of the key's XXH3-64; the first 2 of them are its bucket

    Where two records have the same place, it is also in `expiries` with its first bit set.  Then nothing says how many
    have it, and it stays there until its bucket is rebuilt.
"""

from struct import Struct
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

FORMAT_VERSION: Final = 3
FORMAT_LINE: Final = "MerkleKV data format "

MAX_KEY_SIZE: Final = 511  # LMDB's limit
MAX_VALUE_SIZE_LIMIT: Final = 1 << 30  # what `max_value_size` may be set to: a record must fit an entry's 4-byte length

OP_SET, OP_DEL, OP_INCR, OP_DECR, OP_APPEND, OP_PREPEND, OP_TRUNCATE = range(1, 8)
OP_ORIGIN, OP_METADATA, OP_PURGE, OP_REPAIR = 8, 9, 10, 11
OP_EXPIRE, OP_PERSIST, OP_SETRANGE, OP_SETBIT, OP_INCRBYFLOAT = range(16, 21)
OP_RENAME_FROM, OP_RENAME_TO, OP_COPY_TO, OP_RESTORE = range(21, 25)


class Op(NamedTuple):
    """What an op is called outside, and whether its record is a tombstone."""

    name: str
    deletes: bool = False


OPS: Final = {  # those that are published; but for the deletions and `truncate` they only differ in their names
    OP_SET: Op("set"),
    OP_DEL: Op("del", deletes=True),
    OP_INCR: Op("incr"),
    OP_DECR: Op("decr"),
    OP_APPEND: Op("append"),
    OP_PREPEND: Op("prepend"),
    OP_TRUNCATE: Op("truncate"),
    OP_EXPIRE: Op("expire"),
    OP_PERSIST: Op("persist"),
    OP_SETRANGE: Op("setrange"),
    OP_SETBIT: Op("setbit"),
    OP_INCRBYFLOAT: Op("incrbyfloat"),
    OP_RENAME_FROM: Op("rename_from", deletes=True),
    OP_RENAME_TO: Op("rename_to"),
    OP_COPY_TO: Op("copy_to"),
    OP_RESTORE: Op("restore"),
}
RECORD_OPS: Final = frozenset(OPS.keys() - {OP_TRUNCATE})
DELETIONS: Final = frozenset(number for number, op in OPS.items() if op.deletes)
KEYLESS_OPS: Final = frozenset((OP_TRUNCATE, OP_ORIGIN, OP_METADATA, OP_REPAIR))  # of the log: they change no key
REMOTE: Final = 0x80

SEGMENT_MAGIC: Final = b"MKVSEGM1"
SEGMENT_HEADER: Final = Struct(">8sIIQQQQ")
FRAME_MAGIC: Final = b"MKVF"
FRAME_HEADER: Final = Struct(">4sIQQIIQ")
FRAME_HEAD: Final = Struct(">4sIQQII")  # all of the header but its checksum
FRAME_PLACE: Final = Struct(">QQ")  # what the checksum covers beside head and payload
ENTRY: Final = Struct(">BHI")

BUCKETS: Final = 65536
BUCKET_SIZE: Final = 2  # bytes of the number of one
LEAF_SIZE: Final = 24
INNER_NODES: Final = 256

assert (SEGMENT_HEADER.size, FRAME_HEADER.size, ENTRY.size) == (48, 40, 7)
assert FRAME_HEAD.size == FRAME_HEADER.size - 8

METADATA_NAME_SIZE_MAX: Final = 64
METADATA_SIZE_MAX: Final = 16 << 20
TIME_SIZE: Final = 8
METADATA_GC_HORIZON: Final = b"gc_horizon"  # 8 bytes, ns: records at or below it are stable
METADATA_PURGED: Final = b"purged"  # 8 bytes, ns: what a lone node purged is at or below it, see tombstone_gc.py
METADATA_JOINED: Final = b"joined"  # empty: this is no lone node any more
METADATA_TIMES: Final = (METADATA_GC_HORIZON, METADATA_PURGED)


def bucket_of(key: bytes) -> int:
    """The leaf bucket of a key, 0 to 65,535."""
    return xxh3_64_intdigest(key) >> 48
