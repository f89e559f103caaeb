"""The change feed: what a change says, cursors from outside, pages, waiting, and how long the log is retained."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from fixtures import engines
from fixtures.engines import NOON, Wall
from hypothesis import given
from hypothesis import strategies as st

from merklekv.engine import feed as feed_module
from merklekv.engine.engine import Engine
from merklekv.engine.feed import Change, Cursor, Page
from merklekv.engine.format import FRAME_HEADER, OP_DEL, OP_SET
from merklekv.engine.log.reader import LogGone
from merklekv.engine.log.segment import LogFrame, list_segments, pack_frame
from merklekv.engine.options import MIN_MEMTABLE_SIZE
from merklekv.engine.record import timestamp_of, version_of
from merklekv.errors import ChangesGone, InvalidArgument

MakeEngine = Callable[..., Engine]


def read_on(engine: Engine, cursor: Cursor, limit: int = 1000, prefix: bytes = b"") -> tuple[list[Change], Cursor]:
    changes: list[Change] = []
    while True:
        page = engine.feed.read(cursor, limit, prefix=prefix)
        changes += page.changes
        cursor = page.cursor
        if not page.more:
            return changes, cursor


def test_what_a_change_says(make_engine: MakeEngine) -> None:
    engine = make_engine()
    begin = engine.feed.first()
    engine.set(b"k", b"v", NOON // 10**6 + 5000)
    engine.commit()
    (change,), cursor = read_on(engine, begin)
    record = engine.record(b"k")
    assert record is not None
    assert change == Change(b"k", "set", b"v", NOON // 10**6 + 5000, version_of(record), "", cursor)
    engine.increment(b"n", 5)
    engine.merge([(OP_SET, b"r", engines.record(b"r", b"remote", NOON))], b"node-2")
    engine.set(b"own", b"")
    engine.truncate()
    engine.commit()
    changes, _ = read_on(engine, cursor)
    assert [change[:3] for change in changes] == [
        (b"n", "incr", b"5"),
        (b"r", "set", b"remote"),
        (b"own", "set", b""),
        (None, "truncate", None),
    ]
    assert [change.origin for change in changes] == ["", "node-2", "", ""]
    assert changes[-1].version == engine.truncation


def test_deletions_with_and_without_a_tombstone(make_engine: MakeEngine) -> None:
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    cursor = engine.feed.last()
    engine.set(b"k", b"v")
    wall.now += 5
    engine.delete(b"k")
    engine.commit()
    (stored, deleted), cursor = read_on(engine, cursor)
    assert deleted[:4] == (b"k", "del", None, None)
    assert timestamp_of(deleted.version) == wall.now
    assert deleted.version > stored.version
    engine.join()
    engine.set(b"k", b"v")
    engine.delete(b"k")
    engine.merge([(OP_DEL, b"other", engines.record(b"other", None, NOON))], b"node-2")
    engine.commit()
    changes, cursor = read_on(engine, cursor)
    assert [(one.key, one.op, one.origin) for one in changes] == [
        (b"k", "set", ""),
        (b"k", "del", ""),
        (b"other", "del", "node-2"),
    ]
    engine.raise_gc_horizon(wall.now + 10)
    assert not engine.collect_tombstones()
    engine.commit()
    assert read_on(engine, cursor)[0] == [], "a collected tombstone is no change"


def test_pages_end_anywhere_in_a_frame(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    begin = engine.feed.last()
    engine.merge([(OP_SET, b"r%d" % number, engines.record(b"r%d" % number, b"", NOON)) for number in range(7)], b"n2")
    for number in range(50):
        engine.set(b"%d" % (number % 5), b"%d" % number)
    engine.commit()
    whole, end = read_on(engine, begin)
    assert [change.origin for change in whole] == ["n2"] * 7 + [""] * 50
    for at, change in enumerate(whole):
        assert read_on(engine, change.cursor) == (whole[at + 1 :], end), "each change has a cursor of its own"
    for limit in (1, 2, 56):
        assert read_on(engine, begin, limit) == (whole, end)
    assert [change.value for change in read_on(engine, begin, 3, b"4")[0]] == [b"%d" % n for n in range(4, 50, 5)]
    monkeypatch.setattr(feed_module, "MARKS_MAX", 0)
    assert read_on(engine, begin, 5) == (whole, end), "also when it counts from the beginning of the frame"
    page = engine.feed.read(begin, max_bytes=1)
    assert len(page.changes) == 1
    assert page.more
    monkeypatch.setattr(feed_module, "SLICE_ENTRIES", 4)
    page = engine.feed.read(begin, prefix=b"4")
    assert page.changes == []
    assert page.more, "a slice without a change of these keys"


def test_a_cursor_is_text(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for cursor in (engine.feed.first(), engine.feed.last(), Cursor((1 << 63) - 1, (1 << 32) + 100, 7, b"\xff" * 8)):
        assert Cursor.parse(str(cursor)) == cursor
        assert len(str(cursor)) <= feed_module.CURSOR_SIZE_MAX


@pytest.mark.parametrize(
    "text",
    ["", "$", "0", "0-0-0", "0-0-0-0", "-1-0-0-" + "0" * 16, "0-0-0-" + "G" * 16, "٣-0-0-" + "0" * 16, "0" * 999],
)
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="no cursor that the change feed has given") as refused:
        Cursor.parse(text)
    assert len(str(refused.value)) < 150


@given(data=st.data())
def test_a_cursor_from_elsewhere_is_refused_or_fits(data: st.DataObject) -> None:
    """Whatever it says: an error that names the way out, or exactly what is behind one of the real cursors."""
    with engines.fresh_engine() as engine:
        begin = engine.feed.first()
        for number in range(20):
            engine.set(b"%d" % number, b"v" * number)
            engine.commit()
        whole, end = read_on(engine, begin, 1)
        real = engine.feed.read(begin, 8).cursor
        strange = Cursor(
            data.draw(st.sampled_from([real.start, begin.start, end.end, 48]) | st.integers(0, end.end + 50)),
            data.draw(st.sampled_from([real.size, 0]) | st.integers(0, 1 << 33)),
            data.draw(st.integers(0, 3)),
            data.draw(st.sampled_from([real.check, begin.check]) | st.binary(min_size=8, max_size=8)),
        )
        with suppress(ChangesGone):
            changes, _ = read_on(engine, strange)
            expected = whole[len(whole) - len(changes) :]
            assert [change.version for change in changes] == [change.version for change in expected]


def test_bytes_that_look_like_a_frame_are_refused(make_engine: MakeEngine) -> None:
    """A value may hold a frame that is whole for the position at which it lies."""
    engine = make_engine()
    engine.set(b"k", b"")
    engine.commit()
    at = engine.feed.end
    place = at + FRAME_HEADER.size + 7 + 1 + 41
    fake = pack_frame(0, place, 0, 1, 1, 1, [b"\1\xff\xff\xff\xff\xff\xffk"])
    engine.set(b"k", fake)
    engine.commit()
    frame = LogFrame(place, place + len(fake), 1, 1, fake)
    cursor = Cursor(frame.start, len(fake), 1, fake[FRAME_HEADER.size - 8 : FRAME_HEADER.size])
    with pytest.raises(ChangesGone, match="no such cursor"):
        engine.feed.read(cursor)


def test_a_cursor_of_another_directory_is_refused(make_engine: MakeEngine) -> None:
    one, other = make_engine("one"), make_engine("other")
    for engine in (one, other):
        engine.set(b"k", b"v")
        engine.commit()
    for cursor in (one.feed.first(), one.feed.last()):
        with pytest.raises(ChangesGone, match="of another node"):
            other.feed.read(cursor)


def test_after_a_lost_tail_a_cursor_behind_it_is_refused(make_engine: MakeEngine, tmp_path: Path) -> None:
    """A power cut takes frames that were read already; what comes in their place has the same positions."""
    engine = make_engine(durability="never")
    for value in (b"kept", b"lost"):
        engine.set(b"k", value)
        engine.commit()
    cursor = engine.feed.last()
    engine.close()
    newest = tmp_path / "data" / "log" / f"{0:020d}.log"
    with newest.open("r+b") as file:
        file.truncate(cursor.start)
    engine = make_engine(durability="never")
    with pytest.raises(ChangesGone, match="does not reach to this cursor"):
        engine.feed.read(cursor)
    for value in (b"new1", b"new2"):
        engine.set(b"k", value)
        engine.commit()
    with pytest.raises(ChangesGone, match="no such cursor"):
        engine.feed.read(cursor)


def test_the_oldest_segment_is_deleted_while_somebody_begins_there(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    engine.set(b"k", b"v")
    engine.commit()
    engine.checkpoint_now()
    before = iter([[0]])
    monkeypatch.setattr(feed_module, "list_segments", lambda directory: next(before, list_segments(directory)))
    cursor = engine.feed.first()
    assert cursor.start == engine.feed.end
    assert Cursor.parse(str(cursor)) == cursor


@pytest.mark.parametrize("begins", [False, True])
def test_a_strange_cursor_at_the_end_of_a_deleted_segment_is_refused(make_engine: MakeEngine, begins: bool) -> None:
    """Nodes that do the same have frames and segments at the same positions; so has one that lost its last frames."""
    one, other = make_engine("one"), make_engine("other")
    for engine in (one, other):
        engine.set(b"k", b"v")
        engine.commit()
    if begins:  # of a process that has committed nothing yet
        one.close()
        other.close()
        one, other = make_engine("one"), make_engine("other")
    end = one.feed.last()
    assert end.end == other.feed.end
    for engine in (one, other):
        engine.checkpoint_now()
        assert list_segments(engine.directory.log) == [other.feed.end]
    for expected in ([], [b"new"]):
        assert [change.value for change in read_on(one, end)[0]] == expected
        with pytest.raises(ChangesGone):
            other.feed.read(end)
        for engine in (one, other):
            engine.set(b"k", b"new")
            engine.commit()


def test_values_that_nobody_wants_are_read_in_slices(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "SLICE_BYTES", 25_000)
    engine = make_engine()
    cursor = engine.feed.first()
    for _ in range(10):
        engine.set(b"large", bytes(10_000))
        engine.commit()
    engine.set(b"k", b"")
    engine.commit()
    pages: list[Page] = []
    while not pages or pages[-1].more:
        pages.append(engine.feed.read(cursor, prefix=b"k"))
        cursor = pages[-1].cursor
    assert [len(page.changes) for page in pages] == [0, 0, 0, 1]


def fill(engine: Engine, segments: int) -> None:
    for number in range(segments * 40):
        engine.set(b"k%d" % (number % 10), b"%05d" % number + b"v" * (MIN_MEMTABLE_SIZE // 40))
        engine.commit()
        if engine.makes_wait:
            engine.checkpoint_now()
    engine.checkpoint_now()


def test_the_log_is_retained_in_bytes(make_engine: MakeEngine, tmp_path: Path) -> None:
    limit = 3 * MIN_MEMTABLE_SIZE
    engine = make_engine(retain_log_bytes=limit)
    begin = engine.feed.first()
    fill(engine, 9)
    oldest, following, *_ = list_segments(tmp_path / "data" / "log")
    assert 0 < oldest <= engine.feed.end - limit < following
    with pytest.raises(ChangesGone, match=f"the log begins at LSN {oldest}, behind this cursor; to begin again, take"):
        engine.feed.read(begin)
    numbers = [int(change.value[:5]) for change in read_on(engine, engine.feed.first())[0] if change.value]
    assert numbers == list(range(numbers[0], 9 * 40))
    engine.close()
    engine = make_engine()
    engine.checkpoint_now()
    assert len(list_segments(tmp_path / "data" / "log")) <= 2, "without the setting nothing is retained"


def test_who_has_read_a_segment_to_its_end_goes_on_when_it_is_deleted(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    begin = engine.feed.first()
    engine.set(b"a", b"")
    engine.set(b"b", b"")
    engine.commit()
    (first, _), end = read_on(engine, begin)
    engine.checkpoint_now()
    assert len(list_segments(tmp_path / "data" / "log")) == 1
    assert read_on(engine, end)[0] == []
    engine.set(b"c", b"")
    engine.commit()
    assert [change.key for change in read_on(engine, end)[0]] == [b"c"]
    for cursor in (begin, first.cursor):
        engine.close()
        engine = make_engine()  # which has nothing of it in memory
        with pytest.raises(ChangesGone, match="the log begins at LSN"):
            engine.feed.read(cursor)


@dataclass
class Clock:
    now: float = 2e9

    def time(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 10**9)


def test_the_log_is_retained_in_seconds(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("merklekv.engine.log.segment.time", clock)
    monkeypatch.setattr("merklekv.engine.log.retention.time", clock)
    engine = make_engine(retain_log_seconds=100)
    fill(engine, 3)
    assert list_segments(tmp_path / "data" / "log")[0] == 0
    clock.now += 50
    fill(engine, 3)
    oldest, *_, recent = list_segments(tmp_path / "data" / "log")
    assert oldest == 0
    clock.now += 60
    fill(engine, 1)
    assert 0 < list_segments(tmp_path / "data" / "log")[0] <= recent
    clock.now -= 10**6
    fill(engine, 1)
    clock.now += 10**6 + 101
    fill(engine, 1)
    assert list_segments(tmp_path / "data" / "log")[0] > recent, "a clock that was set back keeps nothing for ever"


def test_on_a_full_disk_what_readers_need_is_dropped(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(retain_log_bytes=1 << 30)
    fill(engine, 3)
    before = list_segments(tmp_path / "data" / "log")
    assert engine.retention.delete_segments(engine.table.base.checkpoint_lsn, is_full=True)
    assert list_segments(tmp_path / "data" / "log") == before[1:], "one at a time"
    while engine.retention.delete_segments(engine.table.base.checkpoint_lsn, is_full=True):
        pass
    assert list_segments(tmp_path / "data" / "log") == before[-1:]


def test_readers_keep_log_that_the_outbox_has_to_give_up(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(retain_log_bytes=1 << 30, retain_max_bytes=2 * MIN_MEMTABLE_SIZE)
    at = engine.retention.subscribe().lsn
    begin = engine.feed.first()
    fill(engine, 9)
    assert list_segments(tmp_path / "data" / "log")[0] == 0
    assert engine.retention.dropped_lsn > 0
    assert engine.retention.drops_events
    with pytest.raises(LogGone) as gone:
        engine.retention.next_frame(at)
    engine.set(b"k", b"v")
    engine.commit()
    frame = engine.retention.next_frame(gone.value.oldest.lsn)
    assert frame is not None
    assert frame.sequence == gone.value.oldest.sequence
    assert len(read_on(engine, begin)[0]) == 9 * 40 + 1


def test_who_waits_is_woken_once_and_by_a_commit(make_engine: MakeEngine) -> None:
    engine = make_engine()
    woken: list[str] = []
    end = engine.feed.last()
    engine.feed.wait(end, lambda: woken.append("one"))
    take_back = engine.feed.wait(end, lambda: woken.append("taken back"))
    take_back()
    engine.set(b"k", b"v")
    assert woken == []
    engine.commit()
    assert woken == ["one"]
    engine.feed.wait(end, lambda: woken.append("late"))
    assert woken == ["one", "late"], "there is something already"
    engine.feed.wait(engine.feed.last(), lambda: 1 // 0)
    engine.feed.wait(engine.feed.last(), lambda: woken.append("other"))
    engine.set(b"k", b"v")
    engine.commit()
    assert woken[2:] == ["other"], "one that fails keeps no other from being woken, and no commit from being one"
    engine.feed.wait(engine.feed.last(), lambda: woken.append("end"))
    engine.end_waits()
    assert woken[3:] == ["end"]
    engine.feed.wait(engine.feed.last(), lambda: woken.append("at once"))
    assert woken[4:] == ["at once"]


def test_who_waits_is_woken_by_its_keys_alone(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.join()
    engine.commit()
    woken: list[bytes] = []
    prefixes = (b"", b"a", b"ab", b"b", b"x")

    def wait(prefix: bytes) -> Callable[[], Cursor]:
        return engine.feed.wait(engine.feed.last(), lambda: woken.append(prefix), prefix)

    def commit() -> list[bytes]:
        woken.clear()
        engine.commit()
        return sorted(woken)

    ends = {prefix: wait(prefix) for prefix in prefixes}
    engine.put_metadata(b"name", b"")
    assert commit() == [], "what the log does for itself is no change"
    engine.set(b"abc", b"")
    engine.set(b"c", b"")
    assert commit() == [b"", b"a", b"ab"]
    for prefix, count in ((b"", 2), (b"a", 1), (b"ab", 1)):
        assert len(read_on(engine, ends[prefix](), prefix=prefix)[0]) == count
    assert ends[b"b"]() == engine.feed.last()
    wait(b"a")
    engine.merge([(OP_SET, b"x", engines.record(b"x", b"", NOON))], b"n2")
    assert commit() == [b"x"]
    wait(b"x")
    engine.delete(b"x")
    assert commit() == [b"x"]
    engine.truncate()
    assert commit() == [b"a"], "a truncation concerns all"


def test_who_sleeps_is_not_too_late_when_the_log_is_deleted(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.set(b"k", b"")
    engine.commit()
    engine.close()
    engine = make_engine()  # whose process has committed nothing yet
    end = engine.feed.last()
    asleep, woken, stopped = [engine.feed.wait(end, lambda: None, prefix) for prefix in (b"rare", b"rare", b"none")]
    engine.checkpoint_now()
    for number in range(3):
        engine.set(b"k", b"%d" % number)
        engine.commit()
        engine.checkpoint_now()
    assert len(list_segments(engine.directory.log)) == 1
    engine.set(b"k", b"last")
    engine.commit()
    assert asleep() == engine.feed.last()
    engine.set(b"rare", b"")
    engine.commit()
    assert [change.key for change in read_on(engine, woken())[0]] == [b"rare"]
    engine.end_waits()
    assert stopped() == engine.feed.last()


def test_who_sleeps_at_the_end_of_an_earlier_process_outlasts_its_segment(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "RECENT_BYTES", 0)
    engine = make_engine()
    for _ in range(2):
        engine.set(b"k", b"")
        engine.commit()
    engine.close()
    engine = make_engine()
    changes, cursor = read_on(engine, engine.feed.first())
    assert len(changes) == 2
    assert engine.feed.read(engine.feed.first(), 1).more, "and the last frame is not in memory any more"
    end_wait = engine.feed.wait(cursor, lambda: None, b"rare")
    engine.checkpoint_now()
    assert end_wait() == cursor
    assert read_on(engine, cursor) == ([], cursor)
    end_wait = engine.feed.wait(cursor, lambda: None, b"rare")
    for _ in range(2):
        engine.set(b"k", b"")
        engine.commit()
        engine.checkpoint_now()
    assert read_on(engine, end_wait()) == ([], engine.feed.last())


def test_a_large_frame_wakes_those_whom_it_concerns(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "SCANNED_KEYS", 7)
    engine = make_engine()
    end = engine.feed.last()
    woken: set[bytes] = set()
    for number in range(0, 300, 2):
        prefix = b"%d" % number
        engine.feed.wait(end, partial(woken.add, prefix), prefix)
    engine.mset([(b"%d" % number, b"") for number in range(100, 200)])
    engine.commit()
    assert woken == {b"%d" % number for number in (*range(100, 200, 2), *range(10, 20, 2))}
    engine.truncate()
    engine.commit()
    assert len(woken) == 150


def test_a_lack_of_memory_wakes_all(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    woken: list[bytes] = []
    ends = {
        prefix: engine.feed.wait(engine.feed.last(), partial(woken.append, prefix), prefix) for prefix in (b"a", b"b")
    }
    engine.set(b"a", b"")

    def fail(*arguments: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("merklekv.engine.prefixes.Prefixes.matching", fail)
        engine.commit()
    assert sorted(woken) == [b"a", b"b"]
    for prefix, end in ends.items():
        assert [change.key for change in read_on(engine, end(), prefix=prefix)[0]] == [b"a"] * (prefix == b"a")


def test_many_threads_follow_one_that_writes(make_engine: MakeEngine, switching: None) -> None:
    engine = make_engine(retain_log_bytes=1 << 30)
    begin = engine.feed.first()
    written = [(b"other" if number % 6 < 3 else b"k", b"%d" % number) for number in range(1200)]
    prefixes = [b"", b"", b"k", b"k", b"o"]
    expected = [[value for key, value in written if key.startswith(prefix)] for prefix in prefixes]
    found: list[list[bytes | None]] = [[] for _ in prefixes]

    def follow(prefix: bytes, values: list[bytes | None], count: int) -> None:
        cursor = begin
        while len(values) < count:
            page = engine.feed.read(cursor, 7, prefix=prefix)
            values += [change.value for change in page.changes]
            cursor = page.cursor
            if not page.more and len(values) < count:
                ready = threading.Event()
                end_wait = engine.feed.wait(cursor, ready.set, prefix)
                ready.wait(0.0001 if len(values) % 2 else 60)
                cursor = end_wait()

    threads = [
        threading.Thread(target=follow, args=(prefix, values, len(whole)))
        for prefix, values, whole in zip(prefixes, found, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for number, (key, value) in enumerate(written):
        engine.set(key, value)
        if number % 3 == 2:
            engine.commit()
        if number % 200 == 199:
            engine.checkpoint_now()
    for thread in threads:
        thread.join(60)
    assert found == expected


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
