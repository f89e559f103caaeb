"""Files that the user names for input or output, `-` for stdin or stdout."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from merklekv.errors import DiskFull
from merklekv.files import private
from merklekv.output import OutputClosed
from merklekv.shortage import NO_ROOM
from merklekv_tool.errors import FileError

STDIO: Final = "-"


@contextmanager
def output_errors(name: str) -> Iterator[None]:
    """Turns an OSError in the block into OutputClosed, DiskFull or FileError for the output `name`."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosed from error
    except OSError as error:
        raise file_error(error, f"{'the output' if name == STDIO else name}: cannot write") from error


def file_error(error: OSError, what: str) -> DiskFull | FileError:
    """The error for an OSError; `what` names the file and the failed action."""
    return (DiskFull if error.errno in NO_ROOM else FileError)(f"{what}: {error.strerror or error}")


def is_replaceable(path: Path) -> bool:
    """Whether a new file may get this name: a regular file has it, or nothing. Raises OSError.

    Anything else is written to, if at all: who may write in /dev would replace /dev/stdout, a link, for everybody.
    """
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return True


def draft_of(path: Path) -> Path:
    """Where what will get this name is made; short, because the name itself may be as long as names can be."""
    return path.with_name(f".merklekv-{os.getpid()}")


@contextmanager
def open_output(name: str) -> Iterator[BinaryIO]:
    """A file to write to. A regular file appears whole and on disk, or not at all, and only its user can read it."""
    with output_errors(name), _output(name) as file:
        yield file


@contextmanager
def _output(name: str) -> Iterator[BinaryIO]:
    path = Path(name)
    if name == STDIO:
        if sys.stdout is None:
            raise FileError("the output: cannot write: stdout is closed")
        with open(sys.stdout.fileno(), "wb", closefd=False) as stream:  # its close writes the rest, or fails
            yield stream
    elif not is_replaceable(path):
        with open(path, "wb", opener=private) as stream:
            yield stream
    else:
        draft = draft_of(path)
        try:
            with open(draft, "wb", opener=private) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            from merklekv.engine.log.segment import sync_directory  # here: its modules take long to import

            sync_directory(path.absolute().parent)
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def open_input(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """A file to read from, and its size, 0 if unknown. Raises FileError."""
    if name == STDIO:
        if sys.stdin is None:
            raise FileError("the input: cannot read: stdin is closed")
        yield sys.stdin.buffer, 0
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise FileError(f"{name}: cannot read: {error.strerror}") from error
    with file:
        yield file, os.fstat(file.fileno()).st_size
