"""The engine as a library: `with merklekv.open("data") as db: db[b"k"] = b"v"`.

Each call that writes returns when the write is durable, and waits while checkpoints are behind.  For many small writes
at once use `update`, a batch, or several threads: they share a sync.  docs/library.md has examples of everything.
"""

import math
import os
import threading
import time
from collections.abc import (
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, overload
from weakref import WeakSet

from merklekv.engine.batch import Batch, Write, no_bytes, require_bytes, require_pair, require_ttl, require_wait
from merklekv.engine.engine import Engine
from merklekv.engine.feed import Change, Cursor
from merklekv.engine.format import ENTRY, OP_SET
from merklekv.engine.log.retention import DEFAULT_RETAIN_MAX_BYTES
from merklekv.engine.options import (
    DEFAULT_MAX_VALUE_SIZE,
    DEFAULT_MEMTABLE_SIZE,
    CheckpointMode,
    Durability,
    require_path,
    require_wall_clock,
)
from merklekv.engine.record import EXPIRY_MAX, RECORD_OVERHEAD, Pair
from merklekv.engine.time_gate import DEFAULT_MAX_DRIFT_S
from merklekv.errors import DatabaseClosed, DirectoryUnwritable, Shortage

COUNT_WAIT_S: Final = 10.0  # for the number of keys after a start; then they are counted one by one
DEFAULT_RETAIN_LOG_BYTES: Final = 64 << 20
_NO_DEFAULT: Final = object()
_CLOSED: Final = "the database is closed"
_FORKED: Final = "the database belongs to the process that this one was forked from: open it after the fork"

Result = TypeVar("Result")
Default = TypeVar("Default")


def open(
    path: str | Path,
    *,
    durability: Durability = "always",
    memtable_size: int = DEFAULT_MEMTABLE_SIZE,
    max_value_size: int = DEFAULT_MAX_VALUE_SIZE,
    max_clock_drift_s: float = DEFAULT_MAX_DRIFT_S,
    retain_log_bytes: int = DEFAULT_RETAIN_LOG_BYTES,
    retain_log_seconds: float = 0,
    retain_max_bytes: int = DEFAULT_RETAIN_MAX_BYTES,
    wall_clock: Callable[[], int] = time.time_ns,
    checkpoint: CheckpointMode = "process",
) -> "Database":
    """Opens a data directory, making it if need be.

    If no other node has had a part in it, the tombstones that a dump or an earlier release has left are removed first,
    5 us each.

    durability          when a call that writes returns: the write is on disk ("always"), in the kernel and on disk
                        within a second ("everysec"), or in the kernel ("never")
    memtable_size       bytes of recent writes kept in memory before a checkpoint moves them to the base, from 64 KiB on
    max_value_size      bytes of the largest value
    max_clock_drift_s   seconds that a record of another node may be ahead of the wall clock
    retain_log_bytes    bytes of the log that are retained for `changes`, at least
    retain_log_seconds  seconds for which the log is retained for `changes`, at least
    retain_max_bytes    bytes of the log that are retained for a node that publishes it
    wall_clock          returns nanoseconds since 1970
    checkpoint          "process" makes checkpoints in a child process, "manual" only when the engine is told to

    Raises InvalidArgument, DirectoryLocked, DirectoryUnwritable, NotADataDirectory, FormatTooNew, Corruption,
    StorageFailed, Shortage.
    """
    require_wall_clock(wall_clock)
    engine = Engine(
        _absolute(require_path(path)),
        durability=durability,
        memtable_size=memtable_size,
        max_value_size=max_value_size,
        max_clock_drift_s=max_clock_drift_s,
        wall_clock=wall_clock,
        checkpoint=checkpoint,
        retain_max_bytes=retain_max_bytes,
        retain_log_bytes=retain_log_bytes,
        retain_log_seconds=retain_log_seconds,
    )
    database = Database(engine)
    try:
        if engine.is_lone:
            with suppress(Shortage):  # it reads on a full disk, too, and collects another time
                database.collect_tombstones()
    except BaseException:  # Ctrl-C, too: nobody else can close it
        database.close()
        raise
    return database


def _absolute(path: Path) -> Path:
    """The same place, also when the program changes its working directory."""
    try:
        return path.absolute()
    except FileNotFoundError:
        raise DirectoryUnwritable(f"{path}: the working directory was removed; give an absolute path") from None


class ChangeIterator(Iterator[Change]):
    """Changes, see `Database.changes`.

    cursor    where to go on: behind the last change that was given, and then also behind what was changed for others
    """

    def __init__(self, after: Cursor, changes: Callable[["ChangeIterator"], Iterator[Change]]) -> None:
        self.cursor = after
        self._changes = changes(self)

    def __next__(self) -> Change:
        return next(self._changes)


class Database(MutableMapping[bytes, bytes]):
    """An open data directory, made by `open`.  Thread-safe.  A mapping of keys in order.

    Keys are 1 to 511 bytes; anything but `bytes` raises TypeError.  After `close` every other call raises
    DatabaseClosed, and so does each in a process that was forked from the one that has it open.  Calls that write raise
    InvalidArgument, Shortage and StorageFailed.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._closed = ""  # why, in words
        _open_here.add(self)

    # -- one key -------------------------------------------------------------------------------------------------------

    @overload
    def get(self, key: bytes) -> bytes | None: ...
    @overload
    def get(self, key: bytes, default: Default) -> bytes | Default: ...
    def get(self, key: bytes, default: object = None) -> object:
        """The value of a key, or the default."""
        require_bytes(key)
        value = self._open(lambda: self.engine.get(key))
        return default if value is None else value

    def set(self, key: bytes, value: bytes, *, ttl: float | None = None) -> None:
        """Stores a value, which expires after `ttl` seconds, or never."""
        require_bytes(key, value)
        require_ttl(ttl)
        self._durably(lambda: self.engine.set(key, value, self._expiry(ttl)))

    def delete(self, key: bytes) -> bool:
        """Removes a key; whether there was one."""
        require_bytes(key)
        return self._durably(lambda: self.engine.delete(key))

    def compare_and_set(self, key: bytes, expected: bytes | None, value: bytes | None) -> bool:
        """Stores a value if the present one is as expected, and keeps the expiry; whether it did.

        `expected`: None for a missing key.  `value`: None removes the key.
        """
        require_bytes(key, *(one for one in (expected, value) if one is not None))
        return self._durably(lambda: self._compare_and_set(key, expected, value))

    def _compare_and_set(self, key: bytes, expected: bytes | None, value: bytes | None) -> bool:
        engine = self.engine
        with engine.lock:
            if engine.get(key) != expected:
                return False
            if value is not None:
                engine.change(OP_SET, key, value)
            elif expected is not None:
                engine.delete(key)
            return True

    @overload
    def pop(self, key: bytes) -> bytes: ...
    @overload
    def pop(self, key: bytes, default: Default) -> bytes | Default: ...
    def pop(self, key: bytes, default: object = _NO_DEFAULT) -> object:
        """Removes a key and returns its value, at one moment.  Raises KeyError without one and without a default."""
        require_bytes(key)
        value = self._durably(lambda: self._pop(key))
        if value is None and default is _NO_DEFAULT:
            raise KeyError(key)
        return default if value is None else value

    def _pop(self, key: bytes) -> bytes | None:
        with self.engine.lock:
            value = self.engine.get(key)
            self.engine.delete(key)
            return value

    def setdefault(self, key: bytes, default: bytes) -> bytes:
        """The value of a key, which is the default if it had none; at one moment."""
        require_bytes(key, default)
        return self._durably(lambda: self._setdefault(key, default))

    def _setdefault(self, key: bytes, default: bytes) -> bytes:
        with self.engine.lock:
            value = self.engine.get(key)
            if value is None:
                self.engine.set(key, default)
            return default if value is None else value

    # -- expiry --------------------------------------------------------------------------------------------------------

    def expire(self, key: bytes, ttl: float) -> bool:
        """Lets a key expire after `ttl` seconds; whether there is one."""
        require_bytes(key)
        require_ttl(ttl, allows_none=False)
        return self._durably(lambda: self.engine.expire(key, self._expiry(ttl) or 0))

    def persist(self, key: bytes) -> bool:
        """Lets a key never expire; whether there is one that would have."""
        require_bytes(key)
        return self._durably(lambda: self._persist(key))

    def _persist(self, key: bytes) -> bool:
        with self.engine.lock:
            return self.engine.expiry(key) is not None and self.engine.persist(key)

    def ttl(self, key: bytes) -> float | None:
        """Seconds until a key expires, at least 0; None if it does not, or is missing."""
        require_bytes(key)
        expiry = self._open(lambda: self.engine.expiry(key))
        return None if expiry is None else max(0.0, expiry / 1000 - self.engine.time_gate.wall() / 10**9)

    def _expiry(self, ttl: float | None) -> int | None:
        return None if ttl is None else min(EXPIRY_MAX, self.engine.time_gate.wall() // 10**6 + math.ceil(ttl * 1000))

    # -- many keys -----------------------------------------------------------------------------------------------------

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """Stores what is written to the batch when the block ends, all or none, also across a crash.

        Nothing if the block raises.  Others see all or nothing.  At most some hundred MB: it is in memory.
        """
        self._require_open()
        batch = Batch()
        yield batch
        writes = list(batch)
        for key, value, _ in writes:
            self.engine.table.require_sizes(key, value or b"")
        if writes:
            self._durably(lambda: self._store(writes))

    def _store(self, writes: list[Write]) -> None:
        engine = self.engine
        room = sum(
            ENTRY.size + RECORD_OVERHEAD + len(key) + len(value) for key, value, _ in writes if value is not None
        )
        with engine.transaction(room):
            for key, value, ttl in writes:
                if value is None:
                    engine.delete(key)
                else:
                    engine.set(key, value, self._expiry(ttl))

    def update(self, other: Mapping[bytes, bytes] | Iterable[Pair]) -> None:  # type: ignore[override]
        """Stores all values or none, of a mapping or of pairs."""
        self.mset(other)

    def mset(self, pairs: Mapping[bytes, bytes] | Iterable[Pair]) -> None:
        """Stores all values or none, of a mapping or of pairs."""
        whole = list(pairs.items() if isinstance(pairs, Mapping) else pairs)
        for pair in whole:
            require_pair(pair)
        self._durably(lambda: self.engine.mset(whole))

    def increment(self, key: bytes, amount: int = 1) -> int:
        """Adds to a decimal number, a missing key counting as 0; returns the sum.

        Raises NotANumber, NumberOverflow.
        """
        require_bytes(key)
        if not isinstance(amount, int) or isinstance(amount, bool):
            raise TypeError(f"an amount is an int, not {type(amount).__name__}")
        return self._durably(lambda: self.engine.increment(key, amount))

    def append(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes behind a value; returns the new value."""
        require_bytes(key, value)
        return self._durably(lambda: self.engine.append(key, value))

    def prepend(self, key: bytes, value: bytes) -> bytes:
        """Puts bytes before a value; returns the new value."""
        require_bytes(key, value)
        return self._durably(lambda: self.engine.prepend(key, value))

    def truncate(self) -> None:
        """Removes every key."""
        self._durably(self.engine.truncate)

    def clear(self) -> None:
        """Removes every key, at once."""
        self.truncate()

    def keys(self, prefix: bytes = b"") -> KeysView[bytes]:
        """The keys with a prefix, in order; what is there throughout is returned, whatever is written meanwhile."""
        require_bytes(prefix)
        self._require_open()
        return _Keys(self, prefix)

    def items(self, prefix: bytes = b"") -> ItemsView[bytes, bytes]:
        """Keys with their values, like `keys`."""
        require_bytes(prefix)
        self._require_open()
        return _Items(self, prefix)

    def values(self, prefix: bytes = b"") -> ValuesView[bytes]:
        """The values of the keys with a prefix, like `keys`."""
        require_bytes(prefix)
        self._require_open()
        return _Values(self, prefix)

    # -- changes -------------------------------------------------------------------------------------------------------

    def cursor(self) -> Cursor:
        """The end of the change feed: `changes` after it are those that come."""
        return self._open(self.engine.feed.last)

    def changes(
        self, after: Cursor | str | None = None, *, prefix: bytes = b"", wait: float | None = 0.0
    ) -> "ChangeIterator":
        """What was changed, in order, each change once: keys with this prefix, and truncations.

        `after`: a cursor, that of a change or of the iterator, also as text; None is before the oldest change there is.
        `wait`: ends when there was nothing new for so many seconds; None waits for ever, until the database is closed.

        Raises ChangesGone, InvalidArgument, Corruption.
        """
        require_bytes(prefix)
        feed = self.engine.feed
        if after is None:
            after = self._open(feed.first)
        elif isinstance(after, str):
            after = Cursor.parse(after)
        elif not isinstance(after, Cursor):
            raise TypeError(f"a cursor is a Cursor or its text, not {type(after).__name__}")
        if wait is not None:
            require_wait(wait)
            wait = min(wait, threading.TIMEOUT_MAX)
        self._require_open()
        return ChangeIterator(after, partial(self._changes, prefix, wait))

    def _changes(self, prefix: bytes, wait: float | None, place: "ChangeIterator") -> Iterator[Change]:
        feed = self.engine.feed
        while True:
            page = self._open(partial(feed.read, place.cursor, prefix=prefix))
            for change in page.changes:
                place.cursor = change.cursor
                yield change
            place.cursor = page.cursor
            if page.more:
                continue
            ready = threading.Event()
            end_wait = feed.wait(page.cursor, ready.set, prefix)
            try:
                if not ready.wait(wait):
                    return
            finally:
                place.cursor = end_wait()

    # -- the whole -----------------------------------------------------------------------------------------------------

    def collect_tombstones(self) -> None:
        """Removes the tombstones that nothing needs any more, on a directory that no other node has a part in: all."""
        while self._durably(self.engine.collect_tombstones):
            pass

    def close(self) -> None:
        """Syncs and lets the directory go."""
        if self._closed != _FORKED:  # else it would cut the log to where it was at the fork
            self._closed = _CLOSED
            self.engine.close()

    def leave_to_parent(self) -> None:
        """In a process that was just forked: leaves log, base and lock to the process that has opened them."""
        if not self._closed:
            import ctypes  # takes long, and few programs fork

            self._closed = _FORKED
            # Never to be freed: at the end of this process LMDB would take the places of its readers, which are the
            # parent's, from the table of readers that both processes share.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.engine))
            # Or the directory would stay locked when that one has ended.
            os.close(self.engine.directory.lock_fd)
            if (child := self.engine.checkpointer.child) is not None:
                child.leave_to_parent()

    def __getitem__(self, key: bytes) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.set(key, value)

    def __delitem__(self, key: bytes) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.keys())

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, bytes):
            raise no_bytes(key)
        return self._open(lambda: self.engine.exists(key))

    def __eq__(self, other: object) -> bool:
        return self is other  # not by reading all of it

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"<merklekv.Database {str(self.engine.directory.path)!r}{', closed' if self._closed else ''}>"

    def __len__(self) -> int:
        self._open(lambda: self.engine.wait_until_counted(COUNT_WAIT_S))
        count = self._open(self._counted)
        return sum(1 for _ in self.keys_of(b"")) if count is None else count

    def __enter__(self) -> "Database":
        self._require_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _counted(self) -> int | None:
        with self.engine.lock:
            return self.engine.key_count if self.engine.root_ready else None

    def keys_of(self, prefix: bytes) -> Iterator[bytes]:
        """The keys with a prefix, in order."""
        after: bytes | None = b""
        while after is not None:
            keys, after = self._open(partial(self.engine.page, prefix, after))
            yield from keys

    def _require_open(self) -> None:
        if self._closed:
            raise DatabaseClosed(self._closed)

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
        except BaseException:
            with suppress(Shortage):
                self.engine.commit()  # what it has begun is rolled back now, and not by the next call
            raise
        self.engine.commit()
        return result

    def _go_on(self) -> bool:
        self._require_open()
        return True


class _Keys(KeysView[bytes]):
    """Those with a prefix; each look at it sees the present."""

    def __init__(self, database: Database, prefix: bytes) -> None:
        super().__init__(database)
        self._database, self._prefix = database, prefix

    def __iter__(self) -> Iterator[bytes]:
        return self._database.keys_of(self._prefix)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and key.startswith(self._prefix) and key in self._database

    def __len__(self) -> int:
        return sum(1 for _ in self) if self._prefix else len(self._database)


class _Items(ItemsView[bytes, bytes]):
    def __init__(self, database: Database, prefix: bytes) -> None:
        super().__init__(database)
        self._database, self._keys = database, _Keys(database, prefix)

    def __iter__(self) -> Iterator[Pair]:
        return ((key, value) for key in self._keys if (value := self._database.get(key)) is not None)

    def __contains__(self, item: object) -> bool:
        return (
            isinstance(item, tuple)
            and len(item) == 2
            and item[0] in self._keys
            and self._database.get(item[0]) == item[1]
        )

    def __len__(self) -> int:
        return len(self._keys)


class _Values(ValuesView[bytes]):
    def __init__(self, database: Database, prefix: bytes) -> None:
        super().__init__(database)
        self._items = _Items(database, prefix)

    def __iter__(self) -> Iterator[bytes]:
        return (value for _, value in self._items)

    def __contains__(self, value: object) -> bool:
        return any(value == one for one in self)

    def __len__(self) -> int:
        return len(self._items)


_open_here: Final[WeakSet[Database]] = WeakSet()


def _leave_to_parent() -> None:
    for database in list(_open_here):
        database.leave_to_parent()


os.register_at_fork(after_in_child=_leave_to_parent)
