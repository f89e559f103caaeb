"""Restamping: what a wrong clock has stamped in the future gets a current version.  No node has the directory open.

Other nodes refuse such records until the time has come, and a key that has one gets only later versions.  A truncation
or a GC horizon in the future holds the node's clock up, so all that it writes is refused.

All of it happens in the base, after a checkpoint has emptied the log:

    1   the metadata entries of the caller, and now in the place of a later GC horizon, or of what a lone node purged
    2   no truncation version in the place of a future one; what it had deleted is gone from the base by then
    3   the records, in key order, a transaction at a time
    4   the base's newest version

It may be cut off anywhere: the directory is whole then, and the next call does the rest.  Damaged records are left as
they are.  The new versions have a store id that no member had before, so no node takes one for a write that it has
applied already.  Cost: the whole base is read, and the records that get a new version are written as by a checkpoint.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

from merklekv.engine.base.writer import TRANSACTION_BYTES, TRANSACTION_KEYS, BaseWriter
from merklekv.engine.clock import HybridClock
from merklekv.engine.engine import Engine
from merklekv.engine.format import METADATA_TIMES, TIME_SIZE
from merklekv.engine.record import (
    OP_ID_SIZE,
    ZERO_VERSION,
    Pair,
    expiry_of,
    is_sound,
    is_tombstone,
    make_record,
    make_version,
    timestamp_of,
    value_of,
    version_of,
)

FIRST_KEYS: Final = 10  # that are named

Progress = Callable[[int, int], None]  # records done, and all


@dataclass
class FutureData:
    """What a directory has from the future."""

    records: int = 0  # tombstones included
    tombstones: int = 0
    first: list[Pair] = field(default_factory=list)  # (key, version) of the first FIRST_KEYS, in key order
    newest: int = 0  # the latest of their timestamps, ns
    damaged: int = 0  # damaged records that seem to be from the future; not counted above
    truncation: int = 0  # ns; 0: not in the future
    gc_horizon: int = 0  # ns; 0: not in the future

    def note(self, pairs: list[Pair]) -> list[Pair]:
        """Counts records from the future; those that are not damaged."""
        sound = [(key, record) for key, record in pairs if is_sound(key, record)]
        self.damaged += len(pairs) - len(sound)
        self.records += len(sound)
        self.tombstones += sum(is_tombstone(record) for _, record in sound)
        self.first += [(key, version_of(record)) for key, record in sound[: FIRST_KEYS - len(self.first)]]
        self.newest = max([self.newest, *(timestamp_of(record) for _, record in sound)])
        return sound


def has_future_data(engine: Engine, now: int) -> bool:
    """Whether an engine has anything stamped after `now`, ns."""
    times = map(timestamp_of, (engine.table.newest(), engine.truncation))
    return max(*_stored_times(engine).values(), *times) > now


def find(engine: Engine, now: int, progress: Progress) -> FutureData:
    """What an engine in the mode `manual` has from after `now`, ns.  It is not changed, but for a checkpoint."""
    found = _bounds(engine, now)

    def look(writer: BaseWriter) -> None:
        for page in _pages(writer, now):
            found.note(page.later)
            progress(page.read, engine.table.base.live + engine.table.base.dead)

    _with_base(engine, look)
    return found


def restamp_data(
    engine: Engine, now: int, store_id: bytes, metadata: Mapping[bytes, bytes], progress: Progress
) -> FutureData:
    """Gives everything from after `now`, ns, a version just behind it; what that was.

    `engine` is in the mode `manual`; afterwards it can only be closed.  `store_id`: 8 bytes, for the new versions.
    `metadata`: entries to store first.
    """
    found = _bounds(engine, now)
    clock = HybridClock(engine.time_gate)
    clock.write_as(store_id)
    clock.close_through(now)
    lowered = {name: now.to_bytes(TIME_SIZE, "big") for name, time in _stored_times(engine).items() if time > now}

    def change(writer: BaseWriter) -> None:
        writer.finish(writer.checkpoint_lsn, {**metadata, **lowered})
        if found.truncation:
            writer.lower(b"truncation", ZERO_VERSION)
        newest = ZERO_VERSION
        for page in _pages(writer, now):
            stamped = [(key, _stamped(key, record, clock.next())) for key, record in found.note(page.later)]
            if stamped:
                writer.put(stamped)
            newest = max(newest, page.newest, *(record for _, record in stamped[-1:]))
            progress(page.read, engine.table.base.live + engine.table.base.dead)
        if not found.damaged:
            writer.lower(b"newest", version_of(newest))

    _with_base(engine, change)
    return found


def _stored_times(engine: Engine) -> dict[bytes, int]:
    return {name: int.from_bytes(engine.metadata.get(name, b""), "big") for name in METADATA_TIMES}


def _bounds(engine: Engine, now: int) -> FutureData:
    truncation = timestamp_of(engine.truncation)
    return FutureData(
        truncation=truncation if truncation > now else 0,
        gc_horizon=engine.gc_horizon if engine.gc_horizon > now else 0,
    )


def _with_base(engine: Engine, work: Callable[[BaseWriter], None]) -> None:
    """Does something with the base when it has everything."""
    engine.checkpoint_now()  # what a start has found; or the active memtable could not be frozen
    engine.checkpoint_now(work)


class _Page(NamedTuple):
    later: list[Pair]
    read: int  # records so far
    newest: bytes  # the largest other record or version


def _pages(writer: BaseWriter, now: int) -> Iterator[_Page]:
    """The records of the base from after `now`, in key order, in pages of a transaction's size."""
    bound = make_version(now, b"\xff" * OP_ID_SIZE)
    last, read, more = b"", 0, True
    while more:
        later: list[Pair] = []
        size, newest, more = 0, ZERO_VERSION, False
        with writer.snapshot() as view, view.txn.cursor(db=view.records) as cursor:
            if cursor.set_range(last) and (cursor.key() != last or cursor.next()):
                more = True
                for key, record in islice(cursor.iternext(), TRANSACTION_KEYS):
                    read += 1
                    last = key
                    if record > bound:
                        later.append((key, record))
                        size += len(record)
                    elif record > newest:
                        newest = version_of(record)
                    if size >= TRANSACTION_BYTES:
                        break
        yield _Page(later, read, newest)


def _stamped(key: bytes, record: bytes, version: bytes) -> bytes:
    """The same record with another version."""
    return make_record(key, version, value_of(record), tombstone=is_tombstone(record), expiry=expiry_of(record))
