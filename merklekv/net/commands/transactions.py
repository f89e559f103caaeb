"""MULTI, EXEC and DISCARD: transactions are not supported yet, and a refused one runs nothing.

A client sends the commands of a transaction behind MULTI without waiting for its reply. If they ran because MULTI is an
error, the client would see a failure and yet have changed data. So the commands behind MULTI are refused as well, up to
EXEC, DISCARD or, in RESP, RESET. QUIT works as anywhere.

A refusing session looks its commands up in another table (`Commands.refusing`), so that all others pay nothing.
"""

from __future__ import annotations

from merklekv.net.errors import RequestError
from merklekv.net.protocol.text import Request
from merklekv.net.session import Reply, Session


def multi(session: Session, request: Request) -> Reply:
    if session.refusing:
        raise RequestError("MULTI calls can not be nested")
    session.refuse(True)
    raise RequestError("transactions are not supported yet: all commands up to EXEC or DISCARD are refused")


def exec_(session: Session, request: Request) -> Reply:
    _end(session, "EXEC")
    raise RequestError("Transaction discarded because of previous errors.", code="EXECABORT")


def discard(session: Session, request: Request) -> Reply:
    _end(session, "DISCARD")
    raise RequestError("transactions are not supported yet: its commands were refused, so nothing has changed")


def _end(session: Session, name: str) -> None:
    if not session.refusing:
        raise RequestError(f"{name} without MULTI")
    session.refuse(False)


def refused(session: Session, request: Request) -> Reply:
    raise RequestError("refused: transactions are not supported yet, and this one has not ended with EXEC or DISCARD")
