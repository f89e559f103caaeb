"""Names and files are on disk before anything relies on them: each test is of a fault that a crash state has shown."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures import engines
from fixtures.engines import engine_in, open_engine
from merklekv_tool.files import open_output
from merklekv_tool.formats import backup

from merklekv.engine.log.reader import LogPosition
from merklekv.engine.verify.check import check_directory
from merklekv.errors import Corruption

Syncs = list[tuple[Path, set[str]]]


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    """What was synced, with the names that a directory had then."""
    found: Syncs = []
    real: Callable[[Any], None] = os.fsync

    def fsync(fd: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{fd}"))
        found.append((place, set(os.listdir(place)) if place.is_dir() else set()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def test_the_way_to_a_new_directory_is_on_disk_before_the_directory_is_one(tmp_path: Path, syncs: Syncs) -> None:
    path = tmp_path / "new" / "deep" / "data"
    open_engine(path).close()
    (marked, _), *_ = [(number, names) for number, (place, names) in enumerate(syncs) if "FORMAT" in names]
    before = [place for place, _ in syncs[:marked]]
    assert {tmp_path, tmp_path / "new", tmp_path / "new" / "deep"} <= set(before)


def test_a_start_syncs_what_a_killed_process_has_left(tmp_path: Path, syncs: Syncs) -> None:
    path = tmp_path / "data"
    with engine_in(path) as engine:
        engine.set(b"k", b"v")
        engine.commit()
    syncs.clear()
    open_engine(path).close()
    (segment,) = (path / "log").glob("*.log")
    assert {path, path / "log", path / "base", path / "base" / "data.mdb", segment} <= {place for place, _ in syncs}


def test_an_old_base_goes_when_the_new_one_has_its_name_on_disk(tmp_path: Path, syncs: Syncs) -> None:
    path = tmp_path / "data"
    open_engine(path).close()
    (path / "base.old").mkdir()
    syncs.clear()
    open_engine(path).close()
    assert "base.old" in next(names for place, names in syncs if place == path)
    assert not (path / "base.old").exists()


def test_segments_go_one_by_one(tmp_path: Path, syncs: Syncs) -> None:
    with engine_in(tmp_path / "data") as engine:
        for number in range(3):
            engine.set(b"k%d" % number, b"v")
            engines.freeze(engine)
        syncs.clear()
        engines.checkpoint(engine)
        log = tmp_path / "data" / "log"
        left = [len([name for name in names if name.endswith(".log")]) for place, names in syncs if place == log]
    assert left[-3:] == [3, 2, 1]


def test_a_cursor_ahead_of_the_log_does_not_come_back(tmp_path: Path, syncs: Syncs) -> None:
    path = tmp_path / "data"
    with engine_in(path) as engine:
        engine.retention.subscribe()
        engine.retention.advance(LogPosition(10_000, 99))
    syncs.clear()
    with engine_in(path) as engine:
        assert engine.retention.cursor == engine.retention.end
        assert (path / "outbox", set()) in syncs
        assert syncs[-1][0] == path


@pytest.mark.parametrize("content", [bytes(8192), bytes(4096) + b"x" * 4096, b"x" * 100, bytes(12288)])
def test_a_base_that_was_being_made_is_made_again(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data"
    with engine_in(path) as engine:
        engine.set(b"k", b"v")
        engine.commit()
    (path / "base" / "data.mdb").write_bytes(content)
    assert check_directory(path) == []
    with engine_in(path) as engine:
        assert engine.get(b"k") == b"v"
        engines.checkpoint(engine)
    (path / "base" / "data.mdb").write_bytes(content)
    with pytest.raises(Corruption, match="does not begin with the two meta pages"):
        open_engine(engines.damaged(path))


def test_what_a_tool_has_written_keeps_its_name(tmp_path: Path, syncs: Syncs) -> None:
    with open_output(str(tmp_path / "file")) as file:
        file.write(b"x")
    assert syncs[-1] == (tmp_path, {"file"})
    draft, target = tmp_path / "draft", tmp_path / "new" / "deep" / "target"
    draft.mkdir()
    target.parent.mkdir(parents=True)
    backup.publish(draft, target)
    assert {target.parent, target.parent.parent, tmp_path} <= {place for place, _ in syncs}
