"""How the server treats its connections: in order, durable before answered, and none at another's expense."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fixtures.servers import Start, StartedServer, StubEngine
from fixtures.support import wait_until
from fixtures.wire import Wire, connection_of, encode, readable, replace

from merklekv.engine.engine import Engine
from merklekv.engine.memtable import SLICE_KEYS
from merklekv.errors import DiskFull, Stalled, StorageFailed
from merklekv.net import limits
from merklekv.readiness import wait_readable

Connect = Callable[..., Wire]


@pytest.fixture
def stub() -> StubEngine:
    return StubEngine()


@pytest.fixture
def many_keys(engine: Engine) -> int:
    count = 20 * SLICE_KEYS
    engine.mset([(b"key:%07d" % number, b"v") for number in range(count)])
    return count


# -- requests and replies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_a_pipeline_is_answered_in_order(start: Start, connect: Connect, threads: int) -> None:
    wire = connect(start(threads=threads))
    count = 5000
    sender = threading.Thread(target=wire.send, args=(encode("INCR", "n") * count,))
    sender.start()
    assert [wire.line() for _ in range(count)] == [b":%d\r\n" % number for number in range(1, count + 1)]
    sender.join()


@pytest.mark.parametrize("threads", [1, 3])
def test_many_clients_at_once(start: Start, connect: Connect, threads: int) -> None:
    server = start(threads=threads)
    wires = [connect(server) for _ in range(200)]
    for _ in range(5):
        for wire in wires:
            wire.send(encode("INCR", "n"))
        for wire in wires:
            assert wire.resp().startswith(b":")
    assert wires[0].call("GET", "n") == b"$4\r\n1000\r\n"


def test_both_protocols_on_one_port(text: Wire, resp: Wire) -> None:
    assert text.ask("SET k v") == "OK"
    assert resp.call("GET", "k") == b"$1\r\nv\r\n"


def test_a_client_that_has_finished_sending_gets_its_replies(connect: Connect) -> None:
    wire = connect()
    wire.send(b"SET k v\nGET k\nGET")
    wire.socket.shutdown(socket.SHUT_WR)
    assert wire.rest() == b"OK\r\nVALUE v\r\n"


def test_also_those_of_a_long_command(many_keys: int, connect: Connect) -> None:
    wire = connect()
    wire.send(encode("KEYS", "*") + encode("PING"))
    wire.socket.shutdown(socket.SHUT_WR)
    assert wire.rest().count(b"\r\n") == 1 + 2 * many_keys + 1


def test_a_client_that_disappears_is_forgotten(server: StartedServer, connect: Connect) -> None:
    for _ in range(3):
        wire = connect()
        wire.send(b"SET k v\nGET k\n" + b"GET k\n" * 1000)
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.close()  # resets the connection
    other = connect()
    assert other.ask("PING") == "PONG"
    wait_until(lambda: len(server.context.sessions()) == 1)


def test_a_client_that_disappears_in_a_long_command_ends_it(
    server: StartedServer, engine: Engine, connect: Connect
) -> None:
    stages: list[str] = []

    def endless(session: Any, request: Any) -> Iterator[None]:
        stages.append("began")
        try:
            while True:
                yield None
        finally:
            stages.append("ended")

    replace(server, b"PING", endless)
    wire = connect()
    wire.send(encode("PING"))
    wait_until(lambda: stages)
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()
    wait_until(lambda: stages == ["began", "ended"])


def test_an_error_that_should_not_happen_ends_one_connection_only(
    server: StartedServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(session: Any, request: Any) -> bytes:
        raise ZeroDivisionError("on purpose")

    replace(server, b"ECHO", fail)
    other, wire = connect(), connect()
    assert other.call("PING") == b"+PONG\r\n"
    wire.send(encode("ECHO", "x") + encode("PING"))
    assert wire.rest() == b"-ERR internal error, see the server's log\r\n"
    assert "ZeroDivisionError: on purpose" in caplog.text
    assert other.call("PING") == b"+PONG\r\n"


# -- durability --------------------------------------------------------------------------------------------------------


def test_no_reply_leaves_before_the_commit(stub: StubEngine, start: Start, connect: Connect) -> None:
    """Not even that of a read: it may have seen what is not durable yet."""
    entered, leave = threading.Event(), threading.Event()
    commit = stub.commit

    def slow_commit() -> None:
        entered.set()
        assert leave.wait(60)
        commit()

    stub.commit = slow_commit  # type: ignore[method-assign]
    wire = connect(start(engine=stub))
    wire.send(encode("SET", "k", "v") + encode("GET", "k"))
    assert entered.wait(60)
    assert not readable(wire)
    leave.set()
    assert wire.read(5 + 7) == b"+OK\r\n$1\r\nv\r\n"
    assert stub.committed[-1] == {b"k": b"v"}


def test_requests_of_a_round_share_a_commit(stub: StubEngine, start: Start, connect: Connect) -> None:
    wire = connect(start(engine=stub))
    wire.send(b"".join(encode("SET", f"k{number}", "v") for number in range(100)))
    assert [wire.line() for _ in range(100)] == [b"+OK\r\n"] * 100
    assert len(stub.committed) < 50


def test_a_failing_disk_answers_no_client(
    stub: StubEngine, start: Start, connect: Connect, fatal: list[Exception]
) -> None:
    wire = connect(start(engine=stub))
    assert wire.call("PING") == b"+PONG\r\n"
    stub.commit_error = StorageFailed("fdatasync failed: the process has to stop")
    wire.send(encode("SET", "k", "v"))
    with contextlib.suppress(ConnectionResetError):
        assert wire.rest() == b""
    assert wait_until(lambda: fatal) == [stub.commit_error]


def test_a_full_disk_is_an_error_and_reads_go_on(stub: StubEngine, start: Start, connect: Connect) -> None:
    def set_(key: bytes, value: bytes) -> None:
        raise DiskFull("disk full, write not stored")

    stub.set = set_  # type: ignore[method-assign]
    server = start(engine=stub)
    assert connect(server).ask("SET k v") == "ERROR disk full, write not stored"
    wire = connect(server)
    assert wire.call("SET", "k", "v") == b"-ERR disk full, write not stored\r\n"
    assert wire.call("GET", "k") == b"$-1\r\n"


def test_a_write_that_must_wait_is_run_later_and_others_go_on(stub: StubEngine, start: Start, connect: Connect) -> None:
    set_ = stub.set

    def stall(key: bytes, value: bytes) -> None:
        if stub.stalled:
            raise Stalled("the checkpoint is behind")
        set_(key, value)

    stub.set = stall  # type: ignore[method-assign]
    stub.stalled = True
    server = start(engine=stub)
    writer, reader = connect(server), connect(server)
    writer.send(encode("GET", "k") + encode("SET", "k", "v") + encode("GET", "k"))
    assert writer.resp() == b"$-1\r\n"
    assert reader.call("GET", "k") == b"$-1\r\n"
    assert not readable(writer)
    stub.stalled = False
    assert [writer.resp(), writer.resp()] == [b"+OK\r\n", b"$1\r\nv\r\n"]


def test_a_delete_of_many_that_stalls_half_way_counts_each_once(
    stub: StubEngine, start: Start, connect: Connect
) -> None:
    stalls = [False, True, True, False]

    def delete(key: bytes) -> bool:
        if stalls and stalls.pop(0):
            raise Stalled("the checkpoint is behind")
        return stub.data.pop(key, None) is not None

    stub.delete = delete  # type: ignore[attr-defined]
    stub.data = {b"a": b"1", b"b": b"2"}
    assert connect(start(engine=stub)).call("DEL", "a", "b", "c") == b":2\r\n"


# -- long commands -----------------------------------------------------------------------------------------------------


def send_through(server: StartedServer, wire: Wire, data: bytes) -> None:
    """Sends, and waits until it has arrived: the kernel of a busy machine may carry it later."""
    wire.send(data)
    assert wait_readable([connection_of(server, wire).fd], 20)


@pytest.mark.parametrize(
    ("request_", "first", "lines"),
    [(encode("KEYS", "*"), b"*%d\r\n", 2), (b"SCAN\n", b"KEYS %d\r\n", 1)],
    ids=["KEYS", "SCAN"],
)
def test_others_are_served_between_the_slices_of_a_long_command(
    many_keys: int, engine: Engine, start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch,
    request_: bytes, first: bytes, lines: int,
) -> None:  # fmt: skip
    """Structural: another client's request is answered while the scan is under way, after its first slice."""
    monkeypatch.setattr(limits, "SLICE_S", 0.0)  # one slice in a tick, however long that takes
    server = start()
    other = connect(server)
    assert other.call("PING") == b"+PONG\r\n"
    events: list[str] = []
    other_asked = threading.Event()
    page = engine.page

    def counted_page(*arguments: Any) -> Any:
        events.append("page")
        if len(events) == 3:
            # By now the other client's request is in the socket; it must be answered before the scan ends.
            send_through(server, other, encode("ECHO", "x"))
            other_asked.set()
        return page(*arguments)

    def echo(session: Any, request: Any) -> bytes:
        events.append("other")
        return b"+other\r\n"

    monkeypatch.setattr(engine, "page", counted_page)
    replace(server, b"ECHO", echo)
    scanning = connect(server)
    scanning.send(request_)
    assert scanning.line() == first % many_keys
    assert [scanning.line() for _ in range(lines * many_keys)][-1] == b"key:%07d\r\n" % (many_keys - 1)
    assert other_asked.is_set()
    assert other.resp() == b"+other\r\n"
    assert events.index("other") <= 4 < events.count("page")


def test_a_long_command_has_its_share_of_a_tick_that_takes_long(
    many_keys: int, engine: Engine, start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Structural: in the tick in which another request takes long, it goes on for more than one slice."""
    monkeypatch.setattr(limits, "SLICE_S", 0.0)
    events: list[str] = []
    other: list[Wire] = []
    for name, call in (("page", engine.page), ("commit", engine.commit)):

        def record(*arguments: Any, name: str = name, call: Callable[..., Any] = call) -> Any:
            events.append(name)
            if events.count("page") == 3 and "asked" not in events:
                events.append("asked")
                send_through(server, other[0], encode("ECHO", "x"))
            return call(*arguments)

        monkeypatch.setattr(engine, name, record)
    server = start()

    def take_long(session: Any, request: Any) -> bytes:
        monkeypatch.setattr(limits, "SLICE_S", 60.0)
        monkeypatch.setattr(limits, "LONG_SHARE", 100.0)
        threading.Event().wait(0.5)
        events.append("other")
        return b"+other\r\n"

    replace(server, b"ECHO", take_long)
    other.append(connect(server))
    scanning = connect(server)
    scanning.send(encode("KEYS", "*"))
    assert scanning.line() == b"*%d\r\n" % many_keys
    for _ in range(2 * many_keys):
        scanning.line()
    assert other[0].resp() == b"+other\r\n"
    after = events[events.index("other") :]
    assert after[: after.index("commit")].count("page") > 1


def test_a_connection_runs_nothing_else_during_its_long_command(many_keys: int, connect: Connect) -> None:
    wire = connect()
    wire.send(encode("SET", "before", "v") + encode("KEYS", "key:*") + encode("DBSIZE") + encode("DEL", "before", "x"))
    assert wire.resp() == b"+OK\r\n"
    assert wire.resp().startswith(b"*%d\r\n" % many_keys)
    assert wire.resp() == b":%d\r\n" % (many_keys + 1)
    assert wire.resp() == b":1\r\n"


def test_many_long_commands_at_once(many_keys: int, server: StartedServer, connect: Connect) -> None:
    wires = [connect() for _ in range(10)]
    for wire in wires:
        wire.send(encode("KEYS", "*9") + encode("PING"))
    for wire in wires:
        assert wire.resp().startswith(b"*%d\r\n" % (many_keys // 10))
        assert wire.resp() == b"+PONG\r\n"


def test_commands_over_many_keys_give_way(many_keys: int, connect: Connect) -> None:
    wire = connect()
    keys = [b"key:%07d" % number for number in range(0, many_keys, 2)]
    assert wire.call("EXISTS", *keys, "none") == b":%d\r\n" % len(keys)
    assert wire.call("MGET", *keys, "none") == b"*%d\r\n" % (len(keys) + 1) + b"$1\r\nv\r\n" * len(keys) + b"$-1\r\n"
    assert wire.call("DEL", *keys, "none") == b":%d\r\n" % len(keys)
    assert wire.call("DBSIZE") == b":%d\r\n" % (many_keys - len(keys))


def test_clients_that_come_meanwhile_do_not_wait_for_all_of_a_long_tick(
    server: StartedServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a tick has read and not come to waits for later ticks, in which others have their turn."""
    monkeypatch.setattr(limits, "TICK_S", 0.0)
    monkeypatch.setattr(limits, "TURN_S", 0.0)
    monkeypatch.setattr(limits, "SLICE_S", 0.0)
    ran: list[bytes] = []
    may_run = threading.Semaphore(0)

    def slow(session: Any, request: Any) -> bytes:
        ran.append(request[1])
        assert may_run.acquire(timeout=60)
        return b"+%b\r\n" % request[1]

    replace(server, b"ECHO", slow)
    first, *others, late = [connect() for _ in range(12)]
    for wire in (first, *others, late):
        assert wire.call("PING") == b"+PONG\r\n"
    first.send(encode("ECHO", "first"))
    wait_until(lambda: len(ran) == 1)
    for number, wire in enumerate(others):
        wire.send(encode("ECHO", f"{number}a") + encode("PING") + encode("ECHO", f"{number}b"))
    may_run.release()
    wait_until(lambda: len(ran) == 2)  # of those that the next tick has read
    late.send(encode("ECHO", "late"))
    for _ in range(100):
        may_run.release()
    for number, wire in enumerate(others):
        assert [wire.resp() for _ in range(3)] == [b"+%da\r\n" % number, b"+PONG\r\n", b"+%db\r\n" % number]
    assert late.resp() == b"+late\r\n"
    assert ran.index(b"late") < 10, ran


def test_those_who_were_put_off_are_served_before_those_who_come_later(
    server: StartedServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TICK_S", 0.0)
    monkeypatch.setattr(limits, "SLICE_S", 0.0)
    ran: list[bytes] = []
    may_run = threading.Semaphore(0)

    def slow(session: Any, request: Any) -> bytes:
        ran.append(request[1])
        assert may_run.acquire(timeout=60)
        return b"+%b\r\n" % request[1]

    replace(server, b"ECHO", slow)
    first, *others, late = [connect() for _ in range(12)]
    for wire in (first, *others, late):
        assert wire.call("PING") == b"+PONG\r\n"
    monkeypatch.setattr(limits, "TURN_S", 0.0)
    first.send(encode("ECHO", "first"))
    wait_until(lambda: len(ran) == 1)
    for number, wire in enumerate(others):
        wire.send(encode("ECHO", f"{number}"))
    may_run.release()
    wait_until(lambda: len(ran) == 2)  # the next tick has read them all, and puts off the rest
    late.send(encode("ECHO", "late"))
    may_run.release()
    wait_until(lambda: len(ran) == 3)
    monkeypatch.setattr(limits, "TURN_S", 60.0)  # from here on there is time for all
    for _ in range(20):
        may_run.release()
    assert late.resp() == b"+late\r\n"
    assert ran == [b"first", *(b"%d" % number for number in range(10)), b"late"]
    for number, wire in enumerate(others):
        assert wire.resp() == b"+%d\r\n" % number


@pytest.mark.parametrize("name", ["GET", "SET"])
def test_large_values_of_many_clients_are_put_off(
    name: str, server: StartedServer, connect: Connect, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of requests that would run together."""
    monkeypatch.setattr(limits, "TICK_S", 0.0)
    monkeypatch.setattr(limits, "TURN_S", 0.0)
    monkeypatch.setattr(limits, "TICK_OUTPUT_BYTES", 1000)
    engine.set(b"k", b"v" * 1000)
    held, *wires = [connect() for _ in range(8)]
    go_on = threading.Event()
    replace(server, b"ECHO", lambda session, request: b"+%d\r\n" % go_on.wait(60))
    held.send(encode("ECHO", "x"))
    for wire in wires:
        wire.send((encode("GET", "k") if name == "GET" else encode("SET", "l", b"v" * 1000)) * 3)
    go_on.set()
    reply = b"$1000\r\n%b\r\n" % (b"v" * 1000) if name == "GET" else b"+OK\r\n"
    for wire in wires:
        assert [wire.resp() for _ in range(3)] == [reply] * 3
        assert wire.call("GET", "k") == b"$1000\r\n%b\r\n" % (b"v" * 1000)
