"""Talking to a server byte by byte: what it answers is compared raw, not as some client library reads it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

TIMEOUT_S = 20.0


class Wire:
    """A connection to a server, with nothing between the test and the bytes."""

    def __init__(self, address: tuple[str, int], receive_buffer: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        self._input = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._input.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> bytes:
        """The next line with its end; empty when the server has closed."""
        return self._input.readline()

    def read(self, size: int) -> bytes:
        return self._input.read(size)

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        return self._input.read()

    def resp(self) -> bytes:
        """One RESP reply, whole and raw."""
        line = self.line()
        kind, count = line[:1], line[1:-2]
        if kind in b"$=!" and count != b"-1" and line:
            return line + self.read(int(count) + 2)
        if kind in b"*~%>" and count != b"-1" and line:
            items = int(count) * (2 if kind == b"%" else 1)
            return line + b"".join(self.resp() for _ in range(items))
        return line

    def call(self, *words: bytes | str) -> bytes:
        """Sends a RESP request; its reply, raw."""
        self.send(encode(*words))
        return self.resp()

    def ask(self, line: str) -> str:
        """Sends a line of the text protocol; the first line of the reply, without its end."""
        self.send(line.encode() + b"\n")
        return self.line().decode().removesuffix("\r\n")


def encode(*words: bytes | str) -> bytes:
    """A RESP request."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def feed_every_way(make: Callable[[], Any], data: bytes, trailing: bytes) -> list[list[bytes]]:
    """The requests in `data`, the same whether it is fed whole, byte by byte, cut in two anywhere, or with the bytes of
    another request behind it, which then come as a request of their own unless `data` broke the stream."""
    expected = feed(make(), [data])
    assert feed(make(), [data[at : at + 1] for at in range(len(data))]) == expected
    for at in range(1, min(len(data), 300)):
        assert feed(make(), [data[:at], data[at:]]) == expected
    followed = feed(make(), [data + trailing])
    assert followed[: len(expected)] == expected
    assert feed(make(), [data, trailing]) == followed
    return expected


def feed(parser: Any, chunks: Sequence[bytes]) -> list[list[bytes]]:
    return [list(request) for chunk in chunks for request in parser.feed(chunk)]


def readable(wire: Wire) -> bool:
    """Whether the server has sent something that was not read yet."""
    wire.socket.setblocking(False)
    try:
        wire.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        wire.socket.settimeout(TIMEOUT_S)
    return True


def replace(server: Any, name: bytes, handler: Any) -> None:
    """Lets `handler` run a RESP command of this server."""
    server._context.commands.resp[name].handler = handler
