"""Redis's glob patterns (`h?llo*`, `h[ae]llo`, `h[^e]llo`, `\\` escapes) as regular expressions over bytes.

`compile_glob` also gives the literal text that a pattern starts with, so that a scan can begin there and end after it.
Each `*` with the plain text up to the next one becomes an atomic group, as in the standard library's `fnmatch`:
matching never backtracks over it, so no pattern takes exponential time. Odd patterns (an unclosed bracket, a reversed
range, a lone backslash at the end) mean what they mean to Redis.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import groupby
from time import monotonic
from typing import Final

from merklekv.net.errors import RequestError
from merklekv.net.limits import GLOB_BYTES_MAX, SLICE_S

LOOK_KEYS: Final = 8  # between two looks at the clock
ANY = b".*"
_SPECIAL = re.compile(rb"[*?\[\\]")


def compile_glob(pattern: bytes) -> tuple[bytes, Callable[[bytes], object]]:
    """(literal prefix, predicate over keys). Raises RequestError."""
    if len(pattern) > GLOB_BYTES_MAX:
        raise RequestError(f"pattern larger than {GLOB_BYTES_MAX} bytes")
    if pattern == b"*":
        return b"", lambda key: True
    if not _SPECIAL.search(pattern):
        return pattern, lambda key: key == pattern
    pieces, prefix = _translate(pattern)
    if pieces[-1:] == [ANY] and ANY not in pieces[:-1] and len(prefix) == len(pieces) - 1:
        return prefix, lambda key: True  # all keys with the prefix, and the scan gives no others
    return prefix, re.compile(_join(pieces), re.DOTALL).fullmatch


def matching(keys: Sequence[bytes], matches: Callable[[bytes], object]) -> Generator[None, None, list[bytes]]:
    """The keys that match, in slices: a pattern that was made to be slow takes up to a ms for each."""
    found: list[bytes] = []
    until = monotonic() + SLICE_S
    for at in range(0, len(keys), LOOK_KEYS):
        found += filter(matches, keys[at : at + LOOK_KEYS])
        if monotonic() > until:
            yield None
            until = monotonic() + SLICE_S
    return found


def _translate(pattern: bytes) -> tuple[list[bytes], bytes]:
    """A piece of regular expression for each element of the pattern, and the bytes it must start with."""
    pieces: list[bytes] = []
    prefix = b""
    literal = True
    at = 0
    while at < len(pattern):
        element = pattern[at : at + 1]
        at += 1
        if element == b"*":
            literal = False
            if pieces[-1:] != [ANY]:
                pieces.append(ANY)
        elif element == b"?":
            literal = False
            pieces.append(b".")
        elif element == b"[":
            literal = False
            piece, at = _translate_class(pattern, at)
            pieces.append(piece)
        else:
            if element == b"\\" and at < len(pattern):
                element = pattern[at : at + 1]
                at += 1
            if literal:
                prefix += element
            pieces.append(re.escape(element))
    return pieces, prefix


def _translate_class(pattern: bytes, at: int) -> tuple[bytes, int]:
    """A bracket expression whose first byte after the bracket is at `at`; also where it ends."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    while at < len(pattern) and pattern[at] != ord("]"):
        if pattern[at] == ord("\\") and at + 1 < len(pattern):
            at += 1
            members.add(pattern[at])
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            low, high = sorted((pattern[at], pattern[at + 2]))
            members.update(range(low, high + 1))
            at += 2
        else:
            members.add(pattern[at])
        at += 1
    if len(members) in (0, 256):
        return b"." if bool(members) != negated else b"(?!)", at + 1
    return b"[%b%b]" % (b"^" if negated else b"", _ranges(members)), at + 1


def _ranges(members: Iterable[int]) -> bytes:
    """The members of a bracket expression, neighbours as one range: it is faster to compile and to match."""
    runs = groupby(enumerate(sorted(members)), lambda item: item[1] - item[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    return b"".join(b"\\x%02x-\\x%02x" % (low, high) for low, high in ends)


def _join(pieces: list[bytes]) -> bytes:
    """Puts each `*` and the elements up to the next one into an atomic group; the last `*` does not need one."""
    runs: list[list[bytes]] = [[]]
    for piece in pieces:
        if piece == ANY:
            runs.append([])
        else:
            runs[-1].append(piece)
    first, *others = [b"".join(run) for run in runs]
    if not others:
        return first
    return first + b"".join(b"(?>.*?%b)" % run for run in others[:-1]) + ANY + others[-1]
