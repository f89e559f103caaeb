"""How messages of an exchange reach another node: through its port (`node.py`), or by a call in tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Transport(Protocol):
    """A connection to another node."""

    def ask(self, message: bytes) -> bytes:
        """The answer.  Raises MerkleKVError if none comes."""

    def close(self) -> None:
        """End the connection, and an `ask` under way in another thread."""


Connect = Callable[[str, int], Transport]
