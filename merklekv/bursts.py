"""Log lines that come in floods, told once per burst: the first at once, then how many more there were."""

import logging
import time
from collections.abc import Callable
from typing import Final

BURST_S: Final = 10.0
KINDS_MAX: Final = 1000  # told apart; what is received may name as many as it likes


class BurstLog:
    """Warnings of a logger, at most one of a kind in BURST_S seconds."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._kinds: dict[str, tuple[float, int]] = {}  # when it was last told, how many were not

    def warn(self, kind: str, text: str, problem: BaseException | None = None) -> None:
        """Logs `text`, or counts it when one of its kind has just been logged.  With the traceback of `problem`."""
        now = self._clock()
        told, untold = self._kinds.get(kind, (-BURST_S, 0))
        if now - told < BURST_S:
            self._kinds[kind] = told, untold + 1
            return
        if len(self._kinds) >= KINDS_MAX:
            self._kinds.clear()
        self._kinds[kind] = now, 0
        self._logger.warning("%s%s", text, f" (and {untold} more before)" if untold else "", exc_info=problem)
