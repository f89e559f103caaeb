"""`merklekv bench`: it loads as it was told to, counts right, and leaves no key behind. No time is asserted."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import wait_until
from fixtures.tools import TIMEOUT_S, TOOL, address, fails, run, succeeds
from merklekv_tool import exit_codes, load_generator
from merklekv_tool.verbs import bench

from merklekv.exit_codes import EXIT_USAGE
from merklekv.net.client import Client


def figures(node: NodeProcess) -> dict[str, int]:
    told: dict[str, int] = json.loads(succeeds("stats", address(node), "*_commands", "db_*", "--json"))
    return told


@pytest.mark.parametrize("load", ["set", "get", "mixed"])
def test_what_it_counts_is_what_the_node_did(load: str, node: NodeProcess) -> None:
    with node.connect() as client:
        client.ask("SET mine kept")
    words = ("--load", load, "--seconds", "0.3", "--clients", "4", "--pipeline", "3", "--keys", "1500", "--json")
    told = json.loads(succeeds("bench", address(node), *words))
    after = figures(node)
    prepared = 0 if load == "set" else 1500
    assert told["requests"] == after["get_commands"] + after["set_commands"] - 1 - prepared
    assert bool(after["get_commands"]) == (load != "set")
    assert (after["set_commands"] > 1 + prepared) == (load != "get")
    assert told["requests"] % 3 == 0
    assert after["db_keys"] == 1
    assert after["db_tombstones"] == 0
    latency = told["latency_ms"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= latency["max"]


def test_the_result_in_words(node: NodeProcess) -> None:
    text = succeeds("bench", address(node), "--seconds", "0.1", "--clients", "1", "--keys", "10").decode()
    assert "mixed, 1 client, pipeline 1, values of 100 bytes, 10 keys" in text
    assert "requests a second" in text
    assert "latency p50 " in text


def test_again_it_uses_the_same_keys(node: NodeProcess) -> None:
    for _ in range(2):
        succeeds("bench", address(node), "--load", "get", "--seconds", "0.1", "--keys", "100")
    assert figures(node)["db_tombstones"] == 0


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, exit_codes.EXIT_INTERRUPTED), (signal.SIGTERM, exit_codes.EXIT_TERMINATED)],
)
def test_interrupted_it_cleans_up(number: signal.Signals, status: int, node: NodeProcess) -> None:
    command = [*TOOL, "bench", address(node), "--seconds", "60", "--keys", "50"]
    with subprocess.Popen(command) as process, Client("127.0.0.1", node.port) as client:
        wait_until(lambda: client.call(b"DBSIZE") == 50, what="the load")
        process.send_signal(number)
        assert process.wait(TIMEOUT_S) == status
        assert client.call(b"DBSIZE") == 0


def test_a_node_that_refuses_a_value(node_factory: NodeFactory) -> None:
    node = node_factory("--set", "max_value_size=1000")
    done = run("bench", address(node), "--value-size", "1001", "--seconds", "0.1", "--keys", "10")
    assert done.returncode in (exit_codes.EXIT_NODE, exit_codes.EXIT_UNREACHABLE)
    assert address(node) in done.stderr.decode()
    succeeds("bench", address(node), "--value-size", "1000", "--seconds", "0.1", "--keys", "10")


@pytest.mark.parametrize(
    ("option", "least", "most"),
    [
        ("--clients", 1, bench.CLIENTS_MAX),
        ("--pipeline", 1, bench.PIPELINE_MAX),
        ("--keys", 1, bench.KEYS_MAX),
        ("--value-size", 0, bench.VALUE_SIZE_MAX),
    ],
)
def test_limits(option: str, least: int, most: int) -> None:
    """What is within them only fails to find a node."""
    place = "127.0.0.1:1"
    for value in (least, most):
        fails(exit_codes.EXIT_UNREACHABLE, "refused", done=run("bench", place, option, str(value)))
    for value in (least - 1, most + 1):
        fails(EXIT_USAGE, option, done=run("bench", place, option, str(value)))


def test_the_largest_batch() -> None:
    pipeline, size = 1000, load_generator.BATCH_BYTES_MAX // 1000
    words = ("bench", "127.0.0.1:1", "--pipeline", str(pipeline), "--value-size")
    fails(exit_codes.EXIT_UNREACHABLE, "refused", done=run(*words, str(size)))
    fails(EXIT_USAGE, f"more than {load_generator.BATCH_BYTES_MAX} bytes at once", done=run(*words, str(size + 1)))


def test_only_a_running_node(tmp_path: Path) -> None:
    fails(EXIT_USAGE, "give HOST:PORT", done=run("bench", tmp_path))


def test_percentiles() -> None:
    latencies = load_generator.Latencies()
    assert latencies.percentile(50) == 0
    for milliseconds in range(1, 101):
        latencies.add(milliseconds / 1000, 2)
    assert latencies.count == 200
    for percent in bench.PERCENTILES:
        assert latencies.percentile(percent) == pytest.approx(percent / 1000, rel=0.02)
    assert latencies.percentile(100) == latencies.max_s == 0.1
