"""EVAL and its kin: Lua scripts as in Redis 7, each one moment for all clients, and all of it in one frame of the log.

What scripts write replicates as writes. The node forgets the scripts that it knows when it stops, and the least
recently used when they are many: EVALSHA then answers NOSCRIPT, and clients send the script again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from merklekv.net.commands.arguments import integer
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.registry import NOSCRIPT, Reply, Subcommands, command
from merklekv.net.session import Session

_SMALL: Final = {b"%d" % number: number for number in range(8)}
SHA1_DIGITS: Final = 40
_CODE: Final = re.compile(rb"[!-9;-~]{1,30}")  # not a colon, which ends the name of a field of INFO
_FLAGS: Final = (NOSCRIPT,)
_RO: Final = (NOSCRIPT, "readonly")
_NOTE: Final = "see [scripts](#scripts)"


@command("EVAL script numkeys [key ...] [arg ...]", "Runs a Lua script.", flags=_FLAGS, note=_NOTE)
def eval_(session: Session, request: Request) -> Reply:
    return _eval(session, request, False)


@command("EVAL_RO script numkeys [key ...] [arg ...]", "Runs a Lua script that writes nothing.", flags=_RO, note=_NOTE)
def eval_ro(session: Session, request: Request) -> Reply:
    return _eval(session, request, True)


@command("EVALSHA sha1 numkeys [key ...] [arg ...]", "Runs a Lua script that the node knows.", flags=_FLAGS, note=_NOTE)
def evalsha(session: Session, request: Request) -> Reply:
    return _evalsha(session, request, False)


@command(
    "EVALSHA_RO sha1 numkeys [key ...] [arg ...]",
    "Runs a Lua script that the node knows, writing nothing.",
    flags=_RO,
    note=_NOTE,
)
def evalsha_ro(session: Session, request: Request) -> Reply:
    return _evalsha(session, request, True)


def _eval(session: Session, request: Request, readonly: bool) -> bytes:
    keys = _number_of_keys(request)
    scripts = session.context.scripts
    errors = session.context.traffic.error_replies
    with session.engine.transaction(0):
        reply = scripts.run(session, scripts.load(request[1]), keys, request[3:], readonly)
    if reply[:1] == b"-":
        _count_failure(session, request, reply, errors)
    return reply


def _evalsha(session: Session, request: Request, readonly: bool) -> bytes:
    unknown = RequestError("No matching script. Please use EVAL.", code="NOSCRIPT")
    if len(request[1]) != SHA1_DIGITS:
        raise unknown
    keys = _number_of_keys(request)
    scripts = session.context.scripts
    errors = session.context.traffic.error_replies
    with session.engine.transaction(0):
        sha = request[1].lower()
        if not scripts.knows(sha):
            raise unknown
        reply = scripts.run(session, sha, keys, request[3:], readonly)
    if reply[:1] == b"-":
        _count_failure(session, request, reply, errors)
    return reply


def _count_failure(session: Session, request: Request, reply: bytes, errors: int) -> None:
    """Counts a script that has ended in an error, and the error, unless it was that of a command, counted since."""
    session.context.commands.resp.all[request[0].upper()].failed += 1
    traffic = session.context.traffic
    if traffic.error_replies == errors:
        code = reply[1:].partition(b" ")[0]
        traffic.count_error(RequestError("", code=code.decode() if _CODE.fullmatch(code) else "ERR"))


def _number_of_keys(request: Request) -> int:
    keys = _SMALL.get(request[2], -1)
    if keys < 0:
        keys = integer(request[2])
    if keys > len(request) - 3:
        raise RequestError("Number of keys can't be greater than number of args")
    if keys < 0:
        raise RequestError("Number of keys can't be negative")
    return keys


_script = Subcommands("SCRIPT")
command(
    "SCRIPT LOAD script|EXISTS sha1 [sha1 ...]|FLUSH [ASYNC|SYNC]|KILL|HELP",
    "The scripts that the node knows.",
    arity=-2,
    flags=_FLAGS,
    note="there is never one to kill",
)(_script.run)


@_script.add("LOAD script", "Keeps a script for EVALSHA, and returns its SHA-1.")
def _load(session: Session, arguments: Sequence[bytes]) -> bytes:
    with session.engine.lock:
        return resp.bulk(session.context.scripts.load(arguments[0]))


@_script.add("EXISTS sha1 [sha1 ...]", "Which of these scripts the node knows.")
def _exists(session: Session, arguments: Sequence[bytes]) -> bytes:
    with session.engine.lock:
        knows = session.context.scripts.knows
        return resp.array([resp.ONE if knows(sha.lower()) else resp.ZERO for sha in arguments])


@_script.add("FLUSH [ASYNC|SYNC]", "Forgets all scripts.")
def _flush(session: Session, arguments: Sequence[bytes]) -> bytes:
    if len(arguments) > 1 or (arguments and arguments[0].upper() not in (b"SYNC", b"ASYNC")):
        raise RequestError("SCRIPT FLUSH only support SYNC|ASYNC option")
    with session.engine.lock:
        session.context.scripts.flush()
    return resp.OK


@_script.add("KILL", "Refused: no client is served while a script runs, and a script that runs too long is stopped.")
def _kill(session: Session, arguments: Sequence[bytes]) -> bytes:
    raise RequestError("No scripts in execution right now.", code="NOTBUSY")
