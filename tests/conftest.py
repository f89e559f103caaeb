"""What all tests share: the fixtures by concern, see README.md, and `--no-skips`, with which the gate runs.

The outcome does not depend on how the tests are started, in the foreground, by nohup or by cron: `fix_signals`.

Hypothesis runs the profile `gate` unless `--hypothesis-profile` names another; `deep` is for an hour to spare.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = [
    "fixtures.signals",
    "fixtures.node",
    "fixtures.broker",
    "fixtures.cluster",
    "fixtures.crash",
    "fixtures.proxy",
    "fixtures.simulation_runs",
]

SLOW_EXAMPLES = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile(
    "gate", max_examples=25, stateful_step_count=30, deadline=None, print_blob=True, suppress_health_check=SLOW_EXAMPLES
)
settings.register_profile(
    "deep",
    max_examples=1500,
    stateful_step_count=80,
    deadline=None,
    print_blob=True,
    suppress_health_check=SLOW_EXAMPLES,
)


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("gate")


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
