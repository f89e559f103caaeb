"""Ctrl-C while a program starts.  It imports next to nothing: until it has run, Python answers with a traceback."""

import os
import signal

EXIT_INTERRUPTED = 130  # as shells have it


def leave_on_interrupt() -> None:
    """Lets Ctrl-C end the process at once and silently, for as long as there is nothing to clean up.

    A process that ignores it, as those that a script runs in the background, goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(EXIT_INTERRUPTED))
