"""The paused connections of a worker: what each waits for, and which go on next.

    late        was read, and its tick did not come to it: goes on first in the next one
    runnable    goes on in one of the next ticks, in this order
    parked      waits for a condition, which is looked at in each tick
    sleeping    waits for a signal, and costs nothing until that is set or its time is over

Threads: the worker's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count, islice
from time import monotonic

from merklekv.net import limits
from merklekv.net.connection import PAUSED, Connection
from merklekv.net.waiting import Signal

ALARMS_MIN = 64  # of signals that are set already and are not forgotten


class Paused:
    """The paused connections of one worker. One that has ended meanwhile is passed over."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], None]) -> None:
        """`call_soon`: runs a function in the worker's thread, see `Worker.call_soon`."""
        self.late: dict[Connection, None] = {}  # in the order in which they came
        self.runnable: dict[Connection, None] = {}
        self.parked: dict[Connection, None] = {}
        self._sleeping: dict[Connection, Signal] = {}
        self._alarms: list[tuple[float, int, Signal]] = []  # a heap: when signals expire, also some that are set by now
        self._alarm_numbers = count()
        self._call_soon = call_soon

    def add(self, connection: Connection) -> None:
        """Lets a paused connection go on when it may. Again is without effect."""
        if connection in self.late:
            pass
        elif isinstance(connection.waits_for, Signal):
            self._sleep(connection, connection.waits_for)
        elif connection.waits_for is not None:
            self.parked[connection] = None
        elif connection.task is not None or connection.reads_replies:
            self.runnable[connection] = None

    def put_off(self, connection: Connection) -> None:
        """Lets a connection whose requests have not begun go on in the next tick, behind those that came before it."""
        self.late[connection] = None

    def forget(self, connection: Connection) -> None:
        """The connection has ended."""
        self._sleeping.pop(connection, None)
        self.late.pop(connection, None)

    def timeout(self, longest: float) -> float:
        """How long the worker may wait for clients, at most `longest`, in seconds."""
        if self.runnable or self.late:
            return 0.0
        if self.parked:
            longest = min(longest, limits.PARKED_POLL_S)
        return max(0.0, min(longest, self._alarms[0][0] - monotonic())) if self._alarms else longest

    def ring(self, now: float) -> None:
        """Lets the signals expire whose time is over."""
        while self._alarms and self._alarms[0][0] <= now:
            signal = heappop(self._alarms)[2]
            if not signal.is_set:
                signal.expire()

    def expire(self) -> None:
        """Ends all waiting for signals: the node stops."""
        for signal in list(self._sleeping.values()):
            signal.expire()

    def look(self) -> None:
        """Asks the conditions."""
        parked, self.parked = self.parked, {}
        for connection in parked:
            if _still_waits(connection):
                self.parked[connection] = None
            else:
                connection.waits_for = None
                self.runnable[connection] = None

    def first(self, most: int) -> list[Connection]:
        """The first of those that go on next, at most so many; `take` each before it does."""
        return list(islice(self.runnable, most))

    def take(self, connection: Connection) -> bool:
        """Takes out one that goes on now; False if it has ended meanwhile."""
        del self.runnable[connection]
        return connection.state is PAUSED

    def take_late(self, connection: Connection) -> bool:
        """Takes out one that was put off and goes on now; False if it has ended meanwhile."""
        if connection not in self.late:
            return False
        del self.late[connection]
        return connection.state is PAUSED

    def _sleep(self, connection: Connection, signal: Signal) -> None:
        """Lets a connection go on when its signal is set or expires."""
        if self._sleeping.get(connection) is signal:
            return
        self._sleeping[connection] = signal
        if signal.deadline < math.inf:
            if len(self._alarms) > 2 * len(self._sleeping) + ALARMS_MIN:
                self._alarms = [alarm for alarm in self._alarms if not alarm[2].is_set]
                heapify(self._alarms)
            heappush(self._alarms, (signal.deadline, next(self._alarm_numbers), signal))
        signal.attach(lambda: self._call_soon(lambda: self._wake_up(connection, signal)))

    def _wake_up(self, connection: Connection, signal: Signal) -> None:
        if self._sleeping.get(connection) is not signal:
            return
        del self._sleeping[connection]
        if connection.state is PAUSED and connection.waits_for is signal:
            connection.waits_for = None
            self.runnable[connection] = None


def _still_waits(connection: Connection) -> bool:
    if connection.state is not PAUSED or connection.waits_for is None:
        return False
    try:
        return not connection.waits_for()
    except Exception as problem:  # noqa: BLE001  raised when the command goes on
        connection.fail_task(problem)
        return False
