"""Presence: who is there.  Each node keeps one retained message, its status, at the broker, and leaves a last will.

A status is a JSON object: `node`, `state` (online or offline), `address` (host:port for peers), `root` (Merkle root
in hex, when it was last said), `sequence` (of its next event), `version` (of the software), `instance` (random, of
the running process), `store_id` (in hex, of its data: a new directory has another one).  Others' statuses
are believed only as far as finding peers goes: a field that is wrong is left out, a message that is no status, or one
of a node whose id cannot be one, is ignored.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from merklekv.address import is_address
from merklekv.node_id import is_node_id

ONLINE: Final = "online"
OFFLINE: Final = "offline"
STATUS_BYTES_MAX: Final = 4096
PEERS_MAX: Final = 10_000
WORD_SIZE_MAX: Final = 64
SEQUENCE_LIMIT: Final = 1 << 63


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
    store_id: str = ""

    def encode(self) -> bytes:
        """The message."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, separators=(",", ":")).encode()

    def is_same_presence(self, other: Status) -> bool:
        """Whether the same process is there, with the same data and at the same address."""
        return all(getattr(self, name) == getattr(other, name) for name in ("state", "address", "instance", "store_id"))


def _is_word(text: str) -> bool:
    return len(text) <= WORD_SIZE_MAX and text.isascii() and text.isprintable()


_WORDS: Final[dict[str, Callable[[str], object]]] = {
    "address": is_address,
    "root": re.compile("[0-9a-f]{64}").fullmatch,
    "version": _is_word,
    "instance": _is_word,
    "store_id": re.compile("[0-9a-f]{16}").fullmatch,
}


def decode_status(node: str, payload: bytes) -> Status | None:
    """The status of a node as its message says it; None when it is none."""
    if not is_node_id(node) or not 0 < len(payload) <= STATUS_BYTES_MAX:
        return None
    try:
        given = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict) or given.get("node") != node or given.get("state") not in (ONLINE, OFFLINE):
        return None
    words = {name: word for name in _WORDS if isinstance(word := given.get(name), str) and _WORDS[name](word)}
    sequence = given.get("sequence")
    if type(sequence) is not int or not 0 <= sequence < SEQUENCE_LIMIT:
        sequence = 0
    return Status(node, given["state"], sequence=sequence, **words)


@dataclass(slots=True)
class Peer:
    """Another node, as far as the broker tells."""

    status: Status
    heard: float  # wall clock, s


class Peers:
    """The other nodes.  Changed by one thread, read by any.

    `on_news` is called with the status of a node that is new, has come or gone, or has moved.
    """

    def __init__(self, own: str, instance: str, on_news: Callable[[Status], None] = lambda status: None) -> None:
        self.twins = 0  # statuses in this node's name that other processes have published
        self.has_own = False  # whether the broker has sent this process's own status back
        self._own = own
        self._instance = instance
        self._on_news = on_news
        self._peers: dict[str, Peer] = {}

    def hear(self, node: str, payload: bytes) -> None:
        """Takes in a message on a node's status topic; an empty one means that the node was forgotten."""
        status = decode_status(node, payload)
        if node == self._own:
            if status is not None and status.instance == self._instance:
                self.has_own = True
            else:
                self.twins += status is not None
            return
        known = self._peers.get(node)
        if status is not None and (known or len(self._peers) < PEERS_MAX):
            self._peers[node] = Peer(status, time.time())
            if known is None or not known.status.is_same_presence(status):
                self._on_news(status)
        elif not payload:
            self._peers.pop(node, None)

    def store_id(self, node: str) -> str:
        """The birth of a node as it last said it, empty when it said none."""
        peer = self._peers.get(node)
        return peer.status.store_id if peer else ""

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
