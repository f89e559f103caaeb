"""Writes the worked example in docs/format.md: a real log segment and a real base, byte by byte.

    python scripts/write_format_example.py            writes it
    python scripts/write_format_example.py --check    checks that it is what the code makes

An engine sets a key, deletes another, and commits, with a fixed clock, store id and process epoch, so the bytes are the
same each time. The log is cut into fields here; the result of a checkpoint is read back from LMDB.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from unittest import mock

import generated
import lmdb

from merklekv.engine.base.environment import DATABASES, open_database
from merklekv.engine.engine import Engine
from merklekv.engine.format import ENTRY, FRAME_HEADER, LEAF_SIZE, OP_METADATA, REMOTE, SEGMENT_HEADER, bucket_of

NOW_NS = 1_800_000_000 * 10**9
INSTANCE = bytes.fromhex("c0ffee00c0ffee000badcafe")  # store id, process epoch
ONE_KEY = b"greeting"
OTHER_KEY = b"gone"

SEGMENT_FIELDS = (
    ("magic", 8),
    ("format", 4),
    ("unused", 4),
    ("LSN of this byte", 8),
    ("sequence of its first local event", 8),
    ("time of creation, ns", 8),
    ("checksum", 8),
)
FRAME_FIELDS = (
    ("magic", 4),
    ("length of the payload", 4),
    ("LSN known to be synced", 8),
    ("sequence of its first local event", 8),
    ("local events", 4),
    ("entries", 4),
    ("checksum", 8),
)
ENTRY_FIELDS = (("op", 1), ("length of the key", 2), ("length of the record", 4))
RECORD_FIELDS = (("version: time, ns", 8), ("version: op id", 16), ("flags", 1), ("digest", 16))


class Dump:
    """Lines of offset, bytes, name and meaning, for bytes that are walked from front to end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0
        self.lines: list[str] = []

    def field(self, name: str, size: int) -> None:
        """One field, on one line."""
        data = self._data[self.at : self.at + size]
        self.lines.append(f"{self.at:4}  {data.hex():<32}  {name:<34}{meaning(data)}".rstrip())
        self.at += size

    def fields(self, fields: Iterable[tuple[str, int]]) -> None:
        """One line for each."""
        for name, size in fields:
            self.field(name, size)

    def title(self, text: str) -> None:
        """A line between."""
        self.lines += ["", text]


def meaning(data: bytes) -> str:
    """A short field as text or as a number; long ones say it with their bytes."""
    if data.isascii() and data.decode().isprintable() and len(data) > 1:
        return f'"{data.decode()}"'
    return f"{int.from_bytes(data, 'big'):,}" if len(data) < 8 or not any(data[:4]) else ""


def segment_lines(data: bytes) -> list[str]:
    """A segment with one frame of entries and the empty one of a clean end, field by field."""
    dump = Dump(data)
    dump.title("segment header")
    dump.fields(SEGMENT_FIELDS)
    assert dump.at == SEGMENT_HEADER.size
    dump.title("frame header")
    dump.fields(FRAME_FIELDS)
    assert dump.at == SEGMENT_HEADER.size + FRAME_HEADER.size
    while dump.at < len(data) - FRAME_HEADER.size:
        op, key_size, record_size = ENTRY.unpack_from(data, dump.at)
        dump.title("entry")
        dump.fields(ENTRY_FIELDS)
        if op == OP_METADATA | REMOTE:
            dump.field("name", key_size)
            assert not record_size
            continue
        assert op < REMOTE
        dump.field("key", key_size)
        head = sum(size for _, size in RECORD_FIELDS)
        dump.fields(RECORD_FIELDS)
        if record_size > head:
            dump.field("value", record_size - head)
    dump.title("frame header, without entries: the end of the process")
    dump.fields(FRAME_FIELDS)
    assert dump.at == len(data)
    return dump.lines


def base_lines(path: Path) -> list[str]:
    """Everything that the base holds: names or keys, and what they map to."""
    lines = []
    with lmdb.open(str(path), readonly=True, max_dbs=len(DATABASES)) as env:
        for name in DATABASES:
            lines += ["", name.decode()]
            database = open_database(env, name)
            with env.begin(db=database) as txn, txn.cursor() as cursor:
                for key, value in cursor.iternext():
                    shown = key.decode() if name in (b"records", b"meta") else key.hex()
                    lines += [
                        f"  {shown:<9}  {part}"
                        for part in (_leaves(key, value) if name == b"leaves" else [value.hex()])
                    ]
    return lines


def _leaves(key: bytes, value: bytes) -> Iterable[str]:
    for at in range(0, len(value), LEAF_SIZE):
        total, count = value[at : at + LEAF_SIZE - 8], int.from_bytes(value[at + LEAF_SIZE - 8 : at + LEAF_SIZE], "big")
        if count:
            yield f"leaf {key.hex()}{at // LEAF_SIZE:02x}: sum {total.hex()}, count {count}"


def example() -> str:
    """The example as it stands in the page."""
    clock = mock.patch("time.time_ns", return_value=NOW_NS)
    instance = mock.patch("merklekv.engine.clock.os.urandom", return_value=INSTANCE)
    with tempfile.TemporaryDirectory() as directory, clock, instance:
        path = Path(directory) / "data"
        engine = Engine(path, durability="never", checkpoint="manual", wall_clock=lambda: NOW_NS)
        engine.join()
        engine.set(OTHER_KEY, b"")
        engine.set(ONE_KEY, b"hello")
        engine.delete(OTHER_KEY)
        engine.close()
        [segment] = (path / "log").glob("*.log")
        log = segment_lines(segment.read_bytes())
        engine = Engine(path, durability="never", checkpoint="manual")
        engine.checkpoint_now()
        root = engine.root().hex()
        engine.close()
        base = base_lines(path / "base")
    buckets = [f"{key.decode()}: bucket {bucket_of(key):04x}" for key in (ONE_KEY, OTHER_KEY)]
    tree = ["", "merkle tree", *(f"  {line}" for line in buckets), f"  root {root}"]
    return "```\n" + "\n".join([f"log/{segment.name}", *log, "", "base/", *base, *tree]) + "\n```\n"


if __name__ == "__main__":
    generated.write(generated.DOCS / "format.md", example(), "example")
