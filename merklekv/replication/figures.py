"""What the link to the broker shows of itself: written by its thread, read by anybody."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from merklekv.replication.presence import Peers


class Topics:
    """The topics of a cluster, as one of its nodes sees them."""

    def __init__(self, prefix: str, node_id: str) -> None:
        self.events = f"{prefix}/{node_id}/events"
        self.status = f"{prefix}/{node_id}/status"
        self.all_events = f"{prefix}/+/events"
        self.all_statuses = f"{prefix}/+/status"
        self._start = len(prefix) + 1

    def node_and_kind(self, topic: str) -> tuple[str, str]:
        """Whose topic it is, and whether it is for `events` or `status`."""
        node, _, kind = topic[self._start :].partition("/")
        return node, kind


@dataclass(slots=True)
class LinkFigures:
    """State, and counters since the start."""

    peers: Peers
    state: str = "connecting"  # disabled, connecting, connected, disconnected, failed
    trouble: dict[str, str] = field(default_factory=dict)  # what is wrong, by kind, for people
    connects: int = 0
    losses: int = 0  # of a connection that stood
    sessions_lost: int = 0  # connects to a broker that did not know us: it queued nothing meanwhile
    deaf: int = 0  # times that our own heartbeat did not come back
    publishes_refused: int = 0
    refusals: Counter[str] = field(default_factory=Counter)  # refused publishes by what the broker said
    received_bytes: int = 0
    oldest_timestamp_ns: int | None = None  # of what waits in the outbox
    alive_at: float = field(default_factory=time.monotonic)  # the thread's last sign of life

    @property
    def detail(self) -> str:
        """What is wrong, in one line."""
        return " ".join("; ".join(list(self.trouble.values())).split())
