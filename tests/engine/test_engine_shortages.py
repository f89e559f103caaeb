"""Shortages of descriptors, room, memory or processes: the engine waits, refuses or goes on, and recovers by itself."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import lmdb
import pytest
from fixtures import engines
from fixtures.support import WAIT_S, failing_writes, no_room, wait_until

import merklekv
from merklekv.engine import commit as commit_module
from merklekv.engine import failpoints
from merklekv.engine import recovery as recovery_module
from merklekv.engine.base import environment, writer
from merklekv.engine.base.reader import Base
from merklekv.engine.base.writer import BaseWriter
from merklekv.engine.checkpoint import checkpointer as checkpointer_module
from merklekv.engine.engine import Engine
from merklekv.engine.format import METADATA_GC_HORIZON
from merklekv.engine.log.segment import list_segments
from merklekv.engine.options import MIN_MEMTABLE_SIZE
from merklekv.engine.verify.check import check_directory
from merklekv.errors import DirectoryLocked, DiskFull, Shortage, Stalled, StorageFailed

VALUE = b"v" * 1000


@contextmanager
def no_descriptors() -> Iterator[None]:
    """No file can be opened by this process."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY)]
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in taken:
            os.close(fd)


def fill(engine: Engine, first: int, error: type[Exception]) -> int:
    """Writes and commits from key number `first` on until that is raised; the number of the key that raised it."""
    number = first
    while True:
        try:
            engine.set(b"k%d" % number, VALUE)
            number += 1
        except error:
            return number
        except Stalled:
            engine.wait_for_room(0.01)
        engine.commit()


@pytest.mark.parametrize("durability", ["always", "everysec", "never"])
def test_commits_need_no_descriptor(make_engine: Callable[..., Engine], durability: str) -> None:
    engine = make_engine(durability=durability)
    with no_descriptors():
        for number in range(100):
            engine.set(b"k%d" % number, b"v")
            engine.commit()
        engine.flush()
        assert engine.log.synced_lsn == engine.log.end_lsn


def test_a_rotation_needs_no_descriptor(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(durability="always")
    with no_descriptors():
        engine.set(b"k", b"v")
        engines.freeze(engine)
        assert len(engine.table.frozen) == 1
        engine.set(b"l", b"w")
        engines.freeze(engine)
        assert len(engine.table.frozen) == 2
        engine.set(b"m", b"x")
        engine.commit()
    assert engines.values(engine) == {b"k": b"v", b"l": b"w", b"m": b"x"}


def test_without_descriptors_writes_go_on_while_memory_lasts(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The checkpoint process cannot be started, and later no segment: writes say so, and go on after the shortage."""
    monkeypatch.setattr(checkpointer_module, "RETRY_S", 0.01)
    engine = make_engine(checkpoint="process", durability="everysec")
    with no_descriptors():
        count = fill(engine, 0, Shortage)
        assert count * len(VALUE) > 2 * MIN_MEMTABLE_SIZE
        with pytest.raises(Shortage, match="resource shortage, write not stored"):
            engine.set(b"k", b"")
        assert engine.get(b"k0") == VALUE
        assert len(engines.values(engine)) == count

    def has_room() -> bool:
        engine.commit()
        return not engine.gate.stalled

    wait_until(has_room, what="room")
    engine.set(b"after", b"")
    engine.commit()
    wait_until(lambda: not engine.table.frozen, what="the checkpoint")
    assert len(engines.values(engine)) == count + 1


def test_an_engine_closes_without_descriptors(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(durability="everysec")
    with no_descriptors():
        engine.set(b"k", b"v")
        engine.close()
    assert make_engine().get(b"k") == b"v"


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_a_child_that_cannot_be_started_is_started_later(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(checkpointer_module, "RETRY_S", 0.01)
    engine = make_engine(checkpoint="process")
    attempts = []

    def no_process(*_: object, **__: object) -> None:
        attempts.append(number)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", no_process)
        engine.set(b"k", VALUE)
        engines.freeze(engine)
        wait_until(lambda: len(attempts) > 10, what="attempts")
    wait_until(lambda: not engine.table.frozen, what="the checkpoint")
    assert engine.get(b"k") == VALUE


def test_a_child_that_is_killed_each_time_is_a_shortage(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the kernel does when there is no memory."""
    monkeypatch.setattr(checkpointer_module, "RETRY_S", 0.01)
    engine = make_engine(checkpoint="process")
    child = engine.checkpointer.child
    assert child is not None
    command, child._command = child._command, ["sh", "-c", "kill -9 $$"]
    engine.set(b"k", VALUE)
    engines.freeze(engine)
    wait_until(lambda: "most likely memory is short" in caplog.text, what="the shortage")
    child._command = command
    wait_until(lambda: not engine.table.frozen, what="the checkpoint")
    assert engine.get(b"k") == VALUE


def test_memory_that_is_short_in_the_checkpointer_passes(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpointer_module, "RETRY_S", 0.01)
    engine = make_engine(checkpoint="process")
    with monkeypatch.context() as patch:
        patch.setattr(engine.table, "take_over_base", _no_memory)
        engine.set(b"k", VALUE)
        engines.freeze(engine)
        wait_until(lambda: "cannot checkpoint: out of memory" in caplog.text, what="the shortage")
    wait_until(lambda: not engine.table.frozen, what="the checkpoint")


def test_a_memtable_that_finds_no_memory_is_frozen_later(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(checkpoint="process")
    with monkeypatch.context() as patch:
        patch.setattr(checkpointer_module, "Memtable", _no_memory)
        engine.set(b"k", VALUE)
        engines.freeze(engine)
        assert not engine.table.frozen
        assert "cannot freeze the memtable: out of memory" in str(engine.gate.checkpoint_shortage)
        engine.set(b"l", VALUE)
        engine.commit()
    engines.freeze(engine)
    wait_until(lambda: engine.table.base.live == 2, what="the checkpoint")
    assert engine.gate.checkpoint_shortage is None


def _no_memory(*_: object) -> None:
    raise MemoryError


def test_a_batch_that_finds_no_memory_has_done_what_it_says(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    before = engine.log.sequence
    engine.set(b"z", VALUE)
    engine.log.room = 3 * engine.log.pending_size
    monkeypatch.setattr(engine.log, "reserve", lambda *_: _no_memory())
    assert engine.set_batch([(b"", key, VALUE) for key in (b"a", b"b", b"c", b"d")]) == 2
    assert (engine.log.sequence, engine.live_count) == (before + 3, 3)
    engine.commit()
    engine.close()
    assert list(engines.everything(make_engine())) == [b"a", b"b", b"z"]


# -- a frame that finds no room although room was reserved -------------------------------------------------------------


def test_all_kinds_of_changes_are_rolled_back(make_engine: Callable[..., Engine]) -> None:
    engine = engines.filled(make_engine())
    engine.put_metadata(b"kept", b"1")
    engine.commit()

    def state() -> object:
        return (
            engines.everything(engine),
            engine.root(),
            engine.truncation,
            engine.gc_horizon,
            dict(engine.metadata),
            (engine.live_count, engine.tombstone_count),
            engine.log.sequence,
            engine.log.end_lsn,
        )

    def recover() -> None:
        engine.commit()

    before = state()
    changes: list[Callable[[], object]] = [
        lambda: engine.set(b"new", b"v"),
        lambda: engine.set(b"k05", b"v"),
        lambda: engine.delete(b"k05"),
        lambda: engine.delete(b"frozen"),
        lambda: engine.increment(b"n", 5),
        lambda: engine.mset([(b"k05", b"x"), (b"new", b"y")]),
        engine.truncate,
        lambda: engine.merge([(1, b"m", engines.record(b"m", b"v", engines.NOON))], b"elsewhere"),
        lambda: engine.merge_truncation(engines.version(engines.NOON - 1), b"elsewhere"),
        lambda: engine.put_metadata(b"kept", b"2"),
        lambda: engine.put_metadata(b"other", b"3"),
        lambda: engine.raise_gc_horizon(engines.NOON + 10**12) and engine.collect_tombstones(),
    ]
    for part in (0.0, 0.5, 1.0):
        for change in changes:
            change()
            assert state() != before
            with no_room(part), pytest.raises(DiskFull, match="disk full, write not stored"):
                engine.commit()
            assert state() == before
            recover()
    for change in changes:
        change()
    assert engine.metadata[b"kept"] == b"2"
    assert engine.metadata[METADATA_GC_HORIZON]
    engine.commit()


def test_reads_go_on_and_writes_are_refused_until_there_is_room(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(durability="always")
    engine.set(b"k", b"v")
    engine.commit()
    with no_room():
        engine.set(b"l", b"w")
        with pytest.raises(DiskFull):
            engine.commit()
        for _ in range(3):
            engine.commit()  # nothing of ours is lost by it
            with pytest.raises(DiskFull, match="disk full, write not stored"):
                engine.set(b"l", b"w")
            assert engine.get(b"k") == b"v"
            assert engine.get(b"l") is None
            assert not engine.makes_wait
    assert "there is room again" not in caplog.text
    engine.commit()
    assert "there is room again" in caplog.text
    engine.set(b"l", b"x")
    engine.commit()
    assert engines.values(engine) == {b"k": b"v", b"l": b"x"}


def test_a_file_system_that_takes_no_writes_is_no_failed_disk(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not even the part of a frame that it took before can be cut off, until it takes writes again."""
    read_only = OSError(errno.EROFS, os.strerror(errno.EROFS))
    engine = make_engine(durability="always")
    engine.set(b"k", b"v")
    engine.commit()
    with failing_writes(read_only, 0.5), monkeypatch.context() as patch:
        for call in ("ftruncate", "posix_fallocate"):
            patch.setattr(os, call, Mock(side_effect=read_only))
        engine.set(b"l", b"w" * 1000)
        with pytest.raises(Shortage, match="resource shortage, write not stored"):
            engine.commit()
        for _ in range(3):
            with pytest.raises(Shortage, match="resource shortage, write not stored"):
                engine.set(b"m", b"w")
            engine.commit()
        assert engine.get(b"k") == b"v"
        assert engine.get(b"l") is None
    engine.commit()
    engine.set(b"m", b"x")
    engine.commit()
    engine.close()
    assert check_directory(tmp_path / "data") == []
    with engines.engine_in(tmp_path / "data") as again:
        assert engines.values(again) == {b"k": b"v", b"m": b"x"}


def test_a_roll_back_waits_for_what_it_lacks(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_module, "ROLL_BACK_POLL_S", 0.001)
    engine = make_engine()
    engine.set(b"k", b"v")
    engine.commit()
    lacks = iter([MemoryError(), OSError(errno.ENFILE, os.strerror(errno.ENFILE))])
    real = recovery_module.replay

    def replay(*arguments: Any) -> Any:
        if (lack := next(lacks, None)) is not None:
            raise lack
        return real(*arguments)

    monkeypatch.setattr(commit_module, "replay", replay)
    engine.set(b"l", b"w")
    with no_room(), pytest.raises(DiskFull):
        engine.commit()
    engine.commit()
    engine.set(b"m", b"x")
    engine.commit()
    assert next(lacks, None) is None
    assert engines.values(engine) == {b"k": b"v", b"m": b"x"}


def test_a_directory_that_cannot_be_looked_up_is_no_failed_disk(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Such as one whose parent may not be searched any more."""
    engine = make_engine(checkpoint="process")
    real = Path.stat

    def stat(path: Path, *arguments: Any, **options: Any) -> os.stat_result:
        if path == tmp_path / "data":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat)
        engine.set(b"k", b"v")
        engines.freeze(engine)
        assert not engine.table.frozen
        assert "Permission denied" in str(engine.gate.checkpoint_shortage)
        engine.set(b"l", b"w")
        engine.commit()
    engines.freeze(engine)
    wait_until(lambda: engine.table.base.live == 2, what="the checkpoint")
    assert engine.gate.checkpoint_shortage is None


def test_every_thread_with_changes_is_told_once(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    written, failed = threading.Barrier(2), threading.Event()
    told: list[object] = []

    def other() -> None:
        engine.set(b"theirs", b"v")
        written.wait(WAIT_S)
        assert failed.wait(WAIT_S)
        for _ in range(2):
            try:
                engine.commit()
            except DiskFull as error:
                told.append(str(error))
            else:
                told.append(None)

    thread = threading.Thread(target=other)
    thread.start()
    written.wait(WAIT_S)
    engine.set(b"mine", b"v")
    with no_room(), pytest.raises(DiskFull):
        engine.commit()
    failed.set()
    thread.join(WAIT_S)
    assert told == ["disk full, write not stored", None]
    assert engines.values(engine) == {}
    engine.commit()


def test_a_thread_writes_nothing_before_it_is_told(make_engine: Callable[..., Engine]) -> None:
    """Also when another thread has found room by then: what is refused for it must not be stored."""
    engine = make_engine()
    written, room, gone = threading.Barrier(2), threading.Event(), threading.Event()
    refused: list[str] = []

    def other() -> None:
        engine.set(b"theirs", b"v")
        written.wait(WAIT_S)
        assert room.wait(WAIT_S)
        verbs: list[Callable[[], None]] = [lambda: engine.set(b"later", b"v"), engine.commit]
        for verb in verbs:
            try:
                verb()
            except DiskFull as error:
                refused.append(str(error))
        engine.set(b"told", b"v")
        engine.commit()
        gone.set()

    thread = threading.Thread(target=other)
    thread.start()
    written.wait(WAIT_S)
    with no_room(), pytest.raises(DiskFull):
        engine.commit()
    engine.commit()
    engine.set(b"mine", b"v")
    engine.commit()
    room.set()
    assert gone.wait(WAIT_S)
    thread.join(WAIT_S)
    assert refused == ["disk full, write not stored"] * 2
    assert engines.values(engine) == {b"mine": b"v", b"told": b"v"}


def test_a_thread_that_had_changed_nothing_is_not_told(tmp_path: Path) -> None:
    """In the library, where the next call may come much later."""
    with merklekv.open(tmp_path / "data", checkpoint="manual") as database:
        go, done = threading.Event(), threading.Event()
        problems: list[DiskFull] = []

        def other() -> None:
            database.set(b"theirs", b"1")
            done.set()
            assert go.wait(WAIT_S)
            try:
                database.set(b"theirs", b"2")
            except DiskFull as problem:
                problems.append(problem)

        thread = threading.Thread(target=other)
        thread.start()
        assert done.wait(WAIT_S)
        with no_room(), pytest.raises(DiskFull):
            database.set(b"mine", b"1")
        database.engine.commit()
        go.set()
        thread.join(WAIT_S)
        assert problems == []
        assert dict(database.items()) == {b"theirs": b"2"}


def test_a_metadata_entry_that_goes_first_is_not_lost(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    engine.put_metadata_first(b"one", b"1")
    with no_room(), pytest.raises(DiskFull):
        engine.flush()
    assert engine.metadata_or_pending(b"one") == b"1"
    assert b"one" not in engine.metadata
    engine.commit()
    assert engine.metadata == {b"one": b"1"}
    engine.commit()
    engine.close()
    assert make_engine().metadata == {b"one": b"1"}


def test_a_close_without_room_stores_what_was_committed(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    engine.set(b"k", b"v")
    engine.commit()
    engine.set(b"l", b"w")
    with no_room(0.5):
        engine.close()
    assert engines.values(make_engine()) == {b"k": b"v"}


def test_a_close_without_room_syncs_what_was_committed(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit_module, "SYNC_INTERVAL_S", 3600.0)
    engine = make_engine(durability="everysec")
    engine.set(b"k", b"v")
    engine.commit()
    assert engine.log.synced_lsn < engine.log.written_lsn
    engine.set(b"l", b"w")
    with no_room():
        engine.close()
    assert engine.log.synced_lsn == engine.log.written_lsn


def test_a_roll_back_reads_no_segment_that_the_base_has_taken_in(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memtable is still there, but the segment is gone."""
    engine = make_engine(checkpoint="process")
    done, go_on = threading.Event(), threading.Event()

    def reached(point: str) -> None:
        if point == "checkpointer.told":
            with engine.lock:
                engine.table.base.refresh()
            done.set()
            assert go_on.wait(WAIT_S)

    monkeypatch.setattr(failpoints, "reached", reached)
    engine.set(b"k", b"v")
    engines.freeze(engine)
    assert done.wait(WAIT_S)
    engine.checkpointer.delete_segments()  # as when the outbox lets go of the log
    assert list_segments(engine.directory.log) == [engine.table.active.lsn]
    assert engine.table.frozen
    engine.set(b"l", b"w")
    with no_room(), pytest.raises(DiskFull):
        engine.commit()
    assert engines.values(engine) == {b"k": b"v"}
    go_on.set()
    wait_until(lambda: not engine.table.frozen, what="the checkpoint")
    engine.commit()
    engine.set(b"l", b"w")
    engine.commit()
    assert engines.values(engine) == {b"k": b"v", b"l": b"w"}


@pytest.mark.parametrize("part", [0.0, 0.5])
def test_a_write_that_the_program_interrupts_fails_the_engine(tmp_path: Path, part: float) -> None:
    """Ctrl-C: whatever was written after it would stand behind a hole in the log."""
    with merklekv.open(tmp_path / "data", checkpoint="manual") as database:
        database.set(b"before", b"1")
        with failing_writes(KeyboardInterrupt(), part), pytest.raises(KeyboardInterrupt):
            database.set(b"k", b"v")
        for _ in range(3):
            with pytest.raises(StorageFailed, match="interrupted while it was written to: open it again"):
                database.set(b"after", b"1")
    with merklekv.open(tmp_path / "data", checkpoint="manual") as database:
        assert dict(database.items()) == {b"before": b"1"}
        database.set(b"after", b"1")


def test_a_failed_write_is_a_failed_disk(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()

    engine.set(b"k", b"v")
    with (
        failing_writes(OSError(errno.EIO, os.strerror(errno.EIO))),
        pytest.raises(StorageFailed, match="cannot write: Input/output error"),
    ):
        engine.commit()
    with pytest.raises(StorageFailed):
        engine.set(b"k", b"v")


# -- LMDB --------------------------------------------------------------------------------------------------------------


def test_a_snapshot_stays_when_there_is_no_other(make_engine: Callable[..., Engine]) -> None:
    """All of LMDB's slots for readers are taken."""
    engine = make_engine()
    engine.set(b"k", b"v")
    engines.checkpoint(engine)
    base = engine.table.base
    hogs = []
    with suppress(lmdb.ReadersFullError):
        while True:
            hogs.append(base._env.begin())
    with pytest.raises(Shortage, match="MDB_READERS_FULL"):
        base.refresh()
    assert base.get(b"k") is not None
    hogs.clear()
    base.refresh()
    assert base.get(b"k") is not None


def test_a_base_that_outgrows_the_map_of_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "base"
    path.mkdir()
    BaseWriter(path).close()
    script = (
        "import sys; from pathlib import Path; from merklekv.engine.base.writer import BaseWriter\n"
        "with BaseWriter(Path(sys.argv[1])) as writer:\n"
        "    with writer._transaction() as txn:\n"
        "        for number in range(300): txn.put(b'metadata:%d' % number, bytes(100_000), db=writer._meta)\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(environment, "MAP_SIZE", 8 << 20)
        base = Base(path)
    subprocess.run([sys.executable, "-c", script, path], check=True, timeout=60)
    base.refresh()
    assert len(base.metadata()) == 300
    base.refresh()
    base.close()


def test_segments_are_deleted_when_there_are_descriptors_again(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    engine.retention.subscribe()
    for number in range(3):
        engine.set(b"k%d" % number, b"v")
        engines.freeze(engine)
    engines.checkpoint(engine)
    assert len(list_segments(engine.directory.log)) > 1
    with no_descriptors():
        for _ in range(20):  # as it publishes
            engine.release_log(engine.retention.end)
    assert caplog.text.count("events will be published again after a crash") == 1
    assert len(list_segments(engine.directory.log)) > 1
    engine.release_log(engine.retention.end)
    assert len(list_segments(engine.directory.log)) == 1


def resources() -> tuple[set[str], set[str]]:
    """What this process has open, and its threads, once those that read what earlier children said have ended."""
    wait_until(lambda: all(thread.name != "child-log" for thread in threading.enumerate()), what="earlier children")
    return set(os.listdir("/proc/self/fd")), {thread.name for thread in threading.enumerate()}


def test_an_open_that_fails_in_the_log_leaves_nothing(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    make_engine().close()
    before = resources()
    with monkeypatch.context() as patch:
        patch.setattr(recovery_module.Replayed, "read", no_memory)
        with pytest.raises(MemoryError):
            make_engine()
    assert resources() == before
    make_engine()


@pytest.mark.parametrize("name", ["checkpointer", "log-sync"])
def test_an_open_without_a_thread_leaves_nothing(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    start = threading.Thread.start

    def start_others(thread: threading.Thread) -> None:
        if thread.name == name:
            raise RuntimeError("can't start new thread")
        start(thread)

    before = resources()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_others)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            make_engine(checkpoint="process", durability="everysec")
    assert resources() == before
    make_engine()


@contextmanager
def same_process_id(base: Path, pid: int) -> Iterator[Callable[[], None]]:
    """Another container has a process of this id that has the base open: LMDB sees no more of it than this lock."""
    script = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX, 1, int(sys.argv[2]))\n"
        "print(flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(base / "lock.mdb"), str(pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()

        def end() -> None:
            process.communicate()

        yield end


class Clock:
    """Time that passes only during a pause."""

    def __init__(self, at_pause: Callable[[], None] = lambda: None) -> None:
        self.now = 0.0
        self._at_pause = at_pause

    def rule(self, patch: pytest.MonkeyPatch) -> None:
        """Lets the base go by this clock."""
        for module in (environment, writer):
            patch.setattr(module, "time", self)
            patch.setattr(module, "pause", self.pause)

    def monotonic(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        self._at_pause()


def test_a_start_waits_for_a_process_of_the_same_id(
    make_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_engine().close()
    with same_process_id(tmp_path / "data" / "base", os.getpid()) as end:
        Clock().rule(monkeypatch)
        with pytest.raises(DirectoryLocked, match="in use by a process of another container"):
            make_engine()
        Clock(end).rule(monkeypatch)
        make_engine().close()


def test_a_child_of_the_same_id_is_replaced(
    make_engine: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpointer_module, "RETRY_S", 0.01)
    engine = make_engine(checkpoint="process")
    child = engine.checkpointer.child
    assert child is not None
    engine.set(b"k", b"v")
    engines.freeze(engine)
    wait_until(lambda: not engine.table.frozen, what="the checkpoint")
    first = child.pid
    assert first is not None
    with same_process_id(tmp_path / "data" / "base", first) as end:
        engine.set(b"k", b"w")
        engines.freeze(engine)
        wait_until(lambda: not engine.table.frozen, what="the checkpoint")
        assert child.pid != first
        end()
    assert engine.get(b"k") == b"w"
