"""What a handler sees: the session of the client that asks, and through it the node."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from merklekv.engine.engine import Engine
from merklekv.errors import MerkleKVError
from merklekv.histogram import Histogram
from merklekv.log_throttle import LogThrottle
from merklekv.net.channel import Channel
from merklekv.net.client import REPLY_ROOM_BYTES
from merklekv.net.client_pause import ClientPause
from merklekv.net.errors import RequestError
from merklekv.net.home import Home
from merklekv.net.interception import Interception
from merklekv.net.limits import COMMAND_THREADS_MAX, CURSORS_MAX, Limits
from merklekv.net.memory import Memory
from merklekv.net.monitor import Monitor
from merklekv.net.notifications import Notifications
from merklekv.net.protocol import resp, text
from merklekv.net.pubsub import PubSub, Subscriptions
from merklekv.net.registry import Commands, Long
from merklekv.net.slowlog import Slow
from merklekv.net.transaction import Transaction
from merklekv.net.vitals import Vitals

if TYPE_CHECKING:
    from merklekv.net.connection import Connection
    from merklekv.net.script.interpreter import Interpreter

log = logging.getLogger(__name__)

CURSOR_RANDOM_BITS = 53  # some clients read a cursor as a double
ERROR_CODES_MAX = 128  # that are counted, each by itself
State = tuple[bytes, bool]  # of a key, see `Engine.state_of`

_ALONE = "this is a server by itself, not a node"


class Services:
    """What the rest of the node does for a command. This base is a server by itself, without a node around it.

    The methods raise MerkleKVError, and its text is the reply.
    """

    @property
    def node_id(self) -> str:
        """The id of this node."""
        return ""

    def replicate(self, action: str) -> str:
        """Does `enable`, `disable` or `status`. Returns the words of the reply."""
        if action == "enable":
            raise RequestError("replication is not configured: start the node with [replication] settings")
        return "OK" if action == "disable" else "REPLICATION disabled"

    def sync(self, host: str, port: int, full: bool, verify: bool) -> None:
        """Runs one exchange with that node. It may take long, so it runs in a thread of its own."""
        raise RequestError(f"cannot SYNC with {host}:{port}: {_ALONE}")

    def exchange(self, message: bytes) -> Long:
        """Answers a message of an exchange that another node has begun, in slices."""
        raise RequestError(f"cannot exchange: {_ALONE}")

    def members(self) -> Sequence[Mapping[str, int | str]]:
        """The nodes that this one knows, this one first."""
        return []

    def remove_member(self, node: str, store_id: str) -> None:
        """Removes a node from the members; the store id (hex, or empty) says which of several with this id."""
        raise RequestError(f"cannot remove {node}: {_ALONE}")

    def shutdown(self) -> None:
        """Asks the node to stop; returns at once."""

    def metrics(self) -> Sequence[object]:
        """What the node reports beyond the server and the engine: parts of `merklekv.metrics`, filled in."""
        return []


@dataclass(slots=True)
class Traffic:
    """Counters of the server. They have no lock: two workers that count in the same instant may count once."""

    connections: int = 0  # accepted since the start
    refused: int = 0  # over the limit, or from beyond loopback
    protocol_errors: int = 0
    output_limit_closed: int = 0
    evicted: int = 0  # closed because clients together held too much
    idle_closed: int = 0
    foreign_protocol_closed: int = 0  # clients that send HTTP or TLS
    input_bytes: int = 0
    output_bytes: int = 0
    misses: int = 0  # GETs over RESP of keys that did not exist
    error_replies: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # replies that are errors, by their first word

    def count_error(self, problem: MerkleKVError) -> None:
        """Counts a reply that is this error. Scripts choose codes: of these, ERROR_CODES_MAX count by themselves."""
        code = problem.code if isinstance(problem, RequestError) else "ERR"
        self.error_replies += 1
        self.errors[code if code in self.errors or len(self.errors) < ERROR_CODES_MAX else "ERR"] += 1


class Usage(NamedTuple):
    """What a command was used for."""

    calls: int = 0
    failed: int = 0
    rejected: int = 0
    time: Histogram = Histogram()

    def plus(self, other: Usage, sign: int = 1) -> Usage:
        return Usage(
            self.calls + sign * other.calls,
            self.failed + sign * other.failed,
            self.rejected + sign * other.rejected,
            self.time + other.time if sign > 0 else self.time - other.time,
        )


class Cursors:
    """The keys behind the cursors given out. Thread-safe."""

    def __init__(self, limit: int = CURSORS_MAX) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._after: OrderedDict[int, tuple[bytes, int]] = OrderedDict()  # cursor: (last key, cursor before)

    def remember(self, key: bytes, used: int) -> int:
        """A new cursor that goes on after `key`; `used` is the cursor that led here (0: none)."""
        with self._lock:
            cursor = 0
            while not cursor or cursor in self._after:
                cursor = secrets.randbits(CURSOR_RANDOM_BITS)
            self._after[cursor] = (key, used)
            while len(self._after) > self._limit:
                self._after.popitem(last=False)
            return cursor

    def recall(self, cursor: int) -> bytes | None:
        """The key to go on after, or None for a cursor that was never given out or is too old."""
        with self._lock:
            entry = self._after.get(cursor)
            if entry is None:
                return None
            self._after.move_to_end(cursor)
            self._after.pop(entry[1], None)
            return entry[0]


class Context:
    """What all sessions of a server share."""

    def __init__(self, engine: Engine, services: Services, limits: Limits, text_protocol: bool = True) -> None:
        self.engine = engine
        self.services = services
        self.limits = limits
        self.text_protocol = text_protocol  # whether a connection may speak the line protocol
        self.commands = Commands()
        self.cursors = Cursors()
        self.traffic = Traffic()
        self.pubsub = PubSub()
        self.notifications = Notifications(engine, self.pubsub)
        self.slow = Slow()
        self.commit_time = Histogram()  # what the replies of a tick waited for the log
        self.interception = Interception(self.commands)
        self.monitor = Monitor(self.interception)
        self.client_pause = ClientPause(self.interception)
        self.throttle = LogThrottle(log)  # for warnings that a client can cause at will
        answer_bytes = engine.max_value_size + REPLY_ROOM_BYTES  # of another node: each of them may hold it twice
        self.command_threads_max = max(1, min(COMMAND_THREADS_MAX, limits.memory_bytes // 2 // answer_bytes))
        self.command_threads = threading.BoundedSemaphore(self.command_threads_max)
        self.memory = Memory(limits.memory_bytes)
        self.host = ""
        self.port = 0
        self.allow_remote = False
        self.connections: Callable[[], list[Connection]] = list
        self.room_for: Callable[[int], int] = lambda connections: connections  # how many of these the system allows
        self.scripts: Interpreter  # set by the server
        self.started = time.monotonic()
        self.started_at = int(time.time())  # seconds since the epoch
        self.run_id = secrets.token_hex(20)  # names this process
        self.vitals = Vitals()
        self._errors_before: Counter[str] = Counter()
        self._usage_before: dict[str, Usage] = {}

    def sessions(self) -> list[Connection]:
        """The clients that are served."""
        return [one for one in self.connections() if not one.refusal]

    def counters(self) -> dict[str, int]:
        """What INFO counts, since the start."""
        traffic = self.traffic
        return {
            "total_connections_received": traffic.connections,
            "total_commands_processed": sum(self.commands.calls().values()),
            "total_net_input_bytes": traffic.input_bytes,
            "total_net_output_bytes": traffic.output_bytes,
            "rejected_connections": traffic.refused,
            "evicted_clients": traffic.evicted,
            "keyspace_hits": self.commands.resp.all[b"GET"].calls - traffic.misses,
            "keyspace_misses": traffic.misses,
        }

    def usage(self) -> dict[str, Usage]:
        """What each command that was used was used for since the start, over RESP and the line protocol together."""
        usage: dict[str, Usage] = {}
        for entry in self.commands.every():
            if entry.command.name and (entry.calls or entry.rejected):  # most were never used: adding up costs time
                before = usage.get(entry.command.name, Usage())
                usage[entry.command.name] = before.plus(Usage(entry.calls, entry.failed, entry.rejected, entry.time))
        return usage

    def usage_since_reset(self) -> dict[str, Usage]:
        """What each command was used for since CONFIG RESETSTAT."""
        before = self._usage_before
        return {name: used.plus(before.get(name, Usage()), -1) for name, used in self.usage().items()}

    def errors_since_reset(self) -> Counter[str]:
        """Replies that were errors, by their first word."""
        return self.traffic.errors - self._errors_before

    def reset_counters(self) -> None:
        """Lets INFO count from here on."""
        self.vitals.reset(self.counters())
        self._usage_before = self.usage()
        self._errors_before = Counter(self.traffic.errors)

    def report(self, kind: str, text: str, problem: Exception | None = None) -> None:
        """Logs an error, many of one kind as one."""
        try:
            self.throttle.warn(kind, text, problem)
        except MemoryError:
            pass  # too little is left even for this


class Session(Channel):
    """One client: who it is and what it has chosen. Connections are sessions."""

    __slots__ = (
        "address",
        "context",
        "engine",
        "explain",
        "has_missed",
        "id",
        "library",
        "library_version",
        "local_address",
        "name",
        "nil",
        "opened",
        "protocol",
        "subscriptions",
        "transaction",
        "watched",
        "worker",
    )

    def __init__(self, context: Context, identity: int, address: str, local_address: str, fd: int) -> None:
        super().__init__()
        self.context = context
        self.engine = context.engine
        self.id = identity
        self.address = address
        self.local_address = local_address
        self.fd = fd
        self.worker: Home
        self.opened = self.last_active = time.monotonic()
        self.protocol = 0  # 0: text; 2, 3: RESP
        self.nil = b""  # RESP's nil, which depends on its version
        self.name = b""
        self.library = b""
        self.library_version = b""
        self.explain: Callable[[MerkleKVError], bytes] = text.error
        self.subscriptions: Subscriptions | None = None  # of publish/subscribe; None: it listens to nothing
        self.has_missed = False  # whether messages were dropped that it did not read: it is about to be closed
        self.watched: dict[bytes, State] = {}  # what WATCH has seen of its keys
        self.use(None)

    def use(self, transaction: Transaction | None) -> None:
        """Queues what follows in a transaction, or runs it (None)."""
        self.transaction = transaction
        self.choose_commands()

    def choose_commands(self) -> None:
        """Decides what `find` finds: after a change of the protocol, the transaction, or the subscriptions."""
        lookup = self.context.commands.resp if self.protocol else self.context.commands.line
        entries = lookup.entries
        if self.transaction is not None:
            entries = lookup.inside
        elif self.subscriptions and self.protocol == 2:
            entries = lookup.subscribed
        self.find = entries.get

    def doubt(self) -> None:
        """Runs nothing of what was read together with the present request: any of that ends the connection."""
        read_at, foreign = self.last_active, self.find(text.FOREIGN)

        def find(name: bytes) -> Any:
            if self.last_active == read_at:
                return foreign
            self.choose_commands()
            return self.find(name)

        self.find = find

    @property
    def is_script(self) -> bool:
        """Whether it is no client, but what a script calls commands with."""
        return self.fd < 0

    @property
    def waits(self) -> bool:
        """Whether a request waits: a blocking command, or any in a pause of the clients."""
        return False

    @property
    def is_blocked(self) -> bool:
        """Whether a blocking command waits."""
        return False

    def unmute(self) -> None:
        """Wants all replies from here on, see CLIENT REPLY."""

    def speak(self, protocol: int) -> None:
        """Goes on in this version of RESP."""
        self.protocol = protocol
        self.nil = resp.NIL[protocol]
        self.explain = resp.error
        self.choose_commands()


def writable(session: Session) -> Callable[[], bool]:
    """Waits until the engine takes writes again, or refuses them."""
    engine = session.engine
    return lambda: not engine.makes_wait


def until_counted(session: Session) -> Iterator[Callable[[], bool]]:
    """Waits until the engine knows root and counters. Raises RequestError when the node stops before."""
    engine = session.engine
    while not engine.root_ready:
        if engine.is_ending:
            raise RequestError("the node stops, and has not counted its keys since its start")
        yield lambda: engine.root_ready or engine.is_ending


def check_reply_size(session: Session, size: int) -> None:
    """Raises RequestError before a reply grows larger than a connection may hold."""
    limit = session.context.limits.output_hard_bytes
    if size > limit:
        raise RequestError(f"reply larger than {limit} bytes: ask for less at a time")


def in_thread(session: Session, name: str, work: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Runs `work` in a thread of its own and waits until it has ended; raises what it raised.

    Raises RequestError at once when too many of them run or the system gives no thread.
    """
    free = session.context.command_threads
    problems: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as problem:  # noqa: BLE001  raised in the thread that waits
            problems.append(problem)
        finally:
            free.release()

    if not free.acquire(blocking=False):
        raise RequestError(
            f"too many {name} at once: {session.context.command_threads_max} are under way, try again later"
        )
    try:
        thread = threading.Thread(target=run, name="merklekv-command", daemon=True)
        thread.start()
    except (RuntimeError, MemoryError) as shortage:
        free.release()
        raise RequestError(f"cannot start a thread for {name}: {shortage}; try again later") from shortage
    yield lambda: not thread.is_alive()
    for problem in problems:
        if isinstance(problem, MerkleKVError | OSError):
            raise RequestError(str(problem)) from problem
        raise problem
