"""The nodes of a cluster, watched while someone looks.

    view = ClusterView("127.0.0.1:7379")
    for line in view.events(): ...          # server-sent events, until the generator is closed

The first viewer starts a watch for each node, and the last one ends them. The nodes are those given and the members
that these know, NODES_MAX in all.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Final

from merklekv.address import is_address
from merklekv.pause import pause
from merklekv.web.picture import Json, picture
from merklekv.web.watch import NodeWatch, Row

NODES_MAX: Final = 16
TICK_S: Final = 0.5  # between two pictures
FIRST_S: Final = 1.0  # the first one waits so long for every node's first answer


class ClusterView:
    """A node and its cluster, seen from outside. Every method may be called from any thread."""

    def __init__(
        self, *addresses: str, here: str = "", amend: Callable[[Json], Json] = lambda picture: picture
    ) -> None:
        """`addresses`: nodes that are always shown. `here`: that of the node that serves the page, if one does.

        `amend` gives each picture what only the program that serves the page knows.
        """
        self._fixed = addresses
        self._amend = amend
        self._here = here
        self._changed = threading.Condition()
        self._viewers = 0
        self._watches: dict[str, NodeWatch] = {}
        self._names: dict[str, str] = {}  # ids of members by address
        self._not_shown = 0
        self._picture = b""
        self._drawn_at = 0.0

    def events(self) -> Generator[bytes, None, None]:
        """A picture now and at each tick, as server-sent events. Close it, or the nodes are watched for ever."""
        self._enter()
        try:
            with self._changed:
                self._changed.wait_for(self._has_heard_of_all, FIRST_S)
            while True:
                yield b"data: %b\n\n" % self._draw()
                pause(TICK_S)
        finally:
            self._leave()

    def _enter(self) -> None:
        with self._changed:
            self._viewers += 1
            if self._viewers == 1:
                self._drawn_at = 0.0
                self._watch(self._fixed)

    def _leave(self) -> None:
        with self._changed:
            self._viewers -= 1
            if not self._viewers:
                self._watch(())
                self._names.clear()

    def _watch(self, addresses: Sequence[str]) -> None:
        """Watches these nodes and no others."""
        for address in self._watches.keys() - set(addresses):
            self._watches.pop(address).stop()
        for address in addresses:
            if address not in self._watches:
                self._watches[address] = NodeWatch(address, self._on_news)
            self._watches[address].start()

    def _has_heard_of_all(self) -> bool:
        return all(watch.has_tried for watch in self._watches.values())

    def _on_news(self) -> None:
        with self._changed:
            if self._viewers:
                self._follow_members()
            self._changed.notify_all()

    def _follow_members(self) -> None:
        """Watches the members that the given nodes know. While none of them answers, those known last stay."""
        given = [self._watches[address] for address in self._fixed]
        rows = [row for watch in given if watch.is_up for row in watch.members]
        if not rows:
            return
        sights = [watch.sight for watch in given]
        own = {sight.figures["node_id"] for sight in sights if sight is not None}
        found: dict[str, str] = {}  # addresses by id
        for row in sorted(rows, key=_silence):
            if row["state"] == "member" and row["node"] not in own and is_address(row["address"]):
                found.setdefault(row["node"], row["address"])
        self._names = {address: node for node, address in found.items()}
        others = sorted(set(found.values()) - set(self._fixed))
        room = max(0, NODES_MAX - len(self._fixed))
        self._not_shown = len(others[room:])
        self._watch([*self._fixed, *others[:room]])

    def _draw(self) -> bytes:
        """The present picture, as JSON; one for all viewers."""
        with self._changed:
            now = time.monotonic()
            if now - self._drawn_at > TICK_S / 2:
                self._drawn_at = now
                self._watch(list(self._watches))
                self._picture = json.dumps(self._look(), separators=(",", ":")).encode()
            return self._picture

    def _look(self) -> Json:
        watches = sorted(self._watches.values(), key=lambda watch: self._order(watch.address))
        return self._amend(picture(watches, self._names, self._not_shown, self._here))

    def _order(self, address: str) -> tuple[int, str]:
        """The given nodes first, in their order, then members by id."""
        if address in self._fixed:
            return self._fixed.index(address), ""
        return len(self._fixed), self._names.get(address, address)


def _silence(row: Row) -> int:
    """How long ago a member was reached, in milliseconds: a node id may have rows of older data directories."""
    contact_ms = row.get("contact_ms")
    return contact_ms if isinstance(contact_ms, int) and contact_ms >= 0 else sys.maxsize
