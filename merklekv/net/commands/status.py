"""What the server says about itself: the values of STATS, INFO and MEMORY."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import merklekv
from merklekv.net.protocol import text
from merklekv.net.session import Context

# The release whose replies are imitated: clients read it to decide which commands they may use.
REDIS_VERSION = "7.0.15"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Memory(NamedTuple):
    """Memory of this process, in bytes."""

    resident: int  # in RAM, with the pages of mapped files such as the base, which the kernel may take back
    own: int  # of that, what is no page of a file


def memory() -> Memory:
    resident, shared = (int(pages) * _PAGE_BYTES for pages in Path("/proc/self/statm").read_bytes().split()[1:3])
    return Memory(resident, resident - shared)


def uptime_words(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours}h {minutes}m {seconds}s"


def _uptime(context: Context) -> dict[str, int | str]:
    seconds = int(time.monotonic() - context.started)
    return {"uptime_seconds": seconds, "uptime": uptime_words(seconds)}


def basic_statistics(context: Context) -> dict[str, int | str]:
    """The names of the line protocol's STATS."""
    traffic = context.traffic
    calls = context.commands.calls()
    lines = _uptime(context)
    lines["total_connections"] = traffic.connections
    lines["active_connections"] = len(context.sessions())
    lines["total_commands"] = sum(calls.values())
    lines |= {f"{group}_commands": count for group, count in calls.items() if group}
    lines["used_memory_kb"] = memory().own // 1024
    return lines


def statistics(context: Context) -> dict[str, int | str]:
    """The names of STATS, and after them what the server, the engine and the services add."""
    traffic = context.traffic
    lines = basic_statistics(context)
    for name in traffic.__slots__[1:]:
        lines[name] = getattr(traffic, name)
    return lines | context.engine.statistics() | dict(context.services.statistics())


def information(context: Context) -> dict[str, int | str]:
    """The names of the text INFO."""
    head: dict[str, int | str] = {"version": merklekv.__version__}
    tail: dict[str, int | str] = {
        "server_time_unix": int(time.time()),
        "db_keys": context.engine.live_count,
        "foreign_protocol_closed": context.traffic.foreign_protocol_closed,
    }
    return head | _uptime(context) | tail | context.engine.statistics() | dict(context.services.statistics())


def lines_of(values: Mapping[str, int | str]) -> bytes:
    return b"".join(b"%b:%b\r\n" % (name.encode(), text.one_line(str(value))) for name, value in values.items())


def sections(context: Context) -> dict[str, Mapping[str, int | str]]:
    """The sections of INFO over RESP: Redis's, and one of our own with everything."""
    values = statistics(context)
    keys = context.engine.live_count
    used = memory()
    seconds = values["uptime_seconds"]
    return {
        "Server": {
            "redis_version": REDIS_VERSION,
            "redis_mode": "standalone",
            "merklekv_version": merklekv.__version__,
            "process_id": os.getpid(),
            "tcp_port": context.port,
            "uptime_in_seconds": seconds,
            "uptime_in_days": int(seconds) // 86400,
        },
        "Clients": {
            "connected_clients": values["active_connections"],
            "blocked_clients": 0,
            "maxclients": context.limits.connections,
        },
        "Memory": {
            "used_memory": used.own,
            "used_memory_human": f"{used.own / 2**20:.2f}M",
            "used_memory_rss": used.resident,
        },
        "Persistence": {"loading": 0, "rdb_bgsave_in_progress": 0, "aof_enabled": 1, "aof_rewrite_in_progress": 0},
        "Stats": {
            "total_connections_received": values["total_connections"],
            "total_commands_processed": values["total_commands"],
            "rejected_connections": context.traffic.refused,
        },
        "Replication": {"role": "master", "connected_slaves": 0},
        "Keyspace": {"db0": f"keys={keys},expires=0,avg_ttl=0"} if keys else {},
        "MerkleKV": values,
    }
