"""Lets what the tests start find the signals as a shell in the foreground leaves them.

A process inherits which signals are ignored and which are blocked. Under nohup, in the background of a script or below
some supervisors, SIGINT, SIGHUP and SIGQUIT are ignored, and a child that is sent one would not notice.
"""

from __future__ import annotations

import signal

# Python ignores these itself, and gives them back to every child.
OF_PYTHON = {signal.SIGPIPE, signal.SIGXFSZ}


def pytest_configure() -> None:
    """For what is ignored, a handler that does nothing: this process ignores it as before, and a child does not."""
    for number in signal.valid_signals() - OF_PYTHON:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
