"""`merklekv-tool bench`: a quick load against a node, for a first look at its rate and latency.

Clients each send a batch (`--pipeline` requests), wait for all its replies, and send the next; one thread serves them.
So a latency is the time from sending a batch to its last reply, and the tool itself is part of what is measured: it
keeps about one core busy. To compare servers, use one tool on all of them (benchmarks/README.md of the sources).

Keys are PREFIX and a number below `--keys`, the same in each run. They are deleted when it ends, also when it is
interrupted or the node answers with an error; what is left of them are tombstones, as of any key.

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
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from merklekv.errors import InvalidArgument, MerkleKVError
from merklekv.output import counted
from merklekv_tool.output import AsJson, NodeName, progress, say, say_json

if TYPE_CHECKING:
    from merklekv.net.client import Client

EXAMPLES: Final = """
Examples:

    merklekv-tool bench 127.0.0.1:7379
    merklekv-tool bench 127.0.0.1:7379 --load mixed --clients 100 --seconds 10
    merklekv-tool bench 127.0.0.1:7379 --load get --pipeline 16 --value-size 1000 --json
"""
PREFIX: Final = b"merklekv-bench:"
KEYS: Final = 10_000
KEYS_MAX: Final = 1_000_000
CLIENTS_MAX: Final = 1000
PIPELINE_MAX: Final = 1000
SECONDS_MAX: Final = 3600.0
VALUE_SIZE_MAX: Final = 1 << 20
BATCH_BYTES_MAX: Final = 1 << 20  # of values: a node reads no further while its replies are not read
POOL_BYTES: Final = 32 << 20
POOL_BATCHES: Final = 5000
DELETED_AT_ONCE: Final = 1000
MIXED_READS: Final = 0.5
NO_REPLY_S: Final = 60.0
RESCUE_S: Final = 5.0  # for a reply when the run has failed already, or was interrupted
LATENCY_STEP: Final = math.log(1.01)
PERCENTILES: Final = (50, 95, 99)

Load = Literal["set", "get", "mixed"]
Request = tuple[bytes, ...]


class Latencies:
    """How long batches took, each counted for the requests in it; within one per cent."""

    def __init__(self) -> None:
        self.count = 0
        self.max_s = 0.0
        self._steps: Counter[int] = Counter()

    def add(self, seconds: float, requests: int) -> None:
        self.count += requests
        self.max_s = max(self.max_s, seconds)
        self._steps[round(math.log(max(seconds, 1e-9)) / LATENCY_STEP)] += requests

    def percentile(self, percent: float) -> float:
        """Seconds that so many per cent of the requests did not exceed; 0 without any."""
        left = self.count * percent / 100
        for step in sorted(self._steps):
            left -= self._steps[step]
            if left <= 0:
                return min(math.exp(step * LATENCY_STEP), self.max_s)
        return 0.0


class Keys:
    """The keys of one run."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __getitem__(self, number: int) -> bytes:
        return b"%b%07d" % (PREFIX, number)

    def blocks(self) -> Iterator[list[bytes]]:
        """All of them, a request's worth at a time."""
        for start in range(0, self.count, DELETED_AT_ONCE):
            yield [self[number] for number in range(start, min(start + DELETED_AT_ONCE, self.count))]


def bench(
    node: NodeName,
    load: Annotated[Load, typer.Option("--load", metavar="set|get|mixed", help="Mixed is half and half.")] = "mixed",
    clients: Annotated[
        int, typer.Option("--clients", "-c", metavar="N", min=1, max=CLIENTS_MAX, help="Connections.")
    ] = 50,
    pipeline: Annotated[
        int,
        typer.Option("--pipeline", "-P", metavar="N", min=1, max=PIPELINE_MAX, help="Requests a client sends at once."),
    ] = 1,
    seconds: Annotated[
        float, typer.Option("--seconds", "-s", metavar="SECONDS", min=0.1, max=SECONDS_MAX, help="How long.")
    ] = 5.0,
    value_size: Annotated[
        int, typer.Option("--value-size", "-d", metavar="BYTES", min=0, max=VALUE_SIZE_MAX, help="Bytes of a value.")
    ] = 100,
    keys: Annotated[
        int, typer.Option("--keys", metavar="N", min=1, max=KEYS_MAX, help="How many different keys.")
    ] = KEYS,
    as_json: AsJson = False,
) -> None:
    """Put a quick load on a node: requests a second and latency percentiles."""
    from merklekv_tool import places

    if pipeline * value_size > BATCH_BYTES_MAX:
        raise InvalidArgument(
            f"--pipeline {pipeline} of --value-size {value_size}: more than {BATCH_BYTES_MAX} bytes at once"
        )
    address = places.address_of(node)
    if address is None:
        raise InvalidArgument(f"{node}: not a running node: give HOST:PORT")
    latencies, elapsed_s = run(address, load, clients, pipeline, seconds, value_size, Keys(keys))
    result: dict[str, Any] = {
        "node": node,
        "load": load,
        "clients": clients,
        "pipeline": pipeline,
        "value_size": value_size,
        "keys": keys,
        "seconds": round(elapsed_s, 3),
        "requests": latencies.count,
        "requests_per_second": round(latencies.count / elapsed_s, 1),
        "latency_ms": {f"p{percent}": milliseconds(latencies.percentile(percent)) for percent in PERCENTILES}
        | {"max": milliseconds(latencies.max_s)},
    }
    if as_json:
        say_json(result)
    else:
        show(result)


def milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)


def show(result: dict[str, Any]) -> None:
    """The result in words."""
    latency = result["latency_ms"]
    say(
        f"{result['load']}, {counted(result['clients'], 'client')}, pipeline {result['pipeline']}, "
        f"values of {counted(result['value_size'], 'byte')}, {counted(result['keys'], 'key')}"
    )
    say(f"{result['requests_per_second']:,.0f} requests a second: {result['requests']:,} in {result['seconds']} s")
    say("latency " + ", ".join(f"{name} {value} ms" for name, value in latency.items()))


def run(
    address: tuple[str, int], load: Load, clients: int, pipeline: int, seconds: float, value_size: int, keys: Keys
) -> tuple[Latencies, float]:
    """Prepares, loads, and cleans up: latencies, and how many seconds it took. Raises Unreachable, NodeError."""
    from merklekv.net.client import Client

    with Client(*address) as control:
        value = os.urandom(value_size)
        try:
            if load != "set":
                for block in keys.blocks():
                    call_all(control, [(b"SET", key, value) for key in block])
            result = measure(address, batches(load, pipeline, keys, value), clients, pipeline, seconds)
        except BaseException:
            with contextlib.suppress(MerkleKVError):  # what went wrong first is what is told
                clean_up(address, keys, RESCUE_S)
            raise
        clean_up(address, keys, NO_REPLY_S)
        return result


def call_all(client: Client, requests: list[Request]) -> None:
    """Sends requests a few at a time, and waits for their replies."""
    size = max(1, BATCH_BYTES_MAX // (len(requests[0][-1]) + 1))
    for start in range(0, len(requests), size):
        part = requests[start : start + size]
        client.send(part)
        for _ in part:
            client.receive()


def batches(load: Load, pipeline: int, keys: Keys, value: bytes) -> list[bytes]:
    """Encoded batches to draw from: at most POOL_BATCHES, and about POOL_BYTES."""
    from merklekv.net.protocol.resp import bulk_array

    def request() -> bytes:
        key = keys[random.randrange(keys.count)]
        reads = load == "get" or (load == "mixed" and random.random() < MIXED_READS)
        return bulk_array((b"GET", key) if reads else (b"SET", key, value))

    def batch() -> bytes:
        return b"".join([request() for _ in range(pipeline)])

    first = batch()
    return [first] + [batch() for _ in range(min(POOL_BATCHES, POOL_BYTES // len(first)) - 1)]


def measure(
    address: tuple[str, int], pool: list[bytes], clients: int, pipeline: int, seconds: float
) -> tuple[Latencies, float]:
    """Runs the load: every client has one batch under way until the time is over. Latencies, and seconds taken."""
    from merklekv.net.client import NoAnswer
    from merklekv_tool.callers import Caller

    latencies = Latencies()
    callers: dict[int, Caller] = {}
    with contextlib.ExitStack() as stack, select.epoll() as ready, progress("bench") as update:
        for _ in range(clients):
            caller = stack.enter_context(Caller(*address, NO_REPLY_S))
            callers[caller.fileno()] = caller
            ready.register(caller.fileno(), select.EPOLLIN)
        began = now = time.monotonic()
        under_way = clients
        for caller in callers.values():
            caller.fire(random.choice(pool), pipeline)
        while under_way:
            events = ready.poll(NO_REPLY_S)
            if not events:
                raise NoAnswer(f"{callers.popitem()[1].name}: no answer within {NO_REPLY_S:.0f} s")
            for fd, _ in events:
                caller = callers[fd]
                if not caller.take():
                    continue
                now = time.monotonic()
                latencies.add(now - caller.sent_at, pipeline)
                if now - began < seconds:
                    caller.fire(random.choice(pool), pipeline)
                else:
                    under_way -= 1
            update(int(1000 * (now - began)), int(1000 * seconds))
    return latencies, now - began


def clean_up(address: tuple[str, int], keys: Keys, reply_s: float) -> None:
    """Deletes what the load has left. Raises Unreachable, also for a reply that takes longer."""
    from merklekv.net.client import Client

    with Client(*address, reply_s) as client:
        for block in keys.blocks():
            client.call(b"DEL", *block)
