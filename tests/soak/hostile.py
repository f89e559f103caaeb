"""Hostile clients: what strangers, broken programs and attackers do on the port of a node and at the broker.

Each function does its harm to one node, for so many seconds at most, and leaves nothing open. Whatever the node does
to it is right, except to stop serving others.
"""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final

import cbor2
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from merklekv.harness.broker import Mosquitto
from merklekv.harness.process import HOST

from .cluster import TOPIC_PREFIX, SoakNode

Pause = Callable[[float], None]
Attack = Callable[[SoakNode, float, random.Random, Pause], None]

TIMEOUT_S: Final = 0.5
CONNECTIONS: Final = 60
PIPELINE: Final = 3_000
KEYS: Final = 50  # that strangers write
LARGE: Final = 1_000_000
OUTSIDERS: Final = 5
MESSAGES: Final = 200


@contextlib.contextmanager
def _connections(node: SoakNode, count: int = 1, receive_buffer: int = 0) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            if receive_buffer:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            one.settimeout(TIMEOUT_S)
            one.connect((HOST, node.port))
            opened.append(one)
        yield opened


def _bulk(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def half_requests(node: SoakNode, seconds: float, chance: random.Random, pause: Pause) -> None:
    """Requests that never end, on many connections."""
    with _connections(node, CONNECTIONS) as all_of_them:
        whole = _bulk(b"SET", b"hostile:half", bytes(LARGE))
        for one in all_of_them:
            one.sendall(whole[: chance.choice((1, 5, 20, 30_000))])
        pause(seconds)


def slow_reader(node: SoakNode, seconds: float, chance: random.Random, pause: Pause) -> None:
    """Asks for more than it reads."""
    with _connections(node, 3, receive_buffer=4096) as all_of_them:
        ask = _bulk(b"SET", b"hostile:large", bytes(LARGE // 4)) + _bulk(b"GET", b"hostile:large") * 200
        for one in all_of_them:
            one.sendall(ask)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for one in all_of_them:
                one.recv(1024)
            pause(0.1)


def pipeline(node: SoakNode, seconds: float, chance: random.Random, pause: Pause) -> None:
    """Thousands of requests at once, the replies unread."""
    requests = b"".join(
        _bulk(b"SET", b"hostile:%d" % chance.randrange(KEYS), b"v" * chance.randrange(200)) for _ in range(PIPELINE)
    )
    with _connections(node) as (one,):
        one.sendall(requests + b"PING\r\n")
        pause(min(seconds, TIMEOUT_S))


def garbage(node: SoakNode, seconds: float, chance: random.Random, pause: Pause) -> None:
    """Bytes of chance, and numbers that are too large."""
    beginnings = (
        b"",
        b"*",
        b"*3\r\n$",
        b"*-5\r\n",
        b"*99999999999\r\n",
        b"*1\r\n$99999999999\r\n",
        b"\x16\x03\x01\0\xff",
    )
    for _ in range(20):
        with _connections(node) as (one,), contextlib.suppress(OSError):
            one.sendall(chance.choice(beginnings) + chance.randbytes(chance.choice((10, 1_000, 100_000))))
            one.recv(1024)


def mute_subscribers(node: SoakNode, seconds: float, chance: random.Random, pause: Pause) -> None:
    """Subscribers and monitors that never read."""
    with _connections(node, 10, receive_buffer=4096) as all_of_them:
        for number, one in enumerate(all_of_them):
            one.sendall(_bulk(b"MONITOR") if number == 0 else _bulk(b"PSUBSCRIBE", b"*"))
        all_of_them[-1].sendall(_bulk(b"HELLO", b"3") + _bulk(b"PUBLISH", b"soak:loud", bytes(LARGE)) * 5)
        pause(seconds)


def waiting_readers(node: SoakNode, seconds: float, chance: random.Random, pause: Pause) -> None:
    """Readers of changes that wait, and leave in the middle of it."""
    with _connections(node, 20) as all_of_them:
        for one in all_of_them:
            one.sendall(_bulk(b"CHANGES", b"$", b"PREFIX", b"none:%d" % chance.randrange(9), b"BLOCK", b"0"))
        pause(seconds)


def http(node: SoakNode, seconds: float, chance: random.Random, pause: Pause) -> None:
    """A browser at the port of clients, and a stranger at the port of HTTP."""
    for port in (node.port, node.http_port):
        requests = (
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 999999\r\n\r\nSET hostile:http 1\r\n",
            b"GET /metrics HTTP/1.1\r\nHost: x\r\n",  # never ends
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        )
        for request in requests:
            with contextlib.suppress(OSError), socket.create_connection((HOST, port), TIMEOUT_S) as one:
                one.sendall(request)
                one.recv(4096)


def come_and_go(node: SoakNode, seconds: float, chance: random.Random, pause: Pause) -> None:
    """Many connections that are opened and reset."""
    for _ in range(5):
        with _connections(node, CONNECTIONS) as all_of_them:
            for one in all_of_them:
                one.sendall(b"GET hostile:1\r\n")
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def long_commands(node: SoakNode, seconds: float, chance: random.Random, pause: Pause) -> None:
    """Scripts that fill memory or run for long, scans of everything, a transaction without end."""
    requests = (
        _bulk(b"EVAL", b"local t = {} while true do t[#t + 1] = string.rep('x', 100000) end", b"0"),
        _bulk(b"EVAL", b"local n = 0 while n < 3000000 do n = n + 1 end return n", b"0"),
        _bulk(b"KEYS", b"*" * 50 + b"x"),
        _bulk(b"HASH", b"node"),
        _bulk(b"MULTI") + _bulk(b"SET", b"hostile:multi", b"v") * 1_000,
        b"SYNC 127.0.0.1 1\r\n",
        b"SCAN\r\n" * 20,
    )
    with _connections(node, len(requests)) as all_of_them:
        for one, request in zip(all_of_them, requests, strict=True):
            one.sendall(request)
        pause(seconds)


ON_A_NODE: Final[dict[str, Attack]] = {
    "half requests": half_requests,
    "slow readers": slow_reader,
    "a huge pipeline": pipeline,
    "garbage": garbage,
    "mute subscribers": mute_subscribers,
    "waiting readers": waiting_readers,
    "HTTP": http,
    "connections that come and go": come_and_go,
    "long commands": long_commands,
}


def at_the_broker(broker: Mosquitto, chance: random.Random) -> None:
    """Messages of strangers: garbage, lies, and events of nodes that are none."""
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    with contextlib.suppress(OSError, RuntimeError):  # the broker is away, or goes
        client.connect(HOST, broker.port)
        client.loop_start()
        for _ in range(MESSAGES):
            node = chance.choice(("node-1", f"outsider-{chance.randrange(OUTSIDERS)}", "a b", "$x", "ä"))
            topic = f"{TOPIC_PREFIX}/{node}/{chance.choice(('events', 'status', 'pubsub', 'else'))}"
            client.publish(topic, _message(node, chance), qos=chance.randrange(2))
        client.publish(f"{TOPIC_PREFIX}/outsider-0/events", bytes(LARGE), qos=0).wait_for_publish(TIMEOUT_S)
    client.disconnect()
    client.loop_stop()


def _message(node: str, chance: random.Random) -> bytes:
    event = {
        "v": 1,
        "op": "set",
        "key": f"outsider:{chance.randrange(KEYS)}",
        "val": chance.randbytes(20),
        "ts": time.time_ns() + chance.choice((0, 0, 10**9 * 86_400)),
        "src": node,
        "op_id": chance.randbytes(16),
        "seq": chance.randrange(1 << 40),
    }
    return chance.choice(
        (
            chance.randbytes(chance.choice((0, 1, 20, 5_000))),
            b"\x81" * 3_000,  # lists in lists
            b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",  # a list of so many items
            cbor2.dumps(event | {"src": "node-2"}),
            cbor2.dumps({key: value for key, value in event.items() if key != chance.choice(list(event))}),
            cbor2.dumps({"v": 1, "src": node, "messages": [b"soak:news", b"from a stranger"]}),
            b'{"node": "%b", "state": "online", "address": "127.0.0.1:1"}' % node.encode(),
            b"{" * 1_000,
            cbor2.dumps(event),
        )
    )
