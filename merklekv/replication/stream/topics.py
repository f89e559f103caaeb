"""The MQTT topics of a cluster: `<prefix>/<node id>/events` and `<prefix>/<node id>/status`."""

from __future__ import annotations

from typing import Final

KINDS: Final = ("events", "status")


class Topics:
    """The topics of a cluster, as one of its nodes uses them."""

    def __init__(self, prefix: str, node_id: str) -> None:
        self.events = f"{prefix}/{node_id}/events"
        self.status = f"{prefix}/{node_id}/status"
        self.all_events = f"{prefix}/+/events"
        self.all_statuses = f"{prefix}/+/status"
        self._prefix = prefix

    def node_and_kind(self, topic: str) -> tuple[str, str] | None:
        """The node that the topic belongs to, and `events` or `status`; None for a topic of no node of this cluster."""
        prefix, node, kind = _parts(topic)
        return (node, kind) if prefix == self._prefix and node and kind in KINDS else None

    def foreign_filters(self, topic: str) -> list[str]:
        """The subscriptions that the nodes of another cluster make, given one of its topics; none for this cluster."""
        prefix, _, kind = _parts(topic)
        return [f"{prefix}/+/{name}" for name in KINDS] if kind in KINDS and prefix != self._prefix else []


def _parts(topic: str) -> tuple[str, str, str]:
    """Prefix, node and kind; a topic of fewer levels has an empty prefix."""
    place, _, kind = topic.rpartition("/")
    prefix, _, node = place.rpartition("/")
    return prefix, node, kind
