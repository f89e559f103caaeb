"""A node with a million keys: the start after kill -9, HASH after a write, SCAN of a prefix; and memory at rest.

The keys are loaded in random order.  Then the checkpoint process is held up, and random keys are set until writers have
to wait for it: the log that a start has to read is as long as it gets.  The node is killed at that moment.
"""

import os
import random
import socket
import threading
import time
from contextlib import suppress

import psutil
from figure import Figure, Settings, fill, median, percentile, settle, status
from load import VALUE
from nodes import make_node, private_memory

from merklekv.harness.process import Node
from merklekv.net.client import Client, Unreachable

LOG_BYTES = 300  # a key: with fewer than a few 100,000 keys the memtables never fill up
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
        settle(node)
        left, memory = _fill_log(node, keys)
    began = time.perf_counter()
    with make_node(directory, durability="everysec") as node:
        seconds = time.perf_counter() - began
        detail = (
            f"{keys:,} keys, {_log_bytes(left) / 1e6:.0f} MB of log not in the base, "
            f"{memory:.0f} MB of private memory then"
        )
        with Client("127.0.0.1", node.port) as client:
            assert client.call(b"DBSIZE") == keys
            detail += f", the keys counted {time.perf_counter() - began - seconds:.1f} s later"
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


def _log_bytes(figures: dict[str, str]) -> int:
    """Bytes of log that the base does not have."""
    return int(figures["log_lsn"]) - int(figures["checkpoint_lsn"])


def _fill_log(node: Node, keys: int) -> tuple[dict[str, str], float]:
    """Sets random keys until writers wait for checkpoints, and kills the node; its last STATS, and its memory in MB."""
    stalled = threading.Event()

    def write() -> None:
        numbers = random.Random(2)
        with suppress(Unreachable), Client("127.0.0.1", node.port, timeout_s=CALM_TIMEOUT_S) as client:
            while not stalled.is_set():
                chosen = [b"key:%012d" % numbers.randrange(keys) for _ in range(BATCH)]
                client.send([(b"SET", key, VALUE) for key in chosen])
                for _ in chosen:
                    assert client.receive() == b"OK"

    writer = threading.Thread(target=write)
    writer.start()
    stopped: dict[int, psutil.Process] = {}
    left = status(node)
    while left["writes_stalled"] == "0" and _log_bytes(left) < LOG_BYTES * keys:
        for child in psutil.Process(node.pid).children():
            if child.pid not in stopped:
                child.suspend()
                stopped[child.pid] = child
        time.sleep(0.02)
        left = status(node)
    stalled.set()
    memory = private_memory(node.pid) / 1e6
    node.kill()
    for child in stopped.values():
        child.kill()  # it cannot see that the node is gone
    writer.join()
    return left, memory


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
