"""Finds the end of the log after a crash.

A crash tears only frames that were never synced.  So a bad frame is a torn tail, which is cut off with a warning.  If a
later frame claims an LSN behind it as synced, it is damage, and nothing is changed.
"""

import logging
import os
from pathlib import Path

from merklekv.engine.format import SEGMENT_HEADER
from merklekv.engine.log.disk import sync_directory, sync_file
from merklekv.engine.log.segment import Segment, corrupt, list_segments, segment_path
from merklekv.engine.log.writer import LogEnd

log = logging.getLogger(__name__)


def recover(directory: Path, checkpoint_lsn: int) -> LogEnd | None:
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
