"""Starting, stopping, and which connections a server accepts."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest
from fixtures.servers import FakeServices, Start, StartedServer
from fixtures.support import wait_until
from fixtures.wire import Unsendable, Wire, encode, readable, replace

from merklekv import sockets
from merklekv.engine.engine import Engine
from merklekv.errors import AddressInUse, AddressUnavailable
from merklekv.net.client import Client
from merklekv.net.listening import PROTECTED, is_loopback
from merklekv.net.server import Server

Connect = Callable[..., Wire]


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
    assert under_way.wait(60)
    stopping = threading.Thread(target=server.stop, args=(60,))
    stopping.start()
    assert idle.rest() == b""
    assert not readable(busy)
    finish.set()
    assert busy.rest() == b"+done\r\n+OK\r\n"
    stopping.join()
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_shutdown_by_a_client_that_is_gone_before_the_reply(
    server: StartedServer, connect: Connect, services: FakeServices
) -> None:
    wire = connect()
    assert wire.ask("PING") == "PONG"
    server.context.sessions()[0].replies = Unsendable(BrokenPipeError(32, "Broken pipe"))
    wire.send(b"SHUTDOWN\n")
    assert wire.rest() == b""
    assert services.stops == 1


def test_stop_does_not_wait_for_ever(start: Start, connect: Connect, services: FakeServices) -> None:
    never = threading.Event()
    services.sync_with = lambda: never.wait(60)
    server = start()
    wire = connect(server)
    wire.send(b"SYNC other 1\n")
    wait_until(lambda: services.asked)
    server.stop(deadline_s=0.2)
    assert wire.rest() == b""
    assert not server.workers
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
    assert server._listeners == []


BOTH = [(socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, ("127.0.0.1", 0))]


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[socket.AddressFamily, tuple[object, ...]]) -> None:
    """Lets every name have these addresses."""
    found = [(family, kind, 6, "", address) for family, address in addresses for kind in (socket.SOCK_STREAM,) * 2]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)


def test_a_name_is_listened_on_at_each_of_its_addresses(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, *BOTH)
    server = start(host="localhost", threads=2)
    host, port = server.address
    monkeypatch.undo()
    assert host == "::1"
    for address in ("127.0.0.1", "::1"):
        for _ in range(3):
            with socket.create_connection((address, port), timeout=10) as sock:
                sock.sendall(b"PING\r\n")
                assert sock.makefile().readline() == "PONG\n"
    server.stop()
    for address in ("127.0.0.1", "::1"):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, port), timeout=10)


def test_an_address_of_another_machine_is_left_out_if_one_is_ours(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = (socket.AF_INET, ("192.0.2.1", 0))
    resolve_to(monkeypatch, elsewhere, BOTH[1])
    assert start(host="name").address[0] == "127.0.0.1"
    resolve_to(monkeypatch, elsewhere)
    with pytest.raises(AddressUnavailable, match="cannot listen on name:0: Cannot assign requested address"):
        start(host="name")


def test_a_name_of_which_one_address_is_in_use_is_refused(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        resolve_to(monkeypatch, *BOTH)
        with pytest.raises(AddressInUse, match=f"port {port} of localhost is in use"):
            start(host="localhost", port=port)
    monkeypatch.undo()
    gc.collect()  # an open socket left behind would be a ResourceWarning, and so a failure
    start(host="::1", port=port)


def test_an_address_in_use(start: Start) -> None:
    taken = start().address
    with pytest.raises(AddressInUse, match=f"port {taken[1]} of 127.0.0.1 is in use"):
        start(port=taken[1])


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a..b", "x" * 64, "a\0b"])
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


@pytest.mark.usefixtures("pretend_remote")
def test_a_client_from_elsewhere_is_told_how_to_allow_it(server: StartedServer, connect: Connect) -> None:
    assert "--allow-remote" in PROTECTED
    wire = connect()
    wire.send(b"GET k\n")
    assert wire.rest() == b"ERROR %b\r\n" % PROTECTED.encode()
    wire = connect()
    wire.send(encode("SET", "k", "v"))
    assert wire.rest() == b"-ERR %b\r\n" % PROTECTED.encode()
    assert server.context.engine.get(b"k") is None


@pytest.mark.usefixtures("pretend_remote")
def test_unless_remote_clients_are_allowed(start: Start, connect: Connect) -> None:
    assert connect(start(allow_remote=True)).ask("PING") == "PONG"


def test_a_client_from_another_address_of_this_machine(start: Start) -> None:
    address = outward_address()
    if address is None:
        pytest.skip("this machine has the loopback only")
    server = start(host="0.0.0.0")
    with Wire((address, server.address[1])) as wire:
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


def test_a_peer_that_vanished_is_noticed(server: StartedServer, connect: Connect) -> None:
    """Both ends probe a silent connection."""
    with Client(*server.address) as client:
        assert client.call(b"PING") == b"PONG"
        ends = [client._socket, server.workers[0].connections.copy().popitem()[1].socket]
        for end in ends:
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            wait_s = sockets.KEEPALIVE_IDLE_S + sockets.KEEPALIVE_INTERVAL_S * sockets.KEEPALIVE_COUNT
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            idle, interval, count = (end.getsockopt(socket.IPPROTO_TCP, option) for option in options)
            assert idle + interval * count == wait_s == 120


def test_a_start_says_that_other_machines_are_refused(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    start(host="0.0.0.0")
    assert "other machines are refused without --allow-remote" in caplog.text
    caplog.clear()
    start(host="0.0.0.0", allow_remote=True)
    start()
    assert "refused" not in caplog.text
