"""Records as they are, over RESP: what moves data between nodes and to and from the tools.

    RECORDS after count [PREFIX prefix]     a page of what is stored above the key `after`, tombstones too
    BUCKET number                           keys and heads of one bucket of the Merkle tree, in key order
    TRUNCATION                                   the version below which every record is dead
    MERGE origin key head value [...]       takes records in; the one with the larger version stands
    MERGETRUNCATION origin version                 takes a floor in; the larger one stands

A record goes as `key head value`. The head is the engine's own (`engine/format.py`: version, flags, digest), so that
versions and digests arrive as they left; it is apart so that the largest value passes the limit on an argument.

Merging is commutative, associative and idempotent: whoever lost a reply sends the same again, and pages may be read and
merged in any order while others write. What is read page by page is no snapshot: each record is the newest of the
moment in which its page was read.

`origin` is the node that the records come from, for the log; they are never published again from here. A record that
cannot be taken (wrong digest, too large, too far in the future) is refused by itself, with its reason, and the others
are merged.

Cost: 1 us a record read, 8 us a record merged, in slices between which other clients are served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from merklekv.engine.clock import show_time, timestamp_of
from merklekv.engine.format import (
    BUCKETS,
    FLAGS_AT,
    OP_DEL,
    OP_SET,
    TOMBSTONE,
    VALUE_AT,
    VERSION_SIZE,
)
from merklekv.engine.integers import strict_integer
from merklekv.errors import Stalled
from merklekv.net.client import Client, Unreachable
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.session import Long, Reply, Session, writable
from merklekv.node_id import NODE_ID_RULE, is_node_id

PAGE_RECORDS_MAX: Final = 1000  # in one reply of RECORDS
PAGE_BYTES: Final = 1 << 20  # a page ends behind so many bytes, so it may pass this by one record
MERGE_SLICE_RECORDS: Final = 250

Item = tuple[int, bytes, bytes]


def records(session: Session, request: Request) -> Reply:
    after = request[1]
    count = strict_integer(request[2])
    if count is None or not 0 < count <= PAGE_RECORDS_MAX:
        raise RequestError(f"count must be a number from 1 to {PAGE_RECORDS_MAX}")
    if len(request) == 3:
        return _records(session, after, count, b"")
    if len(request) != 5 or request[3].upper() != b"PREFIX":
        raise RequestError("syntax error")
    return _records(session, after, count, request[4])


def _records(session: Session, after: bytes, count: int, prefix: bytes) -> Long:
    following: bytes | None = after
    while True:
        pairs, following = session.engine.records_page(prefix, following, count, PAGE_BYTES)
        if pairs or following is None:
            break
        yield None
    cursor = session.nil if following is None else resp.bulk(following)
    parts = [part for key, record in pairs for part in (key, record[:VALUE_AT], record[VALUE_AT:])]
    return b"*2\r\n%b%b" % (cursor, resp.bulk_array(parts))


def fetch(client: Client, key: bytes) -> bytes | None:
    """The record of a key on the node behind `client`, a tombstone too; None without one.  NodeError, Unreachable."""
    reply = client.call(b"RECORDS", b"", b"1", b"PREFIX", key)
    parts = reply[1] if isinstance(reply, list) and len(reply) == 2 else None
    if not isinstance(parts, list) or len(parts) % 3 or not all(isinstance(part, bytes) for part in parts):
        raise Unreachable(f"{client.name}: answers RECORDS strangely: is it a MerkleKV node?")
    return b"".join(parts[1:3]) if parts and parts[0] == key else None  # type: ignore[arg-type]


def bucket(session: Session, request: Request) -> Reply:
    number = strict_integer(request[1])
    if number is None or not 0 <= number < BUCKETS:
        raise RequestError(f"a bucket is a number from 0 to {BUCKETS - 1}")
    return _bucket(session, number)


def _bucket(session: Session, number: int) -> Long:
    while not session.engine.prepare_buckets():
        yield None
    return resp.bulk_array([part for pair in session.engine.bucket(number) for part in pair])


def truncation(session: Session, request: Request) -> Reply:
    return resp.bulk(session.engine.truncation)


def merge(session: Session, request: Request) -> Reply:
    if len(request) % 3 != 2:
        raise RequestError("wrong number of arguments for 'merge' command")
    for head in request[3::3]:
        if len(head) != VALUE_AT:
            raise RequestError(f"a head has {VALUE_AT} bytes (version, flags, digest), not {len(head)}")
    return _merge(session, checked_origin(request[1]), request[2:])


def _merge(session: Session, origin: bytes, parts: Sequence[bytes]) -> Long:
    applied = superseded = 0
    refused: list[bytes] = []
    for start in range(0, len(parts), 3 * MERGE_SLICE_RECORDS):
        if start:
            yield None
        items = _items(parts[start : start + 3 * MERGE_SLICE_RECORDS])
        while True:
            try:
                result = session.engine.merge(items, origin)
                break
            except Stalled:
                yield writable(session)
        applied += result.applied
        superseded += result.superseded
        refused += [part for key, reason in result.refused for part in (key, reason.encode())]
    return resp.array([resp.integer(applied), resp.integer(superseded), resp.bulk_array(refused)])


def _items(parts: Sequence[bytes]) -> list[Item]:
    return [
        (OP_DEL if head[FLAGS_AT] == TOMBSTONE else OP_SET, key, head + value)
        for key, head, value in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]


def merge_truncation(session: Session, request: Request) -> Reply:
    origin = checked_origin(request[1])
    if len(request[2]) != VERSION_SIZE:
        raise RequestError(f"a floor has {VERSION_SIZE} bytes, not {len(request[2])}")
    if session.engine.clock.truncates_too_far_ahead(request[2]):
        raise RequestError(
            f"a floor of {show_time(timestamp_of(request[2]))} is too far ahead of this node's wall clock"
        )
    return resp.ONE if session.engine.merge_truncation(request[2], origin) else resp.ZERO


def checked_origin(origin: bytes) -> bytes:
    if not is_node_id(origin.decode(errors="surrogateescape")):
        raise RequestError(f"origin {origin[:60]!r} is no node id, which has {NODE_ID_RULE}")
    return origin
