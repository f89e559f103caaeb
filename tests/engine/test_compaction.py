"""A base that is mostly free is written anew and swapped: nothing is lost, readers go on, the space is free again."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

import pytest
from fixtures import engines
from fixtures.support import WAIT_S, wait_until

from merklekv.engine.base.environment import DATA_FILE
from merklekv.engine.base.reader import Base
from merklekv.engine.checkpoint import compactor as compactor_module
from merklekv.engine.checkpoint import space
from merklekv.engine.checkpoint.child import CheckpointProcess
from merklekv.engine.checkpoint.compaction import write_compacted
from merklekv.engine.checkpoint.space import CompactionRule, packed_size
from merklekv.engine.engine import Engine
from merklekv.engine.log.segment import list_segments
from merklekv.engine.verify import scrub as scrub_module
from merklekv.engine.verify.check import check_directory
from merklekv.engine.verify.scrub import Scrub
from merklekv.errors import Corruption, Stalled, StorageFailed

Make = Callable[..., Engine]
NAMES = ["FORMAT", "LOCK", "base", "log"]
MEMTABLE = 1 << 20
LARGE = 32 << 20
VALUE = b"v" * 1000


def write(engine: Engine, count: int, first: int = 0, value: bytes = VALUE) -> None:
    for number in range(first, first + count):
        while True:
            try:
                engine.set(b"k%06d" % number, value)
                break
            except Stalled:
                engine.commit()
                assert engine.wait_for_room(WAIT_S)
        if number % 100 == 0:
            engine.commit()
    engine.commit()


def base_size(engine: Engine) -> int:
    with engine.lock:  # or a swap may be in the middle of its two renames
        return (engine.directory.base / DATA_FILE).stat().st_size


def checkpoint(engine: Engine) -> None:
    """Has the checkpoint process take everything in, also if as many memtables as there may be wait for it already."""
    wait_until(lambda: not engine.table.frozen, what="the checkpoints of full memtables")
    engines.freeze(engine)
    wait_until(lambda: not engine.table.frozen, what="the checkpoint")
    assert not engine.table.records


def open_bases() -> int:
    """How many bases this process has mapped."""
    return sum(DATA_FILE in line for line in Path("/proc/self/maps").read_text().splitlines())


def wait_for_compactions(engine: Engine, count: int) -> None:
    wait_until(lambda: engine.checkpointer.compactions == count, what="the compaction")


@pytest.fixture
def smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every base is large enough."""
    monkeypatch.setattr(space, "SMALLEST", 0)


# -- an idle node --------------------------------------------------------------------------------------------------


def test_a_truncation_gives_the_space_back(make_engine: Make) -> None:
    """With nothing written behind it; twice, and the directory is as it was."""
    engine = make_engine(checkpoint="process", memtable_size=MEMTABLE)
    for count in (1, 2):
        write(engine, 6000)
        wait_until(lambda: base_size(engine) > 5 << 20, what="the base to fill")
        engine.retry_stalled(engine.truncate)
        engine.commit()
        wait_for_compactions(engine, count)
        assert base_size(engine) < 1 << 20
        assert open_bases() == 1
        assert sorted(os.listdir(engine.directory.path)) == NAMES
        assert engine.metrics().compactions == count
        write(engine, 100, count)
    assert len(engines.values(engine)) == 100


def test_a_truncation_gives_back_the_space_of_the_log(make_engine: Make) -> None:
    """Of data that are in no base yet."""
    engine = make_engine(checkpoint="process", memtable_size=LARGE)
    write(engine, 6000)
    assert engine.log.position > 6_000_000
    engine.truncate()
    engine.commit()
    wait_until(lambda: list_segments(engine.directory.log) == [engine.log.lsn], what="the checkpoint")
    assert engine.log.lsn > 6_000_000
    write(engine, 10)
    engine.truncate()
    engine.commit()
    assert not engine.table.frozen


def test_deletions_give_the_space_back(make_engine: Make) -> None:
    """Scattered ones, which free few pages, and which do not fill a memtable."""
    engine = make_engine(checkpoint="process", memtable_size=LARGE)
    write(engine, 6000)
    checkpoint(engine)
    assert engine.table.base.live == 6000
    before = base_size(engine)
    for number in random.Random(1).sample(range(6000), 4800):
        engine.delete(b"k%06d" % number)
    engine.commit()
    wait_until(lambda: base_size(engine) < before / 2, what="the compaction")
    assert len(engines.values(engine)) == 1200


def test_keys_that_come_and_go_leave_nothing(make_engine: Make) -> None:
    """Neither in the records nor in the leaves, which a few keys in many buckets make large."""
    engine = make_engine(checkpoint="process", memtable_size=MEMTABLE)
    write(engine, 3000, value=b"v")
    for first in range(0, 30_000, 3000):
        for number in range(3000):
            engine.retry_stalled(partial(engine.delete, b"k%06d" % (first + number)))
        write(engine, 3000, first + 3000, value=b"v")
    for number in range(3000):
        engine.retry_stalled(partial(engine.delete, b"k%06d" % (30_000 + number)))
    checkpoint(engine)
    assert not engine.table.base.live
    assert not engine.table.base.leaves()
    assert engine.table.base.space.used < 1 << 17


def test_a_start_finds_a_base_that_is_mostly_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(space, "SMALLEST", 1 << 40)
        with engines.engine_in(tmp_path / "data", memtable_size=LARGE) as engine:
            write(engine, 6000)
            engines.checkpoint(engine)
            engine.retry_stalled(engine.truncate)
            write(engine, 10)
            engines.checkpoint(engine)
            assert base_size(engine) > 5 << 20
    with engines.engine_in(tmp_path / "data", checkpoint="process") as engine:
        wait_for_compactions(engine, 1)
        assert base_size(engine) < 1 << 20
        assert len(engines.values(engine)) == 10


# -- readers across a swap -----------------------------------------------------------------------------------------


def test_readers_go_on_across_a_swap(make_engine: Make, monkeypatch: pytest.MonkeyPatch, smallest: None) -> None:
    """Whichever slice of a scan and of a scrub the swap comes before; the last reader lets go of the old base."""
    monkeypatch.setattr(scrub_module, "PAGE_RECORDS", 50)
    monkeypatch.setattr(scrub_module, "COUNTED_KEYS", 5)
    engine = make_engine(memtable_size=LARGE)
    write(engine, 300, value=b"v")
    engines.checkpoint(engine)
    write(engine, 30, 290, value=b"newer")
    expected, root = engines.everything(engine), engine.root()
    steps = sum(1 for _ in Scrub(engine).steps())
    for moment in range(0, steps, max(1, steps // 20)):
        scrub = Scrub(engine).steps()
        found = [next(scrub) for _ in range(moment)]
        page, after = engine.records_page(limit=100)
        engine.checkpointer.compact_base()
        assert engine.root() == root
        found += list(scrub)
        assert not any(found)
        records = dict(page)
        while after is not None:
            page, after = engine.records_page(b"", after, 100)
            records.update(page)
        assert records == expected
        del scrub
        assert open_bases() == 1


def test_the_old_base_lives_as_long_as_its_last_snapshot(make_engine: Make, smallest: None) -> None:
    engine = make_engine(memtable_size=LARGE)
    write(engine, 100)
    engines.checkpoint(engine)
    with engine.table.base.snapshot() as view:
        engine.checkpointer.compact_base()
        engine.set(b"k000001", b"newer")
        engines.checkpoint(engine)
        assert open_bases() == 2
        assert view.size(view.records) == 100
        assert view.txn.get(b"k000001").endswith(VALUE)
        assert engine.get(b"k000001") == b"newer"
    del view
    assert open_bases() == 1


def test_who_may_read_the_base_still_may(make_engine: Make) -> None:
    engine = make_engine(memtable_size=LARGE)
    write(engine, 10)
    base = engine.directory.base
    modes = {base: 0o750, base / DATA_FILE: 0o640, base / "lock.mdb": 0o660}
    for file, mode in modes.items():
        file.chmod(mode)
    inode = base.stat().st_ino
    engine.compact_now(lambda done, total: None)
    assert base.stat().st_ino != inode
    assert {file: stat.S_IMODE(file.stat().st_mode) for file in modes} == modes


# -- whether it is worth it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "key_size", "value_size", "kept"),
    [(8000, 10, 100, 0.2), (3000, 500, 10, 0.1), (2000, 10, 1500, 0.3), (1000, 10, 5000, 0.5), (6000, 8, 0, 1)],
)
def test_the_size_of_a_compacted_base_is_known_beforehand(
    make_engine: Make, count: int, key_size: int, value_size: int, kept: float
) -> None:
    engine = make_engine(memtable_size=LARGE)
    keys = [b"%08d" % number + bytes(key_size - 8) for number in range(count)]
    for key in keys:
        engine.set(key, bytes(value_size))
    engines.checkpoint(engine)
    for key in random.Random(count).sample(keys, int(count * (1 - kept))):
        engine.delete(key)
    engines.checkpoint(engine)
    expected = packed_size(engine.table.base)
    engine.compact_now(lambda done, total: None)
    assert base_size(engine) / 1.3 < expected < base_size(engine) * 1.3


def test_free_pages_that_checkpoints_use_are_left_to_them(make_engine: Make, smallest: None) -> None:
    """What does not shrink is not compacted again and again."""
    engine = make_engine(memtable_size=LARGE)
    rule = CompactionRule()
    chance = random.Random(2)
    write(engine, 3000, value=b"v" * 100)
    engines.checkpoint(engine)
    engine.checkpointer.compact_base()
    rule.compacted(engine.table.base)
    before = engine.checkpointer.compactions
    for _ in range(10):
        for number in chance.sample(range(3000), 1000):
            engine.set(b"k%06d" % number, b"v" * 100)
        engines.checkpoint(engine)
        assert not rule.is_due(engine.table.base)
    assert engine.checkpointer.compactions == before


def test_without_room_it_is_left_out_and_said_once(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compactor_module, "RETRY_S", 0.01)
    monkeypatch.setattr(compactor_module, "RETRY_MAX_S", 0.01)
    monkeypatch.setattr(space, "ROOM_SPARE", 1 << 60)
    engine = make_engine(checkpoint="process", memtable_size=MEMTABLE)
    looks = 0
    real = space.packed_size

    def counted(base: Base) -> int:
        nonlocal looks
        looks += 1
        return real(base)

    monkeypatch.setattr(space, "packed_size", counted)
    write(engine, 6000)
    engine.retry_stalled(engine.truncate)
    engine.commit()
    wait_until(lambda: looks > 10, what="several tries")
    assert engine.checkpointer.compactions == 0
    assert sorted(os.listdir(engine.directory.path)) == NAMES
    said = [record.message for record in caplog.records if "compact" in record.message]
    assert len(said) == 1
    assert "disk full: the new base needs about" in said[0]
    monkeypatch.setattr(space, "ROOM_SPARE", 0)
    wait_for_compactions(engine, 1)


def test_a_base_elsewhere_stays_there(
    make_engine: Make, tmp_path: Path, smallest: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A link would be replaced by a directory on another disk."""
    (tmp_path / "data").mkdir()
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "data" / "base").symlink_to(tmp_path / "large-disk")
    engine = make_engine(memtable_size=LARGE)
    for _ in range(2):
        write(engine, 1000)
        engines.checkpoint(engine)
        engine.retry_stalled(engine.truncate)
        engines.checkpoint(engine)
    assert engine.directory.base.is_symlink()
    said = [record.message for record in caplog.records if "compact" in record.message]
    assert len(said) == 1
    assert "is a link or a file system of its own" in said[0]


def test_writers_come_before_it(
    make_engine: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A child that does not get on with it is ended before they have to wait, and what it wrote is removed."""
    real = CheckpointProcess.compact
    begun: list[int] = []

    def compact(child: CheckpointProcess) -> None:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        begun.append(child.pid)
        real(child)

    monkeypatch.setattr(CheckpointProcess, "compact", compact)
    engine = make_engine(checkpoint="process", memtable_size=MEMTABLE)
    write(engine, 6000)
    engine.retry_stalled(engine.truncate)
    engine.commit()
    wait_until(lambda: begun, what="the compaction")
    for number in range(6000):
        engine.retry_stalled(partial(engine.set, b"k%06d" % number, VALUE))
        if number % 100 == 0:
            engine.commit()
    assert "the compaction of the base was not finished: writes came first; it is tried again later" in caplog.text
    wait_until(lambda: not engine.table.frozen, what="the checkpoints")
    assert engine.live_count == 6000
    assert sorted(os.listdir(engine.directory.path)) == NAMES


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_cut_behind_any_commit_it_leaves_the_base_alone(tmp_path: Path) -> None:
    with engines.engine_in(tmp_path / "data", memtable_size=LARGE) as engine, engines.small_transactions(40):
        write(engine, 200, value=b"v")
        engine.delete(b"k000003")
        engines.checkpoint(engine)
        before, commits = engines.everything(engine), 0
        while True:
            commits += 1
            with engines.cut_after(commits) as count:
                try:
                    write_compacted(engine.table.base, engine.directory.new_base)
                    break
                except engines.Cut:
                    assert not engine.directory.new_base.exists()
        assert commits > 12
        assert count[0] == commits - 1
        assert engines.everything(engine) == before
        engine.checkpointer.compact_base()
        assert engines.everything(engine) == before


def test_a_rename_that_fails_is_undone(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(memtable_size=LARGE)
    write(engine, 100)
    engines.checkpoint(engine)
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if Path(source).name == "base.new":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(OSError, match="Input/output"):
            engine.checkpointer.compact_base()
    shutil.rmtree(engine.directory.new_base)
    assert len(engines.values(engine)) == 100
    write(engine, 100)
    engines.checkpoint(engine)
    count = engine.checkpointer.compactions
    engine.checkpointer.compact_base()
    assert engine.checkpointer.compactions == count + 1


def test_a_swap_needs_no_descriptor_to_be_durable(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(memtable_size=LARGE)
    write(engine, 100)
    engines.checkpoint(engine)
    swap = engine.directory.swap_base

    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:

        def swap_and_run_short() -> None:
            swap()
            patch.setattr(os, "open", fail)

        patch.setattr(engine.directory, "swap_base", swap_and_run_short)
        engine.checkpointer.compact_base()
    write(engine, 100, first=100)
    assert len(engines.values(engine)) == 200


def test_renames_that_cannot_be_undone_stop_the_node(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next start puts the base back."""
    engine = make_engine(memtable_size=LARGE)
    write(engine, 100)
    engines.checkpoint(engine)
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if Path(source).name != "base":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(StorageFailed, match=r"base: was moved to .*base.old, and cannot be moved back"):
            engine.checkpointer.compact_base()
    with pytest.raises(StorageFailed):
        engine.set(b"k", b"")
    with suppress(StorageFailed):
        engine.close()
    engine = make_engine(memtable_size=LARGE)
    assert len(engines.values(engine)) == 100


def test_damage_is_not_copied(make_engine: Make, tmp_path: Path) -> None:
    """A key that is not in order stays where the scrub finds it."""
    engine = make_engine(memtable_size=LARGE)
    write(engine, 100, value=b"v")
    engines.checkpoint(engine)
    path = engines.damaged(tmp_path / "data")
    data = path / "base" / DATA_FILE
    for found in re.finditer(b"k000050", data.read_bytes()):  # in all pages, also in free ones
        engines.flip(data, found.start() + 1, 0x40)
    with pytest.raises(Corruption, match=r"base: \d+ of \d+ entries are in order"):
        engine.checkpointer.compact_base()
    assert not engine.directory.new_base.exists()


def test_an_interrupt_at_any_moment_of_the_writing_leaves_nothing(make_engine: Make) -> None:
    """At each call and each return, where Python runs the handler of a signal."""
    engine = make_engine(memtable_size=LARGE)
    write(engine, 3)
    engines.checkpoint(engine)
    base, place = engine.table.base, engine.directory.new_base
    moments = 0
    for moment in itertools.count():
        passed = itertools.count()

        def interrupt(frame: FrameType, event: str, argument: object, passed: Iterator[int] = passed) -> None:
            is_done = event == "return" and frame.f_code is write_compacted.__code__
            if Path(frame.f_code.co_filename).name not in ("compaction.py", "pathlib.py") or is_done:
                return
            if next(passed) == moment:  # noqa: B023 - called within this turn only
                sys.setprofile(None)
                raise KeyboardInterrupt

        sys.setprofile(interrupt)
        try:
            write_compacted(base, place)
        except KeyboardInterrupt:
            moments += 1
            assert not place.exists(), moment
        else:
            break
        finally:
            sys.setprofile(None)
    assert place.exists()
    assert moments > 50


# -- what a start finds --------------------------------------------------------------------------------------------

States = [
    ("base", "base.new"),  # cut off while it was written, or before the swap
    ("base.old", "base.new"),  # between the two renames
    ("base", "base.old"),  # swapped
    ("base.old",),
    ("base", "base.old", "base.new"),
]


@pytest.mark.parametrize("names", States, ids="-".join)
def test_a_start_tidies_up(names: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "data"
    with engines.engine_in(path) as engine:
        write(engine, 100)
        engines.checkpoint(engine)
        expected = engines.everything(engine)
    (path / "base").rename(tmp_path / "whole")
    for place in names:
        shutil.copytree(tmp_path / "whole", path / place)
    if "base.new" in names:
        (path / "base.new" / DATA_FILE).write_bytes(b"half")
    if len(names) == 2 and names[0] == "base":
        (path / names[1] / DATA_FILE).unlink()  # a deletion that was cut off
    notes: list[str] = []
    assert check_directory(path, note=notes.append) == []
    assert len(notes) == len(set(names) - {"base"})
    with engines.engine_in(path) as engine:
        assert sorted(os.listdir(path)) == NAMES
        assert engines.everything(engine) == expected


@pytest.mark.parametrize("name", ["base.new", "base.old"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_something_else_by_that_name_is_named(name: str, kind: str, tmp_path: Path) -> None:
    """Nothing behind a link is deleted."""
    path = engines.damaged(tmp_path / "data")
    with engines.engine_in(path):
        pass
    precious = tmp_path / "precious"
    precious.mkdir()
    (path / name).symlink_to(precious) if kind == "link" else (path / name).write_text("mine")
    found = "a symbolic link" if kind == "link" else "a file"
    with pytest.raises(Corruption, match=f"{name}: is {found}, not a directory; move it away"):
        engines.open_engine(path)
    assert precious.exists()
