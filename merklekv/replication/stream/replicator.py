"""Replication as the node sees it: started, stopped, switched, and asked how it is.

    engine's log -> outbox -> link -> broker -> link -> inbox -> engine

Started after the engine and stopped before it.  What it notices and does not repair is told: `on_gap`, that events may
have been missed, with the node (empty: anybody) and the reason; `on_news`, that a node came, went or moved.  Whose
events are not taken is asked of `is_removed`, with a node's id and its birth as it last said it.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from merklekv import __version__
from merklekv.engine.engine import Engine
from merklekv.log_throttle import LogThrottle
from merklekv.metrics import ReplicationMetrics
from merklekv.output import counted
from merklekv.replication.cluster.presence import Peer, Peers, Status
from merklekv.replication.stream.broker_session import BrokerSession
from merklekv.replication.stream.inbox import Inbox
from merklekv.replication.stream.metrics import LinkFigures, Topics
from merklekv.replication.stream.mqtt import Broker
from merklekv.replication.stream.outbox import Outbox
from merklekv.replication.stream.reconnect import Link

log = logging.getLogger(__name__)

DRAIN_S: Final = 3.0  # how long a stop waits for the broker to take what is left
DEFAULT_HEARTBEAT_S: Final = 10.0
WATCH_S: Final = 5.0
UNRESPONSIVE_S: Final = 30.0


class Replicator:
    """Replication of one engine from `start` to `stop`."""

    def __init__(
        self,
        engine: Engine,
        broker: Broker,
        fatal: Callable[[BaseException], None],
        *,
        address: str = "",
        heartbeat_s: float = DEFAULT_HEARTBEAT_S,
        store_id: str = "",
        on_gap: Callable[[str, str], None] = lambda node, reason: None,
        on_news: Callable[[Status], None] = lambda status: None,
        is_removed: Callable[[str, str], bool] = lambda node, store_id: False,
        had: Callable[[list[bytes]], int] = lambda events: 0,
    ) -> None:
        self.gaps: Counter[str] = Counter()  # reasons to think that events were missed, here or elsewhere
        self.address = address  # where peers reach this node
        self._engine = engine
        self._broker = broker
        self._birth = store_id
        self._topics = Topics(broker.topic_prefix, broker.node_id)
        self._tell_gap = on_gap
        self._heartbeat_s = heartbeat_s
        self._throttle = LogThrottle(log)
        self._instance = secrets.token_hex(4)
        peers = Peers(broker.node_id, self._instance, on_news)
        self._figures = LinkFigures(peers)
        self._outbox = Outbox(engine, broker.node_id, self._topics.events, lambda reason: self._on_gap("", reason))
        self._link = Link(self._outbox, self._figures, fatal)
        self._inbox = Inbox(
            engine,
            broker.node_id,
            self._link.acknowledge,
            self._on_gap,
            fatal,
            lambda node: is_removed(node, peers.store_id(node)),
            had,
        )
        self._done = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="replication-watchdog", daemon=True)

    def start(self) -> None:
        """Starts publishing and receiving; returns at once, whether there is a broker or not."""
        self._inbox.start()
        self._link.start(self._converse)
        self._watchdog.start()

    def stop(self, drain_s: float = DRAIN_S) -> None:
        """Publishes what is left, for at most `drain_s`, and ends.  The rest waits for the next start."""
        connected = self._figures.state == "connected"
        self._link.stop(drain_s if connected else 0)
        self._inbox.stop()
        self._link.close()
        self._done.set()
        self._watchdog.join()
        if left := self._outbox.waiting_events:
            log.info("%s left in the outbox for the next start", counted(left, "event"))

    def enable(self) -> None:
        """Connects, and goes on where it was."""
        self._link.enable(True)

    def disable(self) -> None:
        """Disconnects; what is written meanwhile waits in the outbox."""
        self._link.enable(False)

    def status(self, more: Mapping[str, int | str]) -> str:
        """The words of REPLICATE status; `more` are `key=value` words of others."""
        head = f"enabled {self._figures.peers.online_count + 1} nodes" if self._link.enabled else "disabled"
        words: dict[str, int | str] = {
            "state": self._figures.state,
            "outbox": self._outbox.waiting_events,
            "outbox_bytes": self._outbox.waiting_bytes,
            "oldest_ms": self._oldest_ms(),
            "given_up": self._outbox.counters.given_up,
            "set_aside": self._outbox.counters.set_aside,
            "refused": self._figures.publishes_refused,
            "gaps": self._inbox.counters.gaps,
        }
        words.update(more)
        text = " ".join(f"{name}={value}" for name, value in words.items())
        detail = self._figures.detail if self._link.is_alive else "the network thread has ended"
        return f"{head} {text} broker={self._broker.address}" + (f" detail={detail}" if detail else "")

    def peers(self) -> dict[str, Peer]:
        """Other nodes, as their presence shows them."""
        return self._figures.peers.all()

    def metrics(self) -> ReplicationMetrics:
        """What replication reports of itself now."""
        figures, outbox, inbox = self._figures, self._outbox, self._inbox.counters
        origins = sorted(self._inbox.origins.items())
        now = time.time()
        return ReplicationMetrics(
            replication_state=figures.state,
            replication_detail=figures.detail,
            replication_nodes=figures.peers.online_count + 1,
            replication_gaps=dict(sorted(self.gaps.items())),
            broker_connects=figures.connects,
            broker_losses=figures.losses,
            broker_sessions_lost=figures.sessions_lost,
            broker_subscription_silent=figures.deaf,
            broker_duplicate_client_ids=figures.duplicates,
            outbox_events=outbox.waiting_events,
            outbox_bytes=outbox.waiting_bytes,
            outbox_oldest_ms=self._oldest_ms(),
            outbox_in_flight=outbox.in_flight,
            outbox_dropped_overflow=outbox.counters.given_up,
            outbox_dropped_too_large=outbox.counters.set_aside,
            published_events=outbox.counters.published,
            published_batches=outbox.counters.batches,
            published_bytes=outbox.counters.published_bytes,
            publishes_refused=dict(sorted(figures.refusals.items())),
            inbox_messages=self._inbox.waiting,
            inbox_waits=inbox.waits,
            received_messages=inbox.messages,
            received_own=inbox.own,
            received_bytes=figures.received_bytes,
            received_foreign=figures.foreign_messages,
            received_events=inbox.received,
            applied_events=inbox.applied,
            superseded_events=inbox.superseded,
            refused_events=dict(sorted(inbox.refused.items())),
            origin_last_contact_ms={node: round(1000 * (now - one.last_contact)) for node, one in origins},
            origin_received_events={node: one.received for node, one in origins},
            origin_gaps={node: one.gaps for node, one in origins},
            origin_missed_events={node: one.missed for node, one in origins},
        )

    def _converse(self) -> BrokerSession:
        return BrokerSession(
            self._broker,
            self._topics,
            self._outbox,
            self._inbox,
            self._figures,
            self._describe,
            self._on_gap,
            self._link.throttle,
            self._heartbeat_s,
            self._link.wake_fd,
        )

    def _describe(self, state: str) -> Status:
        engine = self._engine
        root = engine.root().hex() if engine.root_ready else ""
        sequence = engine.tail.end.sequence
        node = self._broker.node_id
        return Status(node, state, self.address, root, sequence, __version__, self._instance, self._birth)

    def _oldest_ms(self) -> int:
        oldest = self._figures.oldest_timestamp_ns
        if oldest is None or not self._outbox.waiting_events:
            return 0
        return max(0, time.time_ns() - oldest) // 1_000_000

    def _on_gap(self, node: str, reason: str) -> None:
        self.gaps[reason] += 1
        self._tell_gap(node, reason)

    def _watch(self) -> None:
        """Says when the network thread does not do its rounds any more."""
        while not self._done.wait(WATCH_S):
            silent_s = time.monotonic() - self._figures.alive_at
            if silent_s > UNRESPONSIVE_S or not self._link.is_alive:
                self._throttle.warn("watchdog", f"the network thread has not been seen for {silent_s:.0f} s")
