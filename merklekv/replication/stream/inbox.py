"""The inbox: what other nodes publish, taken in and only then acknowledged.

    network thread --put--> bounded queue --> worker: decode, validate, merge, commit, acknowledge

A crash before the acknowledgement means that the broker delivers again, and merging twice is harmless.  A message that
is not valid is counted by reason, logged once per burst with its topic, acknowledged and dropped; the next one goes on.
When the engine cannot take more (merging behind, disk full) the worker waits and tries again: nothing valid is dropped.

Each origin numbers its events.  A number that is missing, or that goes back, is told to `on_gap`, for an exchange to
repair it.  So is an event that the horizon keeps out: an exchange knows whether it is old news.

Threads: `put` belongs to the network thread, everything else to the worker.  Messages are merged in slices, between
which clients get their turn at the interpreter.  Cost: 7 us an event of 100 bytes, and one commit for up to BATCH_MAX
messages.
"""

from __future__ import annotations

import logging
import queue
import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from merklekv.engine.engine import Engine
from merklekv.errors import Shortage, Stalled, StorageFailed
from merklekv.log_throttle import LogThrottle
from merklekv.output import counted
from merklekv.replication.stream.event import EventRefused, Message, Reason, decode_message

log = logging.getLogger(__name__)

BATCH_MAX: Final = 20  # messages acknowledged together: brokers send no more before they wait
QUEUE_MESSAGES: Final = 200
QUEUE_BYTES: Final = 64 << 20
SLICE_EVENTS: Final = 50  # merged without a pause, about 0.3 ms
RETRY_S: Final = 0.5
ORIGINS_MAX: Final = 10_000
_REASONS: Final = {"clock": Reason.CLOCK, "conflict": Reason.CONFLICT, "value size": Reason.SIZE}


class Delivery(NamedTuple):
    """A message as it arrived."""

    node: str  # whose topic it came on
    payload: bytes
    token: Any  # what to acknowledge it with


@dataclass(slots=True)
class Origin:
    """What is known of another node's events."""

    expected: int | None = None  # the next sequence number
    newest: bytes = b""  # the largest version
    last_contact: float = 0.0  # wall clock, s
    received: int = 0
    gaps: int = 0
    missed: int = 0  # events that the gaps are wide


class InboxCounters:
    """Events since the start; `malformed` and the others refused by reason."""

    def __init__(self) -> None:
        self.messages = 0
        self.own = 0  # messages of this node itself
        self.received = 0
        self.applied = 0
        self.superseded = 0
        self.gaps = 0
        self.defects = 0  # messages that ran into a mistake of this program
        self.waits = 0  # times that the engine could not take more
        self.refused: Counter[Reason] = Counter()  # messages; events for CLOCK, CONFLICT, SIZE and SETTLED


class Inbox:
    """Takes in deliveries from `start` to `stop`."""

    def __init__(
        self,
        engine: Engine,
        node_id: str,
        acknowledge: Callable[[list[Any]], None],
        on_gap: Callable[[str, str], None],
        fatal: Callable[[BaseException], None],
        is_removed: Callable[[str], bool] = lambda node: False,
        had: Callable[[list[bytes]], int] = lambda events: 0,
    ) -> None:
        self.counters = InboxCounters()
        self.origins: dict[str, Origin] = {}
        self._engine = engine
        self._node_id = node_id
        self._acknowledge = acknowledge
        self._on_gap = on_gap
        self._fatal = fatal
        self._is_forgotten = is_removed
        self._had = had
        self._queue: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self._put_bytes = self._taken_bytes = 0
        self._put = self._done = 0  # messages
        self._stopping = threading.Event()
        self._breather = select.poll()  # polling nothing lets other threads run, also where sleep(0) is refused
        self._throttle = LogThrottle(log)
        self._thread = threading.Thread(target=self._run, name="replication-inbox", daemon=True)

    def start(self) -> None:
        """Starts the worker."""
        self._thread.start()

    def stop(self) -> None:
        """Finishes what is in hand.  What is queued is not acknowledged, so it will be delivered again."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join()

    @property
    def is_full(self) -> bool:
        """Whether the network thread should read no more for now."""
        return self._queue.qsize() >= QUEUE_MESSAGES or self._put_bytes - self._taken_bytes >= QUEUE_BYTES

    @property
    def waiting(self) -> int:
        """Messages in the queue."""
        return self._queue.qsize()

    @property
    def is_idle(self) -> bool:
        """Whether everything that was put is acknowledged."""
        return self._put == self._done

    def put(self, delivery: Delivery) -> None:
        """Queues a message; never blocks."""
        self._put += 1
        self._put_bytes += len(delivery.payload)
        self._queue.put(delivery)

    # -- the worker ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (deliveries := self._take()) is not None:
            try:
                while not self._stopping.is_set() and not self._process_or_wait(deliveries):
                    pass
                self._done += len(deliveries)
            except StorageFailed as error:
                self._fatal(error)
                return

    def _take(self) -> list[Delivery] | None:
        deliveries: list[Delivery] = []
        while len(deliveries) < BATCH_MAX:
            try:
                delivery = self._queue.get(block=not deliveries)
            except queue.Empty:
                break
            if delivery is None or self._stopping.is_set():
                return None
            self._taken_bytes += len(delivery.payload)
            deliveries.append(delivery)
        return deliveries

    def _process_or_wait(self, deliveries: list[Delivery]) -> bool:
        """Takes messages in; False, after a while, when what was merged of them had to be taken back."""
        self._engine.begin()
        try:
            self.process(deliveries)
        except Shortage as error:
            self._wait_for_better_times(error)
            return False
        return True

    def _wait_for_better_times(self, error: Shortage) -> None:
        self.counters.waits += 1
        self._throttle.warn("shortage", f"{error}; events of other nodes wait until that is over")
        self._stopping.wait(RETRY_S)

    def process(self, deliveries: list[Delivery]) -> None:
        """Takes in messages, makes that durable, acknowledges.  Raises StorageFailed; Shortage, with nothing done."""
        received = self.counters.received
        for delivery in deliveries:
            self.counters.messages += 1
            if delivery.node == self._node_id:
                self.counters.own += 1
            elif not self._take_in(delivery):
                return
        if self.counters.received != received:  # else it would only do the commits of others
            self._engine.commit()
        self._acknowledge([delivery.token for delivery in deliveries])

    def _take_in(self, delivery: Delivery) -> bool:
        """Merges what a delivery holds, if it is valid; False when a stop came first."""
        try:
            message = self._decode(delivery)
            return message is None or self._merge_message(message)
        except (StorageFailed, Shortage):
            raise
        except Exception:  # a defect of ours must not stop the messages behind this one
            self.counters.defects += 1
            log.exception("a message on the topic of %s could not be taken in", delivery.node)
            self._on_gap(delivery.node, "defect")
            return True

    def _decode(self, delivery: Delivery) -> Message | None:
        try:
            message = decode_message(delivery.payload)
            if message.source != delivery.node:
                raise EventRefused(Reason.SOURCE, f"src is {message.source!r}")
            if self._is_forgotten(message.source):
                raise EventRefused(Reason.REMOVED, "the cluster has forgotten this node: it needs a new data directory")
        except EventRefused as refusal:
            self.counters.refused[refusal.reason] += 1
            size = counted(len(delivery.payload), "byte")
            self._throttle.warn(refusal.reason, f"refused {size} on the topic of {delivery.node}: {refusal}")
            return None
        return message

    def _merge_message(self, message: Message) -> bool:
        origin = message.source.encode()
        changes = message.changes
        for first in range(0, len(changes), SLICE_EVENTS):
            part = changes[first : first + SLICE_EVENTS]
            if not self._patiently(partial(self._merge, message.source, origin, part)):
                return False
            self._breather.poll(0)
        for truncation in message.truncations:
            if not self._patiently(partial(self._merge_truncation, message.source, origin, truncation)):
                return False
        self.counters.received += message.event_count
        self._track(message)
        return True

    def _patiently(self, work: Callable[[], None]) -> bool:
        """Does it as soon as the engine can; False when a stop came first."""
        while not self._stopping.is_set():
            try:
                work()
            except Stalled:
                self.counters.waits += 1
                self._engine.wait_for_room(RETRY_S)
            except Shortage as error:
                self._wait_for_better_times(error)
                self._engine.commit()  # so that the next try finds out whether there is room by then
            else:
                return True
        return False

    def _merge(self, source: str, origin: bytes, changes: list[tuple[int, bytes, bytes]]) -> None:
        result = self._engine.merge(changes, origin, had=self._had([record for _, _, record in changes]))
        self.counters.applied += result.applied
        self.counters.superseded += result.superseded
        for key, reason in result.refused:
            if reason == Reason.SETTLED:
                self.counters.refused[Reason.SETTLED] += 1
                self._on_gap(source, "settled")
            else:
                self._refuse(source, _REASONS.get(reason, Reason.RANGE), f"key {key[:60]!r}: {reason}")

    def _merge_truncation(self, source: str, origin: bytes, truncation: bytes) -> None:
        if self._engine.clock.truncates_too_far_ahead(truncation):
            self._refuse(source, Reason.CLOCK, "a truncate: clock")
        elif self._engine.merge_truncation(truncation, origin):
            self.counters.applied += 1
        else:
            self.counters.superseded += 1

    def _refuse(self, source: str, reason: Reason, detail: str) -> None:
        self.counters.refused[reason] += 1
        hint = ": its clock, or ours, is wrong" if reason is Reason.CLOCK else ""
        self._throttle.warn(f"{reason} {source}", f"refused an event of node {source}, {detail}{hint}")

    # -- sequences -----------------------------------------------------------------------------------------------------

    def _track(self, message: Message) -> None:
        """Notices events that never came."""
        origin = self._origin(message.source)
        origin.last_contact = time.time()
        origin.received += message.event_count
        newest = message.newest()
        if message.sequence is not None:
            self._follow(message.source, origin, message.sequence, message.event_count, newest)
        if not self._engine.clock.too_far_ahead(newest):  # else it was refused, and tells nothing of the numbering
            origin.newest = max(origin.newest, newest)

    def _follow(self, source: str, origin: Origin, first: int, count: int, newest: bytes) -> None:
        expected, behind = origin.expected, first + count
        if expected is not None and first > expected:
            self._gap(source, origin, first - expected, f"{first - expected} events before {first} did not come")
        elif expected is not None and behind <= expected:
            if newest <= origin.newest:
                return  # a repetition
            # A node whose log was lost or cut back counts anew; its versions go on rising.
            self._gap(source, origin, 0, f"its numbering went back from {expected} to {first}")
        origin.expected = behind

    def _gap(self, source: str, origin: Origin, missed: int, what: str) -> None:
        origin.gaps += 1
        origin.missed += missed
        self.counters.gaps += 1
        self._throttle.warn(f"gap {source}", f"a gap in the events of node {source}: {what}")
        self._on_gap(source, "gap")

    def _origin(self, source: str) -> Origin:
        origin = self.origins.get(source)
        if origin is None:
            if len(self.origins) >= ORIGINS_MAX:
                self.origins.pop(min(self.origins, key=lambda name: self.origins[name].last_contact))
            origin = self.origins[source] = Origin()
        return origin
