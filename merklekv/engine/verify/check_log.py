"""The checker's look at the log: names, headers, frames, sequence numbers and entries of every segment.

A torn tail is no problem where a start would cut it off: nothing behind it says that the log had been synced that far.
The same bytes are damage when something does, or when a segment that the base has taken in is not whole.
"""

import re
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

from merklekv.engine.verify import reference
from merklekv.engine.verify.reference import HEADER_SIZE, Entry, Frame
from merklekv.engine.verify.report import BaseFacts, Report, marker_problems, record_problems, show, version_text

OP_DELETE: Final = 2
OP_TRUNCATE: Final = 7
OP_ORIGIN: Final = 8
OP_METADATA: Final = 9
OP_PURGE: Final = 10
OP_REPAIR: Final = 11
NAME_SIZE_MAX: Final = 64
BUCKET_SIZE: Final = 2
FORMAT_VERSION: Final = 2


def segment_lsns(directory: Path) -> list[int]:
    """Where the segments start, by their names, in order."""
    return sorted(int(path.stem) for path in directory.glob("*.log") if re.fullmatch("[0-9]{20}", path.stem))


def check_log(directory: Path, base: BaseFacts, report: Report) -> None:
    """Adds every problem of the segments in `directory`, which follow on `base`."""
    walk = LogWalk(directory, base, report)
    lsns = walk.lsns
    if lsns and walk.is_unborn(lsns[-1]):
        report.note(f"{walk.path(lsns[-1])}: was being created when the process ended, a start drops it")
        lsns.pop()
    if base.known and base.checkpoint_lsn not in lsns and (lsns or base.checkpoint_lsn):
        report.add(walk.path(base.checkpoint_lsn), "the segment where the base ends is missing")
    if base.checkpointing is not None and base.checkpointing not in lsns:
        report.add(
            directory,
            f"the base has a checkpoint under way up to LSN {base.checkpointing}, expected a segment to start there",
        )
    for lsn, following in pairwise([*lsns, None]):
        if lsn is not None and not walk.segment(lsn, following):
            return


class LogWalk:
    """Goes through the segments in order; what one leaves, the next has to take up."""

    def __init__(self, directory: Path, base: BaseFacts, report: Report) -> None:
        self.directory = directory
        self.lsns = segment_lsns(directory)
        self.truncation = bytes(reference.VERSION_SIZE)  # no later record is below it
        self._base = base
        self._findings = report
        self._sequence: int | None = None  # of the next local event, when it is known
        self._synced = 0

    def path(self, lsn: int) -> Path:
        """The file of a segment."""
        return self.directory / f"{lsn:020d}.log"

    def is_unborn(self, lsn: int) -> bool:
        """Whether the segment is nothing but a header that never reached the disk."""
        path = self.path(lsn)
        return path.stat().st_size <= HEADER_SIZE and not any(path.read_bytes())

    def segment(self, lsn: int, following: int | None) -> bool:
        """Checks a segment and that `following` joins it; False where a start would drop what comes behind."""
        path, base = self.path(lsn), self._base
        if lsn == base.checkpoint_lsn and base.checkpointing is None:
            self.truncation = max(self.truncation, base.truncation)
        with path.open("rb") as file:
            header = reference.read_header(file, lsn)
            if header is None:
                self._findings.add(path, "the header of the segment does not match its name or its checksum")
                self._sequence = None
                return True
            version, sequence = header
            self._findings.expect(path, "the format version", version, FORMAT_VERSION)
            if self._sequence is not None:
                self._findings.expect(path, "the header's sequence number", sequence, self._sequence)
            self._sequence = sequence
            end = self.frames(file, lsn)
            self._findings.stages.step(path.stat().st_size - end)
            blank = _is_blank(file, end)
        return self._tail(lsn, end, blank, following)

    def frames(self, file: BinaryIO, lsn: int) -> int:
        """Checks the whole frames of a segment; returns where they end."""
        end = HEADER_SIZE
        while (frame := reference.read_frame(file, lsn, end)) is not None:
            self._frame(f"{file.name}: frame at byte {frame.position}", lsn, frame)
            self._findings.stages.step(frame.end - end)
            end = frame.end
        return end

    def _tail(self, lsn: int, end: int, blank: bool, following: int | None) -> bool:
        path = self.path(lsn)
        if following == lsn + end:
            if not blank:
                self._findings.add(path, f"bytes behind the last frame, which ends at {end}, expected none but zeros")
            return True
        if blank and following is None:
            return True
        later = [other for other in self.lsns if other > lsn]
        places = [(lsn, end), *((other, HEADER_SIZE) for other in later)]
        claimed = max(reference.synced_claim(self.path(start), start, position) for start, position in places)
        if (
            claimed <= lsn + end
            and lsn >= self._base.checkpoint_lsn
            and all(self._has_header(other) for other in later)
        ):
            self._findings.note(f"{path}: a torn tail behind byte {end}, never synced, a start cuts it off")
            return False
        if claimed > lsn + end or lsn < self._base.checkpoint_lsn:
            reason = "what follows had been synced" if claimed > lsn + end else "the base has taken it in"
            self._findings.add(path, f"no whole frame at byte {end}, expected one, since {reason}")
        self._sequence = None
        return True

    def _has_header(self, lsn: int) -> bool:
        with self.path(lsn).open("rb") as file:
            return reference.read_header(file, lsn) is not None

    def _frame(self, where: str, lsn: int, frame: Frame) -> None:
        report = self._findings
        if self._sequence is not None:
            report.expect(where, "the sequence number", frame.sequence, self._sequence)
        start = lsn + frame.position
        if not self._synced <= frame.synced <= start:
            report.add(where, f"claims LSN {frame.synced} as synced, expected {self._synced} to {start}")
        self._synced = frame.synced
        local_count = entry_count = 0
        try:
            for entry in reference.read_entries(frame.payload):
                entry_count += 1
                local_count += not entry.remote and entry.op != OP_ORIGIN
                if entry.op == OP_METADATA and lsn >= self._base.checkpoint_lsn:
                    self._base.metadata[entry.key] = entry.record
                self._entry(where, entry)
        except ValueError as error:
            report.add(where, str(error))
        report.expect(where, "the number of entries", frame.entry_count, entry_count)
        report.expect(where, "the number of local events", frame.local_count, local_count)
        self._sequence = frame.sequence + frame.local_count

    def _entry(self, where: str, entry: Entry) -> None:
        op, remote, key, record = entry
        report = self._findings
        sizes = f"{len(key)} bytes of key and {len(record)} of record"
        if op == OP_TRUNCATE:
            if key or len(record) != reference.VERSION_SIZE:
                report.add(where, f"a truncation version in {sizes}, expected 0 and 24")
            elif record <= self.truncation:
                shown = version_text(record), version_text(self.truncation)
                report.add(
                    where, f"the truncation version is {shown[0]}, expected more than the one before, {shown[1]}"
                )
            self.truncation = max(self.truncation, record)
        elif op == OP_ORIGIN:
            if remote or record or not 1 <= len(key) <= reference.KEY_SIZE_MAX:
                report.add(where, f"an origin in {sizes}, expected 1 to {reference.KEY_SIZE_MAX} and 0")
        elif op == OP_METADATA:
            if not remote or not 1 <= len(key) <= NAME_SIZE_MAX:
                report.add(where, f"a note in {sizes}, expected 1 to {NAME_SIZE_MAX} and any")
        elif op == OP_REPAIR:
            if not remote or len(key) != BUCKET_SIZE or len(record) > reference.KEY_SIZE_MAX:
                report.add(where, f"a repair in {sizes}, expected {BUCKET_SIZE} and at most {reference.KEY_SIZE_MAX}")
        elif not 1 <= op <= OP_REPAIR:
            report.add(where, f"an entry of the unknown op {op}, expected 1 to {OP_REPAIR}")
        elif op == OP_PURGE:
            for problem in marker_problems(key, record, self.truncation):
                report.add(f"{where}, key {show(key)}", problem)
        else:
            where = f"{where}, key {show(key)}"
            for problem in record_problems(key, record, self.truncation):
                report.add(where, problem)
            if not remote and record[24:25] != (b"\1" if op == OP_DELETE else b"\0"):
                report.add(where, f"the flags are {record[24:25].hex()}, expected others for op {op}")


def _is_blank(file: BinaryIO, position: int) -> bool:
    file.seek(position)
    return not any(any(chunk) for chunk in iter(lambda: file.read(1 << 20), b""))
