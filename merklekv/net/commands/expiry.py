"""When keys expire: set, moved, shown and removed.

Replies and errors over RESP are Redis 7's. An expiry is an absolute time, in the record: a command that says how long
counts from the wall clock of the node that runs it. A time that is over deletes the key, but for SET and its kin, which
store what is hidden at once.
"""

from __future__ import annotations

from merklekv.engine.integers import strict_integer
from merklekv.engine.record import EXPIRY_MAX
from merklekv.net.commands.arguments import line_error, line_key, one_key
from merklekv.net.commands.options import PERSIST, expire_time, read_expire_options, read_options, wall_ms
from merklekv.net.commands.strings import bulk_or_nil
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.text import Request
from merklekv.net.registry import READ, WRITE, Reply, command, line_command
from merklekv.net.session import Session

_SECOND = 1000
_MISSING = b":-2\r\n"
_NO_EXPIRY = b":-1\r\n"


@command(
    "GETEX key [EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | PERSIST]",
    "The value of a key, whose expiry it sets.",
    group="get",
    flags=WRITE,
)
def getex(session: Session, request: Request) -> Reply:
    options = read_options(request[2:], of_set=False)
    engine, key = session.engine, request[1]
    with engine.lock:
        value = engine.get(key)
        if value is not None and options.sets_expiry:
            now = wall_ms(engine)
            expiry = options.expiry(now, "getex")
            if expiry > now or not options.is_absolute:
                engine.expire(key, expiry)
            else:
                engine.delete(key)
        elif options.lifetime == PERSIST and engine.expiry(key) is not None:
            engine.persist(key)
    return bulk_or_nil(session, value)


# -- setting an expiry -------------------------------------------------------------------------------------------------

_EXPIRE_OPTIONS = "[NX|XX|GT|LT]"


@command(
    f"EXPIRE key seconds {_EXPIRE_OPTIONS}",
    "Lets a key expire after a time.",
    group="set",
    flags=WRITE,
    note="see [expiry](#expiry)",
)
def expire(session: Session, request: Request) -> Reply:
    return _expire(session, request, _SECOND, wall_ms(session.engine))


@command(f"PEXPIRE key milliseconds {_EXPIRE_OPTIONS}", "Lets a key expire after a time.", group="set", flags=WRITE)
def pexpire(session: Session, request: Request) -> Reply:
    return _expire(session, request, 1, wall_ms(session.engine))


@command(f"EXPIREAT key unix-time-seconds {_EXPIRE_OPTIONS}", "Lets a key expire at a time.", group="set", flags=WRITE)
def expireat(session: Session, request: Request) -> Reply:
    return _expire(session, request, _SECOND, 0)


@command(
    f"PEXPIREAT key unix-time-milliseconds {_EXPIRE_OPTIONS}", "Lets a key expire at a time.", group="set", flags=WRITE
)
def pexpireat(session: Session, request: Request) -> Reply:
    return _expire(session, request, 1, 0)


def _expire(session: Session, request: Request, unit: int, since: int) -> Reply:
    options = read_expire_options(request[3:])
    expiry = expire_time(request[2], unit, since, request[0].decode().lower())
    engine, key = session.engine, request[1]
    with engine.lock:
        if not engine.exists(key) or not options.allow(engine.expiry(key), expiry):
            return resp.ZERO
        if expiry > wall_ms(engine):
            engine.expire(key, expiry)
        else:
            engine.delete(key)
    return resp.ONE


@line_command(
    "EXPIRE key seconds",
    group="set",
    reply="`OK` or `NOT_FOUND`",
    note="the key [expires](#expiry) after so many seconds; at once with 0 or less",
)
def expire_line(session: Session, request: Request) -> Reply:
    key, _, amount = request[1].partition(b" ")
    if not amount:
        raise line_error(request, "requires a key and a number of seconds")
    seconds = strict_integer(amount)
    if seconds is None:
        raise line_error(request, "seconds must be a valid number")
    engine = session.engine
    now = wall_ms(engine)
    expiry = now + seconds * _SECOND
    if expiry > EXPIRY_MAX:
        raise line_error(request, "seconds are too many")
    exists = engine.expire(line_key(key), expiry) if expiry > now else engine.delete(line_key(key))
    return text.OK if exists else text.NOT_FOUND


@command("PERSIST key", "Lets a key never expire.", group="set", flags=WRITE)
def persist(session: Session, request: Request) -> Reply:
    engine, key = session.engine, request[1]
    with engine.lock:
        return resp.ONE if engine.expiry(key) is not None and engine.persist(key) else resp.ZERO


@line_command("PERSIST key", group="set", reply="`OK` or `NOT_FOUND`", note="the key does not expire any more")
def persist_line(session: Session, request: Request) -> Reply:
    engine, key = session.engine, one_key(request)
    with engine.lock:
        if engine.expiry(key) is not None:
            engine.persist(key)
            return text.OK
        return text.OK if engine.exists(key) else text.NOT_FOUND


# -- reading an expiry -------------------------------------------------------------------------------------------------


def _seconds(milliseconds: int) -> int:
    """Rounded, as Redis does."""
    return (milliseconds + _SECOND // 2) // _SECOND


def _left(session: Session, expiry: int) -> int:
    return max(expiry - wall_ms(session.engine), 0)


@command("TTL key", "How many seconds a key has left.", group="get", flags=READ)
def ttl(session: Session, request: Request) -> Reply:
    expiry, otherwise = _expiry(session, request[1])
    return otherwise or resp.integer(_seconds(_left(session, expiry)))


@command("PTTL key", "How many milliseconds a key has left.", group="get", flags=READ)
def pttl(session: Session, request: Request) -> Reply:
    expiry, otherwise = _expiry(session, request[1])
    return otherwise or resp.integer(_left(session, expiry))


@command("EXPIRETIME key", "When a key expires, in seconds since 1970.", group="get", flags=READ)
def expiretime(session: Session, request: Request) -> Reply:
    expiry, otherwise = _expiry(session, request[1])
    return otherwise or resp.integer(_seconds(expiry))


@command("PEXPIRETIME key", "When a key expires, in milliseconds since 1970.", group="get", flags=READ)
def pexpiretime(session: Session, request: Request) -> Reply:
    expiry, otherwise = _expiry(session, request[1])
    return otherwise or resp.integer(expiry)


def _expiry(session: Session, key: bytes) -> tuple[int, bytes]:
    """When a key expires, or, if it does not, the reply that says so."""
    found = session.engine.get_with_expiry(key)
    if found is None:
        return 0, _MISSING
    return (0, _NO_EXPIRY) if found[1] is None else (found[1], b"")


@line_command(
    "TTL key",
    group="get",
    reply="`TTL n` or `NOT_FOUND`",
    note="the seconds that it has left, rounded; -1: it does not expire",
)
def ttl_line(session: Session, request: Request) -> Reply:
    found = session.engine.get_with_expiry(one_key(request))
    if found is None:
        return text.NOT_FOUND
    return b"TTL %d\r\n" % (-1 if found[1] is None else _seconds(_left(session, found[1])))
