"""Signals of the process, and requests to stop it.

A signal of STOP_SIGNALS, or the command SHUTDOWN, asks for a stop; SIGHUP for a reload. OTHER_SIGNALS are logged.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType

from merklekv.log_throttle import LogThrottle
from merklekv.readiness import wait_readable

SIGNALS_AT_ONCE = 4096
NO_SIGNAL = 0
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGXCPU, signal.SIGPWR}
# Those that would end the process: it goes on, and logs that it got one.
OTHER_SIGNALS = {
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGSTKFLT,
    *range(signal.SIGRTMIN, signal.SIGRTMAX + 1),
}

log = logging.getLogger(__name__)


class StopRequests:
    """Requests to stop the process: a signal of STOP_SIGNALS, or the command SHUTDOWN.

    They come through a pipe, because the interpreter writes a signal's number into one at once, in whatever thread the
    signal arrives. Python's handlers run in the main thread only, and not while it waits for a lock, if the signal came
    to another thread or just before the wait.
    """

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        self._throttle = LogThrottle(log)
        os.set_blocking(self._in, False)  # as `set_wakeup_fd` demands; a full pipe holds enough requests

    def receive_signals(self) -> None:
        """From here on, receive signals that have a handler. In the main thread."""
        signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)

    def shut_down(self) -> None:
        """Request a stop; from any thread."""
        with suppress(BlockingIOError):
            os.write(self._in, bytes([NO_SIGNAL]))

    def wait(self, reload: Callable[[], None], look: Callable[[], None], look_s: float) -> str:
        """Wait for the first request and return its name.

        Meanwhile call `reload` for SIGHUP, log other signals, and call `look` every `look_s` seconds.
        """
        look_at = time.monotonic() + look_s
        while True:
            is_readable = bool(wait_readable([self._out], max(0.0, look_at - time.monotonic())))
            if time.monotonic() >= look_at:
                look()
                look_at = time.monotonic() + look_s
            received = os.read(self._out, SIGNALS_AT_ONCE) if is_readable else b""
            for number in dict.fromkeys(received):  # of a flood, each once
                if number == NO_SIGNAL:
                    return "SHUTDOWN"
                name = signal.Signals(number).name if number < signal.SIGRTMIN else f"signal {number}"
                if number in STOP_SIGNALS:
                    return name
                if number == signal.SIGHUP:
                    reload()
                else:
                    self._throttle.warn(name, f"{name}: ignored")


def on_signals(numbers: Iterable[int], handler: signal._HANDLER) -> None:
    """Have these handled so. In the main thread."""
    for number in numbers:
        signal.signal(number, handler)


def go_on(number: int, frame: FrameType | None) -> None:
    """Do nothing: `StopRequests` reads the signal from its pipe."""
