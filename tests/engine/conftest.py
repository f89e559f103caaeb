"""Whatever a test here does with an engine: when it has passed, the one checker has to find nothing.

Every engine that the test opened and left open is checked and closed, then every directory that is still there.  A test
that damages a directory on purpose says so with `engine_support.damaged`.

Hypothesis runs the profile `gate` unless `--hypothesis-profile` names another; `deep` is for an hour to spare.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import engine_support
import pytest
from hypothesis import HealthCheck, settings

from merklekv.engine.engine import Engine

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with engine_support.watching() as watched:
        result = yield  # what the test raises passes through here, and nothing is checked then
        watched.check()
    return result


@pytest.fixture
def make_engine(tmp_path: Path) -> Callable[..., Engine]:
    """Opens an engine in `tmp_path / name`; it is checked and closed when the test ends."""

    def make(name: str = "data", **options: object) -> Engine:
        return engine_support.open_engine(tmp_path / name, **options)

    return make
