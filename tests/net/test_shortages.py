"""An unforeseen error, or a shortage of memory, threads or files, ends or refuses one request; the server goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest
from fixtures.node import NodeFactory
from fixtures.servers import FakeServices, Start, StartedServer, StubEngine
from fixtures.support import run_out_of_room, wait_until
from fixtures.wire import Unsendable, Wire, connection_of, encode, readable, replace

from merklekv.engine.engine import Engine
from merklekv.errors import StorageFailed
from merklekv.net import limits
from merklekv.net.limits import COMMAND_THREADS_MAX
from merklekv.net.worker import CROWDED

Connect = Callable[..., Wire]

OUT_OF_MEMORY = b"-ERR out of memory, closing this connection\r\n"
INTERNAL = b"-ERR internal error, see the server's log\r\n"
PROBLEMS = [(MemoryError(), OUT_OF_MEMORY), (ZeroDivisionError("on purpose"), INTERNAL)]
names_of = pytest.mark.parametrize(("problem", "reply"), PROBLEMS, ids=["memory", "other"])


def raising(problem: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise problem

    return fail


@names_of
def test_while_reading(
    server: StartedServer, connect: Connect, problem: Exception, reply: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    wire, other = connect(), connect()
    assert wire.call("SET", "k", "v") == other.call("SET", "k", "v") == b"+OK\r\n"
    connection_of(server, wire).feed = raising(problem)
    wire.send(encode("SET", "k", "w") + encode("SET", "k", "x"))
    assert wire.rest() == reply
    assert other.call("GET", "k") == b"$1\r\nv\r\n"
    assert caplog.text.count("Traceback") == 1


@names_of
def test_while_running_what_has_been_run_is_answered(
    server: StartedServer, connect: Connect, problem: Exception, reply: bytes
) -> None:
    replace(server, b"ECHO", raising(problem))
    wire, other = connect(), connect()
    wire.send(encode("SET", "k", "v") + encode("ECHO", "x") + encode("SET", "k", "w"))
    assert wire.rest() == b"+OK\r\n" + reply
    assert other.call("GET", "k") == b"$1\r\nv\r\n"


def test_a_shortage_while_running_leaves_the_connection_usable(
    server: StartedServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    replace(server, b"ECHO", raising(OSError(errno.ENFILE, os.strerror(errno.ENFILE))))
    wire = connect()
    reply = b"-ERR resource shortage: Too many open files in system; try again later\r\n"
    assert wire.call("ECHO", "x") == reply
    assert wire.call("PING") == b"+PONG\r\n"
    assert "Traceback" not in caplog.text


@names_of
def test_in_a_later_slice_or_while_waiting(
    server: StartedServer, connect: Connect, problem: Exception, reply: bytes
) -> None:
    def long(session: Any, request: Any) -> Generator[Any, None, bytes]:
        yield raising(problem) if request[1] == b"wait" else None
        raise problem

    replace(server, b"ECHO", long)
    other = connect()
    for word in ("wait", "go on"):
        wire = connect()
        wire.send(encode("PING") + encode("ECHO", word) + encode("PING"))
        assert wire.rest() == b"+PONG\r\n" + reply
    assert other.call("PING") == b"+PONG\r\n"


@names_of
def test_in_a_batch(server: StartedServer, connect: Connect, problem: Exception, reply: bytes) -> None:
    """Each request runs by itself then: what the batch has done already is done again, with the same outcome."""
    server.context.commands.resp.entries[b"SET"].batches[3] = raising(problem)
    wire, other = connect(), connect()
    assert wire.call("SET", "k", "v") == b"+OK\r\n"
    wire.send(encode("SET", "k", "w") * 2)
    assert [wire.resp(), wire.resp()] == [b"+OK\r\n"] * 2
    replace(server, b"SET", raising(problem))
    wire.send(encode("SET", "k", "y") * 2)
    assert wire.rest() == reply
    assert other.call("GET", "k") == b"$1\r\nw\r\n"


@names_of
def test_in_a_batch_what_must_not_be_done_twice_is_not(
    server: StartedServer,
    engine: Engine,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    problem: Exception,
    reply: bytes,
) -> None:
    other, older = connect(), engine.table.older
    monkeypatch.setattr(engine.table, "older", lambda key: raising(problem)() if key == b"c" else older(key))
    for name, left in (("INCR", b"$1\r\n1\r\n"), ("DEL", b"$-1\r\n")):
        wire = connect()
        wire.send(b"".join(encode(name, key) for key in "abc"))
        assert wire.rest() == b":1\r\n" * 2 + reply
        assert other.call("MGET", "a", "b") == b"*2\r\n" + left * 2


@names_of
def test_while_sending(server: StartedServer, connect: Connect, problem: Exception, reply: bytes) -> None:
    wire, other = connect(), connect()
    assert wire.call("PING") == b"+PONG\r\n"
    connection_of(server, wire).replies = Unsendable(problem)
    wire.send(encode("SET", "k", "v"))
    assert wire.rest() == b""
    assert other.call("GET", "k") == b"$1\r\nv\r\n"


@names_of
def test_outside_of_any_connection(
    server: StartedServer, connect: Connect, problem: Exception, reply: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = connect()
    assert wire.call("PING") == b"+PONG\r\n"
    failed: list[int] = []

    def serve(events: Any, now: float) -> None:
        failed.append(len(events))
        monkeypatch.undo()
        raise problem

    monkeypatch.setattr(server.workers[0], "_serve", serve)
    assert wire.call("SET", "k", "v") == b"+OK\r\n"
    assert failed == [1]


@names_of
def test_what_others_wrote_in_the_same_round_is_committed_before_they_are_answered(
    start: Start, connect: Connect, problem: Exception, reply: bytes
) -> None:
    stub = StubEngine()
    server = start(engine=stub)
    entered, leave = threading.Event(), threading.Event()

    def hold(session: Any, request: Any) -> bytes:
        entered.set()
        assert leave.wait(60)
        return b"+held\r\n"

    replace(server, b"ECHO", hold)
    holding, failing, *writing = (connect(server) for _ in range(5))
    for wire in (holding, failing, *writing):
        assert wire.call("PING") == b"+PONG\r\n"
    connection_of(server, failing).feed = raising(problem)
    holding.send(encode("ECHO", "x"))
    assert entered.wait(60)
    writing[0].send(encode("SET", "k0", "v"))
    failing.send(b"anything")
    for number, wire in enumerate(writing[1:], 1):
        wire.send(encode("SET", f"k{number}", "v"))
    leave.set()
    assert failing.rest() == reply
    for number, wire in enumerate(writing):
        assert wire.resp() == b"+OK\r\n"
        assert b"k%d" % number in stub.committed[-1]


def test_an_error_in_the_commit_is_a_failure_of_storage(start: Start, connect: Connect, fatal: list[Exception]) -> None:
    """What is in the log then is not known, so nothing may be answered."""
    stub = StubEngine()
    wire = connect(start(engine=stub))
    assert wire.call("PING") == b"+PONG\r\n"
    stub.commit_error = ZeroDivisionError("on purpose")  # type: ignore[assignment]
    wire.send(encode("SET", "k", "v"))
    with contextlib.suppress(ConnectionResetError):
        assert wire.rest() == b""
    assert [type(problem) for problem in wait_until(lambda: fatal)] == [StorageFailed]
    assert "ZeroDivisionError('on purpose')" in str(fatal[0])


def test_many_errors_are_logged_once(
    server: StartedServer, connect: Connect, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merklekv.log_throttle.THROTTLE_S", 3600.0)
    replace(server, b"ECHO", raising(ZeroDivisionError("on purpose")))
    for _ in range(50):
        with connect() as wire:
            wire.send(encode("ECHO", "x"))
            assert wire.rest() == INTERNAL
    assert caplog.text.count("ZeroDivisionError: on purpose") == 1


@names_of
def test_while_taking_a_connection_in(
    server: StartedServer, connect: Connect, problem: Exception, reply: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 0.05)
    admit = server._admit
    tries: list[object] = []

    def admit_later(sock: socket.socket, peer: tuple[str, int]) -> None:
        tries.append(peer)
        if len(tries) == 1:
            raise problem
        admit(sock, peer)

    monkeypatch.setattr(server, "_admit", admit_later)
    assert connect().rest() == b""
    assert connect().ask("PING") == "PONG"


def test_half_requests_that_fill_the_memory(node_factory: NodeFactory) -> None:
    """Every client sends nearly all of a large value and waits. Some are cut; the others, and new ones, are served."""
    size, sent, clients = 16_000_000, 15_900_000, 40
    node = node_factory(start=False)
    node.wrapper = ["prlimit", f"--data={500_000 * 1024}"]
    node.start()
    address = ("127.0.0.1", node.port)
    wires = [Wire(address) for _ in range(clients)]

    def send(wire: Wire) -> None:
        try:
            wire.send(b"*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n$%d\r\n" % size + b"x" * sent)
        except (ConnectionResetError, BrokenPipeError):
            pass  # it was cut

    senders = [threading.Thread(target=send, args=(wire,)) for wire in wires]
    try:
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60)
        assert node.process is not None
        assert node.process.poll() is None, node.output()
        wait_until(lambda: is_served(address))  # not while what was sent still comes in
        cut = [wire for wire in wires if readable(wire)]
        assert 0 < len(cut) < clients
        # One that is cut at once has shown no protocol yet.
        assert {ending(wire) for wire in cut} <= {b"-ERR %b\r\n" % CROWDED.encode(), b""}
    finally:
        for wire in wires:
            wire.close()
    node.kill()


def is_served(address: tuple[str, int]) -> bool:
    """Whether a new client can write and read."""
    with contextlib.suppress(OSError), Wire(address) as other:
        return (other.call("SET", "k", "v"), other.call("GET", "k")) == (b"+OK\r\n", b"$1\r\nv\r\n")
    return False


def ending(wire: Wire) -> bytes:
    """What a connection that was cut could still read."""
    try:
        return wire.rest()
    except ConnectionResetError:
        return b""


# -- the disk is full --------------------------------------------------------------------------------------------------


def test_what_another_thread_takes_back_after_a_commit_leaves_no_later_one_out(
    start: Start, connect: Connect, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does so between a worker's commit and its look whether that happened: the next write is still committed."""
    monkeypatch.setattr(limits, "SWEEP_S", 3600.0)
    server = start()
    wire = connect(server)
    assert wire.call("PING") == b"+PONG\r\n"

    def commit() -> None:
        monkeypatch.undo()
        engine.commit()
        other = threading.Thread(target=run_out_of_room, args=(engine,))
        other.start()
        other.join()

    monkeypatch.setattr(server.workers[0], "_commit", commit)
    assert wire.call("GET", "k") == b"-ERR disk full, write not stored\r\n"
    for number in range(3):
        assert wire.call("SET", f"k{number}", "v") == b"+OK\r\n"
        assert engine.commits.committed == engine.log.appended


# -- threads -----------------------------------------------------------------------------------------------------------


def test_so_many_syncs_at_once_and_no_more(
    server: StartedServer, connect: Connect, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = threading.Event()
    services.sync_with = lambda: finish.wait(60)
    most = server.context.command_threads_max
    running = [connect() for _ in range(most)]
    for wire in running:
        wire.send(b"SYNC other 1\n")
    wait_until(lambda: len(services.asked) == most)
    refused = f"ERROR too many SYNC at once: {most} are under way, try again later"
    for _ in range(50):
        with connect() as one_more:
            assert one_more.ask("SYNC other 1") == refused
            assert one_more.ask("PING") == "PONG"
    finish.set()
    assert [wire.line() for wire in running] == [b"OK\r\n"] * most
    wait_until(lambda: connect().ask("SYNC other 1") == "OK")


def test_no_thread_is_to_be_had(server: StartedServer, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    wire = connect()
    monkeypatch.setattr(threading.Thread, "start", raising(RuntimeError("can't start new thread")))
    refused = "ERROR cannot start a thread for SYNC: can't start new thread; try again later"
    for _ in range(2 * COMMAND_THREADS_MAX):
        assert wire.ask("SYNC other 1") == refused
    monkeypatch.undo()
    assert wire.ask("SYNC other 1") == "OK"
