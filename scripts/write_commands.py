"""Writes the tables of commands in docs/protocol.md from their declarations.

python scripts/write_commands.py            write them
python scripts/write_commands.py --check    exit 1 when they are not what would be written
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import groupby

import generated
import redis_commands

import merklekv.net.commands  # noqa: F401  declares them
from merklekv.net.commands.introspection import group_of
from merklekv.net.registry import LINE, RESP, Command

PAGE = generated.DOCS / "protocol.md"
# Redis's groups in the order of the page; MerkleKV's own commands are the last one.
OWN = "own"
GROUPS = ("string", "bitmap", "generic", "transactions", "scripting", "pubsub", "connection", "server", "cluster", OWN)
MEMBERS = ("EXCHANGE", "MEMBERS", "FORGET")  # of the commands between nodes


def group(one: Command) -> str:
    return group_of(one) if one.name.lower() in redis_commands.load() and one.name != "SYNC" else OWN


def named(declared: dict[bytes, Command]) -> list[Command]:
    return [one for one in declared.values() if one.name]


def rows(commands: Iterable[Command], *cells: Callable[[Command], str]) -> Iterable[tuple[str, ...]]:
    """A row for each command, one for several in a row with the same handler or the same cells."""
    for _, several in groupby(commands, lambda one: (one.handler, *(cell(one) for cell in cells))):
        same = list(several)
        yield ", ".join(f"`{one.syntax}`" for one in same), *(cell(same[0]) for cell in cells)


def write(part: str, head: tuple[str, ...], commands: Iterable[Command], *cells: Callable[[Command], str]) -> None:
    generated.write(PAGE, generated.table(head, *rows(commands, *cells)) + "\n", part)


def main() -> None:
    write("line commands", ("request", "reply", ""), named(LINE), lambda one: one.reply, lambda one: one.note)
    for_clients = sorted((one for one in named(RESP) if not one.reply), key=lambda one: GROUPS.index(group(one)))
    head: tuple[str, ...] = ("request", "", "differs from Redis")
    write("RESP commands", head, for_clients, lambda one: one.summary, lambda one: one.note)
    for_nodes = [one for one in named(RESP) if one.reply]
    head = ("request", "reply")
    write("record commands", head, [one for one in for_nodes if one.name not in MEMBERS], lambda one: one.reply)
    members = sorted((one for one in for_nodes if one.name in MEMBERS), key=lambda one: MEMBERS.index(one.name))
    write("member commands", head, members, lambda one: one.reply)


if __name__ == "__main__":
    main()
