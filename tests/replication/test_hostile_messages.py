"""Real nodes at a real broker, and a stranger who says the worst: no message stops a node, and none comes back."""

from __future__ import annotations

import json
from pathlib import Path

import cbor2
import pytest
from fixtures.broker import Wire
from fixtures.cluster import HEALING, NodeHandle, ReplicationTestHarness
from fixtures.node import NodeFactory
from fixtures.support import wait_until
from xxhash import xxh3_64_digest

from merklekv.engine.engine import Engine
from merklekv.exit_codes import EXIT_CORRUPT, EXIT_USAGE
from merklekv.net.client import Client, NodeError
from merklekv.replication.cluster.members import Members
from merklekv.replication.sync.messages import EXCHANGE_VERSION, MAGIC

MiB = 1 << 20


def members_of(node: NodeHandle) -> dict[str, dict[str, object]]:
    with Client("127.0.0.1", node.process.port) as client:
        answer = client.call(b"MEMBERS")
    assert isinstance(answer, bytes)
    return {row["node"]: row for row in map(json.loads, answer.splitlines())}


HOSTILE_NAMES = ("", " ", "a b", "\u202e", "n" * 129, "é" * 65)
HOSTILE_FIELDS: tuple[dict[str, object], ...] = (
    {"store_id": "zz"},
    {"address": "a..b:7379"},
    {"address": "x\r\nEND:1"},
    {"version": "\x1b[31m\r\nEND"},
    {"sequence": 10**400},
    {"sequence": -1},
    {"root": "\ud800"},
)


@pytest.mark.replication
def test_no_status_stops_a_cluster(harness: ReplicationTestHarness, wire: Wire) -> None:
    a, b = harness.create_nodes(2, *HEALING)
    names = {name: name for name in HOSTILE_NAMES} | {f"field-{number}": "" for number in range(len(HOSTILE_FIELDS))}
    fields: dict[str, dict[str, object]] = dict(
        zip([name for name in names if name.startswith("field-")], HOSTILE_FIELDS, strict=True)
    )
    for name in names:
        said = {"node": name, "state": "online", "store_id": "1122334455667788", **fields.get(name, {})}
        wire.publish(f"{harness.prefix}/{name}/status", json.dumps(said).encode())
        event = {"v": 1, "op": "del", "key": "k", "val": None, "ts": 5, "op_id": bytes(16), "src": name}
        wire.publish(f"{harness.prefix}/{name}/events", cbor2.dumps(event))
    wire.publish(f"{harness.prefix}/last/status", b'{"node":"last","state":"online","store_id":"2122334455667788"}')
    for node in (a, b):
        wait_until(lambda node=node: "last" in members_of(node), what="the last status to be taken")
        assert not members_of(node).keys() & set(HOSTILE_NAMES)
        with Client("127.0.0.1", node.process.port) as client:
            for name in HOSTILE_NAMES:
                with pytest.raises(NodeError, match="no such member"):
                    client.call(b"FORGET", name.encode(), b"1122334455667788")
    a.set("k", "v")
    assert a.ask(f"SYNC 127.0.0.1 {b.process.port}") == "OK"
    for node in (a, b):
        node.stop()
        node.start()
        assert node.get("k") == "v"
        assert "unreadable" not in node.process.output()
    c = harness.create_node("", *HEALING)
    assert c.ask(f"SYNC 127.0.0.1 {a.process.port}") == "OK"
    c.stop()
    c.start()
    assert c.get("k") == "v"


@pytest.mark.replication
@pytest.mark.parametrize(
    "bomb",
    [
        b"\xa2\x61v\x01\x61x\x9a" + (60 * MiB).to_bytes(4, "big") + b"\xa0" * (60 * MiB),
        b"\xa2\x61v\x01\x61x\x9a" + (18 * MiB).to_bytes(4, "big") + b"\x80" * (18 * MiB),
        b"\xa2\x61v\x01\x61x\xc2\x5a" + (4 * MiB).to_bytes(4, "big") + b"\xff" * (4 * MiB),
    ],
    ids=["60 MiB of maps", "18 MiB of lists", "a number of 4 MiB"],
)
def test_a_message_costs_little_more_than_its_bytes(harness: ReplicationTestHarness, wire: Wire, bomb: bytes) -> None:
    a, b = harness.create_nodes(2)
    before = a.process.peak_bytes
    wire.publish(f"{harness.prefix}/evil/events", bomb)
    b.set("k", "v")
    a.wait_for("k", "v")  # which the broker delivers behind it
    assert a.process.peak_bytes - before < 4 * len(bomb) + 40 * MiB
    assert a.figure("broker_losses") == 0


def test_an_exchange_message_costs_little_more_than_its_bytes(node_factory: NodeFactory) -> None:
    node = NodeHandle("n", node_factory("--node-id", "n"))
    before = node.process.peak_bytes
    count = 12 * MiB
    fields = b"\xa2" + b"".join(map(cbor2.dumps, ("do", "hello", "x"))) + b"\x9a" + count.to_bytes(4, "big")
    message = MAGIC + bytes((EXCHANGE_VERSION,)) + fields + b"\xa0" * count
    with Client("127.0.0.1", node.process.port) as client:
        answer = client.call(b"EXCHANGE", message + xxh3_64_digest(message))
        assert isinstance(answer, bytes)
        assert b"more than 131072 items" in answer
        assert client.call(b"PING") == b"PONG"
    assert node.process.peak_bytes - before < 6 * count


BAD_FILES = {
    "empty": b"",
    "plus": b"+",
    "number sign": b"#",
    "slash": b"a/b",
    "two lines": b"a\nb\n",
    "NUL": b"a\0",
    "long": b"n" * 600,
    "no UTF-8": b"\xff\xfe",
    "spaces": b"   ",
    "byte order mark": "\ufeffa\n".encode(),
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_node_id_file_that_holds_none_stops_the_start_with_the_way_out(
    node_factory: NodeFactory, content: bytes
) -> None:
    node = node_factory()
    name = (node.directory / "node-id").read_text().strip()
    with node.connect() as client:
        client.ask("SET k v")
    assert node.stop() == 0
    (node.directory / "node-id").write_bytes(content)
    node.launch()
    assert node.wait() == EXIT_CORRUPT
    *_, line = node.output().splitlines()
    assert line.startswith(f"merklekv: {node.directory / 'node-id'}: ")
    assert f"write '{name}' into it, which this node was called" in line
    (node.directory / "node-id").write_text(name)
    node.start()
    with node.connect() as client:
        assert client.ask("GET k") == "VALUE v"


@pytest.mark.parametrize("name", ["+", "a/b", "a\nb", "n" * 129, "é" * 65, "\udcff", " "], ids=ascii)
@pytest.mark.parametrize("way", ["flag", "environment", "file"])
def test_a_setting_has_to_follow_the_same_rule(node_factory: NodeFactory, tmp_path: Path, name: str, way: str) -> None:
    flags: tuple[str, ...] = ()
    environment = {}
    if way == "flag":
        flags = ("--node-id", name)
    elif way == "environment":
        environment = {"MERKLEKV_REPLICATION__CLIENT_ID": name}
    else:
        file = tmp_path / "merklekv.toml"
        file.write_bytes(f"[replication]\nclient_id = {json.dumps(name)}\n".encode(errors="surrogateescape"))
        flags = ("--config", str(file))
    node = node_factory(*flags, start=False, environment=environment)
    node.launch()
    assert node.wait() == EXIT_USAGE
    assert len(node.output().splitlines()) == 1


@pytest.mark.parametrize("replicated", ["true", "false"])
def test_a_table_that_cannot_be_read_stops_no_start(node_factory: NodeFactory, tmp_path: Path, replicated: str) -> None:
    engine = Engine(tmp_path / "data", checkpoint="manual")
    engine.set(b"k", b"v")
    plain = cbor2.loads(Members("n1").encode())
    engine.put_metadata(b"members", cbor2.dumps(plain | {"rows": [["", b"b" * 8, 0, 0, 0, 0, b""]]}))
    engine.close()
    flags = ("--node-id", "n1", "--set", f"replication.enabled={replicated}", "--set", "replication.mqtt_port=1")
    node = node_factory(*flags, directory=tmp_path / "data")
    with node.connect() as client:
        assert client.ask("GET k") == "VALUE v"
        figures = client.ask_lines("STATS all")
    assert "members_unreadable:1" in figures
    assert "node is '', not 1 to 128 bytes" in node.output()
    assert "empty" not in node.output()
