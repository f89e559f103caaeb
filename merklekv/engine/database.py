"""The engine as a library: `with merklekv.open("data") as db: db.set(b"k", b"v")`.

Each call that writes returns when the write is durable, and waits while merging is behind.  For many small writes at
once use `mset`, or several threads: they share a sync.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from merklekv.engine.engine import Engine
from merklekv.engine.store import Pair
from merklekv.errors import Shortage, Stalled

WAIT_S: Final = 1.0

Result = TypeVar("Result")


def open(path: str | Path, **options: Any) -> "Database":
    """Opens a data directory, making it if need be.  Options and errors are those of `Engine`."""
    return Database(path, **options)


class Database:
    """An open data directory.  Thread-safe.  Options and errors are those of `Engine`."""

    def __init__(self, path: str | Path, **options: Any) -> None:
        self.engine = Engine(path, **options)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, None without one."""
        return self.engine.get(key)

    def set(self, key: bytes, value: bytes) -> None:
        """Stores a value."""
        self._durably(lambda: self.engine.set(key, value))

    def delete(self, key: bytes) -> bool:
        """Removes a key; whether there was one."""
        return self._durably(lambda: self.engine.delete(key))

    def mset(self, pairs: list[Pair]) -> None:
        """Stores all values or none."""
        self._durably(lambda: self.engine.mset(pairs))

    def increment(self, key: bytes, amount: int = 1) -> int:
        """Adds to a decimal number, a missing key counting as 0; returns the sum."""
        return self._durably(lambda: self.engine.increment(key, amount))

    def append(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes behind a value; returns the new value."""
        return self._durably(lambda: self.engine.append(key, value))

    def prepend(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes before a value; returns the new value."""
        return self._durably(lambda: self.engine.prepend(key, value))

    def truncate(self) -> None:
        """Removes every key."""
        self._durably(self.engine.truncate)

    def keys(self, prefix: bytes = b"") -> Iterator[bytes]:
        """The keys with a prefix, in order; what is there throughout is returned, whatever is written meanwhile."""
        after: bytes | None = b""
        while after is not None:
            keys, after = self.engine.page(prefix, after)
            yield from keys

    def items(self, prefix: bytes = b"") -> Iterator[Pair]:
        """Keys with their values, like `keys`."""
        for key in self.keys(prefix):
            value = self.engine.get(key)
            if value is not None:
                yield key, value

    def close(self) -> None:
        """Syncs and lets the directory go."""
        self.engine.close()

    def __contains__(self, key: bytes) -> bool:
        return self.engine.exists(key)

    def __len__(self) -> int:
        return self.engine.live_count

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _durably(self, call: Callable[[], Result]) -> Result:
        self.engine.begin()
        while True:
            try:
                result = call()
            except Stalled:
                self.engine.wait_for_room(WAIT_S)
            except Shortage:
                self.engine.commit()  # so that the next call finds out whether there is room by then
                raise
            else:
                self.engine.commit()
                return result
