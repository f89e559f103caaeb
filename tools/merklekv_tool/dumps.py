"""What a dump is: a head, a record for each key in key order (deleted keys too), and an end with the count.

    head     format version, prefix, floor       the floor is the version below which every record is dead
    record   key, version, tombstone, digest, value
    end      count of records, floor

It comes as JSON lines (`jsonl`) and as CBOR (`cbor`), which hold the same and are told apart by their first byte.
Nothing in it depends on when or where it was made, so nodes that agree give dumps that are equal byte by byte.

A dump is whole or it is not taken for whole: the end tells a dump that was cut short, and each record's digest one that
was damaged or edited.  A dump under a prefix has no floor, since loading one would reach beyond the prefix.  The floor
stands at both ends: a running node may have been truncated in between, and merging the later floor settles it.

Reading and writing stream: in memory are one page of records, or one record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal, Protocol

from merklekv.engine.format import (
    DIGEST_AT,
    FLAGS_AT,
    MAX_KEY_SIZE,
    TOMBSTONE,
    VALUE_AT,
    VERSION_SIZE,
    make_record,
)
from merklekv_tool.statuses import DumpError

DUMP_VERSION: Final = 1
DIGEST_SIZE: Final = VALUE_AT - DIGEST_AT
MARK: Final = "merklekv_dump"  # the name of the head's first field, in both formats

FormatName = Literal["jsonl", "cbor"]
Pair = tuple[bytes, bytes]


@dataclass(frozen=True)
class Head:
    """How a dump begins.  `floor` is 24 bytes, None under a prefix."""

    prefix: bytes
    floor: bytes | None


@dataclass(frozen=True)
class End:
    """How a dump ends."""

    records: int
    floor: bytes | None


Item = Head | Pair | End


class Format(Protocol):
    """One way of writing a dump down."""

    def head(self, head: Head) -> bytes:
        """The bytes of the head."""

    def record(self, key: bytes, record: bytes) -> bytes:
        """The bytes of a record."""

    def end(self, end: End) -> bytes:
        """The bytes of the end."""

    def read(self, file: BinaryIO) -> Iterator[tuple[str, Item]]:
        """Everything in a file, and where each stands, as in ``line 3``.  Raises ValueError with `where` in front."""


def format_named(name: FormatName) -> Format:
    """The format of that name."""
    if name == "jsonl":
        from merklekv_tool.jsonl import JsonLines

        return JsonLines()
    from merklekv_tool.cbor import Cbor

    return Cbor()


def check_flags(key: bytes, record: bytes) -> bool:
    """Whether a record is a tombstone.  Raises DumpError for flags of a later release: a dump would lose them."""
    flags = record[FLAGS_AT]
    if flags & ~TOMBSTONE:
        raise DumpError(f"the record of {key!r} has flags {flags:#x} of a later release: dump it with that release")
    return flags == TOMBSTONE


def build_record(key: bytes, version: bytes, tombstone: bool, digest: bytes, value: bytes) -> bytes:
    """The record as the engine keeps it.  Raises ValueError for what cannot be one."""
    if not 0 < len(key) <= MAX_KEY_SIZE:
        raise ValueError(f"a key of {len(key)} bytes: keys have 1 to {MAX_KEY_SIZE}")
    if len(version) != VERSION_SIZE:
        raise ValueError(f"a version of {len(version)} bytes: versions have {VERSION_SIZE}")
    record = make_record(key, version, TOMBSTONE if tombstone else 0, value)
    if record[DIGEST_AT:VALUE_AT] != digest:
        raise ValueError(f"the record of {key!r} does not match its digest: it was damaged or edited")
    return record


class Writer:
    """Writes one dump.  `size` and `records` count what was written."""

    def __init__(self, file: BinaryIO, form: Format) -> None:
        self.records = 0
        self.tombstones = 0
        self.size = 0
        self._file = file
        self._form = form

    def head(self, head: Head) -> None:
        self._write(self._form.head(head))

    def page(self, pairs: Iterable[Pair]) -> None:
        encode = self._form.record
        encoded = [encode(key, record) for key, record in pairs]
        self.records += len(encoded)
        self.tombstones += sum(record[FLAGS_AT] for _, record in pairs)
        self._write(b"".join(encoded))

    def end(self, floor: bytes | None) -> None:
        self._write(self._form.end(End(self.records, floor)))
        self._file.flush()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)


class Reader:
    """Reads one dump: `head`, then the records by iterating, then `floor`.  Raises DumpError with file and position."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        first = file.peek(1)[:1]  # type: ignore[attr-defined]  # every binary reader that open() makes has it
        if not first:
            raise DumpError(f"{name}: empty, not a dump")
        form = format_named("jsonl" if first == b"{" else "cbor")
        self._items = form.read(file)
        self._where, head = self._next()
        if not isinstance(head, Head):
            raise self._problem("not a dump of merklekv-tool: it does not begin with a head")
        self.head = head
        self.floor = head.floor
        self.records = 0

    def __iter__(self) -> Iterator[Pair]:
        while True:
            self._where, item = self._next()
            if isinstance(item, Head):
                raise self._problem("a second head: two dumps in one file; load them one by one")
            if isinstance(item, End):
                self._finish(item)
                return
            self.records += 1
            yield item

    def _finish(self, end: End) -> None:
        if end.records != self.records:
            raise self._problem(f"the end tells of {end.records} records, but there are {self.records} before it")
        self.floor = end.floor
        for where, _ in self._items:
            self._where = where
            raise self._problem("something follows the end of the dump")

    def _next(self) -> tuple[str, Item]:
        try:
            return next(self._items)
        except StopIteration:
            raise DumpError(
                f"{self._name}: cut short after {self._where}: the end is missing, and maybe records before it"
            ) from None
        except ValueError as error:
            raise DumpError(f"{self._name}: {error}") from error

    def _problem(self, what: str) -> DumpError:
        return DumpError(f"{self._name}: {self._where}: {what}")
