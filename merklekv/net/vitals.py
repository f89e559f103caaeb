"""What a server measures of itself beside its counters: traffic, rates, the peak of its memory.

The worker that looks at its connections once a second takes a sample. Counters never go back: CONFIG RESETSTAT notes
where they are, and INFO shows how far they have come since.

Threads: every worker adds to its own `Bytes`; anyone may read.
"""

from __future__ import annotations

import os
import resource
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from merklekv.malloc import trim

SAMPLES: Final = 16  # of the last seconds: a rate is the mean over them
SAMPLE_S: Final = 1.0
GATHERED_BYTES: Final = 16 << 20
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def memory() -> tuple[int, int]:
    """Bytes of this process in RAM, and how many of them are no pages of files, which the kernel may take back.

    With a shortage of files both are the most that there ever was.
    """
    try:
        pages = Path("/proc/self/statm").read_bytes().split()
    except OSError:  # no file can be opened
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return peak, peak
    resident, shared = (int(count) * _PAGE_BYTES for count in pages[1:3])
    return resident, resident - shared


class Vitals:
    """The samples of one server."""

    def __init__(self) -> None:
        self.peak_bytes = self._beside = memory()[1]  # the second: beside what is known to be in use
        self._before: dict[str, int] = {}  # counters when CONFIG RESETSTAT came
        self._samples: deque[tuple[float, Mapping[str, int]]] = deque(maxlen=SAMPLES)

    def is_due(self, now: float) -> bool:
        """Whether the last sample is a second old; `now` is monotonic."""
        return not self._samples or now - self._samples[-1][0] >= SAMPLE_S

    def sample(self, now: float, counters: Mapping[str, int], used: int) -> None:
        """Takes one; `used` bytes are known to be in use. Gives memory back when much more has gathered beside these.

        That takes up to 0.1 ms for each MiB.
        """
        self._samples.append((now, counters))
        own = memory()[1]
        self.peak_bytes = max(self.peak_bytes, own)
        if own - used > self._beside + GATHERED_BYTES:
            trim()
            self._beside = memory()[1] - used
        else:
            self._beside = min(self._beside, own - used)

    def rate(self, name: str) -> float:
        """How much a counter grows in a second."""
        if len(self._samples) < 2:
            return 0.0
        (began, first), (ended, last) = self._samples[0], self._samples[-1]
        return (last[name] - first[name]) / (ended - began)

    def reset(self, counters: Mapping[str, int]) -> None:
        """Lets INFO count from here on."""
        self._before = dict(counters)
        self.peak_bytes = memory()[1]

    def since_reset(self, counters: Mapping[str, int]) -> dict[str, int]:
        """The counters as INFO shows them."""
        return {name: value - self._before.get(name, 0) for name, value in counters.items()}
