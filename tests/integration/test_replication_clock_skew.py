"""Clocks that disagree: nodes run under libfaketime, so the skew is that of real processes.

Clocks that were wrong and are right again are in tests/replication/test_wrong_clocks.py.
"""

from __future__ import annotations

import time

import pytest
from fixtures.cluster import NodeHandle, Outsider, ReplicationTestHarness, make_event
from fixtures.support import wait_until
from fixtures.wall_clock import wall_clock_off_by

pytestmark = pytest.mark.replication

SECOND_NS = 10**9
DAY_S = 86_400
DRIFT_S = 600


def skewed(harness: ReplicationTestHarness, node_id: str, seconds: int) -> NodeHandle:
    """A node whose wall clock is off by so many seconds."""
    return harness.create_node(node_id, environment=wall_clock_off_by(seconds))


class TestDrift:
    @pytest.mark.parametrize("seconds", [-60, 60])
    def test_nodes_a_minute_apart_converge(self, harness: ReplicationTestHarness, seconds: int) -> None:
        straight, off = harness.create_node("straight"), skewed(harness, "off", seconds)
        straight.set("k", "1")
        off.wait_for("k", "1")
        off.set("k", "2")
        straight.wait_for("k", "2")
        straight.set("k", "3")
        off.wait_for("k", "3")
        harness.wait_converged()

    def test_many_turns_between_skewed_nodes_keep_their_order(self, harness: ReplicationTestHarness) -> None:
        nodes = [skewed(harness, "behind", -60), harness.create_node("straight"), skewed(harness, "ahead", 60)]
        for turn in range(12):
            writer, reader = nodes[turn % 3], nodes[(turn + 1) % 3]
            writer.set("k", str(turn))
            reader.wait_for("k", str(turn))
        for node in nodes:
            node.wait_for("k", "11")
        harness.wait_converged()

    def test_a_write_is_later_than_what_its_node_has_under_the_key(
        self, harness: ReplicationTestHarness, outsider: Outsider
    ) -> None:
        """Who has an event from a minute ahead writes beyond that minute."""
        node = harness.create_node()
        now = time.time_ns()
        outsider.publish(make_event("k", ts=now + 60 * SECOND_NS))
        node.wait_for("k", "v")
        node.set("k", "local")
        outsider.publish(make_event("k", b"earlier", ts=now + 30 * SECOND_NS), make_event("done"))
        node.wait_for("done", "v")
        assert node.get("k") == "local"

    def test_blind_writes_under_skew_end_the_same(self, harness: ReplicationTestHarness) -> None:
        nodes = [skewed(harness, "behind", -60), skewed(harness, "ahead", 60)]
        for node in nodes:
            node.set_many({f"k{number}": node.node_id for number in range(100)})
        harness.wait_converged()
        assert nodes[0].get("k0") == nodes[1].get("k0")


class TestBoundaries:
    def test_timestamps_a_nanosecond_apart(self, harness: ReplicationTestHarness, outsider: Outsider) -> None:
        node = harness.create_node()
        now = time.time_ns()
        outsider.publish(*(make_event("k", b"%d" % step, ts=now + step) for step in (1, 0, 2, 1)), make_event("done"))
        node.wait_for("done", "v")
        assert node.get("k") == "2"

    def test_the_smallest_and_the_largest_timestamp(self, harness: ReplicationTestHarness, outsider: Outsider) -> None:
        node = harness.create_node()
        outsider.publish(make_event("zero", ts=0), make_event("end", ts=(1 << 63) - 1), make_event("done"))
        node.wait_for("done", "v")
        assert node.get("zero") == "v"
        assert node.get("end") is None
        assert node.figure('refused_events{reason="clock"}') == 1

    def test_up_to_the_limit_a_clock_ahead_is_believed(
        self, harness: ReplicationTestHarness, outsider: Outsider
    ) -> None:
        node = harness.create_node()
        now = time.time_ns()
        outsider.publish(make_event("within", ts=now + (DRIFT_S - 60) * SECOND_NS))
        outsider.publish(make_event("past", ts=now + (DRIFT_S + 60) * SECOND_NS), make_event("done"))
        node.wait_for("done", "v")
        assert node.get("within") == "v"
        assert node.get("past") is None


class TestExtremes:
    def test_a_node_days_ahead_is_refused_by_name_and_does_no_harm(self, harness: ReplicationTestHarness) -> None:
        straight, ahead = harness.create_node("straight"), skewed(harness, "ahead", 3 * DAY_S)
        ahead.set("k", "future")
        straight.wait_figure('refused_events{reason="clock"}')
        wait_until(lambda: "node ahead" in straight.process.output())
        assert straight.get("k") is None
        assert straight.figure("clock_ns") < time.time_ns() + 60 * SECOND_NS
        straight.set("k", "now")
        assert straight.get("k") == "now"
        assert straight.figure("clock_ns") < time.time_ns() + 60 * SECOND_NS

    def test_a_node_days_behind_sees_the_others_as_ahead_but_loses_nothing_of_its_own(
        self, harness: ReplicationTestHarness
    ) -> None:
        straight, behind = harness.create_node("straight"), skewed(harness, "behind", -3 * DAY_S)
        behind.set("old", "1")
        straight.wait_for("old", "1")
        straight.set("new", "1")
        behind.wait_figure('refused_events{reason="clock"}')
        assert behind.get("old") == "1"

    def test_a_clock_set_back_between_two_runs_does_not_lose_later_writes(
        self, harness: ReplicationTestHarness
    ) -> None:
        other, node = harness.create_node("other"), harness.create_node("node")
        node.set("k", "1")
        other.wait_for("k", "1")
        node.stop()
        node.process.environment |= wall_clock_off_by(-3600)
        node.start()
        node.set("k", "2")
        other.wait_for("k", "2")
        wait_until(lambda: node.get("k") == "2")
        harness.wait_converged()
