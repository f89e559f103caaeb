"""The runner: what each mode and option makes of a run, its time limit, and that nothing is left behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import run_tests
import suite_figures
from fixtures.support import wait_until
from run_tests import HERE, MODES, Mode, TestRunner
from suite_process import Ended, run_within
from suite_report import Outcome, read_cases, write_html

MODE_NAMES = {"quick", "basic", "replication", "chaos", "concurrency", "benchmark", "error", "ci", "all"}
LIMITS_S = {"quick": 120, "replication": 300, "chaos": 900, "basic": 60}
PASSING = "def test_it() -> None:\n    pass\n"
COVERED = f"import merklekv.setting_types\n\n{PASSING}"
# A child of the child, so that it outlives its parent: what a test that forgets a server leaves.
FORGETFUL = """
import subprocess, sys

def test_it() -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # MARK"])
"""
ENDLESS = """
import subprocess, sys, threading

def test_it() -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)  # MARK"])
    threading.Event().wait()
"""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the runner that runs these tests may have set is not theirs."""
    for name in ("MERKLEKV_TEST_HOST", "MERKLEKV_TEST_PORT", "MQTT_TOPIC_PREFIX", "MERKLEKV_TEST_VERBOSE"):
        monkeypatch.delenv(name, raising=False)


def runner(*arguments: str, output: Path = HERE) -> TestRunner:
    return TestRunner(run_tests.parse(list(arguments)), output)


def command(*arguments: str) -> list[str]:
    return runner(*arguments).command(Path("/scratch"))


def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, *arguments: str, limit_s: int = 60) -> int:
    """A run of one test module by the runner, as a mode of its own."""
    (tmp_path / "test_written.py").write_text(text.replace("MARK", str(tmp_path)))
    monkeypatch.setitem(MODES, "basic", Mode((str(tmp_path / "test_written.py"),), "", limit_s))
    return runner("--workers", "1", *arguments, output=tmp_path).run()


class TestOptions:
    @pytest.mark.parametrize("mode", list(MODES))
    def test_every_mode_runs_files_that_exist(self, mode: str) -> None:
        assert all((HERE / file).exists() for file in MODES[mode].files)
        assert set(MODES[mode].files) <= set(command("--mode", mode))

    def test_the_modes_are_the_known_ones_with_their_limits(self) -> None:
        assert set(MODES) == MODE_NAMES
        assert {name: MODES[name].limit_s for name in LIMITS_S} == LIMITS_S

    def test_replication_leaves_out_what_is_slow_and_chaos_does_not(self) -> None:
        assert command("--mode", "replication")[-4:-2] == ["-m", "not slow"]
        assert "-m" not in command("--mode", "chaos")[3:]

    def test_benchmark_only_is_the_benchmark_mode_and_runs_alone(self) -> None:
        assert command("--benchmark-only") == command("--mode", "benchmark")
        assert "-n" not in command("--benchmark-only")
        assert command("--benchmark-only", "--workers", "4")[-2:] == ["-n", "4"]

    def test_workers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert command("--mode", "basic")[-2:] == ["-n", "auto"]
        assert command("--workers", "3")[-2:] == ["-n", "3"]
        assert "-n" not in command("--workers", "1")
        monkeypatch.setenv("MQTT_TOPIC_PREFIX", "somebody/listens")
        assert "-n" not in command("--mode", "replication")

    def test_a_named_server_is_passed_on_and_has_one_worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        named = runner("--host", "localhost", "--port", "7999", "--workers", "4")
        assert "-n" not in named.command(Path())
        environment = named.environment(Path())
        assert (environment["MERKLEKV_TEST_HOST"], environment["MERKLEKV_TEST_PORT"]) == ("localhost", "7999")
        monkeypatch.setenv("MERKLEKV_TEST_PORT", "7998")
        assert "-n" not in command("--mode", "basic")

    def test_ci_and_report_write_junit_and_coverage(self) -> None:
        for arguments in (("--mode", "ci"), ("--report",)):
            assert f"--junitxml={HERE / 'junit.xml'}" in command(*arguments)
            assert "--cov" in command(*arguments)
            assert "--cov-report=" in command(*arguments), "the pages are written when the tests' time has ended"
        assert not any("cov" in part or str(HERE / "junit.xml") in part for part in command("--mode", "basic"))
        assert not any("cov" in part for part in command("--benchmark-only", "--report"))

    def test_an_unknown_mode_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            run_tests.parse(["--mode", "nosuch"])
        assert caught.value.code == 2
        assert "nosuch" in capsys.readouterr().err

    def test_missing_packages_are_named_with_what_to_do(self, tmp_path: Path) -> None:
        """A Python that has nothing but its own library."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True, timeout=60)
        for mode in ("basic", "quick"):
            command = [str(tmp_path / "v/bin/python"), "run_tests.py", "--mode", mode, "--report"]
            done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60, check=False)
            assert (done.returncode, done.stdout) == (run_tests.EXIT_USAGE, "")
            said = r"not installed for \S+: merklekv, hypothesis, [^\n]*; pip install -r [^\n]*\n"
            assert re.fullmatch(said, done.stderr)

    def test_a_missing_broker_is_named_with_what_to_do(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(run_tests, "PROGRAMS", "")
        monkeypatch.delenv("MQTT_BROKER_HOST", raising=False)
        monkeypatch.delenv("MQTT_BROKER_PORT", raising=False)
        assert runner("--mode", "quick").run() == run_tests.EXIT_USAGE
        assert "apt-get install mosquitto" in capsys.readouterr().err


class TestRuns:
    def test_a_run_that_passes_says_so_and_shows_how_far_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run_file(tmp_path, monkeypatch, PASSING) == 0
        output = capfd.readouterr().out
        assert "s of 60 s: 1 of 1 tests, 0 failed, test_written.py" in output
        assert output.splitlines()[-1].startswith("mode basic: passed; 1 test passed, 0 failed; ")
        assert not list(tmp_path.glob("junit.xml"))

    def test_a_failure_is_named_and_the_status_is_pytests(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run_file(tmp_path, monkeypatch, "def test_it() -> None:\n    assert 1 == 2\n") == 1
        output = capfd.readouterr().out
        assert len(re.findall("^FAILED .*::test_it", output, re.MULTILINE)) == 2, "at once, and in the summary"
        assert "assert 1 == 2" in output
        assert "mode basic: failed, status 1; 0 tests passed, 1 failed" in output

    def test_verbose_shows_what_a_test_printed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run_file(tmp_path, monkeypatch, "def test_it() -> None:\n    print('hello from it')\n", "--verbose") == 0
        assert "hello from it" in capfd.readouterr().out

    def test_a_run_that_takes_too_long_is_ended_with_all_its_processes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run_file(tmp_path, monkeypatch, ENDLESS, limit_s=5) == run_tests.EXIT_TIME_LIMIT
        assert "the time limit of mode basic, 5 s, has passed" in capfd.readouterr().err
        assert not running(tmp_path)

    def test_what_a_test_leaves_running_is_ended_and_fails_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run_file(tmp_path, monkeypatch, FORGETFUL) == 1
        errors = capfd.readouterr().err
        assert "still running afterwards" in errors
        assert f"# {tmp_path}" in errors
        assert not running(tmp_path)

    def test_what_does_not_want_to_stop_is_killed(self, tmp_path: Path) -> None:
        deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)  # "
        ended = run_within(2, [sys.executable, "-c", deaf + str(tmp_path)], cwd=tmp_path, environment={}, grace_s=0.1)
        assert ended.status is None
        assert not running(tmp_path)

    def test_in_the_background_its_time_ends_a_run_as_well(self, tmp_path: Path) -> None:
        """Where the runner ignores SIGINT, pytest does not: it stops when asked to, and need not be killed."""
        background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *self.endless(tmp_path, limit_s=5)]
        done = subprocess.run(background, cwd=HERE, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == run_tests.EXIT_TIME_LIMIT
        assert "KeyboardInterrupt" in done.stdout
        assert not running(tmp_path)

    def endless(self, place: Path, limit_s: int) -> list[str]:
        """The command of a runner whose only test does not end."""
        (place / "test_written.py").write_text(ENDLESS.replace("MARK", str(place)))
        start = (
            "import run_tests, sys\n"
            f"run_tests.MODES['basic'] = run_tests.Mode(({str(place / 'test_written.py')!r},), '', {limit_s})\n"
            "sys.argv = ['run_tests.py', '--workers', '1']\n"
            "sys.exit(run_tests.main())"
        )
        return [sys.executable, "-c", start]

    def test_a_runner_that_is_terminated_ends_its_run(self, tmp_path: Path) -> None:
        process = subprocess.Popen(self.endless(tmp_path, limit_s=60), cwd=HERE)
        wait_until(lambda: running(tmp_path), seconds=30)
        process.terminate()
        assert process.wait(30) == run_tests.EXIT_INTERRUPTED
        assert not running(tmp_path)


def running(mark: Path) -> list[str]:
    """What runs of the commands that have the mark at their end."""
    lines = ((one.info["status"], one.info["cmdline"]) for one in psutil.process_iter(["cmdline", "status"]))
    return [words[-1] for status, words in lines if status != psutil.STATUS_ZOMBIE and words and is_marked(words, mark)]


def is_marked(words: list[str], mark: Path) -> bool:
    return words[-1].endswith(f"# {mark}")


class TestReport:
    def test_the_page_has_outcome_failures_figures_plots_and_coverage(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        junit = tmp_path / "junit.xml"
        junit.write_text(
            '<testsuites><testsuite><testcase classname="test_a.TestX" name="good" time="1.5"/>'
            '<testcase classname="test_a.TestX" name="bad"><failure>log of &lt;node&gt;</failure></testcase>'
            '<testcase classname="test_a" name="worse"><error>no server</error></testcase></testsuite></testsuites>'
        )
        coverage = tmp_path / "coverage.xml"
        coverage.write_text('<coverage line-rate="0.91"><package name="merklekv.net" line-rate="0.876"/></coverage>')
        cases = read_cases(junit)
        outcome = Outcome("ci", 1, 12.0, 1200, cases, [FIGURE], {"SET": 0.9}, ["something was slower"])
        page = tmp_path / "report.html"
        write_html(outcome, page, coverage)
        text = page.read_text()
        assert "mode ci: failed, status 1; 1 test passed, 2 failed; 12 s of at most 1200 s" in text
        for part in ("TestX::bad", "log of &lt;node&gt;", "no server", "something was slower", "91 %", "88 %"):
            assert part in text
        assert "<td>SET</td><td>5,000</td><td>&gt; 1,000</td>" in text
        assert text.count("<svg") == 3

    def test_a_run_with_report_writes_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert run_file(tmp_path, monkeypatch, COVERED, "--report") == 0
        assert "mode basic: passed" in (tmp_path / "report.html").read_text()
        assert (tmp_path / "junit.xml").exists()
        assert (tmp_path / "coverage.xml").exists()
        assert (tmp_path / "htmlcov" / "index.html").exists()

    def test_the_time_that_coverage_takes_is_not_the_tests(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A run whose pages take longer than its mode may has passed, and says how long its tests took."""
        taken: list[float] = []

        def ran_within(limit_s: float, command: Sequence[str], **options: Any) -> Ended:
            taken.append(limit_s)
            return run_within(limit_s, command, **options)

        monkeypatch.setattr(run_tests, "run_within", ran_within)
        assert run_file(tmp_path, monkeypatch, COVERED, "--report", limit_s=50) == 0
        assert taken == [50, run_tests.COVERAGE_S, run_tests.COVERAGE_S]

    @pytest.mark.parametrize(("conftest", "status"), [("", 5), ("import nosuch", 4)], ids=["empty", "broken"])
    def test_a_run_without_tests_fails_and_leaves_no_page(
        self,
        conftest: str,
        status: int,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """Nor one of the run before."""
        assert run_file(tmp_path, monkeypatch, COVERED, "--report") == 0
        (tmp_path / "conftest.py").write_text(conftest)
        assert run_file(tmp_path, monkeypatch, "", "--report") == status
        said = capfd.readouterr()
        assert said.err.endswith("no test was run; what pytest said above tells why\n")
        assert f"mode basic: failed, status {status}; 0 tests passed, 0 failed; " in said.out.splitlines()[-1]
        assert list(tmp_path.glob("*.html")) == []


FIGURE = {"name": "SET", "throughput_per_s": 5000, "p50_ms": 1, "p95_ms": 2, "p99_ms": 3}
FIGURE |= {"memory_peak_mib": 30, "cpu_percent": 50, "ratio": 0.9}


class TestRegressions:
    def figures(self, ratio: float) -> suite_figures.Figures:
        return [FIGURE | {"ratio": ratio}, FIGURE | {"name": "without a reference", "ratio": None}]

    def test_a_ratio_within_the_noise_is_none(self) -> None:
        assert suite_figures.regressions(self.figures(0.51), {"SET": 1.0}) == []
        assert suite_figures.rows(self.figures(0.51), {"SET": 1.0})[0][-3:] == ["0.51", "1", "as before"]

    def test_a_ratio_below_it_is_one(self) -> None:
        (line,) = suite_figures.regressions(self.figures(0.49), {"SET": 1.0})
        assert line == "SET: 0.49 of the reference, which was 1: 49%"
        assert suite_figures.rows(self.figures(0.49), {"SET": 1.0})[0][-1] == "slower: 0.49"

    def test_a_benchmark_that_is_not_measured_any_more_is_one(self) -> None:
        (line,) = suite_figures.regressions(self.figures(1.0), {"SET": 1.0, "GET": 1.0})
        assert line.startswith("GET: no figure")

    def test_it_fails_the_benchmark_mode(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        metadata: list[str] = []
        assert runner("--benchmark-only").judge(self.figures(0.4), {"SET": 1.0}, metadata) == run_tests.EXIT_REGRESSION
        assert metadata == ["slower than before: SET: 0.4 of the reference, which was 1: 40%"]
        assert runner("--benchmark-only").judge(self.figures(1.0), {"SET": 1.0}, metadata) == 0

    def test_a_baseline_is_kept_and_compared_with(self, tmp_path: Path) -> None:
        path = tmp_path / "baseline.json"
        suite_figures.keep(self.figures(0.25), path)
        assert json.loads(path.read_text()) == suite_figures.read_baseline(path) == {"SET": 0.25}
        assert suite_figures.regressions(self.figures(0.25), suite_figures.read_baseline(path)) == []

    def test_the_baseline_has_every_benchmark_that_users_are_told_about(self) -> None:
        assert set(suite_figures.EXPECTED) <= set(suite_figures.read_baseline())

    def test_a_far_broker_is_expected_to_be_slower(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MQTT_BROKER_HOST", "test.mosquitto.org")
        assert suite_figures.expected("Replication") == suite_figures.FAR_REPLICATION
        monkeypatch.setenv("MQTT_BROKER_HOST", "localhost")
        assert suite_figures.expected("Replication") == suite_figures.EXPECTED["Replication"]
