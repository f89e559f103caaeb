"""Keys that are set and deleted, different ones all the time: what stays of them on disk and in memory.

    python benchmarks/churn.py [--keys 1000000] [--rate 1000] [--nodes 1 --nodes 3] [--broker] [--results DIR]

Sets and deletes so many different keys, SET_AHEAD of them alive at a time, at one node, which is alone or exchanges
with two others; with --broker they also replicate over a Mosquitto.  After the first tenth and at the end it waits
until all nodes rest, and notes for the node that takes the writes: bytes on disk, tombstones, and how long a start
after kill -9 takes.  A target is the ratio of the two.  The plot shows disk and tombstones over the keys, also in
between.  Without a rate the client sends as fast as it can.

The nodes exchange each second, which is faster than by default; what is measured is space, not speed.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl
from figure import status
from nodes import bytes_on_disk, make_node

from merklekv.harness.broker import OPEN, Mosquitto
from merklekv.harness.process import HOST, Node, free_port
from merklekv.net.client import Client

VALUE = b"v" * 100
SET_AHEAD = 1000  # keys alive at a time
SAMPLES = 40  # of disk and tombstones, over all keys
POLL_S = 0.5
CALM_S = 12.0  # disk and tombstones are the same for so long: the nodes rest, their logs are in the base
GIVE_UP_S = 300.0
RATIO_MAX = 1.2
EMPTY_BYTES = 8 << 20  # what a node without any data takes on disk at most: 4 MiB each for the log and the base
EMPTY_START_S = 0.5  # and for a start
FEW_TOMBSTONES = 1000
RESULTS = Path(__file__).parent / "results"


@dataclass
class Sample:
    """What one node has after so many keys."""

    keys: int
    disk_bytes: int
    tombstones: int
    start_s: float = 0.0


@dataclass
class Run:
    """What a node has while it goes on, and at rest: after the first tenth, and at the end."""

    nodes: int
    going: list[Sample]
    first: Sample
    last: Sample

    def ratios(self) -> dict[str, float]:
        """By how much each figure has grown.  A first one below the floor counts as the floor."""
        one, other = self.first, self.last
        return {
            "disk": other.disk_bytes / max(one.disk_bytes, EMPTY_BYTES),
            "tombstones": other.tombstones / max(one.tombstones, FEW_TOMBSTONES),
            "start": other.start_s / max(one.start_s, EMPTY_START_S),
        }


def sample(node: Node, keys: int) -> Sample:
    """What the node has now."""
    while "db_tombstones" not in (figures := status(node)):  # it counts for a while after a start
        time.sleep(POLL_S)
    return Sample(keys, bytes_on_disk(node.directory), int(figures["db_tombstones"]))


def at_rest(nodes: list[Node], keys: int, calm_s: float) -> Sample:
    """What the first node has once nothing changes on any of them, and how long it takes to start on that.

    One that only gives records in an exchange changes nothing: the others show that it goes on.
    """
    began = calm_since = time.monotonic()
    last = [sample(node, keys) for node in nodes]
    while time.monotonic() - calm_since < calm_s and time.monotonic() - began < GIVE_UP_S:
        time.sleep(POLL_S)
        now = [sample(node, keys) for node in nodes]
        if now != last:
            last, calm_since = now, time.monotonic()
    nodes[0].kill()
    began = time.perf_counter()
    nodes[0].start()
    last[0].start_s = time.perf_counter() - began
    return last[0]


def churn(node: Node, first: int, count: int, rate: float) -> Iterator[int]:
    """Sets and deletes so many different keys, at most `rate` a second; yields how many are done, now and then."""
    began = time.monotonic()
    with Client(HOST, node.port) as client:
        for at in range(first, first + count, SET_AHEAD):
            time.sleep(max(0.0, began + (at - first) / rate - time.monotonic()))
            keys = [b"key:%012d" % number for number in range(at, min(at + SET_AHEAD, first + count))]
            client.send([(b"SET", key, VALUE) for key in keys])
            for _ in keys:
                assert client.receive() == b"OK"
            client.send([(b"DEL", key) for key in keys])
            for _ in keys:
                assert client.receive() == 1
            yield at + len(keys)


def measure(nodes: int, directory: Path, given: argparse.Namespace) -> Run:
    """One run."""
    keys = given.keys
    ports = [free_port() for _ in range(nodes)]
    going: list[Sample] = []
    with ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(directory, *OPEN)) if given.broker and nodes > 1 else None
        servers = []
        for number, port in enumerate(ports):
            settings = {
                "durability": "everysec",
                "memtable_size": given.memtable_size,
                "anti_entropy__interval_seconds": "1",
                "anti_entropy__share_percent": "50",
            }
            if peers := [f"{HOST}:{other}" for other in ports if other != port]:
                settings["anti_entropy__peer_list"] = ",".join(peers)
            if broker is not None:
                settings["replication__enabled"] = "true"
                settings["replication__mqtt_broker"] = HOST
                settings["replication__mqtt_port"] = str(broker.port)
                settings["replication__client_id"] = f"n{number}"
            server = make_node(directory / f"{nodes}-{number}", **settings)
            server.port = port
            servers.append(stack.enter_context(server))

        def go_on(first: int, count: int) -> None:
            due = keys // SAMPLES
            for done in churn(servers[0], first, count, given.rate):
                if done - (going[-1].keys if going else 0) >= due:
                    going.append(sample(servers[0], done))

        go_on(0, keys // 10)
        start = at_rest(servers, keys // 10, given.calm)
        go_on(keys // 10, keys - keys // 10)
        return Run(nodes, going, start, at_rest(servers, keys, given.calm))


def plot(runs: list[Run], path: Path) -> None:
    """Disk and tombstones over the keys."""
    mpl.use("agg")
    from matplotlib import pyplot  # only now: it settles how it draws when it is imported

    drawing, axes = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6))
    for run in runs:
        label = "one node" if run.nodes == 1 else f"one of {run.nodes} nodes"
        keys = [one.keys for one in run.going]
        axes[0].plot(keys, [one.disk_bytes / 1e6 for one in run.going], label=label)
        axes[1].plot(keys, [one.tombstones for one in run.going], label=label)
        for rest in (run.first, run.last):
            axes[0].plot(rest.keys, rest.disk_bytes / 1e6, "ko")
            axes[1].plot(rest.keys, rest.tombstones, "ko")
    axes[0].set_ylabel("MB on disk")
    axes[1].set_ylabel("tombstones")
    axes[1].set_xlabel("keys set and deleted; dots: at rest")
    axes[0].legend()
    drawing.savefig(path, dpi=120)


def show(run: Run) -> None:
    """The figures of a run, and whether they keep the target."""
    print(f"{run.nodes} node{'s' * (run.nodes > 1)}")
    for rest in (run.first, run.last):
        print(
            f"  {rest.keys:>9,} keys: {rest.disk_bytes / 1e6:7.1f} MB, {rest.tombstones:>7,} tombstones, "
            f"start {1000 * rest.start_s:5.0f} ms"
        )
    for name, ratio in run.ratios().items():
        print(f"  {name}: {ratio:.2f} x, {'reached' if ratio <= RATIO_MAX else 'missed'} (at most {RATIO_MAX} x)")
    print(f"  most tombstones meanwhile: {max((one.tombstones for one in run.going), default=0):,}")
    print(
        f"  x is of the first figure, or of the floor if that is more: {EMPTY_BYTES >> 20} MiB, "
        f"{FEW_TOMBSTONES:,} tombstones, {EMPTY_START_S} s"
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument(
        "--rate", type=float, default=math.inf, help="keys a second at most; as fast as it goes otherwise"
    )
    parser.add_argument("--broker", action="store_true", help="replicate over a Mosquitto, too")
    parser.add_argument("--nodes", type=int, action="append", help="how many nodes; may be repeated (1 and 3)")
    parser.add_argument("--memtable-size", default="64MiB")
    parser.add_argument("--calm", type=float, default=CALM_S, help="seconds without a change, after which a node rests")
    parser.add_argument("--directory", type=Path, help="where the data goes; a temporary directory otherwise")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory(dir=given.directory, prefix="merklekv-churn-") as directory:
        for nodes in given.nodes or [1, 3]:
            runs.append(measure(nodes, Path(directory), given))
            show(runs[-1])
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "churn.json").write_text(json.dumps([asdict(run) | {"ratios": run.ratios()} for run in runs]))
    plot(runs, given.results / "churn.png")


if __name__ == "__main__":
    main()
