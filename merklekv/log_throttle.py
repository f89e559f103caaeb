"""Throttles for log lines that may come in floods.

LogThrottle    of each kind of line one in THROTTLE_S, with the number of those left out
StateLog       that something lasts and that it is over: both lines or neither, and as rarely
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

THROTTLE_S: Final = 10.0
KINDS_MAX: Final = 100  # a peer may cause any number of kinds
OTHERS: Final = "others"  # the kind of all that exceed KINDS_MAX


class LogThrottle:
    """Logs lines, at most one of a kind in THROTTLE_S seconds."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self.kinds: dict[str, tuple[float, int]] = {}  # when the last one was logged, how many were not

    def warn(
        self,
        kind: str,
        text: str,
        problem: BaseException | None = None,
        *,
        level: int = logging.WARNING,
        fields: Mapping[str, object] | None = None,
    ) -> bool:
        """Logs `text` with the traceback of `problem`, or counts it if one of its kind was logged just before.

        With `fields` the text is a format of them: `the broker at %(address)s`. Returns whether it was logged.
        """
        now = self._clock()
        if kind not in self.kinds and len(self.kinds) >= KINDS_MAX - 1:
            self.kinds = {one: when for one, when in self.kinds.items() if now - when[0] < THROTTLE_S}
            kind = kind if len(self.kinds) < KINDS_MAX - 1 else OTHERS
        logged_at, left_out = self.kinds.get(kind, (-THROTTLE_S, 0))
        if now - logged_at < THROTTLE_S:
            self.kinds[kind] = logged_at, left_out + 1
            return False
        self.kinds[kind] = now, 0
        more = f" (and {left_out} more before)" if left_out else ""
        self._logger.log(level, text + more, *([fields] if fields else []), exc_info=problem)
        return True


class StateLog:
    """Logs a state that comes and goes, such as a full disk.

    The owner calls `lasts` again while the state lasts: a state that came back too soon to be logged is logged then.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._throttle = LogThrottle(logger, clock)
        self._is_logged = False

    def lasts(self, text: str) -> None:
        """It has begun, or goes on."""
        if not self._is_logged:
            self._is_logged = self._throttle.warn("", text, level=logging.ERROR)

    def is_over(self, text: str) -> None:
        """It has ended, or there was nothing."""
        if self._is_logged:
            self._is_logged = False
            self._logger.warning("%s", text)
