"""A count of the memtables beside anything else ends in the leaves and counters that the reference computes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import pytest
from fixtures import engines
from fixtures.counts import KEYS, ROOMY, held_back, killed_with_a_log
from fixtures.engines import NOON, Wall
from fixtures.support import run_out_of_room, wait_until
from hypothesis import given
from hypothesis import strategies as st

import merklekv
from merklekv.engine import count as count_module
from merklekv.engine import table as table_module
from merklekv.engine import tree_upkeep
from merklekv.engine.base.reader import Base
from merklekv.engine.engine import Engine
from merklekv.engine.format import OP_DEL, OP_SET
from merklekv.engine.record import is_tombstone, timestamp_of
from merklekv.engine.tree_upkeep import IDLE_S, PAUSE_S, TreeUpkeep
from merklekv.engine.verify.check import check_engine
from merklekv.engine.verify.scrub import Scrub
from merklekv.errors import MerkleKVError, Stalled, StorageFailed

PEER = b"peer"


@contextmanager
def in_small_parts() -> Iterator[None]:
    """Every count is left to the thread, and looks at one key at a time."""
    with mock.patch.object(count_module, "BLOCK_KEYS", 1), mock.patch.object(table_module, "COUNTED_AT_ONCE", 0):
        yield


# -- whatever comes meanwhile ------------------------------------------------------------------------------------------


def key_of(number: int) -> bytes:
    return b"k%d" % number


def merge(engine: Engine, number: int, value: bytes | None, offset: int) -> None:
    """A record of a peer, a little older or newer than ours."""
    key = key_of(number)
    old = engine.record(key)
    ts = timestamp_of(old) + offset if old else NOON - 10 + offset
    op = OP_DEL if value is None else OP_SET
    engine.merge([(op, key, engines.record(key, value, ts, number + 1))], PEER)


def purge(engine: Engine) -> None:
    """Removes all tombstones."""
    dead = [record for record in engines.everything(engine).values() if is_tombstone(record)]
    if dead:
        engine.raise_gc_horizon(max(map(timestamp_of, dead)))
        while engine.collect_tombstones():
            pass


def truncate_part(engine: Engine, number: int) -> None:
    """Deletes what is older than a key, so that a checkpoint has to sweep the base."""
    record = engine.record(key_of(number))
    if record is not None:
        engine.merge_truncation(engines.version(timestamp_of(record)), PEER)


def rebuild(engine: Engine) -> None:
    with engine.lock:
        engine.table.rebuild(engine.table.base.pinned())


def checkpoint(engine: Engine) -> None:
    """Moves what is there into the base, in the checkpoint process."""
    wait_until(lambda: not engine.table.frozen, what="room for another memtable")
    engines.freeze(engine)
    wait_until(lambda: not engine.table.frozen, what="the checkpoint")


STEPS: dict[str, Callable[[Engine, int], object]] = {
    "set": lambda engine, number: engine.set(key_of(number), b"v%d" % number),
    "set again": lambda engine, number: engine.set(key_of(number), b""),
    "delete": lambda engine, number: engine.delete(key_of(number)),
    "merge an older": lambda engine, number: merge(engine, number, b"older", -5),
    "merge a newer": lambda engine, number: merge(engine, number, b"newer", 5),
    "merge a tombstone": lambda engine, number: merge(engine, number, None, 5),
    "purge": lambda engine, number: purge(engine),
    "truncate": lambda engine, number: engine.truncate(),
    "truncate a part": truncate_part,
    "commit": lambda engine, number: engine.commit(),
    "roll back": lambda engine, number: run_out_of_room(engine),
    "freeze": lambda engine, number: engines.freeze(engine),
    "checkpoint": lambda engine, number: checkpoint(engine),
    "count anew": lambda engine, number: rebuild(engine),
}
WRITES = ["set", "set again", "delete", "merge a newer", "merge a tombstone"]
steps = st.lists(st.tuples(st.sampled_from([*STEPS, *WRITES, *WRITES]), st.integers(0, 9)), max_size=25)


@given(steps, steps)
def test_a_count_beside_anything_ends_as_the_reference(
    before: list[tuple[str, int]], beside: list[tuple[str, int]]
) -> None:
    with engines.directory() as path, in_small_parts():
        with engines.engine_in(path, checkpoint="process") as engine:
            engine.upkeep.worker.stop()  # this test is the thread
            for name, number in [("set", 0), *before]:
                STEPS[name](engine, number)
            rebuild(engine)
            rest = iter(beside)

            def step() -> bool:
                for name, number in rest:
                    STEPS[name](engine, number)
                    with engine.lock:
                        real = len(engines.everything(engine))
                        assert engine.records_max == real if engine.root_ready else engine.records_max >= real
                    return True
                return False

            more = True
            while more:
                engine.table.count_in(lambda: step() or True)
                more = step()
                assert engine.is_counting or check_engine(engine) == []
            checkpoint(engine)  # it sweeps the base
            while not engine.root_ready:
                engine.table.count_in(lambda: True)
            root = engine.root(), engine.live_count, engine.tombstone_count
        with engines.engine_in(path) as again:  # counted at once
            assert (again.root(), again.live_count, again.tombstone_count) == root


# -- a start -----------------------------------------------------------------------------------------------------------


def known(engine: Engine) -> tuple[bytes, int, int]:
    wait_until(lambda: engine.root_ready, what="the count")
    return engine.root(), engine.live_count, engine.tombstone_count


def test_a_start_serves_before_it_has_counted(tmp_path: Path, make_engine: Callable[..., Engine]) -> None:
    expected = killed_with_a_log(tmp_path / "data")
    with held_back() as may_count:
        engine = make_engine(checkpoint="process", memtable_size=ROOMY)
        assert (engine.is_counting, engine.root_ready) == (True, False)
        assert (engine.get(b"k1"), engine.get(b"k5"), len(engines.values(engine))) == (b"new", None, expected[1])
        assert engine.random_key() is not None
        assert engine.records_max >= KEYS
        metrics = engine.metrics()
        assert metrics.db_keys is metrics.db_tombstones is None
        assert not engine.wait_until_counted(0)
        assert [damage for damage in Scrub(engine).steps() if damage is not None] == []
        engine.set(b"another", b"v")
        engine.commit()
        engines.abandon(engine)  # kill -9 during the count

        engine = make_engine(checkpoint="process", memtable_size=ROOMY)
        assert engine.is_counting
        assert engine.get(b"another") == b"v"
        assert engine.delete(b"another")
        engine.raise_gc_horizon(engine.clock.newest)
        while engine.collect_tombstones():
            pass
        may_count.set()
        root, live, dead = known(engine)
        assert (live, dead) == (expected[1], 0)
    again = engines.open_engine(tmp_path / "empty")
    again.merge([(OP_SET, key, record) for key, record in engines.everything(engine).items()], PEER, stable=True)
    assert (again.root(), again.live_count) == (root, live)


def test_a_count_that_is_closed_ends_at_once(tmp_path: Path, make_engine: Callable[..., Engine]) -> None:
    expected = killed_with_a_log(tmp_path / "data")
    with held_back():
        engine = make_engine(checkpoint="process", memtable_size=ROOMY)
        engine.close()
    assert known(make_engine(checkpoint="process", memtable_size=ROOMY)) == expected


def test_truncating_during_a_count(tmp_path: Path, make_engine: Callable[..., Engine]) -> None:
    killed_with_a_log(tmp_path / "data")
    with held_back():
        engine = make_engine(checkpoint="process", memtable_size=ROOMY)
        engine.truncate()
        assert (engine.root_ready, engine.live_count, engine.tombstone_count) == (True, 0, 0)
        engine.set(b"k", b"v")
        engine.commit()


def test_a_count_after_a_roll_back_keeps_to_its_moment(make_engine: Callable[..., Engine]) -> None:
    """Also when a checkpoint moves into the base what it has not counted yet."""
    with in_small_parts():
        engine = make_engine(checkpoint="process")
        engine.upkeep.worker.stop()  # this test is the thread
        for number in range(10):
            engine.set(key_of(number), b"v")
        engine.commit()
        run_out_of_room(engine)
        checkpoint(engine)
        assert engine.is_counting
        engine.table.count_in(lambda: True)
        assert engine.live_count == 10


def test_what_waits_for_a_sweep_keeps_no_moment_of_the_base(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or LMDB could not reuse the pages that the sweep frees, and the base would become several times as large."""
    wall = Wall()
    engine = make_engine(wall_clock=wall)
    for number in range(2):
        wall.now += 1
        engine.set(key_of(number), b"v")
    engine.checkpoint_now()
    pinned, views = Base.pinned, list[weakref.ref[Base]]()

    def watched(base: Base) -> Base:
        view = pinned(base)
        views.append(weakref.ref(view))
        return view

    monkeypatch.setattr(Base, "pinned", watched)
    truncate_part(engine, 1)
    assert not engine.root_ready
    assert [view() for view in views] == [None]
    engine.checkpoint_now()
    assert engine.live_count == 1


def test_writes_of_threads_beside_the_count_of_a_thread(tmp_path: Path, make_engine: Callable[..., Engine]) -> None:
    killed_with_a_log(tmp_path / "data")
    with mock.patch.object(count_module, "BLOCK_KEYS", 10):
        engine = make_engine(checkpoint="process")

        def write(worker: int) -> None:
            for number in range(worker, KEYS, 3):
                while True:
                    with suppress(Stalled):
                        engine.set(b"k%d" % number, b"%d" % worker)
                        engine.delete(b"k%d" % (number + 7))
                        break
                    engine.wait_for_room(1)
                if number % 50 == 0:
                    engine.commit()
                    rebuild(engine)
            engine.commit()

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        known(engine)
    assert check_engine(engine) == []


def test_the_length_of_a_library_waits_for_the_count(tmp_path: Path) -> None:
    _, live, _ = killed_with_a_log(tmp_path / "data")
    with held_back() as may_count, merklekv.open(tmp_path / "data") as db:
        assert not db.engine.root_ready
        threading.Timer(0.05, may_count.set).start()
        assert len(db) == live


def test_a_close_wakes_who_waits_for_the_count(tmp_path: Path) -> None:
    killed_with_a_log(tmp_path / "data")
    with held_back():
        db = merklekv.open(tmp_path / "data")
        waits = mock.Mock(wraps=db.engine.wait_until_counted)
        thread = threading.Thread(target=waits, args=(600,))
        thread.start()
        wait_until(lambda: waits.called, what="the wait")
        db.close()
        thread.join()


@pytest.mark.parametrize("error", [MerkleKVError("damaged"), MemoryError()])
def test_a_count_that_fails(
    tmp_path: Path, make_engine: Callable[..., Engine], error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """What the base cannot say is fatal, as it is to a start; a lack of memory passes, and is logged once."""
    expected = killed_with_a_log(tmp_path / "data")
    run = count_module.Count.run
    with mock.patch.object(count_module.Count, "run", mock.Mock(side_effect=error)) as failing:
        engine = make_engine(checkpoint="process", memtable_size=ROOMY)
        wait_until(lambda: failing.called, what="the count")
        if isinstance(error, MerkleKVError):
            wait_until(lambda: engine.gate.failure is not None, what="the failure")
            with pytest.raises(StorageFailed, match="damaged"):
                engine.set(b"k", b"v")
            return
        wait_until(lambda: failing.call_count > 1, what="the next try")
    assert count_module.Count.run is run
    assert known(engine) == expected
    said = [record.getMessage() for record in caplog.records]
    assert said == ["cannot count the keys: out of memory; HASH and DBSIZE wait for that"]


# -- the thread --------------------------------------------------------------------------------------------------------


def test_the_upkeep_of_an_idle_node_wakes_up_once_a_second(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(checkpoint="process")
    waits: list[float] = []
    upkeep = TreeUpkeep(engine.table, engine.gate.fail)
    go_on, stopped = threading.Semaphore(0), upkeep.worker.wait

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        go_on.acquire(timeout=60)
        return stopped(0)

    def next_wait() -> float:
        wait_until(lambda: waits, what="the first refresh")
        before = len(waits)  # it stands in the last of these, so what was written by now is before the next refresh
        go_on.release()
        wait_until(lambda: len(waits) > before, what="the next refresh")
        return waits[-1]

    with mock.patch.object(upkeep.worker, "wait", wait), mock.patch.object(tree_upkeep, "REST", 0):
        upkeep.worker.start()
        for number in range(2):
            assert next_wait() == next_wait() == IDLE_S
            engine.set(key_of(number), b"v")
            assert next_wait() == PAUSE_S  # without a rest, which is as long as the machine took
        upkeep.worker.stop(0)
        go_on.release()
        upkeep.worker.stop()


# -- a checkpoint with as many frozen memtables as there may be --------------------------------------------------------


def test_a_checkpoint_takes_in_everything(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    for number in range(5):
        engine.set(b"k%d" % number, b"v")
        engines.freeze(engine)
    engine.checkpoint_now()
    assert not engine.table.frozen
    assert not engine.table.records
    assert engine.table.base.live == 5
