"""EXCHANGE, MEMBERS and FORGET: messages arrive whole whatever their size, and others are served meanwhile."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator

import pytest
from fixtures.servers import FakeServices, Start, StartedServer
from fixtures.support import wait_until
from fixtures.wire import Wire

from merklekv.engine.engine import Engine
from merklekv.net.client import Client, NodeError, Unreachable
from merklekv.net.commands.records import PARTS_MAX, ask
from merklekv.net.limits import BULK_BYTES_MIN


@pytest.fixture
def client(server: StartedServer) -> Iterator[Client]:
    with Client(*server.address) as connected:
        yield connected


@pytest.mark.parametrize("size", [1, BULK_BYTES_MIN, BULK_BYTES_MIN + 1, 1_000_000, BULK_BYTES_MIN * 2000 + 7])
def test_a_message_arrives_whole(client: Client, services: FakeServices, size: int) -> None:
    message = os.urandom(size)
    assert ask(client, message) == message[::-1]
    assert services.asked == [message]


def test_a_message_passes_where_only_small_values_do(start: Start, engine: Engine, services: FakeServices) -> None:
    engine.table.max_value_size = 10
    with Client(*start().address) as client:
        assert ask(client, b"x" * 100_000) == b"x" * 100_000
        with pytest.raises(NodeError, match="value of 11 bytes: more than max_value_size"):
            client.call(b"SET", b"key", b"v" * 11)
        assert client.call(b"SET", b"k" * 511, b"v" * 10) == b"OK"


def test_the_longest_argument_where_only_small_values_pass(start: Start, engine: Engine) -> None:
    engine.table.max_value_size = 10
    address = start().address
    with Wire(address) as wire:
        assert wire.call("ECHO", b"x" * BULK_BYTES_MIN) == b"$%d\r\n%b\r\n" % (BULK_BYTES_MIN, b"x" * BULK_BYTES_MIN)
    with Wire(address) as wire:
        wire.send(b"*2\r\n$4\r\nECHO\r\n$%d\r\n" % (BULK_BYTES_MIN + 1))
        assert wire.rest() == b"-ERR Protocol error: invalid bulk length\r\n"


def test_parts_grow_with_the_message() -> None:
    class Counting:
        name = "node"

        def call(self, *parts: bytes) -> bytes:
            assert len(parts) - 1 <= PARTS_MAX
            return b"".join(parts[1:])

    message = bytes(PARTS_MAX * BULK_BYTES_MIN + 1)
    assert ask(Counting(), message) == message  # type: ignore[arg-type]


def test_others_are_served_between_the_slices(client: Client, resp: Wire, services: FakeServices) -> None:
    go_on = threading.Event()
    services.exchange_slices = [None, go_on.is_set, None]
    client.send([(b"EXCHANGE", b"abc"), (b"PING",)])
    wait_until(lambda: services.asked)
    assert resp.call("PING") == b"+PONG\r\n"
    go_on.set()
    assert (client.receive(), client.receive()) == (b"cba", b"PONG")


def test_what_answers_otherwise_is_no_node(client: Client) -> None:
    class Strange:
        name = "node"

        def call(self, *parts: bytes) -> int:
            return 1

    with pytest.raises(Unreachable, match="is it a MerkleKV node"):
        ask(Strange(), b"x")  # type: ignore[arg-type]


def test_members_are_lines_of_json(client: Client, resp: Wire) -> None:
    reply = client.call(b"MEMBERS")
    assert isinstance(reply, bytes)
    assert [json.loads(line) for line in reply.splitlines()] == [{"node": "a", "clock": 5}, {"node": "b", "clock": 3}]
    resp.call("HELLO", "3")
    assert resp.call("MEMBERS") == b"=%d\r\ntxt:%b\r\n" % (len(reply) + 4, reply)


def test_forgetting(resp: Wire, services: FakeServices) -> None:
    assert resp.call("FORGET", "b") == b"+OK\r\n"
    assert resp.call("FORGET", "b", "0123") == b"+OK\r\n"
    assert services.asked == [("b", ""), ("b", "0123")]
    assert resp.call("FORGET", "a") == b"-ERR a is this node\r\n"
    assert resp.call("FORGET", b"\xff") == b"-ERR a node id is UTF-8 text, a store id hex digits\r\n"
    assert resp.call("FORGET", "b", "0", "1") == b"-ERR syntax error: FORGET node [store_id]\r\n"


def test_a_server_by_itself_takes_no_part(start: Start) -> None:
    with Client(*start(services=None).address) as client:
        assert client.call(b"MEMBERS") == b""
        for command in ((b"EXCHANGE", b"x"), (b"FORGET", b"b"), (b"SYNC", b"other", b"1")):
            with pytest.raises(NodeError, match="this is a server by itself, not a node"):
                client.call(*command)
