"""The inbox: what is valid is stored before it is acknowledged, what is not is counted and changes nothing."""

from __future__ import annotations

import itertools
import random
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from fixtures.engines import let_go_on, stall
from fixtures.support import wait_until

from merklekv import log_throttle
from merklekv.engine.engine import Engine
from merklekv.engine.options import MIN_MEMTABLE_SIZE
from merklekv.engine.time_gate import DEFAULT_MAX_DRIFT_S, MAX_TRUNCATION_AHEAD_S
from merklekv.errors import DiskFull, StorageFailed
from merklekv.metrics import LABELS_MAX, ReplicationCounters, values_of
from merklekv.replication.cluster.presence import Presence, Status
from merklekv.replication.stream import inbox as inbox_module
from merklekv.replication.stream.event import Reason
from merklekv.replication.stream.inbox import Delivery, Inbox, Origin

NOW_NS = 1_790_000_000 * 10**9
DRIFT_NS = DEFAULT_MAX_DRIFT_S * 10**9


class Desk:
    """An inbox over an engine whose clock stands still."""

    def __init__(self, path: Path) -> None:
        self.engine = Engine(
            path,
            durability="never",
            memtable_size=MIN_MEMTABLE_SIZE,
            max_value_size=1000,
            checkpoint="manual",
            wall_clock=lambda: NOW_NS,
        )
        self.acknowledged: list[Any] = []
        self.committed: list[bytes | None] = []  # what was stored under `k` at each acknowledgement
        self.gaps: list[tuple[str, str]] = []
        self.failures: list[BaseException] = []
        self.removed: set[str] = set()
        self.writers: list[str] = []
        self.through = 0
        self.counters = ReplicationCounters()
        presence = Presence("node-a", "", self.on_status)
        self.inbox = Inbox(self.engine, "node-a", presence, self, self.counters, self.on_gap, self.acknowledge)
        self._tokens = itertools.count(1)

    # -- the context of the inbox -------------------------------------------------------------------------------------

    def is_removed(self, node: str, store_id: str) -> bool:
        return node in self.removed

    def late(self, tombstones: list[bytes]) -> list[bytes]:
        return []

    def applied_through(self, records: list[bytes]) -> int:
        return self.through

    def on_events_from(self, node: str, store_id: str) -> None:
        self.writers.append(node)

    def on_status(self, status: Status) -> None:
        raise AssertionError(status)

    def on_gap(self, node: str, reason: str) -> None:
        self.gaps.append((node, reason))

    def on_storage_failed(self, error: BaseException) -> None:
        self.failures.append(error)

    def acknowledge(self, tokens: list[Any]) -> None:
        self.committed.append(self.engine.get(b"k"))
        assert not self.engine.log.pending, "acknowledged before it was committed"
        self.acknowledged += tokens

    def receive(self, *payloads: bytes, node: str = "node-b") -> None:
        self.inbox.process([Delivery(node, payload, next(self._tokens)) for payload in payloads])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "data")
    yield made
    made.engine.close()


def event(key: str = "k", value: bytes | None = b"v", ts: int = NOW_NS, **more: Any) -> dict[str, Any]:
    made = {"op": "set" if value is not None else "del", "key": key, "val": value, "ts": ts, "op_id": bytes(16)}
    return made | more


def one(source: str = "node-b", **fields: Any) -> bytes:
    return cbor2.dumps(event(**fields) | {"v": 1, "src": source})


def batch(sequence: int, *events: dict[str, Any], source: str = "node-b") -> bytes:
    return cbor2.dumps({"v": 1, "src": source, "seq": sequence, "events": list(events)})


def test_an_event_is_stored_and_then_acknowledged(desk: Desk) -> None:
    desk.receive(one())
    assert desk.committed == [b"v"]
    assert desk.acknowledged == [1]
    counters = desk.counters
    events = (counters.received_events, counters.applied_events, counters.superseded_events)
    assert (counters.received_messages, *events) == (1, 1, 1, 0)
    assert desk.inbox.origins["node-b"].last_contact > 0


def test_what_comes_from_this_node_itself_is_acknowledged_and_left(desk: Desk) -> None:
    desk.receive(one(source="node-a"), node="node-a")
    assert desk.engine.get(b"k") is None
    assert desk.acknowledged == [1]
    assert desk.counters.received_own == 1


def test_remote_events_are_never_published_from_here(desk: Desk) -> None:
    desk.engine.retention.subscribe()
    before = desk.engine.retention.end.sequence
    desk.receive(one(), batch(5, event("x"), {"op": "truncate", "ts": NOW_NS + 1, "op_id": bytes(16)}))
    assert desk.engine.retention.end.sequence == before


@pytest.mark.parametrize("seed", range(5))
def test_any_order_and_any_repetition_end_the_same(desk: Desk, seed: int) -> None:
    chance = random.Random(seed)
    events = [
        one(
            key=f"k{number % 7}",
            value=b"%d" % number if number % 5 else None,
            ts=NOW_NS + number // 2,
            op_id=number.to_bytes(16, "big"),
        )
        for number in range(60)
    ]
    expected = {f"k{number % 7}": b"%d" % number if number % 5 else None for number in range(60)}
    arrivals = events + chance.sample(events, 30)
    chance.shuffle(arrivals)
    desk.receive(*arrivals)
    assert {f"k{number}": desk.engine.get(f"k{number}".encode()) for number in range(7)} == expected
    assert desk.counters.applied_events + desk.counters.superseded_events == 90


def test_a_truncate_takes_what_is_older_and_spares_what_is_newer(desk: Desk) -> None:
    desk.receive(one(key="old"), one(key="new", ts=NOW_NS + 10))
    truncation = {"v": 1, "src": "node-b", "op": "truncate", "val": None, "ts": NOW_NS + 5, "op_id": bytes(16)}
    desk.receive(cbor2.dumps(truncation), cbor2.dumps(truncation))
    assert desk.engine.get(b"old") is None
    assert desk.engine.get(b"new") == b"v"
    assert (desk.counters.applied_events, desk.counters.superseded_events) == (3, 1)


def test_a_refused_message_is_counted_acknowledged_and_the_next_one_is_taken(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.receive(b"\xff", one(ts=-1), batch(1, {"op": "set"}), one(key="k", value=b"good"))
    assert desk.engine.get(b"k") == b"good"
    assert desk.acknowledged == [1, 2, 3, 4]
    assert dict(desk.counters.refused_events) == {Reason.MALFORMED: 1, Reason.RANGE: 1, Reason.MISSING: 1}
    assert "refused 1 bytes on the topic of node-b: malformed" in caplog.text


def test_a_flood_of_refused_messages_is_one_line(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(100):
        desk.receive(b"\xff")
    assert caplog.text.count("malformed") == 1
    assert desk.counters.refused_events[Reason.MALFORMED] == 100


def test_a_source_that_is_not_the_topics_node_is_refused(desk: Desk) -> None:
    desk.receive(one(source="node-c"), one(source="node-a"))
    assert desk.engine.get(b"k") is None
    assert desk.counters.refused_events[Reason.SOURCE] == 2


def test_a_clock_far_ahead_is_refused_with_the_name_of_the_node(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    before = desk.engine.clock.newest
    truncation = {"op": "truncate", "ts": NOW_NS + (MAX_TRUNCATION_AHEAD_S + 60) * 10**9, "op_id": bytes(16)}
    desk.receive(
        batch(1, event("far", ts=NOW_NS + DRIFT_NS + 1), event("near", ts=NOW_NS + DRIFT_NS - 10**9), truncation)
    )
    assert desk.engine.get(b"far") is None
    assert desk.engine.get(b"near") == b"v"
    assert desk.counters.refused_events[Reason.CLOCK] == 2
    assert "refused an event of node node-b, key b'far', of 2" in caplog.text
    assert before < desk.engine.clock.newest < NOW_NS + DRIFT_NS, "a refused event moves no clock"


def test_a_refused_version_does_not_hide_that_a_numbering_went_back(desk: Desk) -> None:
    desk.receive(batch(100, event("far", ts=(1 << 63) - 1), event("k", ts=NOW_NS)))
    desk.receive(batch(1, event("k", b"later", ts=NOW_NS + 1)))
    assert desk.engine.get(b"k") == b"later"
    assert desk.inbox.origins["node-b"].gaps == 1
    assert desk.inbox.origins["node-b"].expected == 2


def test_a_value_too_large_is_refused_alone(desk: Desk) -> None:
    desk.receive(batch(1, event("large", b"x" * 1001), event("k", b"x" * 1000)))
    assert desk.engine.get(b"large") is None
    assert desk.engine.get(b"k") == b"x" * 1000
    assert desk.counters.refused_events[Reason.SIZE] == 1


def test_the_same_version_with_other_contents_is_a_conflict(desk: Desk) -> None:
    desk.receive(one(value=b"this"), one(value=b"that"))
    assert desk.engine.get(b"k") == b"this"
    assert desk.counters.refused_events[Reason.CONFLICT] == 1


def test_events_of_a_removed_node_are_refused_and_the_log_says_why(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.removed.add("node-b")
    desk.receive(one(), batch(7), batch(9))
    desk.receive(one("node-c", key="other"), node="node-c")
    assert (desk.engine.get(b"k"), desk.engine.get(b"other")) == (None, b"v")
    assert desk.acknowledged == [1, 2, 3, 4]
    assert desk.counters.refused_events == {Reason.REMOVED: 3}
    assert desk.gaps == [], "nothing of it is missed"
    assert desk.writers == ["node-c"], "it does not become a member again"
    assert "removed this node: it needs a new data directory" in caplog.text
    desk.removed.clear()
    desk.receive(one())
    assert desk.engine.get(b"k") == b"v"


def test_what_the_horizon_keeps_out_is_left_to_an_exchange(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.receive(one(key="kept", ts=NOW_NS - 10))
    desk.engine.raise_gc_horizon(NOW_NS)
    desk.receive(one(key="kept", ts=NOW_NS - 5, val=b"newer"), one(key="gone", ts=NOW_NS))
    desk.receive(one(key="new", ts=NOW_NS + 1))
    assert [desk.engine.get(key) for key in (b"kept", b"gone", b"new")] == [b"v", None, b"v"]
    assert desk.counters.refused_events == {Reason.STABLE: 2}
    assert desk.gaps == [("node-b", "stable")] * 2
    assert caplog.text == "", "a stable event delivered again is no problem"


def test_an_event_that_was_here_long_ago_is_left_to_an_exchange(desk: Desk) -> None:
    desk.receive(one(key="kept"), one(key="gone"))
    desk.through = NOW_NS + 5
    desk.receive(one(key="kept"), one(key="new", ts=NOW_NS + 6))
    assert desk.gaps == []
    desk.receive(one(key="kept", ts=NOW_NS + 5), one(key="away", ts=NOW_NS + 5))
    assert desk.gaps == [("node-b", "stable")] * 2
    assert desk.counters.refused_events == {Reason.STABLE: 2}
    assert [desk.engine.get(key) for key in (b"kept", b"gone", b"new", b"away")] == [b"v", b"v", b"v", None]
    assert desk.engine.record(b"kept")[:8] == NOW_NS.to_bytes(8, "big")  # type: ignore[index]
    desk.receive(one(key="kept", value=None, ts=NOW_NS + 5))
    assert desk.engine.get(b"kept") is None, "a deletion is taken all the same"
    assert len(desk.acknowledged) == 7


def test_numbers_without_a_gap_are_silent(desk: Desk) -> None:
    desk.receive(batch(5, event("a"), event("b")), batch(7, event("c")), batch(8), one(seq=8, key="d"), batch(9))
    assert desk.gaps == []


def test_a_missing_number_is_noticed_also_from_an_empty_batch(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.receive(batch(5, event("a")), batch(7, event("b")), batch(11))
    assert desk.gaps == [("node-b", "gap"), ("node-b", "gap")]
    assert (desk.inbox.origins["node-b"].gaps, desk.inbox.origins["node-b"].missed) == (2, 4)
    assert "1 events before 7 did not come" in caplog.text


def test_repetitions_are_no_gap(desk: Desk) -> None:
    first, second = batch(5, event("a"), event("b")), batch(7, event("c"))
    desk.receive(first, second, first, second, batch(8), batch(6, event("b"), event("c"), event("d", ts=NOW_NS + 1)))
    assert desk.gaps == []
    assert desk.inbox.origins["node-b"].expected == 9


def test_numbers_that_start_again_are_noticed(desk: Desk) -> None:
    desk.receive(batch(500, event("a")), batch(1, event("b", ts=NOW_NS + 1)), batch(2, event("c", ts=NOW_NS + 2)))
    assert desk.gaps == [("node-b", "gap")]
    desk.receive(batch(4, event("c", ts=NOW_NS + 4)))
    assert len(desk.gaps) == 2


def test_each_origin_has_numbers_of_its_own(desk: Desk) -> None:
    desk.receive(batch(5, event("a")))
    desk.receive(batch(90, event("b"), source="node-c"), node="node-c")
    desk.receive(batch(6, event("c")))
    assert desk.gaps == []


def test_origins_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "ORIGINS_MAX", 3)
    for number in range(5):
        desk.receive(batch(1, source=f"n{number}"), node=f"n{number}")
    assert len(desk.inbox.origins) == 3


def test_the_metrics_show_the_origins_that_were_silent_for_longest(desk: Desk) -> None:
    silent = {f"silent-{number}" for number in range(LABELS_MAX - 10)}
    desk.inbox.origins |= {name: Origin(last_contact=1.0, received=3) for name in silent}
    desk.inbox.origins |= {f"{number}": Origin(last_contact=2.0 + number) for number in range(10_000 - len(silent))}
    metrics = desk.inbox.metrics()
    names = silent | {f"{number}" for number in range(10)}
    assert names == metrics.origin_last_contact_ms.keys() == metrics.origin_received_events.keys()
    assert (metrics.origins_not_shown, metrics.origin_received_events["silent-5"]) == (9900, 3)
    assert len(str(values_of(metrics))) < 32_000


def test_a_stalled_engine_is_waited_for(desk: Desk) -> None:
    stall(desk.engine)
    desk.inbox.worker.start()
    desk.inbox.put(Delivery("node-b", one(), "token"))
    wait_until(lambda: desk.counters.inbox_waits)
    assert not desk.acknowledged
    let_go_on(desk.engine)
    wait_until(lambda: desk.acknowledged == ["token"])
    assert desk.engine.get(b"k") == b"v"
    desk.inbox.worker.stop()


def test_a_full_disk_is_waited_for_and_nothing_is_dropped(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inbox_module, "RETRY_S", 0.001)
    whole, full = desk.engine.merge, threading.Event()
    full.set()

    def merge(*arguments: Any, **options: Any) -> Any:
        if full.is_set():
            raise DiskFull("disk full, write not stored")
        return whole(*arguments, **options)

    monkeypatch.setattr(desk.engine, "merge", merge)
    tried, commit = Counter[str](), desk.engine.commit

    def counted() -> None:
        tried["commit"] += 1
        commit()

    monkeypatch.setattr(desk.engine, "commit", counted)
    desk.inbox.worker.start()
    desk.inbox.put(Delivery("node-b", one(), "token"))
    wait_until(lambda: desk.counters.inbox_waits > 3)
    assert not desk.acknowledged
    wait_until(lambda: tried["commit"] > 3)  # a commit finds out whether there is room again
    full.clear()
    wait_until(lambda: desk.acknowledged == ["token"])
    assert caplog.text.count("disk full") == 1
    desk.inbox.worker.stop()


def test_a_stop_while_waiting_acknowledges_nothing(desk: Desk) -> None:
    stall(desk.engine)
    desk.inbox.worker.start()
    desk.inbox.put(Delivery("node-b", one(), "token"))
    desk.inbox.put(Delivery("node-b", one(), "another"))
    wait_until(lambda: desk.counters.inbox_waits)
    desk.inbox.worker.stop()
    assert not desk.acknowledged
    let_go_on(desk.engine)


def test_a_failing_disk_ends_the_worker_and_is_reported(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def commit() -> None:
        raise StorageFailed("cannot sync")

    monkeypatch.setattr(desk.engine, "commit", commit)
    desk.inbox.worker.start()
    desk.inbox.put(Delivery("node-b", one(), "token"))
    wait_until(lambda: desk.failures)
    assert not desk.acknowledged
    desk.inbox.worker.stop()


def test_a_mistake_of_ours_does_not_stop_the_next_message(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = desk.engine.merge

    def merge(changes: Any, origin: bytes, **options: Any) -> Any:
        if changes[0][1] == b"bad":
            raise ZeroDivisionError
        return whole(changes, origin, **options)

    monkeypatch.setattr(desk.engine, "merge", merge)
    desk.receive(one(key="bad"), one(key="k"))
    assert desk.engine.get(b"k") == b"v"
    assert desk.acknowledged == [1, 2]
    assert desk.gaps == [("node-b", "defect")]
    assert "ZeroDivisionError" in caplog.text


def inbox_is_full(desk: Desk) -> bool:
    return desk.inbox.is_full


def test_the_queue_says_when_it_is_full(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(inbox_module.QUEUE_MESSAGES - 1):
        desk.inbox.put(Delivery("node-b", b"", None))
    assert not inbox_is_full(desk)
    desk.inbox.put(Delivery("node-b", b"", None))
    assert inbox_is_full(desk)
    assert desk.inbox.waiting == inbox_module.QUEUE_MESSAGES
    monkeypatch.setattr(inbox_module, "QUEUE_MESSAGES", 10**6)
    monkeypatch.setattr(desk.inbox, "_queue_bytes", 100)
    desk.inbox.put(Delivery("node-b", b"x" * 99, None))
    assert not inbox_is_full(desk)
    desk.inbox.put(Delivery("node-b", b"x", None))
    assert inbox_is_full(desk)


def test_no_more_messages_are_acknowledged_together_than_brokers_send(desk: Desk) -> None:
    for number in range(inbox_module.BATCH_MAX * 2 + 1):
        desk.inbox.put(Delivery("node-b", one(key=str(number)), number))
    desk.inbox.worker.start()
    wait_until(lambda: len(desk.acknowledged) == inbox_module.BATCH_MAX * 2 + 1)
    assert len(desk.committed) >= 3
    desk.inbox.worker.stop()


def test_repeated_warnings_are_logged_once_with_their_count_later(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    log = log_throttle.LogThrottle(inbox_module.log, lambda: now[0])
    for second in (0, 1, 2, log_throttle.THROTTLE_S):
        now[0] = second
        log.warn("kind", "it happened")
        log.warn("other", "something else")
    assert [record.getMessage() for record in caplog.records] == [
        "it happened",
        "something else",
        "it happened (and 2 more before)",
        "something else (and 2 more before)",
    ]
    for number in range(log_throttle.KINDS_MAX * 2):
        log.warn(str(number), "x")
    assert len(log.kinds) <= log_throttle.KINDS_MAX
