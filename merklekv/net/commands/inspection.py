"""Inspection of a running node: its commit log, its Merkle leaves, and its metadata entries.

For the tools, which read the log, draw the tree and back the node up. These commands hand out committed data only. A
segment is deleted once a checkpoint covers it and it is published: `LOG READ` then answers nil, and the reader starts
again with `LOG LIST`. Cost: one read of at most READ_BYTES_MAX; 50 us for the leaves.
"""

from __future__ import annotations

import os
from typing import Final

from merklekv.engine.format import INNER_NODES, SEGMENT_HEADER
from merklekv.engine.integers import INT64_MAX
from merklekv.engine.log.segment import list_segments, segment_path
from merklekv.net.commands.arguments import bounded
from merklekv.net.commands.registry import SLOW_READ, command
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.session import Long, Reply, Session

READ_BYTES_MAX: Final = 1 << 20  # in one reply of LOG READ


@command(
    "LOG LIST|READ segment position size",
    "The commit log as it is on disk: its segments, and bytes of one.",
    group="sync",
    flags=("readonly", "admin"),
)
def log(session: Session, request: Request) -> Reply:
    action = request[1].upper()
    if action == b"LIST" and len(request) == 2:
        return _list(session)
    if action == b"READ" and len(request) == 5:
        segment = bounded(request[2], 0, INT64_MAX, "segment")
        position = bounded(request[3], 0, INT64_MAX, "position")
        return _read(session, segment, position, bounded(request[4], 1, READ_BYTES_MAX, "size"))
    raise RequestError("syntax error: LOG LIST, or LOG READ segment position size")


def _list(session: Session) -> bytes:
    engine = session.engine
    end, checkpoint_lsn = engine.retention.end.lsn, engine.metrics().checkpoint_lsn
    segments = [resp.integer(lsn) for lsn in list_segments(engine.directory.log) if lsn <= end]
    return resp.array([resp.integer(end), resp.integer(checkpoint_lsn), resp.array(segments)])


def _read(session: Session, segment: int, position: int, size: int) -> bytes:
    committed = max(session.engine.retention.end.lsn - segment, SEGMENT_HEADER.size)
    try:
        fd = os.open(segment_path(session.engine.directory.log, segment), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return session.nil
    try:
        return resp.bulk(os.pread(fd, max(0, min(size, committed - position)), position))
    finally:
        os.close(fd)


@command("TREE inner", "The leaves below an inner node of the Merkle tree.", group="sync", flags=SLOW_READ)
def tree(session: Session, request: Request) -> Long:
    inner = bounded(request[1], 0, INNER_NODES - 1, "inner node")
    engine = session.engine
    while not engine.root_ready:
        yield lambda: engine.root_ready
    return resp.bulk(engine.inner_leaves(inner))


@command("METADATA", "The metadata entries that the node keeps with its data.", group="sync", flags=SLOW_READ)
def metadata(session: Session, request: Request) -> Reply:
    return resp.bulk_array([part for pair in sorted(session.engine.metadata.items()) for part in pair])
