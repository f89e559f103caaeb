"""How long to wait before the next attempt to connect to the broker.

The wait doubles with each attempt that fails, up to RETRY_MAX_S, and starts anew after each connection.

A broker gives a session to the latest client with its client id, and ends the connection of the one before.  Two
processes with one client id would take the session from each other for ever.  So the wait also doubles, up to
DUPLICATE_RETRY_MAX_S, with each loss that shows such a duplicate, and after SHORT_MAX connections in a row that lasted
less than STEADY_S and published nothing: MQTT 3.1.1 gives no other sign.  Each process then has the session for a while
and publishes what it has; if one ends, the other is back within that time.
"""

from __future__ import annotations

from typing import Final

RETRY_MIN_S: Final = 0.1
RETRY_MAX_S: Final = 3.0
DUPLICATE_RETRY_MAX_S: Final = 30.0
STEADY_S: Final = 30.0
SHORT_MAX: Final = 8


class Backoff:
    """The waits of one reconnect loop.  `is_crowded`: too many connections in a row were short."""

    def __init__(self) -> None:
        self._wait_s = 0.0
        self._short = 0  # connections in a row that did not last

    @property
    def is_crowded(self) -> bool:
        return self._short >= SHORT_MAX

    def restart_s(self) -> float:
        """Seconds to wait after a connection that published something."""
        self._wait_s, self._short = RETRY_MIN_S, 0
        return self._wait_s

    def next_wait_s(self, stood_s: float | None, has_duplicate: bool = False) -> float:
        """Seconds to wait after a connection that lasted `stood_s`; None: the broker did not accept it."""
        if stood_s is not None:
            self._short = self._short + 1 if stood_s < STEADY_S else 0
            if not self._short or not (has_duplicate or self.is_crowded):
                self._wait_s = 0.0
        limit_s = DUPLICATE_RETRY_MAX_S if has_duplicate or self.is_crowded else RETRY_MAX_S
        self._wait_s = min(2 * self._wait_s + RETRY_MIN_S, limit_s)
        return self._wait_s
