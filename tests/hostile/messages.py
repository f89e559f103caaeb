"""What comes from the broker: events, statuses and published messages of nodes that lie, and a broker that does."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import cbor2
import paho.mqtt.client as paho
from fixtures.cluster import make_event
from fixtures.wire import Wire
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from merklekv.harness.process import HOST, HarnessError, wait_until
from merklekv.replication.cluster.presence import Status

from . import mutate
from .arena import PREFIX, WAIT_S, ArenaPath, bulks, call, request, tail
from .input_path import Finding, Scene

PAYLOAD_MAX: Final = 1_900_000  # bytes: the broker would end the connection for more
NAMES: Final = ("outsider", "victim", "peer", "x" * 128, "x" * 129, "", " ", "é", "\u202e", "a:b,c", "*", "..")
OPS: Final = ("set", "del", "incr", "decr", "append", "prepend", "expire", "truncate", "SET", "", "nop", "merge")
BOMBS: Final = (
    b"\xa2\x61v\x01\x61x\x9a\x00\x10\x00\x00" + b"\xa0" * 1_000_000,
    b"\xa2\x61v\x01\x61x\x9a\xff\xff\xff\xff",
    b"\xa2\x61v\x01\x61x\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xa2\x61v\x01\x61x\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\xa2\x61v\x01\x61x\xc2\x5a\x00\x08\x00\x00" + b"\xff" * 524_288,
    b"\xa2\x61v\x01\x61x" + b"\x9f" * 10_000,
    b"\x9f" * 10_000,
    b"\xbf" * 10_000,
    b"\xa1" + b"\x81" * 5000,
    b"\xd8\x1c\x81\xd8\x1d\x00",
    b"\xf9\x7e\x00",
    b"\xff",
    b"",
    b"\xa1\x61v\x01" * 1000,
)
TEXT_BOMBS: Final = (
    *(
        b"[" * 4000,
        b'{"a":' * 700,
        b"9" * 4000,
        b'{"node":"outsider","state":"online","sequence":' + b"9" * 3900 + b"}",
    ),
    *(
        b"null",
        b"[]",
        b'""',
        b"NaN",
        b"{}",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\0}\0",
        b'{"node":"\\ud800","state":"online"}',
    ),
    *(b'{"node":"outsider","node":"victim","state":"online"}', b" " * 4096, b"{" * 5000, b"\0", b'"\\u0000"', b"1e999"),
)


def event_of(chance: random.Random, name: str) -> dict[str, Any]:
    """A valid event, at a time that may be none."""
    event = make_event(f"hostile:{chance.randrange(50)}", chance.choice((b"v", b"", b"x" * 3000, None)), src=name)
    event["op_id"] = chance.choice((bytes(16), b"\xff" * 16, chance.randbytes(16)))
    if chance.random() < 0.5:
        event["ts"] = mutate.moment(chance)
    if chance.random() < 0.3:
        event["exp"] = mutate.moment(chance) // chance.choice((1, 10**6))
    if chance.random() < 0.2:
        event["ttl"] = mutate.integer(chance)
    if chance.random() < 0.15:
        event["op"] = chance.choice(OPS)
    if event["op"] == "truncate":  # one of the present would take everything, and may
        event["ts"] = mutate.moment(chance)
        if chance.random() < 0.7:
            event["val"] = None
            del event["key"]
    if chance.random() < 0.5:
        event["seq"] = mutate.integer(chance) if chance.random() < 0.3 else chance.randrange(1000)
    return event


def payload_of(chance: random.Random, kind: str, name: str) -> bytes:
    """A message on the topic of this kind."""
    if kind == "status":
        return _status(chance, name)
    if chance.random() < 0.05:
        return chance.choice(BOMBS)
    if kind == "pubsub":
        parts = [chance.choice((b"a", b"", mutate.word(chance))) for _ in range(chance.choice((0, 1, 2, 2, 2, 4, 200)))]
        message: dict[str, Any] = {"v": 1, "src": name, "messages": parts}
    elif chance.random() < 0.3:
        events = [event_of(chance, name) for _ in range(chance.choice((0, 1, 3, 50)))]
        for event in events:
            for shared in ("v", "src", "seq"):
                event.pop(shared, None)
        message = {"v": 1, "src": name, "seq": chance.randrange(10_000), "events": events}
    else:
        message = event_of(chance, name)
    if chance.random() < 0.6:
        message = mutate.structure(chance, message)
        if isinstance(message, dict) and is_effective_truncation(message):
            message["ts"] = 0
    encoded = b""
    with suppress(Exception):  # what CBOR cannot say, such as a lone surrogate
        encoded = cbor2.dumps(message)
    return mutate.damaged(chance, encoded) if chance.random() < 0.25 else encoded


def is_effective_truncation(message: dict[str, Any]) -> bool:
    """Whether it may take honest data."""
    events = message.get("events")
    all_ = events if isinstance(events, list) else [message]
    return any(
        isinstance(one, dict)
        and one.get("op") == "truncate"
        and type(one.get("ts")) is int
        and 10**18 < one["ts"] <= time.time_ns() + mutate.DRIFT_NS
        for one in all_
    )


def _status(chance: random.Random, name: str) -> bytes:
    if chance.random() < 0.08:
        return chance.choice(TEXT_BOMBS)
    if chance.random() < 0.05:
        return b""
    address = chance.choice(
        ("", "127.0.0.1:1", "a..b:7379", "localhost:99999", "[::1]:1", "x\r\nEND:1", "127.0.0.1:-1", ":")
    )
    state = chance.choice(("online", "offline"))
    store_id = chance.choice(("1122334455667788", "00" * 8, "", "zz", f"{chance.randrange(200):016x}"))
    said: Any = json.loads(Status(name, state, address=address, store_id=store_id, version="1").encode())
    said["sequence"] = mutate.integer(chance)
    said["listens"] = chance.random() < 0.5
    if chance.random() < 0.5:
        said = mutate.structure(chance, said)
    encoded = json.dumps(said, default=repr, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass")
    return mutate.damaged(chance, encoded) if chance.random() < 0.2 else encoded


def topic_of(chance: random.Random) -> tuple[str, str, str]:
    """A topic, its node and its kind."""
    name = (
        chance.choice(NAMES[:3])
        if chance.random() < 0.7
        else chance.choice((*NAMES, f"n{chance.randrange(300)}", mutate.text(chance)))
    )
    kind = chance.choice(("events", "events", "events", "status", "status", "pubsub"))
    prefix = PREFIX
    if chance.random() < 0.1:
        prefix = chance.choice(("", "hostil", "hostilf", f"{PREFIX}/x", "x", "é", "/"))
    end = kind if chance.random() < 0.95 else chance.choice(("", "event", "eventss", "EVENTS", "status/x", "x"))
    return f"{prefix}/{name}/{end}", name, kind


def is_publishable(topic: str) -> bool:
    """Whether a broker takes it."""
    with suppress(UnicodeEncodeError):
        size = len(topic.encode())
        return 0 < size < 60_000 and not set("+#\0\ufeff") & set(topic) and topic.isprintable() and topic[0] != "$"
    return False


class Messages(ArenaPath):
    """Messages of others at the broker, retained ones too."""

    name = "messages"

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._marker = 0

    def volley(self, seeds: Sequence[int]) -> None:
        arena = self.scene.arena
        client = paho.Client(
            CallbackAPIVersion.VERSION2, f"liar-{os.urandom(4).hex()}", protocol=MQTTProtocolVersion.MQTTv5
        )
        client.max_queued_messages_set(0)
        client.max_inflight_messages_set(100)
        client.connect(HOST, arena.broker.port)
        client.loop_start()
        wait_until(client.is_connected, seconds=WAIT_S, what="the broker")
        with Wire((HOST, arena.victim.port)) as listener:
            listener.send(request(b"PSUBSCRIBE", b"*"))
            for seed in seeds:
                topic, payload, retained = self.make(random.Random(seed))
                if is_publishable(topic):
                    client.publish(topic, payload, qos=1, retain=retained)
            self._marker += 1
            value = b"%d" % self._marker
            event = make_event("hostile:marker", value, src="marker", seq=self._marker)
            client.publish(f"{PREFIX}/marker/events", cbor2.dumps(event), qos=1)
            try:
                for node in (arena.victim, arena.peer):  # what was published before is behind it
                    wait_until(
                        lambda node=node: call(node, b"MGET", b"hostile:marker") == bulks([value]), seconds=WAIT_S
                    )
            except HarnessError:
                raise Finding(f"an event behind hostile ones does not arrive:\n{tail(arena.victim)}") from None
            finally:
                client.disconnect()
                client.loop_stop()

    def make(self, chance: random.Random) -> tuple[str, bytes, bool]:
        topic, name, kind = topic_of(chance)
        if chance.random() < 0.1:
            kind = chance.choice(("events", "status", "pubsub"))  # on the topic of another kind
        if chance.random() < 0.1:
            name = chance.choice(NAMES)  # or of another node
        payload = payload_of(chance, kind, name)[:PAYLOAD_MAX]
        return topic, payload, (kind == "status") == (chance.random() < 0.9)

    def show(self, seed: int) -> str:
        topic, payload, retained = self.make(random.Random(seed))
        return f"{topic!r} {payload[:1000]!r} retained={retained}"


PATHS = (Messages,)
