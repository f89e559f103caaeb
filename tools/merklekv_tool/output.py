"""What the verbs print: results on stdout, everything else on stderr, a progress bar only on a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Final, TextIO

from merklekv.errors import MerkleKVError
from merklekv.output import OutputClosed, is_terminal, printable, printable_json
from merklekv_tool.files import STDIO, output_errors

_program = "merklekv-tool"

TIME_WIDTH: Final = 32

Update = Callable[[int, int], None]


def say(text: str) -> None:
    """Prints lines of the result. Control characters in them are escaped."""
    say_styled("\n".join(map(printable, text.split("\n"))))


def say_styled(text: str) -> None:
    """Prints a line with escape sequences for a terminal."""
    _write(text, sys.stdout)


def say_json(values: dict[str, object], to_stderr: bool = False) -> None:
    """Prints the result as one JSON object."""
    file = sys.stderr if to_stderr else sys.stdout
    is_unicode = file is None or file.encoding.lower() == "utf-8"
    _write(printable_json(json.dumps(values, ensure_ascii=not is_unicode)), file)


def say_result(fields: dict[str, object], text: str, as_json: bool) -> None:
    """Prints the result as one JSON object or as text."""
    if as_json:
        say_json(fields)
    else:
        say(text)


def speak_as(program: str) -> None:
    """From here on, notes begin with the name of this program."""
    global _program
    _program = program


def note(text: str) -> None:
    """Prints a line that is not part of the result; one that stderr does not take is lost."""
    with suppress(MerkleKVError, OutputClosed):
        _write(printable(f"{_program}: {text}"), sys.stderr)


def _write(text: str, file: TextIO | None) -> None:
    if file is not None:  # the caller has closed it
        with output_errors(STDIO):
            file.write(f"{text}\n")


def terminal_width() -> int | None:
    """The columns of the terminal that stdout is; None if it is none."""
    return os.get_terminal_size(sys.stdout.fileno()).columns or None if is_terminal(sys.stdout) else None


def time_text(timestamp_ns: int) -> str:
    """A time in this machine's zone, with its offset, TIME_WIDTH characters; the number if there is no such date."""
    try:
        return datetime.fromtimestamp(timestamp_ns // 1000 / 10**6).astimezone().isoformat(" ", "microseconds")
    except (ValueError, OverflowError, OSError):
        return str(timestamp_ns)


def text_of(data: bytes) -> str:
    """Bytes as text on one line: a backslash is doubled, and what does not print is an escape."""
    return printable(data.replace(b"\\", b"\\\\").decode(errors="backslashreplace"))


@contextmanager
def progress(what: str, of_bytes: bool = False, prints: bool = False) -> Iterator[Update]:
    """A bar on stderr while the block runs; `update(done, total)` moves it, with total 0 if unknown.

    `prints`: the block prints to stdout. If that is a terminal, there is no bar, which would mix with the lines.
    """
    from rich import console as consoles
    from rich import progress as bars

    console = consoles.Console(stderr=True)
    hidden = not console.is_terminal or (prints and is_terminal(sys.stdout))
    with bars.Progress(
        *bars.Progress.get_default_columns()[:-1],
        bars.DownloadColumn() if of_bytes else bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=hidden,
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=max(done, total) if total else None)
