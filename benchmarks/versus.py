"""MerkleKV against Redis: both on disk, one after the other, round by round, under redis-benchmark or a client of ours.

Each round runs the same command against both, in turns as to who is first, and gives one ratio; the figure is the
median of the ratios, so what slows the machine for a while slows a pair and not one side.  Before the first round both
are filled with every key that the command can name.  Redis does not rewrite its file meanwhile; MerkleKV makes its
checkpoints as always.
"""

import csv
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby

import transactions
from figure import Figure, Settings, fill, median
from nodes import Redis, make_node

from merklekv.harness.process import Server
from merklekv.net.client import Client

RANDOM_KEYS = 100_000
VALUE_SIZE = 100
RUN_TIMEOUT_S = 300
ROUNDS_MIN = 3
ROW_S = 90  # no further round after this, beyond ROUNDS_MIN


@dataclass(frozen=True)
class Row:
    """One kind of work."""

    name: str
    work: str
    request: tuple[str, ...]  # words of redis-benchmark
    clients: int
    pipeline: int
    durability: str  # Redis: appendfsync
    bound: float

    def command(self, port: int | str, requests: int) -> list[str]:
        """The redis-benchmark command."""
        words = ["redis-benchmark", "-p", port, "-c", self.clients, "-P", self.pipeline]
        words += ["-d", VALUE_SIZE, "-r", RANDOM_KEYS, "-n", requests, "--csv", *self.request]
        return [str(word) for word in words]

    def run(self, port: int, requests: int) -> dict[str, float]:
        """One run: redis-benchmark's figures by their names in its table."""
        done = subprocess.run(
            self.command(port, requests), capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
        )
        lines = list(csv.reader(done.stdout.splitlines()))
        if done.returncode or len(lines) != 2 or "rror" in done.stderr:
            raise SystemExit(f"redis-benchmark failed: {done.stdout} {done.stderr}")
        return {name: float(value) for name, value in zip(lines[0][1:], lines[1][1:], strict=True)}


class Transactions(Row):
    """MULTI and what follows it: a client of ours makes the load."""

    def command(self, port: int | str, requests: int) -> list[str]:
        """What each client sends at once."""
        return ["MULTI,", str(transactions.WRITES), "times", *self.request, "EXEC"]

    def run(self, port: int, requests: int) -> dict[str, float]:
        """One run, with as many writes as another row has requests."""
        count = max(1, requests // transactions.WRITES)
        return transactions.run(port, self.clients, count, RANDOM_KEYS, VALUE_SIZE)


SET, GET = ("-t", "set"), ("-t", "get")
SETS = ("SET", "key", "value,")
SCRIPT = "local old = redis.call('GET', KEYS[1]) redis.call('SET', KEYS[1], ARGV[1]) return old"
EVAL = ("EVAL", SCRIPT, "1", "key:__rand_int__", "x" * VALUE_SIZE)
ROWS = (
    Row("set-50-always", "SET, 50 clients, always", SET, 50, 1, "always", 1.0),
    Row("get-50", "GET, 50 clients", GET, 50, 1, "always", 1.0),
    Row("set-1-always", "SET, 1 client, always", SET, 1, 1, "always", 1.0),
    Row("set-500-always", "SET, 500 clients, always", SET, 500, 1, "always", 1.0),
    Row("set-50-everysec", "SET, 50 clients, everysec", SET, 50, 1, "everysec", 0.9),
    Row("set-50-p16", "SET, 50 clients, pipeline 16, everysec", SET, 50, 16, "everysec", 0.6),
    Row("get-50-p16", "GET, 50 clients, pipeline 16, everysec", GET, 50, 16, "everysec", 0.7),
    Transactions("multi-50", "MULTI, 10 SETs, EXEC, 50 clients, everysec", SETS, 50, 1, "everysec", 0.8),
    Row("eval-50", "EVAL of a GET and a SET, 50 clients, everysec", EVAL, 50, 1, "everysec", 0.8),
)


def measure(rows: Iterable[Row], settings: Settings) -> Iterator[Figure]:
    """The figures of these rows; those of one durability share a pair of servers."""
    for durability, group in groupby(rows, lambda row: row.durability):
        with servers(durability, settings) as (redis, node):
            for row in group:
                yield _compare(row, redis, node, settings)
            for server in (redis, node):
                with Client("127.0.0.1", server.port) as client:
                    assert client.call(b"DBSIZE") == RANDOM_KEYS, "a key was lost, or one too many is there"


@contextmanager
def servers(durability: str, settings: Settings) -> Iterator[tuple[Server, Server]]:
    """A Redis and a node, filled."""
    with ExitStack() as stack:
        redis = stack.enter_context(Redis(settings.directory / f"redis-{durability}", durability))
        node = stack.enter_context(make_node(settings.directory / f"node-{durability}", durability=durability))
        for server in (redis, node):
            fill(server, RANDOM_KEYS)
        yield redis, node


def _compare(row: Row, redis: Server, node: Server, settings: Settings) -> Figure:
    size = settings.size
    ratios, pairs = [], []
    requests = size.requests if row.clients > 1 else size.requests_alone
    began = time.monotonic()
    for number in range(size.rounds):
        if number >= ROUNDS_MIN and time.monotonic() - began > ROW_S:
            break
        order = (redis, node) if number % 2 == 0 else (node, redis)
        runs = {server: row.run(server.port, requests) for server in order}
        ratios.append(runs[node]["rps"] / runs[redis]["rps"])
        pairs.append((runs[redis], runs[node]))
    rate = [median([pair[side]["rps"] for pair in pairs]) for side in (0, 1)]
    p99 = [median([pair[side]["p99_latency_ms"] for pair in pairs]) for side in (0, 1)]
    return Figure(
        name=row.name,
        work=row.work,
        value=median(ratios),
        bound=row.bound,
        at_least=True,
        unit="x Redis",
        detail=f"{rate[1]:,.0f}/s against {rate[0]:,.0f}/s, p99 {p99[1]:.2f} ms against {p99[0]:.2f} ms",
        commands=[
            f"redis-server --appendonly yes --appendfsync {row.durability} --save '' --port PORT",
            f"merklekv run --durability {row.durability} --port PORT",
            " ".join(f'"{word}"' if " " in word else word for word in row.command("PORT", requests)),
        ],
        samples=ratios,
    )
