"""The code, broken on purpose: what the simulator must find.

A mutation replaces a piece of one function's source, and `applied` compiles the function anew in its module.  A piece
that is not there any more is an error: whoever changes the code finds here which mistakes it must not make.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

SEEDS_MAX: Final = 500  # histories in which a mistake has to show


class Mutation(NamedTuple):
    """One mistake."""

    name: str
    kind: str  # of the histories in which it shows: see `history`
    target: str  # module below merklekv, a colon, the function by its qualified name
    old: str
    new: str
    rare: tuple[str, ...] = ()  # seeds of histories in which it shows, where few do


MUTATIONS: Final = (
    # -- what is published
    Mutation(
        "the cursor moves over a hole",
        "m",
        "replication.stream.outbox:Outbox._finish",
        "while self._in_flight and self._in_flight[0].done:\n        self.cursor = self._in_flight.popleft().end",
        "self._in_flight.remove(batch)\n    self.cursor = batch.end",
    ),
    Mutation(
        "the outbox is saved ahead of what is acknowledged",
        "m",
        "replication.stream.outbox:Outbox.save",
        "self._engine.release_log(self.cursor)",
        "self._engine.release_log(LogPosition(self._lsn, self._sequence))",
    ),
    Mutation(
        "a lost connection takes what was in flight with it",
        "m",
        "replication.stream.outbox:Outbox.rewind",
        "self._lsn, self._sequence = self.cursor",
        "pass",
    ),
    Mutation(
        "the log goes before the outbox has read it",
        "m",
        "engine.tail:Tail.deletable",
        "self.held is not None and following > self._durable_lsn",
        "False",
    ),
    Mutation(
        "a place in the log that a crash takes back lets segments go",
        "m",
        "engine.tail:Tail.deletable",
        "self._make_durable(self.held)",
        "pass",
    ),
    # -- what is taken in
    Mutation(
        "messages are acknowledged before they are durable",
        "m",
        "replication.stream.inbox:Inbox.process",
        "received = self.counters.received\n",
        "received = self.counters.received\n    self._acknowledge([delivery.token for delivery in deliveries])\n",
    ),
    Mutation(
        "what is late overwrites what is newer",
        "m",
        "engine.engine:Engine._verdict",
        "record[:VERSION_SIZE] <= old[:VERSION_SIZE]",
        "record[:VERSION_SIZE] == old[:VERSION_SIZE]",
    ),
    Mutation(
        "a truncate elsewhere is not taken in",
        "m",
        "replication.stream.inbox:Inbox._merge_truncation",
        "self._engine.merge_truncation(truncation, origin)",
        "False",
    ),
    Mutation(
        "what a new node has from elsewhere is taken for its own",
        "x",
        "replication.sync.local_endpoint:_dead_of",
        "dict.fromkeys(one.rows, 0) | two.had()",
        "dict.fromkeys(two.had(), 0)",
    ),
    Mutation(
        "what a writer has removed is dead where it is not held",
        "s",
        "replication.cluster.lost_writes:account_for",
        "if any(one.after < timestamp <= one.until or (one.run == run and timestamp <= one.missed) for one in lapses):",
        "if False:",
    ),
    Mutation(
        "a restored node that has settled with a new one passes for a member",
        "s",
        "replication.sync.local_endpoint:_dead_of",
        "was_restored = was_away(one.lapses.get(who, NO_LAPSES), seen) or (",
        "was_restored = False and (",
    ),
    Mutation(
        "what a restored node writes is taken for what it had",
        "s",
        "replication.cluster.lost_writes:account_for",
        "return runs == {run} or not all_are_known",
        "return True",
    ),
    Mutation(
        "the gc_horizon keeps nothing out",
        "x",
        "engine.engine:Engine._verdict",
        "record <= bound",
        "False",
    ),
    # -- one node
    Mutation(
        "a commit does not wait for the disk",
        "m",
        "engine.durable:Durable._flush",
        "self._sync()",
        "pass",
    ),
    Mutation(
        "the clock does not see what is merged",
        "m",
        "engine.engine:Engine._take",
        "self.clock.observe(max(record for _, _, record in accepted.values()))",
        "pass",
    ),
    Mutation(
        "the clock begins anew at a start",
        "m",
        "engine.state:State.__init__",
        "clock.observe(newest)",
        "pass",
    ),
    Mutation(
        "a local write does not beat what the node shows",
        "x",
        "engine.state:State._put",
        "version = self.clock.after(old)",
        "pass",
    ),
    Mutation(
        "a resumed absorption trusts what it finds indexed",
        "m",
        "engine.checkpoint.child:checkpoint",
        "newest.places if resumed else added",
        "added",
    ),
    Mutation(
        "tombstones are collected above the gc_horizon",
        "x",
        "engine.settled:Settled.collect",
        "record <= self._bound",
        "record",
    ),
    # -- the tree
    Mutation(
        "leaves without versions",
        "x",
        "engine.merkle:MerkleTree.leaf_digests",
        "(leaf >> 64 & COUNT_MASK)",
        "(leaf & COUNT_MASK)",
    ),
    Mutation(
        "the truncation is not in the root",
        "x",
        "engine.merkle:MerkleTree.root",
        "+ truncation",
        "",
    ),
    # -- damage at rest
    Mutation(
        "the scrub does not look at records",
        "x",
        "engine.verify.scrub:Scrub._page",
        "if not record_is_sound(key, record):",
        "if False:",
    ),
    Mutation(
        "the scrub puts what is older in the place of what is damaged",
        "x",
        "engine.verify.scrub:fits",
        "return is_same or",
        "return True or is_same or",
    ),
    Mutation(
        "what a merge goes by is not derived anew for a record that was replaced",
        "x",
        "engine.engine:Engine.replace",
        "self.repair(bucket_of(key), key)",
        "pass",
    ),
    Mutation(
        "the tree is not taken from the base again after a repair",
        "x",
        "engine.durable:Durable._take_over_base",
        "if repaired or not self.root_ready",
        "if not self.root_ready",
    ),
    # -- clocks
    Mutation(
        "whatever is said of a node's own clock is believed",
        "c",
        "replication.sync.local_endpoint:LocalEndpoint.believe_table",
        "if ours > latest:",
        "if False:",
    ),
    Mutation(
        "a closed timestamp holds for good before another node has accepted it",
        "c",
        "engine.clock:HybridClock.propose",
        "self.proposed = closed",
        "self._floor = closed",
    ),
    # -- exchanges and members
    Mutation(
        "what was seen moves before the merge",
        "x",
        "replication.sync.initiator:Initiator._pass",
        "if full or not equal:",
        "side.finish(theirs.table, terms.gc_horizon)\n    if full or not equal:",
    ),
    Mutation(
        "a node that was left behind takes itself for current",
        "x",
        "replication.sync.local_endpoint:LocalEndpoint.is_current",
        "return behind and all(",
        "return self.engine.gc_horizon < peer.gc_horizon or all(",
        ("s92001535",),
    ),
    Mutation(
        "a tombstone in the past is collected by reports from before it",
        "s",
        "replication.cluster.members:Members.bury",
        "self.buried[self.identity] = max(clock, self.buried.get(self.identity, 0) + 1)",
        "pass",
        ("s90001836",),
    ),
    Mutation(
        "nobody is ever left behind",
        "x",
        "replication.sync.local_endpoint:_dead_of",
        "left_behind = was_restored or one.current < other.gc_horizon",
        "left_behind = False",
    ),
    Mutation(
        "the slowest member is not waited for",
        "x",
        "replication.cluster.members:Members.stable",
        "min((",
        "max((",
    ),
    Mutation(
        "what was seen counts on although a member was removed",
        "s",
        "replication.cluster.members:Members._forget",
        "other.counted = min(other.counted, seen)",
        "pass",
    ),
)


def seeds_of(mutation: Mutation, first: int = 0) -> Iterator[str]:
    """The histories in which to look for a mistake."""
    yield from mutation.rare
    for seed in range(first, first + SEEDS_MAX):
        yield f"{mutation.kind}{seed}"


@contextmanager
def applied(mutation: Mutation) -> Iterator[None]:
    """The code with this mistake in it."""
    module_name, _, path = mutation.target.partition(":")
    module = importlib.import_module(f"merklekv.{module_name}")
    function: Any = module
    for step in path.split("."):
        function = getattr(function, step)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(mutation.old) != 1:
        raise LookupError(f"{mutation.target}: not once {mutation.old!r}; say anew what {mutation.name!r} means there")
    namespace: dict[str, Any] = {}
    exec(compile(source.replace(mutation.old, mutation.new), mutation.target, "exec"), module.__dict__, namespace)
    sound, function.__code__ = function.__code__, namespace[function.__name__].__code__  # for all who have imported it
    try:
        yield
    finally:
        function.__code__ = sound
