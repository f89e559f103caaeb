"""Keys: deleted, tested, counted, and all of them deleted.

A command over many keys works in slices, so it is not a snapshot. TRUNCATE and its other names delete every key of the
cluster at once; FLUSHDB ASYNC is as immediate as SYNC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from merklekv.errors import Stalled
from merklekv.net.commands.arguments import SYNTAX_ERROR, many_keys, no_arguments, one_key, slices
from merklekv.net.commands.strings import bulk_or_nil
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.text import Request
from merklekv.net.registry import READ, SLOW_READ, SLOW_WRITE, Long, Reply, command, line_command
from merklekv.net.session import Session, until_counted, writable

_DELETES_ALL = "Deletes every key of the cluster."


@command("DEL key [key ...]", "Deletes keys.", group="delete", flags=SLOW_WRITE)
@command("UNLINK key [key ...]", "Deletes keys.", group="delete", flags=SLOW_WRITE)
def delete(session: Session, request: Request) -> Reply:
    if len(request) == 2:
        return resp.ONE if session.engine.delete(request[1]) else resp.ZERO
    return _delete(session, request)


def _delete(session: Session, request: Request) -> Long:
    """Waits at each key by itself: a stall must not make the keys already deleted count as absent."""
    count = 0
    for number, keys in enumerate(slices(request[1:])):
        if number:
            yield None
        for key in keys:
            while True:
                try:
                    count += session.engine.delete(key)
                    break
                except Stalled:
                    yield writable(session)
    return resp.integer(count)


@line_command("DEL key", group="delete")
@line_command("DELETE key", group="delete")
def delete_line(session: Session, request: Request) -> Reply:
    return text.DELETED if session.engine.delete(one_key(request)) else text.NOT_FOUND


@command("EXISTS key [key ...]", "How many of the keys exist.", group="exists", flags=SLOW_READ)
def exists(session: Session, request: Request) -> Reply:
    if len(request) == 2:
        return resp.ONE if session.engine.exists(request[1]) else resp.ZERO
    return _exists(session, request[1:], b":%d\r\n")


@line_command("EXISTS key [key ...]", group="exists")
def exists_line(session: Session, request: Request) -> Reply:
    return _exists(session, many_keys(request), b"EXISTS %d\r\n")


def _exists(session: Session, given: Sequence[bytes], form: bytes) -> Long:
    count = 0
    for number, keys in enumerate(slices(given)):
        if number:
            yield None
        count += sum(map(session.engine.exists, keys))
    return form % count


@command("TYPE key", "`string` for a key that exists, else `none`.", group="get", flags=READ)
def type_(session: Session, request: Request) -> Reply:
    return b"+string\r\n" if session.engine.exists(request[1]) else b"+none\r\n"


@command("RANDOMKEY", "Some key.", group="scan", flags=READ)
def randomkey(session: Session, request: Request) -> Reply:
    return bulk_or_nil(session, session.engine.random_key())


@command("DBSIZE", "How many keys there are.", group="dbsize", flags=READ)
def dbsize(session: Session, request: Request) -> Reply:
    return _number_of_keys(session, resp.integer)


@line_command("DBSIZE", group="dbsize")
def dbsize_line(session: Session, request: Request) -> Reply:
    no_arguments(request)
    return _number_of_keys(session, lambda count: b"DBSIZE %d\r\n" % count)


def _number_of_keys(session: Session, form: Callable[[int], bytes]) -> Reply:
    engine = session.engine
    with engine.lock:
        return form(engine.live_count) if engine.root_ready else _when_counted(session, form)


def _when_counted(session: Session, form: Callable[[int], bytes]) -> Long:
    engine = session.engine
    while True:
        yield from until_counted(session)
        with engine.lock:
            if engine.root_ready:  # else it was rolled back or truncated in between
                return form(engine.live_count)


@command("FLUSHDB [ASYNC|SYNC]", _DELETES_ALL, group="flushdb", flags=SLOW_WRITE)
@command("FLUSHALL [ASYNC|SYNC]", _DELETES_ALL, group="flushdb", flags=SLOW_WRITE)
@command("TRUNCATE", _DELETES_ALL, group="flushdb", flags=SLOW_WRITE)
def flush(session: Session, request: Request) -> Reply:
    if len(request) > 2 or (request[1:] and request[1].upper() not in (b"SYNC", b"ASYNC")):
        raise RequestError(SYNTAX_ERROR)
    session.engine.truncate()
    return resp.OK


@line_command("TRUNCATE", group="flushdb")
@line_command("FLUSHDB", group="flushdb")
@line_command("FLUSH", group="flushdb")
def truncate_line(session: Session, request: Request) -> Reply:
    no_arguments(request)
    session.engine.truncate()
    return text.OK
