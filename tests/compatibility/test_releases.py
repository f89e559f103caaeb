"""What each release since 0.1 has written is read: directories, dumps, backups. `make.py` says what is stored."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fixtures.broker import Broker, Wire
from fixtures.cluster import ReplicationTestHarness
from fixtures.node import NodeFactory
from fixtures.support import wait_until
from fixtures.tools import address, opened, succeeds

from merklekv import __version__
from merklekv.engine.engine import Engine
from merklekv.engine.record import expiry_of, is_tombstone, value_of, version_of
from merklekv.net.client import Client
from merklekv.replication.stream.event import decode_message

HERE = Path(__file__).parent
RELEASES = sorted(path.name for path in HERE.iterdir() if (path / "expected.json").exists())
STATES = ("stopped", "killed")


class Store(NamedTuple):
    """A data directory of a release, and what it holds."""

    path: Path
    facts: dict[str, Any]  # of the release
    expected: dict[str, Any]  # of the directory

    @property
    def records(self) -> dict[bytes, dict[str, Any]]:
        return {key.encode("latin-1"): record for key, record in self.expected["records"].items()}


def value(record: dict[str, Any]) -> bytes:
    text: str = record.get("value", "")
    return text.encode("latin-1") * int(record.get("times", 1))


def facts_of(release: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((HERE / release / "expected.json").read_text())
    return facts


@pytest.fixture(params=[f"{release} {state}" for release in RELEASES for state in STATES])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    release, state = request.param.split()
    with tarfile.open(HERE / release / "data.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    facts = facts_of(release)
    return Store(tmp_path / state, facts, facts[state])


def holds(engine: Engine, expected: dict[str, Any]) -> None:
    """The engine has these records, and no other."""
    records = {key.encode("latin-1"): record for key, record in expected["records"].items()}
    for key, record in records.items():
        found = engine.record(key)
        assert found is not None, key
        assert version_of(found).hex() == record["version"]
        assert is_tombstone(found) == ("deleted" in record)
        assert value_of(found) == value(record)
        assert expiry_of(found) == record.get("expiry_ms")
    tombstones = sum("deleted" in record for record in records.values())
    assert (engine.live_count, engine.tombstone_count) == (len(records) - tombstones, tombstones)
    assert engine.root().hex() == expected["root"]
    assert engine.truncation.hex() == expected["truncation"]


def test_this_release_and_the_first_are_stored() -> None:
    assert {"0.1", ".".join(__version__.split(".")[:2])} <= {*RELEASES}


def test_a_directory_is_sound_and_holds_what_it_held(store: Store) -> None:
    succeeds("verify", store.path)
    with opened(store.path) as engine:
        holds(engine, store.expected)
    succeeds("verify", store.path)
    told = json.loads(succeeds("members", store.path, "--json"))
    assert sorted(row["node"] for row in told["members"]) == store.expected["members"]


def test_a_node_serves_a_directory(store: Store, node_factory: NodeFactory) -> None:
    node = node_factory(directory=store.path)
    with Client("127.0.0.1", node.port) as client:
        for key, record in store.records.items():
            assert client.call(b"GET", key) == (None if "deleted" in record else value(record))
        expiring = {key: record["expiry_ms"] for key, record in store.records.items() if "expiry_ms" in record}
        assert expiring
        assert {key: client.call(b"PEXPIRETIME", key) for key in expiring} == expiring
        assert client.call(b"SET", b"since the upgrade", b"1") == b"OK"
    assert succeeds("dump", address(node)).count(b"\n") == len(store.records) + 3
    assert node.stop() == 0
    succeeds("verify", store.path)


def test_a_node_publishes_what_its_outbox_held(
    store: Store, node_factory: NodeFactory, broker: Broker, tmp_path: Path
) -> None:
    """And nothing that the broker had before. It waits a few seconds for the other node, which does not come."""
    prefix, node_id = f"{store.facts['topic_prefix']}/{tmp_path.name}", store.facts["node_id"]
    wire = Wire(broker, prefix)
    try:
        harness = ReplicationTestHarness(node_factory, store.path.parent, broker, prefix)
        store.path.rename(store.path.with_name(node_id))
        node = harness.create_node(node_id)
        node.set("last", "of all")

        def published() -> list[bytes]:
            messages = [decode_message(payload) for payload in wire.received(f"{prefix}/{node_id}/events")]
            return [change[1] for message in messages for change in message.changes]

        wait_until(lambda: b"last" in published())
        assert len(published()) == store.expected["pending_events"] + 1
        assert {f"pending:{number}".encode() for number in range(4)} < set(published())
        node.disconnect()
    finally:
        wire.close()


@pytest.mark.parametrize("kind", ["jsonl", "cbor"])
@pytest.mark.parametrize("release", RELEASES)
def test_a_dump_is_loaded(release: str, kind: str, tmp_path: Path) -> None:
    dump = gzip.decompress((HERE / release / f"dump.{kind}.gz").read_bytes())
    with opened(tmp_path / "data") as engine:
        engine.join()  # a lone node keeps nothing of deleted keys
    succeeds("load", "-", tmp_path / "data", stdin=dump)
    with opened(tmp_path / "data") as engine:
        holds(engine, facts_of(release)["stopped"])


@pytest.mark.parametrize("release", RELEASES)
def test_a_backup_is_restored(release: str, tmp_path: Path) -> None:
    succeeds("restore", HERE / release / "backup.tar.gz", tmp_path / "data")
    succeeds("verify", tmp_path / "data")
    with opened(tmp_path / "data") as engine:
        holds(engine, facts_of(release)["stopped"])
