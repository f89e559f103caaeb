"""The engine as a library: `with merklekv.open("data") as db: db.set(b"k", b"v")`.

Each call that writes returns when the write is durable, and waits while checkpoints are behind.  For many small writes
at once use `mset`, or several threads: they share a sync.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from merklekv.engine.base import Pair
from merklekv.engine.engine import Engine
from merklekv.errors import MerkleKVError, Shortage

COUNT_WAIT_S: Final = 10.0  # for the number of keys after a start; then they are counted one by one

Result = TypeVar("Result")
Options = ParamSpec("Options")


def _with_options_of(engine: Callable[Options, Engine]) -> Callable[[Callable[..., Result]], Callable[Options, Result]]:
    """Gives a function the parameters of the engine, for editors, type checkers and `help`."""

    def decorate(function: Callable[..., Result]) -> Callable[Options, Result]:
        vars(function)["__wrapped__"] = engine  # where `help` finds them
        return function

    return decorate


@_with_options_of(Engine)
def open(path: str | Path, **options: Any) -> "Database":
    """Opens a data directory, making it if need be.

    If no other node has had a part in it, the tombstones that a dump or an earlier release has left are removed first,
    5 us each.

    durability         when a call that writes returns: the write is on disk ("always"), in the kernel and on disk
                       within a second ("everysec"), or in the kernel ("never")
    memtable_size      bytes of recent writes kept in memory before a checkpoint moves them to the base, from 64 KiB on
    max_value_size     bytes of the largest value
    max_clock_drift_s  seconds that a record of another node may be ahead of the wall clock
    wall_clock         returns nanoseconds since 1970
    checkpoint         "process" makes checkpoints in a child process, "manual" only when the engine is told to
    retain_max_bytes   bytes of the log that are kept for a program that publishes it

    Raises InvalidArgument, DirectoryLocked, DirectoryUnwritable, NotADataDirectory, FormatTooNew, Corruption,
    StorageFailed, Shortage.
    """
    database = Database(Engine(path, **options))
    try:
        if database.engine.is_lone:
            with suppress(Shortage):  # it reads on a full disk, too, and collects another time
                database.collect_tombstones()
    except BaseException:  # Ctrl-C, too: nobody else can close it
        database.close()
        raise
    return database


class Database:
    """An open data directory, made by `open`.  Thread-safe.

    Keys are 1 to 511 bytes; anything but `bytes` raises TypeError.  After `close` every other call raises
    MerkleKVError.  Calls that write raise InvalidArgument, Shortage and StorageFailed.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, None without one."""
        _require_bytes(key)
        return self._open(lambda: self.engine.get(key))

    def set(self, key: bytes, value: bytes) -> None:
        """Stores a value."""
        _require_bytes(key, value)
        self._durably(lambda: self.engine.set(key, value))

    def delete(self, key: bytes) -> bool:
        """Removes a key; whether there was one."""
        _require_bytes(key)
        return self._durably(lambda: self.engine.delete(key))

    def mset(self, pairs: Iterable[Pair]) -> None:
        """Stores all values or none."""
        whole = list(pairs)
        for key, value in whole:
            _require_bytes(key, value)
        self._durably(lambda: self.engine.mset(whole))

    def increment(self, key: bytes, amount: int = 1) -> int:
        """Adds to a decimal number, a missing key counting as 0; returns the sum.

        Raises NotANumber, NumberOverflow.
        """
        _require_bytes(key)
        if not isinstance(amount, int):
            raise TypeError(f"an amount is an int, not {type(amount).__name__}")
        return self._durably(lambda: self.engine.increment(key, amount))

    def append(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes behind a value; returns the new value."""
        _require_bytes(key, value)
        return self._durably(lambda: self.engine.append(key, value))

    def prepend(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes before a value; returns the new value."""
        _require_bytes(key, value)
        return self._durably(lambda: self.engine.prepend(key, value))

    def truncate(self) -> None:
        """Removes every key."""
        self._durably(self.engine.truncate)

    def keys(self, prefix: bytes = b"") -> Iterator[bytes]:
        """The keys with a prefix, in order; what is there throughout is returned, whatever is written meanwhile."""
        _require_bytes(prefix)
        self._require_open()
        return self._keys(prefix)

    def items(self, prefix: bytes = b"") -> Iterator[Pair]:
        """Keys with their values, like `keys`."""
        keys = self.keys(prefix)
        return ((key, value) for key in keys if (value := self.get(key)) is not None)

    def collect_tombstones(self) -> None:
        """Removes the tombstones that nothing needs any more, on a directory that no other node has a part in: all."""
        while self._durably(self.engine.collect_tombstones):
            pass

    def close(self) -> None:
        """Syncs and lets the directory go."""
        self._closed = True
        self.engine.close()

    def __contains__(self, key: bytes) -> bool:
        _require_bytes(key)
        return self._open(lambda: self.engine.exists(key))

    def __len__(self) -> int:
        self._open(lambda: self.engine.wait_until_counted(COUNT_WAIT_S))
        count = self._open(self._counted)
        return sum(1 for _ in self.keys()) if count is None else count

    def __enter__(self) -> "Database":
        self._require_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _counted(self) -> int | None:
        with self.engine.lock:
            return self.engine.live_count if self.engine.root_ready else None

    def _keys(self, prefix: bytes) -> Iterator[bytes]:
        after: bytes | None = b""
        while after is not None:
            keys, after = self._open(partial(self.engine.page, prefix, after))
            yield from keys

    def _require_open(self) -> None:
        if self._closed:
            raise MerkleKVError("the database is closed")

    def _open(self, call: Callable[[], Result]) -> Result:
        """Calls the engine.  One that another thread closes meanwhile fails in ways of its own."""
        self._require_open()
        try:
            return call()
        except Exception:
            self._require_open()
            raise

    def _durably(self, call: Callable[[], Result]) -> Result:
        return self._open(lambda: self._commit(call))

    def _commit(self, call: Callable[[], Result]) -> Result:
        self.engine.begin()
        try:
            result = self.engine.retry_stalled(call, self._go_on)
        except Shortage:
            self.engine.commit()  # so that the next call finds out whether there is room by then
            raise
        self.engine.commit()
        return result

    def _go_on(self) -> bool:
        self._require_open()
        return True


def _require_bytes(*parts: bytes) -> None:
    for part in parts:
        if not isinstance(part, bytes):
            raise TypeError(f"keys and values are bytes, not {type(part).__name__}")
