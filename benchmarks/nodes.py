"""Servers for the benchmarks, each as a process of its own on a free port: a node, a Redis, one that does nothing.

And what a process takes: memory, disk, CPU time.
"""

import re
import shutil
import subprocess
import time
from pathlib import Path

import psutil

from merklekv.harness.process import HOST, Node, Server, free_port

NULL_SERVER = Path(__file__).parent / "null_server.c"
COMPILERS = ("cc", "gcc", "clang")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, user and system, of all its threads, also those that have ended; not of its children.

    The process's CPU clock, see clock_getcpuclockid(3): in nanoseconds, where /proc/PID/stat has only clock ticks.
    """
    return time.clock_gettime((~pid << 3) | 2)


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


def bytes_on_disk(directory: Path) -> int:
    """Bytes that the files of a directory take on disk; they come and go meanwhile."""
    total = 0
    for file in directory.rglob("*"):
        try:
            total += file.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def make_node(directory: Path, **settings: str) -> Node:
    """A node with these settings of `merklekv run`, named as its environment names them. Not started."""
    environment = {f"MERKLEKV_{name.upper()}": value for name, value in settings.items()}
    return Node(directory, Path(f"{directory}.log"), "--log-level", "warning", environment=environment)


class Redis(Server):
    """Debian's redis-server with an append-only file, as durable as `appendfsync` (always, everysec, no) says."""

    def __init__(self, directory: Path, appendfsync: str) -> None:
        super().__init__(Path(f"{directory}.log"))
        self.port = free_port()
        self._directory = directory
        self._appendfsync = appendfsync

    def command(self) -> list[str]:
        program = shutil.which("redis-server")
        if program is None:
            raise SystemExit("redis-server is not installed: apt-get install redis-server")
        self._directory.mkdir(parents=True, exist_ok=True)
        settings = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self._directory),
            "save": "",
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "auto-aof-rewrite-percentage": "0",
            "loglevel": "warning",
        }
        return [program, *(word for name, value in settings.items() for word in (f"--{name}", value))]

    @property
    def is_up(self) -> bool:
        """Whether it answers: it listens before its data is loaded."""
        try:
            with self.dial() as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False


class NullServer(Server):
    """The limit, null_server.c: it answers +OK to everything."""

    def __init__(self, program: Path, log: Path) -> None:
        super().__init__(log)
        self.port = free_port()
        self._program = program

    def command(self) -> list[str]:
        return [str(self._program), str(self.port)]

    @property
    def is_up(self) -> bool:
        return self.accepts()


def make_null_server(directory: Path) -> NullServer | None:
    """Compiles it into a directory, where it is not there yet; None if there is no C compiler. Not started."""
    program = directory / "null_server"
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None
    if not program.exists():
        subprocess.run([compiler, "-O2", "-o", program, NULL_SERVER], check=True)
    return NullServer(program, directory / "null_server.log")
