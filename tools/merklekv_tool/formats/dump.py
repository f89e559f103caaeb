"""A dump: a head, a record for each key in key order (deleted keys too), and an end.

    head     version of the dump format, prefix
    record   key, version, tombstone, digest, value
    end      number of records, truncation version, checksum

It is written as JSON lines (`jsonl`) or as CBOR (`cbor`). Both have the same contents; the first byte tells them apart.
A dump does not depend on when or where it is made, so nodes that agree give equal bytes.

A dump that was cut short lacks its end; one that was damaged or edited fails a record's digest or the checksum:
XXH3-128 over the length of the prefix, the prefix, the records' digests in order, and the truncation version. The
truncation version is in the end, because a node may be truncated while it is dumped, and because a loader may only
apply it if the checksum is right. A dump under a prefix has none, since loading it would delete keys outside the
prefix.

Memory: one page of records while writing, one record while reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final, Literal

from merklekv.engine.record import digest_of, is_tombstone
from merklekv_tool.errors import DumpError
from merklekv_tool.formats.cbor import Cbor
from merklekv_tool.formats.items import End, Head, Item, Pair, checksum_of
from merklekv_tool.formats.jsonl import JsonLines

FormatName = Literal["jsonl", "cbor"]
FORMATS: Final[dict[FormatName, JsonLines | Cbor]] = {"jsonl": JsonLines(), "cbor": Cbor()}
COMPRESSED: Final = {  # how a file begins that one of these programs unpacks
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\0": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


class Writer:
    """Writes one dump: call `page` for each page, then `end`. `size` counts bytes."""

    def __init__(self, file: BinaryIO, form: FormatName, prefix: bytes) -> None:
        self.records = 0
        self.tombstones = 0
        self.size = 0
        self._file = file
        self._form = FORMATS[form]
        head = Head(prefix)
        self._checksum = checksum_of(head)
        self._write(self._form.head(head))

    def page(self, pairs: list[Pair]) -> None:
        encode = self._form.record
        encoded = [encode(key, record) for key, record in pairs]
        for _, record in pairs:
            self._checksum.update(digest_of(record))
            self.tombstones += is_tombstone(record)
        self.records += len(encoded)
        self._write(b"".join(encoded))

    def end(self, truncation: bytes | None) -> None:
        self._checksum.update(truncation or b"")
        self._write(self._form.end(End(self.records, truncation, self._checksum.digest())))
        self._file.flush()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)


class Reader:
    """Reads one dump: iterate over its records, then use `truncation`. Raises DumpError with file and position."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._name = name
        start = file.peek(1)  # type: ignore[attr-defined]  # every binary reader that open() returns has it
        if not start:
            raise DumpError(f"{name}: empty, not a dump")
        for mark, program in COMPRESSED.items():
            if start.startswith(mark):
                raise DumpError(f"{name}: compressed: unpack it first: {program} < FILE | merklekv load - TARGET")
        self._items = FORMATS["jsonl" if start.startswith(b"{") else "cbor"].read(file)
        try:
            self._where, head = self._next()
        except DumpError as error:
            reason = str(error).removeprefix(f"{name}: ")
            raise DumpError(f"{name}: not a dump, or damaged where it begins: {reason}") from error
        if not isinstance(head, Head):
            raise self._problem("not a dump: it does not begin with a head")
        self._checksum = checksum_of(head)
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
            self._checksum.update(digest_of(item[1]))
            self.records += 1
            yield item

    def _finish(self, end: End) -> None:
        if end.records != self.records:
            raise self._problem(f"the end tells of {end.records} records, but there are {self.records} before it")
        self._checksum.update(end.truncation or b"")
        if end.checksum != self._checksum.digest():
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
            pass  # bytes that are no item are too much, too
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
