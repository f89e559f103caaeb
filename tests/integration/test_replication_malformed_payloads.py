"""Damaged and senseless messages: counted, logged, dropped, and the next good one is taken."""

from __future__ import annotations

import random
from typing import Any

import cbor2
import pytest
from fixtures.cluster import NodeHandle, Outsider, ReplicationTestHarness, make_event

pytestmark = pytest.mark.replication


@pytest.fixture
def node(harness: ReplicationTestHarness) -> NodeHandle:
    return harness.create_node()


def expect_alive(node: NodeHandle, outsider: Outsider) -> None:
    """The next good event is taken."""
    outsider.publish(make_event("good", b"yes"))
    node.wait_for("good", "yes")


class TestCorruptCbor:
    @pytest.mark.parametrize("seed", range(3))
    def test_random_bytes(self, node: NodeHandle, outsider: Outsider, seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(50):
            outsider.publish_raw(b"\xff" + chance.randbytes(chance.randrange(200)))
        expect_alive(node, outsider)
        assert node.figure('refused_events{reason="malformed"}') == 50

    def test_a_valid_event_cut_anywhere(self, node: NodeHandle, outsider: Outsider) -> None:
        payload = cbor2.dumps(make_event("cut"))
        for length in range(len(payload)):
            outsider.publish_raw(payload[:length])
        expect_alive(node, outsider)
        assert node.figure('refused_events{reason="malformed"}') == len(payload)
        assert node.get("cut") is None

    def test_bytes_behind_a_valid_event(self, node: NodeHandle, outsider: Outsider) -> None:
        outsider.publish_raw(cbor2.dumps(make_event("k")) + b"\x00")
        expect_alive(node, outsider)
        assert node.figure('refused_events{reason="trailing"}') == 1
        assert node.get("k") is None

    def test_an_empty_message(self, node: NodeHandle, outsider: Outsider) -> None:
        outsider.publish_raw(b"")
        expect_alive(node, outsider)
        assert node.figure("refused_events") == 1

    def test_a_very_deep_one(self, node: NodeHandle, outsider: Outsider) -> None:
        outsider.publish_raw(b"\x81" * 1_000_000)
        expect_alive(node, outsider)
        assert node.figure('refused_events{reason="malformed"}') == 1


class TestInvalidStructure:
    @pytest.mark.parametrize("missing", ["v", "op", "key", "val", "ts", "src", "op_id"])
    def test_a_field_is_missing(self, node: NodeHandle, outsider: Outsider, missing: str) -> None:
        event = make_event("k")
        del event[missing]
        outsider.publish(event)
        expect_alive(node, outsider)
        assert node.figure('refused_events{reason="missing"}') == 1
        assert node.get("k") is None

    @pytest.mark.parametrize(
        ("wrong", "reason"),
        [
            ({"v": 99}, "schema"),
            ({"op": "explode"}, "operation"),
            ({"key": ""}, "length"),
            ({"key": "k" * 512}, "length"),
            ({"val": "text"}, "type"),
            ({"ts": -5}, "range"),
            ({"ts": "now"}, "type"),
            ({"op_id": bytes(8)}, "length"),
            ({"src": "somebody else"}, "source"),
        ],
    )
    def test_a_field_is_wrong(self, node: NodeHandle, outsider: Outsider, wrong: dict[str, Any], reason: str) -> None:
        outsider.publish(make_event("k") | wrong)
        expect_alive(node, outsider)
        assert node.figure(f'refused_events{{reason="{reason}"}}') == 1
        assert node.get("k") is None

    def test_json_is_no_event(self, node: NodeHandle, outsider: Outsider) -> None:
        outsider.publish_raw(b'{"op": "set", "key": "k", "val": "v"}')
        expect_alive(node, outsider)
        assert node.figure("refused_events") == 1


class TestRecovery:
    def test_good_and_bad_in_turns(self, node: NodeHandle, outsider: Outsider) -> None:
        for number in range(100):
            outsider.publish(make_event(f"k{number}"))
            outsider.publish_raw(b"\xff\xfe")
        node.wait_for("k99", "v")
        assert node.key_count() == 100
        assert node.process.output().count("malformed") < 5, "repeated warnings are one line"

    def test_a_value_larger_than_this_node_stores_is_refused_alone(
        self, harness: ReplicationTestHarness, outsider: Outsider
    ) -> None:
        small = harness.create_node("small", "--max-value-size", "1KiB")
        outsider.publish(make_event("large", b"x" * 2000))
        expect_alive(small, outsider)
        assert small.figure('refused_events{reason="size"}') == 1
        assert small.get("large") is None
