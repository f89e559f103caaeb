"""Replication between real nodes over a real Mosquitto, all on this machine.

    python benchmarks/replication.py [latency] [sustained] [slowdown] [backlog] [idle] [--events 300000] [--json FILE]

latency     a write acknowledged on A until it is readable on B, while A takes 1,000 writes a second
sustained   pipelined clients write to A, until B has it all
slowdown    the rate at which A takes pipelined writes, with replication on (one node listening) against off
backlog     writes to A while the broker is down, then up, until B has all of them
idle        three connected nodes without traffic: share of a core that each takes

Everything (clients, nodes, broker) shares the machine's cores, so rates are those of the whole.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from figure import Figure
from nodes import make_node

from merklekv.harness.broker import OPEN, Mosquitto
from merklekv.harness.process import Node, wait_until

EVENTS_MIN_PER_S = 120_000
SLOWER_MAX_PERCENT = 35
PIPELINE = 100
CONNECTIONS = 4
VALUE = b"x" * 100


class Client:
    """RESP, as little of it as is needed here."""

    def __init__(self, node: Node) -> None:
        self.socket = node.dial()
        self._reader = self.socket.makefile("rb")

    def ask(self, *words: bytes) -> bytes:
        """The first line of the reply; a bulk reply's contents."""
        self.socket.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
        line = self._reader.readline()
        if line[:1] in b"$=" and line != b"$-1\r\n":
            return self._reader.read(int(line[1:]) + 2)[:-2]
        return line

    def key_count(self) -> int:
        return int(self.ask(b"DBSIZE")[1:])

    def figures(self) -> dict[str, str]:
        lines = self.ask(b"STATS").decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)


def wait_for(condition: Callable[..., bool], what: str) -> None:
    wait_until(condition, seconds=120, what=what)


def write(node: Node, first: int, count: int) -> float:
    """Sets `count` keys over a few pipelined connections; seconds until the last reply."""
    began = time.perf_counter()
    threads = [
        threading.Thread(target=_write_part, args=(node, first + part * count // CONNECTIONS, count // CONNECTIONS))
        for part in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def _write_part(node: Node, first: int, count: int) -> None:
    requests = [
        b"".join(
            b"*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$100\r\n%b\r\n" % (number, VALUE)
            for number in range(at, min(at + PIPELINE, first + count))
        )
        for at in range(first, first + count, PIPELINE)
    ]
    with node.dial() as connection:
        for request in requests:
            connection.sendall(request)
            missing = request.count(b"SET") * len(b"+OK\r\n")
            while missing:
                missing -= len(connection.recv(65536))


@contextlib.contextmanager
def cluster(count: int, **options: str) -> Iterator[tuple[Mosquitto, list[Node]]]:
    """A broker and nodes that have found each other."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        broker = stack.enter_context(Mosquitto(directory, *OPEN, "set_tcp_nodelay true"))
        nodes = []
        for number in range(count):
            settings = {
                "replication__enabled": "true",
                "replication__mqtt_broker": "127.0.0.1",
                "replication__mqtt_port": str(broker.port),
                "replication__client_id": f"n{number}",
                **options,
            }
            nodes.append(stack.enter_context(make_node(directory / f"n{number}", **settings)))
        for node in nodes:
            wait_for(lambda node=node: Client(node).figures().get("replication_nodes") == str(count), "the nodes")
        yield broker, nodes


def latency(events: int, rate: int = 1000) -> dict[str, float]:
    with cluster(2) as (_, (a, b)):
        writer, reader, other = Client(a), Client(b), Client(a)
        done = threading.Event()

        def keep_writing() -> None:
            began, written = time.perf_counter(), 0
            while not done.is_set():
                other.ask(b"SET", b"load:%d" % (written % 1000), VALUE)
                written += 1
                time.sleep(max(0.0, began + written / rate - time.perf_counter()))

        background = threading.Thread(target=keep_writing)
        background.start()
        samples = []
        for number in range(min(events, 3000)):
            value = b"%d" % number
            writer.ask(b"SET", b"probe", value)
            began = time.perf_counter()
            while reader.ask(b"GET", b"probe") != value:
                time.sleep(0.0001)
            samples.append(1000 * (time.perf_counter() - began))
        done.set()
        background.join()
    cuts = statistics.quantiles(samples, n=100)
    return {"p50_ms": cuts[49], "p99_ms": cuts[98], "max_ms": max(samples)}


def sustained(events: int) -> dict[str, float]:
    with cluster(2) as (_, (a, b)):
        began = time.perf_counter()
        taken_s = write(a, 0, events)
        reader = Client(b)
        wait_for(lambda: reader.key_count() >= events, "the last event on B")
        seconds = time.perf_counter() - began
        figures = Client(a).figures()
    per_batch = events / max(1, int(figures["published_batches"]))
    return {"events_per_s": events / seconds, "writes_per_s": events / taken_s, "events_per_batch": per_batch}


def slowdown(events: int) -> dict[str, float]:
    rates: dict[str, list[float]] = {"off": [], "on": []}
    for _ in range(3):
        with tempfile.TemporaryDirectory() as name, make_node(Path(name) / "alone") as node:
            rates["off"].append(events / write(node, 0, events))
        with cluster(2) as (_, (a, b)):
            rates["on"].append(events / write(a, 0, events))
            reader = Client(b)
            wait_for(lambda reader=reader: reader.key_count() >= events, "B")
    off, on = statistics.median(rates["off"]), statistics.median(rates["on"])
    return {"off_per_s": off, "on_per_s": on, "slower_percent": 100 * (1 - on / off)}


def backlog(events: int) -> dict[str, float]:
    count = min(events, 200_000)
    with cluster(2) as (broker, (a, b)):
        broker.stop()
        wait_until(lambda: Client(a).figures()["replication_state"] != "connected", what="A to notice")
        write(a, 0, count)
        waiting = int(Client(a).figures()["outbox_events"])
        began = time.perf_counter()
        broker.start()
        reader = Client(b)
        wait_for(lambda: reader.key_count() >= count, "the backlog on B")
        return {"events": count, "waiting": waiting, "seconds": time.perf_counter() - began}


def idle(__: int, seconds: float = 20) -> dict[str, float]:
    with cluster(3) as (_, nodes):
        time.sleep(2)
        processes = [psutil.Process(node.pid) for node in nodes]
        before = [sum(process.cpu_times()[:2]) for process in processes]
        time.sleep(seconds)
        after = [sum(process.cpu_times()[:2]) for process in processes]
    shares = [100 * (late - early) / seconds for early, late in zip(before, after, strict=True)]
    return {"worst_percent": max(shares), "mean_percent": statistics.mean(shares)}


WORKS: dict[str, Callable[[int], dict[str, float]]] = {
    "latency": latency,
    "sustained": sustained,
    "slowdown": slowdown,
    "backlog": backlog,
    "idle": idle,
}


def judged(found: dict[str, dict[str, float]]) -> list[Figure]:
    """Those of the figures that have a bound."""
    figures = []
    if "sustained" in found:
        rate = found["sustained"]["events_per_s"]
        work = "pipelined writes to A, until B has it all"
        figures.append(Figure("sustained", work, rate, EVENTS_MIN_PER_S, True, "writes/s"))
    if "slowdown" in found:
        slower = found["slowdown"]["slower_percent"]
        work = "A takes pipelined writes slower because it publishes them"
        figures.append(Figure("slowdown", work, slower, SLOWER_MAX_PERCENT, False, "%"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", choices=[*WORKS, []], help="all when none is named")
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    results = {}
    for name in given.works or WORKS:
        results[name] = {key: round(value, 2) for key, value in WORKS[name](given.events).items()}
        print(f"{name:10}", "  ".join(f"{key} {value:,}" for key, value in results[name].items()), flush=True)
    for figure in judged(results):
        print(f"{figure.name}: bound {figure.bound:,} {figure.unit}", "reached" if figure.reached else "missed")
    if given.json:
        given.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
