"""A command within its time, and nothing left behind: the runner's hold on pytest, its workers and their servers.

All of them are of one session (setsid), which tells them from everything else on the machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

GRACE_S = 20.0  # for the tests in hand to put away what they made, once they were asked to stop


@dataclass(frozen=True)
class Ended:
    """How the command ended: its status, None when it was stopped for its time; and what still ran after it."""

    status: int | None
    left_behind: list[str] = field(default_factory=list)


def run_within(
    limit_s: float, command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], grace_s: float = GRACE_S
) -> Ended:
    """Run it, ask it to stop when its time is over, and end by force what does not. Ctrl-C asks it to stop as well,
    and is raised again.
    """
    process = subprocess.Popen(command, cwd=cwd, env=dict(environment), start_new_session=True)
    status: int | None = None
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        _ask_to_stop(process, grace_s)
    except KeyboardInterrupt:
        _ask_to_stop(process, grace_s)
        raise
    finally:
        left_behind = _sweep(process.pid)
        process.wait()
    return Ended(status, left_behind if status is not None else [])


def _ask_to_stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)


def _sweep(session: int) -> list[str]:
    """Kill what still runs in the session; the command lines."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
                process.kill()
    return found
