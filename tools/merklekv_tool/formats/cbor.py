"""Dumps as CBOR (RFC 8949), for programs: a sequence of data items (RFC 8742), compact and binary-safe.

    55799({"merklekv_dump": 3, "prefix": bytes})
    [key, version, tombstone, digest, value]              and the expiry behind it, if there is one
    {"end": true, "records": count, "truncation": bytes or null, "checksum": bytes}

Through the tag the file begins with d9 d9 f7. Version and truncation version are 24 bytes, digest and checksum 16, the
tombstone is a boolean, the expiry a number of milliseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final, NoReturn, cast

import cbor2

from merklekv.engine.record import DIGEST_SIZE, VERSION_SIZE, digest_of, expiry_of, value_of, version_of
from merklekv_tool.formats.items import (
    DUMP_VERSION,
    MARK,
    End,
    Head,
    Item,
    Pair,
    build_record,
    check_flags,
    require_dump_version,
)

SELF_DESCRIBED: Final = 55799
RECORD_FIELDS: Final = (5, 6)  # without and with an expiry
NESTING_MAX: Final = 4
READS_MAX: Final = 100  # of one item, without those of a long string
READ_BYTES: Final = 1 << 15  # a long string is read in pieces of at least this size


class Cbor:
    """Encodes and decodes the items of a dump. `read` raises ValueError with the position in front."""

    def head(self, head: Head) -> bytes:
        return cbor2.dumps(cbor2.CBORTag(SELF_DESCRIBED, {MARK: DUMP_VERSION, "prefix": head.prefix}))

    def record(self, key: bytes, record: bytes) -> bytes:
        tombstone = check_flags(key, record)
        expiry = [] if (time := expiry_of(record)) is None else [time]
        return cbor2.dumps([key, version_of(record), tombstone, digest_of(record), value_of(record), *expiry])

    def end(self, end: End) -> bytes:
        fields = {"records": end.records, "truncation": end.truncation, "checksum": end.checksum}
        return cbor2.dumps({"end": True, **fields})

    def read(self, file: BinaryIO) -> Iterator[tuple[str, Item]]:
        counted = _Counted(file)
        # Without reading ahead the position of an item is known; the file is buffered, so this is as fast.
        decoder = cbor2.CBORDecoder(
            cast(BinaryIO, counted), read_size=1, semantic_decoders=_OneTag(), max_depth=NESTING_MAX
        )
        while file.peek(1):  # type: ignore[attr-defined]
            where = f"byte {counted.position}"
            counted.begin()
            try:
                yield where, _item(decoder.decode())
            except cbor2.CBORDecodeEOF as error:
                raise ValueError(f"{where}: cut short inside of this item") from error
            except cbor2.CBORDecodeError as error:
                raise ValueError(f"{where}: not CBOR: {error}") from error
            except KeyError as error:
                raise ValueError(f"{where}: the field {error} is missing") from error
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error


class _Counted:
    """A binary file that counts what was read of it, and refuses an item of too many parts.

    One byte can decode to an empty list of 60 bytes, so a small file could take all memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0
        self.begin()

    def begin(self) -> None:
        """Start the next item."""
        self._began = self.position
        self._reads = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.position += len(data)
        self._reads += 1
        if self._reads > READS_MAX + (self.position - self._began) // READ_BYTES:
            raise ValueError("an item of too many parts: no record, head or end of a dump")
        return data


class _OneTag(dict[int, Any]):
    """The decoder's table of tags: only the tag of the head is allowed."""

    def __missing__(self, tag: int) -> Any:
        return _tagged if tag == SELF_DESCRIBED else _refuse


def _tagged(item: Any, frozen: bool) -> Any:
    return item


def _refuse(item: Any, frozen: bool) -> NoReturn:
    raise ValueError("a tag, which no dump has")


def _item(item: Any) -> Item:
    if isinstance(item, list):
        return _pair(item)
    if not isinstance(item, Mapping):  # not always a dict: inside a tag it is frozen
        raise ValueError("neither a record nor the head nor the end of a dump")
    if MARK in item:
        require_dump_version(item[MARK])
        return Head(_bytes(item["prefix"]))
    if item["end"] is not True or not isinstance(item["records"], int):
        raise ValueError("an end that is none")
    return End(item["records"], _truncation(item["truncation"]), _bytes(item["checksum"]))


def _pair(item: list[Any]) -> Pair:
    if len(item) not in RECORD_FIELDS:
        raise ValueError(f"a record of {len(item)} fields: it has {RECORD_FIELDS[0]} or {RECORD_FIELDS[1]}")
    key, version, tombstone, digest, value, *expiry = item
    if not isinstance(tombstone, bool) or len(_bytes(digest)) != DIGEST_SIZE:
        raise ValueError("a record whose tombstone or digest is none")
    if expiry == [None]:
        raise ValueError("a record whose expiry is none")
    return _bytes(key), build_record(_bytes(key), _bytes(version), tombstone, digest, _bytes(value), *expiry)


def _truncation(truncation: object) -> bytes | None:
    if truncation is not None and len(_bytes(truncation)) != VERSION_SIZE:
        raise ValueError(f"a truncation version that has not {VERSION_SIZE} bytes")
    return None if truncation is None else _bytes(truncation)


def _bytes(data: object) -> bytes:
    if not isinstance(data, bytes):
        raise ValueError(f"{data!r:.40} where bytes belong")
    return data
