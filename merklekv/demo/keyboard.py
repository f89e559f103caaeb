"""The keys of the terminal, one at a time."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from typing import Final

END_OF_INPUT: Final = "q"


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
        """The keys typed within `seconds`; returns at the first."""
        if not select.select([self._terminal], [], [], seconds)[0]:
            return ""
        try:
            return os.read(self._terminal, 64).decode(errors="ignore") or END_OF_INPUT
        except OSError:  # the terminal is gone
            return END_OF_INPUT
