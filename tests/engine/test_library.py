"""The library: `merklekv.open`, and every call durable when it returns."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from fixtures import engines
from fixtures.engines import NOON, Wall
from fixtures.support import WAIT_S, no_room, wait_until

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
        lambda db, one: db.values(one),
        lambda db, one: db.changes(prefix=one),
        lambda db, one: db.compare_and_set(one, None, b""),
        lambda db, one: db.pop(one),
        lambda db, one: db.setdefault(b"k", one),
        lambda db, one: db.expire(one, 1),
        lambda db, one: db.persist(one),
        lambda db, one: db.ttl(one),
        lambda db, one: db[one],
        lambda db, one: merklekv.Batch().set(b"k", one),
        lambda db, one: merklekv.Batch().delete(one),
        lambda db, one: one in db,
    ]
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        for call in calls:
            for one in ("k", None, 1, bytearray(b"k"), memoryview(b"k")):
                with pytest.raises(TypeError, match=f"keys and values are bytes, not {type(one).__name__}"):
                    call(db, one)
        for amount in ("1", 1.5, None, True):
            with pytest.raises(TypeError, match=f"an amount is an int, not {type(amount).__name__}"):
                db.increment(b"k", amount)  # type: ignore[arg-type]
        assert len(db) == 0


def test_a_database_that_is_closed_says_so(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        db.mset([(b"a", b"1"), (b"b", b"2")])
        begun, begun_items, changes = iter(db.keys()), iter(db.items()), db.changes(wait=None)
        keys, items, values = db.keys(), db.items(), db.values()
        cursor = db.cursor()
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
        db.values,
        db.cursor,
        db.changes,
        lambda: db.changes(cursor),
        lambda: next(begun),
        lambda: next(begun_items),
        lambda: next(changes),
        lambda: list(keys),
        lambda: list(items),
        lambda: list(values),
        lambda: db[b"a"],
        lambda: db.pop(b"a"),
        lambda: db.setdefault(b"a", b""),
        lambda: db.update({}),
        db.clear,
        lambda: db.compare_and_set(b"a", b"1", b"2"),
        lambda: db.expire(b"a", 1),
        lambda: db.persist(b"a"),
        lambda: db.ttl(b"a"),
        lambda: db.batch().__enter__(),
        lambda: b"a" in db,
        lambda: len(db),
        db.__enter__,
    ]
    for call in calls:
        with pytest.raises(merklekv.DatabaseClosed, match=r"^the database is closed$"):
            call()
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        assert dict(db.items()) == {b"a": b"1", b"b": b"2"}


def test_a_call_that_the_close_meets_fails_as_closed(tmp_path: Path) -> None:
    db = merklekv.open(tmp_path / "data", checkpoint="manual")
    db.engine.get = lambda key: db.close() or 1 // 0  # type: ignore[assignment,func-returns-value,return-value]
    with pytest.raises(merklekv.MerkleKVError, match=r"^the database is closed$"):
        db.get(b"k")


def test_a_mapping(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        mapping: MutableMapping[bytes, bytes] = db
        mapping[b"b"] = b"2"
        mapping[b"a"] = b"1"
        assert dict(mapping) == {b"a": b"1", b"b": b"2"}
        assert list(mapping) == [b"a", b"b"] == list(db.keys())
        assert list(mapping.values()) == [b"1", b"2"]
        assert (b"a", b"1") in mapping.items()
        assert (b"a", b"2") not in mapping.items()
        assert b"2" in mapping.values()
        assert b"a" in db.keys()  # noqa: SIM118 - the view
        assert b"a" not in db.keys(b"b")
        assert [len(db.keys()), len(db.keys(b"b")), len(db.items(b"x")), len(db.values())] == [2, 1, 0, 2]
        assert mapping.get(b"c", b"none") == b"none"
        assert db.get(b"c", 5) == 5
        assert mapping.setdefault(b"c", b"3") == b"3" == mapping.setdefault(b"c", b"4")
        assert mapping.pop(b"c") == b"3"
        assert mapping.pop(b"c", None) is None
        assert mapping.popitem() == (b"a", b"1")
        del mapping[b"b"]
        for missing in (lambda: mapping[b"b"], lambda: mapping.pop(b"b"), lambda: mapping.__delitem__(b"b")):
            with pytest.raises(KeyError):
                missing()
        mapping.update({b"k": b"v"})
        db.update([(b"l", b"w")])
        assert dict(db.items()) == {b"k": b"v", b"l": b"w"}
        mapping.clear()
        assert len(db) == 0
        assert db == db
        assert db != {}
        assert {db}
        assert repr(db) == f"<merklekv.Database '{tmp_path}/data'>"
    assert repr(db).endswith(", closed>")


def test_compare_and_set(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        assert not db.compare_and_set(b"k", b"1", b"2")
        assert db.compare_and_set(b"k", None, b"1")
        assert not db.compare_and_set(b"k", None, b"2")
        assert db.compare_and_set(b"k", b"1", b"2")
        assert db[b"k"] == b"2"
        assert db.compare_and_set(b"k", b"2", None)
        assert db.compare_and_set(b"k", None, None)
        assert b"k" not in db
        db.set(b"k", b"1", ttl=1000)
        assert db.compare_and_set(b"k", b"1", b"2")
        assert db.ttl(b"k") is not None


def test_threads_that_compare_and_set_lose_nothing(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual", durability="never") as db:
        db[b"n"] = b"0"

        def add() -> None:
            for _ in range(50):
                while not db.compare_and_set(b"n", old := db[b"n"], b"%d" % (int(old) + 1)):
                    pass

        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert db[b"n"] == b"200"


def test_keys_expire(tmp_path: Path) -> None:
    wall = Wall()
    with merklekv.open(tmp_path / "data", checkpoint="manual", wall_clock=wall) as db:
        db.set(b"k", b"v", ttl=10)
        db[b"l"] = b"w"
        assert (db.ttl(b"k"), db.ttl(b"l"), db.ttl(b"none")) == (10.0, None, None)
        assert db.expire(b"l", 0.5)
        assert not db.expire(b"none", 1)
        wall.now += 10**9
        assert (db.get(b"l"), db.ttl(b"k")) == (None, 9.0)
        assert db.append(b"k", b"+") == b"v+"
        assert db.ttl(b"k") == 9.0
        assert db.persist(b"k")
        assert not db.persist(b"k")
        wall.now += 3600 * 10**9
        assert dict(db.items()) == {b"k": b"v+"}
        for ttl in (0, -1, float("nan"), float("inf"), 1e30):
            with pytest.raises(InvalidArgument, match="a ttl of"):
                db.set(b"k", b"", ttl=ttl)
        for none in ("1", None, True):
            with pytest.raises(TypeError, match=f"a ttl is a number of seconds, not {type(none).__name__}"):
                db.expire(b"k", none)  # type: ignore[arg-type]


def store(db: merklekv.Database, writes: Iterable[tuple[bytes, bytes | None]]) -> None:
    """As a batch; None deletes."""
    with db.batch() as batch:
        for key, value in writes:
            if value is None:
                batch.delete(key)
            else:
                batch[key] = value


def test_a_batch_is_stored_whole_or_not(tmp_path: Path) -> None:
    wall = Wall()
    with merklekv.open(tmp_path / "data", checkpoint="manual", wall_clock=wall, max_value_size=10) as db:
        db[b"old"] = b"1"
        with db.batch() as batch:
            batch.set(b"a", b"1", ttl=5)
            batch[b"b"] = b"2"
            batch.delete(b"old")
            del batch[b"none"]
            assert len(batch) == 4
            assert b"a" not in db
        assert dict(db.items()) == {b"a": b"1", b"b": b"2"}
        assert db.ttl(b"a") == 5
        with pytest.raises(ZeroDivisionError):
            store(db, ((b"a", None if number < 5 else b"%d" % (1 // 0)) for number in range(9)))
        with pytest.raises(InvalidArgument):
            store(db, [(b"a", None), (b"c", b"x" * 11)])
        store(db, [])
        with no_room(), pytest.raises(DiskFull):
            store(db, [(b"a", None), (b"c", b"3")])
        assert dict(db.items()) == {b"a": b"1", b"b": b"2"}
        db[b"c"] = b"4"
        assert db[b"c"] == b"4", "the error was told once"


def test_a_batch_that_is_cut_short_is_rolled_back_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        monkeypatch.setattr(db.engine, "delete", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store(db, [(b"a", b"1"), (b"a", None)])
        monkeypatch.undo()
        db[b"b"] = b"2"
        assert dict(db.items()) == {b"b": b"2"}


def test_changes(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        db[b"a"] = b"1"
        db.set(b"b", b"2", ttl=1000)
        del db[b"a"]
        found = list(db.changes())
        assert [(one.key, one.op, one.value) for one in found] == [
            (b"a", "set", b"1"),
            (b"b", "set", b"2"),
            (b"a", "del", None),
        ]
        assert found[1].expiry is not None
        assert list(db.changes(found[0].cursor)) == found[1:]
        assert list(db.changes(str(found[1].cursor))) == found[2:]
        assert [one.key for one in db.changes(prefix=b"b")] == [b"b"]
        assert list(db.changes(db.cursor(), wait=0.001)) == []
        with pytest.raises(InvalidArgument):
            db.changes("nonsense")
        with pytest.raises(TypeError, match="a cursor is a Cursor or its text, not bytes"):
            db.changes(str(found[0].cursor).encode())  # type: ignore[arg-type]
        follower = db.changes(found[1].cursor, wait=float("inf"))
        assert next(follower) == found[2]
        writer = threading.Timer(0, db.set, (b"c", b""))
        writer.start()
        found.append(next(follower))
        assert found[-1].key == b"c"
        writer.join()
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        assert list(db.changes(found[0].cursor)) == found[1:], "a cursor survives"
        with pytest.raises(merklekv.ChangesGone, match="to begin again"):
            list(db.changes("fffffffffffffff-0-0-0000000000000000"))


def test_who_looks_for_rare_changes_now_and_then_is_not_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merklekv.engine.feed.RECENT_BYTES", 0)
    with merklekv.open(tmp_path / "data", checkpoint="manual", retain_log_bytes=0) as db:
        db[b"rare"] = b"v"
        changes = db.changes(prefix=b"rare")
        rare = next(changes)
        assert (rare.key, changes.cursor) == (b"rare", rare.cursor)
        for _ in range(3):
            db[b"k"] = b""
            assert list(changes) == []
            assert changes.cursor == db.cursor()
            db.engine.checkpoint_now()  # deletes the segment
            changes = db.changes(changes.cursor, prefix=b"rare")
        with pytest.raises(merklekv.ChangesGone):
            list(db.changes(rare.cursor, prefix=b"rare"))


def test_changes_are_waited_for(tmp_path: Path) -> None:
    found: list[bytes | None] = []
    ended: list[BaseException] = []

    def follow(db: merklekv.Database) -> None:
        try:
            for change in db.changes(db.cursor(), wait=None):
                found.append(change.value)
        except merklekv.DatabaseClosed as error:
            ended.append(error)

    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        begun = db.cursor()
        thread = threading.Thread(target=follow, args=(db,))
        thread.start()
        written = 0
        while not found:  # it has begun to follow when it sees one of these
            written += 1
            db[b"k"] = b"%d" % written
        for _ in range(20):
            written += 1
            db[b"k"] = b"%d" % written
        wait_until(lambda: found[-1] == b"%d" % written, what="the last change")
        assert found == [change.value for change in db.changes(begun)][-len(found) :]
    thread.join(WAIT_S)
    assert len(ended) == 1


def test_an_unknown_option_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'durabilty'"):
        merklekv.open(tmp_path / "data", durabilty="never")  # type: ignore[call-arg]
    with pytest.raises(InvalidArgument, match="durability = 'allways' is not allowed; give one of always,"):
        merklekv.open(tmp_path / "data", durability="allways")  # type: ignore[arg-type]
    for name, value in {"retain_log_bytes": -1, "retain_max_bytes": "1", "retain_log_seconds": float("nan")}.items():
        with pytest.raises(InvalidArgument, match=f"{name} = .* is not allowed; give"):
            merklekv.open(tmp_path / "data", **{name: value})  # type: ignore[arg-type]
    clocks: list[Any] = [time.time, None, 5, lambda: 1 << 63]
    for clock in clocks:
        with pytest.raises(InvalidArgument, match=r"wall_clock = .* is not allowed; give a function that returns nano"):
            merklekv.open(tmp_path / "data", wall_clock=clock)
    assert not (tmp_path / "data").exists()


def test_a_wait_that_is_none(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data", checkpoint="manual") as db:
        with pytest.raises(InvalidArgument, match="nan"):
            db.changes(wait=float("nan"))
        wait: Any
        for wait in ("1", True):
            with pytest.raises(TypeError, match="a wait is a number of seconds, or None"):
                db.changes(wait=wait)


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


def test_mset_takes_pairs_or_a_mapping_and_names_what_is_neither(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data") as db:
        db.mset({b"a": b"1", b"b": b"2"})
        db.mset([(b"c", b"3")])
        assert dict(db.items()) == {b"a": b"1", b"b": b"2", b"c": b"3"}
        wrong: Any
        for wrong in ([b"ab"], [(b"a",)], [(b"a", b"1", b"2")], [5]):
            with pytest.raises(TypeError, match="give pairs of a key and a value, or a mapping, not "):
                db.mset(wrong)
        wrong = {"a": "1"}
        with pytest.raises(TypeError, match="keys and values are bytes, not str"):
            db.mset(wrong)
        assert len(db) == 3


def test_a_ttl_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    with merklekv.open(tmp_path / "data") as db, pytest.raises(InvalidArgument, match="a ttl of a number s"):
        db.set(b"k", b"v", ttl=10**5000)


FORKED = """
import os, sys
import merklekv
db = merklekv.open(sys.argv[1], checkpoint=sys.argv[2])
db.set(b"before", b"1")
ask, asked = os.pipe()
go_on, goes_on = os.pipe()
child = os.fork()
if not child:
    os.read(go_on, 1)
    for call in (lambda: db.set(b"child", b"1"), lambda: db.get(b"before"), lambda: len(db), lambda: list(db.keys())):
        try:
            call()
        except merklekv.DatabaseClosed as error:
            os.write(asked, f"{error}\\n".encode())
    with db if not db._closed else open(os.devnull):
        pass
    db.close()
    sys.exit(0)
db.set(b"after", b"2" * 1000)
os.write(goes_on, b".")
os.close(asked)
status = os.waitpid(child, 0)[1]
said = open(ask).read()
assert (status, said.count("forked from: open it after the fork\\n")) == (0, 4), (status, said)
db.set(b"last", b"3")
assert sorted(db) == [b"after", b"before", b"last"]
if sys.argv[3] == "kill":
    os.kill(os.getpid(), 9)
db.close()
"""


@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("checkpoint", ["process", "manual"])
def test_a_forked_process_leaves_the_database_to_its_parent(tmp_path: Path, checkpoint: str, end: str) -> None:
    """A close there would cut the log to where it was at the fork."""
    command = [
        sys.executable,
        "-W",
        "ignore::DeprecationWarning",
        "-c",
        FORKED,
        str(tmp_path / "data"),
        checkpoint,
        end,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-9 if end == "kill" else 0, "")
    with merklekv.open(tmp_path / "data") as db:
        assert dict(db) == {b"after": b"2" * 1000, b"before": b"1", b"last": b"3"}
    assert check_directory(tmp_path / "data") == []


OUTLIVED = """
import os, sys
import merklekv
db = merklekv.open(sys.argv[1], memtable_size=64 << 10)
while not db.engine.metrics().checkpoints:
    db.set(b"k", bytes(10_000))
child = os.fork()
if not child:
    sys.stdin.read()
    os._exit(0)
print(child, flush=True)
if sys.argv[2] == "close":
    db.close()
    sys.stdin.read()
os._exit(0)
"""


@pytest.mark.parametrize("end", ["close", "exit"])
def test_a_forked_process_does_not_keep_the_directory_locked(tmp_path: Path, end: str) -> None:
    command = [sys.executable, "-c", OUTLIVED, str(tmp_path / "data"), end]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip().isdigit()
        if end == "exit":
            assert parent.wait(60) == 0
            merklekv.open(tmp_path / "data").close()
        else:

            def is_free() -> bool:
                try:
                    merklekv.open(tmp_path / "data").close()
                except merklekv.DirectoryLocked:
                    return False
                return True

            wait_until(is_free, what="the directory to be free")


def test_a_program_may_change_its_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with merklekv.open("data", memtable_size=64 << 10) as db:
        monkeypatch.chdir(tmp_path / "other")
        for number in range(200):
            db.set(b"%d" % number, bytes(1000))  # more than a segment
        assert len(db) == 200
    assert list((tmp_path / "other").iterdir()) == []
    with merklekv.open(tmp_path / "data") as db:
        assert len(db) == 200


def test_a_working_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(merklekv.DirectoryUnwritable, match="data: the working directory was removed"):
        merklekv.open("data")
    merklekv.open(tmp_path / "data").close()


CLOSED = """
import os, sys
for fd in map(int, sys.argv[2:]):
    os.close(fd)
import merklekv
with merklekv.open(sys.argv[1]) as db:
    db.set(b"k", b"v")
    for fd in map(int, sys.argv[2:]):
        assert os.readlink(f"/proc/self/fd/{fd}") == "/dev/null", os.readlink(f"/proc/self/fd/{fd}")
        os.write(fd, b"noise of a library" * 1000)
    db.set(b"l", b"w")
"""


@pytest.mark.parametrize("closed", [["0"], ["1"], ["2"], ["0", "1", "2"]])
def test_no_file_of_the_data_takes_the_place_of_a_standard_stream(tmp_path: Path, closed: list[str]) -> None:
    """What a library prints would go into it."""
    done = subprocess.run([sys.executable, "-c", CLOSED, str(tmp_path / "data"), *closed], timeout=60, check=False)
    assert done.returncode == 0
    assert check_directory(tmp_path / "data") == []
    with merklekv.open(tmp_path / "data") as db:
        assert dict(db) == {b"k": b"v", b"l": b"w"}
