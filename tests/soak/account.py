"""The account of acknowledged writes: what every node has to show in the end, exactly.

An item is one key, or a few that only change together. It belongs to one writer, at one node, which numbers the writes
to it: the n-th makes the item show what its number says. Of each item the account knows the oldest and the newest write
that it may show. They differ only while the fate of a write is unknown: it was sent, and the connection broke, or the
node refused it. What a read shows settles that, because nothing that a client has seen may be lost by a killed process.

For this to be exact, a writer whose connection broke makes the node close that connection before it writes again: a
node that was frozen would otherwise run the old requests after the new ones.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Final

Request = tuple[bytes, ...]
Values = tuple[bytes | None, ...]

SIZES: Final = (20, 100, 100, 1_000, 10_000)  # of values, by the number of the key
LARGE: Final = 200_000  # of one key in LARGE_EVERY
LARGE_EVERY: Final = 40
DELETION_EVERY: Final = 7
PLAIN, COUNTERS, PAIRS, FLEETING = 160, 20, 40, 40  # items of a writer
FLEETING_MS: Final = 1_500
LASTING_S: Final = 86_400
PAIR_SCRIPT: Final = b"redis.call('SET', KEYS[1], ARGV[1]) return redis.call('SET', KEYS[2], ARGV[1])"


class Item(ABC):
    """Keys that change together."""

    def __init__(self, *keys: bytes) -> None:
        self.keys: Final = keys
        self.oldest = 0  # the writes that it may show; the zeroth stands for no key
        self.newest = 0

    @abstractmethod
    def requests(self, number: int) -> list[Request]:
        """What makes the n-th write."""

    @abstractmethod
    def shows(self, number: int, values: Values) -> bool:
        """Whether the keys have these values after the n-th write."""

    def write(self) -> list[Request]:
        """The next write, which is sent now."""
        self.newest += 1
        return self.requests(self.newest)

    def acknowledge(self) -> None:
        """The newest write was acknowledged."""
        self.oldest = self.newest

    def fits(self, values: Values) -> bool:
        """Whether these values are possible on any node, once all nodes are equal."""
        return any(self.shows(number, values) for number in range(self.oldest, self.newest + 1))

    def settle(self, values: Values) -> bool:
        """Whether what the writer reads at its own node is possible; then it is known better what was written."""
        possible = [number for number in range(self.oldest, self.newest + 1) if self.shows(number, values)]
        if possible:
            self.oldest, self.newest = possible[0], possible[-1]
        return bool(possible)


class Plain(Item):
    """A key that is set and deleted."""

    def __init__(self, key: bytes, size: int) -> None:
        super().__init__(key)
        self._size = size

    def value(self, number: int) -> bytes | None:
        if number % DELETION_EVERY == 0:
            return None
        return (b"write %d to %b:" % (number, self.keys[0])).ljust(self._size, b"x")

    def requests(self, number: int) -> list[Request]:
        value = self.value(number)
        if value is None:
            return [(b"DEL", self.keys[0])]
        lifetime = (b"EX", b"%d" % LASTING_S) if number % 2 else ()
        return [(b"SET", self.keys[0], value, *lifetime)]

    def shows(self, number: int, values: Values) -> bool:
        return values == (self.value(number),)


class Counter(Item):
    """A key that is counted up: a write that is lost or done twice shows."""

    def requests(self, number: int) -> list[Request]:
        return [(b"INCR", self.keys[0])]

    def acknowledge(self) -> None:
        """One more was counted, whatever became of those before."""
        self.oldest += 1

    def shows(self, number: int, values: Values) -> bool:
        return values == ((b"%d" % number if number else None),)


class Pair(Item):
    """Two keys that one request or one transaction writes: they never part."""

    def requests(self, number: int) -> list[Request]:
        one, other = self.keys
        value = b"%d" % number
        if number % DELETION_EVERY == 0:
            return [(b"MULTI",), (b"DEL", one), (b"DEL", other), (b"EXEC",)]
        if number % 3 == 0:
            return [(b"MULTI",), (b"SET", one, value), (b"SET", other, value), (b"EXEC",)]
        if number % 3 == 1:
            return [(b"EVAL", PAIR_SCRIPT, b"2", one, other, value)]
        return [(b"MSET", one, value, other, value)]

    def shows(self, number: int, values: Values) -> bool:
        value = b"%d" % number if number % DELETION_EVERY else None
        return values == (value, value)


class Fleeting(Item):
    """A key that every other write lets expire soon."""

    def requests(self, number: int) -> list[Request]:
        lifetime = (b"PX", b"%d" % FLEETING_MS) if number % 2 else ()
        return [(b"SET", self.keys[0], b"%d" % number, *lifetime)]

    def shows(self, number: int, values: Values) -> bool:
        return values == (b"%d" % number,) or (self._expires(number) and values == (None,))

    def fits(self, values: Values) -> bool:
        """In the end, long after the last write: what expires is gone."""
        numbers = range(self.oldest, self.newest + 1)
        return any(values == (None if self._expires(number) else b"%d" % number,) for number in numbers)

    def _expires(self, number: int) -> bool:
        return not number or number % 2 == 1


class Account:
    """The items of one writer."""

    def __init__(self, name: str, chance: random.Random, *, lines_only: bool = False) -> None:
        """`lines_only`: items that the line protocol can write."""
        self.acknowledged = 0  # writes
        self._chance = chance
        sizes = (LARGE if not number % LARGE_EVERY else SIZES[number % len(SIZES)] for number in range(PLAIN))
        prefix = name.encode()
        self.items: list[Item] = [Plain(b"%b:plain:%d" % (prefix, n), size) for n, size in enumerate(sizes)]
        self.items += [Counter(b"%b:counter:%d" % (prefix, n)) for n in range(COUNTERS)]
        if lines_only:
            return
        self.items += [Pair(b"%b:pair:%d:a" % (prefix, n), b"%b:pair:%d:b" % (prefix, n)) for n in range(PAIRS)]
        self.items += [Fleeting(b"%b:fleeting:%d" % (prefix, n)) for n in range(FLEETING)]

    def some(self, count: int) -> list[Item]:
        """Different items, by chance."""
        return self._chance.sample(self.items, count)

    def lost(self, values: Sequence[bytes | None]) -> Iterator[Item]:
        """The items that do not show what they have to; the values are those of `keys`."""
        rest = iter(values)
        for item in self.items:
            if not item.fits(tuple(next(rest) for _ in item.keys)):
                yield item

    @property
    def keys(self) -> list[bytes]:
        """Of all items, in their order."""
        return [key for item in self.items for key in item.keys]
