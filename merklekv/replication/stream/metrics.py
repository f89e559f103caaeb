"""What the link to the broker shows of itself: written by its thread, read by anybody."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from merklekv.replication.cluster.presence import Peers

KINDS: Final = ("events", "status")


class Topics:
    """The topics of a cluster, as one of its nodes sees them."""

    def __init__(self, prefix: str, node_id: str) -> None:
        self.events = f"{prefix}/{node_id}/events"
        self.status = f"{prefix}/{node_id}/status"
        self.all_events = f"{prefix}/+/events"
        self.all_statuses = f"{prefix}/+/status"
        self._prefix = prefix

    def node_and_kind(self, topic: str) -> tuple[str, str] | None:
        """Whose topic it is, and whether it is for `events` or `status`; None if that is no node of ours."""
        prefix, node, kind = _parts(topic)
        return (node, kind) if prefix == self._prefix and node and kind in KINDS else None

    def foreign_filters(self, topic: str) -> list[str]:
        """The subscriptions that a node of the cluster which has this topic makes; none for our own cluster."""
        prefix, _, kind = _parts(topic)
        return [f"{prefix}/+/{name}" for name in KINDS] if kind in KINDS and prefix != self._prefix else []


def _parts(topic: str) -> tuple[str, str, str]:
    """Prefix, node and kind; a topic of fewer levels has an empty prefix."""
    place, _, kind = topic.rpartition("/")
    prefix, _, node = place.rpartition("/")
    return prefix, node, kind


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
    foreign_messages: int = 0  # received on topics outside of this cluster, and ignored
    duplicates: int = 0  # times that another client with our client id showed
    duplicate_at: float = 0.0  # the last of them, monotonic clock
    oldest_timestamp_ns: int | None = None  # of what waits in the outbox
    alive_at: float = field(default_factory=time.monotonic)  # the thread's last sign of life

    @property
    def detail(self) -> str:
        """What is wrong, in one line."""
        return " ".join("; ".join(list(self.trouble.values())).split())
