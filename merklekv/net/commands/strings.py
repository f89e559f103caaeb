"""Values: read, written, extended and cut, one or several at a time.

Replies and errors over RESP are Redis 7's, with two differences: keys do not expire, so SET refuses the options that
would make them, and a key has 1 to 511 bytes. A command that reads before it writes holds the engine's lock. MGET works
in slices, so it is not a snapshot; MSET and MSETNX are all or none.
"""

from __future__ import annotations

from collections.abc import Sequence

from merklekv.engine.integers import strict_integer
from merklekv.net.commands.arguments import (
    SYNTAX_ERROR,
    integer,
    key_and_value,
    line_error,
    line_key,
    line_value,
    many_keys,
    one_key,
    slices,
    words,
)
from merklekv.net.errors import RequestError, wrong_count
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.text import Request
from merklekv.net.registry import READ, SLOW_READ, SLOW_WRITE, WRITE, Long, Reply, command, line_command
from merklekv.net.session import Session, check_reply_size

TOO_LONG = "string exceeds maximum allowed size (proto-max-bulk-len)"
_EXPIRY = frozenset((b"EX", b"PX", b"EXAT", b"PXAT"))
_SET_OPTIONS = frozenset((b"NX", b"XX", b"GET", b"KEEPTTL"))


def bulk_or_nil(session: Session, value: bytes | None) -> bytes:
    return session.nil if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


# -- GET and SET -------------------------------------------------------------------------------------------------------


def _get_batch(sessions: Sequence[Session], requests: Sequence[Request], room: int) -> list[bytes]:
    get_value = sessions[0].engine.get
    replies: list[bytes] = []
    for request in requests:
        if room < 0:
            break
        value = get_value(request[1])
        if value is None:
            replies.append(sessions[len(replies)].nil)
        else:
            replies.append(b"$%d\r\n%b\r\n" % (len(value), value))
            room -= len(value)
    return replies


@command("GET key", "The value of a key.", group="get", flags=READ, batch=_get_batch)
def get(session: Session, request: Request) -> Reply:
    return bulk_or_nil(session, session.engine.get(request[1]))


@line_command("GET key", group="get")
def get_line(session: Session, request: Request) -> Reply:
    value = session.engine.get(one_key(request))
    return text.NOT_FOUND if value is None else _value_line(value)


def _set_batch(sessions: Sequence[Session], requests: Sequence[Request], room: int) -> list[bytes]:
    return [resp.OK] * sessions[0].engine.set_batch(requests)


@command(
    "SET key value [NX|XX] [GET] [KEEPTTL]", "Sets the value of a key.", group="set", flags=WRITE, batch=_set_batch
)
def set_(session: Session, request: Request) -> Reply:
    if len(request) != 3:
        return _set_with_options(session, request)
    session.engine.set(request[1], request[2])
    return resp.OK


def _set_with_options(session: Session, request: Request) -> Reply:
    options = {word.upper() for word in request[3:]}
    for option in options & _EXPIRY:
        raise RequestError(f"SET option {option.decode()} is not supported: keys do not expire")
    if options - _SET_OPTIONS or options >= {b"NX", b"XX"}:
        raise RequestError(SYNTAX_ERROR)
    key, value = request[1:3]
    engine = session.engine
    with engine.lock:
        old = engine.get(key)
        wanted = not ((b"NX" in options and old is not None) or (b"XX" in options and old is None))
        if wanted:
            engine.set(key, value)
    if b"GET" in options:
        return bulk_or_nil(session, old)
    return resp.OK if wanted else session.nil


@line_command("SET key value", group="set")
def set_line(session: Session, request: Request) -> Reply:
    session.engine.set(*key_and_value(request))
    return text.OK


@command("GETSET key value", "Sets a key and returns its old value.", group="set", flags=WRITE)
def getset(session: Session, request: Request) -> Reply:
    engine = session.engine
    with engine.lock:
        old = engine.get(request[1])
        engine.set(request[1], request[2])
    return bulk_or_nil(session, old)


@command("GETDEL key", "Deletes a key and returns its value.", group="delete", flags=WRITE)
def getdel(session: Session, request: Request) -> Reply:
    engine = session.engine
    with engine.lock:
        old = engine.get(request[1])
        if old is not None:
            engine.delete(request[1])
    return bulk_or_nil(session, old)


@command("SETNX key value", "Sets a key that does not exist.", group="set", flags=WRITE)
def setnx(session: Session, request: Request) -> Reply:
    engine = session.engine
    with engine.lock:
        if engine.exists(request[1]):
            return resp.ZERO
        engine.set(request[1], request[2])
    return resp.ONE


# -- several keys ------------------------------------------------------------------------------------------------------


@command("MGET key [key ...]", "The values of several keys.", group="bulk", flags=SLOW_READ)
def mget(session: Session, request: Request) -> Long:
    parts: list[bytes] = []
    size = 0
    for keys in slices(request[1:]):
        if parts:
            yield None
        with session.engine.lock:  # so that another thread's MSET is seen whole
            for key in keys:
                parts.append(bulk_or_nil(session, session.engine.get(key)))
                size += len(parts[-1])
                check_reply_size(session, size)
    return resp.array(parts)


@line_command("MGET key [key ...]", group="bulk")
def mget_line(session: Session, request: Request) -> Long:
    lines: list[bytes] = []
    found = size = 0
    for keys in slices(many_keys(request)):
        if lines:
            yield None
        with session.engine.lock:  # so that another thread's MSET is seen whole
            for key in keys:
                value = session.engine.get(key)
                found += value is not None
                lines.append(b"%b %b\r\n" % (key, b"NOT_FOUND" if value is None else line_value(value)))
                size += len(lines[-1])
                check_reply_size(session, size)
    return b"VALUES %d\r\n%b" % (found, b"".join(lines)) if found else text.NOT_FOUND


def _pairs(request: Request) -> list[tuple[bytes, bytes]]:
    if len(request) % 2 == 0:
        raise wrong_count(request[0])
    return list(zip(request[1::2], request[2::2], strict=True))


@command("MSET key value [key value ...]", "Sets several keys, all or none.", group="bulk", flags=SLOW_WRITE)
def mset(session: Session, request: Request) -> Reply:
    session.engine.mset(_pairs(request))
    return resp.OK


@line_command("MSET key value [key value ...]", group="bulk")
def mset_line(session: Session, request: Request) -> Reply:
    given = words(request)
    if not given:
        raise line_error(request, "requires at least one key-value pair")
    if len(given) % 2:
        raise line_error(request, "requires an even number of arguments (key-value pairs)")
    session.engine.mset([(line_key(key), value) for key, value in zip(given[::2], given[1::2], strict=True)])
    return text.OK


@command(
    "MSETNX key value [key value ...]", "Sets several keys if none of them exists.", group="bulk", flags=SLOW_WRITE
)
def msetnx(session: Session, request: Request) -> Reply:
    pairs = _pairs(request)
    engine = session.engine
    with engine.lock:
        if any(engine.exists(key) for key, _ in pairs):
            return resp.ZERO
        engine.mset(pairs)
    return resp.ONE


# -- parts of a value --------------------------------------------------------------------------------------------------


@command("STRLEN key", "The length of a value in bytes.", group="get", flags=READ)
def strlen(session: Session, request: Request) -> Reply:
    return resp.integer(len(session.engine.get(request[1]) or b""))


@command("APPEND key value", "Adds to the end of a value.", group="string", flags=WRITE)
def append(session: Session, request: Request) -> Reply:
    return resp.integer(len(session.engine.append(request[1], request[2])))


@command("PREPEND key value", "Adds to the start of a value.", group="string", flags=WRITE)
def prepend(session: Session, request: Request) -> Reply:
    return resp.integer(len(session.engine.prepend(request[1], request[2])))


@line_command("APPEND key value", group="string")
@line_command("PREPEND key value", group="string")
def extend_line(session: Session, request: Request) -> Reply:
    """Refuses what the reply could not show, before anything changes."""
    key, value = key_and_value(request)
    engine = session.engine
    with engine.lock:
        line_value(value)
        line_value(engine.get(key) or b"")
        return _value_line((engine.append if request[0].upper() == b"APPEND" else engine.prepend)(key, value))


def _value_line(value: bytes) -> bytes:
    return b"VALUE %b\r\n" % line_value(value)


@command("GETRANGE key start end", "Part of a value.", group="get", flags=READ)
def getrange(session: Session, request: Request) -> Reply:
    start, end = integer(request[2]), integer(request[3])
    value = session.engine.get(request[1]) or b""
    size = len(value)
    if end < start < 0:
        return resp.bulk(b"")
    start = max(start + size, 0) if start < 0 else start
    end = max(end + size, 0) if end < 0 else end
    return resp.bulk(value[start : end + 1])


@command("SETRANGE key offset value", "Overwrites part of a value.", group="set", flags=WRITE)
def setrange(session: Session, request: Request) -> Reply:
    offset, patch = integer(request[2]), request[3]
    if offset < 0:
        raise RequestError("offset is out of range")
    engine = session.engine
    with engine.lock:
        old = engine.get(request[1]) or b""
        if not patch:
            return resp.integer(len(old))
        if offset + len(patch) > engine.max_value_size:
            raise RequestError(TOO_LONG)
        new = old[:offset].ljust(offset, b"\0") + patch + old[offset + len(patch) :]
        engine.set(request[1], new)
    return resp.integer(len(new))


# -- numbers: signed 64-bit integers in decimal; a missing key counts as 0 ---------------------------------------------


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
@line_command("DEC key [amount]", group="numeric")
@line_command("DECR key [amount]", group="numeric")
def add_line(session: Session, request: Request) -> Reply:
    sign = 1 if request[0].upper().startswith(b"INC") else -1
    key, _, amount = request[1].partition(b" ")
    if not key:
        raise line_error(request, "requires a key")
    number = strict_integer(amount) if amount else 1
    if number is None:
        raise line_error(request, "amount must be a valid number")
    return b"VALUE %d\r\n" % session.engine.increment(line_key(key), sign * number)
