"""`members` and `forget`: the members, which of them hold back the GC horizon, and how to remove one that is gone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import wait_until
from fixtures.terminal import Terminal
from fixtures.tools import TOOL, address, fails, filled, opened, run, succeeds
from merklekv_tool import exit_codes
from merklekv_tool.verbs.members import age, blocks, conclusion, table

from merklekv.exit_codes import EXIT_USAGE
from merklekv.replication.cluster.storage import load_members

DAY_NS = 86_400 * 10**9


def node(factory: NodeFactory, name: str, **options: Any) -> NodeProcess:
    return factory("--node-id", name, "--set", "anti_entropy.enabled=false", **options)


def ask(process: NodeProcess, request: str) -> str:
    with process.connect() as client:
        return client.ask(request)


def sync(one: NodeProcess, other: NodeProcess) -> str:
    return ask(one, f"SYNC 127.0.0.1 {other.port}")


def rows(place: str | Path) -> dict[str, dict[str, Any]]:
    found = json.loads(succeeds("members", place, "--json"))
    return {row["node"]: row for row in found["members"]}


def test_a_node_by_itself(node_factory: NodeFactory) -> None:
    alone = node(node_factory, "a")
    found = rows(address(alone))
    assert [(row["node"], row["state"], row["gc_horizon_ns"]) for row in found.values()] == [("a", "self", 0)]
    assert len(bytes.fromhex(found["a"]["store_id"])) == 8
    assert (
        succeeds("members", address(alone))
        .decode()
        .endswith("no other member is known here: a node that never met one keeps nothing of deleted keys\n")
    )


def test_a_directory_that_no_node_has_run_on(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    assert succeeds("members", tmp_path / "data").decode() == (
        "no members are known here: no node has run on this directory yet\n"
    )
    assert json.loads(succeeds("members", tmp_path / "data", "--json"))["members"] == []


def test_members_who_holds_back_and_the_way_out(node_factory: NodeFactory) -> None:
    a, b, c = (node(node_factory, name) for name in "abc")
    assert sync(a, b) == "OK"
    assert sync(a, c) == "OK"
    assert ask(a, "SET k v") == "OK"
    assert ask(a, "DEL k") == "DELETED"
    c.stop()
    for _ in range(3):
        assert sync(a, b) == "OK"
    found = rows(address(a))
    assert found["b"]["address"] == address(b)
    assert found["c"]["holds_back"] in ("applied_through", "stable", "view")
    assert found["b"]["applied_through_ns"] > found["c"]["applied_through_ns"] > 0
    assert 0 <= found["c"]["contact_ms"] < 60_000
    assert figure(a, "db_tombstones") == 1, "c does not have it yet"

    text = succeeds("forget", "c", "--at", address(a)).decode()
    assert text == "c is removed: if it returns, back up its data directory, and start it with a new one\n"
    for _ in range(3):
        assert sync(a, b) == "OK"
    assert {name: row["state"] for name, row in rows(address(b)).items()} == {
        "a": "member",
        "b": "self",
        "c": "removed",
    }
    wait_until(lambda: figure(a, "db_tombstones") == figure(b, "db_tombstones") == 0, what="the tombstone to go")

    c.start()
    for one, other in ((a, c), (c, b)):
        assert "node c was removed from its cluster: back up its data directory with merklekv" in sync(one, other)
    c.stop()
    found = rows(c.directory)
    assert [(name, found[name]["state"]) for name in "abc"] == [("a", "member"), ("b", "member"), ("c", "self")]


def figure(process: NodeProcess, name: str) -> int:
    with process.connect() as client:
        lines = client.ask_lines("STATS all")
    return int(dict(line.split(":", 1) for line in lines[1:])[name])


def test_a_forgotten_node_that_starts_empty_is_a_new_member(node_factory: NodeFactory, tmp_path: Path) -> None:
    a, b = node(node_factory, "a"), node(node_factory, "b")
    assert ask(a, "SET k v") == "OK"
    assert sync(a, b) == "OK"
    b.stop()
    store_id = rows(address(a))["b"]["store_id"]
    verdict = json.loads(succeeds("forget", "b", "--at", address(a), "--store-id", store_id, "--json"))
    assert verdict == {"at": address(a), "removed": "b", "store_id": store_id}
    again = node(node_factory, "b", directory=tmp_path / "empty")
    assert sync(again, a) == "OK"
    assert ask(again, "GET k") == "VALUE v"
    found = json.loads(succeeds("members", address(a), "--json"))["members"]
    assert [(row["node"], row["state"]) for row in found] == [("a", "self"), ("b", "member"), ("b", "removed")]
    assert found[2]["store_id"] == store_id != found[1]["store_id"]


def test_forgetting_who_cannot_be(node_factory: NodeFactory, tmp_path: Path) -> None:
    a = node(node_factory, "a")
    for words, said in (
        (["nobody"], "nobody: no such member"),
        (["a"], "a is this node itself"),
        (["nobody", "--store-id", "xyz"], "a store id is 16 hex digits"),
    ):
        fails(exit_codes.EXIT_NODE, said, done=run("forget", *words, "--at", address(a)))
    fails(EXIT_USAGE, "give HOST:PORT", done=run("forget", "a", "--at", tmp_path))
    fails(EXIT_USAGE, "--at", done=run("forget", "a"))
    fails(exit_codes.EXIT_UNREACHABLE, "refused", done=run("forget", "a", "--at", "127.0.0.1:1"))


def row(node: str, **fields: Any) -> dict[str, Any]:
    whole = {"node": node, "store_id": "00" * 8, "state": "member", "address": "h:1", "contact_ms": 5000}
    return whole | {"applied_through_ns": DAY_NS, "stable_ns": DAY_NS, "holds_back": "", "refuses": ""} | fields


def test_the_table_says_what_holds_collection_back() -> None:
    found: list[Mapping[str, int | str]] = [
        row("self", state="self", address="", contact_ms=-1),
        row("b", holds_back="applied_through"),
        row("new", store_id="", holds_back="unmet", applied_through_ns=0, stable_ns=0),
        row("c", holds_back="of a later release"),
    ]
    lines = table(found, 3 * DAY_NS)
    assert lines[1].split() == ["self", "00" * 8, "self", "-", "-", "2", "d", "ago", "2", "d", "ago"]
    assert lines[2].endswith("5 s ago  2 d ago          2 d ago  its later writes are not applied here yet")
    assert "unknown" in lines[3]
    assert lines[3].endswith("-                -        no exchange with it yet")
    assert lines[4].endswith("of a later release")
    assert conclusion(found, DAY_NS, 3 * DAY_NS) == "deleted keys from before the GC horizon, 2 d ago, are collected"
    assert conclusion(found, 0, 3 * DAY_NS) == "no deleted key was collected yet"
    assert table(found, -DAY_NS)[1].split()[5:] == ["in", "2", "d", "in", "2", "d"], "a clock was wrong"


def test_a_narrow_terminal_shows_a_line_for_each_fact(tmp_path: Path) -> None:
    place = tmp_path / "data"
    with opened(place) as engine:
        load_members(engine, "node-1")
    store_id = rows(place)["node-1"]["store_id"]
    for columns, shown in ((200, "node    store id "), (40, f"node-1\n    store id: {store_id}\n    state: self\n\n")):
        with Terminal([*TOOL, "members", str(place)], columns=columns) as terminal:
            assert terminal.end() == 0
        assert terminal.text().startswith(shown)
    assert blocks([row("b", holds_back="unmet", applied_through_ns=0)], 3 * DAY_NS) == [
        "b",
        f"    store id: {'00' * 8}",
        "    state: member",
        "    address: h:1",
        "    contact: 5 s ago",
        "    stable: 2 d ago",
        "    holds back GC because: no exchange with it yet",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172_800, "2 d")],
)
def test_ages_for_people(seconds: int, words: str) -> None:
    assert age(seconds) == words
