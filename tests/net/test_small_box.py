"""A node in 256 MiB with 64 processes and 256 open files: whatever clients do to fill them, it serves the others."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from fixtures.box import FILES, Box
from fixtures.cluster import HEALING, Outsider, ReplicationTestHarness
from fixtures.support import wait_until
from fixtures.tools import succeeds
from fixtures.wire import Wire, encode

MIB = 1 << 20
LARGE = b"x" * (15 * MIB)
BITS = b"15000000"
RETURNED = 1.2
SPARE_BYTES = 40 * MIB  # of what was imported meanwhile, and of arenas of small objects in which a few are left


class Attack:
    """Clients that do one thing at once, in threads of their own, and hold their connections."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address

    def __call__(self, clients: int, act: Callable[[Wire, int], object]) -> None:
        wires: list[Wire] = []

        def run(number: int) -> None:
            with contextlib.suppress(OSError):  # the server closed the connection
                wire = Wire(self.address, receive_buffer=4096)
                wires.append(wire)
                act(wire, number)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for wire in wires:
            wire.close()


@pytest.fixture
def hostile_port() -> Iterator[int]:
    """A server that answers anything with a message that is too long, and goes on sending."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                    with peer:
                        peer.recv(1000)
                        peer.sendall(b"$20000000\r\n" + bytes(40 * MIB))
                except OSError:
                    if server.fileno() < 0:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.timeout(600)
def test_a_node_in_a_small_box_survives_those_who_fill_it(
    box: Box, harness: ReplicationTestHarness, outsider: Outsider, hostile_port: int
) -> None:
    small = harness.create_node("small", "--durability", "everysec", *HEALING, start=False)
    small.process.wrapper = box.wrapper
    small.start()
    small.wait_connected()
    peer = harness.create_node("peer", *HEALING)
    assert "limits.memory is 53687091, memtable_size 8388608" in small.process.output()
    address = ("127.0.0.1", small.process.port)
    pid = small.process.pid
    attack = Attack(address)
    other = Wire(address)

    def answers() -> None:
        assert small.process.process is not None
        assert small.process.process.poll() is None, small.process.output()[-2000:]
        assert other.call("SET", "canary", "v") == b"+OK\r\n"
        assert other.call("GET", "canary") == b"$1\r\nv\r\n"

    answers()
    before = small.figure("used_memory_kb") * 1024
    attack(20, lambda wire, number: wire.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16000000\r\n" + LARGE))
    answers()
    attack(8, lambda wire, number: wire.send(b"*1000000\r\n$3\r\nDEL\r\n" + b"$2\r\nab\r\n" * 200_000))
    answers()
    attack(6, lambda wire, number: wire.call("SET", f"large{number}", LARGE))
    answers()
    attack(4, lambda wire, number: wire.call("SETRANGE", f"large{number}", BITS, "y"))
    answers()
    attack(6, lambda wire, number: wire.call("BITOP", "XOR", f"to{number % 2}", "large0", "large1", "large2", "large3"))
    answers()
    attack(20, lambda wire, number: wire.send(encode("GET", "large0") * 20))
    answers()
    attack(10, lambda wire, number: wire.send(encode("MULTI") + encode("SET", "k", b"x" * MIB) * 20))
    answers()
    attack(20, lambda wire, number: wire.send(encode("SUBSCRIBE", "c") + encode("PING") * 10_000))
    answers()
    attack(
        2, lambda wire, number: wire.call("EVAL", "local t = {} for i = 1, 1e9 do t[i] = ('x'):rep(99) .. i end", "0")
    )
    answers()
    attack(2, lambda wire, number: wire.call("EVAL", "local s = 'x' while true do s = s .. s end", "0"))
    answers()
    attack(8, lambda wire, number: wire.call("SYNC", "127.0.0.1", str(hostile_port)))
    answers()
    for _ in range(8):
        outsider.publish_raw(b"\xa2\x61v\x01\x61x\x9a\x00\xe0\x00\x00" + b"\xa0" * (14 * MIB))
    answers()
    with contextlib.ExitStack() as stack:
        for _ in range(2 * FILES):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_connection(address))
        answers()
    assert other.call("DEL", "k", *[f"large{number}" for number in range(6)], "to0", "to1").startswith(b":")
    assert other.call("SET", "last", "word") == b"+OK\r\n"
    other.close()
    peer.wait_for("last", "word")
    harness.wait_converged()
    assert small.process.pid == pid
    assert box.kills == 0
    most = RETURNED * before + SPARE_BYTES
    wait_until(
        lambda: small.figure("used_memory_kb") * 1024 < most,
        what=f"the memory to come back to {most:,.0f} bytes: {small.figures()}",
    )
    assert "Traceback" not in small.process.output()
    small.stop()
    succeeds("verify", str(small.process.directory))
    small.start()
    assert small.get("last") == "word"
