"""The command table: complete, and true to itself."""

from __future__ import annotations

import pytest

from merklekv.net.commands.registry import Command
from merklekv.net.commands.table import TABLE

TEXT = (
    "GET SET DEL DELETE EXISTS INC INCR DEC DECR APPEND PREPEND MGET MSET SCAN TRUNCATE FLUSHDB FLUSH DBSIZE PING ECHO "
    "VERSION MEMORY STATS INFO CLIENT HASH SYNC REPLICATE SHUTDOWN MULTI EXEC DISCARD"
)
RESP = (
    "SET GET GETSET GETDEL SETNX MGET MSET MSETNX DEL UNLINK EXISTS TYPE STRLEN APPEND INCR DECR INCRBY DECRBY "
    "GETRANGE SETRANGE KEYS SCAN RANDOMKEY DBSIZE FLUSHDB FLUSHALL PING ECHO INFO COMMAND CONFIG CLIENT HELLO SELECT "
    "QUIT RESET SHUTDOWN TIME PREPEND HASH SYNC REPLICATE VERSION STATS TRUNCATE AUTH MULTI EXEC DISCARD"
)
GROUPS = (
    "get set delete scan ping echo exists dbsize numeric string bulk stat sync hash replicate management flushdb "
    "memory clientlist"
)


def test_every_command_of_both_protocols_is_there() -> None:
    assert set(TEXT.split()) == {row.name for row in TABLE if row.text}
    assert set(RESP.split()) <= {row.name for row in TABLE if row.resp}


def test_names_are_unique() -> None:
    names = [row.name for row in TABLE]
    assert len(names) == len(set(names))


def test_every_statistics_counter_has_commands() -> None:
    assert {row.group for row in TABLE} == set(GROUPS.split())


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_row_says_all_of_itself(row: Command) -> None:
    assert row.name == row.name.upper()
    assert row.summary.endswith(".")
    assert row.text or row.resp
    for handler, syntax in ((row.text, row.text_syntax), (row.resp, row.resp_syntax)):
        assert bool(handler) == bool(syntax)
        assert not syntax or syntax.split()[0] == row.name
    assert bool(row.resp) == (row.arity != 0)
    required = [word for word in row.resp_syntax.split(" [")[0].split() if "|" not in word]
    if row.resp and row.keys != (0, 0, 0):
        assert abs(row.arity) == len(required)
        assert {"write", "readonly"} & set(row.flags)
