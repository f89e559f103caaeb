"""Nodes for the tests of exchanges: real engines, a clock that tests move, and a carrier that is a direct call."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from merklekv.engine.check import check_directory, check_engine
from merklekv.engine.engine import Engine
from merklekv.engine.format import FLAGS_AT, OP_DEL, OP_SET, TOMBSTONE, VALUE_AT
from merklekv.replication.exchange import ExchangeReport, Initiator
from merklekv.replication.exchange_side import load_members
from merklekv.replication.exchange_wire import decode
from merklekv.replication.responder import Responder

NOON = 2 * 10**18  # a wall clock that was set: in the year 2033
SECOND = 10**9
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

Tamper = Callable[[bytes], bytes]


class Cut(Exception):
    """The connection ends here."""


class Node:
    """A node without sockets."""

    def __init__(self, path: Path, cluster: str = "test", **options: Any) -> None:
        self.name = path.name
        self.path = path
        self.now = NOON
        self._cluster = cluster
        self._options = {"absorb": "manual", "durability": "never", "wall_clock": lambda: self.now, **options}
        self.open()

    def open(self) -> None:
        self.engine = Engine(self.path, **self._options)
        self.members = load_members(self.engine, self.name)
        self.responder = Responder(self.engine, self.members, self._cluster)

    def reopen(self) -> None:
        """A restart."""
        self.engine.close()
        self.open()

    def backup(self) -> Path:
        """A copy of the directory, as it is between two runs."""
        self.engine.close()
        copy = self.path.with_name(f"{self.name}.backup")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.path, copy)
        self.open()
        return copy

    def restore(self, copy: Path) -> None:
        """Starts on a copy, and loses what came since."""
        self.engine.close()
        shutil.rmtree(self.path)
        shutil.copytree(copy, self.path)
        self.open()

    def empty(self) -> None:
        """Starts anew, with nothing."""
        self.engine.close()
        shutil.rmtree(self.path)
        self.open()

    def tick(self, seconds: float = 1) -> None:
        self.now += int(seconds * SECOND)

    def set(self, key: bytes, value: bytes = b"value") -> None:
        self.tick()
        self.engine.set(key, value)
        self.engine.commit()

    def delete(self, key: bytes) -> None:
        self.tick()
        assert self.engine.delete(key)
        self.engine.commit()

    def records(self) -> dict[bytes, bytes]:
        """All that it holds, tombstones too."""
        found: dict[bytes, bytes] = {}
        after: bytes | None = b""
        while after is not None:
            pairs, after = self.engine.records_page(b"", after)
            found.update(pairs)
        return found

    def values(self) -> dict[bytes, bytes]:
        return {key: record[VALUE_AT:] for key, record in self.records().items() if not is_dead(record)}

    def take_event(self, key: bytes, record: bytes, origin: str = "elsewhere") -> None:
        """An event of another node, as the inbox takes it."""
        self.engine.merge([(OP_DEL if is_dead(record) else OP_SET, key, record)], origin.encode())
        self.engine.commit()

    def initiate(self, **options: bool) -> Initiator:
        return Initiator(self.engine, self.members, self._cluster, **options)

    def check(self) -> None:
        assert check_engine(self.engine) == []
        assert self.members.current >= self.engine.horizon
        self.engine.close()
        assert check_directory(self.path) == []


def is_dead(record: bytes) -> bool:
    return bool(record[FLAGS_AT] & TOMBSTONE)


def answer(node: Node, request: bytes) -> bytes:
    """What a node answers, with merging done whenever it waits for that."""
    slices = node.responder.answer(request)
    try:
        while True:
            pause = next(slices)
            if pause is not None and not pause():
                node.engine.commit()
                node.engine.absorb_sealed()
                assert pause()
    except StopIteration as end:
        reply: bytes = end.value
        return reply


def carry(
    steps: Generator[bytes, bytes, ExchangeReport],
    node: Node,
    *,
    before: Callable[[int, bytes], bytes] = lambda number, request: request,
    after: Callable[[int, bytes], bytes] = lambda number, reply: reply,
) -> ExchangeReport:
    """Carries an exchange to its end.  `before` and `after` see the numbered requests and answers, and may change them
    or raise Cut.
    """
    number = 0
    try:
        request = next(steps)
        while True:
            reply = after(number, answer(node, before(number, request)))
            number += 1
            request = steps.send(reply)
    except StopIteration as end:
        report: ExchangeReport = end.value
        return report


def cut_when(is_so: Callable[[str], bool]) -> Callable[[int, bytes], bytes]:
    """For `before`: cuts an exchange before a request, given its kind."""

    def cut(_: int, request: bytes) -> bytes:
        if is_so(decode(request, 1 << 24)[0]):
            raise Cut
        return request

    return cut


def exchange(first: Node, second: Node, **options: bool) -> ExchangeReport:
    """A whole exchange that the first begins."""
    return carry(first.initiate(**options).steps(), second)


def meet_all(nodes: list[Node], rounds: int = 3) -> None:
    """Everybody with everybody, often enough for the horizon to follow."""
    for _ in range(rounds):
        for first in nodes:
            first.tick()
            for second in nodes:
                if second is not first:
                    exchange(first, second)


def agree(*nodes: Node) -> bool:
    """Whether they hold the same, as their roots say and as it is."""
    same = all(node.records() == nodes[0].records() for node in nodes)
    assert same == (len({node.engine.root() for node in nodes}) == 1)
    return same


@contextmanager
def directory() -> Iterator[Path]:
    """A directory for one example."""
    with TemporaryDirectory(dir=MEMORY, prefix="merklekv-test-") as path:
        yield Path(path)


@contextmanager
def cluster(path: Path, names: str = "abc", **options: Any) -> Iterator[list[Node]]:
    """Nodes in a directory, which are checked in the end."""
    nodes = [Node(path / name, **options) for name in names]
    try:
        yield nodes
        for node in nodes:
            node.check()
    finally:
        for node in nodes:
            node.engine.close()
