"""What a broker keeps under a node's name, and what it sends: of another cluster, another process, or too large."""

from __future__ import annotations

import errno
import itertools
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import cbor2
import paho.mqtt.client as paho
import psutil
import pytest
from fixtures.broker import Broker, BrokerFactory, Wire
from fixtures.cluster import HarnessFactory, NodeHandle, Outsider, ReplicationTestHarness, make_event
from fixtures.patient_node import patient
from fixtures.proxy import ProxyFactory
from fixtures.support import wait_until
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from merklekv import exit_codes
from merklekv.replication.cluster.presence import ONLINE, Status
from merklekv.replication.stream import mqtt, reconnect
from merklekv.replication.stream.event import MESSAGE_BYTES_MAX
from merklekv.replication.stream.mqtt import BrokerSettings, ConnectionLost, MqttConnection

pytestmark = pytest.mark.replication

VERSIONS = ["5", "3.1.1"]
HUGE_BYTES = 60 << 20
LOAD_S = 60.0
HALF_BATCH = 15_000  # of a value of three bytes: two of them do not fit into one batch


# -- clusters do not mix -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("other", ["{0}x", "{0}/sub", "x{0}", "sub"])
def test_a_node_that_moves_to_another_cluster_takes_nothing_along(
    harness: ReplicationTestHarness, wire: Wire, version: str, other: str
) -> None:
    """Its session in the first cluster gets a write and a TRUNCATE, and neither arrives in the second."""
    first = harness.create_node("n1", mqtt_version=version)
    moving = harness.create_node("nx", mqtt_version=version)
    first.wait_figure("replication_nodes", 2)
    moving.stop()
    prefix = other.format(harness.prefix) if "{" in other else harness.prefix[:-1] + "~"
    moved = harness.create_node("nx-moved", mqtt_version=version, topic_prefix=prefix, client_id=moving.node_id)
    moved.set("mine", "1")
    first.set("secret", "1")
    assert first.ask("TRUNCATE") == "OK"
    first.set("later", "1")
    wait_until(lambda: first.figure("outbox_events") == 0)
    moved.process.stop()
    moved.disconnect()
    moved.start()
    moved.wait_connected()
    receive_all(moved, wire, prefix)
    assert (moved.get("mine"), moved.get("secret"), moved.get("later")) == ("1", None, None)
    assert moved.figure("refused_events") == 0
    assert moved.figure("replication_nodes") == 1


def test_a_session_that_two_clusters_share_mixes_nothing(
    harness_at: HarnessFactory, broker_factory: BrokerFactory
) -> None:
    """The broker takes the user's name for the client id, so a node that moves finds its session of before."""
    broker = broker_factory("allow_anonymous true", "use_username_as_clientid true", "max_queued_messages 1000")
    harness = harness_at(broker)
    first = harness.create_node("n1", username="n1")
    moving = harness.create_node("nx", username="nx")
    first.wait_figure("replication_nodes", 2)
    moving.stop()
    first.set("secret", "1")
    wait_until(lambda: first.figure("outbox_events") == 0)  # or both events may come in one message
    assert first.ask("TRUNCATE") == "OK"
    wait_until(lambda: first.figure("outbox_events") == 0)
    moved = harness.create_node("moved", start=False, username="nx", topic_prefix=harness.prefix[:-1] + "~")
    moved.start()
    moved.set("mine", "1")
    moved.wait_figure("received_foreign", 2)
    moved.wait_connected()
    first.set("later", "1")
    wait_until(lambda: first.figure("outbox_events") == 0)
    assert (moved.get("mine"), moved.get("secret"), moved.get("later")) == ("1", None, None)
    assert (moved.figure("refused_events"), moved.figure("replication_nodes")) == (0, 1)


def receive_all(node: NodeHandle, wire: Wire, prefix: str) -> None:
    """Until the node has whatever the broker had for it by now: messages come in order."""
    key = f"key-{secrets.token_hex(4)}"
    assert wire.publish(f"{prefix}/outsider/events", cbor2.dumps(make_event(key)))
    node.wait_for(key, "v")


def user_session(broker: Broker, client_id: str, *filters: str) -> None:
    """Leave a session with these subscriptions at the broker, as another program with this client id would."""
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5)
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 3600
    subscribed: list[object] = []
    client.on_subscribe = lambda *_: subscribed.append(_)
    client.connect(broker.host, broker.port, clean_start=True, properties=properties)
    client.loop_start()
    for name in filters:
        client.subscribe(name, 1)
    wait_until(lambda: len(subscribed) == len(filters))
    client.disconnect()
    client.loop_stop()


def test_a_session_with_foreign_subscriptions_is_cleaned(harness: ReplicationTestHarness, wire: Wire) -> None:
    node = harness.create_node("n1", start=False)
    other = f"{harness.prefix}-other"
    user_session(harness.broker, f"{harness.prefix}:{node.node_id}", f"{other}/+/events", f"{other}/+/status")
    for number in range(50):
        assert wire.publish(f"{other}/outsider/events", cbor2.dumps(make_event(f"foreign-{number}")))
    truncate = {name: value for name, value in make_event(op="truncate").items() if name not in ("key", "val")}
    assert wire.publish(f"{other}/outsider/events", cbor2.dumps(truncate))
    node.start()
    node.wait_figure("received_foreign", 51)
    node.set("own", "1")
    receive_all(node, wire, harness.prefix)
    assert (node.key_count(), node.figure("refused_events")) == (2, 0)
    assert wire.publish(f"{other}/outsider/events", cbor2.dumps(make_event("after")))
    receive_all(node, wire, harness.prefix)
    assert node.figure("received_foreign") == 51, "it has unsubscribed"
    wait_until(lambda: node.process.output().count("ignored a message") == 1)
    node.stop()
    node.start()
    node.wait_connected()
    receive_all(node, wire, harness.prefix)
    assert node.figure("received_foreign") == 0, "it has acknowledged them"


def test_a_message_under_an_empty_name_does_not_silence_the_subscription(
    harness: ReplicationTestHarness, wire: Wire, outsider: Outsider
) -> None:
    node = harness.create_node()
    assert wire.publish(f"{harness.prefix}//status", b'{"node":"","state":"online"}')
    assert wire.publish(f"{harness.prefix}//events", b"x")
    node.wait_figure("received_foreign", 2)
    outsider.publish(make_event("k", b"v"))
    node.wait_for("k", "v")


# -- the same client id twice ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_two_processes_with_one_client_id_say_so_and_take_turns(
    harness_at: HarnessFactory, broker_factory: BrokerFactory, version: str
) -> None:
    broker = broker_factory()
    nodes = [harness_at(broker).create_node("same", start=False, mqtt_version=version) for _ in range(2)]
    for node in nodes:
        node.start()
    name = f"another process uses the client id {harness_prefix(nodes[0])}:same at this broker"
    for node in nodes:
        wait_until(lambda node=node: name in node.ask("REPLICATE status"), what=name)
        wait_until(lambda node=node: name in node.figures()["replication_detail"], what=name)  # they take turns
        wait_until(lambda node=node: name in node.process.output())
    reader = harness_at(broker).create_node("reader")
    # The waits double, so this takes until attempts are rare; there were hundreds by then without them.
    wait_until(lambda: connects(nodes) >= 10)
    began, connected = time.monotonic(), connects(nodes)
    for number, node in enumerate(nodes):
        node.set(f"k{number}", "v")
    for number in range(2):
        reader.wait_for(f"k{number}", "v", seconds=3 * reconnect.DUPLICATE_RETRY_MAX_S)
    more = connects(nodes) - connected
    assert more <= max(8, 2 * connects_at_most(time.monotonic() - began))
    nodes[0].stop()
    wait_until(
        lambda: nodes[1].figures()["replication_state"] == "connected", seconds=3 * reconnect.DUPLICATE_RETRY_MAX_S
    )
    nodes[1].set("last", "v")
    reader.wait_for("last", "v")
    assert all(node.process.output().count("WARNING") < 40 for node in nodes)


def harness_prefix(node: NodeHandle) -> str:
    return next(flag.partition("=")[2] for flag in node.process.flags if flag.startswith("replication.topic_prefix="))


def connects(nodes: list[NodeHandle]) -> int:
    return sum(node.figure("broker_connects") for node in nodes)


def connects_at_most(seconds: float) -> int:
    """How often a process connects in that time that has connected a few times before, by its shortest waits."""
    backoff = reconnect.Backoff()
    waits_s = (backoff.next_wait_s(0.0, has_duplicate=True) / 2 for _ in itertools.count())
    passed = itertools.accumulate(itertools.islice(waits_s, 5, None))
    return sum(1 for _ in itertools.takewhile(lambda moment: moment <= seconds, passed))


def test_a_node_that_is_killed_and_back_at_once_is_no_duplicate(own_harness: ReplicationTestHarness) -> None:
    """Its last will comes from another process, and is its own."""
    node = own_harness.create_node()
    for _ in range(3):
        node.kill()
        node.start()
        node.wait_connected()
    own_harness.broker.kill()
    node.wait_disconnected()
    own_harness.broker.start()
    node.wait_connected()
    assert node.figure("broker_duplicate_client_ids") == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_status_of_an_older_run_is_no_duplicate(
    harness_at: HarnessFactory,
    broker_factory: BrokerFactory,
    proxy_factory: ProxyFactory,
    topic_prefix: str,
    tmp_path: Path,
    version: str,
) -> None:
    """The broker keeps it and sends it at each connect: this node may not replace it."""
    acl = tmp_path / "acl"
    acl.write_text(
        f"topic readwrite {topic_prefix}/+/events\ntopic read {topic_prefix}/+/status\n"
        f"user wire\ntopic readwrite {topic_prefix}/#\n"
    )
    broker = broker_factory("allow_anonymous true", f"acl_file {acl}")
    proxy = proxy_factory(broker.host, broker.port)
    harness = harness_at(broker)
    node = harness.create_node("a", start=False, mqtt_port=proxy.port, mqtt_version=version)
    wire = Wire(broker, topic_prefix, username="wire")
    older = Status(node.node_id, ONLINE, epoch="older").encode()
    assert wire.publish(f"{topic_prefix}/{node.node_id}/status", older, retain=True)
    node.start()
    for count in range(1, 6):
        wait_until(lambda count=count: node.figure("broker_connects") >= count)
        wait_until(lambda count=count: broker.log.read_text().count("d0, q0, r1") >= count)
        receive_all(node, wire, topic_prefix)
        assert node.figure("broker_duplicate_client_ids") == 0
        proxy.cut()
        proxy.heal()
    wire.close()


# -- messages that are too large ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_a_huge_message_costs_bounded_memory_and_holds_up_nothing(
    harness: ReplicationTestHarness, version: str
) -> None:
    """MQTT 5 has the broker drop it; before that it comes, and is skipped while it arrives."""
    node = harness.create_node(mqtt_version=version)
    node.set("own", "1")
    before = node.process.peak_bytes
    topic = f"{harness.prefix}/outsider/events"
    publish(harness.broker, topic, bytes(HUGE_BYTES))
    publish(harness.broker, topic, cbor2.dumps(make_event("k", b"after")))
    node.wait_for("k", "after", seconds=LOAD_S)
    assert node.process.peak_bytes - before < 4 * MESSAGE_BYTES_MAX < 2 * HUGE_BYTES
    assert node.figure("broker_losses") == 0
    if version == "3.1.1":
        assert node.figure("refused_events") == 1
    acknowledged = f"Received PUBACK from {harness.prefix}:{node.node_id} "
    wait_until(
        lambda: harness.broker.log.read_text(errors="replace").count(acknowledged) >= (2 if version == "5" else 3)
    )
    node.stop()
    node.start()
    node.wait_connected()
    publish(harness.broker, topic, cbor2.dumps(make_event("k", b"later")))
    node.wait_for("k", "later", seconds=LOAD_S)
    assert node.figure("refused_events") == 0, "it was acknowledged, or never came"


def publish(broker: Broker, topic: str, payload: bytes) -> None:
    """Publish with QoS 1 by MQTT 3.1.1 on a plain socket; paho copies what is left of a large message at each step."""
    with socket.create_connection((broker.host, broker.port), timeout=LOAD_S) as sock:
        sock.sendall(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03big")
        assert sock.recv(4) == b"\x20\x02\x00\x00"
        body = len(topic).to_bytes(2, "big") + topic.encode() + b"\x00\x01" + payload
        left, length = len(body), bytearray()
        while left or not length:
            left, digit = divmod(left, 128)
            length.append(digit | (0x80 if left else 0))
        sock.sendall(b"\x32" + length + body)
        assert sock.recv(4) == b"\x40\x02\x00\x01"


def test_the_largest_packet_has_room_for_the_largest_message_and_any_topic() -> None:
    assert mqtt.PACKET_BYTES_MAX >= MESSAGE_BYTES_MAX + 65_535 + 100


# -- the status that the broker keeps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_status_that_was_replaced_or_deleted_is_said_again(
    harness: ReplicationTestHarness, wire: Wire, version: str
) -> None:
    a = harness.create_node("a", mqtt_version=version)
    b = harness.create_node("b")
    b.wait_figure("replication_nodes", 2)
    topic = f"{harness.prefix}/{a.node_id}/status"
    wait_until(lambda: wire.received(topic), what="its status")
    said = json.loads(wire.received(topic)[-1])
    payloads = {  # two each: a correction waits twice as long as the one before it
        "5": (json.dumps(said | {"state": "offline"}).encode(), b""),
        "3.1.1": (b"garbage", b'{"node":"b"}'),
    }
    for payload in payloads[version]:
        count = len(wire.received(topic))
        assert wire.publish(topic, payload, retain=True)
        wait_until(lambda count=count: len(wire.received(topic)) >= count + 2, seconds=60)
        assert json.loads(wire.received(topic)[-1])["state"] == "online"
        b.wait_figure("replication_nodes", 2)
    c = harness.create_node("c")
    c.wait_figure("replication_nodes", 3)


# -- names that are slow to look up ------------------------------------------------------------------------------------

SLOW_NAME = """
import os, socket, time
look_up = socket.getaddrinfo
def slow(host, *others, **named):
    if host == "slow.invalid":
        os.write(2, b"looking up\\n")  # whole, although other threads write
        time.sleep(3600)
    return look_up(host, *others, **named)
socket.getaddrinfo = slow
"""


@pytest.mark.parametrize("tls", ["false", "true"])
def test_a_name_that_is_slow_to_look_up_does_not_hold_up_the_stop(harness: ReplicationTestHarness, tls: str) -> None:
    node = harness.create_node(start=False, mqtt_broker="slow.invalid", tls=tls)
    node.process.program = patient(SLOW_NAME)
    node.start()
    wait_until(lambda: "looking up" in node.process.output())
    node.set("k", "v")
    assert node.ask("REPLICATE disable") == "OK"
    wait_until(lambda: node.figures()["replication_state"] == "disabled")
    assert node.ask("REPLICATE enable") == "OK"
    wait_until(lambda: node.process.output().count("looking up") == 2)
    assert node.process.stop(signal.SIGTERM) == exit_codes.EXIT_OK
    assert "cut short" not in node.process.output()
    assert not psutil.pid_exists(node.process.pid)


# -- answers that come with the end of the connection ------------------------------------------------------------------


def test_a_batch_that_was_acknowledged_as_the_connection_ended_is_not_sent_again(
    harness: ReplicationTestHarness,
) -> None:
    """A broker acknowledges the first of two batches and ends the connection in the same segment, each time."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LOAD_S)
        node = harness.create_node("a", start=False, mqtt_port=listener.getsockname()[1])
        node.start()
        first = acknowledge_one_batch(
            listener, lambda: node.set_many({key: key * HALF_BATCH for key in ("one", "two")})
        )
        again = acknowledge_one_batch(listener, lambda: None)
        assert (first, again) == ([b"one", b"two"], [b"two"])
        node.wait_figure("published_batches", 2)


def acknowledge_one_batch(listener: socket.socket, write: Callable[[], object]) -> list[bytes]:
    """Accept a connection, receive batches up to `two`, acknowledge the first with rubbish behind it: their keys."""
    connection, _ = listener.accept()
    connection.settimeout(LOAD_S)
    with connection, connection.makefile("rb") as stream:
        read_packet(stream)
        connection.sendall(b"\x20\x03\x01\x00\x00")  # CONNACK, with a session
        write()
        keys: list[tuple[bytes, bytes]] = []
        while not keys or keys[-1][0] != b"two":
            kind, body = read_packet(stream)
            if kind >> 4 != paho.PUBLISH >> 4:
                continue
            topic_end = 2 + int.from_bytes(body[:2], "big")
            message_id = body[topic_end : topic_end + 2]
            if key := next((key for key in (b"one", b"two") if key * HALF_BATCH in body), None):
                keys.append((key, message_id))
            else:  # the status, a heartbeat
                connection.sendall(b"\x40\x02" + message_id)
        connection.sendall(b"\x40\x02" + keys[0][1] + b"\x00\x00")  # PUBACK, and no packet of MQTT
    return [key for key, _ in keys]


def read_packet(stream: IO[bytes]) -> tuple[int, bytes]:
    """The first byte and the body of an MQTT packet."""
    kind, size, shift = stream.read(1)[0], 0, 0
    while True:
        byte = stream.read(1)[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return kind, stream.read(size)


# -- the socket --------------------------------------------------------------------------------------------------------


@pytest.fixture
def connection() -> Iterator[MqttConnection]:
    """To a port that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        broker = BrokerSettings("127.0.0.1", listener.getsockname()[1], "prefix", "node")
        made = MqttConnection(broker, "prefix/node/status", b"{}")
        yield made
        made.drop()


def test_the_kernel_probes_a_silent_broker(connection: MqttConnection) -> None:
    connection.open(lambda: False)
    with socket.socket(fileno=os.dup(connection._fd)) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_a_broker_that_hangs_up_before_the_first_packet(
    connection: MqttConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(client: paho.Client, data: bytes) -> int:
        raise ConnectionResetError(errno.ECONNRESET, "reset by the test")

    monkeypatch.setattr(paho.Client, "_sock_send", send)
    with pytest.raises(ConnectionLost, match=r"the connection to 127\.0\.0\.1:\d+ is lost: reset by the test$"):
        connection.open(lambda: False)
