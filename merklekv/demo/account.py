"""The demo's account of acknowledged writes: what every node has to hold in the end.

Each key has one writer, which numbers the writes to it: the n-th write stores a value that says so, and each
DELETION_EVERY-th deletes the key. So the account needs two numbers for a key, the last write that was acknowledged and
the last one that was sent. A node that was killed may or may not have done what it did not acknowledge, and both is
right: a key has to show the last acknowledged write, or one that was sent later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

DELETION_EVERY: Final = 7


class Write(NamedTuple):
    """The n-th write to a key. The zeroth stands for the key before its first write: deleted."""

    key: bytes
    number: int

    @property
    def is_deletion(self) -> bool:
        return self.number % DELETION_EVERY == 0

    @property
    def value(self) -> bytes | None:
        """What the key has after it; None after a deletion."""
        return None if self.is_deletion else b"write %d to %b" % (self.number, self.key)

    @property
    def request(self) -> tuple[bytes, ...]:
        return (b"DEL", self.key) if self.value is None else (b"SET", self.key, self.value)


class Account:
    """Of the keys of one writer. Its size depends on their number alone."""

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        self.keys: Final = keys
        self.acknowledged = 0  # writes
        self._acknowledged = dict.fromkeys(keys, 0)  # the last one of each key
        self._sent = dict.fromkeys(keys, 0)

    def next_write(self, key: bytes) -> Write:
        """A write to be sent now: from here on, the key may show it."""
        self._sent[key] += 1
        return Write(key, self._sent[key])

    def acknowledge(self, write: Write) -> None:
        """Those of one key in their order: from here on, the key may show nothing older."""
        self.acknowledged += 1
        self._acknowledged[write.key] = write.number

    def lost(self, found: Mapping[bytes, object]) -> Iterator[bytes]:
        """The keys whose last acknowledged write is missing in what a node holds; None or no key: it has none."""
        for key in self.keys:
            possible = range(self._acknowledged[key], self._sent[key] + 1)
            if not any(Write(key, number).value == found.get(key) for number in possible):
                yield key
