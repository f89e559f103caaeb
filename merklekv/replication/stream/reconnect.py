"""The reconnect loop: one thread that keeps a session with the broker, and begins another one when it is lost.

It never stops trying.  The wait doubles with each attempt that fails, up to RETRY_MAX_S, and starts anew after each
connection; its jitter keeps many nodes from coming back at once.  Whatever goes wrong in a session (a defect of this
program, too) costs the connection and is logged; the thread goes on.

A broker gives a session to the latest client with its client id.  Two processes with one client id would take it from
each other for ever.  So the wait also doubles, up to DUPLICATE_RETRY_MAX_S, with each loss that shows such a duplicate,
and after SHORT_MAX connections in a row that lasted less than STEADY_S and published nothing: MQTT 3.1.1 gives no other
sign.  Each process then has the session for a while, and publishes what it has.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from typing import Final

from merklekv.errors import StorageFailed
from merklekv.log_throttle import LogThrottle
from merklekv.readiness import wait_readable
from merklekv.replication.stream.broker_session import DUPLICATE, STEADY_S, TICK_S, BrokerSession, StreamState
from merklekv.replication.stream.mqtt import ConnectionLost, TakenOver
from merklekv.replication.stream.outbox import Outbox
from merklekv.shortage import is_shortage, reason_of
from merklekv.worker_thread import Fatal, WorkerThread

log = logging.getLogger(__name__)

RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 3.0
DUPLICATE_RETRY_MAX_S: Final = 30.0
SHORT_MAX: Final = 8
CROWDED: Final = (
    "connections do not last: another process may use the same client id; give each node its own replication.client_id"
)

Token = tuple[BrokerSession, tuple[int, int]]


class Backoff:
    """How long to wait before the next attempt to connect.  `is_crowded`: too many connections in a row were short."""

    def __init__(self) -> None:
        self._wait_s = 0.0
        self._short = 0  # connections in a row that did not last

    @property
    def is_crowded(self) -> bool:
        return self._short >= SHORT_MAX

    def restart_s(self) -> float:
        """Seconds to wait after a connection that published something."""
        self._wait_s, self._short = RETRY_MIN_S, 0
        return self._wait_s

    def next_wait_s(self, stood_s: float | None, has_duplicate: bool = False) -> float:
        """Seconds to wait after a connection that lasted `stood_s`; None: the broker did not accept it."""
        if stood_s is not None:
            self._short = self._short + 1 if stood_s < STEADY_S else 0
            if not self._short or not (has_duplicate or self.is_crowded):
                self._wait_s = 0.0
        limit_s = DUPLICATE_RETRY_MAX_S if has_duplicate or self.is_crowded else RETRY_MAX_S
        self._wait_s = min(2 * self._wait_s + RETRY_MIN_S, limit_s)
        return self._wait_s


class ReconnectLoop:
    """Runs from `start` to `stop`.  Any thread may call its methods."""

    def __init__(self, outbox: Outbox, state: StreamState, fatal: Fatal) -> None:
        self.enabled = True
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.throttle = LogThrottle(log)
        self.worker = WorkerThread("replication-reconnect", self._step, fatal, wake=self.wake)
        self._outbox = outbox
        self._state = state
        self._backoff = Backoff()
        self._make_session: Callable[[], BrokerSession]
        self._drain_until = 0.0
        self._is_outdated = False  # the session in hand: another one is to take its place

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

    def reconnect(self) -> None:
        """End the session in hand and begin another."""
        self._is_outdated = True
        self.wake()

    def acknowledge(self, tokens: list[Token]) -> None:
        """Acknowledge messages to the broker, in the sessions that they came in."""
        for session, token in tokens:
            session.acknowledge_later(token)
        self.wake()

    def _step(self) -> None:
        if not self.enabled:
            self._state.connection = "disabled"
            self._state.problems.clear()
            self._sleep(TICK_S)
            return
        wait_s = self._run_session()
        if self._backoff.is_crowded:
            self._state.problems.setdefault(DUPLICATE, CROWDED)
        self._sleep(random.uniform(0.5, 1.0) * wait_s)

    def _run_session(self) -> float:
        """One session from its start to its end.  Returns the seconds to wait before the next."""
        state, backoff = self._state, self._backoff
        self._is_outdated = False
        if state.connection == "disabled":
            state.connection = "connecting"
        session = None
        try:
            session = self._make_session()
            session.run(self._is_over, self._housekeep)
        except ConnectionLost as loss:
            state.connection, state.problems["connection"] = "disconnected", str(loss)
            if not self._is_over():
                self.throttle.warn(f"lost {loss}", "%(reason)s; trying again", fields={"reason": str(loss)})
            if session is not None and isinstance(loss, TakenOver):
                session.on_duplicate()
        except StorageFailed:
            raise
        except Exception as error:  # a shortage, or a defect of ours, costs the connection, never the thread
            state.connection, state.problems["connection"] = "failed", repr(error)
            if is_shortage(error):  # of descriptors, to read the log
                reason = {"reason": reason_of(error)}
                self.throttle.warn("shortage", "the connection is dropped: %(reason)s; trying again", fields=reason)
            else:
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
        return not self.enabled or self._is_outdated

    def _housekeep(self) -> None:
        """What is due about once a second, with a broker and without."""
        self._state.alive_at = time.monotonic()
        if self._state.connection == "connected":
            self._state.connected_at = self._state.alive_at
        self._state.oldest_timestamp_ns = self._outbox.oldest_timestamp()
        self._outbox.save()

    def _sleep(self, seconds: float) -> None:
        """Wait for so long, or until a stop or a change of `enabled`."""
        enabled = self.enabled
        until = time.monotonic() + seconds
        while not self.worker.is_stopping and self.enabled == enabled and (left := until - time.monotonic()) > 0:
            if wait_readable([self.wake_fd], min(left, TICK_S)):
                os.eventfd_read(self.wake_fd)
            self._housekeep()
        self._housekeep()
