"""A quick load against a node: clients that each keep one batch of requests under way.

A client sends a batch, waits for all its replies, and sends the next; one thread serves all clients. So a latency is
the time from sending a batch to its last reply, and the tool is part of what is measured: it keeps about one core busy.

Keys are PREFIX and a number below a limit, the same in each run. They are deleted at the end, also after Ctrl-C or an
error of the node; only their tombstones stay.

Memory: POOL_BYTES of prepared batches, and a histogram of latencies in steps of one per cent.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import select
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

import hiredis

from merklekv.errors import MerkleKVError
from merklekv.net.client import Client, NoAnswer, NodeError, Unreachable
from merklekv.net.protocol.resp import bulk_array
from merklekv_tool.output import progress

PREFIX: Final = b"merklekv-bench:"
BATCH_BYTES_MAX: Final = 1 << 20  # of values: a node stops reading while its replies are not read
POOL_BYTES: Final = 32 << 20
POOL_BATCHES: Final = 5000
KEYS_PER_DELETE: Final = 1000
MIXED_READS: Final = 0.5
NO_REPLY_S: Final = 60.0
RESCUE_S: Final = 5.0  # for a reply after the run has failed or was interrupted
LATENCY_STEP: Final = math.log(1.01)

LoadName = Literal["set", "get", "mixed"]


class Load(NamedTuple):
    """A load."""

    name: LoadName
    clients: int
    pipeline: int  # requests in a batch
    seconds: float
    value_size: int
    keys: int


class Latencies:
    """The latencies of batches, each counted once for each of its requests; exact to one per cent."""

    def __init__(self) -> None:
        self.count = 0
        self.max_s = 0.0
        self._steps: Counter[int] = Counter()

    def add(self, seconds: float, requests: int) -> None:
        self.count += requests
        self.max_s = max(self.max_s, seconds)
        self._steps[round(math.log(max(seconds, 1e-9)) / LATENCY_STEP)] += requests

    def percentile(self, percent: float) -> float:
        """Seconds that this share of the requests did not exceed; 0 without requests."""
        left = self.count * percent / 100
        for step in sorted(self._steps):
            left -= self._steps[step]
            if left <= 0:
                return min(math.exp(step * LATENCY_STEP), self.max_s)
        return 0.0


class BatchClient(Client):
    """A connection with one batch under way. Its cost adds to the node's latency, so it does as little as it can.

    When its descriptor is readable, call `receive_replies`; once that is True, `send_batch` may be called again. A
    batch has to be small enough for the node to read it whole while its replies wait.
    """

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        super().__init__(host, port, timeout_s)
        self.sent_at = 0.0  # monotonic
        self._awaited = 0
        self._reader = hiredis.Reader()  # ten times as fast for short replies

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._socket.fileno()

    def send_batch(self, batch: bytes, count: int) -> None:
        """Sends a batch of `count` requests."""
        self._awaited = count
        self.sent_at = time.monotonic()
        self.send_encoded(batch)

    def receive_replies(self) -> bool:
        """Receives once. Returns whether the batch is complete. Raises Unreachable, NodeError for an error reply."""
        self._reader.feed(self._receive_some(self._timeout_s))
        try:
            while (reply := self._reader.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    raise NodeError(f"{self.name}: {reply}")
                self._awaited -= 1
        except hiredis.ProtocolError as error:
            raise Unreachable(f"{self.name}: does not answer as a MerkleKV node: {error}") from error
        return self._awaited == 0


def run(address: tuple[str, int], load: Load) -> tuple[Latencies, float]:
    """Writes the keys, measures, deletes the keys. Returns latencies and seconds. Raises Unreachable, NodeError."""
    with Client(*address) as control:
        control.require_answer()
        value = os.urandom(load.value_size)
        try:
            if load.name != "set":
                for keys in _key_blocks(load):
                    _write(control, keys, value)
            result = _measure(address, load, _batches(load, value))
        except BaseException:
            with contextlib.suppress(MerkleKVError):  # the first error is the one to report
                _delete_keys(address, load, RESCUE_S)
            raise
        _delete_keys(address, load, NO_REPLY_S)
        return result


def _key(number: int) -> bytes:
    return b"%b%07d" % (PREFIX, number)


def _key_blocks(load: Load) -> Iterator[list[bytes]]:
    """All keys, as many at a time as one request takes."""
    for start in range(0, load.keys, KEYS_PER_DELETE):
        yield [_key(number) for number in range(start, min(start + KEYS_PER_DELETE, load.keys))]


def _write(client: Client, keys: list[bytes], value: bytes) -> None:
    size = max(1, BATCH_BYTES_MAX // (len(value) + 1))
    for start in range(0, len(keys), size):
        part = keys[start : start + size]
        client.send([(b"SET", key, value) for key in part])
        for _ in part:
            client.receive()


def _delete_keys(address: tuple[str, int], load: Load, reply_s: float) -> None:
    with Client(*address, reply_s) as client:
        for keys in _key_blocks(load):
            client.call(b"DEL", *keys)


def _batches(load: Load, value: bytes) -> list[bytes]:
    """Encoded batches to choose from: at most POOL_BATCHES, and about POOL_BYTES."""

    def request() -> bytes:
        key = _key(random.randrange(load.keys))
        reads = load.name == "get" or (load.name == "mixed" and random.random() < MIXED_READS)
        return bulk_array((b"GET", key) if reads else (b"SET", key, value))

    def batch() -> bytes:
        return b"".join([request() for _ in range(load.pipeline)])

    first = batch()
    return [first] + [batch() for _ in range(min(POOL_BATCHES, POOL_BYTES // len(first)) - 1)]


def _measure(address: tuple[str, int], load: Load, pool: list[bytes]) -> tuple[Latencies, float]:
    latencies = Latencies()
    clients: dict[int, BatchClient] = {}
    with contextlib.ExitStack() as stack, select.epoll() as ready, progress("bench") as update:
        for _ in range(load.clients):
            client = stack.enter_context(BatchClient(*address, NO_REPLY_S))
            clients[client.fileno()] = client
            ready.register(client.fileno(), select.EPOLLIN)
        began = now = time.monotonic()
        under_way = load.clients
        for client in clients.values():
            client.send_batch(random.choice(pool), load.pipeline)
        while under_way:
            events = ready.poll(NO_REPLY_S)
            if not events:
                raise NoAnswer(f"{clients.popitem()[1].name}: no answer within {NO_REPLY_S:.0f} s")
            for fd, _ in events:
                client = clients[fd]
                if not client.receive_replies():
                    continue
                now = time.monotonic()
                latencies.add(now - client.sent_at, load.pipeline)
                if now - began < load.seconds:
                    client.send_batch(random.choice(pool), load.pipeline)
                else:
                    under_way -= 1
            update(int(1000 * (now - began)), int(1000 * load.seconds))
    return latencies, now - began
