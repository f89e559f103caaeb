"""MULTI, EXEC, DISCARD, WATCH and UNWATCH: as Redis answers, whole or not at all, and dependent on what was watched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fixtures.engines import Wall, open_engine
from fixtures.servers import Start, StartedServer
from fixtures.wire import Wire, encode, replace

from merklekv.engine.engine import Engine
from merklekv.engine.format import OP_DEL, OP_SET
from merklekv.engine.record import make_record
from merklekv.errors import DiskFull, Stalled
from merklekv.net import registry, transaction
from merklekv.net.commands import transactions
from merklekv.net.limits import Limits

Connect = Callable[..., Wire]

ABORTED = b"-EXECABORT Transaction discarded because of previous errors.\r\n"
QUEUED = b"+QUEUED\r\n"

CONVERSATIONS = {
    "basics": "SET a 1|MULTI|GET a|INCR a|get a|MGET a nokey|EXEC|GET a",
    "empty": "MULTI|EXEC",
    "discard": "SET a 1|MULTI|INCR a|DISCARD|GET a|DISCARD|EXEC",
    "nested": "MULTI|SET a 1|MULTI|EXEC|GET a",
    "exec with arguments": "EXEC x|WATCH a|MULTI|SET a 1|EXEC x|EXEC|GET a|SET a 2|MULTI|GET a|EXEC",
    "arguments": "MULTI x|MULTI|MULTI x|EXEC|MULTI|DISCARD x|GET a|EXEC|WATCH|UNWATCH x|MULTI|WATCH|EXEC",
    "errors inside": "SET a x|MULTI|INCR a|SET b 1|GETRANGE a x 1|SET b 2 NOSUCH|SET c|EXEC|GET b",
    "errors inside, nothing wrong before": "SET a x|MULTI|INCR a|SET b 1|GETRANGE a x 1|SET c 3|EXEC|GET b|GET c",
    "unknown": "MULTI|SET a 1|NOSUCH a b|SET b 1|EXEC|GET a|EXEC",
    "unknown subcommand": "MULTI|SET a 1|OBJECT NOSUCH a|EXEC|GET a|MULTI|OBJECT ENCODING a|EXEC",
    "too few arguments of a subcommand": "MULTI|SET a 1|OBJECT ENCODING|CONFIG GET|EXEC|GET a",
    "too few arguments": "MULTI|SET a|GET a|EXEC|GET a",
    "too many arguments": "MULTI|GET a b|GET a b|EXEC",
    "an error, then discard": "MULTI|SET|DISCARD|SET a 1|MULTI|GET a|EXEC",
    "not allowed": "MULTI|SHUTDOWN NOSAVE|SET a 1|EXEC|GET a",
    "reset": "WATCH a|MULTI|SET a 1|RESET|EXEC|GET a|MULTI|EXEC",
    "quit": "MULTI|SET a 1|QUIT",
    "watch unchanged": "SET a 1|WATCH a b|MULTI|INCR a|EXEC|MULTI|INCR a|EXEC",
    "watch changed by itself": "SET a 1|WATCH a|SET a 1|MULTI|INCR a|EXEC|GET a|MULTI|INCR a|EXEC",
    "watch created": "WATCH a|SET a 1|MULTI|GET a|EXEC",
    "watch deleted": "SET a 1|WATCH a|DEL a|MULTI|GET a|EXEC",
    "watch deleted and made again": "SET a 1|WATCH a|DEL a|SET a 1|MULTI|GET a|EXEC",
    "watch in multi": "SET a 1|MULTI|WATCH a|GET a|EXEC",
    "watch twice": "SET a 1|WATCH a|WATCH a b a|APPEND a x|WATCH a|MULTI|EXEC",
    "unwatch": "SET a 1|WATCH a|SET a 2|UNWATCH|MULTI|GET a|EXEC",
    "unwatch in multi": "SET a 1|WATCH a|SET a 2|MULTI|UNWATCH|GET a|EXEC|MULTI|GET a|EXEC",
    "discard unwatches": "WATCH a|SET a 2|MULTI|DISCARD|MULTI|GET a|EXEC",
    "exec that fails unwatches": "WATCH a|SET a 2|MULTI|EXEC|MULTI|GET a|EXEC",
    "broken goes before watched": "WATCH a|SET a 2|MULTI|NOSUCH|EXEC",
    "flushall": "SET a 1|WATCH a|FLUSHALL|MULTI|EXEC|WATCH nokey|FLUSHALL|MULTI|EXEC|MULTI|SET a 1|FLUSHALL|GET a|EXEC",
    "many at once": "MULTI|" + "|".join(f"SET k{number} {number}" for number in range(300)) + "|EXEC|GET k299",
    "runs": "MULTI|SET a 1|SET b 2|SET c 3 NX|SET d 4|SET d 5 XX GET|GET a|GET b|GET nokey|INCR a|INCR a|DEL a b|EXEC",
    "hello": "MULTI|HELLO 3|GET nokey|EXEC|GET nokey|WATCH a|SET a 1|MULTI|EXEC",
    "a write that is refused": "MULTI|SET a 1|MSET a 2 b|SETRANGE a -1 x|EXEC|GET a",
}


def converse(wire: Wire, lines: list[str], at_once: bool) -> list[bytes]:
    requests = [encode(*line.split()) for line in lines]
    if at_once:
        wire.send(b"".join(requests))
        return [comparable(line, wire.resp()) for line in lines]
    replies = []
    for line, request in zip(lines, requests, strict=True):
        wire.send(request)
        replies.append(comparable(line, wire.resp()))
    return replies


def comparable(line: str, reply: bytes) -> bytes:
    return b"?" if b"server\r\n" in reply and b"proto\r\n" in reply else reply


@pytest.mark.parametrize("at_once", [True, False], ids=["one segment", "one by one"])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_as_redis(resp: Wire, redis_address: tuple[str, int], name: str, at_once: bool) -> None:
    lines = CONVERSATIONS[name].split("|")
    with Wire(redis_address) as control:
        assert control.call("FLUSHALL") == b"+OK\r\n"
        assert converse(resp, lines, at_once) == converse(control, lines, at_once)


def test_quit_disconnect_and_a_broken_stream_leave_nothing(connect: Connect) -> None:
    begin = encode("MULTI") + encode("SET", "k", "1")
    for end, reply in (
        (encode("QUIT"), b"+OK\r\n"),
        (b"*x\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
    ):
        wire = connect()
        wire.send(begin + end + encode("EXEC"))
        assert wire.rest() == b"+OK\r\n" + QUEUED + reply
    wire = connect()
    wire.send(begin)
    assert wire.read(len(b"+OK\r\n" + QUEUED)) == b"+OK\r\n" + QUEUED
    wire.close()
    assert connect().call("DBSIZE") == b":0\r\n"


def test_a_transaction_concerns_its_own_connection_only(connect: Connect) -> None:
    """Also where requests of many connections run in one call."""
    wires = [connect() for _ in range(8)]
    for wire in wires[::2]:
        assert wire.call("MULTI") == b"+OK\r\n"
    for number, wire in enumerate(wires):
        wire.send(encode("SET", f"k{number}", "1"))
    assert [wire.resp() for wire in wires] == [QUEUED, b"+OK\r\n"] * 4
    assert wires[1].call("DBSIZE") == b":4\r\n"
    assert [wire.call("EXEC") for wire in wires[::2]] == [b"*1\r\n+OK\r\n"] * 4
    assert wires[1].call("DBSIZE") == b":8\r\n"


def test_statistics_count_what_ran(server: StartedServer, resp: Wire) -> None:
    for line in ("MULTI", "SET a 1", "DISCARD", "MULTI", "SET a 1", "SET a 2", "GET a", "EXEC"):
        resp.call(*line.split())
    calls = server.context.commands.calls()
    assert (calls["set"], calls["get"], calls["management"]) == (2, 1, 4)


# -- watched keys ------------------------------------------------------------------------------------------------------


def merge(engine: Engine, key: bytes, value: bytes | None) -> None:
    record = make_record(key, engine.clock.next(), value or b"", tombstone=value is None)
    result = engine.merge([(OP_DEL if value is None else OP_SET, key, record)], b"other")
    assert result.applied == 1


@pytest.mark.parametrize("change", ["merge", "delete", "truncate", "conflict"])
def test_changes_of_other_nodes_are_seen(engine: Engine, resp: Wire, change: str) -> None:
    engine.join()
    assert resp.call("SET", "k", "v") == resp.call("SET", "l", "v") == b"+OK\r\n"
    assert resp.call("WATCH", "k", "l") == b"+OK\r\n"
    match change:
        case "merge":
            merge(engine, b"k", b"v")
        case "delete":
            merge(engine, b"l", None)
        case "truncate":
            assert engine.merge_truncation(engine.clock.next(), b"other")
        case "conflict":
            merge(engine, b"m", b"v")
    assert resp.call("MULTI") == b"+OK\r\n"
    assert resp.call("SET", "k", "w") == QUEUED
    assert resp.call("EXEC") == (b"*1\r\n+OK\r\n" if change == "conflict" else b"*-1\r\n")


def test_an_expiry_is_seen(start: Start, connect: Connect, tmp_path: Path) -> None:
    wall = Wall()
    engine = open_engine(tmp_path / "expiring", wall_clock=wall)
    engine.join()  # what has expired stays for a while
    server = start(engine=engine)
    wire = connect(server)
    for first, reply in (("PX", b"*-1\r\n"), ("KEEPTTL", b"*1\r\n+OK\r\n")):
        words = ("1000",) if first == "PX" else ()
        assert wire.call("SET", "k", "v", first, *words) == b"+OK\r\n"
        assert wire.call("WATCH", "k") == wire.call("MULTI") == b"+OK\r\n"
        wall.now += 2 * 10**9
        assert wire.call("SET", "k", "w") == QUEUED
        assert wire.call("EXEC") == reply
    server.stop(deadline_s=5)
    engine.close()


def test_no_more_watched_keys_than_allowed(resp: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "WATCHED_MAX", 3)
    assert resp.call("WATCH", "a", "b", "a") == resp.call("WATCH", "a", "c") == b"+OK\r\n"
    assert resp.call("WATCH", "d") == b"-ERR too many watched keys: at most 3 for one connection\r\n"
    assert resp.call("UNWATCH") == resp.call("WATCH", "d") == b"+OK\r\n"
    assert resp.call("WATCH", "", "x" * 600) == b"+OK\r\n"  # no such key can exist


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False])
def test_no_more_commands_than_allowed(resp: Wire, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    monkeypatch.setattr(transaction, "QUEUED_MAX", 5)
    monkeypatch.setattr(registry, "QUEUED_MAX", 5)
    lines = ["MULTI", *["SET a 1"] * 5, "EXEC", "MULTI", *["SET b 1"] * 8, "EXEC", "EXISTS b", "MULTI", "GET a", "EXEC"]
    replies = converse(resp, lines, at_once)
    assert replies[6] == b"*5\r\n" + b"+OK\r\n" * 5
    too_large = b"-ERR transaction of more than 5 commands or "
    assert [reply for reply in replies[8:16] if reply.startswith(too_large)]
    assert replies[16:] == [ABORTED, b":0\r\n", b"+OK\r\n", QUEUED, b"*1\r\n$1\r\n1\r\n"]


def test_no_more_bytes_than_allowed(start: Start, connect: Connect, tmp_path: Path) -> None:
    with_small_values = Engine(tmp_path / "small", durability="never", max_value_size=1 << 20)
    server = start(engine=with_small_values, limits=Limits(request_bytes=4 << 20))
    wire = connect(server)
    value = "x" * (1 << 20)
    assert wire.call("MULTI") == b"+OK\r\n"
    replies = [wire.call("SET", f"k{number}", value) for number in range(5)]
    assert replies[:3] == [QUEUED] * 3
    assert replies[3].startswith(b"-ERR transaction of more than 100000 commands or 4194304 bytes: split it")
    assert replies[4] == QUEUED
    assert wire.call("EXEC") == ABORTED
    assert wire.call("DBSIZE") == b":0\r\n"
    server.stop(deadline_s=5)
    with_small_values.close()


def test_replies_beyond_the_limit_are_errors(start: Start, engine: Engine, connect: Connect) -> None:
    server = start()
    object.__setattr__(server.context.limits, "output_hard_bytes", 10_000)
    wire = connect(server)
    engine.set(b"k", b"x" * 4000)
    replies = converse(wire, ["MULTI", *["GET k"] * 4, "EXEC", "SET l 1"], True)
    assert replies[5].count(b"-ERR replies of more than 10000 bytes\r\n") >= 1
    assert replies[6] == b"+OK\r\n"


def test_what_takes_too_long_is_refused_and_writes_run(
    server: StartedServer, engine: Engine, resp: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that has changed something goes on; one that has not, and one that reads, ends."""
    clock = iter(range(1000))
    monkeypatch.setattr(transaction, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(transaction, "SECONDS_MAX", 3.0)

    def change(session: Any, request: Any) -> Generator[Any, None, bytes]:
        for number in range(5):
            session.engine.set(b"n", b"%d" % number)
            yield None
        return b"+done\r\n"

    replace(server, b"APPEND", change)
    lines = ["MULTI", "APPEND k x", "ECHO x", "SET a 1", "BITOP AND b a a", "GET a", "PING", "EXEC", "MGET n a b"]
    too_long = b"-ERR not done: what runs at one moment must not take more than 5 seconds\r\n"
    assert converse(resp, lines, True)[-2:] == [
        b"*6\r\n+done\r\n" + too_long + b"+OK\r\n" + too_long * 3,
        b"*3\r\n$1\r\n4\r\n$1\r\n1\r\n$-1\r\n",
    ]


def test_one_that_holds_the_node_for_too_long_is_taken_back(resp: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resp.call("SET", "k", "abc") == b"+OK\r\n"
    clock = iter(range(1000))
    monkeypatch.setattr(transaction, "monotonic", lambda: float(next(clock)))
    for writes, reply in (
        (
            ["SETBIT k 7 1"] * 30,
            b"-ERR a transaction takes more than 20 seconds, write not stored\r\n",
        ),  # changes nothing
        (["SET k 1", "INCR k"] * 15, b"-ERR resource shortage, write not stored\r\n"),
    ):
        assert converse(resp, ["MULTI", *writes], False)[-1] == QUEUED
        assert resp.call("EXEC") == reply
        assert resp.call("GET", "k") == b"$3\r\nabc\r\n"
    assert converse(resp, ["MULTI", "SET k 1", "EXEC"], False)[-1] == b"*1\r\n+OK\r\n"


def test_no_more_bytes_are_written_than_fit_in_memory(server: StartedServer, resp: Wire) -> None:
    assert resp.call("SETRANGE", "k", "9999", "x") == b":10000\r\n"
    object.__setattr__(server.context.limits, "memory_bytes", 80_000)
    lines = ["MULTI", *[f"COPY k l{number}" for number in range(6)], "DEL k", "EXEC", "EXISTS k l0 l3 l5"]
    too_much = b"-ERR more than 40000 bytes to write at one moment: split it into several\r\n"
    assert converse(resp, lines, True)[-2:] == [b"*7\r\n" + b":1\r\n" * 4 + too_much * 2 + b":1\r\n", b":2\r\n"]
    script = "for i = 1, 10 do redis.call('setrange', KEYS[1] .. i, 9999, 'x') end"
    assert resp.call("EVAL", script, "1", "m").startswith(too_much[:-2])
    assert resp.call("EXISTS", "m3", "m4", "m5", "m6") == b":2\r\n"


# -- all or nothing ----------------------------------------------------------------------------------------------------


def long_wait(session: Any, request: Any) -> Generator[Any, None, bytes]:
    yield None
    yield lambda: request[1] == b"go"
    return b"+done\r\n"


def test_long_commands_run_to_their_end_and_nothing_waits(server: StartedServer, resp: Wire) -> None:
    replace(server, b"ECHO", long_wait)
    replies = converse(resp, ["MULTI", "ECHO go", "ECHO wait", "SET a 1", "EXEC", "GET a"], True)
    waits = b"-ERR it would have to wait, which it cannot do here: try again, or outside of it\r\n"
    assert replies[4:] == [b"*3\r\n+done\r\n" + waits + b"+OK\r\n", b"$1\r\n1\r\n"]


def raising(problem: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise problem

    return fail


@pytest.mark.parametrize("problem", [DiskFull("disk full, write not stored"), Stalled("wait")], ids=["full", "stalled"])
def test_a_shortage_in_the_midst_takes_all_of_it_back(
    server: StartedServer, engine: Engine, connect: Connect, problem: Exception
) -> None:
    """With what was there before, and for good."""
    wire, other = connect(), connect()
    assert wire.call("MSET", "a", "old", "b", "old") == b"+OK\r\n"
    before = engine.root()
    replace(server, b"APPEND", raising(problem))
    replies = converse(wire, ["MULTI", "SET a new", "DEL b", "SET c new", "APPEND a x", "EXEC", "MGET a b c"], True)
    assert replies[5].startswith(b"-ERR ")
    assert replies[5].endswith(b", write not stored\r\n")
    assert other.call("MGET", "a", "b", "c") == b"*3\r\n$3\r\nold\r\n$3\r\nold\r\n$-1\r\n"
    assert engine.root() == before
    assert converse(wire, ["MULTI", "SET a new", "EXEC", "GET a"], False)[2:] == [b"*1\r\n+OK\r\n", b"$3\r\nnew\r\n"]


@pytest.mark.usefixtures("one_tick")
def test_an_unforeseen_error_takes_all_of_it_back_and_ends_the_connection(
    server: StartedServer, connect: Connect
) -> None:
    replace(server, b"APPEND", raising(ZeroDivisionError("on purpose")))
    wire = connect()
    wire.send(b"".join(encode(*line.split()) for line in ("MULTI", "SET a 1", "APPEND a x", "EXEC", "SET b 1")))
    assert wire.rest() == b"-ERR resource shortage, write not stored\r\n" * 4
    assert connect().call("DBSIZE") == b":0\r\n"


def test_a_stall_before_anything_has_changed_is_waited_for(start: Start, connect: Connect, tmp_path: Path) -> None:
    engine = Engine(tmp_path / "full", memtable_size=64 << 10, checkpoint="manual", durability="never")
    while not engine.gate.stalled:
        engine.set(b"filler:%d" % engine.live_count, bytes(1000))
        engine.commit()
    server = start(engine=engine)
    wire, other = connect(server), connect(server)
    wire.send(b"".join(encode(*line.split()) for line in ("MULTI", "SET a 1", "INCR a", "EXEC")))
    assert [wire.resp() for _ in range(3)] == [b"+OK\r\n", QUEUED, QUEUED]
    for line, reply in (("MULTI", b"+OK\r\n"), ("GET a", QUEUED), ("EXEC", b"*1\r\n$-1\r\n")):  # reads need not wait
        assert other.call(*line.split()) == reply
    engine.checkpoint_now()
    assert wire.resp() == b"*2\r\n+OK\r\n:2\r\n"
    server.stop(deadline_s=5)
    engine.close()


def test_no_reader_sees_a_part(start: Start, connect: Connect) -> None:
    """Several threads serve: one writes pairs, the others read both keys, one after the other."""
    server = start(threads=3)
    writer, *readers = (connect(server) for _ in range(6))
    assert writer.call("MSET", "a", "0", "b", "0") == b"+OK\r\n"
    stop = threading.Event()
    seen: list[tuple[int, int]] = []

    def read(wire: Wire) -> None:
        while not stop.is_set():
            wire.send(encode("GET", "b") + encode("GET", "a"))  # `a` is written first
            first, second = (int(wire.resp().split(b"\r\n")[1]) for _ in range(2))
            if first > second:
                seen.append((first, second))

    threads = [threading.Thread(target=read, args=(wire,)) for wire in readers]
    for thread in threads:
        thread.start()
    for number in range(1, 400):
        lines = ["MULTI", f"SET a {number}", "EXISTS x y z", f"SET b {number}", "EXEC"]
        writer.send(b"".join(encode(*line.split()) for line in lines))
        assert [writer.resp() for _ in lines][-1] == b"*3\r\n+OK\r\n:0\r\n+OK\r\n"
    stop.set()
    for thread in threads:
        thread.join()
    assert not seen


def test_counting_up_together(start: Start, connect: Connect) -> None:
    """Watched read and write of many clients in several threads: no increment is lost."""
    server = start(threads=3)
    host, port = server.address

    def count() -> None:
        with redis.Redis(host=host, port=port) as client:
            for _ in range(25):
                client.transaction(lambda pipe: add(pipe), "n")

    def add(pipe: Any) -> None:
        value = int(pipe.get("n") or 0)
        pipe.multi()
        pipe.set("n", value + 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert connect(server).call("GET", "n") == b"$3\r\n100\r\n"


# -- clients -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[2, 3])
def client(request: pytest.FixtureRequest, server: StartedServer) -> Iterator[Any]:
    host, port = server.address
    with redis.Redis(host=host, port=port, protocol=request.param) as one:
        yield one


def test_redis_py(client: Any) -> None:
    pipeline = client.pipeline()
    assert pipeline.set("a", 1).incr("a").get("a").mget("a", "nokey").execute() == [True, 2, b"2", [b"2", None]]
    with pytest.raises(redis.ResponseError, match="value is not an integer"):
        client.pipeline().set("a", "x").incr("a").set("b", 1).execute()
    assert client.get("b") == b"1"
    with client.pipeline() as pipeline:
        pipeline.watch("a")
        assert pipeline.get("a") == b"x"
        client.set("a", "y")
        pipeline.multi()
        pipeline.set("a", "z")
        with pytest.raises(redis.WatchError):
            pipeline.execute()
    assert client.get("a") == b"y"
    assert client.transaction(lambda pipe: (pipe.multi(), pipe.set("a", 2)), "a") == [True]


def test_the_line_protocol_refuses_all_of_it(text: Wire) -> None:
    text.send(b"multi\nSET k 1\nset k 1\nSHUTDOWN\nMULTI\nEXEC\nGET k\nMULTI\nINC k\nDISCARD\nEXEC\nGET k\n")
    begins = "ERROR transactions work over RESP only: all commands up to EXEC or DISCARD are refused"
    refused = "ERROR refused: transactions work over RESP only, and this one has not ended with EXEC or DISCARD"
    assert [text.line().decode().removesuffix("\r\n") for _ in range(12)] == [
        begins,
        *[refused] * 3,
        "ERROR MULTI calls can not be nested",
        "ERROR Transaction discarded because of previous errors.",
        "NOT_FOUND",
        begins,
        refused,
        "ERROR transactions work over RESP only: its commands were refused, so nothing has changed",
        "ERROR EXEC without MULTI",
        "NOT_FOUND",
    ]
