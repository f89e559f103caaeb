"""Benchmarks: rate, latency, memory and processor time under load, reported, with every reply checked.

They assert that the answers are right, never how fast they came: a figure depends on the machine, and a test that fails
on a busy one teaches people to ignore it. `run_tests.py --benchmark-only` prints the figures beside those that users of
MerkleKV know. The client is this suite's own, in Python, and slower than the server: for the server's own speed see
`make bench`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
from harness import BenchmarkResult, MerkleKVClient, MerkleKVServer, PerformanceMonitor, Resources, run_together, timed

# Operations of each benchmark. The gate runs few, to see that they work; for figures ask for more.
OPERATIONS = int(os.environ.get("MERKLEKV_TEST_OPERATIONS", "1000"))
VALUE = "v" * 100

pytestmark = pytest.mark.benchmark


def measure(name: str, server: MerkleKVServer, work: Callable[[], list[float]]) -> BenchmarkResult:
    """Run the work while watching the server, if it is ours to watch; report the result."""
    began = time.perf_counter()
    if server.external:
        latencies, resources = work(), Resources(0.0, 0.0)
    else:
        with PerformanceMonitor(server.pid) as monitor:
            latencies = work()
        resources = monitor.resources
    result = BenchmarkResult(name, time.perf_counter() - began, latencies, resources)
    result.report()
    assert result.operations > 0
    return result


def expect(client: MerkleKVClient, request: str, reply: str) -> Callable[[], None]:
    def operation() -> None:
        assert client.send_command(request) == reply

    return operation


class TestThroughputAndLatency:
    """One client, one operation after the other."""

    def test_set(self, server: MerkleKVServer, connected_client: MerkleKVClient) -> None:
        operations = [expect(connected_client, f"SET key-{n} {VALUE}", "OK") for n in range(OPERATIONS)]
        measure("SET", server, lambda: timed(operations))
        assert connected_client.send_command("DBSIZE") == f"DBSIZE {OPERATIONS}"

    def test_get(self, server: MerkleKVServer, connected_client: MerkleKVClient) -> None:
        for number in range(100):
            connected_client.set(f"key-{number}", f"{VALUE}-{number}")
        operations = [
            expect(connected_client, f"GET key-{n % 100}", f"VALUE {VALUE}-{n % 100}") for n in range(OPERATIONS)
        ]
        measure("GET", server, lambda: timed(operations))

    def test_mixed(self, server: MerkleKVServer, connected_client: MerkleKVClient) -> None:
        """Seven reads, two writes and a delete in ten."""
        operations: list[Callable[[], None]] = []
        for number in range(OPERATIONS // 10):
            key = f"key-{number}"
            operations.append(expect(connected_client, f"SET {key} {VALUE}", "OK"))
            operations.extend([expect(connected_client, f"GET {key}", f"VALUE {VALUE}")] * 7)
            operations.append(expect(connected_client, f"SET {key} other", "OK"))
            operations.append(expect(connected_client, f"DELETE {key}", "DELETED"))
        measure("Mixed", server, lambda: timed(operations))
        assert connected_client.send_command("DBSIZE") == "DBSIZE 0"

    def test_pipelined_set(self, server: MerkleKVServer, connected_client: MerkleKVClient) -> None:
        """Batches of a hundred; the latency of an operation is that of its batch."""
        batch = b"".join(b"SET key-%d %s\r\n" % (number, VALUE.encode()) for number in range(100))

        def work() -> list[float]:
            latencies: list[float] = []
            for _ in range(max(1, OPERATIONS // 100)):
                began = time.perf_counter()
                connected_client.send_raw(batch)
                for _ in range(100):
                    assert connected_client.read_line() == "OK"
                latencies += [time.perf_counter() - began] * 100
            return latencies

        measure("SET, pipelined by 100", server, work)

    @pytest.mark.parametrize("size", [10, 1_000, 100_000])
    def test_value_sizes(self, server: MerkleKVServer, connected_client: MerkleKVClient, size: int) -> None:
        value = "x" * size
        operations: list[Callable[[], None]] = []
        for number in range(max(1, OPERATIONS // 20)):
            operations.append(expect(connected_client, f"SET key-{number} {value}", "OK"))
            operations.append(expect(connected_client, f"GET key-{number}", f"VALUE {value}"))
        measure(f"SET and GET of {size} bytes", server, lambda: timed(operations))


class TestScalability:
    """The same work shared by more and more clients."""

    @pytest.mark.parametrize("clients", [1, 5, 20, 50])
    def test_clients(self, server: MerkleKVServer, clients: int) -> None:
        each = max(2, OPERATIONS // clients)

        def work() -> list[float]:
            gathered: list[list[float]] = [[] for _ in range(clients)]

            def one(number: int) -> None:
                with server.client() as client:
                    operations: list[Callable[[], None]] = []
                    for turn in range(each // 2):
                        operations.append(expect(client, f"SET {number}:{turn} {VALUE}", "OK"))
                        operations.append(expect(client, f"GET {number}:{turn}", f"VALUE {VALUE}"))
                    gathered[number] = timed(operations)

            run_together(one, clients)
            return [latency for latencies in gathered for latency in latencies]

        measure(f"Mixed, {clients} clients", server, work)
        with server.client() as client:
            assert client.send_command("DBSIZE") == f"DBSIZE {clients * (each // 2)}"


class TestConnections:
    """How fast connections come and go, and how many are held."""

    def test_connection_rate(self, server: MerkleKVServer) -> None:
        def connect_ask_leave() -> None:
            with server.client() as client:
                assert client.send_command("PING") == "PONG"

        measure("Connections", server, lambda: timed([connect_ask_leave] * max(1, OPERATIONS // 5)))

    def test_connections_held(self, server: MerkleKVServer) -> None:
        held: list[MerkleKVClient] = []

        def connect_and_hold() -> None:
            held.append(server.client())
            assert held[-1].send_command("PING") == "PONG"

        try:
            measure("Connections held", server, lambda: timed([connect_and_hold] * 500))
            assert all(client.send_command("PING") == "PONG" for client in held)
        finally:
            for client in held:
                client.disconnect()


class TestResources:
    """Memory while data comes in."""

    def test_memory_while_loading(self, server: MerkleKVServer, connected_client: MerkleKVClient) -> None:
        operations = [expect(connected_client, f"SET load-{n} {VALUE * 10}", "OK") for n in range(OPERATIONS)]
        measure("SET of 1,000 bytes, new keys", server, lambda: timed(operations))
        assert connected_client.send_command("DBSIZE") == f"DBSIZE {OPERATIONS}"
