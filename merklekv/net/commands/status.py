"""What the server says about itself: STATS, INFO, MEMORY, VERSION and CLIENT LIST, in both protocols.

The line protocol's STATS has fixed names only and stays below 1,024 bytes whatever they count, because existing clients
read a reply with one call. `STATS all`, like STATS over RESP, adds what the server, the engine and the node count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import merklekv
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.text import Request
from merklekv.net.session import Context, Reply, Session

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


def text_stats(session: Session, request: Request) -> Reply:
    if request[1] and request[1].lower() != b"all":
        raise RequestError("STATS command accepts only the argument all")
    values = statistics(session.context) if request[1] else basic_statistics(session.context)
    return b"STATS\r\n%bEND\r\n" % lines_of(values)


def text_info(session: Session, request: Request) -> Reply:
    return b"INFO\r\n%bEND\r\n" % lines_of(information(session.context))


def text_memory(session: Session, request: Request) -> Reply:
    return b"MEMORY %d\r\n" % memory().own


def text_version(session: Session, request: Request) -> Reply:
    return b"VERSION %b\r\n" % merklekv.__version__.encode()


def text_client(session: Session, request: Request) -> Reply:
    if request[1].upper() != b"LIST":
        raise RequestError("CLIENT command requires LIST: CLIENT LIST")
    now = time.monotonic()
    lines = [
        b"id=%d addr=%b age=%d idle=%d\r\n" % (one.id, one.address.encode(), now - one.opened, now - one.last_active)
        for one in session.context.sessions()
    ]
    return b"CLIENT LIST\r\n%bEND\r\n" % b"".join(lines)


def resp_stats(session: Session, request: Request) -> Reply:
    return resp.verbatim(lines_of(statistics(session.context)), session.protocol)


def resp_version(session: Session, request: Request) -> Reply:
    return resp.bulk(merklekv.__version__.encode())


def resp_info(session: Session, request: Request) -> Reply:
    """Redis's sections, as far as they mean something here; a section of our own holds the rest."""
    sections = _sections(session.context)
    wanted = {word.lower() for word in request[1:]} or {b"default"}
    if not wanted & {b"all", b"default", b"everything"}:
        sections = {name: values for name, values in sections.items() if name.lower().encode() in wanted}
    body = b"\r\n".join(b"# %b\r\n%b" % (name.encode(), lines_of(values)) for name, values in sections.items())
    return resp.verbatim(body, session.protocol)


def _sections(context: Context) -> dict[str, Mapping[str, int | str]]:
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
