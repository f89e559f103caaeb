"""A long load: millions of keys in random order, pipelined, into a node that makes checkpoints all the while.

    python benchmarks/load.py [--keys 5000000] [--memtable-size 64MiB] [--durability everysec] [--json FILE]

Starts a node in a temporary directory, loads it over a few pipelined connections, and prints for each window of 100,000
keys the rate, and the private memory of all the node's processes (anonymous pages: what the map of the base shows is
the page cache's).  The last lines sum up: the slowest window against the first, the peak of memory.
"""

import argparse
import functools
import json
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from nodes import make_node, private_memory

from merklekv.harness.process import Server

WINDOW = 100_000
BATCH = 250  # requests in flight on a connection
CONNECTIONS = 4
VALUE = b"x" * 100


def batches(keys: int, seed: int) -> Iterator[bytes]:
    """Requests for every key once, in random order, BATCH at a time.  Shuffles before it returns."""
    order = list(range(keys))
    random.Random(seed).shuffle(order)
    return _requests(order)


def _requests(order: list[int]) -> Iterator[bytes]:
    for at in range(0, len(order), BATCH):
        yield b"".join(
            b"*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$100\r\n%b\r\n" % (number, VALUE)
            for number in order[at : at + BATCH]
        )


def receive_replies(connection: socket.socket) -> None:
    """Reads the replies to one batch, all of which have to be OK."""
    missing = BATCH * len(b"+OK\r\n")
    while missing:
        data = connection.recv(min(missing, 65536))
        if not data or b"-" in data:
            raise SystemExit(f"the node answered {data[:200]!r}")
        missing -= len(data)


def load(node: Server, keys: int, seed: int, show: Callable[[str], None] = print) -> list[tuple[float, int]]:
    """Loads and returns (seconds, bytes of private memory) for each window."""
    connections = [node.dial() for _ in range(CONNECTIONS)]
    waiting: list[socket.socket] = []
    windows = []
    requests = batches(keys, seed)
    done, started = 0, time.perf_counter()

    def finish_one() -> socket.socket:
        nonlocal done, started
        connection = waiting.pop(0)
        receive_replies(connection)
        done += BATCH
        if done % WINDOW == 0:
            memory = private_memory(node.pid)
            windows.append((time.perf_counter() - started, memory))
            show(f"{done:>9,} keys  {WINDOW / windows[-1][0]:>9,.0f}/s  {memory / 1e6:6.0f} MB")
            started = time.perf_counter()
        return connection

    for batch in requests:
        connection = connections.pop() if connections else finish_one()
        connection.sendall(batch)
        waiting.append(connection)
    while waiting:
        finish_one().close()
    return windows


def summarize(windows: list[tuple[float, int]]) -> dict[str, float]:
    """What a load's windows come to; rates are keys a second, memory is bytes."""
    seconds = sorted(window for window, _ in windows)
    return {
        "first_window_per_s": WINDOW / windows[0][0],
        "median_window_per_s": WINDOW / seconds[len(seconds) // 2],
        "slowest_window_per_s": WINDOW / seconds[-1],
        "slowest_to_first": windows[0][0] / seconds[-1],
        "peak_private_bytes": max(memory for _, memory in windows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=5_000_000)
    parser.add_argument("--memtable-size", default="64MiB")
    parser.add_argument("--durability", default="everysec", choices=("always", "everysec", "never"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", help="where the temporary data directory goes")
    parser.add_argument("--json", type=Path, help="write the windows to this file")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as directory,
        make_node(directory, durability=options.durability, memtable_size=options.memtable_size) as node,
    ):
        idle = private_memory(node.pid)
        windows = load(node, options.keys, options.seed, functools.partial(print, flush=True))
    summary: dict[str, str | float] = {
        "keys": options.keys,
        "durability": options.durability,
        "memtable_size": options.memtable_size,
        "idle_private_bytes": idle,
        **summarize(windows),
    }
    for name, value in summary.items():
        print(f"{name:>22}  {value:,.2f}" if isinstance(value, float) else f"{name:>22}  {value}")
    if options.json:
        options.json.write_text(json.dumps(summary | {"windows": windows}, indent=1))


if __name__ == "__main__":
    main()
