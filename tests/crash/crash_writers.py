"""The clients of the crash tests: a process of its own with one thread for each, all writing as fast as they can.

It reads a `Job` from stdin and writes the `Client`s to stdout, both pickled, when the job is done: when so many
commands have been acknowledged, or when the server is gone. A job may name processes to kill at that very moment:
nothing is nearer to the middle of heavy writing than the thread that has just read a reply.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from crash_model import COUNTER, SET_TOGETHER, Client, Command, Model, Write

from merklekv.engine.format import VALUE_AT, make_record
from merklekv.net.client import Client as Connection
from merklekv.net.client import NoAnswer, NodeError, Reply, Unreachable

KEYS: Final = 60  # of each client and kind
DEPTH_MAX: Final = 4  # commands under way on one connection
LONG_VALUE: Final = 20_000
REPLY_TIMEOUT_S: Final = 30.0


@dataclass
class Job:
    """What the clients are to do."""

    port: int
    seed: str
    models: list[Model]  # what each client's keys hold
    clients: int  # how many of them write
    acknowledgements: int  # stop, and kill, after so many
    kill: list[int] = field(default_factory=list)  # processes; a negative number is a process group, as for kill(2)
    refusals: int = 0  # stop after so many errors instead, if not 0


class Clients:
    """The running clients of a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.done = threading.Event()
        self._lock = threading.Lock()
        self._acknowledged = self._refused = 0

    def run(self) -> list[Client]:
        writers = [Writer(self, number) for number in range(len(self.job.models))]
        for writer in writers[: self.job.clients]:
            writer.start()
        for writer in writers[: self.job.clients]:
            writer.join()
        return [writer.client for writer in writers]

    def acknowledged(self) -> None:
        with self._lock:
            self._acknowledged += 1
            if self._acknowledged == self.job.acknowledgements:
                self._end()

    def refused(self) -> None:
        with self._lock:
            self._refused += 1
            if self._refused == self.job.refusals:
                self._end()

    def _end(self) -> None:
        for pid in self.job.kill:
            os.kill(pid, signal.SIGKILL)
        self.done.set()


class Writer(threading.Thread):
    """One client: sends a few commands at once, holds each reply against its model."""

    def __init__(self, clients: Clients, number: int) -> None:
        super().__init__(name=f"writer-{number}")
        self.client = Client(clients.job.models[number])
        self._clients = clients
        self._number = number
        self._random = random.Random(f"{clients.job.seed}/{number}")
        self._sent: deque[tuple[Command, Write | None]] = deque()
        self._serial = self._stamp = 0

    def run(self) -> None:
        try:
            with Connection("127.0.0.1", self._clients.job.port, REPLY_TIMEOUT_S) as connection:
                while not self._clients.done.is_set():
                    self._exchange(connection)
        except NoAnswer as silence:
            self.client.wrong.append(str(silence))
        except Unreachable:
            pass  # the server died, which is what all this is about
        for command, write in self._sent:
            if write is not None:
                self.client.shared.writes.append(write)
            elif command.shared:
                self.client.shared.counting += command.words[0] == b"INCR"
            else:
                self.client.unanswered.append(command)

    def _exchange(self, connection: Connection) -> None:
        commands = [self._choose() for _ in range(self._random.randint(1, DEPTH_MAX))]
        for command in commands:
            together = command.words[1] == SET_TOGETHER[0]
            self._sent.append((command, Write(command.words[2], time.monotonic()) if together else None))
        connection.send([command.words for command in commands])
        for _ in commands:
            try:
                reply = connection.receive()
            except NodeError as refusal:
                self._sent.popleft()
                self.client.refused.append(str(refusal))
                self._clients.refused()
            else:
                self._take(reply)

    def _take(self, reply: Reply) -> None:
        command, write = self._sent.popleft()
        shared = self.client.shared
        if write is not None:
            write.acknowledged = time.monotonic()
            shared.writes.append(write)
        elif command.shared:
            shared.counted += command.words[0] == b"INCR"
            if isinstance(reply, int | bytes):
                shared.count_seen = max(shared.count_seen, int(reply))
        else:
            expected = command.apply(self.client.model)
            if reply != expected:
                self.client.wrong.append(f"{command.words!r:.200}: answered {reply!r}, expected {expected!r}")
        self.client.acknowledged += 1
        self._clients.acknowledged()

    def _choose(self) -> Command:
        draw = self._random
        choice: Callable[[], tuple[bytes, ...]] = draw.choices(
            (self._set, self._delete, self._increment, self._append, self._set_together, self._count, self._set_shared,
             self._look, self._merge),
            (40, 10, 10, 10, 15, 5, 5, 5, 10),
        )[0]
        return Command(choice())

    def _key(self, kind: bytes) -> bytes:
        return b"c%d:%b:%d" % (self._number, kind, self._random.randrange(KEYS))

    def _value(self) -> bytes:
        size = LONG_VALUE if self._random.random() < 0.01 else self._random.randrange(200)
        return self._random.randbytes(size)

    def _set(self) -> tuple[bytes, ...]:
        return b"SET", self._key(b"text"), self._value()

    def _delete(self) -> tuple[bytes, ...]:
        return b"DEL", self._key(self._random.choice((b"text", b"number")))

    def _increment(self) -> tuple[bytes, ...]:
        return b"INCR", self._key(b"number")

    def _append(self) -> tuple[bytes, ...]:
        return b"APPEND", self._key(b"text"), self._random.randbytes(20)

    def _set_together(self) -> tuple[bytes, ...]:
        keys = {self._key(b"text") for _ in range(self._random.randint(2, 8))}
        return b"MSET", *(part for key in sorted(keys) for part in (key, self._value()))

    def _count(self) -> tuple[bytes, ...]:
        return b"INCR", COUNTER

    def _merge(self) -> tuple[bytes, ...]:
        """A record from elsewhere, newer than all before it."""
        self._stamp = max(self._stamp + 1, time.time_ns())
        key = self._key(b"merged")
        record = make_record(key, self._stamp.to_bytes(8, "big") + self._random.randbytes(16), 0, self._value())
        return b"MERGE", b"elsewhere", key, record[:VALUE_AT], record[VALUE_AT:]

    def _look(self) -> tuple[bytes, ...]:
        return b"GET", COUNTER

    def _set_shared(self) -> tuple[bytes, ...]:
        self._serial += 1
        token = b"%b/%d/%d" % (self._clients.job.seed.encode(), self._number, self._serial)
        return b"MSET", *(part for key in SET_TOGETHER for part in (key, token))


def main() -> None:
    """The process."""
    job = pickle.load(sys.stdin.buffer)
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:  # which has a buffer, whatever PYTHONUNBUFFERED says
        pickle.dump(Clients(job).run(), out)
