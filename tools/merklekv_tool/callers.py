"""A connection that keeps one batch of encoded requests under way: what `bench` makes its load of.

It is as lean as it can be, since what it costs looks like latency of the node. Whoever uses it waits until its
descriptor is readable, calls `take`, and may `fire` again once that is True. A batch must be small enough for the node
to read it whole while its replies wait.
"""

from __future__ import annotations

import socket
import time
from types import TracebackType
from typing import Final

import hiredis

from merklekv.net.client import CONNECT_TIMEOUT_S, NoAnswer, NodeError, Unreachable

RECEIVE_BYTES: Final = 1 << 16


class Caller:
    """A connection to a node. Raises Unreachable, and NodeError for a reply that is an error."""

    def __init__(self, host: str, port: int, reply_timeout_s: float) -> None:
        self.name = f"{host}:{port}"
        self.sent_at = 0.0  # monotonic
        self._awaited = 0
        self._reader = hiredis.Reader()
        try:
            self._socket = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
        except OSError as error:
            raise Unreachable(f"{self.name}: cannot connect: {error.strerror or error}") from error
        self._socket.settimeout(reply_timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """The descriptor, to wait for."""
        return self._socket.fileno()

    def fire(self, batch: bytes, count: int) -> None:
        """Sends a batch of `count` requests."""
        self._awaited = count
        self.sent_at = time.monotonic()
        try:
            self._socket.sendall(batch)
        except OSError as error:
            raise self._broken(error) from error

    def take(self) -> bool:
        """Receives once; whether all replies of the batch are here."""
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise self._broken(error) from error
        if not data:
            raise Unreachable(f"{self.name}: the connection was closed")
        reader = self._reader
        reader.feed(data)
        while (reply := reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                raise NodeError(f"{self.name}: {reply}")
            self._awaited -= 1
        return self._awaited == 0

    def _broken(self, error: OSError) -> Unreachable:
        if isinstance(error, TimeoutError):
            return NoAnswer(f"{self.name}: no answer within {self._socket.gettimeout():.0f} s")
        return Unreachable(f"{self.name}: the connection broke: {error.strerror or error}")

    def __enter__(self) -> Caller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
