"""When a command that may take long lets others run: after so much work, whatever the work is counted in."""

from __future__ import annotations


class Steps:
    """Counts the work of one command.

    steps = Steps(1000)
    for item in items:
        ...
        if steps.add(1):
            yield None
    """

    __slots__ = ("_done", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._done = 0

    def add(self, work: int) -> bool:
        """Counts; whether it is time to yield."""
        self._done += work
        if self._done < self._most:
            return False
        self._done = 0
        return True
