"""The outbox: what this node has written and the broker has not acknowledged yet.

It is a cursor over the commit log, not a second copy.  A batch is whatever waits, up to BATCH_BYTES and to what the
broker takes in one packet.  Acknowledgements may come in any order; the cursor moves over what is acknowledged without
a gap, and is saved now and then: a crash repeats events, and skips none.

An event is dropped, and left to anti-entropy, if it is larger than the broker or any node takes, or if the log passes
its limit first (overflow).  Its sequence number is not used again, so the other nodes notice.

No threads, sockets or clocks: the caller publishes what `next_batch` returns, and reports back.  Cost: 0.7 us an event
of 100 bytes, most of it the encoding.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from merklekv.engine.engine import Engine
from merklekv.engine.format import FRAME_HEADER
from merklekv.engine.log.reader import LogGone, LogPosition
from merklekv.engine.log.segment import LogFrame
from merklekv.engine.record import timestamp_of
from merklekv.log_throttle import LogThrottle
from merklekv.metrics import ReplicationCounters
from merklekv.replication.stream.event import (
    ENVELOPE_SIZE,
    MESSAGE_BYTES_MAX,
    Encoded,
    encode_entries,
    encode_message,
    entry_end,
    next_local,
    version_at,
)

log = logging.getLogger(__name__)

BATCH_BYTES: Final = 64 << 10
PACKET_LIMIT_MAX: Final = 268_435_455  # MQTT's own limit of a packet
PACKET_OVERHEAD: Final = 16  # of a PUBLISH packet, beside topic and payload
BATCH_BYTES_MIN: Final = 1 << 10
BATCH_CUT: Final = 4  # a batch that is too large is followed by ones of this fraction
SUSPICIONS_MAX: Final = 3


@dataclass(slots=True, eq=False)
class Batch:
    """A message to publish."""

    payload: bytes
    sequence: int  # of its first event
    count: int
    end: LogPosition  # behind its last event
    timestamp_ns: int  # of its first event
    done: bool = False  # acknowledged, or dropped


class Outbox:
    """Batches to publish, in order.  One thread calls this; any may read the metrics.  `on_gap` gets a reason."""

    def __init__(
        self, engine: Engine, source: str, topic: str, counters: ReplicationCounters, on_gap: Callable[[str], None]
    ) -> None:
        self._counters = counters
        self._throttle = LogThrottle(log)
        self.cursor = engine.retention.subscribe()
        self._engine = engine
        self.retention = engine.retention
        self._source = source
        self._overhead = len(topic.encode()) + PACKET_OVERHEAD + len(source.encode()) + ENVELOPE_SIZE
        self._on_gap = on_gap
        self._saved = self.cursor
        self._in_flight: deque[Batch] = deque()
        self.in_flight_bytes = 0  # of their payloads, as far as they are not acknowledged
        self._lsn, self.next_sequence = self.cursor  # of the first event that is in no batch yet
        self._frame: LogFrame | None = None  # the one at `_lsn`, with local events left from `_offset` on
        self._offset = 0
        self._room_max = BATCH_BYTES
        self._suspected = self._suspicions = 0
        self.limit_packets(None)

    # -- metrics -------------------------------------------------------------------------------------------------------

    @property
    def waiting_events(self) -> int:
        """Committed local events that the broker has not acknowledged."""
        return self.retention.end.sequence - self.cursor.sequence

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the log that they span."""
        return self.retention.end.lsn - self.cursor.lsn

    @property
    def in_flight(self) -> int:
        """Batches that were returned by `next_batch` and are not acknowledged."""
        return len(self._in_flight)

    def oldest_timestamp(self) -> int | None:
        """Timestamp, in ns, of the oldest event that waits."""
        if self._in_flight:
            return self._in_flight[0].timestamp_ns
        frame = self._current()
        return timestamp_of(version_at(frame.data, self._offset)) if frame else None

    # -- what to publish -----------------------------------------------------------------------------------------------

    @property
    def unread_bytes(self) -> int:
        """Bytes of the log that are in no batch yet."""
        return self.retention.end.lsn - self._lsn

    def next_batch(self) -> Batch | None:
        """The next batch to publish, None if no event waits.  Raises Corruption."""
        pieces: list[bytes] = []
        count = size = timestamp = 0
        while size < self._room and (frame := self._current()) is not None:
            if not count:
                timestamp = timestamp_of(version_at(frame.data, self._offset))
            taken = encode_entries(frame.data, self._offset, len(frame.data), self._room - size)
            if not count and not taken.event_count:
                taken = self._take_large(frame)
            pieces += taken.pieces
            count += taken.event_count
            size += taken.size
            self.next_sequence += taken.event_count
            self._offset = taken.at
            if taken.at >= len(frame.data):
                self._lsn, self._frame = frame.end, None
            elif count:
                break
        if not count:
            self._pass_over()
            return None
        first = self.next_sequence - count
        payload = encode_message(self._source, first, pieces, count)
        batch = Batch(payload, first, count, LogPosition(self._lsn, self.next_sequence), timestamp)
        self._in_flight.append(batch)
        self.in_flight_bytes += len(payload)
        return batch

    def acknowledge(self, batch: Batch) -> None:
        """The broker has this batch."""
        self._counters.published_events += batch.count
        self._counters.published_batches += 1
        self._counters.published_bytes += len(batch.payload)
        self._finish(batch)

    def rewind(self) -> None:
        """The connection is gone, so no batch in flight will be acknowledged: begin again at the cursor."""
        self._in_flight.clear()
        self.in_flight_bytes = 0
        self._lsn, self.next_sequence = self.cursor
        self._frame = None

    def limit_packets(self, limit: int | None) -> None:
        """The broker takes packets of `limit` bytes; None: it does not say.  For later batches."""
        of_message = len(self._source.encode()) + ENVELOPE_SIZE
        room = min((limit or PACKET_LIMIT_MAX) - self._overhead, MESSAGE_BYTES_MAX - of_message)
        self.packet_room = max(1, room)  # with 1 every event is too large, with less none would be taken up
        self._room = min(self._room_max, self.packet_room)

    def too_large(self, batch: Batch) -> None:
        """The batch is too large for the broker: later ones are smaller.  A batch of one event is dropped."""
        if batch.count == 1:
            self._drop_too_large(batch.sequence, len(batch.payload), "the broker does not take it")
            self._finish(batch)
            return
        self._room_max = max(BATCH_BYTES_MIN, min(self._room, len(batch.payload)) // BATCH_CUT)
        self._room = min(self._room, self._room_max)
        self.rewind()

    def suspect(self) -> bool:
        """The connection was lost although the broker answered other publishes: the first batch in flight may be why.

        Not every broker says that a message is too large.  The same batch several times in a row counts as said.
        Returns False if nothing was in flight.
        """
        if not self._in_flight:
            return False
        first = self._in_flight[0]
        self._suspicions = self._suspicions + 1 if first.sequence == self._suspected else 1
        self._suspected = first.sequence
        if self._suspicions >= SUSPICIONS_MAX and len(first.payload) > BATCH_BYTES_MIN:
            self._suspicions = 0
            self.too_large(first)
        return True

    def save(self) -> None:
        """Save the cursor, if it has moved, and release the log before it."""
        if self.cursor != self._saved:
            self._engine.release_log(self.cursor)
            self._saved = self.cursor

    # -- reading the log -----------------------------------------------------------------------------------------------

    def _current(self) -> LogFrame | None:
        """The frame in hand, with local events left in it; None if everything is read."""
        if self._frame is not None and self._lsn >= self.retention.dropped_lsn:
            return self._frame
        self._frame = None
        while True:
            try:
                frame = self.retention.next_frame(self._lsn)
            except LogGone as gone:
                self._drop_overflow(gone.oldest)
                continue
            if frame is None:
                return None
            read = max(0, self.next_sequence - frame.sequence)  # less than none where the place was damaged
            self.next_sequence = max(self.next_sequence, frame.sequence)
            if frame.local_count > read:
                self._frame = frame
                self._offset = next_local(frame.data, FRAME_HEADER.size, read)
                return frame
            self._lsn = frame.end

    def _take_large(self, frame: LogFrame) -> Encoded:
        """The event here, which is larger than a batch; empty if it is larger than a packet."""
        end = entry_end(frame.data, self._offset)
        large = encode_entries(frame.data, self._offset, end, PACKET_LIMIT_MAX)
        following = next_local(frame.data, end, 0)
        if large.size <= self.packet_room:
            return large._replace(at=following)
        self._drop_too_large(self.next_sequence, large.size, f"at most {self.packet_room} bytes pass")
        self.next_sequence += 1
        return Encoded([], 0, 0, following)

    def _finish(self, batch: Batch) -> None:
        batch.done = True
        self.in_flight_bytes = max(0, self.in_flight_bytes - len(batch.payload))
        while self._in_flight and self._in_flight[0].done:
            self.cursor = self._in_flight.popleft().end
        self._pass_over()

    def _pass_over(self) -> None:
        """With nothing in flight, move the cursor to the read position, over events of other nodes and dropped ones."""
        if not self._in_flight:
            self.cursor = LogPosition(self._lsn, self.next_sequence)

    def _drop_too_large(self, sequence: int, size: int, why: str) -> None:
        self._counters.outbox_dropped_too_large += 1
        text = "event %(sequence)d of %(bytes)d bytes is not published: %(reason)s; anti-entropy will bring it"
        fields = {"sequence": sequence, "bytes": size, "reason": why}
        self._throttle.warn("too large", text, level=logging.ERROR, fields=fields)
        self._on_gap("too large")

    def _drop_overflow(self, oldest: LogPosition) -> None:
        lost = max(0, oldest.sequence - self.next_sequence)
        self._counters.outbox_dropped_overflow += lost
        if lost:
            self._throttle.warn(
                "overflow",
                "the broker did not take events for so long that the log passed outbox_max_bytes, or filled the disk: "
                "%(events)d events not published; anti-entropy brings them",
                level=logging.ERROR,
                fields={"events": lost},
            )
        self._lsn, self.next_sequence = oldest.lsn, max(self.next_sequence, oldest.sequence)
        self._pass_over()
        self._on_gap("overflow")
