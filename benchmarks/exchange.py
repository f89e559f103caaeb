"""What an exchange between two nodes costs: real nodes on this machine, real TCP, SYNC from the one to the other.

    python benchmarks/exchange.py [--size quick|full] [--only differences] [--directory DIR] [--results DIR]

figures     with a million keys of 100 bytes: both equal; one differs; a thousand differ; an empty node takes all of
            them, with and without clients that write to the node that serves them; equal nodes that were started
            often; and the first SCAN and the first exchange, when all keys are new and in memory
curves      bytes and time against the number of keys that differ (1 to all) and against the size of the data, beside
            the naive way, which is to send everything (pages of RECORDS into MERGE)

Prints a table, and writes `exchange.json` and `exchange.png`.  Each exchange is followed by a comparison of roots.
Nodes run with `--durability everysec`, so that filling them takes no longer than the measurement; what an exchange
notes is synced all the same.  What SYNC takes includes connecting and the syncs of both.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import million
from checkpoints import NEVER_MERGES, P99_RATIO_MAX, flood
from exchange_plots import plot
from figure import Figure, fill, median, percentile, settle, status
from nodes import make_node
from relay import Relay
from report import RESULTS, WIDTH, machine, print_table
from rich.console import Console

from merklekv.harness.process import Node, wait_until
from merklekv.metrics import total
from merklekv.net.client import Client, Reply
from merklekv.replication.cluster.lost_writes import INTERVALS_MAX

VALUE_BYTES = 100
RECORD_BYTES = 16 + 41 + VALUE_BYTES  # key, head, value
BATCH = 250
PROBES = 4
PROBE_EVERY_S = 0.01
AWAKE_S = 0.5
FIRST_MAX_MS = 5.0
CURVE_DIFFERENT = 100  # keys that differ, whatever the size


@dataclass(frozen=True)
class Size:
    """How much is measured; numbers of keys."""

    keys: int
    repeats: int
    curve_keys: int  # in the curve over differing keys
    curve_sizes: tuple[int, ...]
    calm_s: float  # how long latency is watched without an exchange


SIZES = {
    "full": Size(1_000_000, 5, 1_000_000, (10_000, 100_000, 1_000_000, 2_000_000, 5_000_000), 15),
    "quick": Size(100_000, 3, 50_000, (10_000, 50_000, 100_000), 4),
    "tiny": Size(2_000, 1, 1_000, (1_000, 2_000), 0.5),
}


@dataclass(frozen=True)
class Taken:
    """What one exchange took."""

    seconds: float
    rounds: int
    bytes: int  # both ways together
    keys: int


class Pair:
    """Two nodes, of which the second begins the exchanges."""

    def __init__(self, first: Node, second: Node) -> None:
        self.nodes = (first, second)
        self._connect()

    def _connect(self) -> None:
        self.first, self.second = (Client("127.0.0.1", node.port, timeout_s=600) for node in self.nodes)
        wait_until(
            lambda: total(status(self.nodes[1]), "exchange_completed") == 1, seconds=120
        )  # the one that it begins itself

    def restart(self) -> None:
        """Stops both, and starts them again."""
        self.close()
        for node in self.nodes:
            node.stop()
            node.start()
        self._connect()

    def exchange(self) -> Taken:
        """One SYNC; both hold the same then."""
        before = self._counters()
        began = time.perf_counter()
        self.sync()
        seconds = time.perf_counter() - began
        taken = {name: value - before[name] for name, value in self._counters().items()}
        if self.first.call(b"HASH") != self.second.call(b"HASH"):
            raise SystemExit("the nodes differ after an exchange")
        keys = taken["keys_sent"] + taken["keys_received"]
        return Taken(seconds, taken["rounds"], taken["bytes_sent"] + taken["bytes_received"], keys)

    def sync(self, port: int = 0) -> None:
        """One SYNC, by way of that port."""
        self.second.call(b"SYNC", b"127.0.0.1", b"%d" % (port or self.nodes[0].port))

    def _counters(self) -> dict[str, int]:
        shown = status(self.nodes[1])
        names = ("rounds", "bytes_sent", "bytes_received", "keys_sent", "keys_received")
        return {name: total(shown, f"exchange_{name}") for name in names}

    def warm(self) -> None:
        """One exchange that finds a difference, and does what only the first of these does."""
        self.change([0])
        self.exchange()

    def change(self, numbers: list[int]) -> None:
        """Sets keys on the two nodes in turn, so that records go both ways."""
        for client, part in ((self.first, numbers[::2]), (self.second, numbers[1::2])):
            for at in range(0, len(part), BATCH):
                batch = part[at : at + BATCH]
                value = random.randbytes(VALUE_BYTES)
                client.send([(b"SET", b"key:%012d" % number, value) for number in batch])
                for _ in batch:
                    client.receive()

    def copy(self) -> Taken:
        """The naive way, and only one way: every record of the first is read and merged into the second."""
        began, size, count = time.perf_counter(), 0, 0
        after: Reply = b""
        while isinstance(after, bytes):
            reply = self.first.call(b"RECORDS", after, b"1000")
            assert isinstance(reply, list)
            after, rows = reply
            parts = [part for part in rows if isinstance(part, bytes)] if isinstance(rows, list) else []
            size += sum(map(len, parts))
            count += len(parts) // 3
            if parts:
                self.second.call(b"MERGE", b"naive", *parts)
        return Taken(time.perf_counter() - began, 0, size, count)

    def close(self) -> None:
        self.first.close()
        self.second.close()


@contextlib.contextmanager
def pair(directory: Path, keys: int, memtable_size: str = "64MiB") -> Iterator[Pair]:
    """Two nodes, the first with so many keys and the second empty."""
    options = {"durability": "everysec", "anti_entropy__interval_seconds": "86400", "memtable_size": memtable_size}
    with tempfile.TemporaryDirectory(dir=directory) as name, contextlib.ExitStack() as stack:
        nodes: list[Node] = []
        for number in range(2):
            options["replication__client_id"] = f"n{number}"
            nodes.append(stack.enter_context(make_node(Path(name) / f"n{number}", **options)))
            options["anti_entropy__peer_list"] = f"127.0.0.1:{nodes[0].port}"
        made = Pair(*nodes)
        stack.callback(made.close)
        fill(nodes[0], -(-keys // BATCH) * BATCH)
        settle(nodes[0])
        yield made


def chosen(count: int, keys: int, seed: int) -> list[int]:
    """Numbers of keys, drawn at random."""
    return random.Random(seed).sample(range(keys), count)


# -- the figures -------------------------------------------------------------------------------------------------------


def differences(size: Size, directory: Path) -> list[Figure]:
    """An empty node takes everything; then both are equal; then a few keys differ."""
    with pair(directory, size.keys) as nodes:
        everything = nodes.exchange()
        for node in nodes.nodes:
            settle(node)
        equal = [nodes.exchange() for _ in range(size.repeats)]
        one, thousand = [], []
        many = min(1000, size.keys // 2)
        for number in range(size.repeats):
            nodes.change(chosen(1, size.keys, number))
            one.append(nodes.exchange())
            nodes.change(chosen(many, size.keys, 1000 + number))
            thousand.append(nodes.exchange())
    scale = f"{size.keys:,} keys"
    rate = everything.keys / everything.seconds
    allowed = 3 * many * RECORD_BYTES + (600 << 10)
    return [
        Figure("bootstrap", f"an empty node takes {scale}", rate, 50_000, True, "keys/s", _detail([everything])),
        _rounds("equal-rounds", f"{scale}, equal", equal, 1),
        _bytes("equal-bytes", f"{scale}, equal", equal, 1 << 10),
        _time("one-time", f"{scale}, 1 differs", one, 100),
        _bytes("one-bytes", f"{scale}, 1 differs", one, 16 << 10),
        _time("thousand-time", f"{scale}, {many:,} differ", thousand, 1000),
        _bytes("thousand-bytes", f"{scale}, {many:,} differ", thousand, allowed),
    ]


def restarts(size: Size, directory: Path) -> list[Figure]:
    """Both are equal, and tell the most of themselves that nodes have to tell."""
    with pair(directory, BATCH) as nodes:
        for _ in range(INTERVALS_MAX):
            nodes.exchange()
            nodes.restart()
        nodes.exchange()
        equal = [nodes.exchange() for _ in range(size.repeats)]
    work = f"equal, after {INTERVALS_MAX} restarts of both"
    return [_bytes("restarts-bytes", work, equal, 1 << 10)]


def _time(name: str, work: str, taken: list[Taken], bound_ms: float) -> Figure:
    samples = [1000 * one.seconds for one in taken]
    return Figure(name, work, median(samples), bound_ms, False, "ms", f"worst {_detail(taken)}", samples=samples)


def _bytes(name: str, work: str, taken: list[Taken], bound: float) -> Figure:
    samples = [float(one.bytes) for one in taken]
    return Figure(name, work, max(samples), bound, False, "bytes", _detail(taken), samples=samples)


def _rounds(name: str, work: str, taken: list[Taken], bound: float) -> Figure:
    samples = [float(one.rounds) for one in taken]
    return Figure(name, work, max(samples), bound, False, "rounds", _detail(taken), samples=samples)


def _detail(taken: list[Taken]) -> str:
    worst = max(taken, key=lambda one: one.seconds)
    return f"{1000 * worst.seconds:,.1f} ms, {worst.rounds} rounds, {worst.bytes:,} bytes, {worst.keys:,} keys"


def clients(size: Size, directory: Path) -> list[Figure]:
    """Latency of clients of a node while it serves the bootstrap of another."""
    with pair(directory, size.keys) as nodes:
        samples, seconds = _watch(nodes.nodes[0], nodes.sync)
    detail = f"{len(samples):,} SETs in {seconds:.1f} s, worst {max(samples):.1f} ms"
    work = f"p99 of SET on a node that serves a bootstrap of {size.keys:,} keys"
    return [Figure("clients", work, percentile(samples, 99), 20, False, "ms", detail, samples=samples)]


def busy_clients(size: Size, directory: Path) -> list[Figure]:
    """The same on a node that is busy before, too: how much longer do they wait? There are no checkpoints."""
    with pair(directory, size.keys, NEVER_MERGES) as nodes, flood(nodes.nodes[0], size.keys):
        time.sleep(size.calm_s / 10)
        calm, _ = _watch(nodes.nodes[0], lambda: time.sleep(size.calm_s))
        busy, seconds = _watch(nodes.nodes[0], nodes.sync)
    p99 = [percentile(samples, 99) for samples in (calm, busy)]
    detail = f"p99 {p99[1]:.1f} ms against {p99[0]:.1f} ms, {len(busy):,} SETs in {seconds:.1f} s"
    work = f"SET p99 during a bootstrap of {size.keys:,} keys, beside a flood of SETs"
    return [Figure("exchange-p99", work, p99[1] / p99[0], P99_RATIO_MAX, False, "x without", detail, samples=busy)]


def _watch(node: Node, meanwhile: Callable[[], object]) -> tuple[list[float], float]:
    """How long SETs take during a call, in milliseconds, and how long the call takes, in seconds."""
    done = threading.Event()
    samples: list[float] = []
    probes = [threading.Thread(target=_probe, args=(node, done, samples, at)) for at in range(PROBES)]
    for probe in probes:
        probe.start()
    began = time.perf_counter()
    meanwhile()
    seconds = time.perf_counter() - began
    done.set()
    for probe in probes:
        probe.join()
    return samples, seconds


def _probe(node: Node, done: threading.Event, samples: list[float], number: int) -> None:
    """Sends a SET at set times; one that could not be sent in time counts from when it should have been."""
    with Client("127.0.0.1", node.port) as client:
        due = time.perf_counter() + number * PROBE_EVERY_S / PROBES
        while not done.is_set() or not samples:
            time.sleep(max(0.0, due - time.perf_counter()))
            client.call(b"SET", b"probe:%d" % number, b"x" * VALUE_BYTES)
            samples.append(1000 * (time.perf_counter() - due))
            due += PROBE_EVERY_S


def fresh(size: Size, directory: Path) -> list[Figure]:
    """What is first of its kind finds no order in memory, and no groups, that one before it would have made."""
    with pair(directory, size.keys, NEVER_MERGES) as nodes:
        scan = first_scan(nodes.nodes[0])
        with awake(nodes.nodes[0]):
            nodes.copy()
        nodes.change([0])
        if int(status(nodes.nodes[0])["memtable_keys"]) < size.keys:
            raise SystemExit("the keys are not in memory any more")
        with Relay(nodes.nodes[0].port) as relay:
            nodes.sync(relay.port)
        if nodes.first.call(b"HASH") != nodes.second.call(b"HASH"):
            raise SystemExit("the nodes differ after an exchange")
    work = f"when {size.keys:,} keys are new and in memory"
    hello, buckets = (relay.waits[kind][0] for kind in ("hello", "buckets"))
    return [
        _first("first-scan", f"the first SCAN of a prefix {work}", scan),
        _first("first-exchange", f"the first exchange {work}, to the first answer", hello),
        _first("first-buckets", f"the first exchange {work}, the first answer that compares records", buckets),
    ]


@contextlib.contextmanager
def awake(node: Node) -> Iterator[None]:
    """Writes a key now and then: a node that is idle for some seconds makes a checkpoint."""
    done = threading.Event()

    def write() -> None:
        with Client("127.0.0.1", node.port) as client:
            while not done.wait(AWAKE_S):
                client.call(b"SET", b"awake", b"")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()


def _first(name: str, work: str, milliseconds: float) -> Figure:
    return Figure(name, work, milliseconds, FIRST_MAX_MS, False, "ms")


def first_scan(node: Node) -> float:
    """Milliseconds of one SCAN of a prefix with a hundred hits."""
    with Client("127.0.0.1", node.port) as client:
        began = time.perf_counter()
        reply = client.call(b"SCAN", b"0", b"MATCH", million.PREFIX + b"*", b"COUNT", b"%d" % million.HITS)
        milliseconds = 1000 * (time.perf_counter() - began)
    assert isinstance(reply, list)
    assert isinstance(reply[1], list)
    assert len(reply[1]) == million.HITS
    return milliseconds


# -- the curves --------------------------------------------------------------------------------------------------------

Curve = list[dict[str, float]]


def over_differences(size: Size, directory: Path) -> Curve:
    """One, ten, a hundred ... all of the keys differ."""
    curve: Curve = []
    with pair(directory, size.curve_keys) as nodes:
        copied = nodes.copy()
        nodes.exchange()
        nodes.warm()
        count = 1
        while True:
            nodes.change(chosen(count, size.curve_keys, count))
            curve.append(_point("differing", count, nodes.exchange(), copied))
            if count == size.curve_keys:
                return curve
            count = min(10 * count, size.curve_keys)


def over_sizes(size: Size, directory: Path) -> Curve:
    """The same few keys differ, in more and more data."""
    curve: Curve = []
    for keys in size.curve_sizes:
        with pair(directory, keys) as nodes:
            copied = nodes.copy()
            nodes.exchange()
            for node in nodes.nodes:
                settle(node)
            nodes.warm()
            nodes.change(chosen(min(CURVE_DIFFERENT, keys), keys, keys))
            curve.append(_point("keys", keys, nodes.exchange(), copied))
    return curve


def _point(name: str, at: int, taken: Taken, copied: Taken) -> dict[str, float]:
    return {
        name: at,
        "bytes": taken.bytes,
        "ms": 1000 * taken.seconds,
        "rounds": taken.rounds,
        "naive_bytes": copied.bytes,
        "naive_ms": 1000 * copied.seconds,
    }


FIGURES: dict[str, Callable[[Size, Path], list[Figure]]] = {
    "differences": differences,
    "restarts": restarts,
    "clients": clients,
    "busy-clients": busy_clients,
    "fresh": fresh,
}
CURVES: dict[str, Callable[[Size, Path], Curve]] = {"differing": over_differences, "sizes": over_sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="quick")
    parser.add_argument("--only", choices=[*FIGURES, *CURVES], action="append", help="some of it; may be repeated")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="where the data goes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    size, wanted = SIZES[given.size], given.only or [*FIGURES, *CURVES]
    figures = [figure for name in wanted if name in FIGURES for figure in FIGURES[name](size, given.directory)]
    curves = {name: CURVES[name](size, given.directory) for name in wanted if name in CURVES}
    where = machine(given.directory)
    print_table(figures, where, Console(width=None if sys.stdout.isatty() else WIDTH))
    for name, curve in curves.items():
        for point in curve:
            print(f"{name:10}", "  ".join(f"{key} {value:,.0f}" for key, value in point.items()))
    given.results.mkdir(parents=True, exist_ok=True)
    rows = [vars(figure) | {"reached": figure.reached} for figure in figures]
    found = {"machine": where, "figures": rows, "curves": curves}
    (given.results / "exchange.json").write_text(json.dumps(found, indent=1) + "\n")
    if curves:
        plot(curves, where, given.results / "exchange.png")


if __name__ == "__main__":
    main()
