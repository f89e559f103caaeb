"""A TCP proxy that can be cut, frozen and healed: the network between a client and a server, in the test's hand.

    proxy = proxy_factory("127.0.0.1", node.port)
    client = LineClient("127.0.0.1", proxy.port)
    proxy.freeze()     # nothing passes, nobody is told: a partition, or a half-open connection
    proxy.thaw()       # what was sent meanwhile arrives
    proxy.cut()        # every connection is reset, new ones are refused until heal()
    proxy.heal()

One thread a connection and direction; it is meant for a handful of connections.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

CHUNK_BYTES = 65_536
LOOK_S = 0.05


class Proxy:
    """Listens on `port` of the loopback and carries bytes to and from the target."""

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.carried_bytes = 0
        self._flowing = threading.Event()
        self._flowing.set()
        self._open = True
        self._healthy = True
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(LOOK_S)
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept)

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        with self._lock:
            self._healthy = False
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                _reset(end)

    def heal(self) -> None:
        with self._lock:
            self._healthy = True

    def close(self) -> None:
        self._open = False
        self.thaw()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while self._open:
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            with self._lock:
                far = self._reach() if self._healthy else None
                if far is None:
                    _reset(near)
                    continue
                self._pairs.append((near, far))
            self._start(self._carry, near, far)
            self._start(self._carry, far, near)

    def _reach(self) -> socket.socket | None:
        try:
            return socket.create_connection(self.target, timeout=5)
        except OSError:
            return None

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        # A connection that is cut here, or that either end leaves, simply ends: that is what this is for.
        with contextlib.suppress(OSError, ValueError):
            while self._open:
                if not select.select([source], [], [], LOOK_S)[0]:
                    continue
                data = source.recv(CHUNK_BYTES)
                self._flowing.wait()  # what a frozen network took in is held here
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
                self.carried_bytes += len(data)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    end.close()


ProxyFactory = Callable[[str, int], Proxy]


@pytest.fixture
def proxy_factory() -> Iterator[ProxyFactory]:
    """Make proxies: `proxy_factory(host, port)`."""
    proxies: list[Proxy] = []

    def make(host: str, port: int) -> Proxy:
        proxies.append(Proxy(host, port))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()
