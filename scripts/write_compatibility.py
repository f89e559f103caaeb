"""Writes the tables of docs/compatibility.md: every command of Redis 7.0, and what there is of it here.

python scripts/write_compatibility.py            write them
python scripts/write_compatibility.py --check    exit 1 when they are not what would be written

What is here comes from the declarations of the commands. What is not has its reason below: a command without one, and a
reason for a command that is here, are errors.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby

import generated
import redis_commands
from redis_commands import RedisCommand

import merklekv.net.commands  # noqa: F401  declares them
from merklekv.net.commands.introspection import every_command
from merklekv.net.registry import Command

TITLES = {
    "string": "Strings",
    "bitmap": "Bits",
    "generic": "Keys",
    "transactions": "Transactions",
    "scripting": "Scripts",
    "pubsub": "Publish and subscribe",
    "connection": "Connections",
    "server": "The server",
    "cluster": "Redis Cluster",
}
# Redis's groups of which nothing is here.
OTHER_TYPES = {
    "list": "lists",
    "set": "sets",
    "hash": "hashes",
    "sorted-set": "sorted sets",
    "stream": "streams",
    "geo": "positions",
    "hyperloglog": "HyperLogLogs",
}

_SAVES = "every write is in the log before its reply; `merklekv backup` makes backups"
_REPLICAS = "nodes replicate in another way, and each takes writes"
_ONE_DATABASE = "there is one database"
_MODULES = "there are no modules"
_LISTS = "sorts lists and sets, which are not here"
_FUNCTIONS = "functions are not supported"
_DEBUGGER = "there is no debugger for scripts"
_SHARDS = "sharded channels belong to Redis Cluster"
_TESTS = "for tests of Redis itself"
# Why a command is not here, by its name or the name of its command.
ABSENT = {
    "save": _SAVES,
    "bgsave": _SAVES,
    "bgrewriteaof": _SAVES,
    "debug": _TESTS,
    "lolwut": "for fun",
    "failover": _REPLICAS,
    "psync": _REPLICAS,
    "replconf": _REPLICAS,
    "replicaof": _REPLICAS,
    "slaveof": _REPLICAS,
    "restore-asking": "a node is no part of a Redis Cluster",
    "swapdb": _ONE_DATABASE,
    "move": _ONE_DATABASE,
    "module|load": _MODULES,
    "module|loadex": _MODULES,
    "module|unload": _MODULES,
    "migrate": "`DUMP` and `RESTORE` move a key",
    "sort": _LISTS,
    "sort_ro": _LISTS,
    "script|debug": _DEBUGGER,
    "fcall": _FUNCTIONS,
    "fcall_ro": _FUNCTIONS,
    "function": _FUNCTIONS,
    "spublish": _SHARDS,
    "ssubscribe": _SHARDS,
    "sunsubscribe": _SHARDS,
    "pubsub|shardchannels": _SHARDS,
    "pubsub|shardnumsub": _SHARDS,
}
# Names that mean something else here.
OTHERS = {"sync": f"`SYNC` is MerkleKV's own, an exchange with another node; {_REPLICAS}"}
REFUSED = ("Refused", "An error")


def status(name: str, here: dict[str, Command]) -> tuple[str, str]:
    """Whether a command is here, and what differs, or why it is not."""
    above = name.partition("|")[0]
    if name in OTHERS:
        return "no", OTHERS[name]
    one = here.get(name) or (here[above] if above == "cluster" else None)
    if one is not None:
        if name in ABSENT:
            sys.exit(f"{name} is here: scripts/write_compatibility.py must not say why it is not")
        return ("an error", one.summary) if one.summary.startswith(REFUSED) else ("yes", one.note)
    reason = ABSENT.get(name) or ABSENT.get(above)
    if reason is None:
        sys.exit(f"{name} is not here: say why in scripts/write_compatibility.py")
    return "no", reason


def parts() -> Iterator[str]:
    here = {one.name.lower(): one for one in every_command()}
    known = redis_commands.load()
    for group, title in TITLES.items():
        rows = []
        names = [name for name, one in known.items() if one.group == group]
        for (_, cells), several in groupby(names, lambda name: (name.partition("|")[0], status(name, here))):
            shown = ", ".join(f"`{name.upper().replace('|', ' ')}`" for name in several)
            rows.append((shown, cells[0], cells[1].replace("](#", "](protocol.md#")))
        yield f"## {title}\n\n" + generated.table(("command", "here", "differs, or why it is not here"), *rows)
    others = [_other(group, known) for group in OTHER_TYPES]
    yield "## Other types of values\n\nNone of these is here: every value is a string.\n\n" + generated.table(
        ("type", "commands"), *others
    )


def _other(group: str, known: dict[str, RedisCommand]) -> tuple[str, str]:
    names = [f"`{name.upper()}`" for name, one in known.items() if one.group == group and "|" not in name]
    return OTHER_TYPES[group], ", ".join(names)


if __name__ == "__main__":
    generated.write(generated.DOCS / "compatibility.md", "\n" + "\n\n".join(parts()) + "\n\n", "commands")
