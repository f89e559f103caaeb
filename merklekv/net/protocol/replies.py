"""Replies of a node: bytes to values, with a bound on the memory that a peer can make the reader use.

The peer may be any program. A reply that is too long is refused at the header that says so, and one that never ends
when it passes a bound: on the bytes of the whole reply, on a line, on the values in it, on lists within lists.

RESP2 as MerkleKV speaks it: simple strings, errors, integers, bulk strings and arrays. Cost: 1 us a value, 0.7 us a
bulk string in a list, 0.2 us a short one.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Final

from merklekv.engine.integers import strict_integer
from merklekv.errors import MerkleKVError

LINE_BYTES_MAX: Final = 1 << 16
VALUES_MAX: Final = 1 << 18  # in one reply: a bucket of the Merkle tree has two for each of its keys
DEPTH_MAX: Final = 4
COMPACT_BYTES: Final = 1 << 16
WINDOW_BYTES: Final = 1 << 14  # in which short bulk strings are cut together
HEADER_BYTES_MAX: Final = 24  # of a bulk string: more digits than any length has

Reply = bytes | int | None | list["Reply"]

INCOMPLETE: Final = object()


class BadReply(MerkleKVError):
    """These bytes are no reply of a node; nothing that follows can be understood."""


class ErrorReply(MerkleKVError):
    """The reply is an error, or a list with one; its text is the message."""


class ReplyParser:
    """Cuts a byte stream into replies, none of more than `bytes_max`."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max  # may be changed between two replies
        self._buffer = bytearray()
        self._at = 0  # where the next value begins
        self._gone = 0  # bytes of the unfinished reply that have left the buffer
        self._values = 0  # of the unfinished reply
        self._lists: list[tuple[list[Reply], int]] = []  # the unfinished ones, each with its full length
        self._error: str | None = None  # the first one inside of the unfinished reply

    def feed(self, data: bytes) -> None:
        if self._at > COMPACT_BYTES or self._at == len(self._buffer):
            del self._buffer[: self._at]
            self._gone += self._at
            self._at = 0
        self._buffer += data

    def next(self) -> Reply | object:
        """The next reply, or INCOMPLETE.  Raises ErrorReply, which leaves the stream intact, and BadReply."""
        while (value := self._next_value()) is not INCOMPLETE:
            if isinstance(value, list) and self._lists and self._lists[-1][0] is value:
                continue  # it has just begun
            while self._lists:
                items, size = self._lists[-1]
                items.append(value)  # type: ignore[arg-type]
                if len(items) < size:
                    break
                self._lists.pop()
                value = items
            else:
                self._start_anew()
                if self._error is not None:
                    error, self._error = self._error, None
                    raise ErrorReply(error)
                return value
        return INCOMPLETE

    def _start_anew(self) -> None:
        self._values = 0
        self._gone = -self._at

    def _next_value(self) -> Reply | object:
        if self._lists and self._buffer.startswith(b"$", self._at):
            self._take_bulks(*self._lists[-1])
        return self._value()

    def _take_bulks(self, items: list[Reply], size: int) -> None:
        """Takes bulk strings that come next in the innermost list, except its last, at a third of the cost.

        It stops at anything unusual, which `_value` looks at.
        """
        buffer, at, find = self._buffer, self._at, self._buffer.find
        first, behind = len(items), min(len(buffer), self.bytes_max - self._gone)
        room = min(size - 1, first + VALUES_MAX - self._values)
        cutting = True
        with memoryview(buffer) as view:
            while len(items) < room and buffer.startswith(b"$", at):
                end = find(b"\r\n", at, at + HEADER_BYTES_MAX)
                digits = buffer[at + 1 : end]
                if end < 0 or not digits.isdigit():
                    break
                if cutting and len(digits) < 3:
                    taken = _cut(view[at : min(at + WINDOW_BYTES, behind)], items, room)
                    cutting = taken > WINDOW_BYTES // 2  # else some value holds CRLF, or the buffer ends
                    at += taken
                    if taken:
                        continue
                last = end + 2 + int(digits)
                if last + 2 > behind:
                    break
                items.append(bytes(view[end + 2 : last]))
                at = last + 2
        self._values += len(items) - first
        self._at = at

    def _value(self) -> Reply | object:
        """The next value that is no list, or the list that begins here."""
        buffer, at = self._buffer, self._at
        end = buffer.find(b"\r\n", at, at + LINE_BYTES_MAX)
        if end < 0:
            if len(buffer) - at >= LINE_BYTES_MAX:
                raise BadReply(f"a line of more than {LINE_BYTES_MAX} bytes")
            return INCOMPLETE
        kind = buffer[at : at + 1]
        line = bytes(buffer[at + 1 : end])
        if kind == b"$":
            size = self._size(line, self.bytes_max)
            if size < 0:
                return self._took(end + 2, None)
            last = end + 2 + size
            if self._gone + last > self.bytes_max:
                raise BadReply(f"a reply of more than {self.bytes_max} bytes")
            if len(buffer) < last + 2:
                return INCOMPLETE
            with memoryview(buffer) as view:
                value = bytes(view[end + 2 : last])
            return self._took(last + 2, value)
        if kind == b"+":
            return self._took(end + 2, line)
        if kind == b":":
            number = strict_integer(line)
            if number is None:
                raise BadReply("a malformed integer")
            return self._took(end + 2, number)
        if kind == b"*":
            size = self._size(line, VALUES_MAX)
            if size <= 0:
                return self._took(end + 2, None if size else [])
            if len(self._lists) == DEPTH_MAX:
                raise BadReply(f"lists within lists, more than {DEPTH_MAX} deep")
            begun: list[Reply] = []
            self._lists.append((begun, size))
            return self._took(end + 2, begun)
        if kind == b"-" and not self._lists:
            self._at = end + 2
            self._start_anew()
            raise ErrorReply(_words(line))
        if kind == b"-":
            self._error = self._error or _words(line)
            return self._took(end + 2, None)
        raise BadReply(f"a reply that begins with {bytes(kind)!r}")

    def _took(self, at: int, value: Reply) -> Reply:
        self._at = at
        self._values += 1
        if self._values > VALUES_MAX:
            raise BadReply(f"a reply of more than {VALUES_MAX} values")
        if self._gone + at > self.bytes_max:
            raise BadReply(f"a reply of more than {self.bytes_max} bytes")
        return value

    @staticmethod
    def _size(digits: bytes, most: int) -> int:
        size = strict_integer(digits)
        if size is None or not -1 <= size <= most:
            raise BadReply(f"a length of {digits[:40]!r}: at most {most} is taken")
        return size


def _cut(window: memoryview, items: list[Reply], room: int) -> int:
    """Takes the bulk strings at the start of `window` in few calls into C. Returns how many bytes they have."""
    parts = bytes(window).split(b"\r\n")
    lengths = list(map(len, parts[1:-1:2]))
    del lengths[room - len(items) :]
    headers = [b"$%d" % length for length in lengths]
    if headers != parts[: 2 * len(headers) : 2]:
        pairs = zip(headers, parts[::2], strict=False)
        headers = [header for header, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    count = len(headers)
    items += parts[1 : 2 * count : 2]
    return sum(map(len, headers)) + sum(lengths[:count]) + 4 * count


def _words(line: bytes) -> str:
    return line.decode(errors="replace").strip() or "an error without a text"
