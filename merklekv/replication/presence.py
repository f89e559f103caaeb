"""Presence: who is there.  Each node keeps one retained message, its status, at the broker, and leaves a last will.

A status is a JSON object: `node`, `state` (online or offline), `address` (host:port for peers), `root` (Merkle root
in hex, when it was last said), `sequence` (of its next event), `version` (of the software), `instance` (random, of
the running process).  Others' statuses are believed only as far as finding peers goes: a field that is wrong is left
out, a message that is no status is ignored.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Final

ONLINE: Final = "online"
OFFLINE: Final = "offline"
STATUS_BYTES_MAX: Final = 4096
PEERS_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Status:
    """What a node says of itself."""

    node: str
    state: str
    address: str = ""
    root: str = ""
    sequence: int = 0
    version: str = ""
    instance: str = ""

    def encode(self) -> bytes:
        """The message."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, separators=(",", ":")).encode()


def decode_status(node: str, payload: bytes) -> Status | None:
    """The status of a node as its message says it; None when it is none."""
    if not 0 < len(payload) <= STATUS_BYTES_MAX:
        return None
    try:
        given = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict) or given.get("node") != node or given.get("state") not in (ONLINE, OFFLINE):
        return None
    names = ("address", "root", "version", "instance")
    words = {name: given[name] for name in names if isinstance(given.get(name), str)}
    sequence = given.get("sequence")
    return Status(node, given["state"], sequence=sequence if type(sequence) is int else 0, **words)


@dataclass(slots=True)
class Peer:
    """Another node, as far as the broker tells."""

    status: Status
    heard: float  # wall clock, s


class Peers:
    """The other nodes.  Changed by one thread, read by any."""

    def __init__(self, own: str, instance: str) -> None:
        self.twins = 0  # statuses in this node's name that other processes have published
        self._own = own
        self._instance = instance
        self._peers: dict[str, Peer] = {}

    def hear(self, node: str, payload: bytes) -> None:
        """Takes in a message on a node's status topic; an empty one means that the node was forgotten."""
        status = decode_status(node, payload)
        if node == self._own:
            self.twins += status is not None and status.instance != self._instance
            return
        if status is not None and (node in self._peers or len(self._peers) < PEERS_MAX):
            self._peers[node] = Peer(status, time.time())
        elif not payload:
            self._peers.pop(node, None)

    def all(self) -> dict[str, Peer]:
        """Everyone who was heard of."""
        return dict(self._peers)

    def online(self) -> set[str]:
        """The nodes that are there, as far as was heard."""
        return {node for node, peer in self._peers.items() if peer.status.state == ONLINE}

    @property
    def online_count(self) -> int:
        """Nodes that are there, this one not counted."""
        return sum(peer.status.state == ONLINE for peer in list(self._peers.values()))
