"""Peers: configured and announced addresses, each node once, as many as a cluster has members, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest

from merklekv.replication.cluster import presence
from merklekv.replication.cluster.presence import OFFLINE, ONLINE, Presence, Status
from merklekv.replication.sync import peers as module
from merklekv.replication.sync.initiator import ExchangeReport
from merklekv.replication.sync.peers import ERROR_SIZE_MAX, TOTALS, ExchangePeer, ExchangePeers
from merklekv.replication.sync.schedule import HALVINGS_MAX, RETRY_MIN_S, Schedule

INTERVAL_S = 60.0


def addresses(peers: Iterable[ExchangePeer]) -> list[str]:
    return [peer.address for peer in peers]


def online(node: str, address: str) -> Status:
    return Status(node, ONLINE, address)


def test_configured_and_announced() -> None:
    peers = ExchangePeers(["x:1"], INTERVAL_S)
    peers.on_status(online("b", "b:1"))
    assert addresses(peers.all()) == ["x:1", "b:1"]
    assert addresses(peers.of("b")) == ["b:1"]
    assert addresses(peers.of("")) == ["x:1", "b:1"]
    assert addresses(peers.of("c")) == ["x:1"], "it may be the one that is not known yet"


def test_a_node_that_is_reached_at_a_configured_address_is_not_reached_twice() -> None:
    peers = ExchangePeers(["x:1"], INTERVAL_S)
    peers.on_status(online("b", "b:1"))
    peers.at("x:1").succeed(ExchangeReport(node="b"))
    assert addresses(peers.all()) == ["x:1"]
    peers.on_status(online("c", "x:1"))
    assert peers.at("x:1").node == "c"


def test_a_node_that_moves_or_goes() -> None:
    peers = ExchangePeers(["x:1"], INTERVAL_S)
    peers.on_status(online("b", "b:1"))
    peers.at("b:1").succeed(ExchangeReport(node="b"))
    peers.on_status(online("b", "b:1"))
    assert peers.at("b:1").totals["completed"] == 1
    peers.on_status(online("b", "b:2"))
    assert addresses(peers.all()) == ["x:1", "b:2"]
    assert (peers.at("b:2").totals["completed"], peers.at("b:2").in_sync) == (1, False)
    peers.on_status(online("b", "x:1"))
    assert addresses(peers.all()) == ["x:1"]
    peers.on_status(online("x", "x:1"))
    peers.on_status(Status("b", OFFLINE, "b:2"))
    peers.on_status(online("x", "x:1"))
    peers.on_status(Status("x", OFFLINE, "x:1"))
    assert addresses(peers.all()) == ["x:1"], "a configured one is tried all the same"
    peers.on_status(online("silent", ""))
    assert addresses(peers.all()) == ["x:1"]
    peers.on_status(online("b", "b:1"))
    assert peers.at("b:1").totals["completed"] == 1
    for number in range(100):
        peers.on_status(online("b", f"elsewhere:{number}"))
    assert len(peers._peers) == 2


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> tuple[Presence, ExchangePeers]:
    """A presence that keeps three nodes, and the peers that follow its statuses."""
    monkeypatch.setattr(presence, "NODES_MAX", 3)
    monkeypatch.setattr(module, "NODES_MAX", 3)
    peers = ExchangePeers(["x:1"], INTERVAL_S)
    return Presence("a", "own", peers.on_status), peers


@pytest.mark.parametrize("end", [Status("b", OFFLINE, "b:1").encode(), b""], ids=["offline", "removed at the broker"])
def test_a_node_that_ends_is_no_peer(bounded: tuple[Presence, ExchangePeers], end: bytes) -> None:
    others, peers = bounded
    others.on_status("b", online("b", "b:1").encode())
    assert addresses(peers.all()) == ["x:1", "b:1"]
    others.on_status("b", end)
    assert addresses(peers.all()) == ["x:1"]


def test_the_number_of_peers_is_bounded_whatever_was_removed_at_the_broker(
    bounded: tuple[Presence, ExchangePeers],
) -> None:
    others, peers = bounded
    for number in range(1, 100):
        others.on_status(f"n{number}", online(f"n{number}", f"n:{number}").encode())
        others.on_status(f"n{number}", b"")
        assert len(peers._peers) <= 4
    others.on_status("b", online("b", "b:1").encode())
    assert addresses(peers.all()) == ["x:1", "b:1"]


def test_statuses_that_are_retained_keep_no_node_out(bounded: tuple[Presence, ExchangePeers]) -> None:
    others, peers = bounded
    others.on_status("b", online("b", "b:1").encode())
    for number in range(1, 10):
        others.on_status(f"m{number}", online(f"m{number}", f"m:{number}").encode())
        others.on_status("b", online("b", "b:1").encode())
        assert len(peers._peers) <= 5
    assert addresses(peers.all()) == ["x:1", "b:1", "m:8", "m:9"], "who has been silent for longest went"
    others.on_status("c", online("c", "c:1").encode())
    assert addresses(peers.all()) == ["x:1", "b:1", "m:9", "c:1"]


def test_a_false_status_takes_no_peer_away() -> None:
    peers = ExchangePeers(["x:1"], INTERVAL_S)
    peers.on_status(online("b", "b:1"))
    peers.on_status(online("evil", "b:1"))
    assert addresses(peers.of("b")) == addresses(peers.of("evil")) == ["b:1"]
    assert peers.at("b:1").node == "b", "as far as is known"
    peers.on_status(Status("evil", OFFLINE))
    assert addresses(peers.all()) == ["x:1", "b:1"]
    peers.on_status(online("evil", "b:1"))
    peers.on_status(online("evil", "elsewhere:1"))
    assert addresses(peers.all()) == ["x:1", "b:1", "elsewhere:1"]
    peers.on_status(Status("b", OFFLINE))
    assert addresses(peers.all()) == ["x:1", "elsewhere:1"]
    peers.on_status(online("evil", "b:1"))
    peers.on_status(online("b", "b:1"))
    assert addresses(peers.of("b")) == ["b:1"], "whoever was there before"
    peers.on_status(Status("evil", OFFLINE))
    assert addresses(peers.all()) == ["x:1", "b:1"]


def test_peers_that_hang_leave_half_of_the_time_to_the_others() -> None:
    peers = ExchangePeers(["slow:1", "new:1", "good:1"], INTERVAL_S)
    slow, new, good = peers.all()
    now = time.monotonic() + 1
    peers.rest_doubtful(now, 30)
    assert peers.next_due(now) is not None, "none is better than the others"
    good.succeed(ExchangeReport("good"))
    slow.fail("no answer")
    new.schedule.due, slow.schedule.due, good.schedule.due = now - 2, now - 1, now
    assert peers.next_due(now) is good
    assert peers.next_due(now) is good, "the others rest"
    good.schedule.due = now + 60
    assert (peers.next_due(now + 29), peers.wait_s(now + 29)) == (None, 1)
    assert peers.next_due(now + 30) is new
    good.fail("no answer, too")
    assert peers.next_due(now) is new
    for peer in (slow, good):
        peer.mark_in_sync()
    slow.schedule.failures, slow.schedule.due = 0, now - 3
    assert peers.next_due(now) is slow, "it answers again"


def test_who_has_failed_less_often_is_tried_first() -> None:
    peers = ExchangePeers(["slow:1", "back:1"], INTERVAL_S)
    slow, back = peers.all()
    slow.fail("no answer")
    back.fail("no answer")
    peers.on_status(online("back", "back:1"))
    slow.schedule.due, back.schedule.due = 10, 12
    assert peers.next_due(10) is slow, "it alone is due"
    assert peers.next_due(13) is slow
    back.schedule.due = 11
    assert peers.next_due(15) is back
    slow.schedule.failures = 64
    assert peers.next_due(12.1) is back
    slow.schedule.due = -1000
    assert peers.next_due(13) is slow, "it waits, but not for ever"


class Thread:
    """What the thread of anti-entropy does, in simulated time."""

    def __init__(self, peers: ExchangePeers, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peers, self.now = peers, time.monotonic() + 1
        self.tried: list[tuple[float, str]] = []
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now, time=time.time))

    def run(self, until: float, cost_s: Callable[[str], float]) -> None:
        """`cost_s`: of an exchange with an address; negative if it hangs for so long and fails."""
        while self.now < until:
            peer = self.peers.next_due(self.now)
            if peer is None:
                self.now += max(0.001, self.peers.wait_s(self.now) or 0)
                continue
            self.tried.append((self.now, peer.address))
            peer.schedule.begin()
            cost = cost_s(peer.address)
            self.now += abs(cost)
            if cost > 0:
                peer.succeed(ExchangeReport(peer.address))
            else:
                peer.fail("no answer")
                self.peers.rest_doubtful(self.now, abs(cost))


def test_a_peer_that_failed_once_is_tried_again_however_many_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    peers = ExchangePeers([f"h:{number}" for number in range(1, 401)], INTERVAL_S)
    thread = Thread(peers, monkeypatch)
    began = thread.now
    peers.at("h:1").fail("no answer")
    thread.run(began + 600, lambda address: 0.2)
    tried = [at - began for at, address in thread.tried if address == "h:1"]
    assert tried[0] < 180
    assert len(tried) > 2
    assert len({address for _, address in thread.tried}) == 400


def test_peers_that_hang_do_not_keep_honest_ones_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = {"h:1", "h:2"}
    peers = ExchangePeers([f"h:{number}" for number in range(1, 103)], INTERVAL_S)
    thread = Thread(peers, monkeypatch)
    began = thread.now
    for peer in peers.all():
        if peer.address in honest:
            peer.succeed(ExchangeReport(peer.address))
        else:
            peer.schedule.failures = HALVINGS_MAX  # it has hung for long
    thread.run(began + 3 * 3600, lambda address: 0.2 if address in honest else -30)
    fell_at = thread.now
    peers.at("h:1").fail("no answer")  # once
    thread.run(fell_at + 3600, lambda address: 0.2 if address in honest else -30)
    last_hour = [(at, address) for at, address in thread.tried if at >= fell_at]
    for one in honest:
        times = [at for at, address in last_hour if address == one]
        assert times[0] < fell_at + 180
        assert len(times) > 30, "about once in each interval"
    assert len({address for _, address in last_hour}) > 30, "those that hang are tried, too"


def test_the_peer_that_waits_for_longest_is_the_next() -> None:
    peers = ExchangePeers(["b:1", "a:1"], INTERVAL_S)
    b, a = peers.all()
    b.schedule.due, a.schedule.due = 1, 2
    assert (peers.next_due(0.5), peers.wait_s(0.5), peers.wait_s(5)) == (None, 0.5, 0)
    assert peers.next_due(5) is b
    b.schedule.begin()
    assert (peers.next_due(5), peers.wait_s(0.5)) == (a, 1.5)
    a.schedule.begin()
    assert (peers.next_due(5), peers.wait_s(5)) == (None, None)
    b.schedule.succeed(5)
    peers.drop("b:1")
    assert (peers.next_due(1000), peers.wait_s(1000)) == (None, None)


def test_a_peer_that_comes_back_is_tried_soon() -> None:
    peers = ExchangePeers([], INTERVAL_S)
    peers.on_status(online("b", "b:1"))
    schedule = peers.at("b:1").schedule
    for _ in range(9):
        schedule.fail(0)
    peers.on_status(Status("b", OFFLINE))
    assert peers.wait_s(0) is None
    peers.on_status(online("b", "b:1"))
    schedule.fail(0)
    assert schedule.due < 2 * RETRY_MIN_S


def test_an_address_that_is_dropped_and_one_that_is_unknown() -> None:
    peers = ExchangePeers(["x:1"], INTERVAL_S)
    peers.drop("x:1")
    peers.drop("unknown:1")
    assert addresses(peers.all()) == []
    peers.at("y:1").fail("gone")
    assert peers.at("y:1").totals["failures"] == 0


def test_totals_add_up_and_an_error_is_one_short_line() -> None:
    peer = ExchangePeer("b:1", Schedule(INTERVAL_S, 0))
    for number in range(2):
        peer.succeed(ExchangeReport("b", 3, 100, 200, 4, 5, 6, equal=bool(number), duration_s=0.25))
    peer.fail("a line\nand another " + "x" * 1000)
    assert 0 <= time.time() - peer.succeeded_at < 60
    assert [peer.totals[name] for name in TOTALS] == [2, 1, 1, 6, 200, 400, 8, 10, 12]
    assert (peer.in_sync, peer.duration_s) == (False, 0.25)
    assert len(peer.error) == ERROR_SIZE_MAX
    assert peer.error.startswith("a line and another xxx")
    peer.mark_in_sync()
    assert (peer.in_sync, peer.error) == (True, "")
