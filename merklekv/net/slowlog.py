"""Requests that took long, and the longest that each kind of event took: SLOWLOG and LATENCY.

The executor reads a clock once for each request that it runs by itself and once for each batch, and looks further only
when that took `Slow.look_s` or more. So a fast request costs one comparison here. Time counts while a request runs, not
while it waits for the disk or a condition.

Memory: at most `SLOWLOG_ENTRIES_MAX` requests, each cut to ARGUMENTS_SHOWN arguments of ARGUMENT_BYTES_SHOWN bytes, and
SLOWLOG_BYTES_MAX together; SAMPLES seconds of each kind of event.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from merklekv.net.protocol.text import Request

SLOWER_THAN_US: Final = 10_000  # Redis's default, and its lengths
LENGTH: Final = 128
SLOWLOG_ENTRIES_MAX: Final = 10_000
SLOWLOG_BYTES_MAX: Final = 8 << 20  # the oldest go first
ROOM_BYTES: Final = 64  # of an argument, beside its bytes
ARGUMENTS_SHOWN: Final = 32
ARGUMENT_BYTES_SHOWN: Final = 128
SAMPLES: Final = 160
EVENTS_MAX: Final = 16
# A limit below this is shorter than a batch may take, so then each request has to run by itself.
BATCH_US: Final = 2_000


@dataclass(frozen=True, slots=True)
class SlowRequest:
    number: int
    at: int  # seconds since the epoch
    microseconds: int
    request: tuple[bytes, ...]  # cut
    address: str
    name: bytes  # of the client

    @property
    def size(self) -> int:
        """About what it takes in memory."""
        return sum(map(len, self.request)) + ROOM_BYTES * (len(self.request) + 8) + len(self.name)


@dataclass(slots=True)
class Event:
    """What LATENCY keeps of one kind of event: the longest of each second that had one above the threshold."""

    longest_ms: int = 0
    samples: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=SAMPLES))  # second, milliseconds


class Slow:
    """The slow requests and events of one server."""

    def __init__(self) -> None:
        self.slower_than_us = SLOWER_THAN_US  # negative: nothing is logged
        self.threshold_ms = 0  # of LATENCY; 0: off
        self.look_s = 0.0  # the executor reports what took so long
        self.events: dict[str, Event] = {}
        self._numbers = itertools.count()
        self._requests: deque[SlowRequest] = deque()
        self._length = LENGTH
        self._bytes = 0  # of the requests
        self._lock = threading.Lock()  # of the requests
        self.set_limits(SLOWER_THAN_US, 0)

    def set_limits(self, slower_than_us: int, threshold_ms: int) -> None:
        self.slower_than_us, self.threshold_ms = slower_than_us, threshold_ms
        limits = [slower_than_us / 10**6] if slower_than_us >= 0 else []
        limits += [threshold_ms / 10**3] if threshold_ms else []
        self.look_s = min(limits, default=math.inf)

    @property
    def length(self) -> int:
        """How many requests are kept, at most."""
        return self._length

    @length.setter
    def length(self, most: int) -> None:
        with self._lock:
            self._length = most
            self._forget()

    @property
    def requests(self) -> list[SlowRequest]:
        """The newest first."""
        return list(self._requests)[::-1]

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()
            self._bytes = 0

    def _forget(self) -> None:
        while self._requests and (len(self._requests) > self._length or self._bytes > SLOWLOG_BYTES_MAX):
            self._bytes -= self._requests.popleft().size

    def took(self, seconds: float, event: str, request: Request, address: str, name: bytes) -> None:
        """A request took so long, `look_s` or more."""
        microseconds = int(seconds * 10**6)
        if 0 <= self.slower_than_us <= microseconds:
            one = SlowRequest(next(self._numbers), int(time.time()), microseconds, _cut(request), address, name)
            with self._lock:
                self._requests.append(one)
                self._bytes += one.size
                self._forget()
        self.note(event, seconds)

    def note(self, event: str, seconds: float) -> None:
        """Something took so long: kept if LATENCY is on and that is above its threshold."""
        milliseconds = int(seconds * 10**3)
        if not self.threshold_ms or milliseconds < self.threshold_ms:
            return
        kept = self.events.get(event) or Event()
        now = int(time.time())
        if kept.samples and kept.samples[-1][0] == now:
            kept.samples[-1] = now, max(milliseconds, kept.samples[-1][1])
        else:
            kept.samples.append((now, milliseconds))
        kept.longest_ms = max(kept.longest_ms, milliseconds)
        self.events[event] = kept  # last: a reader in any thread finds a sample


def _cut(request: Request) -> tuple[bytes, ...]:
    shown = [_cut_one(argument) for argument in request[:ARGUMENTS_SHOWN]]
    if len(request) > ARGUMENTS_SHOWN:
        shown[-1] = b"... (%d more arguments)" % (len(request) - ARGUMENTS_SHOWN + 1)
    return tuple(shown)


def _cut_one(argument: bytes) -> bytes:
    more = len(argument) - ARGUMENT_BYTES_SHOWN
    return argument[:ARGUMENT_BYTES_SHOWN] + b"... (%d more bytes)" % more if more > 0 else bytes(argument)
