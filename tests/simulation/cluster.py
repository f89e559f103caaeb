"""The part of the world in which everything may be lost: exchanges, members that come and go, restored backups.

Here is the wire between initiator and responder: requests and answers go one by one, other things happen in between and
in the pauses of the responder, and an exchange can be cut before or behind any of them.  A request that was cut off may
still arrive late.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self
from unittest import mock

from merklekv.engine.engine import Engine
from merklekv.engine.format import OP_SET
from merklekv.engine.options import DEFAULT_MAX_VALUE_SIZE
from merklekv.engine.record import Pair, is_live, is_tombstone, store_id_of, timestamp_of
from merklekv.errors import MerkleKVError
from merklekv.replication.cluster.lost_writes import LostWriteInterval
from merklekv.replication.cluster.members import Identity, MemberRow, Members, MemberTable, SelfReport
from merklekv.replication.cluster.refused import TOO_LARGE, RefusedRecord
from merklekv.replication.stream.inbox import Delivery
from merklekv.replication.sync import initiator, local_endpoint, responder
from merklekv.replication.sync.initiator import ExchangeReport, Initiator
from merklekv.replication.sync.local_endpoint import LocalEndpoint
from merklekv.replication.sync.messages import Hello, encode

from .disk import Image
from .lies import event, lie, table_in
from .node import CLUSTER, MEMTABLE_SIZE, Failure, Node
from .oracle import TRUNCATION, Holding, sound
from .world import DAY, DRIFT, MINUTE, SECOND, World

LEAVES: Final = 512  # keys are in these, so that comparing all leaves is soon done
SMALL_BATCHES: Final = (  # so that small exchanges have as many parts as large ones
    (initiator, "BATCH_RECORDS", 2),
    (initiator, "BATCH_BYTES", 500),
    (local_endpoint, "BATCH_RECORDS", 2),
    (local_endpoint, "BATCH_BYTES", 500),
    (initiator, "BATCH_PRINTS", 3),
    (initiator, "PAGES_RATIO", 3),
    (responder, "BATCH_RECORDS", 3),
    (responder, "BATCH_BYTES", 1000),
    (responder, "INLINE_BYTES", 60),
    (responder, "SLICE_MERGES", 1),
    (responder, "SLICE_READS", 2),
)
MEANWHILE: Final = 0.05  # of the pauses in an exchange see a write
COLLECTS: Final = 0.5  # of the answers are followed by the collection, which may also come later
REQUESTS_MAX: Final = 5000
LIES_MAX: Final = 30  # requests of an exchange with a liar


def forged_hello(node: Node, chance: random.Random) -> bytes:
    """A hello with one time that is too far ahead, about the node itself or about the initiator.

    Not that of a truncation: without it the exchange would go on.
    """
    far = chance.choice((node.wall() + DRIFT + SECOND, node.wall() + 365 * 86_400 * SECOND, (1 << 63) - 1))
    who = Identity("forger", b"forgerrr")
    told: dict[str, Any] = {"report": SelfReport(0, 0, b"x" * 8), "max_gc_horizon": 0}
    gc_horizon = 0
    about = chance.choice((who, node.members.identity))
    what = chance.randrange(1, 10)
    if what == 1:
        gc_horizon = far
    elif what == 2:
        told["report"] = SelfReport(far, 0, b"x" * 8)
    elif what == 3:
        told["report"] = SelfReport(0, far, b"x" * 8)
    elif what == 4:
        told["max_gc_horizon"] = far
    elif what == 5:
        told["lost_writes"] = {about: frozenset({LostWriteInterval(*chance.choice(((0, far), (far, far))), b"run1")})}
    elif what == 6:
        told[chance.choice(("stable_through", "redeleted"))] = {about: far}
    elif what == 7:
        told["rows"] = {node.members.identity: MemberRow(0, far)}
    elif what == 8:
        told["rows"] = {node.members.identity: MemberRow(0, 0, SelfReport(*chance.choice(((far, 0), (0, far)))))}
    else:
        told["rows"] = {node.members.identity: MemberRow(far, 0)}
    hello = Hello(CLUSTER, b"f" * 4, bytes(24), gc_horizon, b"", 1, 1000, MemberTable(who, **told))
    return encode("hello", hello=hello.plain())


@dataclass
class Talk:
    """An exchange under way."""

    initiator: str
    responder: str
    lives: tuple[int, int]
    steps: Generator[bytes, bytes, ExchangeReport]
    request: bytes


class Cluster(World):
    """A world with exchanges."""

    talks: dict[str, Talk]  # by who has begun them
    late: dict[str, list[bytes]]  # requests on their way to a node
    groups: dict[str, int]  # which part of the network a node is in; the broker is in part 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.talks, self.late, self.groups = {}, {}, {}
        self.dumps: list[tuple[Identity | None, list[Pair]]] = []
        self._looks = 0
        self.small_batches = self._entropy.random() < 0.7
        self.exchanged = 0

    def __enter__(self) -> Self:
        super().__enter__()
        for module, name, value in ((initiator, "BUCKETS", LEAVES), *(SMALL_BATCHES if self.small_batches else ())):
            self._stack.enter_context(mock.patch.object(module, name, value))
        merge = LocalEndpoint.merge

        def recorded(endpoint: LocalEndpoint, pairs: list[Pair], *rest: Any) -> tuple[int, list[RefusedRecord]]:
            result = merge(endpoint, pairs, *rest)
            for key, _ in pairs:
                record = endpoint.engine.record(key)
                own = record is not None and store_id_of(record) == endpoint.members.identity.store_id
                if record is not None and own and is_tombstone(record):
                    self.oracle.attempt(key, record)  # made anew, it hides what was written since, as any delete does
            return result

        self._stack.enter_context(mock.patch.object(LocalEndpoint, "merge", recorded))
        redelete = LocalEndpoint.redelete

        def watched(endpoint: LocalEndpoint, pairs: list[Pair], *rest: Any) -> tuple[int, list[RefusedRecord]]:
            result = redelete(endpoint, pairs, *rest)
            for key, version in pairs:
                if (record := endpoint.engine.record(key)) is not None and is_tombstone(record):
                    self.oracle.hides(key, version, record)
            return result

        self._stack.enter_context(mock.patch.object(LocalEndpoint, "redelete", watched))
        merge_refused = Members.merge_refused

        def noted(members: Members, peer: MemberTable, refused: list[RefusedRecord], gc_horizon: int) -> None:
            for one in refused:
                if one.reason == TOO_LARGE:
                    self.oracle.refuses(one.key, one.version)
            merge_refused(members, peer, refused, gc_horizon)

        self._stack.enter_context(mock.patch.object(Members, "merge_refused", noted))
        return self

    # -- exchanges -----------------------------------------------------------------------------------------------------

    def do_exchange(self, initiator: str, responder: str, requests: int, how: str, seed: int) -> None:
        """Goes on with an exchange, or begins one: so many requests, and then it rests, or is cut.

        `how`: `rests`; `cut`, before the next request arrives; `late`, and that request arrives some day; `unanswered`,
        behind its arrival.
        """
        chance = random.Random(seed)
        talk = self._talk(initiator, responder, full=seed % 40 == 0)
        for _ in range(requests):
            if talk is None or (talk := self._advance(talk, chance)) is None:
                return
        if talk is None or how == "rests":
            return
        if how == "late":
            self.late.setdefault(talk.responder, []).append(talk.request)
        if how == "unanswered":
            self._answer_to(talk.responder, talk.request, chance)
        self._hang_up(talk)

    def do_jump(self, name: str, ahead_s: float, talks: tuple[tuple[str, int, str, int], ...]) -> None:
        """A wall clock is far ahead while its node exchanges with others, and right again afterwards."""
        node = self.nodes[name]
        if not node.up or name in self.gone:
            return
        before = node.members.closed, node.members.proposed
        node.skew += int(ahead_s * SECOND)
        for other, requests, how, seed in talks:
            pair = (name, other) if seed % 2 else (other, name)
            self.do_exchange(*pair, requests, how, seed)
        node.skew -= int(ahead_s * SECOND)
        others = [other for other in self.nodes.values() if other is not node]
        closed = [max(one.members.closed, one.members.proposed) for one in others if one.up]
        if node.up and node.members.closed > max(*before, *closed, *(one.wall() + DRIFT for one in others)):
            raise Failure(f"{name}: has closed {node.members.closed}, which no other node has agreed to")

    def do_forge(self, name: str, seed: int) -> None:
        """A forged hello tells a node a time that no clock has reached."""
        node, chance = self.nodes[name], random.Random(seed)
        if not node.up:
            return
        before = node.members.encode(), node.engine.clock.lower_bound, node.engine.gc_horizon, node.engine.truncation
        with self.as_node(node):
            for _ in node.responder.answer(forged_hello(node, chance)):
                pass
        if (
            node.members.encode(),
            node.engine.clock.lower_bound,
            node.engine.gc_horizon,
            node.engine.truncation,
        ) != before:
            raise Failure(f"{name}: has taken in a time that no clock has reached")

    def do_lie(self, liar: str, name: str, begins: bool, seed: int) -> None:
        """A node exchanges with one whose messages have a time that no clock has reached, each in another place."""
        node, other, chance = self.nodes[name], self.nodes[liar], random.Random(seed)
        if not (node.up and other.up):
            return
        far = self._far(node, chance)
        kept = self._kept(node)
        talk = self._talk(liar, name, full=False) if begins else self._talk(name, liar, full=False)
        known: MemberTable | None = None
        for _ in range(LIES_MAX):
            if talk is None or not (node.up and other.up):
                break
            if begins and chance.random() < 0.7:
                talk.request = lie(talk.request, None, far, chance, node.engine.time_gate.is_set)
            if not begins:
                known = table_in(talk.request)
            change = None
            if not begins and chance.random() < 0.7:  # a node without a clock believes records, and nothing else
                with_records = node.engine.time_gate.is_set
                change = partial(lie, known=known, far=far, chance=chance, with_records=with_records)
            talk = self._advance(talk, chance, change)
        if talk is not None:
            self._hang_up(talk)
        self._require_kept(node, kept)

    def do_forge_event(self, liar: str, name: str, seed: int) -> None:
        """An event comes from a time that no clock has reached."""
        node, chance = self.nodes[name], random.Random(seed)
        if not node.up or not node.engine.time_gate.is_set:
            return
        kept = self._kept(node)
        node.acknowledging = lambda numbers: None
        with self.as_node(node):
            node.inbox.process([Delivery(liar, event(liar, self._far(node, chance), chance), None)])
        self._require_kept(node, kept)

    def _far(self, node: Node, chance: random.Random) -> int:
        now = max(node.wall(), self.now)
        return chance.choice((now + DRIFT + MINUTE, now + 365 * DAY, (1 << 63) - 1))

    def _kept(self, node: Node) -> dict[str, int]:
        """The latest times, ns, that a node goes by."""
        table = node.members.table()
        return {
            "clock": node.engine.clock.lower_bound,
            "closed": max(node.members.closed, node.members.proposed),
            "GC horizon": node.engine.gc_horizon,
            "truncation": timestamp_of(node.engine.truncation),
            "table": max(max(table.own_times()), max(table.beyond(-1).values(), default=0)),
        }

    def _require_kept(self, node: Node, before: dict[str, int]) -> None:
        if not node.up:
            return
        for what, time in self._kept(node).items():
            if time > max(before[what], max(node.wall(), self.now) + DRIFT + SECOND):
                raise Failure(f"{node.name}: a lie has moved its {what} to {time}")

    def do_arrive(self, name: str, seed: int) -> None:
        """A request of an exchange that is no more arrives."""
        if (waiting := self.late.get(name)) and self.nodes[name].up:
            self._answer_to(name, waiting.pop(seed % len(waiting)), random.Random(seed))

    def do_partition(self, groups: tuple[tuple[str, int], ...]) -> None:
        """From now on nodes of one group reach each other; the broker is in group 0."""
        self.groups = dict(groups)
        for name, group in groups:
            if group:
                self.do_disconnect(name)

    def do_start(self, name: str) -> None:
        if name not in self.gone:
            super().do_start(name)

    def do_connect(self, name: str) -> None:
        if not self.groups.get(name):
            super().do_connect(name)

    def _talk(self, initiator: str, responder: str, full: bool) -> Talk | None:
        """The exchange of these two, a new one if there is none."""
        one, other = self.nodes[initiator], self.nodes[responder]
        talk = self.talks.get(initiator)
        if talk is not None and (talk.responder != responder or talk.lives != (one.lives, other.lives)):
            self._hang_up(talk)
            talk = None
        if not (one.up and other.up) or self.groups.get(initiator, 0) != self.groups.get(responder, 0):
            return None
        if talk is None:
            self._join([one, other])
            steps = Initiator(one.engine, one.members, CLUSTER, full=full).steps()
            with self.as_node(one), self._ends_quietly(one):
                self.talks[initiator] = Talk(initiator, responder, (one.lives, other.lives), steps, next(steps))
            self.note_horizons()  # of a node that was alone until now
            talk = self.talks.get(initiator) if one.up else None
        return talk

    def _advance(
        self, talk: Talk, chance: random.Random, change: Callable[[bytes], bytes] | None = None
    ) -> Talk | None:
        """One request and its answer; None when the exchange has ended, well or not.  `change`: of the answer."""
        one, other = self.nodes[talk.initiator], self.nodes[talk.responder]
        if talk.lives != (one.lives, other.lives) or not (one.up and other.up):
            self._hang_up(talk)
            return None
        answer = self._answer_to(talk.responder, talk.request, chance)
        if answer is None or not one.up or talk.lives != (one.lives, other.lives):
            self._hang_up(talk)
            return None
        with self.as_node(one), self._ends_quietly(one):
            try:
                talk.request = talk.steps.send(change(answer) if change else answer)
                return talk
            except StopIteration as end:
                self._completed(talk, end.value)
        self._hang_up(talk)
        return None

    def _answer_to(self, name: str, request: bytes, chance: random.Random) -> bytes | None:
        """What a node answers; None when it crashes over it."""
        node = self.nodes[name]
        life = node.lives
        with self.as_node(node):
            slices = node.responder.answer(request)
            while node.up and node.lives == life:
                try:
                    ready = next(slices)
                except StopIteration as end:
                    self.note_horizons()
                    if chance.random() < COLLECTS:
                        node.collect()
                    answer: bytes = end.value
                    return answer
                if ready is not None and not ready():
                    node.engine.checkpoint_now()
                if chance.random() < MEANWHILE:
                    self._write_meanwhile(name, chance)
        return None

    def _write_meanwhile(self, name: str, chance: random.Random) -> None:
        keys = sorted(key for key in self.oracle.written if key != TRUNCATION)
        if not keys:
            return
        command, key = chance.choice(("set", "set", "delete")), chance.choice(keys)
        self.do_write(name, ((command, key, b"m%d" % chance.randrange(10**6)),), chance.random() < 0.5)

    def _completed(self, talk: Talk, report: ExchangeReport) -> None:
        self.exchanged += 1
        self.note_horizons()
        pair = [self.nodes[talk.initiator], self.nodes[talk.responder]]
        self._join(pair)
        if not all(node.relapsed for node in pair):
            for node, other in (pair, pair[::-1]):
                node.joined = node.joined or not other.relapsed
                node.relapsed = node.relapsed and not other.joined
        self.nodes[talk.initiator].collect()

    @contextmanager
    def _ends_quietly(self, node: Node) -> Iterator[None]:
        """While there are faults an exchange may fail."""
        try:
            yield
        except MerkleKVError as error:
            if self.healing:
                raise Failure(f"{node.name}: an exchange failed without a fault: {error}") from error
            self.note(f"{node.name} failed: {error}")

    def _join(self, pair: list[Node]) -> None:
        """Note what restored nodes wrote before they met the cluster again: they did not know the deletes since."""
        gc_horizon = max((one.engine.gc_horizon for one in self.up()), default=0)
        for node in pair:
            if node.relapsed:
                self.oracle.brings(node.made_since, gc_horizon)

    def _hang_up(self, talk: Talk) -> None:
        self.talks.pop(talk.initiator, None)
        talk.steps.close()

    # -- members -------------------------------------------------------------------------------------------------------

    def do_backup(self, name: str) -> None:
        """A copy of the directory as it is."""
        node = self.nodes[name]
        if node.up and name not in self.gone:
            node.engine.commit()
            made = node.made_since[:] if node.relapsed else []
            node.backups.append((node.joined, made, self.disk.image(node.directory, None)))

    def do_restore(self, name: str, seed: int) -> None:
        """The node goes on from a backup."""
        node = self.nodes[name]
        if node.backups and name not in self.gone:
            node.joined, made, image = node.backups[seed % len(node.backups)]
            node.relapsed, node.made_since, node.alone = True, made[:], False
            self._begin_anew(node, image)

    def do_wipe(self, name: str) -> None:
        """The node loses its disk, and begins with an empty one; others remove the former member sooner or later."""
        node = self.nodes[name]
        if name not in self.gone:
            node.joined, node.relapsed, node.backups, node.alone = False, False, [], False
            self._begin_anew(node, Image({}, {}))

    def do_alone(self, name: str) -> None:
        """The node loses its disk, and begins anew by itself: nothing is set up to meet others."""
        node = self.nodes[name]
        if name not in self.gone:
            node.joined, node.relapsed, node.backups, node.alone = False, False, [], True
            self._begin_anew(node, Image({}, {}))

    def do_dump(self, name: str) -> None:
        """A dump of what a node holds."""
        node = self.nodes[name]
        if node.up:
            self.dumps.append((node.identity, list(node.records().items())))

    def do_load(self, name: str, seed: int) -> None:
        """A dump of another node is loaded on one that is alone."""
        node = self.nodes[name]
        if not node.up or not node.engine.is_lone or not self.dumps:
            return
        who, pairs = self.dumps[seed % len(self.dumps)]
        if who != node.identity:
            with self.as_node(node):
                given = [(OP_SET, key, record) for key, record in pairs if is_live(record)]
                self.unless_stalled(node, lambda: node.engine.merge(given, b"dump"))
                self.commit(node)

    def do_limit(self, name: str, max_value_size: int) -> None:
        """A node ends, and its next life takes values up to another size."""
        if name not in self.gone:
            self.do_stop(name)
            self.nodes[name].max_value_size = max_value_size

    def do_leave(self, name: str) -> None:
        """The node is switched off for good, wherever it stood."""
        node = self.nodes[name]
        if name not in self.gone and len(self.gone) < len(self.nodes) - 2:
            self._end(node)
            self.gone.add(name)
            self._reconsider()

    def do_haunt(self, name: str) -> None:
        """A node that has left is switched on again."""
        node = self.nodes[name]
        if name in self.gone and not node.up:
            with self.as_node(node):
                node.start()

    def do_remove(self, name: str, by: str) -> None:
        """Another node removes a member that is gone: one that has left, or the former one of a wiped node."""
        node, other = self.nodes[name], self.nodes[by]
        if not other.up or by in self.gone:
            return
        with self.as_node(other):
            for identity in self._gone_members(other):
                if identity[0] == node.name:
                    other.membership.remove(identity[0], identity[1].hex())
            other.collect()

    def _gone_members(self, node: Node) -> list[tuple[str, bytes]]:
        """The members that this node knows and that are gone.  One without a store id goes by its name."""
        alive = {one.identity for one in self.nodes.values() if one.name not in self.gone}
        known = [identity for identity, _ in node.members if identity.store_id or identity.node in self.gone]
        return [identity for identity in known if identity not in alive]

    def _end(self, node: Node) -> None:
        if node.up:
            node.die(self.disk.image(node.directory, None))
        self.broker.drop_session(node.name)

    def _begin_anew(self, node: Node, image: Image) -> None:
        self._end(node)
        node.image = image
        node.start()
        self._reconsider()

    def _reconsider(self) -> None:
        """A node has lost something: what no other has is lost with it."""
        holdings = []
        for node in self.nodes.values():
            if node.name in self.gone:
                continue
            if node.up:
                self.commit(node)
                holdings.append(sound(self.holding(node)))
            elif node.image is not None:
                holdings.append(sound(self._holding_of(node.image)))
        self.oracle.reconsider(holdings)

    def _holding_of(self, image: Image) -> Holding:
        """What is in the directory of a node that is down."""
        node = self.new_node("looking", self._root)
        self._looks += 1
        directory = self._root / f"looking.{self._looks}"
        image.lay_down(directory)
        self.disk.adopt(directory, image)
        node.engine = Engine(directory, checkpoint="manual", memtable_size=MEMTABLE_SIZE, wall_clock=lambda: self.now)
        try:
            return self.holding(node)
        finally:
            node.engine.close()
            self.disk.forget(directory)

    # -- the end -------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        self.healing = True
        self.groups = {}
        self.late = {}
        for talk in list(self.talks.values()):
            self._hang_up(talk)
        for name in self.gone:
            self._end(self.nodes[name])
        for node in self.nodes.values():
            if node.max_value_size != DEFAULT_MAX_VALUE_SIZE:
                self.do_limit(node.name, DEFAULT_MAX_VALUE_SIZE)
        super().heal()

    def set_right(self, keys: Sequence[bytes]) -> None:
        """All clocks are right again, and nothing else helps: each node takes part, but for records from the future.

        A truncation from the future is the end of that: it stays until an operator restamps its node.
        """
        self.groups, self.late = {}, {}
        for talk in list(self.talks.values()):
            self._hang_up(talk)
        for name in self.gone:
            self._end(self.nodes[name])
        self.do_start_broker()
        for node in self.nodes.values():
            if node.name not in self.gone:
                node.armed, node.skew = None, 0
                self.do_start(node.name)
                self.commit(node)
        nodes = self.up()
        if any(timestamp_of(node.engine.truncation) > self.now for node in nodes):
            return
        self.healing = True
        written, records = {}, {}
        for node in nodes:
            newest = {key: max(timestamp_of(one.engine.record(key) or bytes(8)) for one in nodes) for key in keys}
            for key in [key for key in keys if newest[key] <= self.now and key not in written][:1]:
                written[key] = value = f"{node.name} at {self.now}".encode()
                self.do_write(node.name, (("set", key, value),), True)
                records[key] = node.engine.record(key) or b""
                if not node.engine.time_gate.admits_version(node.engine.record(key) or b""):
                    raise Failure(f"{node.name}: its clock is right, and it stamps {key!r} in the future")
                self.now += SECOND
        for _ in range(2):
            self.exchange_all()
        for node in nodes:
            for key, value in written.items():
                if node.engine.get(key) != value and not self.oracle.is_replaced(key, records[key]):  # deleted anew
                    raise Failure(f"{node.name}: has {node.engine.get(key)!r} for {key!r}, not {value!r}")
        self.healing = False

    def exchange_all(self) -> None:
        """Each node exchanges with each other one."""
        names = [node.name for node in self.up()]
        for one in names:
            for other in names:
                if one != other:
                    self._exchange_whole(one, other)
        self.now += SECOND
        for node in self.up():
            node.collect()
            if not node.engine.root_ready:
                node.engine.checkpoint_now()  # as the checkpointer does by itself

    def _exchange_whole(self, one: str, other: str) -> None:
        before = self.exchanged
        talk = self._talk(one, other, full=False)
        for _ in range(REQUESTS_MAX):
            if talk is None:
                break
            talk = self._advance(talk, random.Random(0))
        if self.exchanged == before:
            raise Failure(f"{one} and {other} do not come to the end of an exchange")

    def remove_gone(self) -> None:
        """The first node that knows a member that is gone removes it."""
        for node in self.up():
            for identity in self._gone_members(node):
                node.membership.remove(identity[0], identity[1].hex())
