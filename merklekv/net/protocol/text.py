"""The line protocol: bytes to requests, replies to bytes. No socket, no engine.

A request is one line ended by LF or CRLF. White space around it is dropped. It is a pair: the command word as the
client wrote it, and what follows the first space, which may be a list of words or a value with spaces.

`TextParser.feed` takes any cut of the stream and gives the same requests. It holds at most one line and one received
chunk. Two kinds of line end the stream: each becomes a last request, and the parser ignores what follows. A line over
the limit becomes `BROKEN`. A line that ends in `HTTP/1.1` or another version becomes `FOREIGN`: it is the head of a
request that a web page had its browser send here, and the lines of its body must not run as commands.

Replies are lines ended by CRLF. `line_safe` guards the framing: nothing that holds CR or LF goes into a reply.
Cost: 0.3 us for a short line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from merklekv.errors import MerkleKVError

Request = Sequence[bytes]

NOT_FOUND = b"NOT_FOUND\r\n"
OK = b"OK\r\n"
DELETED = b"DELETED\r\n"
PONG = b"PONG\r\n"


class _Name(bytes):
    """A command name that no client can send: it equals nothing but itself."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = object.__hash__


BROKEN = _Name(b"protocol error")  # followed by what is wrong with the stream
REFUSED = _Name(b"refused")  # followed by why this connection is not served
FOREIGN = _Name(b"foreign")  # followed by what shows that the client speaks another protocol
STRANGE = _Name(b"strange")  # followed by the words of an inline command that cannot be one
UNKNOWN = _Name(b"unknown")  # what runs for a name that no command has
IN_TRANSACTION = _Name(b"in transaction")  # what runs for a command between MULTI and EXEC
REFUSED_SUBSCRIBED = _Name(b"refused subscribed")  # what runs for a command that a subscriber of RESP2 may not run
LINE_TOO_LONG = b"line too long"
NO_NAME = "this is no line of a command: is it another protocol?"

_HTTP = b"HTTP/"
_ENDS_AS_HTTP = re.compile(rb"HTTP/[0-9.]+\s*\Z")
_ENDS_AS_HEAD = re.compile(rb"\b[A-Z]+/[0-9][0-9.]*\s*\Z")
_NAME = re.compile(rb"[A-Za-z][\t-\r -9;-~]*")  # ASCII without control characters and colons
# How requests of HTTP and of proxies begin.  None is a command.
FOREIGN_WORDS = frozenset((b"POST", b"PUT", b"OPTIONS", b"HEAD", b"PATCH", b"CONNECT", b"TRACE", b"PROXY"))
HTTP_HOST = b"HOST:"


class TextParser:
    """Cuts a byte stream into (word, rest) pairs."""

    __slots__ = ("_limit", "_partial")

    def __init__(self, line_bytes: int) -> None:
        self._limit = line_bytes
        self._partial: bytearray | None = bytearray()  # None: the stream is broken

    @property
    def held_bytes(self) -> int:
        """What has come of the next line."""
        return len(self._partial or b"")

    @property
    def held_arguments(self) -> int:
        """How many arguments of the next request are whole: a line comes as one piece."""
        return 0

    def feed(self, data: bytes) -> list[Request]:
        """The requests completed by `data`, oldest first."""
        if self._partial:
            self._partial += data
            if b"\n" not in data:
                return self._check_partial([])
            data = bytes(self._partial)
            self._partial = bytearray()
        elif self._partial is None:
            return []
        lines = data.split(b"\n")
        last = lines.pop()
        requests: list[Request] = []
        if len(data) > self._limit:
            for position, line in enumerate(lines):
                if len(line.removesuffix(b"\r")) > self._limit:
                    lines, last = lines[:position], line
                    break
        foreign = next(filter(ends_as_http, lines), None) if _HTTP in data else None
        if foreign is not None:
            del lines[lines.index(foreign) :]
        for line in lines:
            word, _, rest = line.strip().partition(b" ")
            requests.append((word, rest))
        if foreign is not None:
            requests.append((FOREIGN, foreign.strip()))
            self._partial = None
        elif last:
            self._partial += last
            return self._check_partial(requests)
        return requests

    def _check_partial(self, requests: list[Request]) -> list[Request]:
        assert self._partial is not None
        # A CR at the end may belong to the line end rather than to the line.
        if len(self._partial) > self._limit + self._partial.endswith(b"\r"):
            self._partial = None
            requests.append((BROKEN, LINE_TOO_LONG))
        return requests


def ends_as_http(line: bytes) -> bool:
    """Whether a line ends in `HTTP/1.1` or another version, as the first line of a request of HTTP does."""
    return _HTTP in line and _ENDS_AS_HTTP.search(line) is not None


def ends_as_head(line: bytes) -> bool:
    """Whether a line ends in the name and version of a protocol, such as `RTSP/1.0`."""
    return b"/" in line and _ENDS_AS_HEAD.search(line) is not None


def is_name(word: bytes) -> bool:
    """Whether this may be the name of a command, of any release.

    What is none begins a frame of another protocol, and the lines behind it may be the contents of that frame.
    """
    return _NAME.fullmatch(word) is not None


def line_safe(data: bytes) -> bool:
    """Whether a reply line can hold `data`."""
    return b"\n" not in data and b"\r" not in data


def one_line(message: str) -> bytes:
    """An error message as bytes that keep the framing of both protocols intact."""
    return message.replace("\r", " ").replace("\n", " ").encode(errors="surrogateescape")


def error(problem: MerkleKVError) -> bytes:
    """The reply line for an error that leaves the connection usable."""
    return b"ERROR %b\r\n" % one_line(str(problem))


def show(data: bytes, limit: int = 128) -> str:
    """Client bytes inside a message: shortened; `one_line` turns them back into the same bytes."""
    return data[:limit].decode(errors="surrogateescape")
