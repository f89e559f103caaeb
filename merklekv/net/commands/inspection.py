"""OBJECT and MEMORY: one key, or the memory of the process, as tools look at them.

A value is bytes, whatever its encoding is called. OBJECT ENCODING gives the name that Redis has for a fresh value of
this form. A node keeps no access times: IDLETIME counts from the last write.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from merklekv.engine.integers import strict_integer
from merklekv.engine.record import timestamp_of
from merklekv.net.commands import status
from merklekv.net.commands.arguments import SYNTAX_ERROR, integer
from merklekv.net.errors import RequestError
from merklekv.net.protocol import resp
from merklekv.net.protocol.resp import bulk
from merklekv.net.registry import Subcommands, command
from merklekv.net.session import Session
from merklekv.net.vitals import memory

EMBEDDED_BYTES_MAX: Final = 44  # the longest string that Redis keeps in one piece with its object
SHARED_NUMBERS: Final = 10_000  # Redis has one object for each of these numbers
SHARED: Final = (1 << 31) - 1  # its count of references
_NO_FREQUENCY: Final = (
    "An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when switching between "
    "policies at runtime LRU and LFU data will take some time to adjust."
)

# -- OBJECT ------------------------------------------------------------------------------------------------------------

_object = Subcommands("OBJECT")
command(
    "OBJECT ENCODING key|FREQ key|IDLETIME key|REFCOUNT key|HELP",
    "How a value is kept.",
    arity=-2,
    note="`ENCODING` follows from the value alone; `IDLETIME` counts from the last write; `FREQ` is an error, "
    "as without an LFU policy",
)(_object.run)


def _record(session: Session, key: bytes) -> bytes | None:
    """The record of a key that exists."""
    engine = session.engine
    with engine.lock:
        return engine.record(key) if engine.exists(key) else None


def _number(value: bytes) -> int | None:
    return strict_integer(value) if len(value) <= 20 else None


@_object.add("ENCODING key", "The name that Redis has for the form of the value: int, embstr or raw.")
def _object_encoding(session: Session, arguments: Sequence[bytes]) -> bytes:
    value = session.engine.get(arguments[0])
    if value is None:
        return session.nil
    return bulk(b"int" if _number(value) is not None else b"embstr" if len(value) <= EMBEDDED_BYTES_MAX else b"raw")


@_object.add("FREQ key", "An error, as on a Redis without an LFU policy: no accesses are counted.")
def _object_freq(session: Session, arguments: Sequence[bytes]) -> bytes:
    if not session.engine.exists(arguments[0]):
        return session.nil
    raise RequestError(_NO_FREQUENCY)


@_object.add("IDLETIME key", "Seconds since the last write of the key.")
def _object_idletime(session: Session, arguments: Sequence[bytes]) -> bytes:
    record = _record(session, arguments[0])
    if record is None:
        return session.nil
    return resp.integer(max(0, time.time_ns() - timestamp_of(record)) // 10**9)


@_object.add("REFCOUNT key", "1, or Redis's number for the small integers that all its keys share.")
def _object_refcount(session: Session, arguments: Sequence[bytes]) -> bytes:
    value = session.engine.get(arguments[0])
    if value is None:
        return session.nil
    number = _number(value)
    return resp.integer(SHARED if number is not None and 0 <= number < SHARED_NUMBERS else 1)


# -- MEMORY ------------------------------------------------------------------------------------------------------------

_memory = Subcommands("MEMORY")
command(
    "MEMORY USAGE key [SAMPLES count]|STATS|DOCTOR|PURGE|MALLOC-STATS|HELP",
    "What memory is used for.",
    arity=-2,
    group="memory",
    note="`USAGE` is the size of key and record",
)(_memory.run)


@_memory.add("USAGE key [SAMPLES count]", "Bytes of a key and its record.")
def _memory_usage(session: Session, arguments: Sequence[bytes]) -> bytes:
    key, *options = arguments
    for name, value in zip(options[::2], options[1::2], strict=False):
        if name.upper() != b"SAMPLES":
            raise RequestError(SYNTAX_ERROR)
        if integer(value) < 0:
            raise RequestError(SYNTAX_ERROR)
    if len(options) % 2:
        raise RequestError(SYNTAX_ERROR)
    record = _record(session, key)
    if record is None:
        return session.nil
    return resp.integer(len(key) + len(record))


@_memory.add("STATS", "The memory of the process, by use.")
def _memory_stats(session: Session, arguments: Sequence[bytes]) -> bytes:
    values = status.all_metrics(session.context)
    resident, own = memory()
    keys = int(values.get("db_keys", 0))
    tables = int(values["memtable_bytes"])
    numbers = {
        "peak.allocated": session.context.vitals.peak_bytes,
        "total.allocated": own,
        "keys.count": keys,
        "keys.bytes-per-key": tables // keys if keys else 0,
        "dataset.bytes": tables,
        "rss-overhead.bytes": resident - own,
    }
    return resp.mapping([(bulk(name.encode()), resp.integer(n)) for name, n in numbers.items()], session.protocol)


@_memory.add("DOCTOR", "A sentence on the memory of the process.")
def _memory_doctor(session: Session, arguments: Sequence[bytes]) -> bytes:
    resident, own = memory()
    text = (
        f"This process has {own >> 20} MiB to itself, {resident >> 20} MiB with mapped pages of the base, which the "
        "kernel takes back when others need them. memtable_size bounds what writes may take.\n"
    )
    return resp.verbatim(text.encode(), session.protocol)


@_memory.add("PURGE", "Has no effect: freed memory goes back to the system by itself.")
def _memory_purge(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.OK


@_memory.add("MALLOC-STATS", "Nothing: the allocator keeps no statistics.")
def _memory_malloc_stats(session: Session, arguments: Sequence[bytes]) -> bytes:
    return resp.verbatim(b"Stats not supported for the current allocator", session.protocol)
