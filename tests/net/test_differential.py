"""A node and a real Redis get the same generated requests, and have to reply the same, byte for byte.

The requests come from the syntax of the declared commands (`fixtures/grammar.py`): whatever reads or writes data and is
known to Redis. What cannot be equal is listed here, with the reason. A failure prints the shortest history that shows
it. Another seed, and more requests:

    .venv/bin/pytest tests/net/test_differential.py --differential-seed 7 --differential-requests 100000
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
from fixtures.grammar import KEYS, Requests
from fixtures.node import NodeFactory
from fixtures.wire import Wire, encode

import merklekv.net.commands  # noqa: F401  declares them
from merklekv.engine.format import MAX_KEY_SIZE
from merklekv.net.registry import RESP

Request = list[bytes]

VALUE_SIZE_MAX = 1 << 20  # on both: the least that Redis can be set to
HISTORY = 200  # requests from an empty node on
# At the end of each history: what everything came to.
CLEAR: list[Request] = [[b"DISCARD"], [b"UNWATCH"], [b"SCRIPT", b"FLUSH"], [b"FLUSHALL"]]
LOOK: list[Request] = [
    [b"DISCARD"],
    [b"DBSIZE"],
    [b"KEYS", b"*"],
    *[[name, key] for key in KEYS for name in (b"GET", b"PTTL")],
]
NUMBER = re.compile(rb":(-?\d+)\r\n")

# Commands of both that read or write data, and yet are not compared.
LEFT_OUT = {
    "SCAN": "its cursors are the node's own; tests/net/test_resp_commands.py walks with them",
    "RANDOMKEY": "any key is right",
    "SYNC": "another command than Redis's",
}
# The rest of the commands that are compared: they touch no key.
ALSO = ("PING", "ECHO", "MULTI", "DISCARD", "WATCH", "UNWATCH", "EVAL", "EVALSHA")

# Where the replies differ: the name, our reply, Redis's reply, and why.
DIFFERENCES = (
    ("APPEND", rb"-ERR value of \d+ bytes: more than max_value_size", rb"-ERR string exceeds maximum", "our own words"),
    (
        "LCS",
        rb"",
        rb"-ERR Insufficient memory, transient memory for LCS exceeds",
        "ours is fixed",
    ),
)
# Replies that only have to be near, because time passes between the two: name, and by how much.
NEAR = {"TTL": 30, "PTTL": 30_000, "EXPIRETIME": 30, "PEXPIRETIME": 30_000}
SOON_S = 100_000  # what is to expire within that time, or long ago, may be gone on one of the two alone
SINCE_MS = 10**12
# Options that Redis lacks.
OURS_ALONE = " | IFEQ comparison-value"
# Replies whose order means nothing.
IN_ANY_ORDER = ("KEYS",)


class Servers:
    """The node and Redis."""

    def __init__(self, ours: Wire, redis: Wire) -> None:
        self.wires = (ours, redis)

    def ask(self, requests: list[Request]) -> list[tuple[bytes, bytes]]:
        """The replies of both to each request."""
        sent = b"".join([encode(*request) for request in requests])
        for wire in self.wires:
            wire.send(sent)
        ours, redis = ([wire.resp() for _ in requests] for wire in self.wires)
        return list(zip(ours, redis, strict=True))

    def first_difference(self, history: list[Request]) -> int | None:
        """After which request of a history from nothing on the replies differ; None: they are equal."""
        self.ask(CLEAR)
        for number, (request, replies) in enumerate(zip(history, self.ask(history), strict=True)):
            if not are_equal(request, *replies):
                return number
        return None

    def explain(self, history: list[Request]) -> NoReturn:
        """Fails with the shortest history that still shows the difference."""
        found = shortest(history, lambda fewer: self.first_difference(fewer) == len(fewer) - 1)
        self.ask(CLEAR)
        ours, redis = self.ask(found)[-1]
        lines = [" ".join(map(repr, request)) for request in found]
        pytest.fail("\n".join([*lines, f"  ours  {ours[:1000]!r}", f"  redis {redis[:1000]!r}"]), pytrace=False)


def are_equal(request: Request, ours: bytes, redis: bytes) -> bool:
    if ours == redis:
        return True
    name = request[0].decode().upper()
    if name in IN_ANY_ORDER:
        return sorted(ours.split(b"\r\n")) == sorted(redis.split(b"\r\n"))
    if name in NEAR:
        numbers = [NUMBER.fullmatch(reply) for reply in (ours, redis)]
        low, high = sorted(int(number[1]) for number in numbers if number) if all(numbers) else (-1, 0)
        return low >= 0 and high - low <= NEAR[name]
    return any(
        name == one and re.match(pattern, ours) and re.match(theirs, redis) for one, pattern, theirs, _ in DIFFERENCES
    )


def has_odd_key(request: Request) -> bool:
    """Whether a key has no byte or too many: Redis takes it, and from there on they differ."""
    declared = RESP.get(request[0].upper())
    first, last, step = declared.keys if declared else (0, 0, 0)
    if not first:
        return False
    behind = len(request) if last < 0 else last + 1
    return not all(0 < len(key) <= MAX_KEY_SIZE for key in request[first:behind:step])


def depends_on_the_moment(request: Request) -> bool:
    """Whether the reply to this request, or a later one, depends on when exactly it runs."""
    name, words = request[0].upper(), {word.upper() for word in request[1:]}
    least = SINCE_MS if words & {b"EXAT", b"PXAT"} and name == b"SET" else SOON_S
    if name in (b"EXPIRE", b"PEXPIRE") and words & {b"GT", b"LT"}:
        return True  # they compare with an expiry that was as far off
    if name in (b"EXPIRE", b"PEXPIRE", b"SETEX", b"PSETEX", b"RESTORE") or words & {b"EX", b"PX", b"EXAT", b"PXAT"}:
        return any(word.isdigit() and 0 < int(word) < least for word in request[2:])
    return False


def comparable(history: list[Request]) -> Iterator[Request]:
    """Without what transactions make different.

    EXEC shows replies among others, so those that are not compared byte for byte are left out. EXEC with an argument is
    an error of another name. A truncation leaves no trace of a key that was set and gone since WATCH.
    """
    loose = {name.encode() for name in (*NEAR, *IN_ANY_ORDER, *(name for name, *_ in DIFFERENCES))}
    is_inside = watches = False
    for request in history:
        name = request[0].upper()
        if (is_inside and name in loose) or (watches and name.startswith(b"FLUSH")):
            continue
        if name != b"EXEC" or len(request) == 1:
            yield request
        watches = watches or name == b"WATCH"
        is_end = name in (b"EXEC", b"DISCARD") and len(request) == 1
        is_inside = name == b"MULTI" or (is_inside and not is_end)


def shortest(history: list[Request], differs: Callable[[list[Request]], bool]) -> list[Request]:
    """Leaves out of a history what is not needed for the difference."""
    size = len(history) // 2
    while size:
        at = 0
        while at < len(history):
            fewer = history[:at] + history[at + size :]
            if differs(fewer):
                history = fewer
            else:
                at += size
        size //= 2
    return history


def compared(redis: Wire) -> list[str]:
    """The syntaxes of the commands that both have."""
    data = [one for one in RESP.values() if {"readonly", "write"} & set(one.flags) or one.name in ALSO]
    given = [one for one in data if one.name not in LEFT_OUT]
    return [one.syntax.replace(OURS_ALONE, "") for one in given if is_known(redis, one.name)]


def is_known(redis: Wire, name: str) -> bool:
    """Whether Redis has this command: what it says of another one is nil."""
    return redis.call("COMMAND", "INFO", name)[4:5] not in (b"$", b"_")


@contextmanager
def value_size_limited(redis: Wire) -> Iterator[None]:
    """Other tests use this Redis, too: it has its own limit again at the end."""
    usual = redis.call("CONFIG", "GET", "proto-max-bulk-len").split(b"\r\n")[-2]
    redis.call("CONFIG", "SET", "proto-max-bulk-len", str(VALUE_SIZE_MAX))
    try:
        yield
    finally:
        redis.call("CONFIG", "SET", "proto-max-bulk-len", usual)


@pytest.mark.parametrize("protocol", ["2", "3"])
def test_generated_requests(
    protocol: str, node_factory: NodeFactory, redis_address: tuple[str, int], pytestconfig: pytest.Config
) -> None:
    node = node_factory("--durability", "never", "--max-value-size", str(VALUE_SIZE_MAX))
    wanted: int = pytestconfig.getoption("--differential-requests")
    seed = f"{pytestconfig.getoption('--differential-seed')}-{protocol}"
    with Wire(("127.0.0.1", node.port)) as ours, Wire(redis_address) as redis, value_size_limited(redis):
        servers = Servers(ours, redis)
        servers.ask([[b"HELLO", protocol.encode()]])
        requests = Requests(seed, compared(redis))
        done = 0
        while done < wanted:
            made = [requests.next() for _ in range(HISTORY)]
            steady = [request for request in made if not has_odd_key(request) and not depends_on_the_moment(request)]
            history = [*comparable(steady), *LOOK]
            done += len(history)
            if (at := servers.first_difference(history)) is not None:
                servers.explain(history[: at + 1])
