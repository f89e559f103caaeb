"""What ends the tool: SIGTERM and what asks for the same, Ctrl-C, and the hangup of a terminal that closes.

Each raises an exception in the main thread, wherever that is, so that unfinished files are removed on the way out. Work
that must not be cut anywhere holds the signal back, and says where it may end.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from merklekv_tool.exit_codes import EXIT_TERMINATED


class _Interrupt(KeyboardInterrupt):
    """Ctrl-C. After a plain KeyboardInterrupt in `exec` Python kills itself at the end, whatever the exit status.

    Imports use `exec`: dataclasses and named tuples are made with it.
    """


class _Held:
    """Whether signals are held back, and what has come meanwhile."""

    is_on = False
    due: BaseException | None = None

    def end_if_due(self) -> None:
        due, self.due = self.due, None
        if due is not None:
            raise due


_held = _Held()


def receive_signals() -> None:
    """From here on, end as this module says. Ctrl-C or a hangup that the caller of the tool ignores stays ignored."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGXCPU, _end)
    # Ignored under nohup, and in what a script runs in the background.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    _held.due = _Interrupt() if number == signal.SIGINT else SystemExit(EXIT_TERMINATED)
    if not _held.is_on:
        _held.end_if_due()


@contextlib.contextmanager
def held_signals() -> Iterator[Callable[[], None]]:
    """Holds signals back in the block. The call that it gives ends the tool if one has come, and so does its end."""
    _held.is_on = True
    try:
        yield _held.end_if_due
    finally:
        _held.is_on = False
    _held.end_if_due()
