"""`scripts/need`, which installs what the machine lacks: quiet when nothing is missing, clear when it cannot help."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

NEED = Path(__file__).parent.parent / "scripts" / "need"


def need(*wanted: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", NEED, *wanted]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PATH": path}, check=False)


def test_nothing_is_said_or_done_when_nothing_is_missing() -> None:
    done = need("sh=dash", "python3:json=python3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_machine_without_apt_is_told_what_to_install(tmp_path: Path) -> None:
    # The script adds the sbin folders to its path, where no apt-get is.
    done = need("no-such-program=package-a", "sh-of-no-kind=package-b", path=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.endswith("install these yourself and run again: package-a package-b\n")
