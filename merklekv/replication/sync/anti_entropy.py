"""Anti-entropy: exchanges with every peer, again and again, so that nodes that have met agree, whatever was lost.

    interval, start, a gap, a lost session, presence  -> timetable -> thread: exchange, rest, exchange, ...
    SYNC                                              -> the caller's thread: exchange
    another node's messages                           -> `answer`, in the server's worker, in slices

One exchange at a time with a peer: what is begun twice here waits, and when both nodes begin at once, the one with the
smaller id goes on while the other is told `busy` and comes back a moment later.  Between two steps of a regular
exchange the thread rests in proportion to what the step took, so that repair takes at most the set share of this node's
time and, as the other's work is part of each step, of the other's.  SYNC does not rest: somebody waits for it.

Exchanges move the horizon.  The tombstones below it are collected behind them, in slices with the same rests.

Threads: `hear` and `wake` may be called from any and never wait for data or network; the members are guarded by the
engine's lock.  A stop cuts what is under way, since an exchange can be cut anywhere; what hangs in a name look-up or a
connect is left behind, and touches the engine no more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from merklekv.address import format_address, parse_address
from merklekv.engine.engine import Engine
from merklekv.errors import MerkleKVError, Stalled, StorageFailed
from merklekv.log_throttle import LogThrottle
from merklekv.output import counted
from merklekv.replication.cluster.members import Identity, Members
from merklekv.replication.cluster.membership import Membership
from merklekv.replication.cluster.presence import ONLINE, Status
from merklekv.replication.sync.admission import BUSY, ITSELF, Admission, Slices
from merklekv.replication.sync.initiator import ExchangeReport, Initiator
from merklekv.replication.sync.messages import ExchangeRefused
from merklekv.replication.sync.peers import Partner, Partners
from merklekv.replication.sync.schedule import Timetable, rest_s
from merklekv.replication.sync.transport import Carrier, Connect

log = logging.getLogger(__name__)

STOP_S: Final = 1.0
BUSY_RETRY_S: Final = 0.2
BUSY_PATIENCE_S: Final = 60.0  # of SYNC
RETRY_S: Final = 1.0
_ELSEWHERE: Final = "node {} announces it and has to announce another one: set replication.advertise_address there"


class Stopped(MerkleKVError):
    """The node stops, and the exchange with it."""

    def __init__(self) -> None:
        super().__init__("this node is stopping")


@dataclass(slots=True)
class _Running:
    """An exchange that was begun here."""

    node: str  # with whom, as soon as that is known
    carrier: Carrier | None = None


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
        """`connect` reaches a host and port.  `regular`: exchange by itself, with `addresses` and with who is heard."""
        self.membership = Membership(engine, members)
        self._engine = engine
        self._members = members
        self._cluster = cluster
        self._connect = connect
        self._fatal = fatal
        self._share_percent = share_percent
        self._regular = regular
        self._admission = Admission(engine, members, cluster, self._has_begun, self._have_served)
        self._partners = Partners(addresses if regular else ())
        self._timetable = Timetable(interval_s)
        self._changed = threading.Condition()  # guards all below, partners and timetable
        self._news: deque[Status] = deque()
        self._busy: dict[str, _Running] = {}  # exchanges begun here, by address
        self._served = 0  # exchanges that other nodes began and that came to their end
        self._unsettled = True  # the horizon may have moved
        self._throttle = LogThrottle(log)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="anti-entropy", daemon=True)

    def start(self, own_address: str) -> None:
        """Starts exchanging, with everybody but this node itself; returns at once."""
        with self._changed:
            self._partners.drop(own_address)
            self._timetable.keep(self._partners.addresses(), time.monotonic())
        self._thread.start()

    def stop(self) -> None:
        """Cuts what is under way and begins nothing more; returns within STOP_S."""
        with self._changed:
            self._stopping.set()
            carriers = [running.carrier for running in self._busy.values() if running.carrier is not None]
            self._changed.notify_all()
        for carrier in carriers:
            carrier.close()
        self._thread.join(STOP_S)

    # -- from any thread -----------------------------------------------------------------------------------------------

    def hear(self, status: Status) -> None:
        """A node is new, has come or gone, or has moved."""
        with self._changed:
            self._news.append(status)
            self._changed.notify_all()

    def answer(self, message: bytes) -> Slices:
        """One step of an exchange that another node has begun, in slices: the answer to its message."""
        return self._admission.answer(message)

    def wake(self, node: str, reason: str) -> None:
        """Events of this node (empty: of anybody) may have been missed: exchange soon."""
        log.debug("an exchange is wanted with %s: %s", node or "everybody", reason)
        with self._changed:
            for address in self._partners.addresses_of(node):
                self._partners.at(address).in_sync = False
                self._timetable.wake(address, time.monotonic())
            self._changed.notify_all()

    def sync(self, host: str, port: int, full: bool, verify: bool) -> ExchangeReport:
        """One exchange now, after the one that is under way with that address.

        Raises ExchangeError, and what the carrier and the engine raise.
        """
        address = format_address(host, port)
        deadline = time.monotonic() + BUSY_PATIENCE_S
        while True:
            try:
                return self._exchange(address, 100, full, verify)
            except ExchangeRefused as refusal:
                if refusal.why != BUSY or time.monotonic() > deadline or self._stopping.wait(BUSY_RETRY_S):
                    raise

    def forget(self, node: str, store_id: str = "") -> None:
        """Takes a node out of the members, see `Membership.forget`."""
        self.membership.forget(node, store_id)
        self._settle()

    def addresses(self) -> list[str]:
        """Where the nodes are that this one exchanges with."""
        with self._changed:
            return self._partners.addresses()

    def words(self) -> Mapping[str, int | str]:
        """For REPLICATE status; nothing without peers."""
        with self._changed:
            partners = self._partners.all()
        return {"peers": len(partners), "in_sync": sum(one.in_sync for one in partners)} if partners else {}

    def statistics(self) -> Mapping[str, int | str]:
        """Figures for STATS and INFO."""
        with self._changed:
            partners = self._partners.all()
            totals = self._partners.totals()
            running = len(self._busy)
        shown: dict[str, int | str] = {
            "members": len(self._members),
            "members_removed": len(self._members.removed),
            "members_unreadable": len(self._members.aside),
            "gc_horizon_ns": self._engine.gc_horizon,
            "exchange_peers": len(partners),
            "exchange_peers_in_sync": sum(one.in_sync for one in partners),
            "exchange_running": running,
            "exchange_served": self._served,
            "exchange_rows_refused": self._members.rows_refused,
        }
        shown |= {f"exchange_{name}": count for name, count in totals.items()}
        return shown | {f"peer_{one.node or one.address}": one.shown() for one in partners}

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._engine.begin()
                self._meet_who_was_heard()
                self._collect()
                if (address := self._wait()) is not None:
                    self._exchange(address, self._share_percent)
            except StorageFailed as error:
                self._fatal(error)
                return
            except Stopped:
                return
            except MerkleKVError:
                pass  # the exchange failed, which its partner shows, or the disk is full, which ends
            except Exception:
                if not self._stopping.is_set():  # else the engine was closed
                    log.exception("anti-entropy ran into a mistake of this program; it goes on")
                    self._stopping.wait(RETRY_S)

    def _wait(self) -> str | None:
        """Waits for something to do: whom to exchange with, if that is it."""
        with self._changed:
            now = time.monotonic()
            address = self._timetable.next_due(now)
            if address is not None and self._admission.is_serving(self._partners.at(address).node):
                self._timetable.put_off(address, now)
                return None
            if address is None and not self._news and not self._unsettled and not self._stopping.is_set():
                self._changed.wait(self._timetable.wait_s(now))
            return address

    def _meet_who_was_heard(self) -> None:
        """Makes members of those who show that they are there, and peers of those who are online."""
        while self._news and not self._stopping.is_set():
            status = self._news.popleft()
            self.membership.hear(status)
            if self._regular:
                with self._changed:
                    self._partners.hear(status)
                    now = time.monotonic()
                    self._timetable.keep(self._partners.addresses(), now)
                    for address in self._partners.addresses_of(status.node) if status.state == ONLINE else ():
                        self._timetable.wake(address, now)

    def _has_begun(self, node: str) -> bool:
        """Whether an exchange with this node was begun here and goes on."""
        with self._changed:
            return any(running.node == node for running in self._busy.values())

    def _have_served(self, peer: Identity) -> None:
        """An exchange that this node began came to its end."""
        self.membership.met(peer.node, peer.store_id)
        with self._changed:
            self._served += 1
            for address in self._partners.addresses_of(peer.node):
                if (partner := self._partners.at(address)).node and address not in self._busy:
                    partner.agree()
                    self._timetable.serve(address, time.monotonic())
        self._settle()

    def _settle(self) -> None:
        """Lets the thread see whether there is something to collect."""
        with self._changed:
            self._unsettled = True
            self._changed.notify_all()

    def _collect(self) -> None:
        """Collects the tombstones below the horizon.

        Peers that do not know of it yet still have these, and so another root: they are told before long.
        """
        if not self._unsettled:
            return
        self._unsettled = False
        engine = self._engine
        collected = 0
        more = True
        while more:
            began = time.monotonic()
            try:
                with engine.lock:
                    before = engine.tombstone_count
                    more = engine.collect()
                    collected += before - engine.tombstone_count
                engine.commit()
            except Stalled:
                engine.wait_for_room(RETRY_S)
            self._rest(began, self._share_percent)
        if collected:
            with self._changed:
                for address in self._partners.addresses():
                    self._timetable.nudge(address, time.monotonic())

    # -- an exchange ---------------------------------------------------------------------------------------------------

    def _exchange(self, address: str, share_percent: int, full: bool = False, verify: bool = False) -> ExchangeReport:
        """One exchange to its end, with what becomes of it written down."""
        self._engine.begin()  # a thread of SYNC may have met a shortage in its last exchange
        with self._turn(address) as partner:
            try:
                report = self._converse(address, share_percent, full, verify)
            except (Stopped, StorageFailed):
                raise
            except Exception as error:
                self._have_failed(partner, error)
                raise
            self.membership.met(report.node, address=address)
            if not partner.in_sync:
                log.info("in sync with node %s at %s: %s", report.node, address, _told(report))
            with self._changed:
                partner.succeed(report)
                now = time.monotonic()
                self._timetable.succeed(address, now)
                self._timetable.keep(self._partners.addresses(), now)
        self._settle()
        return report

    @contextmanager
    def _turn(self, address: str) -> Iterator[Partner]:
        """Waits until nothing else goes on with that address, and keeps others from it meanwhile."""
        with self._changed:
            while address in self._busy and not self._stopping.is_set():
                self._changed.wait()
            self._go_on()
            partner = self._partners.at(address)
            self._busy[address] = _Running(partner.node)
            self._timetable.begin(address)
        try:
            yield partner
        finally:
            with self._changed:
                del self._busy[address]
                self._changed.notify_all()

    def _converse(self, address: str, share_percent: int, full: bool, verify: bool) -> ExchangeReport:
        carrier = self._connect(*parse_address(address))
        initiator = Initiator(self._engine, self._members, self._cluster, full=full, verify=verify)
        steps = initiator.steps()
        try:
            with self._changed:
                self._go_on()
                running = self._busy[address]
                running.carrier = carrier
            message = next(steps)
            while True:
                began = time.monotonic()
                try:
                    message = steps.send(carrier.ask(message))
                except StopIteration as end:
                    report: ExchangeReport = end.value
                    return report
                running.node = initiator.report.node
                self._rest(began, share_percent)
        except MerkleKVError:
            self._go_on()  # rather than to blame the peer for what a stop has cut
            raise
        finally:
            steps.close()
            carrier.close()

    def _have_failed(self, partner: Partner, error: Exception) -> None:
        """Writes a failure down, and logs it when it is another one than the last time."""
        why = error.why if isinstance(error, ExchangeRefused) else ""
        with self._changed:
            now = time.monotonic()
            if why == BUSY:
                self._timetable.put_off(partner.address, now)
                return
            if why == ITSELF and partner.configured:
                self._partners.drop(partner.address)
                self._timetable.keep(self._partners.addresses(), now)
                return
            before = partner.error
            elsewhere = f"; {_ELSEWHERE.format(partner.node)}" if why == ITSELF and partner.node else ""
            partner.fail(f"{error}{elsewhere}")
            self._timetable.fail(partner.address, now)
        if partner.error != before:
            self._throttle.warn(f"failed {partner.address}", f"exchange with {partner.address} failed: {partner.error}")

    def _rest(self, began: float, share_percent: int) -> None:
        """Rests after work that began then (monotonic), if there is to be any rest.  Raises Stopped."""
        rest = rest_s(time.monotonic() - began, share_percent)
        if rest > 0:
            self._stopping.wait(rest)
        self._go_on()

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise Stopped


def _told(report: ExchangeReport) -> str:
    if report.equal:
        return "nothing differed"
    return f"{counted(report.keys_received, 'key')} taken, {report.keys_sent} given, {report.discarded} dropped"
