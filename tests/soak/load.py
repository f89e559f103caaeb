"""Honest clients: writers with an account over both protocols, a subscriber, a follower of changes, and a probe.

Each is a thread with one connection to one node, which it opens again whenever it breaks. The rates are small: the
machine has to carry three nodes, a broker and all of this, and the faults on top.
"""

from __future__ import annotations

import random
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter as Counts
from collections.abc import Callable, Sequence
from typing import Final

from fixtures.node import LineClient

from merklekv.harness.process import HOST
from merklekv.net.client import Client, NodeError, Unreachable
from merklekv.net.executor import INTERNAL_ERROR

from .account import PLAIN, Account, Item, Request
from .cluster import SoakNode

REPLY_S: Final = 6.0
RETRY_S: Final = 0.2
BURST_PAUSE_S: Final = 0.2
PROBE_PAUSE_S: Final = 0.05
ITEMS: Final = 12  # written in a burst
OTHERS: Final = 12  # other requests in it
LINE_ITEMS: Final = 6
ERROR_WORDS: Final = 5  # by which errors are counted
SHARED: Final = 100  # keys that all writers write, each kind
BLOCK_MS: Final = 1_000
CHANNEL: Final = b"soak:news"
BIT_MAX: Final = 4_000
CHANGES_GONE: Final = "CHANGESGONE"


class Problems:
    """What went wrong, from all threads; each is kept once, and so many at most."""

    KEPT: Final = 50

    def __init__(self, began: float) -> None:
        self._began = began
        self._texts: list[str] = []
        self._lock = threading.Lock()

    def add(self, text: str) -> None:
        with self._lock:
            if len(self._texts) < self.KEPT:
                self._texts.append(f"second {time.monotonic() - self._began:.1f}: {text}")

    @property
    def texts(self) -> list[str]:
        with self._lock:
            return list(self._texts)


class Worker(ABC):
    """A thread that does something again and again until it is stopped, over a connection that may break."""

    def __init__(self, name: str, problems: Problems) -> None:
        self.name = name
        self.problems = problems
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Lets it end; `join` waits for that."""
        self._ends.set()

    def join(self) -> None:
        self._thread.join()

    def rest(self, seconds: float) -> None:
        """Waits for so long, or until it is stopped."""
        self._ends.wait(seconds)

    @property
    def is_stopped(self) -> bool:
        return self._ends.is_set()

    def _run(self) -> None:
        try:
            while not self.is_stopped:
                try:
                    self.work()
                except (Unreachable, OSError):
                    self.disconnect()
                    self.rest(RETRY_S)
        except Exception:  # noqa: BLE001 - whatever it is, it fails the soak
            self.problems.add(f"{self.name}: {traceback.format_exc()}")
        finally:
            self.disconnect()

    @abstractmethod
    def work(self) -> None:
        """One round, of a second or so. Unreachable, OSError: the connection broke."""

    @abstractmethod
    def disconnect(self) -> None:
        """Closes its connection, if there is one."""


class RespWorker(Worker):
    """One that speaks RESP to a node."""

    def __init__(self, role: str, node: SoakNode, problems: Problems) -> None:
        super().__init__(f"{role} of {node.name}", problems)
        self.node = node
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(HOST, self.node.port, REPLY_S)
            self.greet(self._client)
        return self._client

    def greet(self, client: Client) -> None:
        """What is said first on a new connection."""

    def disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


class Writer(RespWorker):
    """Writes what is in its account, and between that whatever else there is."""

    def __init__(self, node: SoakNode, seed: str, problems: Problems) -> None:
        super().__init__("writer", node, problems)
        self._chance = random.Random(f"{seed}, writer of {node.name}")
        self.account = Account(node.name, self._chance)
        self.errors: Counts[str] = Counts()  # answers that are errors, by their beginning
        self._address = b""  # of the connection, as the node sees it

    def greet(self, client: Client) -> None:
        """Makes the node close the connection before, so that it runs nothing of it after this one's requests."""
        if self._address:
            client.call(b"CLIENT", b"KILL", b"ADDR", self._address)
        shown = client.call(b"CLIENT", b"INFO")
        assert isinstance(shown, bytes)
        self._address = dict(word.partition(b"=")[::2] for word in shown.split())[b"addr"]

    def work(self) -> None:
        client = self.client
        items = self.account.some(ITEMS)
        self._check(client, items)
        changes = [(item, item.write()) for item in items]
        others = [_other_request(self._chance) for _ in range(OTHERS)]
        client.send([*(request for _, requests in changes for request in requests), *others])
        for item, requests in changes:
            done = [self._is_done(client) for _ in requests]
            if all(done):
                item.acknowledge()
                self.account.acknowledged += 1
        for _ in others:
            self._is_done(client)
        self.rest(BURST_PAUSE_S)

    def _check(self, client: Client, items: Sequence[Item]) -> None:
        try:
            values = client.call(b"MGET", *(key for item in items for key in item.keys))
        except NodeError:  # such as a full disk: the node does not show what it could not store
            return
        assert isinstance(values, list)
        rest = iter(values)
        for item in items:
            found = tuple(_bytes_or_none(next(rest)) for _ in item.keys)
            if not item.settle(found):
                self.problems.add(f"{self.name}: {described(item, found)}")

    def _is_done(self, client: Client) -> bool:
        try:
            client.receive()
        except NodeError as error:
            text = str(error).partition(": ")[2]
            _count_error(self, text)
            return False
        return True


class LineWriter(Worker):
    """The same over the line protocol, with the items that it can write."""

    def __init__(self, node: SoakNode, seed: str, problems: Problems) -> None:
        super().__init__(f"line writer of {node.name}", problems)
        self.node = node
        self.account = Account(f"{node.name}:line", random.Random(f"{seed}, {self.name}"), lines_only=True)
        self.errors: Counts[str] = Counts()
        self._client: LineClient | None = None
        self._address = ""

    def work(self) -> None:
        client = self._connected()
        items = self.account.some(LINE_ITEMS)
        for item in items:
            self._check(client, item)
        changes = [(item, item.write()) for item in items]
        client.send(b"".join(_line(request) for _, requests in changes for request in requests))
        for item, requests in changes:
            replies = [_next_line(client) for _ in requests]
            if not any(self._is_error(reply) for reply in replies):
                item.acknowledge()
                self.account.acknowledged += 1
        self.rest(BURST_PAUSE_S)

    def disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> LineClient:
        if self._client is None:
            if self._address:
                with Client(HOST, self.node.port, REPLY_S) as killer:
                    killer.call(b"CLIENT", b"KILL", b"ADDR", self._address.encode())
            self._client = LineClient(HOST, self.node.port, REPLY_S)
            self._address = "{}:{}".format(*self._client.socket.getsockname())
        return self._client

    def _check(self, client: LineClient, item: Item) -> None:
        client.send(_line((b"GET", item.keys[0])))
        word, _, value = _next_line(client).partition(" ")
        found = (value.encode() if word == "VALUE" else None,)
        if word != "ERROR" and not item.settle(found):
            self.problems.add(f"{self.name}: {described(item, found)}")

    def _is_error(self, reply: str) -> bool:
        if reply.startswith("ERROR"):
            _count_error(self, reply)
        return reply.startswith("ERROR")


AnyWriter = Writer | LineWriter


class Subscriber(RespWorker):
    """Receives what is published, and what expires."""

    def __init__(self, node: SoakNode, problems: Problems) -> None:
        super().__init__("subscriber", node, problems)
        self.received = 0

    def greet(self, client: Client) -> None:
        client.send([(b"PSUBSCRIBE", CHANNEL + b"*", b"__keyspace@0__:*")])

    def work(self) -> None:
        self.client.receive()
        self.received += 1


class Follower(RespWorker):
    """Follows the changes of a node by its cursor, across restarts."""

    def __init__(self, node: SoakNode, problems: Problems) -> None:
        super().__init__("follower", node, problems)
        self.changes = 0
        self.begun_again = 0
        self._cursor = b"$"

    def work(self) -> None:
        try:
            answer = self.client.call(b"CHANGES", self._cursor, b"COUNT", b"500", b"BLOCK", b"%d" % BLOCK_MS)
        except NodeError as error:
            if CHANGES_GONE in str(error):
                self._cursor, self.begun_again = b"$", self.begun_again + 1
            self.rest(RETRY_S)
            return
        assert isinstance(answer, list)
        cursor, changes = answer
        assert isinstance(cursor, bytes)
        assert isinstance(changes, list)
        self._cursor = cursor
        self.changes += len(changes)
        self.rest(RETRY_S)


class Probe(RespWorker):
    """An honest client that waits for each reply: how long they take."""

    def __init__(self, node: SoakNode, problems: Problems) -> None:
        super().__init__("probe", node, problems)
        self._key = b"probe:%b" % node.name.encode()
        self._lock = threading.Lock()
        self._seconds: list[float] = []

    def work(self) -> None:
        for request in ((b"SET", self._key, b"v"), (b"GET", self._key)):
            began = time.perf_counter()
            try:
                self.client.call(*request)
            except NodeError:
                pass  # a full disk; it was answered
            with self._lock:
                self._seconds.append(time.perf_counter() - began)
        self.rest(PROBE_PAUSE_S)

    def take(self) -> list[float]:
        """How long each reply since the last call took."""
        with self._lock:
            taken, self._seconds = self._seconds, []
        return taken


def described(item: Item, found: Sequence[bytes | None]) -> str:
    """An item that does not show what it has to."""
    shown = [value if value is None else value[:60] for value in found]
    return f"{item.keys} shows {shown}, but has writes {item.oldest} to {item.newest}"


def _count_error(writer: AnyWriter, text: str) -> None:
    writer.errors[" ".join(text.split()[:ERROR_WORDS])] += 1
    if INTERNAL_ERROR in text:
        writer.problems.add(f"{writer.name}: {text}")


def _bytes_or_none(value: object) -> bytes | None:
    assert value is None or isinstance(value, bytes)
    return value


def _line(request: Request) -> bytes:
    return b" ".join(request[:3]) + b"\r\n"


def _next_line(client: LineClient) -> str:
    if not (line := client.line()):
        raise ConnectionError("the node has closed the connection")
    return line


def _other_request(chance: random.Random) -> Request:
    """A request on keys that all writers share, or one that only reads. Their data does not grow."""
    return chance.choice(OTHER_REQUESTS)(chance)


def _shared(kind: bytes, chance: random.Random) -> bytes:
    return b"shared:%b:%d" % (kind, chance.randrange(SHARED))


def _any_key(chance: random.Random) -> bytes:
    return b"node-%d:plain:%d" % (chance.randint(1, 3), chance.randrange(PLAIN))


OTHER_REQUESTS: Final[tuple[Callable[[random.Random], Request], ...]] = (
    lambda chance: (b"SET", _shared(b"value", chance), chance.randbytes(chance.choice((1, 50, 500)))),
    lambda chance: (b"SET", _shared(b"value", chance), b"short", b"PX", b"%d" % chance.randint(1, 5_000)),
    lambda chance: (b"DEL", *(_shared(b"value", chance) for _ in range(3))),
    lambda chance: (b"INCRBY", _shared(b"number", chance), b"7"),
    lambda chance: (b"INCRBYFLOAT", _shared(b"float", chance), b"0.5"),
    lambda chance: (b"MSET", _shared(b"value", chance), b"1", _shared(b"value", chance), b"2"),
    lambda chance: (b"MSETNX", _shared(b"value", chance), b"1", _shared(b"value", chance), b"2"),
    lambda chance: (b"SETRANGE", _shared(b"range", chance), b"%d" % chance.randrange(200), b"text"),
    lambda chance: (b"SETBIT", _shared(b"bits", chance), b"%d" % chance.randrange(BIT_MAX), b"1"),
    lambda chance: (b"BITCOUNT", _shared(b"bits", chance)),
    lambda chance: (b"BITOP", b"XOR", _shared(b"bits", chance), _shared(b"bits", chance), _shared(b"bits", chance)),
    lambda chance: (b"RENAME", _shared(b"value", chance), _shared(b"value", chance)),
    lambda chance: (b"COPY", _shared(b"value", chance), _shared(b"value", chance), b"REPLACE"),
    lambda chance: (b"EXPIRE", _shared(b"value", chance), b"%d" % chance.randint(1, 10)),
    lambda chance: (b"PERSIST", _shared(b"value", chance)),
    lambda chance: (b"GETEX", _shared(b"value", chance), b"EX", b"5"),
    lambda chance: (b"GETDEL", _shared(b"value", chance)),
    lambda chance: (b"EVAL", b"return redis.call('INCR', KEYS[1])", b"1", _shared(b"number", chance)),
    lambda chance: (
        b"EVAL",
        b"return redis.call('SET', KEYS[1], %d)" % chance.randrange(1 << 40),
        b"1",
        b"shared:eval",
    ),
    lambda chance: (b"SCAN", b"0", b"MATCH", b"shared:*", b"COUNT", b"200"),
    lambda chance: (b"KEYS", b"node-1:counter:*"),
    lambda chance: (b"GET", _any_key(chance)),
    lambda chance: (b"MGET", *(_any_key(chance) for _ in range(20))),
    lambda chance: (b"EXISTS", *(_any_key(chance) for _ in range(5))),
    lambda chance: (b"STRLEN", _any_key(chance)),
    lambda chance: (b"TTL", _any_key(chance)),
    lambda chance: (b"HASH", b"shared:"),
    lambda chance: (b"DBSIZE",),
    lambda chance: (b"INFO",),
    lambda chance: (b"RANDOMKEY",),
    lambda chance: (b"PUBLISH", CHANNEL, chance.randbytes(chance.choice((10, 1_000)))),
    lambda chance: (b"PUBLISH", CHANNEL + b":more", b"more"),
)
