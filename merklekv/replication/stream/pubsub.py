"""Publish and subscribe between nodes: what clients publish here and there, over a topic beside the events.

    worker --send--> bounded queue --> network thread --> broker --> network thread --> deliver

With QoS 0, so a message reaches a node once or never: nothing is kept for a node that is away, here or at the broker,
and what finds the queue full is dropped.  A node subscribes to the topics, and says so in its status, only while its
clients listen to something; a node publishes there only while another one says so.

A message on the wire is a CBOR map with what was published in a row:

    {v, src, messages: [channel, payload, channel, payload, ...]}       channels and payloads are bytes

Threads: `send` and `listen` may be called by any, all else belongs to the network thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import cbor2

from merklekv.log_throttle import LogThrottle
from merklekv.metrics import ReplicationCounters
from merklekv.output import counted
from merklekv.replication.plain_cbor import Malformed, decode_map, kind_of

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
CHANNEL_BYTES_MAX: Final = 1024
BATCH_BYTES: Final = 64 << 10
QUEUE_BYTES: Final = 16 << 20
MESSAGE_ROOM_BYTES: Final = 256  # of Python's objects for a message in the queue
ENVELOPE_BYTES: Final = 64  # of a message on the wire, beside source, channels and payloads
ITEM_BYTES: Final = 16  # of a channel and its payload there
LINGER_S: Final = 30.0  # after the last subscription: another one may follow

Message = tuple[bytes, bytes]  # channel, payload


class PubSubLink:
    """What one node tells the others of its clients' messages, and is told.

    `deliver` gets what clients of other nodes have published.  `is_refused` says whether a node was removed.
    """

    def __init__(
        self, node_id: str, counters: ReplicationCounters, is_refused: Callable[[str], bool], wake: Callable[[], None]
    ) -> None:
        self.deliver: Callable[[bytes, bytes], None] = lambda channel, payload: None
        self.is_wanted = False  # whether another node listens, and can be reached
        self._node_id = node_id
        self._counters = counters
        self._is_refused = is_refused
        self._wake = wake
        self._listens = False
        self._listened_at = -LINGER_S  # monotonic clock
        self._throttle = LogThrottle(log)
        self._lock = threading.Lock()  # of the queue
        self._queue: deque[Message] = deque()
        self._queue_bytes = 0

    # -- in any thread -------------------------------------------------------------------------------------------------

    def send(self, channel: bytes, payload: bytes) -> None:
        """Lets the other nodes have a message that a client of this node has published.  Never waits."""
        if not self.is_wanted:
            return
        with self._lock:
            if self._queue_bytes > QUEUE_BYTES:
                self._counters.pubsub_unsent["queue full"] += 1
                return
            is_first = not self._queue
            self._queue.append((channel, payload))
            self._queue_bytes += _size((channel, payload))
        if is_first:
            self._wake()

    def listen(self, wanted: bool) -> None:
        """Clients of this node listen to something, or no longer do."""
        self._listened_at = time.monotonic()
        self._listens = wanted
        self._wake()

    @property
    def is_listening(self) -> bool:
        """Whether this node wants to have what is published at the others."""
        return self._listens or time.monotonic() - self._listened_at < LINGER_S

    # -- in the network thread -----------------------------------------------------------------------------------------

    @property
    def has_waiting(self) -> bool:
        return bool(self._queue)

    def next_batch(self, packet_limit: int) -> bytes:
        """What to publish next, empty if nothing waits."""
        packet_room = packet_limit - ENVELOPE_BYTES - len(self._node_id.encode())
        while batch := self._take(min(BATCH_BYTES, packet_room)):
            size = sum(map(len, batch))
            if len(batch) > 2 or size + ITEM_BYTES <= packet_room:
                self._counters.pubsub_sent += len(batch) // 2
                return cbor2.dumps({"v": SCHEMA_VERSION, "src": self._node_id, "messages": batch})
            self._counters.pubsub_unsent["too large"] += 1
            what = f"a message of a client, {counted(size, 'byte')}, stays on this node: at most {packet_limit} pass"
            self._throttle.warn("too large", what)
        return b""

    def _take(self, room: int) -> list[bytes]:
        """Channels and payloads of the next messages, as many as fit into `room`, and one in any case."""
        taken: list[bytes] = []
        with self._lock:
            while self._queue:
                message = self._queue[0]
                room -= len(message[0]) + len(message[1]) + ITEM_BYTES
                if taken and room < 0:
                    break
                taken += message
                self._queue_bytes -= _size(message)
                self._queue.popleft()
        return taken

    def clear(self) -> None:
        """The broker is gone: what waits is dropped."""
        self.is_wanted = False
        with self._lock:
            if self._queue:
                self._counters.pubsub_unsent["no broker"] += len(self._queue)
            self._queue.clear()
            self._queue_bytes = 0

    def take_in(self, node: str, payload: bytes) -> None:
        """A message came on the topic of a node."""
        if node == self._node_id:
            return
        try:
            messages = decode(node, payload)
            if self._is_refused(node):
                raise Malformed("the cluster has removed this node")
        except Malformed as problem:
            self._counters.pubsub_refused += 1
            self._throttle.warn(
                "refused",
                "refused %(bytes)d bytes of published messages on the topic of %(peer)s: %(reason)s",
                fields={"bytes": len(payload), "peer": node, "reason": str(problem)},
            )
            return
        self._counters.pubsub_received += len(messages)
        for channel, message in messages:
            self.deliver(channel, message)


def _size(message: Message) -> int:
    return len(message[0]) + len(message[1]) + MESSAGE_ROOM_BYTES


def decode(node: str, payload: bytes) -> list[Message]:
    """The messages in what came on the topic of a node.  Raises Malformed, and nothing else whatever that is."""
    fields = decode_map(payload)
    if (version := fields.number("v")) != SCHEMA_VERSION:
        raise Malformed(f"v is {version}, this release knows {SCHEMA_VERSION}")
    if (source := fields.node_id("src")) != node:
        raise Malformed(f"src is {source!r}")
    items = fields.items("messages")
    if len(items) % 2:
        raise Malformed("a channel without a message")
    for item in items:
        if type(item) is not bytes:
            raise Malformed(f"a part of a message is {kind_of(item)}, not bytes")
    messages = list(zip(items[::2], items[1::2], strict=True))
    if any(len(channel) > CHANNEL_BYTES_MAX for channel, _ in messages):
        raise Malformed(f"the name of a channel has over {CHANNEL_BYTES_MAX} bytes")
    return messages
