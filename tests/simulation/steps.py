"""The steps of a history, one method each that draws it.

Histories are made of these, and of rows of them (`rows.py`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from merklekv.engine.failpoints import POINTS

from .world import Step

# Four share a leaf of the tree, three more its inner node, five are below another; all are in the first LEAVES.
KEYS: Final = tuple(b"k%d" % n for n in (609, 163332, 181682, 241311, 486, 545, 2432, 227, 379, 653, 875, 1611))
_LOG: Final = ("", "write", "written", "sync", "synced", "reserve")
WHERE: Final = {  # a node may crash, in which step
    "write": _LOG,
    "deliver": _LOG,
    "exchange": _LOG,
    "checkpoint": (*POINTS, "base", "based", "create", "sync"),
    "save": ("place", "sync", "synced"),
    "start": ("", "base", "based", "sync", "synced", "place"),
}
WHOLE: Final = 200  # requests, more than an exchange takes
NO_BROKER: Final = 0.15  # of those with exchanges
COMES_BACK: Final = 0.7
CRASH_AFTER_SAVE: Final = 0.3
SKEW_S: Final = 290.0  # two nodes are less than ten minutes apart, so that they take each other's events
LARGE_SKEW_S: Final = 200_000.0
BIG_VALUE: Final = 700
OFF_S: Final = (1.0, 59.0, 500.0, 3600.0, 86_400.0, 30 * 86_400.0, 365 * 86_400.0, 10 * 365 * 86_400.0)
NEVER_SET_S: Final = -1.99e9  # a clock that is so far behind shows a day in 1970
LIFETIMES: Final = (-2.0, 7.5)  # powers of ten: from 10 ms to a year
DIRECTIONS: Final = (*(1,) * 6, -1)  # a few have expired from the start
LIMITS: Final = (20, 200, 500, 10**6)  # bytes of the largest value that a node takes


@dataclass
class History:
    """What a world goes through."""

    seed: str
    names: list[str]
    exchanges: bool  # whether nodes may exchange, and lose whatever exchanges make up for
    queue_max: int
    steps: list[Step] = field(default_factory=list)
    wrong: str = ""  # the node whose clock alone may be wrong; empty: any
    expiring: bool = False  # whether keys expire


class Steps:
    """Draws steps."""

    def __init__(self, history: History, chance: random.Random) -> None:
        self.history = history
        self.chance = chance
        self.keys = chance.sample(KEYS, chance.choice((1, 2, 3, 6, len(KEYS))))
        self.deletes = chance.choice((10, 25, 60))
        self.big = chance.random() < 0.2
        self.values = 0
        self.broker = not (history.exchanges and chance.random() < NO_BROKER)
        self.left = set[str]()  # nodes that have left
        self._same = ""  # the node of the next step; empty: any

    def _add(self, kind: str, *args: Any) -> None:
        if kind in ("clock", "jump") and self.history.wrong and args[0] != self.history.wrong:
            return
        if kind == "leave":
            self.left.add(args[0])
        self.history.steps.append(Step(kind, args))

    def _node(self) -> str:
        return self._same or self.chance.choice(self.history.names)

    def _seed(self) -> int:
        """Never zero."""
        return self.chance.randint(1, 1 << 30)

    def _write(self) -> None:
        commands = tuple(self._command() for _ in range(self.chance.choice((1, 1, 1, 2, 5))))
        self._add("write", self._node(), commands, self.chance.random() < 0.8)

    def _command(self) -> tuple[str, bytes, bytes]:
        chance = self.chance
        commands = {"set": 60, "delete": self.deletes, "append": 5, "increment": 5, "truncate": 1}
        if self.history.expiring:
            commands |= {"set_for": 60, "expire": 15, "persist": 5}
        command = chance.choices(list(commands), list(commands.values()))[0]
        self.values += 1
        value = b"%d" % self.values
        if command in ("set_for", "expire"):
            value += b" %.3f" % (chance.choice(DIRECTIONS) * 10 ** chance.uniform(*LIFETIMES))
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

    def _checkpoint(self) -> None:
        self._add("checkpoint", self._node())

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
        large_s = (3600.0, LARGE_SKEW_S) if self.history.exchanges else (SKEW_S, SKEW_S)
        skew_s = self.chance.choice((0.0, 0.001, 1.0, 60.0, *large_s)) * self.chance.uniform(-1, 1)
        self._add("clock", self._node(), round(skew_s, 6))

    def _tick(self) -> None:
        self._add("tick", round(10 ** self.chance.uniform(-3, 5), 3))

    def _exchange(self) -> None:
        how = self.chance.choices(("rests", "cut", "late", "unanswered"), (4, 1, 1, 1))[0]
        requests = self.chance.choice((1, 1, 2, 3, 5, 9, 30, WHOLE, WHOLE))
        one, other = self._two()
        self._add("exchange", one, other, requests, how, self._seed())

    def _round(self, names: Sequence[str] = ()) -> None:
        """Each node exchanges with each other one, so that the GC horizon rises."""
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

    def _whole(self, one: str, other: str) -> None:
        self._add("exchange", one, other, WHOLE, "rests", self._seed())

    def _others(self, name: str) -> list[str]:
        return [other for other in self.history.names if other != name]

    def _wipe(self) -> None:
        self._add("wipe", self._node())

    def _alone(self) -> None:
        self._add("alone", self._node())

    def _dump(self) -> None:
        self._add("dump", self._node())

    def _load(self) -> None:
        self._add("load", self._node(), self._seed())

    def _limit(self) -> None:
        self._add("limit", name := self._node(), self.chance.choice(LIMITS))
        self._begin(name)

    def _leave(self) -> None:
        self._add("leave", self._node())

    def _haunt(self) -> None:
        self._add("haunt", self._node())

    def _remove(self) -> None:
        self._add("remove", *self._two())

    def _rot(self) -> None:
        self._add("rot", self._node(), self._seed())

    def _foreign(self) -> None:
        self._add("foreign", self._node(), self._seed())

    def _vanish(self) -> None:
        self._add("vanish", self._node(), self._seed())

    def _unreadable(self) -> None:
        self._add("unreadable", self._node(), self._seed())

    def _scrub(self) -> None:
        self._add("scrub", self._node(), self._seed())

    def _kill_broker(self) -> None:
        self._add("kill_broker")

    def _start_broker(self) -> None:
        self._add("start_broker")

    def _lose(self) -> None:
        self._add("lose", self._node(), self._seed())

    def _expire(self) -> None:
        self._add("expire", self._node())
