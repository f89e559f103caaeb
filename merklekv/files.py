"""Files and directories that only the user who runs the process can read, whatever the umask."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
STDERR: Final = 2

Opener = Callable[[str, int], int]


def private(name: str, flags: int) -> int:
    """For `open(..., opener=private)`: a file that it creates has FILE_MODE."""
    return os.open(name, flags, FILE_MODE)


def occupy_standard_files() -> None:
    """Opens /dev/null in the place of stdin, stdout and stderr where the caller has closed them.

    Or a file of the data would get the number, and what any library prints would go into it.
    """
    with suppress(FileNotFoundError):  # there is no /dev
        while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
            os.set_inheritable(fd, True)
        os.close(fd)


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replaces the contents of a private file, or creates it, in one step.  Raises OSError.

    The draft is `path` with `.new` behind it.  Without `durable` a crash may bring the old contents back.
    """
    draft = path.with_name(f"{path.name}.new")
    with open(draft, "wb", opener=private) as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    draft.replace(path)
    if durable:
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
