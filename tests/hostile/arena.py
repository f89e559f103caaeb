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
from pathlib import Path
from typing import Final, Self

from fixtures.node import NodeProcess
from fixtures.wire import Wire

from merklekv import interpreter
from merklekv.harness.broker import OPEN, Mosquitto
from merklekv.harness.process import HOST, HarnessError, free_port, setting_flags, wait_until
from merklekv.metrics import parse

from .input_path import Finding, SeededPath

PREFIX: Final = "hostile"
HONEST_KEYS: Final = 200
WAIT_S: Final = 60.0
DRIFT_S: Final = 600
MEMORY_FACTOR: Final = 1.2
MEMORY_ROOM: Final = 48 << 20  # of a run that is too short to say more: caches, memtables, a Lua runtime
SPARE_DESCRIPTORS: Final = 12  # segments of the log, readers of the base, what replication opens now and then
SPARE_THREADS: Final = 6
SLOW_S: Final = 0.1
WRONG: Final = re.compile(r"Traceback|internal error|Exception in thread|Segmentation|unreadable", re.IGNORECASE)
SETTINGS: Final = {
    "memtable_size": "1MiB",
    "max_value_size": "1MiB",
    "retain_log_bytes": "1MiB",
    "limits.max_request_bytes": "8MiB",
    "limits.max_output_bytes": "16MiB",
    "anti_entropy.interval_seconds": "1",
    "replication.enabled": "true",
    "replication.topic_prefix": PREFIX,
    "replication.heartbeat_seconds": "1",
}


def honest_key(number: int) -> bytes:
    return b"honest:%04d" % number


class Arena:
    """The nodes and their broker, in a directory of their own. Raises Finding from each check."""

    def __init__(self, directory: Path, *, measures: bool) -> None:
        directory.mkdir()
        self.directory = directory
        self.broker = Mosquitto(directory / "broker", *OPEN, "max_packet_size 2000000")
        self.http_port = free_port()
        self.victim = self._node("victim", http_port=self.http_port)
        self.peer = self._node("peer")
        self._control = NodeProcess(directory / "control", directory / "control.log") if measures else None
        self.canary: Canary | None = None
        self._values: dict[bytes, bytes] = {}
        self._round = 0
        self._read_until = 0
        self.memory: list[int] = []  # anonymous bytes of the victim, after each batch since its last start

    def _node(self, name: str, **more: object) -> NodeProcess:
        settings = SETTINGS | {"replication.client_id": name, "replication.mqtt_port": self.broker.port} | more
        settings["replication.mqtt_broker"] = HOST
        return NodeProcess(self.directory / name, self.directory / f"{name}.log", *setting_flags(settings))

    def start(self) -> Self:
        self.broker.start()
        for node in (self.victim, self.peer):
            node.start()
        if self._control is not None:
            self._control.start()
        for number in range(HONEST_KEYS):
            self._values[honest_key(number)] = os.urandom(40)
        with Wire((HOST, self.victim.port)) as wire:
            wire.send(b"".join(request(b"SET", key, value) for key, value in self._values.items()))
            if any(wire.resp() != b"+OK\r\n" for _ in self._values):
                raise HarnessError("the victim does not take honest data")
        self._await(self.peer, self._values)
        self._begin()
        return self

    def close(self) -> None:
        if self.canary is not None:
            self.canary.close()
        for one in (self.victim, self.peer, self._control, self.broker):
            if one is not None:
                one.end()

    def _begin(self) -> None:
        """The victim has started: from here on it is measured."""
        self._read_until = 0
        self.memory = []
        if self._control is not None:
            self.canary = Canary(self.victim.port, self._control.port)
        self._usual = self._usage()

    # -- checks --------------------------------------------------------------------------------------------------------

    def check_quick(self) -> None:
        """The nodes run and answer right; nothing in their logs says that something went wrong."""
        self._require_running()
        self._round += 1
        key = honest_key(self._round % HONEST_KEYS)
        value = b"%d of %d" % (self._round, time.time_ns())
        self._ask(self.victim, b"+OK\r\n", b"SET", key, value)
        self._values[key] = value
        some = [honest_key((self._round * 7 + number) % HONEST_KEYS) for number in range(20)]
        self._ask(self.victim, bulks([self._values[key] for key in some]), b"MGET", *some)
        self._check_log()
        self.memory.append(anonymous_bytes(self.victim.pid))
        if self.canary is not None and (slow := self.canary.slow()):
            raise Finding(slow)

    def check_whole(self) -> None:
        """All honest data are there, on both nodes, and both replicate, exchange and restart as ever."""
        self.check_quick()
        self._check_data(self.victim)
        self._check_replication()
        self._check_exchange()
        self._check_clock()
        self._check_usage()

    def check_restart(self) -> None:
        """The victim survives both ends: `verify` finds nothing, and what it serves then is what it has served."""
        self._require_running()
        if self.canary is not None:
            self.canary.close()
            self.canary = None
        self.victim.kill()
        self._restart("kill -9")
        status = self.victim.stop()
        if status:
            raise Finding(f"an orderly stop ends with status {status}:\n{tail(self.victim)}")
        verify = subprocess.run(
            interpreter.command("merklekv", "verify", str(self.victim.directory)),
            capture_output=True,
            text=True,
            check=False,
        )
        if verify.returncode:
            raise Finding(f"verify ends with {verify.returncode}: {verify.stdout[-2000:]}{verify.stderr[-2000:]}")
        self._restart("an orderly stop")
        self._begin()

    def _restart(self, after: str) -> None:
        try:
            self.victim.start()
        except HarnessError as error:
            raise Finding(f"the start after {after} fails: {error}") from error
        if WRONG.search(self.victim.output()):
            raise Finding(f"the start after {after} says\n{tail(self.victim)}")
        self._check_data(self.victim)

    def _require_running(self) -> None:
        for node in (self.victim, self.peer):
            if not node.is_running:
                raise Finding(f"{node.log.stem} has ended with status {node.wait()}:\n{tail(node)}")

    def _check_log(self) -> None:
        with self.victim.log.open("rb") as log:
            log.seek(max(self._read_until - 200, 0))
            said = log.read().decode(errors="replace")
            self._read_until = log.tell()
        if wrong := WRONG.search(said):
            raise Finding(f"the log says {said[max(wrong.start() - 500, 0) : wrong.end() + 3000]}")

    def _check_data(self, node: NodeProcess) -> None:
        keys = list(self._values)
        self._ask(node, bulks([self._values[key] for key in keys]), b"MGET", *keys)

    def _check_replication(self) -> None:
        """An event of each node reaches the other."""
        for writer, reader in ((self.peer, self.victim), (self.victim, self.peer)):
            self._round += 1
            key, value = honest_key(self._round % HONEST_KEYS), os.urandom(20)
            self._ask(writer, b"+OK\r\n", b"SET", key, value)
            self._values[key] = value
            self._await(reader, {key: value})
        self._await(self.peer, self._values)

    def _check_exchange(self) -> None:
        """An exchange with the honest peer brings both to the same data."""

        def is_equal() -> bool:
            answers.append(call(self.victim, b"SYNC", b"127.0.0.1", b"%d" % self.peer.port))
            roots = {call(node, b"HASH") for node in (self.victim, self.peer)}
            return answers[-1] == b"+OK\r\n" and len(roots) == 1

        answers: list[bytes] = []
        self._wait(is_equal, lambda: f"an exchange with the honest peer: {answers[-3:]}")

    def _check_clock(self) -> None:
        figures = self.figures()
        if wrong := {name: value for name, value in figures.items() if not (name + value).isprintable()}:
            raise Finding(f"STATS shows text of others as it came: {wrong}")
        ahead = figures["clock_ahead_s"]
        if float(ahead) > DRIFT_S + 1:
            raise Finding(f"the victim's clock is {ahead} s ahead")

    def _check_usage(self) -> None:
        """Descriptors and threads come back, and memory does."""
        descriptors, threads, memory = self._usual

        def is_back() -> bool:
            now = self._usage()
            return (
                now[0] <= descriptors + SPARE_DESCRIPTORS
                and now[1] <= threads + SPARE_THREADS
                and now[2] <= MEMORY_FACTOR * memory + MEMORY_ROOM
            )

        self._wait(
            is_back, lambda: f"descriptors, threads, memory {self._usual} to come back: they are {self._usage()}"
        )

    def _usage(self) -> tuple[int, int, int]:
        pid = self.victim.pid
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), anonymous_bytes(pid)

    def figures(self) -> dict[str, str]:
        """STATS of the victim."""
        return parse(call(self.victim, b"STATS").partition(b"\r\n")[2].decode())

    def _await(self, node: NodeProcess, values: dict[bytes, bytes]) -> None:
        expected = bulks(list(values.values()))
        self._wait(lambda: call(node, b"MGET", *values) == expected, lambda: f"honest data at {node.log.stem}")

    def _ask(self, node: NodeProcess, expected: bytes, *words: bytes) -> None:
        answer = call(node, *words)
        if answer != expected:
            raise Finding(f"{node.log.stem} answers an honest {words[0].decode()} with {differing(answer, expected)}")

    def _wait(self, condition: Callable[[], bool], what: Callable[[], str]) -> None:
        try:
            wait_until(condition, seconds=WAIT_S)
        except HarnessError:
            self._require_running()
            raise Finding(f"waited {WAIT_S:.0f} s in vain for {what()}\n{tail(self.victim)}") from None


class Canary:
    """A process that asks the victim and the control node all the time, and says how long that took."""

    def __init__(self, victim: int, control: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("canary.py")), str(victim), str(control)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
        self.slowest_s = 0.0

    def slow(self) -> str:
        """What was slow since the last look, if anything was; an empty text if not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            words = self._process.stdout.readline().split()
        except OSError:
            words = []
        if len(words) != 2:
            return "an honest client was not answered at all"
        victim, control = map(float, words)
        self.slowest_s = max(self.slowest_s, victim)
        slow = victim > SLOW_S + 3 * control
        return (
            f"an honest client waited {victim * 1000:.0f} ms, at the control node {control * 1000:.0f} ms"
            if slow
            else ""
        )

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class ArenaPath(SeededPath):
    """A path to the victim of an arena."""

    def check(self, *, whole: bool) -> None:
        if whole:
            self.scene.arena.check_whole()
            self.scene.arena.check_restart()
        else:
            self.scene.arena.check_quick()

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
