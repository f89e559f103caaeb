"""Anti-entropy: exchanges with every peer, again and again, so that all nodes agree, whatever messages were lost.

    interval, start, a gap, a lost session, presence, many deletions
                                                      -> schedules -> thread: exchange, rest, exchange, ...
    SYNC                                              -> the caller's thread: exchange
    messages of another node                          -> `answer`, in the server's worker, in slices

There is one exchange at a time with a peer.  When both nodes begin at once, the one with the larger id is refused, and
tries again a moment later.  So is that of a third node while an exchange goes on in which something differs: it could
move the GC horizon, and the other would begin again.  After EXCLUSIVE_S it is let in, and an exchange of the thread is
cut if another peer is due: what it has merged stays, and it goes on later.  A first copy begins again, so each time it
has twice as long.  Between two steps the thread rests, so repair takes at most the set share of the time of both nodes;
SYNC does not rest, because its caller waits.  After an exchange the thread collects the tombstones below the GC
horizon, with the same rests.

Any thread may call `on_status` and `wake`, which do not wait for data or network.  `stop` cuts the exchanges under way;
one that hangs in a name look-up or a connect does not touch the engine any more.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

from merklekv.address import format_address, parse_address
from merklekv.engine.engine import Engine
from merklekv.errors import MerkleKVError, StorageFailed
from merklekv.log_throttle import LogThrottle
from merklekv.metrics import ExchangeMetrics, shown
from merklekv.output import counted, printable
from merklekv.replication.cluster.members import Identity, Members
from merklekv.replication.cluster.membership import Membership
from merklekv.replication.cluster.presence import NODES_MAX, ONLINE, Status
from merklekv.replication.cluster.refused import RefusedRecord
from merklekv.replication.sync.initiator import ExchangeReport, Initiator, refusal_text
from merklekv.replication.sync.messages import UNFIT_CLOCK, ExchangeFailed, ExchangeRefused
from merklekv.replication.sync.peers import TOTALS, ExchangePeer, ExchangePeers
from merklekv.replication.sync.responder import BUSY, EXCLUSIVE_S, ITSELF, Responder
from merklekv.replication.sync.schedule import rest_s
from merklekv.worker_thread import WorkerThread

log = logging.getLogger(__name__)

STOP_S: Final = 1.0
BUSY_RETRY_S: Final = 0.2
BUSY_PATIENCE_S: Final = 60.0  # of SYNC
RETRY_S: Final = 1.0
AWAITED_TRIES: Final = 3
STATUSES_MAX: Final = 10  # taken at once; in a large cluster each holds the engine's lock for a few ms
EXCHANGE_TIMEOUT_S: Final = 30.0  # for one answer; a peer that hangs keeps the others waiting for so long
DELETIONS_MAX: Final = 20_000  # since the last exchange with a peer: their tombstones wait for the next one
LOOK_S: Final = 1.0  # how often they are looked at
_ELSEWHERE: Final = "node {} announces it and has to announce another one: set replication.advertise_address there"


class Transport(Protocol):
    """A connection to another node: through its port (`node.py`), or by a call in tests."""

    def ask(self, message: bytes) -> bytes:
        """The answer.  Raises MerkleKVError if none comes."""

    def close(self) -> None:
        """End the connection, and an `ask` under way in another thread."""


Connect = Callable[[str, int], Transport]


class Stopped(MerkleKVError):
    """The node stops, so the exchange was cut."""


class AntiEntropy:
    """The exchanges of one node from `start` to `stop`."""

    def __init__(
        self,
        engine: Engine,
        members: Members,
        cluster: str,
        connect: Connect,
        fatal: Callable[[BaseException], None],
        *,
        interval_s: float,
        share_percent: int,
        regular: bool = True,
        addresses: Iterable[str] = (),
    ) -> None:
        """`connect` reaches a host and port.  `regular`: exchange at the interval, with the nodes at `addresses` and
        those that announce themselves.  `fatal` gets a StorageFailed.
        """
        self.membership = Membership(engine, members)
        self._engine = engine
        self._members = members
        self._cluster = cluster
        self._connect = connect
        self._share_percent = share_percent
        self._regular = regular
        self._responder = Responder(engine, members, cluster, self._has_begun, self._is_engaged, self._on_served)
        self.answer = self._responder.answer  # to a message of an exchange that another node has begun
        self._peers = ExchangePeers(addresses if regular else (), interval_s)
        self._changed = threading.Condition()  # guards all below, and the peers
        self._statuses: OrderedDict[str, Status] = OrderedDict()  # by node, what the thread has not taken yet
        self._running: dict[str, str] = {}  # address and node of the exchanges begun here; no node until it is known
        self._transports: dict[str, Transport] = {}  # theirs, by address
        self._answered: dict[str, float] = {}  # when their first answer came (monotonic), by address
        self._served = 0  # complete exchanges that other nodes began
        self._exchanged_at = -math.inf  # when the last exchange that completed began, or one was served (monotonic)
        self._may_collect = True  # the GC horizon may have moved
        self._throttle = LogThrottle(log)
        self.worker = WorkerThread("anti-entropy", self._step, fatal, wake=self._notify, retry_s=RETRY_S)

    def start(self, own_address: str) -> None:
        """Start the thread.  The node does not exchange with `own_address`."""
        with self._changed:
            self._peers.drop(own_address)
        self.worker.start()

    def stop(self) -> None:
        """Cut the exchanges under way and begin no other; returns within STOP_S."""
        self.worker.stop(0)
        with self._changed:
            transports = list(self._transports.values())
        for transport in transports:
            transport.close()
        self.worker.stop(STOP_S)

    # -- from any thread -----------------------------------------------------------------------------------------------

    def on_status(self, status: Status) -> None:
        """A node is new, went online or offline, or has another address."""
        with self._changed:
            self._statuses[status.node] = status
            self._statuses.move_to_end(status.node)
            if len(self._statuses) > NODES_MAX:
                self._statuses.popitem(last=False)
            if self._regular:
                self._peers.on_status(status)
                for peer in self._peers.of(status.node) if status.state == ONLINE else ():
                    peer.schedule.wake(time.monotonic())
            self._changed.notify_all()

    def wake(self, node: str, reason: str) -> None:
        """Events of this node (empty: of any node) may have been lost: exchange soon."""
        log.debug("an exchange is wanted with %(peer)s: %(reason)s", {"peer": node or "all peers", "reason": reason})
        with self._changed:
            for peer in self._peers.of(node):
                peer.in_sync = False
                peer.schedule.wake(time.monotonic())
            self._changed.notify_all()

    def sync(self, host: str, port: int, full: bool, verify: bool) -> ExchangeReport:
        """One exchange now, after the one that is under way with that address.

        Raises ExchangeRefused, ExchangeFailed, and what the transport and the engine raise.  It is complete, and raises
        ExchangeFailed all the same, if a node has refused a record.
        """
        address = format_address(host, port)
        deadline = time.monotonic() + BUSY_PATIENCE_S
        while True:
            try:
                report = self._exchange(address, 100, full, verify)
            except ExchangeRefused as refusal:
                if refusal.why != BUSY or time.monotonic() > deadline or self.worker.wait(BUSY_RETRY_S):
                    raise
            else:
                if report.refused:
                    raise ExchangeFailed(refusal_text(report))
                return report

    def remove(self, node: str, store_id: str = "") -> None:
        """Remove a member, see `Membership`."""
        self.membership.remove(node, store_id)
        self._collect_soon()

    def addresses(self) -> list[str]:
        """Of the nodes that this one exchanges with."""
        with self._changed:
            return [peer.address for peer in self._peers.all()]

    def awaited(self, since: float) -> list[str]:
        """Addresses of peers to exchange with, while no exchange that began `since` then (monotonic) has completed.

        One peer suffices, and no peer is awaited that does not answer: AWAITED_TRIES attempts in a row have failed.
        """
        with self._changed:
            if self._exchanged_at >= since:
                return []
            return [peer.address for peer in self._peers.all() if peer.schedule.failures < AWAITED_TRIES]

    def words(self) -> Mapping[str, int | str]:
        """For REPLICATE status; nothing without peers."""
        with self._changed:
            peers = self._peers.all()
        counts = {"peers": len(peers), "in_sync": sum(one.in_sync for one in peers)} if peers else {}
        refused = len(self.membership.refused())
        return counts | {"refused": refused} if refused else counts

    def metrics(self) -> ExchangeMetrics:
        """What anti-entropy reports of itself now."""
        with self._changed:
            peers: dict[str, ExchangePeer] = {}
            for one in self._peers.all():  # a node with two addresses is two peers
                peers[one.address if not one.node or one.node in peers else one.node] = one
            running = len(self._running)
        refused = self.membership.refused()
        now = time.time()
        with self._engine.lock:
            applied = {identity.node: one.applied_through / 10**9 for identity, one in self._members}
        lagging = shown(peers, lambda peer: -peer.succeeded_at)
        totals = {f"exchange_{name}": {label: peer.totals[name] for label, peer in lagging.items()} for name in TOTALS}
        return ExchangeMetrics(
            members=len(self._members),
            members_removed=len(self._members.removed),
            members_unreadable=len(self._members.unreadable),
            member_lag_ms={
                node: round(1000 * max(0.0, now - through))
                for node, through in shown(applied, lambda through: -through).items()
                if through
            },
            gc_horizon_ns=self._engine.gc_horizon,
            exchange_peers=len(peers),
            exchange_peers_in_sync=sum(one.in_sync for one in peers.values()),
            exchange_running=running,
            exchange_served=self._served,
            exchange_rows_refused=self._members.rows_refused,
            refused_records=len(refused),
            refused_record=shown(_by_key(refused), lambda text: 0),
            peers_not_shown=len(peers) - len(lagging),
            peer_address={label: peer.address for label, peer in lagging.items()},
            peer_in_sync={label: int(peer.in_sync) for label, peer in lagging.items()},
            peer_last_success_ms={
                label: round(1000 * max(0.0, now - peer.succeeded_at))  # the wall clock may have been set back
                for label, peer in lagging.items()
                if peer.succeeded_at
            },
            peer_duration_ms={label: round(1000 * peer.duration_s) for label, peer in lagging.items()},
            peer_error={label: peer.error for label, peer in lagging.items() if peer.error},
            **totals,
        )

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        self._engine.begin()
        self._take_statuses()
        self._collect()
        if (address := self._wait()) is not None:
            try:
                self._exchange(address, self._share_percent, gives_way=True)
            except StorageFailed:
                raise
            except MerkleKVError:
                pass  # its peer shows it

    def _wait(self) -> str | None:
        """Wait for something to do; the address to exchange with, if that is due."""
        with self._changed:
            now = time.monotonic()
            self._look_at_deletions(now)
            peer = self._peers.next_due(now)
            if peer is not None and (self._responder.is_serving(peer.node) or self._is_engaged(peer.node)):
                peer.schedule.put_off(now)
                return None
            is_idle = peer is None and not self._statuses and not self._may_collect
            if is_idle and not self.worker.is_stopping:
                wait_s = self._peers.wait_s(now)
                self._changed.wait(None if wait_s is None else min(wait_s, LOOK_S))
            return peer.address if peer is not None else None

    def _look_at_deletions(self, now: float) -> None:
        """Exchange before long with the peers that many deletions wait for."""
        tombstones = self._engine.tombstone_count
        for peer in self._peers.all():
            peer.tombstones = min(peer.tombstones, tombstones)
            if peer.in_sync and tombstones - peer.tombstones > DELETIONS_MAX:
                peer.schedule.nudge(now)

    def _take_statuses(self) -> None:
        """Add the nodes that have announced themselves to the members."""
        while self._statuses and not self.worker.is_stopping:
            with self._changed:
                count = min(STATUSES_MAX, len(self._statuses))
                statuses = [self._statuses.popitem(last=False)[1] for _ in range(count)]
            self.membership.on_status(*statuses)

    def _has_begun(self, node: str) -> bool:
        with self._changed:
            return node in self._running.values()

    def _is_engaged(self, node: str) -> bool:
        """Whether an exchange with another node goes on, and not for EXCLUSIVE_S yet."""
        since = time.monotonic() - EXCLUSIVE_S
        with self._changed:
            begun = [at for address, at in self._answered.items() if self._running.get(address) != node]
        return any(at > since for at in begun) or self._responder.serves_another(node)

    def _on_served(self, identity: Identity) -> None:
        """An exchange that another node began is complete."""
        self.membership.record_contact(*identity)
        with self._changed:
            self._served += 1
            self._exchanged_at = time.monotonic()
            for peer in self._peers.of(identity.node):
                if peer.node == identity.node and peer.address not in self._running:
                    peer.mark_in_sync()
                    peer.tombstones = self._engine.tombstone_count
                    peer.schedule.serve(time.monotonic())
        self._collect_soon()

    def _collect_soon(self) -> None:
        self._may_collect = True
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _collect(self) -> None:
        """Collect the tombstones below the GC horizon.

        A peer that does not know the horizon yet still has these, and so another root: exchange with it before long.
        """
        if not self._may_collect:
            return
        self._may_collect = False
        engine = self._engine
        collected = 0

        def collect_slice() -> bool:
            nonlocal collected
            with engine.lock:
                before = engine.tombstone_count
                more = engine.collect_tombstones()
                collected += before - engine.tombstone_count
            return more

        more = True
        while more:
            began = time.monotonic()
            more = engine.retry_stalled(collect_slice, lambda: not self.worker.is_stopping)
            engine.commit()
            self._rest(began, self._share_percent)
        if collected:
            with self._changed:
                for peer in self._peers.all():
                    peer.schedule.nudge(time.monotonic())

    # -- an exchange ---------------------------------------------------------------------------------------------------

    def _exchange(
        self, address: str, share_percent: int, full: bool = False, verify: bool = False, gives_way: bool = False
    ) -> ExchangeReport:
        """One exchange to its end; its peer shows the outcome.

        `gives_way`: it is cut after EXCLUSIVE_S, and twice as long each time, if another peer is due.
        """
        self._engine.begin()  # a thread of SYNC may have met a shortage in its last exchange
        with self._turn(address) as peer:
            tombstones, began = self._engine.tombstone_count, time.monotonic()
            try:
                report = self._carry_out(peer, address, share_percent, full, verify, gives_way)
            except (Stopped, StorageFailed):
                raise
            except Exception as error:
                self._on_failure(peer, error, time.monotonic() - began if gives_way else 0.0)
                raise
            self.membership.record_contact(report.node, address=address)
            if not peer.in_sync:
                log.info("in sync with node %(peer)s at %(address)s: %(result)s", _fields(address, report))
            with self._changed:
                peer.succeed(report)
                peer.tombstones = tombstones
                self._exchanged_at = max(began, self._exchanged_at)
        self._collect_soon()
        return report

    @contextmanager
    def _turn(self, address: str) -> Iterator[ExchangePeer]:
        """Wait until no other exchange goes on with that address, and let none begin meanwhile."""
        with self._changed:
            while address in self._running and not self.worker.is_stopping:
                self._changed.wait()
            self._require_running()
            peer = self._peers.at(address)
            self._running[address] = peer.node
            peer.schedule.begin()
        try:
            yield peer
        finally:
            with self._changed:
                del self._running[address]
                self._answered.pop(address, None)
                self._transports.pop(address, None)
                self._changed.notify_all()

    def _carry_out(
        self, peer: ExchangePeer, address: str, share_percent: int, full: bool, verify: bool, gives_way: bool
    ) -> ExchangeReport:
        transport = self._connect(*parse_address(address))
        initiator = Initiator(self._engine, self._members, self._cluster, full=full, verify=verify)
        steps = initiator.steps()
        try:
            with self._changed:
                self._require_running()
                self._transports[address] = transport
            message = next(steps)
            while True:
                began = time.monotonic()
                try:
                    message = steps.send(transport.ask(message))
                except StopIteration as end:
                    report: ExchangeReport = end.value
                    return report
                now = time.monotonic()
                with self._changed:
                    self._running[address] = initiator.report.node
                    has_had_its_time = now - self._answered.setdefault(address, now) > EXCLUSIVE_S * 2**peer.cuts
                    if gives_way and has_had_its_time and self._peers.wait_s(now) == 0:
                        peer.cuts += 1
                        raise ExchangeRefused(BUSY, "another node waits for its exchange")
                self._rest(began, share_percent)
        except MerkleKVError as error:
            self._require_running()  # a stop may have cut it: then the peer has not failed
            if isinstance(error, ExchangeRefused) and error.why == UNFIT_CLOCK and initiator.report.node:
                # The peer says so: it begins no exchange that would tell its wall clock, which may be right by now.
                self._members.peer_clocks.forget(initiator.report.node)
            raise
        finally:
            steps.close()
            transport.close()

    def _on_failure(self, peer: ExchangePeer, error: Exception, lasted_s: float) -> None:
        """Record a failure that kept the thread busy so long, and log it unless it is the same as the last time."""
        why = error.why if isinstance(error, ExchangeRefused) else ""
        now = time.monotonic()
        with self._changed:
            if why == BUSY:
                peer.schedule.put_off(now)
                return
            self._peers.rest_doubtful(now, min(lasted_s, EXCHANGE_TIMEOUT_S))
            if why == ITSELF and peer.configured:
                self._peers.drop(peer.address)
                return
            before = peer.error
            elsewhere = f"; {_ELSEWHERE.format(peer.node)}" if why == ITSELF and peer.node else ""
            peer.fail(f"{error}{elsewhere}")
        if peer.error != before:
            self._throttle.warn(
                f"failed {peer.address}",
                "exchange with %(address)s failed: %(reason)s",
                fields={"peer": peer.node, "address": peer.address, "reason": peer.error},
            )

    def _rest(self, began: float, share_percent: int) -> None:
        """Rest after work that began at `began` (monotonic).  Raises Stopped."""
        rest = rest_s(time.monotonic() - began, share_percent)
        if rest > 0:
            self.worker.wait(rest)
        self._require_running()

    def _require_running(self) -> None:
        if self.worker.is_stopping:
            raise Stopped("this node is stopping")


def _fields(address: str, report: ExchangeReport) -> dict[str, object]:
    """What the log has of an exchange."""
    return {
        "peer": report.node,
        "address": address,
        "result": _summary(report),
        "records_received": report.keys_received,
        "records_sent": report.keys_sent,
        "records_dropped": report.discarded,
        "records_refused": len(report.refused),
        "bytes_received": report.bytes_received,
        "bytes_sent": report.bytes_sent,
        "seconds": round(report.duration_s, 3),
    }


def _summary(report: ExchangeReport) -> str:
    if report.equal:
        return "nothing differed"
    return f"{counted(report.keys_received, 'record')} taken, {report.keys_sent} given, {report.discarded} dropped"


def _by_key(refused: list[RefusedRecord]) -> dict[str, str]:
    """What is refused, for people, by key."""
    reasons: dict[str, list[str]] = {}
    for one in refused:
        reasons.setdefault(printable(one.key.decode(errors="backslashreplace")), []).append(one.why)
    return {key: "; ".join(texts) for key, texts in reasons.items()}
