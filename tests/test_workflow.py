"""The pipeline, .github/workflows, as it would go: its commands, from a clean checkout and an empty environment on.

What it installs is installed, from where pip gets packages, and the shortest mode of the suite is run with it. Of the
other modes, which take minutes, the runner reads the command lines.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.node import clean_environment

ROOT = Path(__file__).parent.parent
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/integration.yml").read_text())
SUITE = "tests/integration"
RUNNER = ["python", "run_tests.py"]
OF_THE_SYSTEM = ["sudo", "apt-get"]  # neither is for a test to run
RUN_S = 500


def steps() -> list[tuple[str, dict[str, Any]]]:
    """Every step that runs commands, with its job."""
    return [(job, step) for job, whole in WORKFLOW["jobs"].items() for step in whole["steps"] if "run" in step]


def commands(step: dict[str, Any]) -> list[list[str]]:
    return [shlex.split(line) for line in step["run"].splitlines()]


def installing() -> list[list[str]]:
    """What the jobs install; all of them the same."""
    (found,) = {step["run"] for _, step in steps() if step["name"] == "Install"}
    return [words for words in commands({"run": found}) if words[:2] != OF_THE_SYSTEM]


def checkout(target: Path) -> None:
    """The files of the repository, and those that are to be committed, without what is ignored."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def test_every_step_is_an_installation_or_a_run_of_the_suite() -> None:
    for job, step in steps():
        if step["name"] != "Install":
            assert step["working-directory"] == SUITE, (job, step)
            assert [words[:2] for words in commands(step)] == [RUNNER], (job, step)
    assert ["sudo", "apt-get", "install", "--yes", "--no-install-recommends", "mosquitto", "faketime"] in [
        words for _, step in steps() for words in commands(step)
    ], "what the suite's page tells to install"
    assert installing() == [["pip", "install", "-r", f"{SUITE}/requirements.txt"], ["pip", "install", "-e", "."]]


def test_every_job_installs_before_it_runs() -> None:
    for job in WORKFLOW["jobs"]:
        assert next(step["name"] for of, step in steps() if of == job) == "Install"


@pytest.mark.parametrize(("job", "step"), [pytest.param(*one, id=f"{one[0]}: {one[1]['name']}") for one in steps()])
def test_the_runner_understands_its_commands(job: str, step: dict[str, Any]) -> None:
    for words in commands(step):
        if words[:2] == RUNNER:
            script = "import sys, run_tests; run_tests.TestRunner(run_tests.parse(sys.argv[1:]))"
            subprocess.run([sys.executable, "-c", script, *words[2:]], cwd=ROOT / SUITE, check=True, timeout=60)


@pytest.mark.timeout(RUN_S)
def test_the_suite_runs_in_an_empty_environment(tmp_path: Path) -> None:
    """As its page and the pipeline say, with the pages that are kept."""
    place = tmp_path / "checkout"
    checkout(place)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "v"], check=True, timeout=RUN_S)
    own = {name: value for name, value in clean_environment().items() if not name.startswith(("PYTEST", "COV"))}
    environment = own | {"PATH": f"{tmp_path / 'v/bin'}:{os.environ['PATH']}", "PIP_COMPILE": "0"}  # what is imported
    for words in installing():
        subprocess.run([*words, "--quiet"], cwd=place, env=environment, check=True, timeout=RUN_S)
    done = subprocess.run(
        [*RUNNER, "--mode", "quick", "--report"],
        cwd=place / SUITE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mode quick: passed; " in done.stdout.splitlines()[-1]
    assert "; 0 tests passed" not in done.stdout
    for page in ("report.html", "junit.xml", "coverage.xml", "htmlcov/index.html"):
        assert (place / SUITE / page).stat().st_size, page
