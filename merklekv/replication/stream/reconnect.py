"""The link to the broker: one thread that keeps a conversation going, and starts it again whenever it is lost.

It never gives up: the wait between attempts grows (backoff.py), with jitter, so that many nodes do not come back
at once.  While there is no broker the node works on and the outbox grows.  Whatever goes wrong in a conversation (a
mistake of this program too) costs the connection and is logged; the thread goes on.
"""

from __future__ import annotations

import logging
import os
import random
import select
import threading
import time
from collections.abc import Callable
from typing import Final

from merklekv.errors import StorageFailed
from merklekv.log_throttle import LogThrottle
from merklekv.replication.stream.backoff import Backoff
from merklekv.replication.stream.broker_session import DUPLICATE, TICK_S, BrokerSession
from merklekv.replication.stream.metrics import LinkFigures
from merklekv.replication.stream.mqtt import Lost, TakenOver
from merklekv.replication.stream.outbox import Outbox

log = logging.getLogger(__name__)

CROWDED: Final = (
    "connections do not last: another process may use the same client id; give each node its own replication.client_id"
)

Token = tuple[BrokerSession, tuple[int, int]]


class Link:
    """Runs from `start` to `stop`.  Its methods may be called from any thread."""

    def __init__(self, outbox: Outbox, figures: LinkFigures, fatal: Callable[[BaseException], None]) -> None:
        self.enabled = True
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.throttle = LogThrottle(log)
        self._outbox = outbox
        self._figures = figures
        self._fatal = fatal
        self._converse: Callable[[], BrokerSession]
        self._stopping = False
        self._drain_until = 0.0
        self._thread = threading.Thread(target=self._run, name="replication-link", daemon=True)

    def start(self, converse: Callable[[], BrokerSession]) -> None:
        """Starts the thread; `converse` makes a conversation that has not begun."""
        self._converse = converse
        self._outbox.tail.wake = self.wake
        self._thread.start()

    def stop(self, drain_s: float) -> None:
        """Publishes what is waiting, for at most `drain_s`, says goodbye and ends."""
        self._drain_until = time.monotonic() + drain_s
        self._stopping = True
        self.wake()
        self._thread.join()
        self._outbox.tail.wake = lambda: None

    def close(self) -> None:
        """After `stop`, once nobody acknowledges any more."""
        os.close(self.wake_fd)

    def wake(self) -> None:
        """Makes the thread look around."""
        os.eventfd_write(self.wake_fd, 1)

    def enable(self, enabled: bool) -> None:
        """Connects or disconnects; what is written meanwhile waits in the outbox."""
        self.enabled = enabled
        self.wake()

    def acknowledge(self, tokens: list[Token]) -> None:
        """Lets the broker forget what the inbox has dealt with."""
        for conversation, token in tokens:
            conversation.acknowledge_later(token)
        self.wake()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        backoff = Backoff()
        while not self._stopping:
            if not self.enabled:
                self._figures.state = "disabled"
                self._figures.trouble.clear()
                self._sleep(TICK_S)
                continue
            wait_s = self._talk(backoff)
            if backoff.is_crowded:
                self._figures.trouble.setdefault(DUPLICATE, CROWDED)
            self._sleep(random.uniform(0.5, 1.0) * wait_s)
        self._look_around()

    def _talk(self, backoff: Backoff) -> float:
        """One conversation from its start to its end; how long to wait before the next."""
        figures = self._figures
        if figures.state == "disabled":
            figures.state = "connecting"
        conversation = None
        try:
            conversation = self._converse()
            conversation.run(self._is_over, self._look_around)
        except Lost as loss:
            figures.state, figures.trouble["connection"] = "disconnected", str(loss)
            if not self._is_over():
                self.throttle.warn(f"lost {loss}", f"{loss}; trying again")
            if conversation is not None and isinstance(loss, TakenOver):
                conversation.duplicate_seen()
        except StorageFailed as error:
            self._fatal(error)
        except Exception as error:  # a mistake of ours costs the connection, never the thread
            figures.state, figures.trouble["connection"] = "failed", repr(error)
            log.exception("the connection to the broker is given up")
        finally:
            if conversation is not None:
                conversation.end()
            self._outbox.rewind()
        if conversation is None:
            return backoff.next_wait_s(None)
        if conversation.has_helped:
            return backoff.restart_s()
        return backoff.next_wait_s(conversation.stood_s, conversation.has_duplicate)

    def _is_over(self) -> bool:
        if self._stopping:
            return not self._outbox.waiting_events or time.monotonic() >= self._drain_until
        return not self.enabled

    def _look_around(self) -> None:
        """What has to be done with a broker and without."""
        self._figures.alive_at = time.monotonic()
        try:
            self._figures.oldest_timestamp_ns = self._outbox.oldest_timestamp()
            self._outbox.save()
        except StorageFailed as error:
            self._fatal(error)

    def _sleep(self, seconds: float) -> None:
        """Waits, unless there is to be a stop or a change."""
        enabled = self.enabled
        until = time.monotonic() + seconds
        while not self._stopping and self.enabled == enabled and (left := until - time.monotonic()) > 0:
            if select.select([self.wake_fd], [], [], min(left, TICK_S))[0]:
                os.eventfd_read(self.wake_fd)
            self._look_around()
