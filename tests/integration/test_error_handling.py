"""Errors: wrong commands, broken messages, cut networks, crashes. The server says what is wrong and goes on."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.node import LineClient
from fixtures.proxy import ProxyFactory
from fixtures.support import wait_until
from harness import MerkleKVClient, MerkleKVServer

LINE_BYTES_MAX = 1 << 20
KEY_BYTES_MAX = 511
INT64_MAX = (1 << 63) - 1
WRONG_COUNTS = (
    *("SET", "SET key", "DEL", "DELETE", "DEL a b", "EXISTS", "INC", "DEC", "APPEND", "APPEND key", "PREPEND key"),
    *("MGET", "MSET", "MSET a", "MSET a 1 b", "SCAN a b", "ECHO", "HASH a b", "SYNC", "SYNC host", "SYNC host port"),
    *("REPLICATE", "REPLICATE maybe", "CLIENT", "CLIENT nosuch"),
)


class TestInvalidCommands:
    """One line that says what is wrong; the connection stays usable and nothing is changed."""

    @pytest.mark.parametrize(
        ("request_line", "reply"),
        [
            ("", "ERROR Empty command"),
            ("   ", "ERROR Empty command"),
            ("NOSUCH", "ERROR Unknown command: NOSUCH"),
            ("GETT key", "ERROR Unknown command: GETT"),
            ("GET", "ERROR GET command requires a key"),
            ("GET a b", "ERROR GET command accepts only one argument"),
            ("INC a b", "ERROR INC command amount must be a valid number"),
            ("DEC a 1.5", "ERROR DEC command amount must be a valid number"),
            ("INC a 9223372036854775808", "ERROR INC command amount must be a valid number"),
            ("INC text", "ERROR Value for key 'text' is not a valid number"),
            ("GET a\tb", "ERROR Invalid character: tab character not allowed in key"),
        ],
    )
    def test_the_message_is_the_one_clients_match(
        self, connected_client: MerkleKVClient, request_line: str, reply: str
    ) -> None:
        connected_client.set("text", "abc")
        assert connected_client.send_command(request_line) == reply
        assert connected_client.get("text") == "VALUE abc"

    @pytest.mark.parametrize("request_line", WRONG_COUNTS)
    def test_a_missing_or_surplus_argument_is_an_error(
        self, connected_client: MerkleKVClient, request_line: str
    ) -> None:
        connected_client.set("a", "before")
        before = connected_client.send_command("HASH")
        assert connected_client.send_command(request_line).startswith("ERROR ")
        assert connected_client.send_command("HASH") == before
        assert connected_client.send_command("PING") == "PONG"

    def test_a_key_at_its_limit_and_past_it(self, connected_client: MerkleKVClient) -> None:
        assert connected_client.set("k" * KEY_BYTES_MAX, "v") == "OK"
        longer = "k" * (KEY_BYTES_MAX + 1)
        for request_line in (f"SET {longer} v", f"INC {longer}", f"APPEND {longer} v", f"MSET a 1 {longer} v"):
            assert connected_client.send_command(request_line).startswith("ERROR ")
        assert connected_client.get(longer) == "NOT_FOUND"
        assert connected_client.send_command("DBSIZE") == "DBSIZE 1"

    @pytest.mark.parametrize(("start", "request_line"), [(INT64_MAX, "INC n"), (-INT64_MAX - 1, "DEC n")])
    def test_an_overflow_changes_nothing(self, connected_client: MerkleKVClient, start: int, request_line: str) -> None:
        connected_client.set("n", str(start))
        assert connected_client.send_command(request_line).startswith("ERROR ")
        assert connected_client.get("n") == f"VALUE {start}"

    def test_a_failed_mset_stores_nothing(self, connected_client: MerkleKVClient) -> None:
        assert connected_client.send_command(f"MSET a 1 {'k' * 512} 2").startswith("ERROR ")
        assert connected_client.get("a") == "NOT_FOUND"

    def test_sync_without_a_peer_is_an_error(self, connected_client: MerkleKVClient) -> None:
        assert connected_client.send_command("SYNC 127.0.0.1 1").startswith("ERROR ")
        assert connected_client.send_command("PING") == "PONG"


class TestMalformedMessages:
    """Bytes that are no request."""

    def test_a_line_at_its_limit_is_served_and_one_past_it_ends_the_connection(self, server: MerkleKVServer) -> None:
        with server.client() as client:
            value = "x" * (LINE_BYTES_MAX - len("SET k "))
            assert client.set("k", value) == "OK"
            assert client.get("k") == f"VALUE {value}"
        with server.client() as client:
            client.send_raw(b"SET k " + b"x" * (LINE_BYTES_MAX - len("SET k ") + 1) + b"\r\n")
            assert client.read_line() == "ERROR line too long"
            assert client.read_line() == ""
        with server.client() as client:
            assert client.get("k") == f"VALUE {value}"

    @pytest.mark.parametrize(
        "data",
        [b"\x00\x01\x02\r\n", bytes(range(128, 256)) + b"\r\n", b"GET \xff\xfe\r\n"],
    )
    def test_binary_noise_is_answered_and_does_no_harm(self, server: MerkleKVServer, data: bytes) -> None:
        with server.client() as noisy, server.client() as quiet:
            noisy.send_raw(data)
            assert noisy.read_line().split(" ")[0] in ("ERROR", "NOT_FOUND")
            assert noisy.send_command("PING") == "PONG"
            assert quiet.send_command("PING") == "PONG"

    @pytest.mark.parametrize(
        ("data", "wrong"),
        [
            (b"*x\r\n", "invalid multibulk length"),
            (b"*1\r\n$-5\r\n", "invalid bulk length"),
            (b"*1\r\n$99999999999\r\n", "invalid bulk length"),
            (b"*2\r\n$3\r\nGET\r\n:5\r\n", "expected '$', got ':'"),
            (b"*1048577\r\n", "invalid multibulk length"),
        ],
    )
    def test_broken_resp_is_told_once_and_the_connection_closed(
        self, server: MerkleKVServer, data: bytes, wrong: str
    ) -> None:
        with server.client() as client:
            client.send_raw(data)
            assert client.read_line() == f"-ERR Protocol error: {wrong}"
            assert client.read_line() == ""
        with server.client() as client:
            assert client.send_command("PING") == "PONG"

    def test_a_request_in_pieces_is_one_request(self, server: MerkleKVServer) -> None:
        with server.client() as client, server.client() as other:
            for piece in (b"S", b"ET ke", b"y val", b"ue\r"):
                client.send_raw(piece)
                assert other.get("key") == "NOT_FOUND"
            client.send_raw(b"\n")
            assert client.read_line() == "OK"
            assert other.get("key") == "VALUE value"

    def test_both_line_endings_and_space_around_a_line(self, server: MerkleKVServer) -> None:
        with server.client() as client:
            client.send_raw(b"SET a 1\n  GET a  \r\nGET a\n")
            assert [client.read_line() for _ in range(3)] == ["OK", "VALUE 1", "VALUE 1"]

    def test_an_error_in_a_pipeline_does_not_shift_the_replies(self, server: MerkleKVServer) -> None:
        with server.client() as client:
            client.send_raw(b"SET a 1\r\nNOSUCH\r\nGET a\r\n\r\nPING\r\n")
            replies = [client.read_line() for _ in range(5)]
        assert replies == ["OK", "ERROR Unknown command: NOSUCH", "VALUE 1", "ERROR Empty command", "PONG"]

    def test_a_value_with_a_line_break_never_breaks_the_framing(self, server: MerkleKVServer) -> None:
        with server.client() as resp, server.client() as text:
            resp.send_raw(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$12\r\nsplit\r\nvalue\r\n")
            assert resp.read_line() == "+OK"
            assert text.get("k").startswith("ERROR ")
            assert text.send_command("PING") == "PONG"


class TestNetworkPartition:
    """The network between client and server fails; a proxy stands for it."""

    def test_a_frozen_network_delays_and_loses_nothing(
        self, server: MerkleKVServer, proxy_factory: ProxyFactory
    ) -> None:
        proxy = proxy_factory(server.host, server.port)
        with LineClient("127.0.0.1", proxy.port) as far, server.client() as near:
            assert far.ask("SET a 1") == "OK"
            proxy.freeze()
            far.send(b"SET a 2\r\n")
            assert near.get("a") == "VALUE 1"
            assert near.set("b", "3") == "OK"
            proxy.thaw()
            assert far.line() == "OK"
            assert near.get("a") == "VALUE 2"

    def test_a_cut_connection_is_forgotten_and_its_acknowledged_writes_stand(
        self, server: MerkleKVServer, proxy_factory: ProxyFactory
    ) -> None:
        proxy = proxy_factory(server.host, server.port)
        far = LineClient("127.0.0.1", proxy.port)
        assert far.ask("SET a 1") == "OK"
        far.send(b"SET never-finished valu")
        proxy.cut()
        far.close()
        with server.client() as near:
            assert near.get("a") == "VALUE 1"
            assert near.send_command("SCAN never") == "KEYS 0"
            wait_until(lambda: near.stats()["active_connections"] == "1")

    def test_clients_come_back_when_the_network_heals(
        self, server: MerkleKVServer, proxy_factory: ProxyFactory
    ) -> None:
        proxy = proxy_factory(server.host, server.port)
        with LineClient("127.0.0.1", proxy.port) as client:
            assert client.ask("PING") == "PONG"
            proxy.cut()
        with pytest.raises(OSError), LineClient("127.0.0.1", proxy.port, timeout_s=2) as client:  # noqa: PT012
            client.send(b"PING\r\n")
            if client.line() == "":
                raise ConnectionError("closed")
        proxy.heal()
        with LineClient("127.0.0.1", proxy.port) as client:
            assert client.ask("PING") == "PONG"


class TestCrashRecovery:
    """-9, and everything acknowledged is there."""

    def test_acknowledged_writes_survive_a_kill(self, own_server: MerkleKVServer) -> None:
        with own_server.client() as client:
            for number in range(200):
                assert client.set(f"key-{number}", f"value-{number}") == "OK"
            assert client.delete("key-0") == "DELETED"
            before = client.send_command("HASH")
            own_server.kill()
        own_server.start()
        with own_server.client() as client:
            assert client.send_command("DBSIZE") == "DBSIZE 199"
            for number in range(1, 200):
                assert client.get(f"key-{number}") == f"VALUE value-{number}"
            assert client.send_command("HASH") == before

    def test_kills_one_after_the_other(self, own_server: MerkleKVServer) -> None:
        for turn in range(3):
            with own_server.client() as client:
                assert client.send_command("INC crashes") == f"VALUE {turn + 1}"
            own_server.kill()
            own_server.start()
        with own_server.client() as client:
            assert client.get("crashes") == "VALUE 3"

    def test_a_client_notices_the_crash(self, own_server: MerkleKVServer) -> None:
        with own_server.client() as client:
            assert client.send_command("PING") == "PONG"
            own_server.kill()
            with pytest.raises(OSError):  # noqa: PT012 - the write or the read, whichever comes first
                client.send_raw(b"PING\r\n")
                if client.read_line() == "":
                    raise ConnectionError("closed")

    def test_requests_in_hand_are_answered_before_a_stop(self, own_server: MerkleKVServer) -> None:
        with own_server.client() as client:
            client.send_raw(b"SET a 1\r\nSET b 2\r\nSHUTDOWN\r\n")
            assert [client.read_line() for _ in range(4)] == ["OK", "OK", "OK", ""]
        assert own_server.own.wait() == 0
        own_server.start()
        with own_server.client() as client:
            assert client.send_command("DBSIZE") == "DBSIZE 2"


Count = Callable[[int | None], int]  # of a process, by its id


def open_files(pid: int | None) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int | None) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def processes_that_have(file: Path) -> list[int]:
    """Who has a file open, as far as this user may see."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or of another user
            if link.readlink() == file:
                found.add(int(link.parts[2]))
    return sorted(found)


class TestResourceCleanup:
    """What a client took is given back when it leaves, however it leaves."""

    @pytest.mark.parametrize("count", [open_files, threads])
    def test_files_and_threads_are_given_back(
        self, own_server: MerkleKVServer, count: Callable[[int | None], int]
    ) -> None:
        with own_server.client() as client:
            client.send_command("PING")
            before = count(own_server.pid)
            for turn in range(100):
                with own_server.client() as passing:
                    if turn % 2:
                        passing.send_raw(b"SET half valu")
                    else:
                        passing.send_command("PING")
            wait_until(lambda: count(own_server.pid) <= before, what=f"{count.__name__} to fall back to {before}")
            assert client.get("half") == "NOT_FOUND"

    def test_a_reset_connection_is_given_back(self, own_server: MerkleKVServer) -> None:
        with own_server.client() as client:
            for _ in range(50):
                passing = own_server.client()
                passing.send_raw(b"PING\r\n" * 100)
                passing.connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                passing.disconnect()
            wait_until(lambda: client.stats()["active_connections"] == "1")

    def test_a_stopped_server_leaves_no_process_and_frees_port_and_directory(
        self, tmp_path: Path, own_server: MerkleKVServer
    ) -> None:
        """Its children write to its log, so a process that has the log open is one."""
        log = own_server.own.log
        with own_server.client() as client:
            client.set("a", "1")
        assert own_server.pid in processes_that_have(log)
        assert own_server.stop() == 0
        assert processes_that_have(log) == []
        with socket.socket() as probe:
            probe.settimeout(1)
            assert probe.connect_ex((own_server.host, own_server.port)) != 0
        own_server.start()
        with own_server.client() as client:
            assert client.get("a") == "VALUE 1"
