"""The demo's outages as a script: a node is killed and started again, then the broker is stopped and started again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

SCRIPT: Final = (  # names of controls, each with its time as a share of the whole
    (0.15, "kill-node-2"),
    (0.40, "start-node-2"),
    (0.55, "stop-broker"),
    (0.80, "start-broker"),
)


class Script:
    """What is to be done at which time, from `now` on for so many seconds; `acts` are as in SCRIPT."""

    def __init__(self, now: float, seconds: float, acts: Iterable[tuple[float, str]] = SCRIPT) -> None:
        self._due = deque((now + share * seconds, name) for share, name in acts)
        self._end = now + seconds

    def next(self, now: float) -> str:
        """The name of the control that is due, if any. One at a time, so that the effect of each is seen."""
        return self._due.popleft()[1] if self._due and self._due[0][0] <= now else ""

    def is_over(self, now: float) -> bool:
        return not self._due and self._end <= now
