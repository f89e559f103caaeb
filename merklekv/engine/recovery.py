"""Opening a data directory: the base, the end of the log, and the segments after the checkpoint as memtables.

A crash tears only frames that were never synced.  So a bad frame is a torn tail, which is cut off with a warning.  If a
later frame claims an LSN behind it as synced, it is damage, and nothing is changed.

Each segment is read once.  That costs 1 us an entry, 1.5 us where each frame has one, whatever the size of the
base.
"""

import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from merklekv.engine.access import damage, require_access, trouble
from merklekv.engine.base.environment import DATA_FILE
from merklekv.engine.base.reader import Base
from merklekv.engine.base.writer import BaseWriter
from merklekv.engine.directory import DataDirectory
from merklekv.engine.format import (
    BUCKET_SIZE,
    ENTRY,
    KEYLESS_OPS,
    MAX_KEY_SIZE,
    METADATA_NAME_SIZE_MAX,
    OP_METADATA,
    OP_ORIGIN,
    OP_PURGE,
    OP_REPAIR,
    OP_TRUNCATE,
    RECORD_OPS,
    REMOTE,
    SEGMENT_HEADER,
)
from merklekv.engine.lmdb_file import is_new, require_whole
from merklekv.engine.log.segment import (
    Segment,
    corrupt,
    list_segments,
    segment_path,
    sync_directory,
    sync_file,
    whole_frames,
)
from merklekv.engine.log.writer import Log, LogEnd
from merklekv.engine.memtable import KEY_OVERHEAD, Memtable
from merklekv.engine.record import (
    EXPIRY,
    HEAD_SIZE,
    RECORD_OVERHEAD,
    TIMESTAMP_MAX,
    VERSION_SIZE,
    flags_of,
    timestamp_of,
    version_of,
)
from merklekv.engine.repairs import Repairs
from merklekv.errors import Shortage

log = logging.getLogger(__name__)


@dataclass
class Replayed:
    """What log segments contain on top of a base.  `read` adds one, in the order of the log."""

    truncation: bytes  # the largest there is, 24 bytes
    newest: bytes  # the newest version, of a record or a truncation, 24 bytes
    metadata: dict[bytes, bytes]
    tables: list[Memtable] = field(default_factory=list)  # oldest first
    repairs: Repairs = field(default_factory=Repairs)
    repair_lsn: int | None = None  # of the last segment with a repair
    sequence: int = 0  # of the next local event

    @classmethod
    def onto(cls, base: Base) -> "Replayed":
        """Nothing yet, on top of this base."""
        return cls(base.truncation, max(base.newest, base.truncation), base.metadata())

    def read(self, segment: Segment) -> int:
        """Adds the whole frames of a segment, as a memtable.  Returns where the last of them ends.

        Raises Corruption for an entry that is none, in a frame that is whole: what reads it later relies on its sizes.
        """
        table = Memtable(segment.lsn)
        records, tombstones, expiring = table.records, table.tombstones, table.expiries.new
        newest, self.sequence, end = self.newest, segment.sequence, SEGMENT_HEADER.size
        unpack, entry_size = ENTRY.unpack_from, ENTRY.size
        frames = whole_frames(segment.data, 0, segment.lsn, end)
        for position, frame_end, _, sequence, local_count, _, entries in frames:
            end, self.sequence = frame_end, sequence + local_count
            at, size = 0, len(entries)
            while at <= size - entry_size:
                op, key_length, record_length = unpack(entries, at)
                at += entry_size
                key = entries[at : at + key_length]
                at += key_length
                record = entries[at : at + record_length]
                at += record_length
                if op in _NO_RECORD:
                    if not self._read_other(op & ~REMOTE, key, record, segment.lsn):
                        raise corrupt(segment.path, position, _NO_ENTRY)
                    continue
                if record_length < HEAD_SIZE or not 0 < key_length <= MAX_KEY_SIZE or at > size or op not in _OF_KEYS:
                    raise corrupt(segment.path, position, _NO_ENTRY)
                records[key] = record
                if record > newest:
                    newest = record
                if flags := flags_of(record):
                    if flags == EXPIRY and record_length < RECORD_OVERHEAD:
                        raise corrupt(segment.path, position, _NO_ENTRY)
                    (expiring if flags == EXPIRY else tombstones).append(key)
            if at != size:
                raise corrupt(segment.path, position, _NO_ENTRY)
        table.size = sum(len(key) + len(record) for key, record in records.items()) + KEY_OVERHEAD * len(records)
        self.tables.append(table)
        self.newest = max(self.newest, version_of(newest))
        return end

    def _read_other(self, op: int, name: bytes, body: bytes, lsn: int) -> bool:
        """Adds an entry that changes no key.  False if it is none."""
        if op == OP_METADATA and 0 < len(name) <= METADATA_NAME_SIZE_MAX:
            self.metadata[name] = body
        elif op == OP_REPAIR and len(name) == BUCKET_SIZE and len(body) <= MAX_KEY_SIZE:
            self.repairs.add(name, body)
            self.repair_lsn = lsn
        elif op == OP_TRUNCATE and len(body) == VERSION_SIZE:
            self.truncation = max(self.truncation, body)
            self.newest = max(self.newest, body)
        else:
            return op == OP_ORIGIN
        return True


_NO_RECORD: Final = KEYLESS_OPS | {op | REMOTE for op in KEYLESS_OPS}
_OF_KEYS: Final = RECORD_OPS | {op | REMOTE for op in (*RECORD_OPS, OP_PURGE)}
_NO_ENTRY: Final = "a frame that matches its checksum has an entry that is none"


def open_data(directory: DataDirectory) -> tuple[Base, Log, Replayed]:
    """Opens the base and the log, and replays the segments after the checkpoint."""
    require_access(directory.path)
    try:
        return _open_data(directory)
    except OSError as error:
        raise trouble(error, directory.path) from error


def _open_data(directory: DataDirectory) -> tuple[Base, Log, Replayed]:
    data = directory.base / DATA_FILE
    if is_new(data):
        lsns = list_segments(directory.log)
        if lsns and lsns[0]:
            require_whole(data)
            raise damage(f"{data}: is missing or empty, and the log begins at LSN {lsns[0]}, not at 0")
        if data.exists():
            os.truncate(data, 0)  # LMDB would refuse what is there of a file that it was making
    BaseWriter(directory.base).close()  # makes what is missing of it, and frees the slots of readers that were killed
    sync_file(data)  # like the segments: what a process that was killed has left need not be on disk
    sync_directory(directory.base)  # LMDB syncs its file, not the file's name
    base = Base(directory.base)
    log_ = None
    began = time.monotonic()
    try:
        replayed = Replayed.onto(base)
        end = recover_log(directory.log, base.checkpoint_lsn, replayed)
        if timestamp_of(replayed.truncation) > TIMESTAMP_MAX:
            raise damage(
                f"{directory.path}: the truncation {replayed.truncation.hex()} is of a time that no clock shows"
            )
        _log_recovered(replayed, base.checkpoint_lsn, end, time.monotonic() - began)
        log_ = Log(directory.log, end)
        if end is None:
            replayed = replay(directory.log, base, [log_.lsn])
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


def _log_recovered(replayed: Replayed, checkpoint_lsn: int, end: LogEnd | None, seconds: float) -> None:
    """Logs what the log had that the base lacks, unless that is nothing."""
    records = sum(len(table.records) for table in replayed.tables)
    if end is not None and records:
        size = end.segments[-1] + end.end - checkpoint_lsn
        fields = {"records": records, "bytes": size, "seconds": round(seconds, 3)}
        log.info("read %(bytes)d bytes of the log in %(seconds).1f s, records: %(records)d", fields)


def recover_log(directory: Path, checkpoint_lsn: int, replayed: Replayed) -> LogEnd | None:
    """Reads the log to its end, cuts off a torn tail, and refuses damage; None when there is no log yet.

    `checkpoint_lsn` is the LSN up to which the base holds everything.  Segments before it are only for the outbox.
    """
    lsns = list_segments(directory)
    if not checkpoint_lsn or (lsns and lsns[-1] > checkpoint_lsn):  # the segment where the base ends is complete
        _drop_incomplete(directory, lsns)
    sync_directory(directory)  # a segment may have been renamed, and its name not synced, when the process was killed
    live = [lsn for lsn in lsns if lsn >= checkpoint_lsn]
    if not lsns and not checkpoint_lsn:
        return None
    if not live or live[0] != checkpoint_lsn:
        raise corrupt(segment_path(directory, checkpoint_lsn), 0, "the segment is missing")
    for index, lsn in enumerate(live):
        path = segment_path(directory, lsn)
        sync_file(path)  # a crash of the process alone leaves frames that were never synced, yet are readable
        with Segment(path) as segment:
            end = replayed.read(segment)
            following = live[index + 1 :]
            if following and following[0] == lsn + end:
                continue
            _require_torn_tail(directory, segment, end, following)
            if segment.is_zero_filled(end) and not following:
                return LogEnd(live, end, replayed.sequence)
        _cut(directory, path, end, following)
        return LogEnd(live[: index + 1], end, replayed.sequence)
    raise AssertionError("the last segment has none behind it")


def _drop_incomplete(directory: Path, lsns: list[int]) -> None:
    """Deletes an incomplete newest segment: a crash came before its header reached the disk."""
    if not lsns:
        return
    path = segment_path(directory, lsns[-1])
    if path.stat().st_size > SEGMENT_HEADER.size or any(path.read_bytes()):
        return  # the header is synced before anything is put behind it
    log.warning("%(path)s: dropped, it was being created when the process ended", {"path": path})
    path.unlink()
    lsns.pop()


def _require_torn_tail(directory: Path, segment: Segment, end: int, following: list[int]) -> None:
    was_synced = segment.claims_synced(end, segment.lsn + end)
    for lsn in following:
        with Segment(segment_path(directory, lsn)) as later:
            was_synced = was_synced or later.claims_synced(SEGMENT_HEADER.size, segment.lsn + end)
    if was_synced:
        raise corrupt(segment.path, end, "a frame does not match its checksum, and what follows had been synced")


def _cut(directory: Path, path: Path, end: int, following: list[int]) -> None:
    lost = path.stat().st_size - end
    log.warning(
        "%(path)s: cut off a torn tail of at most %(bytes)d bytes at byte %(position)d: it was never synced",
        {"path": path, "bytes": lost, "position": end},
    )
    for lsn in reversed(following):
        segment_path(directory, lsn).unlink()
    os.truncate(path, end)
    sync_file(path)
    sync_directory(directory)


def replay(log_directory: Path, base: Base, lsns: list[int]) -> Replayed:
    """Reads the segments after the checkpoint, the open one last.  Raises OSError."""
    replayed = Replayed.onto(base)
    for lsn in lsns:
        with Segment(segment_path(log_directory, lsn)) as segment:
            replayed.read(segment)
    return replayed


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
