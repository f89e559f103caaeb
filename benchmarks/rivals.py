"""MerkleKV beside NATS JetStream KV and etcd, under one lean client; those that are not installed are left out.

    python benchmarks/rivals.py [--size quick|full] [--directory DIR] [--results DIR]

put        50 connections, each with one request at a time
get        likewise, of keys that exist
put-p16    50 connections, each with 16 requests at a time, where the protocol allows it

Each is measured once for servers that sync before they answer, and once for those that sync later. The client is one
Python thread for all, so it is often the client that a rate measures; the CPU time per request is the server's own.
Prints a table, and writes `rivals.json`.
"""

import argparse
import base64
import json
import os
import random
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figure import SIZES, Size, median, percentile
from nodes import cpu_seconds, make_node
from report import RESULTS, machine

from merklekv.harness.process import HOST, Server, free_port

CLIENTS = 50
KEYS_MAX = 10_000
VALUE = b"x" * 100
PART = 10  # of the requests of a row of compare.py
ROUNDS_MAX = 3
TIMEOUT_S = 60
RECEIVE_BYTES = 1 << 16
BUCKET = "bench"
STREAM = {  # as `nats kv add` makes it
    "name": f"KV_{BUCKET}",
    "subjects": [f"$KV.{BUCKET}.>"],
    "max_msgs_per_subject": 1,
    "allow_direct": True,
    "allow_rollup_hdrs": True,
    "deny_delete": True,
    "discard": "new",
    "storage": "file",
    "num_replicas": 1,
}
SYNC_SINCE = (2, 10)  # the first nats-server whose sync interval can be set
PLACES = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])


class Protocol(ABC):
    """What a client sends and receives."""

    pipelined = True

    def open(self, connection: socket.socket) -> None:
        """Says what comes before the first request."""
        return

    def addressed(self, requests: bytes, connection: int) -> bytes:
        """Requests as the connection of that number sends them."""
        return requests

    @abstractmethod
    def put(self, key: bytes) -> bytes:
        """A request that sets VALUE."""

    @abstractmethod
    def get(self, key: bytes) -> bytes:
        """A request for a value."""

    @abstractmethod
    def end(self, data: bytes) -> int:
        """Where the first reply ends; 0 if it is not complete."""

    @abstractmethod
    def is_put(self, reply: bytes) -> bool:
        """Whether it says that the value was set."""

    @abstractmethod
    def is_got(self, reply: bytes) -> bool:
        """Whether it is VALUE."""


class Resp(Protocol):
    """Redis's protocol."""

    def put(self, key: bytes) -> bytes:
        return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key, len(VALUE), VALUE)

    def get(self, key: bytes) -> bytes:
        return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key)

    def end(self, data: bytes) -> int:
        line = data.find(b"\r\n") + 2
        if line < 2:
            return 0
        whole = line + int(data[1 : line - 2]) + 2 if data[:1] == b"$" and data[1:2] != b"-" else line
        return whole if len(data) >= whole else 0

    def is_put(self, reply: bytes) -> bool:
        return reply == b"+OK\r\n"

    def is_got(self, reply: bytes) -> bool:
        return reply == b"$%d\r\n%b\r\n" % (len(VALUE), VALUE)


class NatsText(Protocol):
    """The protocol of NATS: a put is a message to the stream, which acknowledges it; a get asks the stream directly."""

    CONNECT = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n'
    REPLY = b" reply "  # in a request, for the subject at which its connection listens

    def open(self, connection: socket.socket) -> None:
        assert connection.recv(RECEIVE_BYTES).startswith(b"INFO ")
        connection.sendall(self.CONNECT + self.addressed(b"SUB reply 1\r\nPING\r\n", connection.fileno()))
        assert connection.recv(RECEIVE_BYTES) == b"PONG\r\n"

    def addressed(self, requests: bytes, connection: int) -> bytes:
        return requests.replace(self.REPLY, b" reply.%d " % connection)

    def put(self, key: bytes) -> bytes:
        return self.publish(b"$KV.%b.%b" % (BUCKET.encode(), key), VALUE)

    def get(self, key: bytes) -> bytes:
        return self.publish(b"$JS.API.DIRECT.GET.KV_%b.$KV.%b.%b" % (BUCKET.encode(), BUCKET.encode(), key), b"")

    @staticmethod
    def publish(subject: bytes, payload: bytes) -> bytes:
        """A message that wants a reply."""
        return b"PUB %b%b%d\r\n%b\r\n" % (subject, NatsText.REPLY, len(payload), payload)

    def end(self, data: bytes) -> int:
        line = data.find(b"\r\n") + 2
        if line < 2:
            return 0
        whole = line + int(data[: line - 2].rsplit(b" ", 1)[1]) + 2 if data[:1] in b"MH" else line
        return whole if len(data) >= whole else 0

    def is_put(self, reply: bytes) -> bool:
        return b'"seq":' in reply and b'"error"' not in reply

    def is_got(self, reply: bytes) -> bool:
        return reply.startswith(b"HMSG ") and reply.endswith(b"\r\n%b\r\n" % VALUE)


class EtcdJson(Protocol):
    """The JSON gateway of etcd, over HTTP connections that are kept."""

    pipelined = False
    ENCODED = base64.b64encode(VALUE).decode()

    def put(self, key: bytes) -> bytes:
        return self._request("put", {"key": base64.b64encode(key).decode(), "value": self.ENCODED})

    def get(self, key: bytes) -> bytes:
        return self._request("range", {"key": base64.b64encode(key).decode()})

    @staticmethod
    def _request(verb: str, fields: dict[str, str]) -> bytes:
        body = json.dumps(fields).encode()
        return b"POST /v3/kv/%b HTTP/1.1\r\nHost: etcd\r\nContent-Length: %d\r\n\r\n%b" % (
            verb.encode(),
            len(body),
            body,
        )

    def end(self, data: bytes) -> int:
        head = data.find(b"\r\n\r\n") + 4
        if head < 4:
            return 0
        length = re.search(rb"\r\nContent-Length: (\d+)\r\n", data[:head])
        assert length, data
        whole = head + int(length[1])
        return whole if len(data) >= whole else 0

    def is_put(self, reply: bytes) -> bool:
        return reply.startswith(b"HTTP/1.1 200 ") and b'"revision"' in reply

    def is_got(self, reply: bytes) -> bool:
        return reply.startswith(b"HTTP/1.1 200 ") and self.ENCODED.encode() in reply


def load(
    port: int, protocol: Protocol, requests: list[bytes], is_right: Callable[[bytes], bool], pipeline: int = 1
) -> dict[str, float]:
    """Sends the requests, so many at a time on each connection.

    How many a second, and the 99th percentile of the milliseconds until all replies to those of one time were there.
    """
    batches = [requests[at : at + pipeline] for at in range(0, len(requests), pipeline)]
    left = iter(batches)
    latencies: list[float] = []
    with ExitStack() as stack, select.epoll() as readable:
        connections: dict[int, _Connection] = {}
        for _ in range(min(CLIENTS, len(batches))):
            one = stack.enter_context(socket.create_connection((HOST, port), TIMEOUT_S))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            protocol.open(one)
            readable.register(one, select.EPOLLIN)
            connections[one.fileno()] = _Connection(one, protocol)
        began = time.perf_counter()
        for connection in connections.values():
            connection.send(next(left))
        while len(latencies) < len(batches):
            events = readable.poll(TIMEOUT_S)
            assert events, "the server does not answer"
            for number, _ in events:
                connection = connections[number]
                for reply in connection.receive():
                    assert is_right(reply), reply
                if not connection.missing:
                    latencies.append(time.perf_counter() - connection.sent_at)
                    if batch := next(left, None):
                        connection.send(batch)
                    else:
                        readable.unregister(number)
        seconds = time.perf_counter() - began
    return {"per_s": len(requests) / seconds, "p99_ms": 1000 * percentile(latencies, 99)}


class _Connection:
    def __init__(self, connection: socket.socket, protocol: Protocol) -> None:
        self.missing = 0  # replies
        self.sent_at = 0.0
        self._socket = connection
        self._protocol = protocol
        self._data = b""

    def send(self, requests: list[bytes]) -> None:
        self.missing = len(requests)
        self.sent_at = time.perf_counter()
        self._socket.sendall(self._protocol.addressed(b"".join(requests), self._socket.fileno()))

    def receive(self) -> Iterator[bytes]:
        """The replies that are complete now."""
        data = self._socket.recv(RECEIVE_BYTES)
        assert data, "the server has closed a connection"
        self._data += data
        while self._data and (end := self._protocol.end(self._data)):
            reply, self._data = self._data[:end], self._data[end:]
            if reply != b"PING\r\n":  # of NATS, which goes on without an answer for a while
                self.missing -= 1
                yield reply


class Nats(Server):
    """nats-server with JetStream on disk; it syncs as often as `interval` says, where it can be told."""

    def __init__(self, program: str, directory: Path, interval: str) -> None:
        super().__init__(Path(f"{directory}.log"))
        self.port = free_port()
        self._program = program
        self._settings = Path(f"{directory}.conf")
        sync = f', sync_interval: "{interval}"' if interval else ""
        self._settings.write_text(
            f'listen: "{HOST}:{self.port}"\nping_max: 1000\njetstream {{ store_dir: "{directory}"{sync} }}\n'
        )

    def command(self) -> list[str]:
        return [self._program, "-c", str(self._settings)]

    @property
    def is_up(self) -> bool:
        return "Server is ready" in self.output()

    def make_bucket(self) -> None:
        """Creates the stream that is the bucket."""
        protocol = NatsText()
        request = protocol.publish(b"$JS.API.STREAM.CREATE." + b"KV_" + BUCKET.encode(), json.dumps(STREAM).encode())
        load(self.port, protocol, [request], lambda reply: b'"created"' in reply)


class Etcd(Server):
    """etcd as a cluster of one."""

    def __init__(self, program: str, directory: Path) -> None:
        super().__init__(Path(f"{directory}.log"))
        self.port = free_port()
        self._program = program
        self._directory = directory
        self._peer = f"http://{HOST}:{free_port()}"

    def command(self) -> list[str]:
        own = f"http://{HOST}:{self.port}"
        settings = {
            "data-dir": str(self._directory),
            "listen-client-urls": own,
            "advertise-client-urls": own,
            "listen-peer-urls": self._peer,
            "initial-advertise-peer-urls": self._peer,
            "initial-cluster": f"default={self._peer}",
            "log-level": "error",
        }
        return [self._program, *(word for name, value in settings.items() for word in (f"--{name}", value))]

    @property
    def is_up(self) -> bool:
        """Whether it answers a read, for which it has to lead its cluster."""
        protocol = EtcdJson()
        try:
            load(self.port, protocol, [protocol.get(b"key")], lambda reply: reply.startswith(b"HTTP/1.1 200 "))
        except (OSError, AssertionError):
            return False
        return True


@dataclass(frozen=True)
class Rival:
    """A server that has been started, and how it is spoken to."""

    server: Server
    protocol: Protocol


def start_all(stack: ExitStack, durability: str, directory: Path) -> dict[str, Rival]:
    """What is installed and can be as durable; names say what they do about it."""
    node = stack.enter_context(make_node(directory / f"node-{durability}", durability=durability))
    started = {f"MerkleKV, {durability}": Rival(node, Resp())}
    if program := shutil.which("nats-server", path=PLACES):
        sync = {"always": "always", "everysec": "1s"}[durability] if _version(program) >= SYNC_SINCE else ""
        if sync or durability == "everysec":
            nats = stack.enter_context(Nats(program, directory / f"nats-{durability}", sync))
            nats.make_bucket()
            started[f"NATS, sync_interval {sync or '2m'}"] = Rival(nats, NatsText())
    if durability == "always" and (program := shutil.which("etcd", path=PLACES)):
        started["etcd"] = Rival(stack.enter_context(Etcd(program, directory / "etcd")), EtcdJson())
    return started


def _version(program: str) -> tuple[int, ...]:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    found = re.search(r"v(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else (0,)


def missing() -> list[str]:
    """One line for each that is not installed."""
    return [
        f"{program} is not installed (Debian's {package}): not measured."
        for program, package in (("nats-server", "nats-server"), ("etcd", "etcd-server"))
        if not shutil.which(program, path=PLACES)
    ]


def measure(durability: str, size: Size, directory: Path) -> list[dict[str, Any]]:
    """The rows of servers that are so durable: each work, round by round on one after the other."""
    count = max(16 * CLIENTS // 4, size.requests // PART)
    keys = [b"key-%012d" % number for number in range(min(KEYS_MAX, count))]
    draw = random.Random(1)
    rows = []
    with ExitStack() as stack:
        rivals = start_all(stack, durability, directory)
        for rival in rivals.values():
            load(rival.server.port, rival.protocol, [*map(rival.protocol.put, keys)], rival.protocol.is_put)
        for work, verb, pipeline in (("put", "put", 1), ("get", "get", 1), ("put-p16", "put", 16)):
            able = [name for name, rival in rivals.items() if pipeline == 1 or rival.protocol.pipelined]
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in able}
            for number in range(min(ROUNDS_MAX, size.rounds)):
                first = number % len(able)
                chosen = draw.choices(keys, k=count)
                for name in able[first:] + able[:first]:
                    runs[name].append(_run(rivals[name], verb, chosen, pipeline))
            servers = {
                name: {what: round(median([run[what] for run in found]), 2) for what in found[0]}
                for name, found in runs.items()
            }
            rows.append({"row": f"{work}-{durability}", "servers": servers})
    return rows


def _run(rival: Rival, verb: str, keys: list[bytes], pipeline: int) -> dict[str, float]:
    protocol = rival.protocol
    make, is_right = (protocol.put, protocol.is_put) if verb == "put" else (protocol.get, protocol.is_got)
    requests = [*map(make, keys)]
    before = cpu_seconds(rival.server.pid)
    figures = load(rival.server.port, protocol, requests, is_right, pipeline)
    return figures | {"cpu_us": 1e6 * (cpu_seconds(rival.server.pid) - before) / len(keys)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="quick")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where the data goes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="merklekv-", dir=given.directory) as directory:
        for durability in ("always", "everysec"):
            rows += measure(durability, SIZES[given.size], Path(directory))
    for row in rows:
        for name, figures in row["servers"].items():
            shown = "  ".join(f"{what} {value:,}" for what, value in figures.items())
            print(f"{row['row']:18}  {name:26}  {shown}", flush=True)
    print("\n".join(missing()))
    given.results.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(given.directory), "rows": rows, "missing": missing()}
    (given.results / "rivals.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
