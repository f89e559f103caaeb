"""What carries the messages of an exchange to another node and its answers back, and how that node is addressed.

An exchange is bytes there and bytes back, whoever carries them: a node's port (`node.py`), or a call in a test.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from merklekv.errors import InvalidArgument

PORT_MAX: Final = 65535
ADDRESS: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^][/:\s\0]+)):(?P<port>[0-9]{1,5})", re.ASCII
)


class Carrier(Protocol):
    """A connection to another node."""

    def ask(self, message: bytes) -> bytes:
        """Its answer.  Raises MerkleKVError when it does not answer, or is gone."""

    def close(self) -> None:
        """Ends the connection; from another thread, an `ask` under way as well."""


Connect = Callable[[str, int], Carrier]


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, an IPv6 host in brackets.  Raises InvalidArgument.

    The name may still be one that nobody has.  But it is one that can be looked up: Python raises an error of another
    kind than for that if a part of the name is empty, or longer than 63 characters.
    """
    match = ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) <= PORT_MAX:
        raise InvalidArgument(f"{address[:60]!r} is no address: give host:port")
    host: str = match["six"] or match["host"]
    try:
        host.encode("idna")
    except UnicodeError:
        raise InvalidArgument(f"{address[:60]!r} is no address: {host[:60]!r} is not a host name") from None
    return host, int(match["port"])
