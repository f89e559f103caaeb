"""Keys: deleted, tested, counted, renamed and copied, and all of them deleted.

A command over many keys works in slices, so it is not a snapshot. TRUNCATE and its other names delete every key of the
cluster at once; FLUSHDB ASYNC is as immediate as SYNC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from merklekv.engine.format import OP_COPY_TO
from merklekv.errors import Stalled
from merklekv.net.commands.arguments import SYNTAX_ERROR, integer, many_keys, no_arguments, one_key, slices
from merklekv.net.commands.strings import bulk_or_nil
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.text import Request
from merklekv.net.registry import READ, SLOW_READ, SLOW_WRITE, WRITE, Long, Reply, command, line_command
from merklekv.net.session import Session, until_counted, writable

INT32_MIN, INT32_MAX = -(1 << 31), (1 << 31) - 1
_DELETES_ALL = "Deletes every key of the cluster."


def _delete_batch(sessions: Sequence[Session], requests: Sequence[Request], room: int) -> list[bytes]:
    deleted = sessions[0].engine.delete_batch([key for _, key in requests])
    return [resp.ONE if was_there else resp.ZERO for was_there in deleted]


@command("DEL key [key ...]", "Deletes keys.", group="delete", flags=SLOW_WRITE, batches={2: _delete_batch})
@command("UNLINK key [key ...]", "Deletes keys.", group="delete", flags=SLOW_WRITE, batches={2: _delete_batch})
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


@line_command("DEL key", group="delete", reply="`DELETED` or `NOT_FOUND`")
@line_command("DELETE key", group="delete", reply="`DELETED` or `NOT_FOUND`")
def delete_line(session: Session, request: Request) -> Reply:
    return text.DELETED if session.engine.delete(one_key(request)) else text.NOT_FOUND


@command("EXISTS key [key ...]", "How many of the keys exist.", group="exists", flags=SLOW_READ)
@command("TOUCH key [key ...]", "How many of the keys exist.", group="exists", flags=SLOW_READ)
def exists(session: Session, request: Request) -> Reply:
    if len(request) == 2:
        return resp.ONE if session.engine.exists(request[1]) else resp.ZERO
    return _exists(session, request[1:], b":%d\r\n")


@line_command("EXISTS key [key ...]", group="exists", reply="`EXISTS n`", note="how many of them exist")
def exists_line(session: Session, request: Request) -> Reply:
    return _exists(session, many_keys(request), b"EXISTS %d\r\n")


def _exists(session: Session, given: Sequence[bytes], form: bytes) -> Long:
    count = 0
    for number, keys in enumerate(slices(given)):
        if number:
            yield None
        count += sum(map(session.engine.exists, keys))
    return form % count


@command(
    "RENAME key newkey",
    "Moves a value to another key.",
    group="set",
    flags=SLOW_WRITE,
    note="both keys change, or neither; other nodes get two events",
)
def rename(session: Session, request: Request) -> Reply:
    if not session.engine.rename(request[1], request[2]):
        raise RequestError("no such key")
    return resp.OK


@command(
    "RENAMENX key newkey",
    "Moves a value to a key that does not exist.",
    group="set",
    flags=WRITE,
    note="both keys change, or neither; other nodes get two events",
)
def renamenx(session: Session, request: Request) -> Reply:
    engine = session.engine
    key, new_key = request[1:]
    with engine.lock:
        if not engine.exists(key):
            raise RequestError("no such key")
        return resp.ZERO if engine.exists(new_key) or not engine.rename(key, new_key) else resp.ONE


@command("COPY source destination [DB 0] [REPLACE]", "Copies a value to another key.", group="set", flags=SLOW_WRITE)
def copy(session: Session, request: Request) -> Reply:
    replaces = _read_copy_options(request[3:])
    key, new_key = request[1:3]
    if key == new_key:
        raise RequestError("source and destination objects are the same")
    engine = session.engine
    with engine.lock:
        found = engine.get_with_expiry(key)
        if found is None or (not replaces and engine.exists(new_key)):
            return resp.ZERO
        engine.set(new_key, *found, OP_COPY_TO)
    return resp.ONE


def _read_copy_options(words: Sequence[bytes]) -> bool:
    """Whether there is REPLACE; DB may name the only database."""
    replaces = False
    options = iter(words)
    for word in options:
        if word.upper() == b"REPLACE":
            replaces = True
        elif word.upper() == b"DB" and (number := next(options, None)) is not None:
            if not INT32_MIN <= integer(number) <= INT32_MAX:
                raise RequestError(f"value is out of range, value must between {INT32_MIN} and {INT32_MAX}")
            if int(number):
                raise RequestError("DB index is out of range")
        else:
            raise RequestError(SYNTAX_ERROR)
    return replaces


@command(
    "TYPE key",
    "`string` for a key that exists, else `none`.",
    group="get",
    flags=READ,
    note="`string` or `none`: every value is a string",
)
def type_(session: Session, request: Request) -> Reply:
    return b"+string\r\n" if session.engine.exists(request[1]) else b"+none\r\n"


@command("RANDOMKEY", "Some key.", group="scan", flags=READ)
def randomkey(session: Session, request: Request) -> Reply:
    return bulk_or_nil(session, session.engine.random_key())


@command("DBSIZE", "How many keys there are.", group="dbsize", flags=READ)
def dbsize(session: Session, request: Request) -> Reply:
    return _number_of_keys(session, resp.integer)


@line_command("DBSIZE", group="dbsize", reply="`DBSIZE n`", note="keys that are there")
def dbsize_line(session: Session, request: Request) -> Reply:
    no_arguments(request)
    return _number_of_keys(session, lambda count: b"DBSIZE %d\r\n" % count)


def _number_of_keys(session: Session, form: Callable[[int], bytes]) -> Reply:
    engine = session.engine
    with engine.lock:
        return form(engine.key_count) if engine.root_ready else _when_counted(session, form)


def _when_counted(session: Session, form: Callable[[int], bytes]) -> Long:
    engine = session.engine
    while True:
        yield from until_counted(session)
        with engine.lock:
            if engine.root_ready:  # else it was rolled back or truncated in between
                return form(engine.key_count)


@command(
    "FLUSHDB [ASYNC|SYNC]",
    _DELETES_ALL,
    group="flushdb",
    flags=SLOW_WRITE,
    note="every key of the cluster; ASYNC is as immediate as SYNC",
)
@command(
    "FLUSHALL [ASYNC|SYNC]",
    _DELETES_ALL,
    group="flushdb",
    flags=SLOW_WRITE,
    note="every key of the cluster; ASYNC is as immediate as SYNC",
)
@command("TRUNCATE", _DELETES_ALL, group="flushdb", flags=SLOW_WRITE, note="MerkleKV's own, as `FLUSHALL`")
def flush(session: Session, request: Request) -> Reply:
    if len(request) > 2 or (request[1:] and request[1].upper() not in (b"SYNC", b"ASYNC")):
        raise RequestError(SYNTAX_ERROR)
    session.engine.truncate()
    return resp.OK


@line_command("TRUNCATE", group="flushdb", reply="`OK`", note="every key is gone, on all nodes of the cluster")
@line_command("FLUSHDB", group="flushdb", reply="`OK`", note="every key is gone, on all nodes of the cluster")
@line_command("FLUSH", group="flushdb", reply="`OK`", note="every key is gone, on all nodes of the cluster")
def truncate_line(session: Session, request: Request) -> Reply:
    no_arguments(request)
    session.engine.truncate()
    return text.OK
