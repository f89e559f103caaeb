"""What programs print for people: whole or with an error, harmless to a terminal, and with the right plural.

`Output` stands in for `sys.stdout`.  Python itself reports a full disk only when it ends, with a traceback, and refuses
text that the terminal's encoding lacks.
"""

from __future__ import annotations

import io
import os
import re
import sys
from typing import Final, TextIO

from merklekv.errors import OutputFailed

# Characters that a terminal obeys instead of showing them: control characters, and those that change the direction of
# the text or end its line.
_OBEYED: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


class OutputClosed(Exception):
    """The reader of our output has stopped reading, as in `merklekv config | head -1`."""


class Output(io.TextIOWrapper):
    """A text file that is written at once.  Raises OutputClosed and OutputFailed; what is lost then stays lost.

    Characters that its encoding lacks are written as escapes (`\\xe4`).
    """

    def __init__(self, file: TextIO) -> None:
        binary = open(file.fileno(), "wb", closefd=False)  # noqa: SIM115 - closed with this
        super().__init__(binary, encoding=file.encoding, errors="backslashreplace")

    def write(self, text: str) -> int:
        """Writes text and waits until the system has it."""
        try:
            written = super().write(text)
            super().flush()
        except OSError as error:
            # Else Python tries again when it ends, and complains.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                raise OutputClosed("the output: its reader has gone") from error
            raise OutputFailed(f"the output: cannot write: {error.strerror}") from error
        return written


def take_over_output() -> None:
    """Puts an Output in the place of stdout, unless the caller has closed that."""
    if sys.stdout is not None:
        sys.stdout = Output(sys.stdout)


def printable(text: str) -> str:
    """Text on one line: what does not print (control characters, line breaks, surrogates) as escapes, like `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def printable_json(text: str) -> str:
    """The same for JSON, which stays JSON of the same meaning."""
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def counted(number: int, thing: str, things: str = "") -> str:
    """A number with what it counts: `1 key`, `1,200 keys`; `things` is the plural unless that ends in s."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"
