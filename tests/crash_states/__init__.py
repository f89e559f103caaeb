"""Crash states from the system calls of real runs: see `__main__`."""

import sys
from pathlib import Path

if (place := str(Path(__file__).parents[1])) not in sys.path:
    sys.path.insert(0, place)  # for `fixtures`, which pytest finds by itself
