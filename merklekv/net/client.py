"""A small blocking client: RESP over one connection, a request and its reply at a time.

For the tools, for SYNC and for tests; not for applications, which have Redis clients to choose from. It does not
reconnect: whoever uses it knows best whether a request may be sent twice.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Final, Self

import hiredis

from merklekv.errors import MerkleKVError
from merklekv.net.sockets import set_up

CONNECT_TIMEOUT_S: Final = 5.0
REPLY_TIMEOUT_S: Final = 60.0
RECEIVE_BYTES: Final = 1 << 16  # of a larger buffer the memory would be mapped anew for each reply: 30 us

Reply = bytes | int | None | list["Reply"]


class Unreachable(MerkleKVError):
    """The node cannot be reached, or the connection broke."""


class NoAnswer(Unreachable):
    """The node holds the connection but does not answer in time."""


class NodeError(MerkleKVError):
    """The node answered with an error; its text is the message."""


class Client:
    """A connection to a node. Raises Unreachable and NodeError; after Unreachable it is of no further use."""

    def __init__(self, host: str, port: int, timeout_s: float = REPLY_TIMEOUT_S) -> None:
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self._socket = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
        except OSError as error:
            raise Unreachable(f"{self.name}: cannot connect: {error.strerror or error}") from error
        except ValueError as error:  # a label that is empty or too long, bytes that are not UTF-8, a NUL
            raise Unreachable(f"{self.name}: is not a host name") from error
        self._socket.settimeout(timeout_s)
        set_up(self._socket)
        self._reader = hiredis.Reader()

    def call(self, *parts: bytes) -> Reply:
        """Sends a command and waits for its reply: bytes, int, None or a list of these."""
        self.send([parts])
        return self.receive()

    def send(self, requests: Iterable[Sequence[bytes]]) -> None:
        """Sends commands without waiting; each one's reply is to be received, in order."""
        self.send_encoded(b"".join([_pack(parts) for parts in requests]))

    def send_encoded(self, requests: bytes) -> None:
        """The same for commands that are encoded already."""
        try:
            self._socket.sendall(requests)
        except OSError as error:
            raise self._broken(error) from error

    def receive(self) -> Reply:
        """The next reply. NodeError, when it is one, leaves the connection usable."""
        while (reply := self._parsed()) is False:
            self._receive_some()
        return reply

    def _receive_some(self) -> None:
        """Takes what has come, and waits if that is nothing."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise self._broken(error) from error
        if not data:
            raise Unreachable(f"{self.name}: the connection was closed")
        self._reader.feed(data)

    def _parsed(self) -> Reply:
        """The next reply of what has come; False when it is not whole yet."""
        try:
            reply: Reply = self._reader.gets()
        except hiredis.ProtocolError as error:
            raise Unreachable(f"{self.name}: does not speak RESP: {error}") from error
        if isinstance(reply, hiredis.ReplyError):
            raise NodeError(f"{self.name}: {reply}")
        return reply

    def _broken(self, error: OSError) -> Unreachable:
        if isinstance(error, TimeoutError):
            return NoAnswer(f"{self.name}: no answer within {self._socket.gettimeout():.0f} s")
        return Unreachable(f"{self.name}: the connection broke: {error.strerror or error}")

    def close(self) -> None:
        """Closes the connection; who waits for a reply in another thread is told that it is gone."""
        with contextlib.suppress(OSError):  # of a connection that is gone already
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pack(parts: Sequence[bytes]) -> bytes:
    return b"*%d\r\n%b" % (len(parts), b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]))
