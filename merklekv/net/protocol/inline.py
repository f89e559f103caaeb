"""Inline commands: one line of words, for people and monitors that speak RESP without its framing.

    SET key "two words"\\r\\n

A line ends in LF or CRLF and has at most LINE_BYTES_MAX bytes. White space separates words. A word, or its end, may
stand in double quotes, with the escapes `\\n \\r \\t \\b \\a \\xHH` and a backslash before any other character, or in
single quotes, where only `\\'` is an escape. These are Redis's rules, `sdssplitargs` in its source.

A line of HTTP is no command, see `is_foreign`. Cost: 2 us for a short line.
"""

from __future__ import annotations

import re
from typing import Final

from merklekv.net.protocol.text import FOREIGN_WORDS, HTTP_HOST, ends_as_http

LINE_BYTES_MAX: Final = 64 * 1024  # Redis: PROTO_INLINE_MAX_SIZE

_DOUBLE = rb'"(?:[^"\\]|\\.)*"(?=\s|\Z)'
_SINGLE = rb"'(?:\\'|[^'\\]|\\(?!'))*'(?=\s|\Z)"
_PART = re.compile(rb"[^ \t\r\n\"']+|" + _DOUBLE + rb"|" + _SINGLE, re.DOTALL)
_SPACE = re.compile(rb"\s*")
_UNUSUAL = re.compile(rb"[\"'\v\f]")  # \v and \f separate words only where a word would begin
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_LETTERS = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


def split(line: bytes) -> list[bytes] | None:
    """The words of a line, or None if its quotes do not balance or something else than white space follows them."""
    if not _UNUSUAL.search(line):
        return line.split()
    words: list[bytes] = []
    at = _next_word(line, 0)
    while at < len(line):
        word, quoted = b"", False
        while not quoted and at < len(line) and line[at] not in b" \t\r\n":
            part = _PART.match(line, at)
            if part is None:
                return None
            quoted = part[0][:1] in (b'"', b"'")  # the end of a quotation is the end of a word
            word += _unquote(part[0])
            at = part.end()
        words.append(word)
        at = _next_word(line, at)
    return words


def _next_word(line: bytes, at: int) -> int:
    """Where the white space ends that begins there."""
    space = _SPACE.match(line, at)
    assert space
    return space.end()


def _unquote(part: bytes) -> bytes:
    if part.startswith(b'"'):
        return _ESCAPE.sub(_unescape, part[1:-1])
    if part.startswith(b"'"):
        return part[1:-1].replace(b"\\'", b"'")
    return part


def _unescape(escape: re.Match[bytes]) -> bytes:
    code = escape[1]
    return bytes.fromhex(code[1:].decode()) if len(code) == 3 else _LETTERS.get(code, code)


def is_foreign(line: bytes) -> bool:
    """Whether a line belongs to a request of HTTP or a proxy: a browser may send one, and its body must not run."""
    word = line.strip().partition(b" ")[0].upper()
    return ends_as_http(line) or word in FOREIGN_WORDS or word.startswith(HTTP_HOST)
