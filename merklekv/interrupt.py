"""Starts a program. Until its imports are done, Ctrl-C ends it silently; Python alone would show a traceback.

This module imports next to nothing, because it can only act once it is imported itself.
"""

import os
import signal

EXIT_INTERRUPTED = 130  # as shells have it


def run_program(module: str) -> None:
    """Imports a module and calls its `main`. Until `main` sets a handler, Ctrl-C ends the process at once.

    A process that ignores Ctrl-C, as one that a script runs in the background does, goes on ignoring it.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(EXIT_INTERRUPTED))
    import importlib

    from merklekv.files import occupy_standard_files

    occupy_standard_files()
    importlib.import_module(module).main()
