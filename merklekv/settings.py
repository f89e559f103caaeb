"""Every setting of the server: its default, its type, its meaning.

Each setting is declared once, as a field of a dataclass. `config` reads them from flags, environment and file, and
`merklekv config` and the documentation show them, so a new field is a complete new setting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from merklekv import setting_types as types
from merklekv.address import DEFAULT_HOST, DEFAULT_PORT
from merklekv.setting_types import GiB, KiB, MiB, SettingType

T = TypeVar("T")
Durability = Literal["always", "everysec", "never"]

ENVIRONMENT_PREFIX = "MERKLEKV_"
SECTION_SEPARATOR = "__"
DEFAULT_STORAGE_PATH = Path("data")


@dataclass(frozen=True, slots=True)
class Declaration:
    """The declaration of a setting, in the metadata of its field."""

    type: SettingType[Any]
    meaning: str
    secret: bool = False
    inherits: str = ""  # the key whose value is the default of this one


def setting(default: T, type: SettingType[T], meaning: str, *, secret: bool = False, inherits: str = "") -> T:
    declaration = Declaration(type, meaning, secret, inherits)
    declared: T = field(default=default, metadata={"declaration": declaration})
    return declared


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """The limits for each client and for all together."""

    max_connections: int = setting(10_000, types.integer(1, 1_000_000), "clients connected at once")
    max_request_bytes: int = setting(
        64 * MiB, types.size(1 * MiB, 4 * GiB), "largest RESP request; never less than the largest value needs"
    )
    max_output_bytes: int = setting(
        128 * MiB, types.size(1 * MiB, 64 * GiB), "unread replies kept for one client before it is cut off"
    )
    memory: int = setting(
        256 * MiB,
        types.size(16 * MiB, 1024 * GiB),
        "what requests under way, unread replies and unread messages of other nodes may take together",
    )
    idle_timeout_seconds: int = setting(
        0, types.integer(0, 31_536_000), "disconnect a client after this silence; 0 is never"
    )


@dataclass(frozen=True, slots=True)
class ReplicationSettings:
    """How this node publishes and receives writes over MQTT."""

    enabled: bool = setting(False, types.FLAG, "publish local writes and apply those of other nodes")
    mqtt_broker: str = setting("localhost", types.BROKER_HOST, "host of the MQTT broker")
    mqtt_port: int = setting(1883, types.integer(1, 65_535), "port of the MQTT broker")
    mqtt_version: str = setting("5", types.choice("5", "3.1.1"), "MQTT protocol; 5 reports refused publishes")
    topic_prefix: str = setting("merkle_kv", types.TOPIC, "first levels of every topic; one per cluster")
    client_id: str = setting(
        "", types.NODE_ID, "node id; empty: made at the first start and kept in the data directory"
    )
    username: str = setting("", types.TEXT, "user name at the broker; empty: the node id when there is a password")
    client_password: str = setting("", types.TEXT, "password at the broker", secret=True)
    tls: bool = setting(False, types.FLAG, "speak TLS to the broker; the files below imply it")
    tls_ca_file: str = setting("", types.TEXT, "certificates to trust; empty: the system's")
    tls_cert_file: str = setting("", types.TEXT, "this node's certificate")
    tls_key_file: str = setting("", types.TEXT, "this node's private key")
    session_expiry_seconds: int = setting(
        86_400, types.integer(0, 0xFFFF_FFFE), "how long the broker keeps events for this node while it is offline"
    )
    heartbeat_seconds: int = setting(
        10, types.integer(1, 3600), "time between heartbeats, by which nodes see that the others are online"
    )
    outbox_max_bytes: int = setting(
        1 * GiB,
        types.size(1 * MiB, 1024 * GiB),
        "log retained for the broker while it is away; beyond it, the oldest events are dropped",
    )
    advertise_address: str = setting(
        "",
        types.ADDRESS,
        "where other nodes reach this one, host:port; empty: where it listens, by host name if that is everywhere",
    )
    peer_list: tuple[str, ...] = setting((), types.ADDRESSES, "other nodes, host:port")


@dataclass(frozen=True, slots=True)
class AntiEntropySettings:
    """When this node compares its Merkle tree with those of its peers."""

    enabled: bool = setting(True, types.FLAG, "exchange with peers regularly")
    interval_seconds: int = setting(
        60, types.integer(1, 86_400), "time between exchanges", inherits="sync_interval_seconds"
    )
    peer_list: tuple[str, ...] = setting(
        (), types.ADDRESSES, "nodes to exchange with, host:port", inherits="replication.peer_list"
    )
    share_percent: int = setting(
        50, types.integer(1, 100), "share of the time that regular exchanges may use, SYNC not counted"
    )


@dataclass(frozen=True, slots=True)
class ScrubSettings:
    """When this node checks its records for damage."""

    interval_seconds: int = setting(
        86_400, types.integer(0, 31_536_000), "time from one pass over all records to the next; 0 is never"
    )
    share_percent: int = setting(5, types.integer(1, 100), "share of the time that a pass may use")


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of a node."""

    host: str = setting(DEFAULT_HOST, types.HOST, "address to listen on")
    port: int = setting(DEFAULT_PORT, types.integer(0, 65_535), "port to listen on; 0 takes any free one")
    http_port: int = setting(0, types.integer(0, 65_535), "port of the page, metrics and health over HTTP; 0 is none")
    http_host: str = setting("127.0.0.1", types.HOST, "address of that port")
    storage_path: Path = setting(DEFAULT_STORAGE_PATH, types.PATH, "data directory, made when missing")
    threads: int = setting(1, types.integer(1, 64), "worker threads; one is fastest on CPython with its lock")
    durability: Durability = setting(
        "always",
        types.choice("always", "everysec", "never"),
        "when a write is on disk: before its reply, each second, or when the kernel likes",
    )
    memtable_size: int = setting(
        64 * MiB, types.size(64 * KiB, 4 * GiB), "recent writes in memory before a checkpoint moves them into the base"
    )
    max_value_size: int = setting(16 * MiB, types.size(1, 512 * MiB), "largest value")
    max_clock_drift_seconds: int = setting(
        600, types.integer(1, 315_360_000), "how far ahead of the wall clock a time of another node may be"
    )
    retain_log_bytes: int = setting(
        64 * MiB,
        types.size(0, 1024 * GiB),
        "how much of the log is retained for readers of changes, at least",
    )
    retain_log_seconds: int = setting(
        0, types.integer(0, 31_536_000), "how long the log is retained for readers of changes, at least"
    )
    log_level: str = setting("info", types.choice("debug", "info", "warning", "error"), "lowest level that is logged")
    log_format: str = setting("text", types.choice("text", "json"), "how log lines look")
    allow_remote: bool = setting(False, types.FLAG, "serve clients from beyond this machine, without authentication")
    text_protocol: bool = setting(
        True,
        types.FLAG,
        "serve the line protocol; if not, a line is an inline command of RESP, as in Redis",
    )
    notify_keyspace_events: str = setting(
        "",
        types.EVENT_CLASSES,
        "of which changes subscribers are told, in the letters of Redis's setting of this name; empty: of none",
    )
    sync_interval_seconds: int = setting(
        60, types.integer(1, 86_400), "anti-entropy interval in older files, if [anti_entropy] has none"
    )
    limits: LimitSettings = LimitSettings()
    replication: ReplicationSettings = ReplicationSettings()
    anti_entropy: AntiEntropySettings = AntiEntropySettings()
    scrub: ScrubSettings = ScrubSettings()


def declarations(of: type[Any] = Settings, section: str = "") -> Iterator[tuple[str, Declaration, Any]]:
    """Each setting as (key, declaration, default), keys of a section dotted, in the order written above."""
    for one in fields(of):
        if is_dataclass(one.default):
            yield from declarations(type(one.default), f"{one.name}.")
        else:
            yield f"{section}{one.name}", one.metadata["declaration"], one.default


def environment_name(key: str) -> str:
    return ENVIRONMENT_PREFIX + key.replace(".", SECTION_SEPARATOR).upper()
