"""Opening a data directory: the base as it stands, and the log segments after its checkpoint, as memtables.

Reading a segment costs about 1 us an entry, and finding what its keys were in the base about 2 us a key, so a start
takes well under a second for each full memtable, whatever the size of the base.
"""

import logging
from pathlib import Path
from typing import NamedTuple

from merklekv.engine.access import require_access, trouble
from merklekv.engine.base import DATA_FILE, Base, BaseWriter
from merklekv.engine.directory import DataDirectory
from merklekv.engine.format import OP_METADATA, OP_ORIGIN, OP_REPAIR, OP_TRUNCATE, REMOTE
from merklekv.engine.log.disk import sync_directory
from merklekv.engine.log.recovery import recover
from merklekv.engine.log.segment import Segment, list_segments, segment_path
from merklekv.engine.log.writer import Log
from merklekv.engine.memtable import Memtable, charge
from merklekv.engine.record import is_tombstone, version_of
from merklekv.engine.repairs import Repairs
from merklekv.errors import Corruption, Shortage

log = logging.getLogger(__name__)


class Replayed(NamedTuple):
    """What log segments hold on top of a base."""

    tables: list[Memtable]  # oldest first
    truncation: bytes  # the largest there is, 24 bytes
    newest: bytes  # the newest version (24 bytes) that was seen
    metadata: dict[bytes, bytes]
    repairs: Repairs
    repair_lsn: int | None  # of the last segment with a repair
    sequence: int  # of the next local event


def open_data(directory: DataDirectory) -> tuple[Base, Log, Replayed]:
    """Opens the base and the log, and replays the segments after the checkpoint."""
    require_access(directory.path)
    try:
        return _open_data(directory)
    except OSError as error:
        raise trouble(error, directory.path) from error


def _open_data(directory: DataDirectory) -> tuple[Base, Log, Replayed]:
    data = directory.base / DATA_FILE
    is_new = not data.exists() or not data.stat().st_size
    lsns = list_segments(directory.log)
    if is_new and lsns and lsns[0]:
        raise Corruption(
            f"{data}: is missing or empty, and the log begins at LSN {lsns[0]}, not at 0; restore the directory from a "
            "backup"
        )
    BaseWriter(directory.base).close()  # makes what is missing of it, and frees the slots of readers that were killed
    if is_new:
        sync_directory(directory.base)  # LMDB syncs its file, not the file's name
    base = Base(directory.base)
    log = None
    try:
        recovered = recover(directory.log, base.checkpoint_lsn)
        log = Log(directory.log, recovered)
        replayed = replay(directory.log, base, recovered.segments if recovered else [log.lsn])
        if replayed.repairs:
            base.close()
            _repair(directory, replayed.repairs, replayed.tables)
            base = Base(directory.base)
    except BaseException:
        base.close()
        if log is not None:
            log.close()
        raise
    return base, log, replayed


def replay(log_directory: Path, base: Base, lsns: list[int]) -> Replayed:
    """Reads the segments after the checkpoint, the open one last.  Raises OSError."""
    tables = []
    truncation, newest, metadata = base.truncation, base.newest, base.metadata()
    repairs, repair_lsn, sequence = Repairs(), None, 0
    for lsn in lsns:
        known = len(repairs)
        with Segment(segment_path(log_directory, lsn)) as segment:
            table, segment_truncation, segment_newest, sequence = _replay(segment, metadata, repairs)
        tables.append(table)
        truncation, newest = max(truncation, segment_truncation), max(newest, segment_newest)
        repair_lsn = lsn if len(repairs) > known else repair_lsn
    return Replayed(tables, truncation, newest, metadata, repairs, repair_lsn, sequence)


def _repair(directory: DataDirectory, repairs: Repairs, tables: list[Memtable]) -> None:
    """Rebuilds now, as the next checkpoint will again, so that leaves and counters are right from the start."""
    for table in tables:
        repairs.complete(table)
    try:
        with BaseWriter(directory.base) as writer:
            for _ in writer.rebuild(repairs.buckets):
                pass
    except Shortage as error:
        log.warning("%s; what the scrub has found is not repaired before that is over", error)


def _replay(segment: Segment, metadata: dict[bytes, bytes], repairs: Repairs) -> tuple[Memtable, bytes, bytes, int]:
    """What a segment holds: its memtable, the largest truncation version, the newest version, and the next sequence."""
    table = Memtable(segment.lsn)
    records = table.records
    data = segment.data
    truncation = newest = b""
    sequence = segment.sequence
    for frame in segment.frames():
        sequence = frame.sequence + frame.local_count
        for op, key, start, end in segment.entries(frame):
            record = data[start:end]
            if op == OP_METADATA | REMOTE:
                metadata[key] = record
                continue
            if op == OP_REPAIR | REMOTE:
                repairs.add(key, record)
                continue
            if record > newest:
                newest = record
            if op & ~REMOTE == OP_TRUNCATE:
                truncation = max(truncation, record)
            elif op != OP_ORIGIN:
                records[key] = record
                if is_tombstone(record):
                    table.tombstones.append(key)
    table.size = sum(charge(key, record) for key, record in records.items())
    return table, truncation, version_of(newest), sequence
