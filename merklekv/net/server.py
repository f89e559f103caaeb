"""The server: owns the port, accepts connections, and hands them to its workers.

    server = Server(engine, host="127.0.0.1", port=7379)
    host, port = server.start()
    ...
    server.stop()

With one worker, the default, the whole server is a single thread. More workers share the connections; they help only
where a request spends its time outside the interpreter.

The server refuses connections beyond the connection limit and, unless `allow_remote`, from other machines, because
there is no authentication. A client beyond the limit is told at once, in Redis's words; one from another machine in its
own protocol. The limit is the configured one, or what the limit on open files leaves beside the node's own needs.
"""

from __future__ import annotations

import itertools
import logging
import resource
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from threading import Event

import merklekv.net.commands  # noqa: F401  declares them
from merklekv.address import format_address
from merklekv.engine.engine import Engine
from merklekv.errors import InvalidArgument
from merklekv.net.commands.status import parts
from merklekv.net.connection import Connection
from merklekv.net.limits import (
    ACCEPT_BATCH,
    FILES_PER_WORKER,
    FILES_RESERVED,
    LINGER_S,
    REFUSED_WAITING_MAX,
    Limits,
)
from merklekv.net.listening import PROTECTED, is_loopback, listen
from merklekv.net.script.interpreter import Interpreter
from merklekv.net.session import Context, Services
from merklekv.net.worker import Worker
from merklekv.sockets import set_up

log = logging.getLogger(__name__)

STOP_DEADLINE_S = 10.0
TOO_MANY = "max number of clients reached"


def _log_fatal(problem: Exception) -> None:
    log.critical("the server stops serving: %s", problem)


class Server:
    """Serves one engine on one address. `workers` serve the clients, whose sessions share `context`."""

    def __init__(
        self,
        engine: Engine,
        *,
        host: str = "127.0.0.1",
        port: int = 7379,
        threads: int = 1,
        limits: Limits | None = None,
        services: Services | None = None,
        allow_remote: bool = False,
        text_protocol: bool = True,
        other_files: int = 0,
        fatal: Callable[[Exception], None] = _log_fatal,
    ) -> None:
        limits = (limits or Limits()).within(engine.max_value_size)
        self._host = host
        self._port = port
        self._allow_remote = allow_remote
        self.context = Context(engine, services or Services(), limits, text_protocol)
        self.context.connections = self._connections
        self.context.scripts = Interpreter(self.context)
        self.context.host, self.context.allow_remote = host, allow_remote
        self._threads = threads
        self._other_files = other_files  # open beside those of the engine and of replication
        self._fatal = fatal
        self.workers: list[Worker] = []
        self._identities = itertools.count(1)
        self._listeners: list[socket.socket] = []

    def start(self) -> tuple[str, int]:
        """Binds and serves. Returns the first address bound, with the port that the system chose for port 0.

        It listens on every address of this machine that a name has: `localhost` is 127.0.0.1 and ::1.
        """
        context, limits = self.context, self.context.limits
        own_files = FILES_RESERVED + FILES_PER_WORKER * (self._threads - 1) + self._other_files
        context.room_for = lambda connections: _room_for(connections, own_files)
        context.limits = replace(limits, connections=context.room_for(limits.connections))
        with ExitStack() as on_failure:
            on_failure.callback(self.stop)
            self._listeners = listen(self._host, self._port)
            host, port = self._listeners[0].getsockname()[:2]
            if not self._allow_remote and not is_loopback(host):
                log.warning(
                    "listening on %(host)s, but other machines are refused without --allow-remote", {"host": host}
                )
            self.context.port = port
            for number in range(self._threads):
                self.workers.append(Worker(self.context, number, self._fatal))
            self.context.notifications.serve(self.workers[0])
            self.workers[0].listen(self._listeners, self._accept)
            for worker in reversed(self.workers):  # the one that accepts is the last
                worker.start()
            on_failure.pop_all()
        return host, port

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> None:
        """Accepts nothing more, answers the requests received, closes. Returns then, or by the deadline."""
        deadline = time.monotonic() + deadline_s
        for worker in self.workers:
            worker.stop(deadline)
        for worker in self.workers:
            if worker.is_alive():
                worker.join(max(0.0, deadline - time.monotonic()) + 1.0)
            if not worker.is_alive():
                worker.close()
        self.workers = []
        for listener in self._listeners:
            listener.close()

    def metrics(self) -> list[object]:
        """Everything that the node reports, as parts of `merklekv.metrics`."""
        return parts(self.context)

    def look_at_workers(self) -> list[Event]:
        """For each worker an event, which is set as soon as it gets on with its work. As often as one likes."""
        return [worker.look() for worker in self.workers]

    def answers(self, timeout_s: float) -> bool:
        """Whether every worker gets on with its work: runs a call within this time."""
        deadline = time.monotonic() + timeout_s
        return all(answer.wait(deadline - time.monotonic()) for answer in self.look_at_workers())

    def _connections(self) -> list[Connection]:
        return [one for worker in self.workers for one in list(worker.connections.values())]

    def _accept(self, listener: socket.socket) -> None:
        """Accepts the clients that wait at a listener. Runs in the first worker's thread."""
        for _ in range(ACCEPT_BATCH):
            try:
                sock, peer = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            try:
                self._admit(sock, peer)
            except OSError as problem:
                fields = {"client": format_address(*peer[:2]), "reason": str(problem)}
                text = "%(client)s was gone before it was served: %(reason)s"
                self.context.throttle.warn("gone", text, level=logging.INFO, fields=fields)
                sock.close()
            except BaseException:
                sock.close()
                raise

    def _admit(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        traffic = self.context.traffic
        present = sum(len(worker.connections) for worker in self.workers)
        refusal = self._refusal(peer[0], present)
        sock.setblocking(False)
        set_up(sock)
        connection = Connection(
            self.context,
            next(self._identities),
            sock,
            format_address(*peer[:2]),
            format_address(*sock.getsockname()[:2]),
            refusal,
        )
        if not refusal:
            traffic.connections += 1
        else:
            traffic.refused += 1
            connection.deadline = connection.opened + LINGER_S
            crowded = present >= self.context.limits.connections + REFUSED_WAITING_MAX
            if refusal == TOO_MANY or crowded:
                connection.turn_away()
            if crowded:
                sock.close()
                return
        min(self.workers, key=lambda worker: len(worker.connections)).adopt(connection)

    def _refusal(self, host: str, present: int) -> str:
        """Why a client from this host is refused, or nothing."""
        if not self._allow_remote and not is_loopback(host):
            return PROTECTED
        limit = self.context.limits.connections
        if present < limit:
            return ""
        refused = sum(len(worker.refused) for worker in self.workers)  # they count for no limit
        return TOO_MANY if present - refused >= limit else ""


def _room_for(connections: int, own_files: int) -> int:
    """How many of these connections the limit on open files leaves room for; raises that limit as far as allowed."""
    own_files += REFUSED_WAITING_MAX
    wanted = connections + own_files
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    room = connections - (wanted - allowed)
    if room < min(connections, 1):
        raise InvalidArgument(
            f"the system allows this process {allowed} open files, which leaves none for clients: the node itself may "
            f"need {own_files}; raise the limit (ulimit -n, LimitNOFILE)"
        )
    if room < connections:
        log.warning("the system allows %d open files: the limit on clients is %d, not %d", allowed, room, connections)
    return room
