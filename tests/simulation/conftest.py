"""What is collected here, by the options in fixtures/simulation_runs.py."""

from __future__ import annotations

from pathlib import Path

import pytest

SEEDS_IN_A_TEST = 10
KINDS = {6: "l", 4: "v", 9: "w"}  # of the seeds that end with this digit


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    unasked = collection_path.name == "test_mutations.py" and not config.getoption("--simulation-mutations")
    return True if unasked else None


def _seed(number: int) -> str:
    """A tenth of them are of one wrong clock, of values too large for some nodes, of nodes alone at first."""
    return f"{KINDS.get(number % 10, '')}{number}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seeds" in metafunc.fixturenames:
        only = metafunc.config.getoption("--simulation-seed")
        count = metafunc.config.getoption("--simulation-seeds")
        groups = [
            [_seed(number) for number in range(first, min(first + SEEDS_IN_A_TEST, count))]
            for first in range(0, count, SEEDS_IN_A_TEST)
        ]
        metafunc.parametrize("seeds", [[only]] if only else groups, ids=lambda group: f"{group[0]}-{group[-1]}")
