"""Keyspace notifications: messages of publish/subscribe about what happens to keys, with the names that Redis uses.

    __keyspace@0__:KEY      with the event as the message
    __keyevent@0__:EVENT    with the key as the message

They are made from the change feed: a write of another node is told like one of a client, and none before it is
committed. Expiry is no write; the engine's expirer reports it. Each node tells its own subscribers.

While no event is wanted, nothing is read and nobody waits. Otherwise the first worker reads what was committed, in
slices: one in a tick, of SLICE_S, or up to SLICE_MAX_S where that is needed to keep up with its other work. So who
writes pays for the notifications of what it writes, as in Redis. Cost: 2 us for each entry of the log, 2 us for each
message.

Threads: `serve`, `set` and `tell_expired` may be called by any; all else runs in the first worker's thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from merklekv.engine.engine import Engine
from merklekv.engine.feed import Change, Cursor
from merklekv.errors import ChangesGone, StorageFailed
from merklekv.log_throttle import LogThrottle
from merklekv.net import limits
from merklekv.net.home import Home
from merklekv.net.pubsub import Message, PubSub

log = logging.getLogger(__name__)

CLASSES: Final = "g$lshzxetdn"  # of events, in the order in which Redis shows them; some have none here
ALL: Final = "g$lshzxetd"  # what A stands for
WAYS: Final = "KEm"  # to the channel of the key, to that of the event; m is for misses, of which nothing is told
GENERIC, STRING, EXPIRED = "g", "$", "x"

PAGE_CHANGES: Final = 100  # that are read at once
SLICE_MAX_S: Final = 0.05
SLICE_SHARE: Final = 2.0  # of the time that has passed since the last slice

# What Redis calls what the log names, and the class of that.
EVENTS: Final = {
    "set": (STRING, b"set"),
    "incr": (STRING, b"incrby"),
    "decr": (STRING, b"incrby"),
    "incrbyfloat": (STRING, b"incrbyfloat"),
    "append": (STRING, b"append"),
    "prepend": (STRING, b"prepend"),
    "setrange": (STRING, b"setrange"),
    "setbit": (STRING, b"setbit"),
    "del": (GENERIC, b"del"),
    "expire": (GENERIC, b"expire"),
    "persist": (GENERIC, b"persist"),
    "rename_from": (GENERIC, b"rename_from"),
    "rename_to": (GENERIC, b"rename_to"),
    "copy_to": (GENERIC, b"copy_to"),
    "restore": (GENERIC, b"restore"),
    "truncate": (GENERIC, b"truncate"),
}


def normalized(flags: str) -> str:
    """The same flags as Redis shows them. Raises ValueError for a letter that is none."""
    given = set(flags)
    if given - set(CLASSES + WAYS + "A"):
        raise ValueError(flags)
    classes = "A" if "A" in given or given >= set(ALL) else "".join(one for one in CLASSES if one in given)
    return classes + "".join(way for way in WAYS if way in given)


def _has_changes(classes: str) -> bool:
    return GENERIC in classes or STRING in classes


class Notifications:
    """Tells subscribers of one server what happens to keys."""

    def __init__(self, engine: Engine, pubsub: PubSub) -> None:
        self.flags = ""  # as `normalized` makes them
        self._wanted = ""  # classes, with A spelled out
        self._engine = engine
        self._pubsub = pubsub
        self._home: Home | None = None
        self._lock = threading.Lock()  # of `set`
        self._run = 0  # which start of reading is the last
        self._end_wait: Callable[[], object] = lambda: None  # ends its waiting for the next change
        self._ended_at = 0.0  # the last slice, monotonic clock
        self._throttle = LogThrottle(log)

    def serve(self, home: Home) -> None:
        """The server has workers: this is the first."""
        flags, self._home = self.flags, home
        self.set("")
        self.set(flags)

    def set(self, flags: str) -> None:
        """Tells events of these classes from here on. Raises ValueError."""
        with self._lock:
            self.flags = normalized(flags)
            home, had = self._home, self._wanted
            if home is None:
                return
            self._wanted = self.flags.replace("A", ALL) if "K" in self.flags or "E" in self.flags else ""
            if (EXPIRED in had) != (EXPIRED in self._wanted):
                self._engine.expirer.on_expired = self.tell_expired if EXPIRED in self._wanted else None
            reads = _has_changes(self._wanted)
            if reads != _has_changes(had):
                self._run += 1  # who reads until now ends
                self._end_wait()
                if reads:
                    home.call_soon(partial(self._read, self._run, self._engine.feed.last(), deque()))

    def tell_expired(self, keys: Iterable[bytes]) -> None:
        """These keys have expired."""
        if EXPIRED in self._wanted:
            for key in keys:
                self._tell(key, b"expired", None)

    # -- in the first worker's thread ----------------------------------------------------------------------------------

    def _read(self, run: int, cursor: Cursor, waiting: deque[Change]) -> None:
        """Tells what waits, then what was committed behind the cursor, a slice at a time, and waits for more."""
        if run != self._run or self._engine.is_ending or self._home is None:
            return
        feed = self._engine.feed
        now = time.monotonic()
        until = now + min(SLICE_MAX_S, max(limits.SLICE_S, SLICE_SHARE * (now - self._ended_at)))
        more = True
        try:
            while (waiting or more) and time.monotonic() < until:  # with many subscribers, one change may take long
                if waiting:
                    self._tell_change(waiting.popleft())
                else:
                    page = feed.read(cursor, PAGE_CHANGES)
                    waiting, cursor, more = deque(page.changes), page.cursor, page.more
        except StorageFailed:
            raise
        except Exception as problem:  # noqa: BLE001  also a lack of memory: what comes next has to be told
            what = "they came too fast" if isinstance(problem, ChangesGone) else str(problem) or type(problem).__name__
            self._throttle.warn("read", f"subscribers miss notifications of changes: {what}")
            waiting, cursor, more = deque(), feed.last(), False
        self._ended_at = time.monotonic()
        call_soon = self._home.call_soon
        if waiting or more:
            call_soon(partial(self._read, run, cursor, waiting))
        else:

            def read_on() -> None:  # in this thread: the wait has its name by then
                self._read(run, end_wait(), deque())

            end_wait = self._end_wait = feed.wait(cursor, partial(call_soon, read_on))

    def _tell_change(self, change: Change) -> None:
        kind, event = EVENTS[change.op]
        if kind in self._wanted:
            self._tell(change.key, event, self._home)
        if change.op == "set" and change.expiry is not None and GENERIC in self._wanted:
            self._tell(change.key, b"expire", self._home)

    def _tell(self, key: bytes | None, event: bytes, here: Home | None) -> None:
        """`key`: None, of all keys. `here`: the worker whose thread this is."""
        if "K" in self.flags and key is not None:
            self._pubsub.deliver(Message(b"__keyspace@0__:" + key, event), here)
        if "E" in self.flags:
            self._pubsub.deliver(Message(b"__keyevent@0__:" + event, key or b""), here)
