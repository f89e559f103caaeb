"""Real nodes: `merklekv run` as a process of its own, on a free port and a directory of its own.

    def test_something(node_factory):
        node = node_factory()                  # started and ready
        with node.connect() as client:
            assert client.ask("SET k v") == "OK"
        node.kill()                            # -9
        node.start()                           # the same directory and port

What a node logged is kept, and shown when the test fails. Every node is ended when its test is. With
MERKLEKV_TEST_LOG_LEVEL=debug the nodes log more; RUST_LOG, which users' scripts set, does the same.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

import pytest
from support import wait_until

READY = re.compile(r"merklekv \S+ ready on (?P<host>\S+):(?P<port>\d+), data in .*")
START_S = 20.0
STOP_S = 15.0
MORE_LOG = ("debug", "trace")  # less than `info` is not to be had: tests look for what nodes say
REPLY_S = 15.0


class LineClient:
    """The text protocol over one connection, as plainly as can be: a line there, lines back."""

    def __init__(self, host: str, port: int, timeout_s: float = REPLY_S) -> None:
        self.socket = socket.create_connection((host, port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> str:
        """The next reply line, without its ending; an empty string when the server has closed."""
        return self._received.readline().decode(errors="surrogateescape").removesuffix("\r\n")

    def ask(self, request: str) -> str:
        """Send one line and give the first line of the reply."""
        self.send(request.encode() + b"\r\n")
        return self.line()

    def ask_lines(self, request: str) -> list[str]:
        """Send one line and give a reply of several: as many as its head counts, or up to END."""
        head = self.ask(request)
        word, _, count = head.partition(" ")
        if word in ("STATS", "INFO") or head == "CLIENT LIST":
            lines = list(iter(self.line, "END"))
        elif word == "KEYS":
            lines = [self.line() for _ in range(int(count))]
        elif word == "VALUES":
            lines = [self.line() for _ in range(len(request.split()) - 1)]
        else:
            lines = []
        return [head, *lines]

    def close(self) -> None:
        self._received.close()
        self.socket.close()

    def __enter__(self) -> LineClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NodeProcess:
    """One `merklekv run`: start, stop, kill, and what it said."""

    def __init__(self, directory: Path, log: Path, *flags: str, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.flags = flags
        self.port = 0
        self.environment = clean_environment() | dict(environment or {})
        self.wrapper: list[str] = []  # a command that runs the node, such as strace or fiu-run
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        run = [
            sys.executable,
            "-m",
            "merklekv",
            "run",
            "--data-dir",
            str(self.directory),
            "--port",
            str(self.port),
        ]
        return [*self.wrapper, *run, *self.flags]

    def launch(self) -> subprocess.Popen[bytes]:
        """Start the process without waiting for it to be ready."""
        with self.log.open("ab") as log:
            self.log_start = log.tell()
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )
        return self.process

    def start(self) -> NodeProcess:
        """Start and wait for the ready line. The port of the first start is kept for the next ones."""
        process = self.launch()
        ready = wait_until(
            lambda: READY.search(self.output()) or process.poll() is not None,
            seconds=START_S,
            what="the ready line",
        )
        assert isinstance(ready, re.Match), f"exit status {process.returncode}:\n{self.output()}"
        self.port = int(ready["port"])
        return self

    def output(self) -> str:
        """What this start has written so far, the ready line and the log."""
        return self.log.read_bytes()[self.log_start :].decode(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def peak_bytes(self) -> int:
        """The most memory that the process ever had."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])

    def connect(self, timeout_s: float = REPLY_S) -> LineClient:
        return LineClient("127.0.0.1", self.port, timeout_s)

    def wait(self, seconds: float = STOP_S) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask for a stop and wait for it; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """End it the hard way, as a power cut would end the process."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Stop it if it runs, by force if it does not want to: what a test leaves behind."""
        if self.process is None or self.process.poll() is not None:
            return
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.kill()


def clean_environment() -> dict[str, str]:
    """This environment without settings of a node, which would reach the node under test, but for its log level."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MERKLEKV_")}
    wanted = os.environ.get("MERKLEKV_TEST_LOG_LEVEL") or os.environ.get("RUST_LOG", "")
    if wanted.rpartition("=")[2] in MORE_LOG:  # may be `module=level`
        environment["MERKLEKV_LOG_LEVEL"] = "debug"
    return environment


NodeFactory = Callable[..., NodeProcess]


@pytest.fixture
def node_factory(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NodeFactory]:
    """Make nodes: `node_factory("--durability", "never", start=False, directory=path, environment={...})`."""
    nodes: list[NodeProcess] = []

    def make(
        *flags: str,
        start: bool = True,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> NodeProcess:
        number = len(nodes)
        log = tmp_path / f"node-{number}.log"
        node = NodeProcess(directory or tmp_path / f"node-{number}", log, *flags, environment=environment)
        nodes.append(node)
        return node.start() if start else node

    yield make
    for node in nodes:
        node.end()
        if node.log.exists():
            request.node.add_report_section("teardown", f"log of {node.log.stem}", node.log.read_text(errors="replace"))


@pytest.fixture
def node(node_factory: NodeFactory) -> NodeProcess:
    """One node, ready."""
    return node_factory()
