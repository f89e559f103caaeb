"""The sentence that says how a cluster is."""

from __future__ import annotations

from typing import Any

import pytest

from merklekv.web.verdict import verdict


def node(name: str, **fields: Any) -> dict[str, Any]:
    well = {"id": name, "state": "up", "replication": "connected", "ready": True, "root": "aa", "keys": 12_290}
    return well | {"outbox": 0, "inbox": 0, "exchanging": False, "differs": []} | fields


A, B, C = node("a"), node("b"), node("c")
DOWN = {"state": "down"}
ALONE = {"replication": "connecting"}


@pytest.mark.parametrize(
    ("nodes", "level", "text"),
    [
        ([A, B, C], "good", "All 3 nodes hold the same 12,290 keys"),
        ([node("a", keys=1)], "good", "One node holds 1 key"),
        ([node("a", replication="")], "good", "One node holds 12,290 keys"),
        ([node("a", state="asked")], "busy", "Asking the node"),
        ([A, node("b", state="asked")], "busy", "Asking b"),
        ([A, node("b", **DOWN), C], "bad", "b is down"),
        ([node("a", outbox=341), node("b", **DOWN)], "bad", "b is down; 341 events wait in outboxes"),
        (
            [node("a", outbox=1), node("b", **DOWN), node("c", **DOWN)],
            "bad",
            "b and c are down; 1 event waits in outboxes",
        ),
        ([A, *(node(name, **DOWN) for name in "bcdef")], "bad", "b, c, d and 2 more are down"),
        ([node("a", **DOWN)], "bad", "a does not answer"),
        ([A, node("b", **ALONE)], "bad", "b is not connected to the broker"),
        ([node("a", **ALONE), node("b", **ALONE)], "bad", "No node is connected to the broker"),
        ([node("a", **ALONE, outbox=7)], "bad", "a is not connected to the broker; 7 events wait in outboxes"),
        ([A, node("b", ready=False)], "busy", "b is not ready"),
        ([A, node("b", root="", keys=None)], "busy", "b counts its keys"),
        (
            [A, node("b", root="bb", differs=[4, 17])],
            "busy",
            "Nodes differ in 2 of 256 parts; the next exchange heals them",
        ),
        ([A, node("b", root="bb", exchanging=True)], "busy", "Nodes differ; healing"),
        ([A, node("b", root="bb", differs=[1], outbox=3)], "busy", "Nodes differ in 1 of 256 parts; healing"),
        ([node("a", is_written=True), B], "live", "Clients write; at this moment the nodes are equal"),
        (
            [node("a", is_written=True), node("b", root="bb", differs=[3])],
            "live",
            "Clients write; at this moment the nodes differ in 1 of 256 parts",
        ),
    ],
)
def test_the_sentence(nodes: list[dict[str, Any]], level: str, text: str) -> None:
    assert verdict(nodes) == {"level": level, "text": text}
