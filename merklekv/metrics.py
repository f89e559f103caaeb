"""Every metric that a node reports: its name, kind, unit, label and meaning.

Each is declared once, as a field of a dataclass here. The part that measures it returns the dataclass filled in, or
counts in it. STATS, INFO, /metrics and the table in docs/protocol.md are renderings of these declarations. STATS and
INFO leave histograms out: they are too long.

Counters count since the start of the process.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from heapq import nlargest
from typing import Annotated, Any, Final, Literal, TypeVar, cast

from merklekv.histogram import Histogram

T = TypeVar("T")

Kind = Literal["counter", "gauge", "info", "histogram"]  # an info is text
LABELS_MAX: Final = 100  # nodes that are shown: thousands would make STATS megabytes long
Value = int | str
Labelled = Mapping[str, Value]  # values of one metric by the value of its label


@dataclass(frozen=True, slots=True)
class Metric:
    """What a field says about itself.

    `unit` is the end of the name, or empty for a plain count. `label` names what tells the values of one metric apart.
    `pattern` is the name of a labelled metric in STATS where clients of older servers expect another one. `for_people`:
    another metric tells programs the same.
    """

    kind: Kind
    meaning: str
    unit: str = ""
    label: str = ""
    pattern: str = ""
    for_people: bool = False

    def shown_name(self, name: str, label: str) -> str:
        """The name in STATS; of a labelled metric `name{label="value"}`, with `\\` and `"` of the value escaped."""
        if not self.label:
            return name
        if self.pattern:
            return self.pattern.format(label)
        escaped = label.replace("\\", r"\\").replace('"', r"\"")
        return f'{name}{{{self.label}="{escaped}"}}'


counter = partial(Metric, "counter")
gauge = partial(Metric, "gauge")
info = partial(Metric, "info")
histogram = partial(Metric, "histogram", unit="seconds")


@dataclass(frozen=True, slots=True)
class ClientMetrics:
    """The line protocol's STATS, with the names that existing clients know."""

    uptime_seconds: Annotated[int, gauge("since the start", "seconds")]
    uptime: Annotated[str, info("the same for people: `0d 0h 1m 2s`", for_people=True)]
    total_connections: Annotated[int, counter("connections accepted")]
    active_connections: Annotated[int, gauge("connections open now")]
    total_commands: Annotated[int, counter("commands run, also those that failed")]
    commands_by_group: Annotated[Labelled, counter("commands run, by group", label="group", pattern="{}_commands")]
    used_memory_kb: Annotated[int, gauge("memory of this process, without mapped files", "kb")]


@dataclass(frozen=True, slots=True)
class ServerMetrics:
    """The server and the process."""

    version: Annotated[str, info("release of the software")]
    server_time_unix: Annotated[int, gauge("wall clock, in seconds since the epoch", "unix")]
    connections_refused: Annotated[int, counter("connections refused: too many, or from beyond this machine")]
    protocol_errors: Annotated[int, counter("connections closed because a request could not be parsed")]
    output_limit_closed: Annotated[int, counter("connections closed because the client did not read its replies")]
    memory_limit_closed: Annotated[int, counter("connections closed because all clients together held too much memory")]
    client_memory_bytes: Annotated[int, gauge("what requests, unread replies and waiting messages took a second ago")]
    client_memory_limit_bytes: Annotated[int, gauge("what they may take")]
    idle_closed: Annotated[int, counter("connections closed because the client was silent")]
    foreign_protocol_closed: Annotated[int, counter("connections closed because the client spoke HTTP or TLS")]
    pubsub_channels: Annotated[int, gauge("channels that clients have subscribed to by name")]
    pubsub_patterns: Annotated[int, gauge("patterns that clients have subscribed to")]
    pubsub_dropped: Annotated[int, counter("messages dropped because too many waited for the thread that sends them")]
    process_start_unix: Annotated[int, gauge("start of the process, in seconds since the epoch", "unix")]
    process_cpu_ms: Annotated[int, counter("processor time of this process, without the checkpoint process", "ms")]
    process_threads: Annotated[int, gauge("threads")]
    process_open_fds: Annotated[int, gauge("open files and sockets")]
    process_max_fds: Annotated[int, gauge("how many of these the system allows")]


@dataclass(frozen=True, slots=True)
class LatencyMetrics:
    """How long requests take."""

    command_seconds: Annotated[
        Mapping[str, Histogram],
        histogram("what a command takes by itself, without its turn and the disk", label="command"),
    ]
    request_seconds: Annotated[
        Mapping[str, Histogram],
        histogram(
            "from reading a request to sending its reply, the commit included; of one that had to wait, the last part",
            label="group",
        ),
    ]
    commit_seconds: Annotated[Histogram, histogram("what the replies of a moment wait for the log: its write and sync")]


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """The data of this node."""

    durability: Annotated[str, info("the setting: `always`, `everysec` or `never`")]
    db_keys: Annotated[int | None, gauge("keys that exist; left out while a start counts them")]
    db_keys_with_expiry: Annotated[int | None, gauge("about how many of them have an expiry; likewise")]
    db_expired: Annotated[int | None, gauge("keys that have expired and whose record is kept; likewise")]
    expired_keys: Annotated[int, counter("keys that have expired")]
    db_tombstones: Annotated[int | None, gauge("deleted keys whose tombstone is kept; likewise")]
    memtable_bytes: Annotated[int, gauge("size of the active memtable", "bytes")]
    memtable_keys: Annotated[int, gauge("records in it")]
    frozen_memtables: Annotated[int, gauge("full memtables that wait for their checkpoint")]
    checkpoint_percent: Annotated[int, gauge("progress of the running checkpoint; 100: none is running", "percent")]
    checkpoints: Annotated[int, counter("checkpoints that completed")]
    checkpoint_ms: Annotated[int, counter("time that they took", "ms")]
    checkpoint_bytes: Annotated[int, counter("log that they put into the base", "bytes")]
    checkpoint_last_ms: Annotated[int, gauge("duration of the last one", "ms")]
    checkpoint_age_s: Annotated[int | None, gauge("time since its end; left out before the first", "s")]
    writes_stalled: Annotated[int, gauge("1 while writes wait for a checkpoint, or are refused")]
    writes_refused: Annotated[int, gauge("1 while writes are refused: the disk is full, or memory is short")]
    disk_bytes: Annotated[int, gauge("size of the file system of the data directory", "bytes")]
    disk_free_bytes: Annotated[int, gauge("what is free of it for this user", "bytes")]
    log_bytes: Annotated[int, gauge("size of the log on disk", "bytes")]
    log_lsn: Annotated[int, gauge("LSN of the end of the log")]
    checkpoint_lsn: Annotated[int, gauge("LSN up to which the base holds the log")]
    log_next_sequence: Annotated[int, gauge("sequence number of the next local event")]
    base_bytes: Annotated[int, gauge("size of the base on disk", "bytes")]
    base_free_bytes: Annotated[int, gauge("free pages in it, for the next records", "bytes")]
    compactions: Annotated[int, counter("times that the base was written anew, without free pages")]
    clock_ns: Annotated[int, gauge("newest timestamp that this node has written or applied", "ns")]
    clock_ahead_s: Annotated[int, gauge("how far that is ahead of the wall clock", "s")]


@dataclass(frozen=True, slots=True)
class NodeMetrics:
    """The node as a whole."""

    node_id: Annotated[str, info("id of this node")]
    ready: Annotated[int, gauge("1 if a load balancer should send clients here")]
    not_ready: Annotated[Labelled, info("why not: `broker`, `sync`, `disk`, and what is wrong", label="reason")]
    clock_problem: Annotated[str, info("what is wrong with a clock, of this node or of a peer, if anything is")]
    log_lines_dropped: Annotated[int, counter("lines that the log could not take in time")]
    thread_status: Annotated[
        Labelled,
        info("a background thread: `idle`, `running`, `waiting: ` and the problem, or `ended`", label="thread"),
    ]


@dataclass(frozen=True, slots=True)
class ReplicationMetrics:
    """Replication over MQTT; reported once it has been switched on."""

    replication_state: Annotated[str, info("`disabled`, `connecting`, `connected`, `disconnected` or `failed`")]
    replication_detail: Annotated[str, info("what is wrong, if anything is")]
    replication_nodes: Annotated[int, gauge("nodes online, this one included")]
    outbox_events: Annotated[int, gauge("local events that the broker has not acknowledged")]
    outbox_bytes: Annotated[int, gauge("log that is retained for them", "bytes")]
    outbox_oldest_ms: Annotated[int, gauge("age of the oldest of them", "ms")]
    outbox_in_flight: Annotated[int, gauge("batches published and not acknowledged yet")]
    inbox_messages: Annotated[int, gauge("received messages that wait to be merged")]
    pubsub_nodes: Annotated[int, gauge("other nodes online whose clients have subscribed to something")]


@dataclass(slots=True)
class ReplicationCounters:
    """What replication over MQTT has counted."""

    replication_gaps: Annotated[
        Counter[str],
        counter("reasons to assume that a node missed events; an exchange looks after each", label="reason"),
    ] = field(default_factory=Counter)
    broker_connects: Annotated[int, counter("connections made to the broker")] = 0
    broker_losses: Annotated[int, counter("connections to the broker lost")] = 0
    broker_sessions_lost: Annotated[int, counter("connections where the broker had no session for this node")] = 0
    broker_subscription_silent: Annotated[int, counter("times that this node's own heartbeat did not return")] = 0
    broker_duplicate_client_ids: Annotated[int, counter("signs of another client with this node's client id")] = 0
    outbox_dropped_overflow: Annotated[int, counter("events dropped at `replication.outbox_max_bytes`")] = 0
    outbox_dropped_too_large: Annotated[int, counter("events dropped because the broker takes no such size")] = 0
    published_events: Annotated[int, counter("events that the broker has acknowledged")] = 0
    published_batches: Annotated[int, counter("messages that held them")] = 0
    published_bytes: Annotated[int, counter("size of these messages", "bytes")] = 0
    publishes_refused: Annotated[Counter[str], counter("messages that the broker refused", label="reason")] = field(
        default_factory=Counter
    )
    inbox_waits: Annotated[int, counter("times that merging had to wait for memory or disk space")] = 0
    received_messages: Annotated[int, counter("messages received, those of this node included")] = 0
    received_own: Annotated[int, counter("messages of this node itself, ignored")] = 0
    received_bytes: Annotated[int, counter("size of the received messages", "bytes")] = 0
    received_foreign: Annotated[int, counter("messages on topics outside of the cluster, ignored")] = 0
    received_events: Annotated[int, counter("events of other nodes received")] = 0
    applied_events: Annotated[int, counter("of these, events that changed something here")] = 0
    superseded_events: Annotated[int, counter("of these, events older than what was here")] = 0
    refused_events: Annotated[Counter[str], counter("messages or events refused", label="reason")] = field(
        default_factory=Counter
    )
    pubsub_sent: Annotated[int, counter("messages of clients sent to other nodes")] = 0
    pubsub_unsent: Annotated[Counter[str], counter("messages of clients not sent to other nodes", label="reason")] = (
        field(default_factory=Counter)
    )
    pubsub_received: Annotated[int, counter("messages of clients received from other nodes")] = 0
    pubsub_refused: Annotated[int, counter("messages refused that should have held some of these")] = 0


@dataclass(frozen=True, slots=True)
class OriginMetrics:
    """The nodes that this node has received events of: the 100 that were silent for longest."""

    origins_not_shown: Annotated[int, gauge("other nodes that it has received events of")]
    origin_last_contact_ms: Annotated[Labelled, gauge("time since the last event of a node", "ms", label="node")]
    origin_lag_ms: Annotated[Labelled, gauge("age of the last event of a node when it was applied", "ms", label="node")]
    origin_received_events: Annotated[Labelled, counter("events received of a node", label="node")]
    origin_gaps: Annotated[Labelled, counter("gaps in the sequence numbers of a node", label="node")]
    origin_missed_events: Annotated[Labelled, counter("events that are missing in these gaps", label="node")]


@dataclass(frozen=True, slots=True)
class ExchangeMetrics:
    """The members of the cluster, and Merkle exchanges with peers.

    A `peer` is a node id, or an address while the node behind it is not known. Offline peers are not listed, and of the
    others the 100 whose last completed exchange is the longest ago.
    """

    members: Annotated[int, gauge("nodes of the cluster, this one included")]
    members_removed: Annotated[int, gauge("nodes removed from the cluster")]
    members_unreadable: Annotated[int, gauge("rows of the stored member table that cannot be read")]
    member_lag_ms: Annotated[
        Labelled,
        gauge("all that a member wrote so long ago is applied here, as exchanges have shown", "ms", label="node"),
    ]
    gc_horizon_ns: Annotated[int, gauge("timestamp up to which tombstones have been collected", "ns")]
    exchange_peers: Annotated[int, gauge("nodes that this node exchanges with")]
    exchange_peers_in_sync: Annotated[int, gauge("of these, nodes that held the same data at the last exchange")]
    exchange_running: Annotated[int, gauge("exchanges begun here that are running")]
    exchange_served: Annotated[int, counter("exchanges begun by other nodes that completed")]
    exchange_rows_refused: Annotated[
        int, counter("timestamps refused because they are too far ahead of the wall clock")
    ]
    refused_records: Annotated[int, gauge("records that this node or a peer refuses; exchanges leave them out")]
    refused_record: Annotated[Labelled, info("why such a record is refused, and by which node", label="key")]
    peers_not_shown: Annotated[int, gauge("other peers that are not offline")]
    peer_address: Annotated[Labelled, info("address, host:port", label="peer")]
    peer_in_sync: Annotated[Labelled, gauge("1 if the peer held the same data at the last exchange", label="peer")]
    peer_last_success_ms: Annotated[Labelled, gauge("time since the last completed exchange", "ms", label="peer")]
    peer_duration_ms: Annotated[Labelled, gauge("duration of that exchange", "ms", label="peer")]
    peer_error: Annotated[Labelled, info("error of the last exchange, if it failed", label="peer")]
    exchange_completed: Annotated[Labelled, counter("exchanges begun here that completed", label="peer")]
    exchange_equal: Annotated[Labelled, counter("of these, exchanges that found no difference", label="peer")]
    exchange_failures: Annotated[Labelled, counter("exchanges begun here that failed", label="peer")]
    exchange_rounds: Annotated[Labelled, counter("requests in them, each with its answer", label="peer")]
    exchange_bytes_sent: Annotated[Labelled, counter("size of the requests", "bytes", label="peer")]
    exchange_bytes_received: Annotated[Labelled, counter("size of the answers", "bytes", label="peer")]
    exchange_keys_sent: Annotated[Labelled, counter("records that the peer applied", label="peer")]
    exchange_keys_received: Annotated[Labelled, counter("records that this node applied", label="peer")]
    exchange_discarded: Annotated[
        Labelled, counter("records dropped on either side because the cluster had deleted them", label="peer")
    ]


@dataclass(frozen=True, slots=True)
class ScrubMetrics:
    """The scrub, which reads all data and repairs damage."""

    scrub_running: Annotated[int, gauge("1 during a pass over all records")]
    scrub_passes: Annotated[int, counter("passes that completed")]
    scrub_records: Annotated[int, counter("records read")]
    scrub_damaged: Annotated[int, counter("damages found; a pass counts again what the last one could not repair")]
    scrub_repaired: Annotated[int, counter("of these, damages repaired")]
    scrub_unrepaired: Annotated[int, gauge("damages that the last pass could not repair")]
    scrub_last_pass_s: Annotated[int, gauge("end of the last pass, in seconds since the epoch; 0: there was none", "s")]


_LINE = re.compile(r'([^:{]+(?:\{\w+="(?:[^"\\]|\\.)*"\})?):(.*)', re.DOTALL)
_LABELLED = re.compile(r'(\w+)\{\w+="((?:[^"\\]|\\.)*)"\}', re.DOTALL)
PARTS = (
    ClientMetrics,
    ServerMetrics,
    LatencyMetrics,
    EngineMetrics,
    NodeMetrics,
    ReplicationMetrics,
    ReplicationCounters,
    OriginMetrics,
    ExchangeMetrics,
    ScrubMetrics,
)


def declared(part: type[Any]) -> Mapping[str, Metric]:
    """The metrics of a part by the name of their field, in the order written above."""
    return {field.name: cast(Any, field.type).__metadata__[0] for field in fields(part)}


def parse(reply: str) -> dict[str, str]:
    """Values by name, of the lines of STATS or INFO; other lines are skipped."""
    return {found[1]: found[2] for line in reply.split("\r\n") if (found := _LINE.fullmatch(line))}


def split_name(shown: str) -> tuple[str, str]:
    """The name of a metric in STATS without its label, and the label: the opposite of `Metric.shown_name`."""
    found = _LABELLED.fullmatch(shown)
    return (found[1], re.sub(r"\\(.)", r"\1", found[2], flags=re.DOTALL)) if found else (shown, "")


def total(values: Mapping[str, object], name: str) -> int:
    """The value of the metric of this name, or the total over its label; 0 when there is none."""
    return sum(int(str(value)) for shown, value in values.items() if name in (shown, shown.partition("{")[0]))


def by_label(values: Mapping[str, T], name: str) -> dict[str, T]:
    """The values of a labelled metric, by label."""
    return {split_name(shown)[1]: value for shown, value in values.items() if shown.startswith(f"{name}{{")}


def shown(nodes: Mapping[str, T], lag: Callable[[T], float]) -> dict[str, T]:
    """The LABELS_MAX of the nodes that lag most, sorted. Another thread may change `nodes`."""
    return dict(sorted(nlargest(LABELS_MAX, dict(nodes).items(), key=lambda item: lag(item[1]))))


def values_of(*parts: Any) -> dict[str, Value]:
    """The values of parts by the name in STATS, in order: one for each metric that is known, or for each label.

    Labels keep their order, but those that count as they come are sorted.  Another thread may add some meanwhile.
    """
    values: dict[str, Value] = {}
    for part in parts:
        for name, metric in declared(type(part)).items():
            value = getattr(part, name)
            if metric.kind == "histogram":
                continue
            if metric.label:
                labels = list(value)
                for label in sorted(labels) if isinstance(value, Counter) else labels:
                    values[metric.shown_name(name, label)] = value[label]
            elif value is not None:
                values[name] = value
    return values
