"""Whom this node exchanges with, and how it went: one partner for each address.

Addresses come from the configuration and, while a node is online, from its presence.  Which node is behind a configured
address is known once there was an exchange; a node that is reached at a configured address is not reached a second time
at the one it announces.

Not locked.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from merklekv.replication.cluster.presence import ONLINE, Status

if TYPE_CHECKING:
    from merklekv.replication.sync.initiator import ExchangeReport

ERROR_SIZE_MAX: Final = 200


@dataclass(slots=True)
class Partner:
    """Another node as an exchange sees it.  Counters are of exchanges that this node began, since the start."""

    address: str  # host:port
    node: str = ""  # empty: not known yet
    configured: bool = False
    online: bool = False  # as its presence says
    exchanges: int = 0  # that came to their end
    equal: int = 0  # of these, with nothing to do
    failures: int = 0
    rounds: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    keys_sent: int = 0
    keys_received: int = 0
    discarded: int = 0
    duration_s: float = 0.0  # of the last one that came to its end
    succeeded_at: float = 0.0  # wall clock, s; 0: never
    in_sync: bool = False  # as of the last exchange, with no reason since to think otherwise
    error: str = ""  # of the last one, if it failed

    def succeed(self, report: ExchangeReport) -> None:
        """An exchange came to its end."""
        self.node = report.node
        self.exchanges += 1
        self.equal += report.equal
        self.rounds += report.rounds
        self.bytes_sent += report.bytes_sent
        self.bytes_received += report.bytes_received
        self.keys_sent += report.keys_sent
        self.keys_received += report.keys_received
        self.discarded += report.discarded
        self.duration_s = report.duration_s
        self.agree()

    def agree(self) -> None:
        """Both nodes hold the same, or did a moment ago."""
        self.succeeded_at = time.time()
        self.in_sync, self.error = True, ""

    def fail(self, error: str) -> None:
        """An exchange could not be begun, was refused, or was cut."""
        self.failures += 1
        self.in_sync, self.error = False, " ".join(error.split())[:ERROR_SIZE_MAX]

    def shown(self) -> str:
        """The figures, for STATS."""
        words: dict[str, object] = {
            "address": self.address,
            "in_sync": "yes" if self.in_sync else "no",
            "last_success_ms": f"{1000 * (time.time() - self.succeeded_at):.0f}" if self.succeeded_at else "never",
            "exchanges": self.exchanges,
            "equal": self.equal,
            "failures": self.failures,
            "rounds": self.rounds,
            "bytes_sent": self.bytes_sent,
            "bytes_received": self.bytes_received,
            "keys_sent": self.keys_sent,
            "keys_received": self.keys_received,
            "discarded": self.discarded,
            "duration_ms": f"{1000 * self.duration_s:.0f}",
        }
        text = ",".join(f"{name}={value}" for name, value in words.items())
        return f"{text},error={self.error}" if self.error else text


class Partners:
    """All partners, by address."""

    def __init__(self, configured: Iterable[str]) -> None:
        self._partners = {address: Partner(address, configured=True) for address in configured}

    def hear(self, status: Status) -> None:
        """A node has said that it is there, and where, or that it goes."""
        known = self._of(status.node)
        for partner in known:
            partner.online = False
        if status.state != ONLINE or not status.address:
            return
        if status.address not in self._partners:
            moved = next((partner for partner in known if not partner.configured), None)
            if moved is not None:  # so there are never more partners than nodes
                del self._partners[moved.address]
                moved.address, moved.in_sync = status.address, False
            self._partners[status.address] = moved or Partner(status.address)
        partner = self._partners[status.address]
        partner.node, partner.online = status.node, True

    def drop(self, address: str) -> None:
        """Nobody else is there."""
        self._partners.pop(address, None)

    def at(self, address: str) -> Partner:
        """The partner at an address; one that is not kept when it is nobody's."""
        return self._partners.get(address) or Partner(address)

    def addresses(self) -> list[str]:
        """Where to exchange, each node once."""
        reached = {partner.node for partner in self._partners.values() if partner.configured}
        return [
            partner.address
            for partner in self._partners.values()
            if partner.configured or (partner.online and partner.node not in reached)
        ]

    def addresses_of(self, node: str) -> list[str]:
        """Where a node is reached; wherever it may be when that is not known, and everywhere for an empty node id."""
        if not node:
            return self.addresses()
        found = [partner.address for partner in self._of(node)]
        return found or [partner.address for partner in self._partners.values() if not partner.node]

    def totals(self) -> dict[str, int]:
        """The counters of all, those that are not exchanged with any more included."""
        names = (
            "exchanges", "equal", "failures", "rounds", "bytes_sent", "bytes_received", "keys_sent", "keys_received",
            "discarded",
        )  # fmt: skip
        return {name: sum(getattr(partner, name) for partner in self._partners.values()) for name in names}

    def all(self) -> list[Partner]:
        """The partners that are exchanged with."""
        return [self._partners[address] for address in self.addresses()]

    def _of(self, node: str) -> list[Partner]:
        return [partner for partner in self._partners.values() if partner.node == node]
