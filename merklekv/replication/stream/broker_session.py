"""One session with the broker, from CONNECT to the loss of the connection: what is sent when.

    connect -> subscribe, publish the status -> publish and receive -> disconnect, or lose the connection

Up to WINDOW batches are in flight.  A single write leaves at once.  After a batch the next one waits until it is full,
for at most LINGER_MAX_S: latency is low under little load, and the cost per event under much.  A refused publish (MQTT
5 reports it) is tried again later.

Every `heartbeat_s` an empty batch with the next sequence number tells other nodes which events they should have.  It
has to come back: a broker may grant a subscription and deliver nothing.

A broker that has lost our session has lost those of the others, too, and drops what is published before they are back.
So publishing then waits until every node that was online has announced itself, for at most REGROUP_MAX_S.

A connection on which publishes stay unanswered is dropped: it may be open at our end only.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from merklekv.log_throttle import LogThrottle
from merklekv.metrics import ReplicationCounters
from merklekv.replication.cluster.presence import OFFLINE, ONLINE, Presence, Status
from merklekv.replication.stream.event import encode_message
from merklekv.replication.stream.inbox import Delivery, Inbox
from merklekv.replication.stream.mqtt import (
    BrokerSettings,
    Connected,
    ConnectionLost,
    MqttConnection,
    Published,
    Received,
    Subscribed,
)
from merklekv.replication.stream.outbox import BATCH_BYTES, Batch, Outbox
from merklekv.replication.stream.pubsub import PubSubLink

log = logging.getLogger(__name__)

WINDOW_BYTES: Final = 8 << 20  # and no more once they have so many: each is there twice until it is sent
WINDOW: Final = 40  # batches in flight; far more make paho slow, far fewer wait for the round trip
LINGER_MAX_S: Final = 0.01  # after a full batch; after a part of one the square root of that part
LINGER_MIN_S: Final = 0.001  # no wait is shorter, because poll counts in milliseconds
PUBLISH_MAX: Final = 4  # batches published before the next look at what came in
TICK_S: Final = 1.0
STEADY_S: Final = 30.0  # a connection that lasts so long is not disturbed by a duplicate
CONNECT_MAX_S: Final = 10.0
SILENCE_MAX_S: Final = 15.0
HEARTBEATS_MISSED_MAX: Final = 2.5
REFUSED_RETRY_MIN_S: Final = 0.5
REFUSED_RETRY_MAX_S: Final = 30.0
STATUS_EVERY_S: Final = 30.0
DISCONNECT_MAX_S: Final = 1.0
REGROUP_MAX_S: Final = 6.0  # more than the longest wait between attempts to connect
REGROUP_AGE_NS: Final = 1_000_000_000
STATUS_REPEAT_S: Final = 300.0  # the broker may have lost it
CORRECTION_MIN_S: Final = 5.0
CORRECTION_MAX_S: Final = 320.0
UNSUBSCRIBED_MAX: Final = 100  # filters
DUPLICATES_MIN: Final = 3  # statuses of other processes under this node's id
DUPLICATE: Final = "duplicate"


TOPIC_KINDS: Final = ("events", "status", "pubsub")


class Topics:
    """The MQTT topics of a cluster, as one of its nodes uses them: `PREFIX/NODE/events`, and so on."""

    def __init__(self, prefix: str, node_id: str) -> None:
        self.events = f"{prefix}/{node_id}/events"
        self.status = f"{prefix}/{node_id}/status"
        self.all_events = f"{prefix}/+/events"
        self.all_statuses = f"{prefix}/+/status"
        self.pubsub = f"{prefix}/{node_id}/pubsub"
        self.all_pubsub = f"{prefix}/+/pubsub"
        self._prefix = prefix

    def node_and_kind(self, topic: str) -> tuple[str, str] | None:
        """The node that the topic belongs to, and one of TOPIC_KINDS; None for a topic of no node of this cluster."""
        prefix, node, kind = _levels(topic)
        return (node, kind) if prefix == self._prefix and node and kind in TOPIC_KINDS else None

    def foreign_filters(self, topic: str) -> list[str]:
        """The subscriptions that the nodes of another cluster make, given one of its topics; none for this cluster."""
        prefix, _, kind = _levels(topic)
        is_foreign = kind in TOPIC_KINDS and prefix != self._prefix
        return [f"{prefix}/+/{name}" for name in TOPIC_KINDS] if is_foreign else []


def _levels(topic: str) -> list[str]:
    """Prefix, node and kind; a topic of fewer levels has an empty prefix."""
    levels = topic.rsplit("/", 2)
    return [""] * (3 - len(levels)) + levels


@dataclass(slots=True)
class StreamState:
    """What outlives a session with the broker.  Any thread may read it."""

    counters: ReplicationCounters
    connection: str = "connecting"  # disabled, connecting, connected, disconnected, failed
    problems: dict[str, str] = field(default_factory=dict)  # what is wrong, by kind, for people
    duplicate_at: float = 0.0  # the last sign of another client with this node's client id, monotonic clock
    oldest_timestamp_ns: int | None = None  # of the events in the outbox
    connected_at: float = 0.0  # the last look that found it connected, monotonic clock; 0: none did
    missed_at: float = 0.0  # when events of any node may have been missed last, monotonic clock; 0: never
    alive_at: float = field(default_factory=time.monotonic)  # the last sign of life of the reconnect loop

    @property
    def detail(self) -> str:
        """What is wrong, in one line."""
        return " ".join("; ".join(list(self.problems.values())).split())


@dataclass(eq=False, repr=False)
class BrokerSession:
    """One session.  All methods but `acknowledge_later` belong to one thread.

    `describe` returns the status for a state; `on_gap(node, reason)` says that events may have been missed.
    """

    _broker: BrokerSettings
    _topics: Topics
    _outbox: Outbox
    _inbox: Inbox
    _presence: Presence
    _pubsub: PubSubLink
    _state: StreamState
    _describe: Callable[[str], Status]
    _on_gap: Callable[[str, str], None]
    _throttle: LogThrottle
    _heartbeat_s: float
    _wake_fd: int

    def __post_init__(self) -> None:
        self._counters = self._state.counters
        self._connection = MqttConnection(self._broker, self._topics.status, self._describe(OFFLINE).encode())
        self._to_acknowledge: deque[tuple[int, int]] = deque()
        self._flight: dict[int, Batch | None] = {}  # publishes by id; None: not a batch
        self._answers = self._batches_taken = 0  # accepted publishes, and batches among them
        self._window = 0  # until the broker has accepted the connection
        self._refused_until = self._refused_wait_s = 0.0
        self._regroup: set[str] = set()  # nodes to wait for before publishing
        self._regroup_until = self._linger_until = 0.0
        self._answered = self._event_received = self._ticked = time.monotonic()
        self._heartbeat_at = self._status_at = self._status_sent_at = 0.0
        self._correction_s = CORRECTION_MIN_S  # from one status to the next
        self._status_at_fault = -math.inf  # when another client has replaced it last
        self._status: Status | None = None  # that the broker retains
        self._listens = False  # whether it has subscribed to what clients of other nodes publish
        self._hears = False  # not before the broker has answered: some queue also QoS 0 for a node that is away
        self._connected_at: float | None = None
        self._unsubscribed: set[str] = set()
        self.has_duplicate = False  # another client has used this node's client id
        self.has_helped = False  # batches were accepted, or one is now suspected to be too large

    def run(self, leave: Callable[[], bool], housekeep: Callable[[], None]) -> None:
        """Publish and receive until `leave` says so; call `housekeep` about once a second.  Raises ConnectionLost."""

        def is_over() -> bool:
            if time.monotonic() - self._ticked >= TICK_S:
                self._ticked = time.monotonic()
                housekeep()
            return leave()

        self._connection.open(is_over)
        try:
            self._run(leave, housekeep)
        except ConnectionLost:
            self._handle_last()
            raise

    def _run(self, leave: Callable[[], bool], housekeep: Callable[[], None]) -> None:
        deadline = time.monotonic() + CONNECT_MAX_S
        while not leave():
            if not self._window and time.monotonic() > deadline:
                raise ConnectionLost(f"the broker did not answer within {CONNECT_MAX_S:.0f} s")
            while self._to_acknowledge:
                self._connection.acknowledge(self._to_acknowledge.popleft())
            self._publish()
            self._relay()
            self._sleep()
            self._handle_all()
            if time.monotonic() - self._ticked >= TICK_S:
                housekeep()
                self._tick()
        if self._window:
            self._disconnect()

    def _handle_last(self) -> None:
        """Handle what came in before the loss: the first batch that is left unanswered may be its cause."""
        while self._connection.incoming:
            with contextlib.suppress(ConnectionLost):  # an answer that cannot be sent ends only its own handling
                self._handle_all()

    def end(self) -> None:
        """Drop the connection, whatever its state."""
        self._pubsub.clear()
        if self._window:
            self._counters.broker_losses += 1
            if not self.has_duplicate:
                self.has_helped = self._batches_taken > 0 or (self._answers > 0 and self._outbox.suspect())
        self._connection.drop()

    @property
    def stood_s(self) -> float | None:
        """Seconds since the broker accepted the connection; None if it has not."""
        return None if self._connected_at is None else time.monotonic() - self._connected_at

    def acknowledge_later(self, token: tuple[int, int]) -> None:
        """Acknowledge a message; from any thread, with a wake-up by `wake_fd`."""
        self._to_acknowledge.append(token)

    # -- a tick --------------------------------------------------------------------------------------------------------

    @property
    def _publishing(self) -> bool:
        """Predicate: is there no reason to wait with publishing?"""
        now = time.monotonic()
        return now >= self._refused_until and (not self._regroup or now >= self._regroup_until)

    @property
    def _window_is_open(self) -> bool:
        """Predicate: may one more batch be in flight?"""
        return len(self._flight) < self._window and self._outbox.in_flight_bytes < WINDOW_BYTES

    def _may_publish(self) -> bool:
        unread = self._outbox.unread_bytes
        if not unread or not self._window_is_open or not self._publishing:
            return False
        return unread >= BATCH_BYTES or time.monotonic() >= self._linger_until

    def _publish(self) -> None:
        for _ in range(PUBLISH_MAX):
            if not self._may_publish() or (batch := self._outbox.next_batch()) is None:
                return
            self._send(self._topics.events, batch.payload, batch)
            linger_s = LINGER_MAX_S * min(1.0, len(batch.payload) / BATCH_BYTES) ** 0.5
            if linger_s >= LINGER_MIN_S:
                self._linger_until = time.monotonic() + linger_s

    def _relay(self) -> None:
        """Publish what clients publish, and listen to the other nodes while clients listen."""
        if self._connected_at is None:
            return
        if self._pubsub.is_listening != self._listens:
            self._listens = not self._listens
            if self._listens:
                self._connection.subscribe((self._topics.all_pubsub, 0))
            else:
                self._connection.unsubscribe(self._topics.all_pubsub)
            self._publish_status()
        for _ in range(PUBLISH_MAX):
            if self._connection.is_behind or not (payload := self._pubsub.next_batch(self._outbox.packet_room)):
                return
            self._connection.publish_lossy(self._topics.pubsub, payload)

    def _send(self, topic: str, payload: bytes, batch: Batch | None, retain: bool = False) -> None:
        if not self._flight:
            self._answered = time.monotonic()
        self._flight[self._connection.publish(topic, payload, retain)] = batch

    def _sleep(self) -> None:
        retention = self._outbox.retention
        now = time.monotonic()
        until = self._ticked + TICK_S
        free = self._window_is_open and self._publishing
        if free and now < self._linger_until:
            until = min(until, self._linger_until)
        else:
            retention.notify_next = free
        is_due = self._may_publish() or (self._pubsub.has_waiting and not self._connection.is_behind)
        timeout_s = 0.0 if is_due else max(0.0, until - now)
        self._connection.wait(timeout_s, self._wake_fd, reading=not self._inbox.is_full)
        retention.notify_next = False

    def _handle_all(self) -> None:
        incoming = self._connection.incoming
        if incoming:
            self._answered = time.monotonic()
        while incoming:
            match one := incoming.popleft():
                case Received():
                    self._on_received(one)
                case Published():
                    self._on_published(one)
                case Connected():
                    self._on_connected(one)
                case Subscribed(refusals):
                    self._state.connection = "connected"
                    self._hears = True
                    if refusals:
                        self._report("subscription", f"the broker refuses our subscriptions: {', '.join(refusals)}")

    # -- what comes in -------------------------------------------------------------------------------------------------

    def _on_connected(self, connected: Connected) -> None:
        self._counters.broker_connects += 1
        for kind in self._state.problems.keys() - {DUPLICATE}:
            del self._state.problems[kind]
        log.info(
            "connected to the broker at %(broker)s as %(client_id)s",
            {"broker": self._broker.address, "client_id": self._broker.client_id},
        )
        self._connected_at = time.monotonic()
        self._window = max(1, min(WINDOW, connected.receive_max - 2))
        self._outbox.limit_packets(connected.packet_limit)
        self._subscribe()
        if connected.session_present and not self._listens:  # the broker may have that subscription from before
            self._connection.unsubscribe(self._topics.all_pubsub)
        self._event_received = time.monotonic()
        self._tick()
        if not connected.session_present:
            self._counters.broker_sessions_lost += 1
            self._regroup = self._presence.online() or self._unknown_peers()
            self._regroup_until = time.monotonic() + REGROUP_MAX_S
            self._on_missed("session lost")

    def _subscribe(self) -> None:
        self._listens = self._pubsub.is_listening
        filters = [(self._topics.all_events, 1), (self._topics.all_statuses, 0)]
        self._connection.subscribe(*filters, *([(self._topics.all_pubsub, 0)] if self._listens else []))

    def _unknown_peers(self) -> set[str]:
        """A node that never announces itself, if events have waited so long that other nodes may be away, too."""
        oldest = self._outbox.oldest_timestamp()
        waited = oldest is not None and (self._counters.broker_losses or time.time_ns() - oldest > REGROUP_AGE_NS)
        return {""} if waited else set()

    def _on_received(self, received: Received) -> None:
        self._counters.received_bytes += len(received.payload)
        found = self._topics.node_and_kind(received.topic)
        if found is None:
            self._on_foreign(received)
            return
        node, kind = found
        if kind == "status":
            self._on_status(node, received)
            return
        if kind == "pubsub":
            if self._hears and not received.retained:
                self._pubsub.take_in(node, received.payload)
            self._connection.acknowledge(received.token)  # of a publish with more than QoS 0, which no node sends
            return
        self._state.problems.pop("silent", None)
        self._event_received = time.monotonic()
        if node == self._broker.node_id and self._inbox.is_idle:  # nothing to do, and nothing to acknowledge before
            self._connection.acknowledge(received.token)
            return
        self._inbox.put(Delivery(node, received.payload, (self, received.token)))

    def _on_foreign(self, received: Received) -> None:
        """A message on a topic of another cluster: our session at the broker has subscriptions that others made."""
        self._counters.received_foreign += 1
        topic = received.topic
        filters = [name for name in self._topics.foreign_filters(topic) if name not in self._unsubscribed]
        if filters and len(self._unsubscribed) < UNSUBSCRIBED_MAX:
            self._unsubscribed.update(filters)
            self._connection.unsubscribe(*filters)
        self._throttle.warn(
            "foreign",
            "broker %(broker)s: ignored a message on %(topic)s, which is not ours",
            fields={"broker": self._broker.address, "topic": topic},
        )
        self._connection.acknowledge(received.token)  # or it would come again

    def _on_status(self, node: str, received: Received) -> None:
        presence = self._presence
        duplicates = presence.duplicates
        presence.on_status(node, received.payload, retained=received.retained)
        self._pubsub.is_wanted = presence.listeners > 0
        if presence.is_online(node):
            self._regroup.discard(node)
        if node == self._broker.node_id:
            # The broker retains the status of this node's last process until this one has replaced it, so a last will
            # on the first connection may be of that process.
            has_replaced = self._counters.broker_connects > 1 and presence.has_own
            is_new = not received.retained and presence.duplicates >= DUPLICATES_MIN
            if presence.duplicates > duplicates and (has_replaced or is_new):
                self.on_duplicate()
            if not received.retained:
                self._correct_status(received.payload)

    def on_duplicate(self) -> None:
        """There is another client with this node's client id."""
        self.has_duplicate = True
        self._counters.broker_duplicate_client_ids += 1
        self._state.duplicate_at = time.monotonic()
        self._report(
            DUPLICATE,
            f"another process uses the client id {self._broker.client_id} at this broker: "
            "give each node its own replication.client_id",
        )

    def _correct_status(self, payload: bytes) -> None:
        """Publish our status again if it was replaced, each time later, or two nodes that do so would never end."""
        now = time.monotonic()
        if self._status is not None and payload != self._status.encode():
            if now - self._status_at_fault > 2 * CORRECTION_MAX_S:  # it stood, so no node is fighting for it
                self._correction_s = CORRECTION_MIN_S
            self._status = None
            self._status_at_fault = now
            self._status_at = max(now, self._status_sent_at + self._correction_s)
            self._correction_s = min(2 * self._correction_s, CORRECTION_MAX_S)

    def _on_published(self, published: Published) -> None:
        if published.mid not in self._flight:
            return  # of a batch that was rewound
        batch = self._flight.pop(published.mid)
        if published.refusal:
            self._on_refused(published, batch)
            return
        self._refused_wait_s = 0.0
        self._state.problems.pop("refused", None)
        self._answers += 1
        if batch is not None:
            self._batches_taken += 1
            self._outbox.acknowledge(batch)

    def _on_refused(self, published: Published, batch: Batch | None) -> None:
        self._counters.publishes_refused[published.refusal] += 1
        self._report("refused", f"the broker refuses what we publish to {self._topics.events}: {published.refusal}")
        if time.monotonic() < self._refused_until:
            return  # published before the last refusal
        self._flight = dict.fromkeys(self._flight)
        if published.too_large and batch is not None:
            self._outbox.too_large(batch)
            return
        self._refused_wait_s = min(max(2 * self._refused_wait_s, REFUSED_RETRY_MIN_S), REFUSED_RETRY_MAX_S)
        self._refused_until = time.monotonic() + self._refused_wait_s
        self._outbox.rewind()

    # -- about once a second -------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = self._ticked = time.monotonic()
        self._connection.keep_alive()
        if not self._window:
            return
        if self._flight and now - self._answered > SILENCE_MAX_S and not self._inbox.is_full:
            raise ConnectionLost(f"nothing was answered for {SILENCE_MAX_S:.0f} s: half-open")
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + self._heartbeat_s
            self._send(
                self._topics.events, encode_message(self._broker.node_id, self._outbox.next_sequence, [], 0), None
            )
        if self.stood_s is not None and min(self.stood_s, now - self._state.duplicate_at) >= STEADY_S:
            self._state.problems.pop(DUPLICATE, None)
        if now >= self._status_at:
            self._status_at = now + STATUS_EVERY_S
            self._publish_status()
        if not self._inbox.is_idle:  # on a full disk, for example: the broker delivers no more before acknowledgements
            self._event_received = now
        if now - self._event_received > HEARTBEATS_MISSED_MAX * self._heartbeat_s:
            self._counters.broker_subscription_silent += 1
            self._event_received = now
            self._report("silent", "our own heartbeat does not come back; may this node read the events topics?")
            self._subscribe()
            self._on_missed("subscription silent")

    def _on_missed(self, reason: str) -> None:
        """Events of any node may have been missed."""
        self._state.missed_at = time.monotonic()
        self._on_gap("", reason)

    def _publish_status(self) -> None:
        status = self._describe(ONLINE)
        if status != self._status or time.monotonic() >= self._status_sent_at + STATUS_REPEAT_S:
            self._status = status
            self._status_sent_at = time.monotonic()
            self._send(self._topics.status, status.encode(), None, retain=True)

    def _report(self, kind: str, what: str) -> None:
        self._state.problems[kind] = what
        fields = {"broker": self._broker.address, "reason": what}
        self._throttle.warn(what, "broker %(broker)s: %(reason)s", fields=fields)

    def _disconnect(self) -> None:
        self._window = 0
        self._send(self._topics.status, self._describe(OFFLINE).encode(), None, retain=True)
        deadline = time.monotonic() + DISCONNECT_MAX_S
        while self._flight and time.monotonic() < deadline:
            self._connection.wait(deadline - time.monotonic(), self._wake_fd)
            self._handle_all()
        self._connection.close()
