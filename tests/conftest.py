"""What all tests share: the fixtures by concern, see README.md, and `--no-skips`, with which the gate runs."""

from __future__ import annotations

from collections.abc import Generator

import pytest

pytest_plugins = ["fix_node", "fix_broker", "fix_cluster", "fix_crash", "fix_proxy"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails: the gate leaves nothing out")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but nothing may be: {report.longrepr}"
    return report
