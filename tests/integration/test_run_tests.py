"""The runner: what each mode and option makes of a run, its time limit, and that nothing is left behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
import run_tests
import suite_figures
from fixtures.support import wait_until
from run_tests import HERE, MODES, Mode, TestRunner, run_within

MODE_NAMES = {"quick", "basic", "replication", "chaos", "concurrency", "benchmark", "error", "ci", "all"}
LIMITS_S = {"quick": 120, "replication": 300, "chaos": 900, "basic": 60}
LOADED_S = 120  # on a machine with many times more work than cores
LIMIT_S = 10
ENDING_EARLY = "import os\n\ndef test_it() -> None:\n    os._exit(0)\n"
# In a process of its own, as servers are.
COVERED = """
import subprocess, sys

def test_it() -> None:
    subprocess.run([sys.executable, "-c", "import merklekv.setting_types"], check=True)
"""
FAILING = """
def test_good() -> None:
    pass

def test_bad() -> None:
    assert 1 == 2, "a <node>"
"""
# A child of the child, so that it outlives its parent: what a test that forgets a server leaves.
FORGETFUL = """
import subprocess, sys

def test_it() -> None:
    print("hello from it")
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


def workers(*arguments: str) -> str:
    words = command(*arguments)
    return words[words.index("-n") + 1]


def run_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, *arguments: str, limit_s: int = LOADED_S
) -> int:
    """Run one test module in place of those of the modes basic and benchmark, with its outputs beside it."""
    (tmp_path / "test_written.py").write_text(text.replace("# MARK", f"# {tmp_path}"))
    for mode in ("basic", "benchmark"):
        monkeypatch.setitem(MODES, mode, Mode((str(tmp_path / "test_written.py"),), "", limit_s))
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
        assert "not slow" in command("--mode", "replication")
        assert "-m" not in command("--mode", "chaos")[3:]

    def test_benchmark_only_is_the_benchmark_mode_and_runs_alone(self) -> None:
        assert command("--benchmark-only") == command("--mode", "benchmark")
        assert "-n" not in command("--benchmark-only")
        assert workers("--benchmark-only", "--workers", "4") == "4"

    def test_workers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert workers("--mode", "basic") == "auto"
        assert workers("--workers", "3") == "3"
        assert "-n" not in command("--workers", "1")
        monkeypatch.setenv("MQTT_TOPIC_PREFIX", "watched/topics")
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
            assert "coverage" in command(*arguments)
        assert not {"coverage", f"--junitxml={HERE / 'junit.xml'}"} & set(command("--mode", "basic"))
        assert "coverage" not in command("--benchmark-only", "--report")

    def test_an_unknown_mode_is_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            run_tests.parse(["--mode", "nosuch"])
        assert caught.value.code == 2
        assert "nosuch" in capsys.readouterr().err

    def test_missing_packages_are_named_with_what_to_do(self, tmp_path: Path) -> None:
        """A Python that has nothing but its own library."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "v"], check=True, timeout=LOADED_S)
        command = [str(tmp_path / "v/bin/python"), "run_tests.py", "--mode", "quick", "--report"]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=LOADED_S, check=False)
        assert (done.returncode, done.stdout) == (run_tests.EXIT_USAGE, "")
        said = r"not installed for \S+: merklekv, coverage, hypothesis, [^\n]*; pip install -r [^\n]*\n"
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
    def test_a_failure_is_named_and_the_status_is_pytests(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run_file(tmp_path, monkeypatch, FAILING, "--benchmark-only", "--report") == 1
        output = capfd.readouterr().out
        assert len(re.findall("^FAILED .*::test_bad", output, re.MULTILINE)) == 2, "at once, and in the summary"
        assert "[100%]" in output
        assert output.splitlines()[-1].startswith("mode benchmark: failed, status 1; ")
        page = (tmp_path / "report.html").read_text()
        for part in (
            f"mode benchmark, at most {LOADED_S} s",
            "<h3>failed, status 1</h3>",
            "::test_good",
            "a &amp;lt;node&amp;gt;",
        ):
            assert part in page
        assert "test_bad" in (tmp_path / "junit.xml").read_text()

    def test_what_a_test_leaves_running_is_ended_and_fails_the_run_and_verbose_shows_what_a_test_printed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert run_file(tmp_path, monkeypatch, FORGETFUL, "--verbose") == 1
        output = capfd.readouterr().out
        assert "1 passed" in output
        assert re.search(f"still running afterwards, and ended: .*# {tmp_path}", output)
        assert not running(tmp_path)
        assert "::test_it PASSED" in output
        assert "hello from it" in output
        assert not list(tmp_path.glob("*.xml")), "without --report a run leaves no files"

    def test_a_run_that_takes_too_long_is_ended_with_all_its_processes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        class Late(subprocess.Popen[bytes]):
            """The time is over when the test runs, however long that takes."""

            def wait(self, timeout: float | None = None) -> int:
                if timeout != LIMIT_S:
                    return super().wait(timeout)
                wait_until(lambda: running(tmp_path), seconds=LOADED_S)
                raise subprocess.TimeoutExpired(self.args, LIMIT_S)

        monkeypatch.setattr(subprocess, "Popen", Late)
        monkeypatch.setattr(run_tests, "run_within", partial(run_within, grace_s=LOADED_S))
        status = run_file(tmp_path, monkeypatch, ENDLESS, "--benchmark-only", "--report", limit_s=LIMIT_S)
        assert status == run_tests.EXIT_TIME_LIMIT
        assert not running(tmp_path)
        said = capfd.readouterr()
        assert "the time limit of 10 s has passed" in said.err
        assert "KeyboardInterrupt" in said.out, "pytest ends the run, and need not be killed"
        assert "ended because its time was up" in (tmp_path / "report.html").read_text()

    def test_a_run_that_ends_early_fails_and_without_report_an_earlier_report_stays(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "report.html").touch()
        assert run_file(tmp_path, monkeypatch, ENDING_EARLY) == run_tests.EXIT_NO_RESULT
        said = capfd.readouterr()
        assert "pytest ended early" in said.err
        assert "mode basic: failed, status 5; " in said.out
        assert (tmp_path / "report.html").exists()

    def test_what_outlives_pytest_is_named_and_fails_the_run(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        script = FORGETFUL.replace("# MARK", f"# {tmp_path}") + "\ntest_it()"
        assert run_within(LOADED_S, [sys.executable, "-c", script], {}) == 1
        assert re.search(f"still running afterwards, and ended: .*# {tmp_path}", capfd.readouterr().err)
        assert not running(tmp_path)

    @pytest.mark.timeout(60)
    def test_a_process_that_ignores_signals_is_killed(self, tmp_path: Path) -> None:
        script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)  # "
        assert run_within(1, [sys.executable, "-c", script + str(tmp_path)], {}, 0.1) == run_tests.EXIT_TIME_LIMIT
        assert not running(tmp_path)

    def test_a_runner_that_is_terminated_ends_its_run_in_the_background_too(self, tmp_path: Path) -> None:
        """A shell lets its background jobs ignore SIGINT."""
        (tmp_path / "test_written.py").write_text(ENDLESS.replace("# MARK", f"# {tmp_path}"))
        start = (
            "import run_tests, sys\n"
            f"run_tests.MODES['basic'] = run_tests.Mode(({str(tmp_path / 'test_written.py')!r},), '', {LOADED_S})\n"
            "sys.argv = ['run_tests.py', '--workers', '1']\n"
            "sys.exit(run_tests.main())"
        )
        background = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", start]
        with subprocess.Popen(background, cwd=HERE, stdout=subprocess.PIPE, text=True) as process:
            wait_until(lambda: running(tmp_path), seconds=LOADED_S)
            process.terminate()
            printed = process.communicate(timeout=LOADED_S)[0]
        assert "KeyboardInterrupt" in printed, "pytest ends the run, and need not be killed"
        assert process.returncode == run_tests.EXIT_INTERRUPTED
        assert not running(tmp_path)


def running(mark: Path) -> list[str]:
    """What runs of the commands that have the mark at their end."""
    lines = ((one.info["status"], one.info["cmdline"]) for one in psutil.process_iter(["cmdline", "status"]))
    return [words[-1] for status, words in lines if status != psutil.STATUS_ZOMBIE and words and is_marked(words, mark)]


def is_marked(words: list[str], mark: Path) -> bool:
    return words[-1].endswith(f"# {mark}")


class TestReport:
    def test_the_page_and_coverage_are_written_and_coverage_after_the_time_of_the_tests(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        outputs = [tmp_path / "report.html", tmp_path / "coverage.xml", tmp_path / "htmlcov" / "index.html"]
        within_the_limit: list[list[bool]] = []

        def ran_within(limit_s: float, command: list[str], environment: dict[str, str]) -> int:
            status = run_within(limit_s, command, environment)
            within_the_limit.append([path.exists() for path in outputs])
            return status

        monkeypatch.setattr(run_tests, "run_within", ran_within)
        configuration = (run_tests.ROOT / "pyproject.toml").read_text()
        one_module = configuration.replace('["merklekv", "merklekv_tool"]', '["merklekv.setting_types"]')
        (tmp_path / "pyproject.toml").write_text(one_module)
        monkeypatch.setattr(run_tests, "ROOT", tmp_path)
        assert run_file(tmp_path, monkeypatch, COVERED, "--report") == 0
        assert within_the_limit == [[True, False, False]]
        assert all(path.exists() for path in outputs)
        (covered,) = re.findall(r'filename="[^"]*setting_types.py" [^>]*line-rate="([\d.]+)"', outputs[1].read_text())
        assert float(covered) > 0
        page = outputs[0].read_text()
        assert "<h3>passed</h3>" in page
        assert "href='htmlcov/index.html'" in page
        assert "<svg" not in page, "there are no benchmarks to draw"
        assert (tmp_path / "junit.xml").exists()
        assert capfd.readouterr().out.splitlines()[-1].startswith("mode basic: passed; ")

    @pytest.mark.parametrize(("limit_s", "said"), [(60.0, "exit status 1"), (0.01, "timed out after")])
    def test_coverage_that_cannot_be_written_is_said(
        self,
        limit_s: float,
        said: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """There is no data in an empty directory, and no time for it."""
        monkeypatch.setattr(run_tests, "COVERAGE_LIMIT_S", limit_s)
        runner("--report", output=tmp_path).write_coverage(tmp_path)
        error = capfd.readouterr().err
        assert re.findall(f"^coverage's (xml|html) is not written: .*{said}", error, re.MULTILINE) == ["xml", "html"]

    def test_a_regression_of_a_benchmark_fails_the_run_and_the_page_has_figures_and_plots(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        kept = suite_figures.read_baseline()
        figures = [
            FIGURE | {"name": name, "ratio": ratio} for name, ratio in (kept | {"SET": kept["SET"] * 0.4}).items()
        ]
        written = "\n".join(json.dumps(one) for one in figures)
        text = (
            "import os\n\ndef test_it() -> None:\n"
            f"    open(os.environ['MERKLEKV_TEST_BENCHMARKS'], 'w').write({written!r})\n"
        )
        (tmp_path / "coverage.xml").touch()  # by an earlier run
        assert run_file(tmp_path, monkeypatch, text, "--benchmark-only", "--report") == run_tests.EXIT_REGRESSION
        page, output = (tmp_path / "report.html").read_text(), capfd.readouterr().out
        for shown in (page, output):
            assert "slower than before: SET: 0.386 of the reference, which was 0.965: 40%" in shown
            assert shown.count("slower than before") == 1
        assert "| SET | 5,000 | > 1,000 |" in output
        assert "<td>SET</td><td>5,000</td><td>&gt; 1,000</td>" in page
        assert "<svg" in page
        assert not (tmp_path / "coverage.xml").exists()

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
        for stale in ("report.html", "junit.xml", "coverage.xml", "htmlcov/index.html"):
            (tmp_path / stale).parent.mkdir(exist_ok=True)
            (tmp_path / stale).touch()
        (tmp_path / "conftest.py").write_text(conftest)
        assert run_file(tmp_path, monkeypatch, "", "--report") == status
        assert capfd.readouterr().out.splitlines()[-1].startswith(f"mode basic: failed, status {status}; ")
        assert {path.name for path in tmp_path.rglob("*.*ml")} == set()


FIGURE = {"name": "SET", "throughput_per_s": 5000, "p50_ms": 1, "p95_ms": 2, "p99_ms": 3}
FIGURE |= {"memory_peak_mib": 30, "cpu_percent": 50, "ratio": 0.9}


class TestRegressions:
    def figures(self, ratio: float) -> list[suite_figures.Figure]:
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

    def test_a_baseline_is_kept_and_compared_with(self, tmp_path: Path) -> None:
        path = tmp_path / "baseline.json"
        suite_figures.keep(self.figures(0.25), path)
        assert json.loads(path.read_text()) == suite_figures.read_baseline(path) == {"SET": 0.25}
        assert suite_figures.regressions(self.figures(0.25), suite_figures.read_baseline(path)) == []

    def test_without_a_baseline_there_is_nothing_to_compare_with(self, tmp_path: Path) -> None:
        kept = suite_figures.read_baseline(tmp_path / "nosuch.json")
        assert kept == {}
        assert suite_figures.regressions(self.figures(0.25), kept) == []

    def test_the_baseline_has_every_benchmark_that_users_are_told_about(self) -> None:
        assert set(suite_figures.EXPECTED) <= set(suite_figures.read_baseline())

    def test_a_far_broker_is_expected_to_be_slower(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MQTT_BROKER_HOST", "test.mosquitto.org")
        assert suite_figures.expected("Replication") == suite_figures.FAR_REPLICATION
        monkeypatch.setenv("MQTT_BROKER_HOST", "localhost")
        assert suite_figures.expected("Replication") == suite_figures.EXPECTED["Replication"]
