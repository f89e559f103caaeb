"""The subscriber of the log gets each committed frame once, in order, from memory or files, also after restarts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merklekv.engine.engine import Engine
from merklekv.engine.format import FRAME_HEADER, SEGMENT_HEADER
from merklekv.engine.log import retention as retention_module
from merklekv.engine.log.reader import LogGone, LogPosition
from merklekv.engine.log.retention import Retention
from merklekv.engine.log.segment import LogFrame, list_segments
from merklekv.engine.log.writer import Log
from merklekv.engine.options import MIN_MEMTABLE_SIZE
from merklekv.engine.record import make_record, value_of, version_of
from merklekv.errors import Corruption
from merklekv.replication.stream.event import decode_message, encode_entries, encode_message

Damage = Callable[[bytes], bytes]

REMOTE_RECORD = make_record(b"r", bytes(24), b"remote")


def open_engine(path: Path, **options: Any) -> Engine:
    return Engine(path, durability="never", memtable_size=MIN_MEMTABLE_SIZE, checkpoint="manual", **options)


def read_on(engine: Engine, at: int) -> tuple[list[bytes], int]:
    """The values of the local events from a position on, and where they end."""
    values = []
    while (frame := engine.retention.next_frame(at)) is not None:
        values += values_of(frame)
        at = frame.end
    return values, at


def values_of(frame: LogFrame) -> list[bytes]:
    events = encode_entries(frame.data, FRAME_HEADER.size, len(frame.data), 1 << 30)
    assert events.event_count == frame.local_count
    message = decode_message(encode_message("a", frame.sequence, events.pieces, events.event_count))
    return [value_of(record) for _, _, record in message.changes]


def write(engine: Engine, first: int, last: int, step: int = 3) -> list[bytes]:
    values = [b"%d" % number for number in range(first, last)]
    for number, value in enumerate(values):
        engine.set(b"k%d" % (number % 50), value)
        if number % step == step - 1:
            engine.commit()
    engine.commit()
    return values


def test_nothing_is_retained_until_there_is_a_subscriber(tmp_path: Path) -> None:
    engine = open_engine(tmp_path)
    write(engine, 0, 10)
    assert engine.retention.cursor is None
    position = engine.retention.subscribe()
    assert position == engine.retention.end == LogPosition(position.lsn, 11)
    engine.close()
    assert open_engine(tmp_path).retention.cursor == position


@pytest.mark.parametrize("recent_bytes", [0, 1000, retention_module.RECENT_BYTES])
def test_every_event_comes_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recent_bytes: int
) -> None:
    monkeypatch.setattr(retention_module, "RECENT_BYTES", recent_bytes)
    engine = open_engine(tmp_path)
    at = engine.retention.subscribe().lsn
    written: list[bytes] = []
    read: list[bytes] = []
    for part in range(30):
        written += write(engine, part * 100, part * 100 + 100)
        if part % 3 == 2:
            values, at = read_on(engine, at)
            read += values
    assert len(list_segments(tmp_path / "log")) > 2, "the test is to see rotations"
    values, at = read_on(engine, at)
    assert read + values == written
    assert at == engine.retention.end.lsn
    engine.close()


def test_after_a_restart_it_goes_on_at_the_cursor(tmp_path: Path) -> None:
    engine = open_engine(tmp_path)
    at = engine.retention.subscribe().lsn
    first = write(engine, 0, 1000)
    assert read_on(engine, at)[0] == first
    middle = engine.retention.end
    engine.release_log(middle)
    second = write(engine, 1000, 3000)
    engine.checkpoint_now()
    engine.close()
    engine = open_engine(tmp_path)
    assert engine.retention.cursor == middle
    assert read_on(engine, middle.lsn)[0] == second
    engine.close()


def test_uncommitted_entries_are_not_returned(tmp_path: Path) -> None:
    engine = open_engine(tmp_path)
    at = engine.retention.subscribe().lsn
    engine.set(b"k", b"v")
    assert engine.retention.next_frame(at) is None
    engine.commit()
    assert read_on(engine, at)[0] == [b"v"]
    engine.close()


def test_events_of_other_nodes_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for recent_bytes in (retention_module.RECENT_BYTES, -1):
        monkeypatch.setattr(retention_module, "RECENT_BYTES", recent_bytes)
        engine = open_engine(tmp_path / str(recent_bytes))
        at = engine.retention.subscribe().lsn
        engine.merge([(1, b"r", REMOTE_RECORD)], b"other")
        engine.commit()
        engine.set(b"k", b"v")
        engine.commit()
        assert read_on(engine, at) == ([b"v"], engine.retention.end.lsn)
        engine.close()


def test_the_subscriber_is_notified_of_local_events_alone(tmp_path: Path) -> None:
    engine = open_engine(tmp_path)
    engine.retention.subscribe()
    woken: list[int] = []
    engine.retention.notify = lambda: woken.append(1)
    write(engine, 0, 10)
    assert not woken
    engine.retention.notify_next = True
    engine.merge([(1, b"r", REMOTE_RECORD)], b"other")
    engine.commit()
    assert not woken
    write(engine, 0, 10)
    assert len(woken) == 1
    engine.close()


def test_segments_are_retained_until_the_subscriber_has_passed_them(tmp_path: Path) -> None:
    engine = open_engine(tmp_path)
    engine.retention.subscribe()
    write(engine, 0, 3000)
    engine.checkpoint_now()
    kept = list_segments(tmp_path / "log")
    assert kept[0] == 0
    assert len(kept) > 3
    engine.close()
    engine = open_engine(tmp_path)
    assert list_segments(tmp_path / "log") == kept, "opening must not delete what is retained"
    engine.release_log(LogPosition(kept[2] + SEGMENT_HEADER.size, 5))
    assert list_segments(tmp_path / "log") == kept[2:]
    engine.release_log(engine.retention.end)
    assert list_segments(tmp_path / "log") == kept[-1:]
    engine.close()


def test_without_a_subscriber_segments_are_deleted_at_once(tmp_path: Path) -> None:
    engine = open_engine(tmp_path)
    write(engine, 0, 3000)
    engine.checkpoint_now()
    assert len(list_segments(tmp_path / "log")) == 1
    engine.close()
    assert open_engine(tmp_path).retention.cursor is None


def test_past_the_limit_the_oldest_are_dropped(tmp_path: Path) -> None:
    limit = 3 * MIN_MEMTABLE_SIZE
    engine = open_engine(tmp_path, retain_max_bytes=limit)
    at = engine.retention.subscribe().lsn
    written = []
    for part in range(6):
        written += write(engine, part * 1000, part * 1000 + 1000)
        engine.checkpoint_now()
    lsns = list_segments(tmp_path / "log")
    assert len(lsns) > 2
    assert lsns[0] > 0
    assert engine.retention.end.lsn - lsns[0] <= limit
    engine.retention._recent.clear()
    with pytest.raises(LogGone) as gone:
        engine.retention.next_frame(at)
    assert gone.value.oldest.lsn == lsns[0]
    rest, _ = read_on(engine, lsns[0])
    assert rest == written[gone.value.oldest.sequence - 1 :], "the sequence says how many are lost"
    engine.close()


def damage(data: bytes) -> bytes:
    return data[:20] + bytes((data[20] ^ 1,)) + data[21:]


@pytest.mark.parametrize("broken", [b"", b"short", damage])
def test_a_damaged_cursor_repeats_the_events_that_are_left(
    tmp_path: Path, broken: bytes | Damage, caplog: pytest.LogCaptureFixture
) -> None:
    engine = open_engine(tmp_path)
    written = write(engine, 0, 10)
    engine.retention.subscribe()
    engine.close()
    file = tmp_path / "outbox"
    file.write_bytes(broken(file.read_bytes()) if callable(broken) else broken)
    engine = open_engine(tmp_path)
    assert engine.retention.cursor is not None
    assert read_on(engine, engine.retention.cursor.lsn)[0] == written
    assert "damaged" in caplog.text
    engine.close()


def test_a_cursor_behind_the_end_of_a_log_that_was_cut_back_is_the_end(tmp_path: Path) -> None:
    engine = open_engine(tmp_path)
    write(engine, 0, 10)
    engine.retention.subscribe()
    engine.release_log(LogPosition(engine.retention.end.lsn + 1000, 500))
    engine.close()
    engine = open_engine(tmp_path)
    end = engine.retention.end
    assert engine.retention.cursor == end
    assert read_on(engine, end.lsn) == ([], end.lsn)
    written = write(engine, 0, 5)
    assert read_on(engine, end.lsn)[0] == written
    engine.close()


def test_a_damaged_frame_is_reported_and_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_module, "RECENT_BYTES", 0)
    engine = open_engine(tmp_path)
    at = engine.retention.subscribe().lsn
    write(engine, 0, 1)
    fd = os.open(tmp_path / "log" / f"{0:020d}.log", os.O_RDWR)
    os.pwrite(fd, b"\xff", engine.retention.end.lsn - 1)
    with pytest.raises(Corruption, match="damaged at byte 48"):
        engine.retention.next_frame(at)
    os.pwrite(fd, b"\xff", at)
    with pytest.raises(Corruption, match="damaged at byte"):
        engine.retention.next_frame(at)
    os.close(fd)
    engine.close()


def test_what_is_being_written_is_not_read_ahead(tmp_path: Path) -> None:
    log_ = Log(tmp_path, None)
    retention = Retention(tmp_path, log_)
    start = retention.subscribe()
    for part in range(3):
        record = make_record(b"k", bytes(24), b"%d" % part)
        log_.pending.append(b"\1\0\1\0\0" + len(record).to_bytes(2, "big") + b"k" + record)
        log_.appended += 1
        log_.sequence += 1
        log_.reserve(100, urgent=False)
        frame = log_.take()
        if part == 2:
            frame = frame._replace(data=frame.data[:60])  # as if the writer were in the middle of it
        log_.write(frame)
        if part < 2:
            retention.end = LogPosition(log_.written_lsn, log_.sequence)
    values, at = [], start.lsn
    while (found := retention.next_frame(at)) is not None:
        values += values_of(found)
        at = found.end
    assert values == [b"0", b"1"]
    retention.close()
    log_.close()


def test_a_checkpoint_during_a_checkpoint_of_a_truncation_leaves_no_empty_segment(tmp_path: Path) -> None:
    engine = open_engine(tmp_path)
    at = engine.retention.subscribe().lsn
    engine.set(b"spared", b"0")
    truncation = engine.record(b"spared")
    assert truncation is not None
    engine.commit()
    engine.checkpoint_now()
    engine.merge_truncation(version_of(truncation), b"peer")
    engine.commit()  # seals the segment of the truncation: the tree is not whole before the checkpoint
    engine.checkpoint_now()
    engine.set(b"k", b"1")
    engine.commit()
    engine.retention._recent.clear()
    assert read_on(engine, at)[0] == [b"0", b"1"]
    engine.close()
