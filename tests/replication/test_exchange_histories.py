"""Random histories of three nodes: after all have met, each has the latest version of every key, and no deleted key
comes back.
"""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fixtures.exchanges import SECOND, Cut, Node, agree, carry, cluster, directory, exchange, is_dead, meet_all
from hypothesis import given, settings
from hypothesis import strategies as st

from merklekv.engine.record import value_of, version_of

KEYS = [b"k%d" % number for number in range(6)]
SKEW_MAX_S = 50
HISTORIES_MAX = 40


class History:
    """Nodes, and what should be there."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.written: dict[bytes, list[bytes]] = {key: [] for key in KEYS}  # records of local writes
        self.truncation = bytes(24)
        self.copies: dict[str, Path] = {}
        for node in nodes:
            for other in nodes:
                node.members.record_contact(other.name, other.members.identity.store_id)

    def set(self, node: int, key: int) -> None:
        self.nodes[node].set(KEYS[key], b"%d" % len(self.written[KEYS[key]]))
        self._note(self.nodes[node], KEYS[key])

    def delete(self, node: int, key: int) -> None:
        if self.nodes[node].engine.exists(KEYS[key]):
            self.nodes[node].delete(KEYS[key])
            self._note(self.nodes[node], KEYS[key])

    def _note(self, node: Node, key: bytes) -> None:
        record = node.engine.record(key)
        assert record is not None
        self.written[key].append(record)

    def truncate(self, node: int, _: int) -> None:
        self.nodes[node].tick()
        self.nodes[node].engine.truncate()
        self.nodes[node].engine.commit()
        self.truncation = max(self.truncation, self.nodes[node].engine.truncation)

    def exchange(self, node: int, other: int) -> None:
        if node != other:
            exchange(self.nodes[node], self.nodes[other])

    def cut(self, node: int, place: int) -> None:
        def cut(number: int, message: bytes) -> bytes:
            if number == place % 5:
                raise Cut
            return message

        with suppress(Cut):
            carry(
                self.nodes[node].initiate().steps(),
                self.nodes[(node + 1) % 3],
                **{"after" if place % 2 else "before": cut},
            )

    def event(self, node: int, key: int) -> None:
        """Something that was once written arrives, early or late."""
        records = self.written[KEYS[key]]
        if records:
            self.nodes[node].take_event(KEYS[key], records[len(records) // 2])

    def collect(self, node: int, _: int) -> None:
        while self.nodes[node].engine.collect_tombstones():
            pass
        self.nodes[node].engine.commit()

    def checkpoint(self, node: int, _: int) -> None:
        self.nodes[node].engine.checkpoint_now()

    def restart(self, node: int, _: int) -> None:
        self.nodes[node].reopen()

    def meet(self, _: int, __: int) -> None:
        meet_all(self.nodes, 1)

    def backup(self, node: int, _: int) -> None:
        self.copies[self.nodes[node].name] = self.nodes[node].backup()

    def restore(self, node: int, other: int) -> None:
        """Nothing is lost for all: another node has it."""
        if node != other and self.nodes[node].name in self.copies:
            self.exchange(node, other)
            for each in self.nodes:
                each.tick(2 * SKEW_MAX_S)
            self.nodes[node].restore(self.copies[self.nodes[node].name])

    def expected(self) -> dict[bytes, bytes]:
        newest = {key: max(records) for key, records in self.written.items() if records}
        return {
            key: value_of(record)
            for key, record in newest.items()
            if not is_dead(record) and version_of(record) >= self.truncation
        }

    def sweep(self) -> None:
        """Without a tree all buckets are compared, which takes a while; test_exchange.py does that once."""
        for node in self.nodes:
            if not node.engine.root_ready:
                node.engine.checkpoint_now()

    def finish(self) -> None:
        for _ in range(4):
            meet_all(self.nodes, 1)
            self.sweep()
        for node in self.nodes:
            self.collect(self.nodes.index(node), 0)
        assert agree(*self.nodes)
        for node in self.nodes:
            node.engine.checkpoint_now()
        assert agree(*self.nodes)
        assert self.nodes[0].values() == self.expected()
        assert sum(node.engine.tombstone_count for node in self.nodes) == 0


STEPS = {
    "set": 30, "delete": 20, "exchange": 30, "cut": 8, "event": 8, "collect": 6, "checkpoint": 4, "restart": 3,
    "meet": 4, "backup": 3, "restore": 3, "truncate": 1,
}  # fmt: skip


def run(steps: list[tuple[str, int, int]], skews: list[int]) -> None:
    with directory() as path, cluster(path, "abc") as nodes:
        for node, skew in zip(nodes, skews, strict=True):
            node.now += skew * SECOND
        history = History(nodes)
        for name, *arguments in steps:
            getattr(history, name)(*arguments)
            history.sweep()
        history.finish()


step = st.sampled_from([name for name, weight in STEPS.items() for _ in range(weight)])


@given(
    st.lists(st.tuples(step, st.integers(0, 2), st.integers(0, 5)).map(lambda s: (s[0], s[1], s[2])), max_size=30),
    st.lists(st.integers(0, SKEW_MAX_S), min_size=3, max_size=3),
)
@settings(max_examples=HISTORIES_MAX, deadline=None)
def test_any_history_converges(steps: list[tuple[str, int, int]], skews: list[int]) -> None:
    run(
        [(name, node, number % 3 if name in ("exchange", "restore") else number) for name, node, number in steps], skews
    )


@pytest.mark.parametrize("seed", range(20))
def test_a_long_history_converges(seed: int) -> None:
    chance = random.Random(seed)
    steps: list[Any] = []
    for name in chance.choices(list(STEPS), list(STEPS.values()), k=60):
        steps.append((name, chance.randrange(3), chance.randrange(3 if name in ("exchange", "restore") else 6)))
    run(steps, [chance.randrange(SKEW_MAX_S) for _ in range(3)])
