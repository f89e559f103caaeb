"""Histories from seeds: which cluster, which faults, and the steps.

A seed draws first what kind of history it is: how many nodes, which faults there are at all and how often.  Histories
with few kinds of faults get further in each than those with all (Groce et al., "Swarm Testing", 2012).

A few are staged: not of single steps, but of the rows of steps that some mistakes take.

There are two kinds.  In one the broker is faithful and messages alone must make the nodes agree; nodes crash there, but
lose nothing else.  In the other everything may be lost, and exchanges must make it up.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from merklekv.engine.crashpoints import POINTS

from .world import Step

# Four share a leaf of the tree, three more its inner node, five are below another; all are in the first LEAVES.
KEYS: Final = tuple(b"k%d" % n for n in (609, 163332, 181682, 241311, 486, 545, 2432, 227, 379, 653, 875, 1611))
_LOG: Final = ("", "write", "written", "sync", "synced", "reserve")
WHERE: Final = {  # a node may crash, in which step
    "write": _LOG,
    "deliver": _LOG,
    "exchange": _LOG,
    "absorb": (*POINTS, "base", "based", "create", "sync"),
    "save": ("place", "sync", "synced"),
    "start": ("", "base", "based", "sync", "synced", "place"),
}
STEPS_RANGE: Final = (20, 90)
STAGES: Final[dict[str, float]] = {  # what takes several steps in a row, and is rare among others
    "early": 3,
    "echo": 2,
    "bequest": 3,
    "stranger": 1,
    "unheard": 1,
    "relapse": 3,
    "amnesia": 3,
    "decay": 2,
    "write": 5,
    "round": 1,
}
STAGES_RANGE: Final = (3, 8)
STAGED: Final = 0.1  # of those with exchanges
MESSAGES_ONLY: Final = 0.25  # of all histories
WHOLE: Final = 200  # requests, more than an exchange takes
NO_BROKER: Final = 0.15  # of those with exchanges
COMES_BACK: Final = 0.7
CRASH_AFTER_SAVE: Final = 0.3
SKEW_S: Final = 40_000.0  # two nodes are less than a day apart, so that they take each other's events
LARGE_SKEW_S: Final = 200_000.0
BIG_VALUE: Final = 700


@dataclass
class History:
    """What a world goes through."""

    seed: str
    names: list[str]
    exchanges: bool  # whether nodes may exchange, and lose whatever exchanges make up for
    queue_max: int
    steps: list[Step] = field(default_factory=list)


def history(seed: str) -> History:
    """The history of a seed: with `m` before it, of messages alone; with `x`, of exchanges too; with `s`, staged."""
    return _Writer(seed).history


class _Writer:
    """Draws one history."""

    def __init__(self, seed: str) -> None:
        self.chance = chance = random.Random(seed)
        kind = chance.random() >= MESSAGES_ONLY
        exchanges = {"m": False, "x": True, "s": True}.get(seed[:1], kind)
        names = [f"n{number}" for number in range(1, 1 + chance.choices((2, 3, 4, 5), (40, 40, 15, 5))[0])]
        queue_max = chance.choice((3, 10, 1000)) if exchanges else 10**6
        self.history = History(seed, names, exchanges, queue_max)
        self.keys = chance.sample(KEYS, chance.choice((1, 2, 3, 6, len(KEYS))))
        self.deletes = chance.choice((10, 25, 60))
        self.big = chance.random() < 0.2
        self.values = 0
        self.broker = not (exchanges and chance.random() < NO_BROKER)
        self._same = ""  # the node of the next step; empty: any
        staged = seed[:1] == "s" or (exchanges and chance.random() < STAGED)
        kinds = STAGES if staged else {kind: weight for kind, weight in self._weights().items() if weight}
        for name in names:
            self._begin(name)
        for _ in range(chance.randint(*(STAGES_RANGE if staged else STEPS_RANGE))):
            kind = chance.choices(list(kinds), list(kinds.values()))[0]
            getattr(self, f"_{kind}")()

    def _weights(self) -> dict[str, float]:
        """How often each kind of step comes; faults are there in about half of the histories."""
        some = self._some
        weights = {
            "write": 30.0,
            "publish": self.chance.choice((3, 12)),
            "answer": some(3),
            "deliver": self.chance.choice((3, 14)),
            "absorb": some(5),
            "save": some(6),
            "connect": 5.0 * self.broker,
            "disconnect": some(2),
            "start": 6.0,
            "stop": some(2),
            "crash": some(3),
            "arm": some(8),
            "clock": some(2),
            "tick": some(3),
        }
        if self.history.exchanges:
            weights |= {"exchange": 10.0, "round": some(3), "arrive": some(2), "partition": some(1)}
            weights |= {"backup": (backups := some(3)), "restore": backups, "relapse": some(1.5)}
            weights |= {"backwards": some(1), "early": some(0.3), "echo": some(0.3)}
            weights |= {"wipe": some(0.5), "leave": some(0.5), "haunt": some(1), "forget": some(2)}
            weights |= {"rot": some(1), "decay": some(3), "scrub": some(0.5)}
            weights |= {"kill_broker": some(1), "lose": some(1), "expire": some(1)}
        weights["start_broker"] = 3 if weights.get("kill_broker") else 0
        return weights

    def _some(self, weight: float) -> float:
        return self.chance.choice((0, 0, 0.5, 1, 2)) * weight

    def _add(self, kind: str, *args: Any) -> None:
        self.history.steps.append(Step(kind, args))

    def _node(self) -> str:
        return self._same or self.chance.choice(self.history.names)

    def _seed(self) -> int:
        """Never zero."""
        return self.chance.randint(1, 1 << 30)

    # -- one method for each kind of step ------------------------------------------------------------------------------

    def _write(self) -> None:
        commands = tuple(self._command() for _ in range(self.chance.choice((1, 1, 1, 2, 5))))
        self._add("write", self._node(), commands, self.chance.random() < 0.8)

    def _command(self) -> tuple[str, bytes, bytes]:
        chance = self.chance
        command = chance.choices(("set", "delete", "append", "increment", "truncate"), (60, self.deletes, 5, 5, 1))[0]
        self.values += 1
        value = b"%d" % self.values
        if self.big and command == "set":
            value += b"." * chance.randrange(BIG_VALUE)
        return command, b"" if command == "truncate" else chance.choice(self.keys), value

    def _publish(self) -> None:
        how = self.chance.choices(("answered", "flying", "arrived"), (50, 45, 5))[0]
        self._add("publish", self._node(), self.chance.choice((1, 1, 2, 9)), how)

    def _answer(self) -> None:
        self._add("answer", self._node(), self._seed())

    def _deliver(self) -> None:
        seed = 0 if self.chance.random() < 0.4 else self._seed()
        self._add("deliver", self._node(), self.chance.choice((1, 3, 20)), seed)

    def _absorb(self) -> None:
        self._add("absorb", self._node())

    def _save(self) -> None:
        self._add("save", name := self._node())
        if self.chance.random() < CRASH_AFTER_SAVE:
            self._go_on(name, ("crash", "disconnect"))

    def _connect(self) -> None:
        self._add("connect", self._node())

    def _disconnect(self) -> None:
        self._add("disconnect", self._node())

    def _start(self) -> None:
        self._begin(self._node())

    def _begin(self, name: str) -> None:
        self._add("start", name)
        if self.broker:
            self._add("connect", name)

    def _stop(self) -> None:
        self._add("stop", name := self._node())
        self._back(name)

    def _crash(self) -> None:
        self._add("crash", name := self._node(), self._seed() if self.chance.random() < 0.7 else 0)
        self._back(name)

    def _arm(self) -> None:
        kind = self.chance.choice(list(WHERE))
        if kind == "exchange" and not self.history.exchanges:
            return
        moment = self.chance.choice(WHERE[kind])
        seed = self._seed() if self.chance.random() < 0.7 else 0
        self._add("arm", name := self._node(), moment, self.chance.choice((1, 1, 1, 2, 3, 8)), seed)
        self._go_on(name, (kind,))
        self._back(name)

    def _back(self, name: str) -> None:
        """A node that has gone down comes back, more often than not."""
        if self.chance.random() < COMES_BACK:
            self._begin(name)

    def _go_on(self, name: str, kinds: tuple[str, ...]) -> None:
        """The next step is this node's too."""
        self._same = name
        getattr(self, f"_{self.chance.choice(kinds)}")()
        self._same = ""

    def _clock(self) -> None:
        largest_s = LARGE_SKEW_S if self.history.exchanges else SKEW_S
        skew_s = self.chance.choice((0.0, 0.001, 1.0, 60.0, 3600.0, largest_s)) * self.chance.uniform(-1, 1)
        self._add("clock", self._node(), round(skew_s, 6))

    def _backwards(self) -> None:
        """A wall clock that was far ahead is set right, and its node writes on."""
        self._add("clock", name := self._node(), round(LARGE_SKEW_S * self.chance.uniform(0.5, 1), 6))
        self._go_on(name, ("write",))
        self._add("clock", name, 0.0)
        self._go_on(name, ("write",))

    def _tick(self) -> None:
        self._add("tick", round(10 ** self.chance.uniform(-3, 5), 3))

    def _exchange(self) -> None:
        how = self.chance.choices(("rests", "cut", "late", "deaf"), (4, 1, 1, 1))[0]
        requests = self.chance.choice((1, 1, 2, 3, 5, 9, 30, WHOLE, WHOLE))
        one, other = self._two()
        self._add("exchange", one, other, requests, how, self._seed())

    def _round(self, names: Sequence[str] = ()) -> None:
        """Everybody exchanges with everybody, so that the horizon moves."""
        names = names or self.history.names
        pairs = [(one, other) for one in names for other in names if one != other]
        for one, other in self.chance.sample(pairs, len(pairs)):
            self._whole(one, other)

    def _two(self) -> tuple[str, str]:
        one = self._node()
        return one, self.chance.choice(self._others(one))

    def _arrive(self) -> None:
        self._add("arrive", self._node(), self._seed())

    def _partition(self) -> None:
        parts = self.chance.choice((1, 2, 2, 3))
        self._add("partition", tuple((name, self.chance.randrange(parts)) for name in self.history.names))

    def _backup(self) -> None:
        self._add("backup", self._node())

    def _restore(self) -> None:
        self._add("restore", name := self._node(), self._seed())
        self._back(name)

    def _relapse(self) -> None:
        """The cluster goes on, and then a node is where it was before."""
        self._add("backup", name := self._node())
        for kind in self.chance.choices(("write", "round"), k=4):
            getattr(self, f"_{kind}")()
        self._round()
        self._add("restore", name, self._seed())
        self._back(name)
        if self.chance.random() < 0.5:
            other = self.chance.choice(self._others(name))
            pair = self.chance.sample((name, other), 2)
            self._add("exchange", *pair, self.chance.choice((1, 2, 3)), "rests", self._seed())
            self._go_on(name, ("write",))
            self._add("exchange", *pair, WHOLE, "rests", self._seed())

    def _amnesia(self) -> None:
        """A node goes back to where it knew nobody, and settles what it has with one that is new."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        new, *cluster = names
        lost, *others = cluster
        for name in (lost, new):
            self._add("wipe", name)
            for by in others:
                self._add("forget", name, by)
        self._writes(self.chance.choice((lost, lost, new)), "set")
        if self.chance.random() < 0.3:
            self._add(
                "exchange", lost, self.chance.choice(others), self.chance.choice((1, 2, 3, 4)), "cut", self._seed()
            )
        self._add("backup", lost)
        for command in ("set", "delete"):
            if self.chance.random() < 0.7:
                self._writes(self.chance.choice(cluster), command)
            self._round(cluster)
        self._round(cluster)
        self._add("restore", lost, self._seed())
        self._add("start", lost)
        for _ in range(self.chance.choice((1, 2, 3))):
            self._round([lost, new])
        if self.chance.random() < 0.5:
            self._go_on(self.chance.choice((lost, new)), ("write",))
        self._whole(*self._two())

    def _early(self) -> None:
        """A node tells its clock, and comes back with one that is behind that; what it deletes then is to last."""
        name, other = self._two()
        self._round()
        self._add("clock", name, round(10 ** self.chance.uniform(-1, 4), 6))
        if self.chance.random() < 0.5:
            self._whole(name, other)
        self._add("exchange", name, other, self.chance.choice((0, 1)), "deaf", self._seed())
        self._add("exchange", other, name, self.chance.choice((1, WHOLE)), "cut", self._seed())
        self._add("crash", name, self._seed())
        self._add("clock", name, 0.0)
        self._begin(name)
        self._writes(name, "delete")
        self._whole(other, name)

    def _echo(self) -> None:
        """A request arrives at a node that was restored since."""
        name, other = self._two()
        self._round()
        self._add("backup", name)
        self._go_on(other, ("write",))
        self._add("exchange", other, name, self.chance.choice((2, 3, 4, 5)), "late", self._seed())
        self._add("restore", name, self._seed())
        self._begin(name)
        self._add("arrive", name, self._seed())
        self._round()

    def _bequest(self) -> None:
        """A node leaves, and what it has deleted last has come to one of the others alone."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        gone, heir, other = names[:3]
        self._round()
        self._writes(gone, "set")
        self._whole(gone, heir)
        self._whole(gone, other)
        self._writes(gone, "delete")
        self._whole(*self.chance.sample((heir, other), 2))
        self._whole(gone, heir)
        self._add("leave", gone)
        self._add("forget", gone, heir)
        self._greet(heir, other)

    def _stranger(self) -> None:
        """Two have met, and one of them meets a third that the other does not know yet."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        one, other, third = names[:3]
        self._writes(one, "set")
        self._writes(third, "set")
        self._writes(third, "delete")
        self._whole(one, other)
        self._whole(other, one)
        self._whole(third, one)
        self._whole(one, third)

    def _unheard(self) -> None:
        """A new node is heard by its events alone, the last of which comes to one of the others only."""
        names = self.chance.sample(self.history.names, len(self.history.names))
        if len(names) < 3:
            return
        name, heir, other = names[:3]
        self._add("wipe", name)
        for by in (heir, other):
            self._add("connect", by)
            self._add("forget", name, by)
        self._add("connect", name)
        self._add("lose", heir, 0)
        self._add("lose", other, 0)
        self._whole(heir, other)
        self._writes(name, "set")
        self._add("publish", name, 9, "answered")
        self._add("deliver", heir, 20, 0)
        self._add("deliver", other, 20, 0)
        self._writes(name, "delete")
        self._whole(*self.chance.sample((heir, other), 2))
        self._add("publish", name, 9, "answered")
        self._add("deliver", heir, 20, 0)
        self._add("lose", other, 0)
        self._add("leave", name)
        self._greet(heir, other)

    def _greet(self, one: str, other: str) -> None:
        """Two tell each other what they know of the members, and do not go on to the data."""
        for first, second in ((one, other), (other, one), (one, other)):
            self._add("exchange", first, second, 1, "cut", self._seed())

    def _writes(self, name: str, command: str) -> None:
        """A command for all of the keys."""
        self.values += 1
        self._add("write", name, tuple((command, key, b"%d" % self.values) for key in self.keys), True)

    def _whole(self, one: str, other: str) -> None:
        self._add("exchange", one, other, WHOLE, "rests", self._seed())

    def _others(self, name: str) -> list[str]:
        return [other for other in self.history.names if other != name]

    def _wipe(self) -> None:
        self._add("wipe", self._node())

    def _leave(self) -> None:
        self._add("leave", self._node())

    def _haunt(self) -> None:
        self._add("haunt", self._node())

    def _forget(self) -> None:
        self._add("forget", *self._two())

    def _rot(self) -> None:
        self._add("rot", self._node(), self._seed())

    def _scrub(self) -> None:
        self._add("scrub", self._node(), self._seed())

    def _decay(self) -> None:
        """Records come into the base and are damaged there, and after a while the scrub comes by."""
        name = self._node()
        self._go_on(name, ("write",))
        if self.chance.random() < 0.7:
            self._round()
        self._add("absorb", name)
        self._add("rot", name, self._seed())
        for _ in range(self.chance.choice((0, 0, 1, 3))):
            self._go_on(name, ("write", "exchange", "absorb", "deliver"))
        self._add("scrub", name, self._seed())

    def _kill_broker(self) -> None:
        self._add("kill_broker")

    def _start_broker(self) -> None:
        self._add("start_broker")

    def _lose(self) -> None:
        self._add("lose", self._node(), self._seed())

    def _expire(self) -> None:
        self._add("expire", self._node())
