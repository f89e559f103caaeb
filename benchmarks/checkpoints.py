"""What clients feel of checkpoints: the time of each SET while there is one, and while there is none.

A node takes as many random SETs as redis-benchmark sends (50 clients, pipeline 16, a space of 3 million keys).  Beside
that flood a few paced connections send one SET each few milliseconds, and every one of these is timed.  The same is
done with a memtable so large that there is no checkpoint; the figure is the ratio of the two 99th percentiles, and the
worst time of all during checkpoints.

A SET is sent at its appointed time or, when the one before it took longer than that, counts from it all the same: a
stall is felt by all the requests that it kept from being sent.
"""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from figure import Figure, Settings, percentile, status
from nodes import make_node

from merklekv.harness.process import Node

PROBES = 4
INTERVAL_S = 0.01
FLOOD_KEYS = 3_000_000
NEVER_MERGES = "4GiB"  # not in the time that it is watched
POLL_S = 0.1
START_TIMEOUT_S = 60
P99_RATIO_MAX = 2.0
WORST_MAX_MS = 250.0
FLOOD = ["redis-benchmark", "-t", "set", "-c", "50", "-P", "16", "-d", "100", "-n", "2000000000", "-r"]


def measure(durability: str, settings: Settings) -> list[Figure]:
    """The figures for one durability."""
    size = settings.size
    calm, _ = _watch(durability, NEVER_MERGES, settings)
    busy, share = _watch(durability, size.probe_memtable, settings)
    p99 = [1000 * percentile(times, 99) for times in (calm, busy)]
    worst = [1000 * max(times) for times in (calm, busy)]
    commands = [
        f"merklekv run --durability {durability} with memtable_size={size.probe_memtable}, then {NEVER_MERGES}",
        f"{' '.join(FLOOD)} {FLOOD_KEYS} -p PORT, and {PROBES} connections with a SET each {1000 * INTERVAL_S:.0f} ms",
    ]
    detail = f"p99 {p99[1]:.1f} ms against {p99[0]:.1f} ms, {len(busy):,} SETs, checkpoints {share:.0%} of the time"
    return [
        Figure(
            f"checkpoint-p99-{durability}",
            f"SET p99 during checkpoints, {durability}",
            p99[1] / p99[0],
            P99_RATIO_MAX,
            False,
            "x without",
            detail,
            commands,
        ),
        Figure(
            f"checkpoint-worst-{durability}",
            f"SET worst during checkpoints, {durability}",
            worst[1],
            WORST_MAX_MS,
            False,
            "ms",
            f"{worst[0]:.1f} ms without",
            commands,
        ),
    ]


def _watch(durability: str, memtable_size: str, settings: Settings) -> tuple[list[float], float]:
    """The seconds of each probe, and the share of the time in which there was a checkpoint."""
    directory = settings.directory / f"checkpoints-{durability}-{memtable_size}"
    with make_node(directory, durability=durability, memtable_size=memtable_size) as node, flood(node, FLOOD_KEYS):
        merges = memtable_size != NEVER_MERGES
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _in_full_swing(status(node), merges):
            if time.monotonic() > deadline:
                raise SystemExit("the flood does not get to where checkpoints begin")
            time.sleep(POLL_S)
        times: list[list[float]] = [[] for _ in range(PROBES)]
        end = time.perf_counter() + settings.size.probe_s
        threads = [threading.Thread(target=_probe, args=(node, end, into)) for into in times]
        for thread in threads:
            thread.start()
        seen = []
        while time.perf_counter() < end:
            time.sleep(POLL_S)
            seen.append(int(status(node)["frozen_memtables"]) > 0)
        for thread in threads:
            thread.join()
    return [one for part in times for one in part], sum(seen) / len(seen)


def _in_full_swing(figures: dict[str, str], merges: bool) -> bool:
    return int(figures["checkpoint_lsn"]) > 0 if merges else int(figures["memtable_keys"]) > 1000


@contextmanager
def flood(node: Node, keys: int) -> Iterator[None]:
    """As many SETs as redis-benchmark sends, of so many keys."""
    command = [*FLOOD, str(keys), "-p", str(node.port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
        if process.poll() is not None:
            raise SystemExit("the flood ended early")
    finally:
        process.kill()
        process.wait()


def _probe(node: Node, end: float, times: list[float]) -> None:
    value = b"x" * 100
    appointed = time.perf_counter() + INTERVAL_S * int.from_bytes(os.urandom(2), "big") / 65536
    with node.dial() as connection:
        while appointed < end:
            wait = appointed - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            began = time.perf_counter() if wait > 0 else appointed
            key = b"probe:%06d" % (len(times) * 7919 % 1_000_000)
            connection.sendall(b"*3\r\n$3\r\nSET\r\n$12\r\n%b\r\n$100\r\n%b\r\n" % (key, value))
            if connection.recv(64) != b"+OK\r\n":
                raise SystemExit("a probe was not answered OK")
            times.append(time.perf_counter() - began)
            appointed += INTERVAL_S
