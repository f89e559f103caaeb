"""Replication as the node sees it: start, stop, switch, and report.

    engine's log -> outbox -> broker session -> broker -> broker session -> inbox -> engine

It starts after the engine and stops before it.  What it needs of the node around it is a `StreamContext`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Final

from merklekv import __version__
from merklekv.engine.engine import Engine
from merklekv.log_throttle import LogThrottle
from merklekv.metrics import ReplicationMetrics
from merklekv.output import counted
from merklekv.replication.cluster.presence import Presence, Status
from merklekv.replication.stream.broker_session import BrokerSession, StreamMetrics
from merklekv.replication.stream.context import StreamContext
from merklekv.replication.stream.event import Reason
from merklekv.replication.stream.inbox import Inbox
from merklekv.replication.stream.mqtt import BrokerSettings
from merklekv.replication.stream.outbox import Outbox
from merklekv.replication.stream.reconnect import ReconnectLoop
from merklekv.replication.stream.topics import Topics
from merklekv.worker_thread import WorkerThread

log = logging.getLogger(__name__)

DRAIN_S: Final = 3.0  # how long a stop waits for the broker to take the rest of the outbox
DEFAULT_HEARTBEAT_S: Final = 10.0
WATCH_S: Final = 5.0
UNRESPONSIVE_S: Final = 30.0


class Replicator:
    """Replication of one engine from `start` to `stop`.  Any thread may call its methods."""

    def __init__(
        self,
        engine: Engine,
        broker: BrokerSettings,
        context: StreamContext,
        *,
        address: str = "",
        heartbeat_s: float = DEFAULT_HEARTBEAT_S,
        store_id: str = "",
    ) -> None:
        """`address`: where peers reach this node.  `store_id`: hex."""
        self._engine = engine
        self._broker = broker
        self._context = context
        self._address = address
        self._heartbeat_s = heartbeat_s
        self._store_id = store_id
        self._epoch = engine.clock.epoch.hex()
        self._topics = Topics(broker.topic_prefix, broker.node_id)
        self._throttle = LogThrottle(log)
        self._presence = Presence(broker.node_id, self._epoch, context.on_status)
        self._metrics = StreamMetrics()
        self._outbox = Outbox(engine, broker.node_id, self._topics.events, lambda reason: context.on_gap("", reason))
        self._loop = ReconnectLoop(self._outbox, self._metrics, context.on_storage_failed)
        self._inbox = Inbox(engine, broker.node_id, self._presence, context, self._loop.acknowledge)
        self._watchdog = WorkerThread("replication-watchdog", self._watch, context.on_storage_failed)

    @property
    def workers(self) -> list[WorkerThread]:
        """Its threads."""
        return [self._inbox.worker, self._loop.worker, self._watchdog]

    def start(self) -> None:
        """Start publishing and receiving.  Returns at once, with or without a broker."""
        self._inbox.worker.start()
        self._loop.start(self._make_session)
        self._watchdog.start()

    def stop(self, drain_s: float = DRAIN_S) -> None:
        """Publish the rest of the outbox, for at most `drain_s` seconds, and end.  What is left waits for a start."""
        connected = self._metrics.state == "connected"
        self._loop.stop(drain_s if connected else 0)
        self._inbox.worker.stop()
        self._loop.close()
        self._watchdog.stop()
        if left := self._outbox.waiting_events:
            log.info("%s left in the outbox for the next start", counted(left, "event"))

    def enable(self, enabled: bool) -> None:
        """Connect, or disconnect; events wait in the outbox meanwhile."""
        self._loop.enable(enabled)

    def status(self, more: Mapping[str, int | str]) -> str:
        """The words of REPLICATE status; `more` are `key=value` words of other parts."""
        head = f"enabled {len(self._presence.online()) + 1} nodes" if self._loop.enabled else "disabled"
        words: dict[str, int | str] = {
            "state": self._metrics.state,
            "outbox": self._outbox.waiting_events,
            "outbox_bytes": self._outbox.waiting_bytes,
            "oldest_ms": self._oldest_ms(),
            "dropped_overflow": self._outbox.counters.dropped_overflow,
            "dropped_too_large": self._outbox.counters.dropped_too_large,
            "refused": self._metrics.publishes_refused,
            "gaps": self._inbox.counters.gaps,
        }
        words.update(more)
        text = " ".join(f"{name}={value}" for name, value in words.items())
        detail = self._metrics.detail if self._loop.worker.is_alive else "the network thread has ended"
        return f"{head} {text} broker={self._broker.address}" + (f" detail={detail}" if detail else "")

    def metrics(self) -> ReplicationMetrics:
        """What replication reports of itself now."""
        metrics, outbox, inbox = self._metrics, self._outbox, self._inbox.counters
        origins = sorted(self._inbox.origins.items())
        now = time.time()
        return ReplicationMetrics(
            replication_state=metrics.state,
            replication_detail=metrics.detail,
            replication_nodes=len(self._presence.online()) + 1,
            replication_gaps=self._gaps(),
            broker_connects=metrics.connects,
            broker_losses=metrics.losses,
            broker_sessions_lost=metrics.sessions_lost,
            broker_subscription_silent=metrics.subscription_silent,
            broker_duplicate_client_ids=metrics.duplicates,
            outbox_events=outbox.waiting_events,
            outbox_bytes=outbox.waiting_bytes,
            outbox_oldest_ms=self._oldest_ms(),
            outbox_in_flight=outbox.in_flight,
            outbox_dropped_overflow=outbox.counters.dropped_overflow,
            outbox_dropped_too_large=outbox.counters.dropped_too_large,
            published_events=outbox.counters.published,
            published_batches=outbox.counters.batches,
            published_bytes=outbox.counters.published_bytes,
            publishes_refused=dict(sorted(metrics.refusals.items())),
            inbox_messages=self._inbox.waiting,
            inbox_waits=inbox.waits,
            received_messages=inbox.messages,
            received_own=inbox.own,
            received_bytes=metrics.received_bytes,
            received_foreign=metrics.foreign_messages,
            received_events=inbox.received,
            applied_events=inbox.applied,
            superseded_events=inbox.superseded,
            refused_events=dict(sorted(inbox.refused.items())),
            origin_last_contact_ms={node: round(1000 * (now - one.last_contact)) for node, one in origins},
            origin_received_events={node: one.received for node, one in origins},
            origin_gaps={node: one.gaps for node, one in origins},
            origin_missed_events={node: one.missed for node, one in origins},
        )

    def _make_session(self) -> BrokerSession:
        return BrokerSession(
            self._broker,
            self._topics,
            self._outbox,
            self._inbox,
            self._presence,
            self._metrics,
            self._describe,
            self._context.on_gap,
            self._loop.throttle,
            self._heartbeat_s,
            self._loop.wake_fd,
        )

    def _describe(self, state: str) -> Status:
        engine = self._engine
        root = engine.root().hex() if engine.root_ready else ""
        sequence = engine.retention.end.sequence
        node = self._broker.node_id
        return Status(node, state, self._address, root, sequence, __version__, self._epoch, self._store_id)

    def _oldest_ms(self) -> int:
        oldest = self._metrics.oldest_timestamp_ns
        if oldest is None or not self._outbox.waiting_events:
            return 0
        return max(0, time.time_ns() - oldest) // 1_000_000

    def _gaps(self) -> dict[str, int]:
        """How often events may have been missed, by reason, as `StreamContext.on_gap` was told."""
        metrics, outbox, inbox = self._metrics, self._outbox.counters, self._inbox.counters
        counts = {
            "defect": inbox.defects,
            "gap": inbox.gaps,
            "overflow": outbox.overflows,
            "session lost": metrics.sessions_lost,
            "stable": inbox.refused[Reason.STABLE],
            "subscription silent": metrics.subscription_silent,
            "too large": outbox.dropped_too_large,
        }
        return {reason: count for reason, count in counts.items() if count}

    def _watch(self) -> None:
        if not self._watchdog.wait(WATCH_S):
            silent_s = time.monotonic() - self._metrics.alive_at
            if silent_s > UNRESPONSIVE_S or not self._loop.worker.is_alive:
                self._throttle.warn("watchdog", f"the network thread has not been seen for {silent_s:.0f} s")
