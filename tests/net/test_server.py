"""How the server treats its connections: in order, durable before answered, and nobody at another's expense."""

from __future__ import annotations

import contextlib
import gc
import socket
import struct
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest
from conftest import FakeServices, Start, StubEngine
from support import wait_until
from wire import Wire, encode

from merklekv.engine.engine import Engine
from merklekv.errors import AddressInUse, AddressUnavailable, DiskFull, Stalled, StorageFailed
from merklekv.net.scan import SLICE_KEYS
from merklekv.net.server import PROTECTED, Server, is_loopback

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


def test_a_client_that_disappears_is_forgotten(server: Server, connect: Connect) -> None:
    for _ in range(3):
        wire = connect()
        wire.send(b"SET k v\nGET k\n" + b"GET k\n" * 1000)
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        wire.close()  # resets the connection
    other = connect()
    assert other.ask("PING") == "PONG"
    wait_until(lambda: len(server._sessions()) == 1)


def test_a_client_that_disappears_in_a_long_command_ends_it(server: Server, engine: Engine, connect: Connect) -> None:
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


def replace(server: Server, name: bytes, handler: Any) -> None:
    server._context.commands.resp[name].handler = handler


def test_an_error_that_should_not_happen_ends_one_connection_only(
    server: Server, connect: Connect, caplog: pytest.LogCaptureFixture
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
        assert leave.wait(20)
        commit()

    stub.commit = slow_commit  # type: ignore[method-assign]
    wire = connect(start(engine=stub))
    wire.send(encode("SET", "k", "v") + encode("GET", "k"))
    assert entered.wait(20)
    assert not readable(wire)
    leave.set()
    assert wire.read(5 + 7) == b"+OK\r\n$1\r\nv\r\n"
    assert stub.commits[-1] == {b"k": b"v"}


def readable(wire: Wire) -> bool:
    wire.socket.setblocking(False)
    try:
        wire.socket.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    finally:
        wire.socket.settimeout(20)
    return True


def test_requests_of_a_round_share_a_commit(stub: StubEngine, start: Start, connect: Connect) -> None:
    wire = connect(start(engine=stub))
    wire.send(b"".join(encode("SET", f"k{number}", "v") for number in range(100)))
    assert [wire.line() for _ in range(100)] == [b"+OK\r\n"] * 100
    assert len(stub.commits) < 50


def test_a_failing_disk_answers_nobody(
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
            raise Stalled("merging is behind")
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
            raise Stalled("merging is behind")
        return stub.data.pop(key, None) is not None

    stub.delete = delete  # type: ignore[attr-defined]
    stub.data = {b"a": b"1", b"b": b"2"}
    assert connect(start(engine=stub)).call("DEL", "a", "b", "c") == b":2\r\n"


# -- long commands -----------------------------------------------------------------------------------------------------


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
            other.send(encode("ECHO", "x"))
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


def test_a_connection_runs_nothing_else_during_its_long_command(many_keys: int, connect: Connect) -> None:
    wire = connect()
    wire.send(encode("SET", "before", "v") + encode("KEYS", "key:*") + encode("DBSIZE") + encode("DEL", "before", "x"))
    assert wire.resp() == b"+OK\r\n"
    assert wire.resp().startswith(b"*%d\r\n" % many_keys)
    assert wire.resp() == b":%d\r\n" % (many_keys + 1)
    assert wire.resp() == b":1\r\n"


def test_many_long_commands_at_once(many_keys: int, server: Server, connect: Connect) -> None:
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


# -- starting and stopping ---------------------------------------------------------------------------------------------


def test_stop_answers_what_was_received(start: Start, connect: Connect) -> None:
    server = start()
    under_way, finish = threading.Event(), threading.Event()

    def long(session: Any, request: Any) -> Generator[Callable[[], bool], None, bytes]:
        under_way.set()
        yield finish.is_set
        return b"+done\r\n"

    replace(server, b"ECHO", long)
    idle, busy = connect(server), connect(server)
    assert idle.ask("PING") == "PONG"
    busy.send(encode("ECHO", "x") + encode("SET", "last", "v"))
    assert under_way.wait(20)
    stopping = threading.Thread(target=server.stop, args=(20,))
    stopping.start()
    assert idle.rest() == b""
    assert not readable(busy)
    finish.set()
    assert busy.rest() == b"+done\r\n+OK\r\n"
    stopping.join()
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_shutdown_by_a_client_that_is_gone_before_the_reply(
    server: Server, connect: Connect, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_pipe(data: bytes) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    wire = connect()
    assert wire.ask("PING") == "PONG"
    monkeypatch.setattr(server._sessions()[0], "send", broken_pipe)
    wire.send(b"SHUTDOWN\n")
    assert wire.rest() == b""
    assert services.stops == 1


def test_stop_does_not_wait_for_ever(start: Start, connect: Connect, services: FakeServices) -> None:
    never = threading.Event()
    services.sync_with = lambda: never.wait(30) and None
    server = start()
    wire = connect(server)
    wire.send(b"SYNC other 1\n")
    wait_until(lambda: services.asked)
    server.stop(deadline_s=0.2)
    assert wire.rest() == b""
    assert not server._workers
    never.set()


def test_stop_leaves_no_file_open(start: Start, connect: Connect) -> None:
    server = start(threads=2)
    wire = connect(server)
    assert wire.ask("PING") == "PONG"
    server.stop()
    del server
    gc.collect()  # an open socket left behind would be a ResourceWarning, and so a failure


def test_stop_of_a_server_that_was_never_started(engine: Engine) -> None:
    server = Server(engine)
    server.stop()
    assert server._listener is None


def test_an_address_in_use(start: Start) -> None:
    taken = start().address  # type: ignore[attr-defined]
    with pytest.raises(AddressInUse, match=f"port {taken[1]} of 127.0.0.1 is in use"):
        start(port=taken[1])


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_here(start: Start, host: str) -> None:
    with pytest.raises(AddressUnavailable, match=f"cannot listen on {host}:0: "):
        start(host=host)


def test_ipv6(start: Start, connect: Connect) -> None:
    if not has_ipv6():
        pytest.skip("no IPv6 here")
    server = start(host="::1")
    wire = connect(server)
    assert wire.ask("PING") == "PONG"
    wire.ask("CLIENT LIST")
    assert b"addr=[::1]:" in wire.line()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


# -- protected mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("10.0.0.1", False),
        ("192.0.2.1", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),
    ],
)
def test_loopback(address: str, loopback: bool) -> None:
    assert is_loopback(address) is loopback


@pytest.fixture
def pretend_remote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merklekv.net.server.is_loopback", lambda host: False)


@pytest.mark.usefixtures("pretend_remote")
def test_a_client_from_elsewhere_is_told_how_to_allow_it(server: Server, connect: Connect) -> None:
    assert "--allow-remote" in PROTECTED
    wire = connect()
    wire.send(b"GET k\n")
    assert wire.rest() == b"ERROR %b\r\n" % PROTECTED.encode()
    wire = connect()
    wire.send(encode("SET", "k", "v"))
    assert wire.rest() == b"-ERR %b\r\n" % PROTECTED.encode()
    assert server._context.engine.get(b"k") is None


@pytest.mark.usefixtures("pretend_remote")
def test_unless_remote_clients_are_allowed(start: Start, connect: Connect) -> None:
    assert connect(start(allow_remote=True)).ask("PING") == "PONG"


def test_a_client_from_another_address_of_this_machine(start: Start) -> None:
    address = outward_address()
    if address is None:
        pytest.skip("this machine has the loopback only")
    server = start(host="0.0.0.0")
    with Wire((address, server.address[1])) as wire:  # type: ignore[attr-defined]
        wire.send(b"PING\n")
        assert wire.rest() == b"ERROR %b\r\n" % PROTECTED.encode()


def outward_address() -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if is_loopback(address) else address
