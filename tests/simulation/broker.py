"""The simulated broker: sessions with bounded queues, as MQTT's QoS 1 allows and no better.

A message stays in the queue of a session until it is acknowledged, so it may come again.  A full queue drops in
silence, as Mosquitto does.  A broker that is killed loses sessions, queues and retained messages.  Presence is
retained: a node that connects gets the last presence of every node.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

AHEAD_MAX: Final = 4  # a message may overtake so many


class Message(NamedTuple):
    """In one session's queue."""

    number: int
    source: str
    payload: bytes
    is_presence: bool


class Broker:
    """One broker.  The world decides which nodes reach it."""

    def __init__(self, queue_max: int) -> None:
        self.queue_max = queue_max
        self.up = True
        self.dropped = 0  # for good, in any way
        self._queues: dict[str, list[Message]] = {}
        self._retained: dict[str, bytes] = {}
        self._count = 0

    def connect(self, node: str) -> None:
        """Begin a session, or go on with one."""
        if node not in self._queues:
            self._queues[node] = []
            for source in sorted(self._retained):
                self._put(node, source, self._retained[source], True)

    def publish(self, source: str, payload: bytes) -> None:
        """Takes a message of events."""
        for node in self._queues:
            self._put(node, source, payload, False)

    def announce(self, source: str, payload: bytes) -> None:
        """Takes and retains a presence."""
        self._retained[source] = payload
        for node in self._queues:
            self._put(node, source, payload, True)

    def _put(self, node: str, source: str, payload: bytes, is_presence: bool) -> None:
        queue = self._queues[node]
        if len(queue) >= self.queue_max:
            self.dropped += 1
            return
        self._count += 1
        queue.append(Message(self._count, source, payload, is_presence))

    def take(self, node: str, count: int, chance: random.Random | None) -> list[Message]:
        """Up to `count` messages for a node, out of order and repeated if there is a chance for it."""
        queue = list(self._queues.get(node, ()))
        taken: list[Message] = []
        while queue and len(taken) < count:
            at = 0 if chance is None else min(int(chance.expovariate(1.5)), len(queue) - 1, AHEAD_MAX)
            message = queue[at]
            taken.append(message)
            if chance is None or chance.random() > 0.1:
                del queue[at]
        return taken

    def acknowledge(self, node: str, numbers: list[int]) -> None:
        """The node has processed these."""
        if node in self._queues:
            self._queues[node] = [one for one in self._queues[node] if one.number not in numbers]

    def lose(self, chance: random.Random | None, node: str) -> None:
        """Drops some of what waits for a node; without a chance, all."""
        queue = self._queues.get(node, [])
        kept = [one for one in queue if chance is not None and chance.random() < 0.5]
        self.dropped += len(queue) - len(kept)
        if node in self._queues:
            self._queues[node] = kept

    def waiting(self, node: str) -> int:
        """Messages in a node's queue."""
        return len(self._queues.get(node, ()))

    def kill(self) -> None:
        """Lose everything."""
        self.up = False
        self.dropped += sum(map(len, self._queues.values()))
        self._queues.clear()
        self._retained.clear()

    def drop_session(self, node: str) -> None:
        """As after the session's expiry."""
        self.dropped += len(self._queues.pop(node, ()))
