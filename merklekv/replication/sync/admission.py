"""Where exchanges that other nodes begin come in, before the responder answers them.

Two things are refused here, because only who begins exchanges as well can tell: the node itself, when it has reached
its own address, and a node with which this one has begun an exchange just now.  In the latter case one of the two has
to give way, the one with the larger id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Final

import cbor2

from merklekv.engine.engine import Engine
from merklekv.replication.cluster.members import Identity, Members
from merklekv.replication.fields import Malformed
from merklekv.replication.sync.messages import (
    MESSAGE_ROOM_BYTES,
    ExchangeRefused,
    Hello,
    decode,
    encode_refusal,
    hello_of,
)
from merklekv.replication.sync.responder import Responder

SERVING_S: Final = 1.0  # an exchange goes on if there was a step so recently
BUSY: Final = "busy"
ITSELF: Final = "itself"
_KIND_AT: Final = 5  # in a message, behind its head and the size of its map
_NAMING: Final = tuple(cbor2.dumps("do") + cbor2.dumps(kind) for kind in ("hello", "done"))

Slices = Generator[Callable[[], bool] | None, None, bytes]


class Admission:
    """Answers, and knows whom."""

    def __init__(
        self,
        engine: Engine,
        members: Members,
        cluster: str,
        has_begun: Callable[[str], bool],
        on_served: Callable[[Identity], None],
    ) -> None:
        """`has_begun`: whether this node is in an exchange with that one, begun here.  `on_served`: one with that node,
        begun there, came to its end.
        """
        self._engine = engine
        self._members = members
        self._responder = Responder(engine, members, cluster)
        self._has_begun = has_begun
        self._on_served = on_served
        self._serving: dict[str, float] = {}  # nodes, with the time of the last step of any (monotonic)

    def is_serving(self, node: str) -> bool:
        """Whether an exchange that this node has begun goes on."""
        return time.monotonic() - self._serving.get(node, float("-inf")) < SERVING_S

    def answer(self, message: bytes) -> Slices:
        """The answer to a message of another node, in slices."""
        hello = self.first_words(message)
        if hello is not None and (refusal := self._reason_to_refuse(hello)) is not None:
            return refusal
        before = self._members.applied_through(hello.table.identity) if hello else 0
        answer = yield from self._responder.answer(message)
        self._note_step(hello.node if hello else None)
        if hello is not None and self._members.applied_through(hello.table.identity) > before:
            self._on_served(hello.table.identity)
        return answer

    def first_words(self, message: bytes) -> Hello | None:
        """What the asking node says of itself, if this is the first message of an exchange, or the last."""
        if not message.startswith(_NAMING, _KIND_AT):
            return None
        try:
            kind, fields = decode(message, self._engine.max_value_size + MESSAGE_ROOM_BYTES)
            return hello_of(fields if kind == "hello" else fields.map("hello"))
        except (Malformed, ExchangeRefused):
            return None  # which the responder will say

    def _reason_to_refuse(self, hello: Hello) -> bytes | None:
        own = self._members.identity
        closed = (self._members.closed, self._members.proposed)
        if hello.table.identity == own and hello.table.report.closed in closed:
            return encode_refusal(ITSELF, f"node {own.node} has reached itself at this address")
        if self._has_begun(hello.node) and own.node < hello.node and not self.is_serving(hello.node):
            return encode_refusal(BUSY, f"node {own.node} has just begun an exchange by itself")
        return None

    def _note_step(self, node: str | None) -> None:
        """Which of several nodes asks is not known but for the first and the last message: all of them are alive."""
        now = time.monotonic()
        alive = [other for other, at in self._serving.items() if now - at < SERVING_S]
        self._serving = dict.fromkeys([*alive, node] if node else alive, now)
