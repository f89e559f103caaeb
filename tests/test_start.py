"""The tests' outcome does not depend on how they are started: by nohup, by cron, without a terminal, in any locale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN_S = 280
PROBE = """
import os
import signal
import subprocess
import sys

DISPOSITIONS = "import signal; print([n for n in (1, 2, 3, 15) if signal.getsignal(n) is signal.SIG_IGN])"


def test_children_ignore_no_signal() -> None:
    assert subprocess.run([sys.executable, "-c", DISPOSITIONS], capture_output=True, text=True).stdout == "[]\\n"


def test_no_signal_is_blocked() -> None:
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
"""
# Some of those that send signals to what they start, make files, or read what was printed.
SENSITIVE = [
    "tests/tools/test_tool_command_line.py::test_interrupted_from_the_keyboard",
    "tests/tools/test_stats.py::test_a_watch_ends_by_ctrl_c_with_nothing_wrong",
    "tests/tools/test_log_verb.py",
    "tests/test_cli.py::test_a_signal_stops_it_with_status_0_and_keeps_the_data",
]
BLOCKING = "import os, signal, sys; signal.pthread_sigmask(0, [2, 15]); os.execvp(sys.argv[1], sys.argv[1:])"
# Lines of a shell in which "$@" is the command. The first ignores SIGHUP (nohup), SIGINT and SIGQUIT (a shell's
# background), and blocks two signals.
IN_THE_BACKGROUND = f"""nohup '{sys.executable}' -c '{BLOCKING}' "$@" < /dev/null"""
STARTS = {
    "background": f"umask 077; unset TERM; TZ=Asia/Kathmandu LC_ALL=C PYTHONUNBUFFERED=1 {IN_THE_BACKGROUND} & wait $!",
    "cron": 'umask 000; exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$HOME" "$@" <&-',
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_tests_pass_however_they_are_started(start: str, tmp_path: Path) -> None:
    (tmp_path / "test_probe.py").write_text(PROBE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:benchmark", "-p", "no:cacheprovider", "--no-skips"]
    command += [f"--basetemp={tmp_path / 'made'}", "-c", str(ROOT / "pyproject.toml"), str(tmp_path / "test_probe.py")]
    done = subprocess.run(
        ["sh", "-c", start, "sh", *command, *(str(ROOT / test) for test in SENSITIVE)],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        capture_output=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
