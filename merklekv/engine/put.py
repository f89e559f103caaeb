"""The loops in which a batch spends its time: records that are written, numbers that grow, and values that are read."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from xxhash import xxh3_128_digest

from merklekv.core import compiled
from merklekv.engine.clock import COUNTER_MASK, pack_version
from merklekv.engine.format import ENTRY, MAX_KEY_SIZE, REMOTE
from merklekv.engine.integers import INT64_MAX, INT64_MIN, strict_integer
from merklekv.engine.memtable import KEY_OVERHEAD
from merklekv.engine.record import (
    DIGEST_AT,
    EXPIRY,
    EXPIRY_SIZE,
    FLAGS_AT,
    HEAD_SIZE,
    KEY_LENGTHS,
    PURGED,
    RECORD_OVERHEAD,
    VALUE_AT,
)

if TYPE_CHECKING:
    from merklekv.engine.table import Table

_entry: Final = ENTRY.pack
_join: Final = b"".join
from_bytes: Final = int.from_bytes


@compiled
def put_each(
    table: "Table", op: int, items: Iterable[Sequence[Any]], flags: bytes, expiry: bytes, made: bool, urgent: bool
) -> None:
    """`Table.put`.

    This is the hot path of all writes, so it spells out `make_record`, `HybridClock.next` and `MerkleTree.add`: one
    look at the clock serves all items.  What can fail comes first in each item.
    """
    log_, leaves, clock, active, older = table.log, table.tree.leaves, table.clock, table.active, table.older
    records, sums, counts, changed = active.records, leaves.sums, leaves.counts, leaves.changed
    append, hash_of, later, flag = log_.pending.append, leaves.hash_of, table.later, flags[0]
    size, count, grown, live = log_.pending_size, 0, 0, 0
    room = log_.urgent_room if urgent else log_.room
    before_value = RECORD_OVERHEAD if made else EXPIRY_SIZE if flag == EXPIRY and not expiry else 0
    hashed_flags, added_size = flags + expiry, 0 if made else HEAD_SIZE + len(expiry)
    key_size = value_size = -1  # most keys and values are as long as those before them
    timestamp, writer, counter = 0 if made else clock.now(), clock.writer, clock.counter
    try:
        for _, key, value in items:
            if len(key) != key_size or len(value) != value_size:
                key_size, value_size = len(key), len(value)
                if not 0 < key_size <= MAX_KEY_SIZE or value_size > table.max_value_size + before_value:
                    table.require_sizes(key, value[before_value:])
                record_size = added_size + value_size
                hash_head, entry_head = KEY_LENGTHS[key_size], _entry(op, key_size, record_size)
                entry_size = len(entry_head) + key_size + record_size
            in_active = old = records.get(key)
            if old is None:
                old = older(key)
                if old is not None and len(old) < VALUE_AT:
                    old = old[:DIGEST_AT] + bytes(VALUE_AT - len(old)) + old[DIGEST_AT:]  # damaged
            if made:
                record = value
                digest, flag = record[DIGEST_AT:VALUE_AT], record[FLAGS_AT]
            else:
                counter = counter + 1 & COUNTER_MASK
                version = pack_version(timestamp, writer, counter)
                if old is not None and version <= old and not table.is_corrupt_version(key, old):
                    clock.counter = counter
                    version = clock.after(old)
                    counter = clock.counter
                digest = xxh3_128_digest(_join((hash_head, key, version, hashed_flags, value)))
                record = _join((version, flags, digest, expiry, value))
            entry = _join((entry_head, key, record))
            needed = size + entry_size
            if needed > room:
                log_.reserve(needed, urgent)
                room = log_.urgent_room if urgent else log_.room
            append(entry)
            size = needed
            count += 1
            records[key] = record
            bucket = hash_of(key) >> 48
            changed[bucket] = 1
            if old is None:
                sums[bucket] += from_bytes(digest)
                counts[bucket] += not flag & PURGED
                if not flag:
                    live += 1
                elif flag == EXPIRY and record[VALUE_AT:RECORD_OVERHEAD] >= later:
                    live += 1
                    active.expiries.new.append(key)
                else:
                    table.count(key, record, 1)
            else:
                sums[bucket] += from_bytes(digest) - from_bytes(old[DIGEST_AT:VALUE_AT])
                if flag or old[FLAGS_AT]:
                    if (
                        old[FLAGS_AT] == EXPIRY == flag
                        and (before := old[VALUE_AT:RECORD_OVERHEAD]) >= later
                        and (after := expiry or record[VALUE_AT:RECORD_OVERHEAD]) >= later
                    ):
                        if in_active is None or after < before:  # else the expirer finds the key in time
                            active.expiries.new.append(key)
                    else:
                        counts[bucket] += bool(old[FLAGS_AT] & PURGED) - bool(flag & PURGED)
                        table.count(key, old, -1)
                        table.count(key, record, 1)
            if in_active is None:
                grown += key_size + record_size + KEY_OVERHEAD
            else:
                grown += record_size - len(in_active)
    finally:
        clock.counter = counter
        log_.pending_size = size
        log_.appended += count
        if op < REMOTE:
            log_.sequence += count
        active.size += grown
        table.live_count += live


@compiled
def sums(table: "Table", keys: Iterable[bytes], amount: int, totals: list[int]) -> Iterator[tuple[None, bytes, bytes]]:
    """The sums of numbers and an amount, as items for `put_each`, up to the first that is to be refused, or expires.

    Each is stored, and in `totals`, before the next one is asked for.
    """
    for key in keys:
        old = table.shown(key)
        number = 0 if old is None else None if old[FLAGS_AT] else strict_integer(old[VALUE_AT:])
        if number is None or not INT64_MIN <= number + amount <= INT64_MAX:
            return
        totals.append(number + amount)
        yield None, key, b"%d" % totals[-1]


@compiled
def get_each(table: "Table", requests: Iterable[Sequence[bytes]], room: int) -> list[bytes | None]:
    """`Table.get_batch`."""
    values: list[bytes | None] = []
    now = b""  # packed, once the active memtable has a key that expires: one moment for all of those
    for request in requests:
        if room < 0:
            break
        key = request[1]
        # Each time: another thread may hide or replace them.
        record = table.records.get(key)
        if record is None:
            value = table.get(key)
        elif not (flags := record[FLAGS_AT]):
            value = record[VALUE_AT:]
        elif flags == EXPIRY:
            now = now or table.packed_now()
            value = record[RECORD_OVERHEAD:] if record[VALUE_AT:RECORD_OVERHEAD] > now else None
        else:
            value = None
        values.append(value)
        if value is not None:
            room -= len(value)
    return values
