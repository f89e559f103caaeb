"""What carries the messages of an exchange to another node and its answers back.

An exchange is bytes there and bytes back, whoever carries them: a node's port (`node.py`), or a call in a test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Carrier(Protocol):
    """A connection to another node."""

    def ask(self, message: bytes) -> bytes:
        """Its answer.  Raises MerkleKVError when it does not answer, or is gone."""

    def close(self) -> None:
        """Ends the connection; from another thread, an `ask` under way as well."""


Connect = Callable[[str, int], Carrier]
