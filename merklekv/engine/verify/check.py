"""One checker for every invariant of a node's data, for tests, crash tests and `merklekv-tool verify`.

`check_directory` reads a closed directory and changes nothing.  `check_engine` compares the memory of an open engine
with its disk.  Both check against what reference.py computes from the records, not against the engine's own code.

Every problem is one sentence: where, what was found, what was expected.  What a start repairs by itself (a torn tail, a
segment that was being created) is no problem; `note` is told of it.

Cost: about 15 us a record of the base (its digest, its index entry, its page) and 5 us an entry of the log; memory for
the leaves, one frame, and two bytes for each page of the base.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import compress
from pathlib import Path
from typing import BinaryIO

from merklekv.engine.directory import locked, require_format
from merklekv.engine.engine import Engine
from merklekv.engine.log.retention import CURSOR_FILE, read_cursor
from merklekv.engine.memtable import KEY_OVERHEAD, Memtable
from merklekv.engine.verify import reference
from merklekv.engine.verify.check_base import check_base, check_base_file
from merklekv.engine.verify.check_log import LogWalk, check_log, segment_lsns
from merklekv.engine.verify.reference import Tree
from merklekv.engine.verify.report import (
    BaseFacts,
    Note,
    Progress,
    Report,
    Stages,
    marker_problems,
    record_problems,
    show,
    version_text,
)
from merklekv.errors import NotADataDirectory

RECORD_OPS = (1, 2, 3, 4, 5, 6, 10)  # those whose entries stand for what a key maps to

log = logging.getLogger(__name__)


def check_directory(
    path: Path | str,
    progress: Progress | None = None,
    note: Note = log.info,
    check_notes: Callable[[Mapping[bytes, bytes]], Iterable[str]] = lambda metadata: (),
) -> list[str]:
    """Every problem of a closed data directory.  `progress` gets (done, total) in bytes.

    `check_notes` returns what is wrong with the metadata entries, whose content the engine does not interpret.

    Raises NotADataDirectory, FormatTooNew, DirectoryLocked.
    """
    path = Path(path)
    if not path.is_dir():
        raise NotADataDirectory(f"{path}: no such directory")
    require_format(path)
    with locked(path):
        data = path / "base" / "data.mdb"
        base_size = data.stat().st_size if data.exists() else 0
        log_size = sum(segment.stat().st_size for segment in (path / "log").glob("*.log"))
        stages = Stages(progress, 2 * base_size + log_size)
        report = Report(note, stages)
        facts = check_base_file(data, report) if base_size else _no_base(data, report)
        stages.begin(log_size, log_size)
        check_log(path / "log", facts, report)
        stages.end()
        if facts.known:
            for problem in check_notes(facts.metadata):
                report.add(path, problem)
        place = path / CURSOR_FILE
        if place.exists() and read_cursor(place.read_bytes()) is None:
            note(f"{place}: damaged, a start publishes again what is left of the log")
    return report.sentences()


def _no_base(data: Path, report: Report) -> BaseFacts:
    """A base that is missing or empty is new when the log begins at 0."""
    lsns = segment_lsns(data.parent.parent / "log")
    if lsns and lsns[0]:
        report.add(data, f"is missing or empty, and the log begins at LSN {lsns[0]}, not at 0")
        return BaseFacts(known=False)
    return BaseFacts()


def check_engine(engine: Engine) -> list[str]:
    """Every problem of an open engine.  Holds its locks for as long as it takes: for tests, and for small data."""
    report = Report(log.info)
    with engine.exclusive():
        layers = engine.table
        base = layers.base
        facts = check_base(Path("base"), base.current, report)
        for name in ("checkpoint_lsn", "truncation", "newest"):
            report.expect("base", name, getattr(base, name), getattr(facts, name))
        _check_tables(engine, report)
        _check_clock(engine, report)
        if engine.gate.failure is None:
            _check_segments(engine, facts, report)
        if engine.root_ready:
            _check_tree(engine, report)
        elif facts.truncation == layers.truncation:
            report.add("tree", "the root is not ready although the base has the truncation version")
    return report.sentences()


def _check_tables(engine: Engine, report: Report) -> None:
    """Memtables by themselves, and against what lies below them."""
    layers = engine.table
    for table in (layers.active, *layers.frozen):
        where = f"memtable {table.lsn}"
        size = 0
        for key, record in table.records.items():
            size += len(key) + len(record) + KEY_OVERHEAD
            problems = marker_problems if reference.is_purge_marker(record) else record_problems
            for problem in problems(key, record, layers.truncation):
                report.add(f"{where}, key {show(key)}", problem)
        report.expect(where, "the charged size", table.size, size)
    newer: dict[bytes, bytes] = {}
    gc_horizon = reference.number_bytes(
        engine.gc_horizon, 8
    )  # at or below it an older record may follow on a collected one
    for table in (layers.active, *layers.frozen):
        for key, record in table.records.items():
            upper = newer.setdefault(key, record)
            if upper[:24] < record[:24] and upper[:8] > gc_horizon:
                report.add(f"memtable {table.lsn}, key {show(key)}", "is newer than in a memtable above it")
    for key, record in newer.items():
        stored = layers.base.get(key)
        if stored is not None and record[:24] < stored[:24] and record[:8] > gc_horizon:
            report.add(f"base, key {show(key)}", "is newer than in a memtable")
    report.expect("engine", "the table it writes to", id(engine.table.records), id(layers.active.records))


def _check_clock(engine: Engine, report: Report) -> None:
    """The clock has seen every version, so that a local write beats it; unless it had to follow a wall set back."""
    layers, clock = engine.table, engine.clock
    if clock.set_back:
        return
    newest = layers.truncation
    for table in (layers.active, *layers.frozen):
        newest = max(newest, max(table.records.values(), default=b"")[:24])
    newest = max(newest, layers.base.newest)
    if reference.number(newest[:8]) > clock.last:
        report.add("clock", f"is at {clock.last}, expected at least {version_text(newest)}, which is stored")


def _check_segments(engine: Engine, facts: BaseFacts, report: Report) -> None:
    """The log on disk with its pending entries, against the memtables that stand for it."""
    layers, log_ = engine.table, engine.log
    tables = [*reversed(layers.frozen), layers.active]
    walk = LogWalk(engine.directory.log, facts, report)
    row = [table.lsn for table in tables]
    report.expect("log", "the row of segments", [lsn for lsn in walk.lsns if lsn >= row[0]], row)
    if facts.checkpoint_lsn not in row:  # further than the first of them while the engine has not been told yet
        report.add("base", f"has the log up to LSN {facts.checkpoint_lsn}, expected one of {row}")
    if facts.checkpointing is None and facts.checkpoint_lsn == row[0]:
        walk.truncation = facts.truncation
    truncation = facts.truncation
    for table in tables:
        with walk.path(table.lsn).open("rb") as file:
            if reference.read_header(file, table.lsn) is None:
                report.add(walk.path(table.lsn), "the header of the segment does not match its name or its checksum")
            end = walk.frames(file, table.lsn)
            entries = [entry for payload in _payloads(file, table.lsn) for entry in reference.read_entries(payload)]
        if table is layers.active:
            report.expect("log", "the end of what is written", log_.position, end)
            pending = b"".join(log_.pending)
            report.expect("log", "the size of what is pending", log_.pending_size, len(pending))
            entries += reference.read_entries(pending)
        truncation = max([truncation, *(entry.record for entry in entries if entry.op == 7)])
        newest = {entry.key: entry.record for entry in entries if entry.op in RECORD_OPS}
        _compare(report, table, {key: record for key, record in newest.items() if record >= layers.truncation})
    report.expect("engine", "the truncation version", layers.truncation, truncation)


def _payloads(file: BinaryIO, lsn: int) -> Iterator[bytes]:
    end = reference.HEADER_SIZE
    while (frame := reference.read_frame(file, lsn, end)) is not None:
        yield frame.payload
        end = frame.end


def _compare(report: Report, table: Memtable, expected: dict[bytes, bytes]) -> None:
    for key in table.records.keys() | expected.keys():
        found, logged = table.records.get(key), expected.get(key)
        if found != logged:
            shown = [version_text(record) if record else "nothing" for record in (found, logged)]
            where = f"memtable {table.lsn}, key {show(key)}"
            report.add(where, f"holds {shown[0]}, expected {shown[1]}, as in its segment")


def _check_tree(engine: Engine, report: Report) -> None:
    """Leaves, counters and root of the newest records above the truncation version."""
    layers = engine.table
    tree = Tree()
    newest: dict[bytes, bytes] = {}
    for table in (*reversed(layers.frozen), layers.active):
        newest.update(table.records)
    for key, record in newest.items():
        if not reference.is_purge_marker(record):
            tree.add(key, record)
    base = layers.base
    with base.current.txn.cursor(db=base.current.records) as cursor:
        for key, record in cursor:
            if key not in newest and record >= layers.truncation:
                tree.add(key, record)
    checked = layers.tree
    buckets = range(len(checked.sums))
    filled = {*compress(buckets, checked.sums), *compress(buckets, checked.counts)}
    for bucket in filled | tree.counts.keys():
        found = reference.number_bytes(checked.leaf(bucket), 24)
        report.expect("tree", f"leaf {bucket} (sum, count)", found, tree.leaf(bucket))
    report.expect("engine", "the number of live keys", engine.live_count, tree.live)
    report.expect("engine", "the number of tombstones", engine.tombstone_count, tree.dead)
    report.expect("tree", "the root", engine.root(), tree.root(layers.truncation))
