"""Whatever a test here does with an engine: when it has passed, the one checker has to find nothing.

Every engine that the test opened and left open is checked and closed, then every directory that is still there.  A test
that damages a directory on purpose says so with `engines.damaged`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from fixtures import engines

from merklekv.engine import write_gate
from merklekv.engine.engine import Engine


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with engines.watching() as watched:
        result = yield  # what the test raises passes through here, and nothing is checked then
        watched.check()
    return result


@pytest.fixture(autouse=True)
def no_pause_between_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is looked at with every write, so that no test has to wait."""
    monkeypatch.setattr(write_gate, "PROBE_INTERVAL_S", 0.0)


@pytest.fixture
def make_engine(tmp_path: Path) -> Callable[..., Engine]:
    """Opens an engine in `tmp_path / name`; it is checked and closed when the test ends."""

    def make(name: str = "data", **options: object) -> Engine:
        return engines.open_engine(tmp_path / name, **options)

    return make
