"""Refused records between real nodes: one holds back only itself, and all nodes name it until it is gone."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import wait_until

from merklekv.engine.record import body_of, head_of, make_record, make_version
from merklekv.metrics import parse
from merklekv.net.client import Client, NodeError

MIB = 1 << 20


def call(node: NodeProcess, *words: bytes) -> Any:
    with Client("127.0.0.1", node.port) as client:
        return client.call(*words)


def sync(one: NodeProcess, other: NodeProcess) -> str:
    """What SYNC says: an empty text if nothing."""
    try:
        call(one, b"SYNC", b"127.0.0.1", b"%d" % other.port)
    except NodeError as error:
        return str(error)
    return ""


def figures(node: NodeProcess) -> dict[str, str]:
    return parse(call(node, b"STATS").decode())


def refuses(node: NodeProcess) -> dict[str, str]:
    """What a node names, by the node that refuses it."""
    rows = [json.loads(line) for line in call(node, b"MEMBERS").splitlines()]
    return {row["node"]: row["refuses"] for row in rows if row["refuses"]}


def meet(nodes: list[NodeProcess], rounds: int = 3) -> set[str]:
    """All exchange with each other; what SYNC says."""
    return {sync(one, other) for _ in range(rounds) for one in nodes for other in nodes if one is not other} - {""}


def settle(nodes: list[NodeProcess]) -> None:
    """Deleted keys are collected, here and everywhere."""
    for node in nodes:
        with Client("127.0.0.1", node.port) as client:
            client.send([(b"SET", b"of %d" % number, b"v") for number in range(100)])
            client.send([(b"DEL", b"of %d" % number) for number in range(100)])
            for _ in range(200):
                client.receive()

    def are_gone() -> bool:
        meet(nodes, 1)
        return all(figures(node)["db_tombstones"] == "0" for node in nodes)

    wait_until(are_gone, what="the tombstones to go", seconds=60)


@pytest.fixture
def nodes(node_factory: NodeFactory) -> list[NodeProcess]:
    """Two nodes with the limits as they are, and a small one."""
    common = ("--set", "anti_entropy.enabled=false")
    flags = {"a": (), "b": ("--max-value-size", "64KiB"), "c": ()}
    return [node_factory("--node-id", name, *more, *common) for name, more in flags.items()]


def test_a_value_that_is_too_large_for_one_of_three_nodes(nodes: list[NodeProcess]) -> None:
    a, b, c = nodes
    call(a, b"SET", b"big", bytes(6 * MIB))  # more than a message to the small node may have
    for one, other in ((a, b), (b, a)):
        assert (
            "1 record refused; all others were exchanged. The first is key b'big': its value has 6,291,456 bytes"
            in (sync(one, other))
        )
    settle(nodes)
    assert (call(a, b"STRLEN", b"big"), call(b, b"EXISTS", b"big"), call(c, b"STRLEN", b"big")) == (6 * MIB, 0, 6 * MIB)
    why = "its value has 6,291,456 bytes, more than max_value_size of node b"
    for node in (a, b, c):
        assert refuses(node) == {"b": f"key b'big': {why}"}
        assert figures(node)["refused_records"] == "1"
        assert figures(node)['refused_record{key="big"}'] == why
        assert call(node, b"REPLICATE", b"status").endswith(b"refused=1")
    b.stop()
    b.start()
    assert refuses(b) == {"b": f"key b'big': {why}"}
    settle(nodes)
    assert b.output().count("refused, and left out of exchanges: key b'big'") <= 2

    b.stop()
    b.flags = ("--node-id", "b", "--set", "anti_entropy.enabled=false")
    b.start()
    meet(nodes)
    assert call(b, b"STRLEN", b"big") == 6 * MIB
    assert not any(refuses(node) for node in nodes)
    assert len({call(node, b"HASH") for node in nodes}) == 1
    wait_until(lambda: "not refused any more: key b'big'" in a.output())


@pytest.mark.parametrize("at", [0, 1], ids=["holder", "refuser"])
@pytest.mark.parametrize("write", [("DEL",), ("SET", "small")], ids=["delete", "overwrite"])
def test_a_write_ends_a_refusal(nodes: list[NodeProcess], at: int, write: tuple[str, ...]) -> None:
    command, *value = (word.encode() for word in write)
    call(nodes[0], b"SET", b"big", b"old")
    meet(nodes)
    call(nodes[0], b"SET", b"big", bytes(MIB))
    meet(nodes)
    assert call(nodes[1], b"GET", b"big") == b"old"
    call(nodes[at], command, b"big", *value)
    meet(nodes)
    assert [call(node, b"GET", b"big") for node in nodes] == [value[0] if value else None] * 3
    assert not any(refuses(node) for node in nodes)
    settle(nodes)


def test_a_version_with_two_contents(nodes: list[NodeProcess]) -> None:
    version = make_version(time.time_ns(), b"of both machines")
    for node, value in zip(nodes, (b"1", b"2", b"2"), strict=True):
        record = make_record(b"k", version, value)
        assert call(node, b"MERGE", b"x", b"k", head_of(record), body_of(record))[0] == 1
    for problem in meet(nodes):
        assert "has a record of the same version with other contents" in problem
    settle(nodes)
    assert all("same version" in text for node in nodes for text in refuses(node).values())
    assert refuses(nodes[0])
    call(nodes[2], b"SET", b"k", b"3")
    assert refuses(nodes[2]) == {}
    meet(nodes)
    assert not any(refuses(node) for node in nodes)
    assert len({call(node, b"HASH") for node in nodes}) == 1
