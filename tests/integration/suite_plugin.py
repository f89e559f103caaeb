"""A pytest plugin for what the integration suite reports beyond pytest and pytest-html: failures at once, processes
that tests leave behind, the benchmarks' figures, and regressions. `run_tests.py` loads it.
"""

from __future__ import annotations

import html
import os
import signal
from types import FrameType
from typing import Any

import pytest
import suite_figures
from run_tests import EXIT_REGRESSION, EXIT_TIME_LIMIT, end_session


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--suite-title", default="", help="what the report calls this run")
    parser.addoption("--baseline", choices=("compare", "save"), help="what to do with the benchmarks' ratios")


@pytest.hookimpl(tryfirst=True)  # before pytest-html, so that its page is written after this plugin's sessionfinish
def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # xdist's workers report to the process that has them
        config.pluginmanager.register(SuiteReport(config), "suite report")


class SuiteReport:
    """Adds to pytest's output and to pytest-html's page, and sets the exit status of leftovers and regressions."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._problems: list[str] = []
        self._timed_out = False
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with SIGINT ignored
        signal.signal(signal.SIGTERM, self._end)  # the runner sends it when the time is up

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._timed_out = True
        raise KeyboardInterrupt

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            terminal = self._config.get_terminal_writer()
            terminal.line(f"\nFAILED {report.nodeid} ({report.when})", red=True)

    @pytest.hookimpl(trylast=True)  # after xdist's, which ends the workers
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._figures = suite_figures.read()
        self._kept = suite_figures.read_baseline() if self._figures or self._config.option.baseline else {}
        left_behind = end_session(os.getpid())  # none unless this process leads its session, as below the runner
        self._problems = [f"still running afterwards, and ended: {line}" for line in left_behind]
        status = int(session.exitstatus)
        if self._timed_out:
            self._problems.append("ended because its time was up")
            status = EXIT_TIME_LIMIT
        elif status == 0 and self._config.option.baseline == "save":
            suite_figures.keep(self._figures)
        elif status == 0 and self._config.option.baseline:
            slower = suite_figures.regressions(self._figures, self._kept)
            self._problems += [f"slower than before: {line}" for line in slower]
            status = EXIT_REGRESSION if slower else 0
        session.exitstatus = status or int(bool(left_behind))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._figures:
            terminalreporter.section("benchmarks")
            terminalreporter.line(suite_figures.markdown(self._figures, self._kept))
        for problem in self._problems:
            terminalreporter.line(problem, red=True)

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_report_title(self, report: Any) -> None:
        report.title = f"Integration tests, {self._config.option.suite_title}"

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, prefix: list[str], session: pytest.Session) -> None:
        result = f"failed, status {int(session.exitstatus)}" if session.exitstatus else "passed"
        prefix += [f"<h3>{result}</h3>", *(f"<p>{html.escape(problem)}</p>" for problem in self._problems)]
        if "COVERAGE_RUN" in os.environ:
            prefix.append("<p>Lines that ran, in the servers too: <a href='htmlcov/index.html'>coverage</a></p>")
        if self._figures:
            prefix += suite_figures.page(self._figures, self._kept)
