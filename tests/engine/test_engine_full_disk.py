"""A full disk, for real: a small tmpfs.  A write that finds no room raises DiskFull and has changed nothing.

Reads go on; once there is room, writes do, without a restart; and what was acknowledged is there after one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from fixtures import engines
from fixtures.small_disk import free_bytes, take_room
from fixtures.support import wait_until

from merklekv.engine.engine import Engine
from merklekv.engine.log import writer as log_module
from merklekv.engine.log.writer import NEXT_FILE
from merklekv.engine.options import MIN_MEMTABLE_SIZE
from merklekv.engine.verify.check import check_directory, check_engine
from merklekv.errors import DiskFull, MerkleKVError, Stalled

DISK_SIZE = 6 << 20


class Disk:
    """A disk of a few MiB that can be filled up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.filler = path / "filler"

    @property
    def free(self) -> int:
        """Bytes."""
        return free_bytes(self.path)

    def fill(self, leave: int = 0) -> None:
        """Takes all room but `leave` bytes."""
        take_room(self.filler, leave)

    def make_room(self) -> None:
        """Frees it all."""
        self.filler.unlink()


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    """One of DISK_SIZE bytes, or of the parameter's."""
    path = tmp_path / "disk"
    path.mkdir()
    size = getattr(request, "param", DISK_SIZE)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)  # lazy: a failed test may hold it open


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "RESERVE_STEP", 64 << 10)


def fill_memory(engine: Engine, error: type[Exception]) -> dict[bytes, bytes]:
    """Writes until that raises; what was stored."""
    stored: dict[bytes, bytes] = {}
    while True:
        key, value = b"k%d" % len(stored), b"v" * 1000
        before = engine.log.appended, engine.live_count
        try:
            engine.set(key, value)
        except error:
            assert (engine.log.appended, engine.live_count) == before
            assert engine.get(key) is None
            return stored
        engine.commit()
        stored[key] = value


def fill_log(engine: Engine) -> None:
    """Uses up the log to the last bytes."""
    engine.set_batch((b"SET", b"k", b"") for _ in range(100_000))
    with pytest.raises(DiskFull):
        engine.set(b"k", b"")


def test_a_write_that_finds_no_room_changes_nothing(disk: Disk) -> None:
    engine = engines.open_engine(disk.path / "data", memtable_size=1 << 30, durability="always")
    disk.fill(leave=150_000)
    stored = fill_memory(engine, DiskFull)
    assert len(stored) > 50
    for verb in (
        lambda: engine.append(b"k0", b"v" * 1000),
        lambda: engine.rename(b"k0", b"renamed"),
        lambda: engine.mset([(b"small", b""), (b"large", b"v" * 10_000)]),
        lambda: engine.merge([(1, b"m", engines.record(b"m", b"v" * 2000, engines.NOON))], b"x"),
    ):
        with pytest.raises(DiskFull, match="disk full, write not stored"):
            verb()
    assert engines.values(engine) == stored
    assert check_engine(engine) == []
    engine.commit()
    disk.make_room()
    engine.mset([(b"small", b""), (b"large", b"v" * 10_000)])
    engine.commit()
    engine.close()
    assert check_directory(disk.path / "data") == []
    engine = engines.open_engine(disk.path / "data")
    assert engines.values(engine) == stored | {b"small": b"", b"large": b"v" * 10_000}
    engine.close()


def test_what_was_accepted_has_its_place(disk: Disk) -> None:
    """A write is refused when it is made, never when it is committed."""
    engine = engines.open_engine(disk.path / "data", memtable_size=1 << 30, durability="always")
    disk.fill(leave=100_000)
    accepted = engine.set_batch((b"SET", b"k%d" % number, b"v" * 500) for number in range(10_000))
    assert 50 < accepted < 10_000
    with pytest.raises(DiskFull):
        engine.set(b"k%d" % accepted, b"v" * 500)
    disk.fill()
    engine.commit()
    assert engine.live_count == accepted
    engine.close()
    engine = engines.open_engine(disk.path / "data")
    assert engine.live_count == accepted
    engine.close()


def test_a_start_on_a_full_disk_still_reads(disk: Disk) -> None:
    engine = engines.open_engine(disk.path / "data", durability="always")
    engine.set(b"k", b"v")
    engine.close()
    disk.fill()
    engine = engines.open_engine(disk.path / "data")
    assert engine.get(b"k") == b"v"
    with pytest.raises(DiskFull):
        engine.set(b"l", b"v" * 10_000)
    disk.make_room()
    engine.set(b"l", b"")
    engine.close()


def test_a_metadata_entry_that_goes_first(disk: Disk) -> None:
    """Without room for it, nothing is written before it; once there is room, it is."""
    engine = engines.open_engine(disk.path / "data", durability="always")
    disk.fill()
    fill_log(engine)
    engine.put_metadata_first(b"one", b"1" * 5000)
    engine.put_metadata_first(b"two", b"2")
    assert engine.get(b"k") == b""
    for verb in (
        lambda: engine.set(b"k", b""),
        lambda: engine.delete(b"k"),
        lambda: engine.merge([(1, b"m", engines.record(b"m", b"", engines.NOON))], b"x"),
    ):
        with pytest.raises(DiskFull):
            verb()
    engine.commit()
    assert not engine.makes_wait
    assert b"one" not in engine.metadata
    disk.make_room()
    with pytest.raises(DiskFull):  # until a commit has found out
        engine.set(b"k", b"")
    engine.commit()
    engine.set(b"k", b"v")
    engine.close()
    assert check_directory(disk.path / "data") == []
    engine = engines.open_engine(disk.path / "data")
    assert (engine.metadata, engine.get(b"k")) == ({b"one": b"1" * 5000, b"two": b"2"}, b"v")
    engine.close()


def test_a_metadata_entry_that_goes_first_gives_way_to_a_later_one(disk: Disk) -> None:
    engine = engines.open_engine(disk.path / "data", durability="always")
    disk.fill()
    engine.put_metadata_first(b"one", b"1" * 10_000)
    engine.put_metadata(b"one", b"")
    engine.commit()
    engine.set(b"k", b"")
    engine.close()
    engine = engines.open_engine(disk.path / "data")
    assert engine.metadata == {b"one": b""}
    engine.close()


def test_a_disk_too_full_to_begin(disk: Disk) -> None:
    disk.fill()
    with pytest.raises((DiskFull, MerkleKVError), match=str(disk.path)):
        engines.open_engine(disk.path / "data")
    disk.make_room()
    engine = engines.open_engine(disk.path / "data")
    engine.set(b"k", b"v")
    engine.close()


def test_no_room_for_a_new_segment(disk: Disk) -> None:
    """The full one goes on being used, as long as there is room in it; then it is DiskFull, not Stalled."""
    engine = engines.open_engine(disk.path / "data")
    engine.log.reserve(300_000, urgent=False)
    os.truncate(disk.path / "data" / "log" / NEXT_FILE, 0)  # else its header has room
    disk.fill()
    stored = fill_memory(engine, DiskFull)
    assert sum(map(len, stored.values())) > MIN_MEMTABLE_SIZE
    assert not engine.table.frozen
    assert engines.values(engine) == stored
    disk.make_room()
    engine.commit()
    assert engine.table.frozen
    engines.checkpoint(engine)
    engine.set(b"after", b"")
    assert engines.values(engine) == stored | {b"after": b""}
    engine.close()
    assert check_directory(disk.path / "data") == []


def _no_room(*_: object) -> None:
    raise DiskFull("disk full")


def test_no_room_for_a_new_segment_but_for_metadata(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the metadata got in does not make writers wait for a checkpoint that cannot begin."""
    engine = engines.open_engine(disk.path / "data")
    engine.log.reserve(300_000, urgent=False)
    os.truncate(disk.path / "data" / "log" / NEXT_FILE, 0)  # else its header has room
    disk.fill()
    fill_memory(engine, DiskFull)
    with monkeypatch.context() as patch:  # as a start leaves it that found not a byte of room
        patch.setattr(engine.table, "put_metadata", _no_room)
        engine.put_metadata_first(b"one", b"1")
    engine.commit()
    with pytest.raises(DiskFull):
        engine.set(b"k", b"")
    assert engine.metadata == {b"one": b"1"}
    disk.make_room()
    engine.commit()
    assert engine.table.frozen
    engine.close()


@pytest.mark.parametrize("leave", range(0, 200_000, 25_000))
def test_a_checkpoint_that_finds_no_room_goes_on_later(disk: Disk, leave: int) -> None:
    engine = engines.open_engine(disk.path / "data")
    try:
        stored = fill_memory(engine, Stalled)
        for number in range(0, len(stored), 3):
            key = b"k%d" % number
            assert engine.get(key) == stored[key]
        root = engine.root()
        disk.fill(leave)
        with pytest.raises(DiskFull, match="disk full, cannot checkpoint"):
            engine.checkpoint_now()
        assert engines.values(engine) == stored
        assert check_engine(engine) == []
        disk.make_room()
        engine.checkpoint_now()
        assert engines.values(engine) == stored
        assert engine.root() == root
        assert check_engine(engine) == []
    finally:
        engine.close()
    assert check_directory(disk.path / "data") == []


def test_a_checkpoint_in_the_child_waits_for_room(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Meanwhile reads go on, writes do until memory is full, and then the disk is what they complain about."""
    monkeypatch.setattr("merklekv.engine.checkpoint.checkpointer.RETRY_S", 0.01)
    engine = engines.open_engine(disk.path / "data", checkpoint="process")
    try:
        engine.log.reserve(4 * MIN_MEMTABLE_SIZE, urgent=False)
        disk.fill(leave=100_000)
        stored: dict[bytes, bytes] = {}

        def write_on() -> bool:
            key = b"k%d" % len(stored)
            try:
                engine.set(key, b"v" * 1000)
            except Stalled:
                return False
            except DiskFull:
                return True
            engine.commit()
            stored[key] = b"v" * 1000
            return False

        wait_until(write_on, what="a full disk")
        assert engines.values(engine) == stored
        assert check_engine(engine) == []
        disk.make_room()

        def written() -> bool:
            try:
                engine.set(b"after", b"")
            except (DiskFull, Stalled):
                engine.commit()
                return False
            return True

        wait_until(written, what="room")
        wait_until(lambda: not engine.table.frozen, what="the checkpoint")
        assert engines.values(engine) == stored | {b"after": b""}
    finally:
        engine.close()
    assert check_directory(disk.path / "data") == []


@pytest.mark.parametrize("disk", [0], indirect=True)
def test_a_file_system_that_does_not_say_its_size_is_not_full(disk: Disk) -> None:
    """As FUSE may do, and tmpfs without a limit."""
    assert os.statvfs(disk.path).f_blocks == 0
    engine = engines.open_engine(disk.path / "data", checkpoint="process")
    for number in range(400):
        engine.retry_stalled(partial(engine.set, b"k%d" % number, b"v" * 1000))
        engine.commit()
    wait_until(lambda: engine.table.base.live > 0, what="the checkpoint")
    assert engine.refusal() == ""
    engine.close()
    assert check_directory(disk.path / "data") == []
