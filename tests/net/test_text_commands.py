"""The line protocol's commands: what is asked and what comes back, to the letter."""

from __future__ import annotations

import mmap
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.servers import FakeServices, Start, StartedServer
from fixtures.support import wait_until
from fixtures.wire import Wire

import merklekv
from merklekv.net.commands import status, strings

STATS_GROUPS = (
    "get set delete exists numeric string bulk scan dbsize flushdb hash sync management replicate ping echo memory "
    "stat clientlist"
)
STATS_NAMES = [
    *("uptime_seconds", "uptime", "total_connections", "active_connections", "total_commands"),
    *(f"{group}_commands" for group in STATS_GROUPS.split()),
    "used_memory_kb",
]

DIALOGUES: dict[str, list[tuple[str, str]]] = {
    "get and set": [
        ("GET k", "NOT_FOUND"),
        ("SET k value with  spaces\tand a tab", "OK"),
        ("GET k", "VALUE value with  spaces\tand a tab"),
        ('SET k ""', "OK"),
        ("GET k", 'VALUE ""'),
        ("get k", 'VALUE ""'),
        ("  GeT k  ", 'VALUE ""'),
        ("SET ключ значение", "OK"),
        ("GET ключ", "VALUE значение"),
    ],
    "delete": [
        ("DEL k", "NOT_FOUND"),
        ("SET k v", "OK"),
        ("DEL k", "DELETED"),
        ("SET k v", "OK"),
        ("DELETE k", "DELETED"),
        ("DELETE k", "NOT_FOUND"),
        ("GET k", "NOT_FOUND"),
    ],
    "exists": [("EXISTS a", "EXISTS 0"), ("SET a 1", "OK"), ("SET b 1", "OK"), ("EXISTS a b c a", "EXISTS 3")],
    "numbers": [
        ("INC n", "VALUE 1"),
        ("INC n 41", "VALUE 42"),
        ("INCR n -2", "VALUE 40"),
        ("DEC n", "VALUE 39"),
        ("DECR n 40", "VALUE -1"),
        ("DEC n -9223372036854775808", "VALUE 9223372036854775807"),
        ("INC new 5", "VALUE 5"),
        ("DEC other 5", "VALUE -5"),
        ("SET word x", "OK"),
        ("INC word", "ERROR Value for key 'word' is not a valid number"),
        ("GET word", "VALUE x"),
        ("INC n x", "ERROR INC command amount must be a valid number"),
        ("DECR n 1.5", "ERROR DECR command amount must be a valid number"),
        ("INC n 9223372036854775808", "ERROR INC command amount must be a valid number"),
        ("INC n 1 2", "ERROR INC command amount must be a valid number"),
        ("INC n +5", "ERROR INC command amount must be a valid number"),
        ("INC n 05", "ERROR INC command amount must be a valid number"),
        ("DEC n -0", "ERROR DEC command amount must be a valid number"),
        (f"INC n {'9' * 5000}", "ERROR INC command amount must be a valid number"),
    ],
    "expiry": [
        ("TTL k", "NOT_FOUND"),
        ("EXPIRE k 100", "NOT_FOUND"),
        ("PERSIST k", "NOT_FOUND"),
        ("SET k v", "OK"),
        ("TTL k", "TTL -1"),
        ("EXPIRE k 100", "OK"),
        ("TTL k", "TTL 100"),
        ("APPEND k w", "VALUE vw"),
        ("TTL k", "TTL 100"),
        ("PERSIST k", "OK"),
        ("PERSIST k", "OK"),
        ("TTL k", "TTL -1"),
        ("EXPIRE k 0", "OK"),
        ("GET k", "NOT_FOUND"),
        ("SET k v", "OK"),
        ("EXPIRE k -9223372036854775808", "OK"),
        ("EXPIRE k 1", "NOT_FOUND"),
        ("SET k v EX 100", "OK"),
        ("GET k", "VALUE v EX 100"),
        ("EXPIRE k 9223372036854775807", "ERROR EXPIRE command seconds are too many"),
        ("EXPIRE k 1.5", "ERROR EXPIRE command seconds must be a valid number"),
        ("EXPIRE k 1 NX", "ERROR EXPIRE command seconds must be a valid number"),
        ("EXPIRE k", "ERROR EXPIRE command requires a key and a number of seconds"),
        ("EXPIRE", "ERROR EXPIRE command requires a key and a number of seconds"),
        ("EXPIRE  5", "ERROR Empty key: arguments are separated by single spaces"),
        ("TTL", "ERROR TTL command requires a key"),
        ("PERSIST a b", "ERROR PERSIST command accepts only one argument"),
    ],
    "append and prepend": [
        ("APPEND k b", "VALUE b"),
        ("APPEND k  c d", "VALUE b c d"),
        ("PREPEND k a", "VALUE ab c d"),
        ("PREPEND new v", "VALUE v"),
    ],
    "several at once": [
        ("MGET a b", "NOT_FOUND"),
        ("MSET a 1 b 2", "OK"),
        ("GET a", "VALUE 1"),
        ("GET b", "VALUE 2"),
    ],
    "truncate": [
        ("SET a 1", "OK"),
        ("TRUNCATE", "OK"),
        ("DBSIZE", "DBSIZE 0"),
        ("GET a", "NOT_FOUND"),
        ("SET a 1", "OK"),
        ("DBSIZE", "DBSIZE 1"),
        ("FLUSHDB", "OK"),
        ("SET a 1", "OK"),
        ("FLUSH", "OK"),
        ("DBSIZE", "DBSIZE 0"),
    ],
    "small talk": [
        ("PING", "PONG"),
        ("PING a b", "PONG a b"),
        ("ECHO a  b", "ECHO a  b"),
        ("VERSION", f"VERSION {merklekv.__version__}"),
    ],
    "replication": [
        ("REPLICATE enable", "OK"),
        ("REPLICATE DISABLE", "OK"),
        ("REPLICATE status", "REPLICATION enabled 3 nodes outbox=0"),
        ("SYNC other 7379", "OK"),
        ("SYNC other 7379 --full --verify", "OK"),
    ],
    "what is missing": [
        ("", "ERROR Empty command"),
        ("   ", "ERROR Empty command"),
        ("FOO", "ERROR Unknown command: FOO"),
        ("foo bar", "ERROR Unknown command: foo"),
        ("GETX k", "ERROR Unknown command: GETX"),
        ("HELLO 3", "ERROR Unknown command: HELLO"),
        ("GET", "ERROR GET command requires a key"),
        ("GET a b", "ERROR GET command accepts only one argument"),
        ("GET  a", "ERROR GET command accepts only one argument"),
        ("GET a\tb", "ERROR Invalid character: tab character not allowed in key"),
        ("SET", "ERROR SET command requires a key and value"),
        ("SET k", "ERROR SET command requires a key and value"),
        ("SET k ", "ERROR SET command requires a key and value"),
        ("SET  v", "ERROR Empty key: arguments are separated by single spaces"),
        ("SET a\tb c", "ERROR Invalid character: tab character not allowed in key"),
        ("DEL", "ERROR DEL command requires a key"),
        ("DELETE", "ERROR DELETE command requires a key"),
        ("DELETE a b", "ERROR DELETE command accepts only one argument"),
        ("EXISTS", "ERROR EXISTS command requires at least one key"),
        ("EXISTS a  b", "ERROR Empty key: arguments are separated by single spaces"),
        ("INC", "ERROR INC command requires a key"),
        ("DECR", "ERROR DECR command requires a key"),
        ("APPEND k", "ERROR APPEND command requires a key and value"),
        ("PREPEND", "ERROR PREPEND command requires a key and value"),
        ("MGET", "ERROR MGET command requires at least one key"),
        ("MSET", "ERROR MSET command requires at least one key-value pair"),
        ("MSET a", "ERROR MSET command requires an even number of arguments (key-value pairs)"),
        ("MSET a 1 b", "ERROR MSET command requires an even number of arguments (key-value pairs)"),
        ("SCAN a b", "ERROR SCAN command accepts only one argument"),
        ("HASH a b", "ERROR HASH command accepts only one argument"),
        ("TRUNCATE now", "ERROR TRUNCATE command does not accept any arguments"),
        ("DBSIZE now", "ERROR DBSIZE command does not accept any arguments"),
        ("SHUTDOWN now", "ERROR SHUTDOWN command does not accept any arguments"),
        ("ECHO", "ERROR ECHO command requires a message"),
        ("CLIENT", "ERROR CLIENT command requires LIST: CLIENT LIST"),
        ("CLIENT KILL", "ERROR CLIENT command requires LIST: CLIENT LIST"),
        ("SYNC", "ERROR SYNC command requires a host and port"),
        ("SYNC host", "ERROR SYNC command requires a host and port"),
        ("SYNC host x", "ERROR SYNC command port must be a number from 1 to 65535"),
        ("SYNC host 0000011111", "ERROR SYNC command port must be a number from 1 to 65535"),
        ("SYNC host 65536", "ERROR SYNC command port must be a number from 1 to 65535"),
        ("SYNC host 1 --quick", "ERROR SYNC command does not know the option --quick: it takes --full and --verify"),
        ("REPLICATE", "ERROR REPLICATE command requires an action: enable, disable or status"),
        ("REPLICATE maybe", "ERROR REPLICATE command action must be enable, disable or status"),
        (f"GET {'k' * 512}", "NOT_FOUND"),
        (f"SET {'k' * 512} v", "ERROR key of 512 bytes: a key has 1 to 511 bytes"),
        (f"SET {'k' * 511} v", "OK"),
    ],
}


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue(name: str, text: Wire) -> None:
    asked = [request for request, _ in DIALOGUES[name]]
    assert [(request, text.ask(request)) for request in asked] == DIALOGUES[name]


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue_in_one_pipeline(name: str, text: Wire) -> None:
    text.send(b"".join(request.encode() + b"\r\n" for request, _ in DIALOGUES[name]))
    assert [text.line().decode() for _ in DIALOGUES[name]] == [reply + "\r\n" for _, reply in DIALOGUES[name]]


def test_overflow_changes_nothing(text: Wire) -> None:
    assert text.ask(f"SET n {2**63 - 1}") == "OK"
    assert text.ask("INC n").startswith("ERROR ")
    assert text.ask("GET n") == f"VALUE {2**63 - 1}"


def test_mget_gives_a_line_for_each_key_in_order(text: Wire) -> None:
    text.ask("MSET a 1 b 2")
    assert text.ask("MGET b x a b") == "VALUES 3"
    assert [text.line() for _ in range(4)] == [b"b 2\r\n", b"x NOT_FOUND\r\n", b"a 1\r\n", b"b 2\r\n"]


def test_mset_sets_all_or_none(text: Wire) -> None:
    assert text.ask(f"MSET a 1 {'k' * 512} 2").startswith("ERROR key of 512 bytes")
    assert text.ask("DBSIZE") == "DBSIZE 0"


def test_mset_sets_so_many_at_one_moment(text: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strings, "PAIRS_MAX", 2)
    assert text.ask("MSET a 1 b 2") == "OK"
    assert text.ask("MSET a 3 b 4 c 5") == f"ERROR {strings.TOO_MANY_PAIRS}"
    assert text.ask("MGET a b c") == "VALUES 2"


def test_scan_lists_keys_in_order_under_a_prefix(text: Wire) -> None:
    text.ask("MSET b 1 a:2 1 a:1 1 a 1")
    for request, keys in {
        "SCAN": [b"a", b"a:1", b"a:2", b"b"],
        "SCAN a:": [b"a:1", b"a:2"],
        "SCAN x": [],
        "SCAN *": [],
    }.items():
        assert text.ask(request) == f"KEYS {len(keys)}"
        assert [text.line() for _ in keys] == [key + b"\r\n" for key in keys]


def test_hash_is_the_same_for_the_same_records_and_zero_for_none(text: Wire) -> None:
    nothing = "0" * 64
    assert text.ask("HASH") == f"HASH {nothing}"
    assert text.ask("HASH *") == f"HASH * {nothing}"
    assert text.ask("HASH a") == f"HASH a {nothing}"
    text.ask("SET a1 v")
    whole, under_a = text.ask("HASH").split()[1], text.ask("HASH a").split()[2]
    assert re.fullmatch("[0-9a-f]{64}", whole)
    assert re.fullmatch("[0-9a-f]{64}", under_a)
    assert whole != nothing != under_a
    text.ask("SET b v")
    assert text.ask("HASH").split()[1] != whole
    assert text.ask("HASH *").split()[2] == text.ask("HASH").split()[1]
    assert text.ask("HASH a").split()[2] == under_a
    assert text.ask("HASH b").split()[2] != under_a


def block(wire: Wire, request: str) -> dict[str, str]:
    """A reply of `name:value` lines between its head and END."""
    assert wire.ask(request) == request.split()[0]
    lines = iter(wire.line, b"END\r\n")
    return dict(line.decode().removesuffix("\r\n").split(":", 1) for line in lines)


def test_stats(text: Wire, resp: Wire) -> None:
    for request in ("SET k v", "GET k", "GET x", "INC n", "FOO", "PING", "MGET none", "APPEND k v", "FLUSH"):
        text.ask(request)
    resp.call("GET", "k")
    resp.call("get", "k")
    stats = block(text, "STATS")
    assert {name: int(stats[f"{name}_commands"]) for name in ("set", "get", "numeric", "ping", "bulk", "string")} == {
        "set": 1, "get": 4, "numeric": 1, "ping": 1, "bulk": 1, "string": 1,
    }  # fmt: skip
    assert stats["flushdb_commands"] == "1"
    assert stats["total_commands"] == "12"
    assert stats["total_connections"] == stats["active_connections"] == "2"
    assert re.fullmatch(r"\d+d \d+h \d+m \d+s", stats["uptime"])
    assert int(stats["used_memory_kb"]) > 1000
    assert list(stats) == STATS_NAMES
    everything = block(text, "STATS all")
    assert list(everything)[: len(STATS_NAMES)] == STATS_NAMES
    assert everything["outbox_length"] == "7"
    assert everything["foreign_protocol_closed"] == "0"
    assert everything.keys() == block(text, "STATS ALL").keys()
    assert text.ask("STATS some") == "ERROR STATS command accepts only the argument all"


def test_stats_fit_into_one_read_whatever_they_count(
    server: StartedServer, text: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that were written for the original read a reply with one `recv(1024)`."""
    largest = 10**20 - 1
    assert text.ask("PING") == "PONG"
    context = server.context
    entries = (*context.commands.resp.all.values(), *context.commands.line.all.values())
    for entry in entries:
        entry.calls = 0
    for group in {entry.command.group for entry in entries}:
        next(entry for entry in entries if entry.command.group == group).calls = largest
    context.traffic.connections = largest
    context.started -= largest
    monkeypatch.setattr(status, "memory", lambda: (largest * 1024, largest * 1024))
    connections = [context.sessions()[0]] * 10_000
    context.connections = lambda: connections
    text.send(b"STATS\n")
    reply = b""
    while not reply.endswith(b"END\r\n"):
        reply += text.line()
    assert reply.count(b"%d\r\n" % largest) >= 20
    assert reply.count(b"\r\n") == len(STATS_NAMES) + 2
    assert len(reply) < 1024


def test_info(text: Wire) -> None:
    text.ask("SET k v")
    info = block(text, "INFO")
    assert info["version"] == merklekv.__version__
    assert info["db_keys"] == "1"
    assert int(info["uptime_seconds"]) < 100
    assert int(info["server_time_unix"]) > 1_600_000_000


def test_memory(text: Wire) -> None:
    assert int(text.ask("MEMORY").removeprefix("MEMORY ")) > 10**6


def test_memory_is_without_the_pages_of_mapped_files(text: Wire, resp: Wire, tmp_path: Path) -> None:
    """The base is a mapped file, and its pages are the kernel's to take back."""
    size = 64 << 20
    file = tmp_path / "mapped"
    file.write_bytes(bytes(size))

    def metrics() -> tuple[int, int, int, int]:
        lines = dict(line.split(":", 1) for line in resp.call("INFO", "memory").decode().split("\r\n") if ":" in line)
        own = int(block(text, "STATS")["used_memory_kb"]) * 1024
        return own, int(text.ask("MEMORY").split()[1]), int(lines["used_memory"]), int(lines["used_memory_rss"])

    before = metrics()
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), size) as mapped:
        assert sum(mapped[at] for at in range(0, size, 4096)) == 0
        after = metrics()
    assert max(abs(there - here) for there, here in zip(after[:3], before[:3], strict=True)) < 16 << 20
    assert after[3] - before[3] > size - (16 << 20)


def test_client_list(text: Wire, resp: Wire) -> None:
    resp.call("PING")
    assert text.ask("CLIENT LIST") == "CLIENT LIST"
    lines = [line.decode() for line in iter(text.line, b"END\r\n")]
    ports = [wire.socket.getsockname()[1] for wire in (text, resp)]
    assert [re.sub(r"(age|idle)=\d+", r"\1=N", line) for line in sorted(lines)] == [
        f"id={number} addr=127.0.0.1:{port} age=N idle=N\r\n" for number, port in enumerate(ports, 1)
    ]


def test_what_would_break_the_lines_is_read_over_resp(text: Wire, resp: Wire) -> None:
    for value in (b"a\nOK", b"a\rb", b"\r\n"):
        resp.call("SET", "k", value)
        for request in ("GET k", "MGET k", "APPEND k x", "PREPEND k x"):
            assert text.ask(request) == "ERROR value holds a line break: read it over RESP"
        assert resp.call("GET", "k") == b"$%d\r\n%b\r\n" % (len(value), value)
    resp.call("SET", b"key\nKEYS 9", "v")
    assert text.ask("SCAN") == "ERROR a key holds a line break: list the keys over RESP"
    assert text.ask("PING") == "PONG"


def test_an_error_about_client_bytes_stays_one_line(text: Wire) -> None:
    text.send(b"GET \xff\xfe\x00\tx\r\nFLY \xff\r\nPING\r\n")
    assert text.line() == b"ERROR Invalid character: tab character not allowed in key\r\n"
    assert text.line() == b"ERROR Unknown command: FLY\r\n"
    assert text.line() == b"PONG\r\n"


def test_sync_lets_others_go_on(text: Wire, resp: Wire, services: FakeServices) -> None:
    finish = threading.Event()
    services.sync_with = lambda: finish.wait(60) and None
    text.send(b"SYNC other 7379 --full\nPING\n")
    wait_until(lambda: services.asked)
    assert resp.call("PING") == b"+PONG\r\n"
    finish.set()
    assert [text.line(), text.line()] == [b"OK\r\n", b"PONG\r\n"]
    assert services.asked == [("other", 7379, True, False)]


def test_a_failed_sync_tells_why(text: Wire, services: FakeServices) -> None:
    def refuse() -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    services.sync_with = refuse
    assert text.ask("SYNC other 7379") == "ERROR [Errno 111] Connection refused"
    assert text.ask("PING") == "PONG"


def test_without_replication(start: Start, connect: Callable[..., Wire]) -> None:
    wire = connect(start(services=None))
    assert wire.ask("REPLICATE status") == "REPLICATION disabled"
    assert wire.ask("REPLICATE disable") == "OK"
    assert wire.ask("REPLICATE enable").startswith("ERROR replication is not configured")
    assert wire.ask("SYNC other 7379").startswith("ERROR cannot SYNC with other:7379")


def test_shutdown(text: Wire, services: FakeServices) -> None:
    text.send(b"SET k v\nSHUTDOWN\nPING\n")
    assert text.rest() == b"OK\r\nOK\r\n"
    assert wait_until(lambda: services.stops) == 1
