"""Replication at its simplest: nodes reach the broker, and a write on one is a write on the other."""

from __future__ import annotations

import cbor2
import pytest
from fixtures.broker import Broker, Wire
from fixtures.cluster import ReplicationTestHarness
from fixtures.support import wait_until

pytestmark = pytest.mark.replication


def test_the_broker_lets_us_in(broker: Broker) -> None:
    assert broker.answers()


def test_a_message_makes_the_round(wire: Wire, topic_prefix: str) -> None:
    assert wire.publish(f"{topic_prefix}/anybody/events", b"payload")
    wait_until(lambda: wire.received(f"{topic_prefix}/anybody/events") == [b"payload"])


def test_a_node_connects_and_says_so(harness: ReplicationTestHarness) -> None:
    node = harness.create_node("first")
    assert node.ask("REPLICATE status").startswith("REPLICATION enabled 1 node state=connected outbox=0 ")
    wait_until(lambda: "connected to the broker" in node.process.output())


def test_a_write_on_one_node_is_a_write_on_the_other(harness: ReplicationTestHarness) -> None:
    a, b = harness.create_nodes(2)
    a.set("key", "value with spaces")
    b.wait_for("key", "value with spaces")
    assert harness.wait_converged() != "0" * 64


def test_events_are_cbor(harness: ReplicationTestHarness, wire: Wire) -> None:
    node = harness.create_node("speaker")
    node.set("key", "value")
    topic = harness.events_topic(node.node_id)
    wait_until(lambda: any("op" in cbor2.loads(payload) for payload in wire.received(topic)))
    event = next(item for item in map(cbor2.loads, wire.received(topic)) if "op" in item)
    assert {name: event[name] for name in ("v", "op", "key", "val", "src")} == {
        "v": 1,
        "op": "set",
        "key": "key",
        "val": b"value",
        "src": node.node_id,
    }
    assert isinstance(event["ts"], int)
    assert len(event["op_id"]) == 16
