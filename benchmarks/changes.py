"""How soon a reader of the change feed gets a write, and what readers that wait for other keys cost.

Delivery is measured from sending a SET until a blocked CHANGES has it. One connection writes, some milliseconds apart;
another one reads with BLOCK, beside `--idle` readers that wait for keys with another prefix. The same for each
durability. What the reply to the SET takes is shown beside, since a change is delivered when it is committed, and no
sooner.

Cost is the CPU time of the node for a SET that is a commit of its own, while so many `--readers` wait for keys with
other prefixes, each with one of its own.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from figure import median, percentile
from nodes import make_node

from merklekv.harness.process import Node
from merklekv.net.client import Client

WRITES = 3000
VALUE = b"v" * 100
PAUSE_S = 0.002
BOUND_MS = 2.0
DURABILITIES = ("always", "everysec", "never")
READERS = (0, 1, 100, 1000)
ROUNDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--writes", type=int, default=WRITES)
    parser.add_argument("--idle", type=int, default=0, help="readers that wait for other keys")
    parser.add_argument("--readers", type=int, action="append", help="measure the cost of so many; may be repeated")
    parser.add_argument("--durability", choices=DURABILITIES, action="append", help="only this one; may be repeated")
    parser.add_argument("--directory", type=Path, help="where the data goes; default: a temporary directory")
    given = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=given.directory) as directory:
        for durability in given.durability or DURABILITIES:
            with make_node(Path(directory) / durability, durability=durability) as node:
                figures[durability] = measure(node.port, given.writes, given.idle)
        with make_node(Path(directory) / "cost", durability="everysec") as node:
            figures["CPU us of a commit"] = {
                f"{count} idle readers": measure_cost(node, given.writes, count) for count in given.readers or READERS
            }
    print(json.dumps(figures, indent=2))
    return 0


def measure(port: int, writes: int, idle: int) -> dict[str, float]:
    replied, delivered = [], []
    with ExitStack() as stack:
        for _ in range(idle):
            waiting = stack.enter_context(Client("127.0.0.1", port))
            waiting.send([(b"CHANGES", b"$", b"PREFIX", b"other", b"BLOCK", b"0")])
        writer = stack.enter_context(Client("127.0.0.1", port))
        reader = stack.enter_context(Client("127.0.0.1", port))
        cursor = b"$"
        for number in range(writes):
            reader.send([(b"CHANGES", cursor, b"BLOCK", b"0")])
            time.sleep(PAUSE_S)  # it waits by now
            began = time.perf_counter()
            writer.send([(b"SET", b"%d" % number, VALUE)])
            writer.receive()
            replied.append((time.perf_counter() - began) * 1000)
            page: Any = reader.receive()
            delivered.append((time.perf_counter() - began) * 1000)
            cursor, ((key, *_),) = page
            assert key == b"%d" % number
    pairs = zip(delivered, replied, strict=True)
    return {
        "writes": writes,
        "reply: p50 ms": round(percentile(replied, 50), 3),
        "reply: p99 ms": round(percentile(replied, 99), 3),
        "delivery: p50 ms": round(percentile(delivered, 50), 3),
        "delivery: p99 ms": round(percentile(delivered, 99), 3),
        "delivery behind the reply: p99 ms": round(percentile([d - r for d, r in pairs], 99), 3),
        "bound ms": BOUND_MS,
    }


def measure_cost(node: Node, writes: int, readers: int) -> float:
    """Microseconds, the median of some rounds."""
    with ExitStack() as stack:
        for number in range(readers):
            waiting = stack.enter_context(Client("127.0.0.1", node.port))
            waiting.send([(b"CHANGES", b"$", b"PREFIX", b"other:%d:" % number, b"BLOCK", b"0")])
        writer = stack.enter_context(Client("127.0.0.1", node.port))
        took = []
        for _ in range(ROUNDS + 1):
            began = cpu_s(node.pid)
            for number in range(writes // ROUNDS):
                writer.call(b"SET", b"%d" % number, VALUE)
            took.append((cpu_s(node.pid) - began) / (writes // ROUNDS))
    return round(median(took[1:]) * 1e6, 1)


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, by the clock that the kernel keeps of it."""
    return time.clock_gettime(~pid << 3 | 2)  # see clock_getcpuclockid(3), which Python has for itself alone


if __name__ == "__main__":
    sys.exit(main())
