"""Log lines that come in floods, told once per burst: the first at once, then how many more there were."""

import logging
import time
from collections.abc import Callable
from typing import Final

THROTTLE_S: Final = 10.0
KINDS_MAX: Final = 100  # told apart; what is received may name as many as it likes
OTHERS: Final = "others"  # the kind of what comes when there are as many


class LogThrottle:
    """Warnings of a logger, at most one of a kind in BURST_S seconds."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._kinds: dict[str, tuple[float, int]] = {}  # when it was last told, how many were not

    def warn(self, kind: str, text: str, problem: BaseException | None = None) -> None:
        """Logs `text`, or counts it when one of its kind has just been logged.  With the traceback of `problem`."""
        now = self._clock()
        if kind not in self._kinds and len(self._kinds) >= KINDS_MAX - 1:
            self._kinds = {one: when for one, when in self._kinds.items() if now - when[0] < THROTTLE_S}
            kind = kind if len(self._kinds) < KINDS_MAX - 1 else OTHERS
        told, untold = self._kinds.get(kind, (-THROTTLE_S, 0))
        if now - told < THROTTLE_S:
            self._kinds[kind] = told, untold + 1
            return
        self._kinds[kind] = now, 0
        self._logger.warning("%s%s", text, f" (and {untold} more before)" if untold else "", exc_info=problem)
