"""Trials: what the product does with a hostile file, each in a fork of a process with the imports done.

A trial may crash, hang or take all memory: it has a limit of time and of memory, and an exit status of its own.
`python -m tests.hostile.trial FD` is the process that forks.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple, NoReturn

from merklekv import interpreter
from merklekv.engine.lmdb_file import DAMAGE_SIGNALS

from .input_path import Finding

TIME_S: Final = 30  # that a trial may take: a busy machine needs a few
DATA_MAX: Final = 1 << 30  # bytes of memory of its own that it may ask for
USED_MAX: Final = 250 << 20  # bytes that it may need in all
SHOWN_MAX: Final = 3000
REQUEST_MAX: Final = 1 << 17
NOBODY: Final = 65_534
PROGRAMS: Final = ("merklekv", "merklekv_tool")


class Outcome(NamedTuple):
    """How a trial ended, and what it wrote."""

    status: int  # below zero: the signal that ended it
    stdout: bytes
    stderr: bytes
    used: int  # bytes of memory at most

    def __str__(self) -> str:
        ends = "status" if self.status >= 0 else "signal"
        shown = (self.stdout[-SHOWN_MAX:] + b"\n--- stderr\n" + self.stderr[-SHOWN_MAX:]).decode(errors="replace")
        return f"{ends} {abs(self.status)}\n{shown}"


class Trials:
    """The process that forks, as its user sees it. One trial at a time."""

    def __init__(self) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [*interpreter.command("tests.hostile.trial"), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=interpreter.environment() | {"PYTHONPATH": _roots(), "COLUMNS": "200"},
                start_new_session=True,
            )

    def run(
        self,
        program: str,
        *arguments: str | bytes | Path,
        stdin: bytes = b"",
        environment: Mapping[str, str] | None = None,
        user: int = 0,
        directory: Path | None = None,
        may_die: bool = False,
    ) -> Outcome:
        """One of PROGRAMS with arguments, or another module's `main`, to its end. Raises Finding if it hangs.

        `may_die`: LMDB may end it, as it does where pages are damaged.
        """
        words = [os.fsdecode(word) for word in arguments]
        request = json.dumps([program, words, dict(environment or {}), user, str(directory or "/")]).encode()
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given.write(stdin)
            given.seek(0)
            socket.send_fds(self._requests, [request], [given.fileno(), out.fileno(), err.fileno()])
            self._requests.settimeout(2 * TIME_S)
            try:
                status, used = map(int, self._requests.recv(64).split())
            except (TimeoutError, ValueError) as error:
                raise Finding(f"{program} {words}: neither ends nor can be ended") from error
            out.seek(0)
            err.seek(0)
            outcome = Outcome(status, out.read(1 << 22), err.read(1 << 20), used)
        if status == -signal.SIGALRM:
            raise Finding(f"{program} {shown(words)} takes longer than {TIME_S} s\n{outcome}")
        if status < 0 and not (may_die and -status in DAMAGE_SIGNALS):
            raise Finding(f"{program} {shown(words)} dies by {signal.Signals(-status).name}\n{outcome}")
        if used > USED_MAX:
            raise Finding(f"{program} {shown(words)} uses {used >> 20} MiB of memory\n{outcome}")
        return outcome

    def close(self) -> None:
        self._requests.close()
        try:
            self._process.wait(TIME_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def shown(words: Sequence[object]) -> str:
    """Words for a finding."""
    return " ".join(repr(word) if len(str(word)) < 120 else repr(word)[:120] + "..." for word in words)


def require_clean(outcome: Outcome, program: str, statuses: Mapping[int, str], what: str) -> None:
    """An error is one line with the program's name and a status that is documented. Raises Finding."""
    name = program.replace("_", "-").encode()
    if outcome.status not in statuses or outcome.status == 70:
        raise Finding(f"{what}: no documented status\n{outcome}")
    lines = [line for line in outcome.stderr.split(b"\n") if line]
    if b"Traceback" in outcome.stderr or b"Error:" in outcome.stderr.replace(b"OSError:", b""):
        raise Finding(f"{what}: a traceback\n{outcome}")
    if outcome.status > 1 and (not lines or not lines[-1].startswith(name + b": ")):
        raise Finding(f"{what}: the last line is not the error\n{outcome}")
    if any(byte < 32 and byte not in b"\n\t" for byte in outcome.stderr + outcome.stdout) or b"\x7f" in outcome.stderr:
        raise Finding(f"{what}: writes control characters\n{outcome}")


def _roots() -> str:
    here = Path(__file__).resolve().parents[2]
    return os.pathsep.join(map(str, (here, here / "tests", here / "tools")))


# -- the process that forks --------------------------------------------------------------------------------------------


def _modules() -> dict[str, ModuleType]:
    import merklekv_tool
    import rich.console
    import rich.table  # noqa: F401

    for module in pkgutil.walk_packages(merklekv_tool.__path__, "merklekv_tool."):
        importlib.import_module(module.name)
    for name in ("merklekv.node", "merklekv.cli", "merklekv.replication.cluster.storage"):
        importlib.import_module(name)
    return {name: importlib.import_module(f"{name}.__main__") for name in PROGRAMS}


def _child(requests: socket.socket, modules: Mapping[str, ModuleType], request: bytes, streams: list[int]) -> Any:
    requests.close()
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
        os.close(stream)
    program, words, environment, user, directory = json.loads(request)
    os.chdir(directory)
    os.environ.update(environment)
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_MAX, DATA_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(TIME_S)
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    sys.argv = [program, *words]
    main = modules[program].main if program in modules else importlib.import_module(program).main
    return main()


def _leave(run: Callable[[], object]) -> NoReturn:
    """Ends as a program does, but for the slow end of the interpreter."""
    try:
        status = run()
    except SystemExit as end:
        status = end.code
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0)


def main(descriptor: str) -> None:
    """Serves trials until the other side closes."""
    requests = socket.socket(fileno=int(descriptor))
    modules = _modules()
    gc.collect()
    gc.freeze()  # or each fork copies all pages at its first collection
    while True:
        request, streams, _, _ = socket.recv_fds(requests, REQUEST_MAX, 3)
        if not request:
            return
        child = os.fork()
        if not child:
            _leave(partial(_child, requests, modules, request, streams))
        for stream in streams:
            os.close(stream)
        _, status, usage = os.wait4(child, 0)
        with contextlib.suppress(ProcessLookupError):  # what it has left
            os.killpg(child, signal.SIGKILL)
        requests.send(b"%d %d" % (os.waitstatus_to_exitcode(status), usage.ru_maxrss << 10))


if __name__ == "__main__":
    main(*sys.argv[1:])
