"""A disk that the node's own data has filled: writes are refused, deletions empty it, and it can be filled again.

On a real small file system, with the real checkpoint process.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fixtures import engines
from fixtures.small_disk import take_room
from fixtures.support import wait_until

from merklekv.engine.checkpoint import compactor, full_disk, space
from merklekv.engine.engine import Engine
from merklekv.engine.format import OP_DEL, OP_SET
from merklekv.engine.headroom import RESERVE_FILE
from merklekv.engine.log.segment import list_segments
from merklekv.errors import DiskFull

DISK_SIZE = 14 << 20
TINY_SIZE = 9 << 20
MEMTABLE_SIZE = 64 << 20  # never full here: only the disk makes checkpoints
VALUE = b"v" * 500
AT_ONCE = 25_000  # bytes of values
AGAIN = 0.9  # of what the first filling took in


class Disk:
    """A small file system."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path / "data"
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Another program takes what is left."""
        take_room(self._ballast)


@contextmanager
def mounted(path: Path, size: int) -> Iterator[Disk]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", DISK_SIZE) as disk:
        yield disk


@contextmanager
def opened(disk: Disk) -> Iterator[Engine]:
    engine = engines.open_engine(disk.data, checkpoint="process", memtable_size=MEMTABLE_SIZE)
    try:
        yield engine
    finally:
        engine.close()


def patiently(engine: Engine, call: Callable[[], object]) -> None:
    """As a client has it: a write that has to wait is made again."""
    engine.retry_stalled(call)


def fill(engine: Engine, name: str, value: bytes = VALUE) -> list[bytes]:
    """Writes until the disk is full; the keys."""
    keys: list[bytes] = []
    while True:
        more = [b"%s %d" % (name.encode(), len(keys) + number) for number in range(AT_ONCE // len(value) + 1)]
        try:
            patiently(engine, lambda more=more: engine.mset([(key, value) for key in more]))  # type: ignore[misc]
        except DiskFull:
            return keys
        engine.commit()
        keys += more


def fill_up(engine: Engine) -> None:
    """Uses up what is left for small values."""
    with suppress(DiskFull):
        for number in range(10_000):
            patiently(engine, lambda number=number: engine.set(b"small %d" % number, VALUE))  # type: ignore[misc]
            engine.commit()


def is_idle(engine: Engine) -> bool:
    """Whether all that was frozen is in the base, and what that made room for is gone: segments, and the reserve."""
    return not engine.table.frozen and engine.checkpointer._done == engine.checkpointer._upto


def settle(engine: Engine) -> None:
    """Waits until no checkpoint is under way and the node has taken what it keeps for deletions."""

    def is_settled() -> bool:
        with engine.commits.lock, engine.table.lock:
            reserve = engine.table.log.directory / RESERVE_FILE
            reserved = reserve.stat().st_blocks * 512 if reserve.exists() else 0
            is_kept = reserved + engine.table.base.space.free > DISK_SIZE // 5
            return is_kept and is_idle(engine)

    wait_until(is_settled, what="the reserve file")


def delete(engine: Engine, keys: list[bytes]) -> None:
    """Deletes them all; none may be refused."""
    for key in keys:
        patiently(engine, lambda key=key: engine.delete(key))  # type: ignore[misc]
        engine.commit()


def checkpoint(engine: Engine) -> None:
    """Puts all that there is into the base."""
    patiently(engine, lambda: engine.put_metadata(b"name", b"v"))
    with engine.commits.lock:
        engine.checkpointer.freeze()
    wait_until(lambda: is_idle(engine), what="the checkpoint")


def forget(engine: Engine) -> None:
    """Collects all tombstones."""
    engine.raise_gc_horizon(engine.clock.newest)
    while engine.retry_stalled(engine.collect_tombstones):
        engine.commit()
    engine.commit()


@pytest.mark.parametrize("size", [500, 50_000])
def test_deletions_empty_a_full_disk(disk: Disk, size: int) -> None:
    with opened(disk) as engine:
        keys = fill(engine, "k", b"v" * size)
        assert len(keys) * size > DISK_SIZE / 4
        delete(engine, keys)
        assert engine.live_count == 0
        assert len(fill(engine, "again", b"v" * size)) >= AGAIN * len(keys)


def test_only_what_makes_the_data_grow_is_refused(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    with opened(disk) as engine:
        keys = fill(engine, "k")
        fill_up(engine)
        assert caplog.text.count("disk full: writes are refused") == 1
        with pytest.raises(DiskFull):
            patiently(engine, lambda: engine.set(b"more", b"v" * 200_000))
        with pytest.raises(DiskFull):
            patiently(engine, lambda: engine.append(keys[0], b"v" * 200_000))
        patiently(engine, lambda: engine.delete(keys[0]))
        engine.put_metadata(b"name", b"v" * 1000)
        engine.commit()
        assert (engine.get(keys[0]), engine.get(keys[1])) == (None, VALUE)
        patiently(engine, engine.truncate)
        patiently(engine, lambda: engine.set(b"again", b"v" * 200_000))
        engine.commit()
        assert caplog.text.count("there is space again, writes are stored") == 1


def test_a_start_on_a_full_disk_after_a_crash(disk: Disk, tmp_path: Path) -> None:
    """In a cluster: deletions leave tombstones."""
    with opened(disk) as engine:
        engine.join()
        keys = fill(engine, "k")
        wait_until(lambda: not engine.table.frozen, what="the checkpoint")
        with engine.commits.lock, engine.lock:  # no checkpoint begins and no file goes while they are copied
            shutil.copytree(disk.data, tmp_path / "copy")  # as a killed process leaves it: with what it had reserved
    shutil.rmtree(disk.data)
    shutil.copytree(tmp_path / "copy", disk.data)
    with opened(disk) as engine:
        assert engine.live_count == len(keys)
        delete(engine, keys)
        assert (engine.live_count, engine.tombstone_count) == (0, len(keys))
        forget(engine)
        assert engine.tombstone_count == 0
        assert len(fill(engine, "again")) >= AGAIN * len(keys)


def test_another_program_takes_the_rest(disk: Disk) -> None:
    """The reserve file has what deletions and their checkpoint need, also after a restart."""
    with opened(disk) as engine:
        keys = fill(engine, "k")
        settle(engine)
        disk.fill()
        delete(engine, keys[::2])
    with opened(disk) as engine:
        settle(engine)
        disk.fill()
        delete(engine, keys[1::2])
        assert engine.live_count == 0
        assert len(fill(engine, "again")) > len(keys) / 3


def test_a_compaction_of_a_full_disk(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free pages of the base give the log no space.  The reserve file has what a small new base needs."""
    reserve = disk.data / "log" / RESERVE_FILE
    with opened(disk) as engine:
        fill(engine, "k")
        with monkeypatch.context() as patch:
            patch.setattr(space, "SMALLEST", 1 << 40)
            patiently(engine, engine.truncate)
            checkpoint(engine)
            disk.fill()
        checkpoint(engine)
        wait_until(lambda: engine.checkpointer.compactions == 1, what="the compaction")
        wait_until(lambda: reserve.exists() and reserve.stat().st_size > DISK_SIZE // 5, what="the reserve file")
        assert len(fill(engine, "again")) > 1000


def test_an_emptied_disk_is_compacted(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the last deletions fill no memtable: what they delete may be what the new base has no room for."""
    monkeypatch.setattr(compactor, "RETRY_S", 0.1)
    monkeypatch.setattr(compactor, "RETRY_MAX_S", 0.1)
    with opened(disk) as engine:
        delete(engine, fill(engine, "k", b"v" * 200))
        wait_until(lambda: sum(engine.table.base.space) < space.SMALLEST, what="the compaction")


def test_a_quota_that_does_not_show_in_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log and the reserve file get no more than the quota; the log says why, and when there is space again."""
    quota, fallocate = 20 << 20, os.posix_fallocate

    def limited(fd: int, offset: int, size: int) -> None:
        used = sum(path.stat().st_blocks * 512 for path in (tmp_path / "data" / "log").iterdir())
        if used - os.fstat(fd).st_blocks * 512 + offset + size > quota:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        fallocate(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", limited)
    with opened(Disk(tmp_path)) as engine:
        monkeypatch.setattr(engine.checkpointer, "freeze", lambda: None)  # the base has no part in it
        engine.checkpointer.worker.stop(0)
        keys = fill(engine, "k")
        fill_up(engine)
        with pytest.raises(DiskFull):
            engine.set(b"k", VALUE)
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 1
        assert "disk full for this user, though " in said[0]
        assert "(a quota, or a limit on the size of files): writes are refused" in said[0]
        delete(engine, keys[:5000])
        assert len(caplog.records) == 1
        quota = 100 << 20
        engine.set(b"k", VALUE)
        engine.commit()
        assert [record.getMessage() for record in caplog.records[1:]] == [
            f"{tmp_path}/data: there is space again, writes are stored"
        ]


def test_merged_deletions_pass_records_that_find_no_room(disk: Disk) -> None:
    """A node of a cluster takes the deletions of the others, also out of one message with what it has no room for."""
    with opened(disk) as engine:
        keys = fill(engine, "k")[:50]
        later = engine.clock.newest + 1
        for number, key in enumerate(keys):
            large = engines.record(b"l%d" % number, b"v" * 100_000, later + number)
            changes = [(OP_SET, b"l%d" % number, large), (OP_DEL, key, engines.record(key, None, later + number))]
            try:
                patiently(engine, lambda changes=changes: engine.merge(changes, b"x"))  # type: ignore[misc]
            except DiskFull:
                assert engine.get(key) is None
            engine.commit()
        assert not set(keys).intersection(engines.values(engine))


def test_events_that_are_not_published_make_room(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """While the broker is away, the log that is retained for it may fill the disk."""
    with opened(disk) as engine:
        engine.retention.subscribe()
        keys = fill(engine, "k")
        assert caplog.text.count("dropped events that were not published") == 1
        assert len(list_segments(disk.data / "log")) < 3
        delete(engine, keys)
        assert engine.live_count == 0


def test_events_of_other_nodes_are_none_that_were_not_published(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """A full node that writes nothing by itself drops segments, and nobody misses anything."""
    with opened(disk) as engine:
        engine.retention.subscribe()
        for number in range(100_000):
            key = b"k%d" % number
            change = (OP_SET, key, engines.record(key, VALUE, engines.NOON + number))
            try:
                patiently(engine, lambda change=change: engine.merge([change], b"x"))  # type: ignore[misc]
            except DiskFull:
                break
            engine.commit()
        wait_until(lambda: len(list_segments(disk.data / "log")) < 3, what="the checkpoint")
        assert "not published" not in caplog.text


def test_a_tiny_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", TINY_SIZE) as disk, opened(disk) as engine:
        first = fill(engine, "0")
        assert len(first) > 1000
        delete(engine, first)
        assert len(fill(engine, "1")) > len(first) / 2


def test_no_checkpoint_for_each_deletion(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes that are refused between deletions do not make each of them wait for a checkpoint of its own."""
    for name in ("TRY_S", "TRY_MAX_S"):  # or there is time for one between two deletions where the machine is slow
        monkeypatch.setattr(full_disk, name, 3600.0)
    with opened(disk) as engine:
        keys = fill(engine, "k")
        lsns = set()
        for key in keys[:200]:
            patiently(engine, lambda key=key: engine.delete(key))  # type: ignore[misc]
            with pytest.raises(DiskFull):
                patiently(engine, lambda: engine.set(b"large", b"v" * 1_000_000))
            engine.commit()
            lsns.add(engine.table.base.checkpoint_lsn)
        assert len(lsns) < 100


def test_the_reserve_file_is_private_and_needs_no_meaning(disk: Disk) -> None:
    reserve = disk.data / "log" / RESERVE_FILE
    with opened(disk) as engine:
        engine.set(b"k", b"v")
        size = reserve.stat().st_size
        assert size > 1 << 20
        assert reserve.stat().st_mode & 0o77 == 0
    reserve.write_bytes(b"anything")
    with opened(disk) as engine:
        assert engine.get(b"k") == b"v"
        assert reserve.stat().st_size == size
    reserve.unlink()
    with opened(disk):
        assert reserve.stat().st_size == size
