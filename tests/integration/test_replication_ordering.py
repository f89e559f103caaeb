"""Last write wins by (timestamp, op id), whatever order events come in and however often they come."""

from __future__ import annotations

import random
import time

import cbor2
import pytest
from fixtures.cluster import Outsider, ReplicationTestHarness, make_event
from fixtures.support import wait_until

pytestmark = pytest.mark.replication


def op_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


class TestOutOfOrder:
    def test_an_older_event_that_comes_later_changes_nothing(
        self, harness: ReplicationTestHarness, outsider: Outsider
    ) -> None:
        node = harness.create_node()
        now = time.time_ns()
        outsider.publish(make_event("k", b"newer", ts=now), make_event("k", b"older", ts=now - 1), make_event("done"))
        node.wait_for("done", "v")
        assert node.get("k") == "newer"
        assert node.figure("superseded_events") == 1

    @pytest.mark.parametrize("seed", range(3))
    def test_any_order_ends_the_same_on_all_nodes(
        self, harness: ReplicationTestHarness, outsider: Outsider, seed: int
    ) -> None:
        nodes = harness.create_nodes(2)
        now = time.time_ns()
        events = [
            make_event(f"k{number % 5}", b"%d" % number if number % 7 else None, ts=now + number, op_id=op_id(number))
            for number in range(60)
        ]
        random.Random(seed).shuffle(events)
        outsider.publish(*events, make_event("done"))
        for node in nodes:
            node.wait_for("done", "v")
            assert [node.get(f"k{number}") for number in range(5)] == ["55", None, "57", "58", "59"]
        harness.wait_converged()

    def test_a_delete_that_comes_before_the_write_it_is_newer_than(
        self, harness: ReplicationTestHarness, outsider: Outsider
    ) -> None:
        node = harness.create_node()
        now = time.time_ns()
        outsider.publish(make_event("k", None, ts=now), make_event("k", b"back?", ts=now - 1), make_event("done"))
        node.wait_for("done", "v")
        assert node.get("k") is None

    def test_a_truncate_that_comes_late_spares_what_is_newer(
        self, harness: ReplicationTestHarness, outsider: Outsider
    ) -> None:
        node = harness.create_node()
        now = time.time_ns()
        truncation = {"v": 1, "src": "outsider", "op": "truncate", "val": None, "ts": now, "op_id": op_id(0)}
        outsider.publish(make_event("old", ts=now - 1), make_event("new", ts=now + 1), truncation)
        outsider.publish(make_event("old", ts=now - 2), make_event("done"))
        node.wait_for("done", "v")
        assert node.get("old") is None
        assert node.get("new") == "v"


class TestDuplicates:
    def test_the_same_event_again_and_again_counts_once(
        self, harness: ReplicationTestHarness, outsider: Outsider
    ) -> None:
        node = harness.create_node()
        event = make_event("n", b"1", op="incr")
        outsider.publish(*[event] * 20, make_event("done"))
        node.wait_for("done", "v")
        assert node.get("n") == "1"
        node.wait_figure("applied_events", 2)  # it is counted after it can be read
        assert node.figure("applied_events") == 2
        assert node.figure("superseded_events") == 19

    def test_a_batch_that_is_repeated(self, harness: ReplicationTestHarness, outsider: Outsider) -> None:
        node = harness.create_node()
        members = [
            {"op": "set", "key": f"k{number}", "val": b"v", "ts": time.time_ns(), "op_id": op_id(number)}
            for number in range(10)
        ]
        batch = cbor2.dumps({"v": 1, "src": "outsider", "seq": 1, "events": members})
        for _ in range(3):
            outsider.publish_raw(batch)
        outsider.publish(make_event("done"))
        node.wait_for("done", "v")
        node.wait_figure("applied_events", 11)
        assert node.figure("applied_events") == 11
        assert node.figure('replication_gaps{reason="gap"}') == 0


class TestConflicts:
    def test_concurrent_writes_end_with_the_later_one_everywhere(self, harness: ReplicationTestHarness) -> None:
        a, b = harness.create_nodes(2)
        for node in (a, b):
            assert node.ask("REPLICATE disable") == "OK"
        for node in (a, b):
            wait_until(lambda node=node: node.figures()["replication_state"] == "disabled")
        a.set("k", "first")
        b.set("k", "second")
        assert a.get("k") == "first"
        assert a.figure("outbox_events") == b.figure("outbox_events") == 1, "neither has the other's event"
        for node in (a, b):
            assert node.ask("REPLICATE enable") == "OK"
        harness.wait_converged()
        assert a.get("k") == b.get("k") == "second"

    def test_an_equal_timestamp_is_decided_by_the_op_id(
        self, harness: ReplicationTestHarness, outsider: Outsider
    ) -> None:
        nodes = harness.create_nodes(2)
        now = time.time_ns()
        for key, order in (("up", (1, 2, 3)), ("down", (3, 2, 1)), ("mixed", (2, 3, 1))):
            outsider.publish(*(make_event(key, b"%d" % n, ts=now, op_id=op_id(n)) for n in order))
        outsider.publish(make_event("done"))
        for node in nodes:
            node.wait_for("done", "v")
            assert [node.get(key) for key in ("up", "down", "mixed")] == ["3", "3", "3"]
        harness.wait_converged()

    def test_a_local_write_beats_what_the_node_shows(self, harness: ReplicationTestHarness, outsider: Outsider) -> None:
        a, b = harness.create_nodes(2)
        outsider.publish(make_event("k", b"ahead", ts=time.time_ns() + 60 * 10**9))
        a.wait_for("k", "ahead")
        a.set("k", "local")
        b.wait_for("k", "local")
        wait_until(lambda: a.get("k") == "local")
        harness.wait_converged()
