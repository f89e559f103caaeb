"""A node looked into, over RESP: its commit log, its Merkle leaves, and the small facts that it keeps.

    LOG LIST                        how far the log is committed and absorbed, and its segments
    LOG READ segment position size  bytes of a segment, as they are on disk (`engine/format.py`)
    TREE inner                      the 256 leaves below an inner node of the Merkle tree
    METADATA                           names and values of the engine's notes

For the tools: reading the log, drawing the tree, and backing a running node up. All of it only reads, and none of it
keeps anything on the server between two requests. Only what is committed is handed out, so whoever reads the log sees
nothing that a crash could take back.

A segment goes when it has been absorbed and published. `LOG READ` answers nothing (nil) then, and whoever reads
begins anew with `LOG LIST`.

Cost: one read of at most READ_BYTES_MAX, which is most often in the page cache; 50 us for the leaves.
"""

from __future__ import annotations

import os
from typing import Final

from merklekv.engine.format import INNER_NODES, SEGMENT_HEADER
from merklekv.engine.integers import strict_integer
from merklekv.engine.log import list_segments, segment_path
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.session import Long, Reply, Session

READ_BYTES_MAX: Final = 1 << 20  # in one reply of LOG READ


def log(session: Session, request: Request) -> Reply:
    action = request[1].upper()
    if action == b"LIST" and len(request) == 2:
        return _list(session)
    if action == b"READ" and len(request) == 5:
        return _read(session, *(_natural(word) for word in request[2:]))
    raise RequestError("syntax error: LOG LIST, or LOG READ segment position size")


def _list(session: Session) -> bytes:
    engine = session.engine
    end, checkpoint_lsn = engine.tail.end.lsn, int(engine.statistics()["log_checkpoint_lsn"])
    segments = [resp.integer(lsn) for lsn in list_segments(engine.directory.log) if lsn <= end]
    return resp.array([resp.integer(end), resp.integer(checkpoint_lsn), resp.array(segments)])


def _read(session: Session, segment: int, position: int, size: int) -> bytes:
    if not 0 < size <= READ_BYTES_MAX:
        raise RequestError(f"size must be a number from 1 to {READ_BYTES_MAX}")
    committed = max(session.engine.tail.end.lsn - segment, SEGMENT_HEADER.size)
    try:
        fd = os.open(segment_path(session.engine.directory.log, segment), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return session.nil
    try:
        return resp.bulk(os.pread(fd, max(0, min(size, committed - position)), position))
    finally:
        os.close(fd)


def tree(session: Session, request: Request) -> Reply:
    inner = _natural(request[1])
    if inner >= INNER_NODES:
        raise RequestError(f"inner node must be a number from 0 to {INNER_NODES - 1}")
    return _leaves(session, inner)


def _leaves(session: Session, inner: int) -> Long:
    engine = session.engine
    while not engine.root_ready:
        yield lambda: engine.root_ready
    return resp.bulk(engine.inner_leaves(inner))


def metadata(session: Session, request: Request) -> Reply:
    return resp.bulk_array([part for pair in sorted(session.engine.metadata.items()) for part in pair])


def _natural(word: bytes) -> int:
    number = strict_integer(word)
    if number is None or number < 0:
        raise RequestError("value is not an integer or out of range")
    return number
