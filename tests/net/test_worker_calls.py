"""Functions that run in a worker's thread, and what a connection is sent without having asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from fixtures.servers import Start, StartedServer
from fixtures.support import no_room, wait_until
from fixtures.wire import Wire, encode, replace

from merklekv.engine.engine import Engine
from merklekv.net.protocol.resp import Push

Connect = Callable[..., Wire]

THREADS = 4
CALLS = 500


def test_calls_run_in_the_workers_thread_in_the_order_of_each_caller(server: StartedServer) -> None:
    worker = server.workers[0]
    ran: list[tuple[threading.Thread, int, int]] = []

    def note(caller: int, number: int) -> None:
        ran.append((threading.current_thread(), caller, number))

    def ask(caller: int) -> None:
        for number in range(CALLS):
            worker.call_soon(partial(note, caller, number))

    callers = [threading.Thread(target=ask, args=(caller,)) for caller in range(THREADS)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    wait_until(lambda: len(ran) == THREADS * CALLS)
    assert {thread for thread, _, _ in ran} == {worker}
    for caller in range(THREADS):
        assert [number for _, who, number in ran if who == caller] == list(range(CALLS))


def test_a_call_may_ask_for_another_and_one_that_fails_does_no_harm(
    server: StartedServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    worker = server.workers[0]
    ran: list[int] = []

    def again() -> None:
        ran.append(len(ran))
        if len(ran) < CALLS:
            worker.call_soon(again)
        if len(ran) == 2:
            raise ZeroDivisionError("on purpose")

    worker.call_soon(again)
    wait_until(lambda: len(ran) == CALLS)
    assert "a call in a worker's thread failed" in caplog.text
    assert connect().call("PING") == b"+PONG\r\n"


def test_a_call_after_a_stop_is_dropped(start: Start) -> None:
    server = start()
    worker = server.workers[0]
    server.stop(deadline_s=5)
    worker.call_soon(lambda: pytest.fail("it must not run"))


def test_a_stop_is_noticed_at_once_behind_calls(start: Start) -> None:
    for _ in range(20):
        server = start()
        worker = server.workers[0]
        for _ in range(CALLS):
            worker.call_soon(lambda: None)
        server.stop(deadline_s=5)
        assert not worker.is_alive()


def test_pushes_stand_between_whole_replies(server: StartedServer, connect: Connect) -> None:
    """A push of the command itself, before its reply; and some of other threads, anywhere between replies."""

    def echo(session: Any, request: Any) -> bytes:
        session.worker.push(session, Push(b"+pushed\r\n"))
        return b"+reply\r\n"

    replace(server, b"ECHO", echo)
    wire = connect()
    assert wire.call("PING") == b"+PONG\r\n"
    (session,) = server.context.sessions()
    wire.send(encode("ECHO", "x") * CALLS)
    for _ in range(CALLS):
        session.worker.call_soon(lambda: session.worker.push(session, Push(b"+called\r\n")))
    lines = [wire.line() for _ in range(3 * CALLS)]
    assert lines.count(b"+called\r\n") == CALLS
    assert [line for line in lines if line != b"+called\r\n"] == [b"+pushed\r\n", b"+reply\r\n"] * CALLS


@pytest.mark.usefixtures("one_tick")
def test_a_roll_back_withdraws_replies_and_no_pushes(start: Start, engine: Engine, connect: Connect) -> None:
    server = start()
    wire = connect(server)
    assert wire.call("SET", "k", "before") == b"+OK\r\n"

    def echo(session: Any, request: Any) -> bytes:
        session.worker.push(session, Push(b"+pushed\r\n"))
        return b"+reply\r\n"

    replace(server, b"ECHO", echo)
    with no_room():
        wire.send(encode("SET", "k", "after") + encode("ECHO", "x"))
        replies = [wire.line() for _ in range(3)]
    assert replies[1] == b"+pushed\r\n"
    assert replies[0].startswith(b"-")
    assert replies[2] == replies[0]
    assert wire.call("GET", "k") == b"$6\r\nbefore\r\n"


def test_nothing_is_pushed_to_a_connection_that_ends(server: StartedServer, connect: Connect) -> None:
    wire = connect()
    wire.call("PING")
    (session,) = server.context.sessions()
    wire.send(encode("QUIT"))
    assert wire.rest() == b"+OK\r\n"
    done = threading.Event()

    def push() -> None:
        session.worker.push(session, Push(b"+late\r\n"))
        done.set()

    session.worker.call_soon(push)
    assert done.wait(60)
    assert connect().call("PING") == b"+PONG\r\n"
