"""A relay between two nodes that notes how long each request of an exchange waits for the first byte of its answer."""

import select
import socket
import threading
import time
from typing import Self

from merklekv.harness.process import HOST

RECEIVE_BYTES = 1 << 20
POLL_S = 0.1
# What a request says in CBOR: the key `do`, and a text.
KINDS = {
    b"bdo" + bytes((0x60 + len(kind),)) + kind.encode(): kind
    for kind in ("hello", "inner", "buckets", "transfer", "scan", "done")
}


class Relay:
    """Takes one connection after the other, and passes on what comes to a port of this machine, both ways."""

    def __init__(self, port: int) -> None:
        self.waits: dict[str, list[float]] = {}  # milliseconds, by kind of request, in the order of their first
        self._to = port
        self._listener = socket.create_server((HOST, 0))
        self._listener.settimeout(POLL_S)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while not self._ended.is_set():
            try:
                asking, _ = self._listener.accept()
            except TimeoutError:
                continue
            with asking, socket.create_connection((HOST, self._to)) as asked:
                for one in (asking, asked):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pass_on(asking, asked)

    def _pass_on(self, asking: socket.socket, asked: socket.socket) -> None:
        kind, sent_at = "", 0.0
        while not self._ended.is_set():
            for one in select.select((asking, asked), (), (), POLL_S)[0]:
                data = one.recv(RECEIVE_BYTES)
                if not data:
                    return
                if one is asking:
                    kind = next((name for mark, name in KINDS.items() if mark in data), kind)
                    asked.sendall(data)
                    sent_at = time.perf_counter()
                else:
                    if kind:
                        self.waits.setdefault(kind, []).append(1000 * (time.perf_counter() - sent_at))
                        kind = ""
                    asking.sendall(data)
