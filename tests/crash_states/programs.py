"""What is traced: programs that change data directories, and say when a write was acknowledged.

    python -m tests.crash_states.programs SCENARIO ROOT OUT        changes ROOT, leaves its marks and the story in OUT
    python -m tests.crash_states.programs resume ROOT OUT PLACE... starts on each directory in ROOT, and goes on

A mark is a write to the file OUT/marks: `ack 7` says that all up to step 7 of the story is acknowledged. It comes after
the reply, so the trace has both in their order.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from fixtures.engines import NOON, Wall, abandon, everything, small_transactions

from merklekv.engine.engine import Engine
from merklekv.engine.log import writer as log_writer
from merklekv.engine.log.reader import LogPosition
from merklekv.engine.log.segment import first_event, segment_path
from merklekv.engine.options import MIN_MEMTABLE_SIZE, Durability
from merklekv.engine.record import Pair
from merklekv.errors import MerkleKVError
from merklekv.harness.process import Node, wait_until
from merklekv.net.client import Client
from merklekv.node_id import read_node_id
from merklekv.pause import pause

KEYS: Final = 40
VALUE_MAX: Final = 1500
NOTE: Final = b"\0note:"  # before the name of a metadata entry, to tell it from keys
NOTES: Final = (b"test-members", b"test-horizon")
DURABILITY: Final[Durability] = "always"
TICK_S: Final = 0.005
RESERVE_STEP: Final = 64 << 10  # bytes of log that are reserved: megabytes of zeros take time to look at
MS: Final = 10**6

Value = tuple[bytes, int | None]  # with the expiry, ms
Model = dict[bytes, Value]


class Teller:
    """Makes the marks and writes the story down."""

    def __init__(self, out: Path, name: str = "story") -> None:
        self.history: list[Model] = [{}]  # the data after each step
        self._path = out / name
        self._marks = os.open(out / "marks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def mark(self, *words: object) -> None:
        """Says something now."""
        os.write(self._marks, " ".join(map(str, words)).encode())

    def step(self, model: Model) -> None:
        """The next step is under way; after it the data are these."""
        self.history.append(model)

    @property
    def last(self) -> Model:
        """The data after the step that came last."""
        return self.history[-1]

    def acknowledge(self, word: str = "ack") -> None:
        """Everything so far is acknowledged."""
        self.mark(word, len(self.history) - 1)

    def write(self) -> None:
        """Leaves the story for the judge."""
        self._path.write_bytes(pickle.dumps(self.history))


def values_of(engine: Engine) -> Model:
    """All that an engine shows, with notes."""
    found: Model = {}
    for key in everything(engine):
        shown = engine.get_with_expiry(key)
        if shown is not None:
            value, expiry = shown
            found[key] = value, expiry
    for name in NOTES:
        if (note := engine.table.metadata.get(name)) is not None:
            found[NOTE + name] = note, None
    return found


class Writer:
    """Writes of all kinds, drawn by chance."""

    def __init__(self, engine: Engine, teller: Teller, chance: random.Random) -> None:
        self.engine = engine
        self.teller = teller
        self.chance = chance

    def write(self) -> None:
        """One step."""
        chance, engine, model = self.chance, self.engine, dict(self.teller.last)
        key, value = self._key(), self._value()
        kind = chance.choices(
            ("set", "expiring", "delete", "append", "mset", "transaction", "note", "truncate"),
            (50, 8, 14, 8, 8, 8, 3, 0.5),
        )[0]
        if kind == "set":
            model[key] = value, None
            self.do(model, lambda: engine.set(key, value))
        elif kind == "expiring":
            expiry = NOON // MS + 10_000_000 + chance.randrange(1000)
            model[key] = value, expiry
            self.do(model, lambda: engine.set(key, value, expiry))
        elif kind == "delete":
            model.pop(key, None)
            self.do(model, lambda: engine.delete(key))
        elif kind == "append":
            old, expiry_ = model.get(key, (b"", None))
            model[key] = old + b"+", expiry_
            self.do(model, lambda: engine.append(key, b"+"))
        elif kind == "mset":
            pairs = [(self._key(), self._value()) for _ in range(4)]
            self.do(model | {each: (data, None) for each, data in pairs}, lambda: engine.mset(pairs))
        elif kind == "transaction":
            pairs = [(self._key(), self._value()) for _ in range(3)]
            gone = self._key()
            model |= {each: (data, None) for each, data in pairs}
            model.pop(gone, None)
            self.do(model, lambda: self._transaction(pairs, gone))
        elif kind == "note":
            name = chance.choice(NOTES)
            model[NOTE + name] = value, None
            self.do(model, lambda: engine.put_metadata(name, value))
        else:
            self.do({name: note for name, note in model.items() if name.startswith(NOTE)}, engine.truncate)

    def _key(self) -> bytes:
        return b"k%d" % self.chance.randrange(KEYS)

    def _value(self) -> bytes:
        return self.chance.randbytes(self.chance.randrange(VALUE_MAX))

    def _transaction(self, pairs: list[Pair], gone: bytes) -> None:
        with self.engine.transaction(10_000):
            for key, value in pairs:
                self.engine.set(key, value)
            self.engine.delete(gone)

    def do(self, model: Model, call: Callable[[], object]) -> None:
        """A step and its call."""
        self.teller.step(model)
        self.engine.retry_stalled(call)

    def commit(self, often: float = 0.5) -> None:
        """Commits, more or less often, and says so."""
        if self.chance.random() < often:
            self.engine.commit()
            self.teller.acknowledge()

    def flush(self) -> None:
        """Commits and syncs, and says so."""
        self.engine.flush()
        self.teller.acknowledge("synced")

    def close(self) -> None:
        """An orderly end."""
        self.engine.close()
        self.teller.acknowledge("synced")


def opened(path: Path, **options: Any) -> Engine:
    """An engine with small memtables, at noon."""
    defaults = {"memtable_size": MIN_MEMTABLE_SIZE, "durability": DURABILITY, "wall_clock": Wall()}
    return Engine(path, **(defaults | options))


# -- the scenarios -----------------------------------------------------------------------------------------------------


def first_start(root: Path, teller: Teller, chance: random.Random) -> None:
    """A directory that is new, like those that it is in; writes, a stop, another start."""
    for _ in range(3):
        writer = Writer(opened(root / "new/deep/data", checkpoint="manual"), teller, chance)
        teller.acknowledge()
        for _ in range(6):
            writer.write()
            writer.commit()
        writer.close()


def steady(root: Path, teller: Teller, chance: random.Random) -> None:
    """Writes of all kinds, beside the checkpoint process; the node has joined others, so deletions leave tombstones."""
    writer = Writer(opened(root / "data"), teller, chance)
    writer.engine.join()
    for _ in range(400):
        writer.write()
        writer.commit()
    writer.close()


def everysec(root: Path, teller: Teller, chance: random.Random) -> None:
    """The same with `everysec`, of a lone node; for two seconds the checkpoint process stands still."""
    writer = Writer(opened(root / "data", durability="everysec"), teller, chance)

    def write(count: int) -> None:
        for _ in range(count):
            writer.write()
            writer.commit(1)
            pause(TICK_S)

    write(150)
    engine, process = writer.engine, writer.engine.checkpointer.child
    assert process is not None
    wait_until(lambda: process.pid and not engine.table.frozen, what="the first checkpoints")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    while len(engine.table.frozen) < 2:  # the second full segment is left to syncs
        write(1)
    for number in range(200):
        key = b"k%d" % (number % KEYS)
        writer.do(teller.last | {key: (b"x", None)}, lambda key=key: engine.set(key, b"x"))  # type: ignore[misc]
        writer.commit(1)
        pause(TICK_S)
    os.kill(process.pid, signal.SIGCONT)
    write(100)
    writer.close()


def killed(root: Path, teller: Teller, chance: random.Random) -> None:
    """The process ends without a sync, with a log that no checkpoint has; the next one serves what it finds there."""
    for _ in range(3):
        writer = Writer(opened(root / "data", durability="never", checkpoint="manual"), teller, chance)
        assert values_of(writer.engine) == teller.last
        teller.acknowledge("synced")  # what is shown must not be lost any more
        for _ in range(100):
            writer.write()
            writer.commit()
        writer.engine.commit()
        abandon(writer.engine)
        os.close(writer.engine.log._fd)
    opened(root / "data", durability="never", checkpoint="manual").close()
    teller.acknowledge("synced")


def checkpoints(root: Path, teller: Teller, chance: random.Random) -> None:
    """Checkpoints in small transactions, and compactions."""
    with small_transactions(16):
        writer = Writer(opened(root / "data", checkpoint="manual"), teller, chance)
        writer.engine.join()
        for number in range(6):
            for _ in range(25):
                writer.write()
            writer.commit(1)
            if number % 2:
                writer.engine.compact_now(lambda done, total: None)
            else:
                writer.engine.checkpoint_now()
        writer.close()


def expiries(root: Path, teller: Teller, chance: random.Random) -> None:
    """Keys expire, are kept from that, and are purged."""
    wall = Wall()
    writer = Writer(opened(root / "data", checkpoint="manual", wall_clock=wall), teller, chance)
    engine = writer.engine
    for number in range(60):
        key, value = b"e%d" % chance.randrange(20), chance.randbytes(200)
        expiry = wall.now // MS + chance.randrange(1, 60)
        if number % 7 == 6 and key in teller.last:
            kept = {**teller.last, key: (teller.last[key][0], None)}
            writer.do(kept, lambda key=key: engine.persist(key))  # type: ignore[misc]
        else:
            new = {**teller.last, key: (value, expiry)}
            writer.do(new, lambda key=key, value=value, expiry=expiry: engine.set(key, value, expiry))  # type: ignore[misc]
        writer.commit()
        if number % 4 == 3:
            wall.now += 5 * MS
            teller.mark("clock", wall.now)
            writer.do(shown(teller.last, wall.now), lambda: None)
            while engine.collect_expired():
                pass
            engine.commit()
        if number % 20 == 19:
            engine.checkpoint_now()
    writer.close()


def shown(model: Model, now: int) -> Model:
    """What is left of it when the wall clock shows that."""
    return {key: (value, expiry) for key, (value, expiry) in model.items() if expiry is None or expiry * MS > now}


def outbox(root: Path, teller: Teller, chance: random.Random) -> None:
    """Events are published and confirmed, sooner or later, while checkpoints delete the log behind them."""
    writer = Writer(opened(root / "data", durability="everysec"), teller, chance)
    writer.engine.join()
    for _ in range(10):
        writer.write()
    writer.commit(1)
    publish = Publisher(writer.engine, teller)
    for _ in range(300):
        writer.write()
        writer.commit(1)
        publish.some(chance)
        if chance.random() < 0.05:
            writer.flush()
        pause(TICK_S)
    writer.close()


class Publisher:
    """Reads events from the log and says that it has published them."""

    def __init__(self, engine: Engine, teller: Teller) -> None:
        self.engine = engine
        self.teller = teller
        cursor = engine.retention.subscribe()
        self.lsn = cursor.lsn
        oldest = segment_path(engine.directory.log, cursor.lsn)  # when the cursor was damaged
        teller.mark("published", cursor.sequence or first_event(oldest))

    def some(self, chance: random.Random) -> None:
        """Publishes up to three frames, or none."""
        for _ in range(chance.choice((0, 0, 1, 3))):
            frame = self.engine.retention.next_frame(self.lsn)
            if frame is None:
                return
            self.lsn = frame.end
            position = LogPosition(frame.end, frame.sequence + frame.local_count)
            self.teller.mark("published", position.sequence)
            self.engine.release_log(position)


def node(root: Path, teller: Teller, chance: random.Random) -> None:
    """A real node and a client, with transactions."""
    flags = ("--memtable-size", "64KiB", "--durability", "always")
    for _ in range(2):
        with (
            Node(root / "data", root.parent / "node.log", *flags) as server,
            Client("127.0.0.1", server.port) as client,
        ):
            teller.mark("node-id", read_node_id(root / "data"))
            for _ in range(60):
                _ask(client, teller, chance)
                teller.acknowledge()


def _ask(client: Client, teller: Teller, chance: random.Random) -> None:
    model = dict(teller.last)
    pairs = [(b"k%d" % chance.randrange(KEYS), chance.randbytes(chance.randrange(VALUE_MAX))) for _ in range(3)]
    (key, value), *_ = pairs
    kind = chance.choices(("set", "delete", "multi", "flush"), (60, 15, 25, 2))[0]
    if kind == "set":
        model[key] = value, None
        commands: list[tuple[bytes, ...]] = [(b"SET", key, value)]
    elif kind == "delete":
        model.pop(key, None)
        commands = [(b"DEL", key)]
    elif kind == "multi":
        model |= {each: (data, None) for each, data in pairs}
        commands = [(b"MULTI",), *((b"SET", each, data) for each, data in pairs), (b"EXEC",)]
    else:
        model = {}
        commands = [(b"FLUSHALL",)]
    teller.step(model)
    client.send(commands)
    for _ in commands:
        client.receive()


def copies(root: Path, teller: Teller, chance: random.Random) -> None:
    """A backup of either kind, and what is restored from it into new directories."""
    _data_to_copy(root, teller, chance)
    for words in (
        ("backup", "data", "copy"),
        ("backup", "data", "copy.tar.gz"),
        ("restore", "copy", "new/deep/restored"),
        ("restore", "copy.tar.gz", "unpacked"),
    ):
        _run(root, teller, *words)


def dumps(root: Path, teller: Teller, chance: random.Random) -> None:
    """A dump into a file, and what is loaded from it."""
    _data_to_copy(root, teller, chance)
    _run(root, teller, "dump", "data", "-o", "dump.jsonl")
    _run(root, teller, "load", "dump.jsonl", "new/deep/loaded")


def _data_to_copy(root: Path, teller: Teller, chance: random.Random) -> None:
    writer = Writer(opened(root / "data", checkpoint="manual", wall_clock=time.time_ns), teller, chance)
    writer.engine.join()
    for number in range(40):
        writer.write()
        if number == 25:
            writer.engine.checkpoint_now()
    writer.close()


def _run(root: Path, teller: Teller, verb: str, *words: str) -> None:
    """A verb, in this process; its last word is what it makes."""
    from merklekv import program

    paths = [word if word.startswith("-") else str(root / word) for word in words]
    teller.mark("begun", words[-1])
    with open(os.devnull, "w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            program.app([verb, *paths], standalone_mode=False)
        finally:
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    teller.mark("made", words[-1])


SCENARIOS: Final[dict[str, Callable[[Path, Teller, random.Random], None]]] = {
    each.__name__: each
    for each in (first_start, steady, everysec, killed, checkpoints, expiries, outbox, node, copies, dumps)
}


# -- after a crash -----------------------------------------------------------------------------------------------------


def resume(place: Path, teller: Teller, chance: random.Random, publishes: bool, wall: int) -> None:
    """A start on what a crash has left, some writes with `always`, a checkpoint, and another crash."""
    writer = Writer(opened(place, checkpoint="manual", wall_clock=Wall(wall)), teller, chance)
    engine = writer.engine
    teller.history = [values_of(engine)]
    if publishes and engine.retention.cursor is not None:
        publisher: Publisher | None = Publisher(engine, teller)
    else:
        publisher = None
    teller.mark("opened", engine.log.sequence)
    teller.acknowledge("synced")
    for number in range(6):
        writer.write()
        writer.commit(1)
        if publisher is not None:
            publisher.some(chance)
        if number == 3:
            engine.checkpoint_now()
    abandon(engine)
    os.close(engine.log._fd)


def places(root: Path) -> Iterator[Path]:
    """The directories to resume in."""
    yield from sorted(root.iterdir(), key=lambda path: int(path.name))


def main(name: str, root: Path, out: Path, *rest: str) -> None:
    """The process."""
    log_writer.RESERVE_STEP = RESERVE_STEP  # type: ignore[misc]
    if name == "resume":
        data, publishes, wall = rest
        for place in places(root):
            teller = Teller(out, f"story-{place.name}")
            teller.mark("place", place.name)
            try:
                resume(place / data, teller, random.Random(place.name), publishes == "yes", int(wall))
            except MerkleKVError as error:
                teller.mark("refused", error)
            teller.write()
    else:
        teller = Teller(out)
        SCENARIOS[name](root, teller, random.Random(rest[0]))
        teller.write()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
