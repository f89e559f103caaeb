"""Real nodes at a real Mosquitto, while both and the network between them fail in every way."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import cbor2
import pytest
from fixtures.broker import BrokerFactory, Wire
from fixtures.cluster import HarnessFactory, Outsider, ReplicationTestHarness, make_event
from fixtures.patient_node import patient
from fixtures.proxy import ProxyFactory
from fixtures.support import free_port, wait_until

from merklekv.replication.stream.broker_session import SILENCE_MAX_S

pytestmark = pytest.mark.replication


def numbered(count: int, start: int = 0) -> dict[str, str]:
    return {f"key-{number}": f"value-{number}" for number in range(start, start + count)}


def test_what_was_written_without_a_broker_arrives_after_restarts(
    harness_at: HarnessFactory, broker_factory: BrokerFactory
) -> None:
    """This broker keeps sessions, so a node gets what is published before it is back, whichever node is back first."""
    broker = broker_factory("allow_anonymous true", "max_queued_messages 100000", "persistence true")
    harness = harness_at(broker)
    a, b = harness.create_nodes(2)
    broker.stop()
    a.set_many(numbered(1000))
    a.stop()
    a.start()
    a.set_many(numbered(1000, 1000))
    assert a.figure("outbox_events") == 2000
    a.kill()
    a.start()
    assert a.figure("outbox_events") == 2000
    a.wait_disconnected()
    wait_until(lambda: " state=disconnected outbox=2000 " in a.ask("REPLICATE status"))
    broker.start()
    wait_until(lambda: b.key_count() == 2000)
    harness.wait_converged()
    wait_until(lambda: a.figure("outbox_events") == 0)


def test_a_node_starts_and_serves_without_a_broker(
    harness_at: HarnessFactory, broker_factory: BrokerFactory, topic_prefix: str, tmp_path: Path
) -> None:
    harness = harness_at(broker_factory(start=False))
    node = harness.create_node(start=False)
    node.start()
    node.set("k", "v")
    assert node.get("k") == "v"
    wait_until(lambda: "cannot connect" in node.figures()["replication_detail"])
    node.stop()


@pytest.mark.slow
def test_a_writer_that_is_killed_again_and_again_leaves_no_gap(own_harness: ReplicationTestHarness) -> None:
    a, b = own_harness.create_nodes(2)
    written = 0
    for _ in range(5):
        a.client.send(b"".join(b"SET key-%d v\r\n" % number for number in range(written, written + 3000)))
        acknowledged = 0
        while acknowledged < 1000:
            assert a.client.line() == "OK"
            acknowledged += 1
        a.kill()
        written += acknowledged
        a.start()
    total = a.key_count()
    assert total >= written
    wait_until(lambda: b.key_count() == total)
    own_harness.wait_converged()
    assert b.figure('replication_gaps{reason="gap"}') == 0


@pytest.mark.slow
def test_a_broker_that_is_killed_is_found_again(own_harness: ReplicationTestHarness) -> None:
    a, b = own_harness.create_nodes(2)
    for round_number in range(3):
        a.set_many(numbered(500, round_number * 1000))
        own_harness.broker.kill()
        a.wait_disconnected()
        a.set_many(numbered(500, round_number * 1000 + 500))
        own_harness.broker.start()
        wait_until(lambda: a.figure("outbox_events") == 0)
        # A broker without persistence loses sessions, which nodes notice, if only now; the first one was new.
        b.wait_figure("broker_sessions_lost", round_number + 2)
        b.wait_figure('replication_gaps{reason="session lost"}', round_number + 2)
    assert a.figure("broker_losses") >= 3


def test_a_queue_that_overflows_at_the_broker_is_noticed(
    harness_at: HarnessFactory, broker_factory: BrokerFactory, topic_prefix: str, tmp_path: Path
) -> None:
    broker = broker_factory("allow_anonymous true", "max_queued_messages 10", "persistence false")
    harness = harness_at(broker)
    a, b = harness.create_nodes(2)
    a.set("first", "1")
    b.wait_for("first", "1")
    b.kill()
    for number in range(60):  # one message each, far more than the broker keeps
        a.set(f"k{number}", "v")
        wait_until(lambda: a.figure("outbox_events") == 0)
    b.start()
    b.wait_connected()

    def last_arrives() -> bool:
        a.set("last", "1")  # the broker drops it, too, until b has acknowledged some of what it kept
        return b.get("last") == "1"

    wait_until(last_arrives)
    b.wait_figure('replication_gaps{reason="gap"}')
    assert b.key_count() < 62


def test_a_node_that_may_not_publish_says_so_and_goes_on_when_it_may(
    harness_at: HarnessFactory, broker_factory: BrokerFactory, topic_prefix: str, tmp_path: Path
) -> None:
    acl = tmp_path / "acl"
    acl.write_text(f"topic read {topic_prefix}/#\ntopic readwrite {topic_prefix}/reader/events\n")
    broker = broker_factory("allow_anonymous true", f"acl_file {acl}")
    harness = harness_at(broker)
    writer, reader = harness.create_node("writer"), harness.create_node("reader")
    writer.set("k", "v")
    writer.wait_figure('publishes_refused{reason="Not authorized"}')
    wait_until(lambda: "refuses what we publish" in writer.figures()["replication_detail"])
    assert "Not authorized" in writer.ask("REPLICATE status")
    assert writer.figure("outbox_events") == 1
    reader.set("other", "way")
    writer.wait_for("other", "way")
    acl.write_text(f"topic readwrite {topic_prefix}/#\n")
    broker.kill()
    broker.start()
    reader.wait_for("k", "v")
    wait_until(lambda: writer.figures()["replication_detail"] == "")


def test_a_node_notices_that_its_subscription_is_silent(
    harness_at: HarnessFactory, broker_factory: BrokerFactory, topic_prefix: str, tmp_path: Path
) -> None:
    acl = tmp_path / "acl"
    acl.write_text(f"topic write {topic_prefix}/+/events\ntopic readwrite {topic_prefix}/+/status\n")
    broker = broker_factory("allow_anonymous true", f"acl_file {acl}")
    node = harness_at(broker).create_node()
    node.wait_figure("broker_subscription_silent")
    wait_until(lambda: "heartbeat does not come back" in node.figures()["replication_detail"])


@pytest.mark.parametrize("limit", ["max_packet_size 20000", "message_size_limit 20000"])
def test_an_event_that_the_broker_never_takes_holds_up_nothing(
    harness_at: HarnessFactory, broker_factory: BrokerFactory, limit: str
) -> None:
    broker = broker_factory("allow_anonymous true", limit)
    harness = harness_at(broker)
    a, b = harness.create_nodes(2)
    a.set("before", "1")
    a.set("large", "L" * 30_000)
    a.set_many({f"k{number}": "x" * 5000 for number in range(30)})
    a.set("after", "1")
    b.wait_for("after", "1")
    assert b.key_count() == 32
    a.wait_figure("outbox_dropped_too_large")
    wait_until(lambda: a.figure("outbox_events") == 0)
    b.wait_figure('replication_gaps{reason="gap"}')


@pytest.mark.slow
def test_a_half_open_connection_is_closed(own_harness: ReplicationTestHarness, proxy_factory: ProxyFactory) -> None:
    b = own_harness.create_node("b")
    proxy = proxy_factory(own_harness.broker.host, own_harness.broker.port)
    a = own_harness.create_node("a", mqtt_port=proxy.port)
    a.set("k", "1")
    b.wait_for("k", "1")
    proxy.freeze()
    a.set("k", "2")
    wait_until(lambda: a.figure("broker_losses") == 1, seconds=SILENCE_MAX_S * 2 + 10)
    assert a.get("k") == "2"
    proxy.thaw()
    b.wait_for("k", "2")


def test_a_cut_network_heals(own_harness: ReplicationTestHarness, proxy_factory: ProxyFactory) -> None:
    b = own_harness.create_node("b")
    proxy = proxy_factory(own_harness.broker.host, own_harness.broker.port)
    a = own_harness.create_node("a", mqtt_port=proxy.port)
    proxy.cut()
    a.wait_disconnected()
    a.set_many(numbered(300))
    b.set_many({f"b-{number}": "v" for number in range(300)})
    proxy.heal()
    own_harness.wait_converged()
    assert a.key_count() == 600


def test_truncate_reaches_all_and_spares_later_writes(harness: ReplicationTestHarness) -> None:
    a, b = harness.create_nodes(2)
    a.set_many(numbered(100))
    wait_until(lambda: b.key_count() == 100)
    assert b.ask("TRUNCATE") == "OK"
    b.set("later", "1")
    a.wait_for("later", "1")
    harness.wait_converged()
    assert a.key_count() == 1


def test_switching_off_and_on(harness: ReplicationTestHarness) -> None:
    a, b = harness.create_nodes(2)
    assert a.ask("REPLICATE disable") == "OK"
    wait_until(lambda: a.ask("REPLICATE status").startswith("REPLICATION disabled state=disabled"))
    a.set("from-a", "1")
    b.set("from-b", "1")
    assert a.figure("outbox_events") == 1
    assert a.ask("REPLICATE enable") == "OK"
    a.wait_for("from-b", "1")
    b.wait_for("from-a", "1")
    wait_until(lambda: a.ask("REPLICATE status").startswith("REPLICATION enabled 2 nodes state=connected "))


def test_a_node_without_the_setting_can_be_switched_on(harness: ReplicationTestHarness) -> None:
    node = harness.create_node("late", enabled="false", start=False)
    node.start()
    assert node.ask("REPLICATE status") == "REPLICATION disabled"
    assert node.ask("REPLICATE disable") == "OK"
    assert node.ask("REPLICATE enable") == "OK"
    node.wait_connected()
    other = harness.create_node("other")
    node.set("k", "v")
    other.wait_for("k", "v")


def test_presence_is_kept_and_its_end_too(harness: ReplicationTestHarness, wire: Wire) -> None:
    a, b = harness.create_nodes(2)
    topic = f"{harness.prefix}/{a.node_id}/status"
    wait_until(lambda: wire.received(topic))
    status = json.loads(wire.received(topic)[-1])
    assert (status["node"], status["state"]) == (a.node_id, "online")
    assert status["address"] == f"127.0.0.1:{a.process.port}"
    a.kill()
    wait_until(lambda: json.loads(wire.received(topic)[-1])["state"] == "offline", what="the last will")
    wait_until(lambda: b.figure("replication_nodes") == 1)
    a.start()
    b.wait_figure("replication_nodes", 2)
    a.stop()
    wait_until(lambda: json.loads(wire.received(topic)[-1])["state"] == "offline", what="the offline status")


def test_a_stop_publishes_what_is_left(harness: ReplicationTestHarness) -> None:
    a, b = harness.create_node("a", start=False), harness.create_node("b")
    a.process.program = patient("node.PUBLISH_REST_S = 60.0")
    a.start()
    a.wait_connected()
    for node in (a, b):
        node.wait_figure("replication_nodes", 2)
    a.set_many(numbered(5000))
    a.stop()
    wait_until(lambda: b.key_count() == 5000)


def test_mqtt_3_1_1_by_option(harness: ReplicationTestHarness) -> None:
    a = harness.create_node("a", mqtt_version="3.1.1")
    b = harness.create_node("b", mqtt_version="3.1.1")
    a.set("k", "v")
    b.wait_for("k", "v")
    b.kill()
    a.set("k", "later")
    b.start()
    b.wait_for("k", "later")


def certificate(directory: Path, name: str, authority: Path | None = None, subject: str = "") -> None:
    """A key and a certificate of `name`, by itself or by an authority in the same directory."""
    who = f"/CN={subject or name}"
    request = ["openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", who, "-keyout", f"{name}.key"]
    if authority is None:
        command = [*request, "-x509", "-days", "2", "-out", f"{name}.crt"]
    else:
        command = [
            *request,
            "-x509",
            "-days",
            "2",
            "-out",
            f"{name}.crt",
            "-CA",
            "authority.crt",
            "-CAkey",
            "authority.key",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=CA:FALSE",
        ]
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


def test_tls_with_client_certificates(
    harness_at: HarnessFactory, broker_factory: BrokerFactory, topic_prefix: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    certificate(keys, "authority")
    for name in ("broker", "node"):
        certificate(keys, name, keys / "authority.crt")
    broker = broker_factory(
        "allow_anonymous true",
        f"listener {free_port()} 127.0.0.1",
        f"cafile {keys}/authority.crt",
        f"certfile {keys}/broker.crt",
        f"keyfile {keys}/broker.key",
        "require_certificate true",
        "use_identity_as_username true",
    )
    config = (tmp_path / "broker-0" / "mosquitto.conf").read_text()
    port = int(config.split("listener ")[2].split()[0])
    harness = harness_at(broker)
    own: dict[str, Any] = {"tls_cert_file": keys / "node.crt", "tls_key_file": keys / "node.key"}
    a = harness.create_node("a", mqtt_port=port, tls_ca_file=keys / "authority.crt", **own)
    plain = harness.create_node("b")
    a.set("large", "x" * 200_000)
    plain.wait_for("large", "x" * 200_000)
    plain.set_many(numbered(3000))
    wait_until(lambda: a.key_count() == 3001)
    stranger = harness.create_node("c", mqtt_port=port, tls="true", start=False)
    stranger.start()
    wait_until(lambda: "certificate" in stranger.figures()["replication_detail"].lower())
    nameless = harness.create_node("d", mqtt_port=port, tls_ca_file=keys / "authority.crt", start=False)
    nameless.start()
    why = "the broker got no certificate from this node"
    wait_until(lambda: why in nameless.figures()["replication_detail"], what="the refusal after the handshake")
    assert "Traceback" not in nameless.process.output()

    certificate(keys, "node", keys / "authority.crt", "renewed")
    connected = a.figure("broker_connects")
    a.process.send_signal(signal.SIGHUP)
    a.wait_figure("broker_connects", connected + 1)
    renewed = "new content in replication.tls_cert_file, replication.tls_key_file"
    wait_until(lambda: renewed in a.process.output(), what="the line about the certificate")
    wait_until(lambda: "u'renewed'" in broker.log.read_text(), what="the new certificate at the broker")
    (keys / "node.crt").write_text("nothing\n")
    a.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "SIGHUP: nothing is changed" in a.process.output(), what="the line about the mistake")
    a.set("after", "that")
    plain.wait_for("after", "that")


def test_a_password_from_a_file(
    harness_at: HarnessFactory, broker_factory: BrokerFactory, topic_prefix: str, tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "a", "secret"], check=True, capture_output=True)
    passwords.chmod(0o644)
    broker = broker_factory("allow_anonymous false", f"password_file {passwords}")
    harness = harness_at(broker)
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    a = harness.create_node("a", client_password_file=secret)
    wrong = harness.create_node("b", client_password="wrong", start=False)
    wrong.start()
    wait_until(lambda: "refuses us" in wrong.figures()["replication_detail"])
    a.stop()


def test_a_flood_of_garbage_costs_a_line_and_nothing_else(harness: ReplicationTestHarness, outsider: Outsider) -> None:
    node = harness.create_node()
    for number in range(200):
        outsider.publish_raw(bytes((number,)) * 20)
    outsider.publish(make_event("k", b"good"))
    node.wait_for("k", "good")
    assert node.figure("refused_events") == 200
    assert node.process.output().count("refused 20 bytes on the topic of outsider") <= 5


def test_an_event_in_anothers_name_is_refused(harness: ReplicationTestHarness, outsider: Outsider) -> None:
    node = harness.create_node()
    outsider.publish(make_event("k", b"bad", src=node.node_id), make_event("k2", b"good"))
    node.wait_for("k2", "good")
    assert node.get("k") is None
    assert node.figure('refused_events{reason="source"}') == 1


def test_every_message_is_the_protocols_cbor(harness: ReplicationTestHarness, wire: Wire) -> None:
    node = harness.create_node()
    node.set("k", "v")
    topic = harness.events_topic(node.node_id)
    wait_until(lambda: any(b"op_id" in payload for payload in wire.received(topic)))
    events = [cbor2.loads(payload) for payload in wire.received(topic)]
    (event,) = [event for event in events if "op" in event]
    assert (event["v"], event["op"], event["key"], event["val"], event["src"]) == (1, "set", "k", b"v", node.node_id)
    assert all(event["src"] == node.node_id and event["v"] == 1 for event in events)


def test_events_of_other_clusters_are_ignored(harness: ReplicationTestHarness, wire: Wire) -> None:
    node = harness.create_node()
    assert wire.publish("another_prefix/outsider/events", cbor2.dumps(make_event("k", b"v")))
    node.set("own", "1")
    wait_until(lambda: node.figure("outbox_events") == 0)
    assert node.get("k") is None


def test_a_write_that_comes_as_soon_as_the_port_is_open_is_published(harness: ReplicationTestHarness) -> None:
    other, node = harness.create_node(), harness.create_node(start=False)
    node.process.port = free_port()
    node.process.launch()

    def is_written() -> bool:
        try:
            node.set("k", "v")
        except OSError:
            return False
        return True

    wait_until(is_written)
    other.wait_for("k", "v")
