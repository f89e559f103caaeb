"""The library: `merklekv.open`, and every call durable when it returns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from fixtures import engines
from fixtures.engines import NOON, Wall

import merklekv
from merklekv import errors
from merklekv.engine.format import OP_DEL
from merklekv.engine.merkle import EMPTY_ROOT
from merklekv.engine.tombstone_gc import TombstoneGC
from merklekv.engine.verify.check import check_directory
from merklekv.errors import DiskFull, InvalidArgument, NotANumber


def test_the_first_minute(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data") as db:
        db.set(b"key", b"value")
        assert db.get(b"key") == b"value"
        assert b"key" in db
        assert b"other" not in db
        assert db.get(b"other") is None
        assert len(db) == 1
    with merklekv.open(str(tmp_path / "data")) as db:
        assert db.get(b"key") == b"value"


def test_every_verb(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        db.mset([(b"a", b"1"), (b"b", b"2"), (b"c:1", b"x"), (b"c:2", b"y")])
        assert db.increment(b"a") == 2
        assert db.increment(b"a", -5) == -3
        assert db.append(b"b", b"+") == b"2+"
        assert db.prepend(b"b", b"-") == b"-2+"
        assert db.delete(b"c:1")
        assert not db.delete(b"c:1")
        assert list(db.keys()) == [b"a", b"b", b"c:2"]
        assert list(db.keys(b"c:")) == [b"c:2"]
        assert list(db.items()) == [(b"a", b"-3"), (b"b", b"-2+"), (b"c:2", b"y")]
        assert list(db.items(b"b")) == [(b"b", b"-2+")]
        with pytest.raises(NotANumber):
            db.increment(b"b")
        with pytest.raises(InvalidArgument):
            db.set(b"", b"")
        db.truncate()
        assert list(db.keys()) == []
        assert len(db) == 0


def test_every_call_is_durable_when_it_returns(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        for verb in (
            lambda: db.set(b"k", b"1"),
            lambda: db.increment(b"k"),
            lambda: db.append(b"k", b"0"),
            lambda: db.prepend(b"k", b"1"),
            lambda: db.mset([(b"l", b"")]),
            lambda: db.delete(b"k"),
            db.truncate,
        ):
            before = db.engine.log.appended
            verb()
            assert db.engine.commits.committed == db.engine.log.appended > before
            assert db.engine.log.synced_lsn == db.engine.log.end_lsn


def test_a_write_waits_while_checkpoints_are_behind(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", memtable_size=1 << 16, durability="never") as db:
        for number in range(600):
            db.set(b"k%d" % number, b"v" * 1000)
        assert len(db) == 600
        assert sum(1 for _ in db.items()) == 600
    assert check_directory(tmp_path / "data") == []


def test_deleted_keys_leave_nothing(tmp_path: Path) -> None:
    """Neither those deleted now, nor tombstones from a dump or an earlier release, from the next start on."""
    with merklekv.open(tmp_path / "data", checkpoint="manual", wall_clock=Wall()) as db:
        for number in range(3000):
            db.engine.merge([(OP_DEL, b"%d" % number, engines.record(b"%d" % number, None, NOON))], b"dump")
            if number == 2000:
                db.engine.commit()
                db.engine.checkpoint_now()
        db.set(b"k", b"v")
        db.delete(b"k")
        assert db.engine.tombstone_count == 3000
        root = db.engine.root()
    with merklekv.open(tmp_path / "data", checkpoint="manual", wall_clock=Wall()) as db:
        assert (db.engine.tombstone_count, len(db)) == (0, 0)
        assert db.engine.root() == EMPTY_ROOT != root
        assert db.engine.record(b"k") is None


def test_tombstones_on_a_full_disk_go_another_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise DiskFull("disk full, write not stored")

    with merklekv.open(tmp_path / "data", checkpoint="manual", wall_clock=Wall()) as db:
        db.set(b"k", b"v")
        db.engine.merge([(OP_DEL, b"dead", engines.record(b"dead", None, NOON))], b"dump")
    with monkeypatch.context() as full:
        full.setattr(TombstoneGC, "collect_tombstones", refuse)
        with merklekv.open(tmp_path / "data", checkpoint="manual", wall_clock=Wall()) as db:
            assert (db.get(b"k"), db.engine.tombstone_count) == (b"v", 1)
    with merklekv.open(tmp_path / "data", checkpoint="manual", wall_clock=Wall()) as db:
        assert (db.get(b"k"), db.engine.tombstone_count) == (b"v", 0)


def test_an_open_that_is_cut_lets_the_directory_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as cut:
        cut.setattr(TombstoneGC, "collect_tombstones", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            merklekv.open(tmp_path / "data")
    merklekv.open(tmp_path / "data").close()


def test_a_directory_that_others_know_keeps_its_tombstones(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        db.engine.join()
        db.set(b"k", b"v")
        db.delete(b"k")
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        db.set(b"l", b"v")
        db.delete(b"l")
        assert db.engine.tombstone_count == 2


def test_keys_may_change_while_they_are_read(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        db.mset([(b"%04d" % number, b"") for number in range(2500)])
        found = []
        for key, _ in db.items():
            found.append(key)
            db.engine.delete(key)
        assert found == [b"%04d" % number for number in range(2500)]
        assert len(db) == 0


def test_only_bytes_are_keys_and_values(tmp_path: Path) -> None:
    calls: list[Callable[[merklekv.Database, Any], object]] = [
        lambda db, one: db.get(one),
        lambda db, one: db.set(one, b""),
        lambda db, one: db.set(b"k", one),
        lambda db, one: db.delete(one),
        lambda db, one: db.mset([(b"k", b""), (one, b"")]),
        lambda db, one: db.mset([(b"k", one)]),
        lambda db, one: db.increment(one),
        lambda db, one: db.append(one, b""),
        lambda db, one: db.append(b"k", one),
        lambda db, one: db.prepend(one, b""),
        lambda db, one: db.prepend(b"k", one),
        lambda db, one: db.keys(one),
        lambda db, one: db.items(one),
        lambda db, one: one in db,
    ]
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        for call in calls:
            for one in ("k", None, 1, bytearray(b"k"), memoryview(b"k")):
                with pytest.raises(TypeError, match=f"keys and values are bytes, not {type(one).__name__}"):
                    call(db, one)
        for amount in ("1", 1.5, None):
            with pytest.raises(TypeError, match=f"an amount is an int, not {type(amount).__name__}"):
                db.increment(b"k", amount)  # type: ignore[arg-type]
        assert len(db) == 0


def test_a_database_that_is_closed_says_so(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        db.mset([(b"a", b"1"), (b"b", b"2")])
        begun, begun_items = db.keys(), db.items()
        assert next(begun_items) == (b"a", b"1")
    db.close()  # again
    calls: list[Callable[[], object]] = [
        lambda: db.get(b"a"),
        lambda: db.set(b"a", b"3"),
        lambda: db.delete(b"a"),
        lambda: db.mset([(b"a", b"3")]),
        lambda: db.increment(b"a"),
        lambda: db.append(b"a", b""),
        lambda: db.prepend(b"a", b""),
        db.truncate,
        db.keys,
        db.items,
        lambda: next(begun),
        lambda: next(begun_items),
        lambda: b"a" in db,
        lambda: len(db),
        db.__enter__,
    ]
    for call in calls:
        with pytest.raises(merklekv.MerkleKVError, match=r"^the database is closed$"):
            call()
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        assert dict(db.items()) == {b"a": b"1", b"b": b"2"}


def test_a_call_that_the_close_meets_fails_as_closed(tmp_path: Path) -> None:
    db = merklekv.open(tmp_path / "data", checkpoint="manual")
    db.engine.get = lambda key: db.close() or 1 // 0  # type: ignore[assignment,func-returns-value,return-value]
    with pytest.raises(merklekv.MerkleKVError, match=r"^the database is closed$"):
        db.get(b"k")


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'durabilty'"):
        merklekv.open(tmp_path / "data", durabilty="never")  # type: ignore[call-arg]
    with pytest.raises(InvalidArgument, match="durability = 'allways' is not allowed; give one of always,"):
        merklekv.open(tmp_path / "data", durability="allways")  # type: ignore[arg-type]
    assert not (tmp_path / "data").exists()


def test_the_package_shows_what_it_has() -> None:
    code = "import sys, merklekv; print(*dir(merklekv)); print('lmdb' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True).stdout
    names, loaded = shown.splitlines()
    assert set(merklekv.__all__) <= set(names.split())
    assert {"open", "Database", "DiskFull", "InvalidArgument"} <= set(names.split())
    assert loaded == "False"
    for name in merklekv.__all__:
        assert getattr(merklekv, name) is not None
    assert merklekv.DiskFull is errors.DiskFull


def test_importing_the_package_loads_no_engine() -> None:
    code = "import sys, merklekv; print(merklekv.__version__, 'lmdb' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True).stdout
    assert shown.split() == [merklekv.__version__, "False"]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        merklekv.nothing  # noqa: B018
    assert issubclass(InvalidArgument, merklekv.MerkleKVError)
    assert errors.MerkleKVError is merklekv.MerkleKVError
