"""Every write operation reaches every node, whichever node took it, and all nodes end with the same root."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.cluster import Outsider, ReplicationTestHarness, make_event
from fixtures.support import wait_until

pytestmark = pytest.mark.replication


class TestOperations:
    @pytest.mark.parametrize(
        ("before", "request_line", "after"),
        [
            (None, "SET k v", "v"),
            ("old", "SET k new", "new"),
            ("old", "DELETE k", None),
            ("5", "INCR k 3", "8"),
            (None, "INCR k", "1"),
            ("5", "DECR k 7", "-2"),
            ("mid", "APPEND k -end", "mid-end"),
            ("mid", "PREPEND k start-", "start-mid"),
            (None, "MSET k 1 other 2", "1"),
            ("old", "TRUNCATE", None),
        ],
    )
    def test_an_operation_arrives(
        self, harness: ReplicationTestHarness, before: str | None, request_line: str, after: str | None
    ) -> None:
        a, b = harness.create_nodes(2)
        if before is not None:
            a.set("k", before)
            b.wait_for("k", before)
        assert not a.ask(request_line).startswith("ERROR")
        a.set("done", "1")
        b.wait_for("done", "1")
        assert a.get("k") == b.get("k") == after
        harness.wait_converged()

    def test_values_and_keys_of_every_kind(self, harness: ReplicationTestHarness) -> None:
        a, b = harness.create_nodes(2)
        pairs = {"schlüssel": "wert", "emoji-🙂": "🙂 🙃", "empty-ish": '""', "tab": "a\tb", "long": "x" * 500_000}
        a.set_many(pairs)
        for key, value in pairs.items():
            b.wait_for(key, value)
        harness.wait_converged()

    def test_what_fails_is_not_replicated(self, harness: ReplicationTestHarness) -> None:
        a, b = harness.create_nodes(2)
        a.set("k", "text")
        assert a.ask("INCR k").startswith("ERROR")
        a.set("done", "1")
        b.wait_for("done", "1")
        b.wait_figure("received_events", 2)  # it is counted after it can be read
        assert b.figure("received_events") == 2


class TestDirections:
    def test_both_ways(self, harness: ReplicationTestHarness) -> None:
        a, b = harness.create_nodes(2)
        a.set("from-a", "1")
        b.set("from-b", "2")
        a.wait_for("from-b", "2")
        b.wait_for("from-a", "1")
        harness.wait_converged()

    def test_three_nodes_writing_at_once_converge(self, harness: ReplicationTestHarness) -> None:
        nodes = harness.create_nodes(3)
        for turn in range(20):
            for node in nodes:
                node.set_many({f"shared-{number}": f"{node.node_id}-{turn}" for number in range(10)})
                node.set(f"own-{node.node_id}-{turn}", "x")
        for node in nodes:
            wait_until(lambda node=node: node.key_count() == 70)
        harness.wait_converged()
        assert len({tuple(node.get(f"shared-{number}") for number in range(10)) for node in nodes}) == 1

    def test_a_node_does_not_publish_what_it_received(self, harness: ReplicationTestHarness) -> None:
        a, b = harness.create_nodes(2)
        a.set_many({f"k{number}": "v" for number in range(100)})
        wait_until(lambda: b.key_count() == 100)
        b.set("own", "1")
        a.wait_for("own", "1")
        b.wait_figure("published_events")
        a.wait_figure("received_events")
        assert b.figure("published_events") == 1
        assert a.figure("received_events") == 1

    def test_a_node_that_was_away_catches_up(self, harness: ReplicationTestHarness) -> None:
        a, b = harness.create_nodes(2)
        b.stop()
        a.set_many({f"k{number}": "v" for number in range(2000)})
        b.start()
        wait_until(lambda: b.key_count() == 2000)
        harness.wait_converged()

    def test_an_event_of_another_implementation_is_taken(
        self, harness: ReplicationTestHarness, outsider: Outsider
    ) -> None:
        node = harness.create_node()
        listed: dict[str, Any] = {
            "val": list(b"value"),
            "op_id": list(range(16)),
            "prev": list(bytes(32)),
            "ttl": None,
            "color": "red",
        }
        outsider.publish(make_event("k", **listed))
        node.wait_for("k", "value")
