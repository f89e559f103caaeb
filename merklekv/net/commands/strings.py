"""Values: read, written, extended and cut, one or several at a time.

Replies and errors over RESP are Redis 7's; those of SET IFEQ and DELIFEQ are Valkey's. A key has 1 to 511 bytes. A
command that reads before it writes holds the engine's lock. MGET works in slices, so it is not a snapshot; MSET and
MSETNX are all or none.
"""

from __future__ import annotations

from collections.abc import Sequence

from merklekv.core import compiled
from merklekv.engine.format import OP_INCRBYFLOAT, OP_SETRANGE
from merklekv.engine.integers import strict_integer
from merklekv.engine.record import EXPIRY, FLAGS, pack_expiry
from merklekv.net import long_double
from merklekv.net.commands.arguments import (
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
from merklekv.net.commands.options import KEEP, expiry_of_amount, plain_expiry, read_options, wall_ms
from merklekv.net.errors import RequestError, wrong_count
from merklekv.net.protocol import resp, text
from merklekv.net.protocol.text import Request
from merklekv.net.registry import READ, SLOW_READ, SLOW_WRITE, WRITE, BatchHandler, Long, Reply, command, line_command
from merklekv.net.session import Session, check_reply_size

MSET_PAIRS_MAX = 32  # of an MSET that runs together with others
TOGETHER_PAIRS_MAX = 1000  # of all of these

PAIRS_MAX = 100_000  # of one MSET or MSETNX: nobody else is served while it sets them

TOO_MANY_PAIRS = f"too many pairs: all are set at one moment, so at most {PAIRS_MAX} at a time"
TOO_LONG = "string exceeds maximum allowed size (proto-max-bulk-len)"


def bulk_or_nil(session: Session, value: bytes | None) -> bytes:
    return session.nil if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


@compiled
def bulk_each(values: list[bytes | None], sessions: Sequence[Session]) -> tuple[list[bytes], int]:
    """Each session's reply with its value, or nil for one without; and how many are without."""
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        pairs = zip(sessions, values, strict=False)
        return [bulk_or_nil(session, value) for session, value in pairs], len(values) - len(found)
    try:
        return [resp.BULK_HEADER_LINES[len(value)] + value + resp.CRLF for value in found], 0
    except IndexError:  # one is longer
        return list(map(resp.bulk, found)), 0


# -- GET and SET -------------------------------------------------------------------------------------------------------


def _get_batch(sessions: Sequence[Session], requests: Sequence[Request], room: int) -> list[bytes]:
    replies, misses = bulk_each(sessions[0].engine.get_batch(requests, room), sessions)
    sessions[0].context.traffic.misses += misses
    return replies


@command("GET key", "The value of a key.", group="get", flags=READ, batches={2: _get_batch})
def get(session: Session, request: Request) -> Reply:
    value = session.engine.get(request[1])
    if value is None:
        session.context.traffic.misses += 1
    return bulk_or_nil(session, value)


@line_command("GET key", group="get", reply="`VALUE v` or `NOT_FOUND`")
def get_line(session: Session, request: Request) -> Reply:
    value = session.engine.get(one_key(request))
    return text.NOT_FOUND if value is None else _value_line(value)


def _set_batch(sessions: Sequence[Session], requests: Sequence[Request], room: int) -> list[bytes]:
    return [resp.OK] * sessions[0].engine.set_batch(requests)


def _set_expiring_batch(sessions: Sequence[Session], requests: Sequence[Request], room: int) -> list[bytes]:
    """SET with EX or PX, up to the first request with another option or a wrong amount."""
    _, keys, values, options, amounts = zip(*requests, strict=True)
    return _set_expiring(sessions[0], keys, values, options, amounts)


def _set_expiring(
    session: Session,
    keys: Sequence[bytes],
    values: Sequence[bytes],
    options: Sequence[bytes],
    amounts: Sequence[bytes],
) -> list[bytes]:
    engine = session.engine
    now = wall_ms(engine)
    option, amount = options[0], amounts[0]
    if options.count(option) == amounts.count(amount) == len(keys):
        time = plain_expiry(option, amount, now)
        if not time:
            return []
        return [resp.OK] * engine.set_batch(zip(keys, keys, values, strict=True), FLAGS[EXPIRY], pack_expiry(time))
    items = []
    for key, value, own_option, own_amount in zip(keys, values, options, amounts, strict=True):
        time = plain_expiry(own_option, own_amount, now)
        if not time:
            break
        items.append((key, key, pack_expiry(time) + value))
    return [resp.OK] * engine.set_batch(items, FLAGS[EXPIRY])


@command(
    "SET key value [NX | XX | IFEQ comparison-value] [GET] "
    "[EX seconds | PX milliseconds | EXAT unix-time-seconds | PXAT unix-time-milliseconds | KEEPTTL]",
    "Sets the value of a key.",
    group="set",
    flags=WRITE,
    batches={3: _set_batch, 5: _set_expiring_batch},
    note="IFEQ is Valkey's",
)
def set_(session: Session, request: Request) -> Reply:
    engine = session.engine
    if len(request) == 3:
        engine.set(request[1], request[2])
    elif len(request) == 5 and (expiry := plain_expiry(request[3], request[4], wall_ms(engine))):
        engine.set(request[1], request[2], expiry)
    else:
        return _set_with_options(session, request)
    return resp.OK


def _set_with_options(session: Session, request: Request) -> Reply:
    options = read_options(request[3:], of_set=True)
    engine, key, value = session.engine, request[1], request[2]
    expiry = options.expiry(wall_ms(engine), "set") if options.sets_expiry else None
    with engine.lock:
        found = engine.get_with_expiry(key) if options.reads else None
        old, old_expiry = found or (None, None)
        if options.lifetime == KEEP:
            expiry = old_expiry
        is_met = options.is_met_by(old)
        if is_met:
            engine.set(key, value, expiry)
    if options.gets:
        return bulk_or_nil(session, old)
    return resp.OK if is_met else session.nil


def _setex_batch(sessions: Sequence[Session], requests: Sequence[Request], room: int) -> list[bytes]:
    names, keys, amounts, values = zip(*requests, strict=True)
    return _set_expiring(sessions[0], keys, values, [_SETEX_OPTIONS[names[0].upper()]] * len(keys), amounts)


_SETEX_OPTIONS = {b"SETEX": b"EX", b"PSETEX": b"PX"}


@command("SETEX key seconds value", "Sets a key that expires.", group="set", flags=WRITE, batches={4: _setex_batch})
@command(
    "PSETEX key milliseconds value", "Sets a key that expires.", group="set", flags=WRITE, batches={4: _setex_batch}
)
def setex(session: Session, request: Request) -> Reply:
    name, key, amount, value = request
    engine, option = session.engine, _SETEX_OPTIONS[name.upper()]
    now = wall_ms(engine)
    expiry = plain_expiry(option, amount, now) or expiry_of_amount(option, amount, now, name.decode().lower())
    engine.set(key, value, expiry)
    return resp.OK


@line_command(
    "SET key value", group="set", reply="`OK`", note='`""` is two quote characters; an empty value is set over RESP'
)
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


@command(
    "DELIFEQ key value",
    "Deletes a key that has this value.",
    group="delete",
    flags=WRITE,
    note="Valkey's: 1 if the key had this value and is deleted, else 0",
)
def delifeq(session: Session, request: Request) -> Reply:
    engine = session.engine
    with engine.lock:
        return resp.ONE if engine.get(request[1]) == request[2] and engine.delete(request[1]) else resp.ZERO


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
    size, limit = 0, session.context.limits.output_hard_bytes
    for keys in slices(request[1:]):
        if parts:
            yield None
        with session.engine.lock:  # so that another thread's MSET is seen whole
            for key in keys:
                parts.append(bulk_or_nil(session, session.engine.get(key)))
                size += len(parts[-1])
                if size > limit:
                    break
        check_reply_size(session, size)
    return resp.array(parts)


@line_command(
    "MGET key [key ...]",
    group="bulk",
    reply="`VALUES n`, then for each key asked, in order, `key value` or `key NOT_FOUND`",
    note="n counts those found; when none is, `NOT_FOUND` alone",
)
def mget_line(session: Session, request: Request) -> Long:
    lines: list[bytes] = []
    found = size = 0
    limit = session.context.limits.output_hard_bytes
    for keys in slices(many_keys(request)):
        if lines:
            yield None
        with session.engine.lock:  # so that another thread's MSET is seen whole
            for key in keys:
                value = session.engine.get(key)
                found += value is not None
                lines.append(b"%b %b\r\n" % (key, b"NOT_FOUND" if value is None else line_value(value)))
                size += len(lines[-1])
                if size > limit:
                    break
        check_reply_size(session, size)
    return b"VALUES %d\r\n%b" % (found, b"".join(lines)) if found else text.NOT_FOUND


def _pairs(request: Request) -> list[tuple[bytes, bytes]]:
    if len(request) % 2 == 0:
        raise wrong_count(request[0])
    if len(request) > 2 * PAIRS_MAX + 1:
        raise RequestError(TOO_MANY_PAIRS)
    return list(zip(request[1::2], request[2::2], strict=True))


def _mset_batch(sessions: Sequence[Session], requests: Sequence[Request], room: int) -> list[bytes]:
    """Runs the first of them as one. What one of them is refused for, all are; then each runs by itself."""
    taken = requests[: TOGETHER_PAIRS_MAX // (len(requests[0]) // 2)]
    sessions[0].engine.mset([pair for request in taken for pair in zip(request[1::2], request[2::2], strict=True)])
    return [resp.OK] * len(taken)


@command(
    "MSET key value [key value ...]",
    "Sets several keys, all or none.",
    group="bulk",
    flags=SLOW_WRITE,
    batches=dict.fromkeys(range(3, 2 * MSET_PAIRS_MAX + 2, 2), _mset_batch),
)
def mset(session: Session, request: Request) -> Reply:
    session.engine.mset(_pairs(request))
    return resp.OK


@line_command("MSET key value [key value ...]", group="bulk", reply="`OK`", note="pairs of words")
def mset_line(session: Session, request: Request) -> Reply:
    given = words(request)
    if not given:
        raise line_error(request, "requires at least one key-value pair")
    if len(given) % 2:
        raise line_error(request, "requires an even number of arguments (key-value pairs)")
    if len(given) > 2 * PAIRS_MAX:
        raise RequestError(TOO_MANY_PAIRS)
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


@command(
    "PREPEND key value",
    "Adds to the start of a value.",
    group="string",
    flags=WRITE,
    note="MerkleKV's own: the new length, as `APPEND`",
)
def prepend(session: Session, request: Request) -> Reply:
    return resp.integer(len(session.engine.prepend(request[1], request[2])))


@line_command(
    "APPEND key value", group="string", reply="`VALUE whole`", note="the whole new value; a missing key counts as empty"
)
@line_command("PREPEND key value", group="string", reply="`VALUE whole`")
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
@command("SUBSTR key start end", "Part of a value: the old name of GETRANGE.", group="get", flags=READ)
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
        view = memoryview(old)  # both may be large: no part is copied twice, and the old value goes before the write
        new = b"".join((view[:offset], bytes(max(0, offset - len(old))), patch, view[offset + len(patch) :]))
        del old, view
        engine.change(OP_SETRANGE, request[1], new)
    return resp.integer(len(new))


# -- numbers: signed 64-bit integers in decimal; a missing key counts as 0 ---------------------------------------------


def _increment_batch(amount: int) -> BatchHandler:
    def run(sessions: Sequence[Session], requests: Sequence[Request], room: int) -> list[bytes]:
        sums = sessions[0].engine.increment_batch([key for _, key in requests], amount)
        return list(map(resp.integer, sums))

    return run


@command("INCR key", "Adds 1 to a number.", group="numeric", flags=WRITE, batches={2: _increment_batch(1)})
def incr(session: Session, request: Request) -> Reply:
    return resp.integer(session.engine.increment(request[1], 1))


@command("DECR key", "Subtracts 1 from a number.", group="numeric", flags=WRITE, batches={2: _increment_batch(-1)})
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


@command(
    "INCRBYFLOAT key increment",
    "Adds to a number with a fraction.",
    group="numeric",
    flags=WRITE,
    note="the same number as Redis on x86-64: its 80-bit floating point, 17 digits behind the point",
)
def incrbyfloat(session: Session, request: Request) -> Reply:
    engine, key = session.engine, request[1]
    with engine.lock:
        old = engine.get(key)
        number = long_double.read(b"0" if old is None else old)
        increment = long_double.read(request[2])
        if number is None or increment is None:
            raise RequestError("value is not a valid float")
        total = long_double.add(number, increment)
        if total is None:
            raise RequestError("increment would produce NaN or Infinity")
        value = long_double.write(total)
        engine.change(OP_INCRBYFLOAT, key, value)
    return resp.bulk(value)


@line_command(
    "INC key [amount]", group="numeric", reply="`VALUE n`", note="the new number; the amount is 1 unless given"
)
@line_command(
    "INCR key [amount]", group="numeric", reply="`VALUE n`", note="the new number; the amount is 1 unless given"
)
@line_command("DEC key [amount]", group="numeric", reply="`VALUE n`", note="likewise")
@line_command("DECR key [amount]", group="numeric", reply="`VALUE n`", note="likewise")
def add_line(session: Session, request: Request) -> Reply:
    sign = 1 if request[0].upper().startswith(b"INC") else -1
    key, _, amount = request[1].partition(b" ")
    if not key:
        raise line_error(request, "requires a key")
    number = strict_integer(amount) if amount else 1
    if number is None:
        raise line_error(request, "amount must be a valid number")
    return b"VALUE %d\r\n" % session.engine.increment(line_key(key), sign * number)
