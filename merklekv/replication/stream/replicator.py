"""Replication as the node sees it: start, stop, switch, and report.

    engine's log -> outbox -> broker session -> broker -> broker session -> inbox -> engine

It starts after the engine and stops before it.  What it needs of the node around it is a `StreamContext`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Final

from merklekv import __version__
from merklekv.engine.engine import Engine
from merklekv.metrics import OriginMetrics, ReplicationCounters, ReplicationMetrics
from merklekv.output import counted
from merklekv.replication.cluster.presence import Presence, Status
from merklekv.replication.stream.broker_session import BrokerSession, StreamState, Topics
from merklekv.replication.stream.inbox import Inbox, StreamContext
from merklekv.replication.stream.mqtt import BrokerSettings
from merklekv.replication.stream.outbox import Outbox
from merklekv.replication.stream.pubsub import PubSubLink
from merklekv.replication.stream.reconnect import ReconnectLoop
from merklekv.worker_thread import WorkerThread

log = logging.getLogger(__name__)

WATCH_S: Final = 5.0
UNRESPONSIVE_S: Final = 30.0
OUTAGE_S: Final = 10.0  # a shorter loss is no reason to send clients elsewhere


class Replicator:
    """Replication of one engine from `start` to `stop`.  Any thread may call its methods."""

    def __init__(
        self,
        engine: Engine,
        broker: BrokerSettings,
        context: StreamContext,
        *,
        address: str,
        heartbeat_s: float,
        store_id: str,
        inbox_bytes: int,
    ) -> None:
        """`address`: where peers reach this node.  `store_id`: hex.  `inbox_bytes`: of events that wait, at most."""
        self._engine = engine
        self._broker = broker
        self._context = context
        self._address = address
        self._heartbeat_s = heartbeat_s
        self._store_id = store_id
        self._epoch = engine.clock.epoch.hex()
        self._topics = Topics(broker.topic_prefix, broker.node_id)
        self._presence = Presence(broker.node_id, self._epoch, context.on_status)
        self._counters = counters = ReplicationCounters()
        self._state = StreamState(counters)
        self._outbox = Outbox(engine, broker.node_id, self._topics.events, counters, partial(self._on_gap, ""))
        self._loop = ReconnectLoop(self._outbox, self._state, context.on_storage_failed)
        self._inbox = Inbox(
            engine,
            broker.node_id,
            self._presence,
            context,
            counters,
            self._on_gap,
            self._loop.acknowledge,
            inbox_bytes,
        )
        self.pubsub = PubSubLink(broker.node_id, counters, self._is_removed, self._loop.wake)
        self._watchdog = WorkerThread("replication-watchdog", self._watch, context.on_storage_failed)
        self.workers = [self._inbox.worker, self._loop.worker, self._watchdog]

    def start(self) -> None:
        """Start publishing and receiving.  Returns at once, with or without a broker."""
        with ExitStack() as on_failure:
            on_failure.callback(self.stop, 0)
            self._inbox.worker.start()
            self._loop.start(
                partial(
                    BrokerSession,
                    self._broker,
                    self._topics,
                    self._outbox,
                    self._inbox,
                    self._presence,
                    self.pubsub,
                    self._state,
                    self._describe,
                    self._on_gap,
                    self._loop.throttle,
                    self._heartbeat_s,
                    self._loop.wake_fd,
                )
            )
            self._watchdog.start()
            on_failure.pop_all()

    def stop(self, drain_s: float) -> None:
        """Publish the rest of the outbox, for at most `drain_s` seconds, and end.  What is left waits for a start."""
        connected = self._state.connection == "connected"
        self._loop.stop(drain_s if connected else 0)
        self._inbox.worker.stop()
        self._loop.close()
        self._watchdog.stop()
        if left := self._outbox.waiting_events:
            log.info("%(events)d events left in the outbox for the next start", {"events": left})

    @property
    def waiting_bytes(self) -> int:
        """What events take that came and are not applied yet."""
        return self._inbox.waiting_bytes

    def enable(self, enabled: bool) -> None:
        """Connect, or disconnect; events wait in the outbox meanwhile."""
        self._loop.enable(enabled)

    def reconnect(self) -> None:
        """End the connection, if there is one, and make another."""
        self._loop.reconnect()

    def status(self, more: Mapping[str, int | str]) -> str:
        """The words of REPLICATE status; `more` are `key=value` words of other parts."""
        nodes = counted(len(self._presence.online()) + 1, "node")
        head = f"enabled {nodes}" if self._loop.enabled else "disabled"
        words: dict[str, int | str] = {
            "state": self.connection,
            "outbox": self._outbox.waiting_events,
            "outbox_bytes": self._outbox.waiting_bytes,
            "oldest_ms": self._oldest_ms(),
            "dropped_overflow": self._counters.outbox_dropped_overflow,
            "dropped_too_large": self._counters.outbox_dropped_too_large,
            "refused": self._counters.publishes_refused.total(),
            "gaps": self._counters.replication_gaps["gap"],
        }
        words.update(more)
        text = " ".join(f"{name}={value}" for name, value in words.items())
        detail = self._state.detail if self._loop.worker.is_alive else "the network thread has ended"
        return f"{head} {text} broker={self._broker.address}" + (f" detail={detail}" if detail else "")

    def outage(self) -> str:
        """What keeps this node from the broker, in a sentence; empty if nothing does, or not for OUTAGE_S yet."""
        state = self._state
        lasts_s = time.monotonic() - state.connected_at
        if not self._loop.enabled or state.connection == "connected" or (state.connected_at and lasts_s < OUTAGE_S):
            return ""
        return f"not connected to the broker at {self._broker.address}" + (f": {state.detail}" if state.detail else "")

    @property
    def missed_at(self) -> float:
        """When events of any node may have been missed last, by the monotonic clock; 0: never."""
        return self._state.missed_at

    def metrics(self) -> tuple[ReplicationMetrics, ReplicationCounters, OriginMetrics]:
        """What replication reports of itself now."""
        now = ReplicationMetrics(
            replication_state=self.connection,
            replication_detail=self._state.detail,
            replication_nodes=len(self._presence.online()) + 1,
            outbox_events=self._outbox.waiting_events,
            outbox_bytes=self._outbox.waiting_bytes,
            outbox_oldest_ms=self._oldest_ms(),
            outbox_in_flight=self._outbox.in_flight,
            inbox_messages=self._inbox.waiting,
            pubsub_nodes=self._presence.listeners,
        )
        return now, self._counters, self._inbox.metrics()

    @property
    def connection(self) -> str:
        """One word for the connection to the broker, see `StreamState`."""
        return self._state.connection

    def _on_gap(self, node: str, reason: str) -> None:
        self._counters.replication_gaps[reason] += 1
        self._context.on_gap(node, reason)

    def _describe(self, state: str) -> Status:
        engine = self._engine
        with engine.lock:
            root = engine.root().hex() if engine.root_ready else ""
        sequence = engine.retention.end.sequence
        node = self._broker.node_id
        words = (self._address, root, sequence, __version__, self._epoch, self._store_id)
        return Status(node, state, *words, listens=self.pubsub.is_listening)

    def _is_removed(self, node: str) -> bool:
        return self._context.is_removed(node, self._presence.store_id(node))

    def _oldest_ms(self) -> int:
        oldest = self._state.oldest_timestamp_ns
        if oldest is None or not self._outbox.waiting_events:
            return 0
        return max(0, time.time_ns() - oldest) // 1_000_000

    def _watch(self) -> None:
        if not self._watchdog.wait(WATCH_S):
            silent_s = time.monotonic() - self._state.alive_at
            if silent_s > UNRESPONSIVE_S or not self._loop.worker.is_alive:
                self._loop.throttle.warn("watchdog", f"the network thread has not been seen for {silent_s:.0f} s")
