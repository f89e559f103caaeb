"""Options of the crash tests (tests/crash/).

    pytest tests/crash --crash-rounds 1000          as many rounds of kill and recovery as that, in place of 50
    pytest tests/crash --crash-seed 12345           the schedule of that seed again; a failure prints its seed
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

ROUNDS = 50
SECONDS_PER_ROUND = 10  # far more than a round takes; the limit of a test grows with its rounds


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("crash tests")
    group.addoption("--crash-rounds", type=int, default=ROUNDS, help=f"rounds of kill and recovery [{ROUNDS}]")
    group.addoption("--crash-seed", default="", help="seed of the schedule; random when not given")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "crash_rounds" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(300 + SECONDS_PER_ROUND * config.getoption("--crash-rounds")))


@pytest.fixture
def crash_rounds(request: pytest.FixtureRequest) -> int:
    """How many rounds were asked for, in all tests together."""
    return int(request.config.getoption("--crash-rounds"))


@pytest.fixture
def crash_seed(request: pytest.FixtureRequest) -> Iterator[str]:
    """The seed of this run's schedules; shown with a failure."""
    seed = str(request.config.getoption("--crash-seed") or secrets.token_hex(4))
    yield seed
    request.node.add_report_section("teardown", "crash seed", f"to have this schedule again: --crash-seed {seed}\n")
