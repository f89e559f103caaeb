"""One node, watched through its client port by a thread of its own: so a node that hangs delays no other.

A round asks STATS, LATENCY HISTOGRAM, HASH and the inner digests of the Merkle tree in one go; every fourth also
MEMBERS and SLOWLOG.

The node may be any program: its replies are bounded in size, time and depth, and what cannot be understood makes it a
node that does not answer. One whose replies cost much to read is asked more rarely.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from merklekv.address import parse_address
from merklekv.errors import MerkleKVError
from merklekv.metrics import parse
from merklekv.net.client import Client, NodeError, Reply, Unreachable
from merklekv.shortage import reason_of
from merklekv.web.differences import digests_of
from merklekv.web.latency import NOTHING, Calls, calls_of

ROUND_S: Final = 0.5
COST_MAX: Final = 0.02  # of a CPU, which the node that serves the page needs itself
ANSWER_S: Final = 1.0  # a node that takes longer for one answer counts as down
RARE_ROUNDS: Final = 4  # MEMBERS and SLOWLOG are asked in every fourth round
REPLY_BYTES_MAX: Final = 2 << 20
NAME: Final = b"merklekv-page"  # of the connections, to tell their commands from those of others
FIGURES_MAX: Final = 5_000
MEMBERS_MAX: Final = 1_000
SLOW_ASKED: Final = 32

Row = Mapping[str, Any]  # of MEMBERS
State = Literal["up", "down", "asked"]


@dataclass(frozen=True, slots=True)
class SlowCommand:
    at: int  # seconds since the epoch
    microseconds: int
    words: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Sight:
    """What a node said in one round."""

    at: float  # monotonic
    figures: Mapping[str, str]  # STATS by name
    root: str = ""  # of the Merkle tree, in hex; empty while the node counts its keys
    calls: Calls = NOTHING


class NodeWatch:
    """A node at an address. `stop` it once; everything else may be read from any thread."""

    def __init__(self, address: str, on_news: Callable[[], None]) -> None:
        self.address = address
        self.sight: Sight | None = None  # the last one
        self.before: Sight | None = None  # the one before it, if the node has answered without a break
        self.members: Sequence[Row] = ()
        self.slow: Sequence[SlowCommand] = ()
        self.parts: Sequence[bytes] = ()  # the digest of each inner node; none while the node counts its keys
        self.error = ""
        self.has_tried = False
        self._on_news = on_news
        self._waits_since = 0.0  # monotonic; 0: for nothing
        self._client: Client | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="page-watch", daemon=True)

    @property
    def state(self) -> State:
        """`up`: the last round went well, and the running one does not wait for long. `asked`: for the first time."""
        since = self._waits_since
        if since and time.monotonic() - since > ANSWER_S:
            return "down"
        if self.sight is not None and not self.error:
            return "up"
        return "down" if self.has_tried else "asked"

    @property
    def is_up(self) -> bool:
        return self.state == "up"

    @property
    def problem(self) -> str:
        """Why it does not answer; empty while it does."""
        return "" if self.state != "down" else self.error or f"no answer within {ANSWER_S:.0f} s"

    def start(self) -> None:
        """Call it again and again: it begins as soon as the machine has a thread left."""
        if self._thread.ident is None:
            with suppress(RuntimeError):
                self._thread.start()

    def stop(self) -> None:
        """Ends the thread soon; does not wait for it."""
        self._stopping.set()
        client = self._client
        if client is not None:
            client.close()

    def _run(self) -> None:
        rounds = 0
        while not self._stopping.is_set():
            began = time.thread_time()
            try:
                self._round(rounds % RARE_ROUNDS == 0)
                rounds += 1
            except (MerkleKVError, MemoryError) as error:
                self._fail(reason_of(error))
                rounds = 0
            self._waits_since = 0.0
            self.has_tried = True
            self._on_news()
            self._stopping.wait(pause_s(time.thread_time() - began))
        self._disconnect()

    def _fail(self, error: str) -> None:
        self.error = error
        self.before = None
        self._disconnect()

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _round(self, also_rare: bool) -> None:
        self._waits_since = time.monotonic()
        client = self._client
        if client is None:
            host, port = parse_address(self.address)
            self._client = client = Client(host, port, ANSWER_S, REPLY_BYTES_MAX)
            client.send([(b"CLIENT", b"SETNAME", NAME)])
            self._receive(client)
        knows_root = self.sight is not None and "db_keys" in self.sight.figures and not self.error
        requests = [(b"STATS",), (b"LATENCY", b"HISTOGRAM")]
        requests += [(b"HASH",), (b"TREE",)] if knows_root else []  # HASH waits until the keys are counted
        requests += [(b"MEMBERS",), (b"SLOWLOG", b"GET", b"%d" % SLOW_ASKED)] if also_rare else []
        client.send(requests)
        figures = _figures(self._receive(client))
        calls = calls_of(self._receive(client))
        root = _root(self._receive(client)) if knows_root else ""
        self.parts = digests_of(self._receive(client)) if knows_root else ()
        if also_rare:
            self.members = _members(self._receive(client))
            self.slow = _slow(self._receive(client))
        self.before = self.sight if not self.error else None
        self.sight = Sight(time.monotonic(), figures, root, calls)
        self.error = ""

    def _receive(self, client: Client) -> Reply:
        """The next reply; None if it is an error: then the node lacks this command or cannot answer it now."""
        self._waits_since = time.monotonic()
        if self._stopping.is_set():
            raise Unreachable("is watched no more")  # `stop` may have come before there was a client to close
        try:
            return client.receive()
        except NodeError:
            return None


def pause_s(cost_s: float) -> float:
    """Until the next round, after one that took so much time of a CPU."""
    return max(ROUND_S, cost_s / COST_MAX)


def _figures(reply: Reply) -> dict[str, str]:
    """STATS by name. Raises Unreachable unless it is that of a node."""
    figures = parse(reply.decode(errors="replace")) if isinstance(reply, bytes) else {}
    if "node_id" not in figures or len(figures) > FIGURES_MAX:
        raise Unreachable("answers STATS strangely: is it a MerkleKV node?")
    return figures


def _root(reply: Reply) -> str:
    return reply.decode("ascii", "replace")[:64] if isinstance(reply, bytes) else ""


def _members(reply: Reply) -> list[Row]:
    """The rows of MEMBERS that have what is shown; a later release may add fields."""
    lines = reply.split(b"\n")[:MEMBERS_MAX] if isinstance(reply, bytes) else []
    rows: list[Row] = []
    for line in lines:
        try:
            row = json.loads(line) if line else None
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("node", "state", "address")):
            rows.append(row)
    return rows


def _slow(reply: Reply) -> list[SlowCommand]:
    found: list[SlowCommand] = []
    for entry in reply[:SLOW_ASKED] if isinstance(reply, list) else []:
        if not isinstance(entry, list) or len(entry) < 4 or entry[-1] == NAME:
            continue
        _, at, microseconds, words, *_ = entry
        if isinstance(at, int) and isinstance(microseconds, int) and isinstance(words, list):
            found.append(SlowCommand(at, microseconds, tuple(word for word in words if isinstance(word, bytes))))
    return found
