"""Disks that change bytes in silence, and the scrub that finds it.

A bit of a record in a node's base flips.  What no other node holds is lost by that, and is not expected any more;
all else has to be what it was when a scrub of that node has been through.  It is the real one, and while it rests, its
node goes on with other things.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, Self
from unittest import mock

from merklekv.engine.base.reader import Base
from merklekv.engine.base.writer import BaseWriter
from merklekv.engine.merkle import LEAVES_PER_INNER
from merklekv.engine.record import is_sound, version_of
from merklekv.engine.verify import scrub
from merklekv.errors import MerkleKVError
from merklekv.replication import scrubber
from merklekv.replication.scrubber import Scrubber

from .cluster import LEAVES, Cluster
from .node import Failure, Node
from .oracle import show

MEANWHILE: Final = 0.1  # of the pauses of a scrub see something
RECORDS_MAX: Final = 100  # more than a base has here
SCRUBS_TO_MEND: Final = 2  # what one node has lost, another may have to mend first
CHECKPOINTS_TO_MEND: Final = 2  # of a segment with repairs, and of one that was begun when it was sealed


class _Rests:
    """In the place of the scrubber's thread: it rests after every slice, and stops with its node."""

    def __init__(self, alive: Callable[[], bool], meanwhile: Callable[[], None]) -> None:
        self._alive, self._meanwhile = alive, meanwhile

    def wait(self, timeout_s: float) -> None:
        self._meanwhile()

    @property
    def is_stopping(self) -> bool:
        return not self._alive()


class Decay(Cluster):
    """A cluster on disks that cannot be trusted."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._originals: dict[tuple[bytes, bytes], bytes] = {}  # (key, damaged record): what it was

    def __enter__(self) -> Self:
        super().__enter__()
        self._stack.enter_context(mock.patch.object(scrub, "INNER_NODES", LEAVES // LEAVES_PER_INNER))
        self._stack.enter_context(mock.patch.object(scrubber, "SLICE_S", 0.0))
        return self

    def do_rot(self, name: str, seed: int) -> None:
        """A bit of a record in the base flips."""
        node, chance = self.nodes[name], random.Random(seed)
        if not node.up:
            return
        layers, path = node.engine.table, node.engine.directory.base
        stored = layers.base.records_from(b"", None, RECORDS_MAX, 1 << 30)
        sound = [(key, record) for key, record in stored if is_sound(key, record)]
        if not sound:
            return
        key, record = chance.choice(sound)
        at = chance.randrange(len(record))
        damaged = record[:at] + bytes((record[at] ^ 1 << chance.randrange(8),)) + record[at + 1 :]
        layers.base.close()  # it cannot be open twice
        with BaseWriter(path) as writer, writer._env.begin(write=True) as txn:
            txn.put(key, damaged, db=writer._records)
        layers.base = Base(path)
        self._originals[key, damaged] = record
        self._reconsider()

    def do_scrub(self, name: str, seed: int) -> None:
        """A node reads all that it holds, and asks those that it reaches for what is damaged."""
        node = self.nodes[name]
        if node.up:
            self._scrub(node, random.Random(seed) if seed else None)

    def _scrub(self, node: Node, chance: random.Random | None) -> Scrubber:
        """One pass."""
        life, damaged, made_before = node.lives, self._unsound(node), len(node.made_since)
        one = Scrubber(
            node.engine,
            lambda: [other.name for other in self._reached(node)],
            lambda name, key: self._fetch(node, name, key, chance),
            node._fatal,
            interval_s=0.0,
            share_percent=100,
        )
        one.worker = _Rests(  # type: ignore[assignment]
            lambda: node.up and node.lives == life, lambda: self._between_slices(node, chance)
        )
        with self.as_node(node):
            one.scrub()
            for key, record in damaged.items() if node.up and node.lives == life else ():
                now = node.engine.record(key)
                is_older = now is not None and now < version_of(self._originals.get((key, record), record))
                is_new = now in node.made_since[made_before:]  # a client cannot beat a version that no node can read
                if now is not None and is_older and not is_new and is_sound(key, now):
                    raise Failure(f"{node.name}: {show(key, now)} was put in the place of what was newer")
        return one

    def _between_slices(self, node: Node, chance: random.Random | None) -> None:
        if chance is not None and chance.random() < MEANWHILE:
            self._write_meanwhile(node.name, chance)

    def _reached(self, node: Node) -> list[Node]:
        group = self.groups.get(node.name, 0)
        return [other for other in self.up() if other is not node and self.groups.get(other.name, 0) == group]

    def _fetch(self, node: Node, name: str, key: bytes, chance: random.Random | None) -> bytes | None:
        """What another node has; both go on with their own affairs until it answers."""
        if chance is not None and chance.random() < MEANWHILE:
            self.do_checkpoint(node.name)
        if chance is not None and chance.random() < MEANWHILE:
            self._write_meanwhile(name, chance)
        if not self.nodes[name].up:
            raise MerkleKVError(f"{name} is away")
        return self.nodes[name].engine.record(key)

    def _unsound(self, node: Node) -> dict[bytes, bytes]:
        """Also what seems to be below the truncation version, which no client sees."""
        layers = node.engine.table
        over = layers.overlay()
        stored = layers.base.records_from(b"", None, RECORDS_MAX, 1 << 30)
        return {key: record for key, record in stored if key not in over and not is_sound(key, record)}

    # -- the end -------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        super().heal()
        if self._originals:
            self.mend()

    def mend(self) -> None:
        """Every node is scrubbed.  What no node has any more is written over by hand."""
        nodes = self.up()
        for node in nodes * SCRUBS_TO_MEND:
            self._sweep(node)
        for node in nodes:
            self._sweep(node)
            for key, damaged in self._unsound(node).items():
                if fit := self._fit(node, key, damaged):
                    raise Failure(f"{node.name}: {show(key, damaged)} is not mended, although {fit} has it")
                self.do_write(node.name, (("set", key, b"anew"),), True)
            if self._sweep(node):
                raise Failure(f"{node.name}: damage is left after the scrub")

    def _fit(self, node: Node, key: bytes, damaged: bytes) -> str:
        """Who has what a damaged record was, or something newer."""
        before = version_of(self._originals.get((key, damaged), damaged))
        for other in self._reached(node):
            there = other.engine.record(key)
            if there is not None and is_sound(key, there) and there >= before:
                return other.name
        return ""

    def _sweep(self, node: Node) -> int:
        """A scrub, and the checkpoint that it asks for; what it could not put right.  All else must be right then."""
        layers = node.engine.table
        swept = layers.base.truncation == layers.truncation  # until then it does not look at leaves
        left = self._scrub(node, None).left
        for _ in range(CHECKPOINTS_TO_MEND):
            node.engine.checkpoint_now()
        if swept and not left and (found := self._scrub(node, None).damaged):
            raise Failure(f"{node.name}: a scrub finds {found} damages behind one that has put all right")
        return left
