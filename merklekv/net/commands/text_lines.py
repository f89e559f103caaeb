"""Handlers of the text protocol: a request is the command word and the rest of its line.

Some words have two spellings, and error texts name the command as it was called, so those handlers are made by
functions that take the name. Nothing that holds CR or LF goes into a reply: such keys and values came over RESP, and
the client is told to read them there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from merklekv.engine.integers import strict_integer
from merklekv.net.commands.shared import digest, refuse_foreign, replicate, synchronize
from merklekv.net.errors import Goodbye, RequestError
from merklekv.net.limits import SLICE_KEYS
from merklekv.net.protocol import text
from merklekv.net.protocol.text import Request, line_safe
from merklekv.net.session import Handler, Long, Reply, Session, check_reply_size

_RESP_HEAD = re.compile(rb"\*[0-9-]+")


def one_key(name: str, rest: bytes) -> bytes:
    """The only argument of a command on one key."""
    if not rest:
        raise RequestError(f"{name} command requires a key")
    if b" " in rest:
        raise RequestError(f"{name} command accepts only one argument")
    return checked_key(rest)


def checked_key(key: bytes) -> bytes:
    if b"\t" in key:
        raise RequestError("Invalid character: tab character not allowed in key")
    if b"\r" in key:
        raise RequestError("Invalid character: carriage return not allowed in key")
    if not key:
        raise RequestError("Empty key: arguments are separated by single spaces")
    return key


def many_keys(name: str, rest: bytes) -> list[bytes]:
    if not rest:
        raise RequestError(f"{name} command requires at least one key")
    return [checked_key(key) for key in rest.split(b" ")]


def key_and_value(name: str, rest: bytes) -> tuple[bytes, bytes]:
    """The value is everything after the key's space, and may be neither missing nor empty."""
    key, space, value = rest.partition(b" ")
    if not space:
        raise RequestError(f"{name} command requires a key and value")
    return checked_key(key), value


def no_arguments(name: str, rest: bytes) -> None:
    if rest:
        raise RequestError(f"{name} command does not accept any arguments")


def checked_value(value: bytes) -> bytes:
    if not line_safe(value):
        raise RequestError("value holds a line break: read it over RESP")
    return value


def get(session: Session, request: Request) -> Reply:
    value = session.engine.get(one_key("GET", request[1]))
    return text.NOT_FOUND if value is None else b"VALUE %b\r\n" % checked_value(value)


def set_(session: Session, request: Request) -> Reply:
    key, value = key_and_value("SET", request[1])
    session.engine.set(key, value)
    return text.OK


def delete(name: str) -> Handler:
    def handler(session: Session, request: Request) -> Reply:
        return text.DELETED if session.engine.delete(one_key(name, request[1])) else text.NOT_FOUND

    return handler


def exists(session: Session, request: Request) -> Reply:
    keys = many_keys("EXISTS", request[1])

    def work() -> Long:
        count = 0
        for some in slices(keys):
            count += sum(map(session.engine.exists, some))
            yield None
        return b"EXISTS %d\r\n" % count

    return work()


def increment(name: str, sign: int) -> Handler:
    def handler(session: Session, request: Request) -> Reply:
        key, _, amount = request[1].partition(b" ")
        if not key:
            raise RequestError(f"{name} command requires a key")
        number = strict_integer(amount) if amount else 1
        if number is None:
            raise RequestError(f"{name} command amount must be a valid number")
        return b"VALUE %d\r\n" % session.engine.increment(checked_key(key), sign * number)

    return handler


def extend(name: str) -> Handler:
    """APPEND and PREPEND. What cannot be shown in the reply is refused before anything is changed."""

    def handler(session: Session, request: Request) -> Reply:
        key, value = key_and_value(name, request[1])
        engine = session.engine
        with engine.lock:
            checked_value(value)
            checked_value(engine.get(key) or b"")
            whole = engine.append(key, value) if name == "APPEND" else engine.prepend(key, value)
        return b"VALUE %b\r\n" % whole

    return handler


def mget(session: Session, request: Request) -> Reply:
    keys = many_keys("MGET", request[1])

    def work() -> Long:
        lines: list[bytes] = []
        found = size = 0
        for some in slices(keys):
            with session.engine.lock:  # or another thread's MSET could be seen half
                for key in some:
                    value = session.engine.get(key)
                    found += value is not None
                    lines.append(b"%b %b\r\n" % (key, b"NOT_FOUND" if value is None else checked_value(value)))
                    size += len(lines[-1])
                    check_reply_size(session, size)
            yield None
        return b"VALUES %d\r\n%b" % (found, b"".join(lines)) if found else text.NOT_FOUND

    return work()


def mset(session: Session, request: Request) -> Reply:
    words = request[1].split(b" ") if request[1] else []
    if not words:
        raise RequestError("MSET command requires at least one key-value pair")
    if len(words) % 2:
        raise RequestError("MSET command requires an even number of arguments (key-value pairs)")
    session.engine.mset([(checked_key(key), value) for key, value in zip(words[::2], words[1::2], strict=True)])
    return text.OK


def scan(session: Session, request: Request) -> Reply:
    prefix = request[1]
    if b" " in prefix:
        raise RequestError("SCAN command accepts only one argument")

    def work() -> Long:
        parts: list[bytes] = []
        count = size = 0
        after: bytes | None = None
        while True:
            keys, after = session.engine.page(prefix, after, SLICE_KEYS)
            part = b"".join([b"%b\r\n" % key for key in keys])
            if part.count(b"\n") != len(keys) or part.count(b"\r") != len(keys):
                raise RequestError("a key holds a line break: list the keys over RESP")
            parts.append(part)
            count += len(keys)
            size += len(part)
            check_reply_size(session, size)
            if after is None:
                return b"KEYS %d\r\n%b" % (count, b"".join(parts))
            yield None

    return work()


def truncate(name: str) -> Handler:
    def handler(session: Session, request: Request) -> Reply:
        no_arguments(name, request[1])
        session.engine.truncate()
        return text.OK

    return handler


def dbsize(session: Session, request: Request) -> Reply:
    no_arguments("DBSIZE", request[1])
    return b"DBSIZE %d\r\n" % session.engine.live_count


def ping(session: Session, request: Request) -> Reply:
    return b"PONG %b\r\n" % checked_value(request[1]) if request[1] else text.PONG


def echo(session: Session, request: Request) -> Reply:
    if not request[1]:
        raise RequestError("ECHO command requires a message")
    return b"ECHO %b\r\n" % checked_value(request[1])


def hash_(session: Session, request: Request) -> Reply:
    prefix = request[1]
    if b" " in prefix:
        raise RequestError("HASH command accepts only one argument")

    def work() -> Long:
        value = yield from digest(session, prefix)
        return b"HASH %b %b\r\n" % (checked_value(prefix), value) if prefix else b"HASH %b\r\n" % value

    return work()


def sync(session: Session, request: Request) -> Reply:
    return synchronize(session, words_of(request), text.OK)


def replicate_(session: Session, request: Request) -> Reply:
    answer = replicate(session, words_of(request))
    return b"%b\r\n" % text.one_line(answer)


def shutdown(session: Session, request: Request) -> Reply:
    no_arguments("SHUTDOWN", request[1])
    raise Goodbye(text.OK, session.context.services.shutdown)


def broken(session: Session, request: Request) -> Reply:
    """The stream cannot be understood any more, or is not wanted. Said once; then the connection ends."""
    if request[0] is text.BROKEN:
        session.context.traffic.protocol_errors += 1
    raise Goodbye(b"ERROR %b\r\n" % request[1])


def foreign(session: Session, request: Request) -> Reply:
    refuse_foreign(session, request[1])


def unknown(session: Session, request: Request) -> Reply:
    if not request[0]:
        raise RequestError("Empty command")
    word = request[0].upper()
    if word in text.HTTP_METHODS or word.startswith(text.HTTP_HOST):
        refuse_foreign(session, request[0])
    if _RESP_HEAD.fullmatch(word):
        # What it counts may hold lines that would run as commands.
        session.context.traffic.protocol_errors += 1
        raise Goodbye(b"ERROR RESP after the line protocol: use one connection for each\r\n")
    raise RequestError(f"Unknown command: {text.show(request[0])}")


def words_of(request: Request) -> list[bytes]:
    return request[1].split(b" ") if request[1] else []


def slices(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Runs of keys, each small enough for one slice of a long command."""
    for start in range(0, len(keys), SLICE_KEYS):
        yield keys[start : start + SLICE_KEYS]
