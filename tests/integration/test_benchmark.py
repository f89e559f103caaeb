"""Benchmarks: rate, latency, memory and processor time under load, reported, with every reply checked.

They assert that the answers are right, never how fast they came: a figure depends on the machine, and a test that fails
on a busy one teaches people to ignore it. Each gives the same work to a reference in turns, and `run_tests.py
--benchmark-only` compares the ratios with those of an earlier run, and prints the figures beside those that users of
MerkleKV know. The client is this suite's own, in Python, and slower than the server: for the server's own speed see
`make bench`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest
from harness import MerkleKVClient, MerkleKVServer, run_together, timed
from suite_reference import ReferenceServer, in_turns

# Operations of each benchmark. The gate runs few, to see that they work; for figures ask for more.
OPERATIONS = int(os.environ.get("MERKLEKV_TEST_OPERATIONS", "1000"))
VALUE = "v" * 100

pytestmark = pytest.mark.benchmark


def expect(client: MerkleKVClient, request: str, reply: str) -> Callable[[], None]:
    def operation() -> None:
        assert client.send_command(request) == reply

    return operation


def set_each(target: MerkleKVServer, numbers: range, value: str = VALUE) -> list[float]:
    with target.client() as client:
        return timed(expect(client, f"SET key-{number} {value}", "OK") for number in numbers)


def keys_of(server: MerkleKVServer) -> int:
    with server.client() as client:
        return int(client.send_command("DBSIZE").removeprefix("DBSIZE "))


class TestThroughputAndLatency:
    """One client, one operation after the other."""

    def test_set(self, server: MerkleKVServer, reference: ReferenceServer) -> None:
        in_turns("SET", server, reference, OPERATIONS, set_each).report()
        assert keys_of(server) == OPERATIONS

    def test_get(self, server: MerkleKVServer, reference: ReferenceServer) -> None:
        for target in (server, reference):
            with target.client() as client:
                for number in range(100):
                    client.set(f"key-{number}", f"{VALUE}-{number}")

        def work(target: MerkleKVServer, numbers: range) -> list[float]:
            with target.client() as client:
                return timed(expect(client, f"GET key-{n % 100}", f"VALUE {VALUE}-{n % 100}") for n in numbers)

        in_turns("GET", server, reference, OPERATIONS, work).report()

    def test_mixed(self, server: MerkleKVServer, reference: ReferenceServer) -> None:
        """Seven reads, two writes and a delete in ten."""

        def ten(client: MerkleKVClient, key: str) -> Iterator[Callable[[], None]]:
            yield expect(client, f"SET {key} {VALUE}", "OK")
            yield from [expect(client, f"GET {key}", f"VALUE {VALUE}")] * 7
            yield expect(client, f"SET {key} other", "OK")
            yield expect(client, f"DELETE {key}", "DELETED")

        def work(target: MerkleKVServer, numbers: range) -> list[float]:
            with target.client() as client:
                return timed(operation for number in numbers for operation in ten(client, f"key-{number}"))

        in_turns("Mixed", server, reference, OPERATIONS // 10, work).report()
        assert keys_of(server) == 0

    def test_pipelined_set(self, server: MerkleKVServer, reference: ReferenceServer) -> None:
        """Batches of a hundred; the latency of an operation is that of its batch."""
        batch = b"".join(b"SET key-%d %s\r\n" % (number, VALUE.encode()) for number in range(100))

        def work(target: MerkleKVServer, numbers: range) -> list[float]:
            latencies: list[float] = []
            with target.client() as client:
                for _ in numbers:
                    began = time.perf_counter()
                    client.send_raw(batch)
                    for _ in range(100):
                        assert client.read_line() == "OK"
                    latencies += [time.perf_counter() - began] * 100
            return latencies

        in_turns("SET, pipelined by 100", server, reference, max(1, OPERATIONS // 20), work).report()
        assert keys_of(server) == 100

    @pytest.mark.parametrize("size", [10, 1_000, 100_000])
    def test_value_sizes(self, server: MerkleKVServer, reference: ReferenceServer, size: int) -> None:
        value = "x" * size

        def both(client: MerkleKVClient, key: str) -> Iterator[Callable[[], None]]:
            yield expect(client, f"SET {key} {value}", "OK")
            yield expect(client, f"GET {key}", f"VALUE {value}")

        def work(target: MerkleKVServer, numbers: range) -> list[float]:
            with target.client() as client:
                return timed(operation for number in numbers for operation in both(client, f"key-{number}"))

        in_turns(f"SET and GET of {size} bytes", server, reference, max(5, OPERATIONS // 20), work).report()


class TestScalability:
    """The same work shared by more and more clients."""

    @pytest.mark.parametrize("clients", [1, 5, 20, 50])
    def test_clients(self, server: MerkleKVServer, reference: ReferenceServer, clients: int) -> None:
        turns = max(5, OPERATIONS // (2 * clients))

        def work(target: MerkleKVServer, numbers: range) -> list[float]:
            gathered: list[list[float]] = [[] for _ in range(clients)]

            def one(number: int) -> None:
                with target.client() as client:
                    operations: list[Callable[[], None]] = []
                    for turn in numbers:
                        operations.append(expect(client, f"SET {number}:{turn} {VALUE}", "OK"))
                        operations.append(expect(client, f"GET {number}:{turn}", f"VALUE {VALUE}"))
                    gathered[number] = timed(operations)

            run_together(one, clients)
            return [latency for latencies in gathered for latency in latencies]

        in_turns(f"Mixed, {clients} {'client' if clients == 1 else 'clients'}", server, reference, turns, work).report()
        assert keys_of(server) == clients * turns


class TestConnections:
    """How fast connections come and go, and how many are held."""

    def test_connection_rate(self, server: MerkleKVServer, reference: ReferenceServer) -> None:
        def work(target: MerkleKVServer, numbers: range) -> list[float]:
            def connect_ask_leave() -> None:
                with target.client() as client:
                    assert client.send_command("PING") == "PONG"

            return timed([connect_ask_leave] * len(numbers))

        in_turns("Connections", server, reference, max(5, OPERATIONS // 5), work).report()

    def test_connections_held(self, server: MerkleKVServer, reference: ReferenceServer) -> None:
        held: list[MerkleKVClient] = []

        def work(target: MerkleKVServer, numbers: range) -> list[float]:
            def connect_and_hold() -> None:
                held.append(target.client())
                assert held[-1].send_command("PING") == "PONG"

            return timed([connect_and_hold] * len(numbers))

        try:
            in_turns("Connections held", server, reference, 500, work).report()
            assert len(held) == 1000
            assert all(client.send_command("PING") == "PONG" for client in held)
        finally:
            for client in held:
                client.disconnect()


class TestResources:
    """Memory while data comes in."""

    def test_memory_while_loading(self, server: MerkleKVServer, reference: ReferenceServer) -> None:
        def work(target: MerkleKVServer, numbers: range) -> list[float]:
            return set_each(target, numbers, VALUE * 10)

        in_turns("SET of 1,000 bytes, new keys", server, reference, OPERATIONS, work).report()
        assert keys_of(server) == OPERATIONS
