"""What a dump is: a head, a record for each key in key order (deleted keys too), and an end.

    head     version of the dump's format, prefix
    record   key, version, tombstone, digest, value
    end      count of records, floor, checksum

It comes as JSON lines (`jsonl`) and as CBOR (`cbor`), which hold the same and are told apart by their first byte.
Nothing in it depends on when or where it was made, so nodes that agree give dumps that are equal byte by byte.

A dump that was cut short lacks its end; one that was damaged or edited fails a record's digest, or the checksum:
XXH3-128 over prefix, the records' digests in order, and floor.  The floor, the version below which every record is
dead, stands at the end because a running node may be truncated while it is dumped, and because a loader may act on it
only when the checksum has held.  A dump under a prefix has none, since loading it would reach beyond the prefix.

Reading and writing stream: in memory are one page of records, or one record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal, Protocol

from xxhash import xxh3_128

from merklekv.engine.format import MAX_KEY_SIZE
from merklekv.engine.record import TOMBSTONE, VERSION_SIZE, digest_of, flags_of, make_record
from merklekv_tool.statuses import DumpError

DUMP_VERSION: Final = 1
MARK: Final = "merklekv_dump"  # the name of the head's first field, in both formats

FormatName = Literal["jsonl", "cbor"]
Pair = tuple[bytes, bytes]


@dataclass(frozen=True)
class Head:
    """How a dump begins."""

    prefix: bytes


@dataclass(frozen=True)
class End:
    """How a dump ends.  `truncation` is 24 bytes, None under a prefix."""

    records: int
    truncation: bytes | None
    checksum: bytes


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
    flags = flags_of(record)
    if flags & ~TOMBSTONE:
        raise DumpError(f"the record of {key!r} has flags {flags:#x} of a later release: dump it with that release")
    return flags == TOMBSTONE


def build_record(key: bytes, version: bytes, tombstone: bool, digest: bytes, value: bytes) -> bytes:
    """The record as the engine keeps it.  Raises ValueError for what cannot be one."""
    if not 0 < len(key) <= MAX_KEY_SIZE:
        raise ValueError(f"a key of {len(key)} bytes: keys have 1 to {MAX_KEY_SIZE}")
    if len(version) != VERSION_SIZE:
        raise ValueError(f"a version of {len(version)} bytes: versions have {VERSION_SIZE}")
    record = make_record(key, version, value, tombstone=tombstone)
    if digest_of(record) != digest:
        raise ValueError(f"the record of {key!r} does not match its digest: it was damaged or edited")
    return record


class Checksum:
    """Of a dump, whatever its format."""

    def __init__(self, head: Head) -> None:
        self._hash = xxh3_128(len(head.prefix).to_bytes(8, "big") + head.prefix)

    def add(self, record: bytes) -> None:
        self._hash.update(digest_of(record))

    def end(self, truncation: bytes | None) -> bytes:
        self._hash.update(truncation or b"")
        return self._hash.digest()


class Writer:
    """Writes one dump: `page` after page, then `end`.  `size` and `records` count what was written."""

    def __init__(self, file: BinaryIO, form: Format, prefix: bytes) -> None:
        self.records = 0
        self.tombstones = 0
        self.size = 0
        self._file = file
        self._form = form
        head = Head(prefix)
        self._checksum = Checksum(head)
        self._write(form.head(head))

    def page(self, pairs: list[Pair]) -> None:
        encode = self._form.record
        encoded = [encode(key, record) for key, record in pairs]
        for _, record in pairs:
            self._checksum.add(record)
            self.tombstones += flags_of(record)
        self.records += len(encoded)
        self._write(b"".join(encoded))

    def end(self, truncation: bytes | None) -> None:
        self._write(self._form.end(End(self.records, truncation, self._checksum.end(truncation))))
        self._file.flush()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)


class Reader:
    """Reads one dump: its records by iterating, then `truncation`, which is known when they are read.

    Raises DumpError with file and position.
    """

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
        self._checksum = Checksum(head)
        self.truncation: bytes | None = None
        self.records = 0

    def __iter__(self) -> Iterator[Pair]:
        while True:
            self._where, item = self._next()
            if isinstance(item, Head):
                raise self._problem("a second head: two dumps in one file; load them one by one")
            if isinstance(item, End):
                self._finish(item)
                return
            self._checksum.add(item[1])
            self.records += 1
            yield item

    def _finish(self, end: End) -> None:
        if end.records != self.records:
            raise self._problem(f"the end tells of {end.records} records, but there are {self.records} before it")
        if end.checksum != self._checksum.end(end.truncation):
            raise self._problem("the checksum does not match: the dump was damaged or edited")
        if self._has_more():
            raise self._problem("something follows this end of the dump")
        self.truncation = end.truncation

    def _has_more(self) -> bool:
        try:
            next(self._items)
        except StopIteration:
            return False
        except ValueError:
            pass  # whatever it is
        return True

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
