"""A child process of the demo, in a session of its own so that a Ctrl-C in the terminal reaches the demo alone."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Final

from merklekv import interpreter
from merklekv.errors import MerkleKVError

STOP_S: Final = 10.0
LAST_LINES: Final = 2
SETTING_PREFIX: Final = "MERKLEKV_"


class DemoFailed(MerkleKVError):
    """The demo cannot go on; the text says what to do."""


class Child:
    """A process that can be ended and started again. Its output is in a file, from each start anew."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self._log = directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def launch(self, command: list[str]) -> None:
        """Starts it, once the one before, which was asked to stop, has ended."""
        self._wait_for_end()
        variables = interpreter.environment().items()
        environment = {name: value for name, value in variables if not name.startswith(SETTING_PREFIX)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Of the latest start."""
        return self._process.pid if self._process else 0

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, if there is somebody to take it."""
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it and what it started, as a power cut would."""
        if self._process is not None and self._process.returncode is None:
            # Not waited for yet, so the id is still its own, also when it has ended.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait_for_end(self) -> None:
        if self._process is not None:
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def output(self) -> str:
        """What it has said since its start."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def last_words(self) -> str:
        """Its last lines as one, for an error."""
        return " | ".join(self.output().strip().splitlines()[-LAST_LINES:]) or "it said nothing"
