"""DUMP and RESTORE: values move between MerkleKV and Redis, both ways.  See `merklekv.net.rdb` for the form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from merklekv.engine.format import OP_RESTORE
from merklekv.engine.record import EXPIRY_MAX
from merklekv.net import rdb
from merklekv.net.commands.arguments import SYNTAX_ERROR, integer
from merklekv.net.commands.options import wall_ms
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp
from merklekv.net.protocol.text import Request
from merklekv.net.registry import SLOW_READ, SLOW_WRITE, Long, command
from merklekv.net.session import Session

FREQUENCY_MAX = 255


@command(
    "DUMP key",
    "A value in Redis's form, for RESTORE.",
    group="get",
    flags=SLOW_READ,
    note="strings only, never compressed",
)
def dump(session: Session, request: Request) -> Long:
    value = session.engine.get(request[1])
    if value is None:
        return session.nil
    return resp.bulk((yield from rdb.dump(value)))


@dataclass
class _Options:
    replaces: bool = False  # REPLACE
    is_absolute: bool = False  # ABSTTL


def _read_options(words: Sequence[bytes]) -> _Options:
    """IDLETIME and FREQ are checked, and say nothing here: no key is evicted."""
    options = _Options()
    told = b""  # which of these two
    given = iter(words)
    for word in given:
        match name := word.upper():
            case b"REPLACE":
                options.replaces = True
            case b"ABSTTL":
                options.is_absolute = True
            case b"IDLETIME" | b"FREQ" if told in (b"", name) and (amount := next(given, None)) is not None:
                told = name
                number = integer(amount)
                if name == b"IDLETIME" and number < 0:
                    raise RequestError("Invalid IDLETIME value, must be >= 0")
                if name == b"FREQ" and not 0 <= number <= FREQUENCY_MAX:
                    raise RequestError(f"Invalid FREQ value, must be >= 0 and <= {FREQUENCY_MAX}")
            case _:
                raise RequestError(SYNTAX_ERROR)
    return options


@command(
    "RESTORE key ttl serialized-value [REPLACE] [ABSTTL] [IDLETIME seconds] [FREQ frequency]",
    "Sets a key to a value in the form of DUMP.",
    group="set",
    flags=SLOW_WRITE,
    note=(
        "values of strings, also from a Redis 8 (RDB version 12); the argument, up to 16 bytes longer than the value, "
        "is limited by `max_value_size`; `IDLETIME` and `FREQ` have no effect"
    ),
)
def restore(session: Session, request: Request) -> Long:
    options = _read_options(request[4:])
    engine, key = session.engine, request[1]
    busy = RequestError("Target key name already exists.", code="BUSYKEY")
    if not options.replaces and engine.exists(key):
        raise busy
    lifetime = integer(request[2])
    if lifetime < 0:
        raise RequestError("Invalid TTL value, must be >= 0")
    value = yield from rdb.load(request[3], engine.max_value_size)
    with engine.lock:
        if not options.replaces and engine.exists(key):
            raise busy
        now = wall_ms(engine)
        expiry = lifetime if options.is_absolute or not lifetime else now + lifetime
        if expiry > EXPIRY_MAX:
            raise RequestError("invalid expire time in 'restore' command")
        if 0 < expiry <= now:
            engine.delete(key)
        else:
            engine.set(key, value, expiry or None, OP_RESTORE)
    return resp.OK
