"""`deploy/mosquitto.conf` and `deploy/merklekv.acl` as they are shipped, with a real Mosquitto and real nodes."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from fixtures.broker import Broker, BrokerFactory, Wire
from fixtures.cluster import ReplicationTestHarness
from fixtures.node import NodeFactory
from fixtures.support import wait_until
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from merklekv.net.client import Client
from merklekv.replication.stream.outbox import BATCH_BYTES
from merklekv.settings import Settings

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
PREFIX = Settings().replication.topic_prefix
USERS = ("node-1", "node-2", "node-3")
READER = "follow-1"  # the application of docs/mqtt-changes.md


def password(user: str) -> str:
    return f"secret of {user}"


@pytest.fixture
def broker(broker_factory: BrokerFactory, tmp_path: Path) -> Broker:
    """The broker as shipped, on a port and in a folder of the test's own."""
    etc, store = tmp_path / "etc", tmp_path / "store"
    etc.mkdir()
    store.mkdir()
    shutil.copy(DEPLOY / "merklekv.acl", etc)
    (etc / "passwords").touch()
    for user in (*USERS, READER):
        command = ["mosquitto_passwd", "-b", str(etc / "passwords"), user, password(user)]
        subprocess.run(command, check=True, capture_output=True)
    text = (DEPLOY / "mosquitto.conf").read_text()
    assert "\nlistener 1883\n" in text  # in its place the factory puts a free port of the loopback
    text = text.replace("\nlistener 1883\n", "\n").replace("/etc/mosquitto/", f"{etc}/")
    return broker_factory(*text.replace("/var/lib/mosquitto/", f"{store}/").splitlines())


@pytest.fixture
def harness(node_factory: NodeFactory, tmp_path: Path, broker: Broker) -> Iterator[ReplicationTestHarness]:
    """An empty cluster at that broker."""
    made = ReplicationTestHarness(node_factory, tmp_path, broker, PREFIX)
    yield made
    for node in made.nodes:
        node.disconnect()


@pytest.fixture
def node_1(broker: Broker) -> Iterator[Wire]:
    """A client that knows the password of node-1, and is no node."""
    made = Wire(broker, PREFIX, "node-1", password("node-1"))
    yield made
    made.close()


def test_nodes_with_users_of_their_own_replicate(harness: ReplicationTestHarness, broker: Broker) -> None:
    nodes = [harness.create_node(user, client_password=password(user)) for user in USERS]
    for node in nodes:
        node.wait_figure("replication_nodes", len(nodes))
        node.set(f"by-{node.node_id}", "here")
    harness.wait_converged()
    assert {node.key_count() for node in nodes} == {3}
    assert {node.figure("publishes_refused") for node in nodes} == {0}
    assert "Error" not in broker.log.read_text()


def test_a_node_that_publishes_as_another_is_refused_and_says_so(harness: ReplicationTestHarness) -> None:
    witness = harness.create_node("node-2", client_password=password("node-2"))
    liar = harness.create_node("node-3", username="node-1", client_password=password("node-1"))
    liar.wait_figure('publishes_refused{reason="Not authorized"}')  # its presence
    refused = liar.figure('publishes_refused{reason="Not authorized"}')
    liar.set("k", "v")
    liar.wait_figure('publishes_refused{reason="Not authorized"}', refused + 1)
    status = liar.ask("REPLICATE status")
    assert re.search(r" refused=[1-9]\d* ", status)
    assert re.search(r" outbox=1 ", status)
    assert f"detail=the broker refuses what we publish to {PREFIX}/node-3/events: Not authorized" in status
    assert liar.figure("published_events") == 0
    assert (liar.get("k"), witness.get("k")) == ("v", None)


def test_what_was_refused_arrives_once_the_user_is_right(harness: ReplicationTestHarness) -> None:
    witness = harness.create_node("node-2", client_password=password("node-2"))
    node = harness.create_node("node-3", username="node-1", client_password=password("node-1"))
    node.set("k", "v")
    node.wait_figure("publishes_refused")
    node.stop()
    harness.create_node("node-3", client_password=password("node-3"))
    witness.wait_for("k", "v")


@pytest.mark.parametrize("topic", ["node-2/events", "node-2/status", "node-2/pubsub", "node-1/else", "events"])
def test_a_user_writes_on_no_topics_but_its_own(node_1: Wire, topic: str) -> None:
    assert node_1.publish(f"{PREFIX}/node-1/events", b"own")
    assert node_1.publish(f"{PREFIX}/node-1/status", b"own")
    assert node_1.publish(f"{PREFIX}/node-1/pubsub", b"own")
    assert not node_1.publish(f"{PREFIX}/{topic}", b"not own")
    assert not node_1.publish("else/node-1/events", b"not ours")


def test_an_application_with_the_lines_of_the_docs_reads_and_writes_nothing(broker: Broker, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "mqtt-changes.md").read_text()
    lines = re.search(rf"^    user {READER}\n(?:    .*\n)+", page, re.MULTILINE)
    assert lines is not None
    with (tmp_path / "etc" / "merklekv.acl").open("a") as acl:
        acl.write("\n" + lines[0].replace("    ", ""))
    broker.stop()
    broker.start()
    node, reader = (Wire(broker, PREFIX, user, password(user)) for user in ("node-1", READER))
    assert node.publish(f"{PREFIX}/node-1/events", b"of node-1")
    wait_until(lambda: reader.received(f"{PREFIX}/node-1/events") == [b"of node-1"])
    for topic in (f"{READER}/events", f"{READER}/status", f"{READER}/pubsub", "node-1/events"):
        assert not reader.publish(f"{PREFIX}/{topic}", b"not allowed")
    node.close()
    reader.close()


def test_strangers_are_refused(harness: ReplicationTestHarness) -> None:
    wrong = harness.create_node("node-1", client_password="wrong", start=False)
    anonymous = harness.create_node("node-2", start=False)
    for node in (wrong, anonymous):
        node.start()
        wait_until(lambda node=node: "refuses us" in node.figures()["replication_detail"])


def test_nobody_takes_over_the_session_of_another(harness: ReplicationTestHarness, broker: Broker) -> None:
    node = harness.create_node("node-2", client_password=password("node-2"))
    thief = paho.Client(CallbackAPIVersion.VERSION2, "node-2", protocol=MQTTProtocolVersion.MQTTv5)
    thief.username_pw_set("node-1", password("node-1"))
    let_in = threading.Event()
    thief.on_connect = lambda *_: let_in.set()
    thief.connect(broker.host, broker.port)
    thief.loop_start()
    try:
        assert let_in.wait(60)
        node.set("k", "v")
        node.wait_figure("published_events")
        assert node.figure("broker_losses") == 0
    finally:
        thief.disconnect()
        thief.loop_stop()


def test_sessions_outlive_a_restart_of_the_broker(harness: ReplicationTestHarness, broker: Broker) -> None:
    writer, reader = (harness.create_node(user, client_password=password(user)) for user in USERS[:2])
    reader.stop()
    writer.set("k", "v")
    writer.wait_figure("published_events")
    broker.stop()
    broker.start()
    reader.start()
    reader.wait_for("k", "v")


def test_the_largest_value_passes(harness: ReplicationTestHarness) -> None:
    writer, reader = (harness.create_node(user, client_password=password(user)) for user in USERS[:2])
    value = b"x" * Settings().max_value_size
    with Client("127.0.0.1", writer.process.port) as there, Client("127.0.0.1", reader.process.port) as here:
        there.call(b"SET", b"large", value)
        wait_until(lambda: here.call(b"STRLEN", b"large") == len(value))
    assert writer.figure("outbox_dropped_too_large") == 0


def test_the_packet_limit_leaves_room_beside_the_largest_value() -> None:
    limit = re.search(r"^max_packet_size (\d+)$", (DEPLOY / "mosquitto.conf").read_text(), re.MULTILINE)
    assert limit is not None
    assert int(limit[1]) > Settings().max_value_size + BATCH_BYTES
