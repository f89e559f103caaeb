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


def replaceable(name: str | Path) -> Path | None:
    """The regular file that this name leads to, or where there would be one; None for anything else. Raises OSError.

    Only that may be replaced: who may write in /dev would replace /dev/stdout, a link, for everybody.
    """
    path = Path(os.path.realpath(name))
    try:
        status = os.stat(name)  # of what is open, if the name is that of a descriptor: then there may be no such path
        return path if stat.S_ISREG(status.st_mode) and os.path.samestat(status, path.stat()) else None
    except FileNotFoundError:
        return None if os.path.exists(name) else path


def draft_of(path: Path) -> Path:
    """Where what will get this name is made; short, because the name itself may be as long as names can be.

    Each call gives another one: two containers may have processes of one number.
    """
    return path.with_name(f".merklekv-{os.getpid()}-{os.urandom(6).hex()}")


@contextmanager
def open_output(name: str) -> Iterator[BinaryIO]:
    """A file to write to. A regular file appears whole and on disk, or not at all, and only its user can read it."""
    with output_errors(name), _output(name) as file:
        yield file


@contextmanager
def _output(name: str) -> Iterator[BinaryIO]:
    if name == STDIO:
        if sys.stdout is None:
            raise FileError("the output: cannot write: stdout is closed")
        with open(sys.stdout.fileno(), "wb", closefd=False) as stream:  # its close writes the rest, or fails
            yield stream
    elif (path := replaceable(name)) is None:
        with open(name, "wb", opener=private) as stream:
            yield stream
    else:
        with _drafted(path) as (draft, file):
            yield file
            file.flush()
            os.fsync(file.fileno())
            draft.replace(path)
        from merklekv.engine.log.segment import sync_directory  # here: its modules take long to import

        sync_directory(path.parent)


@contextmanager
def _drafted(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `path`, which is removed when the block ends unless it got another name."""
    draft, is_ours = draft_of(path), True
    try:
        try:
            file = open(draft, "xb", opener=private)  # noqa: SIM115 - within the try, or a signal could leave it behind
        except OSError:
            is_ours = False
            raise
        with file:
            yield draft, file
    finally:
        if is_ours:
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
