"""Real nodes whose wall clocks go wrong (libfaketime), at a real broker: no lasting harm, and each says what is wrong.

Nothing here waits for anti-entropy: SYNC exchanges at once, and its reply is the exchange's error.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, NamedTuple

import pytest
from fixtures.cluster import NodeHandle, Outsider, ReplicationTestHarness, make_event
from fixtures.node import NodeFactory
from fixtures.support import wait_until
from fixtures.tools import TOOL, address, succeeds

from merklekv.exit_codes import EXIT_USAGE
from merklekv.net.client import Client
from merklekv.net.commands import records
from merklekv.replication.cluster.members import Identity, MemberRow, MemberTable, SelfReport
from merklekv.replication.sync.messages import Hello, decode, encode

pytestmark = pytest.mark.replication

SECOND_NS: Final = 10**9
DAY_S: Final = 86_400
SMALLEST_S: Final = 5
YEARS_S: Final = 9 * 365 * DAY_S
DRIFT_S: Final = 600
TO_1970_S: Final = 1 - int(time.time())

Moment = Literal["start", "running"]


class FakeClock:
    """The wall clock of a process, which a test sets at any time; its other clocks are real.

    Not the command `faketime`: it stays as a parent between the test and the node, which would outlive it.
    """

    def __init__(self, place: Path) -> None:
        self._offset = place
        libraries = list(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
        assert libraries, "apt-get install faketime"
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(place),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, seconds: int, *nodes: NodeHandle) -> None:
        """It is off by so many seconds.  Waits until these nodes, which have it, notice: they look once a second."""
        draft = self._offset.with_suffix(".new")
        draft.write_text(f"{seconds:+d}s")
        draft.replace(self._offset)
        for node in nodes:
            wait_until(lambda node=node: abs(node.figure("server_time_unix") - time.time() - seconds) < SMALLEST_S / 2)


@pytest.fixture
def clock(tmp_path: Path) -> FakeClock:
    return FakeClock(tmp_path / "clock")


def sync(one: NodeHandle, other: NodeHandle) -> str:
    return one.ask(f"SYNC 127.0.0.1 {other.process.port}")


def problem_of(node: NodeHandle) -> str:
    return node.figures()["clock_problem"]


def restamp(node: NodeHandle) -> str:
    """Restamps the directory of a node that runs; the node runs again."""
    node.stop()
    said = succeeds("restamp", node.process.directory).decode()
    node.start()
    node.wait_connected()
    return said


def is_near(node: NodeHandle) -> bool:
    """Whether all that the node has stamped or seen is near the time of this machine."""
    return node.figure("clock_ns") < time.time_ns() + DRIFT_S * SECOND_NS


def assert_takes_part(node: NodeHandle, others: list[NodeHandle]) -> None:
    """What each node writes reaches the others as an event, in exchanges they agree, and nobody has a problem."""
    for one in (node, *others):
        key = f"fresh-{one.node_id}-{time.monotonic_ns()}"
        one.set(key, "1")
        for other in (node, *others):
            other.wait_for(key, "1")
    for other in others:
        assert sync(node, other) == "OK"
        assert sync(other, node) == "OK"
        assert is_near(other)
    assert len({one.root() for one in (node, *others)}) == 1
    assert [problem_of(one) for one in (node, *others)] == [""] * (1 + len(others))
    node.ask("SET last 1")
    assert is_near(node)


class Wrong(NamedTuple):
    """How a wall clock goes wrong."""

    offsets_s: tuple[int, ...]
    moment: Moment
    writes: bool
    says: str  # in the node's own log or status while it is wrong
    exchange: str  # in the error of an exchange then; empty if it goes on


CASES: Final = {
    "seconds": Wrong((SMALLEST_S,), "running", True, "jumped forward by 5 s", ""),
    "days": Wrong((2 * DAY_S,), "running", False, "jumped forward by 172800 s", "clock is ahead of node other's by 17"),
    "days-start": Wrong((2 * DAY_S,), "start", True, "", "node node's clock is ahead of node other's by 17"),
    "years-start": Wrong((YEARS_S,), "start", False, "", "node node's clock is ahead of node other's by 28"),
    "years": Wrong((YEARS_S,), "running", True, "jumped forward by 28", "clock is ahead of node other's by 28"),
    "back": Wrong((-2 * DAY_S,), "running", True, "jumped back by 172800 s", "node node stamps its writes after"),
    "1970": Wrong((TO_1970_S,), "start", True, "the wall clock of node node was never set, it shows", "was never set"),
    "jumping": Wrong(
        (2 * DAY_S, 0, 3 * DAY_S, -DAY_S), "running", True, "jumped back by", "node node stamps its writes after"
    ),
}


@pytest.mark.parametrize("wrong", CASES.values(), ids=CASES)
def test_a_clock_that_was_wrong_does_no_lasting_harm(
    harness: ReplicationTestHarness, clock: FakeClock, wrong: Wrong
) -> None:
    node = harness.create_node("node", environment=clock.environment)
    other = harness.create_node("other")
    node.set("before", "1")
    other.wait_for("before", "1")
    assert sync(node, other) == "OK"
    if wrong.moment == "start":
        node.stop()
    for step, offset_s in enumerate(wrong.offsets_s):
        clock.set(offset_s, *([] if wrong.moment == "start" else [node]))
        if wrong.moment == "start":
            node.start()
        elif not step:
            wait_until(lambda: "jumped" in node.process.output())
        if wrong.writes:
            for request in (f"SET poisoned-{step} 1", "INCR n", "SET before 2"):
                assert not node.ask(request).startswith("ERROR")
    for one, its_peer in ((node, other), (other, node)):
        if wrong.exchange:
            assert wrong.exchange in sync(one, its_peer)
            wait_until(lambda: any(wrong.exchange in each.process.output() for each in (node, other)))
        else:
            assert sync(one, its_peer) == "OK"
    wait_until(lambda: wrong.says in node.process.output() + problem_of(node))
    assert is_near(other)
    other.set("honest", "1")
    clock.set(0, node)
    if wrong.moment == "start":
        node.stop()
        node.start()
        node.wait_connected()
    if wrong.writes and max(wrong.offsets_s) > DRIFT_S:
        node.set("fresh", "1")  # only what was written then is affected
        other.wait_for("fresh", "1")
        assert "merklekv restamp where the record is stored" in sync(node, other)
        assert "poisoned-0" in "".join(node.figures()) + "".join(other.figures())
        assert other.get("poisoned-0") is None
        directory = str(node.process.directory)
        wait_until(lambda: f"merklekv restamp {directory}" in problem_of(node))
        wait_until(lambda: directory in node.process.output())
        assert directory in node.ask("REPLICATE status")
        assert directory in succeeds("members", address(node.process)).decode()
        assert directory not in problem_of(other)
        said = restamp(node)
        assert "poisoned-0" in said
        assert "; the other nodes remove the former one\n" in said
        assert sync(node, other) == "OK"
    assert sync(node, other) == "OK"
    if wrong.writes:
        assert [other.get(f"poisoned-{step}") for step, _ in enumerate(wrong.offsets_s)] == ["1"] * len(wrong.offsets_s)
        assert (other.get("n"), other.get("before")) == (str(len(wrong.offsets_s)), "2")
    assert node.get("honest") == "1"
    assert_takes_part(node, [other])
    found = json.loads(succeeds("members", address(other.process), "--json"))["members"]
    assert [row["node"] for row in found if row["state"] == "member"] == ["node"]


def test_nodes_that_are_wrong_in_the_same_way_and_the_third_that_is_right(
    harness: ReplicationTestHarness, clock: FakeClock
) -> None:
    """Two nodes agree in the future, on records of each other, closed timestamps and a GC horizon."""
    a, b = (harness.create_node(name, environment=clock.environment) for name in "ab")
    c = harness.create_node("c")
    d = harness.create_node("d")
    assert {sync(a, b), sync(c, d), sync(d, c), sync(a, c), sync(b, d)} == {"OK"}
    clock.set(YEARS_S, a, b)
    for node in (a, b):
        wait_until(lambda node=node: "jumped forward" in node.process.output())
    a.set("poisoned", "1")
    b.wait_for("poisoned", "1")
    for _ in range(3):
        assert {sync(a, b), sync(b, a)} == {"OK"}
    assert "set the clock of node a; that of node c agrees with 1 other node" in sync(a, c)
    assert "set the clock of node a; that of node c agrees with 1 other node" in problem_of(c)
    assert c.get("poisoned") is None
    clock.set(0, a, b)
    for node in (a, b):
        wait_until(lambda node=node: "merklekv restamp" in node.process.output())
        assert "stamps its writes after" in problem_of(node)
        assert f"node {node.node_id} stamps its writes after" in sync(c, node)
    assert problem_of(c) == "", "what a and b have said of their wall clocks before is of no use any more"
    c.set("honest", "1")
    for node in (a, b):
        restamp(node)
    for _ in range(2):
        assert {sync(one, other) for one in (a, b, c, d) for other in (a, b, c, d) if one is not other} == {"OK"}
    assert [node.get("poisoned") for node in (a, b, c, d)] == ["1"] * 4
    assert_takes_part(a, [b, c, d])


def test_all_clocks_were_wrong_together(harness: ReplicationTestHarness, clock: FakeClock) -> None:
    """The steps of docs/operations.md: stop all nodes, restamp each, start all.  No record is lost, none comes back."""
    nodes = [harness.create_node(name, environment=clock.environment) for name in "abc"]
    pairs = [(one, other) for one in nodes for other in nodes if one is not other]
    nodes[0].set_many({"kept": "1", "overwritten": "1", "deleted": "1", "deleted-later": "1"})
    nodes[2].wait_for("deleted-later", "1")
    assert {sync(*pair) for pair in pairs} == {"OK"}
    clock.set(2 * DAY_S, *nodes)
    for node in nodes:
        wait_until(lambda node=node: "jumped forward" in node.process.output())
    nodes[0].set("overwritten", "2")
    assert nodes[1].ask("DEL deleted") == "DELETED"
    for node in nodes:
        node.set(f"future-{node.node_id}", "1")
    for _ in range(3):
        assert {sync(*pair) for pair in pairs} == {"OK"}
    assert nodes[2].get("overwritten") == "2"
    assert [problem_of(node) for node in nodes] == [""] * 3
    clock.set(0, *nodes)
    for node in nodes:
        wait_until(lambda node=node: "stamps its writes after" in problem_of(node))
        assert f"merklekv restamp {node.process.directory}" in problem_of(node)
        node.set(f"only-{node.node_id}", "1")
    assert nodes[0].ask("DEL deleted-later") == "DELETED"
    for one, other in pairs[::2]:
        error = sync(one, other)
        assert f"node {one.node_id} stamps its writes after" in error
        assert sync(one, other) == error, "so it is logged once"
    for node in nodes:
        node.stop()
    assert "would be a new member" in succeeds("restamp", nodes[0].process.directory, "--dry-run").decode()
    for node in nodes:
        assert " is a new member" in succeeds("restamp", node.process.directory).decode()
    for node in nodes:
        node.start()
        node.wait_connected()
    for _ in range(2):
        assert {sync(*pair) for pair in pairs} == {"OK"}
    expected = {"kept": "1", "overwritten": "2", "deleted": None, "deleted-later": None}
    expected |= {f"{word}-{name}": "1" for word in ("future", "only") for name in "abc"}
    for node in nodes:
        assert {key: node.get(key) for key in expected} == expected
        assert problem_of(node) == ""
    assert_takes_part(nodes[0], nodes[1:])


def test_a_node_alone_says_what_is_wrong_and_is_restamped(node_factory: NodeFactory, clock: FakeClock) -> None:
    node = NodeHandle("alone", node_factory("--node-id", "alone", environment=clock.environment))
    node.set("kept", "1")
    clock.set(YEARS_S, node)
    wait_until(lambda: "the wall clock of node alone jumped forward by 28" in node.process.output())
    assert node.ask("FLUSHDB") == "OK"
    node.set("poisoned", "1")
    clock.set(0, node)
    wait_until(lambda: "merklekv restamp" in problem_of(node))
    node.stop()
    node.start()
    assert "node alone has a FLUSHALL of 20" in node.process.output()
    node.stop()
    command = [*TOOL, "restamp", str(node.process.directory)]
    clock.set(TO_1970_S)
    done = subprocess.run(command, env=node.process.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "was never set: set it first" in done.stderr) == (EXIT_USAGE, True)
    clock.set(0)
    said = succeeds("restamp", node.process.directory).decode()
    assert "the FLUSHALL of 20" in said
    assert "    poisoned\n" in said
    node.start()
    assert problem_of(node) == ""
    node.set("fresh", "1")
    assert (node.get("poisoned"), node.get("kept")) == ("1", None)
    assert is_near(node)
    node.disconnect()


FAR: Final = {"an hour": 3600, "ten years": 10 * 365 * DAY_S, "the largest": (1 << 63) // SECOND_NS - int(time.time())}


def test_liars_harm_nothing_but_what_they_wrote(harness: ReplicationTestHarness, outsider: Outsider) -> None:
    """Over MQTT and over EXCHANGE, in each field that has a time."""
    node, other = harness.create_nodes(2)
    node.set("kept", "1")
    other.wait_for("kept", "1")
    assert sync(node, other) == "OK"
    found = json.loads(succeeds("members", address(node.process), "--json"))["members"]
    own = Identity(node.node_id, bytes.fromhex(found[0]["store_id"]))
    third = Identity(other.node_id, bytes.fromhex(found[1]["store_id"]))
    evil = Identity("outsider", b"evilevil")
    with Client("127.0.0.1", node.process.port) as client:
        for far_s in FAR.values():
            at = min(time.time_ns() + far_s * SECOND_NS, (1 << 63) - 1)
            truncate = make_event("", None, op="truncate", ts=at)
            del truncate["key"]
            outsider.publish(make_event("kept", b"lie", ts=at), make_event("kept", None, ts=at), truncate)
            told = MemberRow(at, at, SelfReport(at, at, b"x" * 8))
            for table in (
                MemberTable(evil, SelfReport(at, 0, b"x" * 8)),
                MemberTable(evil, SelfReport(0, at, b"x" * 8)),
                MemberTable(evil, SelfReport(0, 0, b"x" * 8), {own: told}),
                MemberTable(evil, SelfReport(0, 0, b"x" * 8), {third: told}),
                MemberTable(evil, SelfReport(0, 0, b"x" * 8), {}, stable_through={own: at, evil: at}),
                MemberTable(evil, SelfReport(0, 0, b"x" * 8), {}, removed={third: at}, redeleted={own: at}),
            ):
                for horizon, truncation in ((0, bytes(24)), (at, bytes(24)), (0, at.to_bytes(8, "big") + b"t" * 16)):
                    hello = Hello(harness.prefix, b"epoc", truncation, horizon, b"", 1, 1 << 20, table)
                    answered, _ = decode(records.ask(client, encode("hello", hello=hello.plain())), 1 << 20)
                    assert answered in ("hello", "refused")
    outsider.publish(make_event("done"))
    for one in (node, other):
        one.wait_for("done", "v")
    for one in (node, other):
        one.stop()
        one.start()
        one.wait_connected()
    assert node.get("kept") == other.get("kept") == "1"
    assert node.figure("gc_horizon_ns") < time.time_ns()
