"""Writers that wait while the engine is stalled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from merklekv.errors import Stalled

T = TypeVar("T")

WAIT_S: Final = 0.5  # between two looks at `go_on`


class _Engine(Protocol):
    def wait_for_room(self, timeout_s: float) -> bool: ...


def _always() -> bool:
    return True


def retry_stalled(engine: _Engine, call: Callable[[], T], go_on: Callable[[], bool] = _always) -> T:
    """Make a call that raises Stalled while a checkpoint is behind, again each time there may be room.

    `go_on` is asked before each wait, about every WAIT_S; when it says no, the Stalled is raised.
    """
    while True:
        try:
            return call()
        except Stalled:
            if not go_on():
                raise
            engine.wait_for_room(WAIT_S)
