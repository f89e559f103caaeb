"""`merklekv-tool` as a person runs it: a process, its output, its exit status."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from fix_node import NodeProcess, clean_environment

from merklekv.engine.engine import Engine
from merklekv.engine.format import VALUE_AT, ZERO_VERSION
from merklekv.net import resp
from merklekv.net.client import Client
from merklekv.net.resp import RespParser

TOOL = [sys.executable, "-m", "merklekv_tool"]
TIMEOUT_S = 60.0

# Of every kind that a dump must carry: text, bytes that are no text, line breaks, quotes, what JSON escapes, nothing.
SAMPLES: Mapping[bytes, bytes] = {
    b"plain": b"text",
    b"empty": b"",
    "käse 🧀".encode(): "ünïcödé \u2028 \x7f".encode(),
    b"line\nbreak\r\n": b"two\r\nlines\n",
    b"\xff\x00\xfe": bytes(range(256)),
    b'"quoted"\\': b'{"json": "\\u0000"}',
    b"\x00": b"\x00",
    b"tab\t": b"\xed\xa0\x80",  # a lone surrogate: no valid UTF-8
    b"k" * 511: b"v" * 5000,
}


# Root may read and write whatever it likes, unless it gives that up.
POWERS = "-dac_override,-dac_read_search"
WITHOUT_POWERS = ["setpriv", f"--bounding-set={POWERS}", f"--inh-caps={POWERS}"] if os.geteuid() == 0 else []


def run(
    *arguments: str | Path, stdin: bytes | None = None, file_size: int = 0, powers: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """The tool, to its end. `file_size`: what the system lets a file of it grow to; without `powers`: not as root."""
    limit = ["prlimit", f"--fsize={file_size}"] if file_size else []
    limit += [] if powers else WITHOUT_POWERS
    command = [*limit, *TOOL, *map(str, arguments)]
    environment = clean_environment() | {"COLUMNS": "200"}
    return subprocess.run(
        command, input=stdin or b"", capture_output=True, timeout=TIMEOUT_S, env=environment, check=False
    )


def succeeds(*arguments: str | Path, stdin: bytes | None = None) -> bytes:
    """What it writes to stdout when it succeeds."""
    done = run(*arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def fails(status: int, *words: str, done: subprocess.CompletedProcess[bytes]) -> None:
    """It ended with the status and one line on stderr that has the words."""
    stderr = done.stderr.decode()
    assert done.returncode == status, stderr
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("merklekv-tool: ")
    for word in words:
        assert word in lines[0]


def fill(engine: Engine, floor: bool = True, merged: bool = True) -> None:
    """Puts samples, tombstones and a floor in, part of it merged into the base."""
    if floor:
        engine.set(b"before the floor", b"x")
        engine.truncate()
    for key, value in SAMPLES.items():
        engine.set(key, value)
    for number in range(2500):
        engine.set(b"number:%04d" % number, b"%d" % number)
    if merged:
        engine.absorb_sealed()
    for number in range(0, 2500, 5):
        engine.delete(b"number:%04d" % number)
    engine.delete(b"empty")
    engine.set(b"empty", b"")
    engine.commit()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Engine]:
    """An engine on a directory, without a child."""
    engine = Engine(path, absorb="manual", durability="never")
    try:
        yield engine
    finally:
        engine.close()


def filled(path: Path) -> bytes:
    """Makes a directory with samples; its root."""
    with opened(path) as engine:
        fill(engine)
        return engine.root()


def contents(path: Path) -> tuple[bytes, bytes, int, int]:
    """Root, floor, and how many records live and dead a directory has."""
    with opened(path) as engine:
        return engine.root(), engine.floor, engine.live_count, engine.dead_count


def address(node: NodeProcess) -> str:
    return f"127.0.0.1:{node.port}"


def root_of(node: NodeProcess) -> bytes:
    with Client("127.0.0.1", node.port) as client:
        answer = client.call(b"HASH")
        assert isinstance(answer, bytes)
        return bytes.fromhex(answer.decode())


ANY = b"any"  # command


class FakeNode:
    """Answers like a node, with whatever it is told to."""

    def __init__(self, greeting: bytes = b"") -> None:
        self.greeting = greeting
        self.closes_at = self.waits_at = b""
        self.knows_nothing = False
        self.go_on = threading.Event()
        self.records: list[tuple[bytes, bytes]] = []
        self.root = bytes(32)
        self.floor = ZERO_VERSION
        self.live = 3
        self.replies: dict[bytes, bytes] = {}  # by command, encoded; instead of a node's own
        self.root_moves = False
        self.root_moves_for = 0
        self.asked: Counter[bytes] = Counter()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._serve)  # type: ignore[arg-type]
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def put(self, key: bytes, record: bytes) -> None:
        """Lets another record stand in the place of that key's."""
        self.records = [(one, record if one == key else other) for one, other in self.records]

    def _serve(self, connection: socket.socket, peer: object, server: object) -> None:
        parser = RespParser(1 << 20, 1 << 20, 1 << 26)
        connection.sendall(self.greeting)
        while data := connection.recv(65536):
            for request in parser.feed(data):
                if request[0] == self.closes_at:
                    return
                connection.sendall(self._answer(request[0]))

    def _answer(self, name: bytes) -> bytes:
        self.asked[name] += 1
        if self.waits_at in (name, ANY):
            self.go_on.wait(30)
        if name in self.replies:
            return self.replies[name]
        if self.knows_nothing:
            return b"-ERR unknown command '%b', with args beginning with: 'a' 'b' \r\n" % name
        match name:
            case b"HASH":
                if self.root_moves or self.asked[name] <= self.root_moves_for:
                    return resp.bulk(os.urandom(32).hex().encode())
                return resp.bulk(self.root.hex().encode())
            case b"FLOOR":
                return resp.bulk(self.floor)
            case b"NOTES":
                return resp.bulk_array([])
            case b"STATS":
                return resp.bulk(b"db_keys:%d\r\ndb_tombstones:0\r\n" % self.live)
            case b"RECORDS":
                parts = [part for key, record in self.records for part in (key, record[:VALUE_AT], record[VALUE_AT:])]
                return b"*2\r\n%b%b" % (resp.NIL[2], resp.bulk_array(parts))
        raise AssertionError(name)

    def __enter__(self) -> FakeNode:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
