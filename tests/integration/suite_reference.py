"""What the benchmarks compare with, in the same run on the same machine: the least that could do the work.

A figure by itself says as much about the machine as about the server. So each benchmark gives the same work to a
reference as well, in turns, and the ratio of the two is what is compared from run to run (see `suite_figures`).

- `ReferenceServer`: a dictionary behind the same text protocol, in a process of its own, see `reference_server`.
- `ReferenceCarrier`: what the broker alone takes to carry messages from one client to another, for replication.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import paho.mqtt.client as paho
from fixtures.broker import Broker
from harness import BenchmarkResult, MerkleKVServer, PerformanceMonitor
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

HERE = Path(__file__).parent
CARRY_S = 60.0
ROUNDS = 9

Work = Callable[[MerkleKVServer, range], list[float]]  # at that server, for these numbers; the latencies


class ReferenceServer(MerkleKVServer):
    """A server process of this module, to be talked to like the real one."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, str(HERE / "reference_server.py"), str(directory / "reference.log")]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        super().__init__("127.0.0.1", int(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def shares(total: int, parts: int = ROUNDS) -> Iterator[range]:
    """The numbers below `total` in so many parts of about the same size, none of them empty."""
    bounds = [total * part // parts for part in range(parts + 1)]
    yield from (range(first, last) for first, last in itertools.pairwise(bounds) if last > first)


def in_turns(
    name: str, server: MerkleKVServer, reference: MerkleKVServer, operations: int, work: Work
) -> BenchmarkResult:
    """Give the work in parts to the reference and to the server, in turns, watching the server. The ratio is the
    median of the parts', so that a disturbance of one of them does not count.
    """
    monitor = PerformanceMonitor(server.pid)
    latencies: list[float] = []
    ratios = []
    seconds = 0.0
    for numbers in shares(operations):
        began = time.perf_counter()
        work(reference, numbers)
        turned = time.perf_counter()
        with monitor:
            latencies += work(server, numbers)
            ended = time.perf_counter()
        seconds += ended - turned
        ratios.append((turned - began) / (ended - turned))
    return BenchmarkResult(name, seconds, latencies, monitor.resources, statistics.median(ratios))


class ReferenceCarrier:
    """One client that receives its own messages through a broker, with QoS 1 both ways."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self._topic = topic
        self._received = threading.Semaphore(0)
        subscribed = threading.Event()
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, f"reference-{secrets.token_hex(4)}", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = lambda *_: self._received.release()
        self._client.connect(broker.host, broker.port)
        sock = self._client.socket()
        assert isinstance(sock, socket.socket)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or it is TCP's timers that are measured
        self._client.loop_start()
        self._client.subscribe(topic, 1)
        assert subscribed.wait(CARRY_S)

    def carry(self, messages: int, payload: bytes, *, at_once: int = 1) -> float:
        """Publish and receive so many messages, `at_once` before waiting; messages a second."""
        began = time.perf_counter()
        for first in range(0, messages, at_once):
            group = min(at_once, messages - first)
            for _ in range(group):
                self._client.publish(self._topic, payload, qos=1)
            for _ in range(group):
                assert self._received.acquire(timeout=CARRY_S), "the broker does not carry what it took"
        return messages / (time.perf_counter() - began)

    def __enter__(self) -> ReferenceCarrier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()
