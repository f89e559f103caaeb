"""The system calls of processes that change files, as strace sees them: in which order, and with the data.

A call is two events: the process enters it, and it returns. strace stops the process at both, so their order is exact,
also between threads and processes.
"""

from __future__ import annotations

import re
import subprocess
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

CALLS: Final = (
    "open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,symlink,"
    "symlinkat,truncate,ftruncate,fallocate,write,pwrite64,writev,pwritev,pwritev2,lseek,fsync,fdatasync,"
    "sync_file_range,msync,sync,syncfs,mmap,copy_file_range,sendfile,splice,clone,clone3,fork,vfork"
)
STRACE: Final = [
    "strace",
    "-f",
    "--seccomp-bpf",
    "-qq",
    "-y",
    "-xx",
    "-s",
    "1000000000",
    "-ttt",
    "-e",
    f"trace={CALLS}",
]
PAUSE_S: Final = 0.05  # what is longer between two calls of a process that makes many is a pause of the machine
TIMEOUT_S: Final = 120

_LINE: Final = re.compile(r"(\d+) +(\d+\.\d+) (.*)")
_WHOLE: Final = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?|0x[0-9a-f]+).*")
_BEGUN: Final = re.compile(r"(\w+)\((.*?),? *<unfinished \.\.\.>")
_ENDED: Final = re.compile(r"<\.\.\. (\w+) resumed>,? ?(.*)\) += (-?\d+|\?|0x[0-9a-f]+).*")
_STRING: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR: Final = re.compile(r"(-?\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>")
_PATH: Final = re.compile(f"{_DESCRIPTOR.pattern}|{_STRING.pattern}")


@dataclass
class Call:
    """A system call that did what it was asked for."""

    name: str
    process: int
    text: str  # the arguments
    result: int
    entered: int  # numbers of events
    returned: int

    @cached_property
    def strings(self) -> list[bytes]:
        """The strings and buffers among the arguments."""
        return [_bytes(found) for found in _STRING.findall(self.text)]

    @cached_property
    def descriptor(self) -> tuple[int, str]:
        """The descriptor that is the first argument, and its path; -1 is the working directory, and none at all."""
        match = _DESCRIPTOR.match(self.text)
        return (-1 if match[1] == "AT_FDCWD" else int(match[1]), _path(match[2])) if match else (-1, "")

    @cached_property
    def paths(self) -> list[str]:
        """The paths that the arguments name, absolute: each may be relative to the directory before it."""
        found, directory = [], ""
        for match in _PATH.finditer(self.text):
            if match[2] is not None:
                directory = _path(match[2])
            else:
                found.append(str(Path(directory, _path(match[3]))))
        return found

    @property
    def second(self) -> str:
        """The path of the last descriptor: of the file that `mmap` maps, or `sendfile` reads."""
        found = _DESCRIPTOR.findall(self.text)
        return _path(found[-1][1]) if found else ""

    def names(self, directory: Path) -> bool:
        """Whether it has to do with this directory, or what is in it."""
        return "".join(f"\\x{byte:02x}" for byte in bytes(directory)) in self.text

    def numbers(self) -> list[int]:
        """The arguments that are plain numbers, in order."""
        return [int(word) for word in self.text.split(", ") if re.fullmatch(r"-?\d+", word)]


@dataclass
class Trace:
    """All calls, in the order in which they were entered, and the time of each event."""

    calls: list[Call]
    times: list[float]  # of the lines, two events each

    def __post_init__(self) -> None:
        self._passed = [0.0]
        for before, after in zip(self.times, self.times[1:], strict=False):
            self._passed.append(self._passed[-1] + min(max(0.0, after - before), PAUSE_S))

    def time_at(self, event: int) -> float:
        """Seconds that had passed for the processes, without pauses of the machine."""
        return self._passed[min(event // 2, len(self._passed) - 1)]

    def event_at(self, seconds: float) -> int:
        """The last event that had happened by then."""
        return 2 * bisect_right(self._passed, seconds) - 1


def record(command: Sequence[str], trace: Path, directory: Path) -> None:
    """Runs a command to its end, in this directory, and leaves the trace of it and of all its processes."""
    words = [*STRACE, "-o", str(trace), *command]
    done = subprocess.run(words, cwd=directory, capture_output=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise AssertionError(f"{command}: exit status {done.returncode}\n{done.stdout.decode()}{done.stderr.decode()}")


def read(trace: Path) -> Trace:
    """Reads a trace. Calls that failed are left out."""
    with trace.open() as file:
        lines = [match for line in file if (match := _LINE.match(line))]
    calls = sorted(_calls(lines), key=lambda call: call.entered)
    return Trace(calls, [float(match[2]) for match in lines])


def _calls(lines: list[re.Match[str]]) -> Iterator[Call]:
    begun: dict[int, tuple[int, str]] = {}
    found: list[Call] = []
    processes: dict[int, int] = {}  # of each thread; its first call may come before the end of the clone
    for number, line in enumerate(lines):
        thread, text = int(line[1]), line[3]
        if match := _BEGUN.match(text):
            begun[thread] = number, match[2]
            continue
        if match := _ENDED.match(text):
            entered, before = begun.pop(thread)
            arguments = ", ".join(part for part in (before, match[2]) if part)
        elif match := _WHOLE.match(text):
            entered, arguments = number, match[2]
        else:
            continue  # a signal
        name, result = match[1], int(match[3], 0) if match[3] != "?" else -1
        if name not in ("clone", "clone3", "fork", "vfork"):
            found.append(Call(name, thread, arguments, result, 2 * entered, 2 * number + 1))
        elif result > 0 and "CLONE_THREAD" in arguments:
            processes[result] = processes.get(thread, thread)
    for call in found:
        call.process = processes.get(call.process, call.process)
        if call.result >= 0:
            yield call


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _path(escaped: str) -> str:
    return _bytes(escaped).decode()
