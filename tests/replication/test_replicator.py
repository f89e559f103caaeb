"""The replicator without a broker: what its parts notice is counted and told to the node."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from fixtures.broker import Broker, BrokerFactory, Wire
from fixtures.cluster import make_event
from fixtures.support import wait_until

from merklekv.engine.engine import Engine
from merklekv.engine.options import MIN_MEMTABLE_SIZE
from merklekv.errors import DiskFull
from merklekv.metrics import values_of
from merklekv.replication.cluster.presence import Status
from merklekv.replication.stream import inbox as inbox_module
from merklekv.replication.stream.inbox import Delivery
from merklekv.replication.stream.mqtt import BrokerSettings
from merklekv.replication.stream.replicator import OUTAGE_S, Replicator

NOW_NS = 1_790_000_000 * 10**9


class Site:
    """An engine with its replicator, which is not started, and the node around it."""

    def __init__(self, path: Path, broker: Broker | None = None) -> None:
        self.engine = Engine(
            path,
            durability="never",
            memtable_size=MIN_MEMTABLE_SIZE,
            checkpoint="manual",
            wall_clock=lambda: NOW_NS,
            retain_max_bytes=3 * MIN_MEMTABLE_SIZE,
        )
        self.gaps: list[tuple[str, str]] = []
        self.defective = False
        settings = BrokerSettings("127.0.0.1", broker.port if broker else 1, "test", "a")
        self.replicator = Replicator(
            self.engine,
            settings,
            self,
            address="a:1",
            heartbeat_s=0.1 if broker else 10,
            store_id="",
            inbox_bytes=1 << 20,
        )

    def is_removed(self, node: str, store_id: str) -> bool:
        return False

    def late(self, tombstones: list[bytes]) -> list[bytes]:
        return []

    def applied_through(self, records: list[bytes]) -> int:
        return 0

    def on_events_from(self, node: str, store_id: str) -> None:
        if self.defective:
            raise ZeroDivisionError

    def on_status(self, status: Status) -> None:
        raise AssertionError(status)

    def on_gap(self, node: str, reason: str) -> None:
        self.gaps.append((node, reason))

    def on_storage_failed(self, error: BaseException) -> None:
        raise AssertionError(error)

    def receive(self, key: str) -> None:
        event: dict[str, Any] = {"op": "set", "key": key, "val": b"v", "ts": NOW_NS, "op_id": bytes(16)}
        payload = cbor2.dumps(event | {"v": 1, "src": "b"})
        self.replicator._inbox.process([Delivery("b", payload, (self, None))])

    def acknowledge_later(self, token: object) -> None:
        """It is the session too."""

    def counted(self) -> dict[str, Any]:
        values = values_of(*self.replicator.metrics())
        return {name: value for name, value in values.items() if name.startswith("replication_gaps")}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "data")
    yield made
    made.replicator.stop(0)
    made.engine.close()


def test_a_message_that_meets_a_defect_is_counted(site: Site) -> None:
    site.defective = True
    site.receive("k")
    site.defective = False
    site.receive("other")
    assert site.counted() == {'replication_gaps{reason="defect"}': 1}
    assert site.gaps == [("b", "defect")]


def test_each_stable_event_is_counted(site: Site) -> None:
    site.engine.raise_gc_horizon(NOW_NS)
    site.receive("k")
    site.receive("other")
    assert site.counted() == {'replication_gaps{reason="stable"}': 2}
    assert site.gaps == [("b", "stable")] * 2


def test_each_event_that_is_too_large_is_counted(site: Site) -> None:
    outbox = site.replicator._outbox
    outbox.limit_packets(2000)
    for value in (b"L" * 2000, b"small", b"L" * 2000):
        site.engine.set(b"k", value)
    site.engine.commit()
    while outbox.next_batch() is not None:
        pass
    assert site.counted() == {'replication_gaps{reason="too large"}': 2}
    assert site.gaps == [("", "too large")] * 2


def test_an_overflow_is_counted(site: Site) -> None:
    for _ in range(6):
        for number in range(1000):
            site.engine.set(b"k", b"%05d" % number)
            site.engine.commit()
        site.engine.checkpoint_now()
    site.replicator._outbox.oldest_timestamp()
    assert site.counted() == {'replication_gaps{reason="overflow"}': 1}
    assert site.gaps == [("", "overflow")]


@pytest.mark.replication
def test_a_full_disk_is_not_taken_for_a_silent_subscription(
    tmp_path: Path, broker_factory: BrokerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker waits for acknowledgements, so nothing comes any more, no heartbeat either."""
    monkeypatch.setattr(inbox_module, "RETRY_S", 0.1)
    broker = broker_factory("allow_anonymous true", "max_inflight_messages 5")
    site = Site(tmp_path / "data", broker)
    wire = Wire(broker, "test")

    def fail(*_: object, **__: object) -> None:
        raise DiskFull("disk full, write not stored")

    def figure(name: str) -> int:
        return int(values_of(*site.replicator.metrics())[name])

    try:
        monkeypatch.setattr(site.engine, "merge", fail)
        site.replicator.start()
        wait_until(lambda: values_of(*site.replicator.metrics())["replication_state"] == "connected")
        for number in range(10):
            wire.publish("test/outsider/events", cbor2.dumps(make_event(f"k{number}")))
        wait_until(lambda: figure("inbox_waits") > 25)
        assert figure("broker_subscription_silent") == 0
        assert ("", "subscription silent") not in site.gaps
    finally:
        monkeypatch.undo()
        wire.close()
        site.replicator.stop(5)
        site.engine.close()


def test_an_outage_is_told_at_the_start_and_once_it_lasts(site: Site) -> None:
    state = site.replicator._state
    assert site.replicator.outage() == "not connected to the broker at 127.0.0.1:1"
    state.connection = "connected"
    assert not site.replicator.outage()
    state.connection, state.problems["connection"] = "disconnected", "no route"
    state.connected_at = time.monotonic() - OUTAGE_S / 2
    assert not site.replicator.outage(), "it may come back at once"
    state.connected_at -= OUTAGE_S
    assert site.replicator.outage() == "not connected to the broker at 127.0.0.1:1: no route"
    site.replicator.enable(False)
    assert not site.replicator.outage()
