"""One simulated node: the real engine, outbox and inbox, without threads and sockets around them.

A node is up or down.  It goes down cleanly (`stop`), or by a crash, and then its directory is laid down anew as the
disk says; every life of a node has a directory of its own, so nothing that a dead one still holds can reach the next.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from merklekv.engine.engine import Engine
from merklekv.engine.log.reader import LogPosition
from merklekv.engine.options import DEFAULT_MAX_VALUE_SIZE
from merklekv.errors import MerkleKVError, Stalled
from merklekv.metrics import ReplicationCounters
from merklekv.replication.cluster.members import Identity
from merklekv.replication.cluster.membership import Membership
from merklekv.replication.cluster.presence import ONLINE, Presence, Status
from merklekv.replication.cluster.storage import load_members
from merklekv.replication.stream.event import encode_message
from merklekv.replication.stream.inbox import Delivery, Inbox
from merklekv.replication.stream.outbox import Batch, Outbox
from merklekv.replication.sync.local_endpoint import raise_gc_horizon
from merklekv.replication.sync.responder import Responder

from .broker import Message
from .disk import Disk, Image

MEMTABLE_SIZE: Final = 64 << 10  # the smallest that the engine takes; it is made smaller below
SMALL_MEMTABLE: Final = 3000
CLUSTER: Final = "simulation"


class Failure(Exception):
    """Something that must not be."""


@dataclass
class Armed:
    """Where a node is to crash."""

    moment: str  # its name, or empty: any
    countdown: int
    chance: random.Random | None  # of what the disk keeps; None: all of it, for only the process dies


class _Surroundings:
    """What the inbox of a node asks and tells, see `StreamContext`."""

    def __init__(self, node: Node) -> None:
        membership = node.membership
        self.is_removed = membership.is_removed
        self.applied_through = membership.applied_through
        self.late = membership.late
        self.on_events_from = membership.on_events_from
        self.on_status = membership.on_status
        self.on_storage_failed = node._fatal

    def on_gap(self, node: str, reason: str) -> None:
        """Events were missed: the simulated exchanges come without a reason."""
        if reason == "defect":
            raise Failure(f"{node}: the inbox could not take in a message")


class Node:
    """A node's name, clock, directory and, while it is up, its parts."""

    def __init__(self, name: str, root: Path, disk: Disk, now: Callable[[], int]) -> None:
        self.name = name
        self.skew = 0  # ns that its wall clock is ahead
        self.max_value_size = DEFAULT_MAX_VALUE_SIZE  # of its next life
        self.armed: Armed | None = None
        self.connected = False
        self.flying: list[Batch] = []  # published; the broker has not got them yet
        self.unanswered: list[Batch] = []  # the broker has them, and we do not know
        self.uncommitted: list[tuple[bytes, bytes]] = []  # (key, record) written since the last commit
        self.acknowledging: Callable[[list[int]], None] = lambda numbers: None
        self._root, self._disk, self._now = root, disk, now
        self.lives = 0
        self.directory = root / name
        self.up = False
        self.image: Image | None = None  # what the next life begins with, after a crash or a restored backup
        self.identity: Identity | None = None  # as a member, once it has started
        self.alone = False  # it has not been set up to meet others yet: no outbox
        self.joined = False  # whether it has met the cluster, in a whole exchange
        self.relapsed = False  # it was restored from a backup, and has not met the cluster since
        self.made_since: list[bytes] = []  # records that it has made since it was restored
        self.backups: list[tuple[bool, list[bytes], Image]] = []  # `joined`, `made_since`

    def wall(self) -> int:
        return self._now() + self.skew

    def start(self) -> None:
        """Opens the directory as the last life has left it."""
        self.lives += 1
        if self.image is not None:
            self.directory = self._root / f"{self.name}.{self.lives}"
            self.image.lay_down(self.directory)
        self._disk.adopt(self.directory, self.image)
        self.engine = Engine(
            self.directory,
            checkpoint="manual",
            memtable_size=MEMTABLE_SIZE,
            max_value_size=self.max_value_size,
            wall_clock=self.wall,
        )
        self.engine.checkpointer.memtable_size = SMALL_MEMTABLE
        self.engine.wait_for_room = self._make_room
        self.members = load_members(self.engine, self.name)
        self.identity = self.members.identity
        counters = ReplicationCounters()
        self._counters = counters
        if not self.alone:
            self.publish()
        self.membership = Membership(self.engine, self.members)
        self.responder = Responder(
            self.engine, self.members, CLUSTER, lambda node: False, lambda node: False, lambda peer: None
        )
        self.others = Presence(self.name, f"{self.name}.{self.lives}", self.membership.on_status)
        around = _Surroundings(self)
        self.inbox = Inbox(self.engine, self.name, self.others, around, counters, around.on_gap, self._acknowledge)
        self.up = True

    def publish(self) -> None:
        """From now on it publishes what it writes."""
        self.alone = False
        self.outbox = Outbox(self.engine, self.name, f"{CLUSTER}/{self.name}/events", self._counters, self._dropped)

    def stop(self) -> None:
        """Ends in good order."""
        if not self.alone:
            self.outbox.save()
        self.engine.close()
        self.image = self._disk.image(self.directory, None)
        self._let_go()

    def die(self, image: Image) -> None:
        """Ends at once; `image` is what is left."""
        self.image = image
        engine = self.engine if self.up else None
        if engine is not None and not engine.is_closed:  # else it crashed while it let these go by itself
            engine.is_closed = True
            engine.retention.close()
            with suppress(MerkleKVError):
                engine.table.base.close()
            engine.directory.release()
        self._let_go()

    def _let_go(self) -> None:
        self._disk.forget(self.directory)
        self.up = self.connected = False
        self.armed = None
        self.flying, self.unanswered, self.uncommitted = [], [], []

    # -- events --------------------------------------------------------------------------------------------------------

    def heartbeat(self) -> bytes:
        """What says to the others how far they should be."""
        return encode_message(self.name, self.outbox.next_sequence, [], 0)

    def disconnect(self) -> None:
        """The connection is gone, and with it what is known of publishes in flight."""
        self.connected = False
        self.flying, self.unanswered = [], []
        self.outbox.rewind()

    def presence(self) -> bytes:
        """What it announces of itself."""
        assert self.identity is not None
        return Status(self.name, ONLINE, f"{self.name}:1", store_id=self.identity.store_id.hex()).encode()

    def receive(self, messages: list[Message]) -> None:
        """Takes in what the broker sends; `acknowledging` is called as it is dealt with."""
        for message in messages:
            if message.is_presence:
                self.others.on_status(message.source, message.payload)
        events = [Delivery(one.source, one.payload, one.number) for one in messages if not one.is_presence]
        self.inbox.process(events)
        self._acknowledge([one.number for one in messages if one.is_presence])

    def _acknowledge(self, tokens: list[Any]) -> None:
        self.acknowledging(tokens)

    def _dropped(self, reason: str) -> None:
        raise Failure(f"{self.name}: the outbox drops an event ({reason}), although there is room for all")

    def _make_room(self, timeout_s: float) -> bool:
        self.engine.checkpoint_now()
        return True

    def _fatal(self, error: BaseException) -> None:
        raise Failure(f"{self.name}: {error}") from error

    def collect(self) -> None:
        """Raise the GC horizon as far as the members' reports allow, and collect, as anti-entropy does by itself."""
        engine = self.engine
        raise_gc_horizon(engine, self.members)
        for collect in (engine.collect_tombstones, engine.collect_expired):
            more = True
            while more:
                try:
                    more = collect()
                except Stalled:
                    engine.checkpoint_now()
        engine.commit()

    # -- what it holds -------------------------------------------------------------------------------------------------

    def records(self) -> dict[bytes, bytes]:
        """Every record, dead ones too."""
        found: dict[bytes, bytes] = {}
        after: bytes | None = b""
        while after is not None:
            pairs, after = self.engine.records_page(b"", after, 7)
            found.update(pairs)
        return found

    @property
    def cursor(self) -> LogPosition:
        return self.outbox.cursor
