"""The rule that tells whether a curve grows.

A run has six parts of equal length. The first is left out: caches and heaps fill up in it. A curve grows if the median
of the last part is above the median of the second by more than a fifth, and by more than the slack of its kind.
Medians, because faults make peaks: a node that has just started is small, one that was frozen has much to send.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PARTS: Final = 6
GROWTH_MAX: Final = 0.2
SAMPLES_MIN: Final = 5  # in a part


@dataclass(frozen=True, slots=True)
class Change:
    """What a curve was after the warm-up, and what it is at the end."""

    before: float
    after: float
    slack: float

    @property
    def is_flat(self) -> bool:
        return self.after - self.before <= max(self.slack, GROWTH_MAX * abs(self.before))


def change(curve: Sequence[tuple[float, float]], seconds: float, slack: float) -> Change | None:
    """Of a curve of (second, value) over a run of so many seconds; None if it has too few values."""
    part = seconds / PARTS
    second = [value for at, value in curve if part <= at < 2 * part]
    last = [value for at, value in curve if seconds - part <= at <= seconds]
    if min(len(second), len(last)) < SAMPLES_MIN:
        return None
    return Change(statistics.median(second), statistics.median(last), slack)
