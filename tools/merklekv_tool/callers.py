"""A connection that keeps one batch of encoded requests under way: what `bench` makes its load of.

It is as lean as it can be, since what it costs looks like latency of the node. Whoever uses it waits until its
descriptor is readable, calls `take`, and may `fire` again once that is True. A batch must be small enough for the node
to read it whole while its replies wait.
"""

from __future__ import annotations

import time

import hiredis

from merklekv.net.client import Client, NodeError, Unreachable


class Caller(Client):
    """A connection to a node. Raises Unreachable, and NodeError for a reply that is an error."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        super().__init__(host, port, timeout_s)
        self.sent_at = 0.0  # monotonic
        self._awaited = 0
        self._reader = hiredis.Reader()  # parses a short reply in a tenth of the time

    def fileno(self) -> int:
        """The descriptor, to wait for."""
        return self._socket.fileno()

    def fire(self, batch: bytes, count: int) -> None:
        """Sends a batch of `count` requests."""
        self._awaited = count
        self.sent_at = time.monotonic()
        self.send_encoded(batch)

    def take(self) -> bool:
        """Receives once; whether all replies of the batch are here."""
        self._reader.feed(self._receive_some(self._timeout_s))
        try:
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    raise NodeError(f"{self.name}: {reply}")
                self._awaited -= 1
        except hiredis.ProtocolError as error:
            raise Unreachable(f"{self.name}: does not answer as a MerkleKV node: {error}") from error
        return self._awaited == 0
