"""Bits that change in the base of a real node: the scrub reports them, and fetches what was there from another node."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.crash_harness import SMALL_MEMTABLE, statistic, wait_until_merged
from fixtures.node import NodeFactory, NodeProcess, clean_environment
from fixtures.records import BODY_BYTE, DIGEST_BYTE
from fixtures.support import wait_until

from merklekv.engine.base.reader import Base
from merklekv.engine.record import digest_of
from merklekv.net.client import Client

OFTEN = ("--set", "scrub.interval_seconds=1", "--set", "scrub.share_percent=100")
NEVER = ("--set", "scrub.interval_seconds=0")
FILLERS = 1000
KEY = b"the key"
VALUE = b"a value that is found in the file"
CLEAN = " damages, "


def flip(data: Path, marked: bytes, position: int) -> int:
    """Flips a bit before or behind every copy of some bytes in a file; how many there are."""
    contents = bytearray(data.read_bytes())
    count, at = 0, contents.find(marked)
    while at >= 0:
        contents[at + position] ^= 0x10
        count, at = count + 1, contents.find(marked, at + 1)
    data.write_bytes(contents)
    return count


def problems(directory: Path) -> str:
    """What `merklekv verify` finds."""
    command = [sys.executable, "-m", "merklekv_tool", "verify", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment(), check=False)
    return done.stdout if done.returncode else ""


@pytest.fixture
def node(node_factory: NodeFactory) -> NodeProcess:
    """A node that has merged the key and more, stopped."""
    node = node_factory(*SMALL_MEMTABLE, *NEVER)
    with Client("127.0.0.1", node.port) as client:
        client.call(b"SET", KEY, VALUE)
        client.send([b"SET", b"key:%d" % number, bytes(100)] for number in range(FILLERS))
        for _ in range(FILLERS):
            client.receive()
    wait_until_merged(node)  # before that it is in the log as well, and would be merged from there once more
    assert VALUE in (node.directory / "base" / "data.mdb").read_bytes()
    return node


def damaged(node: NodeProcess, position: int) -> None:
    """Stops it, and flips a bit so many bytes behind where the value begins."""
    assert node.stop() == 0
    assert problems(node.directory) == ""
    assert flip(node.directory / "base" / "data.mdb", VALUE[: -len(VALUE) // 2], position)
    assert "b'the" in problems(node.directory)


def last_pass(node: NodeProcess) -> str:
    """What the node says of its last pass."""
    lines = [line for line in node.output().splitlines() if CLEAN in line]
    return lines[-1] if lines else ""


@pytest.mark.parametrize(
    "position",
    [
        pytest.param(len(VALUE) - 1, id="value"),
        pytest.param(DIGEST_BYTE - BODY_BYTE, id="digest"),
        pytest.param(-BODY_BYTE - 1, id="key"),
    ],
)
def test_a_damaged_record_is_reported_and_repaired_from_a_peer(
    position: int, node: NodeProcess, node_factory: NodeFactory
) -> None:
    other = node_factory(*NEVER)
    with Client("127.0.0.1", other.port) as client:
        client.call(b"SYNC", b"127.0.0.1", b"%d" % node.port)
        root = client.call(b"HASH")
    damaged(node, position)
    base = Base(node.directory / "base")
    merged = base.live  # the newest ones are still in the log
    base.close()
    node.flags = (*SMALL_MEMTABLE, *OFTEN, "--set", f"anti_entropy.peer_list=127.0.0.1:{other.port}")
    node.start()
    with Client("127.0.0.1", node.port) as client:
        wait_until(lambda: client.call(b"GET", KEY) == VALUE, what="the repair")
        wait_until(lambda: f" 0{CLEAN}0 repaired" in last_pass(node), what="a pass without damage")
        assert client.call(b"HASH") == root
        assert client.call(b"DBSIZE") == FILLERS + 1
    wait_until(lambda: "scrub: the base, key b'the" in node.output(), what="the report")
    assert statistic(node, "scrub_damaged") >= statistic(node, "scrub_repaired") >= 1
    assert statistic(node, "scrub_unrepaired") == 0
    assert statistic(node, "scrub_passes") >= 2
    assert statistic(node, "scrub_records") >= 2 * merged > FILLERS
    assert node.stop() == 0
    assert problems(node.directory) == ""


def test_damage_that_no_peer_can_repair_is_reported_in_each_pass(node: NodeProcess, node_factory: NodeFactory) -> None:
    damaged(node, 0)
    silent = node_factory(*NEVER)
    silent.kill()
    node.flags = (*SMALL_MEMTABLE, *OFTEN, "--set", f"anti_entropy.peer_list=127.0.0.1:{silent.port}")
    node.start()
    report = "scrub: the base, key b'the key': the digest is"
    wait_until(lambda: statistic(node, "scrub_passes") >= 2, what="two passes")
    wait_until(lambda: node.output().count(report) >= 2, what="two reports")
    assert "not repaired, none of 0 nodes asked has what was there" in node.output()
    assert statistic(node, "scrub_unrepaired") == 1
    with Client("127.0.0.1", node.port) as client:
        assert client.call(b"SET", KEY, b"written over") == b"OK"
        wait_until(lambda: f" 0{CLEAN}0 repaired" in last_pass(node), what="a pass without damage")
    assert node.stop() == 0
    assert problems(node.directory) == ""


def test_a_wrong_leaf_is_put_right_without_a_peer(node: NodeProcess) -> None:
    with Client("127.0.0.1", node.port) as client:
        root = client.call(b"HASH")
        reply = client.call(b"RECORDS", b"", b"1", b"PREFIX", KEY)
        assert isinstance(reply, list)
        assert isinstance(reply[1], list)
        head = reply[1][1]
        assert isinstance(head, bytes)
    assert node.stop() == 0
    assert flip(node.directory / "base" / "data.mdb", digest_of(head) + bytes(7), 0), "alone in its bucket"
    assert "leaf " in problems(node.directory)
    node.flags = (*SMALL_MEMTABLE, *OFTEN)
    node.start()
    with Client("127.0.0.1", node.port) as client:
        wait_until(lambda: client.call(b"HASH") == root, what="the leaf")
    wait_until(lambda: f" 0{CLEAN}0 repaired" in last_pass(node), what="a pass without damage")
    assert node.stop() == 0
    assert problems(node.directory) == ""
