"""Whom to exchange with: configured and heard addresses, each node once, and the figures of each."""

from __future__ import annotations

import time

from merklekv.replication.cluster.presence import OFFLINE, ONLINE, Status
from merklekv.replication.sync.initiator import ExchangeReport
from merklekv.replication.sync.peers import ERROR_SIZE_MAX, ExchangePeer, ExchangePeers


def online(node: str, address: str) -> Status:
    return Status(node, ONLINE, address)


def test_configured_and_heard() -> None:
    peers = ExchangePeers(["x:1"])
    peers.on_status(online("b", "b:1"))
    assert peers.addresses() == ["x:1", "b:1"]
    assert peers.addresses_of("b") == ["b:1"]
    assert peers.addresses_of("") == ["x:1", "b:1"]
    assert peers.addresses_of("c") == ["x:1"], "it may be the one that is not known yet"


def test_a_node_that_is_reached_at_a_configured_address_is_not_reached_twice() -> None:
    peers = ExchangePeers(["x:1"])
    peers.on_status(online("b", "b:1"))
    peers.at("x:1").succeed(ExchangeReport(node="b"))
    assert peers.addresses() == ["x:1"]
    assert [peer.address for peer in peers.all()] == ["x:1"]
    peers.on_status(online("c", "x:1"))
    assert peers.at("x:1").node == "c"


def test_a_node_that_moves_or_goes() -> None:
    peers = ExchangePeers(["x:1"])
    peers.on_status(online("b", "b:1"))
    peers.at("b:1").succeed(ExchangeReport(node="b"))
    peers.on_status(online("b", "b:1"))
    assert peers.at("b:1").exchanges == 1
    peers.on_status(online("b", "b:2"))
    assert peers.addresses() == ["x:1", "b:2"]
    assert (peers.at("b:2").exchanges, peers.at("b:2").in_sync) == (1, False)
    peers.on_status(online("b", "x:1"))
    assert peers.addresses() == ["x:1"]
    peers.on_status(online("x", "x:1"))
    peers.on_status(Status("b", OFFLINE, "b:2"))
    peers.on_status(online("x", "x:1"))
    peers.on_status(Status("x", OFFLINE, "x:1"))
    assert peers.addresses() == ["x:1"], "a configured one is tried all the same"
    peers.on_status(online("silent", ""))
    assert peers.addresses() == ["x:1"]
    peers.on_status(online("b", "b:1"))
    assert peers.at("b:1").exchanges == 1
    for number in range(100):
        peers.on_status(online("b", f"elsewhere:{number}"))
    assert len(peers._peers) == 2


def test_who_is_dropped_and_who_never_was() -> None:
    peers = ExchangePeers(["x:1"])
    peers.drop("x:1")
    peers.drop("nobody:1")
    assert peers.addresses() == []
    peers.at("y:1").fail("gone")
    assert peers.at("y:1").failures == 0


def test_figures_add_up_and_an_error_is_one_short_line() -> None:
    peer = ExchangePeer("b:1")
    for number in range(2):
        peer.succeed(ExchangeReport("b", 3, 100, 200, 4, 5, 6, equal=bool(number), duration_s=0.25))
    peer.fail("a line\nand another " + "x" * 1000)
    assert 0 <= time.time() - peer.succeeded_at < 60
    assert (peer.in_sync, peer.exchanges, peer.equal, peer.failures) == (False, 2, 1, 1)
    assert (peer.rounds, peer.bytes_sent, peer.bytes_received) == (6, 200, 400)
    assert (peer.keys_sent, peer.keys_received, peer.discarded) == (8, 10, 12)
    assert peer.duration_s == 0.25
    assert len(peer.error) == ERROR_SIZE_MAX
    assert peer.error.startswith("a line and another xxx")
    peer.mark_in_sync()
    assert (peer.in_sync, peer.error) == (True, "")
