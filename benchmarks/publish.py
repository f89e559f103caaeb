"""PUBLISH to many subscribers, MerkleKV against Redis: one client publishes, another process reads for all others."""

import multiprocessing
import select
import socket
import time
from contextlib import ExitStack
from multiprocessing.synchronize import Event

from figure import Figure, Settings, median
from nodes import Redis, make_node

from merklekv.harness.process import Server
from merklekv.net.client import Client

SUBSCRIBERS = 100
MESSAGE = b"m" * 100
CHANNEL = b"channel"
DELIVERED = b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(CHANNEL), CHANNEL, len(MESSAGE), MESSAGE)
PART = 40  # of the requests of other rows: each of these makes a hundred messages
BOUND = 0.5
TIMEOUT_S = 300
RECEIVE_BYTES = 1 << 18


def measure(settings: Settings) -> list[Figure]:
    """Messages until all subscribers have read the last one, each round on both, in turns as to who is first."""
    count = max(100, settings.size.requests // PART)
    with ExitStack() as stack:
        redis = stack.enter_context(Redis(settings.directory / "redis-publish", "everysec"))
        node = stack.enter_context(make_node(settings.directory / "node-publish", durability="everysec"))
        rates: dict[Server, list[float]] = {redis: [], node: []}
        for number in range(settings.size.rounds):
            for server in (redis, node) if number % 2 == 0 else (node, redis):
                rates[server].append(run(server.port, count))
    ratios = [ours / theirs for ours, theirs in zip(rates[node], rates[redis], strict=True)]
    ours, theirs = median(rates[node]), median(rates[redis])
    return [
        Figure(
            "publish",
            f"PUBLISH to {SUBSCRIBERS} subscribers",
            median(ratios),
            BOUND,
            True,
            "x Redis",
            f"{ours:,.0f}/s against {theirs:,.0f}/s",
            [f"PUBLISH {CHANNEL.decode()} MESSAGE, {count} times"],
            ratios,
        )
    ]


def run(port: int, count: int) -> float:
    """Publishes so many messages; how many a second."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    readers = context.Process(target=read, args=(port, count, ready), daemon=True)
    readers.start()
    try:
        assert ready.wait(TIMEOUT_S)
        with Client("127.0.0.1", port) as publisher:
            began = time.perf_counter()
            for _ in range(count):
                assert publisher.call(b"PUBLISH", CHANNEL, MESSAGE) == SUBSCRIBERS
            readers.join(TIMEOUT_S)
            return count / (time.perf_counter() - began)
    finally:
        readers.kill()
        readers.join()
        assert readers.exitcode == 0, "the subscribers did not get all messages"


def read(port: int, count: int, ready: Event) -> None:
    """Subscribes with all clients, and reads until each has so many messages."""
    with ExitStack() as stack, select.epoll() as readable:
        sockets = {}
        for _ in range(SUBSCRIBERS):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            one.sendall(b"*2\r\n$9\r\nSUBSCRIBE\r\n$%d\r\n%b\r\n" % (len(CHANNEL), CHANNEL))
            assert one.recv(RECEIVE_BYTES).endswith(b":1\r\n")
            readable.register(one, select.EPOLLIN)
            sockets[one.fileno()] = one
        ready.set()
        left = count * SUBSCRIBERS * len(DELIVERED)
        while left > 0:
            for number, _ in readable.poll():
                left -= len(sockets[number].recv(RECEIVE_BYTES))
