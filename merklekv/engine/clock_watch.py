"""What is wrong with the wall clock of this machine, as far as one node can tell by itself.

It cannot tell whether the wall clock is right.  It can tell that it was never set, that it jumped while the node ran,
and that the node's data are ahead of it: then it is slow, or it was fast when they were written.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from merklekv.engine.clock import HybridClock
from merklekv.engine.record import OP_ID_SIZE, make_version
from merklekv.engine.time_gate import LATEST_NS, show_time
from merklekv.log_throttle import LogThrottle

UNSET: Final = "unset"  # it was never set, or is beyond all that is believed
BEHIND: Final = "behind"  # this node has agreed with others to times that it has not reached, or truncated there
RECORDS: Final = "records"  # records are ahead of it
TRUNCATION: Final = "truncation"  # a truncation is ahead of it, but not so far
JUMP_S: Final = 1.0  # between two looks; a smaller one is a correction as NTP makes them
PAUSE_NS: Final = 10**7  # between the readings of two clocks: after a longer one they are read again
READINGS_MAX: Final = 10

log = logging.getLogger(__name__)


class ClockProblem(NamedTuple):
    """What is wrong with a clock; all empty if nothing is."""

    kind: str
    cause: str  # the same text for as long as it is so
    text: str  # with what to do

    def __bool__(self) -> bool:
        return self.kind != ""


NO_PROBLEM: Final = ClockProblem("", "", "")


def clock_problem(clock: HybridClock, node: str, directory: Path | str) -> ClockProblem:
    """What is wrong with the clock of a node whose data are in a directory."""
    is_late = clock.gate.wall() > LATEST_NS
    if is_late or not clock.gate.is_set:
        cause = f"the wall clock of node {node} {'is wrong' if is_late else 'was never set'}"
        return ClockProblem(UNSET, cause, f"{cause}, it shows {show_time(clock.gate.wall())}: set it")
    is_behind = clock.closed_through > clock.gate.latest()
    if not clock.gate.admits_truncation(make_version(clock.truncated_through, bytes(OP_ID_SIZE))):
        kind, ahead, what = BEHIND if is_behind else TRUNCATION, clock.truncated_through, "has a FLUSHALL of"
        follows = "all that any node writes before that time is deleted"
    elif is_behind:
        kind, ahead, what = BEHIND, clock.closed_through, "stamps its writes after"
        follows = "other nodes refuse them"
    elif clock.newest > clock.gate.latest():
        kind, ahead, what = RECORDS, clock.newest, "has versions up to"
        follows = "other nodes refuse these records"
    else:
        return NO_PROBLEM
    cause, ahead_s = f"node {node} {what} {show_time(ahead)}", clock.gate.ahead_s(ahead)
    return ClockProblem(
        kind,
        f"{cause}, ahead of its wall clock",
        f"{cause}, {ahead_s:.0f} s ahead of its wall clock, and {follows}: {restamp_advice(directory)}",
    )


def restamp_advice(directory: Path | str) -> str:
    """What to do about times that the wall clock of this machine has not reached."""
    return f"set the clock if it is slow; if it is right, stop the node and run 'merklekv restamp {directory}'"


def since_boot_ns() -> int:
    """A clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class ClockWatch:
    """Looks at the clock of a running node now and then, and logs what is new.  One thread calls `look`."""

    def __init__(
        self, clock: HybridClock, node: str, directory: Path | str, since_boot: Callable[[], int] = since_boot_ns
    ) -> None:
        self.last_jump = ""  # of more than the drift, for people
        self._clock = clock
        self._node = node
        self._directory = directory
        self._since_boot = since_boot
        self._throttle = LogThrottle(log, lambda: since_boot() / 10**9)
        self._wall, self._boot = self._read()
        self._kind = self.problem().kind  # the start has logged it

    def problem(self) -> ClockProblem:
        """What is wrong now."""
        return clock_problem(self._clock, self._node, self._directory)

    def look(self) -> bool:
        """Logs a jump of the wall clock since the last look, and what is wrong now and was not.

        Returns whether it jumped by more than the drift.
        """
        wall, boot = self._wall, self._boot
        self._wall, self._boot = self._read()
        jump = (self._wall - wall) - (self._boot - boot)
        if abs(jump) >= JUMP_S * 10**9:
            way, seconds = "forward" if jump > 0 else "back", abs(jump) / 10**9
            text = f"the wall clock of node {self._node} jumped {way} by {seconds:.0f} s, to {show_time(self._wall)}"
            self._throttle.warn(way, f"{text}: if it is wrong now, set it")
            if abs(jump) > self._clock.gate.max_drift_ns:
                self.last_jump = text
        problem = self.problem()
        if problem.kind != self._kind:
            self._kind = problem.kind
            over = f"the data of node {self._node} are not ahead of its wall clock any more"
            self._throttle.warn(problem.kind, problem.text or over)
        return abs(jump) > self._clock.gate.max_drift_ns

    def _read(self) -> tuple[int, int]:
        """The wall clock and the one since boot, of one moment: a pause of this thread between them seems a jump."""
        for _ in range(READINGS_MAX):
            boot = self._since_boot()
            wall = self._clock.gate.wall()
            if self._since_boot() - boot < PAUSE_NS:
                break
        return wall, boot
