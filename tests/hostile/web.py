"""What reaches the HTTP port."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from . import mutate
from .arena import ArenaPath, deliver

CONNECTIONS: Final = 16  # at once: fewer than the server takes
TARGETS: Final = (
    *(
        b"/",
        b"/events",
        b"/keys",
        b"/history",
        b"/metrics",
        b"/livez",
        b"/readyz",
        b"/static/page.js",
        b"/static/",
        b"/demo/x",
    ),
    *(
        b"//",
        b"/../../etc/passwd",
        b"/static/../page.py",
        b"/%2e%2e/",
        b"*",
        b"http://other/keys",
        b"/keys?",
        b"/\xff",
        b"/\0",
    ),
)
FIELDS: Final = (
    *(
        b"Host: localhost",
        b"Host: evil.example",
        b"Host: [::1",
        b"Host: [::1]:x",
        b"Host:",
        b"Host: " + b"a" * 9000,
        b"Host: \xff\xfe",
    ),
    *(
        b"Content-Length: 5",
        b"Content-Length: -1",
        b"Content-Length: " + mutate.DIGITS,
        b"Content-Length: \xb2",
        b"Content-Length: 1e3",
    ),
    *(
        b"Transfer-Encoding: chunked",
        b"Origin: null",
        b"Origin: http://localhost",
        b"Sec-Fetch-Site: cross-site",
        b"Expect: 100-continue",
    ),
    *(
        b"Connection: keep-alive, Upgrade",
        b"Upgrade: websocket",
        b"Cookie: " + b"x" * 5000,
        b"A" * 5000 + b": 1",
        b": x",
        b"no colon",
        b" folded",
    ),
    *(
        b"Range: bytes=0-18446744073709551616",
        b"Accept-Encoding: gzip",
        b"X: \0",
        b"X: \x1b[31m",
        b"If-None-Match: *",
        b"Last-Event-ID: " + mutate.DIGITS,
    ),
)
VERSIONS: Final = (
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.1.1",
    b"HTTP/" + mutate.DIGITS + b".1",
    b"HTTP/-1.1",
    b"",
    b"x",
    b"HTTP/\xb2.1",
)
METHODS: Final = (b"HEAD", b"POST", b"OPTIONS", b"PUT", b"get", b"", b"\xff", b"G" * 5000)
QUERIES: Final = (b"prefix", b"cursor", b"key", b"x", b"")


class Http(ArenaPath):
    """Requests of monitors, of the page, of other pages, and of nobody."""

    name = "http"

    def volley(self, seeds: Sequence[int]) -> None:
        for at in range(0, len(seeds), CONNECTIONS):
            payloads = [self.make(random.Random(seed)) for seed in seeds[at : at + CONNECTIONS]]
            self.require_sound(deliver(self.scene.arena.http_port, payloads, 0.1))

    def make(self, chance: random.Random) -> bytes:
        method = b"GET" if chance.random() < 0.7 else chance.choice(METHODS)
        target = chance.choice((b"/keys", b"/history")) if chance.random() < 0.4 else chance.choice(TARGETS)
        if chance.random() < 0.6:
            target += b"?" + b"&".join(self._query(chance) for _ in range(chance.choice((1, 1, 2, 17))))
        lines = [b" ".join((method, target, chance.choice(VERSIONS) if chance.random() < 0.15 else b"HTTP/1.1"))]
        if chance.random() < 0.8:
            lines.append(b"Host: 127.0.0.1")
        lines += [chance.choice(FIELDS) for _ in range(chance.choice((0, 0, 0, 0, 1, 1, 2, 5, 120)))]
        head = chance.choice((b"\r\n", b"\r\n", b"\r\n", b"\n")).join(lines) + b"\r\n\r\n"
        if chance.random() < 0.15:
            head = mutate.damaged(chance, head)
        return head + chance.choice((b"", b"", b"hello", b"x" * 5000, b"5\r\nhello\r\n0\r\n\r\n"))

    def _query(self, chance: random.Random) -> bytes:
        value = mutate.word(chance)
        if chance.random() < 0.7:
            value = (
                value.hex().encode() if chance.random() < 0.5 else b"".join(b"%%%02x" % byte for byte in value[:500])
            )
        return chance.choice(QUERIES) + chance.choice((b"=", b"=", b"")) + value.replace(b" ", b"+")[:20_000]

    def show(self, seed: int) -> str:
        return repr(self.make(random.Random(seed))[:1000])


PATHS = (Http,)
