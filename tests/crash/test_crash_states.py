"""The power goes at any moment of real runs: whatever the disk made of what no sync covers, nothing is lost.

`tests/crash_states` has the runs, the model of the disk and the judge. It does the work in a process of its own, as a
base that is cut off and taken for whole would end this one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from crash_states.programs import SCENARIOS

ROOT: Final = Path(__file__).parents[2]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_power_cut_loses_anything(scenario: str, crash_states: int, crash_seed: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.crash_states", "--scenario", scenario, "--seed", crash_seed]
    command += ["--states", str(crash_states // len(SCENARIOS)), "--kept", str(tmp_path / "kept")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    current = tmp_path / "kept" / scenario / "current"
    where = f"exit status {done.returncode}, last state {current.read_text() if current.exists() else 'none'}"
    assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"
