"""Anti-entropy of several nodes in one process: which nodes exchange, when, and what becomes of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.anti_entropy import LONG_S, Gone, Line, Net, Node
from fixtures.support import WAIT_S, run_out_of_room, wait_until

from merklekv.errors import DiskFull, InvalidArgument, MerkleKVError, StorageFailed
from merklekv.metrics import LABELS_MAX
from merklekv.replication.cluster.members import UnknownMember
from merklekv.replication.cluster.presence import OFFLINE, ONLINE, Status
from merklekv.replication.cluster.storage import load_members
from merklekv.replication.sync import anti_entropy as module
from merklekv.replication.sync import initiator as initiator_module
from merklekv.replication.sync import responder, schedule
from merklekv.replication.sync.anti_entropy import Stopped
from merklekv.replication.sync.messages import ExchangeRefused

Make = Callable[..., Node]


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def make(net: Net, tmp_path: Path) -> Iterator[Make]:
    made: list[Node] = []

    def make_one(name: str, **options: Any) -> Node:
        made.append(Node(net, tmp_path / name, **options))
        return made[-1]

    yield make_one
    net.before = lambda asking, address: None
    for node in made:
        node.anti_entropy.stop()
        node.engine.close()
        assert not node.failures


def alike(*nodes: Node) -> bool:
    return len({node.engine.root() for node in nodes}) == 1


def test_configured_peers_exchange_at_the_start(make: Make, net: Net) -> None:
    a, b = make("a", addresses=["b:1", "a:1"]), make("b")
    a.engine.set(b"k", b"from a")
    b.engine.set(b"other", b"from b")
    a.start()
    wait_until(lambda: a.figure("exchange_peers_in_sync"))
    assert alike(a, b)
    figures = a.figures()
    assert figures["exchange_peers"] == 1, "no peer is at its own address"
    assert net.connects == [("a", "b:1")]
    assert (figures['exchange_keys_sent{peer="b"}'], figures['exchange_keys_received{peer="b"}']) == (1, 1)
    assert (figures['peer_address{peer="b"}'], figures['peer_in_sync{peer="b"}']) == ("b:1", 1)
    assert b.figure("exchange_served") == 1
    assert dict(a.anti_entropy.words()) == {"peers": 1, "in_sync": 1}
    assert dict(b.anti_entropy.words()) == {}
    assert {type(value) for value in figures.values()} <= {int, str}, "True is no number"


def test_an_exchange_is_awaited_from_the_start_and_after_missed_events(make: Make, net: Net) -> None:
    a, b, c = make("a", addresses=["b:1", "c:1"]), make("b"), make("c")
    go_on = threading.Event()
    net.before = lambda asking, address: go_on.wait(WAIT_S)
    assert a.anti_entropy.awaited(0) == ["b:1", "c:1"], "before it could exchange"
    assert b.anti_entropy.awaited(0) == [], "it knows no peer"
    a.start()
    wait_until(lambda: a.figure("exchange_running"))
    assert a.anti_entropy.awaited(0) == ["b:1", "c:1"]
    net.unreachable.add("c:1")
    go_on.set()
    wait_until(lambda: not a.anti_entropy.awaited(0), what="one peer that answers")
    missed_at = time.monotonic()
    c.anti_entropy.on_status(a.status())  # from here on c has a peer
    assert c.anti_entropy.awaited(missed_at) == ["a:1"]
    net.unreachable.clear()
    a.sync(c)
    assert c.anti_entropy.awaited(missed_at) == [], "it was served"
    assert a.anti_entropy.awaited(missed_at) == []


def test_a_peer_that_does_not_answer_is_not_awaited(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "RETRY_MIN_S", 0.01)
    a = make("a", addresses=["gone:1"]).start()
    assert a.anti_entropy.awaited(0) in (["gone:1"], [])
    wait_until(lambda: a.figure("exchange_failures") >= module.AWAITED_TRIES)
    assert a.anti_entropy.awaited(0) == []


def test_the_metrics_show_the_peers_without_an_exchange_for_longest(make: Make) -> None:
    b = make("b")
    a = make("a", addresses=["b:1", *(f"absent-{number}:1" for number in range(LABELS_MAX))])
    a.sync(b)
    figures = a.figures()
    assert (figures["exchange_peers"], figures["exchange_peers_in_sync"], figures["peers_not_shown"]) == (101, 1, 1)
    names = {name for name in figures if name.startswith("peer_in_sync")}
    assert names == {f'peer_in_sync{{peer="absent-{number}:1"}}' for number in range(LABELS_MAX)}


def test_a_shortage_while_it_slept_is_no_refusal(make: Make) -> None:
    a, b = make("a").start(), make("b")
    b.engine.set(b"k", b"v")
    wait_until(lambda: a.anti_entropy._changed._waiters, what="its thread to sleep")  # type: ignore[attr-defined]
    run_out_of_room(a.engine)
    a.anti_entropy.on_status(b.status())
    wait_until(lambda: a.figure("exchange_completed"))
    assert a.engine.get(b"k") == b"v"


def test_a_shortage_before_a_sync_is_no_refusal(make: Make) -> None:
    a, b = make("a"), make("b")
    b.engine.set(b"k", b"v")
    go, reports = threading.Event(), []

    def sync() -> None:
        assert go.wait(WAIT_S)
        reports.append(a.sync(b))

    thread = threading.Thread(target=sync)
    thread.start()
    run_out_of_room(a.engine)
    go.set()
    thread.join(WAIT_S)
    assert len(reports) == 1
    assert a.engine.get(b"k") == b"v"


def test_a_node_whose_status_arrives_becomes_a_member_and_a_peer(make: Make) -> None:
    a, b = make("a").start(), make("b").start()
    b.engine.set(b"k", b"v")
    a.anti_entropy.on_status(b.status(OFFLINE))
    wait_until(lambda: a.figure("members") == 2)
    wait_until(lambda: len(load_members(a.engine, "a")) == 2, what="it to be kept")
    assert a.figure("exchange_peers") == 0, "it is not there"
    a.anti_entropy.on_status(b.status())
    wait_until(lambda: a.figure("exchange_completed"))
    assert a.engine.get(b"k") == b"v"
    a.anti_entropy.on_status(b.status(OFFLINE))
    wait_until(lambda: a.figure("exchange_peers") == 0)
    assert a.figure("members") == 2, "it remains one"


def test_a_gap_is_repaired_at_once_and_only_with_its_node(make: Make, net: Net) -> None:
    a, b, c = make("a", addresses=["b:1", "c:1"]), make("b"), make("c")
    a.start()
    wait_until(lambda: a.figure("exchange_peers_in_sync") == 2)
    b.engine.set(b"k", b"lost")
    before = list(net.connects)
    a.anti_entropy.wake("b", "gap")
    wait_until(lambda: a.engine.get(b"k") == b"lost")
    assert net.connects[len(before) :] == [("a", "b:1")]
    c.engine.set(b"any", b"lost")
    a.anti_entropy.wake("", "session lost")
    wait_until(lambda: a.engine.get(b"any") == b"lost")
    a.anti_entropy.wake("unknown", "gap")


def test_the_interval_brings_it_again(make: Make) -> None:
    a, b = make("a", addresses=["b:1"], interval_s=0.01), make("b")
    a.start()
    wait_until(lambda: a.figure("exchange_completed"))
    b.engine.set(b"k", b"v")
    wait_until(lambda: a.engine.get(b"k") == b"v")


def test_many_deletions_bring_it_before_the_interval_ends(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their tombstones wait for exchanges.  Those that stay because a member is away bring it no more often."""
    monkeypatch.setattr(module, "DELETIONS_MAX", 9)
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(schedule, "NUDGE_S", 0)
    a, b = make("a", addresses=["b:1"]), make("b")
    a.start()
    wait_until(lambda: a.figure("exchange_peers_in_sync"))
    away = make("away")
    a.anti_entropy.on_status(away.status(OFFLINE))
    wait_until(lambda: a.figure("members") == 3)
    completed = a.figure("exchange_completed")
    for number in range(3):
        for key in range(10):
            a.engine.set(b"%d %d" % (number, key), b"v")
            a.engine.delete(b"%d %d" % (number, key))
        wait_until(lambda: b.engine.tombstone_count == a.engine.tombstone_count)
    wait_until(lambda: a.figure("exchange_peers_in_sync") and not a.figure("exchange_running"))
    assert a.engine.tombstone_count == 30
    assert a.figure("exchange_completed") - completed <= 6


def test_a_peer_that_is_away_is_found_again(make: Make, net: Net, caplog: pytest.LogCaptureFixture) -> None:
    a, b = make("a", addresses=["b:1"]), make("b")
    net.unreachable.add("b:1")
    a.start()
    wait_until(lambda: a.figure("exchange_failures") >= 2)
    assert a.figures()['peer_error{peer="b:1"}'] == "b:1: cannot connect"
    assert caplog.text.count("exchange with b:1 failed: b:1: cannot connect") == 1, "told once"
    net.unreachable.clear()
    a.anti_entropy.on_status(b.status())
    wait_until(lambda: a.figure("exchange_peers_in_sync") == 1)
    assert 'peer_error{peer="b"}' not in a.figures()


def test_two_that_begin_at_once_do_it_once(make: Make, net: Net) -> None:
    """The one with the smaller id goes on."""
    a, b = make("a"), make("b")
    assert a.sync(b).node == "b"
    a.anti_entropy.on_status(b.status())
    b.anti_entropy.on_status(a.status())
    both = threading.Barrier(2, timeout=WAIT_S)
    steps: list[str] = []

    def meet(asking: Node, address: str) -> None:
        if asking.name not in steps:
            steps.append(asking.name)
            both.wait()

    net.before = meet
    a.start()
    b.start()
    wait_until(lambda: a.figure("exchange_peers_in_sync") == b.figure("exchange_peers_in_sync") == 1)
    assert a.figure("exchange_completed") == 1
    assert b.figure("exchange_failures") == 0, "to give way is no failure"


def test_sync_waits_for_a_busy_peer(make: Make, net: Net) -> None:
    a, b = make("a"), make("b")
    a.sync(b)
    go_on = threading.Event()
    reached = threading.Event()

    def block(asking: Node, address: str) -> None:
        if asking is a and not reached.is_set():
            reached.set()
            go_on.wait(WAIT_S)

    net.before = block
    running = threading.Thread(target=lambda: a.sync(b))
    running.start()
    assert reached.wait(WAIT_S)
    a.anti_entropy._running["b:1"] = "b"
    waiting = threading.Thread(target=lambda: b.sync(a))
    waiting.start()
    wait_until(lambda: ("b", "a:1") in net.connects)
    assert waiting.is_alive()
    go_on.set()
    running.join(WAIT_S)
    waiting.join(WAIT_S)
    assert not waiting.is_alive()


def test_an_exchange_with_a_peer_that_this_node_serves_waits_for_its_end(
    make: Make, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make("a"), make("b")
    b.engine.set(b"k", b"v")
    a.sync(b)
    a.engine.set(b"k", b"newer")
    a.anti_entropy.on_status(b.status())
    steps: list[str] = []
    go_on = threading.Event()

    def block(asking: Node, address: str) -> None:
        steps.append(asking.name)
        if asking is b and steps.count("b") == 2:
            go_on.wait(WAIT_S)

    net.before = block
    running = threading.Thread(target=lambda: b.sync(a))
    running.start()
    wait_until(lambda: steps.count("b") == 2)
    monkeypatch.setattr(responder, "SERVING_S", 60)  # however slow this machine is
    a.start()
    wait_until(lambda: a.figure("exchange_peers") == 1)
    wait_until(lambda: a.anti_entropy._peers.at("b:1").schedule.ended > 0, what="it to be put off")
    assert "a" not in steps
    go_on.set()
    running.join(WAIT_S)
    wait_until(lambda: a.figure("exchange_peers_in_sync") == 1)


@pytest.mark.parametrize("begun", [False, True], ids=["served", "begun"])
def test_an_exchange_waits_while_one_with_another_node_goes_on(
    make: Make, net: Net, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """It could move the GC horizon, and the one that goes on would begin again."""
    a, b, c = make("a"), make("b"), make("c")
    b.engine.set(b"k", b"v")
    asking, asked = (a, b) if begun else (b, a)
    steps: list[str] = []
    go_on = threading.Event()

    def block(node: Node, address: str) -> None:
        steps.append(node.name)
        if node is asking and steps.count(asking.name) == 2:
            go_on.wait(WAIT_S)

    net.before = block
    monkeypatch.setattr(responder, "SERVING_S", 60)  # however slow this machine is
    monkeypatch.setattr(module, "BUSY_PATIENCE_S", 0)
    running = threading.Thread(target=lambda: asking.sync(asked))
    running.start()
    wait_until(lambda: steps.count(asking.name) == 2)
    for one in (a, b):
        with pytest.raises(ExchangeRefused, match=f"node {one.name} exchanges with another node"):
            c.sync(one)
    monkeypatch.setattr(schedule, "PUT_OFF_S", LONG_S)  # or it would begin at the same time as that of c below
    a.anti_entropy.on_status(c.status())
    a.start()
    wait_until(lambda: a.anti_entropy._peers.at("c:1").schedule.ended > 0, what="it to be put off")
    assert ("a", "c:1") not in net.connects
    with monkeypatch.context() as later:
        later.setattr(responder, "EXCLUSIVE_S", 0)
        later.setattr(module, "EXCLUSIVE_S", 0)
        c.sync(a)
    go_on.set()
    running.join(WAIT_S)
    c.sync(b)
    wait_until(lambda: a.figure("exchange_peers_in_sync") == 1)
    assert alike(a, b, c)


def test_an_exchange_that_does_not_end_gives_way(make: Make, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    a, long, b = make("a", addresses=["long:1"]), make("long"), make("b")
    for number in range(200):
        long.engine.set(b"%d" % number, b"v")
    a.engine.set(b"0", b"v")
    b.engine.set(b"k", b"v")
    monkeypatch.setattr(initiator_module, "BATCH_BUCKETS", 1)
    monkeypatch.setattr(initiator_module, "PAGES_RATIO", 1000)  # it compares, a bucket at a time
    monkeypatch.setattr(module, "EXCLUSIVE_S", 0)
    steps: list[str] = []

    def count(asking: Node, address: str) -> None:
        steps.append(address)
        if len(steps) == 5:
            a.anti_entropy.on_status(b.status())

    net.before = count
    a.start()
    wait_until(lambda: a.figure("exchange_peers_in_sync") == 2)
    assert steps[:6] == ["long:1"] * 5 + ["b:1"]
    assert steps.count("long:1") > 200, "it goes on where it was"
    assert a.figure("exchange_failures") == 0
    assert alike(a, long)


def test_a_first_copy_that_others_interrupt_ends(make: Make, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    a, long, _ = make("a", addresses=["long:1", "b:1"]), make("long"), make("b")
    for number in range(1600):
        long.engine.set(b"%d" % number, b"v")
    for number in range(100):
        a.engine.set(b"%d" % number, b"v")
    for where in (initiator_module, responder):
        monkeypatch.setattr(where, "BATCH_RECORDS", 10)
    monkeypatch.setattr(responder, "SLICE_READS", 10)
    monkeypatch.setattr(module, "EXCLUSIVE_S", 0.01)
    monkeypatch.setattr(schedule, "REST_S", 0)
    monkeypatch.setattr(schedule, "PUT_OFF_S", 0.01)

    def keep_due(asking: Node, address: str) -> None:
        if address == "long:1":
            a.anti_entropy.wake("b", "always")

    net.before = keep_due
    a.start()
    wait_until(lambda: alike(a, long) and a.figure("exchange_peers_in_sync") == 2)
    assert net.connects.count(("a", "long:1")) > 2, "it was cut"
    assert net.connects.count(("a", "b:1")) > 2
    assert a.figure("exchange_failures") == 0


def test_who_is_made_room_for_does_not_rest(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make("a", addresses=["b:1", "c:1"]), make("b")
    a.sync(b)
    peers = a.anti_entropy._peers
    doubtful = peers.at("c:1")
    now = time.monotonic() + 1
    a.anti_entropy._on_failure(peers.at("b:1"), ExchangeRefused(responder.BUSY, "another waits"), 1000)
    assert peers.next_due(now) is doubtful
    a.anti_entropy._on_failure(peers.at("b:1"), Gone("cut after a long time"), 1000)
    a.sync(b)
    assert peers.next_due(now) is None
    assert peers.next_due(now + module.EXCHANGE_TIMEOUT_S) is doubtful


def test_who_merely_announces_a_peer_does_not_vouch_for_it(make: Make, net: Net) -> None:
    a, b, evil = make("a"), make("b"), make("evil")
    a.anti_entropy.on_status(b.status())
    a.anti_entropy.on_status(replace(evil.status(), address="b:1"))
    evil.sync(a)
    assert (a.figure("exchange_served"), a.figure("exchange_peers_in_sync")) == (1, 0)
    b.sync(a)
    assert a.figure("exchange_peers_in_sync") == 1


def test_two_syncs_with_one_address_take_turns(make: Make, net: Net) -> None:
    a, b = make("a"), make("b")
    go_on = threading.Event()
    net.before = lambda asking, address: go_on.wait(WAIT_S)
    threads = [threading.Thread(target=lambda: a.sync(b)) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: net.connects)
    assert len(net.connects) == 1
    go_on.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(net.connects) == 3


def test_sync_says_what_is_wrong(make: Make) -> None:
    a, b = make("a"), make("b")
    with pytest.raises(Gone):
        a.anti_entropy.sync("nowhere", 1, False, False)
    with pytest.raises(ExchangeRefused, match="node a has reached itself"):
        a.sync(a)
    b.engine.set(b"k", b"v")
    assert a.sync(b, full=True, verify=True).keys_received == 1


def test_an_address_that_leads_back_to_this_node_is_logged(
    make: Make, net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = make("a", addresses=["me:1"]), make("b")
    net.nodes["me:1"] = a
    a.start()
    wait_until(lambda: a.figure("exchange_peers") == 0, what="the configured one to be known as its own")
    assert a.figure("exchange_failures") == 0
    a.anti_entropy.on_status(Status("b", ONLINE, "me:1", store_id=b.members.identity.store_id.hex()))
    wait_until(lambda: "set replication.advertise_address there" in caplog.text)
    assert "node b announces it" in a.figures()['peer_error{peer="b"}']


def test_tombstones_go_when_all_have_them(make: Make) -> None:
    a, b = make("a", addresses=["b:1"], interval_s=0.01), make("b").start()
    a.sync(b)  # a node that has met no other leaves no tombstone
    a.engine.set(b"k", b"v")
    a.engine.delete(b"k")
    assert a.engine.tombstone_count == 1
    a.start()
    wait_until(lambda: a.engine.tombstone_count == 0 and b.engine.tombstone_count == 0)
    assert a.figure("gc_horizon_ns") > 0
    assert alike(a, b)


@pytest.mark.parametrize("nudged", [True, False])
def test_a_peer_that_still_has_what_was_collected_is_nudged(
    make: Make, monkeypatch: pytest.MonkeyPatch, nudged: bool
) -> None:
    """Without waiting for the interval, and without an end to it."""
    monkeypatch.setattr("merklekv.replication.sync.schedule.NUDGE_S", 0.01 if nudged else LONG_S)
    a, b, c = make("a", addresses=["b:1", "c:1"]), make("b").start(), make("c").start()
    a.start()
    wait_until(lambda: a.figure("exchange_peers_in_sync") == 2)
    a.engine.set(b"k", b"v")
    a.engine.delete(b"k")
    for other in (b, c, b):
        a.sync(other)
    wait_until(lambda: a.engine.tombstone_count == 0)
    wait_until(lambda: not a.engine.log.pending, what="that to be committed")
    if nudged:
        wait_until(lambda: alike(a, b, c) and c.engine.tombstone_count == 0)
    else:
        assert c.engine.tombstone_count == 1


def test_a_removed_node_is_known_as_removed(make: Make) -> None:
    a, b = make("a").start(), make("b")
    a.sync(b)
    store_id = b.members.identity.store_id.hex()
    assert not a.anti_entropy.membership.is_removed("b", store_id)
    with pytest.raises(UnknownMember):
        a.anti_entropy.remove("unknown")
    with pytest.raises(InvalidArgument, match="a store id is 16 hex digits"):
        a.anti_entropy.remove("b", "xy")
    with pytest.raises(InvalidArgument, match="this node itself"):
        a.anti_entropy.remove("a")
    a.anti_entropy.remove("b", store_id)
    assert load_members(a.engine, "a").is_removed("b", bytes.fromhex(store_id)), "it is kept"
    assert a.anti_entropy.membership.is_removed("b", store_id)
    assert a.anti_entropy.membership.is_removed("b", ""), "no other one is known"
    assert not a.anti_entropy.membership.is_removed("b", "00" * 8)
    assert not a.anti_entropy.membership.is_removed("c", "")
    with pytest.raises(ExchangeRefused, match="then start it with a new one"):
        a.sync(b)
    a.anti_entropy.on_status(b.status())
    a.anti_entropy.on_status(Status("b", ONLINE, "b:1", store_id="00" * 8))
    wait_until(lambda: a.figure("members") == 2)
    assert not a.anti_entropy.membership.is_removed("b", "")


def test_malformed_names_and_addresses_do_no_harm(make: Make) -> None:
    a, b = make("a"), make("b")
    a.start()
    for status in (
        Status("n" * 600, ONLINE, "n:1"),
        Status("no-port", ONLINE, "host"),
        Status("long", ONLINE, "h" * 1000 + ":1"),
        Status("no-store-id", ONLINE, "", store_id="zz"),
        Status("a/b", ONLINE),
        Status("", ONLINE),
        b.status(),
    ):
        a.anti_entropy.on_status(status)
    wait_until(lambda: a.figures().get('peer_in_sync{peer="b"}') == 1)
    wait_until(lambda: a.figure("exchange_failures") >= 2)
    assert {row["node"] for row in a.anti_entropy.membership.rows()} == {"a", "b", "no-port", "long", "no-store-id"}
    assert a.figures()['peer_error{peer="no-port"}'] == "'host' is no address: give host:port"


def test_switched_off_it_exchanges_when_told_alone(make: Make, net: Net) -> None:
    a, b = make("a", addresses=["b:1"], regular=False).start(), make("b")
    a.anti_entropy.on_status(b.status())
    wait_until(lambda: a.figure("members") == 2)
    assert net.connects == []
    a.sync(b)
    assert net.connects == [("a", "b:1")]


def test_of_the_statuses_that_wait_the_latest_of_each_node_is_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NODES_MAX", 50)
    a, b = make("a"), make("b")
    a.anti_entropy.on_status(b.status())
    for number in range(1000):
        for other in range(49):
            a.anti_entropy.on_status(Status(f"n{other}", OFFLINE, f"n{other}:{number}"))
    a.start()
    wait_until(lambda: a.figure("members") == 51)
    rows = {row["node"]: row["address"] for row in a.anti_entropy.membership.rows()}
    assert rows["b"] == "b:1", "nodes that come and go do not push it out"
    assert {rows[f"n{other}"] for other in range(49)} == {f"n{other}:999" for other in range(49)}


def test_statuses_that_wait_are_bounded(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NODES_MAX", 50)
    a = make("a")
    for number in range(1000):
        a.anti_entropy.on_status(Status(f"n{number}", OFFLINE, f"n{number}:1"))
    assert len(a.anti_entropy._statuses) == 50
    before = a.engine.log.appended
    a.start()
    wait_until(lambda: not a.anti_entropy._statuses and a.figure("members") == 51)
    assert {row["node"] for row in a.anti_entropy.membership.rows()} == {"a", *(f"n{one}" for one in range(950, 1000))}
    assert a.engine.log.appended - before < 50, "the table is not stored for each of them"


def test_a_stop_cuts_what_is_under_way(make: Make, net: Net) -> None:
    a, b = make("a", addresses=["b:1"]), make("b")
    b.engine.set(b"k", b"v")
    lines: list[Line] = []

    def block(asking: Node, address: str) -> None:
        line = a.anti_entropy._transports[address]
        assert isinstance(line, Line)
        lines.append(line)
        line.closed.wait(WAIT_S)

    net.before = block
    a.start()
    wait_until(lambda: lines)
    a.anti_entropy.stop()
    assert not a.anti_entropy.worker.is_alive
    assert a.figure("exchange_failures") == 0, "the peer has not failed"
    with pytest.raises(Stopped):
        a.sync(b)


def test_rest_after_each_step_in_proportion(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def rest_s(worked_s: float, share_percent: int) -> float:
        asked.append(share_percent)
        return 0.0

    monkeypatch.setattr(module, "rest_s", rest_s)
    a, b = make("a", addresses=["b:1"], share_percent=30), make("b")
    b.engine.set(b"k", b"v")
    a.start()
    wait_until(lambda: a.figure("exchange_completed"))
    assert set(asked) == {30}
    assert len(asked) >= a.figure("exchange_rounds") - 1
    wait_until(lambda: not a.anti_entropy._may_collect)
    asked.clear()
    b.engine.set(b"k", b"w")
    a.sync(b)
    assert 100 in asked


def test_a_full_disk_is_a_failure_and_a_failing_one_ends_the_node(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = make("a", addresses=["b:1"]), make("b")

    def fail(error: MerkleKVError) -> Callable[..., None]:
        def flush() -> None:
            raise error

        return flush

    monkeypatch.setattr(a.engine, "flush", fail(DiskFull("no room")))
    a.start()
    wait_until(lambda: a.figures().get('peer_error{peer="b:1"}') == "no room")
    monkeypatch.setattr(a.engine, "flush", fail(StorageFailed("broken")))
    a.anti_entropy.wake("", "test")
    wait_until(lambda: a.failures)
    monkeypatch.undo()
    assert not a.anti_entropy.worker.is_alive
    a.failures.clear()
    assert b.failures == []


def test_a_mistake_does_not_end_the_thread(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    a, b = make("a", addresses=["b:1"]), make("b")
    monkeypatch.setattr(a.engine, "flush", lambda: 1 / 0)
    a.start()
    wait_until(lambda: "ZeroDivisionError" in caplog.text)
    monkeypatch.undo()
    a.anti_entropy.on_status(b.status())
    wait_until(lambda: a.figure("exchange_completed"))
