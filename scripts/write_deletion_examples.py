"""Writes the examples of the deletion rule in docs/replication.md: real nodes, and what they decide.

    python scripts/write_deletion_examples.py            writes them
    python scripts/write_deletion_examples.py --show     prints them
    python scripts/write_deletion_examples.py --check    checks that they are what the code makes

Nodes without sockets exchange by direct calls.  All have one wall clock, which a second passes on at each step; times
are in seconds since it began.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import generated

from merklekv.engine.engine import Engine
from merklekv.engine.record import is_live, store_id_of, timestamp_of
from merklekv.replication.cluster.storage import load_members
from merklekv.replication.sync import initiator
from merklekv.replication.sync.deletion_rule import NONE, RECORD_ROWS, TIME_ROWS, Pair, stale_records
from merklekv.replication.sync.initiator import Initiator
from merklekv.replication.sync.messages import Hello
from merklekv.replication.sync.responder import Responder

BEGAN_NS = 1_800_000_000 * 10**9
SECOND_NS = 10**9
LAST_ROW = "8 damage"


class Example:
    """A cluster, and a line for each thing that happens to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = BEGAN_NS
        self.lines: list[str] = []
        self.nodes: dict[str, Node] = {}

    def node(self, name: str) -> "Node":
        self.nodes[name] = Node(self, name, self.root / name)
        return self.nodes[name]

    def tell(self, line: str) -> None:
        self.lines.append(line)

    def tick(self) -> None:
        self.now += SECOND_NS

    def all_exchange(self, *nodes: "Node") -> None:
        """Each node with each other one, until the GC horizon has all."""
        for _ in range(2):
            self.tick()
            for one in nodes:
                for other in nodes:
                    if one is not other:
                        one.exchange(other)
        names = ", ".join(node.name for node in nodes)
        engine = nodes[0].engine
        self.tell(
            f"{names} exchange: the GC horizon is {shown(engine.gc_horizon)}, {engine.tombstone_count} tombstones"
        )

    def decide(self, one: "Node", other: "Node") -> None:
        """An exchange that shows what is decided of each record that one of the two lacks."""
        self.tick()
        self.tell(f"{one.name}, {other.name} exchange:")
        with mock.patch.object(initiator, "stale_records", self._explained):
            one.exchange(other)

    def _explained(self, holder: Hello, lacking: Hello) -> object:
        here, there = (self.nodes[hello.node].engine for hello in (holder, lacking))
        for key, record in here.records_page(b"", b"")[0]:
            if there.record(key) is None:
                pair = Pair.of(holder.table, lacking.table)
                writer = next(who for who in pair.applied_through if who.store_id == store_id_of(record))
                self.tell(
                    f"  holder {holder.node}, lacking node {lacking.node}, record {key.decode()} of {writer.node}"
                )
                self.tell(f"    timestamp of the record           {shown(timestamp_of(record))}")
                self.tell(f"    applied-through, {writer.node}".ljust(38) + shown(pair.applied_through[writer]))
                self.tell(f"    stable-through, {writer.node}".ljust(38) + shown(pair.stable_through.get(writer, 0)))
                self.tell(f"    GC horizon of {lacking.node}".ljust(38) + shown(lacking.gc_horizon))
                applied = {who.node: row.applied_through for who, row in sorted(holder.table.rows.items())}
                told = ", ".join(f"{name} through {shown(time)}" for name, time in applied.items())
                self.tell(f"    {holder.node} has applied".ljust(38) + (told or "-"))
                row, is_stale = deciding_row(pair, key, record)
                self.tell(f"    row {row}: {'stale' if is_stale else 'new'}")
        return stale_records(holder, lacking)


class Node:
    """A node without sockets."""

    def __init__(self, example: Example, name: str, path: Path) -> None:
        self.name, self.path, self._example = name, path, example
        self._open()

    def _open(self) -> None:
        self.engine = Engine(self.path, durability="never", wall_clock=lambda: self._example.now)
        self.members = load_members(self.engine, self.name)
        self.responder = Responder(
            self.engine, self.members, "example", lambda node: False, lambda node: False, lambda peer: None
        )

    def write(self, what: str, call: Callable[[], object]) -> None:
        self._example.tick()
        call()
        self.engine.commit()
        self._example.tell(f"{self.name}: {what} at {shown(self._example.now)}")

    def set(self, key: str) -> None:
        self.write(f"SET {key}", lambda: self.engine.set(key.encode(), b"value"))

    def delete(self, key: str) -> None:
        self.write(f"DEL {key}", lambda: self.engine.delete(key.encode()))

    def back_up(self) -> Path:
        self.engine.close()
        copy = self.path.with_suffix(".backup")
        shutil.copytree(self.path, copy)
        self._open()
        self._example.tell(f"{self.name}: is backed up")
        return copy

    def restore(self, copy: Path) -> None:
        self.engine.close()
        self.path = copy
        self._open()
        self._example.tell(f"{self.name}: is restored from the backup")

    def exchange(self, other: "Node") -> None:
        steps = Initiator(self.engine, self.members, "example").steps()
        try:
            request = next(steps)
            while True:
                request = steps.send(other.answer(request))
        except StopIteration:
            pass

    def answer(self, request: bytes) -> bytes:
        """The answer to a request of an exchange."""
        slices = self.responder.answer(request)
        try:
            while True:
                next(slices)
        except StopIteration as end:
            return bytes(end.value)

    def tell_keys(self) -> None:
        live = [key.decode() for key, record in self.engine.records_page(b"", b"")[0] if is_live(record)]
        self._example.tell(f"{self.name}: has {', '.join(live) or 'no key'}")


def shown(time_ns: int) -> str:
    return f"{(time_ns - BEGAN_NS) // SECOND_NS} s" if time_ns else "-"


def deciding_row(pair: Pair, key: bytes, record: bytes) -> tuple[str, bool]:
    """The first row that matches, and whether it says stale."""
    writer = next(who for who in pair.applied_through if who.store_id == store_id_of(record))
    lost = pair.lacking.lost_writes.get(writer, frozenset())
    for by_record in RECORD_ROWS:
        if by_record.matches(key, record, lost, pair.refused):
            return by_record.name, False
    for by_time in TIME_ROWS:
        later_than = by_time.later_than(pair, writer)
        if later_than < timestamp_of(record) and later_than != NONE:
            return by_time.name, by_time.is_stale
    return LAST_ROW, False


def stale(example: Example) -> None:
    """A restored node brings back what was deleted."""
    paris, oslo, rome = (example.node(name) for name in ("paris", "oslo", "rome"))
    oslo.set("cart:17")
    example.all_exchange(paris, oslo, rome)
    copy = rome.back_up()
    paris.delete("cart:17")
    example.all_exchange(paris, oslo, rome)
    rome.restore(copy)
    example.decide(rome, paris)
    rome.tell_keys()


def new(example: Example) -> None:
    """A node joins with data of its own."""
    lima = example.node("lima")
    lima.set("user:9")
    paris, oslo = (example.node(name) for name in ("paris", "oslo"))
    example.all_exchange(paris, oslo)
    example.decide(lima, paris)
    paris.tell_keys()


def main() -> None:
    for name, tell in (("stale", stale), ("new", new)):
        with tempfile.TemporaryDirectory() as directory:
            example = Example(Path(directory))
            tell(example)
            for node in example.nodes.values():
                node.engine.close()
        made = "```\n" + "\n".join(example.lines) + "\n```\n"
        if "--show" in sys.argv[1:]:
            sys.stdout.write(made)
        else:
            generated.write(generated.DOCS / "replication.md", made, f"example of a {name} record")


if __name__ == "__main__":
    main()
