"""A small blocking client: RESP over one connection.

For the tools, SYNC and tests. Applications have Redis clients to choose from. It does not reconnect: only the caller
knows whether a request may be sent twice.

It trusts no peer: a reply is bounded in size (see `replies`) and in time. It gives up on a peer that is silent, or
sends less than PROGRESS_BYTES_S on average.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Sequence
from typing import Final, Self

from merklekv.address import format_address
from merklekv.errors import MerkleKVError
from merklekv.net.protocol import replies
from merklekv.net.protocol.replies import INCOMPLETE, BadReply, ErrorReply, ReplyParser
from merklekv.output import printable
from merklekv.sockets import set_up

CONNECT_TIMEOUT_S: Final = 5.0
REPLY_TIMEOUT_S: Final = 60.0
ANSWER_TIMEOUT_S: Final = 10.0  # to a PING, of a node that runs at all
PROGRESS_BYTES_S: Final = 1 << 15  # the rate of a long reply, once the time for its beginning has passed
REPLY_BYTES_MAX: Final = 64 << 20  # a value of the usual size in any message, and a few times more
REPLY_ROOM_BYTES: Final = 8 << 20  # for a reply beside the largest value
RECEIVE_BYTES: Final = 1 << 16  # of a larger buffer the memory would be mapped anew for each reply: 30 us

Reply = replies.Reply


class Unreachable(MerkleKVError):
    """The node cannot be reached, or the connection broke."""


class NoAnswer(Unreachable):
    """The node keeps the connection but does not answer in time."""


class NodeError(MerkleKVError):
    """The node answered with an error; its text is the message, with characters that do not print as escapes."""


class Client:
    """A connection to a node. Raises Unreachable and NodeError; after Unreachable it is of no further use."""

    def __init__(
        self, host: str, port: int, timeout_s: float = REPLY_TIMEOUT_S, reply_bytes: int = REPLY_BYTES_MAX
    ) -> None:
        """`timeout_s`: for the peer to take a request and begin its reply, and to connect, if it is less than
        CONNECT_TIMEOUT_S. `reply_bytes`: the longest reply taken."""
        self.name = format_address(host, port)
        try:
            self._socket = socket.create_connection((host, port), min(CONNECT_TIMEOUT_S, timeout_s))
            set_up(self._socket)
        except OSError as error:
            raise Unreachable(f"{self.name}: cannot connect: {error.strerror or error}") from error
        except ValueError as error:  # a label that is empty or too long, bytes that are not UTF-8, a NUL
            raise Unreachable(f"{self.name}: is not a host name") from error
        self._timeout_s = timeout_s
        self._parser = ReplyParser(reply_bytes)
        self._reply_bytes = reply_bytes

    def call(self, *parts: bytes, reply_bytes: int = 0) -> Reply:
        """Sends a command and waits for its reply: bytes, int, None or a list of these.

        `reply_bytes`: the longest one taken here, if it is not that of all.
        """
        self.send([parts])
        self._parser.bytes_max = reply_bytes or self._reply_bytes
        try:
            return self.receive()
        finally:
            self._parser.bytes_max = self._reply_bytes

    def require_answer(self) -> None:
        """Returns once the node has answered a PING. For a process that hangs the kernel still takes requests, and a
        long command would not show that for a long time. Raises NoAnswer after ANSWER_TIMEOUT_S, and NodeError: a node
        that takes no more clients says so and closes."""
        timeout_s, self._timeout_s = self._timeout_s, min(self._timeout_s, ANSWER_TIMEOUT_S)
        try:
            self.call(b"PING")
        finally:
            self._timeout_s = timeout_s

    def send(self, requests: Iterable[Sequence[bytes]]) -> None:
        """Sends commands without waiting; `receive` then gives their replies in order."""
        self.send_encoded(b"".join([_pack(parts) for parts in requests]))

    def send_encoded(self, requests: bytes) -> None:
        """The same for commands that are encoded already."""
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(requests)
        except OSError as error:
            raise self._broken(error) from error

    def receive(self) -> Reply:
        """The next reply. NodeError leaves the connection usable."""
        deadline = time.monotonic() + self._timeout_s
        try:
            while (reply := self._parser.next()) is INCOMPLETE:
                data = self._receive_some(deadline - time.monotonic())
                deadline += len(data) / PROGRESS_BYTES_S
                self._parser.feed(data)
        except BadReply as error:
            raise Unreachable(f"{self.name}: does not answer as a MerkleKV node: {error}") from error
        except ErrorReply as error:
            raise NodeError(f"{self.name}: {printable(str(error))}") from error
        return reply  # type: ignore[return-value]

    def _receive_some(self, wait_s: float) -> bytes:
        """The bytes that have come; waits so long for the first."""
        if wait_s <= 0:
            raise NoAnswer(f"{self.name}: the answer comes too slowly, or not to its end")
        try:
            self._socket.settimeout(wait_s)
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise self._broken(error) from error
        if not data:
            raise Unreachable(f"{self.name}: the connection was closed")
        return data

    def _broken(self, error: OSError) -> Unreachable:
        if isinstance(error, TimeoutError):
            return NoAnswer(f"{self.name}: no whole answer within {self._timeout_s:g} s")
        return Unreachable(f"{self.name}: the connection broke: {error.strerror or error}")

    def close(self) -> None:
        """Closes the connection; a thread that waits for a reply gets Unreachable."""
        with contextlib.suppress(OSError):  # of a connection that is gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _pack(parts: Sequence[bytes]) -> bytes:
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))
