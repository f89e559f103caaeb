"""Dumps as JSON lines: an object a line, for people, `jq` and `diff`.

    {"merklekv_dump":3,"prefix":""}
    {"key":"user:1","version":"1700000000000000000-4f6c...","digest":"9a3e...","value":"text"}
    {"key_base64":"/wA=","version":"...","digest":"...","value_base64":"AAEC"}
    {"key":"session","version":"...","digest":"...","value":"...","exp":1800000000000}
    {"key":"gone","version":"...","digest":"...","tombstone":true}
    {"end":true,"records":4,"truncation":"0-00000000000000000000000000000000","checksum":"5b1f..."}

Bytes that are valid UTF-8 are text; others are base64, in a field whose name ends in `_base64`. A version is the
timestamp in nanoseconds and the op id in hex; `exp` is the expiry, milliseconds since the epoch. A tombstone has no
value. The text is UTF-8; JSON's own escapes are used for what JSON requires and for characters that a terminal would
obey.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from merklekv.engine.record import digest_of, expiry_of, make_version, show_version, value_of
from merklekv.errors import shown
from merklekv.output import printable_json
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

_VERSION: Final = re.compile(r"([0-9]{1,20})-([0-9a-f]{32})", re.ASCII)
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class JsonLines:
    """Encodes and decodes the items of a dump. `read` raises ValueError with the position in front."""

    def head(self, head: Head) -> bytes:
        return _line({MARK: DUMP_VERSION, **field("prefix", head.prefix)})

    def record(self, key: bytes, record: bytes) -> bytes:
        fields = field("key", key)
        fields["version"] = show_version(record)
        fields["digest"] = digest_of(record).hex()
        if check_flags(key, record):
            fields["tombstone"] = True
        value = value_of(record)
        if value or "tombstone" not in fields:
            fields.update(field("value", value))
        expiry = expiry_of(record)
        if expiry is not None:
            fields["exp"] = expiry
        return _line(fields)

    def end(self, end: End) -> bytes:
        truncation = None if end.truncation is None else show_version(end.truncation)
        return _line({"end": True, "records": end.records, "truncation": truncation, "checksum": end.checksum.hex()})

    def read(self, file: BinaryIO) -> Iterator[tuple[str, Item]]:
        for number, line in enumerate(file, 1):
            where = f"line {number}"
            try:
                yield where, _item(line)
            except KeyError as error:
                raise ValueError(f"{where}: the field {error} is missing") from error
            except RecursionError as error:
                raise ValueError(f"{where}: nested too deeply") from error
            except ValueError as error:
                raise ValueError(f"{where}: {_reason(error)}") from error


def _line(fields: dict[str, object]) -> bytes:
    return printable_json(_encode(fields)).encode() + b"\n"


def field(name: str, data: bytes) -> dict[str, object]:
    """A field for bytes: as text, or base64."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def _item(line: bytes) -> Item:
    if not line.endswith(b"\n"):
        raise ValueError("the line is cut short")
    fields = json.loads(line)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    if MARK in fields:
        require_dump_version(fields[MARK])
        return Head(_data(fields, "prefix"))
    if "end" in fields:
        records = fields["records"]
        if not isinstance(records, int):
            raise ValueError("`records` is not a number")
        truncation = None if fields["truncation"] is None else _version(fields["truncation"])
        return End(records, truncation, _hex(fields["checksum"]))
    return _pair(fields)


def _pair(fields: dict[str, Any]) -> Pair:
    key = _data(fields, "key")
    tombstone = fields.get("tombstone") is True
    has_value = not tombstone or "value" in fields or "value_base64" in fields
    value = _data(fields, "value") if has_value else b""
    version, digest = _version(fields["version"]), _hex(fields["digest"])
    return key, build_record(key, version, tombstone, digest, value, fields.get("exp"))


def _data(fields: dict[str, Any], name: str) -> bytes:
    text = fields.get(name)
    if isinstance(text, str):
        return text.encode()
    encoded = fields[f"{name}_base64"] if text is None else None
    if not isinstance(encoded, str):
        raise ValueError(f"`{name}` is not text")
    return base64.b64decode(encoded, validate=True)


def _version(text: object) -> bytes:
    match = _VERSION.fullmatch(text) if isinstance(text, str) else None
    if match is None or int(match[1]) >> 64:
        raise ValueError(f"{shown(text)} is not a version")
    return make_version(int(match[1]), bytes.fromhex(match[2]))


def _hex(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"{shown(text)} is not a digest")
    return bytes.fromhex(text)


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}"
    if isinstance(error, binascii.Error):
        return f"not base64: {error}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start} of the line"
    if isinstance(error, UnicodeEncodeError):
        return "text that is no valid Unicode"
    return str(error)
