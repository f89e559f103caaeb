"""One budget of memory for all clients: requests that are not whole or wait, and replies that are not read.

What a client holds changes with every byte, so nobody adds it up all the time. Whatever may have made it grow is
counted, and only when the room that was left could be used up does a worker look at what each client really holds. If
that is too much, those that hold most are closed, as Redis does with `maxmemory-clients`.

The messages of other nodes that wait, and what scripts hold, count as well. They have bounds of their own, and lower
what is left for clients.

Cost: an addition for each tick. A look takes 0.5 us for each connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from sys import getsizeof
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from merklekv.net.connection import Connection

# An argument of two bytes takes eight on the wire, and eight times that as an object in a list.
RECEIVED_FACTOR: Final = 8
SAMPLES: Final = 1000  # of a list, from which the size of the others is guessed
STEPS: Final = 16  # clients may hold so much of the budget too much before somebody looks


def held_by(task: object) -> int:
    """About how many bytes a long command under way holds in what its generators have at hand."""
    size = 0
    while (frame := getattr(task, "gi_frame", None)) is not None:
        size += sum(map(_size, frame.f_locals.values()))
        task = getattr(task, "gi_yieldfrom", None)
    return size


def _size(one: object) -> int:
    """Of a list or dict the items, of which a sample stands for the others. An object may tell, by `__sizeof__`."""
    match one:
        case bytes() | bytearray():
            return len(one)
        case dict():
            return _size(list(one.values()))
        case list():
            step = 1 + len(one) // SAMPLES
            return step * sum(map(getsizeof, one[::step]))
    return getsizeof(one)


class Memory:
    """What clients hold, up to `limit` bytes. `grown` is what they may hold more since the last look."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0  # at the last look
        self.grown = 0
        self.room = limit
        self.others: list[Callable[[], int]] = []  # what draws on it beside clients: bytes now

    @property
    def is_due(self) -> bool:
        """Whether clients may hold more than they may."""
        return self.grown > self.room

    def look(self, connections: Iterable[Connection]) -> list[Connection]:
        """Looks at what each holds. Returns those that have to go, the largest first."""
        self.grown = 0
        held = [(one.memory_bytes, one) for one in connections]
        self.used = sum(size for size, _ in held) + sum(other() for other in self.others)
        ended = []
        if self.used > self.limit:
            held.sort(key=lambda each: each[0])
            while held and self.used > self.limit:
                size, largest = held.pop()
                self.used -= size
                ended.append(largest)
        self.room = max(self.limit - self.used, self.limit // STEPS)
        return ended
