"""Load: what replication carries, how long an event takes, and what a sudden spike does.

Figures are reported, not judged: what is asserted is that everything arrives.  `run_tests.py` puts them beside what
users are told to expect, so that a loss of speed shows.
"""

from __future__ import annotations

import os
import time

import pytest
from fix_cluster import NodeHandle, ReplicationTestHarness
from harness import BenchmarkResult, PerformanceMonitor
from support import wait_until

pytestmark = pytest.mark.replication

OPERATIONS = int(os.environ.get("MERKLEKV_TEST_OPERATIONS", "2000"))
SPIKE = 20_000


def replicate_one(writer: NodeHandle, reader: NodeHandle, key: str, value: str) -> float:
    """Seconds from the acknowledgement on one node until the other shows it."""
    writer.set(key, value)
    began = time.perf_counter()
    while reader.get(key) != value:
        assert time.perf_counter() - began < 30
    return time.perf_counter() - began


def test_latency_of_single_writes(harness: ReplicationTestHarness) -> None:
    a, b = harness.create_nodes(2)
    began = time.perf_counter()
    with PerformanceMonitor(a.process.pid) as monitor:
        latencies = [replicate_one(a, b, f"k{number % 10}", str(number)) for number in range(min(OPERATIONS, 500))]
    BenchmarkResult("Replication latency", time.perf_counter() - began, latencies, monitor.resources).report()


def test_throughput_of_a_steady_load(harness: ReplicationTestHarness) -> None:
    a, b = harness.create_nodes(2)
    began = time.perf_counter()
    with PerformanceMonitor(a.process.pid) as monitor:
        for first in range(0, OPERATIONS, 100):
            a.set_many({f"k{number}": "x" * 100 for number in range(first, first + 100)})
        wait_until(lambda: b.key_count() == OPERATIONS, seconds=60)
    seconds = time.perf_counter() - began
    BenchmarkResult("Replication", seconds, [seconds / OPERATIONS] * OPERATIONS, monitor.resources).report()
    harness.wait_converged()


def test_a_spike_is_carried_and_the_calm_after_it_is_as_before(harness: ReplicationTestHarness) -> None:
    a, b = harness.create_nodes(2)
    calm = [replicate_one(a, b, "probe", f"before-{number}") for number in range(20)]
    a.set_many({f"k{number}": "x" * 100 for number in range(SPIKE)})
    wait_until(lambda: b.key_count() == SPIKE + 1, seconds=60)
    harness.wait_converged()
    after = [replicate_one(a, b, "probe", f"after-{number}") for number in range(20)]
    assert a.figure("outbox_events") == 0
    for name, latencies in (("Calm", calm), ("Calm after a spike", after)):
        BenchmarkResult(f"Replication, {name.lower()}", sum(latencies), latencies).report()


def test_a_spike_on_every_node_at_once(harness: ReplicationTestHarness) -> None:
    nodes = harness.create_nodes(3)
    for node in nodes:
        node.client.send(b"".join(b"SET %b-%d v\r\n" % (node.node_id.encode(), number) for number in range(5000)))
    for node in nodes:
        for _ in range(5000):
            assert node.client.line() == "OK"
    for node in nodes:
        wait_until(lambda node=node: node.key_count() == 15_000, seconds=60)
    harness.wait_converged()
