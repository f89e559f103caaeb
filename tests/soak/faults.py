"""What is done to nodes, networks, disks and the broker, in lanes: one for each node, the broker and the strangers.

A lane does one thing after the other to its part, so a fault ends before the next of the same lane begins; those of
different lanes overlap. A lane shuffles its kinds, and goes through all of them before it shuffles again.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from merklekv.harness.process import HOST
from merklekv.net.client import Client, NodeError, Unreachable

from . import hostile
from .cluster import Cluster
from .load import Problems, Worker
from .node_faults import Act, Pause, acts_on

BROKER: Final = "broker"
STRANGERS: Final = "strangers"
FORGET_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Event:
    """A fault that is over; seconds of the run."""

    began: float
    ended: float
    where: str
    what: str


class Events:
    """All faults so far, of all lanes."""

    def __init__(self, began: float) -> None:
        self._began = began
        self._events: list[Event] = []
        self._lock = threading.Lock()

    def add(self, began: float, where: str, what: str) -> None:
        """One that is over; `began` is monotonic."""
        with self._lock:
            self._events.append(Event(began - self._began, time.monotonic() - self._began, where, what))

    @property
    def all(self) -> list[Event]:
        with self._lock:
            return list(self._events)


class Lane(Worker):
    """Does one thing after the other to one part of the cluster."""

    def __init__(
        self, where: str, acts: Mapping[str, Act], pace_s: float, seed: str, events: Events, problems: Problems
    ) -> None:
        """`pace_s`: the longest fault, and the longest time between two."""
        super().__init__(f"faults of {where}", problems)
        self._where = where
        self._acts = dict(acts)
        self._pace_s = pace_s
        self._chance = random.Random(f"{seed}, {self.name}")
        self._events = events
        self._deck: list[str] = []
        self._rounds = 0  # that it has begun
        self._finishes = False

    def finish(self) -> None:
        """Lets it end, but not before it has done everything once."""
        self._finishes = True

    def work(self) -> None:
        if self._finishes and self._has_done_all:
            self.stop()
            return
        if not self._deck:
            self._deck = self._chance.sample(sorted(self._acts), len(self._acts))
            self._rounds += 1
        self.rest(self._chance.uniform(0.1, 1.0) * self._pace_s)
        if self.is_stopped:
            return
        what = self._deck.pop()
        began = time.monotonic()
        self._acts[what](self._chance.uniform(0.3, 1.0) * self._pace_s, self._chance, self.rest)
        self._events.add(began, self._where, what)

    @property
    def _has_done_all(self) -> bool:
        return self._rounds > 1 or (self._rounds == 1 and not self._deck)

    def disconnect(self) -> None:
        """It has no connection."""


def make_lanes(
    cluster: Cluster, pace_s: float, seed: str, events: Events, problems: Problems, is_timed: bool
) -> list[Lane]:
    """All lanes, not started. `is_timed`: whether a slow stop of a node is a problem."""
    acts = {node.name: acts_on(node, cluster.directory, problems, is_timed) for node in cluster.nodes}
    acts[BROKER] = _acts_on_the_broker(cluster)
    acts[STRANGERS] = {what: _at_any_node(cluster, attack) for what, attack in hostile.ON_A_NODE.items()}
    acts[STRANGERS]["strange messages"] = partial(_send_messages, cluster)
    return [Lane(where, what, pace_s, seed, events, problems) for where, what in acts.items()]


def _acts_on_the_broker(cluster: Cluster) -> dict[str, Act]:
    broker = cluster.broker

    def stop(seconds: float, chance: random.Random, pause: Pause) -> None:
        broker.stop()
        pause(seconds)
        broker.start()

    def kill(seconds: float, chance: random.Random, pause: Pause) -> None:
        broker.kill()
        pause(seconds)
        broker.start()

    def freeze(seconds: float, chance: random.Random, pause: Pause) -> None:
        broker.send_signal(signal.SIGSTOP)
        pause(seconds)
        broker.send_signal(signal.SIGCONT)

    return {"stopped": stop, "killed": kill, "frozen": freeze}


def _send_messages(cluster: Cluster, seconds: float, chance: random.Random, pause: Pause) -> None:
    """Strangers' messages; and what an administrator does about members that they invent, which hold back deletions."""
    hostile.at_the_broker(cluster.broker, chance)
    pause(seconds)
    node = chance.choice(cluster.nodes)
    try:
        with Client(HOST, node.port, FORGET_S) as client:
            shown = client.call(b"MEMBERS")
            assert isinstance(shown, bytes)
            rows = [json.loads(line) for line in shown.splitlines()]
            members = {row["node"] for row in rows if row["state"] == "member"}
            for stranger in members - {one.name for one in cluster.nodes}:
                client.call(b"FORGET", stranger.encode())
    except (Unreachable, NodeError):
        pass  # the node is down, or they are removed already: the next time


def _at_any_node(cluster: Cluster, attack: hostile.Attack) -> Act:
    def act(seconds: float, chance: random.Random, pause: Pause) -> None:
        try:
            attack(chance.choice(cluster.nodes), seconds, chance, pause)
        except OSError:
            pass  # refused, closed, or left without a reply: whatever the node does to strangers is right

    return act
