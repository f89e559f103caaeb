"""Opening a data directory: the base, the end of the log, and the segments after the checkpoint as memtables.

A crash tears only frames that were never synced.  So a bad frame is a torn tail, which is cut off with a warning.  If a
later frame claims an LSN behind it as synced, it is damage, and nothing is changed.

Reading a segment costs about 1 us an entry, and finding what its keys were in the base about 2 us a key, so a start
takes well under a second for each full memtable, whatever the size of the base.
"""

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from merklekv.engine.access import damage, require_access, trouble
from merklekv.engine.base import DATA_FILE, Base, BaseWriter
from merklekv.engine.directory import DataDirectory
from merklekv.engine.format import OP_METADATA, OP_ORIGIN, OP_REPAIR, OP_TRUNCATE, REMOTE, SEGMENT_HEADER
from merklekv.engine.log.segment import Segment, corrupt, list_segments, segment_path, sync_directory, sync_file
from merklekv.engine.log.writer import Log, LogEnd
from merklekv.engine.memtable import Memtable, charge
from merklekv.engine.record import is_tombstone, version_of
from merklekv.engine.repairs import Repairs
from merklekv.errors import Shortage

log = logging.getLogger(__name__)


@dataclass
class Replayed:
    """What log segments contain on top of a base."""

    truncation: bytes  # the largest there is, 24 bytes
    newest: bytes  # the newest version, 24 bytes
    metadata: dict[bytes, bytes]
    tables: list[Memtable] = field(default_factory=list)  # oldest first
    repairs: Repairs = field(default_factory=Repairs)
    repair_lsn: int | None = None  # of the last segment with a repair
    sequence: int = 0  # of the next local event


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
        raise damage(f"{data}: is missing or empty, and the log begins at LSN {lsns[0]}, not at 0")
    BaseWriter(directory.base).close()  # makes what is missing of it, and frees the slots of readers that were killed
    if is_new:
        sync_directory(directory.base)  # LMDB syncs its file, not the file's name
    base = Base(directory.base)
    log_ = None
    try:
        end = recover_log(directory.log, base.checkpoint_lsn)
        log_ = Log(directory.log, end)
        replayed = replay(directory.log, base, end.segments if end else [log_.lsn])
        if replayed.repairs.buckets:
            base.close()
            _repair(directory, replayed)
            base = Base(directory.base)
    except BaseException:
        base.close()
        if log_ is not None:
            log_.close()
        raise
    return base, log_, replayed


def recover_log(directory: Path, checkpoint_lsn: int) -> LogEnd | None:
    """Finds the end of the log, cuts off a torn tail, and refuses damage; None when there is no log yet.

    `checkpoint_lsn` is the LSN up to which the base holds everything.  Segments before it are only for the outbox.
    """
    lsns = list_segments(directory)
    if not checkpoint_lsn or (lsns and lsns[-1] > checkpoint_lsn):  # the segment where the base ends is complete
        _drop_incomplete(directory, lsns)
    live = [lsn for lsn in lsns if lsn >= checkpoint_lsn]
    if not lsns and not checkpoint_lsn:
        return None
    if not live or live[0] != checkpoint_lsn:
        raise corrupt(segment_path(directory, checkpoint_lsn), 0, "the segment is missing")
    for index, lsn in enumerate(live):
        path = segment_path(directory, lsn)
        sync_file(path)  # a crash of the process alone leaves frames that were never synced, yet are readable
        with Segment(path) as segment:
            end, sequence = SEGMENT_HEADER.size, segment.sequence
            for frame in segment.frames():
                end, sequence = frame.end, frame.sequence + frame.local_count
            following = live[index + 1 :]
            if following and following[0] == lsn + end:
                continue
            _require_torn_tail(directory, segment, end, following)
            if segment.is_zero_filled(end) and not following:
                return LogEnd(live, end, sequence)
        _cut(directory, path, end, following)
        return LogEnd(live[: index + 1], end, sequence)
    raise AssertionError("the last segment has none behind it")


def _drop_incomplete(directory: Path, lsns: list[int]) -> None:
    """Deletes an incomplete newest segment: a crash came before its header reached the disk."""
    if not lsns:
        return
    path = segment_path(directory, lsns[-1])
    if path.stat().st_size > SEGMENT_HEADER.size or any(path.read_bytes()):
        return  # the header is synced before anything is put behind it
    log.warning("%s: dropped, it was being created when the process ended", path)
    path.unlink()
    sync_directory(directory)  # or a later crash might bring it back among other segments
    lsns.pop()


def _require_torn_tail(directory: Path, segment: Segment, end: int, following: list[int]) -> None:
    claimed = segment.synced_claim(end)
    for lsn in following:
        with Segment(segment_path(directory, lsn)) as later:
            claimed = max(claimed, later.synced_claim(SEGMENT_HEADER.size))
    if claimed > segment.lsn + end:
        raise corrupt(segment.path, end, "a frame does not match its checksum, and what follows had been synced")


def _cut(directory: Path, path: Path, end: int, following: list[int]) -> None:
    lost = path.stat().st_size - end
    log.warning("%s: cut off a torn tail of at most %d bytes at byte %d: it was never synced", path, lost, end)
    for lsn in reversed(following):
        segment_path(directory, lsn).unlink()
    os.truncate(path, end)
    sync_file(path)
    sync_directory(directory)


def replay(log_directory: Path, base: Base, lsns: list[int]) -> Replayed:
    """Reads the segments after the checkpoint, the open one last.  Raises OSError."""
    replayed = Replayed(base.truncation, base.newest, base.metadata())
    for lsn in lsns:
        with Segment(segment_path(log_directory, lsn)) as segment:
            _replay(segment, replayed)
    return replayed


def _replay(segment: Segment, replayed: Replayed) -> None:
    table = Memtable(segment.lsn)
    records = table.records
    data = segment.data
    newest = replayed.newest
    sequence = segment.sequence
    for frame in segment.frames():
        sequence = frame.sequence + frame.local_count
        for op, key, start, end in segment.entries(frame):
            record = data[start:end]
            if op == OP_METADATA | REMOTE:
                replayed.metadata[key] = record
                continue
            if op == OP_REPAIR | REMOTE:
                replayed.repairs.add(key, record)
                replayed.repair_lsn = segment.lsn
                continue
            if record > newest:
                newest = record
            if op & ~REMOTE == OP_TRUNCATE:
                replayed.truncation = max(replayed.truncation, record)
            elif op != OP_ORIGIN:
                records[key] = record
                if is_tombstone(record):
                    table.tombstones.append(key)
    table.size = sum(charge(key, record) for key, record in records.items())
    replayed.tables.append(table)
    replayed.newest, replayed.sequence = version_of(newest), sequence


def _repair(directory: DataDirectory, replayed: Replayed) -> None:
    """Rebuilds now, as the next checkpoint will again, so that leaves and counters are right from the start."""
    for table in replayed.tables:
        replayed.repairs.complete(table)
    try:
        with BaseWriter(directory.base) as writer:
            for _ in writer.rebuild(replayed.repairs.buckets):
                pass
    except Shortage as error:
        log.warning("%s; what the scrub has found is not repaired before that is over", error)
