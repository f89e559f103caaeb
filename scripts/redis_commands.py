"""The commands of Redis 7.0, as its COMMAND DOCS lists them: scripts/redis_commands.json.

python scripts/redis_commands.py HOST PORT    reads them from a running Redis, and writes the file
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parent / "redis_commands.json"


class RedisCommand(NamedTuple):
    """A command, or a subcommand such as `client|list`."""

    group: str
    since: str
    summary: str


def load() -> dict[str, RedisCommand]:
    """By name in small letters; a subcommand follows its command."""
    return {name: RedisCommand(*fields) for name, fields in json.loads(FILE.read_text()).items()}


def flattened(documents: dict[str, Any]) -> dict[str, RedisCommand]:
    """The reply of COMMAND DOCS, with subcommands behind their commands."""
    found: dict[str, RedisCommand] = {}
    for name, fields in sorted(documents.items()):
        found[name] = RedisCommand(fields["group"], fields["since"], fields["summary"].strip().rstrip("."))
        found |= flattened(fields.get("subcommands", {}))
    return found


def read(host: str, port: int) -> dict[str, RedisCommand]:
    """From a running Redis."""
    import redis  # only who writes the file needs it

    with redis.Redis(host, port, protocol=3, decode_responses=True) as client:
        return flattened(client.execute_command("COMMAND DOCS"))


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}: {json.dumps(one)}" for name, one in read(sys.argv[1], int(sys.argv[2])).items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
