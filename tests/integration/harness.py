"""What the integration tests stand on: a server, a client, a monitor and a result.

`MerkleKVServer` manages a server process, or stands for one that is already there; `MerkleKVClient` speaks
the text protocol; `PerformanceMonitor` watches what the server takes; `BenchmarkResult` holds what was
measured and says it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil
from fixtures.node import LineClient, NodeProcess

DEFAULT_TIMEOUT_S = 60.0
SAMPLE_S = 0.05
MIB = 1 << 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class MerkleKVClient:
    """A client of the text protocol. Replies are given as text, the lines of a longer one joined by line
    feeds.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._connection: LineClient | None = None

    def connect(self, timeout: float = DEFAULT_TIMEOUT_S) -> MerkleKVClient:
        self._connection = LineClient(self.host, self.port, timeout)
        return self

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def connection(self) -> LineClient:
        assert self._connection is not None, "not connected"
        return self._connection

    def send_command(self, command: str) -> str:
        """Send one line and give the whole reply; an empty string when the server has closed."""
        return "\n".join(self.connection.ask_lines(command))

    def send_raw(self, data: bytes) -> None:
        self.connection.send(data)

    def read_line(self) -> str:
        return self.connection.line()

    def get(self, key: str) -> str:
        return self.send_command(f"GET {key}")

    def set(self, key: str, value: str) -> str:
        return self.send_command(f"SET {key} {value}")

    def delete(self, key: str) -> str:
        return self.send_command(f"DELETE {key}")

    def stats(self) -> dict[str, str]:
        lines = self.send_command("STATS").split("\n")[1:]
        return dict(line.split(":", 1) for line in lines)

    def __enter__(self) -> MerkleKVClient:
        return self if self._connection is not None else self.connect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()


class MerkleKVServer:
    """The life of one server. Without a process of its own (`external`) it can be talked to but not
    stopped.
    """

    def __init__(self, host: str, port: int, process: NodeProcess | None = None) -> None:
        self.host = host
        self._port = port
        self.process = process

    @classmethod
    def in_directory(cls, directory: Path, *flags: str, port: int = 0) -> MerkleKVServer:
        """A server on this machine that keeps data and log in the directory; port 0 takes a free one."""
        process = NodeProcess(directory / "data", directory / "server.log", *flags)
        process.port = port
        return cls("127.0.0.1", port, process)

    @property
    def external(self) -> bool:
        return self.process is None

    @property
    def own(self) -> NodeProcess:
        assert self.process is not None, "this server was there before the tests, they do not stop or start it"
        return self.process

    @property
    def port(self) -> int:
        return self.process.port if self.process is not None else self._port

    @property
    def pid(self) -> int | None:
        """Of the server's process; None when it is on another machine, or another user's."""
        if self.process is not None:
            return self.process.pid
        listening = (one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN)
        return next((one.pid for one in listening if one.laddr and one.laddr.port == self.port and self.is_here), None)

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine."""
        return self.host in LOOPBACK

    def start(self) -> MerkleKVServer:
        self.own.start()
        return self

    def stop(self) -> int:
        return self.own.stop(signal.SIGTERM)

    def kill(self) -> None:
        self.own.kill()

    def restart(self) -> None:
        assert self.stop() == 0
        self.start()

    def is_running(self) -> bool:
        return self.process is None or self.process.is_running

    def logged(self) -> str:
        return "" if self.process is None else self.process.output()

    def client(self) -> MerkleKVClient:
        """A new client, connected."""
        return MerkleKVClient(self.host, self.port).connect()


@dataclass(frozen=True)
class Resources:
    """What a process and its children used while a monitor watched."""

    memory_peak_mib: float
    cpu_percent: float


class PerformanceMonitor:
    """Samples the memory and processor time of a process and its children while a `with` block runs, or several, one
    after the other. Without a process (None) it shows nothing.
    """

    def __init__(self, pid: int | None) -> None:
        self._process = psutil.Process(pid) if pid is not None else None
        self._peak_bytes = 0
        self._seconds = self._used_seconds = 0.0

    @property
    def resources(self) -> Resources:
        """What was taken in all blocks together."""
        return Resources(self._peak_bytes / MIB, 100 * self._used_seconds / (self._seconds or 1))

    def __enter__(self) -> PerformanceMonitor:
        self._began, self._cpu_began = time.monotonic(), self._cpu_seconds()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._seconds += time.monotonic() - self._began
        self._used_seconds += self._cpu_seconds() - self._cpu_began

    def _watch(self) -> None:
        while True:
            self._peak_bytes = max(self._peak_bytes, sum(_private_bytes(one) for one in self._family()))
            if self._done.wait(SAMPLE_S):
                return

    def _family(self) -> list[psutil.Process]:
        return [] if self._process is None else [self._process, *self._process.children(recursive=True)]

    def _cpu_seconds(self) -> float:
        return sum(_cpu_seconds(one) for one in self._family())


def _private_bytes(process: psutil.Process) -> int:
    """Memory that is this process's alone: the base's pages, shared with the page cache, are not counted."""
    try:
        return int(process.memory_full_info().uss)
    except psutil.NoSuchProcess:  # a child that has just ended
        return 0


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
        return float(times.user + times.system)
    except psutil.NoSuchProcess:
        return 0.0


@dataclass
class BenchmarkResult:
    """What one benchmark measured. Latencies are in seconds, one for each operation."""

    name: str
    seconds: float
    latencies: list[float]
    resources: Resources = field(default_factory=lambda: Resources(0.0, 0.0))
    ratio: float | None = None  # rate, by that of the reference in the same run

    @property
    def operations(self) -> int:
        return len(self.latencies)

    @property
    def throughput(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """The smallest latency that `percent` of the operations did not exceed (nearest rank), in
        milliseconds.
        """
        ordered = sorted(self.latencies)
        rank = max(1, math.ceil(percent / 100 * len(ordered)))
        return 1000 * ordered[rank - 1]

    def as_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "operations": self.operations,
            "throughput_per_s": round(self.throughput, 1),
            "p50_ms": round(self.percentile_ms(50), 3),
            "p95_ms": round(self.percentile_ms(95), 3),
            "p99_ms": round(self.percentile_ms(99), 3),
            "memory_peak_mib": round(self.resources.memory_peak_mib, 1),
            "cpu_percent": round(self.resources.cpu_percent, 1),
            "ratio": self.ratio and round(self.ratio, 4),
        }

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.throughput:,.0f}/s, p50 {self.percentile_ms(50):.2f} ms, "
            f"p95 {self.percentile_ms(95):.2f} ms, p99 {self.percentile_ms(99):.2f} ms, "
            f"memory {self.resources.memory_peak_mib:.0f} MiB, cpu {self.resources.cpu_percent:.0f} %"
            + (f", {self.ratio:.2f} of the reference" if self.ratio is not None else "")
        )

    def report(self) -> None:
        """Print it, and add it to the file that `run_tests.py` names, if it does."""
        print(f"\n{self}")
        if path := os.environ.get("MERKLEKV_TEST_BENCHMARKS"):
            with open(path, "a", encoding="utf-8") as out:
                out.write(json.dumps(self.as_dict()) + "\n")


def run_together(work: Callable[[int], None], count: int) -> None:
    """Run `work(0)` to `work(count - 1)` at once, each in a thread; the first failure is raised when all
    have ended.
    """
    failures: list[BaseException] = []
    start = threading.Barrier(count)

    def body(number: int) -> None:
        try:
            start.wait()
            work(number)
        except BaseException as failure:  # noqa: BLE001 - raised again below, in the thread of the test
            failures.append(failure)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def timed(operations: Iterable[Callable[[], object]]) -> list[float]:
    """Run each and give how long each took, in seconds."""
    latencies = []
    for operation in operations:
        began = time.perf_counter()
        operation()
        latencies.append(time.perf_counter() - began)
    return latencies
