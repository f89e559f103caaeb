"""MULTI is refused, and with it what stands behind it: a transaction that fails has changed nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
from fixtures.servers import StartedServer
from fixtures.wire import Wire, encode

MULTI = b"-ERR transactions are not supported yet: all commands up to EXEC or DISCARD are refused\r\n"
REFUSED = b"-ERR refused: transactions are not supported yet, and this one has not ended with EXEC or DISCARD\r\n"
EXEC = b"-EXECABORT Transaction discarded because of previous errors.\r\n"
DISCARD = b"-ERR transactions are not supported yet: its commands were refused, so nothing has changed\r\n"


def parted(requests: list[bytes], at_once: bool) -> list[bytes]:
    """What is sent at a time."""
    return [b"".join(requests)] if at_once else requests


@pytest.mark.parametrize("at_once", [True, False], ids=["one segment", "one by one"])
@pytest.mark.parametrize(
    "inside",
    [
        [("SET", "k", "1")],
        [("SET", "k", "1")] * 50,
        [("GET", "k")] * 3,
        [("set", "k", "1"), ("Incr", "k"), ("MSET", "k", "1", "l", "2"), ("FLUSHALL",), ("KEYS", "*")],
        [("SET",), ("WATCH", "k"), ("HELLO", "3"), ("SHUTDOWN",), ("SYNC", "other", "1"), ("PING",)],
        [("MULTI",), ("SET", "k", "1")],
    ],
    ids=["a write", "many writes", "reads", "any case", "any command", "nested"],
)
def test_nothing_between_multi_and_exec_runs(resp: Wire, inside: list[tuple[str, ...]], at_once: bool) -> None:
    assert resp.call("SET", "there", "before") == b"+OK\r\n"
    before = resp.call("HASH")
    requests = [("MULTI",), *inside, ("EXEC",), ("SET", "after", "1"), ("GET", "after")]
    replies: list[bytes] = []
    for data in parted([encode(*request) for request in requests], at_once):
        resp.send(data)
        if not at_once:
            replies.append(resp.resp())
    replies += [resp.resp() for _ in requests[len(replies) :]]
    assert replies[0] == MULTI
    assert all(reply.startswith(b"-ERR ") for reply in replies[1:-3])
    assert replies[-3:] == [EXEC, b"+OK\r\n", b"$1\r\n1\r\n"]
    assert resp.call("DEL", "after") == b":1\r\n"
    assert resp.call("KEYS", "*") == b"*1\r\n$5\r\nthere\r\n"
    assert before == resp.call("HASH")  # a lone node keeps no tombstone of `after`
    assert resp.call("GET", "there") == b"$6\r\nbefore\r\n"


def test_discard_and_reset_end_it(resp: Wire) -> None:
    lines = ["MULTI", "SET a 1", "DISCARD", "SET b 1", "MULTI", "SET c 1", "RESET", "SET d 1", "KEYS *"]
    resp.send(b"".join(encode(*line.split()) for line in lines))
    replies = [resp.resp() for _ in range(9)]
    assert replies[:3] == [MULTI, REFUSED, DISCARD]
    assert replies[3:7] == [b"+OK\r\n", MULTI, REFUSED, b"+RESET\r\n"]
    assert replies[7:] == [b"+OK\r\n", b"*2\r\n$1\r\nb\r\n$1\r\nd\r\n"]


def test_quit_and_a_broken_stream_end_the_connection(connect: Callable[..., Wire]) -> None:
    for end, reply in ((encode("QUIT"), b"+OK\r\n"), (b"*x\r\n", b"-ERR Protocol error: invalid multibulk length\r\n")):
        wire = connect()
        wire.send(encode("MULTI") + encode("SET", "k", "1") + end + encode("SET", "k", "2"))
        assert wire.rest() == MULTI + REFUSED + reply
    assert connect().call("DBSIZE") == b":0\r\n"


def test_without_multi(resp: Wire) -> None:
    """In Redis's words."""
    assert resp.call("EXEC") == b"-ERR EXEC without MULTI\r\n"
    assert resp.call("DISCARD") == b"-ERR DISCARD without MULTI\r\n"
    assert resp.call("MULTI", "x") == b"-ERR wrong number of arguments for 'multi' command\r\n"
    assert resp.call("SET", "k", "1") == b"+OK\r\n"


def test_a_transaction_concerns_its_own_connection_only(connect: Callable[..., Wire]) -> None:
    one, other = connect(), connect()
    assert one.call("MULTI") == MULTI
    one.send(encode("SET", "one", "1"))
    other.send(encode("SET", "other", "1"))
    assert [one.resp(), other.resp()] == [REFUSED, b"+OK\r\n"]
    assert other.call("KEYS", "*") == b"*1\r\n$5\r\nother\r\n"


def test_the_line_protocol_does_the_same(text: Wire) -> None:
    text.send(b"multi\nSET k 1\nset k 1\nSHUTDOWN\nMULTI\nEXEC\nGET k\nMULTI\nINC k\nDISCARD\nEXEC\nGET k\n")
    assert [text.line().decode().removesuffix("\r\n") for _ in range(12)] == [
        "ERROR transactions are not supported yet: all commands up to EXEC or DISCARD are refused",
        *["ERROR refused: transactions are not supported yet, and this one has not ended with EXEC or DISCARD"] * 3,
        "ERROR MULTI calls can not be nested",
        "ERROR Transaction discarded because of previous errors.",
        "NOT_FOUND",
        "ERROR transactions are not supported yet: all commands up to EXEC or DISCARD are refused",
        "ERROR refused: transactions are not supported yet, and this one has not ended with EXEC or DISCARD",
        "ERROR transactions are not supported yet: its commands were refused, so nothing has changed",
        "ERROR EXEC without MULTI",
        "NOT_FOUND",
    ]


@pytest.mark.parametrize("protocol", [2, 3])
def test_redis_py_by_default(server: StartedServer, protocol: int) -> None:
    """Its pipelines are transactions unless it is told otherwise."""
    host, port = server.address
    with redis.Redis(host=host, port=port, protocol=protocol) as client:
        for _ in range(2):
            pipeline = client.pipeline()
            pipeline.set("a", 1)
            pipeline.incr("n")
            with pytest.raises(redis.ResponseError, match="transactions are not supported yet"):
                pipeline.execute()
            assert client.keys() == []
        assert client.pipeline(transaction=False).set("a", 1).incr("n").execute() == [True, 1]
        with pytest.raises(redis.ResponseError, match="unknown command 'WATCH'"):
            client.transaction(lambda pipeline: pipeline.set("a", 2), "a")
        assert client.get("a") == b"1"
