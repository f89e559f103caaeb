"""Mistakes in the product that the simulator has to find.  Those of the deletion rule are in clauses.py.

Each mistake replaces a method or a function for a while, by one that calls the sound one and spoils what it is given,
does or returns.  It names what it replaces by attribute, so mypy and `test_every_mistake_can_still_be_made` notice
when the code has moved away from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Final, NamedTuple
from unittest import mock

from merklekv.engine.base.writer import BaseWriter
from merklekv.engine.clock import HybridClock
from merklekv.engine.engine import Engine
from merklekv.engine.expiry import Expirer
from merklekv.engine.log.reader import LogPosition
from merklekv.engine.log.retention import Retention
from merklekv.engine.log.writer import Log
from merklekv.engine.merger import SUPERSEDED, Merger
from merklekv.engine.merkle import COUNT_MASK, MerkleTree, unpack_leaves
from merklekv.engine.record import (
    NS_PER_MS,
    VERSION_SIZE,
    ZERO_VERSION,
    expiry_of,
    is_live,
    is_sound,
    timestamp_of,
    version_of,
)
from merklekv.engine.table import Table
from merklekv.engine.time_gate import TimeGate
from merklekv.engine.tombstone_gc import TombstoneGC, is_long_expired, long_expired_at
from merklekv.engine.verify import scrub
from merklekv.replication.cluster.exceptions import Exceptions, Through, by_key, renewed, unite
from merklekv.replication.cluster.members import Members, MemberTable
from merklekv.replication.cluster.storage import join
from merklekv.replication.stream import event
from merklekv.replication.stream.inbox import Delivery, Inbox
from merklekv.replication.stream.outbox import Batch, Outbox
from merklekv.replication.sync.deletion_rule import Pair
from merklekv.replication.sync.initiator import Initiator
from merklekv.replication.sync.local_endpoint import LocalEndpoint
from merklekv.replication.sync.messages import Hello

SEEDS_MAX: Final = 500  # histories in which a mistake has to show

Change = AbstractContextManager[Any]


class Mutation(NamedTuple):
    """One mistake."""

    name: str
    kind: str  # of the histories in which it shows: see `history`
    changes: Callable[[], tuple[Change, ...]]
    rare: tuple[str, ...]  # seeds of histories in which it shows, where few do


MUTATIONS: Final[list[Mutation]] = []


def mistake(name: str, kind: str, *rare: str) -> Callable[[Callable[[], tuple[Change, ...]]], None]:
    """Declares one; the function gives the replacements that make it."""

    def declare(changes: Callable[[], tuple[Change, ...]]) -> None:
        MUTATIONS.append(Mutation(name, kind, changes, rare))

    return declare


def seeds_of(mutation: Mutation, first: int = 0) -> Iterator[str]:
    """The histories in which to look for a mistake."""
    yield from mutation.rare
    for seed in range(first, first + SEEDS_MAX):
        yield f"{mutation.kind}{seed}"


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """The product with this mistake in it."""
    with ExitStack() as stack:
        for change in mutation.changes():
            stack.enter_context(change)
        yield


def replaced(sound: Callable[..., Any], by: Callable[..., Any]) -> Change:
    """`by` in the place of a function or method of the product, in every module of it that has the function."""
    *owner, name = sound.__qualname__.split(".")
    if owner:
        found: Any = sys.modules[sound.__module__]
        for part in owner:
            found = getattr(found, part)
        return mock.patch.object(found, name, by)
    stack = ExitStack()
    for module in [module for path, module in sys.modules.items() if path.startswith("merklekv.")]:
        if vars(module).get(name) is sound:
            stack.enter_context(mock.patch.object(module, name, by))
    return stack


def silenced(method: Callable[..., Any]) -> Change:
    """A method that does nothing."""
    return replaced(method, lambda *args, **options: None)


def meanwhile(method: Callable[..., Any], change: Callable[[], Change]) -> Change:
    """A method during which something else is replaced as well."""

    def changed(*args: Any, **options: Any) -> Any:
        with change():
            return method(*args, **options)

    return replaced(method, changed)


# -- what is published -------------------------------------------------------------------------------------------------


def _handed_out(outbox: Outbox) -> LogPosition:
    """Behind the last event that a batch was made of."""
    return LogPosition(outbox.retention.end.lsn - outbox.unread_bytes, outbox.next_sequence)


@mistake("the cursor moves over a hole", "m")
def _() -> tuple[Change, ...]:
    def acknowledge(outbox: Outbox, batch: Batch, sound: Any = Outbox.acknowledge) -> None:
        sound(outbox, batch)
        outbox.cursor = max(outbox.cursor, batch.end)

    return (replaced(Outbox.acknowledge, acknowledge),)


@mistake("the outbox is saved ahead of what is acknowledged", "m")
def _() -> tuple[Change, ...]:
    def save(outbox: Outbox, sound: Any = Outbox.save) -> None:
        cursor, outbox.cursor = outbox.cursor, _handed_out(outbox)
        sound(outbox)
        outbox.cursor = cursor

    return (replaced(Outbox.save, save),)


@mistake("a lost connection takes what was in flight with it", "m")
def _() -> tuple[Change, ...]:
    def rewind(outbox: Outbox, sound: Any = Outbox.rewind) -> None:
        outbox.cursor = _handed_out(outbox)
        sound(outbox)

    return (replaced(Outbox.rewind, rewind),)


@mistake("the log goes before the outbox has read it", "m")
def _() -> tuple[Change, ...]:
    sound = Retention.deletable

    def deletable(retention: Retention, checkpoint_lsn: int, is_full: bool = False) -> list[int]:
        cursor, retention.cursor = retention.cursor, None
        lsns = sound(retention, checkpoint_lsn, is_full)
        retention.cursor = cursor
        return lsns

    return (replaced(Retention.deletable, deletable),)


@mistake("a place in the log that a crash takes back lets segments go", "m")
def _() -> tuple[Change, ...]:
    return (meanwhile(Retention.deletable, partial(silenced, Retention._make_durable)),)


# -- what is taken in --------------------------------------------------------------------------------------------------


@mistake("messages are acknowledged before they are durable", "m")
def _() -> tuple[Change, ...]:
    def process(inbox: Inbox, deliveries: list[Delivery], sound: Any = Inbox.process) -> None:
        inbox._acknowledge([delivery.token for delivery in deliveries])
        sound(inbox, deliveries)

    return (replaced(Inbox.process, process),)


@mistake("what is late overwrites what is newer", "m")
def _() -> tuple[Change, ...]:
    def verdict(merger: Merger, key: bytes, record: bytes, *rest: Any, sound: Any = Merger._verdict) -> str:
        is_late = version_of(record) != version_of(merger.table.lookup(key) or b"") and record > merger.table.truncation
        found: str = sound(merger, key, record, *rest)
        return "" if found == SUPERSEDED and is_late else found

    return (replaced(Merger._verdict, verdict),)


@mistake("a truncate elsewhere is not taken in", "m")
def _() -> tuple[Change, ...]:
    return (silenced(Merger.merge_truncation),)


@mistake("the GC horizon keeps nothing out", "x")
def _() -> tuple[Change, ...]:
    def verdict(merger: Merger, key: bytes, record: bytes, _: bytes, *rest: Any, sound: Any = Merger._verdict) -> str:
        found: str = sound(merger, key, record, ZERO_VERSION, *rest)
        return found

    return (replaced(Merger._verdict, verdict),)


# -- one node ----------------------------------------------------------------------------------------------------------


@mistake("a commit does not wait for the disk", "m")
def _() -> tuple[Change, ...]:
    return (silenced(Log.sync),)


@mistake("the clock does not see what is merged", "m")
def _() -> tuple[Change, ...]:
    return (meanwhile(Merger.merge, partial(silenced, HybridClock.observe)),)


@mistake("the clock begins anew at a start", "m")
def _() -> tuple[Change, ...]:
    return (meanwhile(Engine.__init__, partial(silenced, HybridClock.observe)),)


@mistake("a local write does not beat what the node shows", "x")
def _() -> tuple[Change, ...]:
    return (replaced(HybridClock.after, lambda clock, version: clock.next()),)


@mistake("a resumed checkpoint trusts what it finds indexed", "m")
def _() -> tuple[Change, ...]:
    def begin_checkpoint(base: BaseWriter, upto: int, sound: Any = BaseWriter.begin_checkpoint) -> bool:
        sound(base, upto)
        return False

    return (replaced(BaseWriter.begin_checkpoint, begin_checkpoint),)


@mistake("tombstones are collected above the GC horizon", "x")
def _() -> tuple[Change, ...]:
    def collect(gc: TombstoneGC, *args: Any, sound: Any = TombstoneGC.collect_tombstones) -> bool:
        bound, gc.bound = gc.bound, b"\xff" * VERSION_SIZE
        more: bool = sound(gc, *args)
        gc.bound = bound
        return more

    return (replaced(TombstoneGC.collect_tombstones, collect),)


# -- the tree ----------------------------------------------------------------------------------------------------------


@mistake("leaves without versions", "x")
def _() -> tuple[Change, ...]:
    def leaf_digests(tree: MerkleTree, node: int) -> bytes:
        return b"".join([(leaf & COUNT_MASK).to_bytes(8, "big") for leaf in unpack_leaves(tree.inner_leaves(node))])

    return (replaced(MerkleTree.leaf_digests, leaf_digests),)


@mistake("the truncation version is not in the root", "x")
def _() -> tuple[Change, ...]:
    def root(tree: MerkleTree, _: bytes, sound: Any = MerkleTree.root) -> bytes:
        found: bytes = sound(tree, b"")
        return found

    return (replaced(MerkleTree.root, root),)


# -- damage at rest ----------------------------------------------------------------------------------------------------


@mistake("the scrub does not look at records", "x")
def _() -> tuple[Change, ...]:
    def looks_sound(key: bytes, record: bytes) -> bool:
        return True

    return (mock.patch.object(scrub, is_sound.__name__, looks_sound),)


@mistake("the scrub puts what is older in the place of what is damaged", "x")
def _() -> tuple[Change, ...]:
    return (replaced(scrub.fits, lambda damage, record: True),)


@mistake("what a merge goes by is not derived anew for a record that was replaced", "x", "decay-35")
def _() -> tuple[Change, ...]:
    return (meanwhile(Merger.replace, partial(silenced, Table.repair)),)


@mistake("the tree is not taken from the base again after a repair", "x")
def _() -> tuple[Change, ...]:
    def take_over_base(table: Table, sound: Any = Table.take_over_base) -> None:
        with silenced(Table.rebuild) if table.root_ready else ExitStack():
            sound(table)

    return (replaced(Table.take_over_base, take_over_base),)


# -- clocks ------------------------------------------------------------------------------------------------------------


@mistake("whatever is said of a node's own clock is believed", "c")
def _() -> tuple[Change, ...]:
    def believe_table(
        endpoint: LocalEndpoint, table: MemberTable, sound: Any = LocalEndpoint.believe_table
    ) -> MemberTable:
        of_others = table.without_times_of({endpoint.members.identity})
        believed: MemberTable = sound(endpoint, of_others)
        return table if believed == of_others else believed

    return (replaced(LocalEndpoint.believe_table, believe_table),)


@mistake("a closed timestamp holds for good before another node has accepted it", "c")
def _() -> tuple[Change, ...]:
    def propose(clock: HybridClock, sound: Any = HybridClock.propose) -> tuple[int, int]:
        closed, before = sound(clock)
        clock.close_through(closed)
        return closed, before

    return (replaced(HybridClock.propose, propose),)


@mistake("the clock does not come down with the wall clock", "w")
def _() -> tuple[Change, ...]:
    def issue(clock: HybridClock, sound: Any = HybridClock.next) -> bytes:
        clock.close_through(clock.newest)
        version: bytes = sound(clock)
        return version

    return (replaced(HybridClock.next, issue),)


@mistake("a start closes what the wall clock shows", "w")
def _() -> tuple[Change, ...]:
    def write_as(clock: HybridClock, writer: bytes, sound: Any = HybridClock.write_as) -> None:
        sound(clock, writer)
        clock.close_through(clock.closing())

    return (replaced(HybridClock.write_as, write_as),)


@mistake("a record is believed however far ahead it is", "w")
def _() -> tuple[Change, ...]:
    return (replaced(TimeGate.latest_version, lambda gate: b"\xff" * VERSION_SIZE),)


@mistake("a truncation is believed however far ahead it is", "w")
def _() -> tuple[Change, ...]:
    return (replaced(TimeGate.admits_truncation, lambda gate, truncation: True),)


@mistake("a GC horizon is believed however far ahead it is", "w")
def _() -> tuple[Change, ...]:
    return (replaced(LocalEndpoint.believe_time, lambda endpoint, node, time: time),)


@mistake("times of third members are believed however far ahead they are", "w")
def _() -> tuple[Change, ...]:
    return (replaced(MemberTable.without_times_of, lambda table, who: table),)


@mistake("a node whose wall clock was never set exchanges", "w")
def _() -> tuple[Change, ...]:
    return (silenced(LocalEndpoint._require_clock),)


# -- keys that expire --------------------------------------------------------------------------------------------------


@mistake("a key is shown after it has expired", "e")
def _() -> tuple[Change, ...]:
    return (replaced(Table.is_shown, lambda table, record: is_live(record)),)


@mistake("an event loses the expiry of its key", "e")
def _() -> tuple[Change, ...]:
    return (replaced(event._optional_of, lambda fields: None),)


@mistake("what has expired is purged before all members have it", "e")
def _() -> tuple[Change, ...]:
    def is_old(record: bytes, gc_horizon: int) -> bool:
        expiry = expiry_of(record)
        return expiry is not None and expiry * NS_PER_MS <= gc_horizon

    return (
        replaced(is_long_expired, is_old),
        replaced(long_expired_at, lambda record: (expiry_of(record) or 0) * NS_PER_MS),
    )


@mistake("what is to expire counts as expired", "e")
def _() -> tuple[Change, ...]:
    def is_old(record: bytes, gc_horizon: int) -> bool:
        return expiry_of(record) is not None and timestamp_of(record) <= gc_horizon

    return (replaced(is_long_expired, is_old),)


@mistake("what has expired is not purged", "e")
def _() -> tuple[Change, ...]:
    return (replaced(Expirer.collect_expired, lambda expirer, purges=True: False),)


# -- refused records ---------------------------------------------------------------------------------------------------


@mistake("what was refused counts as applied", "v", "outgrown-9")
def _() -> tuple[Change, ...]:
    return (silenced(Members.merge_refused),)


@mistake("what others have refused is not inherited", "v", "outgrown-88")
def _() -> tuple[Change, ...]:
    def own(one: Exceptions, one_through: Through, two: Exceptions, two_through: Through) -> Exceptions:
        united = unite(one, one_through, two, two_through)
        return {key: exception for key, exception in united.items() if one.get(key) == exception}

    return (replaced(unite, own),)


@mistake("a refusal outlives its record", "v", "outgrown-34")
def _() -> tuple[Change, ...]:
    def both(one: Exceptions, _: Through, two: Exceptions, __: Through) -> Exceptions:
        return by_key([*one.values(), *two.values()])

    return (replaced(unite, both), replaced(renewed, lambda exceptions, engine: exceptions))


# -- exchanges and members ---------------------------------------------------------------------------------------------


@mistake("what a new node has from elsewhere is taken for its own", "x")
def _() -> tuple[Change, ...]:
    def of(holder: MemberTable, lacking: MemberTable, sound: Callable[..., Pair] = Pair.of) -> Pair:
        pair = sound(holder, lacking)
        return pair._replace(applied_through=dict.fromkeys(pair.applied_through, 0))

    return (replaced(Pair.of, of),)


@mistake("a node that was alone does not say what it has purged", "l")
def _() -> tuple[Change, ...]:
    return (replaced(join, lambda engine, members: engine.join()),)


@mistake("a node that has met others goes on purging", "l", "solo-16")
def _() -> tuple[Change, ...]:
    return (silenced(TombstoneGC.join),)


@mistake("applied-through moves before the merge", "x")
def _() -> tuple[Change, ...]:
    def union(initiator: Initiator, *args: Any, sound: Any = Initiator._union) -> Generator[bytes, bytes, None]:
        initiator._endpoint.complete(initiator._theirs.table, initiator._new_gc_horizon)
        yield from sound(initiator, *args)

    return (replaced(Initiator._union, union),)


@mistake("a node that was left behind takes itself for current", "x", "stranger-3")
def _() -> tuple[Change, ...]:
    def catch_up(endpoint: LocalEndpoint, peer: Hello, sound: Any = LocalEndpoint.catch_up) -> bool:
        with replaced(Members.gc_horizon, lambda members: peer.gc_horizon):
            raised: bool = sound(endpoint, peer)
        return raised

    return (replaced(LocalEndpoint.catch_up, catch_up),)
