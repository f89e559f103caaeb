"""MerkleKV against Redis: both on disk, one after the other, round by round, under redis-benchmark or a client of ours.

Each round runs the same command against each server, another one first each time, and gives a ratio of rates and one of
CPU time per request; the figure is the median of the ratios, so what slows the machine for a while slows a round and
not one side. MerkleKV runs twice where its core is compiled: with that core, and as pure Python. The null server
(null_server.c) does nothing but answer, and shows what the kernel takes. Before the first round all but this one are
filled with every key that the command can name. Redis does not rewrite its file meanwhile; MerkleKV makes its
checkpoints as always.
"""

import csv
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby

import transactions
from figure import Figure, Settings, Size, fill, median, settle
from nodes import NullServer, Redis, cpu_seconds, make_node, make_null_server

from merklekv.harness.process import Node, Server
from merklekv.net.client import Client

REDIS, PURE, COMPILED, NULL = "Redis", "pure", "compiled", "null"  # in plots and tables in this order
RANDOM_KEYS = 100_000
VALUE_SIZE = 100
BATCH = 250
RUN_TIMEOUT_S = 300
DELETED_PART = 4  # random keys hit a key again: of a quarter of all, 88 % exist
EXISTING_MIN = 0.8


@dataclass(frozen=True)
class Row:
    """One kind of work."""

    name: str
    work: str
    request: tuple[str, ...]  # words of redis-benchmark
    clients: int
    pipeline: int
    durability: str  # Redis: appendfsync
    bound: float  # requests a second, against Redis
    cpu_bound: float | None  # CPU time per request, against Redis
    writes: int = 1  # of a request

    def command(self, port: int | str, requests: int) -> list[str]:
        """The redis-benchmark command."""
        words = ["redis-benchmark", "-p", port, "-c", self.clients, "-P", self.pipeline]
        words += ["-d", VALUE_SIZE, "-r", RANDOM_KEYS, "-n", requests, "--csv", *self.request]
        return [str(word) for word in words]

    def requests(self, size: Size) -> int:
        """How many requests are one run."""
        return size.requests // self.writes if self.clients > 1 else size.requests_alone

    def prepare(self, server: Server) -> None:
        """What has to be there before the first run, beside the keys that all rows share."""

    def prepare_run(self, server: Server) -> None:
        """What has to be there again before each run."""

    def clean(self, server: Server) -> None:
        """Leaves the keys that all rows share."""

    def run(self, server: Server, requests: int) -> dict[str, float]:
        """One run: redis-benchmark's figures by their names in its table."""
        done = subprocess.run(
            self.command(server.port, requests), capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
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

    def run(self, server: Server, requests: int) -> dict[str, float]:
        """One run."""
        replies = transactions.NULL_REPLIES if isinstance(server, NullServer) else transactions.REPLIES
        return transactions.run(server.port, self.clients, requests, RANDOM_KEYS, VALUE_SIZE, replies)


class Increments(Row):
    """INCR of counters that are all there: what creates keys would be faster at the end than at the beginning."""

    def prepare(self, server: Server) -> None:
        """Sets all counters to 0."""
        _for_all(server, lambda numbers: [b"MSET", *(word for one in numbers for word in (_counter(one), b"0"))])

    def clean(self, server: Server) -> None:
        """Deletes them."""
        _for_all(server, lambda numbers: [b"DEL", *map(_counter, numbers)])


class Deletions(Row):
    """DEL of keys of which most exist: all are set again before each run, on each server."""

    def requests(self, size: Size) -> int:
        """So few that most of the random keys come for the first time."""
        return min(size.requests, RANDOM_KEYS // DELETED_PART)

    def prepare_run(self, server: Server) -> None:
        """Sets all keys; what that leaves to do in the background is not a part of the run."""
        fill(server, RANDOM_KEYS)
        if isinstance(server, Node):
            settle(server)

    def clean(self, server: Server) -> None:
        """Sets all keys."""
        fill(server, RANDOM_KEYS)

    def run(self, server: Server, requests: int) -> dict[str, float]:
        """One run; most keys have to be gone then."""
        figures = super().run(server, requests)
        if not isinstance(server, NullServer):
            deleted = RANDOM_KEYS - key_count(server)
            assert EXISTING_MIN * requests <= deleted <= requests, f"{requests} DELs have deleted {deleted} keys"
        return figures


SET, GET, MSET = ("-t", "set"), ("-t", "get"), ("-t", "mset")
SETS = ("SET", "key", "value,")
INCR = ("INCR", "counter:__rand_int__")
DEL = ("DEL", "key:__rand_int__")
SCRIPT = "local old = redis.call('GET', KEYS[1]) redis.call('SET', KEYS[1], ARGV[1]) return old"
EVAL = ("EVAL", SCRIPT, "1", "key:__rand_int__", "x" * VALUE_SIZE)
ROWS = (
    Row("set-50-always", "SET, 50 clients, always", SET, 50, 1, "always", 1.0, 1.0),
    Row("set-1-always", "SET, 1 client, always", SET, 1, 1, "always", 0.97, 1.1),
    Row("set-500-always", "SET, 500 clients, always", SET, 500, 1, "always", 1.0, 1.0),
    Row("set-50-everysec", "SET, 50 clients, everysec", SET, 50, 1, "everysec", 1.0, 1.0),
    Row("get-50", "GET, 50 clients, everysec", GET, 50, 1, "everysec", 1.0, 1.0),
    Row("set-50-p16", "SET, 50 clients, pipeline 16, everysec", SET, 50, 16, "everysec", 1.2, 0.85),
    Row("get-50-p16", "GET, 50 clients, pipeline 16, everysec", GET, 50, 16, "everysec", 1.2, 0.85),
    Row("mset-50", "MSET of 10 keys, 50 clients, everysec", MSET, 50, 1, "everysec", 1.0, 1.1, 10),
    Increments("incr-50", "INCR, 50 clients, everysec", INCR, 50, 1, "everysec", 1.0, 1.1),
    Deletions("del-50", "DEL, 50 clients, everysec", DEL, 50, 1, "everysec", 1.0, 1.1),
    Transactions("multi-50", "MULTI, 10 SETs, EXEC, 50 clients, everysec", SETS, 50, 1, "everysec", 0.8, None, 10),
    Row("eval-50", "EVAL of a GET and a SET, 50 clients, everysec", EVAL, 50, 1, "everysec", 0.8, None),
)


def measure(rows: Iterable[Row], settings: Settings) -> Iterator[Figure]:
    """The figures of these rows; those of one durability share their servers."""
    for durability, group in groupby(rows, lambda row: row.durability):
        with started(durability, settings) as servers:
            for row in group:
                yield from _compare(row, servers, settings)
            for server in _storing(servers):
                assert key_count(server) == RANDOM_KEYS, "a key was lost, or one too many is there"


@contextmanager
def started(durability: str, settings: Settings) -> Iterator[dict[str, Server]]:
    """The servers by name, filled. A node that does not say what its core is has none that is compiled."""
    with ExitStack() as stack:
        start = stack.enter_context
        place = settings.directory
        redis = start(Redis(place / f"redis-{durability}", durability))
        node = start(make_node(place / f"node-{durability}", durability=durability))
        servers: dict[str, Server] = {REDIS: redis, PURE: node}
        if _is_compiled(node):
            pure = start(make_node(place / f"pure-{durability}", durability=durability, pure="1"))
            assert not _is_compiled(pure), "MERKLEKV_PURE=1 has no effect"
            servers |= {PURE: pure, COMPILED: node}
        for server in servers.values():
            fill(server, RANDOM_KEYS)
        if null := make_null_server(place):
            servers[NULL] = start(null)
        yield servers


def _is_compiled(node: Node) -> bool:
    with Client("127.0.0.1", node.port) as client:
        info = client.call(b"INFO")
    assert isinstance(info, bytes)
    return b"merklekv_core:compiled" in info


def _storing(servers: dict[str, Server]) -> list[Server]:
    """All but the one that keeps nothing."""
    return [server for name, server in servers.items() if name != NULL]


def _compare(row: Row, servers: dict[str, Server], settings: Settings) -> list[Figure]:
    requests = row.requests(settings.size)
    rounds = []
    for server in _storing(servers):
        row.prepare(server)
    names = list(servers)
    for number in range(settings.size.rounds):
        first = number % len(names)
        order = names[first:] + names[:first]
        rounds.append({name: _run(row, servers[name], requests) for name in order})
    for server in _storing(servers):
        row.clean(server)
    return _figures(row, rounds, requests)


def _run(row: Row, server: Server, requests: int) -> dict[str, float]:
    if not isinstance(server, NullServer):
        row.prepare_run(server)
    before = cpu_seconds(server.pid)
    figures = row.run(server, requests)
    cpu = cpu_seconds(server.pid) - before
    return {"per_s": figures["rps"], "p99_ms": figures["p99_latency_ms"], "cpu_us": 1e6 * cpu / requests}


def _figures(row: Row, rounds: list[dict[str, dict[str, float]]], requests: int) -> list[Figure]:
    """Requests a second, and CPU time per request, against Redis; of the compiled core where there is one."""

    def ratios(name: str, what: str) -> list[float]:
        return [one[name][what] / one[REDIS][what] for one in rounds]

    medians = {
        name: {what: median([one[name][what] for one in rounds]) for what in rounds[0][name]}
        | {"per_s_ratio": median(ratios(name, "per_s")), "cpu_ratio": median(ratios(name, "cpu_us"))}
        for name in (REDIS, PURE, COMPILED, NULL)
        if name in rounds[0]
    }
    ours = COMPILED if COMPILED in medians else PURE
    mine, theirs = medians[ours], medians[REDIS]
    commands = [
        f"redis-server --appendonly yes --appendfsync {row.durability} --save '' --port PORT",
        f"merklekv run --durability {row.durability} --port PORT",
        " ".join(f'"{word}"' if " " in word else word for word in row.command("PORT", requests)),
    ]
    rate = Figure(
        row.name,
        row.work,
        mine["per_s_ratio"],
        row.bound,
        True,
        "x Redis",
        f"{ours}: {mine['per_s']:,.0f}/s against {theirs['per_s']:,.0f}/s, "
        f"p99 {mine['p99_ms']:.2f} ms against {theirs['p99_ms']:.2f} ms",
        commands,
        ratios(ours, "per_s"),
        medians,
    )
    if row.cpu_bound is None:
        return [rate]
    cpu = Figure(
        f"{row.name}-cpu",
        f"{row.work}: CPU per request",
        mine["cpu_ratio"],
        row.cpu_bound,
        False,
        "x Redis's CPU",
        f"{ours}: {mine['cpu_us']:.1f} us against {theirs['cpu_us']:.1f} us",
        commands,
        ratios(ours, "cpu_us"),
    )
    return [rate, cpu]


def key_count(server: Server) -> int:
    with Client("127.0.0.1", server.port) as client:
        count = client.call(b"DBSIZE")
    assert isinstance(count, int)
    return count


def _counter(number: int) -> bytes:
    return b"counter:%012d" % number


def _for_all(server: Server, command: Callable[[range], list[bytes]]) -> None:
    """Sends the command for all numbers below RANDOM_KEYS, BATCH of them at a time."""
    with Client("127.0.0.1", server.port) as client:
        for first in range(0, RANDOM_KEYS, BATCH):
            client.call(*command(range(first, first + BATCH)))
