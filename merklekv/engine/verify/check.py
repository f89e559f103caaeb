"""One checker for every invariant of a node's data, for tests, crash tests and `merklekv verify`.

`check_directory` reads a closed directory and changes nothing: LMDB's pages, the databases of the base against each
other, and every segment of the log.  `check_engine` compares the memory of an open engine with its disk.  Both compare
with what reference.py computes from the records, not with the engine's own code.

Each violation is one sentence: where, what was found, what was expected.  What a start repairs by itself (a torn tail,
an incomplete segment) is no violation: it goes to `note`.

Cost: about 15 us a record of the base (its digest, its index entry, its page) and 5 us an entry of the log; memory for
the leaves, one frame, and two bytes for each page of the base.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final

import lmdb

from merklekv.engine.base.environment import DATABASES, open_database
from merklekv.engine.base.reader import BaseSnapshot
from merklekv.engine.directory import LEFTOVERS, base_of, locked, require_format, shared_files
from merklekv.engine.engine import Engine
from merklekv.engine.format import INNER_NODES
from merklekv.engine.lmdb_file import is_new, page_damage, shortfall
from merklekv.engine.log.retention import CURSOR_FILE, read_cursor
from merklekv.engine.memtable import KEY_OVERHEAD, Memtable
from merklekv.engine.verify import reference
from merklekv.engine.verify.reference import HEADER_SIZE, Entry, Frame, Tree, bucket_of, number, number_bytes
from merklekv.engine.verify.report import (
    PURGE_MARKER_TAIL,
    Note,
    Progress,
    Report,
    Stages,
    marker_violations,
    record_violations,
    show,
    time_violations,
    version_text,
)
from merklekv.errors import NotADataDirectory

NODE_SIZE: Final = 256 * 24
METADATA: Final = b"metadata:"
META_SIZES: Final = {"checkpoint_lsn": 8, "checkpointing": 8, "truncation": 24, "newest": 24, "live": 8, "dead": 8}
OP_TRUNCATE: Final = 7
OP_ORIGIN: Final = 8
OP_METADATA: Final = 9
OP_PURGE: Final = 10
OP_REPAIR: Final = 11
DELETE_OPS: Final = (2, 21)
RECORD_OPS: Final = (*range(1, 7), *range(16, 25))  # those that are published, but for `truncate`
PURGE_FLAGS: Final = b"\5"  # a lone node deletes with a purge marker
NAME_SIZE_MAX: Final = 64
BUCKET_SIZE: Final = 2
FORMAT_VERSION: Final = 3
LAST_PLACE: Final = b"\xff" * 14
COUNT_WAIT_S: Final = 60.0  # for leaves and counters after a start
KEY_OPS: Final = (*RECORD_OPS, OP_PURGE)  # those whose entries stand for what a key maps to

log = logging.getLogger(__name__)


@dataclass
class BaseFacts:
    """What the base says of itself, and the rest of the data has to agree with."""

    checkpoint_lsn: int = 0
    checkpointing: int | None = None  # LSN that a checkpoint under way leads to
    truncation: bytes = bytes(reference.VERSION_SIZE)
    newest: bytes = bytes(reference.VERSION_SIZE)
    known: bool = True  # False: the base could not be read
    metadata: dict[bytes, bytes] = field(default_factory=dict)  # as a start would find them, log included


def check_directory(
    path: Path | str,
    progress: Progress | None = None,
    note: Note = log.info,
    check_metadata: Callable[[Mapping[bytes, bytes]], Iterable[str]] = lambda metadata: (),
) -> list[str]:
    """Every violation of a closed data directory.  `progress` gets (done, total) in bytes.

    `check_metadata` returns the violations in the metadata entries, whose content the engine does not interpret.

    Raises NotADataDirectory, FormatTooNew, DirectoryLocked.
    """
    path = Path(path)
    if not path.is_dir():
        raise NotADataDirectory(f"{path}: no such directory")
    require_format(path)
    with locked(path):
        data = base_of(path) / "data.mdb"
        base_size = data.stat().st_size if data.exists() else 0
        log_size = sum(segment.stat().st_size for segment in (path / "log").glob("*.log"))
        stages = Stages(progress, 2 * base_size + log_size)
        report = Report(note, stages)
        facts = _no_base(data, report) if is_new(data) else check_base_file(data, report)
        stages.begin(log_size, log_size)
        check_log(path / "log", facts, report)
        stages.end()
        if facts.known:
            for violation in check_metadata(facts.metadata):
                report.add(path, violation)
        for file in shared_files(path):
            note(
                f"{file}: has another name, too (a hard link), so a start refuses it: remove one, or copy the directory"
            )
        for name in LEFTOVERS:
            if (path / name).exists():
                note(f"{path / name}: left by a compaction that was cut off, a start tidies it up")
        place = path / CURSOR_FILE
        if place.exists() and read_cursor(place.read_bytes()) is None:
            note(f"{place}: damaged, a start publishes again what is left of the log")
    return report.sentences()


def _no_base(data: Path, report: Report) -> BaseFacts:
    """A base that is missing, empty or not yet made is new when the log begins at 0."""
    lsns = segment_lsns(data.parent.parent / "log")
    if lsns and lsns[0]:
        short = shortfall(data)
        begins = f"is missing or empty, and the log begins at LSN {lsns[0]}, not at 0"
        report.add(data, f"{short}, so nothing in it is checked" if short else begins)
        return BaseFacts(known=False)
    return BaseFacts()


# -- the base ----------------------------------------------------------------------------------------------------------


def check_base_file(data: Path, report: Report) -> BaseFacts:
    """Checks a base that no process has open.  Changes nothing, not even LMDB's lock file."""
    weight = data.stat().st_size
    report.stages.begin(weight, 1)
    short = shortfall(data)
    if short:
        report.add(data, f"{short}, so nothing in it is checked")
        return BaseFacts(known=False)
    damage = page_damage(data)
    if damage:
        for sentence in damage:
            report.add(data, f"LMDB's pages are damaged: {sentence}")
        report.add(data, "records, leaves and index are not checked, since reading damaged pages may crash")
        return BaseFacts(known=False)
    try:
        env = lmdb.open(str(data.parent), readonly=True, lock=False, max_dbs=len(DATABASES))
    except lmdb.Error as error:
        report.add(data, f"LMDB cannot open it: {error}")
        return BaseFacts(known=False)
    with env:
        try:
            handles = [open_database(env, name) for name in DATABASES]
        except lmdb.NotFoundError:
            report.note(f"{data}: was being created when the process ended")
            return BaseFacts()
        with env.begin() as txn:
            view = BaseSnapshot(txn, *handles)
            report.stages.begin(weight, view.size(view.records) + view.size(view.index))
            return check_base(data, view, report)


def check_base(where: Path, view: BaseSnapshot, report: Report) -> BaseFacts:
    """Checks what one transaction of the base shows."""
    facts = _check_meta(where, view, report)
    index_is_off = _check_index(where, view, facts, report)
    tree = Tree()
    with (
        view.txn.cursor(db=view.records) as cursor,
        view.txn.cursor(db=view.index) as listed,
        view.txn.cursor(db=view.tombstones) as tombstones,
        view.txn.cursor(db=view.expiries) as expiries,
    ):
        for key, record in cursor:
            report.stages.step()
            for violation in record_violations(key, record, facts.truncation):
                report.add(f"{where}, key {show(key)}", violation)
            if len(record) < reference.RECORD_SIZE_MIN:
                continue  # nothing else can be said of it
            tree.add(key, record)
            if reference.is_tombstone(record) and not tombstones.set_key_dup(reference.version_of(record), key):
                report.add(where, f"the list of tombstones lacks the one of key {show(key)}")
            place = reference.expiry_place(key, record)
            if place and not expiries.set_key_dup(place[:5], place[5:]):
                report.add(where, f"the list of expiries lacks the one of key {show(key)}")
            bucket = bucket_of(key)
            if index_is_off and not listed.set_key_dup(number_bytes(bucket, 2), key):
                report.add(where, f"the index lacks the key {show(key)}, expected in bucket {bucket}")
    _check_derived(where, view, tree, facts, report)
    return facts


def _check_meta(where: Path, view: BaseSnapshot, report: Report) -> BaseFacts:
    values: dict[str, bytes] = {}
    for name, size in META_SIZES.items():
        value = view.txn.get(name.encode(), db=view.meta)
        if value is not None:
            report.expect(where, f"the size of {name} in meta", len(value), size)
            values[name] = value
    checkpoint_lsn = number(values.get("checkpoint_lsn", b""))
    checkpointing = number(values["checkpointing"]) if "checkpointing" in values else None
    if checkpointing is not None and checkpointing <= checkpoint_lsn:
        report.add(
            where,
            f"a checkpoint up to LSN {checkpointing} is under way, expected more than the last one, {checkpoint_lsn}",
        )
    with view.txn.cursor(db=view.meta) as cursor:
        metadata = {name.removeprefix(METADATA): value for name, value in cursor if name.startswith(METADATA)}
    zero = bytes(reference.VERSION_SIZE)
    truncation, newest = values.get("truncation", zero), values.get("newest", zero)
    for violation in time_violations(truncation):
        report.add(where, f"truncation in meta: {violation}")
    return BaseFacts(checkpoint_lsn, checkpointing, truncation, newest, metadata=metadata)


def _check_index(where: Path, view: BaseSnapshot, facts: BaseFacts, report: Report) -> bool:
    """Checks that the index lists only what is there; True when it does not list exactly that, and should."""
    sound = True
    with view.txn.cursor(db=view.index) as cursor:
        for name, key in cursor:
            report.stages.step()
            bucket, expected = number(name), bucket_of(key)
            if bucket != expected:
                report.add(where, f"the index has the key {show(key)} in bucket {bucket}, expected {expected}")
                sound = False
            elif view.txn.get(key, db=view.records) is None:
                report.add(where, f"the index has the key {show(key)}, expected only keys that have a record")
                sound = False
    return facts.checkpointing is None and not (sound and view.size(view.index) == view.size(view.records))


def _check_derived(where: Path, view: BaseSnapshot, tree: Tree, facts: BaseFacts, report: Report) -> None:
    """Counters, the newest version and the leaves, against those of the records."""
    for name, expected in (("live", tree.live), ("dead", tree.dead)):
        found = number(view.txn.get(name.encode(), b"", db=view.meta))
        report.expect(where, f"the counter {name}", found, expected)
    if tree.newest > facts.newest:
        shown = version_text(facts.newest), version_text(tree.newest)
        report.add(where, f"the newest version in meta is {shown[0]}, expected {shown[1]} or more")
    report.expect(where, "the length of the list of tombstones", view.size(view.tombstones), tree.dead)
    with view.txn.cursor(db=view.expiries) as cursor:
        shared = {name[1:] + item for name, item in cursor if name[0] & 0x80}
        listed, most = view.size(view.expiries) - len(shared), tree.expiring + len(shared)  # the shared may be stale
        if listed > most:
            report.add(where, f"the length of the list of expiries is {listed}, expected {most}")
    with view.txn.cursor(db=view.leaves) as cursor:
        for name in cursor.iternext(values=False):
            report.expect(where, "the size of a name in leaves", len(name), 1)
    for node in range(256):
        stored = view.txn.get(bytes((node,)), bytes(NODE_SIZE), db=view.leaves)
        report.expect(where, f"the size of the leaves of inner node {node}", len(stored), NODE_SIZE)
        if stored == tree.leaves(node):
            continue
        for bucket in range(node * 256, node * 256 + 256):
            leaf = stored[bucket % 256 * 24 :][:24]
            report.expect(where, f"leaf {bucket} (sum, count)", leaf, tree.leaf(bucket))


# -- the log -----------------------------------------------------------------------------------------------------------


def segment_lsns(directory: Path) -> list[int]:
    """Where the segments start, by their names, in order."""
    lsns = (int(path.stem) for path in directory.glob("*.log") if re.fullmatch("[0-9]{20}", path.stem))
    return sorted(lsn for lsn in lsns if lsn < 1 << 64)


def check_log(directory: Path, base: BaseFacts, report: Report) -> None:
    """Adds every violation of the segments in `directory`, which follow on `base`.

    A torn tail is no violation where a start cuts it off: nothing behind it says that the log had been synced that far.
    It is damage when something does, or when the segment is not whole although the base contains it.
    """
    walk = LogWalk(directory, base, report)
    lsns = walk.lsns
    if lsns and walk.is_incomplete(lsns[-1]):
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
        self._report = report
        self._sequence: int | None = None  # of the next local event, when it is known
        self._synced = 0

    def path(self, lsn: int) -> Path:
        """The file of a segment."""
        return self.directory / f"{lsn:020d}.log"

    def is_incomplete(self, lsn: int) -> bool:
        """Whether the segment is only a header that never reached the disk."""
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
                self._report.add(path, "the header of the segment does not match its name or its checksum")
                self._sequence = None
                return True
            version, sequence = header
            self._report.expect(path, "the format version", version, FORMAT_VERSION)
            if self._sequence is not None:
                self._report.expect(path, "the header's sequence number", sequence, self._sequence)
            self._sequence = sequence
            end = self.frames(file, lsn)
            self._report.stages.step(path.stat().st_size - end)
            zero_filled = _is_zero_filled(file, end)
        return self._tail(lsn, end, zero_filled, following)

    def frames(self, file: BinaryIO, lsn: int) -> int:
        """Checks the whole frames of a segment; returns where they end."""
        end = HEADER_SIZE
        for frame in _frames(file, lsn):
            self._frame(f"{file.name}: frame at byte {frame.position}", lsn, frame)
            self._report.stages.step(frame.end - end)
            end = frame.end
        return end

    def _tail(self, lsn: int, end: int, zero_filled: bool, following: int | None) -> bool:
        path = self.path(lsn)
        if following == lsn + end:
            if not zero_filled:
                self._report.add(path, f"bytes behind the last frame, which ends at {end}, expected none but zeros")
            return True
        if zero_filled and following is None:
            return True
        later = [other for other in self.lsns if other > lsn]
        places = [(lsn, end), *((other, HEADER_SIZE) for other in later)]
        was_synced = any(reference.claims_synced(self.path(start), start, at, lsn + end) for start, at in places)
        if not was_synced and lsn >= self._base.checkpoint_lsn and all(self._has_header(other) for other in later):
            self._report.note(f"{path}: a torn tail behind byte {end}, never synced, a start cuts it off")
            return False
        if was_synced or lsn < self._base.checkpoint_lsn:
            reason = "what follows had been synced" if was_synced else "the base contains it"
            self._report.add(path, f"no whole frame at byte {end}, expected one, since {reason}")
        self._sequence = None
        return True

    def _has_header(self, lsn: int) -> bool:
        with self.path(lsn).open("rb") as file:
            return reference.read_header(file, lsn) is not None

    def _frame(self, where: str, lsn: int, frame: Frame) -> None:
        report = self._report
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
        report = self._report
        sizes = f"{len(key)} bytes of key and {len(record)} of record"
        if op == OP_TRUNCATE:
            if key or len(record) != reference.VERSION_SIZE:
                report.add(where, f"a truncation version in {sizes}, expected 0 and 24")
                return
            for violation in time_violations(record):
                report.add(where, f"the truncation: {violation}")
            if record <= self.truncation:
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
                report.add(where, f"a metadata entry in {sizes}, expected 1 to {NAME_SIZE_MAX} and any")
        elif op == OP_REPAIR:
            if not remote or len(key) != BUCKET_SIZE or len(record) > reference.KEY_SIZE_MAX:
                report.add(where, f"a repair in {sizes}, expected {BUCKET_SIZE} and at most {reference.KEY_SIZE_MAX}")
        elif op not in KEY_OPS:
            report.add(where, f"an entry of the unknown op {op}, expected 1 to {OP_REPAIR}, or 16 to {RECORD_OPS[-1]}")
        elif op == OP_PURGE or (op in DELETE_OPS and remote and record[24:25] == PURGE_FLAGS):
            for violation in marker_violations(key, record, self.truncation):
                report.add(f"{where}, key {show(key)}", violation)
        else:
            where = f"{where}, key {show(key)}"
            for violation in record_violations(key, record, self.truncation):
                report.add(where, violation)
            if not remote and record[24:25] not in ((b"\1",) if op in DELETE_OPS else (b"\0", b"\2")):
                report.add(where, f"the flags are {record[24:25].hex()}, expected others for op {op}")


def _frames(file: BinaryIO, lsn: int) -> Iterator[Frame]:
    """The whole frames of the segment at `lsn`."""
    end = HEADER_SIZE
    while (frame := reference.read_frame(file, lsn, end)) is not None:
        yield frame
        end = frame.end


def _is_zero_filled(file: BinaryIO, position: int) -> bool:
    file.seek(position)
    return not any(any(chunk) for chunk in iter(lambda: file.read(1 << 20), b""))


# -- an open engine ----------------------------------------------------------------------------------------------------


def check_engine(engine: Engine) -> list[str]:
    """Every violation of an open engine.  Holds its locks for as long as it takes: for tests, and for small data."""
    report = Report(log.info)
    if engine.gate.failure is None:  # else nobody counts any more
        engine.wait_until_counted(COUNT_WAIT_S)
    with engine.commits.lock, engine.lock:
        base = engine.table.base
        facts = check_base(Path("base"), base.current, report)
        for name in ("checkpoint_lsn", "truncation", "newest"):
            report.expect("base", name, getattr(base, name), getattr(facts, name))
        _check_tables(engine, report)
        _check_clock(engine, report)
        _check_expiries(engine, report)
        if engine.gate.failure is None:
            _check_segments(engine, facts, report)
        if engine.root_ready:
            _check_tree(engine, report)
        elif facts.truncation == engine.table.truncation and not engine.is_counting:
            report.add("tree", "the root is not ready although the base has the truncation version")
    return report.sentences()


def _check_tables(engine: Engine, report: Report) -> None:
    """Memtables by themselves, and against what lies below them."""
    table = engine.table
    for memtable in table.tables:
        where = f"memtable {memtable.lsn}"
        size = 0
        for key, record in memtable.records.items():
            size += len(key) + len(record) + KEY_OVERHEAD
            violations = marker_violations if reference.is_purge_marker(record) else record_violations
            for violation in violations(key, record, table.truncation):
                report.add(f"{where}, key {show(key)}", violation)
        report.expect(where, "the charged size", memtable.size, size)
    newer: dict[bytes, bytes] = {}
    gc_horizon = number_bytes(engine.gc_horizon, 8)  # up to it an older record may follow on a collected one
    purged = number_bytes(engine.purged_through, 8)  # anything may follow on what a lone node has purged
    for memtable in table.tables:
        for key, record in memtable.records.items():
            upper = newer.setdefault(key, record)
            if upper[:24] < record[:24] and upper[:8] > gc_horizon and record[:8] > purged:
                report.add(f"memtable {memtable.lsn}, key {show(key)}", "is newer than in a memtable above it")
    for key, record in newer.items():
        stored = table.base.get(key)
        if stored is not None and record[:24] < stored[:24] and record[:8] > gc_horizon and stored[:8] > purged:
            report.add(f"base, key {show(key)}", "is newer than in a memtable")
    report.expect("engine", "the table it writes to", id(engine.table.records), id(table.active.records))


def _check_expiries(engine: Engine, report: Report) -> None:
    """How many have expired, and that every memtable knows of those that are still to expire or to be purged."""
    table = engine.table
    current = _current(engine)
    places = {key: place for key, record in current.items() if (place := reference.expiry_place(key, record))}
    expired = sum(place <= table.watermark for place in places.values())
    report.expect("engine", "the number of expired keys", table.expired_count, expired)
    for memtable in table.tables:
        expiries = memtable.expiries
        known = {*expiries.new, *map(expiries.key_of, expiries.passed)}
        waiting: dict[bytes, bytes] = {}  # key -> the first place under which it waits; later ones are found from there
        for entry in expiries.waiting:
            key = expiries.key_of(entry)
            waiting[key] = min(entry[:14], waiting.get(key, entry))
        for key, record in memtable.records.items():
            place = reference.expiry_place(key, record)
            if place and current.get(key) is record and key not in known and waiting.get(key, LAST_PLACE) > place:
                report.add(f"memtable {memtable.lsn}, key {show(key)}", "is not among those that expire")


def _current(engine: Engine) -> dict[bytes, bytes]:
    """The newest record of each key, without those that are gone."""
    table = engine.table
    newest: dict[bytes, bytes] = {}
    with table.base.current.txn.cursor(db=table.base.current.records) as cursor:
        newest.update((key, record) for key, record in cursor if record >= table.truncation)
    for memtable in reversed(table.tables):
        newest.update(memtable.records.items())
    return {key: record for key, record in newest.items() if not reference.is_purge_marker(record)}


def _check_clock(engine: Engine, report: Report) -> None:
    """The clock has seen every version, and issues none at or below the truncation version and the GC horizon."""
    table, clock = engine.table, engine.clock
    newest = max(table.truncation, table.base.newest)
    for memtable in table.tables:
        newest = max(newest, max((record for _, record in memtable.records.items()), default=b"")[:24])
    if number(newest[:8]) > clock.newest:
        report.add("clock", f"has seen {clock.newest}, expected at least {version_text(newest)}, which is stored")
    least = max(number(table.truncation[:8]), engine.gc_horizon)
    if clock.lower_bound < least:
        report.add("clock", f"issues versions above {clock.lower_bound}, expected {least} at least")


def _check_segments(engine: Engine, facts: BaseFacts, report: Report) -> None:
    """The log on disk with its pending entries, against the memtables that stand for it."""
    table, log_ = engine.table, engine.log
    memtables = [*reversed(table.frozen), table.active]
    walk = LogWalk(engine.directory.log, facts, report)
    lsns = [memtable.lsn for memtable in memtables]
    report.expect("log", "the segments", [lsn for lsn in walk.lsns if lsn >= lsns[0]], lsns)
    if facts.checkpoint_lsn not in lsns:  # beyond the first until the engine learns of the checkpoint
        report.add("base", f"has the log up to LSN {facts.checkpoint_lsn}, expected one of {lsns}")
    if facts.checkpointing is None and facts.checkpoint_lsn == lsns[0]:
        walk.truncation = facts.truncation
    truncation = facts.truncation
    below: dict[bytes, bytes] = {}  # the memtables so far
    for memtable in memtables:
        with walk.path(memtable.lsn).open("rb") as file:
            if reference.read_header(file, memtable.lsn) is None:
                report.add(walk.path(memtable.lsn), "the header of the segment does not match its name or its checksum")
            end = walk.frames(file, memtable.lsn)
            frames = _frames(file, memtable.lsn)
            entries = [entry for frame in frames for entry in reference.read_entries(frame.payload)]
        if memtable is table.active:
            report.expect("log", "the end of what is written", log_.position, end)
            pending = b"".join(log_.pending)
            report.expect("log", "the size of what is pending", log_.pending_size, len(pending))
            entries += reference.read_entries(pending)
        truncation = max([truncation, *(entry.record for entry in entries if entry.op == 7)])
        newest = {entry.key: entry.record for entry in entries if entry.op in KEY_OPS}
        expected: dict[bytes, bytes] = {}
        for key, record in newest.items():
            if record >= table.truncation:
                expected[key] = record
            elif key in memtable.records or below.get(key, table.base.get(key) or b"") >= table.truncation:
                expected[key] = table.truncation + PURGE_MARKER_TAIL  # or what is below would show
        _compare(report, memtable, expected)
        below |= expected
    report.expect("engine", "the truncation version", table.truncation, truncation)


def _compare(report: Report, memtable: Memtable, expected: dict[bytes, bytes]) -> None:
    for key in {*memtable.records, *expected}:
        found, logged = memtable.records.get(key), expected.get(key)
        if found != logged:
            shown = [version_text(record) if record else "nothing" for record in (found, logged)]
            where = f"memtable {memtable.lsn}, key {show(key)}"
            report.add(where, f"holds {shown[0]}, expected {shown[1]}, as in its segment")


def _check_tree(engine: Engine, report: Report) -> None:
    """Leaves, counters and root of the newest records above the truncation version."""
    table = engine.table
    tree = Tree()
    for key, record in _current(engine).items():
        tree.add(key, record)
    checked = table.tree
    filled = {bucket for node in range(INNER_NODES) for bucket in checked.filled(node)}
    for bucket in filled | tree.counts.keys():
        found = number_bytes(checked.leaf(bucket), 24)
        report.expect("tree", f"leaf {bucket} (sum, count)", found, tree.leaf(bucket))
    report.expect("engine", "the number of live keys", engine.live_count, tree.live)
    report.expect("engine", "the number of tombstones", engine.tombstone_count, tree.dead)
    report.expect("tree", "the root", engine.root(), tree.root(table.truncation))
