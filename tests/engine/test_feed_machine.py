"""Followers of the change feed beside an engine that commits, rotates its log, checkpoints, rolls back, is killed, and
is opened again.

The model is the list of all changes in the order of the verbs, each in it once its frame is committed.  A follower
reads some of it, at some time, and has to get exactly what comes next: nothing missed, nothing twice, nothing that was
rolled back.  It begins again only where the log is gone: dropped by retention, or cut back by a power cut.

Some followers are blocked: they have read everything, and wait.  A commit wakes exactly those that it has a change for.
Retention drops what the others sleep through, and they go on all the same.

Invariant: what a follower makes of the changes, beginning with all records, is what the engine has.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures import engines
from fixtures.engines import Wall
from fixtures.support import no_room
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from merklekv.engine import feed as feed_module
from merklekv.engine.engine import Engine
from merklekv.engine.feed import Change, Cursor, Page
from merklekv.engine.format import OP_DEL, OP_SET
from merklekv.engine.log.segment import LogFrame, list_segments
from merklekv.engine.options import Durability
from merklekv.engine.record import is_live, value_of, version_of
from merklekv.engine.verify.check import check_directory
from merklekv.errors import ChangesGone, DiskFull, Stalled

KEYS = [b"a", b"b", b"ab", b"\x00", b"\xff"]
PREFIXES = [b"", b"", b"a", b"ab", b"\xff"]  # of the followers
keys = st.sampled_from(KEYS)
followers = st.integers(0, len(PREFIXES) - 1)
values = st.binary(max_size=6) | st.just(b"x" * 20_000)
Expected = tuple[bytes | None, str, bytes | None, str, int | None]  # key, op, value, origin, expiry


def shown(change: Change) -> Expected:
    return change.key, change.op, change.value, change.origin, change.expiry


@dataclass
class Wait:
    """What a blocked follower waits with."""

    end: Callable[[], Cursor]
    woken: list[bool]
    due: int | None = None  # LSN of the first frame with a change for it


class Follower:
    """Who reads: a cursor, how much of the model is behind it, and what the changes have led to."""

    def __init__(self, engine: Engine, prefix: bytes, read: int) -> None:
        self.prefix = prefix
        self.read = read
        self.is_at_end = False
        self.begin(engine, read)

    def begin(self, engine: Engine, read: int) -> None:
        """As the error says: the cursor of the end, then all records."""
        self.cursor = engine.feed.last()
        self.read = read
        records = engines.everything(engine)
        self.state = {
            key: (version_of(record), value_of(record))
            for key, record in records.items()
            if is_live(record) and key.startswith(self.prefix)
        }

    def selects(self, change: Expected) -> bool:
        return change[0] is None or change[0].startswith(self.prefix)

    def apply(self, change: Change) -> None:
        if change.key is None:
            self.state = {key: one for key, one in self.state.items() if one[0] >= change.version}
        elif change.value is None:
            before = self.state.pop(change.key, None)
            assert before is None or change.version > before[0]
        else:
            self.state[change.key] = change.version, change.value


class FeedMachine(RuleBasedStateMachine):
    """See above."""

    @initialize(
        durability=st.sampled_from(["always", "everysec", "never"]),
        retain=st.sampled_from([(0, 0.0), (200_000, 0.0), (0, 3600.0)]),
        slice_entries=st.sampled_from([1, 3, 1000]),
    )
    def open(self, durability: Durability, retain: tuple[int, float], slice_entries: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(feed_module, "SLICE_ENTRIES", slice_entries)
        self.root_directory = Path(tempfile.mkdtemp(dir=engines.MEMORY, prefix="merklekv-test-"))
        self.generation = 0
        self.durability, self.retain = durability, retain
        self.wall = Wall()
        self.changes: list[Expected] = []  # committed
        self.pending: list[Expected] = []
        self.blocked: dict[int, Wait] = {}  # by number of the follower
        self.ends: dict[int, int] = {}  # how many changes are before this LSN, for each end of a frame
        self._open()
        self.ends[self.engine.retention.end.lsn] = 0
        self.followers = [Follower(self.engine, prefix, 0) for prefix in PREFIXES]
        self.followers[0].cursor = self.engine.feed.first()

    def _open(self) -> None:
        path = self.root_directory / str(self.generation)
        self.engine: Engine = engines.open_engine(
            path,
            durability=self.durability,
            wall_clock=self.wall,
            retain_log_bytes=self.retain[0],
            retain_log_seconds=self.retain[1],
        )
        self.begun = self.engine.feed.end
        real = self.engine.commits.on_committed

        def on_committed(frame: LogFrame) -> None:
            for number, wait in self.blocked.items():
                if wait.due is None and any(map(self.followers[number].selects, self.pending)):
                    wait.due = frame.start
            self.changes += self.pending
            self.pending.clear()
            self.ends[frame.end] = len(self.changes)
            real(frame)
            assert all(wait.woken == [True] * (wait.due is not None) for wait in self.blocked.values())

        self.engine.commits.on_committed = on_committed

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        if self.engine.makes_wait:
            self.engine.checkpoint_now()

    def _change(self, key: bytes | None, op: str, value: bytes | None, origin: str = "") -> None:
        expiry = None if key is None or value is None else self.engine.expiry(key)
        self.pending.append((key, op, value, origin, expiry))

    @rule(key=keys, value=values, expires_in=st.none() | st.integers(1, 10))
    def set(self, key: bytes, value: bytes, expires_in: int | None = None) -> None:
        expiry = None if expires_in is None else self.wall.now // 10**6 + 3_600_000 * expires_in
        self._make_room()
        self.engine.set(key, value, expiry)
        self._change(key, "set", value)

    @rule(key=keys)
    def persist(self, key: bytes) -> None:
        self._make_room()
        if self.engine.persist(key):
            self._change(key, "persist", self.engine.get(key))

    @rule(pairs=st.lists(st.tuples(keys, values), min_size=1, max_size=4))
    def mset(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self._make_room()
        self.engine.mset(pairs)
        for key, value in pairs:
            self._change(key, "set", value)

    @rule(key=keys, value=values)
    def append(self, key: bytes, value: bytes) -> None:
        self._make_room()
        whole = self.engine.append(key, value)
        self._change(key, "append", whole)

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        self._make_room()
        if self.engine.delete(key):
            self._change(key, "del", None)

    @rule(key=keys, value=st.none() | values, later=st.integers(-5, 5), origin=st.sampled_from(["n1", "n2"]))
    def merge(self, key: bytes, value: bytes | None, later: int, origin: str) -> None:
        record = engines.record(key, value, self.wall.now + later, later + 5)
        op = OP_SET if value is not None else OP_DEL
        self._make_room()
        if self.engine.merge([(op, key, record)], origin.encode()).applied:
            self._change(key, "set" if value is not None else "del", value, origin)

    @rule()
    def truncate(self) -> None:
        self._make_room()
        self.engine.truncate()
        self._change(None, "truncate", None)

    @rule()
    def join(self) -> None:
        self._make_room()
        self.engine.join()

    @rule()
    def collect(self) -> None:
        self._make_room()
        self.engine.raise_gc_horizon(self.wall.now - 1)
        with suppress(Stalled):
            self.engine.collect_tombstones()

    # -- what happens to it --------------------------------------------------------------------------------------------

    @rule()
    def tick(self) -> None:
        self.wall.now += 10**9

    @rule()
    def commit(self) -> None:
        self.engine.commit()

    @rule()
    def checkpoint(self) -> None:
        self.engine.commit()
        self.engine.checkpoint_now()

    @rule()
    def rotate(self) -> None:
        self.engine.commit()
        if not self.engine.log.is_empty:  # no segment is without a frame
            engines.freeze(self.engine)

    @rule(part=st.floats(0, 1))
    def no_room(self, part: float) -> None:
        if self.engine.log.appended == self.engine.commits.committed:
            return
        with no_room(part), pytest.raises(DiskFull, match="disk full, write not stored"):
            self.engine.commit()
        self.pending.clear()
        self.engine.commit()

    @rule()
    def reopen(self) -> None:
        blocked, self.blocked = self.blocked, {}
        self.engine.close()
        for number, wait in blocked.items():
            assert wait.woken == [True], "nobody waits any more"
            self.followers[number].cursor = wait.end()
        assert not self.pending
        self._open()
        self.ends[self.engine.retention.end.lsn] = len(self.changes)  # a close may write one more frame

    @rule(chance=st.floats(0, 1))
    def crash(self, chance: float) -> None:
        """The process dies, and with it what the kernel had not put on disk: with `always` nothing."""
        log = self.engine.log
        written, synced, segment = log.position, max(48, log.synced_lsn - log.lsn), log.lsn
        self.generation += 1
        copy = self.root_directory / str(self.generation)
        shutil.copytree(self.engine.directory.path, copy)
        committed, ends = len(self.changes), dict(self.ends)
        self.blocked.clear()
        self.engine.close()
        shutil.rmtree(self.engine.directory.path)
        del self.changes[committed:]
        self.ends = ends
        self.pending.clear()
        if self.durability != "always":
            with (copy / "log" / f"{segment:020d}.log").open("r+b") as file:
                file.truncate(synced + int(chance * (written - synced)))
        self._open()
        end = self.engine.retention.end.lsn
        kept = self.ends.get(end, 0)
        if self.durability == "always":
            assert kept == committed
        del self.changes[kept:]
        self.ends = {lsn: count for lsn, count in self.ends.items() if lsn <= end}
        for follower in self.followers:
            if follower.cursor.end > end:
                with pytest.raises(ChangesGone):
                    self.engine.feed.read(follower.cursor)
                follower.begin(self.engine, kept)
            assert follower.read <= kept

    # -- following -----------------------------------------------------------------------------------------------------

    @rule(number=followers, limit=st.integers(1, 5), pages=st.integers(1, 4), through_text=st.booleans())
    def follow(self, number: int, limit: int, pages: int, through_text: bool) -> None:
        self.end_wait(number)
        follower = self.followers[number]
        for _ in range(pages):
            if through_text:
                follower.cursor = Cursor.parse(str(follower.cursor))
            try:
                page = self.engine.feed.read(follower.cursor, limit, prefix=follower.prefix)
            except ChangesGone:
                oldest = list_segments(self.engine.directory.path / "log")[0]
                if not oldest == follower.cursor.end <= self.begun:  # of an earlier process: nothing vouches for it
                    assert follower.cursor.start < oldest
                    assert follower.cursor.end < oldest or follower.cursor.left or not follower.cursor.size
                self.engine.commit()
                follower.begin(self.engine, len(self.changes))
                return
            assert len(page.changes) <= limit
            follower.cursor = page.cursor
            for change in page.changes:
                while not follower.selects(self.changes[follower.read]):
                    follower.read += 1
                assert shown(change) == self.changes[follower.read]
                follower.read += 1
                follower.apply(change)
            if not page.more:
                assert not any(map(follower.selects, self.changes[follower.read :]))
                follower.read = len(self.changes)
                return

    @rule(number=followers)
    def end_wait(self, number: int) -> None:
        """It gets what has woken it, or its time is over."""
        wait = self.blocked.pop(number, None)
        if wait is None:
            return
        follower = self.followers[number]
        follower.cursor = wait.end()
        assert follower.cursor == wait.end()
        if wait.due is None or wait.due >= list_segments(self.engine.directory.path / "log")[0]:
            page = Page([], follower.cursor, True)
            while page.more and not page.changes:  # what it has slept through is not gone for it
                page = self.engine.feed.read(page.cursor, prefix=follower.prefix)
            assert bool(page.changes) == (wait.due is not None)

    @rule(number=followers)
    def block(self, number: int) -> None:
        self._read_to_the_end(number)
        woken: list[bool] = []
        follower = self.followers[number]
        self.blocked[number] = Wait(
            self.engine.feed.wait(follower.cursor, lambda: woken.append(True), follower.prefix), woken
        )
        assert not woken

    @rule(number=st.integers(2, len(PREFIXES) - 1), checkpoints=st.integers(1, 3), ends=st.booleans())
    def sleep_through(self, number: int, checkpoints: int, ends: bool) -> None:
        """It waits while other keys are written, and the log with them may be dropped; then for a change, or not."""
        self.block(number)
        for _ in range(checkpoints):
            self.set(b"b", b"")
            self.checkpoint()
        self.set(b"\x00", b"")
        self.commit()
        if not ends:
            self.set(PREFIXES[number] + b"x", b"")
            self.commit()
        self.end_wait(number)

    def _read_to_the_end(self, number: int) -> None:
        self.engine.commit()
        follower = self.followers[number]
        self.end_wait(number)
        while self.engine.feed.end > follower.cursor.end or follower.cursor.left:
            self.follow(number, 1000, 1, False)

    @rule(number=followers)
    def follow_to_the_end(self, number: int) -> None:
        self._read_to_the_end(number)
        follower = self.followers[number]
        records = engines.everything(self.engine)
        live = {key: value_of(record) for key, record in records.items() if is_live(record)}
        found = {key: value for key, (_, value) in follower.state.items()}
        assert found == {key: value for key, value in live.items() if key.startswith(follower.prefix)}

    @invariant()
    def no_follower_is_ahead(self) -> None:
        for follower in self.followers if hasattr(self, "followers") else ():
            assert follower.read <= len(self.changes)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        self.patch.undo()
        self.blocked.clear()
        path = self.engine.directory.path
        with suppress(DiskFull):
            self.engine.close()
        try:
            assert check_directory(path) == []
        finally:
            shutil.rmtree(self.root_directory)


TestFeedMachine = FeedMachine.TestCase
