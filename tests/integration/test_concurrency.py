"""Concurrency: many clients at once, on the same keys and on their own; with one worker thread in the server, where
their requests come one after the other, and with several, where they meet in the engine.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from fixtures.support import wait_until
from harness import MerkleKVClient, MerkleKVServer, run_together

CLIENTS = 20
WRITES = 50
MANY_CONNECTIONS = 300


@pytest.fixture(scope="module", params=["1", "4"], ids=["one thread", "four threads"])
def server_flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return ("--threads", request.param)


class TestSharedKeys:
    """Clients that write and read the same keys."""

    def test_every_reader_sees_a_whole_value_of_one_writer(self, server: MerkleKVServer) -> None:
        """Each writer's value is one character repeated: a torn or mixed value would show."""
        letters = "abcdefgh"
        allowed = {f"VALUE {letter * 1000}" for letter in letters}

        def work(number: int) -> None:
            with server.client() as client:
                for _ in range(WRITES):
                    assert client.set("shared", letters[number] * 1000) == "OK"
                    assert client.get("shared") in allowed

        run_together(work, len(letters))

    def test_the_last_of_one_clients_writes_stands_when_the_others_have_ended(self, server: MerkleKVServer) -> None:
        def work(number: int) -> None:
            with server.client() as client:
                for write in range(WRITES):
                    assert client.set("shared", f"{number}-{write}") == "OK"

        run_together(work, CLIENTS)
        with server.client() as client:
            assert client.get("shared") in {f"VALUE {number}-{WRITES - 1}" for number in range(CLIENTS)}
            assert client.send_command("DBSIZE") == "DBSIZE 1"

    def test_a_client_reads_its_own_writes(self, server: MerkleKVServer) -> None:
        def work(number: int) -> None:
            with server.client() as writer, server.client() as reader:
                for write in range(WRITES):
                    assert writer.set(f"own-{number}", str(write)) == "OK"
                    assert reader.get(f"own-{number}") == f"VALUE {write}"

        run_together(work, CLIENTS)

    def test_what_one_reader_saw_no_later_reader_misses(self, server: MerkleKVServer) -> None:
        """A value only grows, so a read that began after another had ended never gives less."""
        done = threading.Event()

        def work(number: int) -> None:
            with server.client() as client:
                if number == 0:
                    for _ in range(WRITES * 4):
                        client.send_command("INC growing")
                    done.set()
                    return
                seen = 0
                while not done.is_set():
                    now = int(client.get("growing").removeprefix("VALUE ").replace("NOT_FOUND", "0"))
                    assert now >= seen
                    seen = now

        run_together(work, 5)


class TestAtomicity:
    """Operations that read and write are whole: nothing comes between."""

    def test_no_increment_is_lost_and_no_number_given_twice(self, server: MerkleKVServer) -> None:
        given: list[list[str]] = [[] for _ in range(CLIENTS)]

        def work(number: int) -> None:
            with server.client() as client:
                given[number] = [client.send_command("INC counter") for _ in range(WRITES)]

        run_together(work, CLIENTS)
        numbers = sorted(int(reply.removeprefix("VALUE ")) for replies in given for reply in replies)
        assert numbers == list(range(1, CLIENTS * WRITES + 1))

    def test_increments_and_decrements_cancel_out(self, server: MerkleKVServer) -> None:
        def work(number: int) -> None:
            with server.client() as client:
                for _ in range(WRITES):
                    client.send_command("INC n 3" if number % 2 else "DEC n 3")

        run_together(work, CLIENTS)
        with server.client() as client:
            assert client.get("n") == "VALUE 0"

    def test_no_append_is_lost(self, server: MerkleKVServer) -> None:
        def work(number: int) -> None:
            with server.client() as client:
                for _ in range(WRITES):
                    client.send_command(f"APPEND text {chr(97 + number)}")

        run_together(work, CLIENTS)
        with server.client() as client:
            text = client.get("text").removeprefix("VALUE ")
        assert sorted(text) == sorted(chr(97 + number) for number in range(CLIENTS) for _ in range(WRITES))

    def test_exactly_one_client_deletes_a_key(self, server: MerkleKVServer) -> None:
        for turn in range(10):
            with server.client() as client:
                client.set("target", str(turn))
            replies: list[str] = []

            def work(number: int, replies: list[str] = replies) -> None:
                with server.client() as client:
                    replies.append(client.delete("target"))

            run_together(work, CLIENTS)
            assert sorted(replies) == ["DELETED"] + ["NOT_FOUND"] * (CLIENTS - 1)

    def test_an_mset_is_seen_whole_or_not_at_all(self, server: MerkleKVServer) -> None:
        done = threading.Event()

        def work(number: int) -> None:
            with server.client() as client:
                if number == 0:
                    for turn in range(WRITES * 4):
                        client.send_command(f"MSET a {turn} b {turn} c {turn}")
                    done.set()
                    return
                while not done.is_set():
                    lines = client.send_command("MGET a b c").split("\n")[1:]
                    assert len({line.split(" ")[1] for line in lines}) <= 1, lines

        run_together(work, 4)


class TestIndependentKeys:
    """Clients that keep to their own keys do not notice each other."""

    def test_many_clients_write_read_and_delete_their_own(self, server: MerkleKVServer) -> None:
        def work(number: int) -> None:
            with server.client() as client:
                for write in range(WRITES):
                    assert client.set(f"{number}:{write}", f"value {write}") == "OK"
                for write in range(WRITES):
                    assert client.get(f"{number}:{write}") == f"VALUE value {write}"
                for write in range(0, WRITES, 2):
                    assert client.delete(f"{number}:{write}") == "DELETED"

        run_together(work, CLIENTS)
        with server.client() as client:
            assert client.send_command("DBSIZE") == f"DBSIZE {CLIENTS * WRITES // 2}"

    def test_pipelines_are_not_mixed_up(self, server: MerkleKVServer) -> None:
        def work(number: int) -> None:
            with server.client() as client:
                client.send_raw(b"".join(b"ECHO %d-%d\r\n" % (number, turn) for turn in range(500)))
                for turn in range(500):
                    assert client.read_line() == f"ECHO {number}-{turn}"

        run_together(work, CLIENTS)

    def test_the_hash_does_not_depend_on_who_wrote_first(self, tmp_path: Path, server_flags: tuple[str, ...]) -> None:
        """Whatever the order, the hash is that of what is there: one that is made anew, by a start, is the same."""
        server = MerkleKVServer.in_directory(tmp_path, *server_flags).start()

        def work(number: int) -> None:
            with server.client() as client:
                for write in range(WRITES):
                    client.set(f"{number}:{write}", "v")
                    client.set(f"shared:{write}", str(number))

        try:
            run_together(work, CLIENTS)
            with server.client() as first, server.client() as second:
                told = first.send_command("HASH")
                assert told == second.send_command("HASH") != "HASH " + 64 * "0"
            server.restart()
            with server.client() as client:
                assert client.send_command("HASH") == told
        finally:
            server.own.end()


class TestConnections:
    """Many connections, opened and closed."""

    def test_many_connections_at_once(self, server: MerkleKVServer) -> None:
        clients: list[MerkleKVClient] = []
        try:
            for number in range(MANY_CONNECTIONS):
                clients.append(server.client())
                assert clients[-1].set(f"key-{number}", str(number)) == "OK"
            for number, client in enumerate(clients):
                assert client.get(f"key-{number}") == f"VALUE {number}"
            assert int(clients[0].stats()["active_connections"]) >= MANY_CONNECTIONS
        finally:
            for client in clients:
                client.disconnect()

    def test_connections_come_and_go(self, server: MerkleKVServer) -> None:
        def work(number: int) -> None:
            for turn in range(20):
                with server.client() as client:
                    assert client.send_command(f"INC visits-{number}") == f"VALUE {turn + 1}"

        run_together(work, CLIENTS)

    def test_clients_that_leave_in_the_middle_disturb_no_other_client(self, server: MerkleKVServer) -> None:
        def work(number: int) -> None:
            for turn in range(WRITES):
                with server.client() as client:
                    if number % 2:
                        client.send_raw(b"SET half-a-request valu")
                    else:
                        assert client.set(f"key-{number}", str(turn)) == "OK"

        run_together(work, 8)
        with server.client() as client:
            assert client.send_command("DBSIZE") == "DBSIZE 4"

            def only_this_client_is_left() -> bool:
                return client.stats()["active_connections"] == "1"

            wait_until(only_this_client_is_left)
