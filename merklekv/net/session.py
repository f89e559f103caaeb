"""What a handler sees: the session of the client that asks, and through it the node."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from merklekv.engine.engine import Engine
from merklekv.errors import MerkleKVError
from merklekv.log_throttle import LogThrottle
from merklekv.net.errors import RequestError
from merklekv.net.limits import COMMAND_THREADS_MAX, CURSORS_MAX, REQUEST_ROOM_BYTES, Limits
from merklekv.net.protocol import resp, text
from merklekv.net.registry import Commands, Entry, Long

log = logging.getLogger(__name__)

CURSOR_RANDOM_BITS = 53  # some clients read a cursor as a double
_ALONE = "this is a server by itself, not a node"


class Services:
    """What the rest of the node does for a command. This base is a server by itself, without a node around it.

    The methods raise MerkleKVError, and its text is the reply.
    """

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
    idle_closed: int = 0
    foreign_protocol_closed: int = 0  # clients that send HTTP or TLS


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

    def __init__(self, engine: Engine, services: Services, limits: Limits) -> None:
        self.engine = engine
        self.services = services
        self.limits = limits
        self.commands = Commands()
        self.cursors = Cursors()
        self.traffic = Traffic()
        self.throttle = LogThrottle(log)  # for warnings that a client can cause at will
        self.command_threads = threading.BoundedSemaphore(COMMAND_THREADS_MAX)
        self.port = 0
        self.sessions: Callable[[], list[Session]] = list
        self.started = time.monotonic()
        self.request_bytes = max(limits.request_bytes, engine.max_value_size + REQUEST_ROOM_BYTES)

    def report(self, kind: str, text: str, problem: Exception | None = None) -> None:
        """Logs an error, many of one kind as one."""
        try:
            self.throttle.warn(kind, text, problem)
        except MemoryError:
            pass  # too little is left even for this


class Session:
    """One client: who it is and what it has chosen. Connections are sessions."""

    __slots__ = (
        "address",
        "context",
        "engine",
        "explain",
        "fd",
        "find",
        "id",
        "last_active",
        "library",
        "library_version",
        "local_address",
        "name",
        "nil",
        "opened",
        "protocol",
        "refusing",
    )

    def __init__(self, context: Context, identity: int, address: str, local_address: str, fd: int) -> None:
        self.context = context
        self.engine = context.engine
        self.id = identity
        self.address = address
        self.local_address = local_address
        self.fd = fd
        self.opened = self.last_active = time.monotonic()
        self.protocol = 0  # 0: text; 2, 3: RESP
        self.nil = b""  # RESP's nil, which depends on its version
        self.name = b""
        self.library = b""
        self.library_version = b""
        self.explain: Callable[[MerkleKVError], bytes] = text.error
        self.find: Callable[[bytes], Entry | None]
        self.refuse(False)

    def refuse(self, refusing: bool) -> None:
        """Sets whether commands are refused, up to the end of a transaction, see `commands.refused`."""
        self.refusing = refusing
        lookup = self.context.commands.resp if self.protocol else self.context.commands.line
        self.find = (lookup.refusing if refusing else lookup.entries).get

    def speak(self, protocol: int) -> None:
        """Goes on in this version of RESP."""
        self.protocol = protocol
        self.nil = resp.NIL[protocol]
        self.explain = resp.error


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

    Raises RequestError at once when COMMAND_THREADS_MAX of them run or the system gives no thread.
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
        raise RequestError(f"too many {name} at once: {COMMAND_THREADS_MAX} are under way, try again later")
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
