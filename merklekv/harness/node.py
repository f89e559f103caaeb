"""A node as a child process: one `merklekv run` on a directory of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from merklekv import interpreter
from merklekv.harness.process import Server

READY: Final = re.compile(r"^merklekv \S+ ready on \S+:(?P<port>\d+), data in .*", re.MULTILINE)


class Node(Server):
    """A node that can be killed and started again, on the same directory and port.

    `flags` are those of `merklekv run`. The first start takes a free port, unless `port` is set before. Change
    `flags`, `environment`, `program` or `wrapper` (a command that runs the node, such as strace) between two starts.
    """

    def __init__(
        self,
        directory: Path,
        log: Path,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        own_session: bool = False,
    ) -> None:
        super().__init__(log, environment, own_session=own_session)
        self.directory = directory
        self.flags = flags
        self.wrapper: list[str] = []
        self.program = interpreter.command("merklekv")

    def command(self) -> list[str]:
        run = ["run", "--data-dir", str(self.directory), "--port", str(self.port)]
        return [*self.wrapper, *self.program, *run, *self.flags]

    @property
    def is_up(self) -> bool:
        if self.is_running and (ready := READY.search(self.output())):
            self.port = int(ready["port"])
            return True
        return False
