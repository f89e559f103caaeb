"""CHANGES: pages of changes over RESP, and readers that wait for the next commit without being asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fixtures.engines import freeze
from fixtures.servers import FakeServices, Start, StartedServer
from fixtures.support import no_room, wait_until
from fixtures.wire import Wire

from merklekv.engine.engine import Engine
from merklekv.engine.feed import PAGE_BYTES, PAGE_CHANGES, Cursor, Feed
from merklekv.engine.format import OP_SET
from merklekv.engine.log.segment import list_segments
from merklekv.engine.record import make_record, show_version
from merklekv.net.client import Client, NodeError, Reply, Unreachable
from merklekv.net.connection import Connection

LONG = 60.0


class NamedServices(FakeServices):
    @property
    def node_id(self) -> str:
        return "node-1"


@pytest.fixture
def services() -> FakeServices:
    return NamedServices()


@pytest.fixture
def client(server: StartedServer) -> Iterator[Client]:
    with Client(*server.address) as connected:
        yield connected


def changes(client: Client, cursor: bytes, *options: bytes) -> tuple[bytes, list[list[Reply]]]:
    return parsed(client.call(b"CHANGES", cursor, *options))


def parsed(reply: Reply) -> tuple[bytes, list[list[Reply]]]:
    assert isinstance(reply, list)
    cursor, found = reply
    assert isinstance(cursor, bytes)
    assert isinstance(found, list)
    return cursor, found  # type: ignore[return-value]


def keys(found: list[list[Reply]]) -> list[Reply]:
    return [change[0] for change in found]


def test_a_reply(client: Client, engine: Engine) -> None:
    client.call(b"SET", b"k", b"v")
    record = engine.record(b"k")
    assert record is not None
    cursor, found = changes(client, b"")
    assert found == [[b"k", b"set", b"v", show_version(record).encode(), b"node-1"]]
    client.call(b"DEL", b"k")
    client.call(b"SET", b"e", b"v", b"PXAT", b"33333333333333")
    remote = make_record(b"r", (2 * 10**18).to_bytes(8, "big") + bytes(16), b"")
    assert engine.merge([(OP_SET, b"r", remote)], b"node-2").refused == [(b"r", "clock")]
    remote = make_record(b"r", (10**18).to_bytes(8, "big") + bytes(16), b"")
    engine.merge([(OP_SET, b"r", remote)], b"node-2")
    client.call(b"FLUSHALL")
    cursor, found = changes(client, cursor)
    assert [change[:3] + change[4:] for change in found] == [
        [b"k", b"del", None, b"node-1"],
        [b"e", b"set", b"v", b"node-1", 33333333333333],
        [b"r", b"set", b"", b"node-2"],
        [None, b"truncate", None, b"node-1"],
    ]
    assert found[2][3] == b"1000000000000000000-" + b"0" * 32
    assert changes(client, cursor) == (cursor, [])
    assert changes(client, b"$") == (cursor, [])


def test_pages_and_prefixes(client: Client, engine: Engine) -> None:
    for number in range(PAGE_CHANGES + 500):
        engine.set(b"%d" % (number % 7), b"%d" % number)
    engine.commit()
    cursor, found = changes(client, b"")
    assert len(found) == 100
    values = [change[2] for change in found]
    while found:
        cursor, found = changes(client, cursor, b"count", b"%d" % PAGE_CHANGES)
        values += [change[2] for change in found]
    assert values == [b"%d" % number for number in range(PAGE_CHANGES + 500)]
    cursor, found = changes(client, b"", b"PREFIX", b"3", b"COUNT", b"1000")
    assert keys(found) == [b"3"] * 214
    assert changes(client, b"", b"PREFIX", b"nothing") == changes(client, b"$")
    for _ in range(5):
        engine.set(b"large", bytes(PAGE_BYTES // 2))
    engine.commit()
    assert len(changes(client, cursor)[1]) == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "wrong number of arguments for 'changes' command"),
        ((b"0",), "'0' is no cursor that the change feed has given; '' is the oldest one there is, \\$ the end"),
        ((b"\xff\x00",), "is no cursor"),
        ((b"x" * 10_000,), "is no cursor"),
        ((b"$", b"COUNT"), "syntax error"),
        ((b"$", b"LIMIT", b"1"), "syntax error"),
        ((b"$", b"COUNT", b"0"), "COUNT must be a number from 1 to 1000"),
        ((b"$", b"COUNT", b"1001"), "COUNT must be a number from 1 to 1000"),
        ((b"$", b"BLOCK", b"-1"), "BLOCK must be a number from 0"),
        ((b"$", b"BLOCK", b"9223372036854775808"), "BLOCK must be a number from 0"),
        ((b"fffffffffffffff-0-0-0000000000000000",), "^[^ ]* CHANGESGONE this log does not reach to this cursor"),
        (
            (b"0-0-0-0000000000000000",),
            "CHANGESGONE .*; to begin again: CHANGES \\$, then all of RECORDS, then CHANGES",
        ),
    ],
)
def test_what_is_refused(client: Client, arguments: tuple[bytes, ...], error: str) -> None:
    with pytest.raises(NodeError, match=error) as refused:
        client.call(b"CHANGES", *arguments)
    assert len(str(refused.value)) < 300
    client.call(b"SET", b"k", b"v")
    assert keys(changes(client, b"")[1]) == [b"k"]


@pytest.mark.parametrize("block", [(), (b"BLOCK", b"0")])
def test_a_rare_prefix_in_a_long_log(
    client: Client, engine: Engine, block: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply comes while the client still waits for it; so the reader gets on."""
    monkeypatch.setattr("merklekv.engine.feed.SLICE_ENTRIES", 10)
    monkeypatch.setattr("merklekv.net.commands.changes.LOOK_S", -1.0)
    for number in range(30):
        engine.set(b"other", b"%d" % number)
        engine.commit()
    engine.set(b"k", b"")
    engine.commit()
    cursor, pages = b"", [0]
    while not pages[-1]:
        cursor, found = changes(client, cursor, b"PREFIX", b"k", *block)
        pages.append(len(found))
    assert pages == [0, 0, 0, 0, 1]


def test_a_damaged_log(client: Client, engine: Engine) -> None:
    client.call(b"SET", b"k", b"v")
    first = engine.feed.end
    client.call(b"SET", b"k", b"w")
    (segment,) = engine.directory.log.glob("*.log")
    for position, said in ((first, f"is damaged at byte {first}"), (48, "or the log is damaged there")):
        with segment.open("r+b") as file:
            file.seek(position + 50)
            before = file.read(2)
            file.seek(position + 50)
            file.write(bytes(byte ^ 0xFF for byte in before))
        engine.feed = Feed(engine.directory.log, engine.feed.end)  # it has nothing of it in memory
        with pytest.raises(NodeError, match=f"CHANGESGONE .*{said}.*; to begin again: CHANGES"):
            changes(client, b"")
    assert changes(client, b"$")[1] == []


def blocked(server: StartedServer, *options: bytes) -> Client:
    """A client that waits at the end."""
    reader = Client(*server.address, LONG)
    reader.send([(b"CHANGES", b"$", *(options or (b"BLOCK", b"0")))])
    return reader


def waiting(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Waits until so many readers have begun to wait."""
    began: list[int] = []
    real = Feed.wait

    def wait(self: Feed, *arguments: object) -> object:
        try:
            return real(self, *arguments)  # type: ignore[arg-type]
        finally:
            began.append(1)

    monkeypatch.setattr(Feed, "wait", wait)

    def wait_for(count: int) -> None:
        wait_until(lambda: len(began) >= count, what=f"{count} readers")

    return wait_for


@pytest.mark.parametrize("threads", [1, 2])
def test_a_reader_that_waits_gets_the_next_commit(
    engine: Engine, start: Start, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(threads=threads)
    wait_for_readers = waiting(engine, monkeypatch)
    reads: list[int] = []
    real = Feed.read

    def read(self: Feed, *arguments: object) -> object:
        reads.append(1)
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Feed, "read", read)
    readers = [blocked(server, b"BLOCK", block) for block in (b"0", b"50000", b"%d" % (2**63 - 1))]
    readers += [blocked(server, b"PREFIX", b"other", b"BLOCK", b"0")]
    wait_for_readers(4)
    with Client(*server.address) as writer:
        assert len(reads) == 4
        writer.call(b"SET", b"k", b"v")
        for reader in readers[:3]:
            assert keys(parsed(reader.receive())[1]) == [b"k"]
        engine.set(b"other:1", b"")
        engine.commit()  # in a thread that is no worker
        assert keys(parsed(readers[3].receive())[1]) == [b"other:1"]
        assert len(reads) == 8, "each reads once when it comes, and once for what it waits for"
    for reader in readers:
        reader.close()


def test_what_is_there_already_is_not_waited_for(client: Client) -> None:
    client.call(b"SET", b"k", b"v")
    assert keys(changes(client, b"", b"BLOCK", b"0")[1]) == [b"k"]


def test_the_time_of_a_reader_that_waits_is_over(client: Client) -> None:
    cursor, found = changes(client, b"$", b"BLOCK", b"1")
    assert (cursor, found) == changes(client, b"$")
    for _ in range(300):
        assert changes(client, b"$", b"BLOCK", b"1")[1] == []


def test_who_asks_again_and_again_for_rare_keys_is_never_too_late(
    server: StartedServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reply, also one without a change, has a cursor behind everything that was committed before it."""
    expired: list[Callable[[], None]] = []
    real = Feed.wait

    def wait(self: Feed, cursor: Cursor, wake: Any, prefix: bytes) -> Callable[[], Cursor]:
        result = real(self, cursor, wake, prefix)
        expired.append(wake.__self__.expire)
        return result

    monkeypatch.setattr(Feed, "wait", wait)
    with Client(*server.address, LONG) as reader:
        cursor = b"$"
        for number in range(2):
            reader.send([(b"CHANGES", cursor, b"PREFIX", b"rare", b"BLOCK", b"0")])
            wait_until(lambda: len(expired) > number)  # noqa: B023  called in this turn
            for _ in range(3):
                engine.set(b"k", b"%d" % number)
                engine.commit()
            freeze(engine)
            wait_until(lambda: len(list_segments(engine.directory.log)) == 1, what="a checkpoint")
            engine.set(b"k", b"")
            engine.commit()
            expired[-1]()
            cursor, found = parsed(reader.receive())
            assert found == []
            assert cursor == str(engine.feed.last()).encode()


def test_requests_behind_one_that_waits_wait_too(
    server: StartedServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_readers = waiting(engine, monkeypatch)
    with Client(*server.address, LONG) as reader:
        reader.send([(b"CHANGES", b"$", b"BLOCK", b"0"), (b"PING",), (b"CHANGES", b"$", b"BLOCK", b"1"), (b"PING",)])
        wait_for_readers(1)
        with Client(*server.address) as writer:
            writer.call(b"SET", b"k", b"v")
        assert keys(parsed(reader.receive())[1]) == [b"k"]
        assert reader.receive() == b"PONG"
        assert parsed(reader.receive())[1] == []
        assert reader.receive() == b"PONG"


def test_a_reader_that_goes_away_is_noticed(
    server: StartedServer, client: Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_readers = waiting(engine, monkeypatch)
    readers = [blocked(server) for _ in range(20)]
    wait_for_readers(20)
    for reader in readers:
        reader.close()
    wait_until(lambda: len(client.call(b"CLIENT", b"LIST").split(b"\n")) == 2, what="the end of the readers")  # type: ignore[union-attr]


@pytest.mark.parametrize("engine_ends_first", [False, True])
def test_the_stop_of_the_node_answers_those_that_wait(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch, engine_ends_first: bool
) -> None:
    """Each is looked at once, and not in each tick: there may be thousands."""
    ended: list[int] = []
    real = Connection.end_input

    def end_input(self: Connection) -> None:
        ended.append(1)
        real(self)

    monkeypatch.setattr(Connection, "end_input", end_input)
    server = start()
    wait_for_readers = waiting(engine, monkeypatch)
    readers = [blocked(server) for _ in range(30)]
    wait_for_readers(30)
    if engine_ends_first:
        engine.end_waits()
        assert [parsed(reader.receive())[1] for reader in readers] == [[]] * 30
    server.stop(deadline_s=LONG)
    assert len(ended) == 30
    for reader in readers:
        if not engine_ends_first:
            assert parsed(reader.receive())[1] == []
        with pytest.raises(Unreachable):
            reader.receive()
        reader.close()


def test_a_roll_back_is_not_shown_and_ends_no_wait(
    server: StartedServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merklekv.engine.write_gate.PROBE_INTERVAL_S", 0.0)
    wait_for_readers = waiting(engine, monkeypatch)
    reader = blocked(server)
    wait_for_readers(1)
    with Client(*server.address) as writer:
        with no_room(), pytest.raises(NodeError, match="disk full"):
            writer.call(b"SET", b"lost", b"v")
        writer.call(b"SET", b"k", b"v")
    assert keys(parsed(reader.receive())[1]) == [b"k"]
    reader.close()


def test_many_readers_that_wait(server: StartedServer, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_readers = waiting(engine, monkeypatch)
    readers = [blocked(server) for _ in range(300)]
    wait_for_readers(300)
    with Client(*server.address) as writer:
        threads = [threading.Thread(target=writer.call, args=(b"SET", b"k", b"v"))]
        for thread in threads:
            thread.start()
        for reader in readers:
            assert keys(parsed(reader.receive())[1]) == [b"k"]
            reader.close()
        for thread in threads:
            thread.join()


def test_not_in_a_transaction(resp: Wire) -> None:
    assert resp.call("MULTI") == b"+OK\r\n"
    assert resp.call("CHANGES", "$").startswith(b"-ERR")
    assert resp.call("DISCARD") == b"+OK\r\n"
