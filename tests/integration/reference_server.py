"""A dictionary behind the text protocol: the least that a server that keeps what it was told could do.

    python reference_server.py FILE        prints its port, and serves until it is killed

One loop reads what all clients have sent, changes the dictionary, appends the writes to the file, syncs it once, and
answers. `suite_reference` runs it, for benchmarks to compare with. It is no key-value store: it never reads the file.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
from pathlib import Path

CHUNK_BYTES = 1 << 20
WRITES = (b"SET", b"DELETE")


class Loop:
    """Knows SET, GET, DELETE, DBSIZE and TRUNCATE; to everything else it says PONG."""

    def __init__(self, path: Path) -> None:
        self._data: dict[bytes, bytes] = {}
        self._log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._rest: dict[socket.socket, bytes] = {}
        self.port = int(self._listener.getsockname()[1])

    def run(self) -> None:
        while True:
            self._round([key.fileobj for key, _ in self._selector.select() if isinstance(key.fileobj, socket.socket)])

    def _round(self, ready: list[socket.socket]) -> None:
        """Serve what is there now, with one sync for all of it."""
        answers, written = {}, b""
        for client in ready:
            if client is self._listener:
                self._take(client.accept()[0])
                continue
            lines = self._lines(client)
            answers[client] = b"".join(self._answer(line) for line in lines)
            written += b"\n".join(line for line in lines if line.startswith(WRITES))
        if written:
            os.write(self._log, written)
            os.fdatasync(self._log)
        for client, answer in answers.items():
            client.sendall(answer)

    def _take(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(client, selectors.EVENT_READ)
        self._rest[client] = b""

    def _lines(self, client: socket.socket) -> list[bytes]:
        received = client.recv(CHUNK_BYTES)
        if not received:
            self._selector.unregister(client)
            del self._rest[client]
        *lines, rest = (self._rest.get(client, b"") + received).split(b"\r\n")
        if received:
            self._rest[client] = rest
        return lines

    def _answer(self, line: bytes) -> bytes:
        word, _, argument = line.partition(b" ")
        if word == b"SET":
            key, _, self._data[key] = argument.partition(b" ")
            return b"OK\r\n"
        if word == b"GET":
            value = self._data.get(argument)
            return b"NOT_FOUND\r\n" if value is None else b"VALUE %b\r\n" % value
        if word == b"DELETE":
            return b"NOT_FOUND\r\n" if self._data.pop(argument, None) is None else b"DELETED\r\n"
        if word == b"TRUNCATE":
            self._data.clear()
            return b"OK\r\n"
        return b"DBSIZE %d\r\n" % len(self._data) if word == b"DBSIZE" else b"PONG\r\n"


if __name__ == "__main__":
    loop = Loop(Path(sys.argv[1]))
    sys.stdout.write(f"{loop.port}\n")
    sys.stdout.flush()
    loop.run()
