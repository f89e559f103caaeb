"""Dumps as CBOR (RFC 8949), for programs: a sequence of data items (RFC 8742), compact and binary-safe.

    55799({"merklekv_dump": 1, "prefix": bytes})
    [key, version, tombstone, digest, value]
    {"end": true, "records": count, "floor": bytes or null, "checksum": bytes}

The tag makes the file begin with d9 d9 f7. Version and floor are 24 bytes, digest and checksum 16, the tombstone
is a truth value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Final, cast

import cbor2

from merklekv.engine.format import DIGEST_AT, VALUE_AT, VERSION_SIZE
from merklekv_tool.dumps import DIGEST_SIZE, DUMP_VERSION, MARK, End, Head, Item, Pair, build_record, check_flags

SELF_DESCRIBED: Final = 55799
RECORD_FIELDS: Final = 5


class Cbor:
    """See `dumps.Format`."""

    def head(self, head: Head) -> bytes:
        fields = {MARK: DUMP_VERSION, "prefix": head.prefix}
        return cbor2.dumps(cbor2.CBORTag(SELF_DESCRIBED, fields))

    def record(self, key: bytes, record: bytes) -> bytes:
        tombstone = check_flags(key, record)
        return cbor2.dumps(
            [key, record[:VERSION_SIZE], tombstone, record[DIGEST_AT:VALUE_AT], record[VALUE_AT:]],
        )

    def end(self, end: End) -> bytes:
        return cbor2.dumps(
            {"end": True, "records": end.records, "floor": end.floor, "checksum": end.checksum},
        )

    def read(self, file: BinaryIO) -> Iterator[tuple[str, Item]]:
        counted = _Counted(file)
        # Reading ahead would hide where an item begins, and a buffered file is read as fast without.
        decoder = cbor2.CBORDecoder(cast(BinaryIO, counted), read_size=1)
        while file.peek(1):  # type: ignore[attr-defined]
            where = f"byte {counted.position}"
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
    """A binary file that knows how much was read of it, seekable or not."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.position += len(data)
        return data


def _item(item: Any) -> Item:
    if isinstance(item, list):
        return _pair(item)
    if not isinstance(item, Mapping):  # not always a dict: what is inside of a tag is frozen
        raise ValueError("neither a record nor the head nor the end of a dump")
    if MARK in item:
        if item[MARK] != DUMP_VERSION:
            raise ValueError(f"a dump of version {item[MARK]!r}: this release reads {DUMP_VERSION}")
        return Head(_bytes(item["prefix"]))
    if item["end"] is not True or not isinstance(item["records"], int):
        raise ValueError("an end that is none")
    return End(item["records"], _floor(item["floor"]), _bytes(item["checksum"]))


def _pair(item: list[Any]) -> Pair:
    if len(item) != RECORD_FIELDS:
        raise ValueError(f"a record of {len(item)} fields: it has {RECORD_FIELDS}")
    key, version, tombstone, digest, value = item
    if not isinstance(tombstone, bool) or len(_bytes(digest)) != DIGEST_SIZE:
        raise ValueError("a record whose tombstone or digest is none")
    return _bytes(key), build_record(_bytes(key), _bytes(version), tombstone, digest, _bytes(value))


def _floor(floor: object) -> bytes | None:
    if floor is not None and len(_bytes(floor)) != VERSION_SIZE:
        raise ValueError(f"a floor that has not {VERSION_SIZE} bytes")
    return None if floor is None else _bytes(floor)


def _bytes(data: object) -> bytes:
    if not isinstance(data, bytes):
        raise ValueError(f"{data!r:.40} where bytes belong")
    return data
