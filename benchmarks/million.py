"""A node with a million keys: the start after kill -9, HASH after a write, SCAN of a prefix; and memory at rest.

The keys are loaded in random order, and then random ones are set again until the memtable is all but full, so the log
that a start has to read is as long as it gets while checkpoints keep up.  The node is killed at that moment.
"""

import os
import random
import socket
import time

from figure import Figure, Settings, fill, median, percentile, status
from load import VALUE
from nodes import make_node, private_memory

from merklekv.harness.process import Node
from merklekv.net.client import Client

MEMTABLE_BYTES = 64 << 20
FULL = 0.95  # of the memtable
BATCH = 500
TIMES = 200
HITS = 100
PREFIX = b"key:0000000012"
CALM_TIMEOUT_S = 60
START_MAX_S = 2.0
ANSWER_MAX_MS = 5.0
IDLE_MAX_MB = 60.0


def idle(settings: Settings) -> list[Figure]:
    """Memory of a node that has just started."""
    with make_node(settings.directory / "idle") as node:
        status(node)
        memory = private_memory(node.pid) / 1e6
    return [Figure("memory-idle", "private memory, idle", memory, IDLE_MAX_MB, False, "MB", commands=["merklekv run"])]


def measure(settings: Settings) -> list[Figure]:
    """All figures of this module but `idle`."""
    keys = settings.size.keys
    directory = settings.directory / "million"
    with make_node(directory, durability="everysec") as node:
        fill(node, keys)
        _wait_for_checkpoints(node)
        wanted = min(MEMTABLE_BYTES * FULL, 300.0 * keys)  # smaller data cannot fill it
        _fill_memtable(node, keys, int(wanted))
        left = status(node)
        memory = private_memory(node.pid) / 1e6
        node.kill()
    began = time.perf_counter()
    with make_node(directory, durability="everysec") as node:
        seconds = time.perf_counter() - began
        log_bytes = int(left["log_lsn"]) - int(left["checkpoint_lsn"])
        detail = (
            f"{keys:,} keys, {log_bytes / 1e6:.0f} MB of log not in the base with {int(left['memtable_keys']):,} keys, "
            f"{memory:.0f} MB of private memory at rest"
        )
        with Client("127.0.0.1", node.port) as client:
            assert client.call(b"DBSIZE") == keys
            hashes = _hashes(client)
        scans = _scans(node)
    return [
        Figure("start", "start after kill -9, to first reply", seconds, START_MAX_S, False, "s", detail, ["kill -9"]),
        _answer("hash", f"HASH after a write, {keys:,} keys", hashes, "SET, then HASH"),
        _answer("scan", f"SCAN prefix, {HITS} hits among {keys:,} keys", scans, f"SCAN {PREFIX.decode()}"),
    ]


def _answer(name: str, work: str, times: list[float], command: str) -> Figure:
    milliseconds = [1000 * one for one in times]
    detail = f"p99 of {len(times)}; median {median(milliseconds):.2f} ms, worst {max(milliseconds):.2f} ms"
    value = percentile(milliseconds, 99)
    return Figure(name, work, value, ANSWER_MAX_MS, False, "ms", detail, [command], milliseconds)


def _wait_for_checkpoints(node: Node) -> None:
    deadline = time.monotonic() + CALM_TIMEOUT_S
    while int(status(node)["frozen_memtables"]):
        if time.monotonic() > deadline:
            raise SystemExit("the checkpoints do not come to an end")
        time.sleep(0.1)


def _fill_memtable(node: Node, keys: int, size: int) -> None:
    numbers = random.Random(2)
    with Client("127.0.0.1", node.port) as client:
        while int(status(node)["memtable_bytes"]) < size:
            chosen = [b"key:%012d" % numbers.randrange(keys) for _ in range(BATCH)]
            client.send([(b"SET", key, VALUE) for key in chosen])
            for _ in chosen:
                assert client.receive() == b"OK"


def _hashes(client: Client) -> list[float]:
    times = []
    roots = set()
    for number in range(TIMES):
        client.call(b"SET", b"key:%012d" % number, os.urandom(8))
        began = time.perf_counter()
        roots.add(client.call(b"HASH"))
        times.append(time.perf_counter() - began)
    assert len(roots) == TIMES, "a write did not change the root"
    return times


def _scans(node: Node) -> list[float]:
    times = []
    expected = b"".join([b"KEYS %d\r\n" % HITS, *(b"%b%02d\r\n" % (PREFIX, number) for number in range(HITS))])
    with node.dial() as connection:
        for _ in range(TIMES):
            began = time.perf_counter()
            connection.sendall(b"SCAN %b\r\n" % PREFIX)
            assert _receive(connection, len(expected)) == expected
            times.append(time.perf_counter() - began)
    return times


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := connection.recv(size - len(data))):
        data += part
    return data
