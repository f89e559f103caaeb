"""Servers for the benchmarks: a MerkleKV node or a Redis, as a process of its own, on a free port, on disk."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

START_TIMEOUT_S = 30


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def private_memory(pid: int) -> int:
    """Bytes of anonymous memory of a process and its children."""
    total = 0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        except OSError:
            continue  # it has just ended
        found = re.search(r"^Anonymous:\s+(\d+) kB", text, re.MULTILINE)
        total += int(found.group(1)) * 1024 if found else 0
    return total


class Server:
    """A server process.  `with` starts it, waits until it answers PING, and stops it."""

    def __init__(self, command: list[str], port: int) -> None:
        self._command = command
        self.port = port

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        self.pid = self._process.pid
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"did not start: {' '.join(self._command)}")
            time.sleep(0.02)

    def stop(self) -> None:
        """SIGTERM; returns when it has ended."""
        self._process.terminate()
        self._process.wait()

    def connect(self) -> socket.socket:
        """A connection to it."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with self.connect() as connection:
                connection.sendall(b"*1\r\n$4\r\nPING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


class Node(Server):
    """A MerkleKV node.  Options are settings of `merklekv run`, as its environment takes them."""

    program: tuple[str, ...] = ("-m", "merklekv")

    def __init__(self, directory: str | Path, **options: str) -> None:
        port = free_port()
        self._environment = {f"MERKLEKV_{name.upper()}": value for name, value in options.items()}
        command = ["env", *(f"{name}={value}" for name, value in self._environment.items())]
        command += [sys.executable, *self.program, "run"]
        super().__init__([*command, "--data-dir", str(directory), "--port", str(port), "--log-level", "warning"], port)


class Redis(Server):
    """Debian's redis-server with an append-only file, as durable as `appendfsync` (always, everysec, no) says."""

    def __init__(self, directory: str | Path, appendfsync: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise SystemExit("redis-server is not installed: apt-get install redis-server")
        os.makedirs(directory, exist_ok=True)
        port = free_port()
        settings = {
            "port": str(port),
            "dir": str(directory),
            "save": "",
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "auto-aof-rewrite-percentage": "0",
            "loglevel": "warning",
        }
        super().__init__([program, *(word for name, value in settings.items() for word in (f"--{name}", value))], port)
