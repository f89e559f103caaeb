"""A throttle for log lines that come in floods: of each kind one in THROTTLE_S, with the number of those left out."""

import logging
import time
from collections.abc import Callable
from typing import Final

THROTTLE_S: Final = 10.0
KINDS_MAX: Final = 100  # a peer may cause any number of kinds
OTHERS: Final = "others"  # the kind of all that exceed KINDS_MAX


class LogThrottle:
    """Logs warnings, at most one of a kind in THROTTLE_S seconds."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self.kinds: dict[str, tuple[float, int]] = {}  # when the last one was logged, how many were not

    def warn(self, kind: str, text: str, problem: BaseException | None = None) -> None:
        """Logs `text` with the traceback of `problem`, or counts it if one of its kind was logged just before."""
        now = self._clock()
        if kind not in self.kinds and len(self.kinds) >= KINDS_MAX - 1:
            self.kinds = {one: when for one, when in self.kinds.items() if now - when[0] < THROTTLE_S}
            kind = kind if len(self.kinds) < KINDS_MAX - 1 else OTHERS
        logged_at, left_out = self.kinds.get(kind, (-THROTTLE_S, 0))
        if now - logged_at < THROTTLE_S:
            self.kinds[kind] = logged_at, left_out + 1
            return
        self.kinds[kind] = now, 0
        self._logger.warning("%s%s", text, f" (and {left_out} more before)" if left_out else "", exc_info=problem)
