"""Data as it is stored, for other nodes and for the tools: records, the Merkle tree, the log and the metadata entries.

A record goes as `key head value`. The head is the engine's own (version, flags, digest); it stands apart so that the
largest value passes the limit on an argument. Pages are not a snapshot: each record is the newest of the moment in
which its page was read.

Merging is commutative, associative and idempotent, so a client that lost a reply sends the same again. `origin` is the
node that the records come from, for the log; this node does not publish them. A record that cannot be taken (wrong
digest, too large, too far in the future) is refused by itself, with its reason; the others are merged.

The messages of an exchange are bytes here. One comes in parts because an argument may be no longer than the largest
value, and that may be set lower than a message needs: parts of `limits.BULK_BYTES_MIN` pass everywhere.

The log is handed out as far as it is committed. A segment is deleted once a checkpoint covers it and it is published:
`LOG READ` then answers nil, and the reader starts again with `LOG LIST`.

Cost: 1 us a record read, 8 us a record merged, in slices between which other clients are served.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from merklekv.engine.format import BUCKETS, INNER_NODES, OP_DEL, OP_SET, SEGMENT_HEADER
from merklekv.engine.integers import INT64_MAX
from merklekv.engine.log.segment import list_segments, segment_path
from merklekv.engine.record import (
    HEAD_SIZE,
    RECORD_OVERHEAD,
    VERSION_SIZE,
    is_lead,
    is_tombstone,
    lead_of,
    value_of,
)
from merklekv.errors import Stalled
from merklekv.net.client import Client, Unreachable
from merklekv.net.commands.arguments import SYNTAX_ERROR, bounded
from merklekv.net.errors import RequestError, wrong_count
from merklekv.net.limits import BULK_BYTES_MIN
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.registry import ALONE, READ, SLOW_READ, Long, Reply, command
from merklekv.net.session import Session, until_counted, writable
from merklekv.node_id import NODE_ID_RULE, is_node_id

PAGE_RECORDS_MAX: Final = 1000  # in one reply of RECORDS
PAGE_BYTES: Final = 1 << 20  # a page ends after so many bytes, so it may be longer by one record
MERGE_SLICE_RECORDS: Final = 250
PARTS_MAX: Final = 10_000  # of one message of an exchange
READ_BYTES_MAX: Final = 1 << 20  # in one reply of LOG READ

Item = tuple[int, bytes, bytes]


@command(
    "RECORDS after count [PREFIX prefix]",
    "A page of records as they are stored, in key order, deleted keys too.",
    group="sync",
    flags=SLOW_READ,
    reply=(
        "a page of the records with keys above `after`, in key order, tombstones too: where to go on "
        "(nil: that was all), then a list of key, head and value of each"
    ),
)
def records(session: Session, request: Request) -> Long:
    """Where to go on (nil: that was all), then key, head with expiry, and value of each record above `after`."""
    following: bytes | None = request[1]
    count = bounded(request[2], 1, PAGE_RECORDS_MAX, "count")
    if len(request) != 3 and (len(request) != 5 or request[3].upper() != b"PREFIX"):
        raise RequestError(SYNTAX_ERROR)
    prefix = b"".join(request[4:])
    while True:
        pairs, following = session.engine.records_page(prefix, following, count, PAGE_BYTES)
        if pairs or following is None:
            break
        yield None
    cursor = session.nil if following is None else resp.bulk(following)
    parts = [part for key, record in pairs for part in (key, lead_of(record), value_of(record))]
    return b"*2\r\n%b%b" % (cursor, resp.bulk_array(parts))


def fetch(client: Client, key: bytes) -> bytes | None:
    """The record of a key on the node behind `client`, a tombstone too, or None. Raises NodeError and Unreachable."""
    reply = client.call(b"RECORDS", b"", b"1", b"PREFIX", key)
    parts = reply[1] if isinstance(reply, list) and len(reply) == 2 else None
    if not isinstance(parts, list) or len(parts) % 3 or not all(isinstance(part, bytes) for part in parts):
        raise Unreachable(f"{client.name}: answers RECORDS strangely: is it a MerkleKV node?")
    return b"".join(parts[1:3]) if parts and parts[0] == key else None  # type: ignore[arg-type]


@command(
    "BUCKET number",
    "The keys of a bucket of the Merkle tree, with versions and digests.",
    group="sync",
    flags=SLOW_READ,
    reply=(
        "key and head of each record in that [bucket](glossary.md#bucket) (0 to 65,535) of the "
        "[Merkle tree](glossary.md#merkle-tree), in key order, tombstones too"
    ),
)
def bucket(session: Session, request: Request) -> Long:
    """Key and head of each record in the bucket, in key order."""
    number = bounded(request[1], 0, BUCKETS - 1, "bucket")
    while not session.engine.prepare_buckets():
        yield None
    return resp.bulk_array([part for pair in session.engine.bucket(number) for part in pair])


@command(
    "TREE [inner]",
    "The inner nodes of the Merkle tree, or the leaves below one of them.",
    group="sync",
    flags=SLOW_READ,
    reply=(
        "the digests of the 256 [inner nodes](glossary.md#inner-node) of the Merkle tree, 32 bytes each; or the 256 "
        "[leaves](glossary.md#leaf) below that inner node (0 to 255), 24 bytes each: sum of record "
        "[digests](glossary.md#digest), count"
    ),
)
def tree(session: Session, request: Request) -> Long:
    """The inner digests, or the leaves below an inner node."""
    inner = bounded(request[1], 0, INNER_NODES - 1, "inner node") if request[1:] else None
    engine = session.engine
    while True:
        yield from until_counted(session)
        if inner is None:
            for _ in engine.prepare_root():
                yield None
        with engine.lock:
            if engine.root_ready:  # else it was rolled back or truncated in between
                return resp.bulk(
                    engine.inner_leaves(inner) if inner is not None else b"".join(engine.inner_digests() or ())
                )


@command(
    "TRUNCATION",
    "The version below which records are deleted.",
    group="sync",
    flags=READ,
    reply=("the [truncation version](glossary.md#truncation), 24 bytes: every record at or below it is deleted"),
)
def truncation(session: Session, request: Request) -> Reply:
    return resp.bulk(session.engine.truncation)


@command(
    "MERGE origin key head value [key head value ...]",
    "Takes in records of another node; the larger version stands.",
    group="sync",
    flags=("write", *ALONE),
    reply=(
        "how many were applied, how many were superseded, and a list of key and reason of each that "
        "was refused; the larger version stands"
    ),
)
def merge(session: Session, request: Request) -> Reply:
    if len(request) % 3 != 2:
        raise wrong_count(request[0])
    for head in request[3::3]:
        if not is_lead(head):
            shape = f"{HEAD_SIZE} bytes (version, flags, digest), or {RECORD_OVERHEAD} with an expiry"
            raise RequestError(f"a head has {shape}, not {len(head)}")
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
        (OP_DEL if is_tombstone(head) else OP_SET, key, head + body)
        for key, head, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]


@command(
    "MERGETRUNCATION origin version",
    "Takes in the truncation version of another node; the larger one stands.",
    group="sync",
    flags=("write", *ALONE),
    reply="1 when the truncation version rose, else 0",
)
def merge_truncation(session: Session, request: Request) -> Reply:
    origin = checked_origin(request[1])
    if len(request[2]) != VERSION_SIZE:
        raise RequestError(f"a truncation version has {VERSION_SIZE} bytes, not {len(request[2])}")
    times = session.engine.time_gate
    if not times.admits_truncation(request[2]):
        raise RequestError(f"a truncation version {times.describe_truncation(request[2])}")
    return resp.ONE if session.engine.merge_truncation(request[2], origin) else resp.ZERO


def checked_origin(origin: bytes) -> bytes:
    if not is_node_id(origin.decode(errors="surrogateescape")):
        raise RequestError(f"origin {origin[:60]!r} is no node id, which has {NODE_ID_RULE}")
    return origin


# -- the log and the metadata, for the tools ---------------------------------------------------------------------------


@command(
    "LOG LIST|READ segment position size",
    "The commit log as it is on disk: its segments, and bytes of one.",
    arity=-2,
    group="sync",
    flags=("readonly", "admin"),
    reply=(
        "`LIST`: the [LSN](glossary.md#lsn) up to which the log is committed, the LSN up to which the"
        " base holds it, and the LSNs of its [segments](glossary.md#segment); `READ`: bytes of a "
        "segment as on disk, at most 1 MiB, none when no more are committed, nil when the segment is "
        "deleted"
    ),
)
def log(session: Session, request: Request) -> Reply:
    action = request[1].upper()
    if action == b"LIST" and len(request) == 2:
        end, checkpoint_lsn = session.engine.retention.end.lsn, session.engine.metrics().checkpoint_lsn
        segments = [resp.integer(lsn) for lsn in list_segments(session.engine.directory.log) if lsn <= end]
        return resp.array([resp.integer(end), resp.integer(checkpoint_lsn), resp.array(segments)])
    if action == b"READ" and len(request) == 5:
        segment = bounded(request[2], 0, INT64_MAX, "segment")
        position = bounded(request[3], 0, INT64_MAX, "position")
        return _read_log(session, segment, position, bounded(request[4], 1, READ_BYTES_MAX, "size"))
    raise RequestError("syntax error: LOG LIST, or LOG READ segment position size")


def _read_log(session: Session, segment: int, position: int, size: int) -> bytes:
    committed = max(session.engine.retention.end.lsn - segment, SEGMENT_HEADER.size)
    try:
        fd = os.open(segment_path(session.engine.directory.log, segment), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return session.nil
    try:
        return resp.bulk(os.pread(fd, max(0, min(size, committed - position)), position))
    finally:
        os.close(fd)


@command(
    "METADATA",
    "The metadata entries that the node keeps with its data.",
    group="sync",
    flags=SLOW_READ,
    reply=(
        "names and values of the metadata entries of the node, such as the [GC "
        "horizon](glossary.md#gc-horizon) and the table of [members](glossary.md#member)"
    ),
)
def metadata(session: Session, request: Request) -> Reply:
    return resp.bulk_array([part for pair in sorted(session.engine.metadata.items()) for part in pair])


# -- the exchange ------------------------------------------------------------------------------------------------------


@command(
    "EXCHANGE part [part ...]",
    "One step of an exchange with another node.",
    group="sync",
    flags=("write", *ALONE),
    reply=(
        "one step of an [exchange](replication.md): the parts joined are a message of the node that "
        "asks, the bulk string is the answer"
    ),
)
def exchange(session: Session, request: Request) -> Long:
    message = request[1] if len(request) == 2 else b"".join(request[1:])
    answer = yield from session.context.services.exchange(message)
    return resp.bulk(answer)


def ask(client: Client, message: bytes) -> bytes:
    """One step of an exchange with the node behind `client`: its answer to a message.

    Raises NodeError when the node refuses, Unreachable when it is gone.
    """
    size = max(BULK_BYTES_MIN, -(-len(message) // PARTS_MAX))
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    answer = client.call(b"EXCHANGE", *parts)
    if not isinstance(answer, bytes):
        raise Unreachable(f"{client.name}: answers EXCHANGE strangely: is it a MerkleKV node?")
    return answer
