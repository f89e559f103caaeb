"""A real terminal: a process on a pseudo-terminal of its own, which it is controlled by.

    with Terminal([sys.executable, "-m", "merklekv_tool", "diff", a, b], columns=40) as terminal:
        terminal.wait_for("differs")
        terminal.type(CTRL_C)
    assert terminal.status == 130
    terminal.text()                            # what was shown, without escape sequences
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from fix_node import clean_environment

CTRL_C = b"\x03"
ROWS = 50
END_S = 60.0
# What rich and typer send to a terminal: colours, movements of the cursor, erasing; nothing that sets titles or types.
SEQUENCE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
SIZE = ("COLUMNS", "LINES")


def surroundings(environment: Mapping[str, str | None]) -> dict[str, str]:
    """This environment, without settings of a node and sizes of another terminal, and with these; None removes one."""
    whole = {name: value for name, value in clean_environment().items() if name not in SIZE} | environment
    return {name: value for name, value in whole.items() if value is not None}


class Terminal:
    """A process on a terminal, from its start to its end."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str | None] | None = None, columns: int = 80
    ) -> None:
        self.shown = b""
        self.status: int | None = None
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=surroundings({"TERM": "xterm-256color", **(environment or {})}),
        )
        os.close(follower)

    def type(self, keys: bytes) -> None:
        os.write(self._leader, keys)

    def wait_for(self, text: str) -> None:
        """Reads until the text was shown."""
        deadline = time.monotonic() + END_S
        while text not in self.text():
            assert self._read(deadline), f"{text!r} was not shown:\n{self.text()}"

    def end(self) -> int:
        """Reads to the end; the exit status."""
        deadline = time.monotonic() + END_S
        while self._read(deadline):
            pass
        self.status = self._process.wait(END_S)
        return self.status

    def _read(self, deadline: float) -> bool:
        if not select.select([self._leader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError(f"still running after {END_S} s:\n{self.text()}")
        try:
            data = os.read(self._leader, 1 << 16)
        except OSError:  # Linux says so that nobody has the other side open any more
            return False
        self.shown += data
        return bool(data)

    def text(self, encoding: str = "utf-8") -> str:
        """What was shown, without escape sequences and with plain ends of lines."""
        return plain(self.shown, encoding)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.status is None:
            self.end()
        self._process.kill()
        self._process.wait()
        os.close(self._leader)


def plain(shown: bytes, encoding: str = "utf-8") -> str:
    return SEQUENCE.sub(b"", shown).decode(encoding, "replace").replace("\r\n", "\n")
