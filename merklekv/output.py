"""Text for people: printed whole or with an error, harmless to a terminal, with the right plural.

`Output` replaces `sys.stdout`. Python itself reports a full disk only at exit, with a traceback, and refuses characters
that the terminal's encoding lacks.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Final, TextIO

from merklekv.errors import OutputFailed

# Control characters, and those that change the direction of the text or end its line.
_OBEYED: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class OutputClosed(Exception):
    """The reader of our output has stopped reading, as in `merklekv config | head -1`."""


class Output(io.TextIOWrapper):
    """A text file without a buffer. Raises OutputClosed and OutputFailed; text that was lost then stays lost.

    Characters that its encoding lacks are written as escapes (`\\xe4`).
    """

    def __init__(self, file: TextIO) -> None:
        binary = open(file.fileno(), "wb", closefd=False)  # noqa: SIM115 - closed with this
        super().__init__(binary, encoding=file.encoding, errors="backslashreplace")

    def write(self, text: str) -> int:
        """Writes text and returns when the system has it."""
        try:
            written = super().write(text)
            super().flush()
        except OSError as error:
            # Or Python tries again at exit, and prints a traceback.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                raise OutputClosed("the output: its reader has gone") from error
            raise OutputFailed(f"the output: cannot write: {error.strerror}") from error
        return written


def take_over_output() -> None:
    """Replaces stdout by an Output, unless the caller has closed it."""
    if sys.stdout is not None:
        sys.stdout = Output(sys.stdout)


def is_terminal(file: TextIO | None) -> bool:
    """Whether this is a terminal; None is a file that the caller has closed."""
    return file is not None and file.isatty()


def printable(text: str) -> str:
    """Text on one line, with control characters, line breaks and surrogates as escapes, like `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_json(text: str) -> str:
    """The same for JSON; its meaning stays the same."""
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def counted(number: int, thing: str, things: str = "") -> str:
    """A number with its noun: `1 key`, `1,200 keys`; `things` is an irregular plural."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


def require_number(value: float | None) -> float | None:
    """For an option with bounds: refuses `nan`, which is within any."""
    import typer

    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number")
    return value


def led_to_help(complaint: str, command: str) -> str:
    """A complaint about a command line with the way out: `Missing command; 'merklekv --help' shows what there is`."""
    complaint = complaint.rstrip(".")
    return f"{complaint}{'' if complaint.endswith('?') else ';'} '{command} --help' shows what there is"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
