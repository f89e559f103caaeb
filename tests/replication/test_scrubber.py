"""The scrubber: which peers it asks, how it repairs a lost record, when it runs, and what it reports."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.support import run_out_of_room, wait_until

from merklekv.engine.engine import Engine
from merklekv.engine.record import make_record
from merklekv.engine.verify.check import check_engine
from merklekv.engine.verify.scrub import Damage, Scrub
from merklekv.errors import DiskFull, MerkleKVError, Stalled, StorageFailed
from merklekv.metrics import ScrubMetrics
from merklekv.replication.scrubber import FIRST_REST_S, LINES_MAX, METADATA_SCRUBBED, Scrubber

KEY = b"k"
OLD, NEW, NEWER = (make_record(KEY, bytes(7) + bytes((ts,)) + bytes(16), b"value %d" % ts) for ts in (1, 2, 3))
BROKEN = NEW[:-1] + b"X"
DAY_S = 86_400.0


class Peers:
    """Peers: each one's record of the key, or the error of asking it."""

    def __init__(self, **records: bytes | MerkleKVError | None) -> None:
        self.records = records
        self.asked: list[str] = []

    def addresses(self) -> list[str]:
        return list(self.records)

    def fetch(self, address: str, key: bytes) -> bytes | None:
        self.asked.append(address)
        record = self.records[address]
        if isinstance(record, MerkleKVError):
            raise record
        return record if key == KEY else None


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path / "data", checkpoint="manual", durability="never")
    yield engine
    engine.close()


Make = Callable[..., Scrubber]


@pytest.fixture
def make(engine: Engine) -> Iterator[Make]:
    made: list[Scrubber] = []

    def scrubber(peers: Peers | None = None, interval_s: float = DAY_S) -> Scrubber:
        peers = peers or Peers()
        made.append(
            Scrubber(engine, peers.addresses, peers.fetch, failures.append, interval_s=interval_s, share_percent=100)
        )
        return made[-1]

    failures: list[BaseException] = []
    yield scrubber
    for one in made:
        one.stop()
    assert failures == []


def find(monkeypatch: pytest.MonkeyPatch, *found: Damage) -> None:
    """Has each pass find just this."""

    def steps(one: Scrub) -> Iterator[Damage | None]:
        yield from found
        yield None

    monkeypatch.setattr(Scrub, "steps", steps)


def store(engine: Engine, record: bytes) -> None:
    """Store a record, damaged or not, without any check."""
    with engine.lock:
        engine.table.put(0x81, ((None, KEY, record),), made=True)


def lost(stored: bytes | None) -> Damage:
    return Damage("the record is damaged", 0, KEY, True, stored, record=stored or b"")


@pytest.mark.parametrize(
    ("records", "taken"),
    [
        ({"a": NEW}, NEW),
        ({"a": NEW, "b": NEWER, "c": NEW}, NEWER),
        ({"a": OLD, "b": NEW}, NEW),
        ({"a": MerkleKVError("away"), "b": None, "c": BROKEN, "d": NEW}, NEW),
    ],
)
def test_the_newest_record_that_fits_is_taken(
    records: dict[str, bytes | MerkleKVError | None],
    taken: bytes,
    engine: Engine,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store(engine, BROKEN)
    find(monkeypatch, lost(BROKEN))
    peers = Peers(**records)
    one = make(peers)
    assert one.scrub()
    assert peers.asked == list(records), "all of them, each once"
    assert engine.record(KEY) == taken
    assert (one.damaged, one.repaired, one.left) == (1, 1, 0)
    engine.checkpoint_now()
    assert check_engine(engine) == []


@pytest.mark.parametrize("records", [{}, {"a": OLD}, {"a": None}, {"a": MerkleKVError("away")}, {"a": BROKEN}])
def test_a_record_that_no_peer_has_stays_damaged_and_is_reported_again(
    records: dict[str, bytes | MerkleKVError | None],
    engine: Engine,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store(engine, BROKEN)
    find(monkeypatch, lost(BROKEN))
    one = make(Peers(**records))
    for count in (1, 2):
        assert one.scrub()
        assert engine.record(KEY) == BROKEN
        assert (one.damaged, one.repaired, one.left) == (count, 0, 1)
        assert caplog.text.count("the record is damaged") == count
        assert caplog.text.count("not repaired, none of") == count


def test_a_peer_that_is_away_is_asked_once_in_a_pass(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    find(monkeypatch, *[lost(BROKEN)] * 3)
    peers = Peers(a=MerkleKVError("away"))
    one = make(peers)
    for passes in (1, 2):
        one.scrub()
        assert len(peers.asked) == passes


@pytest.mark.parametrize(("records", "goes"), [({}, False), ({"a": MerkleKVError("away")}, False), ({"a": None}, True)])
def test_a_stray_record_is_removed_once_a_peer_lacks_it(
    records: dict[str, bytes | MerkleKVError | None],
    goes: bool,
    engine: Engine,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store(engine, BROKEN)
    find(monkeypatch, lost(BROKEN)._replace(stray=True))
    one = make(Peers(**records))
    one.scrub()
    assert (engine.record(KEY) is None) == goes
    assert one.repaired == goes


def test_no_peer_is_asked_for_derived_state(engine: Engine, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    find(monkeypatch, Damage("a leaf is wrong", 7), Damage("LMDB reports damage", None))
    peers = Peers(a=NEW)
    one = make(peers)
    one.scrub()
    assert peers.asked == []
    assert (one.damaged, one.repaired, one.left) == (2, 1, 1)
    assert engine.table.needs_checkpoint is False, "the commit has sealed the segment with the repair"
    assert len(engine.table.frozen) == 1


@pytest.mark.parametrize("more", [0, 1])
def test_lines_about_damage_are_bounded(
    more: int, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find(monkeypatch, *[Damage("wrong", None)] * (LINES_MAX + more))
    one = make()
    one.scrub()
    assert caplog.text.count("scrub: wrong") == LINES_MAX
    assert one.left == LINES_MAX + more


def test_writers_that_wait_are_waited_for(engine: Engine, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store(engine, BROKEN)
    find(monkeypatch, lost(BROKEN))
    waits: list[float] = []
    monkeypatch.setattr(engine, "wait_for_room", waits.append)

    def stalled(*_: object) -> bool:
        raise Stalled("the checkpoint is behind")

    one = make(Peers(a=NEW))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "replace", stalled)
        one.scrub()
    assert len(waits) == 1
    assert one.left == 1
    one.scrub()
    assert (one.repaired, one.left) == (1, 0)


def test_a_pass_is_stored_and_shown(engine: Engine, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine.set(KEY, b"value")
    engine.checkpoint_now()
    one = make()
    assert one.metrics().scrub_last_pass_s == 0
    one.scrub()
    assert "scrub: 1 records, 0 damages, 0 repaired" in caplog.text
    last = int.from_bytes(engine.metadata[METADATA_SCRUBBED], "big") // 10**9
    assert one.metrics() == ScrubMetrics(
        scrub_running=0,
        scrub_passes=1,
        scrub_records=1,
        scrub_damaged=0,
        scrub_repaired=0,
        scrub_unrepaired=0,
        scrub_last_pass_s=last,
    )


def test_when_the_next_pass_is_due(engine: Engine, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 2_000_000_000.0
    monkeypatch.setattr(time, "time", lambda: now_s)
    one = make()
    assert one._due_s() == 0, "it has never run"
    for since_s, due_s in ((0.0, DAY_S), (1000.0, DAY_S - 1000), (DAY_S - 1, 1), (DAY_S, 0), (-1.0, 0)):
        engine.put_metadata(METADATA_SCRUBBED, int((now_s - since_s) * 10**9).to_bytes(8, "big"))
        assert one._due_s() == pytest.approx(due_s), "a clock that was set back does not put it off"


def test_a_node_that_was_just_started_has_other_things_to_do(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    for interval_s in (DAY_S, FIRST_REST_S, 5.0):
        one = make(interval_s=interval_s)

        def wait(timeout_s: float, block: Callable[[float], bool] = one.worker.wait) -> bool:
            waits.append(timeout_s)
            return block(1000)

        monkeypatch.setattr(one.worker, "wait", wait)
        before = len(waits)
        one.start()
        wait_until(lambda before=before: len(waits) > before)
        one.stop()
    assert waits == [FIRST_REST_S, FIRST_REST_S, 5.0]


def test_an_interval_of_nothing_is_never(make: Make) -> None:
    one = make(interval_s=0)
    one.start()
    assert not one.worker.is_alive


def test_passes_follow_each_other_whatever_happens_in_one(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: list[Exception] = [DiskFull("disk full"), ValueError("a mistake")]
    real = Scrub.steps

    def steps(one: Scrub) -> Iterator[Damage | None]:
        if outcomes:
            raise outcomes.pop(0)
        return real(one)

    monkeypatch.setattr(Scrub, "steps", steps)
    one = make(interval_s=0.001)
    one.start()
    wait_until(lambda: one.passes >= 2, what="two passes")
    one.stop()
    assert not one.worker.is_alive
    assert "the pass was not finished: disk full" in caplog.text
    assert "ValueError: a mistake" in caplog.text


def test_a_shortage_while_it_slept_is_no_refusal(engine: Engine, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make()
    asleep, wake = threading.Event(), threading.Event()
    wait = one.worker.wait

    def wait_or_sleep(timeout_s: float) -> bool:
        if timeout_s < FIRST_REST_S:
            return wait(timeout_s)
        asleep.set()
        assert wake.wait(60)
        wake.clear()
        return one.worker.is_stopping

    monkeypatch.setattr(one.worker, "wait", wait_or_sleep)
    one.start()
    assert asleep.wait(60)
    run_out_of_room(engine)
    wake.set()
    wait_until(lambda: one.passes, what="a pass")
    one.stop()
    wake.set()


def test_a_disk_that_fails_ends_the_node(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(one: Scrub) -> Iterator[Damage | None]:
        raise StorageFailed("fdatasync failed")

    monkeypatch.setattr(Scrub, "steps", steps)
    failures: list[BaseException] = []
    one = Scrubber(engine, list, Peers().fetch, failures.append, interval_s=0.001, share_percent=100)
    one.start()
    wait_until(lambda: failures, what="the failure")
    one.stop()


def test_a_stop_ends_a_pass_at_once(engine: Engine, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = Peers(a=NEW, b=NEW)
    one = make(peers)
    store(engine, BROKEN)
    find(monkeypatch, lost(BROKEN), lost(BROKEN))
    fetch = peers.fetch

    def stopped(address: str, key: bytes) -> bytes | None:
        one.stop()
        return fetch(address, key)

    monkeypatch.setattr(one, "_fetch", stopped)
    assert not one.scrub()
    assert peers.asked == ["a"]
    assert engine.record(KEY) == BROKEN, "after a stop the engine is left alone"
    assert one.passes == 0
    assert METADATA_SCRUBBED not in engine.metadata
