"""What the engine's tests share: opening and checking engines, a wall clock that tests move, logs written by hand."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from struct import pack
from typing import Any

import pytest
from xxhash import xxh3_64_digest

from merklekv.engine import absorber as absorber_module
from merklekv.engine import store as store_module
from merklekv.engine.absorber import absorb as absorb_segments
from merklekv.engine.check import check_directory, check_engine
from merklekv.engine.durable import MIN_MEMTABLE_SIZE
from merklekv.engine.engine import Engine
from merklekv.engine.format import TOMBSTONE, VALUE_AT, make_record
from merklekv.engine.log import list_segments
from merklekv.engine.store import BaseWriter
from merklekv.errors import MerkleKVError

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where Hypothesis's many small directories go
DAY_NS = 86_400 * 10**9
NOON = 2 * 10**18  # a wall clock that was set: in the year 2033


class Wall:
    """A wall clock that stands still until a test moves it."""

    def __init__(self, now: int = NOON) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


class Watched:
    """The engines that were opened since."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []  # those that are open
        self.paths: set[Path] = set()  # of all of them
        self.damaged: set[Path] = set()

    def add(self, engine: Engine) -> None:
        """Remembers it; lets go of those that are closed."""
        self.engines = [other for other in self.engines if not other._closing.is_set()] + [engine]
        self.paths.add(engine.directory.path)

    def check(self) -> None:
        """Closes what is open; every engine and every directory has to be sound."""
        for engine in self.engines:
            if not engine._closing.is_set() and engine.directory.path not in self.damaged:
                assert check_engine(engine) == []
                engine.close()
        for path in sorted(self.paths - self.damaged):
            if path.exists():
                assert check_directory(path) == []

    def close(self) -> None:
        """Lets everything go, also after a failure."""
        for engine in self.engines:
            try:
                engine.close()
            except MerkleKVError:
                assert engine._failure is not None or engine.directory.path in self.damaged


_watched = Watched()


@contextmanager
def watching() -> Iterator[Watched]:
    """Remembers every engine that is opened, and closes it in the end."""
    global _watched
    _watched = watched = Watched()
    real = Engine.__init__

    def init(engine: Engine, *args: Any, **options: Any) -> None:
        real(engine, *args, **options)
        watched.add(engine)

    Engine.__init__ = init  # type: ignore[method-assign]
    try:
        yield watched
    finally:
        Engine.__init__ = real  # type: ignore[method-assign]
        watched.close()


def damaged(path: Path) -> Path:
    """Says that this directory is damaged on purpose."""
    _watched.damaged.add(path)
    return path


def open_engine(path: Path, **options: Any) -> Engine:
    """An engine with small memtables, that merges when told to, at noon."""
    defaults = {"absorb": "manual", "memtable_size": MIN_MEMTABLE_SIZE, "durability": "never", "wall_clock": Wall()}
    options = {**defaults, **options}
    return Engine(path, **options)


@contextmanager
def directory() -> Iterator[Path]:
    """A directory for one example, in memory where there is one."""
    path = Path(tempfile.mkdtemp(dir=MEMORY, prefix="merklekv-test-"))
    try:
        yield path / "data"
    finally:
        shutil.rmtree(path)


@contextmanager
def engine_in(path: Path, **options: Any) -> Iterator[Engine]:
    """An engine for one example, sound at its end, and its directory too."""
    engine = open_engine(path, **options)
    try:
        yield engine
        assert check_engine(engine) == []
    finally:
        engine.close()
    assert check_directory(path) == []


@contextmanager
def fresh_engine(**options: Any) -> Iterator[Engine]:
    """An engine for one example in a directory for one example."""
    with directory() as path, engine_in(path, **options) as engine:
        yield engine


def freeze(engine: Engine) -> None:
    """Freezes the memtable, full or not."""
    engine.commit()
    with engine._commit_lock:
        engine._rotate()


def absorb(engine: Engine) -> None:
    """Takes everything into the base."""
    engine.absorb_sealed()
    while engine._layers.frozen or engine._records or not engine.root_ready:
        engine.absorb_sealed()


@contextmanager
def small_transactions(keys: int) -> Iterator[None]:
    """Merges a few keys at a time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (absorber_module, store_module):
            patch.setattr(module, "TRANSACTION_KEYS", keys)
        yield


class Cut(Exception):
    """The process ends here."""


@contextmanager
def cut_after(commits: int) -> Iterator[list[int]]:
    """Ends the process (for this test: raises) behind so many commits of the base; tells how many there were."""
    real: Callable[..., AbstractContextManager[Any]] = BaseWriter._transaction
    count = [0]

    @contextmanager
    def transaction(writer: BaseWriter) -> Iterator[Any]:
        with real(writer) as txn:
            yield txn
        count[0] += 1
        if count[0] == commits:
            raise Cut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseWriter, "_transaction", transaction)
        yield count


def absorb_all(path: Path) -> None:
    upto = list_segments(path / "log")[-1]
    with BaseWriter(path / "base") as writer:
        absorb_segments(writer, path / "log", upto)


def everything(engine: Engine) -> dict[bytes, bytes]:
    """All records, dead ones too."""
    records: dict[bytes, bytes] = {}
    after: bytes | None = b""
    while after is not None:
        pairs, after = engine.records_page(b"", after, 7)
        records.update(pairs)
    return records


def values(engine: Engine) -> dict[bytes, bytes]:
    """All live keys with their values."""
    return {key: record[VALUE_AT:] for key, record in everything(engine).items() if not record[24] & TOMBSTONE}


def filled(engine: Engine) -> Engine:
    """Records in the base, in a frozen memtable and in the active one, live and dead."""
    for number in range(20):
        engine.set(b"k%02d" % number, b"v" * number)
        engine.commit()
    engine.delete(b"k03")
    absorb(engine)
    engine.set(b"frozen", b"")
    freeze(engine)
    engine.set(b"active", b"")
    engine.set(b"k01", b"newer")
    engine.delete(b"k02")
    engine.commit()
    return engine


def version(ts: int, op: int = 0) -> bytes:
    """A version of this timestamp and op id."""
    return ts.to_bytes(8, "big") + op.to_bytes(16, "big")


def record(key: bytes, value: bytes | None, ts: int, op: int = 0) -> bytes:
    """A record with this version; None makes a tombstone."""
    return make_record(key, version(ts, op), TOMBSTONE if value is None else 0, value or b"")


# -- the log, written from the prose of format.py ------------------------------------------------------------------


def entry(op: int, key: bytes, record_: bytes) -> bytes:
    """One entry of a frame."""
    return pack(">BHI", op, len(key), len(record_)) + key + record_


def set_entry(number: int, size: int = 20) -> bytes:
    """The entry of a local `set` of the key `k<number>`."""
    key = b"k%d" % number
    return entry(1, key, record(key, b"v" * size, NOON + number))


def header(lsn: int, sequence: int = 1, format_version: int = 1) -> bytes:
    """A segment's header."""
    head = b"MKVSEGM1" + pack(">IIQQQ", format_version, 0, lsn, sequence, NOON)
    return head + xxh3_64_digest(head)


def frame(lsn: int, position: int, entries: list[bytes], sequence: int = 1, synced: int = 0) -> bytes:
    """A frame of local events."""
    payload = b"".join(entries)
    head = b"MKVF" + pack(">IQQII", len(payload), synced, sequence, len(entries), len(entries))
    return head + xxh3_64_digest(pack(">QQ", lsn, position) + head + payload) + payload


class LogWriter:
    """Writes segments, frame by frame, and remembers where the frames are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lsn = self.position = self.synced = 0
        self.sequence = 1
        self.frames: list[tuple[int, int, int]] = []  # LSN of the segment, first byte, end
        path.mkdir(parents=True)
        self.next_segment()

    @property
    def file(self) -> Path:
        """The newest segment."""
        return self.path / f"{self.lsn:020d}.log"

    def next_segment(self) -> None:
        """Starts a segment behind what there is."""
        self.lsn += self.position
        self.file.write_bytes(header(self.lsn, self.sequence))
        self.position = 48

    def frame(self, entries: list[bytes], synced: bool = True) -> None:
        """Puts a frame behind the last; `synced` as it is with a sync after each frame."""
        data = frame(self.lsn, self.position, entries, self.sequence, self.synced)
        with self.file.open("ab") as file:
            file.write(data)
        self.frames.append((self.lsn, self.position, self.position + len(data)))
        self.position += len(data)
        self.sequence += len(entries)
        if synced:
            self.synced = self.lsn + self.position


def flip(path: Path, position: int, mask: int = 1) -> None:
    """Flips bits of one byte of a file."""
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes((byte ^ mask,)))


def snapshot(path: Path) -> dict[str, bytes]:
    """The bytes of every file below a directory."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
