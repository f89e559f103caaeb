"""Files and directories that only the user of the process can read, whatever the umask.

os.mkdir(path, DIRECTORY_MODE)
open(path, "wb", opener=private)
"""

import os
from collections.abc import Callable
from typing import Final

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600

Opener = Callable[[str, int], int]


def private(name: str, flags: int) -> int:
    """An `opener` for `open`: the file that it creates has FILE_MODE."""
    return os.open(name, flags, FILE_MODE)
