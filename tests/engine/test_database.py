"""The library: `merklekv.open`, and every call durable when it returns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import engine_support as support
import pytest

import merklekv
from merklekv.engine.check import check_directory
from merklekv.errors import InvalidArgument, NotANumber


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
    with merklekv.open(tmp_path / "data", absorb="manual") as db:
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
    with merklekv.open(tmp_path / "data", absorb="manual") as db:
        for number, verb in enumerate(
            (
                lambda: db.set(b"k", b"1"),
                lambda: db.increment(b"k"),
                lambda: db.append(b"k", b"0"),
                lambda: db.prepend(b"k", b"1"),
                lambda: db.mset([(b"l", b"")]),
                lambda: db.delete(b"k"),
                db.truncate,
            ),
            1,
        ):
            verb()
            assert db.engine._committed == db.engine._log.appended == number
            assert db.engine._log.synced_lsn == db.engine._log.end_lsn


def test_a_write_waits_while_merging_is_behind(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", memtable_size=1 << 16, durability="never") as db:
        for number in range(600):
            db.set(b"k%d" % number, b"v" * 1000)
        assert len(db) == 600
        assert sum(1 for _ in db.items()) == 600
    assert check_directory(tmp_path / "data") == []


def test_keys_may_change_while_they_are_read(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", absorb="manual") as db:
        db.mset([(b"%04d" % number, b"") for number in range(2500)])
        found = []
        for key, _ in db.items():
            found.append(key)
            db.engine.delete(key)
        assert found == [b"%04d" % number for number in range(2500)]
        assert len(db) == 0


def test_importing_the_package_loads_no_engine() -> None:
    code = "import sys, merklekv; print(merklekv.__version__, 'lmdb' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True).stdout
    assert shown.split() == [merklekv.__version__, "False"]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        merklekv.nothing  # noqa: B018
    assert issubclass(InvalidArgument, merklekv.MerkleKVError)
    assert support.MerkleKVError is merklekv.MerkleKVError
