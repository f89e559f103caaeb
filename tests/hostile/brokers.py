"""A broker that lies: what it answers and delivers, packet by packet, to a node of its own."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from fixtures.node import NodeProcess

from merklekv.harness.process import HOST

from . import mutate
from .arena import Watched, call, fill, make_node
from .input_path import Finding, Scene, SeededPath
from .messages import payload_of, topic_of

CONNACK: Final = b"\x20\x03\1\0\0"  # there is a session: the node waits for no other nodes
MARKER_ID: Final = 65_535
PACKETS_MAX: Final = 40  # on one connection
WAIT_S: Final = 60.0
DAMAGED_SHARE: Final = 25  # one input in so many ends the connection
PROPERTIES: Final = (
    *(
        b"",
        b"\x01\0",
        b"\x02\0\0\0\0",
        b"\x02\xff\xff\xff\xff",
        b"\x03\0\0",
        b"\x08\0\0",
        b"\x09\0\0",
        b"\x0b\x01",
        b"\x0b\0",
        b"\x23\0\x01",
    ),
    *(
        b"\x23\xff\xff",
        b"\x26\0\0\0\0",
        b"\x26\0\1a\0\1b" * 10,
        b"\x11\0\0\0\0",
        b"\x21\0\0",
        b"\x21\0\1",
        b"\x27\0\0\0\0",
        b"\x27\0\0\0\1",
    ),
    *(
        b"\x22\0\0",
        b"\x24\0",
        b"\x25\0",
        b"\x28\0",
        b"\x12\0\0",
        b"\x13\0\0",
        b"\x15\0\0",
        b"\x1f\0\2hi",
        b"\x1f\0\4\x1b[2J",
        b"\xff",
        b"\x00",
    ),
)
REASONS: Final = (0, 1, 2, 4, 0x10, 0x18, 0x80, 0x81, 0x82, 0x87, 0x8D, 0x8E, 0x93, 0x95, 0x97, 0x99, 0x9D, 0xA2, 0xFF)


def packet(head: int, body: bytes) -> bytes:
    """An MQTT packet: the first byte, the length of the rest in groups of seven bits, the rest."""
    size, length = len(body), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((head, *length, size)) + body


def sized(data: bytes) -> bytes:
    return (len(data) & 0xFFFF).to_bytes(2, "big") + data[:0xFFFF]


def whole_packet(chance: random.Random) -> bytes:
    """A packet that a client may get, or can ignore."""
    kind = chance.random()
    number = chance.choice((0, 1, 2, 3, 100, 65_534)).to_bytes(2, "big")
    if kind < 0.75:
        topic, name, of = topic_of(chance)
        encoded = topic.encode(errors="surrogatepass")
        if chance.random() < 0.1:
            encoded = mutate.word(chance)
        quality = chance.choice((0, 1, 1, 2))
        flags = quality << 1 | chance.choice((0, 1, 8, 9)) * (quality > 0)
        payload = payload_of(chance, of, name)
        return packet(0x30 | flags, sized(encoded) + (number if quality else b"") + b"\0" + payload)
    reason = bytes((chance.choice(REASONS),))
    return chance.choice(
        (
            packet(0x40, number),
            packet(0x40, number + reason),
            packet(0x40, number + reason + b"\0"),
            packet(0x50, number),
            packet(0x62, number),
            packet(0x70, number),
            packet(0x90, number + b"\0" + reason),
            packet(0xB0, number + b"\0" + reason),
            packet(0xD0, b""),
        )
    )


def fatal_packet(chance: random.Random) -> bytes:
    """What a client may close the connection for."""
    kind = chance.random()
    if kind < 0.4:
        return mutate.damaged(chance, whole_packet(chance))
    if kind < 0.5:
        return chance.randbytes(chance.choice((1, 2, 5, 100)))
    properties = chance.choice(PROPERTIES) * chance.choice((1, 1, 2))
    reason = bytes((chance.choice(REASONS),))
    return chance.choice(
        (
            packet(0xE0, reason),
            packet(0xE0, reason + bytes((len(properties),)) + properties),
            packet(0xE0, b""),
            packet(0xF0, reason + bytes((len(properties),)) + properties),
            packet(0x20, bytes((chance.choice((0, 1, 255)),)) + reason + bytes((len(properties),)) + properties),
            packet(0x30, sized(b"hostile/x/events") + bytes((len(properties),)) + properties + b"x"),
            packet(0x36, sized(b"hostile/x/events") + b"\0\1\0x"),
            packet(0x90, b""),
            packet(0x90, b"\0\1" + b"\xff\xff\xff\xff\x7f"),
            packet(chance.randrange(256), chance.randbytes(chance.choice((0, 1, 2, 4, 20)))),
            b"\x30\xff\xff\xff\x7f" + b"x" * 100_000,
            b"\x30\xff\xff\xff\xff\xff\xff",
            b"\x32\x80\x80\x80\x00",
        )
    )


def greeting(chance: random.Random) -> bytes:
    """The answer to CONNECT."""
    if chance.random() < 0.8:
        return CONNACK
    properties = chance.choice(PROPERTIES) * chance.choice((1, 1, 2))
    made = packet(
        0x20, bytes((chance.choice((0, 1)), chance.choice((0, 0, 0, *REASONS)), len(properties))) + properties
    )
    return mutate.damaged(chance, made) if chance.random() < 0.3 else made


class BrokerPath(SeededPath):
    """Packets of a hostile broker. Its node has honest data, which stays."""

    name = "broker"
    share = 0.5  # it has to come back for each packet that ends the connection
    batch = 400

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._listener = socket.create_server((HOST, 0), backlog=50)
        self._nodes = 0
        self._watched: Watched | None = None
        self._values: dict[bytes, bytes] = {}
        self._to_send: list[list[int]] = []  # seeds, by connection
        self._greeter = random.Random(0)
        self._done = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def node(self) -> NodeProcess:
        return self.watched.node

    @property
    def watched(self) -> Watched:
        if self._watched is None:
            self._nodes += 1
            directory = self.scene.scratch / f"broker-{self._nodes}"
            directory.mkdir()
            node = make_node(directory, "hermit", self._listener.getsockname()[1]).start()
            self._values = fill(node)
            self._watched = Watched(node)
            self._watched.begin()
        return self._watched

    def volley(self, seeds: Sequence[int]) -> None:
        whole = [seed for seed in seeds if seed % DAMAGED_SHARE]
        lots = [whole[at : at + PACKETS_MAX] for at in range(0, len(whole), PACKETS_MAX)] or [[]]
        fatal = [seed for seed in seeds if not seed % DAMAGED_SHARE]
        lots += [[] for _ in range(len(fatal) - len(lots))]
        for lot, seed in zip(lots, fatal, strict=False):
            lot.append(seed)
        port = self.node.port
        assert port
        self._greeter = random.Random(str(seeds[:1]))
        self._done.clear()
        self._to_send = lots[::-1]
        for _ in range(int(WAIT_S * 20)):
            call(self.node, b"SET", b"hostile:1", b"v")  # what has published something may reconnect at once
            if self._done.wait(0.05):
                return
        raise Finding(f"the node does not come back to its broker: {self.watched.figures()['replication_detail']}")

    def check(self, *, whole: bool) -> None:
        self.watched.require_running()
        self.watched.check_log()
        self.watched.check_data(self._values)
        if whole:
            self.watched.check_figures()
            self.watched.check_usage()
            self.watched.check_restart(self._values)

    def renew(self) -> None:
        if self._watched is not None:
            self._watched.node.end()
            self._watched = None

    def close(self) -> None:
        self._listener.close()
        self.renew()

    def show(self, seed: int) -> str:
        return repr((whole_packet if seed % DAMAGED_SHARE else fatal_packet)(random.Random(seed))[:1000])

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                connection.settimeout(5)
                self._speak(connection)

    def _speak(self, connection: socket.socket) -> None:
        """One connection: the handshake, an answer to whatever comes, the next seeds when it publishes, and the end."""
        received = bytearray()
        seeds: list[int] = []
        is_welcome = False
        try:
            while True:
                while (found := _first(received)) is not None:
                    head, body = found
                    match head >> 4:
                        case 1:
                            connection.sendall(CONNACK if is_welcome or not self._to_send else greeting(self._greeter))
                            is_welcome = True
                        case 8:
                            connection.sendall(packet(0x90, body[:2] + b"\0\1\0"))
                        case 10:
                            connection.sendall(packet(0xB0, body[:2] + b"\0\0"))
                        case 3 if head & 6:
                            size = 2 + int.from_bytes(body[:2], "big")
                            connection.sendall(packet(0x40, body[size : size + 2]))
                            connection.sendall(
                                packet(0x30, body[:size] + body[size + 2 :])
                            )  # it has subscribed to its own
                            if b"/events" in body[:size] and not seeds and self._to_send:
                                seeds = self._to_send.pop()
                                self._send(connection, seeds)
                        case 4 if int.from_bytes(body[:2], "big") == MARKER_ID:
                            fatal = [seed for seed in seeds if not seed % DAMAGED_SHARE]
                            connection.sendall(b"".join(fatal_packet(random.Random(seed)) for seed in fatal))
                            connection.shutdown(socket.SHUT_WR)
                        case 12:
                            connection.sendall(b"\xd0\0")
                data = connection.recv(1 << 16)
                if not data:
                    return
                received += data
        finally:
            if seeds and not self._to_send:
                self._done.set()

    def _send(self, connection: socket.socket, seeds: list[int]) -> None:
        whole = [whole_packet(random.Random(seed)) for seed in seeds if seed % DAMAGED_SHARE]
        marker = packet(0x32, sized(b"hostile/marker/events") + MARKER_ID.to_bytes(2, "big") + b"\0x")
        connection.sendall(b"".join([*whole, marker]))


def _first(received: bytearray) -> tuple[int, bytes] | None:
    """Takes the first whole packet from what was received."""
    size = 0
    for at in range(1, min(len(received), 5)):
        size |= (received[at] & 0x7F) << 7 * (at - 1)
        if not received[at] & 0x80:
            if len(received) < at + 1 + size:
                return None
            found = received[0], bytes(received[at + 1 : at + 1 + size])
            del received[: at + 1 + size]
            return found
    return None


PATHS = (BrokerPath,)
