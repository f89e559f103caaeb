"""How often a node ran commands on data, and how long they took: from its LATENCY HISTOGRAM.

The reply has, for each command, the number of its calls, and by powers of two how many of them took at most so many
microseconds. Two of them, some time apart, give rates and percentiles of the time between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from merklekv.net.client import Reply

WRITES: Final = frozenset(
    b"append bitfield bitop copy decr decrby del delifeq expire expireat flushall flushdb getdel getex getset incr "
    b"incrby incrbyfloat mset msetnx persist pexpire pexpireat prepend psetex rename renamenx restore set setbit setex "
    b"setnx setrange unlink delete dec inc truncate flush".split()
)
READS: Final = frozenset(
    b"bitcount bitfield_ro bitpos dbsize dump exists expiretime get getbit getrange keys lcs mget pexpiretime pttl "
    b"randomkey scan strlen substr touch ttl type".split()
)


@dataclass(frozen=True, slots=True)
class Calls:
    """Totals since the start of a node. `took`: calls by the microseconds that they took at most."""

    reads: int = 0
    writes: int = 0
    took: Mapping[int, int] = field(default_factory=dict)


NOTHING: Final = Calls()


def calls_of(reply: Reply) -> Calls:
    """The totals in a reply; parts of another shape are skipped."""
    parts = reply if isinstance(reply, list) else []
    reads = writes = 0
    took: Counter[int] = Counter()
    for name, fields in zip(parts[::2], parts[1::2], strict=False):
        if not isinstance(name, bytes) or not isinstance(fields, list):
            continue
        is_write, is_read = name.lower() in WRITES, name.lower() in READS
        if not is_write and not is_read:
            continue
        values = dict(zip(map(_name, fields[::2]), fields[1::2], strict=False))
        calls, buckets = values.get(b"calls"), values.get(b"histogram_usec")
        if not isinstance(calls, int) or not isinstance(buckets, list):
            continue
        writes += calls if is_write else 0
        reads += calls if is_read else 0
        below = 0
        for limit, up_to in zip(buckets[::2], buckets[1::2], strict=False):
            if isinstance(limit, int) and isinstance(up_to, int):
                took[limit] += max(0, up_to - below)
                below = up_to
    return Calls(reads, writes, took)


def percentile_us(before: Calls, after: Calls, share: float) -> int | None:
    """The time that this share of the calls between two totals took at most; None if there was no call."""
    grown = {limit: count - before.took.get(limit, 0) for limit, count in sorted(after.took.items())}
    wanted = share * sum(max(0, count) for count in grown.values())
    if not wanted:
        return None
    for limit, count in grown.items():
        wanted -= max(0, count)
        if wanted <= 0:
            return limit
    return None


def _name(part: Reply) -> bytes:
    return part if isinstance(part, bytes) else b""
