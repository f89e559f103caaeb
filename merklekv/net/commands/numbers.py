"""Numbers: values that are signed 64-bit integers in decimal. A missing key counts as 0."""

from __future__ import annotations

from merklekv.engine.integers import strict_integer
from merklekv.net.commands.arguments import integer, line_error, line_key
from merklekv.net.commands.registry import WRITE, command, line_command
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.session import Reply, Session


@command("INCR key", "Adds 1 to a number.", group="numeric", flags=WRITE)
def incr(session: Session, request: Request) -> Reply:
    return resp.integer(session.engine.increment(request[1], 1))


@command("DECR key", "Subtracts 1 from a number.", group="numeric", flags=WRITE)
def decr(session: Session, request: Request) -> Reply:
    return resp.integer(session.engine.increment(request[1], -1))


@command("INCRBY key amount", "Adds to a number.", group="numeric", flags=WRITE)
def incrby(session: Session, request: Request) -> Reply:
    return resp.integer(session.engine.increment(request[1], integer(request[2])))


@command("DECRBY key amount", "Subtracts from a number.", group="numeric", flags=WRITE)
def decrby(session: Session, request: Request) -> Reply:
    amount = integer(request[2])
    if amount == -(1 << 63):
        raise RequestError("decrement would overflow")
    return resp.integer(session.engine.increment(request[1], -amount))


@line_command("INC key [amount]", group="numeric")
@line_command("INCR key [amount]", group="numeric")
def increment_line(session: Session, request: Request) -> Reply:
    return _add_line(session, request, 1)


@line_command("DEC key [amount]", group="numeric")
@line_command("DECR key [amount]", group="numeric")
def decrement_line(session: Session, request: Request) -> Reply:
    return _add_line(session, request, -1)


def _add_line(session: Session, request: Request, sign: int) -> bytes:
    key, _, amount = request[1].partition(b" ")
    if not key:
        raise line_error(request, "requires a key")
    number = strict_integer(amount) if amount else 1
    if number is None:
        raise line_error(request, "amount must be a valid number")
    return b"VALUE %d\r\n" % session.engine.increment(line_key(key), sign * number)
