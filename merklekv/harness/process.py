"""Servers as child processes that can be ended and started again, such as nodes. Their output is kept in a file."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self, TypeVar

from merklekv import interpreter
from merklekv.core import PURE_VARIABLE
from merklekv.errors import MerkleKVError

HOST: Final = "127.0.0.1"
WAIT_S: Final = 60.0
STOP_S: Final = 60.0
POLL_S: Final = 0.01
CONNECT_S: Final = 0.2
LAST_LINES: Final = 2
SETTING_PREFIX: Final = "MERKLEKV_"
PORTS: Final = range(20_000, 32_768)  # below those that Linux and others give out
READY: Final = re.compile(r"^merklekv \S+ ready on \S+:(?P<port>\d+), data in .*", re.MULTILINE)

T = TypeVar("T")

HELD_MAX: Final = 100  # ports that this process keeps from other processes, the last ones that it was given

_held: Final[dict[int, int]] = {}  # these ports, oldest first, and the descriptors of sockets that are bound to them


class HarnessError(MerkleKVError):
    """A process cannot be started, or something that was waited for did not come; the text says what."""


def wait_until(condition: Callable[..., T], *, seconds: float = WAIT_S, what: str = "") -> T:
    """Call the condition until it returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise HarnessError(f"waited {seconds} s in vain for {what or condition}")
        time.sleep(POLL_S)
    return result


def free_port() -> int:
    """A TCP port of the loopback on which no process listens just now.

    None that the kernel gives to connections, or to servers that ask for any: it stays free between two starts. And
    none that this or another process was given lately: who asked for it may listen there soon.
    """
    chance = random.SystemRandom()  # processes that seed the other one alike would take the same
    while True:
        port = chance.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            # It stays bound and does not listen. With this option, set only now, a server may listen on the port beside
            # it, since servers set it, too; but nobody's probe is bound there any more.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if len(_held) >= HELD_MAX:
                os.close(_held.pop(next(iter(_held))))
            _held[port] = probe.detach()
            return port


def is_setting(variable: str) -> bool:
    """Whether a variable of the environment would reach a node as a setting."""
    return variable.startswith(SETTING_PREFIX) and variable != PURE_VARIABLE


def setting_flags(settings: Mapping[str, object]) -> list[str]:
    """The words that give `merklekv run` these settings, by key."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


class Server(ABC):
    """A process that listens on a port of the loopback: start, stop, kill, its output. `with` starts it and ends it.

    Its environment is this one without the settings of a node, and with `environment`. In a session of its own, a
    Ctrl-C in the terminal does not reach it, and `kill` ends what it has started as well.
    """

    port = 0

    def __init__(
        self,
        log: Path,
        environment: Mapping[str, str] | None = None,
        *,
        own_session: bool = False,
        working_directory: Path | None = None,
    ) -> None:
        inherited = interpreter.environment().items()
        self.environment = {name: value for name, value in inherited if not is_setting(name)}
        self.environment |= environment or {}
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._own_session = own_session
        self._working_directory = working_directory
        self._log_start = 0

    @abstractmethod
    def command(self) -> list[str]:
        """What is run."""

    @property
    @abstractmethod
    def is_up(self) -> bool:
        """Whether it runs and serves."""

    def launch(self) -> subprocess.Popen[bytes]:
        """Start it without waiting until it serves. A run that was asked to stop ends first."""
        self._await_end()
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                self.command(),
                cwd=self._working_directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=self._own_session,
            )
        return self.process

    def start(self) -> Self:
        """Start it and wait until it serves."""
        process = self.launch()
        try:
            wait_until(lambda: self.is_up or process.poll() is not None, what="the start")
        except HarnessError as error:
            raise HarnessError(f"{error}:\n{self.output()}") from None
        if process.poll() is not None:
            raise HarnessError(f"exit status {process.returncode}:\n{self.output()}")
        return self

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        """Of the latest start; 0 before the first."""
        return self.process.pid if self.process else 0

    def output(self) -> str:
        """What it has written since its latest start."""
        return self.log.read_bytes()[self._log_start :].decode(errors="replace") if self.log.exists() else ""

    def last_words(self) -> str:
        """The last lines of its output as one, for an error."""
        return " | ".join(self.output().strip().splitlines()[-LAST_LINES:]) or "it said nothing"

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process is there to take it."""
        if self.process is not None:
            self.process.send_signal(number)

    def wait(self, seconds: float = STOP_S) -> int:
        """The exit status, negative for a signal; subprocess.TimeoutExpired if it goes on running."""
        assert self.process is not None, "it was not started"
        return self.process.wait(seconds)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop and wait for that; the exit status."""
        self.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """End it the hard way, as a power cut would."""
        if self.process is not None and self.process.returncode is None:
            # Not waited for yet, so the id is still its own, also when it has ended.
            if self._own_session:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
            self.process.wait()

    def end(self) -> None:
        """Ask it to stop, and kill it if it does not."""
        self.send_signal(signal.SIGTERM)
        self._await_end()

    def _await_end(self) -> None:
        if self.process is not None:
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def dial(self, timeout_s: float = 60.0) -> socket.socket:
        """A connection to it."""
        connection = socket.create_connection((HOST, self.port), timeout_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def accepts(self) -> bool:
        """Whether it takes a connection."""
        try:
            self.dial(CONNECT_S).close()
        except OSError:
            return False
        return True

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.end()


class Node(Server):
    """A node, `merklekv run`, that can be killed and started again on the same directory and port.

    `flags` are those of `merklekv run`. The first start takes a free port, unless `port` is set before. Change
    `flags`, `environment` or `program` between two starts.
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
        self.program = interpreter.command("merklekv")

    def command(self) -> list[str]:
        self.port = self.port or free_port()
        run = ["run", "--data-dir", str(self.directory), "--port", str(self.port)]
        return [*self.program, *run, *self.flags]

    @property
    def is_up(self) -> bool:
        if self.is_running and (ready := READY.search(self.output())):
            self.port = int(ready["port"])
            return True
        return False
