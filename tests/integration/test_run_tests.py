"""The runner: what each mode and option makes of the run, and the report it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import run_tests
from run_tests import HERE, MODES, TestRunner


def command(*arguments: str) -> list[str]:
    return TestRunner(run_tests.parse(list(arguments))).command()


@pytest.mark.parametrize("mode", list(MODES))
def test_every_mode_runs_files_that_exist(mode: str) -> None:
    assert all((HERE / file).exists() for file in MODES[mode].files)
    assert set(MODES[mode].files) <= set(command("--mode", mode))


def test_benchmark_only_is_the_benchmark_mode_and_runs_alone() -> None:
    assert command("--benchmark-only") == command("--mode", "benchmark")
    assert "-n" not in command("--benchmark-only")
    assert "-n" in command("--benchmark-only", "--workers", "4")


def test_workers() -> None:
    assert command("--mode", "basic")[-4:-2] == ["-n", "auto"]
    assert "3" in command("--workers", "3")
    assert "-n" not in command("--workers", "1")


def test_a_named_server_is_passed_on_and_has_one_worker() -> None:
    runner = TestRunner(run_tests.parse(["--host", "localhost", "--port", "7999", "--workers", "4"]))
    assert "-n" not in runner.command()
    environment = runner.environment()
    assert (environment["MERKLEKV_TEST_HOST"], environment["MERKLEKV_TEST_PORT"]) == ("localhost", "7999")


def test_ci_and_report_write_junit_and_coverage() -> None:
    for arguments in (("--mode", "ci"), ("--report",)):
        assert any("junit.xml" in part for part in command(*arguments))
        assert any("coverage.xml" in part for part in command(*arguments))
    assert not any("cov" in part for part in command("--mode", "basic"))


def test_an_unknown_mode_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_tests.parse(["--mode", "nosuch"])
    assert caught.value.code == 2
    assert "nosuch" in capsys.readouterr().err


def test_the_report_names_what_failed_and_has_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_tests, "HERE", tmp_path)
    (tmp_path / "junit.xml").write_text(
        '<testsuites><testsuite><testcase classname="test_a.TestX" name="good"/>'
        '<testcase classname="test_a.TestX" name="bad"><failure/></testcase></testsuite></testsuites>'
    )
    runner = TestRunner(run_tests.parse(["--report"]))
    figures = {"name": "SET", "throughput_per_s": 5000, "p50_ms": 1, "p95_ms": 2, "p99_ms": 3}
    runner.figures.write_text(json.dumps(figures | {"memory_peak_mib": 30, "cpu_percent": 50}) + "\n")
    runner.write_report(1, 12.0)
    report = (tmp_path / "report.md").read_text()
    assert "failed, status 1 in 12 s" in report
    assert "| test_a | 1 | 1 |" in report
    assert "- test_a.TestX::bad" in report
    assert "| SET | 5000 | > 1000 | 1 | 2 | < 100 | 3 | 30 | 50 |" in report


def test_a_run_that_takes_too_long_is_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TestRunner, "command", lambda self: ["sleep", "60"])
    runner = TestRunner(run_tests.parse([]))
    runner.mode = run_tests.Mode((), "", 0)
    assert runner.run() == run_tests.EXIT_TIME_LIMIT
    assert "time limit of mode basic" in capsys.readouterr().err
