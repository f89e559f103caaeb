"""How the demo's cluster is: in an outage, healing, or equal; and how long the last outage took to heal."""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

SETTLE_S: Final = 1.0  # writes under way part the nodes for a moment: for so long, equal nodes count as equal
STUCK_S: Final = 5.0


class State(Enum):
    STARTING = auto()  # the nodes have not been equal yet
    OUTAGE = auto()  # something does not run
    HEALING = auto()  # everything was started again, and the nodes have not been equal since
    EQUAL = auto()
    DIFFERING = auto()  # without an outage, for longer than writes take


class Health:
    """Told what is seen at each look at the cluster, with its time in seconds."""

    def __init__(self) -> None:
        self.state = State.STARTING
        self.healed_s: float | None = None  # the last outage: from the last start to equal nodes
        self.healing_s = 0.0  # the same of the present one, so far
        self._started_at = 0.0
        self._equal_at = 0.0
        self._changed_at = 0.0
        self._seen: object = None
        self._now = 0.0

    def see(self, now: float, *, runs: bool, started_at: float, are_equal: bool, seen: object) -> None:
        """`runs`: whether all processes do; `started_at`: the last of them. `are_equal`: all nodes hold the same and
        nothing is on its way. `seen`: what tells whether anything moves."""
        self._now = now
        if seen != self._seen:
            self._seen, self._changed_at = seen, now
        if are_equal:
            self._equal_at = now
        if started_at > self._started_at:
            self._started_at = started_at
            self._leave(State.HEALING)  # an outage may be over before it is seen
        if not runs:
            self._leave(State.OUTAGE)
        elif are_equal:
            if self.state in (State.OUTAGE, State.HEALING):
                self.healed_s = now - started_at
            self.state = State.EQUAL
        elif self.state in (State.OUTAGE, State.HEALING):
            self.state = State.HEALING
            self.healing_s = now - started_at
        elif self.state is State.EQUAL and now - self._equal_at > SETTLE_S:
            self.state = State.DIFFERING

    def _leave(self, state: State) -> None:
        """What happens during the start is no outage."""
        if self.state is not State.STARTING:
            self.state = state

    @property
    def is_stuck(self) -> bool:
        """Whether nothing has moved for a while."""
        return self._now - self._changed_at > STUCK_S
