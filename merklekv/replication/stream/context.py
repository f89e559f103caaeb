"""What the stream needs of the node around it."""

from __future__ import annotations

from typing import Protocol

from merklekv.replication.cluster.presence import Status


class StreamContext(Protocol):
    """Queries and notifications, called on the stream's threads.  A store id is hex, or empty if it is unknown."""

    def is_removed(self, node: str, store_id: str) -> bool:
        """Query: was this node removed from the cluster, so that its events are refused?"""

    def applied_through(self, records: list[bytes]) -> int:
        """Query: through which time, ns, was every write of the writer of these records applied?  0: unknown."""

    def on_events_from(self, node: str, store_id: str) -> None:
        """Events of this node are about to be applied."""

    def on_status(self, status: Status) -> None:
        """A node is new, came or went, or moved.  Returns at once."""

    def on_gap(self, node: str, reason: str) -> None:
        """Events of this node (empty: of any) may have been missed.  Returns at once."""

    def on_storage_failed(self, error: BaseException) -> None:
        """The disk failed: the process has to end."""
