"""How a handler ends a request other than by a reply.

`RequestError` is the client's mistake: the client is told, and the connection goes on. `Goodbye` ends the connection
after a last reply. A broken protocol is neither: the parsers queue it as a request of its own (`text.BROKEN`), so that
the requests before it are answered first.
"""

from __future__ import annotations

from collections.abc import Callable

from merklekv.errors import MerkleKVError


class RequestError(MerkleKVError):
    """The message says what is wrong with the request; `code` is the first word of the RESP error."""

    def __init__(self, message: str, code: str = "ERR") -> None:
        super().__init__(message)
        self.code = code


class Rejected(RequestError):
    """The request does not reach its command: it does not count as a call."""


class Goodbye(Exception):
    """Send `reply`, close the connection, then call `afterwards`."""

    def __init__(self, reply: bytes, afterwards: Callable[[], None] | None = None) -> None:
        super().__init__(reply)
        self.reply = reply
        self.afterwards = afterwards


def wrong_count(name: str | bytes, kind: type[RequestError] = RequestError) -> RequestError:
    """The error for a command with too few or too many arguments."""
    shown = name if isinstance(name, str) else name.decode(errors="surrogateescape")
    return kind(f"wrong number of arguments for '{shown.lower()}' command")
