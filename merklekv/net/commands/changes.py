"""CHANGES: what was changed since a cursor, by this node and by others, from the committed log.

The reply is the next cursor, then the changes, each with its key, what was done (`set`, `del`, `expire`, `truncate`,
...), the new value (nil: the key is deleted), the version (timestamp in nanoseconds, a dash, op id in hex), the id of
the node that wrote it, and, for a value that expires, its expiry in milliseconds since the epoch. A truncation has no
key. The log has each value as it was, so a reader that went on may get an older one than GET returns.

With BLOCK, a reader that has read everything waits for the next change of its keys, and costs nothing until then,
whatever else is committed (engine/feed.py). A change costs 40 us for each reader that it wakes. A reader whose time is
over gets a cursor behind everything that was committed meanwhile. One with a prefix that is rare in a long log gets an
answer after LOOK_S, so its client does not give the node up, and goes on from there.

Cost: 1 us for each entry of the log, 2 us for each change that is returned, in slices between which others are served.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from typing import Final, NamedTuple

from merklekv.engine.feed import PAGE_BYTES, PAGE_CHANGES, Change, Cursor, Feed, Page
from merklekv.engine.integers import INT64_MAX
from merklekv.engine.record import show_version
from merklekv.errors import ChangesGone, Corruption, InvalidArgument
from merklekv.net.commands.arguments import SYNTAX_ERROR, bounded
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.registry import NO_MULTI, NOSCRIPT, Long, Pause, command
from merklekv.net.session import Session
from merklekv.net.waiting import Signal

COUNT_DEFAULT: Final = 100
LOOK_S: Final = 2.0  # through the log for one reply
OLDEST: Final = b""
END: Final = b"$"


class Options(NamedTuple):
    prefix: bytes = b""
    limit: int = COUNT_DEFAULT
    wait_s: float = 0.0  # infinite with BLOCK 0


@command(
    "CHANGES cursor [PREFIX prefix] [COUNT count] [BLOCK milliseconds]",
    "What was changed since a cursor; '' is the oldest one there is, $ the end. BLOCK waits for changes.",
    group="sync",
    flags=("readonly", "blocking", NOSCRIPT, NO_MULTI),
    note="MerkleKV's own, see [changes](#changes)",
)
def changes(session: Session, request: Request) -> Long:
    options = _options(request[2:])
    began = time.monotonic()
    deadline = began + options.wait_s
    feed = session.engine.feed
    cursor = _cursor(feed, request[1])
    found: list[bytes] = []
    size = 0
    while True:
        page = _read(feed, cursor, options, len(found), size)
        cursor = page.cursor
        encoded = [_encode(session, change) for change in page.changes]
        found += encoded
        size += sum(map(len, encoded))
        if len(found) >= options.limit or size >= PAGE_BYTES:
            break
        if page.more:
            if time.monotonic() - began > LOOK_S:
                break
            yield None
        elif found:
            break
        else:
            cursor, is_over = yield from _wait(feed, cursor, options.prefix, deadline)
            if is_over or session.engine.is_ending:
                break
            began = time.monotonic()
    return resp.array([resp.bulk(str(cursor).encode()), resp.array(found)])


def _wait(feed: Feed, cursor: Cursor, prefix: bytes, deadline: float) -> Generator[Pause, None, tuple[Cursor, bool]]:
    """Waits for what comes behind the cursor. Where to read on, and whether the time is over."""
    if deadline <= time.monotonic():
        return cursor, True
    signal = Signal(deadline)
    end_wait = feed.wait(cursor, signal.set, prefix)
    try:
        yield signal
    finally:
        cursor = end_wait()
    return cursor, signal.is_over


def _options(words: Sequence[bytes]) -> Options:
    options = Options()
    if len(words) % 2:
        raise RequestError(SYNTAX_ERROR)
    for name, word in zip(words[::2], words[1::2], strict=True):
        match name.upper():
            case b"PREFIX":
                options = options._replace(prefix=word)
            case b"COUNT":
                options = options._replace(limit=bounded(word, 1, PAGE_CHANGES, "COUNT"))
            case b"BLOCK":
                milliseconds = bounded(word, 0, INT64_MAX, "BLOCK")
                options = options._replace(wait_s=milliseconds / 1000 if milliseconds else math.inf)
            case _:
                raise RequestError(SYNTAX_ERROR)
    return options


def _cursor(feed: Feed, word: bytes) -> Cursor:
    if word == OLDEST:
        return feed.first()
    if word == END:
        return feed.last()
    try:
        return Cursor.parse(word.decode(errors="replace"))
    except InvalidArgument as problem:
        raise RequestError(f"{problem}; '' is the oldest one there is, $ the end") from problem


def _read(feed: Feed, cursor: Cursor, options: Options, found: int, size: int) -> Page:
    try:
        return feed.read(cursor, options.limit - found, PAGE_BYTES - size, options.prefix)
    except (ChangesGone, Corruption) as problem:  # a damaged part of the log is gone, too
        reason = problem.reason if isinstance(problem, ChangesGone) else problem
        raise RequestError(
            f"{reason}; to begin again: CHANGES $, then all of RECORDS, then CHANGES from that cursor on",
            "CHANGESGONE",
        ) from problem


def _encode(session: Session, change: Change) -> bytes:
    parts = [
        session.nil if change.key is None else resp.bulk(change.key),
        resp.bulk(change.op.encode()),
        session.nil if change.value is None else resp.bulk(change.value),
        resp.bulk(show_version(change.version).encode()),
        resp.bulk((change.origin or session.context.services.node_id).encode()),
    ]
    if change.expiry is not None:
        parts.append(resp.integer(change.expiry))
    return resp.array(parts)
