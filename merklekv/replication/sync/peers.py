"""The nodes that this node exchanges with, one peer for each address, and what came of it.

Addresses come from the configuration and, while a node is online, from its presence.  The first exchange tells which
node is at a configured address; after that the address which this node announces is not used.  Presence keeps at most
NODES_MAX nodes, so no more are online; at so many peers those that are offline go.

Anyone may announce any address.  So an address counts as long as one node announces it, and a false status takes no
peer away.  And peers that hang cost the others little: who has failed often waits longer for its turn, and after a
failure all doubtful peers, which failed or never succeeded, rest for as long as it took, if there are others.

Not locked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from merklekv.replication.cluster.presence import NODES_MAX, ONLINE, Status
from merklekv.replication.sync.initiator import ExchangeReport
from merklekv.replication.sync.schedule import Schedule

ERROR_SIZE_MAX: Final = 500
_REPORTED: Final = ("equal", "rounds", "bytes_sent", "bytes_received", "keys_sent", "keys_received", "discarded")
TOTALS: Final = ("completed", "failures", *_REPORTED)


@dataclass(slots=True)
class ExchangePeer:
    """Another node as an exchange sees it."""

    address: str  # host:port
    schedule: Schedule
    node: str = ""  # empty until it is known
    configured: bool = False
    announcers: set[str] = field(default_factory=set)  # nodes that are online here, as they say
    totals: Counter[str] = field(default_factory=Counter)  # TOTALS, of the exchanges that this node began
    duration_s: float = 0.0  # of the last complete one
    succeeded_at: float = 0.0  # wall clock, s; 0: never
    cuts: int = 0  # how often an exchange took too long since then, so that others had their turn
    in_sync: bool = False  # as of the last exchange, with no reason since to think otherwise
    tombstones: int = 0  # how many this node had at the last exchange, or the fewest since
    error: str = ""  # of the last one, if it failed

    @property
    def online(self) -> bool:
        """Predicate: does a node say that it is here?"""
        return bool(self.announcers)

    @property
    def is_doubtful(self) -> bool:
        """Predicate: was the last exchange no success?"""
        return not self.succeeded_at or self.error != ""

    def succeed(self, report: ExchangeReport) -> None:
        """An exchange is complete."""
        self.node = report.node
        self.totals.update(completed=1, **{name: int(getattr(report, name)) for name in _REPORTED})
        self.duration_s = report.duration_s
        self.schedule.succeed(time.monotonic())
        self.mark_in_sync()

    def mark_in_sync(self) -> None:
        """Both nodes hold the same, or did a moment ago."""
        self.succeeded_at = time.time()
        self.in_sync, self.error, self.cuts = True, "", 0

    def fail(self, error: str) -> None:
        """An exchange did not begin, was refused, or was cut."""
        self.totals["failures"] += 1
        self.schedule.fail(time.monotonic())
        self.in_sync, self.error = False, " ".join(error.split())[:ERROR_SIZE_MAX]


class ExchangePeers:
    """All peers, by address."""

    def __init__(self, configured: Iterable[str], interval_s: float) -> None:
        self._interval_s = interval_s
        self._peers = {address: self._new(address, configured=True) for address in configured}
        self._doubtful_from = 0.0  # monotonic clock; no doubtful peer is due before

    def _new(self, address: str, configured: bool = False) -> ExchangePeer:
        return ExchangePeer(address, Schedule(self._interval_s, time.monotonic()), configured=configured)

    def on_status(self, status: Status) -> None:
        """A node went online, at an address, or offline."""
        for peer in self._peers.values():
            peer.announcers.discard(status.node)
        if status.state != ONLINE or not status.address:
            return
        if status.address not in self._peers:
            mine = (peer for peer in self._peers.values() if peer.node == status.node)
            moved = next((peer for peer in mine if not (peer.configured or peer.online)), None)
            if moved is not None:  # so that there are not more peers than nodes
                del self._peers[moved.address]
                moved.address, moved.in_sync = status.address, False
            elif len(self._peers) >= NODES_MAX:
                self._peers = {peer.address: peer for peer in self._peers.values() if peer.configured or peer.online}
            self._peers[status.address] = moved or self._new(status.address)
        peer = self._peers[status.address]
        if peer.node not in peer.announcers:  # else that one is there, as far as is known
            peer.node = status.node
        peer.announcers.add(status.node)
        peer.schedule.failures = 0

    def drop(self, address: str) -> None:
        """No other node is at this address."""
        self._peers.pop(address, None)

    def at(self, address: str) -> ExchangePeer:
        """The peer at `address`, or a temporary one if the address is unknown."""
        return self._peers.get(address) or self._new(address)

    def all(self) -> list[ExchangePeer]:
        """Those to exchange with, each node once."""
        reached = {peer.node for peer in self._peers.values() if peer.configured}
        return [peer for peer in self._peers.values() if peer.configured or (peer.online and peer.node not in reached)]

    def of(self, node: str) -> list[ExchangePeer]:
        """Those of a node, or those that it may be if none is known; all for an empty node id."""
        if not node:
            return self.all()
        return self._of(node) or [peer for peer in self._peers.values() if not peer.node]

    def rest_doubtful(self, now: float, lasted_s: float) -> None:
        """An exchange has failed, for which the other peers have waited so many seconds."""
        self._doubtful_from = max(self._doubtful_from, now + lasted_s)

    def next_due(self, now: float) -> ExchangePeer | None:
        """Of the peers that are due the one that has waited longest; each failure in a row halves its time.  Or None.

        So peers that hang keep few others waiting, and many that do not hang keep none waiting for ever.
        """
        due = [peer for at, peer in self._idle() if at <= now]
        return max(due, key=lambda peer: peer.schedule.priority(now), default=None)

    def wait_s(self, now: float) -> float | None:
        """Seconds until the next peer is due; None without peers to wait for."""
        return min((max(0.0, at - now) for at, _ in self._idle()), default=None)

    def _idle(self) -> list[tuple[float, ExchangePeer]]:
        """The peers without an exchange under way, with the time (monotonic) when one is due."""
        peers = self.all()
        doubtful_from = 0.0 if all(peer.is_doubtful for peer in peers) else self._doubtful_from
        return [
            (max(peer.schedule.due, doubtful_from if peer.is_doubtful else 0.0), peer)
            for peer in peers
            if not peer.schedule.running
        ]

    def _of(self, node: str) -> list[ExchangePeer]:
        return [peer for peer in self._peers.values() if node == peer.node or node in peer.announcers]
