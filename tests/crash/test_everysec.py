"""`everysec`: each write is on disk within a second, as the node's system calls show, whatever is merged meanwhile.

strace tells when each write of the log ended, and when the first sync of the same file that began after it did.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import psutil
from fixtures.crash_harness import statistic, wait_until_merged
from fixtures.node import NodeFactory
from fixtures.support import WAIT_S, wait_until

from merklekv.net.client import Client as Connection

MEMTABLE = 1 << 20
VALUE = b"v" * 1000
PROMISE_S = 1.0
STALLED_S = 3.0
PAUSE_S = 0.1  # without a call, while a write comes every few milliseconds: the machine has not let the node run
TRACE = ["strace", "-f", "-y", "-ttt", "-T", "-e", "trace=pwrite64,fdatasync,fsync", "-e", "signal=none"]
CALL = re.compile(r"(?P<thread>\d+) +(?P<at>[\d.]+) (?P<call>\w+)\(\d+<(?P<file>[^>]*)>")
TOOK = re.compile(r"<(?P<took>[\d.]+)>$")
RESUMED = re.compile(r"(?P<thread>\d+) +(?P<at>[\d.]+) <\.\.\. \w+ resumed>")


class Call(NamedTuple):
    """A system call, with the times of its start and its end, s."""

    name: str
    file: str
    start: float
    end: float


def calls(trace: Path) -> Iterator[Call]:
    """The calls that strace has seen, each when it has ended."""
    begun: dict[str, Call] = {}
    for line in trace.read_text().splitlines():
        if call := CALL.match(line):
            start, took = float(call["at"]), TOOK.search(line)
            made = Call(call["call"], call["file"], start, start + float(took["took"]) if took else 0.0)
            if took:
                yield made
            else:
                begun[call["thread"]] = made
        elif (end := RESUMED.match(line)) and end["thread"] in begun:
            yield begun.pop(end["thread"])._replace(end=float(end["at"]))


class NodeTime:
    """The time that the node had: without pauses of the machine, and without what the disk takes for a sync."""

    def __init__(self, found: list[Call]) -> None:
        begun = [(call.start, call.name != "pwrite64") for call in found]
        ended = [(call.end, -(call.name != "pwrite64")) for call in found]
        self._moments: list[float] = []
        self._passed: list[float] = []  # at each moment
        passed, syncs = 0.0, 0
        for (moment, change), (following, _) in pairwise(sorted(begun + ended)):
            self._moments.append(moment)
            self._passed.append(passed)
            syncs += change
            passed += 0.0 if syncs else min(following - moment, PAUSE_S)
        self._passed.append(passed)

    def at(self, moment: float) -> float:
        """What has passed, s; `moment` is the begin or the end of a call."""
        return self._passed[bisect_left(self._moments, moment)]


def delays(trace: Path) -> list[float]:
    """For each write of a segment, how long it was before the disk had it, in seconds of the node's time."""
    found = [call for call in calls(trace) if call.file.endswith(".log")]
    time_at = NodeTime(found).at
    syncs = sorted((call for call in found if call.name != "pwrite64"), key=lambda call: call.start)
    covering = [
        (write, next(sync for sync in syncs if sync.file == write.file and sync.start >= write.end))
        for write in found
        if write.name == "pwrite64"
    ]
    return [time_at(sync.end) - time_at(write.end) for write, sync in covering]


def test_writes_are_on_disk_within_a_second_while_the_checkpoint_stands_still(
    node_factory: NodeFactory, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    node = node_factory("--durability", "everysec", "--memtable-size", str(MEMTABLE), start=False)
    node.wrapper = [*TRACE, "-o", str(trace)]
    node.start()
    (server,) = psutil.Process(node.pid).children()

    with Connection("127.0.0.1", node.port, WAIT_S) as client:

        def write(first: int, count: int) -> None:
            client.send([(b"SET", b"k%d" % number, VALUE) for number in range(first, first + count)])
            for _ in range(count):
                client.receive()

        for first in range(0, 1000, 50):
            write(first, 50)
        (child,) = wait_until(server.children, what="the child that merges")
        wait_until_merged(node)
        child.suspend()
        for first in range(1000, 3000, 50):
            write(first, 50)
            if statistic(node, "frozen_memtables") == 2:
                break
        assert statistic(node, "frozen_memtables") == 2, "two full ones wait for the child"
        end = time.monotonic() + STALLED_S

        def write_on() -> bool:
            write(0, 1)
            return time.monotonic() > end

        wait_until(write_on, what="time to pass")
        child.resume()
    server.terminate()
    assert node.wait() == 0
    assert [delay for delay in delays(trace) if delay > PROMISE_S] == []
