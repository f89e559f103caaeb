"""SCAN and KEYS: keys in the order of their bytes, over RESP a page at a time.

A SCAN cursor must be a number, but a scan in key order continues from a key. So the server remembers the key behind
each cursor, for the `limits.CURSORS_MAX` most recently used; with an older one a client is told to start again. Using a
cursor drops the one before it and keeps the used one, so that a client that lost a reply can ask again.

Cursors are random, so one from before a restart or of another node is an error, where a counter would silently continue
another scan. They have 53 bits, because some clients read a cursor as a double.

A pattern that begins with literal text costs what is under that prefix only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from itertools import zip_longest

from merklekv.net.commands.arguments import SYNTAX_ERROR, integer, optional_argument
from merklekv.net.errors import RequestError
from merklekv.net.glob import compile_glob, matching
from merklekv.net.limits import ARGUMENT_BYTES, SLICE_KEYS
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.registry import SLOW_READ, Long, Pause, command, line_command
from merklekv.net.session import Session, check_reply_size

COUNT_DEFAULT = b"10"
CURSOR_BITS = 64
_CURSOR = re.compile(rb"([+-]?)0*([0-9]{1,20})")


@command(
    "SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]",
    "Keys in order, a page at a time.",
    group="scan",
    flags=SLOW_READ,
    note=(
        "in the order of their bytes, each key once; a cursor belongs to the node that gave it, until"
        " that node stops; the node remembers 10,000 unfinished scans, and any other cursor is an "
        "error: start again from 0"
    ),
)
def scan(session: Session, request: Request) -> Long:
    cursor = _cursor(request[1])
    options = {b"MATCH": b"*", b"COUNT": COUNT_DEFAULT, b"TYPE": b"string"}
    for name, value in zip_longest(request[2::2], request[3::2]):
        if name.upper() not in options or value is None:
            raise RequestError(SYNTAX_ERROR)
        options[name.upper()] = value
        if integer(options[b"COUNT"]) < 1:
            raise RequestError(SYNTAX_ERROR)
    return _scan(session, cursor, options[b"MATCH"], int(options[b"COUNT"]), options[b"TYPE"].lower())


def _cursor(word: bytes) -> int:
    """A cursor as Redis reads one: a number of 64 bits, with or without a sign, or nothing for 0."""
    found = _CURSOR.fullmatch(word or b"0")
    if found is None or int(found[2]) >> CURSOR_BITS:
        raise RequestError("invalid cursor")
    return int(found[1] + found[2]) % (1 << CURSOR_BITS)


def _scan(session: Session, cursor: int, pattern: bytes, left: int, kind: bytes) -> Long:
    """Looks at `left` keys, whether they match or not, as Redis does."""
    cursors = session.context.cursors
    after = cursors.recall(cursor) if cursor else None
    if cursor and after is None:
        raise RequestError(f"unknown cursor {cursor}: too old, from before a restart, or another node's: start at 0")
    prefix, matches = compile_glob(pattern)
    found: list[bytes] = []
    size = 0
    while True:
        keys, after = session.engine.page(prefix, after, min(left, SLICE_KEYS))
        if kind == b"string":
            matched = yield from matching(keys, matches)
            found += matched
            size += sum(map(len, matched)) + ARGUMENT_BYTES * len(matched)
            check_reply_size(session, size)
        left -= len(keys)
        if after is None or left <= 0:
            break
        yield None
    following = 0 if after is None else cursors.remember(after, cursor)
    return b"*2\r\n%b%b" % (resp.bulk(b"%d" % following), resp.bulk_array(found))


@command(
    "KEYS pattern",
    "All keys that match a pattern, in order.",
    group="scan",
    flags=SLOW_READ,
    note="in the order of their bytes",
)
def keys(session: Session, request: Request) -> Long:
    prefix, matches = compile_glob(request[1])

    count, body = yield from _all_keys(session, prefix, resp.bulks, matches)
    return b"*%d\r\n%b" % (count, body)


@line_command("SCAN [prefix]", group="scan", reply="`KEYS n`, then n lines", note="keys in the order of their bytes")
def scan_line(session: Session, request: Request) -> Long:
    count, body = yield from _all_keys(session, optional_argument(request), _lines)
    return b"KEYS %d\r\n%b" % (count, body)


def _lines(page: list[bytes]) -> bytes:
    lines = b"".join([b"%b\r\n" % key for key in page])
    if lines.count(b"\n") != len(page) or lines.count(b"\r") != len(page):
        raise RequestError("a key holds a line break: list the keys over RESP")
    return lines


def _all_keys(
    session: Session,
    prefix: bytes,
    encode: Callable[[list[bytes]], bytes],
    matches: Callable[[bytes], object] | None = None,
) -> Generator[Pause, None, tuple[int, bytes]]:
    """All keys under a prefix, or those that match, as `encode` writes each page: how many, and the bytes."""
    parts: list[bytes] = []
    count = size = 0
    after: bytes | None = None
    while True:
        page, after = session.engine.page(prefix, after, SLICE_KEYS)
        if matches is not None:
            page = yield from matching(page, matches)
        part = encode(page)
        count += len(page)
        parts.append(part)
        size += len(part)
        check_reply_size(session, size)
        if after is None:
            return count, b"".join(parts)
        yield None
