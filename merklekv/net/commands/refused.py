"""What is refused: unknown names, broken streams, clients over a limit, and other protocols.

A client of HTTP or TLS is closed without a reply, as Redis does. It may be a browser that a web page has sent here, so
nothing that follows runs. A line that cannot be a command of any release may begin a frame of another protocol: what
has come with it does not run, and ends the connection.
"""

from __future__ import annotations

from typing import NoReturn

from merklekv.net.errors import Goodbye, RequestError
from merklekv.net.protocol import text
from merklekv.net.protocol.text import Request, show
from merklekv.net.registry import LINE, RESP, Reply, unnamed
from merklekv.net.session import Session

ARGUMENTS_SHOWN_BYTES = 128


@unnamed(text.BROKEN, text.REFUSED)
def broken(session: Session, request: Request) -> Reply:
    """The stream cannot be understood any more, or the client is refused: says so once, then closes."""
    if request[0] is text.BROKEN:
        session.context.traffic.protocol_errors += 1
    raise Goodbye(session.explain(RequestError(request[1].decode(errors="surrogateescape"))))


@unnamed(text.FOREIGN)
def foreign(session: Session, request: Request) -> Reply:
    _close_foreign(session, request[-1])


def _close_foreign(session: Session, shown: bytes) -> NoReturn:
    context = session.context
    context.traffic.foreign_protocol_closed += 1
    context.throttle.warn(
        "foreign protocol",
        "closed %(client)s: it sends another protocol, %(shown)s; nothing of that was run. "
        "This may be an attack by a web page that is open on the client's machine",
        fields={"client": session.address, "shown": repr(shown[:60])},
    )
    raise Goodbye(b"")


@unnamed(text.UNKNOWN, protocols=[RESP])
def unknown(session: Session, request: Request) -> Reply:
    if session.transaction is not None:
        session.transaction.fail()
    if request[0].upper() in (b"POST", text.HTTP_HOST) or text.ends_as_head(request[-1]):
        _close_foreign(session, request[0])
    shown = ""
    for argument in request[1:]:
        if len(shown) >= ARGUMENTS_SHOWN_BYTES:
            break
        shown += f"'{show(argument, ARGUMENTS_SHOWN_BYTES - len(shown))}' "
    raise RequestError(f"unknown command '{show(request[0])}', with args beginning with: {shown}")


@unnamed(text.STRANGE, protocols=[RESP])
def strange(session: Session, request: Request) -> Reply:
    if request[1]:
        session.context.traffic.protocol_errors += 1
        session.doubt()
    return unknown(session, request[1:])


@unnamed(text.UNKNOWN, protocols=[LINE])
def unknown_line(session: Session, request: Request) -> Reply:
    if not request[0]:
        raise RequestError("Empty command")
    word = request[0].upper()
    if word in text.FOREIGN_WORDS or word.startswith(text.HTTP_HOST) or text.ends_as_head(request[1]):
        _close_foreign(session, request[0])
    if not text.is_name(word):  # RESP, or another protocol: what follows may hold lines that would run as commands
        session.context.traffic.protocol_errors += 1
        if word[:1] == b"*":
            raise Goodbye(b"ERROR RESP after the line protocol: use one connection for each\r\n")
        session.doubt()
        raise RequestError(text.NO_NAME)
    raise RequestError(f"Unknown command: {show(request[0])}")
