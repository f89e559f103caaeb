"""A load of transactions, as redis-benchmark makes none: each client sends MULTI, ten SETs and EXEC at once."""

import random
import select
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

WRITES = 10  # of a transaction
BLOCKS = 1000  # different ones, sent over and over
RECEIVE_BYTES = 1 << 16
TIMEOUT_S = 300

REPLIES = b"+OK\r\n" + b"+QUEUED\r\n" * WRITES + b"*%d\r\n" % WRITES + b"+OK\r\n" * WRITES
NULL_REPLIES = b"+OK\r\n" * (WRITES + 2)  # of a server that answers each request with OK

_END = b"*1\r\n$4\r\nEXEC\r\n"


def run(port: int, clients: int, count: int, keys: int, value_size: int, expected: bytes = REPLIES) -> dict[str, float]:
    """Runs so many transactions: how many a second, and the 99th percentile of their latencies in milliseconds.

    Their keys are random ones below `keys`, as redis-benchmark names them. `expected`: the replies to each.
    """
    blocks = _blocks(keys, value_size)
    latencies: list[float] = []
    with ExitStack() as stack, select.epoll() as readable:
        sockets: dict[int, socket.socket] = {}
        received: dict[int, bytes] = {}
        sent_at: dict[int, float] = {}
        began = time.perf_counter()
        for _ in range(min(clients, count)):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            readable.register(one, select.EPOLLIN)
            sockets[one.fileno()], received[one.fileno()] = one, b""
            sent_at[one.fileno()] = time.perf_counter()
            one.sendall(next(blocks))
        left = count - len(sockets)  # to send
        while len(latencies) < count:
            events = readable.poll(TIMEOUT_S)
            assert events, "the server does not answer"
            for number, _ in events:
                received[number] += sockets[number].recv(RECEIVE_BYTES)
                if len(received[number]) < len(expected):
                    assert expected.startswith(received[number]), received[number]
                    continue
                assert received[number] == expected, received[number]
                latencies.append(time.perf_counter() - sent_at[number])
                received[number] = b""
                if left > 0:
                    left -= 1
                    sent_at[number] = time.perf_counter()
                    sockets[number].sendall(next(blocks))
        seconds = time.perf_counter() - began
    latencies.sort()
    return {"rps": count / seconds, "p99_latency_ms": 1000 * latencies[len(latencies) * 99 // 100]}


def _blocks(keys: int, value_size: int) -> Iterator[bytes]:
    """What the clients send, without end."""
    chosen = random.Random(1)
    value = b"x" * value_size
    blocks = []
    for _ in range(BLOCKS):
        writes = [
            b"*3\r\n$3\r\nSET\r\n$16\r\nkey:%012d\r\n$%d\r\n%b\r\n" % (chosen.randrange(keys), value_size, value)
            for _ in range(WRITES)
        ]
        blocks.append(b"*1\r\n$5\r\nMULTI\r\n" + b"".join(writes) + _END)
    while True:
        yield from blocks
