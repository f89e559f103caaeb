"""How far the run is: a pytest plugin that the runner loads, in place of pytest's dots.

    12 s of 300 s: 57 of 123 tests, 0 failed, test_replication_ordering.py

At a terminal the line is written over; elsewhere there is a new one every EVERY_S. What fails is named at once. Verbose
(MERKLEKV_TEST_VERBOSE), every test is named when it ends, with how long it took, what it printed and what its nodes and
brokers logged: also when tests run in parallel, each test's in one piece.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator

import pytest

EVERY_S = 5.0
WIDTH = 110

Status = tuple[str, str, str]  # category, letter, word


class Progress:
    """What is shown of a run, in the process that collects the reports."""

    def __init__(self, limit_s: str, verbose: bool) -> None:
        self._limit = f" of {limit_s} s" if limit_s else ""
        self._verbose = verbose
        self._terminal = sys.stdout.isatty()
        self._began = time.monotonic()
        self._said = 0.0
        self._total = self._done = self._failed = 0
        self._over = False

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = max(self._total, len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self._total = len(ids)

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> Generator[None, tuple[str, str, str], tuple[str, str, str]]:
        """Keep pytest from writing its dots, and nothing else: not what it counts, nor the words of its summary."""
        category, letter, word = yield
        return (category, letter, word) if self._over else (category, "", "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed += 1
            self._write(f"FAILED {report.nodeid} ({report.when})\n")
        if report.when != "teardown":
            return
        self._done += 1
        if self._verbose:
            self._tell(report)
        elif self._terminal or time.monotonic() - self._said >= EVERY_S or self._done == self._total:
            self._say(report.location[0])

    def pytest_sessionfinish(self) -> None:
        self._over = True
        if self._terminal:
            self._write("")

    def _tell(self, report: pytest.TestReport) -> None:
        sections = "".join(f"--- {name}\n{text.rstrip()}\n" for name, text in report.sections if text.strip())
        self._write(f"{self._line()}: {report.nodeid}\n{sections}")

    def _say(self, file: str) -> None:
        self._said = time.monotonic()
        self._write(f"{self._line()}, {os.path.basename(file)}" + ("" if self._terminal else "\n"))

    def _line(self) -> str:
        seconds = time.monotonic() - self._began
        return f"{seconds:4.0f} s{self._limit}: {self._done} of {self._total} tests, {self._failed} failed"

    def _write(self, text: str) -> None:
        sys.stdout.write(("\r" + " " * WIDTH + "\r" if self._terminal else "") + text)
        sys.stdout.flush()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a worker of a parallel run: its reports go to the one who shows them
        return
    verbose = bool(os.environ.get("MERKLEKV_TEST_VERBOSE"))
    config.pluginmanager.register(Progress(os.environ.get("MERKLEKV_TEST_LIMIT_S", ""), verbose), "progress")
