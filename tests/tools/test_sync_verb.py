"""`merklekv sync`: an exchange now, with one peer or with all."""

from __future__ import annotations

import json

from fixtures.node import NodeFactory, NodeProcess
from fixtures.tools import address, fails, root_of, run, succeeds
from merklekv_tool.exit_codes import EXIT_NODE

from merklekv.exit_codes import EXIT_USAGE


def pair(node_factory: NodeFactory) -> tuple[NodeProcess, NodeProcess]:
    """Two nodes with a key each; the second knows the first, and exchanges with it at its start and once a day."""
    one = node_factory()
    peer = f"anti_entropy.peer_list={address(one)}"
    other = node_factory("--set", peer, "--set", "anti_entropy.interval_seconds=86400")
    for node in (one, other):
        with node.connect() as client:
            assert client.ask(f"SET {node.port} value") == "OK"
    return one, other


def test_with_a_peer(node_factory: NodeFactory) -> None:
    one, other = pair(node_factory)
    assert b"exchanged with 1 node, 0 failed" in succeeds("sync", address(one), address(other))
    assert root_of(one) == root_of(other)


def test_with_all_peers(node_factory: NodeFactory) -> None:
    one, other = pair(node_factory)
    told = json.loads(succeeds("sync", str(other.port), "--full", "--verify", "--json"))
    assert told["peers"] == [address(one)]
    assert told["failed"] == []
    assert root_of(one) == root_of(other)


def test_without_a_peer(node_factory: NodeFactory) -> None:
    node = node_factory()
    fails(EXIT_USAGE, "knows no peer that is online", done=run("sync", address(node)))


def test_a_peer_that_is_not_there(node_factory: NodeFactory) -> None:
    done = run("sync", address(node_factory()), ":1")
    assert done.returncode == EXIT_NODE
    assert b"with 127.0.0.1:1: " in done.stderr
    assert b"0 nodes, 1 failed" in done.stdout
    fails(EXIT_USAGE, "no address", done=run("sync", address(node_factory()), "a b"))
