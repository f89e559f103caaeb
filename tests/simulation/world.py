"""The simulated world: nodes, a broker, a network and a clock, moved by steps.

A step names what happens at which node: `Step("write", ("n1", ...))` means `World.do_write("n1", ...)`.  Steps draw
nothing from chance but what their own arguments seed, and a step that makes no sense now (the node is down, say) does
nothing.  So any part of a history is a history, which is what lets a failing one shrink.

Whatever a node does, it does `as_node`: there the moments of its disk count for it, and there it may crash.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from unittest import mock

from merklekv.engine.record import (
    expiry_of,
    is_live,
    is_sound,
    make_record,
    make_version,
    op_id_of,
    store_id_of,
    timestamp_of,
    value_of,
    version_of,
)
from merklekv.engine.time_gate import DEFAULT_MAX_DRIFT_S
from merklekv.errors import InvalidArgument, Stalled
from merklekv.replication.stream.outbox import Batch

from .broker import Broker
from .disk import Crash, Disk, Image
from .node import Armed, Failure, Node
from .oracle import TRUNCATION, Covered, Holding, Oracle, show

NOON: Final = 2 * 10**18  # when it begins: a wall clock that was set
SECOND: Final = 10**9
MILLISECOND: Final = 10**6
MINUTE: Final = 60 * SECOND
DAY: Final = 86_400 * SECOND
DRIFT: Final = DEFAULT_MAX_DRIFT_S * SECOND
WINDOW: Final = 8  # batches in flight
UNTIL_DRAINED: Final = 400  # rounds in which everything published must have arrived


class Step(NamedTuple):
    """What happens next."""

    kind: str
    args: tuple[Any, ...]

    def __str__(self) -> str:
        named = bool(self.args) and isinstance(self.args[0], str)
        who, rest = (self.args[0], self.args[1:]) if named else ("", self.args)
        return f"{who:4} {self.kind:10} {' '.join(map(_word, rest))}".rstrip()


def _word(arg: Any) -> str:
    if isinstance(arg, bytes):
        return arg.decode()
    if isinstance(arg, tuple):
        return "(" + " ".join(map(_word, arg)) + ")"
    return str(arg)


def deleted(key: bytes, purged: bytes) -> bytes:
    """The tombstone that a lone node does not write, just above the record that it has purged."""
    version = make_version(timestamp_of(purged), (int.from_bytes(op_id_of(purged), "big") + 1).to_bytes(16, "big"))
    return make_record(key, version, b"", tombstone=True)


class World:
    """Everything there is.  `with World(...) as world: world.do(step)`."""

    def __init__(self, seed: str, root: Path, names: list[str], queue_max: int) -> None:
        self.now = NOON
        self.oracle = Oracle()
        self.broker = Broker(queue_max)
        for name in names:
            self.broker.connect(name)
        self.disk = Disk(self._happen)
        self.nodes = {name: self.new_node(name, root) for name in names}
        self.acting: Node | None = None
        self.trace = hashlib.sha256()
        self.crashes: list[str] = []  # where nodes have crashed
        self.gone: set[str] = set()  # nodes that have left for good
        self.healing = False
        self.expiring = False  # whether keys expire
        self._root = root
        self._entropy = random.Random(seed)
        self._stack = ExitStack()

    def new_node(self, name: str, root: Path) -> Node:
        return Node(name, root, self.disk, lambda: self.now)

    def __enter__(self) -> Self:
        entropy = self._entropy.randbytes
        self._stack.enter_context(self.disk.installed())
        for target, name in ((os, "urandom"), (random, "_urandom")):
            self._stack.enter_context(mock.patch.object(target, name, entropy))
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            if node.up:
                node.die(Image({}, {}))
        self._stack.close()

    def do(self, step: Step) -> None:
        """One step of a history."""
        getattr(self, f"do_{step.kind}")(*step.args)
        self.now += SECOND // 100
        self.note(str(step))
        self.note_horizons()
        for node in self.up():
            if self.expiring:
                self.look(node)

    def look(self, node: Node) -> None:
        """A client sees each key that has a value, until it expires by the wall clock of the node."""
        engine, expected = node.engine, dict[bytes, tuple[bytes, int | None]]()
        for key, record in node.records().items():
            expiry = expiry_of(record)
            if is_live(record) and is_sound(key, record) and (expiry is None or expiry * MILLISECOND > node.wall()):
                expected[key] = value_of(record), expiry
        for key in self.oracle.written:
            seen = engine.get_with_expiry(key)
            if seen != expected.get(key) or engine.get(key) != (seen and seen[0]) or engine.exists(key) != bool(seen):
                damaged = engine.record(key)
                if damaged is None or is_sound(key, damaged):
                    raise Failure(f"{node.name}: shows {seen} for {key!r}, not {expected.get(key)}")

    def note(self, what: str) -> None:
        """Puts something into the digest of all that has happened."""
        state = "".join(f"{node.engine.clock.newest}/{node.engine.retention.end}" for node in self.up())
        self.trace.update(f"{what} {state}\n".encode())

    def note_horizons(self) -> None:
        """Tell the oracle the GC horizon of each node, and which writers it covers."""
        for node in self.up():
            members = node.members
            stable_through = {identity.store_id: until for identity, until in members.stable_through.items()}
            lost = {
                identity.store_id: intervals
                for identity, intervals in members.lost_writes.items()
                if identity.store_id in stable_through
            }
            covered = Covered(frozenset(stable_through.items()), frozenset(lost.items()))
            # Alone it may have purged what a wrong clock has stamped beyond its horizon.
            alone = node.engine.purged_through if set(members.stable_through) == {members.identity} else 0
            self.oracle.reaches(covered, max(node.engine.gc_horizon, alone))

    def up(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.up]

    @contextmanager
    def as_node(self, node: Node) -> Iterator[None]:
        """What is done inside, this node does, and it may crash of it.  A crash ends the block, and no more."""
        before, self.acting = self.acting, node
        try:
            yield
        except Crash as crash:
            node.die(crash.image)  # only now: on its way here it has passed handlers that still close their files
        finally:
            self.acting = before

    def _happen(self, moment: str) -> None:
        node = self.acting
        if node is None or node.armed is None or node.armed.moment not in ("", moment):
            return
        node.armed.countdown -= 1
        if node.armed.countdown <= 0:
            chance, node.armed = node.armed.chance, None
            raise Crash(self._last_image(node, moment, chance))

    def _last_image(self, node: Node, moment: str, chance: random.Random | None) -> Image:
        self.crashes.append(moment)
        self.note(f"{node.name} crashes, {moment}")
        return self.disk.image(node.directory, chance)

    # -- clients -------------------------------------------------------------------------------------------------------

    def do_write(self, name: str, commands: tuple[tuple[str, bytes, bytes], ...], commits: bool) -> None:
        """A client's commands (set, delete, expire and the like), and maybe the commit behind them.

        The value of `set_for` and `expire` ends with the seconds until the key expires.
        """
        node = self.nodes[name]
        if not node.up:
            return
        with self.as_node(node):
            for command, key, value in commands:
                self._command(node, command, key, value)
            if commits:
                self.commit(node)

    def _command(self, node: Node, command: str, key: bytes, value: bytes) -> None:
        engine = node.engine
        if command == "truncate":
            self._truncate(node)
            return
        lifetime_s = b"0"
        if command in ("set_for", "expire"):
            value, lifetime_s = value.split(b" ")
        expiry = max(1, (node.wall() + int(float(lifetime_s) * SECOND)) // MILLISECOND)
        calls: dict[str, Callable[[], object]] = {
            "set": lambda: engine.set(key, value),
            "set_for": lambda: engine.set(key, value, expiry),
            "expire": lambda: engine.expire(key, expiry),
            "persist": lambda: engine.persist(key),
            "delete": lambda: engine.delete(key),
            "append": lambda: engine.append(key, value),
            "increment": lambda: engine.set(key, b"%d" % (len(engine.get(key) or b"") + 1)),
        }
        before, hidden = engine.record(key), engine.table.lookup(key)  # which may be what was purged
        with suppress(InvalidArgument):  # the value is larger than this node takes
            self.unless_stalled(node, calls[command])
        after = engine.record(key)
        if command == "delete" and before is not None and after is None:
            after = self._purged(node, key, before)
        if after is None or after == before:
            return
        if before is not None and version_of(after) <= version_of(before) and is_sound(key, before):
            raise Failure(f"{node.name}: {show(key, after)} does not beat {show(key, before)}")
        self._require_near(node, after, hidden or bytes(24))
        self._made(node, key, after)

    def _truncate(self, node: Node) -> None:
        """Deletes all keys: by a truncation version, and one by one where their records are too far ahead for one."""
        engine = node.engine
        before, newest = engine.truncation, engine.table.newest()
        records = node.records()
        try:
            self.unless_stalled(node, engine.truncate)
            after = node.records().items()
            if live := [key for key, record in after if is_live(record) and is_sound(key, record)]:
                raise Failure(f"{node.name}: {live} are still there after a truncate")
        finally:  # also what is there when the node crashes over it
            if engine.truncation != before:
                self._require_near(node, engine.truncation, min(newest, make_version(node.wall() + MINUTE, bytes(16))))
                self._made(node, TRUNCATION, engine.truncation)
            for key, record in node.records().items():
                if record != records.get(key) and is_sound(key, record):
                    below = engine.table.base.get(key) or b""  # hidden so far, and maybe a bit of its version flipped
                    self._require_near(node, record, max(records[key], below))
                    self._made(node, key, record)
            for key in records.keys() - node.records().keys():
                if records[key] > engine.truncation:
                    self._made(node, key, self._purged(node, key, records[key]))

    def _purged(self, node: Node, key: bytes, record: bytes) -> bytes:
        """A lone node has deleted this record; the tombstone that others would have made."""
        tombstone = deleted(key, record)
        if node.members.is_alone and store_id_of(record) == node.members.identity.store_id:
            self.oracle.purges(key, tombstone)
        return tombstone

    def unless_stalled(self, node: Node, call: Callable[[], object]) -> None:
        """Does it, after a checkpoint if it has to wait for one: there is no thread that makes any."""
        try:
            call()
        except Stalled:
            node.engine.checkpoint_now()
            call()

    def _made(self, node: Node, key: bytes, record: bytes) -> None:
        self.oracle.attempt(key, record)
        node.made_since.append(record)
        node.uncommitted.append((key, record))

    def _require_near(self, node: Node, made: bytes, before: bytes) -> None:
        """A write is stamped near the wall clock, unless what is there, or what others count on, is ahead of that."""
        engine, members = node.engine, node.members
        stored = timestamp_of(before), timestamp_of(engine.truncation)
        horizon = max(
            (engine.gc_horizon, *self.oracle.horizons.values())
        )  # an exchange with a node that has it may go on
        held = (horizon, members.closed, engine.clock.proposed, *stored)
        if timestamp_of(made) > max(node.wall(), *held) + 2 * SECOND:
            raise Failure(f"{node.name}: stamps {(timestamp_of(made) - node.wall()) / SECOND:.0f} s ahead")

    def commit(self, node: Node) -> None:
        """What was written is acknowledged, if it lives to that."""
        pairs = node.uncommitted[:]
        node.engine.commit()
        if node.name not in self.gone:
            self.oracle.acknowledge(pairs)
        del node.uncommitted[: len(pairs)]

    def do_checkpoint(self, name: str) -> None:
        node = self.nodes[name]
        if node.up:
            with self.as_node(node):
                node.engine.checkpoint_now()

    # -- the broker ----------------------------------------------------------------------------------------------------

    def do_connect(self, name: str) -> None:
        """The node reaches the broker."""
        node = self.nodes[name]
        if node.up and self.broker.up and not node.connected:
            node.connected = True
            self.broker.connect(name)
            self.broker.announce(name, node.presence())
            self.heartbeat(node)

    def do_disconnect(self, name: str) -> None:
        if self.nodes[name].connected:
            self.nodes[name].disconnect()

    def do_expire(self, name: str) -> None:
        """The session of a node that is not connected expires."""
        if not self.nodes[name].connected:
            self.broker.drop_session(name)

    def do_kill_broker(self) -> None:
        self.broker.kill()
        for node in self.up():
            if node.connected:
                node.disconnect()

    def do_start_broker(self) -> None:
        self.broker.up = True

    def do_lose(self, name: str, seed: int) -> None:
        """The broker drops some of what waits for a node; with seed 0, all."""
        self.broker.lose(random.Random(seed) if seed else None, name)

    def do_publish(self, name: str, batches: int, how: str) -> None:
        """A node publishes, and it is `answered`; or `flying` still; or `arrived`, when the connection breaks."""
        node = self.nodes[name]
        if not node.connected:
            return
        with self.as_node(node):
            for _ in range(batches):
                if node.outbox.in_flight >= WINDOW or (batch := node.outbox.next_batch()) is None:
                    break
                node.flying.append(batch)
                if how != "flying":
                    self._arrive(node, batch)
                if how == "answered":
                    self._answer(node, batch)
            if how == "arrived":
                node.disconnect()

    def _arrive(self, node: Node, batch: Batch) -> None:
        self.broker.publish(node.name, batch.payload)
        node.flying.remove(batch)
        node.unanswered.append(batch)

    def _answer(self, node: Node, batch: Batch) -> None:
        node.unanswered.remove(batch)
        node.outbox.acknowledge(batch)

    def do_answer(self, name: str, seed: int) -> None:
        """Some of what a node has published arrives and is answered, in any order."""
        node, chance = self.nodes[name], random.Random(seed)
        if not node.connected:
            return
        with self.as_node(node):
            for flying in chance.sample(node.flying, chance.randint(0, len(node.flying))):
                self._arrive(node, flying)
            for arrived in chance.sample(node.unanswered, chance.randint(0, len(node.unanswered))):
                self._answer(node, arrived)

    def do_save(self, name: str) -> None:
        """The outbox's cursor is saved, and the log before it goes."""
        node = self.nodes[name]
        if node.up:
            with self.as_node(node):
                node.outbox.save()

    def heartbeat(self, node: Node) -> None:
        if node.connected:
            self.broker.publish(node.name, node.heartbeat())

    def do_deliver(self, name: str, messages: int, seed: int) -> None:
        """A node takes in what the broker has for it; seed 0: in order, once each."""
        node = self.nodes[name]
        if not node.connected:
            return
        self._deliver(node, messages, random.Random(seed) if seed else None)

    def _deliver(self, node: Node, messages: int, chance: random.Random | None) -> None:
        node.acknowledging = lambda numbers: self.broker.acknowledge(node.name, numbers)
        with self.as_node(node):
            node.receive(self.broker.take(node.name, messages, chance))

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def do_start(self, name: str) -> None:
        node = self.nodes[name]
        if not node.up:
            with self.as_node(node):
                node.start()

    def do_stop(self, name: str) -> None:
        node = self.nodes[name]
        if node.up:
            with self.as_node(node):
                self.commit(node)
                node.stop()

    def do_crash(self, name: str, seed: int) -> None:
        """The power goes, or, with seed 0, only the process dies."""
        node = self.nodes[name]
        if node.up:
            node.die(self._last_image(node, "between steps", random.Random(seed) if seed else None))

    def do_arm(self, name: str, moment: str, countdown: int, seed: int) -> None:
        """The node is to crash when such a moment comes for the nth time."""
        self.nodes[name].armed = Armed(moment, countdown, random.Random(seed) if seed else None)

    def do_clock(self, name: str, skew_s: float) -> None:
        """A wall clock is set, wrongly."""
        self.nodes[name].skew = int(skew_s * SECOND)

    def do_tick(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)

    # -- the end -------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Everything that waits anywhere is published and delivered."""
        for _ in range(UNTIL_DRAINED):
            for node in self.up():
                while (batch := node.outbox.next_batch()) is not None:
                    self.broker.publish(node.name, batch.payload)
                    node.outbox.acknowledge(batch)
                if self.broker.waiting(node.name):
                    self._deliver(node, 20, None)
            if not any(self.broker.waiting(node.name) for node in self.up()):
                return
        raise Failure("messages go round and round")

    def heal(self) -> None:
        """No more faults: all nodes run, with right clocks, and reach the broker."""
        self.acting = None
        newest = max((self._newest(node) for node in self.up()), default=self.now)
        self.now = max(self.now, newest) + 4 * DAY  # so that nothing is too far ahead for any node
        self.do_start_broker()
        nodes = [node for node in self.nodes.values() if node.name not in self.gone]
        for node in nodes:
            node.armed = None
            node.skew = 0
            self.do_start(node.name)
            self.commit(node)
            self.now = max(self.now, self._newest(node) + SECOND)
        for node in nodes:
            self.do_disconnect(node.name)
            self.do_connect(node.name)

    def _newest(self, node: Node) -> int:
        """The largest time that a node has seen, ns; its clock may have come down from there."""
        return max(node.engine.clock.newest, timestamp_of(node.engine.table.newest()))

    def holding(self, node: Node) -> Holding:
        return Holding(node.records(), node.engine.truncation, node.engine.gc_horizon)
