"""A checkpoint may be cut anywhere and goes on: the base ends up the same, and is sound at each commit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest
from fixtures import engines
from fixtures.engines import NOON

from merklekv.engine.base.writer import BaseWriter
from merklekv.engine.checkpoint.child import _by_bucket, checkpoint
from merklekv.engine.engine import Engine
from merklekv.engine.format import bucket_of
from merklekv.engine.log.segment import list_segments
from merklekv.engine.memtable import Records
from merklekv.engine.verify.check import check_directory

Prepare = Callable[[Engine], None]


@pytest.fixture(autouse=True)
def small_transactions() -> Iterator[None]:
    with engines.small_transactions(4):
        yield


def plain(engine: Engine) -> None:
    for number in range(20):
        engine.set(b"k%02d" % number, b"v" * number)


def over_a_base(engine: Engine) -> None:
    """Newer values, deletes and new keys over what the base has."""
    plain(engine)
    engines.checkpoint(engine)
    for number in range(0, 30, 3):
        engine.set(b"k%02d" % number, b"newer")
    for number in range(0, 20, 4):
        engine.delete(b"k%02d" % number)


def two_segments(engine: Engine) -> None:
    over_a_base(engine)
    engines.freeze(engine)
    for number in range(5, 40, 5):
        engine.set(b"k%02d" % number, b"newest")


def truncated(engine: Engine) -> None:
    """A truncation version above everything in the base."""
    two_segments(engine)
    engine.truncate()
    for number in range(0, 10, 2):
        engine.set(b"k%02d" % number, b"after")


def partly_truncated(engine: Engine) -> None:
    """A truncation version that spares part of the base and part of the log."""
    for number in range(20):
        engine.merge([(1, b"k%02d" % number, engines.record(b"k%02d" % number, b"", NOON + number))], b"x")
    engines.checkpoint(engine)
    for number in range(15, 30):
        engine.merge([(1, b"k%02d" % number, engines.record(b"k%02d" % number, b"2", NOON + number + 1))], b"x")
    engine.merge_truncation(engines.version(NOON + 17), b"x")
    engine.set(b"local", b"")


def made(path: Path, prepare: Prepare) -> tuple[Path, bytes]:
    """A closed directory with sealed segments to checkpoint, and the root that it has in the end."""
    engine = engines.open_engine(path)
    prepare(engine)
    engines.freeze(engine)
    engine.close()
    engines.checkpoint_all(shutil.copytree(path, path.with_name("whole")))
    engine = engines.open_engine(path.with_name("whole"))
    root = engine.root()
    engine.close()
    return path, root


def dump(path: Path) -> dict[bytes, list[tuple[bytes, bytes]]]:
    """Everything in a base."""
    with lmdb.open(str(path / "base"), readonly=True, lock=False, max_dbs=4) as env:
        content = {}
        for name in (b"records", b"index", b"leaves", b"meta"):
            database = env.open_db(name, create=False, dupsort=name == b"index")
            with env.begin() as txn, txn.cursor(db=database) as cursor:
                content[name] = list(cursor)
        return content


@pytest.mark.parametrize(
    "prepare", [plain, over_a_base, two_segments, truncated, partly_truncated], ids=lambda f: f.__name__
)
def test_cut_behind_any_commit_it_goes_on(tmp_path: Path, prepare: Prepare) -> None:
    path, root = made(tmp_path / "data", prepare)
    whole = dump(tmp_path / "whole")
    commits = 0
    while True:
        commits += 1
        copy = shutil.copytree(path, tmp_path / "copy")
        with engines.cut_after(commits) as count:
            try:
                engines.checkpoint_all(copy)
                assert count[0] == commits - 1
                break
            except engines.Cut:
                pass
        assert check_directory(copy) == []
        with engines.engine_in(shutil.copytree(copy, tmp_path / "opened")) as engine:
            assert not engine.root_ready or engine.root() == root
            engines.checkpoint(engine)
            assert engine.root() == root
        engines.checkpoint_all(copy)
        assert check_directory(copy) == []
        assert dump(copy) == whole
        shutil.rmtree(copy)
        shutil.rmtree(tmp_path / "opened")
    assert commits > 6


@pytest.mark.parametrize("commits", range(1, 8))
def test_cut_it_goes_on_with_what_was_sealed_since(tmp_path: Path, commits: int) -> None:
    """What came meanwhile hides, deletes or truncates what is half in the base."""
    path, _ = made(tmp_path / "data", over_a_base)
    with engines.cut_after(commits), pytest.raises(engines.Cut):
        engines.checkpoint_all(path)
    engine = engines.open_engine(path)
    engine.set(b"k00", b"since")
    engine.delete(b"k03")
    if commits % 2:
        engine.truncate()
    engine.set(b"k04", b"since")
    engines.freeze(engine)
    expected = engines.everything(engine)
    root = engine.root()
    engine.close()
    engines.checkpoint_all(path)
    assert check_directory(path) == []
    engine = engines.open_engine(path)
    assert engines.everything(engine) == expected
    assert engine.root() == root


def test_progress_is_reported_after_every_commit_and_grows(tmp_path: Path) -> None:
    path, _ = made(tmp_path / "data", two_segments)
    shares: list[float] = []
    with BaseWriter(path / "base") as writer, engines.cut_after(0) as count:
        checkpoint(writer, path / "log", list_segments(path / "log")[-1], shares.append)
    assert shares == sorted(shares)
    assert 0 < shares[0] <= shares[-1] <= 1
    assert len(shares) >= count[0] - 2  # but for the mark and the end


def test_a_checkpoint_of_what_is_in_the_base_changes_nothing(tmp_path: Path) -> None:
    path, _ = made(tmp_path / "data", two_segments)
    engines.checkpoint_all(path)
    before = engines.snapshot(path / "base")
    engines.checkpoint_all(path)
    assert engines.snapshot(path / "base")["data.mdb"] == before["data.mdb"]


def test_a_truncation_version_deletes_what_is_below_it_and_spares_the_rest(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    partly_truncated(engine)
    ready = [engine.root_ready]
    assert sorted(engines.values(engine)) == [b"k%02d" % number for number in range(16, 30)] + [b"local"]
    engines.checkpoint(engine)
    ready.append(engine.root_ready)
    assert ready == [False, True]
    assert engine.live_count == 15
    assert sorted(engines.values(engine)) == [b"k%02d" % number for number in range(16, 30)] + [b"local"]


@pytest.mark.parametrize("count", [0, 1, 2, 5000])
def test_the_index_comes_by_bucket_and_key(count: int) -> None:
    draw = random.Random(count)
    keys = Records()
    for _ in range(count):
        keys[draw.randbytes(draw.randrange(1, 9))] = b""
    while not keys.group():
        pass
    assert list(_by_bucket(keys)) == sorted((bucket_of(key).to_bytes(2, "big"), key) for key in keys)
