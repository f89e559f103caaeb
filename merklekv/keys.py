"""Keys as they are typed in a terminal."""

from __future__ import annotations

import os
import sys
import termios
import tty
from typing import Final

from merklekv.readiness import wait_readable

QUIT: Final = "q"


class Keys:
    """Reads keys one at a time, without an echo. Restores the terminal at the end."""

    def __enter__(self) -> Keys:
        self._terminal = sys.stdin.fileno()
        self._saved = termios.tcgetattr(self._terminal)
        tty.setcbreak(self._terminal)
        return self

    def __exit__(self, *error: object) -> None:
        termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._saved)

    def wait(self, seconds: float) -> str:
        """The keys typed within `seconds`; returns at the first. QUIT if the terminal is gone."""
        if not wait_readable([self._terminal], seconds):
            return ""
        try:
            return os.read(self._terminal, 64).decode(errors="ignore") or QUIT
        except OSError:  # the terminal is gone
            return QUIT
