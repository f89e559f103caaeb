"""What the server reports of itself: the metrics of STATS, and the sections of INFO."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Mapping

import merklekv
from merklekv import core
from merklekv.metrics import ClientMetrics, LatencyMetrics, ServerMetrics, Value, values_of
from merklekv.net.protocol import text
from merklekv.net.protocol.resp import REDIS_VERSION
from merklekv.net.pubsub import Kind
from merklekv.net.session import Context
from merklekv.net.vitals import memory

# What is 0 on every node, for tools that ask for it: it has no replicas of Redis, eviction, modules or functions.
_ALWAYS_0 = {
    "Memory": (
        *("used_memory_functions", "number_of_functions", "number_of_libraries", "mem_not_counted_for_evict"),
        *("mem_replication_backlog", "mem_total_replication_buffers", "mem_clients_slaves", "mem_cluster_links"),
        *("mem_aof_buffer", "active_defrag_running", "lazyfree_pending_objects", "lazyfreed_objects"),
    ),
    "Persistence": (
        *("loading", "async_loading", "current_cow_peak", "current_cow_size", "current_cow_size_age"),
        *("current_save_keys_processed", "current_save_keys_total", "rdb_changes_since_last_save"),
        *("rdb_bgsave_in_progress", "rdb_saves", "rdb_last_cow_size", "rdb_last_load_keys_expired"),
        *("rdb_last_load_keys_loaded", "aof_rewrite_in_progress", "aof_rewrite_scheduled", "aof_rewrites"),
        *("aof_rewrites_consecutive_failures", "aof_last_cow_size", "module_fork_in_progress"),
        "module_fork_last_cow_size",
    ),
    "Stats": (
        *("sync_full", "sync_partial_ok", "sync_partial_err", "total_net_repl_input_bytes"),
        *("total_net_repl_output_bytes", "expired_time_cap_reached_count", "evicted_keys"),
        *("total_eviction_exceeded_time", "current_eviction_exceeded_time", "pubsubshard_channels", "latest_fork_usec"),
        *("total_forks", "migrate_cached_sockets", "slave_expires_tracked_keys", "active_defrag_hits"),
        *("active_defrag_misses", "active_defrag_key_hits", "active_defrag_key_misses", "total_active_defrag_time"),
        *("current_active_defrag_time", "tracking_total_keys", "tracking_total_items", "tracking_total_prefixes"),
        *("unexpected_error_replies", "dump_payload_sanitizations", "io_threaded_reads_processed"),
        "io_threaded_writes_processed",
    ),
}
# Looked at when the process starts: the node takes the variable out of its environment.
_SUPERVISOR = "systemd" if "NOTIFY_SOCKET" in os.environ else "no"
# The sections of INFO that it shows only when they are named, or all are.
EXTRA_SECTIONS = frozenset((b"commandstats", b"latencystats"))
UNGROUPED = "other"  # requests of commands that feed no counter of STATS, or of none
PERCENTILES = (50, 99, 99.9)
EVERYTHING = frozenset((b"all", b"everything"))


def client_metrics(context: Context) -> ClientMetrics:
    calls = context.commands.calls()
    uptime = int(time.monotonic() - context.started)
    return ClientMetrics(
        uptime_seconds=uptime,
        uptime=f"{uptime // 86400}d {uptime // 3600 % 24}h {uptime // 60 % 60}m {uptime % 60}s",
        total_connections=context.traffic.connections,
        active_connections=len(context.sessions()),
        total_commands=sum(calls.values()),
        commands_by_group={group: count for group, count in calls.items() if group},
        used_memory_kb=memory()[1] // 1024,
    )


def server_metrics(context: Context) -> ServerMetrics:
    traffic = context.traffic
    return ServerMetrics(
        version=merklekv.__version__,
        server_time_unix=int(time.time()),
        connections_refused=traffic.refused,
        protocol_errors=traffic.protocol_errors,
        output_limit_closed=traffic.output_limit_closed,
        memory_limit_closed=traffic.evicted,
        client_memory_bytes=context.memory.used,
        client_memory_limit_bytes=context.memory.limit,
        idle_closed=traffic.idle_closed,
        foreign_protocol_closed=traffic.foreign_protocol_closed,
        pubsub_channels=context.pubsub.count(Kind.CHANNEL),
        pubsub_patterns=context.pubsub.count(Kind.PATTERN),
        pubsub_dropped=context.pubsub.dropped,
        process_start_unix=context.started_at,
        process_cpu_ms=time.process_time_ns() // 10**6,
        process_threads=threading.active_count(),
        process_open_fds=len(os.listdir("/proc/self/fd")) - 1,  # without the one for this look
        process_max_fds=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


def latency_metrics(context: Context) -> LatencyMetrics:
    return LatencyMetrics(
        command_seconds={name.lower(): used.time for name, used in context.usage().items() if used.time.count},
        request_seconds={group or UNGROUPED: one for group, one in context.commands.waited.items() if one.count},
        commit_seconds=context.commit_time,
    )


def parts(context: Context) -> list[object]:
    """Everything that the node reports, as parts of `merklekv.metrics`."""
    return [*_parts_of_stats(context), latency_metrics(context)]


def _parts_of_stats(context: Context) -> list[object]:
    """The same without the part that has histograms only; those of the line protocol's STATS first."""
    own = [client_metrics(context), server_metrics(context), context.engine.metrics()]
    return [*own, *context.services.metrics()]


def all_metrics(context: Context) -> dict[str, Value]:
    """Everything that STATS reports, by name."""
    return values_of(*_parts_of_stats(context))


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
    """The sections of INFO over RESP: Redis's, and one of our own with everything.

    A name of Redis's that tools ask for is there with its true value, or with the constant that is true of every node.
    """
    values = all_metrics(context)
    return {
        "Server": _server(context, int(values["uptime_seconds"])),
        "Clients": _clients(context),
        "Memory": _memory(context, values),
        "Persistence": _persistence(context),
        "Stats": _stats(context, values),
        "Replication": _replication(context, values),
        "CPU": _cpu(),
        "Modules": {},
        "Commandstats": _command_stats(context),
        "Errorstats": {f"errorstat_{code}": f"count={n}" for code, n in sorted(context.errors_since_reset().items())},
        "Latencystats": _latency_stats(context),
        "Cluster": {"cluster_enabled": 0},
        "Keyspace": _keyspace(values),
        "MerkleKV": values,
    }


def _server(context: Context, seconds: int) -> Mapping[str, Value]:
    system = os.uname()
    return {
        "redis_version": REDIS_VERSION,
        "redis_git_sha1": "00000000",
        "redis_git_dirty": 0,
        "redis_build_id": "0" * 16,
        "redis_mode": "standalone",
        "merklekv_version": merklekv.__version__,
        "merklekv_core": core.IMPLEMENTATION,
        "os": f"{system.sysname} {system.release} {system.machine}",
        "arch_bits": sys.maxsize.bit_length() + 1,
        "monotonic_clock": "POSIX clock_gettime",
        "multiplexing_api": "epoll",
        "process_id": os.getpid(),
        "process_supervised": _SUPERVISOR,
        "run_id": context.run_id,
        "tcp_port": context.port,
        "server_time_usec": time.time_ns() // 1000,
        "uptime_in_seconds": seconds,
        "uptime_in_days": seconds // 86400,
        "hz": 1,
        "configured_hz": 1,
        "executable": sys.argv[0],
        "config_file": "",
        "io_threads_active": 0,
    }


def _clients(context: Context) -> Mapping[str, Value]:
    sessions = context.sessions()
    return {
        "connected_clients": len(sessions),
        "cluster_connections": 0,
        "maxclients": context.limits.connections,
        "blocked_clients": sum(one.waits for one in sessions),
        "tracking_clients": 0,
        "clients_in_timeout_table": 0,
    }


def _memory(context: Context, values: Mapping[str, Value]) -> Mapping[str, Value]:
    resident, own = memory()
    peak = max(context.vitals.peak_bytes, own)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tables = int(values["memtable_bytes"])
    return {
        **_bytes("used_memory", own),
        **_bytes("used_memory_rss", resident),
        **_bytes("used_memory_peak", peak),
        "used_memory_peak_perc": f"{100 * own / peak:.2f}%",
        "used_memory_overhead": max(0, own - tables),
        "used_memory_dataset": tables,
        "used_memory_dataset_perc": f"{100 * tables / own:.2f}%",
        **_bytes("total_system_memory", total),
        **_bytes("maxmemory", 0),
        "maxmemory_policy": "noeviction",
        **_bytes("used_memory_lua", context.scripts.memory_bytes),
        "number_of_cached_scripts": context.scripts.count,
        "mem_fragmentation_ratio": f"{resident / own:.2f}",
        "mem_fragmentation_bytes": resident - own,
        "mem_allocator": "libc",
        **dict.fromkeys(_ALWAYS_0["Memory"], 0),
    }


def _bytes(name: str, count: int) -> Mapping[str, Value]:
    """A number of bytes, and the same for people, as Redis writes it."""
    size, unit = float(count), "B"
    for larger in "KMGTPE":
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return {name: count, f"{name}_human": f"{count}B" if unit == "B" else f"{size:.2f}{unit}"}


def _persistence(context: Context) -> Mapping[str, Value]:
    """Every write is in the log before its reply, so nothing is ever unsaved."""
    return {
        "rdb_last_save_time": context.started_at,
        "rdb_last_bgsave_status": "ok",
        "rdb_last_bgsave_time_sec": -1,
        "rdb_current_bgsave_time_sec": -1,
        "aof_enabled": 1,
        "aof_last_rewrite_time_sec": -1,
        "aof_current_rewrite_time_sec": -1,
        "aof_last_bgrewrite_status": "ok",
        "aof_last_write_status": "ok",
        **dict.fromkeys(_ALWAYS_0["Persistence"], 0),
    }


def _stats(context: Context, values: Mapping[str, Value]) -> Mapping[str, Value]:
    vitals = context.vitals
    counted = vitals.since_reset(context.counters())
    return {
        **{name: counted[name] for name in ("total_connections_received", "total_commands_processed")},
        "instantaneous_ops_per_sec": round(vitals.rate("total_commands_processed")),
        **{name: counted[name] for name in ("total_net_input_bytes", "total_net_output_bytes")},
        "instantaneous_input_kbps": f"{vitals.rate('total_net_input_bytes') / 1024:.2f}",
        "instantaneous_output_kbps": f"{vitals.rate('total_net_output_bytes') / 1024:.2f}",
        "rejected_connections": counted["rejected_connections"],
        "evicted_clients": counted["evicted_clients"],
        "expired_keys": values.get("expired_keys", 0),
        "keyspace_hits": counted["keyspace_hits"],
        "keyspace_misses": counted["keyspace_misses"],
        "pubsub_channels": values["pubsub_channels"],
        "pubsub_patterns": values["pubsub_patterns"],
        "expired_stale_perc": "0.00",
        **dict.fromkeys(_ALWAYS_0["Stats"], 0),
        "total_error_replies": sum(context.errors_since_reset().values()),
    }


def _replication(context: Context, values: Mapping[str, Value]) -> Mapping[str, Value]:
    """What there is of Redis's replication: a master without replicas. Nodes replicate in another way."""
    return {
        "role": "master",
        "connected_slaves": 0,
        "master_failover_state": "no-failover",
        "master_replid": context.run_id,
        "master_replid2": "0" * 40,
        "master_repl_offset": values["log_lsn"],
        "second_repl_offset": -1,
        "repl_backlog_active": 0,
        "repl_backlog_size": 0,
        "repl_backlog_first_byte_offset": 0,
        "repl_backlog_histlen": 0,
    }


def _cpu() -> Mapping[str, Value]:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "used_cpu_sys": f"{own.ru_stime:.6f}",
        "used_cpu_user": f"{own.ru_utime:.6f}",
        "used_cpu_sys_children": f"{children.ru_stime:.6f}",
        "used_cpu_user_children": f"{children.ru_utime:.6f}",
    }


def _command_stats(context: Context) -> Mapping[str, Value]:
    """Time that a command waits for the disk or for its turn is not in `usec`."""
    return {
        f"cmdstat_{name.lower()}": f"calls={used.calls},usec={used.time.seconds * 1e6:.0f},"
        f"usec_per_call={used.time.seconds * 1e6 / max(1, used.calls):.2f},rejected_calls={used.rejected},"
        f"failed_calls={used.failed}"
        for name, used in context.usage_since_reset().items()
        if used.calls or used.rejected
    }


def _latency_stats(context: Context) -> Mapping[str, Value]:
    """Microseconds in which so many of the calls were done: the upper limit of a bucket of the histogram."""
    return {
        f"latency_percentiles_usec_{name.lower()}": ",".join(
            f"p{percent:g}={used.time.quantile(percent / 100)}" for percent in PERCENTILES
        )
        for name, used in context.usage_since_reset().items()
        if used.time.count
    }


def _keyspace(values: Mapping[str, Value]) -> Mapping[str, Value]:
    keys = values.get("db_keys")
    return {"db0": f"keys={keys},expires={values.get('db_keys_with_expiry', 0)},avg_ttl=0"} if keys else {}
