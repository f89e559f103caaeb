"""The checker finds what is broken and says what, where, what was expected and what was found; and breaks nothing.

Derived state is disposable only if damage to it is noticed: each leaf, counter and index entry is broken here in turn.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
from fixtures import engines
from fixtures.engines import NOON
from fixtures.records import with_flags

from merklekv.engine.engine import Engine
from merklekv.engine.format import bucket_of
from merklekv.engine.log.segment import list_segments, segment_path
from merklekv.engine.verify import reference
from merklekv.engine.verify.check import BaseFacts, check_directory, check_log
from merklekv.engine.verify.report import VIOLATIONS_MAX, Report, Stages
from merklekv.errors import Corruption, DirectoryLocked, FormatTooNew, NotADataDirectory

KEY = b"k05"
BUCKET = bucket_of(KEY)


@pytest.fixture
def path(tmp_path: Path, make_engine: Callable[..., Engine]) -> Path:
    """A closed directory, about to be damaged."""
    engines.filled(make_engine(durability="always")).close()
    assert check_directory(tmp_path / "data") == []
    return engines.damaged(tmp_path / "data")


@contextmanager
def base_of(path: Path) -> Iterator[Callable[[bytes], Any]]:
    """A write transaction of the base; call it with a name for the handle of a database."""
    with lmdb.open(str(path / "base"), max_dbs=4) as env:
        handles = {
            name: env.open_db(name, create=False, dupsort=name == b"index")
            for name in (b"records", b"index", b"leaves", b"meta")
        }
        with env.begin(write=True) as txn:
            yield lambda name: (txn, handles[name])


def change(path: Path, database: bytes, key: bytes, alter: Callable[[bytes], bytes | None]) -> None:
    """Replaces a value of the base; None deletes it."""
    with base_of(path) as open_database:
        txn, handle = open_database(database)
        value = alter(txn.get(key, b"", db=handle))
        if value is None:
            txn.delete(key, db=handle)
        else:
            txn.put(key, value, db=handle)


def only(problems: list[str], *words: object) -> None:
    """One problem, that has all these words."""
    assert len(problems) == 1, problems
    for word in words:
        assert str(word) in problems[0]


def added(number: int) -> Callable[[bytes], bytes]:
    return lambda value: (reference.number(value) + number).to_bytes(len(value), "big")


# -- derived state in the base -----------------------------------------------------------------------------------------


def test_a_wrong_leaf(path: Path) -> None:
    node, leaf = divmod(BUCKET, 256)

    def alter(leaves: bytes) -> bytes:
        at = leaf * 24 + 3
        return leaves[:at] + bytes((leaves[at] ^ 1,)) + leaves[at + 1 :]

    change(path, b"leaves", bytes((node,)), alter)
    only(check_directory(path), path, f"leaf {BUCKET} (sum, count) is ", "expected ")


def test_a_wrong_count_in_a_leaf(path: Path) -> None:
    node, leaf = divmod(BUCKET, 256)
    change(
        path, b"leaves", bytes((node,)), lambda leaves: leaves[: leaf * 24 + 23] + b"\x09" + leaves[leaf * 24 + 24 :]
    )
    only(check_directory(path), f"leaf {BUCKET}", "0009, expected ", "0001")


def test_a_missing_inner_node(path: Path) -> None:
    change(path, b"leaves", bytes((BUCKET >> 8,)), lambda leaves: None)
    only(check_directory(path), f"leaf {BUCKET} (sum, count) is {'00' * 24}, expected ")


def test_leaves_of_a_wrong_size(path: Path) -> None:
    change(path, b"leaves", bytes((BUCKET >> 8,)), lambda leaves: leaves[:-24])
    problems = check_directory(path)
    assert f"the size of the leaves of inner node {BUCKET >> 8} is 6120, expected 6144" in problems[0]


@pytest.mark.parametrize(("name", "right"), [(b"live", 19), (b"dead", 1)])
def test_a_wrong_counter(path: Path, name: bytes, right: int) -> None:
    change(path, b"meta", name, added(1))
    only(check_directory(path), f"the counter {name.decode()} is {right + 1}, expected {right}")


def test_a_newest_version_that_is_not_the_newest(path: Path) -> None:
    change(path, b"meta", b"newest", added(-1))
    only(check_directory(path), "the newest version in meta is ", "expected ")


def test_a_key_that_the_index_lacks(path: Path) -> None:
    with base_of(path) as open_database:
        txn, index = open_database(b"index")
        assert txn.delete(BUCKET.to_bytes(2, "big"), KEY, db=index)
    only(check_directory(path), f"the index lacks the key {KEY!r}, expected in bucket {BUCKET}")


def test_a_key_that_the_index_has_in_vain(path: Path) -> None:
    with base_of(path) as open_database:
        txn, index = open_database(b"index")
        txn.put(bucket_of(b"ghost").to_bytes(2, "big"), b"ghost", db=index)
    only(check_directory(path), "the index has the key b'ghost', expected only keys that have a record")


def test_a_key_that_the_index_has_in_a_wrong_bucket(path: Path) -> None:
    with base_of(path) as open_database:
        txn, index = open_database(b"index")
        txn.put((BUCKET ^ 1).to_bytes(2, "big"), KEY, db=index)
    only(check_directory(path), f"the index has the key {KEY!r} in bucket {BUCKET ^ 1}, expected {BUCKET}")


def test_while_an_absorption_is_in_progress_the_index_may_lack_keys(path: Path) -> None:
    end = list_segments(path / "log")[-1]
    change(path, b"meta", b"checkpointing", lambda _: end.to_bytes(8, "big"))
    with base_of(path) as open_database:
        txn, index = open_database(b"index")
        txn.delete(BUCKET.to_bytes(2, "big"), KEY, db=index)
    assert check_directory(path) == []
    change(path, b"meta", b"checkpointing", lambda _: (end + 1).to_bytes(8, "big"))
    only(check_directory(path), f"a checkpoint under way up to LSN {end + 1}, expected a segment to start there")
    change(path, b"meta", b"checkpointing", lambda _: bytes(8))
    assert "a checkpoint up to LSN 0 is under way, expected more than " in check_directory(path)[0]


# -- records and meta --------------------------------------------------------------------------------------------------


def test_a_flipped_byte_in_a_record_of_the_base(path: Path) -> None:
    change(path, b"records", KEY, lambda record: record[:-1] + b"w")
    only(check_directory(path), f"key {KEY!r}: the digest is ", "expected ")


@pytest.mark.parametrize("size", [1, 24, 40])
def test_a_record_that_is_too_short(path: Path, size: int) -> None:
    change(path, b"records", KEY, lambda record: record[:size])
    assert f"key {KEY!r}: the record has {size} bytes, expected 41 or more" in check_directory(path)[0]


def test_flags_that_nobody_knows(path: Path) -> None:
    change(path, b"records", KEY, lambda record: with_flags(KEY, record, 4))
    problems = check_directory(path)
    assert f"key {KEY!r}: the flags are 4, expected 0, 1 (tombstone) or 2 (expiry)" in problems[0]


def test_a_record_below_the_floor(path: Path) -> None:
    with base_of(path) as open_database:
        txn, records = open_database(b"records")
        fourth = txn.get(b"k04", db=records)[:24]  # a tombstone is at k03, the newest of all
    change(path, b"meta", b"truncation", lambda _: fourth)
    problems = check_directory(path)
    assert len(problems) == 3
    for number, problem in enumerate(problems):
        assert f"key b'k{number:02d}': the version is " in problem
        assert f"expected none below the truncation version {NOON}-{fourth[8:].hex()}" in problem


def test_meta_of_a_wrong_size(path: Path) -> None:
    change(path, b"meta", b"checkpoint_lsn", lambda value: value + b"\x00")
    assert any("the size of checkpoint_lsn in meta is 9, expected 8" in problem for problem in check_directory(path))
    change(path, b"meta", b"live", lambda value: b"\xff" * 5000)
    assert any("the counter live is a number, expected " in problem for problem in check_directory(path))


# -- LMDB itself -------------------------------------------------------------------------------------------------------


def test_damaged_pages_are_found_without_opening_them(path: Path) -> None:
    data = path / "base" / "data.mdb"
    for page in range(2, data.stat().st_size // 4096):
        engines.flip(data, page * 4096 + 10, 0xFF)  # its flags
    problems = check_directory(path)
    assert any(f"{data}: LMDB's pages are damaged: " in problem for problem in problems)
    assert f"{data}: records, leaves and index are not checked, since reading damaged pages may crash" in problems


def test_a_base_that_is_no_lmdb_file(path: Path) -> None:
    data = path / "base" / "data.mdb"
    data.write_bytes(b"something else" * 1000)
    said = f"{data}: is 14000 bytes long and does not begin with the two meta pages of LMDB"
    assert check_directory(path) == [f"{said}, so nothing in it is checked"]
    with pytest.raises(Corruption, match=said):
        engines.open_engine(path)


@pytest.mark.parametrize("size", [0, 5000])
def test_a_base_that_was_cut(path: Path, size: int) -> None:
    os.truncate(path / "base" / "data.mdb", size)
    assert check_directory(path)


def test_a_base_that_was_being_created_is_no_problem(tmp_path: Path) -> None:
    engines.open_engine(tmp_path / "data").close()
    (tmp_path / "data" / "base" / "data.mdb").unlink()
    lmdb.open(str(tmp_path / "data" / "base"), max_dbs=4).close()
    notes: list[str] = []
    assert check_directory(tmp_path / "data", note=notes.append) == []
    assert "was being created when the process ended" in notes[0]
    engines.open_engine(tmp_path / "data").set(b"k", b"v")


# -- the log -----------------------------------------------------------------------------------------------------------


def test_a_flipped_byte_in_a_sealed_segment(path: Path) -> None:
    sealed = segment_path(path / "log", list_segments(path / "log")[0])
    engines.flip(sealed, 70)
    assert f"{sealed}: no whole frame at byte 48, expected one, since what follows had been synced" in check_directory(
        path
    )


def test_a_missing_segment(path: Path) -> None:
    first = segment_path(path / "log", list_segments(path / "log")[0])
    first.unlink()
    only(check_directory(path), f"{first}: the segment where the base ends is missing")


def test_a_segment_behind_the_end_of_all_logs_is_none(path: Path) -> None:
    segment_path(path / "log", 1 << 64).write_bytes(
        segment_path(path / "log", list_segments(path / "log")[0]).read_bytes()
    )
    assert check_directory(path) == []
    engines.open_engine(path).close()


def test_a_torn_tail_is_a_note(path: Path) -> None:
    last = segment_path(path / "log", list_segments(path / "log")[-1])
    os.truncate(last, last.stat().st_size - 1)
    notes: list[str] = []
    assert check_directory(path, note=notes.append) == []
    assert len(notes) == 1
    assert f"{last}: a torn tail behind byte " in notes[0]


def _log_violations(tmp_path: Path, *frames: tuple[list[bytes], int, int]) -> list[str]:
    """What is wrong with a log of these frames, each (entries, sequence, synced)."""
    data = engines.header(0)
    for entries, sequence, synced in frames:
        data += engines.frame(0, len(data), entries, sequence, synced)
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / f"{0:020d}.log").write_bytes(data)
    report = Report(pytest.fail)
    check_log(tmp_path, BaseFacts(), report)
    return report.sentences()


def test_what_frames_cannot_say(tmp_path: Path) -> None:
    one, two = engines.set_entry(1), engines.set_entry(2)
    assert _log_violations(tmp_path, ([one], 1, 0), ([two], 2, 48)) == []
    only(
        _log_violations(tmp_path, ([one], 1, 0), ([two], 3, 0)),
        "frame at byte ",
        "the sequence number is 3, expected 2",
    )
    only(_log_violations(tmp_path, ([one], 1, 49)), "frame at byte 48: claims LSN 49 as synced, expected 0 to 48")
    only(_log_violations(tmp_path, ([one], 1, 40), ([two], 2, 39)), "claims LSN 39 as synced, expected 40 to ")
    only(_log_violations(tmp_path, ([one + b"\x01\x00"], 1, 0)), "reaches beyond its end")
    problems = _log_violations(tmp_path, ([one + two], 1, 0))
    assert [problem.partition("48: ")[2] for problem in problems] == [
        "the number of entries is 1, expected 2",
        "the number of local events is 1, expected 2",
    ]


def test_what_entries_cannot_say(tmp_path: Path) -> None:
    def problem(*entries: bytes) -> str:
        problems = _log_violations(tmp_path, (list(entries), 1, 0))
        assert len(problems) == 1, problems
        return problems[0]

    truncation = engines.version(NOON + 9)
    live, dead = engines.record(b"k", b"v", NOON), engines.record(b"k", None, NOON)
    assert "key b'k': the flags are 01, expected others for op 1" in problem(engines.entry(1, b"k", dead))
    assert "key b'k': the flags are 00, expected others for op 2" in problem(engines.entry(2, b"k", live))
    assert "key b'x': the digest is " in problem(engines.entry(1, b"x", live))
    assert "unknown op 12, expected 1 to 11" in problem(engines.entry(12, b"k", live))
    assert "a truncation version in 1 bytes of key and 24 of record" in problem(engines.entry(7, b"k", truncation))
    assert "a truncation version in 0 bytes of key and 23 of record" in problem(engines.entry(7, b"", truncation[1:]))
    assert "the truncation version is 2000000000000000009-" in problem(*[engines.entry(7, b"", truncation)] * 2)
    assert "of a time that no clock shows" in problem(engines.entry(7, b"", b"\xff" * 24))
    assert "below the truncation version 2000000000000000009-" in problem(
        engines.entry(7, b"", truncation), engines.entry(1, b"k", live)
    )


# -- the directory -----------------------------------------------------------------------------------------------------


def test_nothing_is_changed(path: Path) -> None:
    def state() -> dict[str, tuple[bytes, int]]:
        return {name: (data, (path / name).stat().st_mtime_ns) for name, data in engines.snapshot(path).items()}

    before = state()
    assert check_directory(path) == []
    assert state() == before
    (path / "LOCK").unlink()
    (path / "base" / "lock.mdb").unlink()
    assert check_directory(path) == []
    assert sorted(state()) == sorted(before.keys() - {"LOCK", "base/lock.mdb"})


def test_a_directory_that_is_in_use(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    make_engine()
    with pytest.raises(DirectoryLocked, match=f"in use by process {os.getpid()}; stop it first"):
        check_directory(tmp_path / "data")


def test_nobody_opens_a_directory_that_is_being_checked(path: Path) -> None:
    seen = []

    def progress(done: int, total: int) -> None:
        with pytest.raises(DirectoryLocked):
            engines.open_engine(path)
        seen.append(done)

    assert check_directory(path, progress) == []
    assert seen
    engines.open_engine(path).close()


def test_what_is_no_data_directory(tmp_path: Path) -> None:
    with pytest.raises(NotADataDirectory, match="no such directory"):
        check_directory(tmp_path / "missing")
    with pytest.raises(NotADataDirectory, match="no FORMAT file"):
        check_directory(tmp_path)
    (tmp_path / "FORMAT").write_text("something else 1\n")
    with pytest.raises(NotADataDirectory, match="holds 'something else 1'"):
        check_directory(tmp_path)
    (tmp_path / "FORMAT").write_text("MerkleKV data format 4\n")
    with pytest.raises(FormatTooNew, match="format 4 is from a later release"):
        check_directory(tmp_path)


def test_progress_grows_to_its_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merklekv.engine.verify.report.STEPS_PER_REPORT", 4)
    told: list[tuple[int, int]] = []
    check_directory(path, lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert len({total for _, total in told}) == 1
    assert told[-1][0] == told[-1][1]
    assert len(told) > 10


def test_a_stage_without_steps_and_one_with_too_many() -> None:
    told: list[tuple[int, int]] = []
    stages = Stages(lambda done, total: told.append((done, total)), 30)
    stages.begin(10, 0)
    stages.begin(20, 1)
    stages.step(10_000)
    stages.end()
    assert told == [(0, 30), (10, 30), (30, 30), (30, 30)]


def test_many_problems_are_cut_short() -> None:
    report = Report(pytest.fail)
    for number in range(VIOLATIONS_MAX + 5):
        report.add("here", f"problem {number}")
    assert report.sentences()[-2:] == [f"here: problem {VIOLATIONS_MAX - 1}", "and 5 more problems"]


def test_the_plain_computations_share_no_code_with_the_engine() -> None:
    tree = ast.parse(Path(reference.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))
    assert not any((name or "merklekv").startswith("merklekv") for name in imported)
