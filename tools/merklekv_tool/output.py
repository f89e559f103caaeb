"""What the verbs say and show: results on stdout, everything else on stderr, a progress bar only to a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, BinaryIO, Final, TextIO

import typer

from merklekv.errors import DiskFull
from merklekv.output import OutputClosed, printable, printable_json
from merklekv.private import Opener, private
from merklekv.shortage import NO_ROOM
from merklekv_tool.statuses import FileError

STDIO: Final = "-"

PlaceName = Annotated[str, typer.Argument(metavar="DIR|HOST:PORT", help="A data directory or a running node.")]
NodeName = Annotated[str, typer.Argument(metavar="HOST:PORT", help="A running node.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of words.")]

Update = Callable[[int, int], None]


def say(text: str) -> None:
    """Lines of the result. What a terminal would obey in names and values of others is escaped."""
    say_styled("\n".join(map(printable, text.split("\n"))))


def say_styled(text: str) -> None:
    """A line with our own escape sequences for a terminal."""
    _write(text, sys.stdout)


def moment(timestamp_ns: int) -> str:
    """A time in nanoseconds as a person reads it, by this machine's zone, or as a number where that has no end."""
    try:
        return datetime.fromtimestamp(timestamp_ns // 1000 / 10**6).isoformat(" ", "microseconds")
    except (ValueError, OverflowError, OSError):
        return str(timestamp_ns)


def note(text: str) -> None:
    """A line beside the result."""
    _write(printable(f"merklekv-tool: {text}"), sys.stderr)


def say_json(values: dict[str, object], to_stderr: bool = False) -> None:
    """The whole result as one JSON object."""
    file = sys.stderr if to_stderr else sys.stdout
    is_unicode = file is None or file.encoding.lower() == "utf-8"
    _write(printable_json(json.dumps(values, ensure_ascii=not is_unicode)), file)


def _write(text: str, file: TextIO | None) -> None:
    if file is not None:  # else the caller has closed it
        with writing(STDIO):
            file.write(f"{text}\n")


@contextlib.contextmanager
def writing(name: str) -> Iterator[None]:
    """Says what an error of the file system in the block means for the output of that name."""
    try:
        yield
    except BrokenPipeError as error:
        raise OutputClosed from error
    except OSError as error:
        problem = DiskFull if error.errno in NO_ROOM else FileError
        shown = "the output" if name == STDIO else name
        raise problem(f"{shown}: cannot write: {error.strerror}") from error


def text_of(data: bytes) -> str:
    """Bytes as text on one line."""
    text = data.decode(errors="backslashreplace")
    return text if text.isprintable() else repr(text)[1:-1]


@contextlib.contextmanager
def progress(what: str, of_bytes: bool = False, prints: bool = False) -> Iterator[Update]:
    """A bar on stderr while the block runs; it is moved by `update(done, total)`, total 0 when nobody knows.

    `prints`: the block writes to stdout. Where that is a terminal, there is no bar, which would be among the lines.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    amount: ProgressColumn = DownloadColumn() if of_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), amount, TimeRemainingColumn())
    hidden = not console.is_terminal or (prints and sys.stdout is not None and sys.stdout.isatty())
    with Progress(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False, disable=hidden
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=max(done, total) if total else None)


@contextlib.contextmanager
def written(name: str, opener: Opener | None = private) -> Iterator[BinaryIO]:
    """The file to write a result to, `-` for stdout. It gets its name when it is whole and on disk, or not at all.

    Only its user can read it; with `opener` None whoever the umask lets.
    """
    with writing(name), _target(name, opener) as file:
        yield file


@contextlib.contextmanager
def _target(name: str, opener: Opener | None) -> Iterator[BinaryIO]:
    path = Path(name)
    if name == STDIO:
        if sys.stdout is None:
            raise FileError("the output: cannot write: stdout is closed")
        with open(sys.stdout.fileno(), "wb", closefd=False) as stream:  # written whole, or fails, when it is closed
            yield stream
    elif path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with path.open("wb") as stream:
            yield stream
    else:
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(draft, "wb", opener=opener) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def readable(name: str) -> Iterator[tuple[BinaryIO, int]]:
    """The file to read from, `-` for stdin, and its size (0 where that is not known)."""
    if name == STDIO:
        yield sys.stdin.buffer, 0
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise FileError(f"{name}: cannot read: {error.strerror}") from error
    with file:
        yield file, os.fstat(file.fileno()).st_size
