"""A run, from the first start to the last check.

Load and faults go on for so long. Then everything heals: within HEAL_S all nodes hold the same. Each has to show what
the accounts say; each stops when asked to, and its directory verifies.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fixtures.support import wait_until

from merklekv.harness.process import HOST
from merklekv.metrics import parse
from merklekv.net.client import Client, NodeError, Unreachable

from .account import FLEETING_MS
from .cluster import Cluster, SoakNode, make_cluster, tool
from .curves import Curves, NodeWatch, of_process
from .faults import BROKER, Events, make_lanes
from .load import AnyWriter, Follower, LineWriter, Probe, Problems, Subscriber, Worker, Writer, described
from .node_faults import CLOCK_OFF_S, stop
from .report import JUDGED_FROM_S, Outcome

PACE_MAX_S: Final = 8.0  # the longest fault, and the longest time between two of a lane
FAULTS_MIN: Final = 40  # of a lane, for which the time of a short run has to do
LOOK_EVERY_S: Final = 1.0
TOLD_EVERY_S: Final = 60.0
HEAL_S: Final = 180.0
KEYS_AT_ONCE: Final = 200
LOST_SHOWN: Final = 10
TRACEBACK: Final = re.compile(
    r"^(?P<margin> *)Traceback \(most recent call last\):\n(?:(?P=margin) .*\n)*(?P=margin).*$", re.MULTILINE
)
TRACEBACK_LINES: Final = 6  # that are shown, the last ones


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    seconds: float
    seed: str
    place: Path  # a directory for logs, curves and data; what it has is removed


def run(plan: Plan, say: Callable[[str], None], interrupted: threading.Event) -> Outcome:
    """Runs it all; `interrupted` ends the load early."""
    with make_cluster(plan.place) as cluster:
        cluster.start()
        return _Run(plan, cluster, say, interrupted).outcome()


class _Run:
    def __init__(self, plan: Plan, cluster: Cluster, say: Callable[[str], None], interrupted: threading.Event) -> None:
        self._plan = plan
        self._cluster = cluster
        self._say = say
        self._interrupted = interrupted
        self._began = time.monotonic()
        self._problems = Problems(self._began)
        self._events = Events(self._began)
        self._curves = Curves(plan.place / "curves.csv")
        self._told = 0  # problems
        nodes, problems = cluster.nodes, self._problems
        self._writers: list[AnyWriter] = [Writer(node, plan.seed, problems) for node in nodes]
        self._writers += [LineWriter(node, plan.seed, problems) for node in nodes]
        self._probes = [Probe(node, problems) for node in nodes]
        others = [make(node, problems) for node in nodes for make in (Subscriber, Follower)]
        self._load: Sequence[Worker] = [*self._writers, *self._probes, *others]
        pace_s = min(PACE_MAX_S, plan.seconds / FAULTS_MIN)
        self._is_timed = plan.seconds >= JUDGED_FROM_S
        self._lanes = make_lanes(cluster, pace_s, plan.seed, self._events, problems, self._is_timed)
        self._watches = {node.name: NodeWatch(node, probe) for node, probe in zip(nodes, self._probes, strict=True)}

    def outcome(self) -> Outcome:
        try:
            seconds = self._load_and_faults()
            healed_s = self._heal()
            self._check()
        finally:
            self._curves.close()
            for watch in self._watches.values():
                watch.close()
        errors: Counter[str] = Counter()
        for writer in self._writers:
            errors.update(writer.errors)
        has_disks = all(node.disk for node in self._cluster.nodes)
        return Outcome(
            self._plan.seed,
            seconds,
            self._problems.texts,
            self._events.all,
            self._curves,
            self._acknowledged,
            errors,
            healed_s,
            [] if has_disks else ["full disks: it takes root to mount small ones"],
        )

    # -- the long part -------------------------------------------------------------------------------------------------

    def _load_and_faults(self) -> float:
        """How long it took."""
        for worker in (*self._load, *self._lanes):
            worker.start()
        told = looked = time.monotonic()
        while not self._is_over():
            self._look()
            self._tell_problems()
            if time.monotonic() - told >= TOLD_EVERY_S:
                told += TOLD_EVERY_S
                self._say(self._line())
            looked = max(looked + LOOK_EVERY_S, time.monotonic())
            self._interrupted.wait(max(0.0, looked - time.monotonic()))
            if self._interrupted.is_set():
                break
        seconds = time.monotonic() - self._began
        for worker in (*self._lanes, *self._load):
            worker.stop()
        for worker in (*self._lanes, *self._load):
            worker.join()
        return seconds

    def _is_over(self) -> bool:
        """The time is over, and each lane has done everything once."""
        if time.monotonic() - self._began < self._plan.seconds:
            return False
        for lane in self._lanes:
            lane.finish()
        return all(lane.is_stopped for lane in self._lanes)

    def _look(self) -> None:
        second = time.monotonic() - self._began
        for name, watch in self._watches.items():
            self._curves.add(second, name, watch.look())
        self._curves.add(second, BROKER, of_process(self._cluster.broker))

    def _tell_problems(self) -> None:
        """The first line of each new one; the report has them whole."""
        texts = self._problems.texts
        for text in texts[self._told :]:
            self._say(f"problem: {text.splitlines()[0]}")
        self._told = len(texts)

    def _line(self) -> str:
        memory = [self._curves.rows[node.name][-1][1].get("anon_bytes", 0) / 1e6 for node in self._cluster.nodes]
        problems = len(self._problems.texts)
        return (
            f"{(time.monotonic() - self._began) / 60:3.0f} min  {self._acknowledged:9,} writes acknowledged  "
            f"{len(self._events.all):5,} faults  memory {' '.join(f'{one:4.0f}' for one in memory)} MB  "
            f"{f'problems: {problems}' if problems else 'no problem'}"
        )

    @property
    def _acknowledged(self) -> int:
        return sum(writer.account.acknowledged for writer in self._writers)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _heal(self) -> float | None:
        """How long it takes until all nodes hold the same and nothing is on its way; None if it takes too long."""
        began = time.monotonic()
        for node in self._cluster.nodes:
            if not node.process.is_running:
                self._problems.add(f"{node.name} has ended by itself: {node.process.last_words()}")
                node.process.start()
        try:
            wait_until(self._is_equal, seconds=HEAL_S, what="equal nodes")
        except AssertionError as error:
            self._problems.add(f"{error}: {[_state(node) for node in self._cluster.nodes]}")
            return None
        return time.monotonic() - began

    def _is_equal(self) -> bool:
        states = [_state(node) for node in self._cluster.nodes]
        return all(states) and len(set(states)) == 1 and states[0][1:] == ("connected", "0")

    def _check(self) -> None:
        threading.Event().wait(FLEETING_MS / 1000 + CLOCK_OFF_S + 1)  # what expires is gone then
        for node in self._cluster.nodes:
            for writer in self._writers:
                self._check_account(node, writer)
        for node in self._cluster.nodes:
            stop(node, self._problems, self._is_timed)
            done = tool("verify", str(node.directory))
            if done.returncode:
                self._problems.add(f"verify of {node.name}: {done.stdout}{done.stderr}")
            for found in TRACEBACK.finditer(node.process.log.read_text(errors="replace")):
                end = "\n".join(found[0].splitlines()[-TRACEBACK_LINES:])
                self._problems.add(f"log of {node.name}: a traceback that ends with\n{end}")

    def _check_account(self, node: SoakNode, writer: AnyWriter) -> None:
        keys = writer.account.keys
        with Client(HOST, node.port) as client:
            values = [
                value
                for at in range(0, len(keys), KEYS_AT_ONCE)
                for value in _list(client.call(b"MGET", *keys[at : at + KEYS_AT_ONCE]))
            ]
        found = dict(zip(keys, values, strict=True))
        lost = list(writer.account.lost(values))
        if lost:
            words = "; ".join(described(item, [found[key] for key in item.keys]) for item in lost[:LOST_SHOWN])
            self._problems.add(f"{node.name} has lost {len(lost)} items of the {writer.name}: {words}")


def _state(node: SoakNode) -> tuple[str, ...]:
    """Root, state of replication and outbox of a node; empty if it does not answer."""
    try:
        with Client(HOST, node.port) as client:
            root, shown = client.call(b"HASH"), client.call(b"STATS")
    except (Unreachable, NodeError):
        return ()
    assert isinstance(root, bytes)
    assert isinstance(shown, bytes)
    figures = parse(shown.decode())
    return root.decode(), figures.get("replication_state", ""), figures.get("outbox_events", "")


def _list(reply: object) -> list[bytes | None]:
    assert isinstance(reply, list)
    return reply
