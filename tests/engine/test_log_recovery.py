"""A start recovers the log after a crash, and the checker agrees with it."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import engines
from fixtures.engines import LogWriter, set_entry
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine import recovery
from merklekv.engine.engine import Engine
from merklekv.engine.format import FRAME_HEADER
from merklekv.engine.log.segment import Segment, list_segments, segment_path
from merklekv.engine.log.writer import LogEnd
from merklekv.engine.record import ZERO_VERSION
from merklekv.engine.recovery import Replayed, recover_log
from merklekv.engine.verify.check import BaseFacts, check_log
from merklekv.engine.verify.reference import read_entries
from merklekv.engine.verify.report import Report
from merklekv.errors import Corruption


def recover(directory: Path, checkpoint_lsn: int) -> LogEnd | None:
    """As a start does with a base that has everything up to there."""
    return recover_log(directory, checkpoint_lsn, Replayed(ZERO_VERSION, ZERO_VERSION, {}))


def keys_left(directory: Path) -> list[bytes]:
    """The keys of all whole frames, in order."""
    found = []
    for lsn in list_segments(directory):
        with Segment(segment_path(directory, lsn)) as segment:
            found += [entry.key for frame in segment.frames() for entry in read_entries(frame.payload)]
    return found


def checked(directory: Path) -> tuple[list[str], list[str]]:
    """Violations and remarks of the checker."""
    remarks: list[str] = []
    report = Report(remarks.append)
    check_log(directory, BaseFacts(), report)
    return report.sentences(), remarks


def three_frames(path: Path, synced: bool = True) -> LogWriter:
    log = LogWriter(path)
    for number in range(3):
        log.frame([set_entry(2 * number), set_entry(2 * number + 1)], synced)
    return log


def test_the_last_frame_cut_at_every_byte(tmp_path: Path) -> None:
    log = three_frames(tmp_path / "whole")
    _, start, end = log.frames[-1]
    for size in range(start, end + 1):
        for room in (0, 1000):  # reserved room behind the frames reads as zeros
            copy = shutil.copytree(log.path, tmp_path / "copy")
            file = copy / log.file.name
            with file.open("r+b") as opened:
                opened.truncate(size)
                opened.truncate(size + room)
            torn = start < size < end
            violations, remarks = checked(copy)
            assert violations == []
            assert len(remarks) == torn
            recovered = recover(copy, 0)
            assert recovered is not None
            assert recovered.end == (end if size == end else start)
            assert recovered.sequence == (7 if size == end else 5)
            assert keys_left(copy) == [b"k%d" % number for number in range(6 if size == end else 4)]
            assert file.stat().st_size == recovered.end or not torn
            shutil.rmtree(copy)


def test_a_torn_tail_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = three_frames(tmp_path / "log")
    engines.flip(log.file, log.frames[2][2] - 1)
    with caplog.at_level(logging.WARNING):
        recover(log.path, 0)
    assert f"{log.file}: cut off a torn tail" in caplog.text
    assert f"at byte {log.frames[2][1]}" in caplog.text


@pytest.mark.timeout(60)
def test_a_torn_value_that_is_full_of_forged_frames_is_cut_off(tmp_path: Path) -> None:
    """The checksums of all these frames would take hours."""
    log = three_frames(tmp_path / "log")
    size, count = FRAME_HEADER.size, 400_000
    for claim in (0, log.lsn + log.frames[2][1], (1 << 64) - 1):
        with log.file.open("r+b") as file:
            file.truncate(log.frames[2][1] + 60)
            file.seek(log.frames[2][1] + 50)
            for at in range(count):
                file.write(FRAME_HEADER.pack(b"MKVF", (count - at - 1) * size, claim, 1, 1, 1, 0))
        violations, remarks = checked(log.path)
        assert (violations, len(remarks)) == ([], 1)
        recovered = recover(log.path, 0)
        assert recovered is not None
        assert recovered.end == log.frames[2][1]


def test_a_flipped_byte_in_a_middle_frame_is_damage(tmp_path: Path) -> None:
    log = three_frames(tmp_path / "log")
    before = engines.snapshot(log.path)
    _, start, end = log.frames[1]
    for position in range(start, end):
        engines.flip(log.file, position)
        flipped = engines.snapshot(log.path)
        with pytest.raises(Corruption) as caught:
            recover(log.path, 0)
        assert str(caught.value).startswith(f"{log.file}: damaged at byte {start}: ")
        assert "merklekv verify" in str(caught.value)
        assert engines.snapshot(log.path) == flipped
        violations, remarks = checked(log.path)
        assert len(violations) == 1
        assert f"{log.file}: no whole frame at byte {start}" in violations[0]
        assert remarks == []
        engines.flip(log.file, position)
    assert engines.snapshot(log.path) == before


def test_a_sealed_segment_that_is_torn_before_the_next_one_was_synced(tmp_path: Path) -> None:
    """As `everysec` leaves it: a rotation, then a crash before either segment had been synced."""
    log = three_frames(tmp_path / "log", synced=False)
    first, frames = log.file, log.frames[:]
    log.next_segment()
    log.frame([set_entry(7)], synced=False)
    engines.flip(first, frames[1][1] + 50)
    violations, remarks = checked(log.path)
    assert violations == []
    assert len(remarks) == 1
    recovered = recover(log.path, 0)
    assert recovered is not None
    assert (recovered.segments, recovered.end, recovered.sequence) == ([0], frames[1][1], 3)
    assert list_segments(log.path) == [0]
    assert keys_left(log.path) == [b"k0", b"k1"]


def test_a_sealed_segment_that_lost_its_end_before_the_next_one_was_synced(tmp_path: Path) -> None:
    log = three_frames(tmp_path / "log", synced=False)
    first = log.file
    log.next_segment()
    log.frame([set_entry(7)], synced=False)
    with first.open("r+b") as file:
        file.truncate(log.frames[2][1])
    recovered = recover(log.path, 0)
    assert recovered is not None
    assert recovered.segments == [0]
    assert keys_left(log.path) == [b"k%d" % number for number in range(4)]


def test_a_later_segment_claims_an_earlier_one_as_synced(tmp_path: Path) -> None:
    log = three_frames(tmp_path / "log")
    first = log.file
    log.next_segment()
    log.frame([set_entry(7)])
    engines.flip(first, log.frames[2][1])
    with pytest.raises(Corruption, match=f"{first}: damaged at byte {log.frames[2][1]}"):
        recover(log.path, 0)
    assert len(checked(log.path)[0]) == 1


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_segment_is_damage(tmp_path: Path, missing: int) -> None:
    log = LogWriter(tmp_path / "log")
    for number in range(3):
        log.frame([set_entry(number)])
        log.next_segment()
    log.frame([set_entry(9)])
    gone = list_segments(log.path)[missing]
    segment_path(log.path, gone).unlink()
    with pytest.raises(Corruption) as caught:
        recover(log.path, 0)
    assert str(log.path) in str(caught.value)
    assert len(checked(log.path)[0]) == 1
    assert len(list_segments(log.path)) == 3


def test_a_log_without_the_segment_where_the_base_ends(tmp_path: Path) -> None:
    log = three_frames(tmp_path / "log")
    with pytest.raises(Corruption, match=f"{segment_path(log.path, 500)}: damaged at byte 0: the segment is missing"):
        recover(log.path, 500)


@pytest.mark.parametrize("size", [0, 1, 47, 48])
def test_a_segment_that_was_being_created_is_dropped(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durably: otherwise a later crash may bring it back among other segments."""
    synced: list[list[int]] = []
    monkeypatch.setattr(recovery, "sync_directory", lambda path: synced.append(list_segments(path)))
    log = three_frames(tmp_path / "log")
    old = log.file
    log.next_segment()
    log.file.write_bytes(bytes(size))
    violations, remarks = checked(log.path)
    assert violations == []
    assert "was being created" in remarks[0]
    recovered = recover(log.path, 0)
    assert recovered is not None
    assert (recovered.segments, recovered.end) == ([0], old.stat().st_size)
    assert list_segments(log.path) == [0]
    assert synced == [[0]]


def test_the_very_first_segment_that_was_being_created(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "log")
    log.file.write_bytes(b"")
    assert recover(log.path, 0) is None
    assert list_segments(log.path) == []


def test_a_header_of_zeros_with_frames_behind_it_is_damage(tmp_path: Path) -> None:
    log = three_frames(tmp_path / "log")
    with log.file.open("r+b") as file:
        file.write(bytes(48))
    with pytest.raises(Corruption, match="header"):
        recover(log.path, 0)
    assert "header" in checked(log.path)[0][0]


damage = st.lists(st.tuples(st.sampled_from(["flip", "cut"]), st.integers(0, 2**20)), min_size=1, max_size=2)
shapes = st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.booleans()), min_size=1, max_size=5)


@given(shapes, damage)
def test_the_checker_and_a_start_agree(shape: list[tuple[int, bool, bool]], blows: list[tuple[str, int]]) -> None:
    """Any byte is flipped or cut: a start refuses the log if the checker reports it, or keeps its whole beginning."""
    with engines.directory() as path:
        log = LogWriter(path / "log")
        written: list[bytes] = []
        for count, synced, rotate in shape:
            numbers = range(len(written), len(written) + count)
            log.frame([set_entry(number) for number in numbers], synced)
            written += [b"k%d" % number for number in numbers]
            if rotate:
                log.next_segment()
        for kind, where in blows:
            _strike(log.path, kind, where)
        violations, _ = checked(log.path)
        try:
            recovered = recover(log.path, 0)
        except Corruption:
            assert violations
            return
        assert violations == []
        left = keys_left(log.path)
        assert left == written[: len(left)]
        assert checked(log.path) == ([], [])
        assert (recovered.sequence if recovered else 1) == len(left) + 1
        assert recover(log.path, 0) == recovered


def _strike(directory: Path, kind: str, where: int) -> None:
    """Flips the byte at a position counted over all segments, modulo their size, or cuts everything behind it."""
    files = [segment_path(directory, lsn) for lsn in list_segments(directory)]
    where %= max(1, sum(file.stat().st_size for file in files))
    for file in files:
        size = file.stat().st_size
        if where < size:
            if kind == "flip":
                engines.flip(file, where)
            else:
                with file.open("r+b") as opened:
                    opened.truncate(where)
            return
        where -= size


def test_an_engine_goes_on_behind_a_torn_tail(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make_engine()
    for number in range(3):
        engine.set(b"k", b"%d" % number)
        engine.commit()
    end = engine.log.position
    engine.close()
    file = segment_path(tmp_path / "data" / "log", 0)
    with file.open("r+b") as opened:
        opened.truncate(end - 1)
    engine = make_engine()
    assert engine.get(b"k") == b"1"
    engine.set(b"k", b"again")
    engine.commit()
    engine.close()
    assert make_engine().get(b"k") == b"again"


def test_an_engine_refuses_damage_and_lets_the_directory_go(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    engine = make_engine(durability="always")  # so that each frame claims the one before as synced
    for number in range(3):
        engine.set(b"k", b"%d" % number)
        engine.commit()
    engine.close()
    engines.damaged(tmp_path / "data")
    file = segment_path(tmp_path / "data" / "log", 0)
    engines.flip(file, 100)
    for _ in range(2):  # the second time too: nothing stays locked
        with pytest.raises(Corruption, match=f"{file}: damaged at byte 48"):
            make_engine()
    engines.flip(file, 100)
    assert make_engine().get(b"k") == b"2"


def test_damage_in_the_last_frame_of_a_closed_log_is_no_torn_tail(tmp_path: Path) -> None:
    """At every byte of it: closing leaves an empty frame behind, which claims the last one as synced."""
    engine = engines.open_engine(tmp_path / "data", durability="never")
    engine.set(b"first", b"v")
    engine.commit()
    engine.set(b"last", b"v")
    engine.close()
    [segment] = (tmp_path / "data" / "log").glob("*.log")
    whole = segment.read_bytes()
    with Segment(segment) as read:
        last = [frame for frame in read.frames() if frame.entry_count][-1]
    engines.damaged(tmp_path / "data")
    for at in range(last.position, last.end):
        segment.write_bytes(whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1 :])
        with pytest.raises(Corruption, match=f"damaged at byte {last.position}"):
            engines.open_engine(tmp_path / "data")
    segment.write_bytes(whole)
    assert engines.open_engine(tmp_path / "data").get(b"last") == b"v"


@pytest.mark.parametrize(
    "entry",
    [
        engines.entry(1, b"k", bytes(40)),
        engines.entry(1, b"k", engines.version(1) + b"\2" + bytes(23)),
        engines.entry(1, b"", bytes(41)),
        engines.entry(1, b"k" * 512, bytes(41)),
        engines.entry(10, b"k", bytes(41)),
        engines.entry(12, b"k", bytes(41)),
        engines.entry(7, b"", bytes(23)),
        engines.entry(0x8B, b"k", b""),
        engines.entry(0x89, b"n" * 65, b""),
        set_entry(1)[:-1],
        set_entry(1) + b"\1",
    ],
)
def test_an_entry_that_is_none_in_a_whole_frame_is_damage(tmp_path: Path, entry: bytes) -> None:
    """No crash makes one, but what reads it relies on its sizes."""
    log = LogWriter(tmp_path / "log")
    log.frame([set_entry(0), entry])
    with pytest.raises(Corruption, match=f"{log.file}: damaged at byte 48: a frame that matches its checksum has"):
        recover(tmp_path / "log", 0)


def test_opening_and_closing_alone_writes_nothing(tmp_path: Path) -> None:
    engine = engines.open_engine(tmp_path / "data")
    engine.set(b"k", b"v")
    engine.close()
    end = engine.log.end_lsn
    for _ in range(3):
        engine = engines.open_engine(tmp_path / "data")
        engine.close()
    assert engine.log.end_lsn == end
