"""Options of the simulator (tests/simulation/).

pytest tests/simulation --simulation-seeds 5000        as many histories as that, in place of 300
pytest tests/simulation --simulation-seed 1234         the history of that seed alone
pytest tests/simulation --simulation-mutations         and break the code on purpose: the simulator has to notice
"""

from __future__ import annotations

import pytest

SEEDS = 300


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("simulation")
    group.addoption("--simulation-seeds", type=int, default=SEEDS, help=f"histories to go through [{SEEDS}]")
    group.addoption("--simulation-seed", default="", help="the history of this seed alone")
    group.addoption("--simulation-mutations", action="store_true", help="break the code on purpose as well")
