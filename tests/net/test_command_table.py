"""The declarations of commands: complete, and true to themselves."""

from __future__ import annotations

import pytest

from merklekv.net.registry import GROUPS, LINE, RESP, Command

LINE_NAMES = (
    "GET SET EXPIRE TTL PERSIST "
    "DEL DELETE EXISTS INC INCR DEC DECR APPEND PREPEND MGET MSET SCAN TRUNCATE FLUSHDB FLUSH DBSIZE PING ECHO "
    "VERSION MEMORY STATS INFO CLIENT HASH SYNC REPLICATE SHUTDOWN MULTI EXEC DISCARD"
)
RESP_NAMES = (
    "SETEX PSETEX GETEX EXPIRE PEXPIRE EXPIREAT PEXPIREAT TTL PTTL EXPIRETIME PEXPIRETIME PERSIST DELIFEQ "
    "SET GET GETSET GETDEL SETNX MGET MSET MSETNX DEL UNLINK EXISTS TYPE STRLEN APPEND INCR DECR INCRBY DECRBY "
    "GETRANGE SETRANGE KEYS SCAN RANDOMKEY DBSIZE FLUSHDB FLUSHALL PING ECHO INFO COMMAND CONFIG CLIENT HELLO SELECT "
    "QUIT RESET SHUTDOWN TIME PREPEND HASH SYNC REPLICATE VERSION STATS TRUNCATE AUTH MULTI EXEC DISCARD"
)
STATS_GROUPS = (
    "get set delete scan ping echo exists dbsize numeric string bulk stat sync hash replicate management flushdb "
    "memory clientlist"
)


def named(declared: dict[bytes, Command]) -> list[Command]:
    return [command for command in declared.values() if command.name]


def test_every_command_of_both_protocols_is_there() -> None:
    assert set(LINE_NAMES.split()) == {command.name for command in named(LINE)}
    assert set(RESP_NAMES.split()) <= {command.name for command in named(RESP)}


def test_every_statistics_counter_has_commands() -> None:
    assert set(GROUPS) == set(STATS_GROUPS.split()) == {command.group for command in named(RESP) + named(LINE)}


@pytest.mark.parametrize("command", named(RESP), ids=lambda command: command.name)
def test_a_declaration_says_all_of_a_command(command: Command) -> None:
    assert command.name == command.name.upper() == command.syntax.split()[0]
    assert command.summary.endswith(".")
    assert command.arity != 0
    required = command.syntax.split(" [")[0].split()
    if command.keys != (0, 0, 0):
        assert abs(command.arity) == len(required)
        assert {"write", "readonly"} & set(command.flags) or command.name == "WATCH"


@pytest.mark.parametrize("command", named(LINE), ids=lambda command: command.name)
def test_a_command_of_both_protocols_feeds_one_counter(command: Command) -> None:
    assert command.name == command.name.upper() == command.syntax.split()[0]
    other = RESP.get(command.name.encode())
    assert other is None or other.group == command.group


@pytest.mark.parametrize(
    ("name", "keys"),
    [("GET", (1, 1, 1)), ("SET", (1, 1, 1)), ("DEL", (1, -1, 1)), ("MSET", (1, -1, 2)), ("PING", (0, 0, 0))],
)
def test_where_the_keys_stand(name: str, keys: tuple[int, int, int]) -> None:
    assert RESP[name.encode()].keys == keys
