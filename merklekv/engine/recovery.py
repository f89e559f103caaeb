"""Opening a data directory: the base as it stands, and every log segment that it has not taken in yet, as memtables.

Reading a segment costs about 1 us an entry, and finding what its keys were in the base about 2 us a key, so a start
takes well under a second for each full memtable, whatever the size of the base.
"""

from merklekv.engine.directory import DataDirectory
from merklekv.engine.format import OP_ORIGIN, OP_TRUNCATE, REMOTE, VERSION_SIZE
from merklekv.engine.layers import Layers
from merklekv.engine.log import Log, Segment, recover, segment_path, sync_directory
from merklekv.engine.memtable import Memtable, charge
from merklekv.engine.store import Base, BaseWriter


def open_layers(directory: DataDirectory) -> tuple[Layers, Log, bytes]:
    """The layers, the log, open for writing, and the newest version (24 bytes) that either has seen."""
    is_new = not (directory.base / "data.mdb").exists()
    BaseWriter(directory.base).close()  # makes what is missing of it, and frees the slots of readers that were killed
    if is_new:
        sync_directory(directory.base)  # LMDB syncs its file, not the file's name
    base = Base(directory.base)
    try:
        recovered = recover(directory.log, base.absorbed)
        log = Log(directory.log, recovered)
        tables = []
        floor, newest = base.floor, base.newest
        for lsn in recovered.segments if recovered else [log.lsn]:
            with Segment(segment_path(directory.log, lsn)) as segment:
                table, segment_floor, segment_newest = _replay(segment)
            tables.append(table)
            floor, newest = max(floor, segment_floor), max(newest, segment_newest)
        layers = Layers(base, tables, floor)
        if floor > base.floor or base.absorbing:  # an absorption that was cut short may be ahead with the floor
            layers.raise_floor(floor)
    except BaseException:
        base.close()
        raise
    return layers, log, max(newest, floor)


def _replay(segment: Segment) -> tuple[Memtable, bytes, bytes]:
    """The memtable that a segment stands for, the largest floor in it, and the newest version in it."""
    table = Memtable(segment.lsn)
    records = table.records
    data = segment.data
    floor = newest = b""
    for frame in segment.frames():
        for op, key, start, end in segment.entries(frame):
            record = data[start:end]
            if record > newest:
                newest = record
            if op & ~REMOTE == OP_TRUNCATE:
                floor = max(floor, record)
            elif op != OP_ORIGIN:
                records[key] = record
    table.size = sum(charge(key, record) for key, record in records.items())
    return table, floor, newest[:VERSION_SIZE]
