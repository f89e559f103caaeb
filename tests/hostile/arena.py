"""Real nodes that are attacked, and what has to hold of them all the while.

    victim   the node that strangers reach: its port, its HTTP port, its broker, the addresses that it is told of
    peer     an honest node at the same broker
    control  a node that nobody reaches, to tell a slow victim from a busy machine; only where time is measured

Keys that begin with `honest:` are those of honest clients. No input path writes such a key.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Final, Self

from fixtures.node import NodeProcess
from fixtures.wire import Wire

from merklekv import interpreter
from merklekv.harness.broker import OPEN, Mosquitto
from merklekv.harness.process import HOST, HarnessError, free_port, setting_flags, wait_until
from merklekv.metrics import parse
from merklekv.net.client import Client

from .input_path import Finding, SeededPath, Slow

PREFIX: Final = "hostile"
HONEST_KEYS: Final = 200
WAIT_S: Final = 60.0
DRIFT_S: Final = 600
MEMORY_FACTOR: Final = 1.2
MEMORY_ROOM: Final = 16 << 20  # what the allocator keeps of large requests and of messages that were bombs
LEAK_LOOKS: Final = 10  # in each third of an attack, for its growth to mean something
SPARE_DESCRIPTORS: Final = 12  # segments of the log, readers of the base, what replication opens now and then
SPARE_THREADS: Final = 6
SLOW_S: Final = 0.1  # of processor time, before an honest client is answered
STUCK_S: Final = 1.0  # without any
WRONG: Final = re.compile(r"Traceback|internal error|Exception in thread|Segmentation|unreadable", re.IGNORECASE)
SETTINGS: Final = {
    "memtable_size": "1MiB",
    "max_value_size": "1MiB",
    "retain_log_bytes": "1MiB",
    "limits.max_request_bytes": "8MiB",
    "limits.max_output_bytes": "16MiB",
    "anti_entropy.interval_seconds": "1",
    "replication.enabled": "true",
    "replication.mqtt_broker": HOST,
    "replication.topic_prefix": PREFIX,
    "replication.heartbeat_seconds": "1",
}


def honest_key(number: int) -> bytes:
    return b"honest:%04d" % (number % HONEST_KEYS)


def make_node(directory: Path, name: str, broker_port: int, **more: object) -> NodeProcess:
    """A node of this name at the broker at this port."""
    settings = SETTINGS | {"replication.client_id": name, "replication.mqtt_port": broker_port} | more
    return NodeProcess(directory / name, directory / f"{name}.log", *setting_flags(settings))


def fill(node: NodeProcess) -> dict[bytes, bytes]:
    """Stores the honest data, and returns them."""
    values = {honest_key(number): os.urandom(40) for number in range(HONEST_KEYS)}
    with Wire((HOST, node.port)) as wire:
        wire.send(b"".join(request(b"SET", key, value) for key, value in values.items()))
        if any(wire.resp() != b"+OK\r\n" for _ in values):
            raise HarnessError("a new node does not take honest data")
    return values


class Watched:
    """A node, and what it has used and said since its last start. Every check raises Finding."""

    def __init__(self, node: NodeProcess) -> None:
        self.node = node
        self.memory: list[int] = []  # anonymous bytes, at each look
        self._read_until = 0
        self._usual = (0, 0, 0)

    def begin(self) -> None:
        """It has started, and serves what it will serve: what it uses now is usual."""
        self._read_until = len(self.node.log.read_bytes()) - len(self.node.output().encode())
        self.memory = []
        self._usual = self.usage()

    def require_running(self) -> None:
        if not self.node.is_running:
            raise Finding(f"{self.node.log.stem} has ended with status {self.node.wait()}:\n{tail(self.node)}")

    def check_log(self) -> None:
        """Nothing in its log says that something went wrong."""
        with self.node.log.open("rb") as log:
            log.seek(max(self._read_until - 200, 0))
            said = log.read().decode(errors="replace")
            self._read_until = log.tell()
        if wrong := WRONG.search(said):
            raise Finding(f"the log says {said[max(wrong.start() - 500, 0) : wrong.end() + 3000]}")
        self.memory.append(anonymous_bytes(self.node.pid))

    def ask(self, expected: bytes, *words: bytes) -> None:
        """It answers an honest client right."""
        answer = call(self.node, *words)
        if answer != expected:
            raise Finding(
                f"{self.node.log.stem} answers an honest {words[0].decode()} with {differing(answer, expected)}"
            )

    def check_data(self, values: dict[bytes, bytes]) -> None:
        """It has these values."""
        self.ask(bulks(list(values.values())), b"MGET", *values)

    def figures(self) -> dict[str, str]:
        """Its STATS."""
        return parse(call(self.node, b"STATS").partition(b"\r\n")[2].decode())

    def check_figures(self) -> None:
        """Its clock is sane, and its figures can be printed."""
        figures = self.figures()
        if wrong := {name: value for name, value in figures.items() if not (name + value).isprintable()}:
            raise Finding(f"STATS shows text of others as it came: {wrong}")
        if float(ahead := figures["clock_ahead_s"]) > DRIFT_S + 1:
            raise Finding(f"the clock of {self.node.log.stem} is {ahead} s ahead")
        if int(figures["gc_horizon_ns"]) > time.time_ns() + DRIFT_S * 10**9:
            raise Finding(f"the GC horizon of {self.node.log.stem} is {figures['gc_horizon_ns']} ns")

    def check_usage(self, room: int = MEMORY_ROOM) -> None:
        """Descriptors and threads come back, and memory does."""
        descriptors, threads, memory = self._usual

        def is_back() -> bool:
            now = self.usage()
            return (
                now[0] <= descriptors + SPARE_DESCRIPTORS
                and now[1] <= threads + SPARE_THREADS
                and now[2] <= MEMORY_FACTOR * memory + room
            )

        if len(self.memory) >= 3 * LEAK_LOOKS:
            third = len(self.memory) // 3
            middle, last = (min(some) for some in (self.memory[third:-third], self.memory[-third:]))
            if last > MEMORY_FACTOR * middle:
                raise Finding(f"memory grows: {middle:,} bytes, then {last:,}: {self.memory}")
        self.wait(is_back, lambda: f"descriptors, threads, memory {self._usual} to come back: they are {self.usage()}")

    def usage(self) -> tuple[int, int, int]:
        """Descriptors, threads, anonymous bytes."""
        pid = self.node.pid
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), anonymous_bytes(pid)

    def check_restart(self, values: dict[bytes, bytes]) -> None:
        """It survives both ends: `verify` finds nothing, and what it serves then is what it has served."""
        self.require_running()
        self.node.kill()
        self._restart("kill -9", values)
        status = self.node.stop()
        if status:
            raise Finding(f"an orderly stop ends with status {status}:\n{tail(self.node)}")
        verify = subprocess.run(
            interpreter.command("merklekv", "verify", str(self.node.directory)),
            capture_output=True,
            text=True,
            check=False,
        )
        if verify.returncode:
            raise Finding(f"verify ends with {verify.returncode}: {verify.stdout[-2000:]}{verify.stderr[-2000:]}")
        self._restart("an orderly stop", values)

    def _restart(self, after: str, values: dict[bytes, bytes]) -> None:
        try:
            self.node.start()
        except HarnessError as error:
            raise Finding(f"the start after {after} fails: {error}") from error
        if WRONG.search(self.node.output()):
            raise Finding(f"the start after {after} says\n{tail(self.node)}")
        self.check_data(values)
        self.begin()

    def wait(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        """Until this is so."""
        try:
            wait_until(condition, seconds=WAIT_S)
        except HarnessError:
            self.require_running()
            raise Finding(f"waited {WAIT_S:.0f} s in vain for {what()}\n{tail(self.node)}") from None


class Arena:
    """The nodes and their broker, in a directory of their own. Raises Finding from each check."""

    def __init__(self, directory: Path, *, measures: bool) -> None:
        directory.mkdir()
        self.directory = directory
        self.broker = Mosquitto(directory / "broker", *OPEN, "max_packet_size 2000000")
        self.http_port = free_port()
        self.victim = make_node(directory, "victim", self.broker.port, http_port=self.http_port)
        self.peer = make_node(directory, "peer", self.broker.port)
        self._control = NodeProcess(directory / "control", directory / "control.log") if measures else None
        self.watched = Watched(self.victim)
        self._watched_peer = Watched(self.peer)
        self.canary: Canary | None = None
        self._values: dict[bytes, bytes] = {}
        self._round = 0
        self.memory = ""  # of the victim in the last attack, for people
        self.slowest_s = 0.0  # answer to an honest client, in processor time

    def start(self) -> Self:
        self.broker.start()
        for node in (self.victim, self.peer):
            node.start()
        if self._control is not None:
            self._control.start()
        self._values = fill(self.victim)
        self._await(self._watched_peer, self._values)
        self._begin()
        return self

    def close(self) -> None:
        if self.canary is not None:
            self.canary.close()
        for one in (self.victim, self.peer, self._control, self.broker):
            if one is not None:
                one.end()

    def _begin(self) -> None:
        self.watched.begin()
        if self._control is not None:
            self.canary = Canary(self.victim, self._control)

    def check_quick(self, *, soon: bool = True) -> None:
        """The nodes run and answer right, and soon; nothing in their logs says that something went wrong."""
        for one in (self.watched, self._watched_peer):
            one.require_running()
        self._round += 1
        key = honest_key(self._round)
        self._values[key] = b"%d of %d" % (self._round, time.time_ns())
        self.watched.ask(b"+OK\r\n", b"SET", key, self._values[key])
        self.watched.check_data(
            {key: self._values[key] for key in map(honest_key, range(self._round, self._round + 20))}
        )
        for one in (self.watched, self._watched_peer):
            one.check_log()
        if self.canary is not None:
            self._look(self.canary, soon)

    def _look(self, canary: Canary, soon: bool) -> None:
        victim, control, used = canary.look()
        if not soon:
            return
        self.slowest_s = max(self.slowest_s, min(victim, used))
        if min(victim, used) > SLOW_S or victim > STUCK_S + 10 * control:
            waits = f"{victim * 1000:.0f} ms, at the control node {control * 1000:.0f} ms"
            raise Slow(f"an honest client waited {waits}; the victim computed for {used * 1000:.0f} ms of that")

    def check_whole(self, *, soon: bool = True, room: int = MEMORY_ROOM) -> None:
        """All honest data are there, on both nodes, and both replicate and exchange as ever."""
        self.check_quick(soon=soon)
        self.watched.check_data(self._values)
        self._check_replication()
        self._check_exchange()
        self.watched.check_figures()
        self.watched.check_usage(room)
        first, last = (self.watched.memory[at] >> 20 for at in (0, -1))
        self.memory = f"{first} MiB after the first batch, {last} after the last"

    def check_restart(self) -> None:
        """The victim survives both ends."""
        if self.canary is not None:
            self.canary.close()
            self.canary = None
        self.watched.check_restart(self._values)
        self._begin()

    def _check_replication(self) -> None:
        """An event of each node reaches the other."""
        for writer, reader in ((self._watched_peer, self.watched), (self.watched, self._watched_peer)):
            self._round += 1
            key, value = honest_key(self._round), os.urandom(20)
            writer.ask(b"+OK\r\n", b"SET", key, value)
            self._values[key] = value
            self._await(reader, {key: value})
        self._await(self._watched_peer, self._values)

    def _check_exchange(self) -> None:
        """An exchange with the honest peer succeeds, and then both have the same keys and values.

        Their roots may differ by tombstones: with members that lie, each may have a GC horizon of its own.
        """

        def is_equal() -> bool:
            answers.append(call(self.victim, b"SYNC", b"127.0.0.1", b"%d" % self.peer.port))
            held = [live(node) for node in (self.victim, self.peer)]
            unequal[:] = sorted(held[0].items() ^ held[1].items())[:3]
            return answers[-1] == b"+OK\r\n" and not unequal

        answers: list[bytes] = []
        unequal: list[tuple[bytes, bytes]] = []
        self.watched.wait(is_equal, lambda: f"an exchange with the honest peer: {answers[-3:]}, unequal {unequal}")

    def _await(self, one: Watched, values: dict[bytes, bytes]) -> None:
        expected = bulks(list(values.values()))
        one.wait(lambda: call(one.node, b"MGET", *values) == expected, lambda: f"honest data at {one.node.log.stem}")


class Canary:
    """A process that asks the victim and the control node all the time, and says how long that took."""

    def __init__(self, victim: NodeProcess, control: NodeProcess) -> None:
        words = [victim.pid, victim.port, control.port]
        command = [sys.executable, str(Path(__file__).with_name("canary.py")), *map(str, words)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)

    def look(self) -> tuple[float, float, float]:
        """The longest waits since the last look, at the victim and at the control node, and the processor time of the
        victim in one; in seconds.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words: list[str] = []
        with suppress(OSError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            words = self._process.stdout.readline().split()
        if len(words) != 3:
            raise Finding("an honest client was not answered at all")
        victim, control, used = map(float, words)
        return victim, control, used

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class ArenaPath(SeededPath):
    """A path to the victim of an arena.

    `is_measured`: honest clients may expect their answers soon all the while. `memory_room`: bytes that the victim may
    keep.
    """

    is_measured: ClassVar = True
    memory_room: ClassVar = MEMORY_ROOM

    def check(self, *, whole: bool) -> None:
        if whole:
            self.scene.arena.check_whole(soon=self.is_measured, room=self.memory_room)
            self.scene.arena.check_restart()
        else:
            self.scene.arena.check_quick(soon=self.is_measured)

    def renew(self) -> None:
        self.scene.renew()

    def require_sound(self, replies: bytes) -> None:
        """No reply is that of a defect."""
        if (at := replies.find(b"internal error")) >= 0:
            raise Finding(f"a reply says {replies[max(at - 200, 0) : at + 200]!r}")

    def require_printable(self, reply: bytes) -> None:
        """A reply with text of others is harmless to a terminal."""
        if not reply.removesuffix(b"\r\n").decode(errors="replace").isprintable():
            raise Finding(f"a reply has text of others as it came: {reply!r}")


def request(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def bulks(values: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(values) + b"".join([b"$%d\r\n%b\r\n" % (len(value), value) for value in values])


def call(node: NodeProcess, *words: bytes) -> bytes:
    """The reply to an honest request on a new connection, raw."""
    try:
        with Wire((HOST, node.port)) as wire:
            wire.send(request(*words))
            return wire.resp()
    except OSError as error:
        raise Finding(f"{node.log.stem} does not answer an honest {words[0].decode()}: {error}") from error


def live(node: NodeProcess) -> dict[bytes, bytes]:
    """All keys of a node, with a digest of their values."""
    with Client(HOST, node.port) as client:
        keys = client.call(b"KEYS", b"*")
        assert isinstance(keys, list)
        names = [key for key in keys if isinstance(key, bytes)]
        values = client.call(b"MGET", *names) if names else []
        assert isinstance(values, list)
        held = zip(names, values, strict=True)
        return {key: sha256(value).digest() for key, value in held if isinstance(value, bytes)}


def differing(answer: bytes, expected: bytes) -> str:
    at = next((at for at, (one, other) in enumerate(zip(answer, expected, strict=False)) if one != other), 0)
    return f"{answer[at : at + 300]!r}, not {expected[at : at + 300]!r}, at byte {at}"


def tail(node: NodeProcess) -> str:
    return node.output()[-3000:]


def anonymous_bytes(pid: int) -> int:
    """The memory that a process has to itself."""
    return 1024 * int(Path(f"/proc/{pid}/status").read_text().partition("RssAnon:")[2].split()[0])


def deliver(port: int, payloads: Sequence[bytes], quiet_s: float = 1.0) -> bytes:
    """Sends each payload on a connection of its own, all at once, and ends it; what came back, the ends of it alone.

    A connection on which nothing comes for `quiet_s` is closed.
    """
    selector = selectors.DefaultSelector()
    left: dict[socket.socket, memoryview] = {}
    found = bytearray()
    for payload in payloads:
        connection = socket.socket()
        connection.setblocking(False)
        with suppress(BlockingIOError):
            connection.connect((HOST, port))
        left[connection] = memoryview(payload)
        selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
    heard = time.monotonic()
    while left and time.monotonic() - heard < quiet_s:
        for key, events in selector.select(0.05):
            connection = key.data
            is_over = False
            try:
                if events & selectors.EVENT_WRITE:
                    heard = time.monotonic()
                    left[connection] = left[connection][connection.send(left[connection][: 1 << 16]) :]
                    if not left[connection]:
                        connection.shutdown(socket.SHUT_WR)
                        selector.modify(connection, selectors.EVENT_READ, connection)
                if events & selectors.EVENT_READ:
                    heard = time.monotonic()
                    data = connection.recv(1 << 18)
                    found += data if len(data) < 4096 else data[:2048] + b"\0" + data[-2048:]
                    is_over = not data
            except OSError:
                is_over = True
            if is_over:
                selector.unregister(connection)
                connection.close()
                del left[connection]
    for connection in left:
        selector.unregister(connection)
        connection.close()
    selector.close()
    return bytes(found)
