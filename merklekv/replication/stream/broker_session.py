"""A conversation with the broker, from the hello to the loss of the connection: what is said when.

    connect -> subscribe, say that we are there -> publish and receive -> say goodbye, or lose the connection

Publishing: up to WINDOW batches are in flight.  A lone write leaves at once.  After a batch of many the next one
waits a little, up to LINGER_MAX_S, unless it is full before: so latency is low when there is little to do, and the
cost per event when there is much.  A refused publish (MQTT 5 says so) is counted, shown, and tried again later; it
blocks only publishing.

Every `heartbeat_s` an empty batch with the next sequence number goes out.  It has to come back, or something else has
to come, because a broker may grant a subscription and deliver nothing.  It also tells others how far they should be.

A broker that has forgotten us has forgotten the others too, and drops what is published for those who are not back yet.
So after such a connect publishing waits until everyone who was there is heard again, for at most REGROUP_MAX_S.

A connection on which publishes stay unanswered is given up: it may be open on our side alone.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from merklekv.log_throttle import LogThrottle
from merklekv.replication.cluster.presence import OFFLINE, ONLINE, Status
from merklekv.replication.stream.backoff import STEADY_S
from merklekv.replication.stream.event import encode_message
from merklekv.replication.stream.inbox import Delivery, Inbox
from merklekv.replication.stream.metrics import LinkFigures, Topics
from merklekv.replication.stream.mqtt import (
    Broker,
    Connected,
    Happening,
    Lost,
    Published,
    Received,
    Session,
    Subscribed,
)
from merklekv.replication.stream.outbox import BATCH_BYTES, Batch, Outbox

log = logging.getLogger(__name__)

WINDOW: Final = 40  # batches in flight; far more make paho slow, far fewer wait for the round trip
LINGER_MAX_S: Final = 0.01  # after a full batch; after a part of one the square root of that part
LINGER_MIN_S: Final = 0.001  # no wait is shorter, because poll counts in milliseconds
PUBLISH_ROUND: Final = 4  # batches published before looking at what came
TICK_S: Final = 1.0
CONNECT_MAX_S: Final = 10.0
SILENCE_MAX_S: Final = 15.0
HEARTBEATS_MISSED_MAX: Final = 2.5
REFUSED_RETRY_MIN_S: Final = 0.5
REFUSED_RETRY_MAX_S: Final = 30.0
STATUS_EVERY_S: Final = 30.0
GOODBYE_MAX_S: Final = 1.0
REGROUP_MAX_S: Final = 6.0  # more than the longest wait between attempts to connect
REGROUP_AGE_NS: Final = 1_000_000_000
STATUS_REPEAT_S: Final = 300.0  # the broker may have lost it
CORRECTION_MIN_S: Final = 5.0
CORRECTION_MAX_S: Final = 320.0
UNSUBSCRIBED_MAX: Final = 100  # filters
DUPLICATES_MIN: Final = 3  # statuses of other processes in our name
DUPLICATE: Final = "duplicate"


class BrokerSession:
    """One conversation.  All but `acknowledge_later` belongs to one thread."""

    def __init__(
        self,
        broker: Broker,
        topics: Topics,
        outbox: Outbox,
        inbox: Inbox,
        figures: LinkFigures,
        describe: Callable[[str], Status],
        on_gap: Callable[[str, str], None],
        throttle: LogThrottle,
        heartbeat_s: float,
        wake_fd: int,
    ) -> None:
        self._broker = broker
        self._node_id = broker.node_id
        self._topics = topics
        self._outbox = outbox
        self._inbox = inbox
        self._figures = figures
        self._describe = describe
        self._on_gap = on_gap
        self._throttle = throttle
        self._heartbeat_s = heartbeat_s
        self._wake_fd = wake_fd
        self._session = Session(broker, topics.status, describe(OFFLINE).encode())
        self._to_acknowledge: deque[tuple[int, int]] = deque()
        self._flight: dict[int, Batch | None] = {}  # publishes by id; None is for what is no batch
        self._answers = self._batches_taken = 0  # publishes that the broker took, and batches among them
        self._window = 0  # until the broker has let us in
        self._refused_until = self._refused_wait_s = 0.0
        self._regroup: set[str] = set()  # nodes to wait for before publishing
        self._regroup_until = self._linger_until = 0.0
        self._answered = self._events_heard = self._ticked = time.monotonic()
        self._heartbeat_at = self._status_at = 0.0
        self._status_said_at = 0.0
        self._correction_s = CORRECTION_MIN_S  # from one status to the next
        self._status: Status | None = None  # what the broker keeps for us
        self._connected_at: float | None = None
        self._unsubscribed: set[str] = set()
        self.has_duplicate = False  # whether another client has used our client id meanwhile
        self.has_helped = False  # whether batches were taken, or one is now suspected to be too large

    def run(self, leave: Callable[[], bool], look_around: Callable[[], None]) -> None:
        """Talks until `leave` says so.  Raises Lost.  `look_around` is called about once a second."""

        def is_over() -> bool:
            if time.monotonic() - self._ticked >= TICK_S:
                self._ticked = time.monotonic()
                look_around()
            return leave()

        self._session.open(is_over)
        deadline = time.monotonic() + CONNECT_MAX_S
        while not leave():
            if not self._window and time.monotonic() > deadline:
                raise Lost(f"the broker did not answer within {CONNECT_MAX_S:.0f} s")
            self._acknowledge()
            self._publish()
            self._sleep()
            self._react()
            if time.monotonic() - self._ticked >= TICK_S:
                look_around()
                self._tick()
        if self._window:
            self._say_goodbye()

    def end(self) -> None:
        """Lets the connection go, whatever its state."""
        if self._window:
            self._figures.losses += 1
            if not self.has_duplicate:
                self.has_helped = self._batches_taken > 0 or (self._answers > 0 and self._outbox.suspect())
        self._session.drop()

    @property
    def stood_s(self) -> float | None:
        """For how long the broker has let us in by now, in seconds; None if it has not."""
        return None if self._connected_at is None else time.monotonic() - self._connected_at

    def acknowledge_later(self, token: tuple[int, int]) -> None:
        """A message has been dealt with; from any thread, `wake_fd` tells."""
        self._to_acknowledge.append(token)

    # -- a round -------------------------------------------------------------------------------------------------------

    def _acknowledge(self) -> None:
        while self._to_acknowledge:
            self._session.acknowledge(self._to_acknowledge.popleft())

    @property
    def _publishing(self) -> bool:
        """Whether nothing speaks against publishing now."""
        now = time.monotonic()
        return now >= self._refused_until and (not self._regroup or now >= self._regroup_until)

    def _may_publish(self) -> bool:
        unread = self._outbox.unread_bytes
        if not unread or len(self._flight) >= self._window or not self._publishing:
            return False
        return unread >= BATCH_BYTES or time.monotonic() >= self._linger_until

    def _publish(self) -> None:
        for _ in range(PUBLISH_ROUND):
            if not self._may_publish() or (batch := self._outbox.next_batch()) is None:
                return
            self._send(self._topics.events, batch.payload, batch)
            linger_s = LINGER_MAX_S * min(1.0, len(batch.payload) / BATCH_BYTES) ** 0.5
            if linger_s >= LINGER_MIN_S:
                self._linger_until = time.monotonic() + linger_s

    def _send(self, topic: str, payload: bytes, batch: Batch | None, retain: bool = False) -> None:
        if not self._flight:
            self._answered = time.monotonic()
        self._flight[self._session.publish(topic, payload, retain)] = batch

    def _sleep(self) -> None:
        tail = self._outbox.tail
        now = time.monotonic()
        until = self._ticked + TICK_S
        free = len(self._flight) < self._window and self._publishing
        if free and now < self._linger_until:
            until = min(until, self._linger_until)
        else:
            tail.wanted = free
        timeout_s = 0.0 if self._may_publish() else max(0.0, until - now)
        self._session.wait(timeout_s, self._wake_fd, reading=not self._inbox.is_full)
        tail.wanted = False

    def _react(self) -> None:
        happened = self._session.happened()
        if happened:
            self._answered = time.monotonic()
        while happened:
            self._react_to(happened.popleft())

    def _react_to(self, happening: Happening) -> None:
        match happening:
            case Received():
                self._received(happening)
            case Published():
                self._published(happening)
            case Connected():
                self._connected(happening)
            case Subscribed(refusals):
                self._figures.state = "connected"
                if refusals:
                    self._trouble("subscription", f"the broker refuses our subscriptions: {', '.join(refusals)}")

    # -- what came -----------------------------------------------------------------------------------------------------

    def _connected(self, connected: Connected) -> None:
        figures = self._figures
        figures.connects += 1
        for kind in figures.trouble.keys() - {DUPLICATE}:
            del figures.trouble[kind]
        log.info("connected to the broker at %s as %s", self._broker.address, self._broker.client_id)
        self._connected_at = time.monotonic()
        self._window = max(1, min(WINDOW, connected.receive_max - 2))
        self._outbox.limit_packets(connected.packet_limit)
        self._session.subscribe((self._topics.all_events, 1), (self._topics.all_statuses, 0))
        self._events_heard = time.monotonic()
        self._tick()
        if not connected.session_present:
            figures.sessions_lost += 1
            self._regroup = figures.peers.online() or self._unknown_peers()
            self._regroup_until = time.monotonic() + REGROUP_MAX_S
            self._on_gap("", "session lost")

    def _unknown_peers(self) -> set[str]:
        """Somebody who is never heard, if events have waited so long that others may be away as well."""
        oldest = self._outbox.oldest_timestamp()
        waited = oldest is not None and (self._figures.losses or time.time_ns() - oldest > REGROUP_AGE_NS)
        return {""} if waited else set()

    def _received(self, received: Received) -> None:
        self._figures.received_bytes += len(received.payload)
        place = self._topics.node_and_kind(received.topic)
        if place is None:
            self._received_foreign(received)
            return
        node, kind = place
        if kind == "status":
            self._heard_status(node, received)
            return
        self._figures.trouble.pop("deaf", None)
        self._events_heard = time.monotonic()
        if node == self._node_id and self._inbox.is_idle:  # nothing to do, and nothing to acknowledge before
            self._session.acknowledge(received.token)
            return
        self._inbox.put(Delivery(node, received.payload, (self, received.token)))

    def _received_foreign(self, received: Received) -> None:
        """A message for no topic of this cluster: our session at the broker has subscriptions that others have made."""
        self._figures.foreign_messages += 1
        topic = received.topic
        filters = [name for name in self._topics.foreign_filters(topic) if name not in self._unsubscribed]
        if filters and len(self._unsubscribed) < UNSUBSCRIBED_MAX:
            self._unsubscribed.update(filters)
            self._session.unsubscribe(*filters)
        self._throttle.warn(
            "foreign", f"broker {self._broker.address}: ignored a message on {topic}, which is not ours"
        )
        self._session.acknowledge(received.token)  # or it would come again

    def _heard_status(self, node: str, received: Received) -> None:
        peers = self._figures.peers
        duplicates = peers.twins
        peers.hear(node, received.payload)
        if node in peers.online():
            self._regroup.discard(node)
        if node == self._node_id:
            # What the broker keeps is of this node's last run until this run has replaced it, and so may be a last will
            # on the first connection.
            has_replaced = self._figures.connects > 1 and peers.has_own
            is_new = not received.retained and peers.twins >= DUPLICATES_MIN
            if peers.twins > duplicates and (has_replaced or is_new):
                self.duplicate_seen()
            if not received.retained:
                self._correct_status(received.payload)

    def duplicate_seen(self) -> None:
        """Another client with our client id has shown."""
        self.has_duplicate = True
        self._figures.duplicates += 1
        self._figures.duplicate_at = time.monotonic()
        self._trouble(
            DUPLICATE,
            f"another process uses the client id {self._broker.client_id} at this broker: "
            "give each node its own replication.client_id",
        )

    def _correct_status(self, payload: bytes) -> None:
        """Says our status again if somebody has replaced it.  Rarer and rarer, or two who do so would never end."""
        if self._status is not None and payload != self._status.encode():
            self._status = None
            self._status_at = max(time.monotonic(), self._status_said_at + self._correction_s)
            self._correction_s = min(2 * self._correction_s, CORRECTION_MAX_S)

    def _published(self, published: Published) -> None:
        if published.mid not in self._flight:
            return  # of a batch that was taken back
        batch = self._flight.pop(published.mid)
        if published.refusal:
            self._refused(published, batch)
            return
        self._refused_wait_s = 0.0
        self._figures.trouble.pop("refused", None)
        self._answers += 1
        if batch is not None:
            self._batches_taken += 1
            self._outbox.acknowledge(batch)

    def _refused(self, published: Published, batch: Batch | None) -> None:
        self._figures.publishes_refused += 1
        self._figures.refusals[published.refusal] += 1
        self._trouble("refused", f"the broker refuses what we publish to {self._topics.events}: {published.refusal}")
        if time.monotonic() < self._refused_until:
            return  # published before the refusal that we know of
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
        self._session.keep_alive()
        if not self._window:
            return
        if self._flight and now - self._answered > SILENCE_MAX_S and not self._inbox.is_full:
            raise Lost(f"nothing was answered for {SILENCE_MAX_S:.0f} s: half-open")
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + self._heartbeat_s
            self._send(self._topics.events, encode_message(self._node_id, self._outbox.next_sequence, [], 0), None)
        if self.stood_s is not None and min(self.stood_s, now - self._figures.duplicate_at) >= STEADY_S:
            self._figures.trouble.pop(DUPLICATE, None)
        if now >= self._status_at:
            self._status_at = now + STATUS_EVERY_S
            self._say_status()
        if now - self._events_heard > HEARTBEATS_MISSED_MAX * self._heartbeat_s and not self._inbox.is_full:
            self._deaf()

    def _say_status(self) -> None:
        status = self._describe(ONLINE)
        if status != self._status or time.monotonic() >= self._status_said_at + STATUS_REPEAT_S:
            self._status = status
            self._status_said_at = time.monotonic()
            self._send(self._topics.status, status.encode(), None, retain=True)

    def _deaf(self) -> None:
        self._figures.deaf += 1
        self._events_heard = time.monotonic()
        self._trouble("deaf", "our own heartbeat does not come back; may this node read the events topics?")
        self._session.subscribe((self._topics.all_events, 1), (self._topics.all_statuses, 0))
        self._on_gap("", "deaf")

    def _trouble(self, kind: str, what: str) -> None:
        self._figures.trouble[kind] = what
        self._throttle.warn(what, f"broker {self._broker.address}: {what}")

    def _say_goodbye(self) -> None:
        self._window = 0
        self._send(self._topics.status, self._describe(OFFLINE).encode(), None, retain=True)
        deadline = time.monotonic() + GOODBYE_MAX_S
        while self._flight and time.monotonic() < deadline:
            self._session.wait(deadline - time.monotonic(), self._wake_fd)
            self._react()
        self._session.close()
