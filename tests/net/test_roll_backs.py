"""Each client learns the truth about its own writes, whichever thread commits them or finds the disk full."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from fixtures.servers import Start, StartedServer
from fixtures.support import no_room, run_out_of_room
from fixtures.wire import Wire, encode, replace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merklekv.engine.engine import Engine
from merklekv.errors import DiskFull
from merklekv.net import limits

Connect = Callable[..., Wire]

FULL = b"-ERR disk full, write not stored\r\n"
ONE = b"*1\r\n+OK\r\n"


def in_another_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


@pytest.fixture
def others(server: StartedServer, engine: Engine, one_tick: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ECHO does what another thread does meanwhile: commits, writes, finds the disk full. `full` fills the disk."""
    monkeypatch.setattr("merklekv.engine.write_gate.PROBE_INTERVAL_S", 0.0)
    with ExitStack() as stack:
        work: dict[bytes, Callable[[], None]] = {
            b"commit": lambda: in_another_thread(engine.commit),
            b"write": lambda: in_another_thread(lambda: engine.set(b"theirs", b"v")),
            b"roll back": lambda: in_another_thread(lambda: run_out_of_room(engine)),
            b"full": lambda: stack.enter_context(no_room()),
            b"room": stack.close,
        }

        def echo(session: Any, request: Any) -> bytes:
            work[request[1]]()
            return b"+done\r\n"

        replace(server, b"ECHO", echo)
        yield


def raising(problem: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise problem

    return fail


def converse(wire: Wire, steps: Sequence[Sequence[str]]) -> list[bytes]:
    wire.send(b"".join(encode(*step) for step in steps))
    return [wire.resp() for _ in steps]


@pytest.mark.usefixtures("others")
def test_what_another_thread_has_committed_is_not_withdrawn(connect: Connect) -> None:
    wire = connect()
    steps = ["SET a 1", "SET b 1", "ECHO commit", "SET c 1", "SET d 1", "ECHO full"]
    replies = converse(wire, [step.split() for step in steps])
    assert replies[:2] == [b"+OK\r\n"] * 2
    assert replies[3:] == [FULL] * 3
    assert converse(wire, [["ECHO", "room"], ["MGET", *"abcd"]])[1] == b"*4\r\n$1\r\n1\r\n$1\r\n1\r\n$-1\r\n$-1\r\n"


@pytest.mark.usefixtures("others")
def test_a_write_in_the_place_of_one_that_was_rolled_back_is_refused(connect: Connect) -> None:
    wire = connect()
    steps = [["SET", "a", "1"], ["ECHO", "commit"], ["SET", "b", "1"], ["ECHO", "roll back"], ["SET", "c", "1"]]
    replies = converse(wire, steps)
    assert (replies[0], replies[2], replies[4]) == (b"+OK\r\n", FULL, FULL)
    assert wire.call("MGET", *"abc") == b"*3\r\n$1\r\n1\r\n$-1\r\n$-1\r\n"
    assert converse(wire, [["SET", "b", "2"], ["GET", "b"]]) == [b"+OK\r\n", b"$1\r\n2\r\n"]


def test_what_a_command_has_seen_and_is_lost_while_it_runs_is_withdrawn(
    server: StartedServer, engine: Engine, connect: Connect
) -> None:
    """Another thread stores the frame with the writes before it, and then loses the next one."""
    seen: list[bytes | None] = []

    def write() -> None:
        engine.commit()
        engine.set(b"theirs", b"v")

    def lose() -> None:
        with no_room(), pytest.raises(DiskFull):
            engine.commit()

    def echo(session: Any, request: Any) -> bytes:
        in_another_thread(write)
        seen.append(engine.get(b"theirs"))
        in_another_thread(lose)
        return b"+seen\r\n"

    replace(server, b"ECHO", echo)
    assert converse(connect(), [["SET", "a", "1"], ["ECHO", "x"]]) == [b"+OK\r\n", FULL]
    assert seen == [b"v"]


def test_a_roll_back_after_the_commit_of_a_worker_withdraws_nothing(
    start: Start, engine: Engine, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SWEEP_S", 3600.0)  # or a sweep may be what commits
    server = start()
    wire = connect(server)
    assert wire.call("PING") == b"+PONG\r\n"

    def commit() -> None:
        monkeypatch.undo()
        engine.commit()
        in_another_thread(lambda: run_out_of_room(engine))

    monkeypatch.setattr(server.workers[0], "_commit", commit)
    assert wire.call("SET", "k", "v") == b"+OK\r\n"
    assert wire.call("GET", "k") == b"$1\r\nv\r\n"


@pytest.mark.usefixtures("others")
def test_what_is_stored_is_not_withdrawn_however_often_others_roll_back(
    server: StartedServer, engine: Engine, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[DiskFull] = []

    def commit() -> None:
        if len(failures) < 5:
            in_another_thread(lambda: run_out_of_room(engine))
            in_another_thread(lambda: engine.set(b"theirs", b"v"))
        try:
            engine.commit()
        except DiskFull as problem:
            failures.append(problem)
            raise

    wire = connect()
    assert wire.call("PING") == b"+PONG\r\n"
    monkeypatch.setattr(server.workers[0], "_commit", commit)
    steps = ["SET a 1", "ECHO commit", "SET b 1"]
    replies = converse(wire, [step.split() for step in steps])
    assert len(failures) > 1
    monkeypatch.undo()
    assert (replies[0], replies[2]) == (b"+OK\r\n", FULL)
    assert wire.call("MGET", *"ab") == b"*2\r\n$1\r\n1\r\n$-1\r\n"


def test_no_other_thread_writes_between_a_batch_and_the_look_at_its_frame(
    server: StartedServer, engine: Engine, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or its replies would depend on the next frame, and be withdrawn although the batch is stored."""
    free: list[bool] = []
    real = engine.set_batch

    def set_batch(*arguments: Any) -> int:
        count = real(*arguments)
        in_another_thread(lambda: free.append(engine.lock.acquire(blocking=False)))
        return count

    monkeypatch.setattr(engine, "set_batch", set_batch)
    assert converse(connect(), [["SET", key, "v"] for key in "abc"]) == [b"+OK\r\n"] * 3
    assert free == [False]


STEPS = st.lists(st.sampled_from(["set", "set", "multi", "commit", "write", "roll back"]), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(steps=STEPS, is_full=st.booleans())
@pytest.mark.usefixtures("others")
def test_a_reply_says_whether_the_write_is_stored(
    server: StartedServer, connect: Connect, steps: list[str], is_full: bool
) -> None:
    with Wire(server.address) as wire:
        wire.call("FLUSHALL")
        requests: list[list[str]] = []
        at: dict[str, int] = {}  # of each key, the reply that says whether it is stored
        for number, step in enumerate(steps):
            key = f"k{number}"
            if step == "set":
                requests.append(["SET", key, "v"])
            elif step == "multi":
                requests += [["MULTI"], ["SET", key, "v"], ["EXEC"]]
            else:
                requests.append(["ECHO", step])
                continue
            at[key] = len(requests) - 1
        requests.append(["ECHO", "full" if is_full else "commit"])
        replies = converse(wire, requests)
        assert wire.call("ECHO", "room")
        stored = {key: wire.call("EXISTS", key) == b":1\r\n" for key in at}
        assert {key: replies[place] in (b"+OK\r\n", ONE) for key, place in at.items()} == stored


@pytest.mark.parametrize("is_listening", [False, True])
@pytest.mark.parametrize("fails", ["in the commit", "in the midst"])
def test_a_transaction_that_is_taken_back_changes_no_subscription(
    server: StartedServer, connect: Connect, others: None, is_listening: bool, fails: str
) -> None:
    wire, publisher = connect(), connect()
    if fails == "in the midst":
        replace(server, b"APPEND", raising(DiskFull("disk full, write not stored")))
    if is_listening:
        wire.call("HELLO", "3")  # so that it may run anything
        wire.send(encode("SUBSCRIBE", "a", "b") + encode("PSUBSCRIBE", "p*"))
        assert [wire.resp().split(b"\r\n")[0] for _ in range(3)] == [b">3"] * 3
    steps = ["MULTI", "SET k v", "SUBSCRIBE b c", "UNSUBSCRIBE a", "PUNSUBSCRIBE", "APPEND k x", "EXEC"]
    if fails == "in the commit":
        publisher.call("ECHO", "full")
    replies = converse(wire, [step.split() for step in steps])
    assert replies[-1] == FULL
    assert converse(publisher, [["ECHO", "room"], ["PUBSUB", "NUMSUB", "a", "b", "c"]])[1] == (
        b"*6\r\n$1\r\na\r\n:%d\r\n$1\r\nb\r\n:%d\r\n$1\r\nc\r\n:0\r\n" % (is_listening, is_listening)
    )
    assert publisher.call("PUBSUB", "NUMPAT") == b":%d\r\n" % is_listening
    assert wire.call("GET", "k").startswith((b"$-1", b"_"))
