"""Exchanges with a node that lies: as the one that begins them, and as the one that is asked.

The liar is an engine in this process with the real code of an exchange. Its messages are changed on their way: a field,
a record, a row of the table of members, or bytes.
"""

from __future__ import annotations

import random
import socket
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import cbor2
from fixtures.exchanges import Node, answer
from fixtures.wire import Wire
from xxhash import xxh3_64_digest

from merklekv.engine.record import VERSION_SIZE, make_record, timestamp_of
from merklekv.harness.process import HOST
from merklekv.net.client import Client, NodeError, Unreachable
from merklekv.net.protocol.replies import INCOMPLETE, ReplyParser
from merklekv.replication.cluster.members import MemberTable
from merklekv.replication.plain_cbor import Malformed
from merklekv.replication.sync.messages import EXCHANGE_VERSION, MAGIC, encode, pack, unpack

from . import mutate
from .arena import PREFIX, ArenaPath, deliver, request
from .input_path import Finding, Scene

HEAD: Final = MAGIC + bytes((EXCHANGE_VERSION,))
CHECKSUM_SIZE: Final = 8
LOT: Final = 20
CONNECTIONS: Final = 10
CONTEXT: Final = ("do", "to", "gc_horizon")  # fields without which a node does not look at the others
BOMBS: Final = (
    b"\xa2\x62do\x65hello\x61x\x9a\x00\x40\x00\x00" + b"\xa0" * 300_000,
    b"\xa2\x62do\x65hello\x61x\x9a\xff\xff\xff\xff",
    b"\xa2\x62do\x65hello\x61x" + b"\x81" * 50_000,
    b"\xa2\x62do\x65hello\x61x\xc2\x5a\x00\x10\x00\x00" + b"\xff" * 500_000,
    b"\xa2\x62do\x65hello\x61x\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\xbf\x62do\x65hello\xff",
    b"\xa1\x62do\x7f\x65hello\xff",
    b"\xa2\x62do\x65hello\x62do\x64done",
    b"\xd9\xd9\xf7\xa1\x62do\x65hello",
    b"\xa1\xa0\xa0",
    b"",
)
GARBAGE: Final = (
    *(
        b"$99999999999\r\n" + b"x" * 100_000,
        b"$-2\r\n",
        b"$-1\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*1000000\r\n" + b"$-1\r\n" * 10_000,
    ),
    *(
        b"*1\r\n" * 100_000,
        b"+" + b"x" * 200_000,
        b"-" + b"\x1b[31m\r\n",
        b"-ERR " + b"x" * 100_000 + b"\r\n",
        b":99\r\n",
        b":" + mutate.DIGITS + b"\r\n",
    ),
    *(
        b"",
        b"\0" * 1000,
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$3\r\nab",
        b"_\r\n",
        b",nan\r\n",
        b"%1\r\n$1\r\na\r\n:1\r\n",
        b"$" + mutate.DIGITS,
    ),
)


@dataclass(frozen=True)
class Plain:
    """A table of members in plain types, changed."""

    given: dict[str, object]

    def plain(self) -> dict[str, object]:
        return self.given


class Liar:
    """A node in this process that tells what a chance makes of the truth."""

    def __init__(self, scene: Scene, number: int) -> None:
        path = scene.scratch / f"liar-{time.monotonic_ns()}-{number}"
        self.node = Node(path, PREFIX, wall_clock=time.time_ns)
        for one in range(30):
            self.node.engine.set(b"hostile:%d" % one, b"v" * one)
        self.node.engine.commit()

    def close(self) -> None:
        self.node.engine.close()

    def lie(self, chance: random.Random, message: bytes) -> bytes:
        """A message that says something else."""
        kind = chance.random()
        if kind < 0.06:
            return sealed(HEAD + chance.choice(BOMBS))
        if kind < 0.12:
            return mutate.damaged(chance, message)
        if kind < 0.2:
            return sealed(HEAD + mutate.damaged(chance, message[len(HEAD) : -CHECKSUM_SIZE]))
        said: dict[str, Any] = cbor2.loads(message[len(HEAD) : -CHECKSUM_SIZE])
        names = [name for name in said if name not in CONTEXT or chance.random() < 0.1]
        if not names:
            return sealed(HEAD + cbor2.dumps(mutate.structure(chance, said)))
        name = chance.choice(names)
        if name == "hello" and chance.random() < 0.7:
            said["hello"] = said["hello"] | {"table": self._table(chance, said["hello"]["table"])}
        elif name == "table":
            said["table"] = self._table(chance, said["table"])
        elif name in ("records", "heads") and chance.random() < 0.7:
            said[name] = [*said[name], *self._records(chance)]
        elif chance.random() < 0.1:
            del said[name]
        else:
            said[name] = mutate.structure(chance, said[name])
        if isinstance(hello := said.get("hello"), dict) and is_effective(hello.get("truncation")):
            hello["truncation"] = bytes(VERSION_SIZE)  # a truncation may take everything: not here
        with suppress(Exception):  # what CBOR cannot say, such as a lone surrogate
            return sealed(HEAD + cbor2.dumps(said))
        return message

    def _table(self, chance: random.Random, packed: bytes) -> bytes:
        if chance.random() < 0.1:
            return chance.choice(
                (b"", zlib.compress(bytes(30 << 20)), mutate.damaged(chance, packed), packed + b"x", packed[:-3])
            )
        try:
            plain = unpack(packed).plain()
        except Malformed:  # it refers to the table that the other one has sent
            plain = self.node.members.table().plain()
        who = (mutate.text(chance), chance.randbytes(chance.choice((0, 7, 8, 8, 8, 9))))
        numbers = [chance.choice((mutate.moment(chance), time.time_ns())) for _ in range(4)]
        match chance.randrange(6):
            case 0:
                rows = [[*who, *numbers, chance.choice((b"", b"v" * 8, b"x"))]]
                plain["rows"] = [*cast(list[object], plain["rows"]), *rows]
            case 1:
                name = chance.choice(("removed", "stable_through", "redeleted"))
                plain[name] = [[*who, numbers[0]]] * chance.choice((1, 1, 2, 300))
            case 2:
                plain["lost_writes"] = [
                    [
                        *who,
                        [[chance.choice(numbers), chance.choice(numbers), chance.choice(numbers)]]
                        * chance.choice((0, 1, 9)),
                    ]
                ]
            case 3:
                plain["refused"] = [mutate.structure(chance, [b"hostile:1", *numbers[:2], "clock", who[0]])]
            case _:
                plain = mutate.structure(chance, plain)
        with suppress(Exception):
            return pack(cast(MemberTable, Plain(plain)))
        return packed

    def _records(self, chance: random.Random) -> list[bytes]:
        made: list[bytes] = []
        for _ in range(chance.choice((1, 1, 5, 300))):
            key = chance.choice((b"hostile:%d" % chance.randrange(50), mutate.word(chance)))
            time_ns = mutate.moment(chance) if chance.random() < 0.6 else time.time_ns()
            record = hostile_record(chance, key, max(time_ns, 0) % (1 << 64))
            made += [key, record]
        return made


def hostile_record(chance: random.Random, key: bytes, time_ns: int) -> bytes:
    """A record, of which something may be wrong."""
    version = time_ns.to_bytes(8, "big") + chance.choice((bytes(16), b"\xff" * 16, chance.randbytes(16)))
    value = chance.choice((b"", b"v", b"x" * 5000, b"9" * 5000))
    expiry = chance.choice((None, None, 1, time_ns // 10**6, (1 << 63) // 10**6))
    try:
        record = make_record(
            key, version, value, tombstone=not value and chance.random() < 0.5, expiry=expiry if value else None
        )
    except Exception:  # noqa: BLE001  the real encoder refuses it
        record = version + b"\0" * 17 + value
    return mutate.damaged(chance, record) if chance.random() < 0.4 else record


def is_effective(truncation: object) -> bool:
    """Whether this truncation could take honest data."""
    if not isinstance(truncation, bytes) or len(truncation) != VERSION_SIZE:
        return False
    return 10**18 < timestamp_of(truncation) <= time.time_ns() + mutate.DRIFT_NS


def sealed(body: bytes) -> bytes:
    """With the right checksum."""
    return body + xxh3_64_digest(body)


class Liars(ArenaPath):
    """A path with a liar. It gets another one when the cluster has had enough of it."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._liar: Liar | None = None
        self._known: object = None

    @property
    def liar(self) -> Liar:
        if self._liar is None or self._known is not self.scene.arena:
            self.drop_liar()
            self._known = self.scene.arena
            self._liar = Liar(self.scene, self.inputs)
        return self._liar

    def drop_liar(self) -> None:
        if self._liar is not None:
            self._liar.close()
            self._liar = None

    def close(self) -> None:
        self.drop_liar()


class Exchange(Liars):
    """Messages of exchanges that begin elsewhere, and records of other tools."""

    name = "exchange"

    def volley(self, seeds: Sequence[int]) -> None:
        for at in range(0, len(seeds), LOT * CONNECTIONS):
            some = seeds[at : at + LOT * CONNECTIONS]
            true = self._record()
            payloads = [
                b"".join(self._request(random.Random(seed), true) for seed in some[at : at + LOT])
                for at in range(0, len(some), LOT)
            ]
            self.require_sound(deliver(self.scene.arena.victim.port, payloads, 2.0))

    def _request(self, chance: random.Random, true: Sequence[bytes]) -> bytes:
        if chance.random() < 0.15:
            return self._merge(chance)
        message = self.liar.lie(chance, chance.choice(true))
        if chance.random() < 0.1:
            at = chance.randrange(len(message) + 1)
            return request(b"EXCHANGE", message[:at], message[at:])
        return request(b"EXCHANGE", message[: 1 << 20], message[1 << 20 :])

    def _merge(self, chance: random.Random) -> bytes:
        words = [b"MERGE", mutate.text(chance).encode()]
        for _ in range(chance.choice((1, 1, 2, 50))):
            key = chance.choice((b"hostile:%d" % chance.randrange(50), mutate.word(chance)))
            record = hostile_record(chance, key, max(mutate.moment(chance), 0) % (1 << 64))
            words += [key, record[:41], record[41:]]
        return request(*words)

    def _record(self) -> list[bytes]:
        """The requests of a true exchange with the victim."""
        for _ in range(20):
            node = self.liar.node
            node.engine.set(b"hostile:%d" % random.randrange(50), b"%d" % time.time_ns())
            node.engine.commit()
            requests: list[bytes] = []
            steps = node.initiate(full=random.random() < 0.5).steps()
            try:
                with Client(HOST, self.scene.arena.victim.port) as client:
                    message = next(steps)
                    while True:
                        requests.append(message)
                        reply = client.call(b"EXCHANGE", message)
                        assert isinstance(reply, bytes)
                        message = steps.send(reply)
            except StopIteration:
                return requests
            except (NodeError, Unreachable) as error:
                raise Finding(f"an exchange is not answered: {error}") from error
            except Exception:  # noqa: BLE001  refused: busy, removed, no room; or it was told a lie that came back
                if len(requests) > 2:
                    return requests
                self.drop_liar()
        return requests

    def show(self, seed: int) -> str:
        return f"seed {seed}"


class Server(Liars):
    """Answers of a node that the victim has asked."""

    name = "server"
    share = 0.1  # an exchange waits for the disk several times
    batch = 200

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._listener = socket.create_server((HOST, 0), backlog=50)
        self._chance = random.Random(0)
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        super().close()

    def volley(self, seeds: Sequence[int]) -> None:
        port = self._listener.getsockname()[1]
        self.liar  # noqa: B018  made here, not by the first connection
        with Wire((HOST, self.scene.arena.victim.port)) as wire:
            for seed in seeds:
                self._chance = random.Random(seed)
                if random.Random(seed).random() < 0.8:  # else the answer to the hello is the last one
                    self.liar.node.engine.set(b"hostile:%d" % (seed % 50), b"%d" % seed)
                    self.liar.node.engine.commit()
                reply = wire.call(b"SYNC", b"127.0.0.1", b"%d" % port)
                self.require_sound(reply)
                self.require_printable(reply)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with suppress(OSError, Malformed):
                self._answer(connection)
            connection.close()

    def _answer(self, connection: socket.socket) -> None:
        chance = self._chance
        connection.settimeout(5)
        parser = ReplyParser(1 << 26)
        lie_at = chance.choice((0, 0, 1, 2, 3, 4))
        while True:
            while (asked := parser.next()) is INCOMPLETE:
                data = connection.recv(1 << 16)
                if not data:
                    return
                parser.feed(data)
            assert isinstance(asked, list)
            message = b"".join(part for part in asked[1:] if isinstance(part, bytes))
            true = self._true(chance, message)
            if lie_at > 0:
                reply = true
            elif chance.random() < 0.15:
                connection.sendall(chance.choice(GARBAGE))
                return
            else:
                reply = self.liar.lie(chance, true)
            lie_at -= 1
            raw = b"$%d\r\n%b\r\n" % (len(reply), reply)
            if chance.random() < 0.03:
                connection.sendall(mutate.damaged(chance, raw))
                return  # or both would wait
            connection.sendall(raw)

    def _true(self, chance: random.Random, message: bytes) -> bytes:
        if chance.random() < 0.05:
            why = chance.choice(
                ("busy", "itself", "full", "damaged", "unfit", "clock", "removed", "format", mutate.text(chance))
            )
            return encode("refused", node=mutate.text(chance), why=why, text=mutate.text(chance))
        if chance.random() < 0.03:
            return encode(chance.choice(("outdated", "hello", "inner", "transfer", "x")))
        return answer(self.liar.node, message)


PATHS = (Exchange, Server)
