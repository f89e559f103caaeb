"""What carries the messages of an exchange to another node and its answers back, and how that node is addressed.

An exchange is bytes there and bytes back, whoever carries them: a node's port (`node.py`), or a call in a test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from merklekv.errors import InvalidArgument

PORT_MAX: Final = 65535


class Carrier(Protocol):
    """A connection to another node."""

    def ask(self, message: bytes) -> bytes:
        """Its answer.  Raises MerkleKVError when it does not answer, or is gone."""

    def close(self) -> None:
        """Ends the connection; from another thread, an `ask` under way as well."""


Connect = Callable[[str, int], Carrier]


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, an IPv6 host in brackets.  Raises InvalidArgument."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) <= PORT_MAX:
        raise InvalidArgument(f"{address[:60]!r} is no address: give host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)
