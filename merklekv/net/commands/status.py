"""What the server reports of itself: the metrics of STATS and INFO, and the memory of this process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import merklekv
from merklekv.metrics import ClientMetrics, ServerMetrics, Value, values_of
from merklekv.net.protocol import text
from merklekv.net.session import Context

# The release whose replies are imitated: clients read it to decide which commands they may use.
REDIS_VERSION = "7.0.15"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def memory() -> tuple[int, int]:
    """Bytes of this process in RAM, and how many of them are no pages of files, which the kernel may take back."""
    resident, shared = (int(pages) * _PAGE_BYTES for pages in Path("/proc/self/statm").read_bytes().split()[1:3])
    return resident, resident - shared


def client_metrics(context: Context) -> ClientMetrics:
    calls = context.commands.calls()
    uptime = int(time.monotonic() - context.started)
    return ClientMetrics(
        uptime_seconds=uptime,
        uptime=f"{uptime // 86400}d {uptime // 3600 % 24}h {uptime // 60 % 60}m {uptime % 60}s",
        total_connections=context.traffic.connections,
        active_connections=len(context.sessions()),
        total_commands=sum(calls.values()),
        commands={group: count for group, count in calls.items() if group},
        used_memory_kb=memory()[1] // 1024,
    )


def all_metrics(context: Context) -> dict[str, Value]:
    """Everything that the node reports, by name, those of the line protocol's STATS first."""
    traffic = context.traffic
    server = ServerMetrics(
        version=merklekv.__version__,
        server_time_unix=int(time.time()),
        connections_refused=traffic.refused,
        protocol_errors=traffic.protocol_errors,
        output_limit_closed=traffic.output_limit_closed,
        idle_closed=traffic.idle_closed,
        foreign_protocol_closed=traffic.foreign_protocol_closed,
    )
    return values_of(client_metrics(context), server, context.engine.metrics(), *context.services.metrics())


def basic_metrics(context: Context) -> dict[str, Value]:
    """What the line protocol's STATS reports: below 1,024 bytes, because existing clients read it with one call."""
    return values_of(client_metrics(context))


def info_metrics(context: Context) -> dict[str, Value]:
    """All metrics, those that existing clients know from the line protocol's INFO first."""
    values = all_metrics(context)
    first = ("version", "uptime_seconds", "uptime", "server_time_unix", "db_keys")
    return {name: values[name] for name in first if name in values} | values


def lines_of(values: Mapping[str, Value]) -> bytes:
    return b"".join(b"%b:%b\r\n" % (name.encode(), text.one_line(str(value))) for name, value in values.items())


def sections(context: Context) -> dict[str, Mapping[str, Value]]:
    """The sections of INFO over RESP: Redis's, and one of our own with everything."""
    values = all_metrics(context)
    keys = values.get("db_keys")
    resident, own = memory()
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
            "used_memory": own,
            "used_memory_human": f"{own / 2**20:.2f}M",
            "used_memory_rss": resident,
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
