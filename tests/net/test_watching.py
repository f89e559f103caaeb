"""What watches or stops requests: SLOWLOG, LATENCY, MONITOR, and CLIENT KILL, PAUSE, REPLY."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
from fixtures.servers import Start, StartedServer
from fixtures.support import wait_until
from fixtures.wire import Wire, encode, readable

from merklekv.engine.engine import Engine
from merklekv.net import monitor as monitor_module
from merklekv.net import slowlog
from merklekv.net.commands import clients
from merklekv.net.slowlog import Slow

Connect = Callable[..., Wire]

SAME = """
SLOWLOG GET x / SLOWLOG GET -2 / SLOWLOG RESET / SLOWLOG FOO / SLOWLOG / SLOWLOG GET 1 2 / LATENCY / LATENCY FOO
LATENCY LATEST / LATENCY HISTORY foo / LATENCY RESET / LATENCY RESET a / LATENCY GRAPH x / LATENCY HISTORY
LATENCY HISTOGRAM nosuch / CONFIG GET slowlog-log-slower-than / CONFIG GET slowlog-max-len
CONFIG GET latency-monitor-threshold / CONFIG SET slowlog-log-slower-than x / CONFIG SET latency-monitor-threshold -1
CLIENT KILL 1:1 / CLIENT KILL ID 987654
CLIENT KILL ID 0 / CLIENT KILL ID x / CLIENT KILL TYPE x / CLIENT KILL USER x
CLIENT KILL SKIPME x / CLIENT KILL FOO 1 / CLIENT KILL ID 1 ID / CLIENT UNBLOCK 99 / CLIENT UNBLOCK x
CLIENT UNBLOCK 1 foo / CLIENT PAUSE x / CLIENT PAUSE -1 / CLIENT PAUSE 1 x / CLIENT PAUSE 1 all x / CLIENT UNPAUSE
CLIENT REPLY x / CLIENT REPLY ON / CLIENT GETREDIR / CLIENT TRACKINGINFO / CLIENT TRACKING off / CLIENT TRACKING x
CLIENT CACHING YES / CLIENT CACHING x / CLIENT NO-TOUCH ON
"""


@pytest.mark.parametrize("protocol", ["2", "3"])
def test_answers_are_those_of_redis(protocol: str, server: StartedServer, redis_address: tuple[str, int]) -> None:
    with Wire(server.address) as ours, Wire(redis_address) as theirs:
        for wire in (ours, theirs):
            wire.call("HELLO", protocol)
        for request in SAME.replace("\n", "/").split("/"):
            words = request.split()
            assert not words or ours.call(*words) == theirs.call(*words), request


def test_a_client_is_listed_with_the_fields_of_redis(resp: Wire, redis_address: tuple[str, int]) -> None:
    with Wire(redis_address) as theirs:
        for request in (("CLIENT", "LIST"), ("CLIENT", "INFO")):
            ours, redis_ = (re.findall(rb"([a-z-]+)=", wire.call(*request).split(b"\n")[1]) for wire in (resp, theirs))
            assert ours == [*redis_, b"lib-name", b"lib-ver"]
    line = resp.call("CLIENT", "LIST")
    assert b" flags=N db=0 sub=0 psub=0 ssub=0 multi=-1 " in line
    assert b" cmd=client|list user=default redir=-1 resp=2 " in line


def test_what_others_do_is_listed(connect: Connect, resp: Wire) -> None:
    half, queueing, listening, watching = (connect() for _ in range(4))
    half.send(encode("GET", "x") + b"*2\r\n$3\r\nGET\r\n$1000\r\n" + b"x" * 500)
    assert half.resp() == b"$-1\r\n"
    for words in (("MULTI",), ("GET", "x"), ("GET", "y")):
        queueing.call(*words)
    listening.call("SUBSCRIBE", "c")
    watching.call("MONITOR")
    line = {}
    for row in resp.call("CLIENT", "LIST").split(b"\n")[1:-2]:
        fields = dict(word.split(b"=", 1) for word in row.split(b" "))
        line[fields[b"addr"]] = fields

    def of(wire: Wire) -> dict[bytes, bytes]:
        return line[b"127.0.0.1:%d" % wire.socket.getsockname()[1]]

    assert (of(half)[b"cmd"], of(half)[b"qbuf"]) == (b"get", b"503")
    assert (of(queueing)[b"multi"], of(queueing)[b"flags"]) == (b"2", b"x")
    assert (of(listening)[b"sub"], of(listening)[b"flags"]) == (b"1", b"P")
    assert of(watching)[b"flags"] == b"O"
    assert resp.call("CLIENT", "LIST", "TYPE", "pubsub").count(b"\n") == 3


# -- CLIENT KILL, PAUSE, REPLY -----------------------------------------------------------------------------------------


def identity(wire: Wire) -> str:
    return wire.call("CLIENT", "ID")[1:-2].decode()


def test_a_killed_client_is_closed(connect: Connect, resp: Wire, start: Start) -> None:
    one, two, three = (connect() for _ in range(3))
    assert resp.call("CLIENT", "KILL", "ID", identity(one)) == b":1\r\n"
    assert one.rest() == b""
    address = f"127.0.0.1:{two.socket.getsockname()[1]}"
    assert two.call("CLIENT", "KILL", "ADDR", address) == b":0\r\n", "itself only with SKIPME no"
    assert resp.call("CLIENT", "KILL", address) == b"+OK\r\n"
    assert two.rest() == b""
    three.call("SUBSCRIBE", "c")
    assert resp.call("CLIENT", "KILL", "TYPE", "pubsub", "USER", "default") == b":1\r\n"
    three.send(b"")
    assert three.rest() == b""
    assert resp.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no") == b":1\r\n"
    assert resp.rest() == b""


def test_clients_of_another_worker_are_killed_too(start: Start, connect: Connect) -> None:
    server = start(threads=2)
    first, *others = (connect(server) for _ in range(6))
    for wire in others:
        wire.call("PING")
    assert first.call("CLIENT", "KILL", "TYPE", "normal") == b":5\r\n"
    assert [wire.rest() for wire in others] == [b""] * 5


def test_of_an_option_given_twice_the_last_counts(connect: Connect, resp: Wire) -> None:
    first, second = connect(), connect()
    options = [word for wire in (first, second) for word in ("ID", identity(wire))]
    assert resp.call("CLIENT", "KILL", *options, *("TYPE", "normal") * 10_000) == b":1\r\n"
    assert second.rest() == b""
    assert first.call("PING") == b"+PONG\r\n"


def test_a_pause_of_writes_lets_reads_pass_and_ends_by_itself_or_on_demand(connect: Connect, resp: Wire) -> None:
    writing = connect()
    resp.call("SET", "k", "old")
    assert resp.call("CLIENT", "PAUSE", "100000", "WRITE") == b"+OK\r\n"
    writing.send(encode("SET", "k", "new") + encode("GET", "k"))
    assert resp.call("GET", "k") == b"$3\r\nold\r\n"
    wait_until(lambda: b" flags=b " in resp.call("CLIENT", "LIST"), what="the write to wait")
    assert not readable(writing)
    assert resp.call("CLIENT", "UNPAUSE") == b"+OK\r\n"
    assert writing.resp() + writing.resp() == b"+OK\r\n$3\r\nnew\r\n"
    for timeout_ms in ("30", "50"):  # the second one prolongs the first
        assert resp.call("CLIENT", "PAUSE", timeout_ms) == b"+OK\r\n"
    assert resp.call("GET", "k") == b"$3\r\nnew\r\n"
    assert writing.call("INCR", "n") == b":1\r\n"


def test_a_pause_ends_transactions_late_and_whole(connect: Connect, resp: Wire) -> None:
    other = connect()
    for words in (("MULTI",), ("SET", "k", "1"), ("INCR", "k")):
        other.call(*words)
    resp.call("CLIENT", "PAUSE", "100000", "WRITE")
    other.send(encode("EXEC"))
    assert resp.call("EXISTS", "k") == b":0\r\n"
    resp.call("CLIENT", "UNPAUSE")
    assert other.resp() == b"*2\r\n+OK\r\n:2\r\n"


READING = "#!lua flags=no-writes\nreturn 12"


def test_a_pause_of_writes_lets_pass_what_says_that_it_only_reads(connect: Connect, resp: Wire) -> None:
    sha = resp.call("SCRIPT", "LOAD", READING + " -- known")[5:-2].decode()
    others = [connect() for _ in range(5)]
    resp.call("CLIENT", "PAUSE", "100000", "WRITE")
    for words in (("EVAL", READING, "0"), ("EVALSHA", sha, "0"), ("EVAL_RO", "return 12", "0")):
        assert resp.call(*words) == b":12\r\n"
    assert resp.call("EVAL", "#!lua flags=none\nreturn 12", "0").startswith(b"-ERR Unexpected flag")
    for wire in (resp, *others):
        assert wire.call("MULTI") == b"+OK\r\n"
        wire.call("GET", "k")
        wire.call("EVAL", READING, "0")
    assert resp.call("EXEC") == b"*2\r\n$-1\r\n:12\r\n"
    assert resp.call("EXEC") == b"-ERR EXEC without MULTI\r\n"
    writing = ["SET k v", "EVAL return 0", f"EVALSHA {sha[::-1]} 0", "PUBLISH c m", "DEL k"]
    for wire, request in zip(others, writing, strict=True):
        wire.call(*request.split())
        wire.send(encode("EXEC"))
    wait_until(lambda: b"blocked_clients:5\r\n" in resp.call("INFO", "clients"), what="all of them to wait")
    assert not any(map(readable, others))
    resp.call("CLIENT", "UNPAUSE")
    assert [wire.resp()[:4] for wire in others] == [b"*3\r\n"] * 5
    assert b"blocked_clients:0\r\n" in resp.call("INFO", "clients")


def test_a_pause_does_not_stop_the_transaction_that_begins_it(connect: Connect, resp: Wire) -> None:
    """It could not wait in its midst, and would begin again for ever, with a new pause each time."""
    other = connect()
    other.call("PING")
    words = [("MULTI",), ("CLIENT", "PAUSE", "100000"), ("SET", "k", "1"), ("GET", "k"), ("EXEC",)]
    assert [resp.call(*one) for one in words][-1] == b"*3\r\n+OK\r\n+OK\r\n$1\r\n1\r\n"
    other.send(encode("GET", "k"))
    assert not readable(other)
    resp.call("CLIENT", "UNPAUSE")
    assert other.resp() == b"$1\r\n1\r\n"


@pytest.mark.parametrize("reason", [[], ["TIMEOUT"], ["ERROR"]])
def test_a_blocked_client_is_unblocked(reason: list[str], connect: Connect, resp: Wire) -> None:
    blocked = connect()
    number = identity(blocked)
    assert resp.call("CLIENT", "UNBLOCK", number, *reason) == b":0\r\n", "it waits for nothing"
    blocked.send(encode("CHANGES", "$", "BLOCK", "0") + encode("PING"))
    wait_until(lambda: b"blocked_clients:1\r\n" in resp.call("INFO", "clients"), what="the client to wait")
    assert resp.call("CLIENT", "UNBLOCK", number, *reason) == b":1\r\n"
    reply = blocked.resp()
    if reason == ["ERROR"]:
        assert reply == b"-UNBLOCKED client unblocked via CLIENT UNBLOCK\r\n"
    else:
        assert reply.endswith(b"*0\r\n")
    assert blocked.resp() == b"+PONG\r\n"
    assert b"blocked_clients:0\r\n" in resp.call("INFO", "clients")


def test_a_stop_does_not_wait_for_a_pause(start: Start, connect: Connect) -> None:
    server = start()
    wire = connect(server)
    wire.call("CLIENT", "PAUSE", "1000000")
    wire.send(encode("GET", "k"))
    other = connect(server)
    wait_until(lambda: b" flags=b " in other.call("CLIENT", "LIST"), what="the request to wait")
    server.stop(deadline_s=5)
    assert wire.rest() == b"$-1\r\n"


MUTED = """
SET k 1 / CLIENT REPLY SKIP / INCR k / INCR k / CLIENT REPLY OFF / INCR k / FOO / GET / SET k 7 / GET k
CLIENT REPLY ON / GET k / CLIENT REPLY SKIP / FOO / PING / CLIENT REPLY OFF / CLIENT REPLY SKIP / PING
CLIENT REPLY ON / CLIENT REPLY ON / PING / CLIENT REPLY SKIP / CLIENT REPLY ON / PING / CLIENT REPLY OFF / RESET / PING
QUIT
"""


@pytest.mark.parametrize("together", [True, False])
def test_replies_are_dropped_as_by_redis(
    together: bool, connect: Connect, redis_address: tuple[str, int], resp: Wire
) -> None:
    requests = [encode(*words.split()) for words in MUTED.replace("\n", "/").split("/") if words.strip()]
    with Wire(redis_address) as theirs:
        for wire in (resp, theirs):
            for data in [b"".join(requests)] if together else requests:
                wire.send(data)
        assert resp.rest() == theirs.rest()


def test_a_transaction_is_answered_whole(resp: Wire) -> None:
    for mode in ("SKIP", "OFF", "ON"):
        words = (("MULTI",), ("CLIENT", "REPLY", mode), ("PING",), ("EXEC",), ("PING",))
        resp.send(b"".join(encode(*one) for one in words))
        replies = [resp.resp() for _ in words]
        assert replies[3].startswith(b"*2\r\n-ERR CLIENT REPLY is not possible in a transaction")
        assert replies[4] == b"+PONG\r\n"


# -- LATENCY HISTOGRAM -------------------------------------------------------------------------------------------------

# A bucket may be another one there.
HISTOGRAM = """
PING / SET a 1 / GET a / GET a / GET nosuch / CONFIG GET save / INCR a / APPEND a x / LPUSH a b
"""


@pytest.mark.parametrize("protocol", [2, 3])
def test_histograms_have_the_form_that_they_have_in_redis(
    protocol: int, server: StartedServer, redis_address: tuple[str, int]
) -> None:
    found: list[list[Any]] = []
    for host, port in (server.address, redis_address):
        with redis.Redis(host=host, port=port, protocol=protocol) as client:
            client.config_resetstat()
            for words in HISTOGRAM.split("/"):
                with suppress(redis.ResponseError):
                    client.execute_command(*words.split())
            told = client.execute_command("LATENCY HISTOGRAM", "get", "set", "incr", "nosuch")
            found.append([_form(told)])
            assert client.execute_command("LATENCY HISTOGRAM", "nosuch") == ({} if protocol == 3 else [])
    assert found[0] == found[1]


def _form(told: Any) -> dict[bytes, tuple[int, bool]]:
    """Of each command: the calls, and whether the counts rise to that."""
    commands = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))
    form = {}
    for name, fields in commands.items():
        fields = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
        buckets = fields[b"histogram_usec"]
        counts = list(buckets.values()) if isinstance(buckets, dict) else buckets[1::2]
        form[name] = (fields[b"calls"], counts == sorted(counts) and counts[-1] == fields[b"calls"])
    return form


def test_histograms_begin_anew_with_the_counters_of_info(resp: Wire) -> None:
    assert resp.call("LATENCY", "HISTOGRAM", "get") == b"*0\r\n"
    resp.send(encode("GET", "x") * 300)
    for _ in range(300):
        resp.resp()
    assert b"$5\r\ncalls\r\n:300\r\n" in resp.call("LATENCY", "HISTOGRAM", "GET")
    text = resp.call("INFO", "latencystats")
    assert re.search(rb"latency_percentiles_usec_get:p50=\d+,p99=\d+,p99\.9=\d+\r\n", text)
    resp.call("CONFIG", "RESETSTAT")
    assert resp.call("LATENCY", "HISTOGRAM", "get") == b"*0\r\n"
    assert b"usec_get" not in resp.call("INFO", "latencystats")


def test_only_what_was_used_is_added_up(resp: Wire, server: StartedServer) -> None:
    """A look at the counters runs in a worker: it may not take long."""
    resp.call("GET", "k")
    resp.call("SET", "k")  # refused
    assert set(server.context.usage()) == {"GET", "SET"}


def test_what_clients_wait_is_counted_by_group_and_the_commit_by_itself(
    connect: Connect, resp: Wire, server: StartedServer
) -> None:
    waited, commits = server.context.commands.waited, server.context.commit_time
    resp.send(encode("SET", "k", "v") * 5 + encode("GET", "k") * 7 + encode("NOSUCH"))
    for _ in range(13):
        resp.resp()
    wait_until(lambda: waited[""].count == 1)  # it is counted after it was sent
    assert {group: one.count for group, one in waited.items() if one.count} == {"set": 5, "get": 7, "": 1}
    assert 0 < commits.count <= 5
    assert waited["set"].seconds >= server.context.usage()["SET"].time.seconds
    before = commits.count
    for _ in range(3):
        resp.call("GET", "k")
    assert commits.count == before, "reads wait for no commit"


# -- SLOWLOG and LATENCY -----------------------------------------------------------------------------------------------


@pytest.fixture(params=[2, 3])
def client(request: pytest.FixtureRequest, server: StartedServer) -> Iterator[Any]:
    host, port = server.address
    with redis.Redis(host=host, port=port, protocol=request.param, decode_responses=True) as connection:
        yield connection


def test_with_a_limit_of_zero_every_request_is_logged(client: Any, connect: Connect) -> None:
    client.client_setname("slow")
    client.config_set("slowlog-log-slower-than", 0)
    client.set("k", "v" * 200)
    wire = connect()
    wire.send(encode("GET", "k") * 20)
    for _ in range(20):
        wire.resp()
    logged = client.slowlog_get(100)
    assert [one["command"] for one in logged][:20] == [b"GET k"] * 20
    written = next(one for one in logged if one["command"].startswith(b"SET"))
    assert written["command"] == b"SET k " + b"v" * 128 + b"... (72 more bytes)"
    assert written["client_name"] in ("slow", b"slow")
    client.config_set("slowlog-log-slower-than", -1)
    client.slowlog_reset()
    client.get("k")
    assert client.slowlog_len() == 0


def test_a_slow_command_is_logged_with_all_its_slices(start: Start, engine: Engine, connect: Connect) -> None:
    engine.mset([(b"key:%06d" % number, b"v") for number in range(60_000)])
    wire = connect(start())
    wire.call("CONFIG", "SET", "slowlog-log-slower-than", "10000", "latency-monitor-threshold", "1")
    wire.call("KEYS", "*x*y*z*")
    logged = wire.call("SLOWLOG", "GET")
    assert b"*2\r\n$4\r\nKEYS\r\n$7\r\n*x*y*z*\r\n" in logged
    assert b"\r\n$7\r\ncommand\r\n" in wire.call("LATENCY", "LATEST")
    assert wire.call("LATENCY", "HISTORY", "command").startswith(b"*")
    assert b"command" in wire.call("LATENCY", "GRAPH", "command")
    assert wire.call("LATENCY", "RESET", "command") == b":1\r\n"


def test_passwords_are_not_logged(client: Any) -> None:
    client.config_set("slowlog-log-slower-than", 0)
    client.execute_command("AUTH", "default", "secret")
    client.execute_command("HELLO", "3", "AUTH", "default", "secret")
    assert "secret" not in str(client.slowlog_get(10))


def test_the_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    for number in range(1000):
        slow.took(1.0, "command", [b"GET", b"%d" % number], "1.2.3.4:5", b"")
    assert len(slow.requests) == slowlog.LENGTH
    assert slow.requests[0].request == (b"GET", b"999")
    slow.took(1.0, "command", [b"x" * 1000] * 1000, "1.2.3.4:5", b"")
    last = slow.requests[0].request
    assert (len(last), last[-1]) == (slowlog.ARGUMENTS_SHOWN, b"... (969 more arguments)")
    slow.length = 3
    assert [one.number for one in slow.requests] == [1000, 999, 998]
    slow.length = 0
    assert slow.requests == []


def test_only_the_longest_of_a_second_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100]
    monkeypatch.setattr(time, "time", lambda: float(now[0]))
    slow = Slow()
    slow.set_limits(-1, 5)
    for milliseconds in (4, 6, 9, 7):
        slow.note("command", milliseconds / 1000)
    now[0] = 101
    slow.note("command", 0.0055)
    assert list(slow.events["command"].samples) == [(100, 9), (101, 5)]
    assert slow.events["command"].longest_ms == 9


# -- MONITOR -----------------------------------------------------------------------------------------------------------


def shown(line: bytes) -> bytes:
    found = re.fullmatch(rb"\+\d{10}\.\d{6} \[0 (?:127\.0\.0\.1:\d+|lua)\] (.*)\r\n", line)
    assert found, line
    return found[1]


def test_a_monitor_sees_the_requests_that_redis_shows(
    connect: Connect, resp: Wire, redis_address: tuple[str, int]
) -> None:
    requests = [
        encode(*words)
        for words in (
            ("SET", "k", b'\x00\xff"\\\r\n\t\a\b a'),
            ("get", "k"),
            ("GET",),
            ("FOO", "x"),
            ("MULTI",),
            ("INCR", "n"),
            ("SET", "n", "x"),
            ("INCR", "n"),
            ("EXEC",),
            ("EVAL", "return redis.call('SET', KEYS[1], ARGV[1])", "1", "s", "x"),
            ("AUTH", "default", "secret"),
            ("CONFIG", "GET", "save"),
            ("PING",),
        )
    ]
    with Wire(redis_address) as theirs, Wire(redis_address) as their_monitor:
        seen = []
        theirs.call("FLUSHALL")
        for wire, monitor in ((resp, connect()), (theirs, their_monitor)):
            assert monitor.call("MONITOR") == b"+OK\r\n"
            wire.send(b"".join(requests))
            lines: list[bytes] = []
            while not lines or lines[-1] != b'"PING"':
                lines.append(shown(monitor.line()))
            seen.append(lines)
    assert seen[0] == seen[1]


def test_a_monitor_is_shown_the_beginning_of_a_large_request(
    connect: Connect, resp: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor_module, "SHOWN_BYTES_MAX", 12)
    monitor = connect()
    monitor.call("MONITOR")
    for words, seen in (
        (("ECHO", "x" * 7), b'"ECHO" "xxxxxxx"'),
        (("ECHO", "\x00" * 107), b'"ECHO" "' + rb"\x00" * 7 + b'... (100 more bytes)"'),
        (("EXISTS", "abcd", "b", "c"), b'"EXISTS" "abcd" "... (2 more arguments)"'),
    ):
        resp.call(*words)
        assert shown(monitor.line()) == seen


def test_pipelines_and_clients_of_other_workers_are_seen(start: Start, connect: Connect) -> None:
    server = start(threads=2)
    monitor, *others = (connect(server) for _ in range(5))
    assert monitor.call("MONITOR") == b"+OK\r\n"
    for number, wire in enumerate(others):
        wire.send(b"".join(encode("SET", f"k{number}", str(each)) for each in range(50)))
    lines = {shown(monitor.line()) for _ in range(200)}
    assert lines == {b'"SET" "k%d" "%d"' % (number, each) for number in range(4) for each in range(50)}
    assert monitor.call("RESET") == b"+RESET\r\n"
    others[0].call("PING")
    assert monitor.call("PING") == b"+PONG\r\n"


def test_while_nobody_watches_batches_run_again(server: StartedServer, connect: Connect) -> None:
    entry = server.context.commands.resp.entries[b"GET"]
    plain = (entry.handler, dict(entry.batches))
    monitor = connect()
    monitor.call("MONITOR")
    assert not entry.batches
    monitor.close()
    wait_until(lambda: (entry.handler, entry.batches) == plain, what="the plain handlers")


def test_a_monitor_that_does_not_read_is_closed(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merklekv.net.limits.SUBSCRIBER_OUTPUT_BYTES", 100_000)
    server = start()
    monitor = connect(server, receive_buffer=4096)
    monitor.call("MONITOR")
    wire = connect(server)
    for _ in range(200):
        wire.call("ECHO", "x" * 50_000)
        if server.context.traffic.output_limit_closed:
            break
    assert server.context.traffic.output_limit_closed == 1
    assert wire.call("PING") == b"+PONG\r\n"


def test_a_long_list_of_clients_lets_others_run(resp: Wire, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "SLICE_CLIENTS", 1)
    others = [connect() for _ in range(5)]
    assert [other.call("PING") for other in others] == [b"+PONG\r\n"] * 5
    assert resp.call("CLIENT", "LIST").count(b" cmd=ping ") == 5


def test_the_slow_log_has_a_size() -> None:
    """Also where its length lets it have ten thousand requests of many arguments."""
    slow = Slow()
    slow.length = slowlog.SLOWLOG_ENTRIES_MAX
    large = [b"x" * 1000] * 100
    for _ in range(slow.length):
        slow.took(1.0, "command", large, "127.0.0.1:1", b"n" * 1000)
    assert 1000 < len(slow.requests) < slow.length
    assert sum(one.size for one in slow.requests) <= slowlog.SLOWLOG_BYTES_MAX
    assert [one.number for one in slow.requests[:2]] == [slow.length - 1, slow.length - 2]
    slow.length = 2
    assert [one.number for one in slow.requests] == [9999, 9998]
    slow.clear()
    slow.took(1.0, "command", large, "127.0.0.1:1", b"")
    assert len(slow.requests) == 1
