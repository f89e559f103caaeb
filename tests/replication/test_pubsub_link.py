"""Publish and subscribe between nodes: real ones at a real broker, and the link between them by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import cbor2
import pytest
from fixtures.broker import BrokerFactory
from fixtures.broker import Wire as Listener
from fixtures.cluster import HarnessFactory, NodeHandle, ReplicationTestHarness
from fixtures.support import wait_until
from fixtures.wire import Wire, encode, readable
from hypothesis import given
from hypothesis import strategies as st

from merklekv.metrics import ReplicationCounters
from merklekv.net.limits import SUBSCRIPTION_BYTES_MAX
from merklekv.replication.plain_cbor import Malformed
from merklekv.replication.stream import pubsub
from merklekv.replication.stream.pubsub import PubSubLink, decode

COUNT = 500


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(clients: ExitStack, node: NodeHandle, *channels: str) -> Wire:
    """A client of a node, subscribed to these."""
    wire = clients.enter_context(Wire(("127.0.0.1", node.process.port)))
    for channel in channels:
        wire.call("SUBSCRIBE", channel)
    return wire


def message(payload: str, channel: str = "c") -> bytes:
    return encode("message", channel, payload)


def publish(wire: Wire, *payloads: str) -> set[bytes]:
    """Publishes all in one go; the different replies."""
    wire.send(b"".join(encode("PUBLISH", "c", payload) for payload in payloads))
    return {wire.resp() for _ in payloads}


@pytest.mark.replication
@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_messages_reach_all_nodes_once_and_in_order(
    harness: ReplicationTestHarness, clients: ExitStack, version: str
) -> None:
    nodes = [harness.create_node("", mqtt_version=version) for _ in range(3)]
    wires = [connect(clients, node, "c") for node in nodes]
    for node in nodes:
        node.wait_figure("pubsub_nodes", 2)
    expected: Counter[bytes] = Counter()
    for number, node in enumerate(nodes):
        payloads = [f"{number} {at}" for at in range(COUNT)]
        assert publish(connect(clients, node), *payloads) == {b":1\r\n"}
        expected.update(map(message, payloads))
    for wire in wires:
        received = [wire.resp() for _ in range(3 * COUNT)]
        assert Counter(received) == expected
        for number in range(3):
            own = [one for one in received if b"\r\n%d " % number in one]
            assert own == [message(f"{number} {at}") for at in range(COUNT)]
    assert not any(map(readable, wires))
    assert {node.figure("pubsub_received") for node in nodes} == {2 * COUNT}


@pytest.mark.replication
def test_nothing_is_sent_that_nobody_wants(harness: ReplicationTestHarness, wire: Listener, clients: ExitStack) -> None:
    a, b = harness.create_nodes(2)
    assert publish(connect(clients, a), "nobody listens") == {b":0\r\n"}
    subscriber = connect(clients, a, "c")
    b.wait_figure("pubsub_nodes")
    assert publish(connect(clients, a), "only here") == {b":1\r\n"}
    assert publish(connect(clients, b), "from b") == {b":0\r\n"}
    assert [subscriber.resp() for _ in range(2)] == [message("only here"), message("from b")]
    wait_until(lambda: wire.received(f"{harness.prefix}/{b.node_id}/pubsub"))
    (sent,) = wire.received(f"{harness.prefix}/{b.node_id}/pubsub")
    assert cbor2.loads(sent) == {"v": 1, "src": b.node_id, "messages": [b"c", b"from b"]}
    assert wire.received(f"{harness.prefix}/{a.node_id}/pubsub") == []
    assert a.figure("pubsub_sent") == 0


@pytest.mark.replication
def test_each_node_tells_its_clients_of_the_writes_of_others(
    harness: ReplicationTestHarness, clients: ExitStack
) -> None:
    a = harness.create_node()
    b = harness.create_node("", "--set", "notify_keyspace_events=KEA")
    a.wait_figure("replication_nodes", 2)
    b.wait_figure("replication_nodes", 2)
    subscriber, elsewhere = connect(clients, b, "__keyspace@0__:k", "__keyevent@0__:truncate"), connect(clients, a)
    elsewhere.call("PSUBSCRIBE", "*")
    requests = ("SET k 1", "INC k", "DEL k", "TRUNCATE")
    for request in requests:
        assert not a.ask(request).startswith("ERROR")
    events = [message(event, "__keyspace@0__:k") for event in ("set", "incrby", "del")]
    assert [subscriber.resp() for _ in requests] == [*events, message("", "__keyevent@0__:truncate")]
    assert not readable(elsewhere)
    assert (a.figure("pubsub_sent"), b.figure("pubsub_sent")) == (0, 0)


@pytest.mark.replication
def test_hostile_messages_are_refused_and_counted(
    harness: ReplicationTestHarness, wire: Listener, clients: ExitStack
) -> None:
    node = harness.create_node()
    subscriber = connect(clients, node, "c")
    status = f"{harness.prefix}/{node.node_id}/status"
    wait_until(lambda: any(b'"listens":true' in one for one in wire.received(status)[-1:]))
    topic = f"{harness.prefix}/outsider/pubsub"
    good = {"v": 1, "src": "outsider", "messages": [b"c", b"good"]}
    bad = [b"", b"\xff" * 100, b"\x9b" + b"\xff" * 8, b"\x81" * 1000, cbor2.dumps([1])]
    bad += [cbor2.dumps(good | change) for change in ({"v": 2}, {"src": "other"}, {"messages": [b"c"]})]
    bad += [cbor2.dumps(good | {"messages": [b"c" * (SUBSCRIPTION_BYTES_MAX + 1), b"x"]}), cbor2.dumps(good) + b"x"]
    for payload in bad:
        assert wire.publish(topic, payload)
    assert wire.publish(f"{harness.prefix}/{node.node_id}/pubsub", cbor2.dumps(good | {"src": node.node_id}))
    assert wire.publish(topic, cbor2.dumps(good | {"src": "outsider"}))
    assert subscriber.resp() == message("good")
    assert node.figure("pubsub_refused") == len(bad)
    assert not readable(subscriber)
    assert node.figure("broker_losses") == 0


@pytest.mark.replication
def test_nothing_is_kept_for_a_node_that_is_away(
    harness_at: HarnessFactory, broker_factory: BrokerFactory, clients: ExitStack
) -> None:
    """Even where the broker queues messages of QoS 0, or retains one."""
    broker = broker_factory("allow_anonymous true", "queue_qos0_messages true")
    harness = harness_at(broker)
    a, b = harness.create_nodes(2)
    subscriber = connect(clients, b, "c")
    a.wait_figure("pubsub_nodes")
    publisher = connect(clients, a)
    assert b.ask("REPLICATE disable") == "OK"
    wait_until(lambda: a.figure("pubsub_nodes") == 0)
    publish(publisher, "missed")
    late = cbor2.dumps({"v": 1, "src": "outsider", "messages": [b"c", b"queued"]})
    outsider = Listener(broker, harness.prefix)
    assert outsider.publish(f"{harness.prefix}/outsider/pubsub", late)
    assert outsider.publish(f"{harness.prefix}/outsider/pubsub", late, retain=True)
    outsider.close()
    assert b.ask("REPLICATE enable") == "OK"
    a.wait_figure("pubsub_nodes")
    publish(publisher, "again")
    assert subscriber.resp() == message("again")
    broker.stop()
    a.wait_disconnected()
    assert publish(publisher, "alone") == {b":0\r\n"}
    broker.start()
    # A node that has lost the broker remembers who listened: this says nothing of the new connections.
    a.wait_figure("pubsub_nodes")
    wait_until(lambda: publish(publisher, "together") and readable(subscriber), what="a message")
    assert subscriber.resp() == message("together")


# -- the link by itself ------------------------------------------------------------------------------------------------

LIMIT = 1 << 20


class Site:
    def __init__(self) -> None:
        self.counters = ReplicationCounters()
        self.delivered: list[tuple[bytes, bytes]] = []
        self.refused: set[str] = set()
        self.wakes = 0
        self.link = PubSubLink("a", self.counters, self.refused.__contains__, self.wake)
        self.link.deliver = lambda channel, payload: self.delivered.append((channel, payload))

    def wake(self) -> None:
        self.wakes += 1

    def batches(self, limit: int = LIMIT) -> list[bytes]:
        return list(iter(lambda: self.link.next_batch(limit), b""))


messages = st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=30)), max_size=30)


@given(messages, st.sampled_from([1, 40, 1000]))
def test_what_one_link_sends_another_delivers_in_order(sent: list[tuple[bytes, bytes]], batch_bytes: int) -> None:
    here, there = Site(), Site()
    here.link.is_wanted = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pubsub, "BATCH_BYTES", batch_bytes)
        for one in sent:
            here.link.send(*one)
        assert here.wakes == bool(sent)
        there_link = PubSubLink("b", there.counters, lambda node: False, there.wake)
        there_link.deliver = there.link.deliver
        for payload in here.batches():
            there_link.take_in("a", payload)
    assert there.delivered == sent
    assert here.counters.pubsub_sent == there.counters.pubsub_received == len(sent)


@given(st.binary(max_size=200) | st.recursive(st.integers() | st.binary() | st.text(), st.lists).map(cbor2.dumps))
def test_any_bytes_are_messages_or_malformed(payload: bytes) -> None:
    try:
        decode("a", payload)
    except Malformed:
        pass


def test_the_queue_is_bounded_and_dropped_with_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pubsub, "QUEUE_BYTES", 10_000)
    site = Site()
    site.link.send(b"c", b"nobody listens")
    assert not site.link.has_waiting
    site.link.is_wanted = True
    for _ in range(1000):
        site.link.send(b"c", b"x")
    dropped = site.counters.pubsub_unsent["queue full"]
    assert 30 <= 1000 - dropped <= 45
    site.link.clear()
    assert site.counters.pubsub_unsent["no broker"] == 1000 - dropped
    assert site.batches() == []
    assert not site.link.is_wanted


def test_a_message_larger_than_a_packet_is_left_out() -> None:
    site = Site()
    site.link.is_wanted = True
    for payload in (b"a", b"x" * 5000, b"b"):
        site.link.send(b"c", payload)
    sent = [cbor2.loads(batch)["messages"] for batch in site.batches(5000)]
    assert sent == [[b"c", b"a"], [b"c", b"b"]]
    assert site.counters.pubsub_unsent["too large"] == 1


def test_a_removed_node_is_not_heard() -> None:
    site = Site()
    payload = cbor2.dumps({"v": 1, "src": "b", "messages": [b"c", b"x"]})
    site.link.take_in("b", payload)
    site.refused.add("b")
    site.link.take_in("b", payload)
    assert site.delivered == [(b"c", b"x")]
    assert site.counters.pubsub_refused == 1


def test_a_node_listens_for_a_while_after_the_last_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site()
    seen = [site.link.is_listening]
    site.link.listen(True)
    site.link.listen(False)
    seen.append(site.link.is_listening)
    monkeypatch.setattr(pubsub, "LINGER_S", 0.0)
    seen.append(site.link.is_listening)
    site.link.listen(True)
    seen.append(site.link.is_listening)
    assert seen == [False, True, False, True]
    assert site.wakes == 3


def test_the_nodes_agree_on_the_size_of_names() -> None:
    assert pubsub.CHANNEL_BYTES_MAX == SUBSCRIPTION_BYTES_MAX
