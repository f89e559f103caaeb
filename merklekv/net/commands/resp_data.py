"""Handlers of the RESP data commands. Replies and errors are Redis 7's for the same command.

Two differences are ours: keys do not expire, so SET refuses the options that would make them, and a key is 1 to 511
bytes. A command that looks before it writes holds the engine's lock, so that nobody writes in between. One over
many keys works in slices, and so is not a snapshot; MSET and MSETNX are all or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from merklekv.engine.integers import strict_integer
from merklekv.errors import Stalled
from merklekv.net.commands.scan import NOT_AN_INTEGER, SYNTAX_ERROR
from merklekv.net.commands.shared import digest, replicate, synchronize
from merklekv.net.errors import RequestError
from merklekv.net.limits import SLICE_KEYS
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.session import Long, Reply, Session, check_reply_size, writable

WRONG_COUNT = "wrong number of arguments for '{}' command"
TOO_LONG = "string exceeds maximum allowed size (proto-max-bulk-len)"
_EXPIRY = frozenset((b"EX", b"PX", b"EXAT", b"PXAT"))
_SET_OPTIONS = frozenset((b"NX", b"XX", b"GET", b"KEEPTTL"))


def get(session: Session, request: Request) -> Reply:
    value = session.engine.get(request[1])
    return session.nil if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def get_batch(session: Session, requests: Sequence[Request], room: int) -> list[bytes]:
    get_value = session.engine.get
    nil = session.nil
    replies = []
    name = requests[0][0]
    for request in requests:
        if request[0] != name or len(request) != 2 or room < 0:
            break
        value = get_value(request[1])
        if value is None:
            replies.append(nil)
        else:
            replies.append(b"$%d\r\n%b\r\n" % (len(value), value))
            room -= len(value)
    return replies


def set_batch(session: Session, requests: Sequence[Request], room: int) -> list[bytes]:
    name = requests[0][0]
    row = takewhile(lambda request: request[0] == name and len(request) == 3, requests)
    return [resp.OK] * session.engine.set_batch(row)


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


def bulk_or_nil(session: Session, value: bytes | None) -> bytes:
    return session.nil if value is None else resp.bulk(value)


def getset(session: Session, request: Request) -> Reply:
    engine = session.engine
    with engine.lock:
        old = engine.get(request[1])
        engine.set(request[1], request[2])
    return bulk_or_nil(session, old)


def getdel(session: Session, request: Request) -> Reply:
    engine = session.engine
    with engine.lock:
        old = engine.get(request[1])
        if old is not None:
            engine.delete(request[1])
    return bulk_or_nil(session, old)


def setnx(session: Session, request: Request) -> Reply:
    engine = session.engine
    with engine.lock:
        if engine.exists(request[1]):
            return resp.ZERO
        engine.set(request[1], request[2])
    return resp.ONE


def mget(session: Session, request: Request) -> Reply:
    return _mget(session, request[1:])


def _mget(session: Session, keys: Sequence[bytes]) -> Long:
    parts: list[bytes] = []
    size = 0
    for start in range(0, len(keys), SLICE_KEYS):
        if start:
            yield None
        with session.engine.lock:  # or another thread's MSET could be seen half
            for key in keys[start : start + SLICE_KEYS]:
                parts.append(bulk_or_nil(session, session.engine.get(key)))
                size += len(parts[-1])
                check_reply_size(session, size)
    return resp.array(parts)


def _pairs(request: Request, name: str) -> list[tuple[bytes, bytes]]:
    if len(request) % 2 == 0:
        raise RequestError(WRONG_COUNT.format(name))
    return list(zip(request[1::2], request[2::2], strict=True))


def mset(session: Session, request: Request) -> Reply:
    session.engine.mset(_pairs(request, "mset"))
    return resp.OK


def msetnx(session: Session, request: Request) -> Reply:
    pairs = _pairs(request, "msetnx")
    engine = session.engine
    with engine.lock:
        if any(engine.exists(key) for key, _ in pairs):
            return resp.ZERO
        engine.mset(pairs)
    return resp.ONE


def delete(session: Session, request: Request) -> Reply:
    if len(request) == 2:
        return resp.ONE if session.engine.delete(request[1]) else resp.ZERO
    return _delete(session, request[1:])


def _delete(session: Session, keys: Sequence[bytes]) -> Long:
    """Deletes key by key; a stall in the middle must not make the keys already deleted count as absent."""
    count = 0
    for position, key in enumerate(keys, 1):
        while True:
            try:
                count += session.engine.delete(key)
                break
            except Stalled:
                yield writable(session)
        if position % SLICE_KEYS == 0:
            yield None
    return resp.integer(count)


def exists(session: Session, request: Request) -> Reply:
    if len(request) == 2:
        return resp.ONE if session.engine.exists(request[1]) else resp.ZERO
    return _exists(session, request[1:])


def _exists(session: Session, keys: Sequence[bytes]) -> Long:
    count = 0
    for start in range(0, len(keys), SLICE_KEYS):
        if start:
            yield None
        count += sum(map(session.engine.exists, keys[start : start + SLICE_KEYS]))
    return resp.integer(count)


def type_(session: Session, request: Request) -> Reply:
    return b"+string\r\n" if session.engine.exists(request[1]) else b"+none\r\n"


def strlen(session: Session, request: Request) -> Reply:
    return resp.integer(len(session.engine.get(request[1]) or b""))


def append(session: Session, request: Request) -> Reply:
    return resp.integer(len(session.engine.append(request[1], request[2])))


def prepend(session: Session, request: Request) -> Reply:
    return resp.integer(len(session.engine.prepend(request[1], request[2])))


def number(word: bytes) -> int:
    value = strict_integer(word)
    if value is None:
        raise RequestError(NOT_AN_INTEGER)
    return value


def incr(session: Session, request: Request) -> Reply:
    return resp.integer(session.engine.increment(request[1], 1))


def decr(session: Session, request: Request) -> Reply:
    return resp.integer(session.engine.increment(request[1], -1))


def incrby(session: Session, request: Request) -> Reply:
    return resp.integer(session.engine.increment(request[1], number(request[2])))


def decrby(session: Session, request: Request) -> Reply:
    amount = number(request[2])
    if amount == -(1 << 63):
        raise RequestError("decrement would overflow")
    return resp.integer(session.engine.increment(request[1], -amount))


def getrange(session: Session, request: Request) -> Reply:
    start, end = number(request[2]), number(request[3])
    value = session.engine.get(request[1]) or b""
    size = len(value)
    if start < 0 and end < 0 and start > end:
        return resp.bulk(b"")
    start = max(start + size, 0) if start < 0 else start
    end = max(end + size, 0) if end < 0 else end
    return resp.bulk(value[start : end + 1])


def setrange(session: Session, request: Request) -> Reply:
    offset, patch = number(request[2]), request[3]
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


def randomkey(session: Session, request: Request) -> Reply:
    return bulk_or_nil(session, session.engine.random_key())


def dbsize(session: Session, request: Request) -> Reply:
    return resp.integer(session.engine.live_count)


def flush(session: Session, request: Request) -> Reply:
    """FLUSHDB and FLUSHALL. Either way the keys are gone for every reader when the reply is sent."""
    if len(request) > 2 or (request[1:] and request[1].upper() not in (b"SYNC", b"ASYNC")):
        raise RequestError(SYNTAX_ERROR)
    session.engine.truncate()
    return resp.OK


def truncate(session: Session, request: Request) -> Reply:
    session.engine.truncate()
    return resp.OK


def hash_(session: Session, request: Request) -> Reply:
    def work() -> Long:
        value = yield from digest(session, request[1] if len(request) > 1 else b"")
        return resp.bulk(value)

    return work()


def sync(session: Session, request: Request) -> Reply:
    return synchronize(session, request[1:], resp.OK)


def replicate_(session: Session, request: Request) -> Reply:
    answer = replicate(session, request[1:])
    return resp.OK if answer == "OK" else resp.bulk(answer.encode())
