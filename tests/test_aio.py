"""The asyncio client against real nodes, and against peers that answer late, wrongly, or not at all."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from fixtures.node import NodeFactory, NodeProcess
from fixtures.support import WAIT_S, free_port

from merklekv import aio
from merklekv.aio import Client, NoAnswer, NodeError, Unreachable
from merklekv.errors import InvalidArgument


@pytest.fixture
def node(node_factory: NodeFactory) -> NodeProcess:
    return node_factory("--node-id", "node-1")


def client_of(node: NodeProcess, **options: object) -> Client:
    return Client("127.0.0.1", node.port, **options)  # type: ignore[arg-type]


def test_the_verbs(node: NodeProcess) -> None:
    async def main() -> None:
        async with client_of(node) as client:
            await client.set(b"k", b"\x00\r\n\xff")
            assert await client.get(b"k") == b"\x00\r\n\xff"
            assert await client.get(b"none") is None
            assert await client.delete(b"k")
            assert not await client.delete(b"k")
            await client.set(b"k", b"v", ttl=1000)
            assert await client.expire(b"k", 500.5)
            assert not await client.expire(b"none", 1)
            assert await client.compare_and_set(b"k", b"v", b"w")
            assert not await client.compare_and_set(b"k", b"v", b"x")
            ttl = await client.call(b"PTTL", b"k")
            assert isinstance(ttl, int)
            assert 400_000 < ttl <= 500_500
            assert await client.call(b"MGET", b"k", b"none") == [b"w", None]
            with pytest.raises(NodeError, match="not an integer"):
                await client.call(b"INCR", b"k")
            with pytest.raises(TypeError, match="keys and values are bytes, not str"):
                await client.get("k")  # type: ignore[arg-type]
            with pytest.raises(InvalidArgument, match="a ttl of"):
                await client.set(b"k", b"v", ttl=-1)
        with pytest.raises(Unreachable, match="the client is closed"):
            await client.get(b"k")

    asyncio.run(main())


async def store(client: Client, *writes: tuple[bytes, bytes | None], fails: bool = False) -> None:
    """As a batch; None deletes."""
    async with client.batch() as batch:
        for key, value in writes:
            if value is None:
                batch.delete(key)
            else:
                batch.set(key, value, ttl=100)
        if fails:
            raise ZeroDivisionError


def test_batches(node: NodeProcess) -> None:
    async def main() -> None:
        async with client_of(node) as client:
            await client.set(b"old", b"1")
            await store(client, (b"a", b"1"), (b"b", b"2"), (b"old", None))
            assert await client.call(b"MGET", b"a", b"b", b"old") == [b"1", b"2", None]
            assert await client.call(b"TTL", b"a") == 100
            with pytest.raises(ZeroDivisionError):
                await store(client, (b"a", b"3"), fails=True)
            with pytest.raises(NodeError, match="key of 600 bytes"):
                await store(client, (b"k" * 600, b"3"))
            assert await client.get(b"a") == b"1"
            await store(client)

    asyncio.run(main())


def test_calls_at_the_same_time_share_a_connection_and_are_bounded(node: NodeProcess) -> None:
    async def main() -> None:
        async with client_of(node, pending_max=7) as client:
            await asyncio.gather(*(client.set(b"%d" % number, b"%d" % number) for number in range(500)))
            found = await asyncio.gather(*(client.get(b"%d" % number) for number in range(500)))
            assert found == [b"%d" % number for number in range(500)]
            cancelled = asyncio.create_task(client.get(b"1"))
            await asyncio.sleep(0)
            cancelled.cancel()
            assert await client.get(b"2") == b"2", "the reply of one that was cancelled goes to nobody"
            listed = await client.call(b"CLIENT", b"LIST")
            assert isinstance(listed, bytes)
            assert len(listed.splitlines()) == 1

    asyncio.run(main())


def test_changes_over_a_restart_of_the_node(node_factory: NodeFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    node = node_factory("--node-id", "node-1")
    monkeypatch.setattr(aio, "RETRY_S", 0.01)

    async def main() -> None:
        async with client_of(node) as client:
            found: list[bytes | None] = []
            enough = asyncio.Event()
            started = asyncio.Event()

            async def follow() -> None:
                async for page in client.changes("", prefix=b"k"):
                    found.extend(change.value for change in page.changes)
                    started.set()
                    if len(found) >= 4:
                        enough.set()
                        return

            await client.set(b"k", b"1")
            await client.set(b"other", b"-")
            task = asyncio.create_task(follow())
            await asyncio.wait_for(started.wait(), 60)
            await client.set(b"k", b"2")
            await asyncio.to_thread(node.kill)
            await asyncio.to_thread(node.start)
            with suppress(Unreachable):  # the connection may still seem to be there
                await client.get(b"k")
            await client.set(b"k", b"3")
            await client.set(b"k", b"4")
            await asyncio.wait_for(enough.wait(), 60)
            await task
            assert found == [b"1", b"2", b"3", b"4"]

    asyncio.run(main())


def test_changes_and_their_ends(node: NodeProcess) -> None:
    async def main() -> None:
        async with client_of(node) as client:
            await client.set(b"k", b"v", ttl=1000)
            await client.call(b"FLUSHALL")
            pages = [page async for page in client.changes("", wait_s=0)]
            first, last = [change for page in pages for change in page.changes]
            assert (first.key, first.op, first.value, first.origin) == (b"k", "set", b"v", "node-1")
            assert first.expiry is not None
            assert (last.key, last.op, last.value, last.expiry) == (None, "truncate", None, None)
            assert [page async for page in client.changes(pages[-1].cursor, wait_s=0.01)] == []
            assert [page async for page in client.changes(wait_s=0)] == []
            await client.set(b"other", b"")
            (moved,) = [page async for page in client.changes(pages[-1].cursor, prefix=b"k", wait_s=0)]
            assert moved.changes == []
            assert [page async for page in client.changes(moved.cursor, wait_s=0)] == []
            with pytest.raises(NodeError, match="CHANGESGONE"):
                await anext(client.changes("fffffffffffffff-0-0-0000000000000000"))
        with pytest.raises(Unreachable, match="cannot connect"):
            await anext(Client(port=free_port()).changes())

    asyncio.run(main())


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def peer(answer: Answer) -> AsyncIterator[int]:
    """A server that treats each connection so; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def value_of(client: Client) -> bytes | None:
    """What a peer gives that answers each call, but maybe too late where the machine stands still."""
    async with asyncio.timeout(WAIT_S):
        while True:
            with suppress(NoAnswer):
                return await client.get(b"k")


def test_a_peer_that_does_not_answer() -> None:
    connections: list[int] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        if len(connections) == 1:
            await reader.read()
        else:
            await reader.read(100)
            writer.write(b"$1\r\nv\r\n")
            await reader.read()

    async def main() -> None:
        async with peer(silent) as port, Client(port=port, timeout_s=0.5) as client:
            calls = await asyncio.gather(*(client.get(b"k") for _ in range(3)), return_exceptions=True)
            assert all(isinstance(one, Unreachable) for one in calls)
            assert any(isinstance(one, NoAnswer) for one in calls)
            assert await value_of(client) == b"v", "the next call connects anew"

    asyncio.run(main())


def test_who_cancels_all_calls_is_bounded() -> None:
    received: list[bytes] = []

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(b"")
        while data := await reader.read(1000):
            received[-1] += data
            if len(received) > 1:
                writer.write(b"$1\r\nv\r\n")

    async def main() -> None:
        async with peer(late) as port, Client(port=port, timeout_s=1.0, pending_max=2) as client:
            for _ in range(10):
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await client.get(b"k")
            assert await value_of(client) == b"v", "once the time of the others is over, over a new connection"
            assert received[0].count(b"GET") <= 2

    asyncio.run(main())


def test_all_calls_share_one_attempt_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    async def fails(*address: object) -> None:
        attempts.append(1)
        await asyncio.sleep(0)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio, "open_connection", fails)

    async def main() -> None:
        client = Client()
        calls = await asyncio.gather(*(client.get(b"k") for _ in range(20)), return_exceptions=True)
        assert all(isinstance(one, Unreachable) for one in calls)
        assert len(attempts) == 1
        with pytest.raises(Unreachable, match="cannot connect"):
            await client.get(b"k")
        assert len(attempts) == 2

    asyncio.run(main())


def test_the_end_of_the_client_and_of_the_node_end_changes(node: NodeProcess) -> None:
    async def main() -> None:
        async with client_of(node) as client:
            await client.set(b"k", b"v")
            endless = client.changes("")
            assert len((await anext(endless)).changes) == 1
            waiting = asyncio.ensure_future(anext(endless))
            await asyncio.sleep(0)
            await client.close()
            with pytest.raises(Unreachable, match="closed"):
                await waiting
        async with client_of(node) as client:
            short = client.changes("", wait_s=0.01)
            assert len((await anext(short)).changes) == 1
            await asyncio.to_thread(node.kill)
            with pytest.raises(Unreachable):
                await anext(short)

    asyncio.run(main())


@pytest.mark.parametrize("reconnects", [True, False])
def test_a_connection_that_breaks(reconnects: bool) -> None:
    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)

    async def main() -> None:
        async with peer(breaks) as port, Client(port=port, reconnects=reconnects) as client:
            for attempt in range(3):
                expected = "the connection broke, and `reconnects` is False" if attempt and not reconnects else "closed"
                with pytest.raises(Unreachable, match=expected):
                    await client.get(b"k")

    asyncio.run(main())


@pytest.mark.parametrize("reply", [b"HTTP/1.1 200 OK\r\n", b"$99999999999\r\n", b"+OK\r\n+OK\r\n"])
def test_a_peer_that_answers_strangely(reply: bytes) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(reply)
        await reader.read()

    async def main() -> None:
        async with peer(answers) as port, Client(port=port) as client:
            if not reply.startswith(b"+"):
                with pytest.raises(Unreachable, match="does not answer as a MerkleKV node"):
                    await client.get(b"k")
            with pytest.raises(Unreachable, match="MerkleKV node"):
                await anext(client.changes())

    asyncio.run(main())


@pytest.mark.parametrize(
    "options",
    [
        {"host": "a..b"},
        {"host": ""},
        {"host": None},
        {"host": "h\0"},
        {"port": 0},
        {"port": 99_999},
        {"port": -1},
        {"port": "7379"},
        {"timeout_s": 0},
        {"timeout_s": math.nan},
        {"timeout_s": 10**400},
        {"pending_max": 0},
        {"pending_max": 1.5},
        {"reply_bytes": 0},
    ],
)
def test_what_can_never_work_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Client(**options)


def test_arguments_that_can_never_work(node: NodeProcess) -> None:
    async def main() -> None:
        async with client_of(node) as client:
            with pytest.raises(InvalidArgument, match="a command has a name"):
                await client.call()
            for arguments in ((None,), (5,), ("$", math.nan), ("$", -1), ("$", 10**400), ("$", "1")):
                wait_s: Any = arguments[1] if len(arguments) > 1 else None
                with pytest.raises(InvalidArgument):
                    await anext(client.changes(arguments[0], wait_s=wait_s))  # type: ignore[arg-type]
            with pytest.raises(NodeError, match="is no cursor"):
                await anext(client.changes("\ud800"))

    asyncio.run(main())


@pytest.mark.parametrize("reconnects", [True, False])
def test_a_closed_client_says_that_it_is_closed(node: NodeProcess, reconnects: bool) -> None:
    async def main() -> None:
        client = client_of(node, reconnects=reconnects)
        await client.set(b"k", b"v")
        link = client._link
        assert link is not None
        sock = link._writer.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        await client.close()
        await client.close()
        with pytest.raises(Unreachable, match="the client is closed"):
            await client.get(b"k")

    asyncio.run(main())
