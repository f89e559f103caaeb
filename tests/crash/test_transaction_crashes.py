"""Transactions are whole or not there: across -9 at any moment of heavy writing, and on a disk that fills up."""

from __future__ import annotations

import random
import threading

import pytest
from fixtures.crash_harness import SMALL_MEMTABLE
from fixtures.node import NodeFactory
from fixtures.small_disk import Disk
from fixtures.support import wait_until

from merklekv.net.client import Client, NoAnswer, NodeError, Reply, Unreachable

CLIENTS = 8
KEYS = 10  # of one transaction
ROUNDS = 3
ACKNOWLEDGED_MAX = 400
REFUSALS = 20
LENGTH = 100_000
SPARE = 10 << 20  # less than a few transactions and what is kept for deletions
ROLLED_BACK = "writes that were not acknowledged are rolled back"  # one that was refused in the midst
VALUE = b"%d:" + bytes(300)
APPENDED = bytes(5000)


class Writer(threading.Thread):
    """Writes the same number to all of its keys, in one transaction after the other, until the node is gone."""

    def __init__(self, port: int, number: int, last: int, enough: threading.Semaphore) -> None:
        super().__init__()
        self.port, self.number = port, number
        self.sent = self.acknowledged = last
        self.enough = enough

    def run(self) -> None:
        try:
            with Client("127.0.0.1", self.port) as client:
                while True:
                    self.sent += 1
                    client.send([[b"MULTI"], *self.requests(self.sent), [b"EXEC"]])
                    for _ in range(KEYS + 1):
                        client.receive()
                    assert client.receive() == [b"OK"] * KEYS
                    self.acknowledged = self.sent
                    self.enough.release()
        except (Unreachable, NoAnswer, OSError):
            pass

    def requests(self, value: int) -> list[list[bytes]]:
        return [[b"SET", key, VALUE % value] for key in keys_of(self.number)]


def keys_of(number: int) -> list[bytes]:
    return [b"c%d:%d" % (number, key) for key in range(KEYS)]


def read(client: Client, number: int) -> int:
    """The one number that all keys of a writer hold."""
    values = client.call(b"MGET", *keys_of(number))
    assert isinstance(values, list)
    (value,) = set(map(number_of, values))
    return value


def number_of(value: Reply) -> int:
    return int(value.partition(b":")[0]) if isinstance(value, bytes) else 0


@pytest.mark.parametrize("durability", ["always", "everysec"])
def test_a_killed_node_has_all_of_a_transaction_or_nothing(
    durability: str, node_factory: NodeFactory, crash_seed: str
) -> None:
    node = node_factory(*SMALL_MEMTABLE, "--durability", durability)
    schedule = random.Random(f"{crash_seed}-{durability}")
    found = [0] * CLIENTS
    for _ in range(ROUNDS):
        enough = threading.Semaphore(0)
        writers = [Writer(node.port, number, last, enough) for number, last in enumerate(found)]
        for writer in writers:
            writer.start()
        for _ in range(schedule.randrange(ACKNOWLEDGED_MAX)):
            assert enough.acquire(timeout=60)
        node.kill()
        for writer in writers:
            writer.join()
        node.start()
        with Client("127.0.0.1", node.port) as client:
            found = [read(client, number) for number in range(CLIENTS)]
        for writer, value in zip(writers, found, strict=True):
            assert writer.acknowledged <= value <= writer.sent


def test_a_full_disk_takes_all_of_a_transaction_back(disk: Disk, node_factory: NodeFactory) -> None:
    """Values that grow are what no room is reserved for, so some of these run out of it in the midst."""
    node = node_factory(*SMALL_MEMTABLE, "--durability", "always", directory=disk.path / "data")
    with Client("127.0.0.1", node.port) as client:
        length, refused = LENGTH, [""]
        for key in keys_of(0):
            client.call(b"SET", key, bytes(length))
        while len(refused) < REFUSALS or ROLLED_BACK not in node.output():
            disk.fill(spare=SPARE)
            try:
                length = append_to_all(client, length)
            except NodeError as problem:
                refused.append(str(problem))
            assert lengths(client) == {length}
        assert all("not stored" in text for text in refused[1:])
        node.kill()
        node.start()
    with Client("127.0.0.1", node.port) as client:
        assert lengths(client) == {length}
        disk.free()
        wait_until(lambda: grows(client, length), what="room for a transaction")
        assert lengths(client) == {length + len(APPENDED)}


def append_to_all(client: Client, length: int) -> int:
    keys = keys_of(0)
    client.send([[b"MULTI"], *[[b"APPEND", key, APPENDED] for key in keys], [b"EXEC"]])
    problems = []
    replies: Reply = None
    for _ in range(len(keys) + 2):
        try:
            replies = client.receive()
        except NodeError as problem:
            problems.append(problem)
    if problems:
        raise problems[-1]
    assert replies == [length + len(APPENDED)] * KEYS
    return length + len(APPENDED)


def grows(client: Client, length: int) -> bool:
    try:
        return append_to_all(client, length) > length
    except NodeError:
        return False


def lengths(client: Client) -> set[Reply]:
    return {client.call(b"STRLEN", key) for key in keys_of(0)}
