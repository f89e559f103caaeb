"""The reconnect loop: one thread that keeps a session with the broker, and begins another one when it is lost.

It never stops trying: the wait between attempts grows (backoff.py), with jitter, so that many nodes do not come back at
once.  Without a broker the node works on, and the outbox grows.  Whatever goes wrong in a session (a defect of this
program, too) costs the connection and is logged; the thread goes on.
"""

from __future__ import annotations

import logging
import os
import random
import select
import time
from collections.abc import Callable
from typing import Final

from merklekv.errors import StorageFailed
from merklekv.log_throttle import LogThrottle
from merklekv.replication.stream.backoff import Backoff
from merklekv.replication.stream.broker_session import DUPLICATE, TICK_S, BrokerSession
from merklekv.replication.stream.metrics import StreamMetrics
from merklekv.replication.stream.mqtt import ConnectionLost, TakenOver
from merklekv.replication.stream.outbox import Outbox
from merklekv.worker_thread import Fatal, WorkerThread

log = logging.getLogger(__name__)

CROWDED: Final = (
    "connections do not last: another process may use the same client id; give each node its own replication.client_id"
)

Token = tuple[BrokerSession, tuple[int, int]]


class ReconnectLoop:
    """Runs from `start` to `stop`.  Any thread may call its methods."""

    def __init__(self, outbox: Outbox, metrics: StreamMetrics, fatal: Fatal) -> None:
        self.enabled = True
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.throttle = LogThrottle(log)
        self.worker = WorkerThread("replication-reconnect", self._step, fatal, wake=self.wake)
        self._outbox = outbox
        self._metrics = metrics
        self._backoff = Backoff()
        self._make_session: Callable[[], BrokerSession]
        self._drain_until = 0.0

    def start(self, make_session: Callable[[], BrokerSession]) -> None:
        """Start the thread.  `make_session` returns a session that has not begun."""
        self._make_session = make_session
        self._outbox.retention.notify = self.wake
        self.worker.start()

    def stop(self, drain_s: float) -> None:
        """Publish what is in the outbox, for at most `drain_s` seconds, disconnect, and end."""
        self._drain_until = time.monotonic() + drain_s
        self.worker.stop()
        self._outbox.retention.notify = lambda: None

    def close(self) -> None:
        """After `stop`, when no thread acknowledges any more."""
        os.close(self.wake_fd)

    def wake(self) -> None:
        """End the thread's wait."""
        os.eventfd_write(self.wake_fd, 1)

    def enable(self, enabled: bool) -> None:
        """Connect or disconnect; events wait in the outbox meanwhile."""
        self.enabled = enabled
        self.wake()

    def acknowledge(self, tokens: list[Token]) -> None:
        """Acknowledge messages to the broker, in the sessions that they came in."""
        for session, token in tokens:
            session.acknowledge_later(token)
        self.wake()

    def _step(self) -> None:
        if not self.enabled:
            self._metrics.state = "disabled"
            self._metrics.problems.clear()
            self._sleep(TICK_S)
            return
        wait_s = self._run_session()
        if self._backoff.is_crowded:
            self._metrics.problems.setdefault(DUPLICATE, CROWDED)
        self._sleep(random.uniform(0.5, 1.0) * wait_s)

    def _run_session(self) -> float:
        """One session from its start to its end.  Returns the seconds to wait before the next."""
        metrics, backoff = self._metrics, self._backoff
        if metrics.state == "disabled":
            metrics.state = "connecting"
        session = None
        try:
            session = self._make_session()
            session.run(self._is_over, self._housekeep)
        except ConnectionLost as loss:
            metrics.state, metrics.problems["connection"] = "disconnected", str(loss)
            if not self._is_over():
                self.throttle.warn(f"lost {loss}", f"{loss}; trying again")
            if session is not None and isinstance(loss, TakenOver):
                session.on_duplicate()
        except StorageFailed:
            raise
        except Exception as error:  # a defect of ours costs the connection, never the thread
            metrics.state, metrics.problems["connection"] = "failed", repr(error)
            log.exception("the connection to the broker is dropped")
        finally:
            if session is not None:
                session.end()
            self._outbox.rewind()
        if session is None:
            return backoff.next_wait_s(None)
        if session.has_helped:
            return backoff.restart_s()
        return backoff.next_wait_s(session.stood_s, session.has_duplicate)

    def _is_over(self) -> bool:
        if self.worker.is_stopping:
            return not self._outbox.waiting_events or time.monotonic() >= self._drain_until
        return not self.enabled

    def _housekeep(self) -> None:
        """What is due about once a second, with a broker and without."""
        self._metrics.alive_at = time.monotonic()
        self._metrics.oldest_timestamp_ns = self._outbox.oldest_timestamp()
        self._outbox.save()

    def _sleep(self, seconds: float) -> None:
        """Wait for so long, or until a stop or a change of `enabled`."""
        enabled = self.enabled
        until = time.monotonic() + seconds
        while not self.worker.is_stopping and self.enabled == enabled and (left := until - time.monotonic()) > 0:
            if select.select([self.wake_fd], [], [], min(left, TICK_S))[0]:
                os.eventfd_read(self.wake_fd)
            self._housekeep()
        self._housekeep()
