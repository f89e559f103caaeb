"""Basic operations: what every command of the text protocol does, and that it lasts."""

from __future__ import annotations

import pytest
from harness import MerkleKVClient, MerkleKVServer

LARGE_VALUE_BYTES = 1_000_000


class TestBasicOperations:
    """GET, SET, DELETE and their neighbours."""

    def test_set_and_get_single_key(self, connected_client: MerkleKVClient) -> None:
        assert connected_client.set("key", "value") == "OK"
        assert connected_client.get("key") == "VALUE value"

    def test_get_of_a_missing_key(self, connected_client: MerkleKVClient) -> None:
        assert connected_client.get("missing") == "NOT_FOUND"

    def test_set_again_replaces_the_value(self, connected_client: MerkleKVClient) -> None:
        connected_client.set("key", "one")
        connected_client.set("key", "two")
        assert connected_client.get("key") == "VALUE two"

    @pytest.mark.parametrize("word", ["DEL", "DELETE"])
    def test_delete_removes_the_key(self, connected_client: MerkleKVClient, word: str) -> None:
        connected_client.set("key", "value")
        assert connected_client.send_command(f"{word} key") == "DELETED"
        assert connected_client.get("key") == "NOT_FOUND"
        assert connected_client.send_command(f"{word} key") == "NOT_FOUND"

    def test_many_keys_do_not_disturb_each_other(self, connected_client: MerkleKVClient) -> None:
        for number in range(100):
            connected_client.set(f"key-{number}", f"value-{number}")
        connected_client.delete("key-50")
        for number in range(100):
            expected = "NOT_FOUND" if number == 50 else f"VALUE value-{number}"
            assert connected_client.get(f"key-{number}") == expected

    def test_exists_counts(self, connected_client: MerkleKVClient) -> None:
        connected_client.set("a", "1")
        connected_client.set("b", "2")
        assert connected_client.send_command("EXISTS a b c") == "EXISTS 2"
        assert connected_client.send_command("EXISTS c") == "EXISTS 0"

    def test_mset_and_mget(self, connected_client: MerkleKVClient) -> None:
        assert connected_client.send_command("MSET a 1 b 2") == "OK"
        assert connected_client.send_command("MGET b none a") == "VALUES 2\nb 2\nnone NOT_FOUND\na 1"
        assert connected_client.send_command("MGET none nothing") == "NOT_FOUND"

    def test_scan_lists_keys_in_order(self, connected_client: MerkleKVClient) -> None:
        connected_client.send_command("MSET user:2 b user:1 a other c")
        assert connected_client.send_command("SCAN user:") == "KEYS 2\nuser:1\nuser:2"
        assert connected_client.send_command("SCAN") == "KEYS 3\nother\nuser:1\nuser:2"
        assert connected_client.send_command("SCAN none") == "KEYS 0"

    @pytest.mark.parametrize("word", ["TRUNCATE", "FLUSHDB", "FLUSH"])
    def test_truncate_removes_every_key(self, connected_client: MerkleKVClient, word: str) -> None:
        connected_client.send_command("MSET a 1 b 2")
        assert connected_client.send_command(word) == "OK"
        assert connected_client.send_command("DBSIZE") == "DBSIZE 0"
        assert connected_client.get("a") == "NOT_FOUND"


class TestNumbersAndStrings:
    """INC, DEC, APPEND and PREPEND answer with the new value."""

    @pytest.mark.parametrize("word", ["INC", "INCR"])
    def test_increment(self, connected_client: MerkleKVClient, word: str) -> None:
        assert connected_client.send_command(f"{word} n") == "VALUE 1"
        assert connected_client.send_command(f"{word} n 41") == "VALUE 42"
        assert connected_client.send_command(f"{word} n -50") == "VALUE -8"
        assert connected_client.get("n") == "VALUE -8"

    @pytest.mark.parametrize("word", ["DEC", "DECR"])
    def test_decrement(self, connected_client: MerkleKVClient, word: str) -> None:
        assert connected_client.send_command(f"{word} n") == "VALUE -1"
        assert connected_client.send_command(f"{word} n 9") == "VALUE -10"

    def test_append_and_prepend(self, connected_client: MerkleKVClient) -> None:
        assert connected_client.send_command("APPEND s world") == "VALUE world"
        assert connected_client.send_command("PREPEND s hello,") == "VALUE hello,world"
        assert connected_client.send_command("APPEND s  and more") == "VALUE hello,world and more"
        assert connected_client.get("s") == "VALUE hello,world and more"


class TestValues:
    """Special characters, Unicode, size and case."""

    @pytest.mark.parametrize(
        "value",
        [
            "two words",
            "tab\there",
            '""',
            "a=b&c;d|e",
            "!@#$%^&*()_+-[]{}\\'\",.<>/?",
            "Grüße, 世界, Привет",
            "🚀 🎉",
            "NOT_FOUND",
            "ERROR not one",
        ],
    )
    def test_a_value_comes_back_as_it_was(self, connected_client: MerkleKVClient, value: str) -> None:
        assert connected_client.set("key", value) == "OK"
        assert connected_client.get("key") == f"VALUE {value}"

    @pytest.mark.parametrize("key", ["user:1:name", "päth/世界", "a.b-c_d", "🔑", "k" * 511])
    def test_a_key_may_be_anything_without_space(self, connected_client: MerkleKVClient, key: str) -> None:
        assert connected_client.set(key, "value") == "OK"
        assert connected_client.get(key) == "VALUE value"
        assert connected_client.send_command("SCAN") == f"KEYS 1\n{key}"

    def test_a_large_value(self, connected_client: MerkleKVClient) -> None:
        value = "x" * LARGE_VALUE_BYTES
        assert connected_client.set("large", value) == "OK"
        assert connected_client.get("large") == f"VALUE {value}"

    @pytest.mark.parametrize("word", ["set", "Set", "SET", "sEt"])
    def test_the_command_word_has_no_case(self, connected_client: MerkleKVClient, word: str) -> None:
        assert connected_client.send_command(f"{word} Key Value") == "OK"
        assert connected_client.send_command("get Key") == "VALUE Value"
        assert connected_client.send_command("GET key") == "NOT_FOUND"

    def test_pipelined_requests_are_answered_in_order(self, connected_client: MerkleKVClient) -> None:
        connected_client.send_raw(b"".join(b"SET k%d v%d\r\nGET k%d\n" % (n, n, n) for n in range(500)))
        for number in range(500):
            assert connected_client.read_line() == "OK"
            assert connected_client.read_line() == f"VALUE v{number}"


class TestServerCommands:
    """What the server says about itself."""

    def test_ping_and_echo(self, connected_client: MerkleKVClient) -> None:
        assert connected_client.send_command("PING") == "PONG"
        assert connected_client.send_command("PING hello there") == "PONG hello there"
        assert connected_client.send_command("ECHO hello there") == "ECHO hello there"

    def test_dbsize_follows_the_keys(self, connected_client: MerkleKVClient) -> None:
        for number in range(10):
            connected_client.set(f"key-{number}", "v")
            assert connected_client.send_command("DBSIZE") == f"DBSIZE {number + 1}"
        connected_client.delete("key-3")
        assert connected_client.send_command("DBSIZE") == "DBSIZE 9"

    def test_version_and_memory(self, connected_client: MerkleKVClient) -> None:
        word, _, version = connected_client.send_command("VERSION").partition(" ")
        assert word == "VERSION"
        assert version.count(".") == 2
        word, _, used = connected_client.send_command("MEMORY").partition(" ")
        assert word == "MEMORY"
        assert int(used) > 1_000_000

    def test_stats_count_what_was_asked(self, connected_client: MerkleKVClient) -> None:
        before = connected_client.stats()
        connected_client.set("a", "1")
        connected_client.get("a")
        connected_client.get("b")
        after = connected_client.stats()
        assert int(after["set_commands"]) - int(before["set_commands"]) == 1
        assert int(after["get_commands"]) - int(before["get_commands"]) == 2
        assert int(after["active_connections"]) >= 1
        assert int(after["used_memory_kb"]) > 0

    def test_info(self, connected_client: MerkleKVClient) -> None:
        connected_client.set("a", "1")
        lines = connected_client.send_command("INFO").split("\n")
        fields = dict(line.split(":", 1) for line in lines[1:])
        assert lines[0] == "INFO"
        assert fields["db_keys"] == "1"
        assert {"version", "uptime_seconds", "uptime", "server_time_unix"} <= set(fields)

    def test_client_list_names_this_client(self, connected_client: MerkleKVClient) -> None:
        host, port = connected_client.connection.socket.getsockname()
        listed = connected_client.send_command("CLIENT LIST").split("\n")
        assert listed[0] == "CLIENT LIST"
        assert sum(f"addr={host}:{port} " in line for line in listed) == 1


class TestHash:
    """HASH is a function of the data, and of nothing else."""

    def test_a_new_server_has_a_hash_of_zeros(self, own_server: MerkleKVServer) -> None:
        with own_server.client() as client:
            assert client.send_command("HASH") == "HASH " + 64 * "0"

    def test_every_change_changes_it(self, connected_client: MerkleKVClient) -> None:
        seen = {connected_client.send_command("HASH")}
        for command in ("SET a 1", "SET a 2", "SET b 1", "DELETE a", "INC n"):
            connected_client.send_command(command)
            seen.add(connected_client.send_command("HASH"))
        assert len(seen) == 6

    def test_reading_does_not_change_it(self, connected_client: MerkleKVClient) -> None:
        connected_client.set("a", "1")
        before = connected_client.send_command("HASH")
        for command in ("GET a", "GET b", "SCAN", "EXISTS a", "DELETE none"):
            connected_client.send_command(command)
        assert connected_client.send_command("HASH") == before

    def test_a_prefix_has_a_hash_of_its_own(self, connected_client: MerkleKVClient) -> None:
        connected_client.send_command("MSET user:1 a order:1 b")
        user = connected_client.send_command("HASH user:")
        assert user.startswith("HASH user: ")
        connected_client.set("order:2", "c")
        assert connected_client.send_command("HASH user:") == user
        connected_client.set("user:1", "changed")
        assert connected_client.send_command("HASH user:") != user


class TestPersistence:
    """What was acknowledged is there after a restart."""

    def test_data_survives_a_restart(self, own_server: MerkleKVServer) -> None:
        with own_server.client() as client:
            for number in range(100):
                client.set(f"key-{number}", f"value {number}")
            client.delete("key-7")
            client.send_command("INC counter 5")
            before = client.send_command("HASH")
        own_server.restart()
        with own_server.client() as client:
            assert client.send_command("DBSIZE") == "DBSIZE 100"
            assert client.get("key-99") == "VALUE value 99"
            assert client.get("key-7") == "NOT_FOUND"
            assert client.get("counter") == "VALUE 5"
            assert client.send_command("HASH") == before

    def test_a_truncate_survives_a_restart(self, own_server: MerkleKVServer) -> None:
        with own_server.client() as client:
            client.send_command("MSET a 1 b 2")
            client.send_command("TRUNCATE")
            client.set("c", "3")
        own_server.restart()
        with own_server.client() as client:
            assert client.send_command("SCAN") == "KEYS 1\nc"

    def test_data_survives_several_restarts(self, own_server: MerkleKVServer) -> None:
        for number in range(3):
            with own_server.client() as client:
                assert client.send_command("INC starts") == f"VALUE {number + 1}"
            own_server.restart()
        with own_server.client() as client:
            assert client.get("starts") == "VALUE 3"
