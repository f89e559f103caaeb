"""The wall clocks of other nodes beside this one's, as their exchanges tell: whose clock is most likely wrong?

One node cannot tell which of two clocks is wrong.  A node that agrees with others, or differs from all of them, can.
Nothing but what people read depends on this, so a node that lies misleads nobody else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from merklekv.output import counted

AGE_MAX_S: Final = 900.0  # a peer that runs begins an exchange at least every six minutes
NODES_MAX: Final = 1000


class PeerClocks:
    """How far the clocks of other nodes are ahead of this one's.  Thread-safe."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen: dict[str, tuple[float, float]] = {}  # by node: seconds ahead, when that was

    def observe(self, node: str, ahead_s: float) -> None:
        """The clock of a node is ahead of this one's by so many seconds, or behind if negative; 0: they agree."""
        self._seen.pop(node, None)
        self._seen[node] = ahead_s, self._monotonic()
        if len(self._seen) > NODES_MAX:
            self._seen.pop(next(iter(self._seen), ""), None)

    def forget(self, node: str) -> None:
        """What the clock of a node shows is not known any more."""
        self._seen.pop(node, None)

    def clear(self) -> None:
        """This node's clock has jumped."""
        self._seen.clear()

    def advice(self, own: str, peer: str, max_drift_s: float) -> str:
        """Which clock to set, if those of this node and a peer differ by more than the drift."""
        near, far = self._near_and_far(max_drift_s)
        far.pop(peer, None)
        if near:
            return f"set the clock of node {peer}; that of node {own} agrees with {counted(len(near), 'other node')}"
        if far:
            return f"set the clock of node {own}; it differs from those of all {len(far) + 1} nodes that it knows"
        return "set the clock that is wrong"

    def problem(self, own: str, max_drift_s: float) -> str:
        """The clock that differs most, by more than the drift, and which one to set; empty if there is none."""
        _, far = self._near_and_far(max_drift_s)
        if not far:
            return ""
        peer = max(far, key=lambda node: abs(far[node]))
        ahead = far[peer]
        others = f", those of {counted(len(far) - 1, 'other node')} too" if len(far) > 1 else ""
        return (
            f"the clock of node {peer} is {'ahead of' if ahead > 0 else 'behind'} that of node {own} by "
            f"{abs(ahead):.0f} s{others}: {self.advice(own, peer, max_drift_s)}"
        )

    def _near_and_far(self, max_drift_s: float) -> tuple[dict[str, float], dict[str, float]]:
        now = self._monotonic()
        recent = {node: ahead for node, (ahead, at) in [*self._seen.items()] if now - at <= AGE_MAX_S}
        far = {node: ahead for node, ahead in recent.items() if abs(ahead) > max_drift_s}
        return {node: ahead for node, ahead in recent.items() if node not in far}, far
