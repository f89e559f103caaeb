"""Load: what replication carries, how long an event takes, and what a sudden spike does.

Figures are reported, not judged: what is asserted is that everything arrives. Each is taken in turns with what the
broker alone needs to carry as much, and `run_tests.py --mode benchmark` compares that ratio with an earlier run's, so
that a loss of speed shows.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

import pytest
from fixtures.cluster import NodeHandle, ReplicationTestHarness
from fixtures.support import WAIT_S, wait_until
from harness import BenchmarkResult, PerformanceMonitor
from suite_reference import ReferenceCarrier, shares

pytestmark = [pytest.mark.replication, pytest.mark.benchmark]

OPERATIONS = int(os.environ.get("MERKLEKV_TEST_OPERATIONS", "2000"))
SINGLES = min(OPERATIONS, 500)
GROUP = 100  # writes at a time, under a steady load
SPIKE = 20_000
VALUE = "x" * 100


@pytest.fixture
def carrier(harness: ReplicationTestHarness) -> Iterator[ReferenceCarrier]:
    """The broker's own way from one client to another, beside the nodes' topics."""
    with ReferenceCarrier(harness.broker, f"{harness.prefix}-reference") as made:
        yield made


def replicate(writer: NodeHandle, reader: NodeHandle, pairs: dict[str, str]) -> float:
    """Write all in one go on one node; seconds until the other shows the last."""
    began = time.perf_counter()
    writer.set_many(pairs)
    key, value = list(pairs.items())[-1]
    while reader.get(key) != value:
        assert time.perf_counter() - began < WAIT_S, f"{key} has not come to {reader.node_id}"
    return time.perf_counter() - began


def measure(
    name: str, harness: ReplicationTestHarness, carrier: ReferenceCarrier, operations: int, size: int
) -> BenchmarkResult:
    """Replicate so many writes, `size` at a time, in turns with the broker alone carrying messages of that size. The
    latency of a write is that of its group.
    """
    a, b = harness.create_nodes(2)
    monitor = PerformanceMonitor(a.process.pid)
    latencies: list[float] = []
    ratios = []
    for groups in shares(operations // size):
        alone = carrier.carry(10 * len(groups), VALUE.encode() * size)  # ten times, to take about as long
        with monitor:
            took = [
                replicate(a, b, {f"k{number}": VALUE for number in range(group * size, (group + 1) * size)})
                for group in groups
            ]
        ratios.append(len(groups) / sum(took) / alone)
        latencies += [seconds for seconds in took for _ in range(size)]
    seconds = sum(latencies) / size
    assert b.key_count() == operations // size * size
    harness.wait_converged()
    return BenchmarkResult(name, seconds, latencies, monitor.resources, statistics.median(ratios))


def test_latency_of_single_writes(harness: ReplicationTestHarness, carrier: ReferenceCarrier) -> None:
    measure("Replication of single writes", harness, carrier, SINGLES, 1).report()


def test_throughput_of_a_steady_load(harness: ReplicationTestHarness, carrier: ReferenceCarrier) -> None:
    measure("Replication", harness, carrier, OPERATIONS, GROUP).report()


def test_a_spike_is_carried_and_the_calm_after_it_is_as_before(harness: ReplicationTestHarness) -> None:
    a, b = harness.create_nodes(2)
    calm = [replicate(a, b, {"probe": f"before-{number}"}) for number in range(20)]
    a.set_many({f"k{number}": VALUE for number in range(SPIKE)})
    wait_until(lambda: b.key_count() == SPIKE + 1)
    harness.wait_converged()
    after = [replicate(a, b, {"probe": f"after-{number}"}) for number in range(20)]
    wait_until(lambda: a.figure("outbox_events") == 0)
    for name, latencies in (("calm", calm), ("calm after a spike", after)):
        BenchmarkResult(f"Replication, {name}", sum(latencies), latencies).report()


def test_a_spike_on_every_node_at_once(harness: ReplicationTestHarness) -> None:
    nodes = harness.create_nodes(3)
    for node in nodes:
        node.client.send(b"".join(b"SET %b-%d v\r\n" % (node.node_id.encode(), number) for number in range(5000)))
    for node in nodes:
        for _ in range(5000):
            assert node.client.line() == "OK"
    for node in nodes:
        wait_until(lambda node=node: node.key_count() == 15_000)
    harness.wait_converged()
