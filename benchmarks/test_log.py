"""The commit log: a commit by durability and by how many writes share it, reserved room against a growing file, replay.

The figures of `always` are those of the disk.  Look at ratios: what sharing a sync saves, what reserving room saves.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from merklekv.engine.engine import Engine
from merklekv.engine.format import ENTRY, OP_SET
from merklekv.engine.log.segment import Segment, segment_path
from merklekv.engine.log.writer import RESERVE_STEP, Log
from merklekv.engine.memtable import Records
from merklekv.engine.options import Durability
from merklekv.engine.record import VERSION_SIZE, make_record

KEY = b"key:000000000042"
VALUE = b"x" * 100
RECORD = make_record(KEY, bytes(VERSION_SIZE), VALUE)
LOG_ENTRY = ENTRY.pack(OP_SET, len(KEY), len(RECORD)) + KEY + RECORD
FRAME = bytes(200)
REPLAYED = 10_000  # entries
ROUNDS = 200


@pytest.fixture
def directory(disk: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=disk) as path:
        yield Path(path)


@pytest.fixture
def log(directory: Path) -> Iterator[Log]:
    log = Log(directory, None)
    yield log
    log.close()


def append(log: Log) -> None:
    """Takes in one entry, as `Table.put` does."""
    size = log.pending_size + len(LOG_ENTRY)
    if size > log.room:
        log.reserve(size, urgent=False)
    log.pending_size = size
    log.pending.append(LOG_ENTRY)
    log.appended += 1
    log.sequence += 1


def entries_of(log: Log) -> int:
    with Segment(segment_path(log.directory, log.lsn)) as segment:
        return sum(frame.entry_count for frame in segment.frames())


@pytest.mark.benchmark(group="log: a frame, by entries in it")
@pytest.mark.parametrize("synced", [False, True], ids=["written", "synced"])
@pytest.mark.parametrize("entries", [1, 16, 50])
def test_write_a_frame(benchmark: BenchmarkFixture, log: Log, entries: int, synced: bool) -> None:
    def commit() -> None:
        for _ in range(entries):
            append(log)
        log.write(log.take())
        if synced:
            log.sync()

    benchmark.pedantic(commit, rounds=ROUNDS, warmup_rounds=5)
    assert entries_of(log) == log.appended > 0
    assert (log.synced_lsn == log.end_lsn) is synced


@pytest.mark.benchmark(group="log: a write and its commit, by durability")
@pytest.mark.parametrize("durability", ["always", "everysec", "never"])
def test_set_and_commit(benchmark: BenchmarkFixture, directory: Path, durability: Durability) -> None:
    engine = Engine(directory, durability=durability, checkpoint="manual")

    def write() -> None:
        engine.set(KEY, VALUE)
        engine.commit()

    benchmark.pedantic(write, rounds=ROUNDS, warmup_rounds=5)
    engine.close()
    with Segment(next((directory / "log").glob("*.log"))) as segment:
        assert sum(1 for _ in segment.frames()) >= 1


def _reserve(fd: int) -> None:
    os.posix_fallocate(fd, 0, RESERVE_STEP)


def _zero(fd: int) -> None:
    os.pwrite(fd, bytes(RESERVE_STEP), 0)
    os.fsync(fd)


@pytest.mark.benchmark(group="log: fdatasync after 200 bytes, by the room before")
@pytest.mark.parametrize("prepare", [lambda fd: None, _reserve, _zero], ids=["growing", "reserved", "zeros"])
def test_sync_into_a_file(benchmark: BenchmarkFixture, directory: Path, prepare: Callable[[int], None]) -> None:
    """`growing` changes the file's size with each write, `reserved` is what the log does, `zeros` would cost it a
    second writing of every byte.
    """
    fd = os.open(directory / "file", os.O_RDWR | os.O_CREAT)
    prepare(fd)
    written = 0

    def write() -> None:
        nonlocal written
        written += os.pwrite(fd, FRAME, written)
        os.fdatasync(fd)

    benchmark.pedantic(write, rounds=ROUNDS, warmup_rounds=5)
    assert os.fstat(fd).st_size >= written > 0
    os.close(fd)


@pytest.mark.benchmark(group="log: reading back")
def test_replay_entries(benchmark: BenchmarkFixture, log: Log) -> None:
    """What a checkpoint does first with each entry of the log, here 10,000 of them."""
    for _ in range(REPLAYED):
        append(log)
    log.write(log.take())

    def replay() -> int:
        with Segment(segment_path(log.directory, log.lsn)) as segment:
            places, entries = Records(), 0
            for frame in segment.frames():
                segment.note_each(frame, 0, places)
                entries += frame.entry_count
            return entries

    assert benchmark(replay) == REPLAYED
