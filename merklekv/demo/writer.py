"""The demo's traffic for one node: keys that this writer alone writes, and keys that all of them write.

Its own keys are in its account. It goes round them slowly, WRITES_TO_A_KEY at a time, so an outage reaches one after
the other. Keys that are shared have conflicts: the nodes agree on one of the values, which no account can name before.
"""

from __future__ import annotations

import random
from itertools import cycle, islice
from typing import Final

from merklekv.demo.account import Account
from merklekv.demo.part import NodePart, Request
from merklekv.net.client import NodeError

OWN_KEYS: Final = 200
OWN_WRITES: Final = 16  # in a burst
WRITES_TO_A_KEY: Final = 8
SHARED_KEYS: Final = 60
SHARED_WRITES: Final = 3
COUNTERS: Final = 10


class Writer:
    """Writes to a node in bursts."""

    def __init__(self, node: NodePart) -> None:
        self.node = node
        self.account = Account(tuple(b"%b:%d" % (node.name.encode(), number) for number in range(OWN_KEYS)))
        self._keys = cycle(key for key in self.account.keys for _ in range(WRITES_TO_A_KEY))
        self._random = random.Random()

    def write(self) -> None:
        """One burst, and what the node acknowledges of it."""
        own = [self.account.next_write(key) for key in islice(self._keys, OWN_WRITES)]
        answers = self.node.ask([*(write.request for write in own), *self._shared()])
        for write, answer in zip(own, answers, strict=False):
            if not isinstance(answer, NodeError):
                self.account.acknowledge(write)

    def lost_at(self, node: NodePart) -> list[bytes] | None:
        """The keys in the account whose last acknowledged write this node lacks; None if it does not answer."""
        keys = self.account.keys
        answers = node.ask([(b"MGET", *keys)])
        if not answers or not isinstance(answers[0], list):
            return None
        return list(self.account.lost(dict(zip(keys, answers[0], strict=True))))

    def _shared(self) -> list[Request]:
        draw = self._random
        keys = [b"shared:%d" % draw.randrange(SHARED_KEYS) for _ in range(SHARED_WRITES)]
        sets: list[Request] = [(b"SET", key, b"of " + self.node.name.encode()) for key in keys]
        return [*sets, (b"INCR", b"counter:%d" % draw.randrange(COUNTERS))]
