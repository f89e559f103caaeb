"""The inbox: takes in what other nodes publish, and only then acknowledges it.

    network thread --put--> bounded queue --> worker: decode, check, merge, commit, acknowledge

After a crash before the acknowledgement the broker delivers again; merging twice is harmless.  An invalid message is
counted by reason, logged, acknowledged and dropped.  When the engine cannot take more (stalled, disk full), the worker
waits and tries again: no valid message is dropped.

Each origin numbers its events.  A number that is missing, or goes back, is a gap, for an exchange to repair.  So is an
event from below the GC horizon: an exchange knows whether it is stale.

`put` belongs to the network thread, all else to the worker, which merges in slices: clients get their turn in between.
Cost: 7 us an event of 100 bytes, and one commit for up to BATCH_MAX messages.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from merklekv.engine.engine import Engine
from merklekv.engine.record import is_live, timestamp_of
from merklekv.errors import Shortage, Stalled, StorageFailed
from merklekv.log_throttle import LogThrottle
from merklekv.metrics import OriginMetrics, ReplicationCounters, shown
from merklekv.pause import pause
from merklekv.replication.cluster.presence import Presence, Status
from merklekv.replication.stream.event import EventRefused, Message, Reason, decode_message
from merklekv.worker_thread import WorkerThread

log = logging.getLogger(__name__)

BATCH_MAX: Final = 20  # messages acknowledged together: brokers send no more before they wait
QUEUE_MESSAGES: Final = 200
QUEUE_BYTES: Final = 32 << 20
SLICE_EVENTS: Final = 50  # merged without a pause, about 0.3 ms
RETRY_S: Final = 0.5
ORIGINS_MAX: Final = 10_000
_REASONS: Final = {
    "clock": Reason.CLOCK,
    "conflict": Reason.CONFLICT,
    "value size": Reason.SIZE,
    "stable": Reason.STABLE,
}


class StreamContext(Protocol):
    """What the stream needs of the node around it, on its threads.  A store id is hex, or empty if it is unknown."""

    def is_removed(self, node: str, store_id: str) -> bool:
        """Query: was this node removed from the cluster, so that its events are refused?"""

    def applied_through(self, records: list[bytes]) -> int:
        """Query: through which time, ns, was every write of the writer of these records applied?  0: unknown."""

    def late(self, tombstones: list[bytes]) -> list[bytes]:
        """Query: those that a restored node has stamped below what was applied of it.  An exchange makes them anew."""

    def on_events_from(self, node: str, store_id: str) -> None:
        """Events of this node are about to be applied."""

    def on_status(self, status: Status) -> None:
        """A node is new, came or went, or moved.  Returns at once."""

    def on_gap(self, node: str, reason: str) -> None:
        """Events of this node (empty: of any) may have been missed.  Returns at once."""

    def on_storage_failed(self, error: BaseException) -> None:
        """The disk failed: the process has to end."""


class Delivery(NamedTuple):
    """A message as it arrived."""

    node: str  # the topic it came on is of this node
    payload: bytes
    token: Any  # what to acknowledge it with


@dataclass(slots=True)
class Origin:
    """What is known of another node's events."""

    expected: int | None = None  # the next sequence number
    newest: bytes = b""  # the largest version
    last_contact: float = 0.0  # wall clock, s
    lag_s: float = 0.0  # age of the last event when it was applied
    received: int = 0
    gaps: int = 0
    missed: int = 0  # events that the gaps are wide


class Inbox:
    """Takes in deliveries while its worker runs.

    `acknowledge` gets the tokens of messages that are committed, or dropped for good.  What is queued when the worker
    stops is not acknowledged, so the broker delivers it again.
    """

    def __init__(
        self,
        engine: Engine,
        node_id: str,
        presence: Presence,
        context: StreamContext,
        counters: ReplicationCounters,
        on_gap: Callable[[str, str], None],
        acknowledge: Callable[[list[Any]], None],
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        """`queue_bytes`: the network thread is to read no more while so many wait or are in hand."""
        self._counters = counters
        self._on_gap = on_gap
        self.origins: dict[str, Origin] = {}
        self._engine = engine
        self._node_id = node_id
        self._presence = presence
        self._context = context
        self._acknowledge = acknowledge
        self._queue: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._queue_bytes = queue_bytes
        self._put_bytes = self._done_bytes = 0
        self._put = self._done = 0  # messages
        self._in_hand: list[Delivery] = []
        self._throttle = LogThrottle(log)
        self.worker = WorkerThread(
            "replication-inbox",
            self._step,
            context.on_storage_failed,
            wake=lambda: self._queue.put(None),
            retry_s=RETRY_S,
        )

    @property
    def is_full(self) -> bool:
        """Predicate: should the network thread read no more for now?"""
        return self._queue.qsize() >= QUEUE_MESSAGES or self.waiting_bytes >= self._queue_bytes

    @property
    def waiting(self) -> int:
        """Messages in the queue."""
        return self._queue.qsize()

    @property
    def waiting_bytes(self) -> int:
        """What these and those in hand take."""
        return self._put_bytes - self._done_bytes

    @property
    def is_idle(self) -> bool:
        """Predicate: is everything that was put acknowledged?"""
        return self._put == self._done

    def put(self, delivery: Delivery) -> None:
        """Queue a message.  Never blocks."""
        self._put += 1
        self._put_bytes += len(delivery.payload)
        self._queue.put(delivery)

    def metrics(self) -> OriginMetrics:
        """The nodes whose events came; any thread."""
        now = time.time()
        origins = shown(self.origins, lambda origin: -origin.last_contact)
        return OriginMetrics(
            origins_not_shown=len(self.origins) - len(origins),
            origin_last_contact_ms={
                node: round(1000 * max(0.0, now - one.last_contact)) for node, one in origins.items()
            },
            origin_lag_ms={node: round(1000 * one.lag_s) for node, one in origins.items()},
            origin_received_events={node: one.received for node, one in origins.items()},
            origin_gaps={node: one.gaps for node, one in origins.items()},
            origin_missed_events={node: one.missed for node, one in origins.items()},
        )

    # -- the worker ----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        if not self._in_hand:
            self._in_hand = self._take()
        self._engine.begin()
        try:
            self.process(self._in_hand)
        except Shortage as error:
            self._on_shortage(error)
            raise  # what was merged of them was taken back: all of them again
        self._done += len(self._in_hand)
        self._done_bytes += sum(len(delivery.payload) for delivery in self._in_hand)
        self._in_hand = []

    def _take(self) -> list[Delivery]:
        """The next messages; waits for the first one, or for a stop."""
        deliveries: list[Delivery] = []
        while len(deliveries) < BATCH_MAX:
            try:
                delivery = self._queue.get(block=not deliveries)
            except queue.Empty:
                break
            if delivery is None or self.worker.is_stopping:
                return []
            deliveries.append(delivery)
        return deliveries

    def _on_shortage(self, error: Shortage) -> None:
        self._counters.inbox_waits += 1
        text = "%(reason)s; events of other nodes wait until that is over"
        self._throttle.warn("shortage", text, fields={"reason": str(error)})

    def process(self, deliveries: list[Delivery]) -> None:
        """Merge messages, commit, acknowledge.  Raises StorageFailed; Shortage, with nothing done."""
        received = self._counters.received_events
        for delivery in deliveries:
            self._counters.received_messages += 1
            if delivery.node == self._node_id:
                self._counters.received_own += 1
            elif not self._take_in(delivery):
                return
        if self._counters.received_events != received:  # else it would only do the commits of others
            self._engine.commit()
        self._acknowledge([delivery.token for delivery in deliveries])

    def _take_in(self, delivery: Delivery) -> bool:
        """Merge a message, if it is valid.  Returns False when a stop came first."""
        try:
            message = self._decode(delivery)
            if message is None:
                return True
            if message.event_count:
                self._context.on_events_from(message.source, self._presence.store_id(message.source))
            return self._merge_message(message)
        except (StorageFailed, Shortage):
            raise
        except Exception as defect:  # noqa: BLE001  of ours, it is logged: it must not stop the messages behind this one
            text, fields = "a message on the topic of %(peer)s could not be taken in", {"peer": delivery.node}
            self._throttle.warn(f"defect {type(defect).__name__}", text, defect, level=logging.ERROR, fields=fields)
            self._on_gap(delivery.node, "defect")
            return True

    def _decode(self, delivery: Delivery) -> Message | None:
        try:
            message = decode_message(delivery.payload)
            if message.source != delivery.node:
                raise EventRefused(Reason.SOURCE, f"src is {message.source!r}")
            if self._context.is_removed(message.source, self._presence.store_id(message.source)):
                raise EventRefused(Reason.REMOVED, "the cluster has removed this node: it needs a new data directory")
        except EventRefused as refusal:
            self._counters.refused_events[refusal.reason] += 1
            self._throttle.warn(
                refusal.reason,
                "refused %(bytes)d bytes on the topic of %(peer)s: %(reason)s",
                fields={"bytes": len(delivery.payload), "peer": delivery.node, "reason": str(refusal)},
            )
            return None
        return message

    def _merge_message(self, message: Message) -> bool:
        origin = message.source.encode()
        changes = message.changes
        for first in range(0, len(changes), SLICE_EVENTS):
            part = changes[first : first + SLICE_EVENTS]
            if not self._patiently(partial(self._merge, message.source, origin, part)):
                return False
            pause(0)  # other threads
        for truncation in message.truncations:
            if not self._patiently(partial(self._merge_truncation, message.source, origin, truncation)):
                return False
        self._counters.received_events += message.event_count
        self._track(message)
        return True

    def _patiently(self, work: Callable[[], None]) -> bool:
        """Do it as soon as the engine can.  Returns False when a stop came first."""
        while not self.worker.is_stopping:
            try:
                self._engine.retry_stalled(work, self._wait_for_room)
                return True
            except Stalled:
                break
            except Shortage as error:
                self._on_shortage(error)
                self.worker.wait(RETRY_S)
                self._engine.commit()  # so that the next try finds out whether there is room by then
        return False

    def _wait_for_room(self) -> bool:
        self._counters.inbox_waits += 1
        return not self.worker.is_stopping

    def _merge(self, source: str, origin: bytes, changes: list[tuple[int, bytes, bytes]]) -> None:
        applied_through = self._context.applied_through([record for _, _, record in changes])
        if late := self._context.late([record for _, _, record in changes if not is_live(record)]):
            changes = [change for change in changes if change[2] not in late]
            self._leave_to_an_exchange(source, len(late))
        result = self._engine.merge(changes, origin, applied_through=applied_through, sound=True)
        self._counters.applied_events += result.applied
        self._counters.superseded_events += result.superseded
        records = {key: record for _, key, record in changes} if result.refused else {}
        for key, reason in result.refused:
            refusal = _REASONS.get(reason, Reason.RANGE)
            if refusal is Reason.STABLE:
                self._leave_to_an_exchange(source, 1)
            else:
                is_time = refusal is Reason.CLOCK
                why = self._engine.time_gate.describe(timestamp_of(records[key])) if is_time else f"for its {reason}"
                self._refuse(source, refusal, f"key {key[:60]!r}, {why}")

    def _leave_to_an_exchange(self, source: str, count: int) -> None:
        self._counters.refused_events[Reason.STABLE] += count
        self._on_gap(source, "stable")

    def _merge_truncation(self, source: str, origin: bytes, truncation: bytes) -> None:
        if not self._engine.time_gate.admits_truncation(truncation):
            self._refuse(source, Reason.CLOCK, f"a truncate, {self._engine.time_gate.describe_truncation(truncation)}")
        elif self._engine.merge_truncation(truncation, origin):
            self._counters.applied_events += 1
        else:
            self._counters.superseded_events += 1

    def _refuse(self, source: str, reason: Reason, detail: str) -> None:
        self._counters.refused_events[reason] += 1
        hint = ": the clock of that node is wrong or was, or the one here is" if reason is Reason.CLOCK else ""
        self._throttle.warn(
            f"{reason} {source}",
            "refused an event of node %(peer)s, %(reason)s",
            fields={"peer": source, "reason": f"{detail}{hint}"},
        )

    # -- sequences -----------------------------------------------------------------------------------------------------

    def _track(self, message: Message) -> None:
        origin = self.origins.get(message.source)
        if origin is None:
            if len(self.origins) >= ORIGINS_MAX:
                del self.origins[min(self.origins, key=lambda name: self.origins[name].last_contact)]
            origin = self.origins[message.source] = Origin()
        origin.last_contact = time.time()
        origin.received += message.event_count
        newest = message.newest()
        if newest:
            origin.lag_s = max(0.0, origin.last_contact - timestamp_of(newest) / 10**9)
        if message.sequence is not None:
            self._follow(message.source, origin, message.sequence, message.event_count, newest)
        if self._engine.time_gate.admits_version(newest):  # else it was refused, and says nothing about the numbering
            origin.newest = max(origin.newest, newest)

    def _follow(self, source: str, origin: Origin, first: int, count: int, newest: bytes) -> None:
        expected, behind = origin.expected, first + count
        if expected is not None and first > expected:
            self._gap(source, origin, first - expected, f"{first - expected} events before {first} did not come")
        elif expected is not None and behind <= expected:
            if newest <= origin.newest:
                return  # delivered again
            # A node whose log was lost or cut back counts anew; its versions go on rising.
            self._gap(source, origin, 0, f"its numbering went back from {expected} to {first}")
        origin.expected = behind

    def _gap(self, source: str, origin: Origin, missed: int, what: str) -> None:
        origin.gaps += 1
        origin.missed += missed
        self._throttle.warn(
            f"gap {source}",
            "a gap in the events of node %(peer)s: %(reason)s",
            fields={"peer": source, "reason": what, "events": missed},
        )
        self._on_gap(source, "gap")
