"""LCS: what two values have in common, in order.  See `merklekv.net.lcs` for how, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merklekv.net import lcs as subsequence
from merklekv.net.commands.arguments import SYNTAX_ERROR, integer
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.registry import SLOW_READ, Long, command
from merklekv.net.session import Session

TOO_LARGE = "Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len"


@dataclass
class _Options:
    wants_length: bool = False  # LEN
    wants_places: bool = False  # IDX
    shows_sizes: bool = False  # WITHMATCHLEN
    size_min: int = 0  # MINMATCHLEN


def _read_options(words: Sequence[bytes]) -> _Options:
    options = _Options()
    given = iter(words)
    for word in given:
        match word.upper():
            case b"LEN":
                options.wants_length = True
            case b"IDX":
                options.wants_places = True
            case b"WITHMATCHLEN":
                options.shows_sizes = True
            case b"MINMATCHLEN" if (size := next(given, None)) is not None:
                options.size_min = integer(size)
            case _:
                raise RequestError(SYNTAX_ERROR)
    if options.wants_length and options.wants_places:
        raise RequestError("If you want both the length and indexes, please just use IDX.")
    return options


@command(
    "LCS key1 key2 [LEN] [IDX] [MINMATCHLEN length] [WITHMATCHLEN]",
    "The longest common subsequence of two values.",
    group="get",
    flags=SLOW_READ,
    note=("the product of both lengths is limited to 2^27, as with a Redis whose settings are the usual ones"),
)
def lcs(session: Session, request: Request) -> Long:
    options = _read_options(request[3:])
    engine = session.engine
    with engine.lock:
        a, b = (engine.get(key) or b"" for key in request[1:3])
    if not subsequence.fits(a, b):
        raise RequestError(TOO_LARGE)
    table = yield from subsequence.compare(a, b)
    if options.wants_length:
        return resp.integer(table.length)
    matches = yield from subsequence.matches(table)
    if not options.wants_places:
        return resp.bulk(b"".join([a[match.a : match.a + match.size] for match in reversed(matches)]))
    shown = [_describe(match, options) for match in matches if match.size >= options.size_min]
    pairs = [(resp.bulk(b"matches"), resp.array(shown)), (resp.bulk(b"len"), resp.integer(table.length))]
    return resp.mapping(pairs, session.protocol)


def _describe(match: subsequence.Match, options: _Options) -> bytes:
    ranges = [(start, start + match.size - 1) for start in (match.a, match.b)]
    parts = [resp.array([resp.integer(first), resp.integer(last)]) for first, last in ranges]
    return resp.array([*parts, resp.integer(match.size)] if options.shows_sizes else parts)
