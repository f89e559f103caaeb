"""Many keys that expire in one second: what a client of the node notices.

The keys are set with `PXAT`, spread over one second that begins when all of them are there. From then on one connection
sends a GET and a SET every few milliseconds, until the node has purged them all or the time is over. It does the same
before that, while nothing expires: what that shows is the machine's own.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from figure import percentile, status
from nodes import make_node

from merklekv.harness.process import Node
from merklekv.net.client import Client

KEYS = 1_000_000
VALUE = b"v" * 32
BATCH = 500
PAUSE_S = 0.002
QUIET_S = 10.0
LOAD_US = 60.0  # at most, for each key: then the second begins
AFTER_S = 120.0
BOUND_MS = 50.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=KEYS)
    parser.add_argument("--load-us", type=float, default=LOAD_US, help="microseconds a key until the second begins")
    parser.add_argument("--seconds", type=float, default=AFTER_S, help="at most, after it has begun")
    parser.add_argument("--directory", type=Path, help="where the data goes; default: a temporary directory")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.directory) as directory, make_node(Path(directory) / "data") as node:
        figures = measure(node, given.keys, given.load_us, given.seconds)
    print(json.dumps(figures, indent=2))
    return 0


def measure(node: Node, keys: int, load_us: float, seconds: float) -> dict[str, float | bool]:
    with Client("127.0.0.1", node.port) as client:
        begin = time.time() + keys * load_us / 1e6 + QUIET_S
        _load(client, keys, int(begin * 1000))
        late = time.time() > begin
        quiet = _probe(client, lambda: time.time() >= begin)
        end = time.time() + seconds
        calm = [0.0]

        def is_over() -> bool:
            now = time.time()
            if now < end and now >= calm[0] + 1:  # asking costs the node something, too
                calm[0] = now
                return int(status(node)["db_keys"]) + int(status(node)["db_expired"]) <= 1
            return now >= end

        busy = _probe(client, is_over)
        told = status(node)
        return {
            "keys": keys,
            "loaded in time": not late,
            "seconds until all were purged": round(time.time() - begin, 1),
            "expired_keys": int(told["expired_keys"]),
            "left": int(told["db_keys"]) + int(told["db_expired"]) - 1,
            "quiet: p99 ms": round(percentile(quiet, 99), 2) if quiet else -1.0,
            "quiet: longest ms": round(max(quiet, default=-1.0), 1),
            "expiring: p99 ms": round(percentile(busy, 99), 2),
            "expiring: longest ms": round(max(busy), 1),
            "bound ms": BOUND_MS,
        }


def _load(client: Client, keys: int, begin_ms: int) -> None:
    for first in range(0, keys, BATCH):
        numbers = range(first, min(keys, first + BATCH))
        client.send(
            [
                (b"SET", b"session:%08d" % number, VALUE, b"PXAT", b"%d" % (begin_ms + number * 1000 // keys))
                for number in numbers
            ]
        )
        assert all(client.receive() == b"OK" for _ in numbers)


def _probe(client: Client, is_over: Callable[[], bool]) -> list[float]:
    """Milliseconds of a GET or SET, every few milliseconds until it is over."""
    took = []
    while not is_over():
        for request in ((b"GET", b"session:00000000"), (b"SET", b"other", VALUE)):
            began = time.perf_counter()
            client.call(*request)
            took.append((time.perf_counter() - began) * 1000)
        time.sleep(PAUSE_S)
    return took


if __name__ == "__main__":
    sys.exit(main())
