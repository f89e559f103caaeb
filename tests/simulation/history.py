"""Histories from seeds: which cluster, which faults, and the steps.

A seed draws first what kind of history it is: how many nodes, which faults there are at all and how often.  Histories
with few kinds of faults get further in each than those with all (Groce et al., "Swarm Testing", 2012).

A few are staged: not of single steps, but of the rows of steps that some mistakes take.

There are two kinds.  In one the broker is faithful and messages alone must make the nodes agree; nodes crash there, but
lose nothing else.  In the other everything may be lost, and exchanges must make it up.
"""

from __future__ import annotations

import random
from typing import Final

from .rows import Rows
from .steps import History

STEPS_RANGE: Final = (20, 90)
STAGES: Final[dict[str, float]] = {  # what takes several steps in a row, and is rare among others
    "early": 3,
    "echo": 2,
    "bequest": 3,
    "stranger": 1,
    "unannounced": 1,
    "relapse": 3,
    "amnesia": 3,
    "decay": 2,
    "write": 5,
    "round": 1,
}
DAMAGE: Final = ("rot", "decay", "scrub")
LONE: Final = {"solo": 8.0, "alone": 1.0, "dump": 1.0, "load": 2.0}
CLOCKS: Final = {"jump": 6.0, "forge": 2.0, "clock": 2.0, "exchange": 10.0}
WRONG_CLOCK: Final = {
    "wrong_clock": 8.0,
    "wrong_start": 5.0,
    "jumpy": 2.0,
    "lie": 6.0,
    "forge": 2.0,
    "forge_event": 3.0,
    "exchange": 10.0,
    "round": 1.0,
}
EXPIRING: Final = {"tick": 8.0, "clock": 3.0}
LIMITED: Final = {"limit": 6.0, "exchange": 10.0, "round": 3.0}
DELETIONS: Final = {  # what the rows of the deletion rule are for
    "foreign": 2.0,
    "vanish": 2.0,
    "unreadable": 1.0,
    "unseen": 1.0,
    "widow": 1.0,
    "forgetful": 1.0,
    "groups": 1.0,
    "detour": 1.0,
    "ahead": 0.5,
    "unled": 0.5,
    "straggler": 0.5,
    "legacy": 0.5,
    "hearsay": 0.5,
    "worn": 0.5,
    "disowned": 0.5,
    "overdue": 0.5,
    "relapse": 2.0,
    "amnesia": 1.0,
    "bequest": 1.0,
    "write": 5.0,
    "round": 2.0,
    "exchange": 3.0,
    "wipe": 0.5,
}
STAGES_RANGE: Final = (3, 8)
ALONE_RANGE: Final = (1, 4)
STAGED: Final = 0.1  # of those with exchanges
MESSAGES_ONLY: Final = 0.25  # of all histories


def history(seed: str) -> History:
    """The history of a seed: with `m` before it, of messages alone; with `x`, of exchanges too; with `s`, staged; with
    `c`, with clocks that jump and messages that lie about times; with `w`, with one wrong clock, and peers
    that lie; with `l`, with nodes that are alone and then join;
    with `v`, with values that are too large for some nodes; with `e`, with keys that expire; with `r`, with all that
    the deletion rule is for.
    `widow+write-7` is one of these steps and rows alone."""
    return _Writer(seed).history


class _Writer(Rows):
    """Draws one history."""

    def __init__(self, seed: str) -> None:
        chance = random.Random(seed)
        kind = chance.random() >= MESSAGES_ONLY
        alone = seed.partition("-")[0].split("+") if "-" in seed else []
        letter = "" if alone else seed[:1]
        exchanges = letter in tuple("xscwlvr") or bool(alone) or (letter != "m" and kind)
        names = [f"n{number}" for number in range(1, 1 + chance.choices((2, 3, 4, 5), (40, 40, 15, 5))[0])]
        names = ["n1", "n2", "n3", "n4"] if alone else names
        queue_max = chance.choice((3, 10, 1000)) if exchanges else 10**6
        super().__init__(History(seed, names, exchanges, queue_max), chance)
        self.history.expiring = letter == "e" or (seed.isdigit() and seed[-1:] == "5")
        staged = letter == "s" or (exchanges and chance.random() < STAGED)
        clocks = letter == "c" or (exchanges and seed.isdigit() and seed[-1:] == "7")
        kinds = STAGES if staged else {kind: weight for kind, weight in self._weights().items() if weight}
        if clocks:
            kinds = kinds | CLOCKS
        if letter == "w":
            self.history.wrong = chance.choice(names)
            kinds = {kind: weight for kind, weight in kinds.items() if kind not in DAMAGE} | WRONG_CLOCK
        if self.history.expiring:
            kinds = kinds | EXPIRING
        if letter == "l":
            kinds = kinds | LONE
        if letter == "v":
            self.big = True
            kinds = kinds | LIMITED
        if letter == "r" or (exchanges and seed.isdigit() and seed[-1:] == "3"):
            staged, kinds = True, DELETIONS
        if alone:
            staged, kinds = True, dict.fromkeys(alone, 1.0)
        for name in names:
            self._begin(name)
        for _ in range(chance.randint(*(ALONE_RANGE if alone else STAGES_RANGE if staged else STEPS_RANGE))):
            step = chance.choices(list(kinds), list(kinds.values()))[0]
            getattr(self, f"_{step}")()

    def _weights(self) -> dict[str, float]:
        """How often each kind of step comes; faults are there in about half of the histories."""
        some = self._some
        weights = {
            "write": 30.0,
            "publish": self.chance.choice((3, 12)),
            "answer": some(3),
            "deliver": self.chance.choice((3, 14)),
            "checkpoint": some(5),
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
            weights |= {"wipe": some(0.5), "leave": some(0.5), "haunt": some(1), "remove": some(2)}
            weights |= {"rot": some(1), "decay": some(3), "scrub": some(0.5)}
            weights |= {"kill_broker": some(1), "lose": some(1), "expire": some(1)}
        weights["start_broker"] = 3 if weights.get("kill_broker") else 0
        return weights

    def _some(self, weight: float) -> float:
        return self.chance.choice((0, 0, 0.5, 1, 2)) * weight
