"""Presence: which nodes are there.  Each node keeps one retained message, its status, at the broker, and a last will.

A status is a JSON object: `node`, `state` (online or offline), `address` (host:port for peers), `root` (Merkle root in
hex, as last known), `sequence` (of its next event), `version` (of the software), `epoch` (hex, of the running process),
`store_id` (hex, of its data directory) and `listens` (whether its clients have subscribed to anything).  It serves to
find peers, and listeners, only, so a wrong field is left out, and a message that is no status, or whose node id is
invalid, is ignored.  An empty message removes a status.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from merklekv.address import is_address
from merklekv.node_id import is_node_id

ONLINE: Final = "online"
OFFLINE: Final = "offline"
STATUS_BYTES_MAX: Final = 4096
NODES_MAX: Final = 10_000
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
    epoch: str = ""
    store_id: str = ""
    listens: bool = False

    def encode(self) -> bytes:
        """The message."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, separators=(",", ":")).encode()

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """What tells apart two processes, their data, addresses and states."""
        return self.state, self.address, self.epoch, self.store_id


def _is_word(text: str) -> bool:
    return len(text) <= WORD_SIZE_MAX and text.isascii() and text.isprintable()


_WORDS: Final[dict[str, Callable[[str], object]]] = {
    "address": is_address,
    "root": re.compile("[0-9a-f]{64}").fullmatch,
    "version": _is_word,
    "epoch": _is_word,
    "store_id": re.compile("[0-9a-f]{16}").fullmatch,
}


def decode_status(node: str, payload: bytes) -> Status | None:
    """The status in a message on the topic of a node, None if it is none."""
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
    return Status(node, given["state"], sequence=sequence, listens=given.get("listens") is True, **words)


class Presence:
    """The other nodes.  One thread changes it, any may read it.

    `on_change` gets the status of a node that is new, came, went or was removed, or moved.

    Each node says its status again and again.  So of more than NODES_MAX the one goes that has been silent for longest,
    and before all others one of which only a status is known that the broker has retained: false ones that it retains
    do not keep a node out, nor push one out.
    """

    def __init__(self, own: str, epoch: str, on_change: Callable[[Status], None]) -> None:
        self.duplicates = 0  # statuses under this node's id that other processes have published
        self.has_own = False  # whether the broker has sent back the status of this process
        self._own = own
        self._epoch = epoch
        self._on_change = on_change
        self.nodes: dict[str, Status] = {}  # of the other nodes, the last ones
        # The order is apart, for the thread that changes it: others may copy `nodes` meanwhile.
        self._unheard: dict[str, None] = {}  # nodes with a retained status only, in the order in which these came
        self._heard: dict[str, None] = {}  # the others, in the order of their last ones

    def on_status(self, node: str, payload: bytes, *, retained: bool = False) -> None:
        """A message came on a node's status topic; an empty one says that the node was removed.

        `retained`: it is from before this node has subscribed.
        """
        status = decode_status(node, payload)
        if node == self._own:
            if status is not None and status.epoch == self._epoch:
                self.has_own = True
            else:
                self.duplicates += status is not None
            return
        known = self.nodes.get(node)
        if status is not None:
            if known is None and len(self.nodes) >= NODES_MAX:
                self._forget(next(iter(self._unheard or self._heard)))
            self.nodes[node] = status
            if not retained:
                self._unheard.pop(node, None)
                self._heard.pop(node, None)
                self._heard[node] = None
            elif node not in self._heard:
                self._unheard[node] = None
            if known is None or known.identity != status.identity:
                self._on_change(status)
        elif known and not payload:
            self._forget(node)

    def _forget(self, node: str) -> None:
        """A node is known no longer."""
        known = self.nodes.pop(node)
        self._unheard.pop(node, None)
        self._heard.pop(node, None)
        if known.state == ONLINE:
            self._on_change(replace(known, state=OFFLINE))

    def store_id(self, node: str) -> str:
        """The store id of a node as it last said it, or empty."""
        known = self.nodes.get(node)
        return known.store_id if known else ""

    @property
    def listeners(self) -> int:
        """How many of the nodes that are online listen to what is published, without this one."""
        return sum(known.listens and known.state == ONLINE for known in list(self.nodes.values()))

    def is_online(self, node: str) -> bool:
        """Predicate: is this other node online?"""
        known = self.nodes.get(node)
        return known is not None and known.state == ONLINE

    def online(self) -> set[str]:
        """The nodes that are online, without this one."""
        return {node for node, known in list(self.nodes.items()) if known.state == ONLINE}
