"""MULTI, EXEC and DISCARD: transactions are not supported yet, and a refused one runs nothing.

A client sends the commands of a transaction without waiting for the reply to MULTI. If they ran although MULTI is an
error, the client would see a failure and yet have changed data. So they are refused too, up to EXEC, DISCARD or, over
RESP, RESET. A refusing session finds its commands in another dictionary, `Lookup.refusing`, so all others pay nothing.
"""

from __future__ import annotations

from merklekv.net.commands.registry import FAST, command, line_command, unnamed
from merklekv.net.errors import RequestError
from merklekv.net.protocol.text import REFUSED_TRANSACTION, Request
from merklekv.net.session import Reply, Session


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


@unnamed(REFUSED_TRANSACTION)
def refused(session: Session, request: Request) -> Reply:
    raise RequestError("refused: transactions are not supported yet, and this one has not ended with EXEC or DISCARD")
