"""The scrubber: scrubs the data in the background, slowly, and repairs damage.

    every interval -> a pass of slices, with rests between them   (engine/verify/scrub.py)
        derived data that is wrong -> derived anew, here
        a record that is lost      -> fetched from the peers; the newest that fits takes its place, through the log

A pass takes at most the set share of the time, whatever the size of the data.  The data directory records when the last
pass ended, so the interval continues over restarts.  Each pass reports again, in at most LINES_MAX lines, a record that
no peer has.  `stop` waits for the current slice, and STOP_S for a peer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final

from merklekv.engine.engine import Engine
from merklekv.engine.verify.scrub import Damage, Scrub, fits
from merklekv.errors import MerkleKVError, Stalled, StorageFailed
from merklekv.metrics import ScrubMetrics
from merklekv.output import counted
from merklekv.replication.sync.schedule import rest_s
from merklekv.worker_thread import Fatal, WorkerThread

log = logging.getLogger(__name__)

METADATA_SCRUBBED: Final = b"scrubbed"  # 8 bytes: when the last pass ended, ns since the epoch
FIRST_REST_S: Final = 600.0  # a node that has just started is busy with other work
SLICE_S: Final = 0.001
LINES_MAX: Final = 100  # about damage, in one pass
STOP_S: Final = 0.5
WAIT_FOR_ROOM_S: Final = 1.0

Fetch = Callable[[str, bytes], bytes | None]


class Scrubber:
    """Scrubs an engine from `start` to `stop`.

    `interval_s`: from the end of a pass to the next one; 0: never.  `peers()` returns addresses, and `fetch(address,
    key)` the record of a key there, or None; it raises MerkleKVError if the node does not answer.
    """

    def __init__(
        self,
        engine: Engine,
        peers: Callable[[], Sequence[str]],
        fetch: Fetch,
        fatal: Fatal,
        *,
        interval_s: float,
        share_percent: int,
    ) -> None:
        self.passes = 0  # since the start, as all that follows
        self.records = 0  # read, of the base
        self.damaged = 0  # found, in each pass anew
        self.repaired = 0
        self.left = 0  # not repaired, in the last complete pass
        self._engine = engine
        self._peers = peers
        self._fetch = fetch
        self._interval_s = interval_s
        self._share_percent = share_percent
        self._running = False
        self._silent: set[str] = set()  # peers that did not answer in this pass
        self._found = self._repaired = 0  # in this pass
        self._wait_s = 0.0  # until the next pass
        self.worker = WorkerThread("scrub", self._step, fatal)

    def start(self) -> None:
        """Begin the first pass when it is due."""
        if self._interval_s:
            self._wait_s = max(self._due_s(), min(FIRST_REST_S, self._interval_s))
            self.worker.start()

    def stop(self) -> None:
        """End a pass wherever it is."""
        self.worker.stop(STOP_S)

    def metrics(self) -> ScrubMetrics:
        """The scrub's metrics."""
        return ScrubMetrics(
            scrub_running=int(self._running),
            scrub_passes=self.passes,
            scrub_records=self.records,
            scrub_damaged=self.damaged,
            scrub_repaired=self.repaired,
            scrub_unrepaired=self.left,
            scrub_last_pass_s=self._last_ns() // 10**9,
        )

    def scrub(self) -> bool:
        """Make one pass.  Returns False if it was stopped.  Raises StorageFailed, Shortage."""
        self._silent.clear()
        self._found = self._repaired = 0
        before = self.records
        one = Scrub(self._engine)
        with closing(one.steps()) as steps:
            began = time.perf_counter()
            for damage in steps:
                if damage is not None:
                    self._handle(damage)
                elif (worked := time.perf_counter() - began) >= SLICE_S:
                    self.records = before + one.read
                    self.worker.wait(rest_s(worked, self._share_percent))
                    began = time.perf_counter()
                if self.worker.is_stopping:
                    return False
        self.records = before + one.read
        self._engine.put_metadata(METADATA_SCRUBBED, max(0, time.time_ns()).to_bytes(8, "big"))
        self._engine.commit()
        self.passes += 1
        self.left = self._found - self._repaired
        log.log(
            logging.WARNING if self._found else logging.INFO,
            "scrub: %(records)d records, %(damages)d damages, %(repaired)d repaired",
            {"records": one.read, "damages": self._found, "repaired": self._repaired},
        )
        return True

    def _last_ns(self) -> int:
        return int.from_bytes(self._engine.metadata.get(METADATA_SCRUBBED, b""), "big")

    def _step(self) -> None:
        if self.worker.wait(self._wait_s):
            return
        self._wait_s = self._interval_s
        self._running = True
        self._engine.begin()
        try:
            self.scrub()
        except StorageFailed:
            raise
        except MerkleKVError as error:
            log.warning("scrub: the pass was not finished: %(reason)s", {"reason": str(error)})
        finally:
            self._running = False

    def _due_s(self) -> float:
        """Seconds until the interval since the last pass is over; at most one interval, also if the clock was set."""
        since_s = time.time() - self._last_ns() / 1e9
        return self._interval_s - since_s if 0 <= since_s < self._interval_s else 0.0

    def _handle(self, damage: Damage) -> None:
        self._found += 1
        self.damaged += 1
        self._report(damage.problem, damage.key)
        try:
            done = self._repair(damage)
        except Stalled:
            self._engine.wait_for_room(WAIT_FOR_ROOM_S)  # the next pass finds it again
            done = False
        if done:
            self._engine.commit()
            self._repaired += 1
            self.repaired += 1

    def _repair(self, damage: Damage) -> bool:
        if not damage.lost:
            if damage.bucket is not None:
                self._engine.repair(damage.bucket, damage.key)
            return damage.bucket is not None
        asked = absent = 0
        best, origin = None, ""
        for address in self._peers():
            if address in self._silent or self.worker.is_stopping:
                continue
            try:
                record = self._fetch(address, damage.key)
            except MerkleKVError as error:
                self._silent.add(address)
                log.warning("scrub: %(reason)s", {"address": address, "reason": str(error)})
                continue
            asked += 1
            absent += record is None
            if record is not None and fits(damage, record) and (best is None or record > best):
                best, origin = record, address
        if self.worker.is_stopping or (best is None and not (damage.stray and absent)):
            problem = f"key {damage.key!r}: not repaired, none of {counted(asked, 'node')} asked has what was there"
            self._report(problem, damage.key)
            return False
        return self._engine.replace(damage.key, damage.stored, best, (origin or "scrub").encode())

    def _report(self, problem: str, key: bytes) -> None:
        if self._found <= LINES_MAX:
            log.error("scrub: %(reason)s", {"reason": problem, "key": key.decode(errors="backslashreplace")})
