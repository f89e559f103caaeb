"""State and counters of the connection to the broker: the reconnect loop writes them, any thread reads them."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class StreamMetrics:
    """State of the connection to the broker, and counters since the start."""

    state: str = "connecting"  # disabled, connecting, connected, disconnected, failed
    problems: dict[str, str] = field(default_factory=dict)  # what is wrong, by kind, for people
    connects: int = 0
    losses: int = 0  # of established connections
    sessions_lost: int = 0  # connects where the broker had no session for this node: it queued nothing meanwhile
    subscription_silent: int = 0  # times that this node's own heartbeat did not come back
    publishes_refused: int = 0
    refusals: Counter[str] = field(default_factory=Counter)  # refused publishes by the broker's reason
    received_bytes: int = 0
    foreign_messages: int = 0  # received on topics outside of this cluster, and ignored
    duplicates: int = 0  # signs of another client with this node's client id
    duplicate_at: float = 0.0  # the last one, monotonic clock
    oldest_timestamp_ns: int | None = None  # of the events in the outbox
    alive_at: float = field(default_factory=time.monotonic)  # the last sign of life of the reconnect loop

    @property
    def detail(self) -> str:
        """What is wrong, in one line."""
        return " ".join("; ".join(list(self.problems.values())).split())
