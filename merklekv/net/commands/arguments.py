"""What commands check about their arguments, in both protocols. A wrong one raises RequestError.

In the line protocol the error names the command as the client called it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from merklekv.engine.integers import strict_integer
from merklekv.net.errors import RequestError
from merklekv.net.limits import NAME_BYTES_MAX, SLICE_KEYS
from merklekv.net.protocol.text import Request, line_safe

SYNTAX_ERROR = "syntax error"
CLIENT_NAMES = "Client names"

Item = TypeVar("Item")


def integer(word: bytes) -> int:
    value = strict_integer(word)
    if value is None:
        raise RequestError("value is not an integer or out of range")
    return value


def bounded(word: bytes, low: int, high: int, what: str) -> int:
    """A number from `low` to `high`; `what` names it in the error."""
    value = strict_integer(word)
    if value is None or not low <= value <= high:
        raise RequestError(f"{what} must be a number from {low} to {high}")
    return value


def printable(word: bytes, what: str) -> bytes:
    """A name that others are shown."""
    if len(word) > NAME_BYTES_MAX:
        raise RequestError(f"{what} cannot have more than {NAME_BYTES_MAX} bytes")
    if any(not 33 <= byte <= 126 for byte in word):
        raise RequestError(f"{what} cannot contain spaces, newlines or special characters.")
    return word


def slices(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Cuts what a long command works on into pieces for one slice each."""
    for start in range(0, len(items), SLICE_KEYS):
        yield items[start : start + SLICE_KEYS]


# -- the line protocol -------------------------------------------------------------------------------------------------


def line_error(request: Request, problem: str) -> RequestError:
    return RequestError(f"{request[0].upper().decode()} command {problem}")


def words(request: Request) -> list[bytes]:
    return request[1].split(b" ") if request[1] else []


def no_arguments(request: Request) -> None:
    if request[1]:
        raise line_error(request, "does not accept any arguments")


def one_key(request: Request) -> bytes:
    """The only argument of a command on one key."""
    if not request[1]:
        raise line_error(request, "requires a key")
    if b" " in request[1]:
        raise line_error(request, "accepts only one argument")
    return line_key(request[1])


def many_keys(request: Request) -> list[bytes]:
    if not request[1]:
        raise line_error(request, "requires at least one key")
    return [line_key(key) for key in words(request)]


def key_and_value(request: Request) -> tuple[bytes, bytes]:
    """The value is all that follows the key's space, and is not empty."""
    key, space, value = request[1].partition(b" ")
    if not space:
        raise line_error(request, "requires a key and value")
    return line_key(key), value


def optional_argument(request: Request) -> bytes:
    """The only argument, or nothing."""
    if b" " in request[1]:
        raise line_error(request, "accepts only one argument")
    return request[1]


def line_key(key: bytes) -> bytes:
    if b"\t" in key:
        raise RequestError("Invalid character: tab character not allowed in key")
    if b"\r" in key:
        raise RequestError("Invalid character: carriage return not allowed in key")
    if not key:
        raise RequestError("Empty key: arguments are separated by single spaces")
    return key


def line_value(value: bytes) -> bytes:
    """A value that a reply line can hold."""
    if not line_safe(value):
        raise RequestError("value holds a line break: read it over RESP")
    return value
