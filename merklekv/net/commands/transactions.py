"""Transactions over RESP: MULTI queues what follows, EXEC runs it at once, WATCH makes that depend on keys.

A transaction is one moment: no other client sees a part of it, and after a crash all of it is there or nothing. It is
local to the node: other nodes get its writes as they get all others, one after the other. An error of a command in it
stops nothing, as in Redis. Where the disk is full in its midst, nothing of it is stored.

EXEC compares what WATCH has seen of each key with what is there, so a write costs nothing for keys that others watch,
and a change counts whether it came from a client, another node, a truncation or the clock.

The line protocol has no transactions. A client sends the commands of one without waiting for the reply to MULTI. If
they ran although MULTI is an error, the client would see a failure and yet have changed data. So they are refused too,
up to EXEC or DISCARD.
"""

from __future__ import annotations

from typing import Final

from merklekv.errors import Stalled
from merklekv.net.errors import RequestError
from merklekv.net.limits import WATCHED_BYTES
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.text import Request
from merklekv.net.registry import FAST, LINE, NOSCRIPT, Reply, command, line_command, unnamed
from merklekv.net.session import Session
from merklekv.net.transaction import Transaction

WATCHED_MAX: Final = 10_000  # keys of one connection
_FLAGS: Final = (NOSCRIPT, *FAST)
_ABORTED: Final = "Transaction discarded because of previous errors."
_RESP_ONLY: Final = "transactions work over RESP only"


@command("MULTI", "Begins a transaction.", flags=_FLAGS, always=True, note="see [transactions](#transactions)")
def multi(session: Session, request: Request) -> Reply:
    if session.transaction is not None:
        raise RequestError("MULTI calls can not be nested")
    session.use(Transaction(session.context.limits.request_bytes))
    return resp.OK


@command(
    "EXEC", "Runs a transaction.", flags=(NOSCRIPT, "write"), always=True, note="see [transactions](#transactions)"
)
def exec_(session: Session, request: Request) -> Reply:
    transaction = _current(session, "EXEC")
    if transaction.broken:
        _end(session)
        raise RequestError(_ABORTED, code="EXECABORT")
    engine = session.engine
    try:
        with engine.transaction(transaction.room):
            if session.watched and any(engine.has_changed(key, seen) for key, seen in session.watched.items()):
                reply = resp.NIL_ARRAY[session.protocol]
            else:
                reply = resp.array(transaction.run(session))
                if transaction.undo is not None:
                    session.worker.if_lost(session, transaction.undo)
    except Stalled:
        raise  # it has changed nothing, and runs again later
    except BaseException:
        if transaction.undo is not None:
            transaction.undo()
        _end(session)
        raise
    _end(session)
    return reply


@command(
    "DISCARD",
    "Ends a transaction without running it.",
    flags=_FLAGS,
    always=True,
    note="see [transactions](#transactions)",
)
def discard(session: Session, request: Request) -> Reply:
    _current(session, "DISCARD")
    _end(session)
    return resp.OK


def _current(session: Session, name: str) -> Transaction:
    if session.transaction is None:
        raise RequestError(f"{name} without MULTI")
    return session.transaction


def _end(session: Session) -> None:
    session.use(None)
    session.watched.clear()


@command(
    "WATCH key [key ...]",
    "Makes the next EXEC depend on keys that do not change until then.",
    flags=_FLAGS,
    always=True,
    note="see [transactions](#transactions)",
)
def watch(session: Session, request: Request) -> Reply:
    if session.transaction is not None:
        raise RequestError("WATCH inside MULTI is not allowed")
    watched = session.watched
    new = dict.fromkeys(key for key in request[1 : WATCHED_MAX + 2] if key not in watched)
    if len(watched) + len(new) > WATCHED_MAX or len(request) > WATCHED_MAX + 1:
        raise RequestError(f"too many watched keys: at most {WATCHED_MAX} for one connection")
    engine = session.engine
    with engine.lock:
        watched.update({key: engine.state_of(key) for key in new})
    session.context.memory.grown += WATCHED_BYTES * len(new)
    return resp.OK


@command("UNWATCH", "Forgets all watched keys.", flags=_FLAGS, note="see [transactions](#transactions)")
def unwatch(session: Session, request: Request) -> Reply:
    session.watched.clear()
    return resp.OK


# -- the line protocol -------------------------------------------------------------------------------------------------


@line_command("MULTI", always=True, reply="an error", note="[transactions](#transactions) work over RESP only")
def multi_line(session: Session, request: Request) -> Reply:
    if session.transaction is not None:
        raise RequestError("MULTI calls can not be nested")
    session.use(Transaction(0))
    raise RequestError(f"{_RESP_ONLY}: all commands up to EXEC or DISCARD are refused")


@line_command("EXEC", always=True, reply="an error", note="[transactions](#transactions) work over RESP only")
def exec_line(session: Session, request: Request) -> Reply:
    _current(session, "EXEC")
    _end(session)
    raise RequestError(_ABORTED, code="EXECABORT")


@line_command("DISCARD", always=True, reply="an error", note="[transactions](#transactions) work over RESP only")
def discard_line(session: Session, request: Request) -> Reply:
    _current(session, "DISCARD")
    _end(session)
    raise RequestError(f"{_RESP_ONLY}: its commands were refused, so nothing has changed")


@unnamed(text.IN_TRANSACTION, protocols=[LINE])
def in_transaction(session: Session, request: Request) -> Reply:
    raise RequestError(f"refused: {_RESP_ONLY}, and this one has not ended with EXEC or DISCARD")
