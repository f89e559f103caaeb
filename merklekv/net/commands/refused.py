"""What is refused: transactions, unknown names, broken streams, clients over a limit, and other protocols.

Transactions are not supported yet. A client sends the commands of one without waiting for the reply to MULTI. If they
ran although MULTI is an error, the client would see a failure and yet have changed data. So they are refused too, up to
EXEC, DISCARD or, over RESP, RESET. A refusing session finds its commands in another dictionary, `Lookup.refusing`, so
all others pay nothing.

A client of HTTP or TLS is closed without a reply, as Redis does. It may be a browser that a web page has sent here, so
nothing that follows runs.
"""

from __future__ import annotations

import re
from typing import NoReturn

from merklekv.net.errors import Goodbye, RequestError
from merklekv.net.protocol import text
from merklekv.net.protocol.text import Request, show
from merklekv.net.registry import FAST, LINE, RESP, Reply, command, line_command, unnamed
from merklekv.net.session import Session

ARGUMENTS_SHOWN_BYTES = 128
_RESP_HEAD = re.compile(rb"\*[0-9-]+")


@command("MULTI", "Refused, with what follows: transactions are not supported yet.", flags=FAST, always=True)
@line_command("MULTI", always=True)
def multi(session: Session, request: Request) -> Reply:
    if session.refusing:
        raise RequestError("MULTI calls can not be nested")
    session.refuse(True)
    raise RequestError("transactions are not supported yet: all commands up to EXEC or DISCARD are refused")


@command("EXEC", "Ends a refused transaction.", flags=FAST, always=True)
@line_command("EXEC", always=True)
def exec_(session: Session, request: Request) -> Reply:
    _end(session, "EXEC")
    raise RequestError("Transaction discarded because of previous errors.", code="EXECABORT")


@command("DISCARD", "Ends a refused transaction.", flags=FAST, always=True)
@line_command("DISCARD", always=True)
def discard(session: Session, request: Request) -> Reply:
    _end(session, "DISCARD")
    raise RequestError("transactions are not supported yet: its commands were refused, so nothing has changed")


def _end(session: Session, name: str) -> None:
    if not session.refusing:
        raise RequestError(f"{name} without MULTI")
    session.refuse(False)


@unnamed(text.REFUSED_TRANSACTION)
def refused_transaction(session: Session, request: Request) -> Reply:
    raise RequestError("refused: transactions are not supported yet, and this one has not ended with EXEC or DISCARD")


@unnamed(text.BROKEN, text.REFUSED)
def broken(session: Session, request: Request) -> Reply:
    """The stream cannot be understood any more, or the client is refused: says so once, then closes."""
    if request[0] is text.BROKEN:
        session.context.traffic.protocol_errors += 1
    raise Goodbye(session.explain(RequestError(request[1].decode(errors="surrogateescape"))))


@unnamed(text.FOREIGN)
def foreign(session: Session, request: Request) -> Reply:
    _close_foreign(session, request[1])


def _close_foreign(session: Session, shown: bytes) -> NoReturn:
    context = session.context
    context.traffic.foreign_protocol_closed += 1
    context.throttle.warn(
        "foreign protocol",
        f"closed {session.address}: it sends another protocol, {shown[:60]!r}; nothing of that was run. "
        "This may be an attack by a web page that is open on the client's machine",
    )
    raise Goodbye(b"")


@unnamed(text.UNKNOWN, protocols=[RESP])
def unknown(session: Session, request: Request) -> Reply:
    if request[0].upper() in (b"POST", text.HTTP_HOST):
        _close_foreign(session, request[0])
    shown = ""
    for argument in request[1:]:
        if len(shown) >= ARGUMENTS_SHOWN_BYTES:
            break
        shown += f"'{show(argument, ARGUMENTS_SHOWN_BYTES - len(shown))}' "
    raise RequestError(f"unknown command '{show(request[0])}', with args beginning with: {shown}")


@unnamed(text.UNKNOWN, protocols=[LINE])
def unknown_line(session: Session, request: Request) -> Reply:
    if not request[0]:
        raise RequestError("Empty command")
    word = request[0].upper()
    if word in text.HTTP_METHODS or word.startswith(text.HTTP_HOST):
        _close_foreign(session, request[0])
    if _RESP_HEAD.fullmatch(word):
        # A value in what follows may hold lines that would run as commands.
        session.context.traffic.protocol_errors += 1
        raise Goodbye(b"ERROR RESP after the line protocol: use one connection for each\r\n")
    raise RequestError(f"Unknown command: {show(request[0])}")
