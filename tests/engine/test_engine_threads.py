"""One engine, many threads: no update is lost, commits are shared, and readers never see half of anything."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures import engines
from fixtures.support import WAIT_S, wait_until

from merklekv.engine import commit
from merklekv.engine.engine import Engine
from merklekv.engine.log.writer import Sealed
from merklekv.engine.memtable import Memtable
from merklekv.errors import DirectoryLocked, Stalled, StorageFailed

THREADS = 4


def together(*works: Callable[[], None]) -> None:
    """Runs them at once; what one of them raises is raised here."""
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result(WAIT_S)


def stored(engine: Engine, verb: Callable[..., object]) -> None:
    """Does it, waiting while writes are stalled, and commits."""
    while True:
        try:
            verb()
        except Stalled:
            engine.wait_for_room(1)
        else:
            break
    engine.commit()


@pytest.mark.parametrize("checkpoint", ["manual", "process"])
def test_no_increment_is_lost(make_engine: Callable[..., Engine], checkpoint: str) -> None:
    engine = make_engine(durability="always", checkpoint=checkpoint)
    totals: list[int] = []

    def count() -> None:
        for _ in range(100):
            totals.append(engine.increment(b"n", 1))
            engine.commit()

    together(*[count] * THREADS)
    assert sorted(totals) == list(range(1, 100 * THREADS + 1))
    engine.close()
    assert make_engine().get(b"n") == b"%d" % (100 * THREADS)


def test_what_a_commit_returns_from_is_on_disk(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread's own write, by any thread's sync; and several share one."""
    engine = make_engine(durability="always")
    syncs = [0]
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        syncs[0] += 1
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    def write(name: bytes) -> Callable[[], None]:
        def work() -> None:
            for number in range(100):
                engine.set(name, b"%d" % number)
                with engine.lock:
                    mark = engine.log.appended
                engine.commit()
                assert engine.commits.committed >= mark
                assert engine.log.synced_lsn > 0

        return work

    together(*[write(b"k%d" % number) for number in range(THREADS)])
    assert syncs[0] <= 100 * THREADS
    assert engine.commits.committed == engine.log.appended
    assert engine.log.synced_lsn == engine.log.end_lsn


def test_a_commit_waits_for_what_others_have_written(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader may have seen another's write that is not on disk yet: its commit returns only when it is."""
    engine = make_engine(durability="always")
    syncing, go_on = threading.Event(), threading.Event()
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        syncing.set()
        assert go_on.wait(WAIT_S)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    engine.set(b"k", b"v")
    writer = threading.Thread(target=engine.commit)
    writer.start()
    assert syncing.wait(WAIT_S)
    assert engine.get(b"k") == b"v"
    reader = threading.Thread(target=engine.commit)
    reader.start()
    reader.join(0.05)
    assert reader.is_alive()
    go_on.set()
    for thread in (writer, reader):
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_an_mset_is_seen_whole_by_who_holds_the_lock(make_engine: Callable[..., Engine]) -> None:
    """Beside rotations, stalls and checkpoints in the child, in memory and in every frame of the log."""
    engine = make_engine(checkpoint="process")
    done = threading.Event()

    def write() -> None:
        for number in range(150):
            value = b"%d" % number * 200
            stored(engine, lambda value=value: engine.mset([(b"k%d" % key, value) for key in range(5)]))
        done.set()

    def read() -> None:
        while not done.is_set():
            with engine.lock:
                assert len({engine.get(b"k%d" % key) for key in range(5)}) == 1
            keys, _ = engine.page()
            assert len(keys) in (0, 5)

    together(write, read, read)
    assert engine.get(b"k0") == b"149" * 200


def test_writes_and_scans_beside_checkpoints(make_engine: Callable[..., Engine]) -> None:
    """What is there throughout is found by every scan, whatever else comes and goes."""
    engine = make_engine(checkpoint="process")
    lasting = [b"lasting%02d" % number for number in range(50)]
    engine.mset([(key, b"x" * 500) for key in lasting])
    done = threading.Event()

    def write() -> None:
        for number in range(400):
            stored(engine, lambda number=number: engine.set(b"m%03d" % (number % 90), b"y" * 1000))
            if number % 7 == 0:
                stored(engine, lambda number=number: engine.delete(b"m%03d" % (number % 90)))
        done.set()

    def scan() -> None:
        while not done.is_set():
            found: list[bytes] = []
            after: bytes | None = b""
            while after is not None:
                page, after = engine.page(b"", after, 20)
                found += page
            assert found == sorted(set(found))
            assert set(lasting) <= set(found)

    together(write, scan, scan)
    wait_until(lambda: not engine.table.frozen, what="the checkpoint")
    assert engine.table.base.checkpoint_lsn > 0


def test_everysec_syncs_by_itself(make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "SYNC_INTERVAL_S", 0.01)
    engine = make_engine(durability="everysec")
    engine.set(b"k", b"v")
    engine.commit()
    wait_until(lambda: engine.log.synced_lsn == engine.log.end_lsn, what="the sync")


def test_a_sync_that_fails_stops_everything(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have dropped the pages: no commit returns any more, no write is taken; reads go on."""
    engine = make_engine(durability="always")
    engine.set(b"k", b"v")
    engine.commit()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _failing)
        engine.set(b"k", b"lost")
        with pytest.raises(StorageFailed, match="cannot sync: Input/output error"):
            engine.commit()
    for verb in (engine.commit, lambda: engine.set(b"k", b"w"), engine.truncate, lambda: engine.mset([(b"k", b"")])):
        with pytest.raises(StorageFailed):
            verb()
    assert engine.get(b"k") == b"lost"
    assert not engine.makes_wait


def test_a_sync_in_the_background_that_fails_stops_everything(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "SYNC_INTERVAL_S", 0.01)
    engine = make_engine(durability="everysec")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _failing)
        engine.set(b"k", b"v")
        engine.commit()
        wait_until(lambda: engine.gate.failure is not None, what="the failure")
    with pytest.raises(StorageFailed):
        engine.commit()


def _failing(fd: int) -> None:
    raise OSError(5, os.strerror(5))


def rotate(engine: Engine) -> Sealed:
    """A rotation as far as the commit does it; the rest is the checkpointer's."""
    engine.set(b"k", b"v")
    engine.commit()
    engine.log.seal()
    engine.table.freeze(Memtable(engine.log.lsn))
    return engine.log._sealed[-1]


def synced_files(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are synced from now on, in order."""
    names: list[str] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        names.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return names


def test_a_sync_covers_full_segments_first(make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the checkpointer takes to finish them; and only once."""
    engine = make_engine(durability="never")
    log = engine.log
    first, second = rotate(engine), rotate(engine)
    names = synced_files(monkeypatch)
    log.sync()
    files = [f"{lsn:020d}.log" for lsn in (first.lsn, second.lsn, log.lsn)]
    assert names == files
    assert log.synced_lsn == second.lsn + second.end
    log.sync()
    assert names == [*files, files[-1]]
    log.finish_sealing()
    engine.set(b"k", b"w")
    engine.commit()
    log.sync()
    assert log.synced_lsn == log.end_lsn
    assert engines.values(engine) == {b"k": b"w"}


def test_what_was_synced_before_it_was_sealed_is_not_synced_again(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(durability="always")
    rotate(engine)
    names = synced_files(monkeypatch)
    engine.set(b"k", b"w")
    engine.commit()
    assert names == [f"{engine.log.lsn:020d}.log"]
    assert engine.log.synced_lsn == engine.log.end_lsn
    engine.log.finish_sealing()
    assert engine.log.synced_lsn == engine.log.end_lsn


def test_closing_lets_the_directory_go_when_the_last_sync_fails(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(durability="never")
    engine.set(b"k", b"v")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", _failing)
        with pytest.raises(StorageFailed, match="cannot sync"):
            engine.close()
    assert make_engine().get(b"k") == b"v"


def test_a_segment_that_cannot_be_finished_ends_in_no_claim_that_it_is_synced(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(durability="never", checkpoint="process")
    rotate(engine)
    synced = engine.log.synced_lsn
    with monkeypatch.context() as patch:
        failures = iter([OSError(5, os.strerror(5))])

        def fsync(_: int) -> None:
            for failure in failures:  # only the first one fails, as the kernel does it
                raise failure

        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageFailed, match="cannot sync"):
            engine.close()
    assert engine.log.synced_lsn == synced
    assert make_engine().get(b"k") == b"v"


def test_the_second_of_two_closes_does_nothing(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    stopping, go_on = threading.Event(), threading.Event()
    sync = engine.log.sync

    def wait_and_sync() -> None:
        stopping.set()
        assert go_on.wait(WAIT_S)
        sync()

    monkeypatch.setattr(engine.log, "sync", wait_and_sync)
    closing = threading.Thread(target=engine.close)
    closing.start()
    assert stopping.wait(WAIT_S)
    engine.close()
    with pytest.raises(DirectoryLocked):
        Engine(engine.directory.path)
    go_on.set()
    closing.join()


def test_counters_are_never_half_rebuilt(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(durability="never")
    engine.set_batch([(b"", b"k%d" % number, b"v") for number in range(20_000)])
    engine.commit()
    counts, done = set(), threading.Event()

    def look() -> None:
        while not done.is_set():
            counts.add(engine.live_count)

    reader = threading.Thread(target=look)
    reader.start()
    with engine.lock:
        engine.table.rebuild(engine.table.base.pinned())
    done.set()
    reader.join()
    assert counts <= {20_000}
