"""What the supervisor of this process is told, in systemd's words: sd_notify(3).

A message is a datagram of lines such as `READY=1`, to the socket in NOTIFY_SOCKET. Without that variable nothing is
sent. What cannot be sent is lost: the node goes on, whatever the supervisor does.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from threading import Event
from typing import Final

WATCHDOG_DIGITS_MAX: Final = 20  # of 64 bits
SEND_S: Final = 1.0  # for a supervisor that does not read
LOOKS: Final = 4  # of the watchdog in its time: two in the half of it, after which a sign of life is due


class Supervisor:
    """The program that started this process, if it listens.

    `watchdog_s`: it ends a process that is silent for so long; 0: never.

    It takes its variables out of the environment, so that no child speaks in the place of the node.
    """

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        watchdog_us, watched = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        is_number = watchdog_us.isdecimal() and len(watchdog_us) <= WATCHDOG_DIGITS_MAX
        is_watched = is_number and watched in ("", str(os.getpid()))
        self.watchdog_s = int(watchdog_us) / 10**6 if self._address and is_watched else 0.0

    def tell(self, *lines: str) -> None:
        """Sends one message."""
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_S)
                sender.sendto("\n".join(lines).encode(), self._address)

    def ready(self, status: str) -> None:
        """The start, or a reload, is done; `status` is a line for people."""
        self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        self.tell("STOPPING=1", "STATUS=stopping")


class Watchdog:
    """Tells the supervisor that the node works, twice in `watchdog_s`, as long as it does.

    It works if each worker has answered the last look, and if the sync that runs by itself is not late by half of
    `watchdog_s`. `look_at_workers` begins a look: an event for each worker, which is set as soon as that one answers. A
    worker that hangs, in a commit for example, answers none.
    """

    def __init__(
        self, supervisor: Supervisor, look_at_workers: Callable[[], Sequence[Event]], sync_late_s: Callable[[], float]
    ) -> None:
        self._supervisor = supervisor
        self._look_at_workers = look_at_workers
        self._sync_late_s = sync_late_s
        self._period_s = supervisor.watchdog_s / 2
        self._answers: Sequence[Event] = ()  # to the last look
        self._due = time.monotonic() + self._period_s

    def look(self, status: Callable[[], str]) -> None:
        """Call it LOOKS times or more in `watchdog_s`. `status` goes with the sign of life."""
        if not self._period_s or not all(answer.is_set() for answer in self._answers):
            return
        now = time.monotonic()
        if now >= self._due and self._sync_late_s() < self._period_s:
            self._supervisor.tell("WATCHDOG=1", f"STATUS={status()}")
            self._due = now + self._period_s
        self._answers = self._look_at_workers()
