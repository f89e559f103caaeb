"""RESP commands against a real Redis: the same requests on both, the replies compared byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
from fixtures.servers import FakeServices, Start, StartedServer
from fixtures.wire import Wire
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merklekv.net.registry import LINE, RESP

Words = Sequence[bytes | str]


class Pair:
    """The same questions to both servers."""

    def __init__(self, ours: Wire, redis: Wire) -> None:
        self.ours, self.redis = ours, redis

    def same(self, *words: bytes | str) -> bytes:
        reply = self.ours.call(*words)
        assert reply == self.redis.call(*words), words
        return reply


@pytest.fixture(params=[2, 3])
def pair(request: pytest.FixtureRequest, server: StartedServer, redis_address: tuple[str, int]) -> Iterator[Pair]:
    with Wire(server.address) as ours, Wire(redis_address) as redis:
        for wire in (ours, redis):
            wire.call("HELLO", str(request.param))
            wire.call("FLUSHALL")
        yield Pair(ours, redis)


DIALOGUES = {
    "get, set": """
        GET k / SET k v / GET k / get k / GeT k / SET k / SET / GET / GET a b / SET k v w
        SET k 2 NX / SET n 1 NX / SET k 3 XX / SET x 1 XX / SET k 4 nx / SET k 5 XX GET / SET y 6 GET / GET y
        SET k 7 NX GET / SET z 8 NX GET / GET z / SET k 9 NX XX / SET k 9 KEEPTTL / SET k 9 FOO / SET k 9 GET GET
        GETSET k 10 / GETSET new 1 / GETSET k / GETDEL k / GETDEL k / SETNX k 1 / SETNX k 2 / GET k / SETNX k
    """,
    "several": """
        MSET a 1 b 2 c 3 / MGET a x b / MGET / MSET a / MSET a 1 b / MSETNX a 1 d 4 / GET d / MSETNX d 4 e 5 / GET e
        MSETNX f / MSETNX f 1 g / DEL a x b / DEL a / DEL / UNLINK c d / EXISTS e e x / EXISTS e / EXISTS / UNLINK
        TYPE e / TYPE x / STRLEN e / STRLEN x / TYPE / STRLEN
    """,
    "numbers": """
        INCR n / INCRBY n 41 / DECR n / DECRBY n 50 / GET n / INCRBY n x / INCRBY n 1.5 / DECRBY n 9223372036854775808
        DECRBY n -9223372036854775808 / SET n 9223372036854775807 / INCR n / INCRBY n 1 / GET n / DECRBY n -1
        SET n -9223372036854775808 / DECR n / DECRBY n 1 / SET n abc / INCR n / DECR n / INCRBY n 5 / GET n
        INCR / INCRBY n / INCRBY n +1 / INCRBY n 01 / INCRBY n -0 / INCRBY m -5 / DECR / DECRBY n
    """,
    "parts": """
        SET k Hello / APPEND k _World / GET k / APPEND new x / APPEND k / STRLEN k
        GETRANGE k 0 -1 / GETRANGE k 0 4 / GETRANGE k -5 -1 / GETRANGE k 3 1 / GETRANGE k -1 -5 / GETRANGE k 0 999
        GETRANGE k -999 2 / GETRANGE k 50 60 / GETRANGE none 0 -1 / GETRANGE k a 1 / GETRANGE k 0 / GETRANGE k 5 -100
        GETRANGE k -100 -90 / GETRANGE k -100 0 / GETRANGE k 9223372036854775807 1
        SETRANGE k 6 There / GET k / SETRANGE k 20 far / GET k / SETRANGE none 0 x / SETRANGE k -1 x / SETRANGE k a x
        SETRANGE far 5 x / GET far / SETRANGE k 1 / SETRANGE k 1099511627776 x
    """,
    "whole": """
        DBSIZE / SET a 1 / DBSIZE / RANDOMKEY / DBSIZE x / FLUSHDB / DBSIZE / RANDOMKEY / FLUSHALL / FLUSHDB ASYNC
        FLUSHALL SYNC / FLUSHALL FOO / FLUSHDB ASYNC SYNC / KEYS * / SET a 1 / KEYS * / KEYS b* / KEYS / KEYS a b
        SCAN 0 / SCAN x / SCAN 0 MATCH / SCAN 0 COUNT x / SCAN 0 COUNT 0 / SCAN 0 FOO 1 / SCAN / SCAN 0 TYPE string
        SCAN 0 TYPE list / SCAN 0 MATCH a* COUNT 100 / SCAN 0 MATCH b*
    """,
    "connection": """
        PING / PING hello / PING a b / ECHO hello / ECHO / ECHO a b / SELECT 0 / SELECT 1 / SELECT x / SELECT
        CLIENT GETNAME / CLIENT SETNAME me / CLIENT GETNAME / CLIENT SETNAME / CLIENT FOO / CLIENT / CLIENT ID x
        CLIENT NO-EVICT ON / CLIENT NO-EVICT off / CLIENT NO-EVICT x / CLIENT GETNAME x / CLIENT LIST FOO
        CLIENT LIST TYPE pubsub / CLIENT LIST TYPE foo / CLIENT LIST TYPE a b / CLIENT LIST TYPE / CLIENT HELP x
        AUTH x / AUTH default x / AUTH other x / AUTH Default x / AUTH a b c / AUTH
        HELLO 3 AUTH other x / HELLO 3 AUTH default / HELLO 3 AUTH other x SETNAME me / CLIENT GETNAME / RESET
        CLIENT GETNAME / PING / HELLO x / HELLO 4 / HELLO 1 / HELLO 3 FOO / HELLO 3 SETNAME / TIME x
        CONFIG GET save / CONFIG GET nosuchthing / CONFIG GET / CONFIG / CONFIG FOO
        COMMAND INFO nosuchthing / COMMAND DOCS nosuchthing / COMMAND FOO / COMMAND COUNT x
    """,
    "unknown": """
        FOO / foo a b / FOO a b c d e f g h i / SHUTDOWN FOO / SHUTDOWN ABORT / SHUTDOWN ABORT NOW
        SHUTDOWN NOSAVE SAVE / SHUTDOWN SAVE NOW NOSAVE / PING
    """,
}


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue(name: str, pair: Pair) -> None:
    for request in DIALOGUES[name].replace("\n", "/").split("/"):
        if request.strip():
            pair.same(*request.split())


def test_odd_bytes(pair: Pair) -> None:
    for words in (
        ("SET", b"\x00\xff\r\n", b"\r\n\x00"),
        ("GET", b"\x00\xff\r\n"),
        ("KEYS", "*"),
        ("SET", "k", ""),
        ("GET", "k"),
        ("STRLEN", "k"),
        ("GETRANGE", "k", "0", "-1"),
        ("SETRANGE", "new", "5", ""),
        ("EXISTS", "new"),
        ("CLIENT", "SETNAME", "a b"),
        ("CLIENT", "SETNAME", "a\nb"),
        ("CLIENT", "SETNAME", ""),
        ("CLIENT", "GETNAME"),
        ("FOO\r\nBAR", "a\r\nb"),
        ("FOO", "x" * 200, "y"),
        ("x" * 200, "x" * 127, "y", "z"),
        ("FOO", "x" * 126, "y" * 10, "z"),
        ("FOO", "x" * 100, "y" * 100, "z"),
        ("", "x"),
        ("HELLO", "3", "f\r\no"),
        ("SET", "k", " 1"),
        ("INCR", "k"),
        ("SET", "k", "1 "),
        ("INCR", "k"),
        ("SET", "k", ""),
        ("INCR", "k"),
        ("GETRANGE", "k", "", "1"),
    ):
        pair.same(*words)


NUMBERS = (
    *("0", "1", "-1", "7", "10", "-10", "007", "01", "-01", "00", "+1", "+0", "-0", "", "-", "+", "--1", "+-1"),
    *(" 1", "1 ", "1\n", "\t1", "1.0", "1e3", "0x1", "1_0", "1\0", "\u0661", "one", "9" * 20, "-" + "9" * 20),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809"),
    *("0" * 19 + "1", "9" * 5000),
)


def test_a_number_is_what_it_is_to_redis(pair: Pair) -> None:
    """As a stored value, as an amount, and as both."""
    for value in NUMBERS:
        for request in (("INCR", "k"), ("DECR", "k"), ("INCRBY", "k", "3"), ("DECRBY", "k", "3")):
            pair.same("SET", "k", value)
            pair.same(*request)
            pair.same("GET", "k")
        for name in ("INCRBY", "DECRBY"):
            pair.same("SET", "k", "5")
            pair.same(name, "k", value)
            pair.same(name, "missing", value)
            pair.same("GET", "k")


def test_keys_of_all_patterns(pair: Pair) -> None:
    for key in ("a", "ab", "abc", "b", "user:1", "user:2", "user:10", "[x]", "a*b"):
        pair.same("SET", key, "v")
    for pattern in ("*", "a*", "?", "a?", "user:[12]", "user:[^1]*", "*c", "\\[x\\]", "a\\*b", "[a-b]", "*:*", "", "x"):
        listed = [sorted(wire.call("KEYS", pattern).split(b"\r\n")) for wire in (pair.ours, pair.redis)]
        assert listed[0] == listed[1], pattern


def test_hello_has_the_fields_of_redis(pair: Pair) -> None:
    ours, redis = (wire.call("HELLO").split(b"\r\n") for wire in (pair.ours, pair.redis))
    differ = [(a, b) for a, b in zip(ours, redis, strict=True) if a != b]
    assert all(a[:1] == b":" for a, _ in differ), "only the connection's id may differ"


def test_hello_with_the_user_of_a_server_without_passwords(resp: Wire) -> None:
    assert b"$5\r\nproto\r\n:3\r\n" in resp.call("HELLO", "3", "AUTH", "default", "anything", "SETNAME", "me")
    assert resp.call("CLIENT", "GETNAME") == b"$2\r\nme\r\n"


@pytest.mark.parametrize("name", ["CLIENT", "COMMAND", "CONFIG"])
def test_help_has_the_form_of_redis_and_names_what_there_is(name: str, pair: Pair) -> None:
    ours, redis = (wire.call(name, "HELP").split(b"\r\n") for wire in (pair.ours, pair.redis))
    assert ours[:1] == [b"*%d" % (len(ours) - 2)]
    assert ours[1] == redis[1] == b"+%b <subcommand> [<arg> [value] [opt] ...]. Subcommands are:" % name.encode()
    assert ours[-3:] == redis[-3:] == [b"+HELP", b"+    Prints this help.", b""]
    for line in ours[2:-1:2]:
        word = line[1:].split()[0]
        assert not pair.ours.call(name, word).startswith(b"-ERR unknown subcommand")


@pytest.mark.parametrize("request_", ["CLIENT ID", "TIME", "CLIENT INFO", "COMMAND INFO get", "CONFIG GET maxclients"])
def test_replies_have_the_shape_of_redis(request_: str, pair: Pair) -> None:
    """Values differ between any two servers; types do not."""
    ours, redis = (shape(wire.call(*request_.split())) for wire in (pair.ours, pair.redis))
    assert ours[:1] == redis[:1]
    assert len(ours) <= len(redis)


def shape(reply: bytes) -> list[bytes]:
    return [line[:1] for line in reply.split(b"\r\n") if line[:1] in b":$*%~=+_"]


def test_set_says_that_keys_do_not_expire(resp: Wire) -> None:
    for option in ("EX", "px", "EXAT", "PXAT"):
        reply = resp.call("SET", "k", "v", option, "10")
        assert reply == b"-ERR SET option %b is not supported: keys do not expire\r\n" % option.upper().encode()
    assert resp.call("EXISTS", "k") == b":0\r\n"


def test_what_is_ours_alone(resp: Wire) -> None:
    assert resp.call("HASH") == b"$64\r\n%b\r\n" % (b"0" * 64)
    assert resp.call("SET", "k", "b") == b"+OK\r\n"
    assert resp.call("PREPEND", "k", "a") == b":2\r\n"
    assert resp.call("GET", "k") == b"$2\r\nab\r\n"
    assert resp.call("HASH") == resp.call("HASH", "*") == resp.call("HASH", "") != resp.call("HASH", "x")
    assert resp.call("TRUNCATE") == b"+OK\r\n"
    assert resp.call("DBSIZE") == b":0\r\n"
    assert resp.call("VERSION").startswith(b"$5\r\n")
    assert b"total_commands:" in resp.call("STATS")
    assert resp.call("REPLICATE", "enable") == b"+OK\r\n"
    assert resp.call("REPLICATE", "status") == b"$36\r\nREPLICATION enabled 3 nodes outbox=0\r\n"
    assert resp.call("SYNC", "host", "1") == b"+OK\r\n"
    assert resp.call("SYNC", "host", "0") == b"-ERR SYNC command port must be a number from 1 to 65535\r\n"
    assert resp.call("SET", "k" * 512, "v") == b"-ERR key of 512 bytes: a key has 1 to 511 bytes\r\n"
    assert resp.call("CONFIG", "SET", "save", "x").startswith(b"-ERR nothing can be configured at run time")


def test_info_has_sections(resp: Wire) -> None:
    resp.call("SET", "k", "v")
    everything = resp.call("INFO")
    for line in (b"# Server", b"redis_version:7.", b"db0:keys=1,", b"connected_clients:1", b"outbox_length:7"):
        assert line in everything
    assert resp.call("INFO", "keyspace").endswith(b"\r\n# Keyspace\r\ndb0:keys=1,expires=0,avg_ttl=0\r\n\r\n")
    assert b"redis_version" not in resp.call("INFO", "memory", "clients")
    assert resp.call("INFO", "nosuchsection") == b"$0\r\n\r\n"


def test_quit_and_shutdown_end_the_connection(connect: Callable[..., Wire]) -> None:
    wire = connect()
    wire.send(b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nQUIT\r\n*1\r\n$4\r\nPING\r\n")
    assert wire.rest() == b"+PONG\r\n+OK\r\n"
    wire = connect()
    wire.send(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
    assert wire.rest() == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"*1\r\n$999999999999\r\n",
        b"*1\r\n$x\r\n",
        b"*x\r\n",
        b"*2\r\n$3\r\nGET\r\n:1\r\n",
        b"*1\r\n+PING\r\n",
        b"*1\r\n$4\r\nPING\r\n*1\r\n$-2\r\n*1\r\n$4\r\nPING\r\n",
    ],
)
def test_a_broken_stream_is_answered_as_by_redis(sent: bytes, pair: Pair) -> None:
    for wire in (pair.ours, pair.redis):
        wire.send(sent)
    assert pair.ours.rest() == pair.redis.rest()


words = st.sampled_from(["a", "b", "1", "0", "-1", "9223372036854775807", "x", ""])
keys = st.sampled_from(["k1", "k2", "k3"])
requests = st.one_of(
    st.tuples(st.sampled_from(["GET", "GETDEL", "STRLEN", "INCR", "DECR", "TYPE", "EXISTS"]), keys),
    st.tuples(st.sampled_from(["SET", "GETSET", "SETNX", "APPEND", "INCRBY", "DECRBY"]), keys, words),
    st.tuples(st.just("SET"), keys, words, st.sampled_from(["NX", "XX", "GET", "KEEPTTL"])),
    st.tuples(st.just("GETRANGE"), keys, words, words),
    st.tuples(st.just("SETRANGE"), keys, st.sampled_from(["0", "1", "5", "-1"]), words),
    st.tuples(st.sampled_from(["MSET", "MSETNX"]), keys, words, keys, words),
    st.tuples(st.sampled_from(["MGET", "DEL", "EXISTS", "UNLINK"]), keys, keys, keys),
    st.tuples(st.just("DBSIZE")),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(requests, max_size=20))
def test_any_sequence_of_data_commands(pair: Pair, sequence: list[Words]) -> None:
    pair.same("FLUSHALL")
    for request in sequence:
        pair.same(*request)


def test_scan_walks_through_all_keys(start: Start, connect: Callable[..., Wire]) -> None:
    wire = connect(start())
    keys = {b"key:%03d" % number for number in range(100)}
    wire.call("MSET", *[word for key in keys for word in (key, b"v")])
    wire.call("SET", "other", "v")
    for options, expected in {
        (): keys | {b"other"},
        ("COUNT", "7"): keys | {b"other"},
        ("COUNT", "100000"): keys | {b"other"},
        ("MATCH", "key:*", "COUNT", "10"): keys,
        ("MATCH", "*5"): {key for key in keys if key.endswith(b"5")},
        ("MATCH", "nothing*"): set(),
        ("TYPE", "hash"): set(),
    }.items():
        found, cursor = [], b"0"
        while True:
            cursor, page = scan(wire, cursor, *options)
            found += page
            if cursor == b"0":
                break
        assert sorted(found) == sorted(expected)


def scan(wire: Wire, cursor: bytes, *options: str) -> tuple[bytes, list[bytes]]:
    lines = wire.call("SCAN", cursor, *options).split(b"\r\n")
    assert lines[0] == b"*2"
    return lines[2], lines[5::2]


def test_a_cursor_may_be_used_again_and_an_unknown_one_is_refused(resp: Wire) -> None:
    resp.call("MSET", *[word for number in range(50) for word in (f"k{number:02}", "v")])
    first, _ = scan(resp, b"0")
    second, page = scan(resp, first)
    assert scan(resp, first)[1] == page
    third, _ = scan(resp, second)
    assert scan(resp, second)[1]
    assert third not in (first, second)
    for unknown in (b"999999", first):
        assert resp.call("SCAN", unknown).startswith(b"-ERR unknown cursor %b" % unknown)
    for invalid in (str(2**64), "9" * 5000, "x", "-1", ""):
        assert resp.call("SCAN", invalid) == b"-ERR invalid cursor\r\n"
    assert scan(resp, b"00")[1]


def test_a_cursor_is_unknown_to_another_server_and_after_a_restart(start: Start, connect: Callable[..., Wire]) -> None:
    """However many cursors the other one has given out: a scan never continues where another one is."""
    before, after = connect(start()), connect(start())
    before.call("MSET", *[word for number in range(1000) for word in (f"k{number:03}", "v")])
    cursors = [scan(before, b"0", "COUNT", "10")[0] for _ in range(100)]
    others = [scan(after, b"0", "COUNT", "900")[0] for _ in range(100)]
    assert len({*cursors, *others}) == 200
    for cursor in cursors:
        assert after.call("SCAN", cursor).startswith(b"-ERR unknown cursor %b" % cursor)
    assert all(0 < int(cursor) < 2**53 for cursor in (*cursors, *others))


NOT_ALONE = (b"SHUTDOWN", b"QUIT", b"MULTI")  # what follows is not served
NAMES = sorted((RESP.keys() | LINE.keys()) - set(NOT_ALONE))


@pytest.mark.parametrize("name", [name for name in NAMES if name.isupper()], ids=bytes.decode)
@pytest.mark.parametrize(
    "word", ["9" * 5000, "0" * 5000 + "1", "0" * 6 + "1" * 6, "\udcff"], ids=["digits", "zeros", "port", "bytes"]
)
def test_a_word_of_any_kind_leaves_the_connection_usable(
    name: bytes, word: str, resp: Wire, connect: Callable[..., Wire], services: FakeServices
) -> None:
    """Nothing that a client sends as a number is too much for the conversion of numbers."""
    given = word.encode(errors="surrogateescape")
    if name in RESP:
        for count in range(5):
            for first in ([b"READ"], [b"LIST"], [b"0"], []):
                resp.call(name, *first, *[given] * count)
        assert resp.call("PING") == b"+PONG\r\n"
    if name in LINE:
        for rest in (given, b"k " + given, b"k " + given + b" x"):
            with connect() as text:
                text.send(name + b" " + rest + b"\n")
                assert text.line()
                text.send(b"ECHO still here\n")
                lines = iter(text.line, b"")
                assert any(line == b"ECHO still here\r\n" for line in lines)
