"""A running node: its parts are started, wired and stopped in order.

    engine (opens, recovers)  ->  server (listens)  ->  anti-entropy (exchanges with peers)
        ->  replication (connects when it can)  ->  scrubber (reads everything, now and then)
        ->  web server (the page, metrics and health; if it has a port)  ->  the ready line
    web server  ->  scrubber  ->  anti-entropy (cuts its exchanges)  ->  server (answers the requests in hand, closes)
        ->  replication (publishes the rest of the outbox, for a while)  ->  engine (commits, syncs, closes)

The node announces itself once, when it can serve the first client, also to its supervisor, which from then on gets a
sign of life as long as the node works (`service`). A signal to stop, or SHUTDOWN, stops it within ten seconds, with
exit status 0. SIGHUP has the settings read again (`reload`); other signals do nothing (`signals`). A failed disk ends
the process at once, because what the kernel has in memory can no longer be trusted. None of these loses an acknowledged
write: replies leave after their commit. If a part cannot start, those before it are stopped again.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from merklekv import __version__, core
from merklekv.address import format_address, is_address, is_unspecified, parse_address
from merklekv.available_memory import available_memory
from merklekv.config import Loaded
from merklekv.engine.clock_watch import ClockWatch
from merklekv.engine.engine import Engine
from merklekv.engine.options import MIN_MEMTABLE_SIZE
from merklekv.errors import MerkleKVError
from merklekv.exit_codes import EXIT_OK, EXIT_SLOW_STOP, EXIT_STORAGE
from merklekv.logging_setup import dropped_lines, flush_log, name_node, set_level, start_logging
from merklekv.malloc import give_memory_back
from merklekv.metrics import NodeMetrics
from merklekv.net.client import REPLY_BYTES_MAX, REPLY_ROOM_BYTES, Client
from merklekv.net.commands import records
from merklekv.net.limits import FILES_OVER_HTTP, VALUES_MIN, Limits
from merklekv.net.pubsub import Message
from merklekv.net.registry import Long
from merklekv.net.server import Server
from merklekv.net.session import Services
from merklekv.node_id import stored_node_id
from merklekv.output import counted
from merklekv.reload import Change, Reload
from merklekv.replication.cluster.members import node_of
from merklekv.replication.cluster.storage import METADATA_MEMBERS, load_members
from merklekv.replication.scrubber import Scrubber
from merklekv.replication.sync.anti_entropy import EXCHANGE_TIMEOUT_S, AntiEntropy
from merklekv.service import LOOKS, Supervisor, Watchdog
from merklekv.settings import Settings
from merklekv.shortage import is_shortage, reason_of, shortage_of
from merklekv.signals import OTHER_SIGNALS, STOP_SIGNALS, StopRequests, go_on, on_signals
from merklekv.worker_thread import WorkerThread

if TYPE_CHECKING:
    from merklekv.replication.stream.replicator import Replicator
    from merklekv.web.server import WebServer

STOP_DEADLINE_S = 8.5  # so that, with what the log takes at the end, a stop ends within ten seconds
FETCH_TIMEOUT_S = 10.0
SWITCH_INTERVAL_S = 0.0005
SERVER_STOP_S = 5.0  # of those, for clients to take their last replies
PUBLISH_REST_S = 2.5  # and for the broker to take what is left in the outbox
SHOWN_PEERS = 5
# Of the memory that a process may have, in a container or on a small machine: room for what clients hold and one copy
# of it, for five memtables as objects, and for the checkpoint process.
MEMORY_SHARE = 5
MEMTABLE_SHARE = 32
INBOX_SHARE = 8  # messages of other nodes wait in an eighth of the memory of all clients
LOOK_S = 1.0  # between two looks at the wall clock and at the workers, at most

log = logging.getLogger("merklekv.node")


class NodeTransport(Client):
    """Sends messages of an exchange to another node's port."""

    def ask(self, message: bytes) -> bytes:
        """Its answer."""
        return records.ask(self, message)


def fetch_record(address: str, key: bytes, reply_bytes: int = REPLY_BYTES_MAX) -> bytes | None:
    """The record of a key as another node has it. Raises MerkleKVError when that cannot be asked."""
    with Client(*parse_address(address), FETCH_TIMEOUT_S, reply_bytes) as client:
        return records.fetch(client, key)


class StreamSurroundings:
    """The node around the stream, see `StreamContext`: the members, and anti-entropy, which repairs gaps."""

    def __init__(self, anti_entropy: AntiEntropy) -> None:
        membership = anti_entropy.membership
        self.is_removed = membership.is_removed
        self.applied_through = membership.applied_through
        self.late = membership.late
        self.on_events_from = membership.on_events_from
        self.on_status = anti_entropy.on_status
        self.on_gap = anti_entropy.wake
        self.on_storage_failed = end_at_once


class NodeServices(Services):
    """What commands use of the node beyond its data."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def node_id(self) -> str:
        return self._node.node_id

    def shutdown(self) -> None:
        self._node.stop_requests.shut_down()

    def replicate(self, action: str) -> str:
        replicator = self._node.replicator
        if action == "enable":
            self._node.replicate()
        elif action == "status":
            words = self._node.anti_entropy.words()
            parts = [f"{name}={value}" for name, value in words.items()]
            state = replicator.status(words) if replicator is not None else " ".join(["disabled", *parts])
            problem = self._node.clock_problem()
            return f"REPLICATION {state}" + (f" clock_problem={problem}" if problem else "")
        elif replicator is not None:
            replicator.enable(False)
        return "OK"

    def sync(self, host: str, port: int, full: bool, verify: bool) -> None:
        self._node.anti_entropy.sync(host, port, full, verify)

    def exchange(self, message: bytes) -> Long:
        return self._node.anti_entropy.answer(message)

    def members(self) -> Sequence[Mapping[str, int | str]]:
        return self._node.anti_entropy.membership.rows(self._node.clock_problem())

    def remove_member(self, node: str, store_id: str) -> None:
        self._node.anti_entropy.remove(node, store_id)

    def metrics(self) -> Sequence[object]:
        node = self._node
        replication = node.replicator.metrics() if node.replicator else ()
        threads = {worker.name: worker.status for worker in node.workers}
        problems = node.not_ready()
        own = NodeMetrics(
            node_id=node.node_id,
            ready=int(not problems),
            not_ready=problems,
            clock_problem=node.clock_problem(),
            log_lines_dropped=dropped_lines(),
            thread_status=threads,
        )
        return [own, *replication, node.anti_entropy.metrics(), node.scrubber.metrics()]


class Node:
    """The parts of one node, and its `stop_requests`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.stop_requests = StopRequests()
        self.node_id = ""
        self.address = ("", 0)
        self.replicator: Replicator | None = None
        self.web: WebServer | None = None

    def start(self) -> None:
        """Open the data and listen. Raises the errors of the engine and of the server."""
        with ExitStack() as parts:
            settings = self._settings = fit(self._settings, available_memory())
            self.engine = Engine(
                settings.storage_path,
                durability=settings.durability,
                memtable_size=settings.memtable_size,
                max_value_size=settings.max_value_size,
                max_clock_drift_s=settings.max_clock_drift_seconds,
                retain_max_bytes=settings.replication.outbox_max_bytes,
                retain_log_bytes=settings.retain_log_bytes,
                retain_log_seconds=settings.retain_log_seconds,
            )
            parts.callback(self.engine.close)
            reply_bytes = settings.max_value_size + REPLY_ROOM_BYTES  # of other nodes: no longer one is taken
            self.engine.directory.warn_of_readers()
            self.node_id = settings.replication.client_id or stored_node_id(
                settings.storage_path, node_of(self.engine.metadata.get(METADATA_MEMBERS, b""))
            )
            joins = settings.replication.enabled or bool(settings.anti_entropy.peer_list)
            name_node(self.node_id)
            self.members = load_members(self.engine, self.node_id, joins)
            self.clock_watch = ClockWatch(self.engine.clock, self.node_id, settings.storage_path)
            self.anti_entropy = AntiEntropy(
                self.engine,
                self.members,
                settings.replication.topic_prefix,
                partial(NodeTransport, timeout_s=EXCHANGE_TIMEOUT_S, reply_bytes=reply_bytes),
                end_at_once,
                interval_s=settings.anti_entropy.interval_seconds,
                share_percent=settings.anti_entropy.share_percent,
                regular=settings.anti_entropy.enabled,
                addresses=settings.anti_entropy.peer_list,
            )
            self.scrubber = Scrubber(
                self.engine,
                self.anti_entropy.addresses,
                partial(fetch_record, reply_bytes=reply_bytes),
                end_at_once,
                interval_s=settings.scrub.interval_seconds,
                share_percent=settings.scrub.share_percent,
            )
            self.server = Server(
                self.engine,
                host=settings.host,
                port=settings.port,
                threads=settings.threads,
                limits=limits_of(settings),
                services=NodeServices(self),
                allow_remote=settings.allow_remote,
                text_protocol=settings.text_protocol,
                other_files=FILES_OVER_HTTP if settings.http_port else 0,
                fatal=end_at_once,
            )
            self.server.context.notifications.set(settings.notify_keyspace_events)
            if settings.replication.enabled:
                self.engine.retention.subscribe()  # so that what clients write before the replicator runs is published
            parts.callback(self._stop_replication)  # after the server, whose clients may have switched it on
            self.address = self.server.start()
            parts.callback(self.server.stop, SERVER_STOP_S)
            self.anti_entropy.start(self.advertised_address)
            parts.callback(self.anti_entropy.stop)
            if settings.replication.enabled:
                self.replicate()
            self.scrubber.start()
            parts.callback(self.scrubber.stop)
            parts.callback(self.engine.end_waits)
            if settings.http_port:
                self.web = self._start_web()
                parts.callback(self.web.stop)
            self._parts = parts.pop_all()

    def stop(self) -> None:
        """Stop the parts, in the reverse order of their start."""
        self._parts.close()

    def abandon(self) -> None:
        """Before the process ends in the middle of `stop`."""
        self.engine.abandon()

    @property
    def workers(self) -> list[WorkerThread]:
        """The background threads; docs/design.md has a table of them."""
        replication = self.replicator.workers if self.replicator is not None else []
        web = [self.web.worker] if self.web is not None else []
        return [*self.engine.workers, *replication, self.anti_entropy.worker, self.scrubber.worker, *web]

    def _start_web(self) -> WebServer:
        """Serve what there is over HTTP. Only then are its modules imported."""
        from merklekv.web import health, metrics
        from merklekv.web.keys import KeyBrowser
        from merklekv.web.page import page_routes
        from merklekv.web.server import Route, WebServer
        from merklekv.web.view import ClusterView

        settings = self._settings
        own = format_address(*self.address)  # listening everywhere, it is reached at that address, too
        page = page_routes(ClusterView(own, here=own), KeyBrowser(own))
        web = WebServer(
            {
                "/metrics": Route(metrics.handler(self.server.metrics), for_monitors=True),
                "/livez": Route(health.alive(self.server.answers), for_monitors=True),
                "/readyz": Route(health.ready(self.not_ready), for_monitors=True),
                **page,
            },
            settings.http_host,
            settings.http_port,
            allow_remote=settings.allow_remote,
        )
        web.start()
        return web

    def replicate(self) -> None:
        """Switch replication on. Only then is paho imported."""
        if self.replicator is None:
            from merklekv.replication.stream.mqtt import BrokerSettings
            from merklekv.replication.stream.replicator import Replicator

            given, memory = self._settings.replication, self.server.context.memory
            broker = BrokerSettings(
                host=given.mqtt_broker,
                port=given.mqtt_port,
                topic_prefix=given.topic_prefix,
                node_id=self.node_id,
                version=given.mqtt_version,
                username=given.username or (self.node_id if given.client_password else ""),
                password=given.client_password,
                tls=given.tls or bool(given.tls_ca_file or given.tls_cert_file),
                tls_ca_file=given.tls_ca_file,
                tls_cert_file=given.tls_cert_file,
                tls_key_file=given.tls_key_file,
                session_expiry_s=given.session_expiry_seconds,
            )
            replicator = Replicator(
                self.engine,
                broker,
                StreamSurroundings(self.anti_entropy),
                address=self.advertised_address,
                heartbeat_s=given.heartbeat_seconds,
                store_id=self.members.identity.store_id.hex(),
                inbox_bytes=memory.limit // INBOX_SHARE,
            )
            memory.others.append(lambda: replicator.waiting_bytes)
            pubsub = self.server.context.pubsub
            replicator.pubsub.deliver = lambda channel, payload: pubsub.deliver(Message(channel, payload))
            replicator.start()
            self.replicator = replicator
            pubsub.join(replicator.pubsub)
        self.replicator.enable(True)

    def _stop_replication(self) -> None:
        if self.replicator is not None:
            self.replicator.stop(PUBLISH_REST_S)

    def renew_certificates(self) -> None:
        """Have the connection to the broker made anew, with the files for TLS as they are now."""
        if self.replicator is not None:
            self.replicator.reconnect()

    def changes(self) -> Mapping[str, Change]:
        """How the settings that can change while the node runs take effect, by key."""
        context = self.server.context

        def limit_connections(settings: Settings) -> None:
            allowed = context.room_for(settings.limits.max_connections)
            context.limits = replace(context.limits, connections=allowed)

        def limit_idling(settings: Settings) -> None:
            context.limits = replace(context.limits, idle_timeout_s=limits_of(settings).idle_timeout_s)

        def in_worker(change: Change) -> Change:  # where CONFIG SET makes it
            return lambda settings: self.server.workers[0].call_soon(partial(change, settings))

        return {
            "log_level": lambda settings: set_level(settings.log_level),
            "notify_keyspace_events": in_worker(
                lambda settings: context.notifications.set(settings.notify_keyspace_events)
            ),
            "limits.max_connections": in_worker(limit_connections),
            "limits.idle_timeout_seconds": in_worker(limit_idling),
        }

    def clock_problem(self) -> str:
        """What is wrong with the clock of this machine, or with that of a peer; empty if nothing is known to be."""
        drift_s = self.engine.time_gate.max_drift_ns / 10**9
        of_peer = self.members.peer_clocks.problem(self.node_id, drift_s)
        of_peer += f"; {self.clock_watch.last_jump}" if of_peer and self.clock_watch.last_jump else ""
        # First what several clocks show: it says which one to set.  The node's own data cannot tell.
        return "; ".join(filter(None, (of_peer, self.clock_watch.problem().text)))

    def not_ready(self) -> dict[str, str]:
        """Why clients should rather go to another node: sentences by reason; empty if there is none.

            broker    replication is on, and this node is not connected to the broker
            sync      it has not exchanged with any peer since its start, or since it may have missed events
            disk      it refuses writes

        A peer that is away, a short loss of the broker, and a difference that replication will settle are no reasons.
        """
        replicator = self.replicator
        peers = self.anti_entropy.awaited(replicator.missed_at if replicator is not None else 0.0)
        problems = {
            "broker": replicator.outage() if replicator is not None else "",
            "sync": f"no exchange yet with {' or '.join(sorted(peers)[:SHOWN_PEERS])}" if peers else "",
            "disk": self.engine.refusal(),
        }
        return {reason: problem for reason, problem in problems.items() if problem}

    def look_at_clock(self) -> None:
        """Call it each second."""
        if self.clock_watch.look():
            self.members.peer_clocks.clear()

    @property
    def advertised_address(self) -> str:
        """Where other nodes reach this one: the setting, or where it listens, by the host's name if that is everywhere.

        Empty if that name is no valid address.
        """
        host, port = self.address
        listening = f"{socket.gethostname()}:{port}" if is_unspecified(host) else format_address(host, port)
        return self._settings.replication.advertise_address or (listening if is_address(listening) else "")

    def ready_line(self) -> str:
        """What a start prints; without the number of keys if it is still being counted."""
        settings = self._settings
        where = f"data in {settings.storage_path}, durability {settings.durability}"
        page = f", page on http://{format_address(settings.http_host, settings.http_port)}/" if self.web else ""
        return f"merklekv {__version__} ready on {format_address(*self.address)}, {where}{self._keys()}{page}"

    def log_ready(self) -> None:
        """Log what the ready line says, and who is ready."""
        host, port = self.address
        fields = {
            "address": format_address(host, port),
            "host": host,
            "port": port,
            "data_dir": str(self._settings.storage_path),
            "durability": self._settings.durability,
            "pid": os.getpid(),
            "core": core.DESCRIPTION,
            "node_id": self.node_id,
            **({"keys": self.engine.key_count} if self.engine.root_ready else {}),
        }
        log.info("ready on %(address)s: node %(node_id)s, process %(pid)d, %(core)s", fields)

    def status_line(self) -> str:
        """For the supervisor, which shows it."""
        broker = f", broker {self.replicator.connection}" if self.replicator is not None else ""
        return f"node {self.node_id} serves on {format_address(*self.address)}{self._keys()}{broker}"

    def _keys(self) -> str:
        return f", {counted(self.engine.key_count, 'key')}" if self.engine.root_ready else ""


def serve(read: Callable[[], Loaded], announce: Callable[[str], None]) -> int:
    """Run a node until it is told to stop; the exit status.

    `read` reads the settings: now, and again for each reload. Raises what reading them and starting the node raises.
    """
    loaded = read()
    supervisor = Supervisor(os.environ)
    stopping, stopped = threading.Event(), threading.Event()
    try:
        node = Node(loaded.settings)
        _start(node, loaded.settings, lambda: limit_stop(stopping, stopped, node.abandon))
    except MerkleKVError:
        raise
    except Exception as error:
        if is_shortage(error):
            raise shortage_of(error, "the node cannot start") from error
        raise
    finally:
        flush_log()  # before the line that says why it cannot start, or that it has
    gc.collect()
    gc.freeze()  # a full collection need not look at what exists now, which saves clients 5 ms each time
    on_signals(STOP_SIGNALS, go_on)  # `stop_requests` receives it
    node.log_ready()
    announce(node.ready_line())
    supervisor.ready(node.status_line())
    reason = _wait_for_stop(node, supervisor, Reload(loaded, read, node.changes(), node.renew_certificates))
    stopping.set()
    supervisor.stopping()
    log.info("stopping: %(reason)s", {"reason": reason})
    node.stop()
    stopped.set()
    log.info("stopped")
    on_signals(STOP_SIGNALS | OTHER_SIGNALS, signal.SIG_IGN)  # at its end Python would restore handlers that kill
    return EXIT_OK


def _start(node: Node, settings: Settings, limit_its_stop: Callable[[], None]) -> None:
    start_logging(settings.log_level, settings.log_format)
    node.stop_requests.receive_signals()  # first: so none is missed while the handler changes
    on_signals(OTHER_SIGNALS, go_on)
    on_signals(STOP_SIGNALS, _leave_while_starting)
    # A thread that returns from the kernel waits this long for the interpreter while another one computes. With 5 ms,
    # Python's default, clients would wait so long for each sync and send while events of other nodes are merged.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    give_memory_back()
    # A thread from the start on: a stop may find none left.
    threading.Thread(target=limit_its_stop, name="stop-deadline", daemon=True).start()
    node.start()


def _wait_for_stop(node: Node, supervisor: Supervisor, reload: Reload) -> str:
    """Serve until the node is to stop, and return why."""
    watchdog = Watchdog(supervisor, node.server.look_at_workers, lambda: node.engine.sync_late_s)

    def tell_and_reload() -> None:
        supervisor.reloading()
        reload()
        supervisor.ready(node.status_line())

    def look() -> None:
        node.look_at_clock()
        watchdog.look(node.status_line)

    return node.stop_requests.wait(tell_and_reload, look, min(LOOK_S, supervisor.watchdog_s / LOOKS or LOOK_S))


def _leave_while_starting(number: int, frame: FrameType | None) -> NoReturn:
    # No client was served yet and recovery can be cut anywhere, so there is nothing to wait for.
    _leave(EXIT_OK)


def limit_stop(stopping: threading.Event, stopped: threading.Event, abandon: Callable[[], None]) -> None:
    """End the process if a stop that has begun takes over STOP_DEADLINE_S; `abandon` is called before."""
    stopping.wait()
    if not stopped.wait(STOP_DEADLINE_S):
        log.error("stopping took over %.1f s, leaving now; acknowledged writes are safe", STOP_DEADLINE_S)
        abandon()
        _leave(EXIT_SLOW_STOP)


def end_at_once(error: BaseException) -> NoReturn:
    """The disk failed: log it and end, from any thread, before anything can be answered."""
    reason = {"reason": reason_of(error)}
    log.critical("%(reason)s; stopping, because what was written since is not certain", reason)
    _leave(EXIT_STORAGE)


def _leave(status: int) -> NoReturn:
    flush_log()
    os._exit(status)


def fit(settings: Settings, available: int) -> Settings:
    """The same, but with no more than this node can use if it may have so many bytes of memory. Logs a warning."""
    memory = min(settings.limits.memory, max(available // MEMORY_SHARE, VALUES_MIN * settings.max_value_size))
    memtable = min(settings.memtable_size, max(available // MEMTABLE_SHARE, MIN_MEMTABLE_SIZE))
    if memory < settings.limits.memory or memtable < settings.memtable_size:
        fields = {"bytes": available, "memory": memory, "memtable": memtable}
        text = "this process may use %(bytes)d bytes of memory: limits.memory is %(memory)d, memtable_size %(memtable)d"
        log.warning(text, fields)
    return replace(settings, memtable_size=memtable, limits=replace(settings.limits, memory=memory))


def limits_of(settings: Settings) -> Limits:
    """The server's limits from the settings; all others are the protocol's own."""
    return Limits(
        connections=settings.limits.max_connections,
        request_bytes=settings.limits.max_request_bytes,
        output_hard_bytes=settings.limits.max_output_bytes,
        memory_bytes=settings.limits.memory,
        idle_timeout_s=settings.limits.idle_timeout_seconds,
    )
