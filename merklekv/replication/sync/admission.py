"""Admission of exchanges that other nodes begin, before the responder answers them.

It refuses what only the part that begins exchanges can tell: the node itself, which has reached its own address, and a
node with which this one has just begun an exchange.  Then the node with the larger id gives way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Final

from merklekv.engine.engine import Engine
from merklekv.replication.cluster.members import Identity, Members
from merklekv.replication.plain_cbor import Malformed
from merklekv.replication.sync.messages import (
    MESSAGE_ROOM_BYTES,
    ExchangeRefused,
    Hello,
    decode_request,
    encode_refusal,
)
from merklekv.replication.sync.responder import Responder

SERVING_S: Final = 1.0  # an exchange goes on if it had a step so recently
BUSY: Final = "busy"
ITSELF: Final = "itself"

Slices = Generator[Callable[[], bool] | None, None, bytes]


class Admission:
    """Answers the exchanges of other nodes, and knows which go on."""

    def __init__(
        self,
        engine: Engine,
        members: Members,
        cluster: str,
        has_begun: Callable[[str], bool],
        on_served: Callable[[Identity], None],
    ) -> None:
        """`has_begun`: has this node begun one with that node?  `on_served`: one that that node began is complete."""
        self._engine = engine
        self._members = members
        self._responder = Responder(engine, members, cluster)
        self._has_begun = has_begun
        self._on_served = on_served
        self._serving: dict[str, float] = {}  # nodes, with the time of the last step of any (monotonic)

    def is_serving(self, node: str) -> bool:
        """Predicate: does an exchange that this node has begun go on?"""
        return time.monotonic() - self._serving.get(node, float("-inf")) < SERVING_S

    def answer(self, message: bytes) -> Slices:
        """The answer to a message of another node, in slices."""
        try:
            request = decode_request(message, self._engine.max_value_size + MESSAGE_ROOM_BYTES)
            if request.hello is not None:
                self._require_admissible(request.hello)
        except (Malformed, ExchangeRefused) as problem:
            return encode_refusal(problem)
        identity = request.hello.table.identity if request.hello else None
        before = self._members.applied_through(identity) if identity else 0
        answer = yield from self._responder.serve(request)
        self._note_step(identity.node if identity else None)
        if identity is not None and self._members.applied_through(identity) > before:
            self._on_served(identity)
        return answer

    def _require_admissible(self, hello: Hello) -> None:
        own = self._members.identity
        closed = (self._members.closed, self._members.proposed)
        if hello.table.identity == own and hello.table.report.closed in closed:
            raise ExchangeRefused(ITSELF, f"node {own.node} has reached itself at this address")
        if self._has_begun(hello.node) and own.node < hello.node and not self.is_serving(hello.node):
            raise ExchangeRefused(BUSY, f"node {own.node} has just begun an exchange by itself")

    def _note_step(self, node: str | None) -> None:
        """A node has made a step.  Only the first and the last message name it; any other keeps all of them alive."""
        now = time.monotonic()
        alive = [other for other, at in self._serving.items() if now - at < SERVING_S]
        self._serving = dict.fromkeys([*alive, node] if node else alive, now)
