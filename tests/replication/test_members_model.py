"""Tables of members against a model: what a table takes for stable, all nodes have applied."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from merklekv.engine.record import STORE_ID_SIZE
from merklekv.replication.cluster.members import Members

STORE_ID = bytes(STORE_ID_SIZE)


class Model:
    """Nodes that write, exchange and remove members, with sets of writes as data."""

    def __init__(self, names: str) -> None:
        self.tables = {name: Members(name, STORE_ID) for name in names}
        self.writes: dict[str, set[tuple[int, str]]] = {name: set() for name in names}
        self.clocks = dict.fromkeys(names, 0)
        self.gone: set[str] = set()
        for members in self.tables.values():
            for name in names:
                members.record_contact(name, STORE_ID)

    def write(self, name: str, ahead: int) -> None:
        self.clocks[name] += ahead
        self.writes[name].add((self.clocks[name], name))

    def exchange(self, first: str, second: str, stage: int) -> None:
        """Cut at a stage, 3 is the end."""
        a, b = self.tables[first], self.tables[second]
        if first == second or a.identity in b.removed or b.identity in a.removed:
            return
        a.close_through(self.clocks[first])
        sent = a.table()
        b.add_members_of(sent)
        b.close_through(self.clocks[second])
        answer = b.table()
        if stage == 0:
            return
        a.add_members_of(answer)
        if stage == 1:
            return
        self.writes[first] |= self.writes[second]
        self.writes[second] |= self.writes[first]
        a.merge_table(answer)
        if stage == 2:
            return
        b.record_given(answer.report.closed)
        b.merge_table(sent)
        a.record_given(sent.report.closed)
        a.add_members_of(b.table())

    def tick(self, name: str, ahead: int) -> None:
        self.clocks[name] += ahead

    def round(self, ahead: int) -> None:
        """Every node that is not removed exchanges with every other one."""
        left = [name for name in self.tables if name not in self.gone]
        for first in left:
            self.tick(first, ahead)
        for first in left:
            for second in left:
                self.exchange(first, second, 3)

    def remove(self, by: str, name: str) -> None:
        if by not in self.gone and len(self.gone | {name}) < len(self.tables) - 1:
            if any(identity.node == name for identity, _ in self.tables[by]):
                self.tables[by].remove(name)
            self.gone.add(name)

    def is_sound(self) -> bool:
        """Whether the nodes that were not removed have the same writes below each horizon."""
        for name, members in self.tables.items():
            if name in self.gone:
                continue
            everyone = [name, *(identity.node for identity, _ in members)]
            stable = [{w for w in self.writes[node] if w[0] <= members.gc_horizon()} for node in everyone]
            if any(one != stable[0] for one in stable) or members.gc_horizon() > members.stable():
                return False
        return True


def history(seed: int) -> Iterator[tuple[Any, ...]]:
    """What three nodes do, one of which may be removed."""
    chance = random.Random(seed)
    for _ in range(40):
        kind = chance.choices(["write", "tick", "exchange", "round", "remove"], [25, 20, 43, 2, 10])[0]
        if kind in ("write", "tick"):
            yield kind, chance.choice("abc"), chance.randint(1, 2 if kind == "write" else 20)
        elif kind == "exchange":
            yield kind, *chance.sample("abc", 2), chance.choice([0, 1, 2, 3, 3, 3])
        else:
            yield (kind, 5) if kind == "round" else (kind, chance.choice("bc"), "a")


@pytest.mark.parametrize("seeds", [range(at, at + 50) for at in range(0, 200, 50)], ids=str)
def test_below_the_horizon_all_have_everything(seeds: range) -> None:
    for seed in seeds:
        model = Model("abc")
        done = []
        for name, *arguments in history(seed):
            done.append((name, *arguments))
            getattr(model, name)(*arguments)
            assert model.is_sound(), done
