"""Stores what this release writes, for the tests of all later ones: the content of `tests/compatibility/RELEASE`.

    python tests/compatibility/make.py tests/compatibility/0.1

Two nodes and a broker write, delete, rename, expire and truncate; then the broker stops and the first node writes
events that stay in its outbox. What is stored is the first node's:

    data.tar.gz      its data directory twice: `stopped` after a clean stop, `killed` after more writes and a kill
    dump.jsonl.gz, dump.cbor.gz, backup.tar.gz      of the time when it was stopped
    expected.json    what is in them: `stopped` and `killed`, each by key, with keys and values as Latin-1

Run it once, with the release, before its tag; what it has stored is never changed.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Final

import cbor2

from merklekv import __version__
from merklekv.harness.broker import OPEN, Mosquitto
from merklekv.harness.process import Node, setting_flags, wait_until
from merklekv.metrics import parse, total
from merklekv.net.client import Client

PREFIX: Final = "compatibility"
NODES: Final = ("node-a", "node-b")
EXPIRY_MS: Final = 4_102_444_800_000  # the year 2100
SIZE_MAX: Final = 200_000  # bytes of all files together
LARGE: Final = 150  # values of 2,000 bytes: three memtables
PENDING: Final = 4
SAMPLES: Final = {
    b"text": "käse 🧀".encode(),
    b"empty": b"",
    b"\x00\xff key": bytes(range(256)),
    b"k" * 511: b"the longest key",
    b"line\r\nbreak": b'{"quoted": "\\u0000"}',
}


class Writer:
    """A client of a node that remembers what the node must have: values, deleted keys, expiries."""

    def __init__(self, node: Node) -> None:
        self.connect(node)
        self.values: dict[bytes, bytes] = {}
        self.deleted: set[bytes] = set()
        self.expiries: dict[bytes, int] = {}

    def connect(self, node: Node) -> None:
        """Go on at this node, which may be the same after a start."""
        self._client = Client("127.0.0.1", node.port)

    def call(self, *parts: bytes) -> object:
        return self._client.call(*parts)

    def set(self, key: bytes, value: bytes, expiry: int = 0) -> None:
        """SET, with an expiry in milliseconds since the epoch if it is not 0."""
        options = (b"PXAT", b"%d" % expiry) if expiry else ()
        assert self.call(b"SET", key, value, *options) == b"OK"
        self.values[key] = value
        self.deleted.discard(key)
        if expiry:
            self.expiries[key] = expiry

    def delete(self, key: bytes) -> None:
        assert self.call(b"DEL", key) == 1
        self.deleted.add(key)
        del self.values[key]

    def figure(self, name: str) -> int:
        answer = self.call(b"STATS")
        assert isinstance(answer, bytes)
        return total(parse(answer.decode()), name)

    def close(self) -> None:
        self._client.close()


def make_node(place: Path, broker: Mosquitto, name: str) -> Node:
    settings = {
        "memtable_size": "64KiB",
        "anti_entropy.interval_seconds": 1,
        "replication.enabled": "true",
        "replication.mqtt_broker": "127.0.0.1",
        "replication.mqtt_port": broker.port,
        "replication.topic_prefix": PREFIX,
        "replication.client_id": name,
        "replication.heartbeat_seconds": 1,
    }
    return Node(place / name, place / f"{name}.log", *setting_flags(settings))


def write(writer: Writer, other: Writer) -> None:
    """What both nodes have in common in the end."""
    writer.set(b"truncated", b"gone with FLUSHALL")
    assert writer.call(b"FLUSHALL") == b"OK"
    writer.values.clear()
    for key, value in SAMPLES.items():
        writer.set(key, value)
    for number in range(LARGE):
        writer.set(b"large:%03d" % number, b"%03d " % number * 500)
    for number in range(0, LARGE, 10):
        writer.delete(b"large:%03d" % number)
    writer.set(b"expires", b"in 2100", EXPIRY_MS)
    writer.set(b"counter", b"41")
    assert writer.call(b"INCR", b"counter") == 42
    writer.values[b"counter"] = b"42"
    writer.set(b"old name", b"renamed")
    assert writer.call(b"RENAME", b"old name", b"new name") == b"OK"
    writer.deleted.add(b"old name")
    writer.values[b"new name"] = writer.values.pop(b"old name")
    writer.set(b"again", b"1")
    writer.delete(b"again")
    writer.set(b"again", b"2")
    assert other.call(b"SET", b"of the other", b"node-b") == b"OK"
    writer.values[b"of the other"] = b"node-b"


def expected(writer: Writer, dump: bytes, tables: dict[str, Any]) -> dict[str, Any]:
    """What a directory holds: the writer's word for contents, the dump's for versions."""
    items = io.BytesIO(dump)
    decoder = cbor2.CBORDecoder(items)
    decoder.decode()
    records: dict[str, dict[str, object]] = {}
    found = set()
    while isinstance(item := decoder.decode(), list):
        key, version, is_tombstone, _, value, *expiry = item
        assert is_tombstone == (key in writer.deleted), key
        assert is_tombstone or value == writer.values[key], key
        assert expiry == ([writer.expiries[key]] if key in writer.expiries else [])
        found.add(key)
        content: dict[str, object] = {"deleted": True} if is_tombstone else {"value": value.decode("latin-1")}
        if len(value) > 1000:  # as `write` made it
            content = {"value": value[:4].decode(), "times": len(value) // 4}
        records[key.decode("latin-1")] = {"version": version.hex(), **content} | (
            {"expiry_ms": expiry[0]} if expiry else {}
        )
    assert found == writer.values.keys() | writer.deleted
    members = sorted(row["node"] for row in tables["members"] if row["state"] != "forgotten")
    root = writer.call(b"HASH")
    assert isinstance(root, bytes)
    return {
        "root": root.decode(),
        "truncation": item["truncation"].hex(),
        "members": members,
        "pending_events": writer.figure("outbox_events"),
        "records": records,
    }


def tool(*words: str | Path) -> bytes:
    return subprocess.run([sys.executable, "-m", "merklekv_tool", *words], check=True, stdout=subprocess.PIPE).stdout


def compressed(data: bytes, target: Path) -> None:
    target.write_bytes(gzip.compress(data, mtime=0))


def make(target: Path, place: Path) -> None:
    broker = Mosquitto(place / "broker", *OPEN)
    with broker, make_node(place, broker, NODES[0]) as node, make_node(place, broker, NODES[1]) as second:
        writer, other = Writer(node), Writer(second)
        write(writer, other)
        wait_until(lambda: writer.call(b"GET", b"of the other") == b"node-b", what="replication")
        wait_until(lambda: writer.call(b"HASH") == other.call(b"HASH"), what="equal nodes")
        wait_until(lambda: writer.figure("outbox_events") == 0, what="an empty outbox")
        broker.stop()
        other.close()
        second.stop()
        for number in range(PENDING):
            writer.set(b"pending:%d" % number, b"the broker is away")
        address = f"127.0.0.1:{node.port}"
        compressed(tool("dump", address, "--format", "jsonl"), target / "dump.jsonl.gz")
        cbor = tool("dump", address, "--format", "cbor")
        compressed(cbor, target / "dump.cbor.gz")
        tool("backup", address, target / "backup.tar.gz")
        tables = json.loads(tool("members", address, "--json"))
        facts = {"release": __version__, "node_id": NODES[0], "topic_prefix": PREFIX}
        contents = {"stopped": expected(writer, cbor, tables)}
        writer.close()
        assert node.stop() == 0
        shutil.copytree(node.directory, place / "stopped")
        node.start()
        writer.connect(node)
        writer.set(b"written last", b"before the kill")
        writer.delete(b"text")
        contents["killed"] = expected(writer, tool("dump", address, "--format", "cbor"), tables)
        node.send_signal(signal.SIGKILL)
        node.wait()
        writer.close()
        shutil.copytree(node.directory, place / "killed")
        with tarfile.open(target / "data.tar.gz", "w:gz", compresslevel=9) as archive:
            for name in contents:
                archive.add(place / name, name)
        (target / "expected.json").write_text(json.dumps(facts | contents, indent=1) + "\n")


def main() -> None:
    """Make the folder, which must not be there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", type=Path, metavar="DIR")
    target = parser.parse_args().target
    target.mkdir()
    with tempfile.TemporaryDirectory(prefix="merklekv-release-") as place:
        make(target, Path(place))
    size = sum(file.stat().st_size for file in target.iterdir())
    assert size <= SIZE_MAX, f"{size:,} bytes are too many for the repository"


if __name__ == "__main__":
    main()
