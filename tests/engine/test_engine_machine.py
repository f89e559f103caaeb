"""The engine as a state machine against a plain dict: all verbs, with freeze, checkpoint, reopen and crash as steps.

The model is a dict of raw records, a truncation version, a GC horizon, and whether the node is lone.  A crash keeps a
copy of the directory as it is on disk, and cuts the newest segment anywhere behind what was synced; the model remembers
what stood at each commit since, and one of those states, whole, has to be there.  With `always` that is the last one.

Invariants: after each step the checker finds nothing and the verbs answer as the model does; in the end neither does it
in the closed directory.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
from fixtures import engines
from fixtures.engines import DRIFT_NS, Wall
from fixtures.support import no_room
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from merklekv.engine.engine import Engine
from merklekv.engine.format import OP_SET, OP_SETRANGE
from merklekv.engine.options import Durability
from merklekv.engine.record import expiry_of, is_expired, is_tombstone, value_of, version_of
from merklekv.engine.time_gate import MAX_TRUNCATION_AHEAD_S
from merklekv.engine.tombstone_gc import EXPIRY_GRACE_NS, is_long_expired
from merklekv.engine.verify.check import check_directory, check_engine
from merklekv.errors import DiskFull, NotANumber, NumberOverflow, Stalled

T = TypeVar("T")
Model = tuple[dict[bytes, bytes], bytes, int, bool]  # records, truncation version, GC horizon, is lone

KEYS = [b"a", b"b", b"ab", b"\x00", b"\xff" * 511]
keys = st.sampled_from(KEYS)
numbers = st.integers(-3, 3) | st.sampled_from([2**63 - 1, -(2**63)])
expiries = st.sampled_from([None, -(10**9), -1, 0, 1, 500, 1001, 3_600_001, 10**9])  # ms from now on
values = st.binary(max_size=6) | numbers.map(lambda number: b"%d" % number) | st.just(b"x" * 20_000)


class EngineMachine(RuleBasedStateMachine):
    """See above."""

    versions = Bundle("versions")  # of records that were there: a merge may bring them again

    @initialize(durability=st.sampled_from(["always", "everysec", "never"]))
    def open(self, durability: Durability) -> None:
        self.root_directory = Path(tempfile.mkdtemp(dir=engines.MEMORY, prefix="merklekv-test-"))
        self.generation = 0
        self.durability = durability
        self.wall = Wall()
        self.records: dict[bytes, bytes] = {}
        self.purged: dict[bytes, bytes] = {}  # what was there, and may come again, or something older
        self.truncation = bytes(24)
        self.gc_horizon = 0
        self.is_lone = True
        self._open()

    def _open(self) -> None:
        path = self.root_directory / str(self.generation)
        self.engine: Engine = engines.open_engine(path, durability=self.durability, wall_clock=self.wall)
        self.since_segment = [self._state()]  # states that a crash may go back to
        self.segment = self.engine.log.lsn

    def _state(self) -> Model:
        return dict(self.records), self.truncation, self.gc_horizon, self.is_lone

    def _found(self) -> Model:
        engine = self.engine
        return engines.everything(engine), engine.truncation, engine.gc_horizon, engine.is_lone

    def _restored(self) -> Model:
        found = self._found()
        self.records, self.truncation, self.gc_horizon, self.is_lone = dict(found[0]), *found[1:]
        return found

    # -- the verbs -----------------------------------------------------------------------------------------------------

    def write(self, verb: Callable[[], T]) -> T:
        """Does it; when writes are stalled, makes a checkpoint and does it again."""
        try:
            return verb()
        except Stalled:
            before = self.engine.log.appended
            self.engine.checkpoint_now()
            assert self.engine.log.appended == before
            self._committed()
            return verb()

    def took(self, key: bytes, value: bytes | None, expiry: int | None = None) -> None:
        """A local write has put this in place of what was there."""
        record = self.engine.record(key)
        assert record is not None
        assert version_of(record) > version_of(self.records.get(key, self.truncation))
        assert int.from_bytes(record[:8], "big") > self.gc_horizon
        assert value_of(record) == (value or b"")
        assert is_tombstone(record) == (value is None)
        assert expiry_of(record) == expiry
        self.records[key] = record

    def value(self, key: bytes) -> bytes | None:
        record = self.records.get(key)
        if record is None or is_tombstone(record) or is_expired(record, self.wall.now):
            return None
        return value_of(record)

    def expiry(self, key: bytes) -> int | None:
        """What a change of the value keeps."""
        return None if self.value(key) is None else expiry_of(self.records[key])

    @rule(key=keys, value=values, after_ms=expiries)
    def set(self, key: bytes, value: bytes, after_ms: int | None) -> None:
        expiry = self.in_ms(after_ms)
        self.write(lambda: self.engine.set(key, value, expiry))
        self.took(key, value, expiry)

    def in_ms(self, after_ms: int | None) -> int | None:
        return None if after_ms is None else max(1, self.wall.now // 10**6 + after_ms)

    @rule(key=keys, after_ms=expiries)
    def set_expiry(self, key: bytes, after_ms: int | None) -> None:
        expiry, value = self.in_ms(after_ms), self.value(key)
        before = self.engine.log.appended
        done = self.write(lambda: self.engine.persist(key) if expiry is None else self.engine.expire(key, expiry))
        assert done == (value is not None)
        if done:
            self.took(key, value, expiry)
        else:
            assert self.engine.log.appended == before

    @rule(key=keys, value=values)
    def change(self, key: bytes, value: bytes) -> None:
        expiry = self.expiry(key)
        self.write(lambda: self.engine.change(OP_SETRANGE, key, value))
        self.took(key, value, expiry)

    @rule(enough=st.booleans())
    def expire(self, enough: bool) -> None:
        while self.write(self.engine.collect_expired) and enough:
            pass
        horizon = self.wall.now + EXPIRY_GRACE_NS if self.is_lone else self.gc_horizon
        for key, record in list(self.records.items()):
            if not is_long_expired(record, horizon):
                assert self.engine.record(key) == record
            elif is_expired(record, self.wall.now) and enough and len(self.engine.table.frozen) < 2:
                assert self.engine.record(key) is None
            if self.engine.record(key) is None:
                self.purged[key] = self.records.pop(key)
        if enough and self.engine.root_ready:
            assert self.engine.key_count <= len([key for key in self.records if self.value(key) is not None])

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        there = self.value(key) is not None
        assert self.write(lambda: self.engine.delete(key)) == there
        if there:
            self.deleted(key)

    def deleted(self, key: bytes) -> None:
        if self.is_lone:
            self.purged[key] = self.records.pop(key)
        else:
            self.took(key, None)

    @rule()
    def join(self) -> None:
        self.write(self.engine.join)
        self.is_lone = False

    @rule(key=keys, amount=numbers)
    def increment(self, key: bytes, amount: int) -> None:
        text, expiry = self.value(key), self.expiry(key)
        before = self.engine.log.appended
        try:
            found = self.write(lambda: self.engine.increment(key, amount))
        except NotANumber:
            assert text is not None
            assert not _is_number(text)
            assert self.engine.log.appended == before
        except NumberOverflow:
            assert not -(2**63) <= int(text or b"0") + amount < 2**63
            assert self.engine.log.appended == before
        else:
            assert found == int(b"0" if text is None else text) + amount
            self.took(key, b"%d" % found, expiry)

    @rule(some=st.lists(keys, min_size=1, max_size=5), amount=numbers)
    def increment_batch(self, some: list[bytes], amount: int) -> None:
        totals: list[int] = []
        last: dict[bytes, int] = {}
        for key in some:
            text = b"%d" % last[key] if key in last else self.value(key) or b"0"
            is_taken = self.expiry(key) is None and self.value(key) != b"" and _is_number(text)
            if not is_taken or not -(2**63) <= int(text) + amount < 2**63:
                break
            last[key] = int(text) + amount
            totals.append(last[key])
        found = self.engine.increment_batch(some, amount)
        if found != totals:
            assert found == []
            assert self.engine.gate.stalled
            return
        for key, total in last.items():
            self.took(key, b"%d" % total)

    @rule(key=keys, value=values, before=st.booleans())
    def extend(self, key: bytes, value: bytes, before: bool) -> None:
        old, expiry = self.value(key) or b"", self.expiry(key)
        new = value + old if before else old + value
        verb = self.engine.prepend if before else self.engine.append
        assert self.write(lambda: verb(key, value)) == new
        self.took(key, new, expiry)

    @rule(key=keys, new_key=keys)
    def rename(self, key: bytes, new_key: bytes) -> None:
        value, expiry = self.value(key), self.expiry(key)
        assert self.write(lambda: self.engine.rename(key, new_key)) is (value is not None)
        if value is not None and key != new_key:
            self.deleted(key)
            self.took(new_key, value, expiry)

    @rule(pairs=st.lists(st.tuples(keys, values), max_size=4))
    def mset(self, pairs: list[tuple[bytes, bytes]]) -> None:
        self.write(lambda: self.engine.mset(pairs))
        for key, value in dict(pairs).items():
            self.took(key, value)

    @rule(pairs=st.lists(st.tuples(keys, values), max_size=4))
    def set_batch(self, pairs: list[tuple[bytes, bytes]]) -> None:
        stored = self.engine.set_batch([(b"SET", *pair) for pair in pairs])
        assert stored == len(pairs) or self.engine.gate.stalled
        for key, value in dict(pairs[:stored]).items():
            self.took(key, value)

    @rule()
    def truncate(self) -> None:
        self.write(self.engine.truncate)
        before, self.truncation = self.truncation, self.engine.truncation
        assert self.truncation > before
        for key, old in list(self.records.items()):
            if old < self.truncation:
                del self.records[key]
            else:  # too far in the future for a truncation above it
                assert int.from_bytes(old[:8], "big") > self.wall.now
                assert self.engine.get(key) is None
                if self.is_lone and not is_tombstone(old):
                    del self.records[key]
                    continue
                self.records[key] = self.engine.record(key) or b""
                assert is_tombstone(self.records[key])
                assert version_of(self.records[key]) >= version_of(old)

    @rule(
        target=versions,
        key=keys,
        value=st.none() | values,
        offset=st.integers(-5, 5),
        op=st.integers(0, 2),
        after_ms=expiries,
    )
    def merge_beside_what_is_there(
        self, key: bytes, value: bytes | None, offset: int, op: int, after_ms: int | None
    ) -> tuple[bytes, bytes]:
        """A record from elsewhere, a little older or newer than ours."""
        shown = self.records.get(key, self.purged.get(key, self.truncation))
        ts = max(1, int.from_bytes(shown[:8], "big") + offset if any(shown[:8]) else self.wall.now + offset)
        expiry = None if value is None else self.in_ms(after_ms)
        record = engines.record(key, value, ts, op << 96 | offset + 5, expiry)
        self._merge(key, record)
        return key, record

    @rule(known=versions, stable=st.booleans())
    def merge_again(self, known: tuple[bytes, bytes], stable: bool) -> None:
        self._merge(*known, stable)

    def _merge(self, key: bytes, record: bytes, stable: bool = False) -> None:
        shown = self.records.get(key)
        result = self.write(lambda: self.engine.merge([(OP_SET, key, record)], b"elsewhere", stable=stable))
        applied, superseded, refused = result
        below = int.from_bytes(record[:8], "big") <= self.gc_horizon
        is_gone = is_tombstone(record) or is_long_expired(record, self.gc_horizon)
        if int.from_bytes(record[:8], "big") > self.wall.now + DRIFT_NS:
            assert (applied, superseded, refused) == (0, 0, [(key, "clock")])
        elif record < self.truncation or (shown is not None and version_of(record) <= version_of(shown)):
            conflict = shown is not None and version_of(record) == version_of(shown) and record != shown
            assert (applied, superseded, refused) == ((0, 0, [(key, "conflict")]) if conflict else (0, 1, []))
        elif below and (is_gone or not stable):  # no event from below the horizon changes anything
            kept_out = (0, 0, [(key, "stable")])
            assert (applied, superseded, refused) in ([kept_out] if shown else [kept_out, (0, 1, [])])
        elif shown is None and below and not applied:
            assert (superseded, refused) == (1, [])  # what was removed here is still remembered, and was newer
        else:
            assert (applied, superseded, refused) == (1, 0, [])
            self.records[key] = record

    @rule(key=keys, offset=st.integers(-1, 1))
    def raise_gc_horizon(self, key: bytes, offset: int) -> None:
        """All nodes have got as far as one of our records."""
        gc_horizon = int.from_bytes(self.records.get(key, self.truncation)[:8], "big") + offset
        assert self.engine.raise_gc_horizon(gc_horizon) == (gc_horizon > self.gc_horizon)
        self.gc_horizon = max(gc_horizon, self.gc_horizon)

    @rule(limit=st.integers(1, 4), enough=st.booleans())
    def collect(self, limit: int, enough: bool) -> None:
        while self.write(lambda: self.engine.collect_tombstones(limit)) and enough:
            pass
        for key, record in list(self.records.items()):
            if is_tombstone(record) and (self.is_lone or int.from_bytes(record[:8], "big") <= self.gc_horizon):
                assert not enough or self.engine.record(key) is None
                if self.engine.record(key) is None:
                    self.purged[key] = self.records.pop(key)

    @rule(key=keys, offset=st.integers(-1, 1))
    def merge_truncation(self, key: bytes, offset: int) -> None:
        """A truncation version from elsewhere, which spares what is newer."""
        ts = int.from_bytes(self.records.get(key, self.truncation)[:8], "big") + offset
        truncation = engines.version(max(ts, 0))
        raised = self.write(lambda: self.engine.merge_truncation(truncation, b"elsewhere"))
        assert raised == (truncation > self.truncation and ts <= self.wall.now + MAX_TRUNCATION_AHEAD_S * 10**9)
        if raised:
            self.truncation = truncation
            self.records = {key: record for key, record in self.records.items() if record >= truncation}

    # -- what happens to it --------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, -0.001, 1, 3600, -1, -3600, 2 * 86400, -2 * 86400]))
    def move_the_wall_clock(self, seconds: float) -> None:
        self.wall.now += int(seconds * 10**9)

    @rule()
    def commit(self) -> None:
        self.engine.commit()
        self._committed()

    def _committed(self) -> None:
        if self.engine.log.lsn != self.segment:  # what is sealed is synced
            self.segment = self.engine.log.lsn
            self.since_segment = []
        self.since_segment.append(self._state())

    @rule()
    def freeze(self) -> None:
        engines.freeze(self.engine)
        self._committed()

    @rule()
    def checkpoint(self) -> None:
        self.engine.checkpoint_now()
        self._committed()

    @rule()
    def compact(self) -> None:
        self.engine.compact_now(lambda done, total: None)
        self._committed()

    @rule(part=st.floats(0, 1))
    def no_room(self, part: float) -> None:
        """The disk takes only a part of the next frame, so what was not committed is gone; then there is room again."""
        if self.engine.log.appended == self.engine.commits.committed:
            return
        with no_room(part):
            with pytest.raises(DiskFull, match="disk full, write not stored"):
                self.engine.commit()
            with pytest.raises(DiskFull):
                self.engine.set(b"a", b"")
        assert self._restored() == self.since_segment[-1]
        self.engine.commit()

    @rule()
    def reopen(self) -> None:
        self.engine.close()
        self._open()

    @rule(chance=st.floats(0, 1), commits=st.integers(0, 9))
    def crash(self, chance: float, commits: int) -> None:
        """The process dies, and with it what the kernel had not put on disk; its child so many commits later."""
        if commits:
            self.freeze()  # so that there is something to merge
        log = self.engine.log
        written, synced = log.position, max(48, log.synced_lsn - log.lsn)
        self.generation += 1
        copy = self.root_directory / str(self.generation)
        shutil.copytree(self.engine.directory.path, copy)
        self._discard()
        if self.durability == "always":
            allowed = self.since_segment[-1:]
        else:
            with (copy / "log" / f"{self.segment:020d}.log").open("r+b") as file:
                file.truncate(synced + int(chance * (written - synced)))
            allowed = self.since_segment
        with engines.small_transactions(2), engines.cut_after(commits), suppress(engines.Cut):
            if commits:
                engines.checkpoint_all(copy)
        assert check_directory(copy) == []
        self.engine = engines.open_engine(copy, durability=self.durability, wall_clock=self.wall)
        found = self._restored()
        assert found in allowed
        self.since_segment = [found]
        self.segment = self.engine.log.lsn

    def _discard(self) -> None:
        """Closes the engine that was killed; its directory is not opened again."""
        self.engine.close()
        shutil.rmtree(self.engine.directory.path)

    # -- what must hold ------------------------------------------------------------------------------------------------

    @invariant()
    def is_sound(self) -> None:
        assert check_engine(self.engine) == []

    @invariant()
    def answers_as_the_model(self) -> None:
        live = [key for key in sorted(self.records) if self.value(key) is not None]
        for key in KEYS:
            assert self.engine.record(key) == self.records.get(key)
            assert self.engine.get(key) == self.value(key)
            assert self.engine.exists(key) == (key in live)
        assert self._found()[1:] == (self.truncation, self.gc_horizon, self.is_lone)
        if self.engine.root_ready:
            dead = sum(map(is_tombstone, self.records.values()))
            assert (self.engine.live_count, self.engine.tombstone_count) == (len(self.records) - dead, dead)
            found = self.engine.random_key()
            assert found in live if found is not None else not live or self.engine.table.expired_count

    @rule(prefix=st.sampled_from([b"", b"a", b"\xff"]), limit=st.integers(1, 6))
    def scan(self, prefix: bytes, limit: int) -> None:
        found: list[bytes] = []
        after: bytes | None = b""
        while after is not None:
            page, after = self.engine.page(prefix, after, limit)
            found += page
        assert found == [key for key in sorted(self.records) if key.startswith(prefix) and self.value(key) is not None]
        assert engines.everything(self.engine) == self.records

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        path = self.engine.directory.path
        self.engine.close()
        try:
            assert check_directory(path) == []
        finally:
            shutil.rmtree(self.root_directory)


def _is_number(text: bytes) -> bool:
    try:
        return text == b"%d" % int(text) and -(2**63) <= int(text) < 2**63
    except ValueError:
        return False


TestEngineMachine = EngineMachine.TestCase
