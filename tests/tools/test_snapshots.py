"""How copies are made while a node goes on: what could slip in between, one moment at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import lmdb
import pytest
from fixtures.tools import opened
from merklekv_tool.errors import LogMoved
from merklekv_tool.output import Update
from merklekv_tool.snapshot import directory as directory_snapshot
from merklekv_tool.snapshot import lmdb_copy
from merklekv_tool.snapshot import node as node_snapshot
from merklekv_tool.snapshot.directory import copy_directory
from merklekv_tool.snapshot.node import copy_node
from merklekv_tool.source.node import Node

from merklekv.engine import failpoints
from merklekv.engine.base.writer import BaseWriter
from merklekv.engine.engine import Engine
from merklekv.engine.log.segment import list_segments, segment_path
from merklekv.engine.verify.check import check_directory
from merklekv.errors import Corruption
from merklekv.net.server import Server


def no_update(done: int, total: int) -> None:
    """No progress is shown."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with opened(tmp_path / "data") as opened_engine:
        yield opened_engine


def copied(directory: Path, target: Path) -> dict[bytes, bytes]:
    """Copies a directory that is open; what a start makes of it."""
    target.mkdir()
    copy_directory(directory, target, no_update)
    with opened(target) as copy:
        found = dict(copy.records_page(limit=100_000, max_bytes=1 << 30)[0])
    assert check_directory(target) == []
    return found


def records_of(engine: Engine) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    after: bytes | None = b""
    while after is not None:
        pairs, after = engine.records_page(after=after)
        found.update(pairs)
    return found


def write(engine: Engine, count: int = 10) -> None:
    engine.join()
    for number in range(count):
        engine.set(b"key:%d" % number, b"%d" % engine.clock.newest)
    engine.delete(b"key:3")
    engine.commit()


def test_at_each_point_of_a_checkpoint(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is in the middle of taking in what the log has, or has just done so and the log is going."""
    seen: list[str] = []

    def look(name: str) -> None:
        target = tmp_path / f"copy-{len(seen)}"
        seen.append(name)
        assert copied(engine.directory.path, target) == expected, name

    write(engine)
    engine.checkpoint_now()
    write(engine)
    engine.truncate()
    write(engine, 20)
    expected = records_of(engine)
    monkeypatch.setattr(failpoints, "reached", look)
    engine.checkpoint_now()
    assert {
        "checkpoint.marked",
        "checkpoint.records_part",
        "checkpoint.index_part",
        "checkpointer.before_delete",
    } <= set(seen)


def test_a_segment_that_goes_while_the_base_is_copied(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was opened before, so it is still read; the base of before needs it."""
    write(engine)
    expected = records_of(engine)
    copy_base = lmdb_copy.copy

    def copy_and_go_on(source: Path, target: Path, update: Update) -> None:
        copy_base(source, target, update)
        before = list_segments(engine.directory.log)
        engine.checkpoint_now()
        write(engine, 5)
        engine.checkpoint_now()
        engine.set(b"new", b"x")
        engine.commit()
        assert not set(before) & set(list_segments(engine.directory.log))

    monkeypatch.setattr(lmdb_copy, "copy", copy_and_go_on)
    assert copied(engine.directory.path, tmp_path / "copy") == expected


def test_a_base_that_is_ahead_of_every_segment_is_copied_again(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(engine)
    copy_base = lmdb_copy.copy
    copies: list[Path] = []

    def go_on_and_copy(source: Path, target: Path, update: Update) -> None:
        if not copies:
            engine.checkpoint_now()
            write(engine, 5)
        copies.append(target)
        copy_base(source, target, update)
        if len(copies) == 1:
            for lsn in list_segments(engine.directory.log):  # as if they had come and gone meanwhile
                segment_path(engine.directory.log, lsn).rename(tmp_path / f"{lsn}.kept")

    def back(directory: Path) -> None:
        empty(directory)
        for kept in tmp_path.glob("*.kept"):
            kept.rename(segment_path(engine.directory.log, int(kept.stem)))

    empty = directory_snapshot.empty
    monkeypatch.setattr(lmdb_copy, "copy", go_on_and_copy)
    monkeypatch.setattr(directory_snapshot, "empty", back)
    assert copied(engine.directory.path, tmp_path / "copy") == records_of(engine)
    assert len(copies) == 2


def test_a_base_that_needs_more_of_the_log_than_there_is(tmp_path: Path) -> None:
    """It has parts of a segment that cannot be read any more, so it is the data of no moment."""
    with opened(tmp_path / "data") as engine:
        write(engine)
        engine.checkpoint_now()
        end = engine.log.end_lsn
    with BaseWriter(tmp_path / "data" / "base") as base:
        base.begin_checkpoint(end + 1000)
    (tmp_path / "copy").mkdir()
    with pytest.raises(Corruption, match="which the base needs, is not there"):
        copy_directory(tmp_path / "data", tmp_path / "copy", no_update)


def test_a_frame_that_is_being_written(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it is there at first; the copy has all of it in the end."""
    write(engine)
    expected = records_of(engine)
    segment = segment_path(engine.directory.log, 0)
    whole = segment.read_bytes()
    end = engine.log.position
    with segment.open("r+b") as file:
        file.seek(end - 5)
        file.write(bytes(5))
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            segment.write_bytes(whole)

    monkeypatch.setattr(directory_snapshot, "time", SimpleNamespace(sleep=wait))
    assert copied(engine.directory.path, tmp_path / "copy") == expected
    assert len(waits) == 3


def test_a_segment_that_is_being_made(engine: Engine, tmp_path: Path) -> None:
    write(engine)
    made = segment_path(engine.directory.log, engine.log.end_lsn)
    made.write_bytes(b"")
    assert copied(engine.directory.path, tmp_path / "copy") == records_of(engine)
    made.unlink()


def test_a_directory_that_a_node_died_in_the_first_moment_of(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        pass
    shutil.rmtree(tmp_path / "data" / "base")
    shutil.rmtree(tmp_path / "data" / "log")
    (tmp_path / "data" / "base").mkdir()
    (tmp_path / "data" / "log").mkdir()
    assert copied(tmp_path / "data", tmp_path / "copy") == {}


def test_an_lmdb_that_cannot_be_read(tmp_path: Path) -> None:
    with opened(tmp_path / "data"):
        pass
    (tmp_path / "data" / "base" / "data.mdb").write_bytes(b"no LMDB" * 1000)
    (tmp_path / "copy").mkdir()
    with pytest.raises(Corruption, match="LMDB"):
        copy_directory(tmp_path / "data", tmp_path / "copy", no_update)


# -- through the port --------------------------------------------------------------------------------------------------


@pytest.fixture
def node(engine: Engine) -> Iterator[Node]:
    server = Server(engine, host="127.0.0.1", port=0, fatal=lambda error: None)
    there = Node(*server.start())
    yield there
    there.close()
    server.stop(deadline_s=5)


def test_what_changes_between_two_pages(node: Node, engine: Engine, tmp_path: Path) -> None:
    """Written, deleted, collected, truncated behind and before the page that is being read: all as at the end."""
    for number in range(3000):
        engine.set(b"key:%04d" % number, b"old")
    engine.checkpoint_now()
    pages = node.pages
    changes: list[int] = []

    def pages_and_changes() -> Iterator[list[tuple[bytes, bytes]]]:
        for page in pages():
            yield page
            number = len(changes)
            engine.set(b"key:%04d" % (10 + number), b"behind")
            engine.set(b"key:%04d" % (2900 + number), b"before")
            engine.delete(b"key:%04d" % (20 + number))
            engine.delete(b"key:%04d" % (2950 + number))
            engine.raise_gc_horizon(engine.clock.newest)
            engine.collect_tombstones()
            engine.put_metadata(b"fact", b"%d" % number)
            if number == 1:
                engine.truncate()
                engine.set(b"key:0000", b"after the truncation")
            engine.commit()
            changes.append(number)

    node.pages = pages_and_changes  # type: ignore[assignment,method-assign]
    (tmp_path / "copy").mkdir()
    copy_node(node, tmp_path / "copy", no_update)
    assert len(changes) >= 3
    with opened(tmp_path / "copy") as copy:
        assert records_of(copy) == records_of(engine)
        assert (copy.truncation, copy.metadata, copy.gc_horizon) == (
            engine.truncation,
            engine.metadata,
            engine.gc_horizon,
        )
        assert (copy.log.end_lsn, copy.log.sequence) == (engine.log.end_lsn, engine.log.sequence)
    assert check_directory(tmp_path / "copy") == []


def test_a_node_whose_log_goes_too_fast(node: Node, engine: Engine, tmp_path: Path) -> None:
    """Once is no matter: it begins anew. Each time is too much."""
    for number in range(3000):
        engine.set(b"key:%04d" % number, b"old")
    engine.commit()
    pages = node.pages
    left = 2

    def pages_and_a_checkpoint() -> Iterator[list[tuple[bytes, bytes]]]:
        nonlocal left
        left -= 1
        for page in pages():
            yield page
            if left >= 0:
                engine.set(b"more", b"%d" % left)
                engine.checkpoint_now()
                engine.set(b"more", b"%d more" % left)
                engine.checkpoint_now()

    node.pages = pages_and_a_checkpoint  # type: ignore[assignment,method-assign]
    (tmp_path / "copy").mkdir()
    copy_node(node, tmp_path / "copy", no_update)
    with opened(tmp_path / "copy") as copy:
        assert records_of(copy) == records_of(engine)
    left = 1 << 30
    (tmp_path / "other").mkdir()
    with pytest.raises(LogMoved, match="deletes its log faster than it can be copied"):
        copy_node(node, tmp_path / "other", no_update)


def test_the_index_is_filled_in_parts(
    node: Node, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_snapshot, "INDEX_KEYS", 1000)
    monkeypatch.setattr(node_snapshot, "TRANSACTION_KEYS", 300)
    for number in range(5000):
        engine.set(b"key:%04d" % number, b"x")
    engine.commit()
    (tmp_path / "copy").mkdir()
    copy_node(node, tmp_path / "copy", no_update)
    with opened(tmp_path / "copy") as copy:
        assert records_of(copy) == records_of(engine)
    assert check_directory(tmp_path / "copy") == []
    with lmdb.open(str(tmp_path / "copy" / "base"), readonly=True, lock=False, max_dbs=1) as environment:
        assert environment.begin(db=environment.open_db(b"index", create=False)).stat()["entries"] == 5000
