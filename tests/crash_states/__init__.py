"""Crash states from the system calls of real runs: see `__main__`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `fixtures`, which pytest finds by itself
